"""The exception tree: everything sdegen raises on purpose is an `SdegenError`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SdegenError(Exception):
    """Root of every error that sdegen raises on purpose."""


class InvalidInputError(SdegenError, ValueError):
    """An argument that cannot work: says what it got, what it expected and the cure, before the first network call."""


class SolverError(SdegenError, RuntimeError):
    """A solve that could not finish; `.partial` carries the Solution as far as it got."""

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class NonFiniteError(SolverError):
    """NaN or infinity appeared; the message names the time, the step and the samples."""


class MaxStepsError(SolverError):
    """The step budget `max_steps` ran out before the samples arrived."""


class StepSizeUnderflowError(SolverError):
    """Error control asked for steps below the resolution of time: the tolerance cannot be reached."""


class CheckpointError(SdegenError):
    """A checkpoint that cannot be used."""


class CorruptCheckpointError(CheckpointError):
    """Bytes on disk are not the bytes that were written."""


class IncompatibleCheckpointError(CheckpointError):
    """A sound checkpoint of something else: another version, network or process."""


class RunLockedError(SdegenError):
    """Another process is using this run folder; the message names its pid."""


@contextmanager
def made_of_description(what: str) -> Iterator[None]:
    """Raise IncompatibleCheckpointError where something cannot be made of its description in a file of anybody's."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # whatever a stranger's file can lead to
        words = f"{type(error).__name__}: {shortened(str(error), 300)}"
        raise IncompatibleCheckpointError(f"no {what} can be made of the checkpoint's description: {words}") from error


def shortened(value: Any, most: int = 80) -> str:
    """A value for a message: its repr, cut where it is long; its type where it is nested too deep for one."""
    try:
        text = repr(value[: 4 * most] if isinstance(value, str | bytes | list | tuple) else value)
    except RecursionError:
        return f"a {type(value).__name__} of many levels"
    return text if len(text) <= most else f"{text[:most]}..."


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the user's line: the first frame outside the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


_NOT_THE_USERS = ("sdegen", "torch", "contextlib")
