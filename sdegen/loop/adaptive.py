"""Error control: every sample with its own time and step. It leaves the batch when it has arrived or failed, and one of
those that wait takes its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.shapes import all_finite
from ..noise.brownian import RefinablePath
from ..noise.white import Noise
from ..solvers import Solver, Step
from ..solvers.advice import advise
from ..solvers.base import reverted
from ..solvers.tolerance import Tolerance, effective_variance, resolution, share_of
from ..terms import Counted
from .breaks import Breaks
from .ending import Reached, finite
from .plan import Plan
from .record import OwnPath
from .solution import ARRIVED, MAX_STEPS, NON_FINITE, UNDERFLOW


@dataclass(slots=True, eq=False)
class Begun:
    """Samples that wait for a place in the batch, with their first evaluation behind them.

    Attributes:
        rows: which of the whole they are.
        nfe: (B,) their evaluations.
        noise: theirs; None where nothing is drawn.
        x, t, state: where they begin.
        h: their first step.
        gone: how many of them, the first, wait no more.
    """

    rows: Tensor
    nfe: Tensor
    noise: Noise | None
    x: Tensor
    t: Tensor
    state: Any
    h: Tensor
    gone: int = 0

    def __len__(self) -> int:
        return len(self.rows) - self.gone

    def take(self, n: int, solver: Solver) -> Begun:
        """The next n of them, which wait no more."""
        some = torch.arange(self.gone, self.gone + n, device=self.rows.device)
        self.gone += n
        state, noise = solver.select(self.state, some, self.x), None if self.noise is None else self.noise.select(some)
        return Begun(self.rows[some], self.nfe[some], noise, self.x[some], self.t[some], state, self.h[some])


class Adaptive:
    """Samples under error control, as many at once as a batch has places.

    Those that wait make their first evaluation as many at a time as there are places, so that they can take free ones
    at once: hardly a call has empty places before none waits.

    Args:
        plan: with a tolerance.
        term: the equation.
        x: (B, *event), the state at the plan's first time.
        noise: of these samples; a refused step is refined, never drawn anew.
        places: of the batch, None: one for each sample. More samples than that need a solver that `refills`.
    """

    def __init__(self, plan: Plan, term: Counted, x: Tensor, noise: Noise, places: int | None = None) -> None:
        self.plan, self.term, self.starts = plan, term, x
        self.drawn = RefinablePath.of(noise) if plan.noisy else noise
        b, device = x.shape[0], x.device
        self.places = min(places or b, b)
        self.next = 0  # the first sample that has not begun
        self.begun: Begun | None = None  # those that have; some of them wait
        self.rows = torch.arange(0, device=device)  # which samples are in the batch
        self.length = abs(plan.end - plan.start)
        self.end = torch.tensor(plan.end, dtype=torch.float64, device=device)
        advice = advise(plan.solver, term, tolerance=plan.tolerance)
        self.first, self.cap = (plan.end - plan.start) * advice.first, self.length * advice.largest
        self.steps = 0  # made by the batch
        # results, one row a sample
        self.out = x.clone()
        self.status = torch.full((b,), MAX_STEPS, dtype=torch.int64, device=device)
        self.stopped_at = torch.full((b,), plan.start, dtype=torch.float64, device=device)
        self.nfe, self.taken, self.refused = (torch.zeros_like(self.status) for _ in range(3))
        self.path = OwnPath(plan.save, self.stopped_at.clone(), x)
        self.tolerance = _measured(plan.tolerance, term, x)  # type: ignore[arg-type]
        self.variance = effective_variance(term, x) if plan.end < plan.start else None
        self.breaks = Breaks.between(term, plan)

    def run(self, report: Callable[[float], None]) -> Reached:
        plan = self.plan
        if plan.start == plan.end:
            self.status.fill_(ARRIVED)  # from t_min to 0: only the final denoising is left
        else:
            state = self._fill(self._begin())
            while n := self.rows.shape[0]:
                report(1 - (self._waiting() + n) / len(self.out))
                state = self._advance(state)
        return Reached(
            x=self.out,
            path=self.path,
            t=self.stopped_at.cpu(),
            status=self.status.cpu(),
            nfe=self.nfe.cpu(),
            accepted=self.taken.cpu(),
            rejected=self.refused.cpu(),
        )

    # ---- who is in the batch

    def _waiting(self) -> int:
        """How many samples are still to come."""
        return len(self.out) - self.next + (len(self.begun) if self.begun else 0)

    def _begin(self) -> Begun:
        """The next samples, as many as there are places, where they enter error control."""
        rows = torch.arange(self.next, min(self.next + self.places, len(self.out)), device=self.rows.device)
        alone, t = len(rows) == len(self.out), self.stopped_at[rows]
        x, noise = (self.starts, self.drawn) if alone else (self.starts[rows], self.drawn.select(rows))
        term = self.term.part(rows)
        entry = self.plan.solver.enter(term, x, t, self.tolerance, noise, end=self.plan.end)
        self.next += len(rows)
        self.term.calls += term.calls
        h = torch.full_like(entry.t, self.first)
        if entry.h is not None:
            h = torch.where(entry.h.abs() > abs(self.first), entry.h, h)
        if entry.t is not t:  # some began with a step in closed form
            self.path.add(rows, entry.t != t, t, entry.t, x, Step(entry.x))
        return Begun(rows, term.counts(rows), noise if self.plan.noisy else None, entry.x, entry.t, entry.state, h)

    def _fill(self, new: Begun) -> Any:
        """Fill the places with the first samples; the state of the batch then."""
        self.rows, self.x, self.t, self.noise = new.rows, new.x, new.t, self.drawn if new.noise is None else new.noise
        self.h, self.rejected = new.h, torch.zeros_like(new.rows)
        self.since = torch.zeros_like(new.rows)
        self.term.restart(new.nfe, self.rows)
        if self.breaks is not None:
            self.breaks.begin(self.rejected)
        return new.state

    def _refill(self, free: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Give free places to samples that wait; the places that are still free, and the state of the batch then."""
        while len(free) and self._waiting():
            if not self.begun:
                self.begun = self._begin()
            new = self.begun.take(min(len(free), len(self.begun)), self.plan.solver)
            at, free = free[: len(new)], free[len(new) :]
            state = self.plan.solver.replace(state, at, new.state, self.x)
            self.rows, self.x = self.rows.index_copy(0, at, new.rows), self.x.index_copy(0, at, new.x)
            self.t, self.h = self.t.index_copy(0, at, new.t), self.h.index_copy(0, at, new.h)
            self.since, self.rejected = self.since.index_fill(0, at, self.steps), self.rejected.index_fill(0, at, 0)
            if isinstance(self.noise, RefinablePath):  # what a path has drawn is kept
                self.noise = self.noise.replace(at, new.noise)  # type: ignore[arg-type]
            elif self.plan.noisy:
                self.noise = self.drawn.select(self.rows)
            self.term.replace(at, new.nfe, self.rows)
            if self.breaks is not None:
                self.breaks.replace(at)
        return free, state

    # ---- steps

    def _advance(self, state: Any) -> Any:
        """One step of every sample in the batch."""
        plan = self.plan
        t_next, last = self._next_times()
        step = plan.solver.step(self.term, self.x, self.t, t_next, state, self.noise)
        if step.x.dtype != self.x.dtype or step.x.shape != self.x.shape:
            raise _unlike(plan.solver, step.x, self.x)
        accept, factor, after = plan.solver.judge(step, self.x, state, self._allowed(t_next))
        factor = factor.nan_to_num(0.1)
        good = _finite_steps(step)
        if good is not None:
            accept, factor = accept & good, torch.where(good, factor, 0.1)
        self.path.add(self.rows, accept, self.t, t_next, self.x, step)
        refused = (~accept).nonzero().flatten()
        self.h = (t_next - self.t) * factor
        self.x, self.t = reverted(step.x, self.x, refused), reverted(t_next, self.t, refused)
        self.steps += 1
        done = None if last is None else accept & last
        if done is not None and self.breaks is not None and bool(done.any()):
            done, after = self._crossed(done, after)
        if refused.shape[0]:
            self.rejected = self.rejected + ~accept
            stuck = ~accept & (self.h.abs() < resolution(self.t, self.length))
            done = stuck if done is None else done | stuck
        return self._without(done, accept, good, after)

    def _next_times(self) -> tuple[Tensor, Tensor | None]:
        """Where the next step of each sample ends, and whose is the last one, up to the end or a break; None: of
        none."""
        goal = self.end if self.breaks is None else self.breaks.goal(self.t)
        part = self.h.clamp(-self.cap, self.cap) / (goal - self.t)  # of the way that is left
        last = part >= 1 - 1e-9 if float(part.max()) >= 1 - 1e-9 else None
        part = part.clamp_max(0.5)  # the last two steps are equal
        return torch.lerp(self.t, goal, part if last is None else part.masked_fill(last, 1.0)), last

    def _without(self, done: Tensor | None, accept: Tensor, good: Tensor | None, state: Any) -> Any:
        """Let those go who are done, or have made all the steps they may."""
        gone = done
        if self.steps >= self.plan.max_steps:
            late = self.steps - self.since >= self.plan.max_steps
            gone = late if done is None else done | late
        if gone is None or not len(who := gone.nonzero().flatten()):
            return state
        code = torch.where(accept[who], ARRIVED, UNDERFLOW)
        code = code if good is None else torch.where(good[who], code, NON_FINITE)
        if gone is not done:
            code = code.fill_(MAX_STEPS) if done is None else torch.where(done[who], code, MAX_STEPS)
        self._write(who, code)
        who, state = self._refill(who, state)
        return self._shrink(_others(who, len(self.rows)), state) if len(who) else state

    def _crossed(self, landed: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take the samples that landed at a break to its other side and begin anew there; who landed at the end."""
        rows = (landed & ~self.breaks.over).nonzero().flatten()  # type: ignore[union-attr]
        if not len(rows):
            return landed, state
        self.t = self.t.index_copy(0, rows, self.breaks.cross(rows))  # type: ignore[union-attr]
        state, factor = self.plan.solver.restart(self.term, self.x, self.t, state, rows)
        if factor is not None:
            self.h = self.h.index_copy(0, rows, self.h[rows] * factor.to(self.h))
        return landed.index_fill(0, rows, False), state

    def _allowed(self, t: Tensor) -> Tolerance:
        """The tolerance at t, of which errors at high noise in wide data have a share only."""
        if self.variance is None:
            return self.tolerance
        one, share = self.tolerance, share_of(self.term.sde, self.variance, t)
        return Tolerance(one.rtol, one.atol, share if one.share == 1.0 else share * one.share, one.measured)

    def _write(self, who: Tensor, code: Tensor) -> None:
        """Write down the samples that are done."""
        rows, refused = self.rows[who], self.rejected[who]
        self.out.index_copy_(0, rows, self.x[who])
        self.stopped_at.index_copy_(0, rows, self.t[who])
        self.status.index_copy_(0, rows, code)
        self.nfe.index_copy_(0, rows, self.term.counts(rows, who))
        self.taken.index_copy_(0, rows, self.steps - self.since[who] - refused)
        self.refused.index_copy_(0, rows, refused)

    def _shrink(self, keep: Tensor, state: Any) -> Any:
        """Go on with some of the samples only; the state of the batch then."""
        state = self.plan.solver.select(state, keep, self.x)
        self.rows, self.x, self.t, self.h = self.rows[keep], self.x[keep], self.t[keep], self.h[keep]
        self.rejected, self.since = self.rejected[keep], self.since[keep]
        if self.plan.noisy:
            self.noise = self.noise.select(keep)
        self.term.restrict(keep)
        if self.breaks is not None:
            self.breaks.restrict(keep)
        return state


def _others(rows: Tensor, n: int) -> Tensor:
    """Which of n are not among these."""
    return torch.ones(n, dtype=torch.bool, device=rows.device).index_fill(0, rows, False).nonzero().flatten()


def _measured(tolerance: Tolerance, term: Counted, x: Tensor) -> Tolerance:
    """The tolerance for a state of which only a part counts as data (`Term.measured`).

    Errors e of all numbers are measured as (sum e^2/d)^(1/2), d the numbers of the data alone: numbers that travel
    beside the data change neither d nor the scale.
    """
    part = term.measured(x)
    if part is x:
        return tolerance
    return replace(tolerance, share=math.sqrt(part.numel() / x.numel()), measured=term.measured)


def _unlike(solver: Solver, got: Tensor, x: Tensor) -> InvalidInputError:
    return InvalidInputError(
        f"{solver.name!r} made of x another tensor: got {got.dtype} {tuple(got.shape)}, expected {x.dtype} "
        f"{tuple(x.shape)}; under error control times are float64 of shape (B,): shape what multiplies x as "
        "h.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))"
    )


def _finite_steps(step: Step) -> Tensor | None:
    """(B,) which samples' steps are finite; None on the CPU where a look at the whole batch, the cheapest, says all."""
    parts = [step.x.detach()]
    if step.error is not None:  # a NaN at the step's very end is in its estimate alone
        parts.append(step.error.detach())
    if all(map(all_finite, parts)):
        return None
    return finite(*parts)
