"""How tables of states are laid out in memory, so that coefficients of each sample multiply them at full speed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....core.shapes import SMALL_EVENT, flat


class Orders:
    """Columns (10, 1) of numbers that belong to the orders 1 ... 10.

    Attributes:
        before, numbers: i - 1 and i.
        shares: 1/(i + 1).
        second: 1/(i (i + 1)).
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        i = self.numbers = torch.arange(1, 11, dtype=dtype, device=device)[:, None]
        self.before, self.shares, self.second = i - 1, 1 / (i + 1), 1 / (i * (i + 1))


class Layout:
    """How a table of states is laid out, so that coefficients (i, B) multiply it at full speed.

    Small events, of d numbers, stand before everything, (d, i, B); large ones after it, (i, B, d). An entry of a table
    is (d, B) or (B, d). All in the dtype of x, or float32 if that is less.
    """

    def __init__(self, x: Tensor) -> None:
        self.d = math.prod(x.shape[1:])
        self.small = self.d <= SMALL_EVENT
        self.axis, self.event_axis, self.batch_axis = (1, 0, -1) if self.small else (0, -1, -2)
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.orders = Orders(self.dtype, x.device)

    def weights(self, h: Tensor, psi: Tensor) -> Tensor:
        """h g_1 ... h g_(n + 1), (n + 1, B), of steps h (B,) with spacings psi (n, B).

            c_(1,q) = h/q,    c_(2,q) = h/(q (q + 1)),    c_(i+1,q) = c_(i,q) - (h/psi'_i) c_(i,q+1)

        and h g_i = c_(i,1), so that h g_i phi*_i is the integral of the i-th Newton term over the step.
        """
        c = h * self.orders.second[: len(psi)]
        g = [h, c[0]]
        for ratio in (h / psi[1:]).unbind(0):
            c = torch.addcmul(c[:-1], ratio, c[1:], value=-1)
            g.append(c[0])
        return torch.stack(g)

    def rows(self, x: Tensor) -> Tensor:
        """A state as an entry."""
        x = flat(x)
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        return packed(x.t()) if self.small else x

    def state(self, entry: Tensor, x: Tensor) -> Tensor:
        """An entry as a state like x. It is not copied: in memory, the batch of small events stays last."""
        state = (entry.t() if self.small else entry).reshape(x.shape)
        return state if state.dtype == x.dtype else state.to(x.dtype)

    def spread(self, c: Tensor) -> Tensor:
        """Coefficients (..., B) to multiply tables or entries with."""
        return c if self.small else c.unsqueeze(-1)

    def plus(self, entry: Tensor, table: Sequence[Tensor], c: Tensor) -> Tensor:
        """entry + sum_i c_i table_i, term by term: `sum` has an order of its own for a single sample."""
        first, *others = zip(table, self.spread(c).unbind(0), strict=True)
        entry = torch.addcmul(entry, *first)
        for row, c_i in others:
            entry.addcmul_(row, c_i)
        return entry

    def falling(self, entry: Tensor, table: Sequence[Tensor], c: Tensor) -> Tensor:
        """The table v_1 = entry, v_2 = v_1 - table_1, v_(i+1) = v_i - c_i table_i, i = 2 ..."""
        tracked, n = entry.requires_grad or table[0].requires_grad, len(table) + 1
        shape = [*entry.shape[: self.axis], n, *entry.shape[self.axis :]]
        whole = None if tracked else entry.new_empty(shape)  # autograd writes into no table
        out = [None] * n if whole is None else whole.unbind(self.axis)
        v = [entry if whole is None else out[0].copy_(entry)]  # type: ignore[union-attr]
        v.append(torch.sub(v[0], table[0], out=out[1]))
        for i, (row, c_i) in enumerate(zip(table[1:], self.spread(c).unbind(0), strict=True), 2):
            v.append(torch.addcmul(v[-1], row, c_i, value=-1, out=out[i]))
        return torch.stack(v, self.axis) if whole is None else whole

    def squares(self, table: Tensor) -> Tensor:
        """Sum of squares over the event of every entry: (i, B)."""
        if self.small:
            return table.square().sum(self.event_axis)
        return torch.linalg.vector_norm(table, dim=self.event_axis).square()

    def pick(self, table: Tensor, index: Tensor) -> Tensor:
        """The entry that consists of every sample's own one, index (B,)."""
        if self.small:
            index = index.expand_as(table.select(self.axis, 0)).unsqueeze(self.axis)
            return table.gather(self.axis, index).squeeze(self.axis)
        b = len(index)
        return table.reshape(-1, self.d).index_select(
            0, torch.add(torch.arange(b, device=index.device), index, alpha=b)
        )

    def select(self, table: Tensor, keep: Tensor) -> Tensor:
        """The table of the samples at the positions `keep`."""
        if self.small:  # index_select takes six times as long on this layout
            return table.gather(-1, keep.expand(*table.shape[:-1], -1))
        return table.index_select(self.batch_axis, keep)

    def put(self, table: Tensor, at: Tensor, new: Tensor) -> Tensor:
        """The table with the samples at these positions replaced; written into, unless autograd may have kept it."""
        put = table.index_copy if table.requires_grad else table.index_copy_
        return put(self.batch_axis, at, new)

    def cut(self, table: Tensor, first: int, count: int) -> Tensor:
        return table.narrow(self.axis, first, count)

    def widened(self, table: Tensor, width: int) -> Tensor:
        """The table with entries of zeros behind, as many as it lacks."""
        zero = torch.zeros_like(self.cut(table, 0, 1))
        return torch.cat([table, *[zero] * (width - table.shape[self.axis])], self.axis)

    def filled(self, table: Tensor, width: int) -> Tensor:
        """The first `width` entries; one more than there are is zero."""
        if table.shape[self.axis] < width:
            table = torch.cat([table, torch.zeros_like(self.cut(table, 0, 1))], self.axis)
        return self.cut(table, 0, width)


def packed(x: Tensor) -> Tensor:
    """x, contiguous. (With an axis more, because torch copies matrices that are transposed at half the speed.)"""
    return x if x.is_contiguous() else x[None].contiguous()[0]
