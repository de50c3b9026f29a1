"""Data that are divided among processes before `fit` sees them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shares:
    """Batches of which each process loads its own rows by itself: a stream divided by shards, a DistributedSampler.

    `fit(model, Shares(loader), ...)`: a step's batch is what the processes have together, in the order of their ranks.
    Every batch of every process has to have the same number of samples (`drop_last=True`), and a run that is gone on
    with needs the same number of processes.

    Attributes:
        batches: an iterable of batches, as `fit` takes it.
    """

    batches: Iterable[Any]
