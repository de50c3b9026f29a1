"""Seed-addressed randomness: sample i's noise depends on (seed, i) and on what it is for, on nothing else.

A counter-based generator: every normal is a hash of its address (seed, sample, element, purpose), computed with 64-bit
integer arithmetic that gives the same bits on every device. There is no state to carry, to split or to restore, so the
batch size, the order of the batches and the number of processes cannot change what a sample draws.

A word of 64 bits gives two normals, sqrt(2) erfinv(u) of its halves u in (-1, 1): 2^32 values each, up to 6.2.

Source: the mixing function is SplitMix64's finaliser (Steele, Lea & Flood 2014).
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.cache import Recent
from ..core.errors import InvalidInputError
from ..core.kinds import kind_of, take
from ..core.shapes import as_time, check_size, check_time, factor, scaled
from ..core.show import Shown
from .purposes import Purpose

_DTYPE, _DEVICE, _INTEGER = kind_of(torch.dtype), kind_of(torch.device | str), kind_of(int)
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN_64, _FIRST_64, _SECOND_64 = map(_signed, (_GOLDEN, _FIRST, _SECOND))  # as int64 has them


def _mix(word: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    word &= _MASK
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)


def _mix_(z: Tensor) -> Tensor:
    """The same on an int64 tensor, in place (torch's right shift is arithmetic, so the sign is masked away)."""
    z ^= (z >> 30) & ((1 << 34) - 1)
    z *= _FIRST_64
    z ^= (z >> 27) & ((1 << 37) - 1)
    z *= _SECOND_64
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


def fresh_seed() -> int:
    """A seed from torch's global generator: what `seed=None` means everywhere."""
    return int(torch.randint(0, 2**31 - 1, (), device="cpu").item())


def check_seed(seed: int | None) -> int:
    """The seed itself, or a fresh one for None."""
    if seed is None:
        return fresh_seed()
    try:
        if isinstance(seed, bool):
            raise TypeError
        return operator.index(seed)
    except TypeError:
        raise InvalidInputError(
            f"got seed={seed!r}, expected an integer, or None for one from torch's global generator"
        ) from None


def noise_of(seed: int | Noise) -> Noise:
    """The noise that an argument `seed: int | Noise` means."""
    return seed if isinstance(seed, Noise) else Noise(seed)


class Noise(Shown):
    """Gaussian noise of a batch, addressed by (seed, sample number, purpose, time interval).

    `Noise(seed).increment(t, t_next, x)` are Brownian increments: independent for disjoint intervals, of variance
    |t_next - t|, and the same whenever the same interval is asked for again. An interval is its two numbers, in their
    order: overlapping intervals, and an interval and its reverse, have independent increments. A time may come as a
    scalar or in a (B,) tensor; a time rounded to float32 is another time.

    Args:
        seed: any integer.
        index: (B,) sample numbers; None means 0..B-1. Chunks, ranks and single samples draw their own noise by passing
            theirs; they are copied.

    Raises:
        InvalidInputError: a seed or sample numbers that are no integers; an attribute is assigned later.
    """

    seed: int
    index: Tensor | None
    _keys: Recent

    def __init__(self, seed: int, *, index: Sequence[int] | Tensor | None = None) -> None:
        own = vars(self)  # without the check of assignments, once for every request
        own["seed"], own["index"], own["_keys"] = check_seed(seed), None if index is None else _index(index), Recent(1)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name in vars(self):
            raise InvalidInputError(
                f"{type(self).__name__}.{name} cannot be assigned: what it draws follows from it; make another one"
            )
        super().__setattr__(name, value)

    def _facts(self):
        return {"seed": self.seed, "index": self.index}

    def select(self, keep: Tensor) -> Noise:
        """The noise of some of the samples: `keep` holds positions in the batch, or is a mask of it."""
        keep = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        return Noise(self.seed, index=keep if self.index is None else self.index.to(keep.device)[keep])

    def numbered(self, k: int) -> Noise:
        """Noise independent of this one, the k-th of a family: for a k-th pass over the same times."""
        k = take(k, "k", _INTEGER)
        return Noise(_mix(_seed_word(self.seed) + k * _GOLDEN), index=self.index)

    def normal(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        """Standard normals of `shape` (B, *event), the same ones for the same seed, sample numbers and address.

        Args:
            shape: (B, *event).
            *address: integers, times (floats), or (B,) tensors of them: what tells one draw from the others.
            dtype, device: of the result.
        """
        shape, dtype, device = _shape(shape), _dtype(dtype), _device(device)
        return self._spread(shape, address, device).erfinv_().mul_(math.sqrt(2)).to(dtype).reshape(shape)

    def initial(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """The standard normals that a run starts from, of `shape` (B, *event); its first state is made of them."""
        return self.normal(shape, Purpose.PRIOR, dtype=dtype, device=device)

    def uniform(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        """Numbers of (0, 1), equally likely, of `shape` (B, *event) at an address."""
        shape, dtype, device = _shape(shape), _dtype(dtype), _device(device)
        return self._spread(shape, address, device).add_(1).mul_(0.5).to(dtype).reshape(shape).contiguous()

    def _spread(self, shape: tuple[int, ...], address: Sequence[Any], device: torch.device) -> Tensor:
        """(B, d) float64 in (-1, 1), equally likely."""
        batch, size = shape[0], math.prod(shape[1:])
        columns = (size + 1) // 2
        word = _word(address)
        z = self._element_keys(batch, columns, device)
        z = z + (word.to(device)[:, None] if isinstance(word, Tensor) else _signed(word))
        # SplitMix64's finaliser but for its last step, which moves the best bits down: here both halves have theirs on
        # top already. The shifts repeat the sign, where masking it away would be one more pass.
        z ^= z >> 30
        z *= _FIRST_64
        z ^= z >> 27
        z *= _SECOND_64
        u = z.view(torch.int32).to(torch.float64).add_(0.5).mul_(2.0**-31)  # (-1, 1), the middles of 2^32 cells
        return u[:, :size] if size % 2 else u

    def increment(self, t: float | Tensor, t_next: float | Tensor, x: Tensor, *, purpose: int = Purpose.STEP) -> Tensor:
        """W(t_next) - W(t), like x: variance |t_next - t|; t and t_next are scalars or (B,)."""
        t, t_next = as_time(t), as_time(t_next)
        return scaled(factor((t_next - t).abs() ** 0.5, x), self.standard(t, t_next, x, purpose=purpose))

    def standard(self, t: float | Tensor, t_next: float | Tensor, x: Tensor, *, purpose: int = Purpose.STEP) -> Tensor:
        """The increment over [t, t_next] divided by the root of its length: standard normals, like x."""
        purpose = purpose if isinstance(purpose, int) else take(purpose, "purpose", _INTEGER)
        t, t_next = as_time(t), as_time(t_next)
        check_time(t, x)
        check_time(t_next, x)
        return self.normal(x.shape, purpose, t, t_next, dtype=x.dtype, device=x.device)

    def _element_keys(self, batch: int, columns: int, device: torch.device) -> Tensor:
        """(batch, columns) int64 keys: one hash for every pair of elements of every sample, made once."""
        return self._keys.of((batch, columns, device), lambda: self._hashed(batch, columns, device))

    def _hashed(self, batch: int, columns: int, device: torch.device) -> Tensor:
        if self.index is None:
            index = torch.arange(batch, dtype=torch.int64, device=device)
        else:
            index = self.index.to(device)
        if len(index) != batch:
            raise InvalidInputError(
                f"index names {len(index)} samples, but the batch has {batch}: pass one number per sample"
            )
        sample = _mix_(index * _GOLDEN_64 + _signed(_seed_word(self.seed)))
        column = torch.arange(1, columns + 1, dtype=torch.int64, device=device) * _GOLDEN_64
        return _mix_(sample[:, None] + column)


def _seed_word(seed: int) -> int:
    """An integer of any size hashed to one word, 64 bits (two's complement) at a time."""
    word = 0
    for k in range(seed.bit_length() // 64 + 1):
        word = _mix(word + ((seed >> 64 * k) & _MASK) + _GOLDEN)
    return word


def _word(address: Sequence[int | float | Tensor]) -> int | Tensor:
    """An address hashed to one word for the batch or, where it has (B,) parts, one word per sample.

    The same chain on integers and on tensors: a part that all samples share hashes as if each had it for itself.
    """
    word: int | Tensor = 0
    for part in address:
        if isinstance(part, Tensor) and part.ndim:
            if part.is_floating_point():
                bits = (part.to(torch.float64) + 0.0).view(torch.int64)  # + 0.0: -0 is 0
            else:
                bits = part.to(torch.int64)
        else:
            value = part.item() if isinstance(part, Tensor) else part
            bits = struct.unpack("<q", struct.pack("<d", value + 0.0))[0] if isinstance(value, float) else int(value)
        if isinstance(bits, int) and isinstance(word, int):
            word = _mix(word + bits + _GOLDEN)
        else:
            left, right = (
                torch.tensor(_signed(p & _MASK), device="cpu") if isinstance(p, int) else p for p in (word, bits)
            )
            word = _mix_(left + right + _GOLDEN_64)
    return word


def _index(index: Sequence[int] | Tensor) -> Tensor:
    """Sample numbers as an int64 tensor (B,)."""
    try:
        numbers = index if isinstance(index, Tensor) else torch.as_tensor(index, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"index could not be read as sample numbers ({error}): pass integers, (B,)") from error
    if numbers.ndim != 1:
        raise InvalidInputError(f"index has shape {tuple(numbers.shape)}, expected (B,): one number per sample")
    if numbers.numel() and (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool):
        raise InvalidInputError(f"index has dtype {numbers.dtype}: expected integers, one number per sample")
    return numbers.to(torch.int64, copy=True)


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape (B, *event), checked."""
    try:
        sizes = () if isinstance(shape, str | bytes) else tuple(map(operator.index, shape))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 0:
        raise InvalidInputError(f"shape is {shape!r}: expected (B, *event), integers of at least 0")
    check_size(sizes)
    return sizes


def _dtype(dtype: torch.dtype) -> torch.dtype:
    """A floating dtype, checked."""
    known = isinstance(dtype, torch.dtype) and dtype.is_floating_point  # the usual one: asked at every step
    return dtype if known else take(dtype, "dtype", _DTYPE)


def _device(device: torch.device | str) -> torch.device:
    """A device, checked where it is not one yet."""
    return device if isinstance(device, torch.device) else take(device, "device", _DEVICE)
