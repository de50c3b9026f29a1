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

    def rows(self, x: Tensor) -> Tensor:
        """A state as an entry."""
        x = flat(x).to(self.dtype)
        return packed(x.t()) if self.small else x

    def state(self, entry: Tensor, x: Tensor) -> Tensor:
        """An entry as a state like x. It is not copied: in memory, the batch of small events stays last."""
        return (entry.t() if self.small else entry).reshape(x.shape).to(x.dtype)

    def spread(self, c: Tensor) -> Tensor:
        """Coefficients (..., B) to multiply tables or entries with."""
        return c if self.small else c.unsqueeze(-1)

    def plus(self, entry: Tensor, table: Sequence[Tensor], c: Tensor) -> Tensor:
        """entry + sum_i c_i table_i, term by term: `sum` has an order of its own for a single sample."""
        for row, c_i in zip(table, self.spread(c).unbind(0), strict=True):
            entry = torch.addcmul(entry, row, c_i)
        return entry

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
    return x[None].contiguous()[0]
