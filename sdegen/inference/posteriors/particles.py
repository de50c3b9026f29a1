"""Groups of weighted particles: how even they are, drawing anew, choosing one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...noise.purposes import Purpose
from ...noise.white import Noise
from .request import Weighed


def share(log_weights: Tensor) -> Tensor:
    """The effective share of each group, (sum w)^2/(K sum w^2), (n,), for log-weights (n, K): 1 where all are equal."""
    total, squares = log_weights.logsumexp(1), (2 * log_weights).logsumexp(1)
    return (2 * total - squares - math.log(log_weights.shape[1])).exp().nan_to_num(0.0)


def log_mean(log_weights: Tensor) -> Tensor:
    """log (1/K) sum w, (n,)."""
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def ancestors(log_weights: Tensor, noise: Noise, t: float) -> Tensor:
    """Whose copy each particle becomes, (n, K): systematic resampling in the groups whose share is below 1/2.

    Source: Kitagawa 1996, Monte Carlo filter and smoother, appendix.
    """
    n, k = log_weights.shape
    start = noise.uniform((n, 1), Purpose.RESAMPLE, t, dtype=torch.float64, device=log_weights.device)
    own = torch.arange(k, device=log_weights.device)
    drawn = torch.searchsorted(_cumulated(log_weights), ((start + own) / k).contiguous()).clamp_max(k - 1)
    return torch.where((share(log_weights) < 0.5)[:, None], drawn, own)


def resampled(log_weights: Tensor, chosen: Tensor) -> Tensor:
    """The log-weights afterwards: the group's mean where it was drawn anew, so that its evidence stays."""
    own = torch.arange(log_weights.shape[1], device=log_weights.device)
    drawn = (chosen != own).any(1) | (share(log_weights) < 0.5)
    return torch.where(drawn[:, None], log_mean(log_weights)[:, None], log_weights)


def one_of_each(x: Tensor, log_weights: Tensor, noise: Noise) -> tuple[Tensor, Weighed]:
    """One particle of each group, drawn by the weights: x (n K, ...), log_weights (n, K) -> (n, ...)."""
    n, k = log_weights.shape
    u = noise.uniform((n, 1), Purpose.CHOICE, dtype=torch.float64, device=x.device)
    picked = torch.searchsorted(_cumulated(log_weights), u.contiguous()).clamp_max(k - 1)[:, 0]
    rows = torch.arange(n, device=x.device) * k + picked
    return x[rows], Weighed(log_mean(log_weights), share(log_weights))


def _cumulated(log_weights: Tensor) -> Tensor:
    shares = (log_weights - log_weights.amax(1, keepdim=True)).exp().nan_to_num(1.0)
    total = shares.cumsum(1)
    return total / total[:, -1:]
