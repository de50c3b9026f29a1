"""Processes from a user's own functions: alpha and sigma, or drift and diffusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.quadrature import Antiderivative
from ..core.shapes import as_number
from .base import SDE
from .functions import Time, check_elementwise


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

    @checked
    def __init__(
        self,
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        super().__init__(t_min=t_min, t_max=t_max)
        self._alpha, self._sigma = alpha, sigma

    def _facts(self):
        return {"alpha": self._alpha, "sigma": self._sigma, **super()._facts()}

    def alpha(self, t: Time) -> Tensor:
        return self._alpha(t)

    def sigma(self, t: Time) -> Tensor:
        return self._sigma(t)


class CoefficientSDE(SDE, checked=False):
    """Your own process from f(t) and g(t): dx = f(t) x dt + g(t) dw; the marginals follow by quadrature.

    log alpha = int_0^t f,    sigma^2 = alpha^2 (sigma_0^2 + int_0^t g^2/alpha^2), to about 1e-12.

    Args:
        drift, diffusion: the coefficients f and g, functions of a tensor t, elementwise.
        sigma_0: standard deviation of the noise at t = 0 (0: clean data).
        t_min, t_max: the range; f and g must be finite on (0, t_max).

    Raises:
        InvalidInputError: they are not finite or not of t's shape, g is negative or 0 on a stretch.
    """

    @checked
    def __init__(
        self,
        drift: Callable[[Tensor], Tensor],
        diffusion: Callable[[Tensor], Tensor],
        *,
        sigma_0: float = 0.0,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        super().__init__(t_min=t_min, t_max=t_max)
        sigma_0 = as_number(sigma_0, "sigma_0")
        if not 0 <= sigma_0 < 1e100:
            raise InvalidInputError(f"got sigma_0={sigma_0}, expected the noise at t = 0, finite and at least 0")
        self._sigma_0 = sigma_0
        self._f, self._g = drift, diffusion
        check_elementwise(self._f, "drift", t_min, t_max)
        check_elementwise(self._g, "diffusion", t_min, t_max)
        t = self._bracket_times()
        for name, value in (("drift", self.drift_coefficient(t)), ("diffusion", self.diffusion(t))):
            bad = ~torch.isfinite(value) | ((value < 0) if name == "diffusion" else False)
            if bool(bad.any()):
                i = int(bad.nonzero()[0])
                expected = "a finite number" + " of at least 0" * (name == "diffusion")
                raise InvalidInputError(f"{name}({float(t[i]):g}) = {float(value[i]):g}: expected {expected}")
        self._log_alpha = Antiderivative(self.drift_coefficient, 0.0, self.t_max, name="drift")
        self._growth = Antiderivative(
            lambda u: self.diffusion(u) ** 2 * torch.exp(-2 * self._log_alpha(u)),
            0.0,
            self.t_max,
            name="diffusion^2/alpha^2",
        )
        self._check_path()

    def _facts(self):
        return {"drift": self._f, "diffusion": self._g, "sigma_0": self._sigma_0 or None, **super()._facts()}

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Time) -> Tensor:
        return self.alpha(t) * torch.sqrt(self._sigma_0**2 + self._growth(t))

    def half_log_snr(self, t: Time) -> Tensor:
        return -torch.log(self._sigma_0**2 + self._growth(t)) / 2

    def drift_coefficient(self, t: Time) -> Tensor:
        return self._f(t)

    def diffusion(self, t: Time) -> Tensor:
        return self._g(t)
