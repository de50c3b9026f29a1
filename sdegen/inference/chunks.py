"""A batch in parts of `batch_size`, and one Solution of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import whole
from ..loop.solution import Solution, describe

_OPTIONAL = ("log_prob", "log_weights", "ess", "log_evidence")


def check_batch_size(batch_size: Any) -> None:
    if batch_size is not None:
        whole(batch_size, "batch_size", least=1)


def chunks(
    batch: int, batch_size: int | None, report: Callable[[float], None]
) -> Iterator[tuple[Tensor, Callable[[float], None]]]:
    """(rows of the batch, how to report a fraction of them as done), part by part; one empty part of an empty batch."""
    size = batch_size or max(batch, 1)
    starts = range(0, max(batch, 1), size)
    for k, start in enumerate(starts):
        yield (
            torch.arange(start, min(start + size, batch), device="cpu"),
            report if len(starts) == 1 else lambda fraction, k=k: report((k + fraction) / len(starts)),
        )


def joined(parts: Sequence[Solution]) -> Solution:
    """The Solution of all parts, in order."""
    if len(parts) == 1:
        return parts[0]

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts])

    longest = max(len(p.ts) for p in parts)

    def padded(values: Tensor) -> Tensor:  # short paths repeat their end
        return torch.cat([values, values[-1:].expand(longest - len(values), *values.shape[1:])])

    own_times = parts[0].ts.ndim == 2
    ts = torch.cat([padded(p.ts) for p in parts], 1) if own_times else parts[0].ts
    status, t, accepted = cat("status"), cat("t"), cat("accepted")
    return Solution(
        x=cat("x"),
        ts=ts,
        xs=torch.cat([padded(p.xs) for p in parts], 1),
        nfe=cat("nfe"),
        calls=sum(p.calls for p in parts),
        gradients=sum(p.gradients for p in parts),
        accepted=accepted,
        rejected=cat("rejected"),
        t=t,
        status=status,
        message=describe(status, t, accepted),
        solver=parts[0].solver,
        seed=parts[0].seed,
        **{name: cat(name) for name in _OPTIONAL if getattr(parts[0], name) is not None},
    )
