"""Coefficients of times, remembered: on a fixed grid computed once, all together, as plain floats; at each sample's own
times until another tensor of them comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_MOST = 8192


class Memo:
    """An elementwise function of time, t -> tuple of tensors of t's shape, that answers scalar times with plain floats.

    Scalar times are computed in float64 and remembered; `warm` computes many of them in one call. Plain floats multiply
    tensors on any device without a copy. Times of shape (B,) go to the function as they are, and the last answer is
    remembered for as long as the very same tensor comes (see `Latest`). Times and values that carry gradients are never
    remembered. A value may be a float in all answers.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Any, ...]]) -> None:
        self._function = function
        self._known: dict[float, tuple[float, ...]] = {}
        self._awaited: Tensor | None = None  # times that are to be computed together
        self._latest = Latest()

    def __call__(self, t: Tensor) -> tuple[Any, ...]:
        if not t.ndim and not t.requires_grad:
            return self.of(float(t))
        values = self._latest.of(t)
        if values is None:
            values = self._function(t)
            if not any(carries(v) for v in values):
                self._latest.keep(t, values)
        return values

    def of(self, t: float) -> tuple[Any, ...]:
        """The values at one time."""
        known = self._known.get(t)
        if known is None and self._awaited is not None:
            awaited, self._awaited = self._awaited, None
            self._remember(awaited)
            known = self._known.get(t)
        if known is None:
            values = self._function(torch.tensor(t, dtype=torch.float64))
            if any(carries(v) for v in values):
                return values
            known = tuple(float(v) for v in values)
            self._keep([(t, known)])
        return known

    def warm(self, ts: Tensor) -> None:
        """Compute and remember the values at all of `ts`, once the first of them is asked for."""
        ts = ts.detach().to("cpu", torch.float64)
        self._awaited = ts if self._awaited is None else torch.cat([self._awaited, ts])[-_MOST:]

    def _remember(self, ts: Tensor) -> None:
        values = self._function(ts)
        if any(carries(v) for v in values):
            return
        columns = (v.tolist() if isinstance(v, Tensor) else [v] * len(ts) for v in values)
        self._keep(zip(ts.tolist(), zip(*columns, strict=True), strict=True))

    def clear(self) -> None:
        self._known.clear()
        self._awaited, self._latest = None, Latest()

    def _keep(self, known: Iterable[tuple[float, tuple[float, ...]]]) -> None:
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known.update(known)


class Latest:
    """What was computed from the last tensor that it was asked about: a step's coefficients are wanted by the term, the
    model inside and the prediction, all with the same tensor of times.

    It is the same if it is the same object, not written to since, under the same grad mode.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[Tensor, int, bool, Any] | None = None

    def of(self, t: Tensor) -> Any:
        """What is kept for t, or None."""
        kept = self._kept
        if kept is None or kept[0] is not t or kept[1] != t._version or kept[2] != torch.is_grad_enabled():
            return None
        return kept[3]

    def keep(self, t: Tensor, value: Any) -> None:
        if not carries(t):
            self._kept = (t, t._version, torch.is_grad_enabled(), value)


def carries(value: Any) -> bool:
    """Whether a value belongs to the graph it was made in: it has gradients, or comes from inference mode."""
    return isinstance(value, Tensor) and (value.requires_grad or value.is_inference())
