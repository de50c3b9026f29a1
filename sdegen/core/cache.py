"""Functions of time that remember their answers.

A solve asks for the same few coefficients again and again, at the times of a grid that all samples share or at each
sample's own times. Two rules say what is remembered:

    one number     every answer, as plain floats, up to 8192 times; then all are dropped
    a tensor       the last answer, until another tensor comes or this one is written to

What is made of other things than times, the keys of a batch's noise or the point of a Brownian path, has its last few
answers in a `Recent`. Nothing that carries derivatives, and nothing that was made in inference mode, is remembered.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, maybe_current_level
from torch.autograd import forward_ad

_MOST = 8192

Rows = Callable[[Any, Tensor], Sequence[Any] | None]


def rows_of_columns(columns: tuple[Any, ...], ts: Tensor) -> Sequence[tuple[float, ...]] | None:
    """A tuple of tensors (S,) as S tuples of floats; None if one must not be remembered."""
    lists = []
    for column in columns:
        if must_not_cache(column):
            return None
        lists.append(column.tolist() if isinstance(column, Tensor) else [column] * len(ts))
    return list(zip(*lists, strict=True))


class CachedFunction:
    """An elementwise function of time: floats for one time, tensors of t's shape for a tensor of times.

    One time is computed in float64, as a tensor (1,); `warm` computes many of them in one call. Plain floats multiply
    tensors on any device without a copy. Times that carry derivatives go to the function as they are.

    Args:
        function: what is computed of times (B,), or () where a time carries derivatives; by default a tuple of tensors
            of t's shape (a value may be a float where it is the same at all times).
        rows: (function(ts), ts) -> the S answers at single times, in plain floats; None if they must not be remembered.
    """

    def __init__(self, function: Callable[[Tensor], Any], rows: Rows = rows_of_columns) -> None:
        self._function, self._rows = function, rows
        self._at_number: dict[float, Any] = {}
        self._awaited: Tensor | None = None  # times that are to be computed together
        self._at_tensor = LastAnswer()

    @property
    def used(self) -> bool:
        """Whether any number is remembered."""
        return bool(self._at_number) or self._at_tensor.used

    def __call__(self, t: float | Tensor) -> Any:
        if isinstance(t, Tensor):
            if t.ndim:
                answer = self._at_tensor.of(t)
                return self._of_tensor(t) if answer is None else answer
            if t.requires_grad or (
                (maybe_current_level() is not None or forward_ad._current_level >= 0) and carries_derivatives(t)
            ):
                return self._function(t)
            t = float(t)
        known = self._at_number.get(t)
        return self._of_number(t) if known is None else known

    def warm(self, ts: Tensor) -> None:
        """Compute and remember the answers at all of `ts`, once the first of them is asked for."""
        ts = ts.detach().to("cpu", torch.float64)
        if all(map(self._at_number.__contains__, ts.tolist())):
            return
        self._awaited = ts if self._awaited is None else torch.cat([self._awaited, ts])[-_MOST:]

    def of_several(self, ts: Tensor) -> list[Any]:
        """The answers at each of these times, computed in one go."""
        self.warm(ts)
        times = ts.tolist()
        if self._awaited is not None:
            self(times[0])
        return [self._at_number[t] if t in self._at_number else self(t) for t in times]

    def keep(self, t: Tensor, answer: Any) -> None:
        """Remember an answer at a tensor of times that was found in another way."""
        self._at_tensor.keep(t, answer)

    def clear(self) -> None:
        self._at_number.clear()
        self._awaited, self._at_tensor = None, LastAnswer()

    def _of_tensor(self, t: Tensor) -> Any:
        answer = self._function(t)
        self._at_tensor.keep(t, answer, *(answer if isinstance(answer, tuple) else ()))
        return answer

    def _of_number(self, t: float) -> Any:
        if self._awaited is not None:
            awaited, self._awaited = self._awaited, None
            self._remember(awaited)
            if t in self._at_number:
                return self._at_number[t]
        if self._remember(torch.tensor([t], dtype=torch.float64, device="cpu")):
            return self._at_number[t]
        return self._function(torch.tensor(t, dtype=torch.float64, device="cpu"))

    def _remember(self, ts: Tensor) -> bool:
        rows = self._rows(self._function(ts), ts)
        if rows is None:
            return False
        if len(self._at_number) >= _MOST:
            self._at_number.clear()
        self._at_number.update(zip(ts.tolist(), rows, strict=True))
        return True


class LastAnswer:
    """The answer to the last tensor asked about: the term, the model inside and the prediction of one step ask about
    the same times.

    It is the same tensor if it is the same object, not written to since, under the same grad mode.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[Tensor, int, bool, Any] | None = None

    def __reduce__(self):  # copies and files begin anew
        return type(self), ()

    @property
    def used(self) -> bool:
        """Whether any number is remembered: an answer may compute its own when they are asked for, and says so."""
        return self._kept is not None and getattr(self._kept[3], "used", True)

    def of(self, t: Tensor) -> Any:
        """What is kept for t, or None."""
        kept = self._kept
        if kept is None or kept[0] is not t or kept[1] != t._version or kept[2] != torch.is_grad_enabled():
            return None
        return kept[3]

    def keep(self, t: Tensor, answer: Any, *parts: Any) -> None:
        """Remember an answer, unless t or a part of it must not be."""
        if not must_not_cache(t, *parts):
            self._kept = (t, t._version, torch.is_grad_enabled(), answer)


class Recent:
    """The last few answers, by what was asked.

    Args:
        most: how many.
        same: whether two questions are the same one.
    """

    __slots__ = ("_known", "_most", "_same")

    def __init__(self, most: int, same: Callable[[Any, Any], bool] = operator.eq) -> None:
        self._most, self._same = most, same
        self._known: list[tuple[Any, Any]] = []  # the newest first

    def __reduce__(self):  # copies and files begin anew
        return type(self), (self._most, self._same)

    @property
    def used(self) -> bool:
        """Whether any answer is remembered."""
        return bool(self._known)

    def of(self, asked: Any, answer: Callable[[], Any]) -> Any:
        """The answer that is known, or this one."""
        for known, value in self._known:
            if self._same(known, asked):
                return value
        value = answer()
        self._known = [(asked, value), *self._known[: self._most - 1]]
        return value


def version_of(value: Tensor | None) -> int:
    """How often a tensor was written to; 0 for those of inference mode, which do not count."""
    return 0 if value is None or value.is_inference() else value._version


def versions_of(values: Sequence[Tensor | None]) -> list[int]:
    """The same of several."""
    versions = []
    for value in values:
        versions.append(0 if value is None or value.is_inference() else value._version)
    return versions


def must_not_cache(*values: Any) -> bool:
    """Whether one of these belongs to the computation it was made in: it carries derivatives, or is of inference
    mode."""
    transformed = maybe_current_level() is not None or forward_ad._current_level >= 0
    for value in values:  # a loop: this is asked at every step of every sample
        if isinstance(value, Tensor) and (
            value.requires_grad or value.is_inference() or (transformed and carries_derivatives(value))
        ):
            return True
    return False


def carries_derivatives(value: Tensor) -> bool:
    """Whether a tensor has more to it than its numbers: gradients, a tangent, or the axis of a `torch.func.vmap`."""
    return (
        value.requires_grad
        or (maybe_current_level() is not None and is_functorch_wrapped_tensor(value))
        or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None)
    )
