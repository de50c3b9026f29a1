"""Processes given by a rate of noising beta: variance preserving, sub-VP, cosine."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import as_number
from .base import SDE
from .functions import Time, function_of_time
from .level import Level, in_tensors
from .rates import CosineRate, LinearRate, Rate


class FromRate(SDE, checked=False):
    """Processes given by I(t) = int_0^t beta: alpha = exp(-I/2), f = -beta/2."""

    _rate: Rate

    def __init__(self, rate: Rate, *, t_min: float, t_max: float) -> None:
        super().__init__(t_min=t_min, t_max=t_max)
        self._rate = rate

    @function_of_time
    def beta(self, t: Time) -> Tensor:
        """The rate of noising."""
        return self._rate.beta(t)

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(self._rate.integral(t) * -0.5)

    def drift_coefficient(self, t: Time) -> Tensor:
        return -self._rate.beta(t) / 2


class VariancePreserving(FromRate, checked=False):
    """alpha^2 + sigma^2 = 1, g^2 = beta; lambda = -log(e^I - 1)/2, I = log(1 + e^(-2 lambda)), without cancellation."""

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._rate.integral(t)))

    def diffusion(self, t: Time) -> Tensor:
        return self._rate.beta(t).sqrt()

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        at = in_tensors(self, t)
        half = self._rate.beta(at.t) * at.alpha / 2
        return -half, half * at.alpha / at.sigma

    def half_log_snr(self, t: Time) -> Tensor:
        integral = self._rate.integral(t)
        return -(integral + torch.log(-torch.expm1(-integral))) / 2

    def time(self, half_log_snr: Time) -> Tensor:
        return self._rate.time(torch.nn.functional.softplus(-2 * half_log_snr, threshold=700))

    def at_ratio(self, ratio: Tensor) -> Level:
        square = ratio.square()
        t = self._rate.time(torch.log1p(square)).clamp(self.t_min, self.t_max)
        known = {"alpha": (square + 1).rsqrt(), "sigma": (square.reciprocal() + 1).rsqrt()}
        level = Level(self, t, **known)
        self._cached.keep(t, level)
        return level


class VPSDE(VariancePreserving, checked=False):
    """Variance preserving: f = -beta/2, g^2 = beta, alpha^2 + sigma^2 = 1, beta linear in t.

    alpha = exp(-I/2), I = beta_min t + (beta_max - beta_min) t^2/2.

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1 (per unit of time).
        t_min, t_max: the range of times used.

    Raises:
        InvalidInputError: unless 0 <= beta_min < beta_max and 0 < t_min < t_max.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 11; Ho et al. 2020 in the limit of many steps.
    """

    @checked
    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        rate = LinearRate(beta_min, beta_max)
        self.beta_min, self.beta_max = rate.beta_min, rate.beta_max
        super().__init__(rate, t_min=t_min, t_max=t_max)
        self.config = {"beta_min": self.beta_min, "beta_max": self.beta_max, "t_min": self.t_min, "t_max": self.t_max}


class SubVPSDE(FromRate, checked=False):
    """Sub-VP: f = -beta/2, g^2 = beta (1 - exp(-2 I)), beta linear in t, I its integral from 0 to t as in `VPSDE`.

    alpha = exp(-I/2), as VP's, and sigma = 1 - alpha^2, below VP's.

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1 (per unit of time).
        t_min, t_max: the range of times used.

    Raises:
        InvalidInputError: unless 0 <= beta_min < beta_max and 0 < t_min < t_max.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 12 and appendix B.
    """

    @checked
    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        rate = LinearRate(beta_min, beta_max)
        self.beta_min, self.beta_max = rate.beta_min, rate.beta_max
        super().__init__(rate, t_min=t_min, t_max=t_max)
        self.config = {"beta_min": self.beta_min, "beta_max": self.beta_max, "t_min": self.t_min, "t_max": self.t_max}

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self._rate.integral(t))

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(self._rate.beta(t) * -torch.expm1(-2 * self._rate.integral(t)))

    def time(self, half_log_snr: Time) -> Tensor:
        # e^lambda = alpha/(1 - alpha^2): with u = e^(-lambda), alpha = 2/(u + sqrt(u^2 + 4))
        u = torch.exp(-half_log_snr)
        return self._rate.time(2 * torch.asinh(u / 2))


class CosineSDE(VariancePreserving, checked=False):
    """The cosine schedule as a VP process: alpha = cos(phi)/cos(phi_0), phi = (pi/2)(t + s)/(1 + s).

    beta = pi/(1 + s) tan(phi) is infinite at t = 1, so t_max stops short of it.

    Args:
        s: the offset that keeps beta small near 0.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 17; the range as in Lu et al. 2022 (arXiv 2206.00927)
    appendix D.
    """

    @checked
    def __init__(self, s: float = 0.008, *, t_min: float = 1e-3, t_max: float = 0.9946) -> None:
        rate = CosineRate(s)
        if not as_number(t_max, "t_max") < 1:
            raise InvalidInputError(
                f"t_max={t_max}: the cosine schedule's beta is infinite at t = 1, use t_max < 1 such as 0.9946"
            )
        self.s = rate.s
        super().__init__(rate, t_min=t_min, t_max=t_max)
        self.config = {"s": self.s, "t_min": self.t_min, "t_max": self.t_max}
