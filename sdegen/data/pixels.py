"""From pictures of any size, mode and depth to one array of bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import InvalidInputError
from ..core.progress import progress_bar
from .depth import AS_TYPED, Scale, brightest, eight_bits
from .limits import check_memory, check_unpacked

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 lie on their side
_PORTION = 1024  # files that are waited for at a time: what waits takes memory
_SUBFILE = 254  # the TIFF tag of a page; bit 0: a smaller copy, bit 2: a mask
_WHITE = (255, 255, 255, 255)


class Picture(NamedTuple):
    """A file of pictures that has not been opened yet, its name in messages, and its size where that is known."""

    name: str
    open: Callable[[], Any]
    nbytes: int | None = None


class Wanted(NamedTuple):
    """What pictures are made into.

    Attributes:
        size: (H, W); each picture is cut to this shape around its centre and resampled (Lanczos). None: they have one
            size already.
        channels: 1, 3 or 4. None: 1 if all are grey, else 3. Where transparency is not kept, white shines through.
        corrupt: "refuse" or "skip" those that cannot be read.
        progress: a bar on stderr; None: if that is a terminal.
        frames: "all" pictures of a file that holds several (TIFF, GIF, WebP, PNG), or the "first".
        scale: which values are black and white.
        decides: whether the values decide it where nobody said it; False where they are only a part of the set.
        max_bytes: that one file may unpack to; None: see `check_unpacked`.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    corrupt: str = "refuse"
    progress: bool | None = None
    frames: str = "all"
    scale: Scale = AS_TYPED
    decides: bool = True
    max_bytes: int | None = None


class Decoded(NamedTuple):
    """Bytes (N, C, H, W) of the pictures that could be read.

    kept: their numbers among all pictures. files: the number of the file that each came from. skipped: what was wrong
    with the others. notes: what was done that nobody asked for.
    """

    pixels: np.ndarray
    kept: list[int]
    files: list[int]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


class _Page(NamedTuple):
    """One picture of a file: its number there (None: the file cannot be read), greyness and upright (H, W)."""

    number: int | None
    grey: bool = True
    size: tuple[int, int] = (0, 0)


def decode(
    files: Sequence[Picture], wanted: Wanted, *, room: Callable[[tuple[int, ...]], np.ndarray] | None = None
) -> Decoded:
    """All pictures with one size and number of channels.

    Args:
        files: that hold them.
        wanted: what they are made into.
        room: makes the array; None: in memory.

    Raises:
        InvalidInputError: pictures that cannot be read, all named; sizes that differ; channels that no mode has.
    """
    if wanted.channels is not None and wanted.channels not in MODES:
        raise InvalidInputError(f"channels={wanted.channels}: pictures have 1 (grey), 3 (RGB) or 4 (RGBA)")
    pages, unopened = _each(files, lambda i: _look(files[i], wanted), wanted.progress, "looking")
    rows = [(i, page) for i in range(len(files)) for page in pages.get(i, (_Page(None),))]
    names = [files[i].name + (f"[{page.number}]" if len(pages.get(i, ())) > 1 else "") for i, page in rows]
    broken = {row: unopened[i] for row, (i, page) in enumerate(rows) if page.number is None}
    _refuse(names, broken, "skip")  # if nothing is left
    sound = [(names[row], page) for row, (_, page) in enumerate(rows) if row not in broken]
    channels = wanted.channels or (1 if all(page.grey for _, page in sound) else 3)
    shape = (len(rows), channels, *(wanted.size or _one_size(sound)))
    if room is None:
        check_memory(int(np.prod([float(n) for n in shape])), "the pictures", "pass a smaller size=, or cache=")
    pixels = np.empty(shape, np.uint8) if room is None else room(shape)
    wanted = wanted._replace(size=shape[2:], channels=channels)
    faults, bright = _read_all(files, rows, wanted, pixels)
    scale, notes = wanted.scale.judged(bright, decides=wanted.decides)
    if scale != wanted.scale:
        faults, _ = _read_all(files, rows, wanted._replace(scale=scale), pixels)
    faults |= broken
    _refuse(names, faults, wanted.corrupt)
    kept = [row for row in range(len(rows)) if row not in faults]
    for to, row in enumerate(kept):
        if to != row:
            pixels[to] = pixels[row]
    skipped = tuple(_named(names, faults))
    notes = (*notes, *_several(files, pages))
    return Decoded(pixels[: len(kept)], kept, [rows[row][0] for row in kept], skipped, notes)


def to_bytes(image: Any, size: tuple[int, int], channels: int, scale: Scale = AS_TYPED) -> np.ndarray:
    """One picture, upright, as bytes (C, H, W)."""
    from PIL import Image, ImageOps

    image = eight_bits(ImageOps.exif_transpose(image), scale)
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

    check_memory(len(pixels) * channels * size[0] * size[1], "the images", "pass a smaller size=")
    out = np.empty((len(pixels), channels, *size), np.uint8)
    for i, row in enumerate(pixels):
        out[i] = to_bytes(picture(row), size, channels)
    return out


