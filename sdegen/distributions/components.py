"""What a noisy sample tells of the component it came from, summed over many components by matrix products.

With y = x - alpha c and mu_k = m_k - c about the middle c of all means, and p_k = 1/(alpha^2 v_k + sigma^2),

    |x - alpha m_k|^2 p_k = |y|^2 p_k - 2 alpha p_k y.mu_k + alpha^2 p_k |mu_k|^2,

which is one product of (B, d) and (d, K). The terms are far larger than their sum where sigma is small, and so are in
float64 whatever x is; those that are alike for all components are left out of the softmax. A second product gives

    M = sum_k share_k p_k mu_k,    E[z | x] = sigma (y sum_k share_k p_k - alpha M),
    E[x0 | x] = c + sigma^2 M + alpha y sum_k share_k p_k v_k,

neither as a difference of large numbers at small or at large sigma. Samples are taken in chunks, so that what is
computed on the way, (B, K) or (B, K, d) numbers, stays within `memory` bytes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

Belief = tuple[Tensor, Tensor, Tensor]  # log p(x) (B,), E[x0 | x] (B, d), E[z | x] (B, d)

MEMORY = 2**24  # bytes: what stays in the caches of processors costs least
_LOG_2PI = math.log(2 * math.pi)
_FEW = 1024  # numbers of all means together, up to which differences cost less than products in float64
_COPIES = 4  # of the largest array that live at the same time


class Components(ABC):
    """K Gaussians in d dimensions.

    Attributes:
        width: how many numbers of each sample the largest array on the way holds.
    """

    width: int

    @abstractmethod
    def belief(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Belief:
        """Of x (B, d) with alpha and sigma (B or 1, 1), and log-weights (B or 1, K)."""

    def rows(self, memory: int, alpha: Tensor, sigma: Tensor) -> int:
        """How many samples may be taken at once."""
        return max(1, memory // (8 * _COPIES * self.width))

    def in_chunks(
        self, x: Tensor, level: tuple[Tensor, Tensor], log_weights: Tensor, which: Tensor | None, memory: int
    ) -> Belief:
        """The same for any number of samples, with level = (alpha, sigma); `which` (B,) names each sample's row of
        `log_weights`, None: the first."""
        alpha, sigma = level
        rows = self.rows(memory, alpha, sigma)
        if len(x) <= rows:
            return self.belief(x, alpha, sigma, log_weights[:1] if which is None else log_weights[which])
        parts = []
        for start in range(0, len(x), rows):
            own = slice(start, start + rows)
            a, s = (c if len(c) == 1 else c[own] for c in (alpha, sigma))
            parts.append(self.belief(x[own], a, s, log_weights[:1] if which is None else log_weights[which[own]]))
        log_p, x0, z = (torch.cat(column) for column in zip(*parts, strict=True))
        return log_p, x0, z


class Direct(Components):
    """Any covariances Q_k diag(v_k) Q_k^T, by the differences x - alpha m_k themselves, in x's dtype.

    Args:
        means: (K, d).
        variances: (K, d) eigenvalues.
        axes: (K, d, d) eigenvectors in columns; None: the identity.
    """

    def __init__(self, means: Tensor, variances: Tensor, axes: Tensor | None) -> None:
        self.means, self.variances, self.axes = means, variances, axes
        self.width = means.numel()

    def rows(self, memory: int, alpha: Tensor, sigma: Tensor) -> int:
        least = 1 if self.axes is None else self.means.shape[1]  # then they take no more than the axes themselves
        return max(least, super().rows(memory, alpha, sigma))

    def belief(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Belief:
        means, variances, log_weights = (p.to(x) for p in (self.means, self.variances, log_weights))
        alpha, sigma = alpha[:, :, None], sigma[:, :, None]
        total = alpha**2 * variances + sigma**2  # (B or 1, K, d)
        offset = x[:, None] - alpha * means  # (B, K, d)
        axes = None if self.axes is None else self.axes.to(x)
        if axes is not None:
            offset = torch.einsum("bki,kie->bke", offset, axes)
        whitened = offset / total
        log_parts = log_weights - ((offset * whitened).sum(2) + total.log().sum(2) + x.shape[1] * _LOG_2PI) / 2
        log_p = torch.logsumexp(log_parts, 1)
        share = torch.softmax(log_parts, 1)
        if axes is None:
            z = torch.einsum("bk,bkd->bd", share, sigma * whitened)
            return log_p, torch.einsum("bk,bkd->bd", share, means + alpha * variances * whitened), z
        z = torch.einsum("bk,bke,kie->bi", share, sigma * whitened, axes)
        x0 = share @ means + torch.einsum("bk,bke,kie->bi", share, alpha * variances * whitened, axes)
        return log_p, x0, z


class Shared(Components):
    """One covariance Q diag(v) Q^T for all.

    Args:
        means: (K, d).
        variances: (d,) eigenvalues, or (1,) where all are alike.
        axes: (d, d), Q; None: the identity.
    """

    def __init__(self, means: Tensor, variances: Tensor, axes: Tensor | None) -> None:
        self.centre, self.means, self.axes = means.mean(0), means - means.mean(0), axes
        if axes is not None:
            self.means = self.means @ axes
        self.variances, self.squares = variances, self.means.square()
        if len(variances) == 1:
            self.squares = self.squares.sum(1, keepdim=True)
        self.width = len(means)

    def belief(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Belief:
        alpha, sigma, log_weights = (c.to(self.means) for c in (alpha, sigma, log_weights))
        y = x.to(self.means) - alpha * self.centre
        y = y if self.axes is None else y @ self.axes
        total = alpha**2 * self.variances + sigma**2  # (B or 1, d or 1)
        p = 1 / total
        own = log_weights - alpha**2 * (p @ self.squares.T) / 2
        top, share, whole = _softmax(torch.addmm(own.expand(len(y), -1), alpha * p * y, self.means.T))
        log_p = top + whole.log() - _gaussian(y, p, total)
        mean = p * (share @ self.means) / whole
        z = sigma * (p * y - alpha * mean)
        x0 = sigma**2 * mean + alpha * p * self.variances * y
        if self.axes is not None:
            z, x0 = z @ self.axes.T, x0 @ self.axes.T
        return log_p[:, 0].to(x), (self.centre + x0).to(x), z.to(x)


class Isotropic(Components):
    """C_k = v_k I.

    Args:
        means: (K, d).
        variances: (K,).
    """

    def __init__(self, means: Tensor, variances: Tensor) -> None:
        self.centre, self.means, self.variances = means.mean(0), means - means.mean(0), variances
        self.squares = self.means.square().sum(1)
        self.columns = torch.cat([self.means, torch.ones_like(means[:, :1]), variances[:, None]], 1)
        self.width = len(means)

    def belief(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Belief:
        alpha, sigma, log_weights = (c.to(self.means) for c in (alpha, sigma, log_weights))
        y = x.to(self.means) - alpha * self.centre
        total = alpha**2 * self.variances + sigma**2  # (B or 1, K)
        p = 1 / total
        own = log_weights - (alpha**2 * p * self.squares + x.shape[1] * (total.log() + _LOG_2PI)) / 2
        far = torch.addmm(y.square().sum(1, keepdim=True).expand(-1, len(self.means)), y * -2 * alpha, self.means.T)
        top, share, whole = _softmax(torch.addcmul(own, p, far, value=-0.5))
        mean, weight, spread = (share * p @ self.columns / whole).split([x.shape[1], 1, 1], 1)
        z = sigma * (weight * y - alpha * mean)
        x0 = self.centre + sigma**2 * mean + alpha * spread * y
        return (top + whole.log())[:, 0].to(x), x0.to(x), z.to(x)


class Diagonal(Components):
    """C_k = diag(v_k): by products where all samples have one time, by differences where each has its own.

    Args:
        means, variances: (K, d).
    """

    def __init__(self, means: Tensor, variances: Tensor) -> None:
        self.centre, self.means, self.variances = means.mean(0), means - means.mean(0), variances
        self.direct = Direct(means, variances, None)
        self.width = len(means)

    def rows(self, memory: int, alpha: Tensor, sigma: Tensor) -> int:
        return (
            super().rows(memory, alpha, sigma)
            if len(alpha) == len(sigma) == 1
            else self.direct.rows(memory, alpha, sigma)
        )

    def belief(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Belief:
        if len(alpha) > 1 or len(sigma) > 1:
            return self.direct.belief(x, alpha, sigma, log_weights)
        alpha, sigma, log_weights = (c.to(self.means) for c in (alpha, sigma, log_weights))
        y = x.to(self.means) - alpha * self.centre
        total = alpha**2 * self.variances + sigma**2  # (K, d)
        p = 1 / total
        near = p * self.means
        own = log_weights - ((alpha**2 * near * self.means + total.log()).sum(1) + x.shape[1] * _LOG_2PI) / 2
        top, share, whole = _softmax(own - y.square() @ (p / 2).T + y @ (alpha * near).T)
        mean, weight, spread = (share @ c / whole for c in (near, p, p * self.variances))
        z = sigma * (weight * y - alpha * mean)
        x0 = self.centre + sigma**2 * mean + alpha * spread * y
        return (top + whole.log())[:, 0].to(x), x0.to(x), z.to(x)


def _softmax(log_parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(largest (B, 1), exp(log_parts - largest) (B, K), its sum (B, 1)): the division waits for the smaller result."""
    top = log_parts.detach().amax(1, keepdim=True)
    share = (log_parts - top).exp()
    return top, share, share.sum(1, keepdim=True)


def _gaussian(y: Tensor, p: Tensor, total: Tensor) -> Tensor:
    """-log N(y; 0, total), (B, 1)."""
    d = y.shape[1]
    return ((y.square() * p).sum(1, keepdim=True) + (total.log() + _LOG_2PI).expand(-1, d).sum(1, keepdim=True)) / 2


def components(means: Tensor, variances: Tensor, axes: Tensor | None) -> Components:
    """The way to sum these that costs least: by products, but for few components and for full covariances of their own.

    Args:
        means: (K, d) float64.
        variances: (1 or K, d) eigenvalues.
        axes: (1 or K, d, d) eigenvectors; None: the identity.
    """
    if means.numel() <= _FEW or (axes is not None and len(axes) > 1):
        return Direct(means, variances, axes)
    if len(variances) == 1:
        alike = axes is None and bool((variances == variances[:, :1]).all())
        return Shared(means, variances[0, :1] if alike else variances[0], None if axes is None else axes[0])
    if bool((variances == variances[:, :1]).all()):
        return Isotropic(means, variances[:, 0])
    return Diagonal(means, variances)
