"""The one way to write files and folders: beside their place, synced, then renamed into it.

Whatever fails at whatever moment, what was there before or what is new is there, whole. Several threads or processes
may write to one path: each under a name of its own, and the last one to finish stays.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InvalidInputError, shortened

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LONGEST = 180  # bytes of a name that others are made of: most disks take 255
_LONGEST_PATH = 2**16  # characters; no disk takes as many
_FORGOTTEN = 24 * 3600.0  # seconds after which another machine's temporaries count as left behind

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_WRITING: set[str] = set()  # the temporaries of this process's threads
_RENAMING = threading.RLock()

_CURES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room: the disk quota is used up",
    errno.EACCES: "see to the folder's rights",
    errno.EPERM: "see to the folder's rights",
    errno.EROFS: "pass a path on a disk that can be written to",
    errno.ENAMETOOLONG: "pass a shorter path",
    errno.ENOTDIR: "a part of the path is a file: pass another path",
}


def as_path(path: Any, name: str = "path") -> Path:
    """An argument that must be a path, made absolute.

    Raises:
        InvalidInputError: something that is no path.
    """
    try:
        text = os.fspath(path)
        if isinstance(text, str) and text and "\0" not in text and len(text) <= _LONGEST_PATH:
            return Path(text).absolute()
    except TypeError:
        pass
    raise InvalidInputError(f"{name}: got {shortened(path)}, expected a path such as 'runs/first'")


def cure(error: OSError) -> str:
    """What can be done about an error of the disk."""
    return _CURES.get(error.errno or 0, "make room, or see to the folder's rights")


def sha256_of(file: Path) -> str:
    """Of what a file holds, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replacing(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A name beside `path`, to make a file or a folder under; when the block ends well, that becomes `path`.

    Files are synced by who writes them (`write_synced`, `sync`). Where `path` is a link, what it points to is
    replaced. Temporaries that crashed processes left are cleared up.

    Args:
        path: where.
        check: raises if what is there, at the path it is given, should stay.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        _recover(path)
        if check is not None:
            check(path)
        _sweep(path)
        fresh = path.with_name(f".{_short(path.name)}.{os.getpid()}.{_HOST}{secrets.token_hex(4)}.tmp")
        _WRITING.add(fresh.name)
    try:
        yield fresh
        if fresh.is_dir():
            sync(fresh)
        with _alone_in(path.parent):
            _put(fresh, path)
    except BaseException:
        remove(fresh, ignore_errors=True)
        raise
    finally:
        _WRITING.discard(fresh.name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one piece, that is there whole or not at all.

    Raises:
        OSError: the disk is full, or the folder's rights do not allow it; what was there is unharmed.
    """
    with replacing(path) as fresh:
        write_synced(fresh, [content])


def write_synced(file: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file and wait until the disk has it; its size in bytes and its SHA-256."""
    size, digest = 0, hashlib.sha256()
    with open(file, "wb") as stream:
        for piece in pieces:
            stream.write(piece)
            digest.update(piece)
            size += len(piece)
            del piece  # before the next one is made
        stream.flush()
        os.fsync(stream.fileno())
    return size, digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or the names in a folder."""
    if os.name == "nt":  # neither can be asked for there by name
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file, a folder with all that is in it, or a link (not what it points to); or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if not ignore_errors:
            raise


def previous(path: Path) -> Path:
    """Where the folder that was at `path` stays while a new one takes its place."""
    return path.with_name(f".{_short(path.name)}.old")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other thread, and no other process on a system that locks folders, renames anything here meanwhile."""
    with _RENAMING:
        if fcntl is None:
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network disks lock nothing
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _recover(path: Path) -> None:
    """Put back a folder whose replacement never came, because a crash fell between two renames."""
    old = previous(path)
    if old.is_symlink() or not old.is_dir() or path.exists():
        remove(old)
    else:
        os.rename(old, path)


def _put(fresh: Path, path: Path) -> None:
    """Rename into place. A folder cannot be renamed over another one: that goes away first, and back if this fails."""
    folder = fresh.is_dir()
    replaces = folder and path.exists()
    if replaces:
        remove(previous(path))
        os.rename(path, previous(path))
    try:
        os.replace(fresh, path)
    except OSError:
        if replaces:
            os.rename(previous(path), path)
        raise
    sync(path.parent)
    if folder:
        remove(previous(path), ignore_errors=True)


def _short(name: str) -> str:
    """A name, or something in its place that leaves room for an ending."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= _LONGEST:
        return name
    return f"{raw[:100].decode('utf-8', 'ignore')}~{hashlib.sha256(raw).hexdigest()[:16]}"


def _sweep(path: Path) -> None:
    """Remove what crashed writers to `path` left beside it."""
    temporary = re.compile(re.escape(f".{_short(path.name)}.") + r"(\d+)(?:\.([0-9a-f]{6})[0-9a-f]{8})?\.tmp")
    for found in list(path.parent.iterdir()):
        match = temporary.fullmatch(found.name)
        if match and _is_stale(found, int(match[1]), match[2]):
            remove(found)


def _is_stale(temporary: Path, process: int, host: str | None) -> bool:
    if host not in (None, _HOST):  # another machine, or container, on the same disk
        return time.time() - temporary.lstat().st_mtime > _FORGOTTEN
    if process == os.getpid():
        return temporary.name not in _WRITING
    return not _runs(process)


def _runs(process: int) -> bool:
    """Whether a process of this number may be running."""
    if os.name == "nt":  # asking there means killing
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
