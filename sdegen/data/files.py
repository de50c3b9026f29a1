"""Images in files of arrays, .npy, .npz and the idx files of MNIST: what their heads say is measured first."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import InvalidInputError
from .arrays import Raw, from_array
from .limits import check_unpacked

IDX_IMAGES = re.compile(r"(.*)images([-.])idx\d-ubyte(\.gz)?")
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NAMES = {"images": ("images", "x", "X", "arr_0", "data"), "labels": ("labels", "label", "y", "Y", "arr_1")}


class _Header(NamedTuple):
    """What an array in an .npz file says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)


def read_array(path: Path, labels: Any, part: str, options: dict[str, Any], most: int | None) -> tuple[Raw, bool]:
    """An .npy or .npz file, and whether it has a held-out part of its own (arrays x_train, x_test, ...).

    Args:
        path: the file.
        labels: the name of their array, in an .npz file.
        part: "train", "held-out" or "all".
        options: of `from_array`.
        most: bytes that it may unpack to, see `check_unpacked`.

    Raises:
        InvalidInputError: the file cannot be read, is not what it says, or holds no images.
    """
    try:
        headers = _headers(path, most) if zipfile.is_zipfile(path) else {}
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return from_array(found, **options, name=str(path)), False
        with found:
            return _read_npz(path, found, headers, labels, part, options)
    except InvalidInputError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        NotImplementedError,
        zlib.error,
        zipfile.BadZipFile,
    ) as e:
        raise InvalidInputError(f"{path} cannot be read: {e or type(e).__name__}") from e


def _headers(path: Path, most: int | None) -> dict[str, _Header]:
    """The arrays of an .npz file by name, none of them read: what each says must be there, and not too much."""
    found, packed = {}, path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                old = np.lib.format.read_magic(stream) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
                start = stream.tell()
            nbytes = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise ValueError(f"{key} holds Python objects, which could run code")
            if nbytes != member.file_size - start:
                raise ValueError(f"{key} says {shape} of {dtype.name}, and has {member.file_size - start} bytes")
            check_unpacked(nbytes, min(member.compress_size, packed), most, f"{path}[{key}]")
            found[key] = _Header(shape, dtype)
    return found


def _read_npz(
    path: Path, arrays: Any, headers: dict[str, _Header], labels: Any, part: str, options: dict[str, Any]
) -> tuple[Raw, bool]:
    if {"x_train", "x_test"} <= headers.keys():
        return _part(arrays, path, part, options), True
    key = _named(headers, "images", path, lambda a: a.ndim >= 3)
    if key is None:
        raise InvalidInputError(f"{path} holds no images (N, H, W) or (N, C, H, W): it has {', '.join(headers)}")
    if isinstance(labels, str) and labels not in headers:
        raise InvalidInputError(f"{path} has no array {labels!r}: it has {', '.join(headers)}")
    n = headers[key].shape[:1]
    able = _named(headers, "labels", path, lambda a: a.shape == n and a.dtype.kind in "iu")
    of_labels = labels if isinstance(labels, str) else able
    own = None if of_labels is None else arrays[of_labels]
    return from_array(arrays[key], own, **options, name=f"{path}[{key}]"), False


def _part(arrays: Any, path: Path, part: str, options: dict[str, Any]) -> Raw:
    """One part of x_train, y_train, x_test, y_test."""
    options = {**options, "decides": False}
    ends = {"train": ["train"], "held-out": ["test"], "all": ["train", "test"]}[part]
    values = np.concatenate([arrays[f"x_{end}"] for end in ends])
    if not {"y_train", "y_test"} <= set(arrays.files):
        return from_array(values, **options, name=str(path))
    labels = np.concatenate([arrays[f"y_{end}"].reshape(-1) for end in ends])
    return from_array(values, labels, **options, name=str(path))


