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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..gaussian import Gaussian
from ..noise import Noise
from ..shapes import flat
from ..steps import Tolerance, carried, warn_of_order
from ..terms import ProbabilityFlow, ReverseSDE, Term
from .base import Entry, Solver, State, Step
from .gaussian_start import GaussianStart, newton_table, scale_of_circle
from .weights import lagrange_weights, summed

_SMALL = 64  # numbers in an event


class Adams(Solver):
    """Predictor-corrector Adams of variable order, in the term's time; error control per sample, or a fixed grid.

    In `sample` and `encode` it runs on the circular path of the data's scale (`TrigSDE`), where Gaussian data are
    solved exactly and a tolerance means the same all the way. 1 evaluation a step; order up to max_order + 1 (3 from
    the one-value start, where nothing is flat there).

    Control: E_j = rms(h g_{j+1} phi'_{j+1})/scale. Steps are accepted up to E_k = `accept` and aimed at E_k = `aim`;
    the corrected state is one order better than the estimate, which is why a step above 1 need not be thrown away. The
    next order is the j with the largest (aim/E_j)^(1/(j+1)).

    Args:
        max_order: most past values used, up to 8.
        accept, aim: thresholds of E.
        order: on a fixed grid, (values of the predictor, values of the corrector, the new one included); None: by the
            number of steps.
        start: "point", or "gaussian": leap from t_max by the closed form of the data's Gaussian (see `GaussianStart`),
            sampling only. A sample for which the leap is not good enough for the tolerance begins at t_max after all,
            one evaluation lost; on a fixed grid the leap is the first step, without an evaluation.
        covariance: for that start, of the data: (d, d), or a `Gaussian` such as `Gaussian.of_data(x0, rank=32)` or
            `Gaussian.of_variances(v)`; None: what the model knows (its `data_covariance`, else its `data_std`).

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
    largest_step = 1 / 6
    source = "Shampine & Gordon 1975"

    def __init__(
        self,
        *,
        max_order: int = 7,
        accept: float = 6.0,
        aim: float = 0.55,
        order: tuple[int, int] | None = None,
        start: str = "point",
        covariance: Tensor | Gaussian | None = None,
    ) -> None:
        if not 1 <= max_order <= 8:
            raise InvalidInputError(f"max_order={max_order}: wanted 1 to 8")
        if not 0 < aim < accept:
            raise InvalidInputError(f"aim={aim}, accept={accept}: wanted 0 < aim < accept")
        if order is not None and not (1 <= order[0] <= 8 and 1 <= order[1] <= 9):
            raise InvalidInputError(
                f"order={order}: wanted (values of the predictor, 1 to 8, values of the corrector, 1 to 9)"
            )
        if start not in ("point", "gaussian"):
            raise InvalidInputError(f"start={start!r}: wanted 'point' or 'gaussian'")
        if covariance is not None and start == "point":
            raise InvalidInputError("covariance= is what start='gaussian' works with: pass that too")
        self.max_order, self.accept, self.aim, self.values = max_order, accept, aim, order
        self.order, self.leaps = 3, start == "gaussian"
        law = covariance
        self.law = law if law is None or isinstance(law, Gaussian) else Gaussian.of_covariance(law)
        if self.leaps:
            self.grid = "theta"  # nothing is left to find far above the data's scale

    def options(self) -> dict[str, Any]:
        values = {} if self.values is None else {"order": self.values}
        return {**values, "start": "gaussian"} if self.leaps else values

    def check(self, term: Term) -> None:
        super().check(term)
        if self.leaps and not isinstance(term, ProbabilityFlow | ReverseSDE):
            raise InvalidInputError(
                f"start='gaussian' is for the flow of a model in sample(), not {type(term).__name__}: use start='point'"
            )

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        if grid is not None:
            return {"run": self._planned(term, x, grid)}
        order = torch.ones(x.shape[0], dtype=torch.int64, device=x.device)
        # phi (i, d, B) or (i, B, d); past (i, B): t_0, t_-1, ...; how many of the phi_i are in use, how many are valid
        return {"phi": _Layout(x).rows(term.drift(x, t))[None], "past": t[None], "order": order, "known": order}

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
        phi = torch.stack([layout.rows(v) for v in newton_table(slope, slopes, stop, leap.past)])
        past = torch.stack([stops, *(torch.full_like(t, u) for u in leap.past)])
        # what comes after the correction is smaller by about alpha s/sigma
        good = tolerance.ratio(correction, x, there) / math.tan(stop) <= self.aim
        refused = (~good).nonzero().flatten()
        if len(refused):
            above = begin + torch.tensor([0.0, 0.1, 0.2], dtype=t.dtype, device=t.device)  # only the first is used
            first = layout.rows(term.drift_of(refused, x[refused], t[refused]))
            fill = torch.zeros_like(first).expand(2, *first.shape)
            phi = phi.index_copy(layout.batch_axis, refused, torch.cat([first[None], fill]))
            past = past.index_copy(1, refused, above[:, None].expand(-1, len(refused)))
            there = there.index_copy(0, refused, x[refused])
        state = {"phi": phi, "past": past, "order": good.long() + 1, "known": 2 * good.long() + 1}
        return Entry(there, past[0], state, absent=good.long() * (len(refused) > 0))

    def landing(self, n: int) -> float | None:
        return min(max(0.25 * n**1.2, 3.5), 45.0) if self.leaps else None

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        if "run" in state:
            return self._fixed_step(term, x, t, t_next, state["run"])
        phi, past, k = state["phi"], state["past"], state["order"]
        layout, width, h = _Layout(x), len(phi), t_next - t
        psi = t_next - past  # psi_i at t', i = 1..width
        beta = torch.ones_like(psi)
        if width > 1:  # beta_i = prod_{l < i} psi_l(t')/psi_l(t_0)
            beta[1:] = (psi[:-1] / (past[0] - past[1:])).cumprod(0)
        weights = h * _coefficients(h, psi)  # h g_i, i = 1..width + 1
        in_use = (k - torch.arange(width, device=x.device)[:, None]).clamp(0, 1)
        ahead = layout.spread(weights[:width] * beta * in_use, x)
        predicted = x + layout.state((phi * ahead).sum(0), x)
        slope = term.drift(predicted, t_next)
        change = layout.rows(slope)
        table = [change]  # phi'_1, phi'_2 ... phi'_(width + 1)
        for phi_i, beta_i in zip(phi, layout.spread(beta, x), strict=True):
            change = torch.addcmul(change, phi_i, beta_i, value=-1)
            table.append(change)
        changes = torch.stack(table)
        last = changes.gather(0, layout.spread(k, None).expand_as(change)[None])[0]
        corrected = predicted + layout.state(last * layout.spread(weights.gather(0, k[None])[0], x), x)
        carried = {
            "phi": changes,
            "past": torch.cat([t_next[None], past]),
            "errors": weights[1:].abs() * layout.rms(changes[1:].detach()),  # of orders 1..width
        }
        return Step(corrected, carried, slope=lambda: layout.state(phi[0], x), slope_next=slope)

    def judge(self, step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
        k, known, carried = state["order"], state["known"], step.state
        e = (carried["errors"] / tolerance.scale(x.detach(), step.x.detach())).clamp_min(1e-14)
        own = e.gather(0, k[None] - 1)[0]
        accept = own <= self.accept
        orders = torch.arange(1, len(e) + 1, device=x.device)[:, None]
        gains = (math.log(self.aim) - e.log()) / (orders + 1)  # log of the factor on the step, by order
        # an order without an estimate is out; to stay is worth 8 %
        barred = (orders - torch.minimum(known, k + 1)).clamp_min(0)
        best = (gains + math.log(1.08) * (orders == k) - 1e3 * barred).max(0).indices + 1
        # as long as every step brings an order that has no estimate yet, take it
        best = (best + (accept & (best == k) & (k == known))).clamp_max(self.max_order)
        best = torch.where(accept, best, torch.minimum(best, k))
        gain = gains.gather(0, torch.minimum(best, k)[None] - 1)[0]
        before = state.get("ratio")
        memory = 0.0 if before is None else (before / own).log() * (0.2 / (k + 1))
        low, high = math.log(0.3), math.log(2.0)
        factor = torch.where(accept, (gain + memory).clamp(low, high), gain.clamp(low, math.log(0.8))).exp()
        width = min(int(best.max()) + 1, len(carried["phi"]))
        phi, past = carried["phi"][:width], carried["past"][:width]
        refused = (~accept).nonzero().flatten()
        if len(refused):
            # what fills a table up is never used, it is beyond `known`; but past times must differ
            times = state["past"]
            phi = _reverted(phi, state["phi"], torch.zeros_like(phi[:1]), refused, _Layout(x).batch_axis)
            past = _reverted(past, times, 2 * times[-1:] - carried["past"][:1], refused, -1)
        after = {"phi": phi, "past": past, "order": best, "known": (known + accept).clamp_max(width)}
        return accept, factor.nan_to_num(0.3), {**after, "ratio": own.nan_to_num(1.0)}

    def select(self, state: State, keep: Tensor, x: Tensor) -> State:
        axes = {"phi": _Layout(x).batch_axis, "past": -1}
        return {name: value.index_select(axes.get(name, 0), keep) for name, value in state.items()}

    def _planned(self, term: Term, x: Tensor, grid: Tensor) -> _Fixed:
        values = self.values or self.choices(len(grid) - 1)["order"]
        if self.values is not None:
            warn_of_order(self.name, values[0], len(grid) - 1)
        if not self.leaps:
            return _Fixed.planned(grid, *values)
        leap = GaussianStart.planned(term, self.law, float(grid[0]), float(grid[1]), x)
        nodes = torch.cat([torch.tensor([leap.past[1], leap.past[0]], dtype=grid.dtype), grid[1:]])
        return replace(_Fixed.planned(nodes, *values, known=2), leap=leap, k=-1)

    def choices(self, steps: int) -> dict[str, Any]:
        """The orders: 8 steps carry 2 past values, 6 after a Gaussian start, which knows its past; see docs."""
        if self.values is not None or steps < 1:
            return {}
        return {"order": carried(steps - 1, low=6) if self.leaps else carried(steps)}

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

    Small events, of d numbers, stand before the batch, (i, d, B); large ones after it, (i, B, d).
    """

    def __init__(self, x: Tensor) -> None:
        self.small = math.prod(x.shape[1:]) <= _SMALL
        self.event_axis, self.batch_axis = (-2, -1) if self.small else (-1, -2)

    def rows(self, x: Tensor) -> Tensor:
        return flat(x).t().contiguous() if self.small else flat(x)

    def state(self, rows: Tensor, x: Tensor) -> Tensor:
        return (rows.t() if self.small else rows).reshape(x.shape)

    def spread(self, c: Tensor, x: Tensor | None) -> Tensor:
        """Coefficients (..., B), in the dtype of x, to multiply rows with."""
        return (c if x is None else c.to(x.dtype)).unsqueeze(self.event_axis)

    def rms(self, table: Tensor) -> Tensor:
        """Root mean square over the event of every entry: (i, B) float64."""
        return table.square().mean(self.event_axis).sqrt().to(torch.float64)


