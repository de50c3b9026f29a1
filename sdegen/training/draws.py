"""What a run draws: torch's global generators, seeded for every step, and given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


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
