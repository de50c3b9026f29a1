"""Tensors of which each process has a part: torch's DTensor, as FSDP2 makes them of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor. (Asked without importing the class, which takes time.)"""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """The part of a tensor that is in this process, in the tensor's own memory; all of one that is not sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.detach().to_local()


def whole(tensor: Any) -> Tensor:
    """All of a tensor; of a sharded one a copy, for which every process has to ask."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor


def sharded_as(like: Any, tensor: Any) -> Any:
    """A whole tensor cut as another one is; itself where that is not sharded, or it is."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # where it is needed: importing it takes time

    own = tensor.to(like.device)
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


def replicated_beside(like: Any, tensor: Tensor) -> Any:
    """A tensor that all processes have alike, for operations with sharded ones."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