def _look(file: Picture, wanted: Wanted) -> tuple[_Page, ...]:
    """The pictures of a file, from its head alone."""
    with file.open() as image:
        several = wanted.frames == "all" and image.format != "MPO"  # cameras keep a second view of one picture there
        count = getattr(image, "n_frames", 1) if several else 1
        if file.nbytes is not None:
            unpacked = image.width * image.height * len(image.getbands()) * (4 if image.mode in ("I", "F") else 1)
            check_unpacked(count * unpacked, file.nbytes, wanted.max_bytes, file.name)
        if image.format != "TIFF":  # all frames have one size
            return _shared(tuple(_page(image, k) for k in range(count)))
        pages = []
        for k in range(count):
            image.seek(k)
            if k == 0 or not image.tag_v2.get(_SUBFILE, 0) & 5:
                pages.append(_page(image, k))
        return _shared(tuple(pages))


@lru_cache(4096)
def _shared(pages: tuple[_Page, ...]) -> tuple[_Page, ...]:
    """The same object for all files that are alike."""
    return pages


def _page(image: Any, number: int) -> _Page:
    w, h = image.size
    on_its_side = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return _Page(number, image.mode in _GREY, (w, h) if on_its_side else (h, w))


def _read_all(
    files: Sequence[Picture], rows: list[tuple[int, _Page]], wanted: Wanted, into: np.ndarray
) -> tuple[dict[int, str], dict[int, int]]:
    """Read every picture into its row; the faults by row, and the largest value of those of 8 and of 16 bits."""
    of_file: dict[int, list[tuple[int, int]]] = {}
    for row, (i, page) in enumerate(rows):
        if page.number is not None:
            of_file.setdefault(i, []).append((row, page.number))
    size, channels = wanted.size, wanted.channels

    def read(i: int) -> tuple[dict[int, str], list[tuple[int, int]]] | None:
        faults, bright = {}, []
        with files[i].open() as image:
            for row, number in of_file[i]:
                try:
                    if len(of_file[i]) > 1 or number:
                        image.seek(number)
                    found = brightest(image)
                    into[row] = to_bytes(image, size, channels, wanted.scale)  # type: ignore[arg-type]
                    bright += [found] if found else []
                except Exception as error:  # a decoder may raise anything, and whatever it is, it is this picture's
                    faults[row] = _words(error)
        return (faults, bright) if faults or bright else None

    done, unopened = _each(files, read, wanted.progress, "reading", of_file)
    faults = {row: fault for i, fault in unopened.items() for row, _ in of_file[i]}
    largest: dict[int, int] = {}
    for theirs, bright in done.values():
        faults |= theirs
        for bits, high in bright:
            largest[bits] = max(high, largest.get(bits, 0))
    return faults, largest


def _each(
    files: Sequence[Picture],
    work: Callable[[int], Any],
    progress: bool | None,
    verb: str,
    numbers: Any = None,
) -> tuple[dict[int, Any], dict[int, str]]:
    """work(i) for every file (or those of these numbers): the results by number but for None, and what went wrong."""

    def one(i: int) -> tuple[int, Any, str | None]:
        try:
            return i, work(i), None
        except Exception as error:  # a decoder may raise anything, and whatever it is, it is this file's fault
            return i, None, _words(error)

    chosen = list(range(len(files)) if numbers is None else numbers)
    results: dict[int, Any] = {}
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        portions = (chosen[at : at + _PORTION] for at in range(0, len(chosen), _PORTION))
        done = chain.from_iterable(pool.map(one, portion) for portion in portions)
        for i, result, fault in progress_bar(progress, done, total=len(chosen), desc=verb):
            if fault is None and result is not None:
                results[i] = result
            elif fault is not None:
                faults[i] = fault
    return results, faults


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _named(names: Sequence[str], faults: dict[int, str]) -> list[str]:
    return [f"{names[i]} ({faults[i]})" for i in sorted(faults)]


def _refuse(names: Sequence[str], faults: dict[int, str], corrupt: str) -> None:
    """Raise on faults if they are not to be skipped, or if nothing else is left."""
    if not faults or (corrupt == "skip" and len(faults) < len(names)):
        return
    named = _named(names, faults)
    cure = "" if len(faults) == len(names) else "; remove them, or pass corrupt='skip'"
    raise InvalidInputError(
        f"{len(named)} of {len(names)} pictures cannot be read: {'; '.join(named[:8])}"
        f"{f'; and {len(named) - 8} more' * (len(named) > 8)}{cure}"
    )


def _several(files: Sequence[Picture], pages: dict[int, tuple[_Page, ...]]) -> list[str]:
    """A note on files that hold more than one picture."""
    found = [f"{files[i].name}: {len(theirs)}" for i, theirs in sorted(pages.items()) if len(theirs) > 1]
    if not found:
        return []
    some = ", ".join(found[:4]) + ", ..." * (len(found) > 4)
    return [f"{len(found)} files hold several pictures ({some}): each is an image; frames='first' takes one of each"]


def _one_size(pages: Sequence[tuple[str, _Page]]) -> tuple[int, int]:
    """The (H, W) of all."""
    name, first = pages[0]
    other = next(((other, page) for other, page in pages if page.size != first.size), None)
    if other is not None:
        (h, w), (h2, w2) = first.size, other[1].size
        raise InvalidInputError(
            f"the pictures differ in size ({name} is {h}x{w}, {other[0]} {h2}x{w2}, height first): pass size=, a "
            "number or (H, W), to cut and scale them all to it"
        )
    return first.size
