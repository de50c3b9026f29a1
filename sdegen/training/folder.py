"""The run folder: one owner, checkpoints that are never lost, and an orderly end on a signal."""

from __future__ import annotations

import os
import shutil
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

_KEPT = 2  # checkpoints
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
        self.path = Path(path).absolute()

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
                (self.path / _OWNER).write_text(str(os.getpid()))
                for folder in (self.path, self.path / _SNAPSHOTS):
                    for left in folder.glob(".step-*"):  # by a crash: nobody else writes here
                        shutil.rmtree(left)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            with suppress(OSError):  # the number of a process that is no more does no harm
                (self.path / _OWNER).unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _owner(self) -> str:
        try:
            return (self.path / _OWNER).read_text() or "(unknown)"
        except OSError:
            return "(unknown)"

    def resumable(self, resume: str | bool) -> Found | None:
        """Tensors and state of the newest valid checkpoint, None where the run begins."""
        there = storage.steps(self.path)
        if there and resume is False:
            raise InvalidInputError(f"{self.path} has a run and resume=False: pass another folder, or resume='auto'")
        if not there and resume is True:
            raise InvalidInputError(f"{self.path} has no checkpoint and resume=True: pass resume='auto' to begin one")
        return storage.newest(self.path, ["model", "training"])

    def rewind(self, step: int) -> None:
        """Drop the snapshots after a step."""
        with writing(self.path):
            for later in storage.steps(self.path / _SNAPSHOTS):
                if later.name > _name(step):
                    shutil.rmtree(later)

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write the checkpoint of a step; drop all but the newest two, and later ones: they were too damaged to use."""
        with writing(self.path):
            for damaged in storage.steps(self.path):
                if damaged.name >= _name(step):
                    shutil.rmtree(damaged)
        storage.write(self.path / _name(step), tensors, state)
        for old in storage.steps(self.path)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def keep_averages(self, step: int, averages: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a snapshot of the averages, to be mixed later."""
        storage.write(self.path / _SNAPSHOTS / _name(step), {"averages": averages}, state)


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
            f"could not write to {path}: {error}. Make room or see to the folder's rights, and run again: the run goes "
            "on from its last checkpoint"
        ) from error


def _name(step: int) -> str:
    return f"step-{step:08d}"


class Interrupts:
    """Notes SIGTERM and SIGINT instead of dying of them, so that a step can be finished; the second one acts at once.

    Only in the main thread, where Python handles signals. `number` is the signal that came, 0 if none did.

    Args:
        patience: seconds in which a second signal is the first one once more, as where both a terminal and torchrun
            pass on what the user pressed.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.number, self._patience, self._first = 0, patience, 0.0

    def __enter__(self) -> Self:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._first = number, now
        elif now >= self._first + self._patience:
            self.__exit__()
            signal.raise_signal(number)  # to whoever handled it before
