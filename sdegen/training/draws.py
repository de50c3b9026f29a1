"""What a run draws: the global generators, seeded for every step, and given back as they were; and, for losses that
take a seed, normals that belong to a place in the batch, so that a batch can be split."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..noise.white import Noise

_CPU = torch.device("cpu")
_BLOCKS = 4  # of a batch, at most: a process draws the blocks that its rows lie in
_LEAST = 4096  # numbers in a block, drawn in the time that it takes to seed a generator


def derived_seed(seed: int, *address: str | int) -> int:
    """A seed of 62 bits for one purpose."""
    words = blake2b(repr((seed, *address)).encode(), digest_size=8).digest()
    return int.from_bytes(words, "little") >> 2


@contextmanager
def own_draws(device: torch.device = _CPU) -> Iterator[None]:
    """Give the global generators back as they were: torch's on the CPU and this device, numpy's and Python's."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def seed_draws(seed: int, device: torch.device = _CPU) -> None:
    """Seed the global generators."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class BatchNoise(Noise):
    """The noise of rows start .. stop of a batch of `total`: that of the whole batch, cut.

    So a batch that several processes share, or that is worked through in parts, draws what it would draw at once. A
    block of the batch comes from a generator that (seed, block, purpose) seeds, which takes less time than a hash for
    every number.
    """

    def __init__(self, seed: int, start: int, stop: int, total: int) -> None:
        super().__init__(seed)
        self.start, self.stop, self.total = start, stop, total

    def select(self, keep: Tensor) -> Noise:
        return self._hashed().select(keep)

    def normal(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        if not self._by_place(shape, address):
            return self._hashed().normal(shape, *address, dtype=dtype, device=device)
        return self._drawn(torch.randn, shape, address, dtype, torch.device(device))

    def uniform(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        if not self._by_place(shape, address):
            return self._hashed().uniform(shape, *address, dtype=dtype, device=device)
        return self._drawn(torch.rand, shape, address, dtype, torch.device(device))

    def _by_place(self, shape: Sequence[int], address: Sequence[Any]) -> bool:
        """Whether these are numbers for all of the rows, and no part of the address is one for each row."""
        return 0 < shape[0] == self.stop - self.start and all(isinstance(part, int) for part in address)

    def _hashed(self) -> Noise:
        """The noise of these rows as sample numbers have it."""
        return Noise(self.seed, index=torch.arange(self.start, self.stop, device="cpu"))

    def _drawn(
        self,
        draw: Callable[..., Tensor],
        shape: Sequence[int],
        address: Sequence[Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        generator = torch.Generator(device)
        size = max(-(-self.total // _BLOCKS), -(-_LEAST // max(math.prod(shape[1:]), 1)))  # rows of a block
        first = self.start // size * size
        blocks = []
        for at in range(first, self.stop, size):
            generator.manual_seed(derived_seed(self.seed, at // size, *address))
            rows = min(size, self.total - at)
            blocks.append(draw(rows, *shape[1:], generator=generator, dtype=dtype, device=device))
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
