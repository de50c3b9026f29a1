"""Which samples are this process's, of several that draw together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.kinds import checked
from ..core.team import place_here


@checked
def shard(n: int, *, batch_size: int | None = None) -> Tensor:
    """The numbers of this process's samples, of n that the processes of torchrun, or of a process group, share.

    sample(model, len(mine), index=mine, seed=...) with mine = shard(n) draws what one process draws of these numbers:
    sample i's noise depends on (seed, i) alone. Parts follow each other in the order of ranks and differ in length by
    one at most. A process alone has all of them.

    Args:
        n: how many there are in all.
        batch_size: share whole batches of so many. With the same `batch_size=` in `sample` every sample is then solved
            beside the same others as in one process, and is the same to the bit.

    Returns:
        (m,) int64, rising; m may be 0.

    Raises:
        InvalidInputError: n below 0 or batch_size below 1.

    Example:
        >>> import sdegen as sg
        >>> sg.shard(4)
        tensor([0, 1, 2, 3])
    """
    n, size = whole(n, "n", least=0), 1 if batch_size is None else whole(batch_size, "batch_size", least=1)
    rank, processes = place_here()
    parts = -(-n // size)
    start, stop = (r * parts // processes * size for r in (rank, rank + 1))
    return torch.arange(min(start, n), min(stop, n), device="cpu")
