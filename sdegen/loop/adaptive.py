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
        term: which counted it, of all that began with them.
        chosen: which of those they are, None: all.
        noise: theirs.
        x, t, state: where they begin.
    """

    rows: Tensor
    term: Counted
    chosen: Tensor | None
    noise: Noise
    x: Tensor
    t: Tensor
    state: Any

    def cut(self, solver: Solver, where: slice) -> Begun:
        """Some of them, by their positions."""
        keep = torch.arange(len(self.rows), device=self.rows.device)[where]
        chosen = keep if self.chosen is None else self.chosen[keep]
        rows, noise, state = self.rows[keep], self.noise.select(keep), solver.select(self.state, keep, self.x)
        return Begun(rows, self.term, chosen, noise, self.x[keep], self.t[keep], state)


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
        self.begun: Begun | None = None  # those that have, and wait
        self.rows = torch.arange(0, device=device)  # which samples are in the batch
        self.length = abs(plan.end - plan.start)
        self.sign = 1.0 if plan.end > plan.start else -1.0
        advice = advise(plan.solver, term, tolerance=plan.tolerance)
        self.first, self.cap = self.length * advice.first, self.length * advice.largest
        self.steps = 0  # made by the batch
        # results, one row a sample
        self.out = x.clone()
        self.status = torch.full((b,), MAX_STEPS, dtype=torch.int64, device=device)
        self.stopped_at = torch.full((b,), plan.start, dtype=torch.float64, device=device)
        self.nfe, self.taken, self.refused = (torch.zeros_like(self.status) for _ in range(3))
        self.path = OwnPath(plan.save, self.stopped_at.clone(), x)
        self.tolerance = _measured(plan.tolerance, term, x)  # type: ignore[arg-type]
        self.variance = effective_variance(term, x) if self.sign < 0 else None
        self.breaks = Breaks.between(term, plan)

    def run(self, report: Callable[[float], None]) -> Reached:
        plan = self.plan
        if plan.start == plan.end:
            self.status.fill_(ARRIVED)  # from t_min to 0: only the final denoising is left
        else:
            state = None
            while True:
                while (free := self.places - len(self.rows)) and (self.begun or self.next < len(self.out)):
                    waiting = self.begun or self._begin()
                    state = self._filled(state, waiting, free)
                if not len(self.rows):
                    break
                state = self._advance(state)
                left = len(self.out) - self.next + (len(self.begun.rows) if self.begun else 0)
                report(1 - (left + len(self.rows)) / len(self.out))
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

    def _filled(self, state: Any, waiting: Begun, free: int) -> Any:
        """Give so many free places to samples that wait; the state of the batch then."""
        self.begun = None
        if len(waiting.rows) > free:
            waiting, self.begun = (waiting.cut(self.plan.solver, part) for part in (slice(free), slice(free, None)))
        return self._joined(state, waiting)

    def _begin(self) -> Begun:
        """The next samples, as many as there are places, where they enter error control."""
        rows = torch.arange(self.next, min(self.next + self.places, len(self.out)), device=self.rows.device)
        alone, t = len(rows) == len(self.out), self.stopped_at[rows]
        x, noise = (self.starts, self.drawn) if alone else (self.starts[rows], self.drawn.select(rows))
        term = self.term.part(rows)
        entry = self.plan.solver.enter(term, x, t, self.tolerance, noise)
        self.next += len(rows)
        self.term.calls += term.calls
        return Begun(rows, term, None, noise, entry.x, entry.t, entry.state)

    def _joined(self, state: Any, new: Begun) -> Any:
        """Put samples into the batch; its state then."""
        h, none = torch.full_like(new.t, self.first), torch.zeros_like(new.rows)
        since = none + self.steps
        if not len(self.rows):
            self.rows, self.x, self.t, self.noise, state = new.rows, new.x, new.t, new.noise, new.state
            self.h, self.since, self.rejected = h, since, none
        else:
            state = self.plan.solver.join(state, new.state, self.x, new.x)
            self.rows, self.x = torch.cat([self.rows, new.rows]), torch.cat([self.x, new.x])
            old, path = self.noise, isinstance(self.noise, RefinablePath)  # what a path has drawn is kept
            self.noise = old.join(new.noise) if path else self.drawn.select(self.rows)  # type: ignore
            self.t, self.h = torch.cat([self.t, new.t]), torch.cat([self.h, h])
            self.since, self.rejected = torch.cat([self.since, since]), torch.cat([self.rejected, none])
        self.term.join(new.term, self.rows, new.chosen)
        if self.breaks is not None:
            self.breaks.join(none)
        return state

    # ---- steps

    def _advance(self, state: Any) -> Any:
        """One step of every sample in the batch."""
        plan = self.plan
        goal = self.breaks.goal(self.t) if self.breaks is not None else plan.end
        left = (goal - self.t).abs()
        h = self.h.clamp_max(self.cap)
        last = h >= left * (1 - 1e-9)
        h = torch.where(last, left, torch.minimum(h, left / 2))  # the last two steps are equal
        t_next = torch.where(last, goal, self.t + self.sign * h)
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
        self.x, self.t = reverted(step.x, self.x, refused), reverted(t_next, self.t, refused)
        self.h, self.steps = h * factor, self.steps + 1
        done = accept & last
        if self.breaks is not None and bool(done.any()):
            done, after = self._crossed(done, after)
        if len(refused):
            self.rejected = self.rejected + ~accept
            done = done | ~accept & (self.h < resolution(self.t, self.length))
        gone = done if self.steps < plan.max_steps else done | (self.steps - self.since >= plan.max_steps)
        if not bool(gone.any()):
            return after
        code = torch.where(accept, ARRIVED, UNDERFLOW)
        code = code if good is None else torch.where(good, code, NON_FINITE)
        return self._leave(gone, after, torch.where(done, code, MAX_STEPS))

    def _crossed(self, landed: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take the samples that landed at a break to its other side and begin anew there; who landed at the end."""
        rows = (landed & ~self.breaks.over).nonzero().flatten()  # type: ignore[union-attr]
        if not len(rows):
            return landed, state
        self.t = self.t.index_copy(0, rows, self.breaks.cross(rows))  # type: ignore[union-attr]
        state, factor = self.plan.solver.restart(self.term, self.x, self.t, state, rows)
        if factor is not None:
            self.h = self.h.index_copy(0, rows, (self.h[rows] * factor.to(self.h)).clamp(max=self.cap))
        return landed.index_fill(0, rows, False), state

    def _allowed(self, t: Tensor) -> Tolerance:
        """The tolerance at t, of which errors at high noise in wide data have a share only."""
        if self.variance is None:
            return self.tolerance
        return replace(self.tolerance, share=share_of(self.term.sde, self.variance, t) * self.tolerance.share)

    def _leave(self, who: Tensor, state: Any, code: Tensor) -> Any:
        """Write down the samples that are done and go on with the others."""
        rows = self.rows[who]
        self.out[rows], self.stopped_at[rows] = self.x[who], self.t[who]
        self.status[rows] = code[who]
        self.nfe[rows] = self.term.counts(self.rows)[who]
        self.taken[rows], self.refused[rows] = (self.steps - self.since - self.rejected)[who], self.rejected[who]
        keep = (~who).nonzero().flatten()
        state = self.plan.solver.select(state, keep, self.x)
        self.rows, self.x, self.t, self.h = self.rows[keep], self.x[keep], self.t[keep], self.h[keep]
        self.rejected, self.since = self.rejected[keep], self.since[keep]
        self.noise = self.noise.select(keep)
        self.term.restrict(keep)
        if self.breaks is not None:
            self.breaks.restrict(keep)
        return state


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
    if step.x.device.type == "cpu" and all(math.isfinite(float(part.sum())) for part in parts):
        return None
    return finite(*parts)
