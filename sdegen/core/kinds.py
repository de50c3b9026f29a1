"""Kinds of arguments, read from annotations: what a function says it takes is checked before it runs.

`checked` knows kinds only (a number, a tensor, a process ...); what a function asks beyond that, such as a range or a
shape, it checks itself. Numbers of numpy, and tensors and arrays of one element, arrive as Python's own.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InvalidInputError, shortened

F = TypeVar("F", bound=Callable[..., Any])

_LARGEST = 2**63 - 1  # whole numbers that tensors hold


class Unfit(Exception):
    """A value of another kind; it may say why."""


@dataclass(frozen=True)
class Kind:
    """One kind of argument.

    Attributes:
        expected: what it is called in messages.
        take: gives a value of this kind as the function gets it, and raises Unfit for any other.
    """

    expected: str
    take: Callable[[Any], Any]


def checked(function: F) -> F:
    """A function or a constructor whose arguments are of the kinds that its annotations say.

    Raises:
        InvalidInputError: an argument of another kind; it names the argument, what it got and what it expected.
    """
    kinds: dict[str, Kind] = {}
    parameters = list(inspect.signature(function).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    places = [p.name for p in named if p.kind is not p.KEYWORD_ONLY]
    defaults = {p.name: p.default for p in named if p.annotation is not p.empty}  # these have a kind

    def kind_for(name: str) -> Kind:
        kinds[name] = kind_of(typing.get_type_hints(function).get(name, Any), name)
        return kinds[name]

    @functools.wraps(function)
    def door(*args: Any, **words: Any) -> Any:
        given, name, value = list(args), "", None
        try:  # one frame for all arguments: every public call comes through here
            for i, (name, value) in enumerate(zip(places, args)):
                if name in defaults and value is not defaults[name]:
                    given[i] = (kinds.get(name) or kind_for(name)).take(value)
            for name, value in words.items():
                if name in defaults and value is not defaults[name]:
                    words[name] = (kinds.get(name) or kind_for(name)).take(value)
        except Unfit as error:
            raise _refused(value, name, kinds[name], error) from None
        return function(*given, **words)

    return door  # type: ignore[return-value]


def take(value: Any, name: str, kind: Kind) -> Any:
    """A value of a kind as it is used.

    Raises:
        InvalidInputError: it is of another kind.
    """
    try:
        return kind.take(value)
    except Unfit as error:
        raise _refused(value, name, kind, error) from None


def _refused(value: Any, name: str, kind: Kind, error: Unfit) -> InvalidInputError:
    why = f" ({error})" if str(error) else ""
    return InvalidInputError(f"got {name}={told(value)}{why}, expected {kind.expected}")


def told(value: Any) -> str:
    """A value for a message: tensors by shape and dtype, all else by its repr, cut where it is long."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    try:
        return shortened(value)
    except Exception:  # a repr of the user's own
        return f"a {type(value).__name__}"


def kind_of(annotation: Any, name: str = "") -> Kind:
    """The kind that an annotation stands for."""
    if annotation is Any or isinstance(annotation, TypeVar):
        return Kind("anything", lambda value: value)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        read = {os.PathLike, torch.device} & {typing.get_origin(a) or a for a in inner}  # these take strings too
        return _any_of([kind_of(a, name) for a in inner if a is not str or not read])
    if origin is tuple:
        return _tuple_of(inner)
    if origin is Callable:
        return _function_of(inner[0])
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return _MAPPING
    if origin in (Iterable, Iterator):
        return _ITERABLE
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return _list_of(kind_of(inner[0]))
    if annotation is int and name == "seed":
        return _SEED
    plain = annotation if origin is None else origin
    return _PLAIN.get(plain) or _instance_of(plain)


def _any_of(kinds: Sequence[Kind]) -> Kind:
    in_order = sorted(kinds, key=lambda kind: kind.expected not in _AS_THEY_ARE)  # a tensor of one number stays one

    def first(value: Any) -> Any:
        if isinstance(value, Tensor) and _TENSOR in kinds:  # no list, even where it is refused as a tensor
            return _TENSOR.take(value)
        why = ""
        for kind in in_order:
            try:
                return kind.take(value)
            except Unfit as error:
                why = why or str(error)
        raise Unfit(why)

    named = list(dict.fromkeys(_short(kind) for kind in kinds if kind is not _NONE))
    if len(named) == 1:  # with its cure
        return Kind(next(kind for kind in kinds if kind is not _NONE).expected, first)
    return Kind(" or ".join([", ".join(named[:-1]), named[-1]]), first)


def _short(kind: Kind) -> str:
    """What a kind is called where several are named: without the cure."""
    return kind.expected.partition(":")[0]


_AS_THEY_ARE = ("a torch.Tensor", "an ndarray")


# ---- plain kinds


def _none(value: Any) -> None:
    if value is not None:
        raise Unfit


