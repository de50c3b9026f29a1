"""Processes that turn data into noise along a line or a circle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import as_number
from .base import SDE
from .exploding import check_sigmas
from .functions import Time
from .level import in_tensors


class LinearPathSDE(SDE, checked=False):
    """The straight path between data and noise: alpha = 1 - t, sigma = t (rectified flow, flow matching).

    f = -1/(1 - t) is infinite at t = 1, so t_max stops short of it. The flow's velocity is noise - x0, finite even
    there: flow-matching checkpoints start at t_max = 1, as flow solvers can (alpha is 0 and half_log_snr -inf there).

    Args:
        t_min, t_max: the range of times used, t_max <= 1.

    Source: Liu et al. 2022 (arXiv 2209.03003); Lipman et al. 2022 (arXiv 2210.02747).
    """

    @checked
    def __init__(self, *, t_min: float = 1e-3, t_max: float = 0.999) -> None:
        if not as_number(t_max, "t_max") <= 1:
            raise InvalidInputError(
                f"t_max={t_max}: alpha = 1 - t is negative after t = 1, use t_max <= 1 such as 0.999"
            )
        super().__init__(t_min=t_min, t_max=t_max)
        self.config = {"t_min": self.t_min, "t_max": self.t_max}

    def alpha(self, t: Time) -> Tensor:
        return 1 - t

    def sigma(self, t: Time) -> Tensor:
        return t * 1.0

    def drift_coefficient(self, t: Time) -> Tensor:
        return -1 / (1 - t)

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(2 * t / (1 - t))

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, half_log_snr: Time) -> Tensor:
        return torch.sigmoid(-half_log_snr)


class TrigSDE(SDE, checked=False):
    """The circular path: alpha = cos t, sigma = s sin t, f = -tan t, g^2 = 2 s^2 tan t, s = sigma_data.

    Along it the probability flow is dx/dt = -s F(x/s, t), F the raw network of Karras' parametrisation. Centred
    Gaussian data of standard deviation s have the velocity 0, so any Runge-Kutta or Adams method is exact for them.
    Its time is bounded: t = atan((sigma/alpha)/s).

    Args:
        sigma_data: s, the data's standard deviation.
        sigma_min, sigma_max: the range of sigma/alpha, in the data's units; it sets t_min and t_max. sigma_max may be
            infinite: t_max = pi/2, where alpha is 0.

    Source: Salimans & Ho 2022 (arXiv 2202.00512) for s = 1; Lu & Song 2024 (arXiv 2410.11081) "TrigFlow".
    """

    @checked
    def __init__(self, sigma_data: float, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        sigma_data = as_number(sigma_data, "sigma_data")
        if not 0 < sigma_data < math.inf:
            raise InvalidInputError(
                f"got sigma_data={sigma_data}, expected the data's standard deviation, positive and finite"
            )
        self.sigma_data = self.data_scale = sigma_data
        low, high = check_sigmas(sigma_min, sigma_max, endless=True)
        super().__init__(t_min=math.atan(low / sigma_data), t_max=math.atan(high / sigma_data))
        self.config = {"sigma_data": self.sigma_data, "sigma_min": low, "sigma_max": high}

    def alpha(self, t: Time) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_data * torch.sin(t)

    def drift_coefficient(self, t: Time) -> Tensor:
        return -torch.tan(t)

    def diffusion(self, t: Time) -> Tensor:
        return self.sigma_data * torch.sqrt(2 * torch.tan(t))

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        at = in_tensors(self, t)
        return at.sigma * (-1 / self.sigma_data), self.sigma_data * at.alpha

    def half_log_snr(self, t: Time) -> Tensor:
        return -torch.log(self.sigma_data * torch.tan(t))

    def time(self, half_log_snr: Time) -> Tensor:
        return torch.atan(torch.exp(-half_log_snr) / self.sigma_data)
