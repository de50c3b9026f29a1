"""What the loop feeds on: clean samples with their conditions, in an order that seed and step alone decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate

from ..core.conditions import check_rows, rows_of, tensors_of
from ..core.errors import InvalidInputError
from ..core.shapes import check_state
from ..data.images import Images
from .draws import derived_seed, own_draws, seed_draws

_MEASURED = 4096  # samples that statistics are taken from where the data are no tensor
_CHUNK = 256  # samples measured at a time


class Batch(NamedTuple):
    """Some rows of a step's batch.

    Attributes:
        x0: clean samples (B, *event).
        cond: their conditions; tensors have B rows.
        numbers: (total,) those of the whole batch in the data, None where data are iterated.
        start: which row of the whole batch the first one is.
        total: how many the whole batch has.
    """

    x0: Tensor
    cond: dict[str, Any]
    numbers: Tensor | None
    start: int
    total: int

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start .. stop of these."""
        if (start, stop) == (0, len(self.x0)):
            return self
        cond = rows_of(self.cond, slice(start, stop))
        return Batch(self.x0[start:stop], cond, self.numbers, self.start + start, self.total)

    def parts(self, n: int) -> list[Batch]:
        """These rows in n parts, about equal."""
        if n == 1:
            return [self]
        ends = [i * len(self.x0) // n for i in range(n + 1)]
        return [self.rows(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


Share = Callable[[int], tuple[int, int]]  # of a batch of so many rows the first, and the one after the last, to load


def _whole(total: int) -> tuple[int, int]:
    return 0, total


class Batches(ABC):
    """Batches without end.

    Attributes:
        first: a batch to check before anything is done.
    """

    first: Batch

    @abstractmethod
    def from_step(self, step: int, seed: int, share: Share = _whole) -> Iterator[Batch]:
        """This process's rows of the batches of step, step + 1, ..."""

    @abstractmethod
    def measured(self) -> Iterable[Tensor]:
        """The samples that mean and standard deviation are taken from, in chunks."""

    def statistics(self) -> tuple[Tensor, float]:
        """The event-shaped mean and, as one number, the root mean square distance of the elements from it; in float64.

        Source: Chan, Golub & LeVeque 1983, for joining chunks.
        """
        n, mean, squares = 0, torch.zeros(self.first.x0.shape[1:], dtype=torch.float64, device="cpu"), 0.0
        for chunk in self.measured():
            x, k = chunk.double().cpu(), len(chunk)
            own = x.mean(0)
            squares += float((x - own).square().sum() + (own - mean).square().sum() * n * k / (n + k))
            mean = mean + (own - mean) * k / (n + k)
            n += k
        return mean, (squares / (n * max(mean.numel(), 1))) ** 0.5


def batches(data: Any, cond: Mapping[str, Any], batch_size: int) -> Batches:
    """The batches of whatever `fit` accepts as data.

    What can be indexed (a tensor, a Dataset, a list) holds samples, and is cut into batches here; what can only be
    iterated (a DataLoader, a generator) holds batches.

    Raises:
        InvalidInputError: anything else, no data, or data that are not floating, finite and of one shape.
    """
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        raise InvalidInputError("data is a pair (x0, conditions): pass conditions by name, as fit(model, x0, label=y)")
    if isinstance(data, str | bytes | Mapping) or not (hasattr(data, "__getitem__") or hasattr(data, "__iter__")):
        raise InvalidInputError(
            f"data is a {type(data).__name__}: pass a tensor (N, *event), or a Dataset or an iterable of x0 or "
            "(x0, dict of conditions)"
        )
    if isinstance(data, Tensor):
        check_state(data, name="data")
        return _Indexed(data, cond, batch_size)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return _Indexed(data, cond, batch_size)
    return _Stream(data, cond)


class _Indexed(Batches):
    """Shuffled passes over N samples, one after the other, cut into batches of one size (N may be smaller than that).

    Pass e is a permutation drawn from (seed, e), so that any step can be the first.
    """

    def __init__(self, data: Any, cond: Mapping[str, Any], batch_size: int) -> None:
        if not len(data):
            raise InvalidInputError("data is empty: wanted at least one sample")
        self.data, self.cond, self.batch_size = data, dict(cond), batch_size
        for name, value in self.cond.items():
            check_rows(name, value, len(data))
        self.length = len(data) * -(-batch_size // len(data))  # of a pass: whole copies of the data, a batch at least
        self._passes: dict[tuple[int, int], Tensor] = {}
        self.first = self._batch(torch.arange(min(len(data), batch_size), device="cpu"), _whole)
        check_state(self.first.x0, name="data")

    def from_step(self, step: int, seed: int, share: Share = _whole) -> Iterator[Batch]:
        while True:
            yield self._batch(self._numbers(step, seed), share)
            step += 1

    def measured(self) -> Iterable[Tensor]:
        if isinstance(self.data, Tensor):
            return self.data.split(_CHUNK)
        spread = torch.linspace(0, len(self.data) - 1, min(len(self.data), _MEASURED), device="cpu").round().long()
        return (self._batch(part, _whole).x0 for part in spread.split(_CHUNK))

    def _numbers(self, step: int, seed: int) -> Tensor:
        e, start = divmod(step * self.batch_size, self.length)
        numbers = self._pass(e, seed)[start : start + self.batch_size]
        if len(numbers) < self.batch_size:
            numbers = torch.cat([numbers, self._pass(e + 1, seed)[: self.batch_size - len(numbers)]])
        return numbers

    def _pass(self, e: int, seed: int) -> Tensor:
        if (e, seed) not in self._passes:
            self._passes = {k: v for k, v in self._passes.items() if k == (e - 1, seed)}
            generator = torch.Generator().manual_seed(derived_seed(seed, "order", e))
            self._passes[e, seed] = torch.randperm(self.length, generator=generator) % len(self.data)
        return self._passes[e, seed]

    def _batch(self, numbers: Tensor, share: Share) -> Batch:
        start, stop = share(len(numbers))
        own = numbers[start:stop]
        cond = rows_of(self.cond, own)
        if isinstance(self.data, Tensor):
            return Batch(self.data[own.to(self.data.device)], cond, numbers, start, len(numbers))
        if isinstance(self.data, Images):
            x0, theirs = self.data.batch(own)
            return Batch(x0, {**theirs, **cond}, numbers, start, len(numbers))
        items = [_parted(self.data[i]) for i in own.tolist()]
        try:
            x0, theirs = default_collate(items)
        except (RuntimeError, TypeError, KeyError) as error:
            raise InvalidInputError(f"samples {own[:4].tolist()}, ... do not make a batch: {error}") from error
        return Batch(x0, {**_with_tuples(theirs), **cond}, numbers, start, len(numbers))


class _Stream(Batches):
    """Passes over an iterable of batches; one that can be iterated once must last for all steps.

    A pass begins with torch's generator seeded by (seed, e), so that a DataLoader shuffles alike when a run goes on;
    the batches before its first step are loaded and left out.
    """

    def __init__(self, data: Iterable, cond: Mapping[str, Any]) -> None:
        for name, value in cond.items():
            for words, _ in tensors_of(value, repr(name)):
                raise InvalidInputError(
                    f"condition {words} is a tensor, but rows cannot be matched with data that are iterated: let them "
                    f"give (x0, {{{name!r}: ...}})"
                )
        self.data, self.cond = data, dict(cond)
        iterator = iter(data)
        self._once = iterator if iterator is data else None
        first = next(self._pass(0, 0), None)
        if first is None:
            raise InvalidInputError("data is empty: wanted at least one batch")
        self.first = first
        check_state(first.x0, name="data")

    def from_step(self, step: int, seed: int, share: Share = _whole) -> Iterator[Batch]:
        return (batch.rows(*share(batch.total)) for batch in self._from_step(step, seed))

    def _from_step(self, step: int, seed: int) -> Iterator[Batch]:
        if self._once is not None:
            yield from islice([self.first], max(0, 1 - step))
            yield from islice(self._pass(0, seed), max(0, step - 1), None)
            raise InvalidInputError(
                "data ended before the last step: pass what can be iterated again, such as a DataLoader, or fewer steps"
            )
        e, seen = 0, 0
        while True:
            for batch in self._pass(e, seed):
                if seen >= step:
                    yield batch
                seen += 1
            e += 1

    def measured(self) -> Iterable[Tensor]:
        n = 0
        for batch in [self.first] if self._once is not None else self._pass(0, 0):
            yield batch.x0
            n += len(batch.x0)
            if n >= _MEASURED:
                return

    def _pass(self, e: int, seed: int) -> Iterator[Batch]:
        if self._once is not None:
            yield from map(self._batch, self._once)
            return
        with own_draws(torch.device("cpu")):
            seed_draws(derived_seed(seed, "pass", e), torch.device("cpu"))
            iterator = iter(self.data)
            first = list(islice(iterator, 1))
        yield from map(self._batch, first)
        yield from map(self._batch, iterator)

    def _batch(self, item: Any) -> Batch:
        x0, own = _parted(item)
        x0 = x0 if isinstance(x0, Tensor) else torch.as_tensor(x0, device="cpu")
        return Batch(x0, {**_with_tuples(own), **self.cond}, None, 0, len(x0) if x0.ndim else 0)


def _with_tuples(value: Any) -> Any:
    """Conditions of a batch, with a tuple for every list of tensors: that is what collation makes of tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        parts = tuple(map(_with_tuples, value))
        return parts if all(isinstance(part, Tensor | tuple | dict) for part in parts) else value
    return value


def _parted(item: Any) -> tuple[Any, Mapping[str, Any]]:
    """(x0, conditions) of what a Dataset or an iterable gives."""
    if not isinstance(item, tuple | list):
        return item, {}
    if len(item) == 1:
        return item[0], {}
    if len(item) == 2 and isinstance(item[1], Mapping):
        return item[0], item[1]
    raise InvalidInputError(
        f"data gives a {type(item).__name__} of {', '.join(type(part).__name__ for part in item[:4])}: wanted x0 or "
        "(x0, dict of conditions); a label goes with its name, as (x0, {'label': y})"
    )