def _coefficients(h: Tensor, psi: Tensor) -> Tensor:
    """g_1 ... g_(width + 1), (width + 1, B): h g_i phi*_i is the integral of the i-th Newton term over the step.

    c_(1,q) = 1/q, c_(2,q) = 1/(q (q + 1)), c_(i+1,q) = c_(i,q) - (h/psi_i) c_(i,q+1), g_i = c_(i,1).
    """
    width = len(psi)
    q = torch.arange(1, width + 1, dtype=torch.float64, device=h.device)
    alpha = h / psi  # alpha_i, i = 1..width, the first 1
    c = (1 / (q * (q + 1)))[:, None].expand(-1, len(h))  # c_2
    g = [torch.ones_like(h), c[0]]
    for i in range(1, width):
        c = torch.addcmul(c[:-1], alpha[i], c[1:], value=-1)
        g.append(c[0])
    return torch.stack(g)


def _reverted(new: Tensor, old: Tensor, fill: Tensor, refused: Tensor, axis: int) -> Tensor:
    """A table (i, ...) with the entries of the refused samples as in `old`, filled up to the length of `new`."""
    missing = max(len(new) - len(old), 0)
    old = torch.cat([old[: len(new)], fill.expand(missing, *fill.shape[1:])]).index_select(axis, refused)
    return new.index_copy(axis, refused, old)
