"""The processes that make a run together: torch.distributed, one process for each device, or just this one.

Each has the whole model and makes its rows of every batch; gradients are added up. `torchrun script.py` is all it
takes: `fit` joins the group that is there, or the one that torchrun's environment describes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .errors import SdegenError

T = TypeVar("T")

_BUCKET = 25 << 20  # bytes that are added up at a time
_CONTROL: dict[Any, Any] = {}  # the group of the process, and the one for small things beside it


class LostProcessError(SdegenError):
    """Another process of the run has ended."""


class Team:
    """This process among those of a run.

    Attributes:
        rank: its number.
        size: how many there are.
        control: the group for small things that wait for no device.
    """

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank, self.size, self.control = rank, size, control

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, draws and speaks."""
        return self.rank == 0

    def share(self, total: int) -> tuple[int, int]:
        """The rows start .. stop of a batch that are this process's."""
        return self.rank * total // self.size, (self.rank + 1) * total // self.size

    def from_leader(self, make: Callable[[], T]) -> T:
        """What `make` gives, or raises, in the leader: everywhere."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        with _watched():
            dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def agree(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        largest = torch.tensor(numbers)
        with _watched():
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return largest.tolist()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes."""
        if self.size == 1:
            return
        with _watched():
            for bucket, flat, work in [_begun(bucket) for bucket in _buckets(tensors)]:
                work.wait()
                torch._foreach_copy_(bucket, list(_unflatten_dense_tensors(flat, bucket)))


def team(device: torch.device) -> Team:
    """The processes of this run: of the group that is there, else of torchrun's environment, else this one alone.

    A group that is begun here lives as long as the process: to end one and begin the next is a race.
    """
    if not dist.is_available():
        return Team()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_end)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Team()
    return Team(dist.get_rank(), dist.get_world_size(), _control_group())


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _control_group() -> Any:
    """A group whose messages wait for no device, made once for every group of the process."""
    if dist.get_backend() == "gloo":
        return None
    whole = dist.group.WORLD
    if whole not in _CONTROL:
        _CONTROL.clear()
        _CONTROL[whole] = dist.new_group(backend="gloo")
    return _CONTROL[whole]


def local_device(device: torch.device) -> torch.device:
    """Of several processes on a machine each has its own CUDA device."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def _watched() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            f"another process of this run has ended ({str(error).splitlines()[0]}): see what it said; run again, and "
            "the run goes on from its last checkpoint"
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype, so many bytes at a time, in an order that is everywhere the same."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        bucket, size = [], 0
        for t in tensors:
            if t.dtype != dtype:
                continue
            bucket.append(t)
            size += t.numel() * t.element_size()
            if size >= _BUCKET:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


def _begun(bucket: list[Tensor]) -> tuple[list[Tensor], Tensor, Any]:
    flat = _flatten_dense_tensors(bucket)
    return bucket, flat, dist.all_reduce(flat, async_op=True)
