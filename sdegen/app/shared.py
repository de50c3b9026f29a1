"""What the processes of torchrun make together, a batch of samples at a time, and where each of them computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.progress import progress_bar
from ..core.team import local_device, team
from ..inference.shard import shard


def device_here(asked: str | None) -> str | None:
    """The device asked for, CUDA if there is one: of several processes on a machine each has its own."""
    if asked is None and torch.cuda.is_available():
        asked = "cuda"
    return str(local_device(torch.device(asked))) if asked == "cuda" else asked


def of_all(n: int, batch_size: int, make: Callable[[Tensor], tuple[Tensor, ...]], what: str) -> tuple[Tensor, ...]:
    """What `make` gives of samples 0 .. n - 1, made by whole batches, of which each process makes its share.

    Batches are the same ones in any number of processes, so that the result is the same to the bit.

    Args:
        n: how many samples, at least 1.
        batch_size: made together.
        make: of sample numbers (B,): tensors (B, ...).
        what: is made, in the words of the progress bar.

    Returns:
        Tensors (n, ...) on the CPU, in every process.
    """
    processes, numbers = team(torch.device("cpu")), shard(n, batch_size=batch_size)
    batches = numbers.split(batch_size) if len(numbers) else ()
    shown = None if processes.leads else False
    own = [tuple(part.cpu() for part in make(batch)) for batch in progress_bar(shown, batches, desc=what)]
    every = [made for theirs in processes.of_all(own) for made in theirs]
    return tuple(torch.cat(parts) for parts in zip(*every, strict=True))
