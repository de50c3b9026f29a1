"""Processes that leave the data as they are and add noise: alpha = 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import as_number
from .base import SDE
from .functions import Time


class VarianceExploding(SDE, checked=False):
    """alpha = 1, f = 0, g^2 = d(sigma^2)/dt."""

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(t)

    def drift_coefficient(self, t: Time) -> Tensor:
        return torch.zeros_like(t)


class VESDE(VarianceExploding, checked=False):
    """Variance exploding: f = 0, sigma = sigma_min (sigma_max/sigma_min)^t, g^2 = 2 sigma^2 log(sigma_max/sigma_min).

    sigma(0) is sigma_min, not 0: the perturbation kernel has that much noise at t = 0 already, while the SDE started
    from clean data has sigma_min^2 less variance at every t. Start simulated paths with `perturb`.

    Args:
        sigma_min, sigma_max: noise at t = 0 and t = 1, in the data's units.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 9 and appendix C.
    """

    @checked
    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        self.sigma_min, self.sigma_max = check_sigmas(sigma_min, sigma_max)
        self._log_ratio = math.log(self.sigma_max / self.sigma_min)
        super().__init__(t_min=t_min, t_max=t_max)
        self.config = {
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "t_min": self.t_min,
            "t_max": self.t_max,
        }

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * t)

    def diffusion(self, t: Time) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time(self, half_log_snr: Time) -> Tensor:
        return (-half_log_snr - math.log(self.sigma_min)) / self._log_ratio


class EDMSDE(VarianceExploding, checked=False):
    """Time is the noise level: alpha = 1, sigma = t, g^2 = 2t, on [sigma_min, sigma_max].

    Euler's method along it is DDIM.

    Args:
        sigma_min, sigma_max: the range of times, in the data's units.

    Source: Karras et al. 2022 (arXiv 2206.00364) table 1.
    """

    @checked
    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        t_min, t_max = check_sigmas(sigma_min, sigma_max)
        super().__init__(t_min=t_min, t_max=t_max)
        self.config = {"sigma_min": self.t_min, "sigma_max": self.t_max}

    def sigma(self, t: Time) -> Tensor:
        return t * 1.0

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(2 * t)

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, half_log_snr: Time) -> Tensor:
        return torch.exp(-half_log_snr)


def check_sigmas(sigma_min: float, sigma_max: float, *, endless: bool = False) -> tuple[float, float]:
    sigma_min, sigma_max = as_number(sigma_min, "sigma_min"), as_number(sigma_max, "sigma_max")
    if not 0 < sigma_min < sigma_max or (sigma_max == math.inf and not endless):
        raise InvalidInputError(
            f"got sigma_min={sigma_min}, sigma_max={sigma_max}, expected 0 < sigma_min < sigma_max, both finite"
        )
    return sigma_min, sigma_max
