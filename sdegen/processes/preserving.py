"""Processes given by the integral of a rate beta: variance preserving, sub-VP, cosine."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.shapes import as_number
from .base import SDE
from .functions import Time, function_of_time
from .level import Level, in_tensors


class _FromIntegral(SDE, checked=False):
    """Processes given by I(t) = int_0^t beta: alpha = exp(-I/2), f = -beta/2. Subclasses give I, its inverse, beta."""

    @abstractmethod
    def _integral(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _beta(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_of_integral(self, integral: Tensor) -> Tensor: ...

    @function_of_time
    def beta(self, t: Time) -> Tensor:
        """The rate of noising."""
        return self._beta(t)

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(self._integral(t) * -0.5)

    def drift_coefficient(self, t: Time) -> Tensor:
        return -self.beta(t) / 2


class _VariancePreserving(_FromIntegral, checked=False):
    """alpha^2 + sigma^2 = 1, g^2 = beta; lambda = -log(e^I - 1)/2, I = log(1 + e^(-2 lambda)), without cancellation."""

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def diffusion(self, t: Time) -> Tensor:
        return self.beta(t).sqrt()

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        at = in_tensors(self, t)
        half = self.beta(at.t) * at.alpha / 2
        return -half, half * at.alpha / at.sigma

    def half_log_snr(self, t: Time) -> Tensor:
        integral = self._integral(t)
        return -(integral + torch.log(-torch.expm1(-integral))) / 2

    def time(self, half_log_snr: Time) -> Tensor:
        return self._time_of_integral(torch.nn.functional.softplus(-2 * half_log_snr, threshold=700))

    def at_ratio(self, ratio: Tensor) -> Level:
        square = ratio.square()
        t = self._time_of_integral(torch.log1p(square)).clamp(self.t_min, self.t_max)
        known = {"alpha": (square + 1).rsqrt(), "sigma": (square.reciprocal() + 1).rsqrt()}
        level = Level(self, t, **known)
        self._cached.keep(t, level)
        return level


class _LinearBeta(_FromIntegral, checked=False):
    """beta(t) = beta_min + t (beta_max - beta_min)."""

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        beta_min, beta_max = as_number(beta_min, "beta_min"), as_number(beta_max, "beta_max")
        if not 0 <= beta_min < beta_max < math.inf:
            raise InvalidInputError(
                f"beta_min={beta_min}, beta_max={beta_max}: expected 0 <= beta_min < beta_max, both finite"
            )
        self.beta_min, self.beta_max = beta_min, beta_max
        super().__init__(t_min=t_min, t_max=t_max)
        self.config = {"beta_min": self.beta_min, "beta_max": self.beta_max, "t_min": self.t_min, "t_max": self.t_max}

    def _integral(self, t: Tensor) -> Tensor:
        return t * (t * ((self.beta_max - self.beta_min) / 2) + self.beta_min)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        half, slope = self.beta_min / 2, self.beta_max - self.beta_min
        return integral / ((integral * (slope / 2) + half**2).sqrt() + half)


class VPSDE(_LinearBeta, _VariancePreserving, checked=False):
    """Variance preserving: f = -beta/2, g^2 = beta, alpha^2 + sigma^2 = 1, beta linear in t.

    alpha = exp(-I/2), I = beta_min t + (beta_max - beta_min) t^2/2.

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1 (per unit of time).
        t_min, t_max: the range of times used.

    Raises:
        InvalidInputError: unless 0 <= beta_min < beta_max and 0 < t_min < t_max.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 11; Ho et al. 2020 in the limit of many steps.
    """


class SubVPSDE(_LinearBeta, checked=False):
    """Sub-VP: f = -beta/2, g^2 = beta (1 - exp(-2 I)), so sigma = 1 - alpha^2 with VP's alpha.

    Args, Raises: as VPSDE.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 12 and appendix B.
    """

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(self._beta(t) * -torch.expm1(-2 * self._integral(t)))

    def time(self, half_log_snr: Time) -> Tensor:
        # e^lambda = alpha/(1 - alpha^2): with u = e^(-lambda), alpha = 2/(u + sqrt(u^2 + 4))
        u = torch.exp(-half_log_snr)
        return self._time_of_integral(2 * torch.asinh(u / 2))


class CosineSDE(_VariancePreserving, checked=False):
    """The cosine schedule as a VP process: alpha = cos(phi)/cos(phi_0), phi = (pi/2)(t + s)/(1 + s).

    beta = pi/(1 + s) tan(phi) is infinite at t = 1, so t_max stops short of it.

    Args:
        s: the offset that keeps beta small near 0.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 17; the range as in Lu et al. 2022 (arXiv 2206.00927)
    appendix D.
    """

    def __init__(self, s: float = 0.008, *, t_min: float = 1e-3, t_max: float = 0.9946) -> None:
        s = as_number(s, "s")
        if not 0 < s < math.inf:
            raise InvalidInputError(f"s={s}: expected a positive offset")
        if not as_number(t_max, "t_max") < 1:
            raise InvalidInputError(
                f"t_max={t_max}: the cosine schedule's beta is infinite at t = 1, use t_max < 1 such as 0.9946"
            )
        self.s = s
        super().__init__(t_min=t_min, t_max=t_max)
        self.config = {"s": self.s, "t_min": self.t_min, "t_max": self.t_max}

    @property
    def _phase_0(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    def _integral(self, t: Tensor) -> Tensor:
        # -2 log(cos(phi)/cos(phi_0)) through cos(phi_0) - cos(phi) = 2 sin((phi + phi_0)/2) sin((phi - phi_0)/2)
        step, phi_0 = t * (math.pi / 2 / (1 + self.s)), self._phase_0
        return -2 * torch.log1p(-2 * torch.sin(step / 2 + phi_0) * torch.sin(step / 2) / math.cos(phi_0))

    def _beta(self, t: Tensor) -> Tensor:
        return math.pi / (1 + self.s) * torch.tan((t + self.s) * (math.pi / 2 / (1 + self.s)))

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        # sin(phi - phi_0) = (cos^2(phi_0) - cos^2(phi))/(sin(phi) cos(phi_0) + cos(phi) sin(phi_0)), where
        # cos(phi) = cos(phi_0) alpha: phi itself would cancel against phi_0 near t = 0
        sin_0, cos_0 = math.sin(self._phase_0), math.cos(self._phase_0)
        fallen = -(cos_0**2) * torch.expm1(-integral)
        sin, cos = torch.sqrt(sin_0**2 + fallen), cos_0 * torch.exp(-integral / 2)
        step = torch.atan2(fallen / (sin * cos_0 + cos * sin_0), cos * cos_0 + sin * sin_0)
        return step * (2 * (1 + self.s) / math.pi)
