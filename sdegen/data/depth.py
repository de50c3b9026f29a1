"""How deep pixels are: which value is black and which white, told by the caller or, failing that, by the values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import InvalidInputError

_DEPTHS = (256, 1024, 4096, 16384)  # levels of cameras and scanners that write files of 16 bits
_SCALABLE = ("L", "LA", "RGB", "RGBA", "RGBX")  # modes of 8 bits whose values are brightness


class Scale(NamedTuple):
    """Which values of a picture are white, and which black.

    white8, white16: white in files of 8 and of 16 bits; black is 0. value_range: (black, white) of all, instead.
    """

    white8: int = 255
    white16: int = 65535
    value_range: tuple[float, float] | None = None

    @classmethod
    def told(cls, levels: int | None, value_range: tuple[float, float] | None) -> Scale:
        """As the caller says."""
        if levels is not None:
            check_levels(levels)
            return cls(levels - 1, levels - 1)
        return cls() if value_range is None else cls(value_range=check_range(value_range))

    def judged(self, brightest: dict[int, int], *, decides: bool) -> tuple[Scale, tuple[str, ...]]:
        """As the largest values of pictures of 8 and of 16 bits suggest, where nobody said it; and what was done."""
        if self != AS_TYPED:
            return self, ()
        whites, notes = {8: 255, 16: 65535}, []
        for bits, high in sorted(brightest.items()):
            levels, note = judged_levels(high, whites[bits] + 1, f"pictures of {bits} bits", decides=decides)
            whites[bits] = levels - 1
            notes += [note] * bool(note)
        return Scale(whites[8], whites[16]), tuple(notes)


AS_TYPED = Scale()  # nobody said


def check_levels(levels: Any) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= 2**24:
        raise InvalidInputError(f"got levels={levels!r}, expected a whole number of grey levels, such as 256")


def check_range(value_range: Any) -> tuple[float, float]:
    """(black, white) as finite numbers, black below white."""
    try:
        black, white = (float(v) for v in value_range)
    except (TypeError, ValueError):
        black = white = math.nan
    if not (math.isfinite(black) and math.isfinite(white) and black < white):
        raise InvalidInputError(f"got value_range={value_range!r}, expected (black, white), black below white")
    return black, white


def judged_levels(high: int, levels: int, name: str, *, decides: bool = True) -> tuple[int, str]:
    """The levels that values up to `high` were measured in, and a note where that is not all that their type has.

    Masks of 0 and 1 have 2 levels; files of 16 bits often hold 8, 10, 12 or 14. Other small values stay as they are and
    are told.

    Args:
        high: the largest value.
        levels: of the type.
        name: of what holds the values.
        decides: False: only tell, since other parts of the set have not been seen.

    Returns:
        The levels, and the note ("" for none).
    """
    found = levels
    if high == 1:
        found = 2
    elif levels == 65536 and high > 15:
        found = next((n for n in _DEPTHS if high < n), levels)
    if found < levels and decides:
        return found, (
            f"{name} have values up to {high} of {levels - 1}: taken as {found} levels, white is {found - 1}; pass "
            f"levels={levels} if white is {levels - 1}"
        )
    if 0 < high < levels // 8:
        return levels, (
            f"{name} have values up to {high} of {levels - 1}, so they are nearly black: pass levels={high + 1} if "
            f"{high} is white"
        )
    return levels, ""


def brightest(image: Any) -> tuple[int, int] | None:
    """The bits of a picture (8 or 16) and its largest value; None where its mode says what is white."""
    if image.mode.startswith("I"):
        return 16, int(np.asarray(image).max())
    if image.mode not in _SCALABLE:
        return None
    extremes = image.getextrema()
    bands = [extremes] if len(image.getbands()) == 1 else extremes
    return 8, max(high for name, (_, high) in zip(image.getbands(), bands, strict=True) if name not in "AX")


def eight_bits(image: Any, scale: Scale) -> Any:
    """A picture with 0 as black and 255 as white. Pillow itself would cut 16 bits off at 255."""
    from PIL import Image

    wide = image.mode.startswith("I")
    if scale.value_range is not None:
        black, white = scale.value_range
    elif image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range: pass value_range=(black, white)")
    else:
        black, white = 0, scale.white16 if wide else scale.white8
    if not (wide or image.mode == "F") and (image.mode not in _SCALABLE or (black, white) == (0, 255)):
        return image
    values = np.asarray(image).astype(np.float64)
    values = values[..., None] if values.ndim == 2 else values
    colours = [k for k, name in enumerate(image.getbands()) if name not in "AX"]
    low, high = values[..., colours].min(), values[..., colours].max()
    if not (black <= low and high <= white):
        raise ValueError(f"its values go from {low:g} to {high:g}, and ({black:g}, {white:g}) are black and white")
    values[..., colours] = np.floor(255 * (values[..., colours] - black) / (white - black) + 0.5)
    values = values.astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
