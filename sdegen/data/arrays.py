"""Images that are arrays: of whatever layout, levels and range, as values (N, C, H, W)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..core.arguments import one_of
from ..core.errors import InvalidInputError
from .depth import check_levels, check_range, judged_levels

LAYOUTS = ("channels-first", "channels-last")
_LEVELS = {"uint8": 256, "bool": 2, "uint16": 65536}
_SIDE = 8  # pixels from which on a side of three or four is taken for channels


class Raw(NamedTuple):
    """What a source holds: values (N, C, H, W), labels (N,) or None, levels (None: x itself, floating).

    classes: the labels' names. skipped: what could not be read. kept: the numbers of those that could, None for all.
    notes: what was done that nobody asked for, to be told.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    levels: int | None
    classes: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    kept: list[int] | None = None
    notes: tuple[str, ...] = ()


def from_array(
    values: Any,
    labels: np.ndarray | None = None,
    *,
    channels: int | None = None,
    layout: str | None = None,
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    name: str = "the array",
    decides: bool = True,
) -> Raw:
    """Images of an array (N, H, W), (N, C, H, W) or (N, H, W, C).

    Args:
        values: the array.
        labels: (N,), or None.
        channels, layout, levels, value_range: see `load_images`.
        name: of the array, for messages.
        decides: whether its values decide the levels where nobody said them; False where it is a part of a set.

    Raises:
        InvalidInputError: another shape, a layout or a range of values that has to be told, values out of range.
    """
    values = np.asarray(values)
    notes = _one_picture(values, layout, name)
    values = _channels_first(values, channels, layout, name)
    kind = values.dtype.kind
    if kind == "f":
        if levels is not None:
            raise InvalidInputError(f"{name} is {values.dtype}, which has no levels: leave levels out, or round it")
        return Raw(_within(values, value_range, name), labels, None, notes=notes)
    if kind not in "biu":
        raise InvalidInputError(f"{name} is {values.dtype}: expected whole or floating numbers")
    if value_range is not None:
        raise InvalidInputError(f"{name} is {values.dtype}, levels from 0: value_range is for floating numbers")
    levels, told = _levels_of(values, levels, name, decides)
    if values.dtype != np.uint8:
        values = values.astype(np.uint8 if levels <= 256 else np.int32)
    return Raw(values, labels, levels, notes=(*notes, *told))


def _levels_of(values: np.ndarray, levels: int | None, name: str, decides: bool) -> tuple[int, list[str]]:
    """The levels of whole numbers, as told or by their type and values; and what was done that nobody asked for."""
    known = _LEVELS.get(values.dtype.name, 0)
    if not (known or levels):
        raise InvalidInputError(f"{name} is {values.dtype}: pass levels=, one more than the largest value it may have")
    if levels is None:
        high = _brightest(values, known // 4)
        levels, note = judged_levels(high, known, f"{name}: {values.dtype} pixels", decides=decides)
        return levels, [note] * bool(note)
    check_levels(levels)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high >= levels:
        raise InvalidInputError(f"{name} has values from {low} to {high}: levels={levels} means 0 to {levels - 1}")
    return levels, []


def _brightest(values: np.ndarray, enough: int) -> int:
    """The largest value, or one that is large enough: most sets need not be read to their end."""
    high = 0
    for at in range(0, len(values) if values.size else 0, 256):
        high = max(high, int(values[at : at + 256].max()))
        if high >= enough:
            break
    return high


def _one_picture(values: np.ndarray, layout: str | None, name: str) -> tuple[str, ...]:
    """Whether three axes look like one picture in colour, not like N in grey: channels last are refused, first told."""
    if values.ndim != 3 or layout is not None:
        return ()
    a, b, c = values.shape
    if c in (3, 4) and min(a, b) >= _SIDE:
        raise InvalidInputError(
            f"{name} has shape {values.shape}, which looks like one picture (H, W, C): a set of one is "
            f"x[None]; if these are {a} grey images of {b}x{c}, pass layout='channels-first'"
        )
    if a in (3, 4) and min(b, c) >= _SIDE:
        return (f"{name} has shape {values.shape}, taken as {a} grey images: one picture (C, H, W) is x[None]",)
    return ()


def _channels_first(values: np.ndarray, channels: int | None, layout: str | None, name: str) -> np.ndarray:
    """(N, C, H, W) of whatever layout."""
    if layout is not None:
        one_of(layout, "layout", LAYOUTS)
    if values.ndim == 3:
        return values[:, None]
    if values.ndim != 4:
        raise InvalidInputError(f"{name} has shape {values.shape}: expected (N, H, W), (N, C, H, W) or (N, H, W, C)")
    if layout is None:
        ends = {"channels-first": values.shape[1], "channels-last": values.shape[3]}
        able = [key for key, c in ends.items() if c in (1, 2, 3, 4)]
        able = [key for key, c in ends.items() if c == channels] if len(able) != 1 else able
        if len(able) != 1:
            choices = " or ".join(map(repr, LAYOUTS))
            raise InvalidInputError(f"{name} has shape {values.shape}: pass layout= as {choices}")
        layout = able[0]
    return values if layout == "channels-first" else values.transpose(0, 3, 1, 2)


def _within(values: np.ndarray, value_range: tuple[float, float] | None, name: str) -> np.ndarray:
    """Floating values as float32 in [-1, 1]."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidInputError(f"{name} holds NaN or infinity: clean the data first")
    if value_range is None and (low >= 0 or low < -1 or high > 1):
        raise InvalidInputError(
            f"{name} has floating values from {low:g} to {high:g}: pass value_range=, the numbers of black and of "
            "white, such as (0, 1), or (-1, 1) for values that are scaled already"
        )
    black, white = (-1.0, 1.0) if value_range is None else check_range(value_range)
    if low < black or high > white:
        raise InvalidInputError(f"{name} has values from {low:g} to {high:g}, outside ({black:g}, {white:g})")
    if (black, white) == (-1.0, 1.0):
        return values.astype(np.float32, copy=False)
    return ((values.astype(np.float64) - black) * (2 / (white - black)) - 1).astype(np.float32)
