"""How a step's gradients come together: in this process alone, by DistributedDataParallel, or by FSDP2.

Either way every process makes its rows of the batch, and the step is the one that a single process makes, up to
rounding: torch's engines take means over processes, so each weighs its share of the loss by their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..core.errors import InvalidInputError
from ..core.shards import is_sharded
from ..core.team import Team
from ..models.denoiser import Denoiser
from ..models.networks import sharded_modules, unwrapped
from .objective import Objective


class Engine:
    """The losses of some rows, and the gradients of whoever trains the weights: here, of this process alone.

    Attributes:
        sharded: whether each process has a part of every weight only.
        weight: what a share of the loss is multiplied with.
    """

    sharded, weight = False, 1

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self.losses: Any = _Losses(model, objective)

    def gathering(self, last: bool) -> AbstractContextManager:
        """Around the loss and the backward pass of a part of the batch: gradients come together in the last one."""
        return nullcontext()

    def forget(self) -> None:
        """Drop copies of the weights that were gathered: they are about to be, or were, changed."""


class _Losses(nn.Module):
    """The loss as a module, so that torch's engines see the one call that a step makes, whatever the loss calls."""

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x0: Tensor, cond: Mapping[str, Any], noise: Any) -> Any:
        return self.objective(self.model, x0, cond, noise)


class _Replicated(Engine):
    """DistributedDataParallel: around the loss, or those that the user put into the model."""

    def __init__(self, model: nn.Module, objective: Objective, team: Team) -> None:
        super().__init__(model, objective)
        self.weight = team.size
        self._wrappers = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
        if self._wrappers:
            _check_covered(model, self._wrappers)
        else:
            # A loss may not reach all weights, in some processes: the engine looks for those, and complains if there
            # are never any.
            self.losses.never_reached = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))
            self.losses = DistributedDataParallel(
                self.losses, init_sync=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )
            self._wrappers = [self.losses]

    def gathering(self, last: bool) -> AbstractContextManager:
        stack = ExitStack()
        if not last:
            for wrapper in self._wrappers:
                stack.enter_context(wrapper.no_sync())
        return stack


class _Sharded(Engine):
    """FSDP2: weights, gradients, averages and the optimiser's state in parts."""

    sharded = True

    def __init__(self, model: nn.Module, objective: Objective, team: Team) -> None:
        super().__init__(model, objective)
        self.weight = team.size
        if not sharded_modules(model):
            _shard(model)
        self._modules = sharded_modules(model)

    def gathering(self, last: bool) -> AbstractContextManager:
        for module in self._modules:
            module.set_requires_gradient_sync(last, recurse=False)
        return nullcontext()

    def forget(self) -> None:
        for module in self._modules:
            module.reshard()


def engine_of(strategy: str | None, model: nn.Module, objective: Objective, team: Team) -> Engine:
    """The engine of this name; None: DistributedDataParallel where there are several processes, FSDP2 if the user did.

    With "fsdp" the weights of the model are sharded, and stay so.

    Raises:
        InvalidInputError: a model that the engine cannot take.
    """
    if shards(strategy, model, team):
        return _Sharded(model, objective, team)
    return Engine(model, objective) if team.size == 1 else _Replicated(model, objective, team)


def shards(strategy: str | None, model: nn.Module, team: Team) -> bool:
    """Whether each process has, or will have, only a part of the weights.

    Raises:
        InvalidInputError: they are sharded, or cannot be, and the strategy is the other one.
    """
    sharded = any(is_sharded(p) for p in model.parameters())
    if sharded and strategy == "ddp":
        raise InvalidInputError("strategy='ddp': got a model that fully_shard was called on, expected 'fsdp' or None")
    if strategy == "fsdp" and not sharded:
        check_shardable(model)
    return sharded or (strategy == "fsdp" and team.size > 1)


def check_shardable(model: nn.Module) -> None:
    """Raise unless FSDP2 can take this model.

    Raises:
        InvalidInputError: weights that are single numbers, shared, or inside DistributedDataParallel.
    """
    if any(isinstance(m, nn.DataParallel | DistributedDataParallel) for m in model.modules()):
        raise InvalidInputError("strategy='fsdp': got a network in DistributedDataParallel, expected the one inside it")
    owners: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.ndim == 0:
            raise InvalidInputError(
                f"strategy='fsdp': got the single number {name}, which cannot be cut: expected weights with axes, (1,) "
                "for a number; or use strategy='ddp'"
            )
        if id(p) in owners:
            raise InvalidInputError(
                f"strategy='fsdp': got one weight called {owners[id(p)]} and {name}, expected each module to have its "
                "own; or use strategy='ddp'"
            )
        owners[id(p)] = name


def _check_covered(model: nn.Module, wrappers: list[Any]) -> None:
    inside = {id(p) for wrapper in wrappers for p in wrapper.parameters()}
    outside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        raise InvalidInputError(
            f"model: got weights outside DistributedDataParallel ({', '.join(outside[:3])}), expected none or all "
            "inside: leave the wrapping to fit"
        )


@torch.no_grad()
def _shard(model: nn.Module) -> None:
    """Cut the weights of a model: block by block where it has lists of them, what is left with the network."""
    from torch.distributed.fsdp import fully_shard  # where it is needed: importing it takes time

    root = unwrapped(model.net if isinstance(model, Denoiser) else model)
    mesh = dist.device_mesh.init_device_mesh(next(root.parameters()).device.type, (dist.get_world_size(),))
    for p in root.parameters():
        p.data = p.data.contiguous()
    for block in _blocks(root):
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The modules in lists that can be called, the outermost of them."""
    for module in net.children():
        parts = list(module) if isinstance(module, nn.ModuleList) else []
        for part in parts:
            if isinstance(part, nn.ModuleList | nn.ModuleDict):
                yield from _blocks(_Holder(part))
            elif next(part.parameters(), None) is not None:
                yield part
        if not parts:
            yield from _blocks(module)


class _Holder(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
