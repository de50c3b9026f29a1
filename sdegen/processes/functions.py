"""Functions of time as a process has them: any number or tensor goes in, a tensor of its shape and dtype comes out."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, maybe_current_level

from ..core.cache import carries_derivatives
from ..core.errors import InvalidInputError
from ..core.kinds import kind_of, take
from ..core.shapes import as_time

_TENSOR = kind_of(Tensor)
Time = Any  # a number or a tensor of times; a tensor, once it is converted
NAMES = ("alpha", "sigma", "drift_coefficient", "diffusion", "rates", "half_log_snr", "time")  # what is converted


def function_of_time(function: Callable[[Any, Tensor], Any], name: str = "") -> Callable[[Any, Time], Any]:
    """A method f(self, t) written for a tensor t, as one that takes numbers too.

    Times are converted once (a number becomes a float64 tensor) and refused unless finite and at least 0; what comes
    back gets their shape and dtype. `f.unchecked` is without the check, `f.given` the function itself. What
    `time` takes is no time but any number.
    """
    name = name or function.__name__

    def unchecked(self: Any, t: Tensor) -> Any:
        value = function(self, t)
        if isinstance(value, Tensor) and value is not t and value.shape == t.shape and value.dtype == t.dtype:
            return value
        return _all_like(value, t, name)

    @functools.wraps(function)
    def of_time(self: Any, t: Time) -> Any:
        return unchecked(self, process_time(t))

    @functools.wraps(function)
    def of_level(self: Any, half_log_snr: Time) -> Any:
        return unchecked(self, take(as_time(half_log_snr), "half_log_snr", _TENSOR))

    made = of_level if name == "time" else of_time
    made.unchecked, made.given = unchecked, function  # type: ignore[attr-defined]
    return made


def process_time(t: float | Tensor, *, least: float = 0.0, most: float = math.inf) -> Tensor:
    """t as a floating tensor, refused if it is negative, infinite, NaN, above `most` or, but for 0, below `least`.

    Times on a GPU are not waited for.
    """
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.layout is not torch.strided:
        t = as_time(t)
    if not t.is_cpu or not t.numel() or torch.compiler.is_compiling():
        return t
    if maybe_current_level() is not None and is_functorch_wrapped_tensor(t):
        return t
    low, high = torch.aminmax(t.detach() if t.requires_grad else t) if t.ndim else (t, t)
    least_given, most_given = low.item(), high.item()
    if not (least_given >= least or least_given == 0) or not (most_given <= most and most_given < math.inf):  # NaN too
        good = torch.isfinite(t) & ((t >= least) | (t == 0)) & (t <= most)
        worst = float(t.flatten()[~good.flatten()][0])
        limits = f" and at most {most:g}" if most < worst < math.inf else ""
        raise InvalidInputError(
            f"got t = {worst:g}, expected finite times of at least {least if worst > 0 else 0:g}{limits}"
        )
    return t


def _all_like(value: Any, t: Tensor, name: str) -> Any:
    """What a function returned for t, one value or a tuple of them, of t's shape, dtype and device."""
    return tuple([_like(v, t, name) for v in value]) if isinstance(value, tuple) else _like(value, t, name)


def _like(value: Any, t: Tensor, name: str) -> Tensor:
    """What a function returned for t, of t's shape, dtype and device."""
    if isinstance(value, Tensor) and value.shape == t.shape and value.dtype == t.dtype:
        return value.clone() if value is t else value
    try:
        value = torch.as_tensor(value, dtype=t.dtype, device=t.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{name}(t) returned {value!r} ({error}): expected a tensor of t's shape") from error
    if value.ndim and value.shape != t.shape:
        raise InvalidInputError(
            f"{name}(t) has shape {tuple(value.shape)} for t of shape {tuple(t.shape)}: expected one value per time"
        )
    return value.expand(t.shape)


def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """df/dt of an elementwise function, of t's shape; differentiable where t asks for it."""
    keep_graph = carries_derivatives(t) and torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        u = t if keep_graph and t.requires_grad else t.detach().clone().requires_grad_()
        value = f(u)
        if not value.requires_grad:  # a constant
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), u, create_graph=keep_graph, allow_unused=True)
    return torch.zeros_like(t) if slope is None else slope


def check_elementwise(function: Callable[[Tensor], Tensor], name: str, t_min: float, t_max: float) -> None:
    """Raise unless a function of time takes tensors, and values at several times are those at each alone."""
    width = t_max - t_min
    probe = torch.tensor([t_min + width / 3, t_min + width / 2], dtype=torch.float64, device="cpu", requires_grad=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = _like(function(probe), probe, name).detach()
            apart = torch.stack([_like(function(t), t, name) for t in probe]).detach()
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{name}(t) failed on a tensor of two times ({error}): build it of torch functions, elementwise"
        ) from error
    if not torch.allclose(both, apart, rtol=1e-10, atol=0, equal_nan=True):
        raise InvalidInputError(
            f"{name} of two times together is {both.tolist()}, of each alone {apart.tolist()}: expected an elementwise "
            "function"
        )
