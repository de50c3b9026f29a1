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

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....distributions.gaussian import Gaussian
from ....noise.white import Noise
from ....terms import Term
from ...base import Entry, Step, replaced
from ...tolerance import Tolerance
from ..gaussian_start import Leapt, newton_table, slope_above
from .first import quiet_time
from .layout import Layout, Orders, packed
from .method import AdamsMethod

_SHRINK, _GROW = 0.3, 2.0  # of the step, at most
_TREND = 0.5  # of the change of the error from the last step to this one, how much is expected of the next


@dataclass(slots=True, eq=False)
class AdamsTable:
    """What error control carries from step to step; i counts orders from 1, all in the dtype of a `Layout`.

    Attributes:
        layout: of the differences.
        accept: the largest accepted E, see `Adams`.
        differences: phi_i, a table of i entries.
        spacings: psi_i from psi_1 on, (i - 1, B).
        order: (B,) how many of the differences the next step uses.
        valid: (B,) how many of them mean something.
        headroom: (B,) log(aim/E) of the last step, NaN before the first.
        lowest: (B,) that of its lowest order.
        size: (B,) root mean square of the state; None: not known.
    """

    layout: Layout
    accept: float
    differences: Tensor
    spacings: Tensor
    order: Tensor
    valid: Tensor
    headroom: Tensor
    lowest: Tensor
    size: Tensor | None = None


@dataclass(slots=True, eq=False)
class AdamsAttempt:
    """What a step leaves for `AdamsTolerance.judge`.

    Attributes:
        differences: as they are after the step, one more.
        spacings: the same, as many as there were differences.
        squares: |h g_{j+1} phi'_{j+1}|^2, the squared error estimates of the orders j = 1, 2 ..., (j, B).
        row: (1, B) which of them is that of the order used.
    """

    differences: Tensor
    spacings: Tensor
    squares: Tensor
    row: Tensor


