"""Whatever `fit` accepts as data, as batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ..core.errors import InvalidInputError
from ..core.kinds import kind_of, take
from ..core.shapes import check_state
from ..core.team import place_here
from ..data.conditioned import Conditioned, Lookup
from ..data.shares import Shares
from .batches import Batches
from .indexed import Indexed, Loaded
from .rows import PLAIN, Rows
from .streams import Stream

_TENSOR = kind_of(Tensor)


def batches(data: Any, cond: Mapping[str, Any], batch_size: int, workers: int = 0, rows: Rows = PLAIN) -> Batches:
    """The batches of whatever `fit` accepts as data.

    What can be indexed (a tensor, a Dataset, a list) holds samples, and is cut into batches here; what can only be
    iterated (a DataLoader, a generator) holds batches. `rows` says how one of either is read.

    Raises:
        InvalidInputError: anything else, no data, or data that are not floating and of one shape.
    """
    if isinstance(data, np.ndarray):
        data = _of_numpy(data)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        raise InvalidInputError("data is a pair (x0, conditions): pass conditions by name, as fit(model, x0, label=y)")
    if isinstance(data, Shares):
        return Stream(data.batches, cond, rows, divided=True)
    if isinstance(data, str | bytes | Mapping) or not (hasattr(data, "__getitem__") or hasattr(data, "__iter__")):
        raise InvalidInputError(
            f"data: got a {type(data).__name__}, expected a tensor (N, *event), or a Dataset or an iterable of x0 or "
            "(x0, dict of conditions)"
        )
    if shared := {name: value for name, value in cond.items() if isinstance(value, Lookup)}:
        data, cond = Conditioned(data, **shared), {name: cond[name] for name in cond.keys() - shared.keys()}
    if isinstance(data, Tensor):
        check_state(take(data, "data", _TENSOR), name="data", finite=False)
        return Indexed(data, cond, batch_size, workers, rows)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return Indexed(data, cond, batch_size, workers, rows)
    _check_undivided(data)
    loader: Any = data
    return Loaded(loader, cond, workers, rows) if _has_sampler(loader) else Stream(loader, cond, rows)


def _has_sampler(data: Any) -> bool:
    """Whether data are a DataLoader that says by number which samples are in a batch."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return False
    return data.batch_sampler is not None


def _check_undivided(loader: Any) -> None:
    """Raise on a DataLoader that gives each of several processes its part already."""
    samplers = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    if place_here()[1] > 1 and any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise InvalidInputError(
            "data: got a DataLoader with a DistributedSampler, whose part fit would divide once more; expected one "
            "without, or sdegen.data.Shares(loader) if each process is to load by itself"
        )


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