def _bool(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise Unfit
    return bool(value)


def _int(value: Any) -> int:
    number = _index(value)
    if abs(number) > _LARGEST:
        raise Unfit("beyond 2^63")
    return number


def _index(value: Any) -> int:
    try:
        if isinstance(value, bool | np.bool_) or (isinstance(value, Tensor | np.ndarray) and value.ndim):
            raise Unfit
        if isinstance(value, Tensor) and value.dtype == torch.bool:
            raise Unfit
        return operator.index(value)
    except (TypeError, RuntimeError):
        raise Unfit from None


def _float(value: Any) -> float:
    one = isinstance(value, Tensor | np.ndarray) and value.ndim == 0 and str(value.dtype) not in ("torch.bool", "bool")
    if not one and (not isinstance(value, Real) or isinstance(value, bool)):
        raise Unfit
    try:
        number = float(value)
    except OverflowError:
        raise Unfit("larger than any floating number") from None
    except (TypeError, ValueError, RuntimeError):
        raise Unfit from None
    if math.isnan(number):
        raise Unfit("NaN is none")
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit
    return value


def _path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise Unfit
    text = os.fspath(value)
    if isinstance(text, bytes) or "\0" in text:
        raise Unfit("no path has a null character" if isinstance(text, str) else "")
    return value


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise Unfit
    if value.layout != torch.strided:
        raise Unfit("sparse: use .to_dense()")
    if value.is_meta:
        raise Unfit("on device 'meta', where tensors hold no numbers")
    if value.is_complex():
        raise Unfit("pass real and imaginary parts as two numbers, torch.view_as_real(...)")
    return value


def _dtype(value: Any) -> torch.dtype:
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise Unfit
    return value


def _device(value: Any) -> torch.device:
    try:
        if not isinstance(value, str | torch.device):
            raise Unfit
        device = torch.device(value)
    except RuntimeError:
        raise Unfit from None
    if device.type == "meta":
        raise Unfit("tensors there hold no numbers")
    count = _count_of(device.type)
    if count == 0 or (device.index or 0) >= count:
        raise Unfit(f"this machine has {count or 'no'} {device.type} device{'s' * (count > 1)}")
    return device


def _count_of(kind: str) -> int:
    """How many devices of a kind this machine has."""
    if kind == "cpu":
        return 1
    module = getattr(torch, kind, None)
    try:
        return int(module.device_count()) if module is not None else 0
    except (AttributeError, RuntimeError):
        return 0


def _iterable(value: Any) -> Any:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes) or getattr(value, "ndim", 1) == 0:
        raise Unfit
    return value


def _module(value: Any) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise Unfit
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Unfit
    return value


_MAPPING = Kind("a dict with names for keys", _mapping)
_NONE = Kind("None", _none)
_ITERABLE = Kind("something to iterate over", _iterable)
_SEED = Kind("an integer", _index)
_TENSOR = Kind("a torch.Tensor", _tensor)
_PLAIN: dict[Any, Kind] = {
    type(None): _NONE,
    bool: Kind("True or False", _bool),
    int: Kind("a whole number", _int),
    float: Kind("a number", _float),
    str: Kind("a string", _str),
    os.PathLike: Kind("a path", _path),
    Tensor: _TENSOR,
    torch.dtype: Kind("a floating dtype such as torch.float32", _dtype),
    torch.device: Kind("a device of this machine such as 'cpu' or 'cuda'", _device),
    Mapping: _MAPPING,
    nn.Module: Kind("a torch.nn.Module", _module),
}


# ---- kinds made of kinds

_PLURAL = {
    "a whole number": "a list of whole numbers",
    "a number": "a list of numbers",
    "a string": "a list of strings",
    "anything": "a list",
}


def _entries(value: Any) -> list[Any]:
    """What a list, a tuple, a range or an array holds."""
    if isinstance(value, Tensor | np.ndarray):
        if not value.ndim:
            raise Unfit
        return list(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise Unfit
    return list(value)


def _list_of(kind: Kind) -> Kind:
    def each(value: Any) -> Any:
        taken = [kind.take(one) for one in _entries(value)]
        return taken if isinstance(value, list) else tuple(taken)

    return Kind(_PLURAL.get(kind.expected, f"a list, each entry {_short(kind)}"), each)


def _tuple_of(inner: tuple[Any, ...]) -> Kind:
    if len(inner) == 2 and inner[1] is ...:
        each = _list_of(kind_of(inner[0]))
        return Kind(each.expected, lambda value: tuple(each.take(value)))
    kinds = [kind_of(one) for one in inner]

    def all_of(value: Any) -> tuple[Any, ...]:
        entries = _entries(value)
        if len(entries) != len(kinds):
            raise Unfit
        return tuple([kind.take(one) for kind, one in zip(kinds, entries, strict=True)])

    return Kind(f"a tuple ({', '.join(kind.expected for kind in kinds)})", all_of)


def _function_of(given: Any) -> Kind:
    """A function that takes so many arguments by place, any number where `given` is `...`."""
    if given is ... or isinstance(given, TypeVar):
        count = None
    else:
        count = len(given)

    def fits(value: Any) -> Any:
        if not callable(value):
            raise Unfit
        if count is not None:
            check_places(value, count)
        return value

    return Kind("a function" if count is None else f"a function of {count} argument{'s' * (count > 1)}", fits)


def check_places(function: Callable[..., Any], count: int, *, named: bool = False) -> None:
    """Raise Unfit where a function cannot be called with so many arguments by place.

    With `named` those that it needs beyond these may come by name.
    """
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(called)
        given = signature.bind_partial(*[None] * count).arguments
    except TypeError:
        raise Unfit(f"it does not take {count} arguments") from None
    except ValueError:  # a function that does not say what it takes
        return
    by_place = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not named and any(p.default is p.empty and p.name not in given for p in by_place):
        raise Unfit(f"it takes more than {count} arguments")


def takes(function: Any, count: int) -> bool:
    """Whether something can be called with so many arguments by place."""
    try:
        check_places(function, count)
    except Unfit:
        return False
    return callable(function) and not isinstance(getattr(function, "__self__", None), Tensor)


def _instance_of(cls: type) -> Kind:
    """An object of a class; `_expected` of the class says how to come by one."""

    def is_one(value: Any) -> Any:
        if not isinstance(value, cls):
            raise Unfit("a class: make an object of it" if inspect.isclass(value) and issubclass(value, cls) else "")
        return value

    article = "an" if cls.__name__[0] in "AEIO" or cls is np.ndarray else "a"
    return Kind(getattr(cls, "_expected", f"{article} {cls.__name__}"), is_one)
