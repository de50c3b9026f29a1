"""Data that can be indexed: cut into batches here, or by the sampler of a DataLoader; each process loads its rows."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ..core.conditions import check_rows, rows_of
from ..core.errors import InvalidInputError
from ..core.shapes import check_state
from ..data.batched import Batched
from ..data.conditioned import Conditioned
from .batches import CPU, MEASURED, Batch, Batches, Share, whole, with_tuples
from .draws import derived_seed, own_draws, seed_draws
from .loading import Loader, Task
from .rows import PLAIN, Rows
from .streams import generators, refuse_rows, size_of, start_pass

_COMPARED = 64  # samples that tell data from other data
_CHUNK, _CHUNK_NUMBERS = 256, 2**20  # samples measured at a time, and the numbers in them


class _Loaded(Batches):
    """Batches of samples by their numbers.

    Attributes:
        load: makes a batch of samples.
        workers: how many processes do so ahead of the step.
    """

    load: Loader
    workers: int

    def from_step(self, step: int, seed: int, share: Share = whole, device: torch.device = CPU) -> Iterator[Batch]:
        ahead = None
        if self.workers:
            tasks = (task for _, task, _ in self._tasks(step, seed, share) if task.numbers)
            ahead = self.load.ahead(tasks, self.workers, device)
        for numbers, task, start in self._tasks(step, seed, share):
            stop = start + len(task.numbers)
            if not task.numbers:
                yield Batch(self.first.x0[:0], {}, numbers, start, len(numbers))
            else:
                loaded = next(ahead) if ahead is not None else self._here(task, device)
                yield self._made(loaded, numbers, start, stop)

    def _tasks(self, step: int, seed: int, share: Share) -> Iterator[tuple[Tensor, Task, int]]:
        """Of every batch from a step on: the numbers of its samples, this process's task, and its first row."""
        for n, numbers in enumerate(self._whole_batches(step, seed), step):
            start, stop = share(len(numbers))
            yield numbers, Task(derived_seed(seed, "data", n, start), numbers[start:stop].tolist()), start

    @abstractmethod
    def _whole_batches(self, step: int, seed: int) -> Iterator[Tensor]:
        """The numbers of the samples of every batch from a step on."""

    @abstractmethod
    def _here(self, task: Task, device: torch.device) -> Any:
        """What the loader makes of a task, in this process."""

    @abstractmethod
    def _made(self, loaded: Any, numbers: Tensor, start: int, stop: int) -> Batch:
        """A batch of what was loaded, the rows start .. stop of all."""


