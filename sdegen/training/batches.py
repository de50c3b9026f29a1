"""What the loop feeds on: clean samples with their conditions, in an order that seed and step alone decide."""

from __future__ import annotations

import math
import warnings
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
from ..core.shapes import check_state, numbers
from ..data.images import Images
from ..models.facts import turning_of
from .draws import derived_seed, own_draws, seed_draws
from .statistics import Spread

_CPU = torch.device("cpu")
_MEASURED = 4096  # samples that statistics are taken from where the data are no tensor
_COMPARED = 64  # samples that tell data from other data
_CHUNK, _CHUNK_NUMBERS = 256, 2**20  # samples measured at a time, and the numbers in them


class Batch(NamedTuple):
    """Some rows of a step's batch.

    Attributes:
        x0: clean samples (B, *event).
        cond: their conditions; tensors have B rows, also inside dicts and tuples.
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


class Statistics(NamedTuple):
    """Of the data, in float64.

    Attributes:
        mean: event-shaped.
        std: the root mean square distance of the elements from it, one number.
        samples: how many they were taken from.
        turn: the noise level at which half of the data is told, 0 where all samples are the same (`turning_level`).
    """

    mean: Tensor
    std: float
    samples: int
    turn: float = 0.0


Share = Callable[[int], tuple[int, int]]  # of a batch of so many rows the first, and the one after the last, to load


def _whole(total: int) -> tuple[int, int]:
    return 0, total


class Batches(ABC):
    """Batches without end.

    Attributes:
        first: a batch to check before anything is done.
        size: how many samples there are, None where nobody knows.
        in_memory: whether all of them can be looked at quickly.
    """

    first: Batch
    size: int | None
    in_memory: bool = False

    @abstractmethod
    def from_step(self, step: int, seed: int, share: Share = _whole, device: torch.device = _CPU) -> Iterator[Batch]:
        """This process's rows of the batches of step, step + 1, ...

        The global generators, those of the device too, are seeded by (seed, step) before each is loaded, so that data
        that are drawn or augmented by them are the same after any interruption.
        """

    @abstractmethod
    def measured(self) -> Iterable[Tensor]:
        """The samples that mean and standard deviation are taken from, in chunks."""

    @abstractmethod
    def some(self) -> Batch | None:
        """A few samples, always the same; None where they cannot be had a second time."""

    def statistics(self) -> Statistics:
        """Mean, standard deviation and turning level, a chunk of the data in memory at a time.

        Raises:
            InvalidInputError: data that are not finite.

        Source: Chan, Golub & LeVeque 1983, for joining chunks.
        """
        n, mean, squares = 0, torch.zeros(self.first.x0.shape[1:], dtype=torch.float64, device="cpu"), 0.0
        bad: list[int] = []
        some = Spread(self.first.x0[0].numel())
        with own_draws():
            seed_draws(0)
            for chunk in self.measured():
                x, k = chunk.double().cpu(), len(chunk)
                own = x.mean(0)
                if not bool(torch.isfinite(own).all()):
                    bad += ((~torch.isfinite(x)).reshape(k, -1).any(1).nonzero().flatten() + n).tolist()
                squares += float((x - own).square().sum() + (own - mean).square().sum() * n * k / (n + k))
                mean = mean + (own - mean) * k / (n + k)
                n += k
                some.add(chunk)
        if bad:
            raise InvalidInputError(
                f"data holds NaN or infinity in {len(bad)} samples ({numbers(torch.tensor(bad[:9]))}): clean the data "
                "first"
            )
        return Statistics(mean, (squares / (n * max(mean.numel(), 1))) ** 0.5, n, turning_of(some.rows()))


def batches(data: Any, cond: Mapping[str, Any], batch_size: int) -> Batches:
    """The batches of whatever `fit` accepts as data.

    What can be indexed (a tensor, a Dataset, a list) holds samples, and is cut into batches here; what can only be
    iterated (a DataLoader, a generator) holds batches.

    Raises:
        InvalidInputError: anything else, no data, or data that are not floating and of one shape.
    """
    if isinstance(data, np.ndarray):
        data = _of_numpy(data)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        raise InvalidInputError("data is a pair (x0, conditions): pass conditions by name, as fit(model, x0, label=y)")
    if isinstance(data, str | bytes | Mapping) or not (hasattr(data, "__getitem__") or hasattr(data, "__iter__")):
        raise InvalidInputError(
            f"data: got a {type(data).__name__}, expected a tensor (N, *event), or a Dataset or an iterable of x0 or "
            "(x0, dict of conditions)"
        )
    if isinstance(data, Tensor):
        check_state(data, name="data", finite=False)
        return _Indexed(data, cond, batch_size)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return _Indexed(data, cond, batch_size)
    return _Stream(data, cond)


def _of_numpy(data: np.ndarray) -> Tensor:
    """A tensor in the array's own memory, which may be a mapped file, where torch can have one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a file that is only read: nothing writes into data here
            return torch.from_numpy(data if all(stride >= 0 for stride in data.strides) else data.copy())
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"data: got an array of {data.dtype}, expected one of np.float32 in this machine's byte order"
        ) from error


