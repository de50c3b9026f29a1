"""The processes that make a run together: torch.distributed, one process for each device, or just this one.

`torchrun script.py` is all it takes: `fit` joins the group that is there, or the one that torchrun's environment
describes.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InvalidInputError, SdegenError

T = TypeVar("T")
Groups = dict[str, dict[str, Tensor]]

_OF_A_CONNECTION = re.compile("gloo|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|NCCL")  # in words of torch's
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
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
        """What `make` gives, or raises, in the leader, which makes it alone: everywhere."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.leads:
            try:
                with alone():
                    box[0] = make()
            except Exception as error:
                box[1] = error
        with watched():
            dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def of_all(self, value: T) -> list[T]:
        """The values of all processes, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with watched():
            dist.all_gather_object(found, value, group=self.control)
        return found

    def agree(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        largest = torch.tensor(numbers)
        with watched():
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return largest.tolist()

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            with watched():
                dist.all_reduce(tensor)

    def tensors_from_leader(self, make: Callable[[], Groups | None]) -> Groups | None:
        """Tensors in groups by name that `make` gives, or raises, in the leader: everywhere, one after the other."""
        if self.size == 1:
            return make()
        made: list[Groups | None] = [None]

        def described() -> Any:
            made[0] = make()
            return made[0] and {g: {n: (tuple(t.shape), t.dtype) for n, t in ts.items()} for g, ts in made[0].items()}

        shapes = self.from_leader(described)
        if shapes is None:
            return None
        return {
            group: {
                name: self._sent(made[0][group][name] if made[0] else None, *about) for name, about in named.items()
            }
            for group, named in shapes.items()
        }

    def _sent(self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of the leader, on the CPU."""
        if tensor is None:
            tensor = torch.empty(shape, dtype=dtype, device="cpu")
        own = tensor.detach().cpu().contiguous()
        with watched():
            dist.broadcast(own, src=0, group=self.control)
        return own

    def start_alike(self, tensors: Mapping[str, Tensor]) -> None:
        """Give every process the leader's values of these, in place.

        Raises:
            InvalidInputError: they have other names, shapes or dtypes elsewhere.
        """
        if self.size == 1:
            return
        ours = [(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
        theirs = self.from_leader(lambda: ours)
        if self.agree(int(ours != theirs))[0]:
            raise InvalidInputError(
                "model: got one network here and another elsewhere, expected the same in all processes"
            )
        for (_, shape, dtype), tensor in zip(ours, tensors.values(), strict=True):
            tensor.detach().copy_(self._sent(tensor if self.leads else None, shape, dtype))


def team(device: torch.device) -> Team:
    """The processes of this run: of the group that is there, else of torchrun's environment, else this one alone.

    A group that is begun here lives as long as the process: to end one and begin the next is a race. No process goes on
    before all have begun it, so that none that ends at once, by an error, takes it from those that still connect.
    """
    if _ALONE.get() or not dist.is_available():
        return Team()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        with watched():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_end)
            dist.barrier(_control_group())
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Team()
    return Team(dist.get_rank(), dist.get_world_size(), _control_group())


def place_here() -> tuple[int, int]:
    """This process's number and how many there are: of the group that is there, else as torchrun says."""
    if _ALONE.get():
        return 0, 1
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def alone() -> Iterator[None]:
    """What is done inside, this process does by itself, without the others of its run."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


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
def watched() -> Iterator[None]:
    """Errors of the connection to another process say that this one has ended."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _OF_A_CONNECTION.search(str(error)):
            raise
        raise LostProcessError(
            f"another process of this run has ended ({str(error).splitlines()[0]}): see what it said; run again, and "
            "the run goes on from its last checkpoint"
        ) from error
