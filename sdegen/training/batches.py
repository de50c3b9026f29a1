"""Batches whose content depends on (seed, step) alone, so that a run can go on from any step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..shapes import check_state

Batch = tuple[Tensor, dict[str, Any]]


class Shuffled:
    """Batches of indexed data: the samples in one random order after another, cut into pieces of batch_size.

    Args:
        data: a tensor (N, *event), or a Dataset with __len__ and __getitem__ of x0 or (x0, dict of conditions).
        cond: conditions: tensors (N, ...) go with their sample, anything else to every batch.
    """

    def __init__(self, data: Any, cond: Mapping[str, Any], batch_size: int, seed: int, device: torch.device) -> None:
        self.data, self.cond, self.batch_size, self.seed, self.device = data, dict(cond), batch_size, seed, device
        self.n = len(data)
        if isinstance(data, Tensor):
            self.data = data.to(device)
        for name, value in self.cond.items():
            if isinstance(value, Tensor):
                if value.ndim == 0 or len(value) != self.n:
                    raise InvalidInputError(f"condition {name!r} has shape {tuple(value.shape)}, but the data have {self.n} samples: one per sample")
                self.cond[name] = value.to(device)
        self._orders: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step, whichever steps were asked for before."""
        first, rows, left = step * self.batch_size, [], self.batch_size
        while left:
            epoch, place = divmod(first, self.n)
            piece = self._order(epoch)[place : place + left]
            rows.append(piece)
            first, left = first + len(piece), left - len(piece)
        index = rows[0] if len(rows) == 1 else torch.cat(rows)
        cond = {k: v[index.to(v.device)] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        if isinstance(self.data, Tensor):
            return self.data[index.to(self.device)], cond
        items = [_split(self.data[i]) for i in index.tolist()]
        x0 = torch.stack([torch.as_tensor(x) for x, _ in items])
        own = {k: torch.stack([torch.as_tensor(c[k]) for _, c in items]) for k in items[0][1]}
        return x0.to(self.device), {**cond, **{k: v.to(self.device) for k, v in own.items()}}

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._orders = {epoch: torch.randperm(self.n, generator=generator)}
        return self._orders[epoch]


class Streamed:
    """Batches of an iterable that makes them itself: each item is a batch x0 (B, *event) or (x0, dict of conditions). It is begun again when it ends."""

    def __init__(self, data: Iterable, cond: Mapping[str, Any], device: torch.device) -> None:
        self.data, self.cond, self.device = data, dict(cond), device
        self._items: Iterator | None = None

    def __call__(self, step: int) -> Batch:
        item = next(self._items, None) if self._items is not None else None
        if item is None:
            self._items = iter(self.data)
            item = next(self._items, None)
            if item is None:
                raise InvalidInputError("data gave no batch: an iterable must give at least one, and again when it is iterated anew")
        x0, own = _split(item)
        cond = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in {**self.cond, **own}.items()}
        return x0.to(self.device), cond


def batches(data: Any, cond: Mapping[str, Any], batch_size: int, seed: int, device: torch.device) -> Shuffled | Streamed:
    """The batches of any kind of data."""
    if isinstance(data, Tensor):
        check_state(data, name="data")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        if not len(data):
            raise InvalidInputError("data is empty: training needs at least one sample")
        return Shuffled(data, cond, batch_size, seed, device)
    if not isinstance(data, Iterable):
        raise InvalidInputError(f"data is {type(data).__name__}: pass a tensor (N, *event), a Dataset, or an iterable of batches")
    return Streamed(data, cond, device)


def statistics(data: Any, source: Shuffled | Streamed) -> tuple[Tensor, Tensor]:
    """The event-shaped mean and the scalar standard deviation around it, float64, of all data in memory or of up to 100 batches."""
    if isinstance(data, Tensor):
        x = data.double()
    else:
        count = min(100, -(-source.n // source.batch_size)) if isinstance(source, Shuffled) else 10
        x = torch.cat([source(k)[0] for k in range(count)]).double()
    mean = x.mean(0)
    return mean.cpu(), (x - mean).square().mean().sqrt().cpu()


def _split(item: Any) -> tuple[Any, dict[str, Any]]:
    """An item of data as (x0, conditions)."""
    if isinstance(item, Sequence) and not isinstance(item, Tensor) and len(item) == 2 and isinstance(item[1], Mapping):
        return item[0], dict(item[1])
    if isinstance(item, Sequence) and not isinstance(item, Tensor) and len(item) == 1:
        return item[0], {}
    if isinstance(item, Tensor):
        return item, {}
    raise InvalidInputError(f"an item of data is {type(item).__name__}: wanted x0, or (x0, dict of conditions)")
