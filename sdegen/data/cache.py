"""Decoded pictures kept in a file for the next time: checked whenever they are used, made again if damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError, warn
from ..core.files import replacing, sync, write_whole
from .pixels import Decoded

_PORTION = 2**24  # bytes read at a time
Room = Callable[[tuple[int, ...]], np.ndarray]


class _Damaged(Exception):
    """What is kept is not what was written."""


def kept(folder: Path, made_from: Any, decode: Callable[[Room], Decoded]) -> Decoded:
    """What `decode` gives, from a file that an earlier call left, mapped into memory and shared by all its readers.

    The file's name is a digest of what the pictures are made from, so it is never out of date. The list beside it is
    written last and has the digests of both.

    Args:
        folder: where.
        made_from: plain values that decide the result.
        decode: makes it, in the array that the function it is given makes.

    Raises:
        InvalidInputError: the folder cannot be written to, or has no room.
    """
    from filelock import FileLock

    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:24]
    array, listed = folder / f"{key}.npy", folder / f"{key}.json"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = _found(array, listed)
        if found is not None:
            return found
        with FileLock(folder / f"{key}.lock"):
            found = _found(array, listed, tells=True)
            if found is not None:  # another process has made it meanwhile
                return found
            _make(decode, array, listed)
    try:
        return _checked(array, listed)
    except _Damaged as damage:
        raise InvalidInputError(f"cache={str(folder)!r} does not keep what is written there: {damage}") from damage


def _make(decode: Callable[[Room], Decoded], array: Path, listed: Path) -> None:
    """Decode into a file, and write the list when it is whole."""
    with replacing(array) as fresh:
        rooms: list[Any] = []

        def room(shape: tuple[int, ...]) -> np.ndarray:
            rooms.append(np.lib.format.open_memmap(fresh, mode="w+", dtype=np.uint8, shape=shape))
            _reserve(fresh, rooms[0].offset, rooms[0].nbytes)
            return rooms[0]

        found = decode(room)
        rooms[0].flush()
        sync(fresh)
        digest = _digest(fresh)
    state = {
        "pixels": digest,
        "kept": found.kept,
        "files": found.files,
        "skipped": found.skipped,
        "notes": found.notes,
    }
    write_whole(listed, json.dumps({**state, "state": _digest_of(state)}).encode())


def _found(array: Path, listed: Path, *, tells: bool = False) -> Decoded | None:
    """What is kept; None, with a warning if asked for, where it is damaged."""
    if not (listed.exists() or array.exists()):
        return None
    try:
        return _checked(array, listed)
    except _Damaged as damage:
        if tells and listed.exists():  # without a list it was never whole
            warn(f"kept pictures are damaged and made again: {damage}", RuntimeWarning)
        return None


def _checked(array: Path, listed: Path) -> Decoded:
    """What is kept, every byte compared with the digests."""
    try:
        state = json.loads(listed.read_bytes())
        told = state.pop("state")
        if _digest_of(state) != told:
            raise _Damaged(f"{listed} is not as it was written")
        if _digest(array) != state["pixels"]:
            raise _Damaged(f"{array} is not as it was written")
        pixels = np.load(array, mmap_mode="c", allow_pickle=False)[: len(state["kept"])]
        if not len(pixels) == len(state["kept"]) == len(state["files"]):
            raise _Damaged(f"{listed} lists {len(state['kept'])} pictures, {array} holds {len(pixels)}")
        return Decoded(pixels, state["kept"], state["files"], tuple(state["skipped"]), tuple(state["notes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"{listed.with_suffix('')}.*: {type(error).__name__}: {error}") from error


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while portion := stream.read(_PORTION):
            digest.update(portion)
    return digest.hexdigest()


def _digest_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _reserve(file: Path, start: int, nbytes: int) -> None:
    """Give a file all its blocks: writing through a map to a disk that is full kills the process (SIGBUS)."""
    with open(file, "r+b") as stream:
        try:
            if nbytes:
                os.posix_fallocate(stream.fileno(), start, nbytes)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            stream.seek(start)  # a system or a disk that has no such call: zeros
            for at in range(0, nbytes, _PORTION):
                stream.write(bytes(min(_PORTION, nbytes - at)))


@contextmanager
def _writing(folder: Path) -> Any:
    """An error of the disk, told as one of the argument."""
    try:
        yield
    except OSError as error:
        raise InvalidInputError(
            f"cache={str(folder)!r} cannot be written ({error}): free some space, pass another folder, or leave it out"
        ) from error
