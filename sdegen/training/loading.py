"""Samples of a Dataset made into batches, here or ahead of the step in worker processes: the same ones either way."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from ..core.errors import InvalidInputError
from ..data.batched import Batched
from .draws import seed_draws

_CPU = torch.device("cpu")
_AHEAD = 2  # batches that each worker has ready


class Task(NamedTuple):
    """Some samples of a batch: by their numbers, and the seed of what is drawn for them."""

    seed: int
    numbers: list[int]


class Loader:
    """Loads the samples of a task, and makes a batch of them.

    Args:
        data: what can be indexed.
        collate: makes a batch of a list of samples.
        begin: a function of the worker's number, called in it first.
    """

    def __init__(self, data: Any, collate: Callable[[list], Any], begin: Callable[[int], Any] | None = None) -> None:
        self.data, self.collate, self.begin = data, collate, begin

    def __call__(self, task: Task, device: torch.device = _CPU) -> Any:
        """The batch; what is drawn on the way comes from the global generators, seeded by the task."""
        seed_draws(task.seed, device)
        if isinstance(self.data, Batched):
            return self.data.batch(torch.tensor(task.numbers, dtype=torch.long, device="cpu"))
        several = getattr(self.data, "__getitems__", None)
        items = several(task.numbers) if several is not None else [self.data[i] for i in task.numbers]
        return self.collate(items)

    def ahead(self, tasks: Iterator[Task], workers: int, device: torch.device) -> Iterator[Any]:
        """The batches of endless tasks, in order, each made in one of so many worker processes while steps are made."""
        check_sendable(self, workers)
        loader: Any = DataLoader(
            _Tasks(self),
            batch_size=None,
            sampler=tasks,  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=_AHEAD,
            pin_memory=device.type == "cuda",
            worker_init_fn=partial(_begin, self.begin),
            generator=torch.Generator(),
        )
        return iter(loader)


class _Tasks(Dataset):
    def __init__(self, load: Loader) -> None:
        self.load = load

    def __getitem__(self, task: Sequence[Any]) -> Any:
        return self.load(Task(*task))


def check_sendable(load: Loader, workers: int) -> None:
    """Raise unless worker processes can have the data: where they are not forked, they get them by pickle."""
    if multiprocessing.get_start_method() == "fork":
        return
    try:
        pickle.dumps(load)
    except Exception as error:  # whatever an object does when it is pickled
        raise InvalidInputError(
            f"workers={workers}: got a {type(load.data).__name__} that cannot be sent to other processes ({error}), "
            "expected one of classes and functions that a module defines, no lambdas and no open files; or workers=0"
        ) from error


def _begin(begin: Callable[[int], Any] | None, worker: int) -> None:
    """Workers end with the process that has them: it finishes its step on a signal, and they wait for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if begin is not None:
        begin(worker)
