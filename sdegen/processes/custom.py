"""Processes from a user's own functions: alpha and sigma, or drift and diffusion."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.quadrature import Antiderivative
from ..core.shapes import as_number, as_time
from .base import SDE, derivative


class PathSDE(SDE):
    """Your own process from alpha(t) and sigma(t): drift and diffusion follow by automatic differentiation.

    f = d log(alpha)/dt, g^2 = -2 sigma^2 dlambda/dt.

    Args:
        alpha, sigma: functions of a tensor t, elementwise, made of torch operations; positive on [t_min, t_max], their
            ratio alpha/sigma falling.

    Raises:
        InvalidInputError: they are not positive and finite, not elementwise, not differentiable, or alpha/sigma does
            not fall.
    """

    def __init__(
        self,
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        self._set_range(t_min, t_max)
        self._alpha, self._sigma = _torch_function(alpha, "alpha", self), _torch_function(sigma, "sigma", self)
        self._check_path()
        self._check_slopes()

    def _check_slopes(self) -> None:
        """Raise where automatic differentiation gives no slope, a wrong one, or one that rises."""
        h = 1e-5 * (self.t_max - self.t_min)
        t = torch.linspace(self.t_min + h, self.t_max - h, 129, dtype=torch.float64)
        slopes = []
        for name, function in (("alpha", self._alpha), ("sigma", self._sigma)):
            slope = derivative(lambda u, function=function: torch.log(function(u)), t)
            if not bool(torch.isfinite(slope).all()):
                i = int((~torch.isfinite(slope)).nonzero()[0])
                raise InvalidInputError(
                    f"the derivative of {name}(t) at t = {float(t[i]):g} is {float(slope[i])}: wanted finite"
                )
            secant = (torch.log(function(t + h)) - torch.log(function(t - h))) / (2 * h)
            slack = 1e-2 * (slope.abs() + secant.abs()) + 1e-6 / (self.t_max - self.t_min)
            wrong = (slope - secant).abs() > slack
            if wrong.sum() > len(t) / 2:  # here and there it may: a function is allowed its kinks
                i = int(wrong.nonzero()[0])
                raise InvalidInputError(
                    f"automatic differentiation of log {name}(t) at t = {float(t[i]):g} gives {float(slope[i]):g}, "
                    f"differences of its values {float(secant[i]):g}: build {name} of torch functions, without "
                    "detach, numpy or math"
                )
            slopes.append(slope)
        rises = slopes[0] - slopes[1] > 1e-9 * (slopes[0].abs() + slopes[1].abs())
        if bool(rises.any()):
            i = int(rises.nonzero()[0])
            raise InvalidInputError(
                f"the signal-to-noise ratio alpha/sigma rises at t = {float(t[i]):g}: wanted a forward process, "
                "noisier as t grows (its g^2 would be negative)"
            )

    def alpha(self, t: float | Tensor) -> Tensor:
        return self._alpha(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return self._sigma(as_time(t))


class CoefficientSDE(SDE):
    """Your own process from f(t) and g(t): dx = f(t) x dt + g(t) dw; the marginals follow by quadrature.

    log alpha = int_0^t f,    sigma^2 = alpha^2 (sigma_0^2 + int_0^t g^2/alpha^2), to about 1e-12.

    Args:
        drift, diffusion: the coefficients f and g, functions of a tensor t, elementwise.
        sigma_0: noise already there at t = 0 (0: clean data).
        t_min, t_max: the range; f and g must be finite on (0, t_max).

    Raises:
        InvalidInputError: they are not finite or not of t's shape, g is negative or 0 on a stretch.
    """

    def __init__(
        self,
        drift: Callable[[Tensor], Tensor],
        diffusion: Callable[[Tensor], Tensor],
        *,
        sigma_0: float = 0.0,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        self._set_range(t_min, t_max)
        sigma_0 = as_number(sigma_0, "sigma_0")
        if not 0 <= sigma_0 < math.inf:
            raise InvalidInputError(f"sigma_0={sigma_0}: wanted the noise at t = 0, finite and at least 0")
        self._sigma_0 = sigma_0
        self._f, self._g = _torch_function(drift, "drift", self), _torch_function(diffusion, "diffusion", self)
        t = self._bracket_times()
        for name, value in (("drift", self._f(t)), ("diffusion", self._g(t))):
            bad = ~torch.isfinite(value) | ((value < 0) if name == "diffusion" else False)
            if bool(bad.any()):
                i = int(bad.nonzero()[0])
                wanted = "a finite number" + " of at least 0" * (name == "diffusion")
                raise InvalidInputError(f"{name}({float(t[i]):g}) = {float(value[i]):g}: wanted {wanted}")
        self._log_alpha = Antiderivative(self._f, 0.0, self.t_max, name="drift")
        self._growth = Antiderivative(
            lambda u: self._g(u) ** 2 * torch.exp(-2 * self._log_alpha(u)), 0.0, self.t_max, name="diffusion^2/alpha^2"
        )
        self._check_path()

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(self._log_alpha(as_time(t)))

    def sigma(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        return self.alpha(t) * torch.sqrt(self._sigma_0**2 + self._growth(t))

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        return -torch.log(self._sigma_0**2 + self._growth(as_time(t))) / 2

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return self._f(as_time(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        return self._g(as_time(t))


def _torch_function(f: Callable[[Tensor], Any], name: str, sde: SDE) -> Callable[[Tensor], Tensor]:
    """A user's function of t whose results become tensors of t's shape, and whose failures say what was wanted."""
    if not callable(f):
        raise InvalidInputError(f"{name} is {f!r}: pass a function of a tensor t, such as lambda t: torch.cos(t)")

    def of_time(t: Tensor) -> Tensor:
        value = torch.as_tensor(f(t), dtype=t.dtype, device=t.device)
        if value.shape != t.shape and value.ndim:
            raise InvalidInputError(
                f"{name}(t) has shape {tuple(value.shape)} for t of shape {tuple(t.shape)}: wanted one value per time"
            )
        return value.expand(t.shape)

    width = sde.t_max - sde.t_min
    probe = torch.tensor([sde.t_min + width / 3, sde.t_min + width / 2], dtype=torch.float64, requires_grad=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = of_time(probe).detach()
            apart = torch.stack([of_time(probe[0]), of_time(probe[1])]).detach()
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{name}(t) failed on a tensor of two times ({error}): build it of torch functions, elementwise"
        ) from error
    if not torch.allclose(both, apart, rtol=1e-10, atol=0, equal_nan=True):
        raise InvalidInputError(
            f"{name} of two times together is {both.tolist()}, of each alone {apart.tolist()}: wanted an elementwise "
            "function"
        )
    return of_time
