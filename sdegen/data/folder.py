"""A folder of pictures: which files, in which order, of which classes."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from .arrays import Raw
from .cache import kept
from .pixels import Picture, Wanted, decode

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_NUMBER = re.compile("[0-9]+")
_FORMAT = 2  # of what is kept: how pictures are read


def read_folder(folder: Path, wanted: Wanted, cache: str | os.PathLike | None) -> Raw:
    """All pictures below a folder, in the order of their paths; the sub-folders right below it are the classes.

    Pictures beside the folders of classes have none, label -1.

    Args:
        folder: where.
        wanted: what the pictures are made into.
        cache: the folder where they are kept.

    Raises:
        InvalidInputError: no pictures, or none that can be read; see `decode`.
    """
    names = image_files(folder)
    if not names:
        raise InvalidInputError(f"{folder} holds no pictures: looked for {' '.join(ENDINGS)} in it and below")
    stats = [_stat(folder / name) for name in names]
    place = str(folder)
    files = [Picture(name, partial(_opened, place, name), stat[0]) for name, stat in zip(names, stats, strict=True)]
    if cache is None:
        found = decode(files, wanted)
    else:
        made_from = [_FORMAT, list(zip(names, stats, strict=True)), wanted._replace(progress=None)]
        found = kept(Path(cache), made_from, lambda room: decode(files, wanted, room=room))
    classes = sorted({name.split("/")[0] for name in names if "/" in name}, key=natural)
    raw = Raw(found.pixels, None, 256, None, found.skipped, found.kept, found.notes)
    if len(classes) < 2:
        return raw
    number = {name: k for k, name in enumerate(classes)}
    labels = [number[names[i].split("/")[0]] if "/" in names[i] else -1 for i in found.files]
    notes = [*found.notes, *_beside([name for name in names if "/" not in name])]
    return raw._replace(labels=np.array(labels), classes=tuple(classes), notes=tuple(notes))


def image_files(folder: Path) -> list[str]:
    """The paths of all pictures below a folder, relative to it, in order; links are followed, hidden files left out.

    Raises:
        InvalidInputError: a folder that cannot be opened.
    """

    def refuse(error: OSError) -> None:
        raise InvalidInputError(f"{error.filename} cannot be opened: {error.strerror}") from error

    found, seen = [], set()
    for where, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(where)
        if real in seen:  # a link back up
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [
            (Path(where) / name).relative_to(folder).as_posix()
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    return sorted(found, key=natural)


def natural(path: str) -> str:
    """A key for sorting paths in which numbers count as numbers: "2" before "10".

    A number is written with its length before it. What ends comes before what goes on: no name holds a "\\0".
    """
    return "".join(f"{_NUMBER.sub(_with_length, part)}\0\0{part}\0" for part in path.split("/"))


def _with_length(number: re.Match) -> str:
    digits = number[0].lstrip("0")
    return f"\0{len(digits):04d}{digits}\0"


def _beside(names: list[str]) -> list[str]:
    """A note on pictures that are in no folder of a class."""
    if not names:
        return []
    some = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
    return [
        f"{len(names)} pictures lie beside the folders of the classes ({some}): they have no class, label -1; move "
        "them into one, or away"
    ]


def _stat(path: Path) -> tuple[int | None, int | None]:
    """Size and time of change; nothing of a link to nowhere, which cannot be read either."""
    try:
        found = path.stat()
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def _opened(folder: str, name: str) -> Any:
    from PIL import Image

    return Image.open(os.path.join(folder, name))
