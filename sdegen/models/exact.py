"""Exact beliefs, no network: of a Gaussian mixture, and of a finite data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.cache import LastAnswer
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import as_time, check_state, check_time, flat
from ..core.show import picture_of
from ..distributions.components import MEMORY, Shared
from ..distributions.mixture import GaussianMixture
from ..processes import SDE
from .base import ScoreModel
from .facts import spread_out, turning_level, turning_of
from .prediction import Prediction


class MixtureModel(ScoreModel):
    """The exact score of a Gaussian mixture at every time of a process.

    p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I); with a condition `label`, the sum over the components of that
    label alone, with their weights normalised.

    Args:
        mixture: the density of clean data.
        sde: the process.
        labels: (K,) whole numbers from 0, what each component is called; every number up to the largest must occur. The
            model then takes `label`, (B,) integers: a label, or -1 for all components. None: it takes no condition.
        memory: bytes that arrays with a number for each pair of sample and component may take; batches that need more
            are computed in chunks.

    Raises:
        InvalidInputError: labels of another shape, not whole, or with gaps; at the call, a label that does not occur.

    Source: a Gaussian mixture is closed under scaling and added Gaussian noise.
    """

    smooth = True
    _fixed = ("mixture",)

    @checked
    def __init__(
        self,
        mixture: GaussianMixture,
        sde: SDE,
        *,
        labels: Sequence[int] | Tensor | None = None,
        memory: int = MEMORY,
    ) -> None:
        std = mixture.covariance.diagonal().mean().sqrt()
        known = {"data_mean": mixture.mean, "data_std": std if std > 0 else None}  # a single point has no scale
        super().__init__(sde, **known, event_shape=(mixture.dim,))
        if labels is None:  # the data of one label have another covariance
            self.data_covariance = mixture.covariance
        else:
            self.data_turn = turning_level(torch.linalg.eigvalsh(mixture.covariance)) or None
        self.mixture, self.memory = mixture, whole(memory, "memory", least=1)
        self._log_weights = None if labels is None else _by_label(mixture, labels)

    def _facts(self):
        labels = None if self._log_weights is None else len(self._log_weights) - 1
        return {"mixture": self.mixture, "sde": self.sde, "labels": labels}

    def _picture(self):
        return self.mixture._picture()

    def forward(self, x: Tensor, t: float | Tensor, label: Tensor | None = None) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        level = self.sde.at(t)
        _, x0, noise = self._denoised(x, level.alpha, level.sigma, label)
        return Prediction(x0, noise, self.sde, t)

    def log_prob(self, x: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        """log p_t(x) in nats, or log p_t(x | label), (B,): the exact density of the noisy marginal at t."""
        t = as_time(t)
        check_time(t, x)
        return self._denoised(x, self.sde.alpha(t), self.sde.sigma(t), label)[0]

    def _denoised(self, x: Tensor, alpha: Any, sigma: Any, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        which = self._picked(label)
        own = None if which is None or self._log_weights is None else self._log_weights.to(x.device)
        return self.mixture.denoise(x, alpha, sigma, own, which=which, memory=self.memory)

    def condition_names(self):
        names = super().condition_names()
        return names - {"label"} if names and self._log_weights is None else names

    def check_conditions(self, cond, batch):
        super().check_conditions(cond, batch)
        if self._log_weights is not None and "label" in cond:
            self._picked(cond["label"])

    def _picked(self, label: Tensor | None) -> Tensor | None:
        """(B,) rows of the log-weights; the last row is that of -1."""
        if label is None:
            return None
        if self._log_weights is None:
            raise InvalidInputError("got label=, but this MixtureModel has no labels: make it with labels=")
        most = len(self._log_weights) - 2
        expected = f"a tensor (B,) of whole numbers from -1 (all) to {most}"
        if not isinstance(label, Tensor) or label.is_floating_point() or label.ndim != 1:
            got = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise InvalidInputError(f"got label={got}, expected {expected}")
        if label.numel() and not -1 <= int(label.min()) <= int(label.max()) <= most:
            raise InvalidInputError(f"got labels from {int(label.min())} to {int(label.max())}, expected {expected}")
        return label.long() % len(self._log_weights)


def _by_label(mixture: GaussianMixture, labels: Sequence[int] | Tensor) -> Tensor:
    """(L + 1, K): log-weights of the components of each label, and of all; -inf for the others."""
    k = len(mixture.means)
    try:
        own = torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"got labels={labels!r}, expected {k} whole numbers") from error
    if own.shape != (k,) or own.is_floating_point() or own.dtype == torch.bool:
        raise InvalidInputError(f"got labels {own.dtype} {tuple(own.shape)}, expected {k} whole numbers")
    member = own == torch.arange(min(int(own.max()) + 1, k))[:, None]
    if int(own.min()) < 0 or int(own.max()) >= k or not bool(member.any(1).all()):
        raise InvalidInputError(f"got labels={own.tolist()}, expected every number from 0 to the largest to occur")
    chosen = torch.cat([member, torch.ones(1, k, dtype=torch.bool)])
    log_weights = torch.where(chosen, mixture.log_weights, -torch.inf)
    return log_weights - log_weights.logsumexp(1, keepdim=True)


class EmpiricalModel(ScoreModel):
    """The exact score of a finite data set, p_0 = (1/N) sum_i delta(x - x_i): all that a perfect network could learn.

    E[x0 | x] = sum_i softmax_i(-|x - alpha x_i|^2/(2 sigma^2)) x_i, the softmax in float64 whatever x is.

    Args:
        data: (N, *event).
        sde: the process.
        memory: bytes that arrays with a number for each pair of state and sample may take; batches that need more are
            computed in chunks.

    Source: Karras et al. 2022 (arXiv 2206.00364) appendix B.3.
    """

    samples: Tensor

    smooth = True
    _fixed = ("samples",)

    @checked
    def __init__(self, data: Tensor, sde: SDE, *, memory: int = MEMORY) -> None:
        check_state(data, name="data")
        if not len(data):
            raise InvalidInputError("data is empty: an empirical model needs at least one sample")
        mean = data.double().mean(0)
        spread = (data.double() - mean).square().mean().sqrt()
        super().__init__(sde, data_mean=mean, data_std=spread if spread > 0 else None, event_shape=data.shape[1:])
        self.register_buffer("samples", data, persistent=False)
        self.data_turn = turning_of(spread_out(data)) or None
        self.memory, self._points = whole(memory, "memory", least=1), LastAnswer()

    def _facts(self):
        return {"samples": len(self.samples), **super()._facts()}

    def _picture(self):
        return picture_of(self.samples)

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        check_state(x, event_shape=self.event_shape, finite=False)
        if x.device != self.samples.device:
            raise InvalidInputError(f"got x on {x.device}, expected it where the data are, on {self.samples.device}")
        t = as_time(t)
        check_time(t, x)
        level = self.sde.at(t)
        state = flat(x)
        alpha, sigma = (torch.as_tensor(c, dtype=torch.float64, device=x.device) for c in (level.alpha, level.sigma))
        level = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        _, x0, noise = self._summed().in_chunks(state, level, state.new_zeros(1, 1), None, self.memory)
        return Prediction(x0.reshape(x.shape), noise.reshape(x.shape), self.sde, t)

    def _summed(self) -> Shared:
        """The data as components of no width."""
        known = self._points.of(self.samples)
        if known is None:
            data = flat(self.samples).double()
            known = Shared(data, data.new_zeros(1), None)
            self._points.keep(self.samples, known)
        return known