class AdamsTolerance(AdamsMethod):
    """Adams' method by a tolerance, of variable step and order; see `Adams`.

    Args:
        max_order, aim: see `Adams`.
        accept: the largest accepted E, for smooth models and for others.
        leaps, law: the Gaussian start, see `AdamsMethod`.
    """

    refills = True

    def __init__(
        self, max_order: int, aim: float, accept: tuple[float, float], *, leaps: bool, law: Gaussian | None
    ) -> None:
        super().__init__(leaps, law)
        self.max_order, self.aim, self.accept = max_order, aim, accept

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> AdamsTable:
        return self._begun(term, x, term.drift(x, t))

    def _begun(self, term: Term, x: Tensor, slope: Tensor) -> AdamsTable:
        """The table of the first slope."""
        layout = Layout(x)
        one = torch.ones(x.shape[0], dtype=layout.dtype, device=x.device)
        differences, none = layout.rows(slope).unsqueeze(layout.axis), one.new_empty(0, len(one))
        nan = torch.full_like(one, math.nan)
        return AdamsTable(layout, self._most(term), differences, none, one, one, nan, nan)

    def _most(self, term: Term) -> float:
        """The largest accepted E."""
        smooth = term.model is None or term.model.smooth
        return self.accept[0] if smooth else self.accept[1]

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise, *, end: float) -> Entry:
        begin = float(t[0])
        leapt = Leapt.of(term, self.law, x, (begin, end), tolerance, self.aim) if self.leaps else None
        if leapt is not None:
            return self._landed(term, x, t, leapt, tolerance)
        stop = None if self.leaps else quiet_time(term, x, begin, end, tolerance)
        if stop is None:
            return Entry(x, t, self._at_first(term, x, t, term.drift(x, t), tolerance))
        stops, h = torch.full_like(t, stop), stop - begin
        slope = term.drift(x, stops)
        x_stop = x + h * slope
        table = replace(self._begun(term, x, slope), size=tolerance.size(x_stop))
        return Entry(x_stop, stops, table, torch.full_like(t, _GROW * h))  # as after any step that went well

    def _landed(self, term: Term, x: Tensor, t: Tensor, leapt: Leapt, tolerance: Tolerance) -> Entry:
        """The start where a leap ends, at t for the samples for which it is not good enough."""
        stops, x_start = torch.full_like(t, leapt.stop), leapt.x
        table = self._begun(term, x, leapt.slope)
        layout, one = table.layout, table.order
        parts = newton_table(leapt.slope, leapt.slopes, leapt.stop, leapt.past)
        differences = torch.stack([layout.rows(v) for v in parts], layout.axis)
        spacings = torch.stack([stops - u for u in leapt.past]).to(layout.dtype)
        table = replace(table, differences=differences, spacings=spacings, order=one + 1, valid=one + 2)
        refused = (~leapt.good).nonzero().flatten()
        if len(refused):
            x_own, t_own = x[refused], t[refused]
            own = self._at_first(term, x_own, t_own, term.drift_of(refused, x_own, t_own), tolerance)
            table, x_start = self.replace(table, refused, own, x), x_start.index_copy(0, refused, x_own)
        table = replace(table, size=tolerance.size(x_start))
        return Entry(x_start, torch.where(leapt.good, stops, t), table)

    def _at_first(self, term: Term, x: Tensor, t: Tensor, slope: Tensor, tolerance: Tolerance) -> AdamsTable:
        """The table of the slope at (x, t), and of the one that is known above t_max where there is one."""
        table = replace(self._begun(term, x, slope), size=tolerance.size(x))
        above = slope_above(term, x, float(t[0]))
        if above is None:
            return table
        layout, two = table.layout, table.order + 1
        differences = torch.stack([layout.rows(v) for v in (slope, slope - above)], layout.axis)
        spacings = (t - math.pi / 2)[None].to(layout.dtype)
        return replace(table, differences=differences, spacings=spacings, order=two, valid=two)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: AdamsTable, noise: Noise) -> Step:
        layout, k = state.layout, state.order
        phi = state.differences.unbind(layout.axis)
        h = (t_next - t).to(layout.dtype)
        psi = torch.cat([h[None], state.spacings + h])  # psi'_i, i = 1..width
        beta = (psi[:-1] / state.spacings).cumprod(0)  # beta_i, i = 2..width; beta_1 = 1
        weights, n = layout.weights(h, psi), psi.shape[0]  # h g_i, i = 1..width + 1
        ahead = weights[:-1] * (k - layout.orders.before[:n]).clamp(0, 1)  # those in use, i <= k
        ahead[1:].mul_(beta)
        predicted = layout.plus(layout.rows(x), phi, ahead)
        slope = term.drift(packed(layout.state(predicted, x)), t_next)
        table, above = layout.falling(layout.rows(slope), phi, beta), k.long()  # phi'_1, phi'_2 ... phi'_(width + 1)
        correction = layout.spread(weights.gather(0, above[None])[0])
        corrected = torch.addcmul(predicted, layout.pick(table, above), correction)
        squares = weights[1:].square() * layout.squares(layout.cut(table.detach(), 1, n))
        attempt = AdamsAttempt(table, psi, squares, above[None] - 1)
        return Step(layout.state(corrected, x), attempt, slope=lambda: layout.state(phi[0], x), slope_next=slope)

    def judge(
        self, step: Step, x: Tensor, state: AdamsTable, tolerance: Tolerance
    ) -> tuple[Tensor, Tensor, AdamsTable]:
        attempt: AdamsAttempt = step.state
        size, k = tolerance.size(step.x), state.order
        before = tolerance.size(x) if state.size is None else state.size
        aim = tolerance.allowed(torch.maximum(before, size), self.aim * state.layout.d**0.5).to(k.dtype)
        # rooms_j = log(aim/E_j), j = 1, 2 ...; an E_j below 1e-14 counts as that
        rooms = torch.sub(aim.log(), attempt.squares.log(), alpha=0.5).clamp_max(math.log(self.aim / 1e-14))
        room = rooms.gather(0, attempt.row)[0]
        accept = room >= math.log(self.aim / state.accept)
        refused = (~accept).nonzero().flatten()
        refused = refused if refused.shape[0] else None
        order, factor = self._next(rooms, room, state, refused)
        psi, valid = attempt.spacings, state.valid + 1
        new = AdamsTable(state.layout, state.accept, attempt.differences, psi, order, valid, room, rooms[0], size)
        return accept, factor, self._after(new, state, refused)

    def _next(self, rooms: Tensor, room: Tensor, state: AdamsTable, refused: Tensor | None) -> tuple[Tensor, Tensor]:
        """(order of the next step, factor on its length), (B,), from the rooms of all orders and that of the order
        used."""
        k = state.order
        above = k + 1
        reach = torch.minimum(state.valid, above)  # the largest order whose estimate counts
        gain = room / above
        best, most = _best_order(rooms, reach, state.layout.orders)
        lower = torch.minimum(best, k)
        # as long as every step brings an order that has no estimate yet, take it
        best = (best + (lower == reach)).clamp_max(self.max_order)
        if refused is not None:
            best.index_copy_(0, refused, lower[refused])
        gain = torch.where(best < k, most, gain)
        memory = (room - state.headroom).nan_to_num(0.0, 0.0, 0.0)  # none of samples that have no last step
        low, high = math.log(_SHRINK), math.log(_GROW)
        growth = torch.addcdiv(gain, memory, above, value=_TREND).clamp(low, high)
        if refused is not None:
            growth.index_copy_(0, refused, gain[refused].clamp(low, math.log(0.8)))
        return best, growth.exp()

    def _after(self, new: AdamsTable, old: AdamsTable, refused: Tensor | None) -> AdamsTable:
        """The table to carry on: the new one, and of samples whose step was refused the one before."""
        layout, width = new.layout, min(int(new.order.max()), new.spacings.shape[0]) + 1
        new.differences, new.spacings = layout.cut(new.differences, 0, width), new.spacings[: width - 1]
        if refused is not None:
            # what fills a table up is never used, it is beyond `valid`; but psi must not be 0
            phi = layout.filled(layout.select(old.differences, refused), width)
            new.differences = layout.put(new.differences, refused, phi)
            count = min(width - 1, len(old.spacings))
            new.spacings[:count].index_copy_(1, refused, old.spacings[:count, refused])
            new.valid.index_copy_(0, refused, old.valid[refused])
            if new.size is not None and old.size is not None:
                new.size.index_copy_(0, refused, old.size[refused])
        new.valid.clamp_max_(width)
        return new

    def restart(
        self, term: Term, x: Tensor, t: Tensor, state: AdamsTable, rows: Tensor
    ) -> tuple[AdamsTable, Tensor | None]:
        """One slope for a history, and the step that its order allowed before the jump."""
        layout = state.layout
        slope = layout.rows(term.drift_of(rows, x[rows], t[rows]))
        fresh = torch.stack([slope, *[torch.zeros_like(slope)] * len(state.spacings)], layout.axis)
        table = replace(
            state,
            differences=state.differences.index_copy(layout.batch_axis, rows, fresh),
            order=state.order.index_fill(0, rows, 1.0),
            valid=state.valid.index_fill(0, rows, 1.0),
        )
        return table, (state.lowest[rows] / 2).exp().nan_to_num(1.0)

    def replace(self, state: AdamsTable, at: Tensor, other: AdamsTable, x: Tensor) -> AdamsTable:
        layout = state.layout
        wide = max((state, other), key=lambda table: len(table.spacings))
        one, two = (self._widened(table, wide.spacings[:, 0]) for table in (state, other))
        return AdamsTable(
            layout,
            state.accept,
            layout.put(one.differences, at, two.differences),
            one.spacings.index_copy(1, at, two.spacings),
            one.order.index_copy(0, at, two.order),
            one.valid.index_copy(0, at, two.valid),
            one.headroom.index_copy(0, at, two.headroom),
            one.lowest.index_copy(0, at, two.lowest),
            replaced(one.size, two.size, at, len(x)),
        )

    def _widened(self, state: AdamsTable, spacings: Tensor) -> AdamsTable:
        """With as many entries as for these spacings: those filled up are beyond `valid`, never used, but psi must not
        be 0."""
        more = spacings[len(state.spacings) :]
        if not len(more):
            return state
        psi = torch.cat([state.spacings, more[:, None].expand(-1, len(state.order))])
        return replace(state, differences=state.layout.widened(state.differences, len(spacings) + 1), spacings=psi)

    def select(self, state: AdamsTable, keep: Tensor, x: Tensor) -> AdamsTable:
        rows = {
            name: None if (value := getattr(state, name)) is None else value.index_select(-1, keep)
            for name in ("spacings", "order", "valid", "size", "headroom", "lowest")
        }
        return replace(state, differences=state.layout.select(state.differences, keep), **rows)


def _best_order(rooms: Tensor, reach: Tensor, orders: Orders) -> tuple[Tensor, Tensor]:
    """(the order that allows the longest step, log of the factor that it allows), (B,).

    Args:
        rooms: (j, B) log(aim/E_j) of the orders j = 1, 2 ...
        reach: the largest order whose estimate counts.
    """
    n = rooms.shape[0]
    some = orders.numbers[:n]
    gains = torch.sub(rooms * orders.shares[:n], (some - reach).clamp_min(0), alpha=1e3)
    most = gains.amax(0)
    return torch.add(some, (gains - most).sign(), alpha=100).amax(0), most  # the order where gains == most
