"""States of other people's objects as JSON and tensors: what state_dict gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..core.errors import InvalidInputError


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON; its tensors go to `tensors`, under names that begin with `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[packed(k, name, tensors), packed(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        parts = [packed(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]
        return {type(value).__name__ if type(value) in (list, tuple) else "tuple": parts}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "item"):  # a number of numpy
        return value.item()
    raise InvalidInputError(f"{name}: got a {type(value).__name__} in a state, expected numbers and tensors")


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner].clone()
    if kind == "dict":
        return {unpacked(k, tensors): unpacked(v, tensors) for k, v in inner}
    if kind == "float":
        return float(inner)
    parts = [unpacked(part, tensors) for part in inner]
    return tuple(parts) if kind == "tuple" else parts
