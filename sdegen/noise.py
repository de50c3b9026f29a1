"""Seed-addressed randomness: sample i's noise depends on (seed, i) and on what it is for, on nothing else.

A counter-based generator: every normal is a hash of its address (seed, sample, element, purpose), computed with 64-bit
integer arithmetic that gives the same bits on every device. There is no state to carry, to split or to restore, so the
batch size, the order of the batches and the number of processes cannot change what a sample draws.

Source: the mixing function is SplitMix64's finaliser (Steele, Lea & Flood 2014); normals by Box & Muller (1958).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InvalidInputError
from .shapes import expand

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB

PRIOR, STEP, CORRECTOR, PROBE, DEQUANTISE = 1, 2, 3, 4, 5  # what a draw is for: the first word of its address


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _mix(word: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    word &= _MASK
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)


def _mix_(z: Tensor) -> Tensor:
    """The same on an int64 tensor, in place (torch's right shift is arithmetic, so the sign is masked away)."""
    z ^= (z >> 30) & ((1 << 34) - 1)
    z *= _signed(_FIRST)
    z ^= (z >> 27) & ((1 << 37) - 1)
    z *= _signed(_SECOND)
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


def fresh_seed() -> int:
    """A seed from torch's global generator: what `seed=None` means everywhere."""
    return int(torch.randint(0, 2**31 - 1, ()).item())


def check_seed(seed: int | None) -> int:
    """The seed itself, or a fresh one for None."""
    if seed is None:
        return fresh_seed()
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidInputError(f"seed is {seed!r}: pass an integer, or None for one from torch's global generator")
    return seed


class Noise:
    """Gaussian noise of a batch, addressed by (seed, sample number, purpose, time interval).

    `Noise(seed).increment(t, t_next, x)` are Brownian increments: independent for disjoint intervals, of variance
    |t_next - t|, and the same whenever the same interval is asked for again.

    Args:
        seed: any integer.
        index: (B,) sample numbers; None means 0..B-1. Chunks, ranks and single samples draw their own noise by passing theirs.
    """

    def __init__(self, seed: int, *, index: Sequence[int] | Tensor | None = None) -> None:
        self.seed = check_seed(seed)
        self.index = None if index is None else torch.as_tensor(index, dtype=torch.int64)
        if self.index is not None and self.index.ndim != 1:
            raise InvalidInputError(f"index has shape {tuple(self.index.shape)}, wanted (B,): one number per sample")
        self._keys: Tensor | None = None

    def select(self, keep: Tensor) -> Noise:
        """The noise of some of the samples, by position in the batch."""
        if self.index is None:
            return Noise(self.seed, index=keep)
        return Noise(self.seed, index=self.index.to(keep.device)[keep])

    def normal(self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Standard normals of `shape` (B, *event) at an address of integers, times (floats) or (B,) tensors of them."""
        batch, size = shape[0], math.prod(shape[1:])
        word, words = _word(address)
        z = self._element_keys(batch, (size + 1) // 2, torch.device(device))
        z = z + (_signed(word) if words is None else (words.to(device) + _signed(word))[:, None])
        _mix_(z)
        # Box-Muller: the upper 32 bits give the radius, the lower 32 the angle.
        radius = ((z >> 32) & 0xFFFFFFFF).to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = (z & 0xFFFFFFFF).to(torch.float64).mul_(2 * math.pi * 2.0**-32)
        pairs = torch.view_as_real(torch.polar(radius, angle)).reshape(batch, -1)
        return pairs[:, :size].to(dtype).reshape(tuple(shape))

    def increment(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = STEP) -> Tensor:
        """W(t_next) - W(t), like x: variance |t_next - t|; t and t_next are scalars or (B,)."""
        return self.standard(t, t_next, x, purpose=purpose) * expand((t_next - t).abs().sqrt(), x)

    def standard(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = STEP) -> Tensor:
        """The increment over [t, t_next] divided by the root of its length: standard normals, like x."""
        return self.normal(x.shape, purpose, t, t_next, dtype=x.dtype, device=x.device)

    def _element_keys(self, batch: int, columns: int, device: torch.device) -> Tensor:
        """(batch, columns) int64 keys: one hash for every pair of elements of every sample, made once."""
        keys = self._keys
        if keys is None or keys.shape != (batch, columns) or keys.device != device:
            if self.index is None:
                index = torch.arange(batch, dtype=torch.int64, device=device)
            else:
                index = self.index.to(device)
            if len(index) != batch:
                raise InvalidInputError(f"index names {len(index)} samples, but the batch has {batch}: pass one number per sample")
            sample = _mix_(index * _signed(_GOLDEN) + _signed(_mix(self.seed + _GOLDEN)))
            column = torch.arange(1, columns + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN)
            keys = self._keys = _mix_(sample[:, None] + column)
        return keys


def _word(address: Sequence[int | float | Tensor]) -> tuple[int, Tensor | None]:
    """An address hashed to one word for the batch and, where it has (B,) parts, one word per sample."""
    shared, own = 0, None
    for part in address:
        if isinstance(part, Tensor) and part.ndim:
            bits = part.to(torch.float64).contiguous().view(torch.int64) if part.is_floating_point() else part.to(torch.int64)
            own = _mix_((bits if own is None else bits + own) + _signed(_GOLDEN))
            continue
        value = part.item() if isinstance(part, Tensor) else part
        bits = struct.unpack("<q", struct.pack("<d", value))[0] if isinstance(value, float) else int(value)
        shared = _mix(shared + bits + _GOLDEN)
    return shared, own
