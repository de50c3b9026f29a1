"""Exact beliefs, no network: of a Gaussian mixture, and of a finite data set."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InvalidInputError
from .mixture import GaussianMixture
from .model import ScoreModel
from .prediction import Prediction
from .sde import SDE
from .shapes import as_time, check_state, check_time, expand, flat


class MixtureModel(ScoreModel):
    """The exact score of a Gaussian mixture at every time of a process.

    p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I).

    Args:
        mixture: the density of clean data.
        sde: the process.

    Source: systems of this kind are standard; see Karras et al. 2022 (arXiv 2206.00364) appendix B.3 for the delta case.
    """

    def __init__(self, mixture: GaussianMixture, sde: SDE) -> None:
        std = mixture.covariance.diagonal().mean().sqrt()
        super().__init__(sde, data_mean=mixture.mean, data_std=std, event_shape=(mixture.dim,))
        self.mixture = mixture

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        alpha, sigma = self.sde.level(t)[:2]
        _, x0, noise = self.mixture.denoise(x / expand(alpha, x), sigma / alpha)
        return Prediction(x0, noise, self.sde, t)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x) in nats, (B,): the exact density of the noisy marginal at t."""
        t = as_time(t)
        check_time(t, x)
        alpha = self.sde.alpha(t)
        log_p, _, _ = self.mixture.denoise(x / expand(alpha, x), torch.exp(-self.sde.half_log_snr(t)))
        return log_p - self.mixture.dim * torch.log(alpha).to(x)


class EmpiricalModel(ScoreModel):
    """The exact score of a finite data set, p_0 = (1/N) sum_i delta(x - x_i): what a perfect, overfitted network learns.

    E[x0 | x] = sum_i softmax_i(-|x/alpha - x_i|^2 / (2 sigma^2/alpha^2)) x_i.

    Args:
        data: (N, *event).
        sde: the process.

    Source: Karras et al. 2022 (arXiv 2206.00364) appendix B.3.
    """

    data: Tensor

    def __init__(self, data: Tensor, sde: SDE) -> None:
        check_state(data, name="data")
        if not len(data):
            raise InvalidInputError("data is empty: an empirical model needs at least one sample")
        mean = data.double().mean(0)
        spread = (data.double() - mean).square().mean().sqrt()
        super().__init__(sde, data_mean=mean, data_std=spread if spread > 0 else None, event_shape=data.shape[1:])
        self.register_buffer("data", data, persistent=False)

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        alpha, sigma = self.sde.level(t)[:2]
        xh, data = flat(x / expand(alpha, x)), flat(self.data).to(x)
        sh = expand(sigma / alpha, xh)
        squares = torch.cdist(xh, data, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        x0 = torch.softmax(-squares / (2 * sh**2), 1) @ data
        noise = (xh - x0) / sh
        return Prediction(x0.reshape(x.shape), noise.reshape(x.shape), self.sde, t)
