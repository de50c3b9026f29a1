"""Adams' method on a fixed grid: the weights of all steps are computed at the start.

    predict   p = x + sum_i a_i f_i            f_i the last slopes
    evaluate  f' = drift(p, t')
    correct   x' = x + sum_i b_i f_i           the new slope among them

The slope f' is kept (PEC): one evaluation a step, and the last step is not corrected. Where few steps are all there is,
two things that are known stand for evaluations. At a t_max far above the data a model says their mean and nothing else,
so that on the circular path, centred, the first slope is 0. And a last step that lands on 0 goes a part of its way,
3/n |f|^2/s^2 of n steps, to what the model says the clean data are, D = x cos t - f sin t, and the rest along the
slope: D is the end of data that are told by then, for which |f|^2 (the mean over the event) is s^2 on the average;
where it is 0 nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.errors import InvalidInputError
from ....core.shapes import event_mean, expand
from ....distributions.gaussian import Gaussian
from ....noise.white import Noise
from ....terms import Term
from ...base import Step
from ..gaussian_start import GaussianStart
from ..orders import advised_orders, warn_of_order
from ..weights import lagrange_weights, made_of_grid, summed
from .method import AdamsMethod

_DOUBT = 0.4  # of its weight that the slope at t_max has in the second corrector of a rough model
# Of a grid that lands on 0, both measured:
_SURE = 10  # steps from which on the second predictor does not extrapolate from it; of n < 10 by 1 - n/10
_SETTLES = 3  # over the steps, the part of the last one that lands on what the model says


@dataclass(frozen=True, slots=True, eq=False)
class AdamsPlan:
    """What all steps of a grid share.

    Attributes:
        keep: how many slopes to keep.
        predictor, corrector: the weights of all steps, the newest slope's first.
        leap: of the Gaussian start, None: there is none.
        rests: whether the first slope is known to be 0.
        settles: the part of the last step that is made to what the clean data are.
    """

    keep: int
    predictor: list[list[float]]
    corrector: list[list[float]]
    leap: GaussianStart | None = None
    rests: bool = False
    settles: float = 0.0

    @classmethod
    def of(
        cls,
        ts: Tensor,
        orders: tuple[int, int],
        leap: GaussianStart | None = None,
        *,
        left: int | None = None,
        rests: bool = False,
        lands: bool = False,
    ) -> AdamsPlan:
        """The plan of a grid; with a leap ts[0] and ts[1] are the past times that have slopes.

        Args:
            ts, orders, leap: as `AdamsGrid` has them.
            left: for rough models on the way down, the number of steps to the end of the run, the final denoising
                included: order falls over the last steps, and the first slope is no part of what predictors extrapolate
                (of two values it may be where it is known, and in part where steps are few) and counts for less in the
                second corrector of many steps. None: none of that.
            rests: whether the first slope is known to be 0.
            lands: whether the last step goes to 0, which it does with order 1.
        """
        first = 0 if leap is None else 2
        n = len(ts) - 1 - first
        most = [[order] * n for order in orders]
        doubted = left is not None and not rests
        if left is not None:
            most = [[min(o, left - k + ahead) for k, o in enumerate(row)] for ahead, row in enumerate(most)]
            most[0] = [min(o, max(k, 1 + rests)) for k, o in enumerate(most[0])]
        if lands:
            most[0][-1] = 1
        predictor, corrector = (_weights(ts, first, ahead, row) for ahead, row in enumerate(most))
        if doubted and lands and n > 2:
            predictor[1] = _between(predictor[1], _weights(ts[:3], first, 0, [1, 2])[1], max(0.0, 1 - n / _SURE))
        if doubted and not lands and n > 1 and most[1][1] == 3:
            corrector[1] = _between(_weights(ts[:3], first, 1, [2, 2])[1], corrector[1], _DOUBT)
        return cls(max(orders) - 1, predictor, corrector, leap, rests, min(1.0, _SETTLES / n) if lands else 0.0)


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
        return self.begin(term, x, grid)

    def begin(self, term: Term, x: Tensor, grid: Tensor, *, ahead: int = 0, rests: bool = False) -> AdamsRun:
        n, orders, left = len(grid) - 1 - rests, self.orders, None
        if orders is None:
            smooth = term.model is None or term.model.smooth
            orders = advised_orders(n, smooth=smooth, leap=self.leaps)
            left = len(grid) - 1 + ahead if not smooth and bool(grid[0] > grid[-1]) else None
        else:
            warn_of_order(self.name, orders[0], n)
        if not self.leaps:
            made = AdamsPlan.of
            lands = term.model is not None and term.sde.data_scale is not None and n > 0 and float(grid[-1]) == 0
            how = {"left": left, "rests": rests, "lands": lands}
            asked = (made, orders, *how.values())
            return AdamsRun(made_of_grid(term, grid, asked, lambda: made(grid, orders, **how)))
        leap = GaussianStart.planned(term, self.law, float(grid[0]), float(grid[1]), x)
        nodes = torch.cat([torch.tensor([leap.past[1], leap.past[0]], dtype=grid.dtype, device="cpu"), grid[1:]])
        return AdamsRun(AdamsPlan.of(nodes, orders, leap), k=-1)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: AdamsRun, noise: Noise) -> Step:
        plan, k = state.plan, state.k
        if k < 0 and plan.leap is not None:
            return Step(plan.leap.at(x, float(t_next)), AdamsRun(plan, 0, x))
        met, slope = x, torch.zeros_like(x) if plan.rests and not k else term.drift(x, t)
        slopes = [slope, *state.slopes]
        if k:
            x = summed(state.x, plan.corrector[k - 1], slopes)
        elif plan.leap is not None:
            x, past, _ = plan.leap.corrected(state.x, x, slope)
            slopes = [slope, *past]
        x_next = summed(x, plan.predictor[k], slopes)
        if plan.settles and k == len(plan.predictor) - 1:
            told = (event_mean(slope.square()) / term.sde.data_scale**2).clamp_max(1)
            clean = math.cos(t) * met - math.sin(t) * slope
            x_next = torch.lerp(x_next, clean, expand(plan.settles * told, x))
        return Step(x_next, AdamsRun(plan, k + 1, x, slopes[: plan.keep]), slope=slope)


def _between(fewer: list[float], more: list[float], part: float) -> list[float]:
    """This part of the way from weights of fewer slopes to those of one more."""
    return [(1 - part) * v + part * w for v, w in zip([*fewer, 0.0], more, strict=True)]


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