class _Indexed(Batches):
    """Shuffled passes over N samples, one after the other, cut into batches of one size (N may be smaller than that).

    Pass e is a permutation drawn from (seed, e), so that any step can be the first.
    """

    def __init__(self, data: Any, cond: Mapping[str, Any], batch_size: int) -> None:
        if not len(data):
            raise InvalidInputError("data is empty: expected at least one sample")
        self.data, self.cond, self.batch_size, self.size = data, dict(cond), batch_size, len(data)
        for name, value in self.cond.items():
            check_rows(name, value, len(data))
        self.in_memory = isinstance(data, Tensor)
        self.length = len(data) * -(-batch_size // len(data))  # of a pass: whole copies of the data, a batch at least
        self._passes: dict[tuple[int, int], Tensor] = {}
        with own_draws():
            seed_draws(0)
            self.first = self._batch(torch.arange(min(len(data), batch_size), device="cpu"), _whole)
        check_state(self.first.x0, name="data", finite=not self.in_memory)  # `statistics` looks at all of them

    def from_step(self, step: int, seed: int, share: Share = _whole, device: torch.device = _CPU) -> Iterator[Batch]:
        while True:
            if not isinstance(self.data, Tensor | Images):  # which draw nothing
                seed_draws(derived_seed(seed, "data", step, share(self.batch_size)[0]), device)
            yield self._batch(self._numbers(step, seed), share)
            step += 1

    def measured(self) -> Iterable[Tensor]:
        rows = min(_CHUNK, max(1, _CHUNK_NUMBERS // max(math.prod(self.first.x0.shape[1:]), 1)))
        if isinstance(self.data, Tensor):
            return self.data.split(rows)
        return (self._batch(part, _whole).x0 for part in self._spread(_MEASURED).split(rows))

    def some(self) -> Batch:
        with own_draws():
            seed_draws(0)
            return self._batch(self._spread(_COMPARED), _whole)

    def _spread(self, most: int) -> Tensor:
        """The numbers of so many samples, evenly over all of them."""
        n = len(self.data)
        return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64, device="cpu").round().long()

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

    A pass begins with the global generators, and a DataLoader's own, seeded by (seed, e), so that it shuffles alike
    when a run goes on; the batches before its first step are loaded and left out.
    """

    def __init__(self, data: Iterable, cond: Mapping[str, Any]) -> None:
        for name, value in cond.items():
            for words, _ in tensors_of(value, repr(name)):
                raise InvalidInputError(
                    f"condition {words} is a tensor, but rows cannot be matched with data that are iterated: let "
                    f"them give (x0, {{{name!r}: ...}})"
                )
        self.data, self.cond = data, dict(cond)
        with own_draws():
            iterator = iter(data)
            self._once = iterator if iterator is data else None
            seed_draws(0)
            first = next(self._pass(0, 0), None)
        if first is None:
            raise InvalidInputError("data is empty: expected at least one batch")
        self.first, self.size = first, _size_of(data)
        check_state(first.x0, name="data")

    def from_step(self, step: int, seed: int, share: Share = _whole, device: torch.device = _CPU) -> Iterator[Batch]:
        for n, batch in enumerate(self._all(seed, device)):
            if n >= step:
                yield batch.rows(*share(batch.total))

    def _all(self, seed: int, device: torch.device) -> Iterator[Batch]:
        if self._once is not None:
            yield self.first
            yield from _seeded(self._pass(0, seed), seed, 1, device)
            raise InvalidInputError(
                "data ended before the last step: pass what can be iterated again, such as a DataLoader, or fewer steps"
            )
        e = n = 0
        while True:
            for batch in _seeded(self._pass(e, seed), seed, n, device):
                yield batch
                n += 1
            e += 1

    def measured(self) -> Iterable[Tensor]:
        n = 0
        for batch in [self.first] if self._once is not None else self._pass(0, 0):
            yield batch.x0
            n += len(batch.x0)
            if n >= _MEASURED:
                return

    def some(self) -> Batch | None:
        if self._once is not None:
            return None
        return next(self._pass(0, 0), None)

    def _pass(self, e: int, seed: int) -> Iterator[Batch]:
        if self._once is not None:
            yield from map(self._batch, self._once)
            return
        with own_draws():
            own = derived_seed(seed, "pass", e)
            seed_draws(own)
            for generator in _generators(self.data):
                generator.manual_seed(own)
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


def _seeded(passed: Iterator[Batch], seed: int, n: int, device: torch.device) -> Iterator[Batch]:
    """The same batches, each loaded after the global generators were seeded by its number, from n on."""
    while True:
        seed_draws(derived_seed(seed, "data", n), device)
        batch = next(passed, None)
        if batch is None:
            return
        yield batch
        n += 1


def _generators(loader: Any) -> list[torch.Generator]:
    """Those that a DataLoader shuffles by, where it was given some."""
    own = [getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None)]
    return [generator for generator in own if isinstance(generator, torch.Generator)]


def _size_of(loader: Any) -> int | None:
    """How many samples a DataLoader has."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return None


def _parted(item: Any) -> tuple[Any, Mapping[str, Any]]:
    """(x0, conditions) of what a Dataset or an iterable gives."""
    if not isinstance(item, tuple | list):
        return item, {}
    if len(item) == 1:
        return item[0], {}
    if len(item) == 2 and isinstance(item[1], Mapping):
        return item[0], item[1]
    raise InvalidInputError(
        f"data gives a {type(item).__name__} of {', '.join(type(part).__name__ for part in item[:4])}: expected x0 or "
        "(x0, dict of conditions); a label goes with its name, as (x0, {'label': y})"
    )
