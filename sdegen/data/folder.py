"""A folder of pictures: which files, which classes, and the decoded bytes kept for the next time."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from .arrays import Raw
from .pixels import Decoded, Picture, decode

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_FORMAT = 1  # of a kept file: what it was made from and how


def read_folder(
    folder: Path,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    corrupt: str,
    cache: str | os.PathLike | None,
    progress: bool | None,
) -> Raw:
    """All pictures below a folder, in the order of their paths; the sub-folders right below it are the classes.

    Raises:
        InvalidInputError: no pictures, or none that can be read; see `decode`.
    """
    files = image_files(folder)
    if not files:
        raise InvalidInputError(f"{folder} holds no pictures: looked for {' '.join(ENDINGS)} in it and below")
    pictures = [Picture(file, _opener(folder / file)) for file in files]
    options: dict[str, Any] = {"size": size, "channels": channels, "corrupt": corrupt, "progress": progress}
    found = decode(pictures, **options) if cache is None else _kept(folder, pictures, Path(cache), options)
    classes = sorted({file.split("/")[0] for file in files if "/" in file})
    labels = None
    if len(classes) > 1 and all("/" in file for file in files):
        number = {name: k for k, name in enumerate(classes)}
        labels = np.array([number[files[i].split("/")[0]] for i in found.kept])
    return Raw(found.pixels, labels, 256, None if labels is None else tuple(classes), found.skipped, found.kept)


def image_files(folder: Path) -> list[str]:
    """The paths of all pictures below a folder, relative to it, sorted; links are followed, hidden files left out."""
    found, seen = [], set()
    for where, below, names in os.walk(folder, followlinks=True):
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
    return sorted(found)


def _opener(path: Path) -> Any:
    from PIL import Image

    return lambda: Image.open(path)


def _kept(folder: Path, pictures: list[Picture], cache: Path, options: dict[str, Any]) -> Decoded:
    """`decode` once: the bytes stay in a file that is mapped into memory, and shared by all processes that read it.

    The file's name is a digest of every path, size and modification time and of how the pictures are read, so it is
    never out of date; the list beside it is written last and says that it is whole.
    """
    from filelock import FileLock

    stats = [(p.name, (s := (folder / p.name).stat()).st_size, s.st_mtime_ns) for p in pictures]
    made_from = [_FORMAT, stats, options["size"], options["channels"], options["corrupt"]]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:24]
    cache.mkdir(parents=True, exist_ok=True)
    array, listed, fresh = (cache / f"{key}{end}" for end in (".npy", ".json", ".tmp"))

    rooms: list[Any] = []

    def room(shape: tuple[int, ...]) -> np.ndarray:
        rooms.append(np.lib.format.open_memmap(fresh, mode="w+", dtype=np.uint8, shape=shape))
        return rooms[0]

    with FileLock(cache / f"{key}.lock"):
        if not listed.exists():
            found = decode(pictures, **options, room=room)
            rooms[0].flush()
            os.replace(fresh, array)
            part = listed.with_suffix(".part")
            part.write_text(json.dumps({"kept": found.kept, "skipped": found.skipped}))
            os.replace(part, listed)
    state = json.loads(listed.read_text())
    pixels = np.load(array, mmap_mode="c")[: len(state["kept"])]
    return Decoded(pixels, state["kept"], tuple(state["skipped"]))
