"""From pictures of any size and mode to one array of bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import InvalidInputError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 lie on their side
_WHITE = (255, 255, 255, 255)


class Picture(NamedTuple):
    """A picture that has not been opened yet, and what to call it in a message."""

    name: str
    open: Callable[[], Any]


class Decoded(NamedTuple):
    """Bytes (N, C, H, W) of the pictures that could be read, their numbers, and what was wrong with the others."""

    pixels: np.ndarray
    kept: list[int]
    skipped: tuple[str, ...]


def decode(
    pictures: Sequence[Picture],
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    corrupt: str,
    progress: bool | None = None,
    room: Callable[[tuple[int, ...]], np.ndarray] | None = None,
) -> Decoded:
    """All pictures with one size and number of channels.

    Args:
        size: (H, W); each picture is cut to this shape around its centre and resampled (Lanczos). None: they have one
            size already.
        channels: 1, 3 or 4. None: 1 if all are grey, else 3. Where transparency is not kept, white shines through.
        corrupt: "refuse" or "skip" those that cannot be read.
        progress: a bar on stderr; None: if that is a terminal.
        room: makes the array; None: in memory.

    Raises:
        InvalidInputError: pictures that cannot be read, all named; sizes that differ; channels that no mode has.
    """
    if channels is not None and channels not in MODES:
        raise InvalidInputError(f"channels={channels}: pictures have 1 (grey), 3 (RGB) or 4 (RGBA)")
    faults: dict[int, str] = {}
    if size is None or channels is None:
        seen = _each(pictures, _look, faults, progress, "looking")
        if not seen:
            _refuse(pictures, faults, corrupt)
        channels = channels or (1 if all(grey for grey, _ in seen.values()) else 3)
        size = size or _one_size(pictures, {i: s for i, (_, s) in seen.items()})
    shape = (len(pictures), channels, *size)
    pixels = np.empty(shape, np.uint8) if room is None else room(shape)
    done = _each(pictures, lambda image: to_bytes(image, size, channels), faults, progress, "reading", into=pixels)
    _refuse(pictures, faults, corrupt)
    kept = sorted(done)
    for row, i in enumerate(kept):
        if row != i:
            pixels[row] = pixels[i]
    return Decoded(pixels[: len(kept)], kept, tuple(_named(pictures, faults)))


def to_bytes(image: Any, size: tuple[int, int], channels: int) -> np.ndarray:
    """One picture, upright, as bytes (C, H, W)."""
    from PIL import Image, ImageOps

    image = _eight_bits(ImageOps.exif_transpose(image))
    if channels != 4 and ("A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    image = image.convert(MODES[channels])
    if image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def resampled(pixels: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Bytes (N, C, H, W), C = 1, 3 or 4, as pictures of another size or number of channels."""
    from PIL import Image

    def picture(row: np.ndarray) -> Any:
        return Image.fromarray(row[0] if len(row) == 1 else np.ascontiguousarray(row.transpose(1, 2, 0)))

    out = np.empty((len(pixels), channels, *size), np.uint8)
    for i, row in enumerate(pixels):
        out[i] = to_bytes(picture(row), size, channels)
    return out


def _eight_bits(image: Any) -> Any:
    """Sixteen bits to eight: round(u/257). Pillow itself would cut off at 255."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range: pass them as an array")
    if not image.mode.startswith("I"):
        return image
    u = np.asarray(image).astype(np.int64)
    return Image.fromarray(((u + 128) // 257).clip(0, 255).astype(np.uint8))


def _look(image: Any) -> tuple[bool, tuple[int, int]]:
    """Whether a picture is grey, and its upright (H, W); from its head alone."""
    w, h = image.size
    on_its_side = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return image.mode in _GREY, (w, h) if on_its_side else (h, w)


def _each(
    pictures: Sequence[Picture],
    work: Callable[[Any], Any],
    faults: dict[int, str],
    progress: bool | None,
    verb: str,
    into: np.ndarray | None = None,
) -> dict[int, Any]:
    """work(picture) of all that have no fault yet, by number; what goes wrong is a fault of that picture.

    With `into` the results go there, row by row.
    """
    from tqdm import tqdm

    def one(i: int) -> tuple[int, Any, str | None]:
        try:
            with pictures[i].open() as image:
                result = work(image)
                if into is None:
                    return i, result, None
                into[i] = result
                return i, None, None
        except Exception as error:  # a decoder may raise anything, and whatever it is, it is this file's fault
            return i, None, f"{type(error).__name__}: {error}"

    numbers = [i for i in range(len(pictures)) if i not in faults]
    results: dict[int, Any] = {}
    hidden = None if progress is None else not progress
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, result, fault in tqdm(pool.map(one, numbers), total=len(numbers), disable=hidden, desc=verb):
            if fault is None:
                results[i] = result
            else:
                faults[i] = fault
    return results


def _named(pictures: Sequence[Picture], faults: dict[int, str]) -> list[str]:
    return [f"{pictures[i].name} ({faults[i]})" for i in sorted(faults)]


def _refuse(pictures: Sequence[Picture], faults: dict[int, str], corrupt: str) -> None:
    """Raise on faults if they are not to be skipped, or if nothing else is left."""
    if not faults or (corrupt == "skip" and len(faults) < len(pictures)):
        return
    named = _named(pictures, faults)
    cure = "" if len(faults) == len(pictures) else "; remove them, or pass corrupt='skip'"
    raise InvalidInputError(
        f"{len(named)} of {len(pictures)} pictures cannot be read: {'; '.join(named[:8])}"
        f"{f'; and {len(named) - 8} more' * (len(named) > 8)}{cure}"
    )


def _one_size(pictures: Sequence[Picture], sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    first = min(sizes)
    other = next((i for i in sizes if sizes[i] != sizes[first]), None)
    if other is not None:
        (h, w), (h2, w2) = sizes[first], sizes[other]
        raise InvalidInputError(
            f"the pictures differ in size ({pictures[first].name} is {h}x{w}, {pictures[other].name} {h2}x{w2}, height "
            "first): pass size=, a number or (H, W), to cut and scale them all to it"
        )
    return sizes[first]
