"""Images that are arrays already: .npy, .npz, the idx files of MNIST, and arrays in memory."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import InvalidInputError

LAYOUTS = ("channels-first", "channels-last")
IDX_IMAGES = re.compile(r"(.*)images([-.])idx\d-ubyte(\.gz)?")
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LEVELS = {"uint8": 256, "bool": 2, "uint16": 65536}
_NAMES = {"images": ("images", "x", "X", "arr_0", "data"), "labels": ("labels", "label", "y", "Y", "arr_1")}


class Raw(NamedTuple):
    """What a source holds: values (N, C, H, W), labels (N,) or None, levels (None: x itself, floating).

    classes: the labels' names. skipped: what could not be read. kept: the numbers of those that could, None for all.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    levels: int | None
    classes: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    kept: list[int] | None = None


def from_array(
    values: Any,
    labels: np.ndarray | None = None,
    *,
    channels: int | None = None,
    layout: str | None = None,
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    name: str = "the array",
) -> Raw:
    """Images of an array (N, H, W), (N, C, H, W) or (N, H, W, C).

    Raises:
        InvalidInputError: another shape, a layout or a range of values that has to be told, values out of range.
    """
    values = _channels_first(np.asarray(values), channels, layout, name)
    kind = values.dtype.kind
    if kind == "f":
        if levels is not None:
            raise InvalidInputError(f"{name} is {values.dtype}, which has no levels: leave levels out, or round it")
        return Raw(_within(values, value_range, name), labels, None)
    if kind not in "biu":
        raise InvalidInputError(f"{name} is {values.dtype}: wanted whole or floating numbers")
    if value_range is not None:
        raise InvalidInputError(f"{name} is {values.dtype}, levels from 0: value_range is for floating numbers")
    known = _LEVELS.get(values.dtype.name, 0)
    levels = known if levels is None else levels
    if not levels:
        raise InvalidInputError(f"{name} is {values.dtype}: pass levels=, one more than the largest value it may have")
    check_levels(levels)
    if not known or levels < known:
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if low < 0 or high >= levels:
            raise InvalidInputError(f"{name} has values from {low} to {high}: levels={levels} means 0 to {levels - 1}")
    if values.dtype != np.uint8:
        values = values.astype(np.uint8 if levels <= 256 else np.int32)
    return Raw(values, labels, levels)


def check_levels(levels: Any) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= 2**24:
        raise InvalidInputError(f"levels={levels!r}: wanted a whole number of grey levels, such as 256")


def read_array(path: Path, labels: Any, part: str, options: dict[str, Any]) -> tuple[Raw, bool]:
    """An .npy or .npz file, and whether it has a held-out part of its own (arrays x_train, x_test, ...)."""
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return from_array(found, **options, name=str(path)), False
        with found:
            arrays = {key: found[key] for key in found.files}
    except InvalidInputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    if {"x_train", "x_test"} <= arrays.keys():
        return _part(arrays, path, part, options), True
    key = _named(arrays, "images", path, lambda a: a.ndim >= 3)
    if key is None:
        raise InvalidInputError(f"{path} holds no images (N, H, W) or (N, C, H, W): it has {', '.join(arrays)}")
    values = arrays[key]
    if isinstance(labels, str) and labels not in arrays:
        raise InvalidInputError(f"{path} has no array {labels!r}: it has {', '.join(arrays)}")
    able = _named(arrays, "labels", path, lambda a: a.shape == values.shape[:1] and a.dtype.kind in "iu")
    own = arrays.get(labels if isinstance(labels, str) else able)
    return from_array(values, own, **options, name=f"{path}[{key}]"), False


def _part(arrays: dict[str, np.ndarray], path: Path, part: str, options: dict[str, Any]) -> Raw:
    """One part of x_train, y_train, x_test, y_test."""
    ends = {"train": ["train"], "held-out": ["test"], "all": ["train", "test"]}[part]
    values = np.concatenate([arrays[f"x_{end}"] for end in ends])
    if not {"y_train", "y_test"} <= arrays.keys():
        return from_array(values, **options, name=str(path))
    labels = np.concatenate([arrays[f"y_{end}"].reshape(-1) for end in ends])
    return from_array(values, labels, **options, name=str(path))


