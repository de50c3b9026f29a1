"""Adams' method on a fixed grid: the weights of all steps are computed at the start.

    predict   p = x + sum_i a_i f_i            f_i the last slopes
    evaluate  f' = drift(p, t')
    correct   x' = x + sum_i b_i f_i           the new slope among them

The slope f' is kept (PEC): one evaluation a step, and the last step is not corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.errors import InvalidInputError
from ....distributions.gaussian import Gaussian
from ....noise.white import Noise
from ....terms import Term
from ...base import Step
from ..gaussian_start import GaussianStart
from ..orders import advised_orders, warn_of_order
from ..weights import lagrange_weights, made_of_grid, summed
from .method import AdamsMethod


@dataclass(frozen=True, slots=True, eq=False)
class AdamsPlan:
    """What all steps of a grid share.

    Attributes:
        keep: how many slopes to keep.
        predictor, corrector: the weights of all steps, the newest slope's first.
        leap: of the Gaussian start, None: there is none.
    """

    keep: int
    predictor: list[list[float]]
    corrector: list[list[float]]
    leap: GaussianStart | None = None

    @classmethod
    def of(
        cls, ts: Tensor, orders: tuple[int, int], leap: GaussianStart | None = None, *, left: int | None = None
    ) -> AdamsPlan:
        """The plan of a grid; with a leap ts[0] and ts[1] are the past times that have slopes.

        Args:
            ts, orders, leap: as `AdamsGrid` has them.
            left: for rough models on the way down, the number of steps, the final denoising included: predictors do not
                extrapolate from the slope at t_max, and order falls over the last steps. None: neither.
        """
        first = 0 if leap is None else 2
        most = [[order] * (len(ts) - 1 - first) for order in orders]
        if left is not None:
            most = [[min(o, left - k + ahead) for k, o in enumerate(row)] for ahead, row in enumerate(most)]
            most[0] = [min(o, max(k, 1)) for k, o in enumerate(most[0])]
        predictor, corrector = (_weights(ts, first, ahead, row) for ahead, row in enumerate(most))
        return cls(max(orders) - 1, predictor, corrector, leap)


@dataclass(slots=True, eq=False)
class AdamsRun:
    """Where a run over a grid stands.

    Attributes:
        plan: of its grid.
        k: which step is next; the leap, where there is one, is step -1.
        x: the state before the last step, corrected.
        slopes: past slopes, the newest first.
    """

    plan: AdamsPlan
    k: int = 0
    x: Any = None
    slopes: Sequence[Tensor] = ()


class AdamsGrid(AdamsMethod):
    """Adams' method on a fixed grid; see `Adams`.

    Args:
        orders: (values of the predictor, values of the corrector), None: those advised.
        leaps, law: the Gaussian start, see `AdamsMethod`.
    """

    def __init__(self, orders: tuple[int, int] | None, *, leaps: bool, law: Gaussian | None) -> None:
        super().__init__(leaps, law)
        self.orders = orders

    def options(self) -> dict[str, Any]:
        return super().options() if self.orders is None else {"order": self.orders, **super().options()}

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> AdamsRun:
        if grid is None:
            raise InvalidInputError(f"{self.name!r} on a grid needs its times: pass steps= instead of a tolerance")
        return self.begin(term, x, grid, denoised=False)

    def begin(self, term: Term, x: Tensor, grid: Tensor, *, denoised: bool) -> AdamsRun:
        n, orders, left = len(grid) - 1, self.orders, None
        if orders is None:
            smooth = term.model is None or term.model.smooth
            orders = advised_orders(n, smooth=smooth, leap=self.leaps)
            left = n + denoised if not smooth and bool(grid[0] > grid[-1]) else None
        else:
            warn_of_order(self.name, orders[0], n)
        if not self.leaps:
            made = AdamsPlan.of
            return AdamsRun(made_of_grid(term, grid, (made, orders, left), lambda: made(grid, orders, left=left)))
        leap = GaussianStart.planned(term, self.law, float(grid[0]), float(grid[1]), x)
        nodes = torch.cat([torch.tensor([leap.past[1], leap.past[0]], dtype=grid.dtype, device="cpu"), grid[1:]])
        return AdamsRun(AdamsPlan.of(nodes, orders, leap), k=-1)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: AdamsRun, noise: Noise) -> Step:
        plan, k = state.plan, state.k
        if k < 0 and plan.leap is not None:
            return Step(plan.leap.at(x, float(t_next)), AdamsRun(plan, 0, x))
        slope = term.drift(x, t)
        slopes = [slope, *state.slopes]
        if k:
            x = summed(state.x, plan.corrector[k - 1], slopes)
        elif plan.leap is not None:
            x, past, _ = plan.leap.corrected(state.x, x, slope)
            slopes = [slope, *past]
        x_next = summed(x, plan.predictor[k], slopes)
        return Step(x_next, AdamsRun(plan, k + 1, x, slopes[: plan.keep]), slope=slope)


def _weights(ts: Tensor, known: int, ahead: int, most: Sequence[int]) -> list[list[float]]:
    """Weights of up to `most` slopes for each step from ts[known] on, the newest slope at its beginning (`ahead` = 0)
    or its end (1)."""
    n = len(ts) - 1 - known
    table: list[list[float]] = [[]] * n
    groups: dict[int, list[int]] = {}
    for k in range(n):
        groups.setdefault(min(most[k], known + k + 1 + ahead), []).append(k)
    for count, rows in groups.items():
        k = torch.tensor(rows, device="cpu") + known
        nodes = ts[k[:, None] + ahead - torch.arange(count, device="cpu")]
        w = lagrange_weights(nodes, ts[k], ts[k + 1], torch.ones_like, lambda u: u)
        for row, i in zip(w.tolist(), rows, strict=True):
            table[i] = row
    return table
