"""Masks that inpainting is tried on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import check_size


@checked
def mask(kind: str, shape: Sequence[int]) -> Tensor:
    """Which pixels of an image are seen.

        "wide"      all but a block in the middle, half as wide and high
        "outer"     that block alone (outpainting)
        "thin"      all but three wavy lines
        "half"      the left half
        "pixels"    every second pixel of every second row (super-resolution)
        "rows"      every second row

    Args:
        kind: one of the above.
        shape: (H, W) or (C, H, W).

    Returns:
        bool, of that shape, true where an image is seen: for `Observation.mask`.

    Raises:
        InvalidInputError: another kind, a shape that is no image's.

    Source: Lugmayr et al. 2022 (arXiv 2201.09865) figure 5, for the kinds.

    Example:
        >>> import sdegen as sg
        >>> sg.data.mask("half", (2, 4)).tolist()
        [[True, True, False, False], [True, True, False, False]]
    """
    if kind not in _KINDS:
        raise InvalidInputError(f"got mask {kind!r}, expected one of {', '.join(_KINDS)}")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise InvalidInputError(f"got shape={tuple(shape)}, expected (H, W) or (C, H, W)")
    check_size(shape)
    h, w = shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return _KINDS[kind](y, x, h, w).expand(*shape).clone()


def _inner(y: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    return ((y - (h - 1) / 2).abs() < h / 4) & ((x - (w - 1) / 2).abs() < w / 4)


def _lines(y: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    waves = (h * (k / 4 + 0.08 * (2 * math.pi * x / w + 2 * k).sin()) for k in (1, 2, 3))
    return torch.stack([(y - wave).abs() < max(h / 24, 0.6) for wave in waves]).any(0)


_KINDS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "wide": lambda y, x, h, w: ~_inner(y, x, h, w),
    "outer": _inner,
    "thin": lambda y, x, h, w: ~_lines(y, x, h, w),
    "half": lambda y, x, h, w: x < w / 2,
    "pixels": lambda y, x, h, w: (y % 2 == 0) & (x % 2 == 0),
    "rows": lambda y, x, h, w: y % 2 == 0,
}
