"""One checker for each kind of argument; each gives the value back as a plain number of Python's."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np

from .errors import InvalidInputError, shortened

_MOST_ETA = 1e6


def whole(value: Any, name: str, *, least: int, most: int | None = None) -> int:
    """A whole number from `least` to `most`: an int, of numpy too, but no bool and no float.

    Raises:
        InvalidInputError: anything else.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError):
        number = None
    if number is None or number < least or (most is not None and number > most):
        upper = "on" if most is None else f"to {most}"
        raise InvalidInputError(f"got {name}={value!r}, expected a whole number from {least} {upper}")
    return number


def number(value: Any, name: str, expected: str, *, infinite: bool = False, least: float = -math.inf) -> float:
    """A number, finite unless said otherwise and not below `least`: a float or an int, of numpy too, but no bool.

    Raises:
        InvalidInputError: anything else; it names what was `expected`.
    """
    try:
        size = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer that no float holds
        size = math.nan
    if math.isnan(size) or (math.isinf(size) and not infinite) or size < least:
        raise InvalidInputError(f"got {name}={value!r}, expected {expected}")
    return size


def flag(value: Any, name: str, *, none: bool = False) -> bool | None:
    """True or False, of numpy too; None where that is allowed.

    Raises:
        InvalidInputError: anything else.
    """
    if (none and value is None) or isinstance(value, bool | np.bool_):
        return value if value is None else bool(value)
    raise InvalidInputError(f"got {name}={shortened(value)}, expected True or False{', or None' * none}")


def one_of(value: Any, name: str, names: Iterable[str]) -> str:
    """One of a few names.

    Raises:
        InvalidInputError: anything else; it lists them.
    """
    names = tuple(names)
    if not isinstance(value, str) or value not in names:
        listed = ", ".join(map(repr, names[:-1])) + " or " * (len(names) > 1) + repr(names[-1])
        raise InvalidInputError(f"got {name}={shortened(value)}, expected {listed}")
    return value


def check_eta(eta: Any) -> float:
    """`eta=` as a number."""
    expected = f"a number of at least 0 and at most {_MOST_ETA:g} (0: the flow, 1: the reverse SDE)"
    if number(eta, "eta", expected, least=0.0) > _MOST_ETA:
        raise InvalidInputError(f"got eta={eta!r}, expected {expected}")
    return float(eta)
