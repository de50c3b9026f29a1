"""Coefficients of scalar times, remembered: on a fixed grid they are computed once, all together, as plain floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MOST = 8192


class Memo:
    """An elementwise function of time, t -> tuple of tensors of t's shape, that answers scalar times with plain floats.

    Times of shape (B,) and times or values that carry gradients go to the function as they are; other scalar times are
    computed in float64 and remembered. `warm` computes many of them in one call. Plain floats multiply tensors on any
    device without a copy.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self._function = function
        self._known: dict[float, tuple[float, ...]] = {}

    def __call__(self, t: Tensor) -> tuple[Any, ...]:
        if t.ndim or t.requires_grad:
            return self._function(t)
        key = float(t)
        known = self._known.get(key)
        if known is None:
            values = self._function(torch.tensor(key, dtype=torch.float64))
            if any(v.requires_grad for v in values):
                return self._function(t)
            known = tuple(float(v) for v in values)
            self._keep(key, known)
        return known

    def warm(self, ts: Tensor) -> None:
        """Compute and remember the values at all of `ts`."""
        ts = ts.detach().to("cpu", torch.float64)
        values = self._function(ts)
        if any(v.requires_grad for v in values):
            return
        for key, known in zip(ts.tolist(), zip(*(v.tolist() for v in values), strict=True), strict=True):
            self._keep(key, known)

    def clear(self) -> None:
        self._known.clear()

    def _keep(self, key: float, values: tuple[float, ...]) -> None:
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = values