class Indexed(_Loaded):
    """Shuffled passes over N samples, one after the other, cut into batches of one size (N may be smaller than that).

    Pass e is a permutation drawn from (seed, e), so that any step can be the first.
    """

    def __init__(
        self, data: Any, cond: Mapping[str, Any], batch_size: int, workers: int = 0, rows: Rows = PLAIN
    ) -> None:
        if not len(data):
            raise InvalidInputError("data is empty: expected at least one sample")
        self.data, self.cond, self.batch_size, self.size = data, dict(cond), batch_size, len(data)
        for name, value in self.cond.items():
            check_rows(name, value, len(data))
        inside = data.data if isinstance(data, Conditioned) else data
        self.samples = inside if isinstance(inside, Tensor) else None  # all of them, where they are in memory
        self.in_memory = self.samples is not None
        self.workers = 0 if isinstance(data, Tensor) else workers  # what is in memory is there at once
        self.load = Loader(data, partial(_collated, rows))
        self.length = len(data) * -(-batch_size // len(data))  # of a pass: whole copies of the data, a batch at least
        self._passes: dict[tuple[int, int], Tensor] = {}
        with own_draws():
            seed_draws(0)
            self.first = self._batch(torch.arange(min(len(data), batch_size), device="cpu"), whole)
        check_state(self.first.x0, name="data", finite=not self.in_memory)  # `statistics` looks at all of them

    def measured(self) -> Iterable[Tensor]:
        rows = min(_CHUNK, max(1, _CHUNK_NUMBERS // max(math.prod(self.first.x0.shape[1:]), 1)))
        if self.samples is not None:
            return self.samples.split(rows)
        return (self._batch(part, whole).x0 for part in self._spread(MEASURED).split(rows))

    def some(self) -> Batch:
        with own_draws():
            seed_draws(0)
            return self._batch(self._spread(_COMPARED), whole)

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
            self._passes[e, seed] = torch.randperm(self.length, generator=generator, device="cpu") % len(self.data)
        return self._passes[e, seed]

    def _whole_batches(self, step: int, seed: int) -> Iterator[Tensor]:
        while True:
            yield self._numbers(step, seed)
            step += 1

    def _batch(self, numbers: Tensor, share: Share) -> Batch:
        start, stop = share(len(numbers))
        return self._made(self._loaded(numbers[start:stop]), numbers, start, stop)

    def _loaded(self, own: Tensor) -> Any:
        if isinstance(self.data, Tensor):
            return self.data[own.to(self.data.device)], {}
        if isinstance(self.data, Batched):
            return self.data.batch(own)
        return self.load.collate([self.data[i] for i in own.tolist()])

    def _here(self, task: Task, device: torch.device) -> Any:
        if not isinstance(self.data, Tensor):
            return self.load(task, device)
        return self._loaded(torch.tensor(task.numbers, dtype=torch.long, device="cpu"))  # which draws nothing

    def _made(self, loaded: Any, numbers: Tensor, start: int, stop: int) -> Batch:
        x0, theirs = loaded
        cond = rows_of(self.cond, numbers[start:stop])
        return Batch(x0, {**with_tuples(theirs), **cond}, numbers, start, len(numbers))


def _collated(rows: Rows, items: list) -> tuple[Any, Any]:
    """(x0, conditions) of a list of samples."""
    try:
        x0, theirs = default_collate([rows.parted(item) for item in items])
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        ragged = isinstance(error, RuntimeError) and "equal size" in str(error)
        cure = "; give all one shape: shorter tokens are padded, with a token_mask beside them" if ragged else ""
        raise InvalidInputError(f"samples do not make a batch: {error}{cure}") from error
    return x0, theirs


class Loaded(_Loaded):
    """Passes over a DataLoader of a Dataset with its own sampler: of its batches each process loads its rows only.

    A pass begins with the global generators, and the DataLoader's own, seeded by (seed, e); no sample is loaded to
    come to a step in the middle.
    """

    def __init__(self, loader: DataLoader, cond: Mapping[str, Any], workers: int = 0, rows: Rows = PLAIN) -> None:
        self.rows = rows
        refuse_rows(cond)
        self.loader, self.cond, self.workers = loader, dict(cond), max(workers, loader.num_workers)
        self.load = Loader(loader.dataset, loader.collate_fn, loader.worker_init_fn)
        self.size = size_of(loader)
        with own_draws():
            first = next(self._once(), None)
        if first is None:
            raise InvalidInputError("data is empty: expected at least one batch")
        self.first = first
        check_state(first.x0, name="data")

    def measured(self) -> Iterable[Tensor]:
        n = 0
        for batch in self._once():
            yield batch.x0
            n += len(batch.x0)
            if n >= MEASURED:
                return

    def some(self) -> Batch | None:
        with own_draws():
            return next(self._once(), None)

    def _once(self) -> Iterator[Batch]:
        """The batches of the first pass of seed 0."""
        for n, numbers in enumerate(self._pass(0, 0)):
            yield self._made(
                self.load(Task(derived_seed(0, "data", n, 0), numbers)), torch.tensor(numbers, device="cpu"), 0, 0
            )

    def _whole_batches(self, step: int, seed: int) -> Iterator[Tensor]:
        e = n = 0
        while True:
            for numbers in self._pass(e, seed):
                if n >= step:
                    yield torch.tensor(numbers, device="cpu")
                n += 1
            e += 1

    def _pass(self, e: int, seed: int) -> Iterator[list[int]]:
        sampler: Any = self.loader.batch_sampler
        start_pass(self.loader, e)
        batches = None
        for k in itertools.count():
            with own_draws():
                own = derived_seed(seed, "pass", e) if k == 0 else derived_seed(seed, "pass", e, k)
                seed_draws(own)
                if batches is None:
                    for generator in generators(self.loader):
                        generator.manual_seed(own)
                    batches = iter(sampler)
                numbers = next(batches, None)
            if numbers is None:
                return
            yield list(numbers)

    def _here(self, task: Task, device: torch.device) -> Any:
        return self.load(task, device)

    def _made(self, loaded: Any, numbers: Tensor, start: int, stop: int) -> Batch:
        x0, own = self.rows.parted(loaded)
        x0 = x0 if isinstance(x0, Tensor) else torch.as_tensor(x0, device="cpu")
        return Batch(x0, {**with_tuples(own), **self.cond}, numbers, start, len(numbers))
