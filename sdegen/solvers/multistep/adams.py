"""Adams' method with error control: every evaluation is a step, and the error estimates of all orders are free.

Variable step and order in Newton form (Krogh 1974; Shampine & Gordon 1975). Let t_0 be a sample's time, t_-1, t_-2 ...
its earlier ones and f[...] divided differences of its slopes. With the modified differences

    phi_i = psi_1 ... psi_(i-1) f[t_0 ... t_-(i-1)],      psi_i = t_0 - t_-i,      psi_0 = 0,

a step of width h to t' = t_0 + h first scales them to the new spacing psi'_i = psi_(i-1) + h,

    phi*_i = beta_i phi_i,      beta_i = prod_{l<i} psi'_l/psi_l,

then

    predict   p = x + h sum_{i<=k} g_i phi*_i              (order k)
    evaluate  f' = drift(p, t'),  phi'_1 = f',  phi'_{i+1} = phi'_i - phi*_i
    correct   x' = p + h g_{k+1} phi'_{k+1}                (order k + 1)

and |h g_{j+1} phi'_{j+1}| is what the corrector changes at order j: the error estimate, for every j from the same
table. f' is kept as the new slope (PEC): one evaluation a step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import SMALL_EVENT, flat
from ...distributions.gaussian import Gaussian
from ...models.base import ScoreModel
from ...noise.white import Noise
from ...terms import ProbabilityFlow, ReverseSDE, Term
from ..advice import carried, warn_of_order
from ..base import Entry, Solver, State, Step
from ..tolerance import Tolerance
from .gaussian_start import GaussianStart, newton_table, scale_of_circle
from .weights import lagrange_weights, summed

_ACCEPT, _ACCEPT_ROUGH = 6.0, 2.0  # the largest accepted error over scale, for smooth models and for others


class Adams(Solver):
    """Predictor-corrector Adams of variable order, in the term's time; error control per sample, or a fixed grid.

    In `sample` and `encode` it runs on the circular path of the data's scale (`TrigSDE`), where Gaussian data are
    solved exactly and a tolerance means the same all the way. 1 evaluation a step; order up to max_order + 1 (3 from
    the one-value start, where nothing is flat there).

    Control: E_j = rms(h g_{j+1} phi'_{j+1})/scale. Steps are accepted up to E_k = `accept` and aimed at E_k = `aim`;
    the corrected state is one order better than the estimate, which is why a step above 1 need not be thrown away. The
    next order is the j with the largest (aim/E_j)^(1/(j+1)). What a network makes of time is rougher than any estimate
    sees, and the first one compares two values only. So where the model is not `smooth` (see `ScoreModel`), steps are
    accepted up to E_k = 2, and the first one is a quarter of what it is else, or of the root of the tolerance.

    Args:
        max_order: most past values used, up to 8.
        accept, aim: thresholds of E; accept=None: 6, and 2 for models that are not smooth.
        order: on a fixed grid, (values of the predictor, values of the corrector, the new one included); None: by the
            number of steps and by whether the model is smooth (see `ScoreModel`).
        start: "point", or "gaussian": leap from t_max by the closed form of the data's Gaussian (see `GaussianStart`),
            sampling only. A sample for which the leap is not good enough for the tolerance begins at t_max after all,
            one evaluation lost; on a fixed grid the leap is the first step, without an evaluation.
        covariance: for that start, of the data: (d, d), or a `Gaussian` such as `Gaussian.of_data(x0, rank=32)` or
            `Gaussian.of_variances(v)`; None: what the model knows (its `data_covariance`, else its `data_std`, which is
            not enough for images: their covariance is far from round).

    Raises:
        InvalidInputError: options that cannot be meant; for the Gaussian start a run that is not of a model's flow
            downward along a circular path, as in `sample`.

    Source: Shampine & Gordon 1975, chapter 5; Krogh 1974. The thresholds: docs/decisions.md.
    """

    name = "adams"
    kind = "ODE"
    adaptive = True
    evaluations = 1
    coordinates = "best"
    grid = "blend"
    default_steps = 50
    first_step = 1 / 12
    largest_step = 1 / 8
    rough = False  # whether it is for a model that is not smooth
    source = "Shampine & Gordon 1975"

    def __init__(
        self,
        *,
        max_order: int = 7,
        accept: float | None = None,
        aim: float = 0.5,
        order: tuple[int, int] | None = None,
        start: str = "point",
        covariance: Tensor | Gaussian | None = None,
    ) -> None:
        if not 1 <= max_order <= 8:
            raise InvalidInputError(f"max_order={max_order}: wanted 1 to 8")
        least = _ACCEPT_ROUGH if accept is None else accept
        if not 0 < aim < least:
            raise InvalidInputError(f"aim={aim}, accept={least:g}: wanted 0 < aim < accept")
        if order is not None and not (1 <= order[0] <= 8 and 1 <= order[1] <= 9):
            raise InvalidInputError(
                f"order={order}: wanted (values of the predictor, 1 to 8, values of the corrector, 1 to 9)"
            )
        if start not in ("point", "gaussian"):
            raise InvalidInputError(f"start={start!r}: wanted 'point' or 'gaussian'")
        if covariance is not None and start == "point":
            raise InvalidInputError("covariance= is what start='gaussian' works with: pass that too")
        self.max_order, self.aim, self.values = max_order, aim, order
        self.accept = _ACCEPT if accept is None else accept
        self.accept_rough = least
        self.order, self.leaps = 3, start == "gaussian"
        law = covariance
        self.law = law if law is None or isinstance(law, Gaussian) else Gaussian.of_covariance(law)

    def options(self) -> dict[str, Any]:
        values = {} if self.values is None else {"order": self.values}
        return {**values, "start": "gaussian"} if self.leaps else values

    def check(self, term: Term) -> None:
        super().check(term)
        if self.leaps and not isinstance(term, ProbabilityFlow | ReverseSDE):
            raise InvalidInputError(
                f"start='gaussian' is for the flow of a model in sample(), not {type(term).__name__}: use start='point'"
            )

    def suited(self, term: Term) -> Adams:
        if getattr(term.model, "smooth", True):
            return self
        rough = copy.copy(self)
        rough.accept, rough.rough = self.accept_rough, True
        return rough

    def first(self, tolerance: Tolerance) -> float:
        if not self.rough:
            return self.first_step
        return min(self.first_step / 4, math.sqrt(tolerance.rtol or tolerance.atol) / 4)

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        if grid is not None:
            return {"run": self._planned(term, x, grid)}
        layout = _Layout(x)
        one = torch.ones(x.shape[0], dtype=layout.dtype, device=x.device)
        phi = layout.rows(term.drift(x, t)).unsqueeze(layout.axis)
        # psi (i, B) from psi_0 on; how many of the phi_i are in use, how many are valid; all in one dtype
        return {"phi": phi, "psi": torch.zeros_like(one)[None], "order": one, "known": one}

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise) -> Entry:
        if not self.leaps:
            return super().enter(term, x, t, tolerance, noise)
        s, begin = scale_of_circle(term), float(t[0])
        stop = math.atan(max(4.0, (10 * s / (tolerance.atol + tolerance.rtol * s)) ** 0.25))
        if begin > term.t_min and not term.t_min < stop < begin:  # nothing to leap over
            return super().enter(term, x, t, tolerance, noise)
        leap = GaussianStart.planned(term, self.law, begin, stop, x)
        there, stops = leap.carried(x, stop), torch.full_like(t, stop)
        slope = term.drift(there, stops)
        there, slopes, correction = leap.landed(x, there, slope)
        layout = _Layout(x)
        phi = torch.stack([layout.rows(v) for v in newton_table(slope, slopes, stop, leap.past)], layout.axis)
        psi = torch.stack([stops - u for u in (stop, *leap.past)]).to(layout.dtype)
        # what comes after the correction is smaller by about alpha s/sigma
        good = tolerance.ratio(correction, x, there) / math.tan(stop) <= self.aim
        refused = (~good).nonzero().flatten()
        if len(refused):  # they begin with one slope; what fills up their tables is not used
            first = layout.rows(term.drift_of(refused, x[refused], t[refused]))
            fill = torch.zeros_like(first)
            phi = phi.index_copy(layout.batch_axis, refused, torch.stack([first, fill, fill], layout.axis))
            there = there.index_copy(0, refused, x[refused])
        one = good.to(layout.dtype)
        state = {"phi": phi, "psi": psi, "order": one + 1, "known": 2 * one + 1}
        return Entry(there, torch.where(good, stops, t), state, absent=good.long() * (len(refused) > 0))

    def landing(self, n: int) -> float | None:
        return min(max(0.25 * n**1.2, 3.5), 45.0) if self.leaps else None

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        if "run" in state:
            return self._fixed_step(term, x, t, t_next, state["run"])
        layout, phi, k = _Layout(x), state["phi"], state["order"]
        h = (t_next - t).to(layout.dtype)
        psi = state["psi"] + h  # psi'_i, i = 1..width
        beta = (psi[:-1] / state["psi"][1:]).cumprod(0)  # beta_i, i = 2..width; beta_1 = 1
        weights = _weights(h, psi)  # h g_i, i = 1..width + 1
        ahead = weights[:-1] * (k - _column(0, len(psi), k.dtype, k.device)).clamp(0, 1)  # those in use, i <= k
        ahead[1:].mul_(beta)
        predicted = layout.plus(layout.rows(x), phi, ahead)
        slope = term.drift(_packed(layout.state(predicted, x)), t_next)
        first, *others = phi.unbind(layout.axis)
        changes = [layout.rows(slope)]  # phi'_1, phi'_2 ... phi'_(width + 1)
        changes.append(changes[0] - first)
        for phi_i, beta_i in zip(others, layout.spread(beta).unbind(0), strict=True):
            changes.append(torch.addcmul(changes[-1], phi_i, beta_i, value=-1))
        table, index = torch.stack(changes, layout.axis), k.long()
        corrected = predicted + layout.pick(table, index) * layout.spread(weights.gather(0, index[None])[0])
        squares = layout.squares(layout.cut(table.detach(), 1, len(psi)))
        carried = {
            "phi": table,
            "psi": torch.cat([state["psi"][:1], psi]),
            "squares": weights[1:].square() * squares,  # |h g_{j+1} phi'_{j+1}|^2, j = 1..width
            "row": index - 1,  # of order k in it
        }
        return Step(layout.state(corrected, x), carried, slope=lambda: layout.state(first, x), slope_next=slope)

    def judge(self, step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
        layout, k, known, carried = _Layout(x), state["order"], state["known"], step.state
        above, count = k + 1, len(carried["squares"])
        reach = torch.minimum(known, above)  # the largest order whose estimate counts
        # room_j = log(aim/E_j), j = 1..count; an E_j below 1e-14 counts as that
        aim = torch.as_tensor(tolerance.scale(x.detach(), step.x.detach()) * (self.aim * layout.d**0.5)).to(k.dtype)
        room = torch.sub(aim.log(), carried["squares"].log(), alpha=0.5).clamp_max(math.log(self.aim / 1e-14))
        own = room.gather(0, carried["row"][None])[0]
        accept = own >= math.log(self.aim / self.accept)
        # gains: log of the factor on the step, at order k and at the best one in reach
        orders = _column(1, count + 1, k.dtype, k.device)
        gains = torch.sub(room / (orders + 1), (orders - reach).clamp_min(0), alpha=1e3)
        gain, most = own / above, gains.amax(0)
        best = torch.add(orders, (gains - most).sign(), alpha=100).amax(0)  # the order where gains == most
        best = torch.where(most - gain > math.log(1.08), best, k)  # to stay is worth 8 %
        lower = torch.minimum(best, k)
        # as long as every step brings an order that has no estimate yet, take it
        best = torch.where(accept, best + (lower == reach), lower).clamp_max(self.max_order)
        gain = torch.where(best < k, most, gain)
        memory = 0.2 * (own - state["room"]) / above if "room" in state else 0.0
        low, high = math.log(0.3), math.log(2.0)
        factor = torch.where(accept, (gain + memory).clamp(low, high), gain.clamp(low, math.log(0.8))).exp()
        width = min(int(best.max()), count) + 1
        phi, psi = layout.cut(carried["phi"], 0, width), carried["psi"][:width]
        if not bool(accept.all()):
            # what fills a table up is never used, it is beyond `known`; but psi must not be 0
            phi = torch.where(layout.spread(accept), phi, layout.filled(state["phi"], width))
            psi = torch.where(accept, psi, torch.cat([state["psi"], psi[count:]])[:width])
        after = {"phi": phi, "psi": psi, "order": best, "known": (known + accept).clamp_max(width)}
        return accept, factor.nan_to_num(0.3), {**after, "room": own.nan_to_num(math.log(self.aim))}

    def select(self, state: State, keep: Tensor, x: Tensor) -> State:
        layout = _Layout(x)
        return {k: layout.select(v, keep) if k == "phi" else v.index_select(-1, keep) for k, v in state.items()}

    def _planned(self, term: Term, x: Tensor, grid: Tensor) -> _Fixed:
        values = self.values or self.choices(len(grid) - 1, term)["order"]
        if self.values is not None:
            warn_of_order(self.name, values[0], len(grid) - 1)
        if not self.leaps:
            return _Fixed.planned(grid, *values)
        leap = GaussianStart.planned(term, self.law, float(grid[0]), float(grid[1]), x)
        nodes = torch.cat([torch.tensor([leap.past[1], leap.past[0]], dtype=grid.dtype), grid[1:]])
        return replace(_Fixed.planned(nodes, *values, known=2), leap=leap, k=-1)

    def choices(self, steps: int, term: Term) -> dict[str, Any]:
        """The orders: what the grid carries, more after a Gaussian start, which knows its past; see docs."""
        if self.values is not None or steps < 1:
            return {}
        smooth = getattr(term.model, "smooth", True)
        return {"order": carried(steps - 1, smooth, low=6) if self.leaps else carried(steps, smooth)}

    def grid_of(self, model: ScoreModel, steps: int) -> str:
        if self.leaps:
            return "theta"  # nothing is left to find far above the data's scale
        return "blend" if model.smooth or steps < 10 else "sqrt-time"

    def _fixed_step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, run: _Fixed) -> Step:
        if run.k < 0 and run.leap is not None:
            return Step(run.leap.carried(x, float(t_next)), {"run": replace(run, k=0, x=x)})
        slope = term.drift(x, t)
        slopes = [slope, *run.slopes]
        if run.k:
            x = summed(run.x, run.back[run.k - 1], slopes)
        elif run.leap is not None:
            x, past, _ = run.leap.landed(run.x, x, slope)
            slopes = [slope, *past]
        x_next = summed(x, run.ahead[run.k], slopes)
        after = replace(run, k=run.k + 1, x=x, slopes=slopes[: run.keep])
        return Step(x_next, {"run": after}, slope=slope)


@dataclass(slots=True, eq=False)
class _Fixed:
    """Where a run over a fixed grid stands: weights of all steps, the corrected state before, past slopes (newest
    first), and the leap before it all, which is step -1."""

    keep: int
    ahead: list[list[float]]
    back: list[list[float]]
    k: int = 0
    x: Any = None
    slopes: Sequence[Tensor] = ()
    leap: GaussianStart | None = None

    @classmethod
    def planned(cls, ts: Tensor, predictor: int, corrector: int, known: int = 0) -> _Fixed:
        """The plan from ts[known] on; the times before it have slopes, too."""
        n = len(ts) - 1 - known
        tables: list[list[list[float]]] = []
        for first, most in ((0, predictor), (1, corrector)):
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
            tables.append(table)
        ahead, back = tables
        return cls(max(predictor, corrector) - 1, ahead, back)


class _Layout:
    """How a table of states is laid out, so that coefficients (i, B) multiply it at full speed.

    Small events, of d numbers, stand before everything, (d, i, B); large ones after it, (i, B, d). An entry of a table
    is (d, B) or (B, d). All in the dtype of x, or float32 if that is less.
    """

    def __init__(self, x: Tensor) -> None:
        self.d = math.prod(x.shape[1:])
        self.small = self.d <= SMALL_EVENT
        self.axis, self.event_axis, self.batch_axis = (1, 0, -1) if self.small else (0, -1, -2)
        self.dtype = torch.promote_types(x.dtype, torch.float32)

    def rows(self, x: Tensor) -> Tensor:
        """A state as an entry."""
        x = flat(x).to(self.dtype)
        return _packed(x.t()) if self.small else x

    def state(self, entry: Tensor, x: Tensor) -> Tensor:
        """An entry as a state like x. It is not copied: in memory, the batch of small events stays last."""
        return (entry.t() if self.small else entry).reshape(x.shape).to(x.dtype)

    def spread(self, c: Tensor) -> Tensor:
        """Coefficients (..., B) to multiply tables or entries with."""
        return c if self.small else c.unsqueeze(-1)

    def plus(self, entry: Tensor, table: Tensor, c: Tensor) -> Tensor:
        """entry + sum_i c_i table_i, term by term: `sum` has an order of its own for a single sample."""
        for row, c_i in zip(table.unbind(self.axis), self.spread(c).unbind(0), strict=True):
            entry = torch.addcmul(entry, row, c_i)
        return entry

    def squares(self, table: Tensor) -> Tensor:
        """Sum of squares over the event of every entry: (i, B)."""
        if self.small:
            return table.square().sum(self.event_axis)
        return torch.linalg.vector_norm(table, dim=self.event_axis).square()

    def pick(self, table: Tensor, index: Tensor) -> Tensor:
        """The entry that consists of every sample's own one, index (B,)."""
        index = self.spread(index).expand_as(table.select(self.axis, 0)).unsqueeze(self.axis)
        return table.gather(self.axis, index).squeeze(self.axis)

    def select(self, table: Tensor, keep: Tensor) -> Tensor:
        """The table of the samples at the positions `keep`."""
        if self.small:  # index_select takes six times as long here
            return table.gather(-1, keep.expand(*table.shape[:-1], -1))
        return table.index_select(self.batch_axis, keep)

    def cut(self, table: Tensor, first: int, count: int) -> Tensor:
        return table.narrow(self.axis, first, count)

    def filled(self, table: Tensor, width: int) -> Tensor:
        """The first `width` entries; one more than there are is zero."""
        if table.shape[self.axis] < width:
            table = torch.cat([table, torch.zeros_like(self.cut(table, 0, 1))], self.axis)
        return self.cut(table, 0, width)


def _packed(x: Tensor) -> Tensor:
    """x, contiguous. (With an axis more, because torch copies matrices that are transposed at half the speed.)"""
    return x[None].contiguous()[0]


def _weights(h: Tensor, psi: Tensor) -> Tensor:
    """h g_1 ... h g_(width + 1), (width + 1, B): h g_i phi*_i is the integral of the i-th Newton term over the step.

    c_(1,q) = h/q, c_(2,q) = h/(q (q + 1)), c_(i+1,q) = c_(i,q) - (h/psi'_i) c_(i,q+1), h g_i = c_(i,1).
    """
    q = _column(1, len(psi) + 1, h.dtype, h.device)
    c = h / (q * (q + 1))  # c_2
    g = [h, c[0]]
    for alpha in (h / psi[1:]).unbind(0):
        c = torch.addcmul(c[:-1], alpha, c[1:], value=-1)
        g.append(c[0])
    return torch.stack(g)


@lru_cache(maxsize=64)
def _column(first: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """first ... stop - 1, (stop - first, 1)."""
    return torch.arange(first, stop, dtype=dtype, device=device)[:, None]
