"""Another library's loop, which steps the batch together: samples that fail leave it, and the others start again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..noise.white import Noise
from ..solvers import Outcome, OutsideSolver, Step
from ..terms import Counted
from .ending import Reached, finite
from .plan import Plan
from .record import SharedPath
from .solution import ARRIVED, NON_FINITE, code_of


class Outside:
    """One batch on another library's loop.

    Args:
        plan, term, x, noise: as of every loop.
        solver: the plan's.
    """

    def __init__(self, plan: Plan, term: Counted, x: Tensor, noise: Noise, solver: OutsideSolver) -> None:
        self.plan, self.term, self.x, self.noise, self.solver = plan, term, x, noise, solver
        b = x.shape[0]
        self.rows = torch.arange(b, device="cpu")  # which samples are in the batch
        self.parts: list[tuple[Tensor, Outcome]] = []  # what became of which samples
        self.status = torch.full((b,), ARRIVED, dtype=torch.int64, device="cpu")
        self.t = torch.full((b,), plan.end, dtype=torch.float64, device="cpu")
        self.nfe, self.accepted, self.rejected = (torch.zeros(b, dtype=torch.int64, device="cpu") for _ in range(3))

    def run(self) -> Reached:
        plan, ts = self.plan, self._reported()
        if len(ts) == 1:  # from t_min to 0: only the final denoising is left
            return self._reached(ts, self.x[None])
        budget, x = plan.max_steps, self.x
        while len(self.rows):
            outcome = self.solver.integrate(
                self.term,
                x,
                ts,
                tolerance=plan.tolerance,
                noise=self.noise,
                max_steps=budget,
                every=isinstance(plan.save, str) and plan.save == "all",
            )
            self._note(outcome)
            if outcome.failure is None:
                break
            budget = max(1, budget - outcome.accepted - outcome.rejected)
            x = self.x[self.rows.to(x.device)]
        return self._reached(*self._joined())

    def _reported(self) -> Tensor:
        """The grid, or under error control the ends and the times to save."""
        plan = self.plan
        if plan.tolerance is None:
            return plan.times
        low, high = sorted((plan.start, plan.end))
        wanted = plan.save if isinstance(plan.save, Tensor) else torch.empty(0, dtype=torch.float64, device="cpu")
        inner = wanted[(wanted > low) & (wanted < high)]
        ts = torch.unique(torch.cat([torch.tensor(sorted({low, high}), dtype=torch.float64, device="cpu"), inner]))
        return ts.flip(0) if plan.end < plan.start else ts

    def _note(self, outcome: Outcome) -> None:
        """Write down what came of the samples in the batch, and go on with those that did not fail."""
        rows = self.rows
        self.nfe[rows] = self.term.counts(rows)
        self.accepted[rows], self.rejected[rows] = outcome.accepted, outcome.rejected
        self.parts.append((rows, outcome))
        if outcome.failure is None:
            good = torch.stack([finite(x) for x in outcome.xs]).cpu()
            node = (~good).int().argmax(0)  # the first that is not
            failed = ~good.all(0)
            self.status[rows[failed]] = NON_FINITE
            self.t[rows[failed]], self.accepted[rows[failed]] = outcome.ts[node[failed] - 1], node[failed] - 1
            return
        failed = (
            torch.ones(len(rows), dtype=torch.bool, device="cpu") if outcome.failed is None else outcome.failed.cpu()
        )
        self.status[rows[failed]] = code_of(outcome.failure)
        self.t[rows[failed]] = outcome.t
        keep = (~failed).nonzero().flatten()
        self.rows, self.noise = rows[keep], self.noise.select(keep)
        self.term.restrict(keep)

    def _joined(self) -> tuple[Tensor, Tensor]:
        """The times of the last run, and the states of all samples there."""
        rows, last = self.parts[-1]
        if len(rows) == len(self.x):
            return last.ts, last.xs
        xs = self.x[None].repeat(len(last.ts), *(1,) * self.x.ndim)
        for rows, outcome in self.parts:
            same = torch.equal(outcome.ts, last.ts)
            part = outcome.xs if same else torch.cat([outcome.xs[:1], outcome.xs[-1:].expand_as(xs[1:, rows])])
            xs = xs.index_copy(1, rows.to(xs.device), part)
        return last.ts, xs

    def _reached(self, ts: Tensor, xs: Tensor) -> Reached:
        path = SharedPath(self.plan.save, ts[0], self.x)
        for k in range(len(ts) - 1):
            path.add(ts[k], ts[k + 1], xs[k], Step(xs[k + 1]))
        return Reached(xs[-1], path, self.t, self.status, self.nfe, self.accepted, self.rejected)
