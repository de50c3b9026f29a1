"""Functions that a run is made with, told in words and by their code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from ..core.errors import shortened

_PLAIN = (int, float, complex, str, bytes, type(None))


def in_words(function: Callable[..., Any]) -> str:
    """A function by its name, with the arguments that functools.partial gives it and that are not its defaults."""
    if not isinstance(function, functools.partial):
        module = getattr(function, "__module__", None) or type(function).__module__
        return f"{module}.{getattr(function, '__qualname__', None) or type(function).__qualname__}"
    defaults = _defaults(function.func)
    given = [value_in_words(value) for value in function.args]
    given += [
        f"{name}={value_in_words(value)}"
        for name, value in sorted(function.keywords.items())
        if not (name in defaults and value_in_words(defaults[name]) == value_in_words(value))
    ]
    name = in_words(function.func)
    return f"{name}({', '.join(given)})" if given else name


def value_in_words(value: Any) -> str:
    """An argument: a number as it is, a tensor by its shape and a hash, anything else by its name."""
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}-{blake2b(bytes_of(value), digest_size=8).hexdigest()}"
    if isinstance(value, tuple):
        return f"({', '.join(map(value_in_words, value))})"
    if isinstance(value, int | float | str | bool | None):
        return shortened(value)
    return in_words(value) if callable(value) else type(value).__name__


def bytes_of(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def hash_of_code(function: Any) -> str:
    """A hash of what a function does, as far as Python shows it: its code, and the numbers and functions it refers to.

    "" for what is installed: versions say what that does.
    """
    parts = sorted(_parts(function, set()))
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest() if parts else ""


def _parts(thing: Any, seen: set[int]) -> Iterator[str]:
    """What a function, a partial or an object that can be called is made of."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, functools.partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _parts(part, seen)
    elif inspect.ismethod(thing):
        yield from _parts(thing.__func__, seen)
        yield from _numbers(getattr(thing.__self__, "__dict__", {}))
    elif inspect.isfunction(thing):
        if not _installed(thing):
            yield from _code(thing.__code__)
            seen_by_it = _seen_by(thing)
            yield from _numbers(seen_by_it)
            for value in seen_by_it.values():
                yield from _parts(value, seen) if inspect.isfunction(value) else ()
    elif callable(thing) and not isinstance(thing, type) and inspect.isfunction(call := type(thing).__call__):
        yield from _parts(call, seen)
        yield from _numbers(getattr(thing, "__dict__", {}))


def _installed(function: Any) -> bool:
    own = str(function.__module__).partition(".")[0] == __name__.partition(".")[0]
    return own or "site-packages" in function.__code__.co_filename


def _numbers(named: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name}={value!r}" for name, value in named.items() if isinstance(value, _PLAIN))


def _code(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _seen_by(function: Any) -> dict[str, Any]:
    """What a function sees beside its arguments: globals, variables around it, and defaults."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # of a variable that has no value yet
            found[name] = cell.cell_contents
    return found | _defaults(function)


def _defaults(function: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}
