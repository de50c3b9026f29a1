"""Adams' method with error control: every evaluation is a step, and the error estimates of all orders are free.

Variable step and order in Newton form (Krogh 1974; Shampine & Gordon 1975). Let t_0 be a sample's time, t_-1, t_-2 ...
its earlier ones and
f[...] divided differences of its slopes. With the modified differences

    phi_i = psi_1 ... psi_(i-1) f[t_0 ... t_-(i-1)],      psi_i = t_0 - t_-i,

a step of width h to t' = t_0 + h first scales them to the new spacing, phi*_i = beta_i phi_i, then

    predict   p = x + h sum_{i<=k} g_i phi*_i              (order k)
    evaluate  f' = drift(p, t'),  phi'_1 = f',  phi'_{i+1} = phi'_i - phi*_i
    correct   x' = p + h g_{k+1} phi'_{k+1}                (order k + 1)

and |h g_{j+1} phi'_{j+1}| is what the corrector changes at order j: the error estimate, for every j from the same
table. f' is kept as the new slope (PEC): one
evaluation a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..noise import Noise
from ..shapes import expand
from ..steps import Tolerance
from ..terms import Term
from .base import Solver, State, Step
from .weights import lagrange_weights


class Adams(Solver):
    """Predictor-corrector Adams of variable order, in the term's time; error control per sample, or a fixed grid.

    In `sample` and `encode` it runs on the circular path of the data's scale (`TrigSDE`), where Gaussian data are
    solved exactly and a tolerance means the same
    all the way. 1 evaluation a step; order up to max_order + 1 (3 from the one-value start, where nothing is flat
    there).

    Control: E_j = rms(h g_{j+1} phi'_{j+1})/scale. Steps are accepted up to E_k = `accept` and aimed at E_k = `aim`;
    the corrected state is one order better
    than the estimate, which is why a step above 1 need not be thrown away. The next order is the j with the largest
    (aim/E_j)^(1/(j+1)).

    Args:
        max_order: most past values used, up to 8.
        accept, aim: thresholds of E.
        order: on a fixed grid, (values of the predictor, values of the corrector, the new one included); None: by the
            number of steps.

    Source: Shampine & Gordon 1975, chapter 5; Krogh 1974. The thresholds: docs/decisions.md.
    """

    name = "adams"
    kind = "ODE"
    adaptive = True
    evaluations = 1
    coordinates = "best"
    grid = "sqrt-time"
    default_steps = 50
    first_step = 1 / 12
    largest_step = 1 / 6
    source = "Shampine & Gordon 1975"

    def __init__(
        self, *, max_order: int = 7, accept: float = 6.0, aim: float = 0.55, order: tuple[int, int] | None = None
    ) -> None:
        if not 1 <= max_order <= 8:
            raise InvalidInputError(f"max_order={max_order}: wanted 1 to 8")
        if not 0 < aim < accept:
            raise InvalidInputError(f"aim={aim}, accept={accept}: wanted 0 < aim < accept")
        if order is not None and not (1 <= order[0] <= 8 and 1 <= order[1] <= 9):
            raise InvalidInputError(
                f"order={order}: wanted (values of the predictor, 1 to 8, values of the corrector, 1 to 9)"
            )
        self.max_order, self.accept, self.aim, self.values = max_order, accept, aim, order
        self.order = 3

    def options(self) -> dict[str, Any]:
        return {} if self.values is None else {"order": self.values}

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        if grid is not None:
            return {"run": _Fixed.planned(grid, *(self.values or default_order(len(grid) - 1)))}
        return {
            "phi": term.drift(x, t)[:, None],  # phi_1, phi_2, ...
            "past": t[:, None],  # t_0, t_-1, ...
            "order": torch.ones(x.shape[0], dtype=torch.int64, device=x.device),
            "known": torch.ones(x.shape[0], dtype=torch.int64, device=x.device),  # how many of the phi_i are valid
        }

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        if "run" in state:
            return self._fixed_step(term, x, t, t_next, state["run"])
        phi, past, k = state["phi"], state["past"], state["order"]
        width = phi.shape[1]
        table = (-1, width, *(1,) * (x.ndim - 1))
        h = (t_next - t)[:, None]
        psi = t_next[:, None] - past  # psi_i at t', i = 1..width
        star = phi
        if width > 1:  # beta_i = prod_{l < i} psi_l(t')/psi_l(t_0)
            beta = (psi[:, :-1] / (past[:, :1] - past[:, 1:])).cumprod(1)
            star = phi * torch.cat([torch.ones_like(h), beta], 1).to(x.dtype).reshape(table)
        weights = h * _coefficients(h, psi)  # h g_i, i = 1..width + 1
        ahead = weights[:, :width] * (torch.arange(width, device=x.device) < k[:, None])
        predicted = x + (star * ahead.to(x.dtype).reshape(table)).sum(1)
        slope = term.drift(predicted, t_next)
        changes = slope[:, None] - star.cumsum(1)  # phi'_2 ... phi'_(width + 1)
        rows = torch.arange(len(k), device=x.device)
        corrected = predicted + expand(weights[rows, k], x) * changes[rows, k - 1]
        carried = {
            "phi": torch.cat([slope[:, None], changes], 1),
            "past": torch.cat([t_next[:, None], past], 1),
            "errors": weights[:, 1:].abs() * _rms_each(changes.detach()),  # of orders 1..width
        }
        return Step(corrected, carried, slope=phi[:, 0], slope_next=slope)

    def judge(self, step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
        k, known = state["order"], state["known"]
        scale = tolerance.scale(x, step.x)
        e = (step.state["errors"] / (scale if isinstance(scale, float) else scale[:, None])).clamp_min(1e-14)
        own = e.gather(1, k[:, None] - 1)[:, 0]
        accept = own <= self.accept
        orders = torch.arange(1, e.shape[1] + 1, device=x.device)
        gains = (math.log(self.aim) - e.log()) / (orders + 1)  # log of the factor on the step, by order
        gains = gains.masked_fill(orders > torch.minimum(known, k + 1)[:, None], -math.inf)
        # to stay is worth 8 %; as long as every step brings an order that has no estimate yet, take it
        best = torch.where(orders == k[:, None], gains + math.log(1.08), gains).argmax(1) + 1
        best = torch.where(accept & (best == k) & (k == known), k + 1, best).clamp_max(self.max_order)
        best = torch.where(accept, best, torch.minimum(best, k))
        gain = gains.gather(1, torch.minimum(best, k)[:, None] - 1)[:, 0]
        before = state.get("ratio")
        memory = 0.0 if before is None else (before / own).log() * (0.2 / (k + 1))
        low, high = math.log(0.3), math.log(2.0)
        factor = torch.where(accept, (gain + memory).clamp(low, high), gain.clamp(low, math.log(0.8))).exp()
        factor = torch.where(torch.isfinite(own), factor, 0.3)
        width = min(int(best.max()) + 1, step.state["phi"].shape[1])
        carried = {
            "phi": _carried(accept, step.state["phi"], state["phi"], width),
            "past": _carried(accept, step.state["past"], state["past"], width),
            "order": best,
            "known": (known + accept).clamp_max(width),
            "ratio": torch.where(torch.isfinite(own), own, 1.0),
        }
        return accept, factor, carried

    def _fixed_step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, run: _Fixed) -> Step:
        slope = term.drift(x, t)
        if run.k:
            x = _summed(run.x, run.back[run.k - 1], [slope, *run.slopes])
        x_next = _summed(x, run.ahead[run.k], [slope, *run.slopes])
        slopes = [slope, *run.slopes][: run.keep]
        return Step(x_next, {"run": _Fixed(run.keep, run.ahead, run.back, run.k + 1, x, slopes)}, slope=slope)


def default_order(steps: int) -> tuple[int, int]:
    """Values of the predictor and of the corrector on a fixed grid of so many steps."""
    table = ((12, (2, 3)), (16, (3, 4)), (24, (4, 5)), (60, (5, 6)))
    return next((order for most, order in table if steps <= most), (6, 7))


@dataclass(slots=True, eq=False)
class _Fixed:
    """Where a run over a fixed grid stands: weights of all steps, the corrected state before, past slopes (newest
    first)."""

    keep: int
    ahead: list[list[float]]
    back: list[list[float]]
    k: int = 0
    x: Any = None
    slopes: Sequence[Tensor] = ()

    @classmethod
    def planned(cls, ts: Tensor, predictor: int, corrector: int) -> _Fixed:
        n = len(ts) - 1
        tables: list[list[list[float]]] = []
        for first, most in ((0, predictor), (1, corrector)):
            table: list[list[float]] = [[]] * n
            groups: dict[int, list[int]] = {}
            for k in range(n):
                groups.setdefault(min(most, k + 1 + first), []).append(k)
            for count, rows in groups.items():
                k = torch.tensor(rows)
                nodes = ts[k[:, None] + first - torch.arange(count)]
                w = lagrange_weights(nodes, ts[k], ts[k + 1], torch.ones_like, lambda u: u)
                for row, i in zip(w.tolist(), rows, strict=True):
                    table[i] = row
            tables.append(table)
        ahead, back = tables
        return cls(max(predictor, corrector) - 1, ahead, back)


def _summed(x: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    for w, v in zip(weights, values, strict=False):
        x = torch.add(x, v, alpha=w)
    return x


def _coefficients(h: Tensor, psi: Tensor) -> Tensor:
    """g_1 ... g_(width + 1), (B, width + 1): h g_i phi*_i is the integral of the i-th Newton term over the step.

    c_(1,q) = 1/q, c_(2,q) = 1/(q (q + 1)), c_(i+1,q) = c_(i,q) - (h/psi_i) c_(i,q+1), g_i = c_(i,1).
    """
    width = psi.shape[1]
    q = torch.arange(1, width + 1, dtype=torch.float64, device=h.device)
    alpha = h / psi  # alpha_i, i = 1..width, the first 1
    c = (1 / (q * (q + 1))).expand(len(h), -1)  # c_2
    g = [torch.ones_like(h), c[:, :1]]
    for i in range(1, width):
        c = torch.addcmul(c[:, :-1], alpha[:, i : i + 1], c[:, 1:], value=-1)
        g.append(c[:, :1])
    return torch.cat(g, 1)


def _carried(accept: Tensor, new: Tensor, old: Tensor, width: int) -> Tensor:
    """Tables (B, i, ...) of the accepted from `new`, of the others from `old`, cut or filled up to `width` entries."""
    if old.shape[1] < width:  # what fills it up is never used: it is beyond `known`; past times must differ
        fill = old[:, -1:] + (old[:, -1:] - new[:, :1]) if old.ndim == 2 else torch.zeros_like(old[:, :1])
        old = torch.cat([old, fill.expand(-1, width - old.shape[1], *fill.shape[2:])], 1)
    keep = accept.reshape(-1, *(1,) * (new.ndim - 1))
    return torch.where(keep, new[:, :width], old[:, :width])


def _rms_each(table: Tensor) -> Tensor:
    """Root mean square over the event of every entry: (B, width, *event) -> (B, width) float64."""
    return table.reshape(*table.shape[:2], -1).square().mean(2).sqrt().to(torch.float64)