def _named(arrays: Mapping[str, _Header], what: str, path: Path, fits: Callable[[_Header], bool]) -> Any:
    """The name of the array of images, or of labels (None if there is none); a usual name is preferred."""
    able = [key for key, value in arrays.items() if fits(value)]
    usual = [key for key in _NAMES[what] if key in able]
    if len(able) > 1 and not usual:
        raise InvalidInputError(f"{path} has several arrays of {what}, {', '.join(able)}: name one {_NAMES[what][0]!r}")
    return (usual or able or [None])[0]


def read_idx(path: Path, most: int | None = None) -> np.ndarray:
    """An array in the idx format of MNIST, plain or gzipped.

    Args:
        path: the file.
        most: bytes that it may unpack to, see `check_unpacked`.

    Raises:
        InvalidInputError: the file cannot be read, or is not what its first bytes say.
    """
    try:
        packed = path.stat().st_size
        with open(path, "rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            shape, dtype, start = _idx_head(path, file)
            nbytes = math.prod(shape) * dtype.itemsize
            says = f"{path} is damaged: it says {shape} of {dtype.name}"
            if not zipped and nbytes != packed - start:
                raise InvalidInputError(f"{says}, and holds {packed - start} bytes")
            check_unpacked(nbytes, packed, most, str(path))
            content = np.empty(nbytes, np.uint8)
            done = file.readinto(content.data) if nbytes else 0  # type: ignore[union-attr]
            while done < nbytes and (more := file.readinto(content[done:].data)):  # type: ignore[union-attr]
                done += more
            if done < nbytes or file.read(1):
                raise InvalidInputError(f"{says}, and holds {done if done < nbytes else 'more'} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    return content.view(dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _idx_head(path: Path, file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and length of the head."""
    head = file.read(4)
    n = head[3] if len(head) == 4 else 0
    lengths = file.read(4 * n)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or len(lengths) < 4 * n:
        raise InvalidInputError(f"{path} is no idx file: it begins with {head.hex() or 'nothing'}")
    return struct.unpack(f">{n}I", lengths), np.dtype(_IDX_TYPES[head[2]]), 4 + 4 * n


def read_idx_folder(folder: Path, part: str, options: dict[str, Any], most: int | None) -> tuple[Raw, bool]:
    """Images and labels of a folder of idx files: train-images..., and t10k-images... or test-images... held out."""
    files = sorted(path for path in folder.iterdir() if IDX_IMAGES.fullmatch(path.name))
    test = [path for path in files if re.search("t10k|test", path.name)]
    parts = {"train": [path for path in files if path not in test], "held-out": test}
    for name, found in parts.items():
        if len({path.name.removesuffix(".gz") for path in found}) > 1:
            raise InvalidInputError(f"{folder} has several {name} sets, {', '.join(p.name for p in found)}: pass one")
    if not all(parts.values()):
        return read_idx_file(files[0], options, most), False
    options = {**options, "decides": False}
    chosen = [parts[name][0] for name in (("train", "held-out") if part == "all" else (part,))]
    raws = [read_idx_file(path, options, most) for path in chosen]
    if len(raws) == 1:
        return raws[0], True
    labels = [raw.labels for raw in raws if raw.labels is not None]
    return raws[0]._replace(
        pixels=np.concatenate([raw.pixels for raw in raws]),
        labels=np.concatenate(labels) if len(labels) == len(raws) else None,
    ), True


def read_idx_file(path: Path, options: dict[str, Any], most: int | None) -> Raw:
    """An idx file of images, with the labels of the file beside it, if there is one of the same name."""
    match = IDX_IMAGES.fullmatch(path.name)
    labels = None
    if match:
        stem = path.with_name(f"{match[1]}labels{match[2]}idx1-ubyte")
        beside = [p for p in (stem.with_name(stem.name + ".gz"), stem) if p.exists()]
        labels = read_idx(beside[-1], most) if beside else None
    return from_array(read_idx(path, most), labels, **options, name=str(path))