def _named(arrays: dict[str, np.ndarray], what: str, path: Path, fits: Callable[[np.ndarray], bool]) -> Any:
    """The name of the array of images, or of labels (None if there is none); a usual name is preferred."""
    able = [key for key, value in arrays.items() if fits(value)]
    usual = [key for key in _NAMES[what] if key in able]
    if len(able) > 1 and not usual:
        raise InvalidInputError(f"{path} has several arrays of {what}, {', '.join(able)}: name one {_NAMES[what][0]!r}")
    return (usual or able or [None])[0]


def read_idx(path: Path) -> np.ndarray:
    """An array in the idx format of MNIST, plain or gzipped.

    Raises:
        InvalidInputError: the file cannot be read, or is not what its first bytes say.
    """
    try:
        with open(path, "rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or len(content) < 4 + 4 * content[3]:
        raise InvalidInputError(f"{path} is no idx file: it begins with {content[:4].hex() or 'nothing'}")
    n = content[3]
    shape = struct.unpack(f">{n}I", content[4 : 4 + 4 * n])
    dtype = np.dtype(_IDX_TYPES[content[2]])
    body = len(content) - 4 - 4 * n
    if math.prod(shape) * dtype.itemsize != body:
        raise InvalidInputError(f"{path} is damaged: it says {shape} of {dtype.name}, and holds {body} bytes")
    return np.frombuffer(content, dtype, offset=4 + 4 * n).reshape(shape).astype(dtype.newbyteorder("="))


def read_idx_folder(folder: Path, part: str, options: dict[str, Any]) -> tuple[Raw, bool]:
    """Images and labels of a folder of idx files: train-images..., and t10k-images... or test-images... held out."""
    files = sorted(path for path in folder.iterdir() if IDX_IMAGES.fullmatch(path.name))
    test = [path for path in files if re.search("t10k|test", path.name)]
    parts = {"train": [path for path in files if path not in test], "held-out": test}
    for name, found in parts.items():
        if len({path.name.removesuffix(".gz") for path in found}) > 1:
            raise InvalidInputError(f"{folder} has several {name} sets, {', '.join(p.name for p in found)}: pass one")
    if not all(parts.values()):
        return read_idx_file(files[0], options), False
    chosen = [parts[name][0] for name in (("train", "held-out") if part == "all" else (part,))]
    raws = [read_idx_file(path, options) for path in chosen]
    if len(raws) == 1:
        return raws[0], True
    labels = [raw.labels for raw in raws if raw.labels is not None]
    return raws[0]._replace(
        pixels=np.concatenate([raw.pixels for raw in raws]),
        labels=np.concatenate(labels) if len(labels) == len(raws) else None,
    ), True


def read_idx_file(path: Path, options: dict[str, Any]) -> Raw:
    """An idx file of images, with the labels of the file beside it, if there is one of the same name."""
    match = IDX_IMAGES.fullmatch(path.name)
    labels = None
    if match:
        stem = path.with_name(f"{match[1]}labels{match[2]}idx1-ubyte")
        beside = [p for p in (stem.with_name(stem.name + ".gz"), stem) if p.exists()]
        labels = read_idx(beside[-1]) if beside else None
    return from_array(read_idx(path), labels, **options, name=str(path))


def _channels_first(values: np.ndarray, channels: int | None, layout: str | None, name: str) -> np.ndarray:
    """(N, C, H, W) of whatever layout."""
    if layout is not None and layout not in LAYOUTS:
        raise InvalidInputError(f"layout={layout!r} is not known: choose from {', '.join(map(repr, LAYOUTS))}")
    if values.ndim == 3:
        return values[:, None]
    if values.ndim != 4:
        raise InvalidInputError(f"{name} has shape {values.shape}: wanted (N, H, W), (N, C, H, W) or (N, H, W, C)")
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
    black, white = value_range or (-1.0, 1.0)
    if not (math.isfinite(black) and math.isfinite(white) and black < white):
        raise InvalidInputError(f"value_range={value_range!r}: wanted (black, white), black below white")
    if low < black or high > white:
        raise InvalidInputError(f"{name} has values from {low:g} to {high:g}, outside ({black:g}, {white:g})")
    if (black, white) == (-1.0, 1.0):
        return values.astype(np.float32, copy=False)
    return ((values.astype(np.float64) - black) * (2 / (white - black)) - 1).astype(np.float32)
