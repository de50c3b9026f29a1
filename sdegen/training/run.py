"""A run folder: one process at a time, checkpoints from which a run goes on as if it had never stopped, signals."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from .. import checkpoint
from ..errors import InvalidInputError, RunLockedError

KEPT = 2
GROUPS = ("model", "raw", "optimiser", "history")


class Run:
    """Checkpoints of a training run in a folder: step-<n>/ each, the newest two kept.

    Raises:
        RunLockedError: another process has the folder.
    """

    def __init__(self, folder: str | os.PathLike, resume: str | bool) -> None:
        if resume not in ("auto", True, False):
            raise InvalidInputError(f"resume={resume!r}: wanted 'auto' (go on where there is a checkpoint), True (there must be one) or False")
        self.folder, self.resume = Path(folder), resume
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        self._owner = self.folder / ".owner"
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            owner = self._owner.read_text().strip() if self._owner.exists() else "unknown"
            raise RunLockedError(
                f"the run folder {self.folder} is in use by the process {owner}: wait for it, stop it, or choose another out="
            ) from error
        self._owner.write_text(str(os.getpid()))

    def close(self) -> None:
        self._owner.unlink(missing_ok=True)
        self._lock.release()

    def newest(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The newest valid checkpoint, None where the run begins afresh."""
        there = checkpoint.steps(self.folder)
        if self.resume is False:
            if there:
                raise InvalidInputError(f"{self.folder} already holds a run and resume=False: choose another out=, or resume='auto' to go on")
            return None
        if not there and self.resume is True:
            raise InvalidInputError(f"resume=True, but {self.folder} holds no checkpoint: use resume='auto' to begin one")
        return checkpoint.newest(self.folder, GROUPS)

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        checkpoint.write(self.folder / f"step-{step}", tensors, state)
        for old in checkpoint.steps(self.folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


class Interrupted:
    """Whether SIGTERM or SIGINT has asked the run to stop after this step; only the main thread can be asked."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[Interrupted]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
