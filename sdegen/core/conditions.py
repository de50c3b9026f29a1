"""Conditions of a network, by name: tensors are per sample, also inside dicts and tuples; anything else is shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .errors import InvalidInputError


def rows_of(cond: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The conditions of the samples at positions `rows`."""
    return {name: _rows(value, rows) for name, value in cond.items()}


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, Mapping):
        return {key: _rows(inner, rows) for key, inner in value.items()}
    if isinstance(value, tuple):
        parts = [_rows(inner, rows) for inner in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def tensors_of(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a condition, with the words that name it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_of(inner, f"{name}[{key!r}]")
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            yield from tensors_of(inner, f"{name}[{i}]")


def check_rows(name: str, value: Any, batch: int) -> None:
    """Raise unless every tensor in a condition has a row for each sample, and lists hold nothing per sample."""
    for words, tensor in tensors_of(value, repr(name)):
        if tensor.ndim == 0 or tensor.shape[0] != batch:
            raise InvalidInputError(
                f"condition {words} has shape {tuple(tensor.shape)} for {batch} samples: tensors are per sample, "
                f"({batch}, ...); pass a Python number for a value that all share"
            )
    if isinstance(value, list | range):
        raise InvalidInputError(
            f"condition {name!r} is a {type(value).__name__}: pass a tensor with a row for each sample, such as "
            "torch.tensor(values), or a tuple for a value that all share"
        )
