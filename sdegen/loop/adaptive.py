"""Error control: every sample with its own time and step; it leaves the batch when it has arrived or failed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
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
from .ending import Reached, finite
from .plan import Plan
from .record import OwnPath
from .solution import ARRIVED, MAX_STEPS, NON_FINITE, UNDERFLOW

_BESIDE = 1e-8  # in log(alpha/sigma): how near a break steps end and begin


class Adaptive:
    """One batch under error control.

    Args:
        plan: with a tolerance.
        term: the equation.
        x: (B, *event), the state at the plan's first time.
        noise: of these samples; a refused step is refined, never drawn anew.
    """

    def __init__(self, plan: Plan, term: Counted, x: Tensor, noise: Noise) -> None:
        self.plan, self.term, self.x = plan, term, x
        self.noise = RefinablePath.of(noise) if plan.noisy else noise
        b, device = x.shape[0], x.device
        self.rows = torch.arange(b, device=device)  # which samples are still in the batch
        self.length = abs(plan.end - plan.start)
        self.sign = 1.0 if plan.end > plan.start else -1.0
        self.t = torch.full((b,), plan.start, dtype=torch.float64, device=device)
        advice = advise(plan.solver, term, tolerance=plan.tolerance)
        self.h, self.cap = torch.full_like(self.t, self.length * advice.first), self.length * advice.largest
        self.tried = 0  # steps, by all samples in the batch
        self.rejected = torch.zeros(b, dtype=torch.int64, device=device)
        # results, one row a sample
        self.out = x.clone()
        self.status = torch.full((b,), MAX_STEPS, dtype=torch.int64, device=device)
        self.stopped_at = self.t.clone()
        self.nfe, self.taken, self.refused = (torch.zeros_like(self.rejected) for _ in range(3))
        self.path = OwnPath(plan.save, self.t, x)
        self.tolerance = _measured(plan.tolerance, term, x)  # type: ignore[arg-type]
        self.variance = effective_variance(term, x) if self.sign < 0 else None
        self.breaks = Breaks.between(term, plan, b)

    def run(self, report: Callable[[float], None]) -> Reached:
        plan = self.plan
        if plan.start == plan.end:
            self.status.fill_(ARRIVED)  # from t_min to 0: only the final denoising is left
        else:
            entry = plan.solver.enter(self.term, self.x, self.t, self.tolerance, self.noise)
            self.x, self.t, state = entry.x, entry.t, entry.state
            for _ in range(plan.max_steps):
                state = self._advance(state)
                report(1 - len(self.rows) / len(self.out))
                if not len(self.rows):
                    break
            self._leave(torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device), state, MAX_STEPS)
        return Reached(
            x=self.out,
            path=self.path,
            t=self.stopped_at.cpu(),
            status=self.status.cpu(),
            nfe=self.nfe.cpu(),
            accepted=self.taken.cpu(),
            rejected=self.refused.cpu(),
        )

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
        self.h, self.tried = h * factor, self.tried + 1
        done = accept & last
        if self.breaks is not None and bool(done.any()):
            done, after = self._crossed(done, after)
        if len(refused):
            self.rejected = self.rejected + ~accept
            done = done | ~accept & (self.h < resolution(self.t, self.length))
        if bool(done.any()):
            code = torch.where(accept, ARRIVED, UNDERFLOW)
            after = self._leave(done, after, code if good is None else torch.where(good, code, NON_FINITE))
        return after

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

    def _leave(self, who: Tensor, state: Any, code: Any) -> Any:
        """Write down the samples that are done and go on with the others."""
        rows = self.rows[who]
        self.out[rows], self.stopped_at[rows] = self.x[who], self.t[who]
        self.status[rows] = code[who] if isinstance(code, Tensor) else code
        self.nfe[rows] = self.term.counts(self.rows)[who]
        self.taken[rows], self.refused[rows] = self.tried - self.rejected[who], self.rejected[who]
        keep = (~who).nonzero().flatten()
        state = self.plan.solver.select(state, keep, self.x)
        self.rows, self.x, self.t, self.h = self.rows[keep], self.x[keep], self.t[keep], self.h[keep]
        self.rejected = self.rejected[keep]
        self.noise = self.noise.select(keep)
        self.term.restrict(keep)
        if self.breaks is not None:
            self.breaks.restrict(keep)
        return state


class Breaks:
    """Where on their way the samples of a batch meet jumps of the drift.

    Args:
        before, after: (n,) float64, times on either side of each break, as they are met.
        end: the last time.
        batch: how many samples.
    """

    def __init__(self, before: Tensor, after: Tensor, end: float, batch: int) -> None:
        self.after = after
        self.goals = torch.cat([before, before.new_tensor([end])])
        self.met = torch.zeros(batch, dtype=torch.int64, device=before.device)

    @classmethod
    def between(cls, term: Counted, plan: Plan, batch: int) -> Breaks | None:
        """Those inside of a plan's span; None: there are none, or noise, which jumps everywhere."""
        levels = [] if plan.noisy else sorted(term.breaks(), reverse=plan.end < plan.start)
        if not levels:
            return None
        log_snr = -torch.tensor(levels, dtype=torch.float64, device="cpu").log()
        sides = torch.stack([term.sde.time(log_snr - _BESIDE), term.sde.time(log_snr + _BESIDE)])  # type: ignore[union-attr]
        low, high = sorted((plan.start, plan.end))
        inside = (sides.amin(0) > low) & (sides.amax(0) < high)
        before, after = sides[:, inside] if plan.end < plan.start else sides[:, inside].flip(0)
        return cls(before, after, plan.end, batch) if len(before) else None

    def goal(self, t: Tensor) -> Tensor:
        """Up to where each sample's next step may go, (B,)."""
        return self.goals.to(t.device)[self.met.to(t.device)]

    @property
    def over(self) -> Tensor:
        """Which samples have no break ahead."""
        return self.met == len(self.after)

    def cross(self, rows: Tensor) -> Tensor:
        """The times beyond the break that these samples are at."""
        found = self.after.to(rows.device)[self.met[rows]]
        self.met = self.met.index_add(0, rows, torch.ones_like(rows))
        return found

    def restrict(self, keep: Tensor) -> None:
        self.met = self.met[keep]


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
