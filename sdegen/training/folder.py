"""The run folder: one owner, checkpoints that are never lost, and an orderly end on a signal."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

from torch import Tensor

from .. import storage
from ..core.errors import CheckpointError, InvalidInputError, RunLockedError
from ..core.files import as_path, cure, remove

_KEPT = 2  # checkpoints
_MAX_BYTES = 1 << 26  # of JSON: it is the user's own, and lists every weight four times or more
_LOCK, _OWNER, _SNAPSHOTS = ".lock", ".owner", "averages"

Found = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]  # what a checkpoint holds: tensors and state


class RunFolder:
    """A folder with the checkpoints `step-<n>` of a run, the newest two, and snapshots of its averages.

    Use it in a `with` statement, which holds the lock.

    Raises:
        RunLockedError: another process holds it.
        InvalidInputError: the path is no folder and cannot become one.
        CheckpointError: the disk is full, or the folder's rights do not allow what is asked.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = as_path(path, "out")
        self._mark = f"{os.getpid()} {secrets.token_hex(8)}"

    def __enter__(self) -> Self:
        import filelock  # where it is needed: importing it takes time

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"out={str(self.path)!r} cannot be a folder: {error}") from error
        self._lock = filelock.FileLock(self.path / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunLockedError(
                f"{self.path} is in use by process {self._owner()}: wait for it, stop it, or pass another out="
            ) from None
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be locked: {error}") from error
        try:
            with writing(self.path):
                (self.path / _OWNER).write_text(self._mark)
                for folder in (self.path, self.path / _SNAPSHOTS):
                    for left in folder.glob(".step-*"):  # by a crash: nobody else writes here
                        remove(left)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            with suppress(OSError):  # the number of a process that is no more does no harm
                if self._is_ours():
                    (self.path / _OWNER).unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _owner(self) -> str:
        """The number of the process that has the folder."""
        try:
            return (self.path / _OWNER).read_text(errors="replace").split(" ")[0][:20] or "(unknown)"
        except OSError:
            return "(unknown)"

    def _is_ours(self) -> bool:
        """Whether this is still the folder that was locked: another one of its name may have another owner."""
        try:
            return (self.path / _OWNER).read_text(errors="replace") == self._mark
        except FileNotFoundError:
            return False

    def _check_ours(self) -> None:
        with writing(self.path):
            if not self._is_ours():
                raise CheckpointError(
                    f"{self.path} was removed, or replaced, while this run wrote to it: nothing more is kept there. "
                    "The model has its weights; run again to begin anew"
                )

    def resumable(self, resume: str | bool, *, sharded: bool = False) -> Found | None:
        """Tensors and state of the newest valid checkpoint, None where the run begins; if `sharded`, no weights."""
        kept = storage.steps(self.path)
        if kept and resume is False:
            raise InvalidInputError(f"{self.path} has a run and resume=False: pass another folder, or resume='auto'")
        if not kept and resume is True:
            raise InvalidInputError(f"{self.path} has no checkpoint and resume=True: pass resume='auto' to begin one")
        if not sharded:
            return storage.newest(self.path, ["model", "training"], max_bytes=_MAX_BYTES)
        found = storage.newest_path(self.path, max_bytes=_MAX_BYTES)
        return found and ({"model": storage.statistics_of(found[0])}, found[1])

    def rewind(self, step: int) -> None:
        """Drop the snapshots after a step."""
        with writing(self.path):
            for later in storage.steps(self.path / _SNAPSHOTS):
                if later.name > _name(step):
                    remove(later)

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write the checkpoint of a step; drop all but the newest two, and later ones: they were too damaged to use."""
        storage.write(self.place_for(step), tensors, state)
        self.drop_old()

    def place_for(self, step: int) -> Path:
        """Where the checkpoint of a step goes; the ones that are there from this step on were too damaged to use."""
        self._check_ours()
        with writing(self.path):
            for damaged in storage.steps(self.path):
                if damaged.name >= _name(step):
                    remove(damaged)
        return self.path / _name(step)

    def drop_old(self) -> None:
        """Keep the newest two checkpoints."""
        for old in storage.steps(self.path)[:-_KEPT]:
            remove(old, ignore_errors=True)

    def keep_averages(self, step: int, averages: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a snapshot of the averages, to be mixed later."""
        self._check_ours()
        storage.write(self.path / _SNAPSHOTS / _name(step), {"averages": averages}, state)


def checkpoint_of(run: str | os.PathLike, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return as_path(run, "out") / _name(step)


def snapshots(run: str | os.PathLike) -> list[Path]:
    """The snapshots of a run's averages, oldest first."""
    return storage.steps(Path(run) / _SNAPSHOTS)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the disk becomes one that says what was being written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"could not write to {path}: {error}. To go on from the last checkpoint {cure(error)}, and run again"
        ) from error


def _name(step: int) -> str:
    return f"step-{step:08d}"


class Interrupts:
    """Notes SIGTERM and SIGINT instead of dying of them, so that a step can be finished; the second one acts at once.

    Only in the main thread, where Python handles signals. `number` is the signal that came, 0 if none did.

    Args:
        patience: seconds in which a second signal is the first one once more, as where both a terminal and torchrun
            pass on what the user pressed. A process that leaves because of a signal goes on ignoring it for so long:
            the second one may come while it exits.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.number, self._patience, self._first = 0, patience, 0.0

    def __enter__(self) -> Self:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        leaves = self.number and kind is not None and issubclass(kind, SystemExit)
        if not (leaves and self._waits()):
            self._restore()
        if self.number and kind is None:  # it came after the last step
            signal.raise_signal(self.number)

    def note(self, number: int) -> None:
        """Take in a signal, of this process or of another one of the run; 0 is none."""
        if number and not self.number:
            self.number, self._first = number, time.monotonic()

    def _waits(self) -> bool:
        return time.monotonic() < self._first + self._patience

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.note(number)
        elif not self._waits():
            self._restore()
            self.number = 0
            signal.raise_signal(number)  # to whoever handled it before
