"""Exact beliefs, no network: of a Gaussian mixture, and of a finite data set."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.shapes import as_time, check_state, check_time, expand, flat
from ..distributions.mixture import GaussianMixture
from ..processes import SDE
from .base import ScoreModel
from .prediction import Prediction


class MixtureModel(ScoreModel):
    """The exact score of a Gaussian mixture at every time of a process.

    p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I).

    Args:
        mixture: the density of clean data.
        sde: the process.

    Source: a Gaussian mixture is closed under scaling and added Gaussian noise.
    """

    smooth = True

    def __init__(self, mixture: GaussianMixture, sde: SDE) -> None:
        if not isinstance(mixture, GaussianMixture):
            raise InvalidInputError(f"mixture is {mixture!r}: pass a GaussianMixture, then the process")
        std = mixture.covariance.diagonal().mean().sqrt()
        known = {"data_mean": mixture.mean, "data_std": std if std > 0 else None}  # a single point has no scale
        super().__init__(sde, **known, event_shape=(mixture.dim,))
        self.data_covariance = mixture.covariance
        self.mixture = mixture

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        level = self.sde.at(t)
        _, x0, noise = self.mixture.denoise(x, level.alpha, level.sigma)
        return Prediction(x0, noise, self.sde, t)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x) in nats, (B,): the exact density of the noisy marginal at t."""
        t = as_time(t)
        check_time(t, x)
        return self.mixture.denoise(x, self.sde.alpha(t), self.sde.sigma(t))[0]


class EmpiricalModel(ScoreModel):
    """The exact score of a finite data set, p_0 = (1/N) sum_i delta(x - x_i): all that a perfect network could learn.

    E[x0 | x] = sum_i softmax_i(-|x - alpha x_i|^2/(2 sigma^2)) x_i, the softmax in float64 whatever x is.

    Args:
        data: (N, *event).
        sde: the process.

    Source: Karras et al. 2022 (arXiv 2206.00364) appendix B.3.
    """

    samples: Tensor

    smooth = True

    def __init__(self, data: Tensor, sde: SDE) -> None:
        check_state(data, name="data")
        if not len(data):
            raise InvalidInputError("data is empty: an empirical model needs at least one sample")
        mean = data.double().mean(0)
        spread = (data.double() - mean).square().mean().sqrt()
        super().__init__(sde, data_mean=mean, data_std=spread if spread > 0 else None, event_shape=data.shape[1:])
        self.register_buffer("samples", data, persistent=False)

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        check_state(x, event_shape=self.event_shape, finite=False)
        t = as_time(t)
        check_time(t, x)
        level = self.sde.at(t)
        state, data = flat(x).double(), flat(self.samples).double()
        centre = data.mean(0)
        data = data - centre  # small numbers: the squares below are multiplied out
        alpha, sigma = expand(level.alpha, state), expand(level.sigma, state)
        y = state - alpha * centre
        logits = (alpha * (y @ data.T) - alpha**2 * data.square().sum(1) / 2) / sigma**2
        x0 = torch.softmax(logits, 1) @ data
        noise = (y - alpha * x0) / sigma
        x0, noise = ((part.to(x.dtype)).reshape(x.shape) for part in (x0 + centre, noise))
        return Prediction(x0, noise, self.sde, t)
