"""The only place that broadcasts times over samples.

Everywhere x has shape (B, *event) and t is a scalar or (B,). A coefficient computed from t keeps t's shape;
`expand` lets it multiply x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidInputError
from .kinds import told


def as_time(t: float | Tensor) -> Tensor:
    """t as a floating tensor: numbers and integer tensors become float64, floating tensors stay as they are.

    Raises:
        InvalidInputError: t is no number.
    """
    if isinstance(t, Tensor):
        if t.layout is not torch.strided:
            t = t.to_dense()
        if t.is_floating_point():
            return t
        if not t.is_complex():
            return t.to(torch.float64)
    try:
        if isinstance(t, bool | str | Tensor):
            raise TypeError
        return torch.as_tensor(t, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        kind = f"a tensor of dtype {t.dtype}" if isinstance(t, Tensor) else repr(t)
        raise InvalidInputError(f"t is {kind}: expected a real number or a tensor of them") from None


def as_number(value: Any, name: str) -> float:
    """An argument that must be one number, as a float."""
    try:
        if isinstance(value, bool | str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InvalidInputError(f"got {name}={value!r}, expected a number") from None


def expand(coefficient: Any, x: Tensor) -> Any:
    """A coefficient, a number or of shape () or (B,), shaped and typed to multiply x of shape (B, *event).

    Numbers and zero-dimensional tensors stay as they are: they do not change x's dtype, and on the CPU they multiply
    tensors on any device without a copy.
    """
    if not isinstance(coefficient, Tensor) or coefficient.ndim == 0:
        return coefficient
    return coefficient.to(device=x.device, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


SMALL_EVENT = 64  # numbers; below, broadcasting over an event's axis is several times slower than over the batch's


def factor(coefficient: Any, x: Tensor) -> Any:
    """The same, and a zero-dimensional tensor without gradients as a float: what `plus` takes in its one operation."""
    if isinstance(coefficient, Tensor) and coefficient.ndim == 0 and not coefficient.requires_grad:
        return float(coefficient)
    return expand(coefficient, x)


def plus(x: Tensor, c: Any, v: Tensor) -> Tensor:
    """x + c v in one operation, c a number or shaped to multiply v: see `factor`."""
    return torch.addcmul(x, c, v) if isinstance(c, Tensor) else torch.add(x, v, alpha=c)


ZERO = torch.zeros((), device="cpu")
_LARGEST = 6e4  # of half precision


def scaled(c: Any, v: Tensor) -> Tensor:
    """c v, c as in `plus`. (0 + c v takes a number without making a tensor of it first: less time than c * v, but an
    error where the number is too large for v's dtype.)"""
    return c * v if isinstance(c, Tensor) or abs(c) > _LARGEST else torch.add(ZERO, v, alpha=c)


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """t as a (B,) tensor of x's dtype and device: what a network is called with."""
    return t.to(device=x.device, dtype=x.dtype).expand(x.shape[0])


def check_time(t: Tensor, x: Tensor) -> None:
    """Raise unless x is a batch and t a scalar or one time per sample of it."""
    if not isinstance(x, Tensor) or x.ndim == 0 or not x.is_floating_point():
        check_state(x, finite=False)
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
        raise InvalidInputError(
            f"t has shape {tuple(t.shape)}, but x has {x.shape[0]} samples: pass a scalar or a tensor of shape "
            f"({x.shape[0]},)"
        )


def time_of(t: float | Tensor, x: Tensor) -> Tensor:
    """t as a floating tensor (`as_time`), once it is known to fit the batch x (`check_time`)."""
    if not isinstance(t, Tensor) or t.dtype is not torch.float64 or t.layout is not torch.strided:
        t = as_time(t)
    if t.ndim or not isinstance(x, Tensor) or x.ndim == 0 or not x.is_floating_point():
        check_time(t, x)
    return t


def check_state(x: Tensor, *, name: str = "x", event_shape: Sequence[int] | None = None, finite: bool = True) -> None:
    """Raise unless x is a floating, finite tensor (B, *event) of the expected event shape."""
    if not isinstance(x, Tensor):
        raise InvalidInputError(f"got {name}={told(x)}, expected a torch.Tensor of shape (B, *event)")
    if x.layout is not torch.strided or (finite and x.is_meta):
        kind = "on device 'meta', which holds no numbers" if x.is_meta else f"sparse: use {name}.to_dense()"
        raise InvalidInputError(f"{name} is {kind}")
    if x.ndim == 0:
        raise InvalidInputError(f"{name} has no batch axis: its shape is (), expected (B, *event); use {name}[None]")
    if not x.is_floating_point():
        raise InvalidInputError(f"{name} has dtype {x.dtype}, expected a floating one: {_to_floating(x, name)}")
    if event_shape is not None and tuple(x.shape[1:]) != tuple(event_shape):
        raise InvalidInputError(
            f"{name} has event shape {tuple(x.shape[1:])}, but the model works on {tuple(event_shape)}: "
            f"expected {name} of shape (B, {', '.join(map(str, event_shape))})"
        )
    if finite and x.numel() and not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).reshape(x.shape[0], -1).any(1).nonzero().flatten()
        raise InvalidInputError(
            f"{name} holds NaN or infinity in {len(bad)} samples ({numbers(bad)}): clean the data first"
        )


def _to_floating(x: Tensor, name: str) -> str:
    """What to do with numbers that are not floating: pixels are scaled, not only converted."""
    if x.is_complex():
        return f"pass real and imaginary parts as two numbers, torch.view_as_real({name})"
    if x.dtype == torch.bool:
        return f"masks are scaled to [-1, 1] as 2.0 * {name} - 1"
    if x.dtype == torch.uint8:
        return f"pictures are scaled to [-1, 1] as {name} / 127.5 - 1, and sdegen.data.load_images({name}) does that"
    return (
        f"pixels 0, 1, ..., L - 1 are scaled to [-1, 1] as 2 * {name} / (L - 1) - 1, and "
        f"sdegen.data.load_images({name}, levels=L) does that; other numbers are converted with {name}.double()"
    )


MOST_NUMBERS = 2**40  # of a state; as float32 four TiB


def check_size(shape: Sequence[int]) -> None:
    """Raise where no memory holds a state of this shape."""
    if math.prod(shape) > MOST_NUMBERS:
        raise InvalidInputError(f"shape={tuple(shape)}: more numbers than memory holds")


def numbers(index: Tensor, most: int = 8) -> str:
    """Sample numbers for a message, shortened: '0, 3, 7, ...'."""
    head = ", ".join(str(int(i)) for i in index[:most])
    return head + (", ..." if len(index) > most else "")


def flat(x: Tensor) -> Tensor:
    """x as (B, d), also when the event is a scalar or the batch is empty."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def finite_rows(x: Tensor) -> Tensor:
    """(B,) which samples are finite."""
    return torch.isfinite(flat(x.detach()).sum(1))


def all_finite(x: Tensor) -> bool:
    """Whether all of a tensor on the CPU is finite, by its sum: the cheapest look at a whole batch there is. False also
    where only the sum is not, and on other devices, which are not waited for."""
    return x.is_cpu and math.isfinite(x.detach().sum().item())


def event_mean(x: Tensor) -> Tensor:
    """Mean over the event: (B, *event) -> (B,)."""
    return flat(x).mean(1)


def event_sum(x: Tensor) -> Tensor:
    """Sum over the event: (B, *event) -> (B,)."""
    return flat(x).sum(1)
