"""Adams' method on a fixed grid: the weights of all steps are computed at the start.

    predict   p = x + sum_i a_i f_i            f_i the last slopes
    evaluate  f' = drift(p, t')
    correct   x' = x + sum_i b_i f_i           the new slope among them

The slope f' is kept (PEC): one evaluation a step, and the last step is not corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from ..weights import lagrange_weights, summed
from .method import AdamsMethod


@dataclass(slots=True, eq=False)
class AdamsRun:
    """Where a run over a grid stands.

    Attributes:
        keep: how many slopes to keep.
        predictor, corrector: the weights of all steps, the newest slope's first.
        k: which step is next; the leap, where there is one, is step -1.
        x: the state before the last step, corrected.
        slopes: past slopes, the newest first.
        leap: of the Gaussian start.
    """

    keep: int
    predictor: list[list[float]]
    corrector: list[list[float]]
    k: int = 0
    x: Any = None
    slopes: Sequence[Tensor] = ()
    leap: GaussianStart | None = None

    @classmethod
    def planned(cls, ts: Tensor, orders: tuple[int, int], known: int = 0) -> AdamsRun:
        """The run from ts[known] on; the times before it have slopes, too."""
        predictor, corrector = orders
        ahead, back = (_weights(ts, known, first, most) for first, most in ((0, predictor), (1, corrector)))
        return cls(max(predictor, corrector) - 1, ahead, back)


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
        n, orders = len(grid) - 1, self.orders
        if orders is None:
            orders = advised_orders(n, smooth=term.model is None or term.model.smooth, leap=self.leaps)
        else:
            warn_of_order(self.name, orders[0], n)
        if not self.leaps:
            return AdamsRun.planned(grid, orders)
        leap = GaussianStart.planned(term, self.law, float(grid[0]), float(grid[1]), x)
        nodes = torch.cat([torch.tensor([leap.past[1], leap.past[0]], dtype=grid.dtype), grid[1:]])
        return replace(AdamsRun.planned(nodes, orders, known=2), leap=leap, k=-1)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: AdamsRun, noise: Noise) -> Step:
        if state.k < 0 and state.leap is not None:
            return Step(state.leap.at(x, float(t_next)), replace(state, k=0, x=x))
        slope = term.drift(x, t)
        slopes = [slope, *state.slopes]
        if state.k:
            x = summed(state.x, state.corrector[state.k - 1], slopes)
        elif state.leap is not None:
            x, past, _ = state.leap.corrected(state.x, x, slope)
            slopes = [slope, *past]
        x_next = summed(x, state.predictor[state.k], slopes)
        after = replace(state, k=state.k + 1, x=x, slopes=slopes[: state.keep])
        return Step(x_next, after, slope=slope)


def _weights(ts: Tensor, known: int, first: int, most: int) -> list[list[float]]:
    """Weights of up to `most` slopes for each step from ts[known] on, the newest slope at its beginning (`first` = 0)
    or its end (1)."""
    n = len(ts) - 1 - known
    table: list[list[float]] = [[]] * n
    groups: dict[int, list[int]] = {}
    for k in range(n):
        groups.setdefault(min(most, known + k + 1 + first), []).append(k)
    for count, rows in groups.items():
        k = torch.tensor(rows) + known
        nodes = ts[k[:, None] + first - torch.arange(count)]
        w = lagrange_weights(nodes, ts[k], ts[k + 1], torch.ones_like, lambda u: u)
        for row, i in zip(w.tolist(), rows, strict=True):
            table[i] = row
    return table
