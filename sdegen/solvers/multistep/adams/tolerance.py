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
from ...base import Entry, Step, together
from ...tolerance import Tolerance
from ..gaussian_start import Leapt, newton_table
from .layout import Layout, packed
from .method import AdamsMethod

_LEAST_CHANGE = 1.08  # of the step, for which the order is changed
_SHRINK, _GROW = 0.3, 2.0  # of the step, at most


@dataclass(slots=True, eq=False)
class AdamsTable:
    """What error control carries from step to step; i counts orders from 1, all in the dtype of a `Layout`.

    Attributes:
        differences: phi_i, a table of i entries.
        spacings: psi_i from psi_0 on, (i, B).
        order: (B,) how many of them the next step uses.
        valid: (B,) how many of them mean something.
        accept: the largest accepted E, see `Adams`.
        headroom: (B,) log(aim/E) of the last step, None before the first.
        lowest: (B,) that of its lowest order.
    """

    differences: Tensor
    spacings: Tensor
    order: Tensor
    valid: Tensor
    accept: float
    headroom: Tensor | None = None
    lowest: Tensor | None = None


@dataclass(slots=True, eq=False)
class AdamsAttempt:
    """What a step leaves for `AdamsTolerance.judge`.

    Attributes:
        differences, spacings: as they are after the step.
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
        differences = layout.rows(slope).unsqueeze(layout.axis)
        return AdamsTable(differences, torch.zeros_like(one)[None], one, one, self._most(term))

    def _most(self, term: Term) -> float:
        """The largest accepted E."""
        smooth = term.model is None or term.model.smooth
        return self.accept[0] if smooth else self.accept[1]

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise) -> Entry:
        leapt = Leapt.of(term, self.law, x, float(t[0]), tolerance, self.aim) if self.leaps else None
        if leapt is None:
            return Entry(x, t, self._begun(term, x, term.drift(x, t)))
        layout, stops, x_start = Layout(x), torch.full_like(t, leapt.stop), leapt.x
        parts = newton_table(leapt.slope, leapt.slopes, leapt.stop, leapt.past)
        differences = torch.stack([layout.rows(v) for v in parts], layout.axis)
        spacings = torch.stack([stops - u for u in (leapt.stop, *leapt.past)]).to(layout.dtype)
        refused = (~leapt.good).nonzero().flatten()
        if len(refused):  # they begin with one slope; what fills up their tables is not used
            first = layout.rows(term.drift_of(refused, x[refused], t[refused]))
            fill = torch.zeros_like(first)
            own = torch.stack([first, fill, fill], layout.axis)
            differences = differences.index_copy(layout.batch_axis, refused, own)
            x_start = x_start.index_copy(0, refused, x[refused])
        one = leapt.good.to(layout.dtype)
        table = AdamsTable(differences, spacings, one + 1, 2 * one + 1, self._most(term))
        return Entry(x_start, torch.where(leapt.good, stops, t), table)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: AdamsTable, noise: Noise) -> Step:
        layout, phi, k = Layout(x), state.differences, state.order
        h = (t_next - t).to(layout.dtype)
        psi = state.spacings + h  # psi'_i, i = 1..width
        beta = (psi[:-1] / state.spacings[1:]).cumprod(0)  # beta_i, i = 2..width; beta_1 = 1
        weights = _weights(h, psi)  # h g_i, i = 1..width + 1
        ahead = weights[:-1] * (k - _column(0, len(psi), k.dtype, k.device)).clamp(0, 1)  # those in use, i <= k
        ahead[1:].mul_(beta)
        predicted = layout.plus(layout.rows(x), phi, ahead)
        slope = term.drift(packed(layout.state(predicted, x)), t_next)
        first, *others = phi.unbind(layout.axis)
        changes = [layout.rows(slope)]  # phi'_1, phi'_2 ... phi'_(width + 1)
        changes.append(changes[0] - first)
        for phi_i, beta_i in zip(others, layout.spread(beta).unbind(0), strict=True):
            changes.append(torch.addcmul(changes[-1], phi_i, beta_i, value=-1))
        table, index = torch.stack(changes, layout.axis), k.long()[None]
        corrected = predicted + layout.pick(table, index[0]) * layout.spread(weights.gather(0, index)[0])
        squares = weights[1:].square() * layout.squares(layout.cut(table.detach(), 1, len(psi)))
        attempt = AdamsAttempt(table, torch.cat([state.spacings[:1], psi]), squares, index - 1)
        return Step(layout.state(corrected, x), attempt, slope=lambda: layout.state(first, x), slope_next=slope)

    def judge(
        self, step: Step, x: Tensor, state: AdamsTable, tolerance: Tolerance
    ) -> tuple[Tensor, Tensor, AdamsTable]:
        attempt: AdamsAttempt = step.state
        k, above, d = state.order, state.order + 1, math.prod(x.shape[1:])
        reach = torch.minimum(state.valid, above)  # the largest order whose estimate counts
        # rooms_j = log(aim/E_j), j = 1, 2 ...; an E_j below 1e-14 counts as that
        aim = torch.as_tensor(
            tolerance.scale(x.detach(), step.x.detach()) * (self.aim * d**0.5), dtype=k.dtype, device=k.device
        )
        rooms = torch.sub(aim.log(), attempt.squares.log(), alpha=0.5).clamp_max(math.log(self.aim / 1e-14))
        room = rooms.gather(0, attempt.row)[0]
        accept = room >= math.log(self.aim / state.accept)
        best, gain, most = _best_order(rooms, room, k, reach)
        lower = torch.minimum(best, k)
        # as long as every step brings an order that has no estimate yet, take it
        best = torch.where(accept, best + (lower == reach), lower).clamp_max(self.max_order)
        gain = torch.where(best < k, most, gain)
        # NaN: of samples that have joined and have no last step
        memory = 0.0 if state.headroom is None else (0.2 * (room - state.headroom) / above).nan_to_num(0.0)
        low, high = math.log(_SHRINK), math.log(_GROW)
        factor = torch.where(accept, (gain + memory).clamp(low, high), gain.clamp(low, math.log(0.8))).exp()
        after = self._after(attempt, accept, best, x, state)
        after.headroom, after.lowest = room.nan_to_num(math.log(self.aim)), rooms[0]
        return accept, factor.nan_to_num(_SHRINK), after

    def _after(self, attempt: AdamsAttempt, accept: Tensor, order: Tensor, x: Tensor, state: AdamsTable) -> AdamsTable:
        """The table to carry on: that of the attempt where it was accepted, else the one before."""
        layout, count = Layout(x), len(attempt.squares)
        width = min(int(order.max()), count) + 1
        phi, psi = layout.cut(attempt.differences, 0, width), attempt.spacings[:width]
        if not bool(accept.all()):
            # what fills a table up is never used, it is beyond `valid`; but psi must not be 0
            phi = torch.where(layout.spread(accept), phi, layout.filled(state.differences, width))
            psi = torch.where(accept, psi, torch.cat([state.spacings, psi[count:]])[:width])
        return AdamsTable(phi, psi, order, (state.valid + accept).clamp_max(width), state.accept)

    def restart(
        self, term: Term, x: Tensor, t: Tensor, state: AdamsTable, rows: Tensor
    ) -> tuple[AdamsTable, Tensor | None]:
        """One slope for a history, and the step that its order allowed before the jump."""
        layout = Layout(x)
        slope = layout.rows(term.drift_of(rows, x[rows], t[rows]))
        count = len(state.spacings)
        fresh = torch.stack([slope, *[torch.zeros_like(slope)] * (count - 1)], layout.axis)
        table = replace(
            state,
            differences=state.differences.index_copy(layout.batch_axis, rows, fresh),
            order=state.order.index_fill(0, rows, 1.0),
            valid=state.valid.index_fill(0, rows, 1.0),
        )
        return table, None if state.lowest is None else (state.lowest[rows] / 2).exp().nan_to_num(1.0)

    def join(self, state: AdamsTable, other: AdamsTable, x: Tensor, y: Tensor) -> AdamsTable:
        wide = max((state, other), key=lambda table: len(table.spacings))
        one, two = (self._widened(table, Layout(x), wide.spacings.mean(1)) for table in (state, other))
        layout, n, m = Layout(x), len(x), len(y)
        return AdamsTable(
            torch.cat([one.differences, two.differences], layout.batch_axis),
            torch.cat([one.spacings, two.spacings], 1),
            torch.cat([one.order, two.order]),
            torch.cat([one.valid, two.valid]),
            state.accept,
            together(one.headroom, two.headroom, n, m),
            together(one.lowest, two.lowest, n, m),
        )

    def _widened(self, state: AdamsTable, layout: Layout, spacings: Tensor) -> AdamsTable:
        """With as many entries as there are spacings: those filled up are beyond `valid`, never used, but psi must not
        be 0."""
        more = spacings[len(state.spacings) :]
        if not len(more):
            return state
        psi = torch.cat([state.spacings, more[:, None].expand(-1, len(state.order))])
        return replace(state, differences=layout.widened(state.differences, len(spacings)), spacings=psi)

    def select(self, state: AdamsTable, keep: Tensor, x: Tensor) -> AdamsTable:
        room, lowest = state.headroom, state.lowest
        return AdamsTable(
            Layout(x).select(state.differences, keep),
            state.spacings.index_select(-1, keep),
            state.order.index_select(-1, keep),
            state.valid.index_select(-1, keep),
            state.accept,
            None if room is None else room.index_select(-1, keep),
            None if lowest is None else lowest.index_select(-1, keep),
        )


def _best_order(rooms: Tensor, room: Tensor, k: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the order that allows the longest step, log of the factor on the step at order k, and at the best one), (B,).

    Args:
        rooms: (j, B) log(aim/E_j) of the orders j = 1, 2 ...
        room: that of order k.
        k: the order used; it stays unless another makes the step `_LEAST_CHANGE` times as long.
        reach: the largest order whose estimate counts.
    """
    orders = _column(1, len(rooms) + 1, k.dtype, k.device)
    gains = torch.sub(rooms / (orders + 1), (orders - reach).clamp_min(0), alpha=1e3)
    gain, most = room / (k + 1), gains.amax(0)
    best = torch.add(orders, (gains - most).sign(), alpha=100).amax(0)  # the order where gains == most
    return torch.where(most - gain > math.log(_LEAST_CHANGE), best, k), gain, most


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


def _column(first: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """first ... stop - 1, (stop - first, 1)."""
    return torch.arange(first, stop, dtype=dtype, device=device)[:, None]
