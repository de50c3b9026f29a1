"""What tells a model from another one: its numbers, and what it is wrapped in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..processes import SDE
from .base import OnPath, ScoreModel, Wrapped
from .networks import plain_names

_ODD = -7046029254386353131  # 2^64 divided by the golden ratio, as a signed number
_PIECE = 1 << 22  # numbers at a time


def checksum(x: Tensor) -> str:
    """Shape and bits of a tensor as a word: the same on every device, in every dtype that holds the same numbers.

    sum_i m_i (2i + 1) c mod 2^64, m the bits of the number in float64, the upper half of them also mixed into the
    lower, c odd: no change of one number goes unseen.
    """
    x, shape = x.detach(), "x".join(map(str, x.shape))
    x = (torch.view_as_real(x) if x.is_complex() else x).reshape(-1)
    total = 0
    for start in range(0, x.numel(), _PIECE):
        piece = x[start : start + _PIECE]
        bits = piece.double().view(torch.int64) if piece.is_floating_point() else piece.long()
        places = torch.arange(start, start + len(bits), device=x.device) * 2 + 1
        total += int(((bits ^ (bits >> 32 & 0xFFFFFFFF)) * places * _ODD).sum())
    return f"{shape}:{total % 2**64:016x}"


def weights_of(model: ScoreModel) -> dict[str, str]:
    """The checksums of parameters, buffers, mean and standard deviation of the model inside all wrappers, by name."""
    inner = unwrapped(model)
    named = dict([*inner.named_parameters(), *inner.named_buffers()])
    named.pop("known_covariance", None)  # no solver's coordinates depend on it
    plain = plain_names(inner, named)
    tensors = {plain[name]: value for name, value in named.items()}
    for name, value in _public(inner):
        if not isinstance(value, nn.Module | SDE) and hasattr(value, "__dict__"):  # such as a mixture
            tensors |= {f"{name}.{n}": v for n, v in vars(value).items() if isinstance(v, Tensor)}
    return {name: checksum(value) for name, value in sorted(tensors.items())}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which weights have other checksums than before, in words; "" if none."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return f"whose weights are others: {', '.join(names[:3])}{more}" if names else ""


def unwrapped(model: ScoreModel) -> ScoreModel:
    """The model inside all wrappers."""
    while isinstance(model, Wrapped):
        model = model.model
    return model


def wrappers_of(model: ScoreModel) -> list[dict[str, Any]]:
    """What a model is wrapped in, the outermost first, in words and numbers: guidance with its scale, say.

    Another process is not among them: beliefs at equal sigma/alpha are the same. Nor is a wrapper without a `forward`
    of its own, which changes nothing unless it says so.

    Raises:
        InvalidInputError: a wrapper that holds functions or objects, which cannot be told from others.
    """
    found = []
    while isinstance(model, Wrapped):
        bare = type(model).forward is Wrapped.forward and not model._changed_facts
        if not bare and (type(model) is not OnPath or model.centre is not None):
            parts = [(name, p) for name, p in model.named_children() if name != "model" and isinstance(p, ScoreModel)]
            others = {name: weights_of(part) for name, part in parts}
            own = {name: _plain(value, name, model) for name, value in _public(model)}
            found.append({"class": type(model).__qualname__, **own, **others})
        model = model.model
    return found


def _public(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, v) for name, v in vars(module).items() if not name.startswith("_") and name != "training"]


def _plain(value: Any, name: str, model: ScoreModel) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return checksum(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, name, model) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_plain(inner, name, model) for inner in value]
    raise InvalidInputError(
        f"{name} of {type(model).__name__} is {type(value).__name__}, which cannot be told from another one: expected "
        "numbers, words and tensors, such as Guided(model, 2.0, null=...)"
    )
