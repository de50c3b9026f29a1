"""What the loop feeds on: clean samples with their conditions, in an order that seed and step alone decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import rows_of
from ..core.errors import InvalidInputError
from ..core.shapes import numbers
from ..models.facts import turning_of
from .draws import own_draws, seed_draws
from .statistics import Spread

CPU = torch.device("cpu")
MEASURED = 4096  # samples that statistics are taken from where the data are no tensor


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


def whole(total: int) -> tuple[int, int]:
    return 0, total


class Batches(ABC):
    """Batches without end.

    Attributes:
        first: a batch to check before anything is done.
        size: how many samples there are, None where nobody knows.
        in_memory: whether all of them can be looked at quickly.
        divided: whether each process has data of its own.
    """

    first: Batch
    size: int | None
    in_memory: bool = False
    divided: bool = False

    @abstractmethod
    def from_step(self, step: int, seed: int, share: Share = whole, device: torch.device = CPU) -> Iterator[Batch]:
        """This process's rows of the batches of step, step + 1, ...

        The global generators, those of the device too, are seeded by (seed, step) before each is loaded, so that data
        that are drawn or augmented by them are the same after any interruption.
        """

    def state(self) -> Any:
        """Where data that count for themselves are, after the last batch that was given; None where steps say it."""
        return None

    def go_on(self, step: int, state: Any) -> None:
        """Begin at a step where `state` was asked for before."""
        return

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
            first = numbers(torch.tensor(bad[:9], device="cpu"))
            raise InvalidInputError(f"data holds NaN or infinity in {len(bad)} samples ({first}): clean the data first")
        return Statistics(mean, (squares / (n * max(mean.numel(), 1))) ** 0.5, n, turning_of(some.rows()))


def with_tuples(value: Any) -> Any:
    """Conditions of a batch, with a tensor for every array, and a tuple for every list of tensors: that is what
    collation makes of tuples."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.as_tensor(value, device="cpu")
    if isinstance(value, Mapping):
        return {key: with_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        parts = tuple(map(with_tuples, value))
        return parts if all(isinstance(part, Tensor | tuple | dict) for part in parts) else value
    return value
