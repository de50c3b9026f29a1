"""Tensors that several processes have in parts: written by each into a file of its own, read in any other division.

By torch.distributed.checkpoint, in its safetensors format: nothing in such a file is ever run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..core.team import Team

Like = Callable[[str, torch.Size, torch.dtype], Tensor | None]


def write_parts(folder: Path, name: str, tensors: Mapping[str, Tensor], team: Team) -> list[Path]:
    """Write `<name>-00001.safetensors` and so on, one for each process; every process has to call it.

    Raises:
        OSError: in every process, if one of them could not write.
    """
    import torch.distributed.checkpoint as dcp  # where it is needed: importing it takes time

    try:
        with _quietly():
            dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.CheckpointException as error:
        causes = [wrapped[0] for wrapped in error.failures.values()]
        raise next((c for c in causes if isinstance(c, OSError)), OSError(str(causes[0]))) from error

    def renamed() -> list[Path]:
        found = sorted(folder.glob("shard-*.safetensors"))
        return [file.rename(folder / f"{name}-{i:05d}.safetensors") for i, file in enumerate(found, 1)]

    return team.from_leader(renamed)


def read_parts(files: Sequence[Path], like: Like, *, alone: bool) -> dict[str, Tensor]:
    """The tensors of some files of a folder, in parts or whole, each filled into what `like` gives for it.

    Args:
        files: of one folder.
        like: a function of (name, shape, dtype): a tensor to fill, whole or sharded over the processes; None
            for one that is not wanted.
        alone: whether this process reads by itself; else every process has to call it.
    """
    import torch.distributed.checkpoint as dcp

    wanted: set[str] = set()
    for file in files:
        with safetensors.safe_open(file, "pt") as opened:
            wanted |= set(opened.keys())
    reader = dcp.HuggingFaceStorageReader(str(files[0].parent))
    kept: dict[str, Any] = reader.read_metadata().state_dict_metadata
    filled = {n: like(n, about.size, about.properties.dtype) for n, about in kept.items() if n in wanted}
    tensors = {n: tensor for n, tensor in filled.items() if tensor is not None}
    with _quietly():
        dcp.load(tensors, storage_reader=reader, no_dist=alone)
    return tensors


def plain(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """All of a tensor, on the CPU."""
    return torch.empty(shape, dtype=dtype, device="cpu")


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
