"""The run folder: one owner, checkpoints that are never lost, metrics as CSV, and an orderly end on a signal."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from torch import Tensor

from .. import checkpoint
from ..errors import InvalidInputError, RunLockedError

_KEPT = 2  # checkpoints
_LOCK, _OWNER, _METRICS = ".lock", ".owner", "metrics.csv"

Found = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]  # what a checkpoint holds: tensors and state


class RunFolder:
    """A folder with the checkpoints `step-<n>` of a run, the newest two, and its `metrics.csv`.

    Use it in a `with` statement, which holds the lock.

    Raises:
        RunLockedError: another process holds it.
        InvalidInputError: the path is no folder and cannot become one.
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
        (self.path / _OWNER).write_text(str(os.getpid()))
        for left in self.path.glob(".step-*"):  # by a crash: nobody else writes here
            shutil.rmtree(left)
        return self

    def __exit__(self, *_: Any) -> None:
        (self.path / _OWNER).unlink(missing_ok=True)
        self._lock.release()

    def _owner(self) -> str:
        try:
            return (self.path / _OWNER).read_text() or "(unknown)"
        except OSError:
            return "(unknown)"

    def resumable(self, resume: str | bool) -> Found | None:
        """Tensors and state of the newest valid checkpoint, None where the run begins."""
        there = checkpoint.steps(self.path)
        if there and resume is False:
            raise InvalidInputError(f"{self.path} has a run and resume=False: pass another folder, or resume='auto'")
        if not there and resume is True:
            raise InvalidInputError(f"{self.path} has no checkpoint and resume=True: pass resume='auto' to begin one")
        return checkpoint.newest(self.path, ["model", "training"])

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write the checkpoint of a step; drop all but the newest two, and later ones: they were too damaged to use."""
        mine = self.path / f"step-{step:08d}"
        for damaged in checkpoint.steps(self.path):
            if damaged.name >= mine.name:
                shutil.rmtree(damaged)
        checkpoint.write(mine, tensors, state)
        for old in checkpoint.steps(self.path)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows to the metrics."""
        if not rows:
            return
        file = self.path / _METRICS
        begins = not file.exists()
        with open(file, "a", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            if begins:
                writer.writeheader()
            writer.writerows(rows)

    def rewind(self, step: int) -> None:
        """Forget the metrics after a step."""
        file = self.path / _METRICS
        if not file.exists():
            return
        head, *rows = file.read_text().splitlines(keepends=True) or [""]
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
        fresh = file.with_suffix(".tmp")
        fresh.write_text(head + "".join(kept))
        os.replace(fresh, file)


class Interrupts:
    """Notes SIGTERM and SIGINT instead of dying of them, so that a step can be finished; the second one acts at once.

    Only in the main thread, where Python handles signals. `number` is the signal that came, None if none did.
    """

    number: int | None = None

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
        self.number = number
        self.__exit__()
