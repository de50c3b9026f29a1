"""Numbers that nobody may change once something computed of them is remembered."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from .cache import versions_of

_DEEPEST = 5  # of lists in lists, and functions that use functions
_NUMBERS = bool | int | float | complex | str
_HOLDERS = Tensor | np.ndarray | nn.Module | list | tuple | Mapping | partial


class Unwritten:
    """The numbers of some values, as they are now: tensors, arrays, and the entries of lists, dicts and objects.

    Of functions it takes those that they use: the variables around them, those of their module, and their defaults.
    Entries that are added later are none of them.

    Args:
        values: what may hold numbers.
    """

    __slots__ = ("_arrays", "_entries", "_tensors", "_versions")

    def __init__(self, values: Iterable[Any]) -> None:
        self._tensors: list[Tensor] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []  # and what was in them
        self._entries: list[tuple[Any, Any, Any]] = []  # what holds it, under which key, the value
        for value in values:
            self._note(value, 0)
        self._versions = versions_of(self._tensors)

    def __bool__(self) -> bool:
        return bool(self._tensors or self._arrays or self._entries)

    def __call__(self) -> bool:
        """Whether none of them was changed since."""
        if versions_of(self._tensors) != self._versions:
            return False
        return not (self._entries or self._arrays) or (self._same_entries() and self._same_arrays())

    def same_tensors(self) -> bool:
        """Whether no tensor and no array was written into since."""
        return versions_of(self._tensors) == self._versions and self._same_arrays()

    def _same_arrays(self) -> bool:
        return all(np.array_equal(array, before, equal_nan=before.dtype.kind in "fc") for array, before in self._arrays)

    def __reduce__(self):  # what a copy's owner holds are others
        return _copied, ()

    def _same_entries(self) -> bool:
        for holder, key, value in self._entries:
            now = _entry(holder, key)
            if now is not value and not (type(now) is type(value) and isinstance(value, _NUMBERS) and now == value):
                return False
        return True

    def _note(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            self._tensors.append(value)
        elif isinstance(value, np.ndarray):
            self._arrays.append((value, value.copy()))
        elif isinstance(value, nn.Module):
            self._tensors += value.state_dict(keep_vars=True).values()
        elif depth < _DEEPEST:
            for holder, key, part in _parts(value):
                if holder is not None:
                    self._entries.append((holder, key, part))
                self._note(part, depth + 1)


def _copied() -> Unwritten:
    """One that says something was changed."""
    numbers = Unwritten([])
    numbers._entries.append(({}, "", "copied"))
    return numbers


def _parts(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """What a value is made of: what holds the part, under which key, and the part; None for a holder: it stays."""
    if isinstance(value, FunctionType):
        yield from _used_by(value)
    elif isinstance(value, partial):
        yield from ((None, None, part) for part in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, tuple):
        yield from ((None, None, part) for part in value)
    elif isinstance(value, list):
        yield from ((value, i, part) for i, part in enumerate(value))
    elif isinstance(value, Mapping):
        yield from ((value, key, part) for key, part in value.items())
    elif not isinstance(value, type | ModuleType | CellType) and hasattr(value, "__dict__"):
        refuses = isinstance(type(value).__setattr__, FunctionType)  # it says itself what may be assigned
        yield from ((None if refuses else vars(value), name, part) for name, part in vars(value).items())


def _used_by(function: FunctionType) -> Iterator[tuple[Any, Any, Any]]:
    """The numbers that a function uses, what holds them, and the functions of its own module."""
    around = [(cell, None, _entry(cell, None)) for cell in function.__closure__ or ()]
    named = function.__globals__
    around += [(named, name, named[name]) for name in function.__code__.co_names if name in named]
    around += [(None, None, part) for part in function.__defaults__ or ()]
    for holder, key, part in around:
        own = inspect.isfunction(part) and part.__module__ == function.__module__
        if own or isinstance(part, _NUMBERS | _HOLDERS):
            yield holder, key, part


def _entry(holder: Any, key: Any) -> Any:
    """What is held there now, None where nothing is."""
    try:
        return holder.cell_contents if isinstance(holder, CellType) else holder[key]
    except (LookupError, ValueError):  # taken out; of a cell: not filled yet
        return None
