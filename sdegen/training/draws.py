"""What a run draws: torch's global generators, seeded for every step, and given back as they were; and, for losses that
take a seed, normals that belong to a place in the batch, so that a batch can be split."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise

_BLOCKS = 4  # of a batch: a process draws the blocks that its rows lie in


def derived_seed(seed: int, *address: str | int) -> int:
    """A seed of 62 bits for one purpose."""
    words = blake2b(repr((seed, *address)).encode(), digest_size=8).digest()
    return int.from_bytes(words, "little") >> 2


@contextmanager
def own_draws(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, on the CPU or this device, is not noticed outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and this device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class Draws(Noise):
    """The noise of rows start .. stop of a batch of `total`: that of the whole batch, cut.

    So a batch that several processes share, or that is worked through in parts, draws what it would draw at once. A
    block of the batch comes from a generator that (seed, block, purpose) seeds, which takes less time than a hash for
    every number.
    """

    def __init__(self, seed: int, start: int, stop: int, total: int) -> None:
        super().__init__(seed, index=torch.arange(start, stop))
        self.start, self.stop, self.size = start, stop, max(1, -(-total // _BLOCKS))
        self.total = total

    def normal(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        if not shape[0] or shape[0] != self.stop - self.start or not all(isinstance(part, int) for part in address):
            return super().normal(shape, *address, dtype=dtype, device=device)
        generator = torch.Generator(device)
        first = self.start // self.size * self.size
        blocks = []
        for at in range(first, self.stop, self.size):
            generator.manual_seed(derived_seed(self.seed, at // self.size, *address))  # type: ignore[arg-type]
            rows = min(self.size, self.total - at)
            blocks.append(torch.randn(rows, *shape[1:], generator=generator, dtype=dtype, device=device))
        drawn = torch.cat(blocks) if len(blocks) != 1 else blocks[0]
        return drawn[self.start - first : self.stop - first]


def takes_seed(loss: Callable[..., Tensor]) -> bool:
    """Whether a loss has an argument `seed` that nobody has set."""
    if "seed" in getattr(loss, "keywords", {}):
        return False
    try:
        parameters: Any = inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return False
    return "seed" in parameters
