"""Tensors that nobody may write into once something computed of them is remembered."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .cache import versions_of

_DEEPEST = 4  # of lists in lists, and functions that use functions


class Unwritten:
    """The tensors of some values, as they are now: those in lists, dicts and modules too, and those that functions use.

    Args:
        values: what may hold tensors.
    """

    __slots__ = ("_tensors", "_versions")

    def __init__(self, values: Iterable[Any]) -> None:
        self._tensors = [tensor for value in values for tensor in _tensors_in(value)]
        self._versions = versions_of(self._tensors)

    def __bool__(self) -> bool:
        return bool(self._tensors)

    def __call__(self) -> bool:
        """Whether none of them was written to since."""
        return versions_of(self._tensors) == self._versions


def _tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth == _DEEPEST:
        return
    elif isinstance(value, nn.Module):
        yield from value.state_dict(keep_vars=True).values()
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(part, depth + 1)
    elif inspect.isfunction(value):
        used = inspect.getclosurevars(value)
        for part in used.nonlocals.values():
            yield from _tensors_in(part, depth + 1)
        yield from (part for part in used.globals.values() if isinstance(part, Tensor))
