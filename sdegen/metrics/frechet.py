"""Frechet distance between Gaussians fitted to features."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, warn
from ..core.kinds import checked
from ..distributions.distances import Samples, as_samples, samples


@checked
def frechet_distance(x: Samples, y: Samples) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (squared, as is the custom).

    FD = |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)),  C with the divisor N - 1.

    Bias: sets of equal distribution have FD > 0, for white features about (d + d(d+1)/4) (1/N + 1/M), for others
    `frechet_bias`: only values at the same sizes compare. Where a set has no more samples than dimensions its
    covariance is singular and the bias large: a RuntimeWarning says how large. It is called FID only on Inception-v3
    features.

    Args:
        x, y: features, (N, *event) and (M, *event), at least two of each.

    Returns:
        FD, at least 0, in the square of the features' units.

    Raises:
        InvalidInputError: shapes that differ, fewer than two rows, NaN or infinity.

    Source: Dowson & Landau 1982; Heusel et al. 2017. Bias: Chong & Forsyth 2020.

    Example:
        >>> import torch, sdegen as sg
        >>> x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
        >>> round(sg.metrics.frechet_distance(x, x + 2.0), 3)  # a shift by 2 in each of three directions
        12.0
    """
    x, y = samples(x, y)
    if min(len(x), len(y)) < 2:
        raise InvalidInputError(f"a covariance needs two samples or more: got {len(x)} and {len(y)}")
    if min(len(x), len(y)) <= x.shape[1]:
        _warn_of_bias(x, y)
    (m1, c1), (m2, c2) = _moments(x), _moments(y)
    return frechet_distance_of_moments(m1, c1, m2, c2)


@checked
def frechet_distance_of_moments(m1: Samples, c1: Samples, m2: Samples, c2: Samples) -> float:
    """Frechet distance (squared) between N(m1, C1) and N(m2, C2), of means (d,) and covariances (d, d).

    Tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2). They are the square roots of the
    eigenvalues of C1^(1/2) C2 C1^(1/2), without the loss of half the digits that taking those roots is.

    Args:
        m1, c1: (d,) and (d, d), of the one.
        m2, c2: of the other.

    Returns:
        FD, at least 0, in the square of the features' units.

    Raises:
        InvalidInputError: shapes that do not fit, NaN or infinity, a covariance with a negative eigenvalue.

    Source: Dowson & Landau 1982.

    Example:
        >>> import torch, sdegen as sg
        >>> zero, one = torch.zeros(2), torch.eye(2)
        >>> round(sg.metrics.frechet_distance_of_moments(zero, one, zero, 4 * one), 6)  # (2 - 1)^2 for each direction
        2.0
    """
    m1, c1, m2, c2 = (as_samples(a, name).double() for name, a in (("m1", m1), ("c1", c1), ("m2", m2), ("c2", c2)))
    d = m1.numel()
    if m1.shape != (d,) or m2.shape != (d,) or c1.shape != (d, d) or c2.shape != (d, d):
        shapes = ", ".join(str(tuple(a.shape)) for a in (m1, c1, m2, c2))
        raise InvalidInputError(f"moments have shapes {shapes}: expected (d,), (d, d), (d,), (d, d)")
    if not all(bool(torch.isfinite(a).all()) for a in (m1, c1, m2, c2)):
        raise InvalidInputError("the moments hold NaN or infinity")
    cross = torch.linalg.svdvals(_root(c1) @ _root(c2)).sum()
    return max(float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross), 0.0)


@checked
def frechet_bias(x: Samples, n: int, m: int) -> float:
    """The Frechet distance to expect between sets of n and of m features that have the distribution of x.

    (1/n + 1/m) (sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j])/(l_i + l_j)),  l the eigenvalues of the covariance of x,

    to first order in 1/n and for Gaussian features: rough where n is not well above d.

    Args:
        x: features, (N, *event).
        n, m: sizes of the two sets.

    Returns:
        In the units of `frechet_distance`.

    Raises:
        InvalidInputError: fewer than two rows, NaN or infinity, a size below 2.

    Source: second order of the Bures metric (Bhatia, Jain & Lim 2019, section 3), with Wishart covariances.

    Example:
        >>> import torch, sdegen as sg
        >>> x = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
        >>> 0.015 < sg.metrics.frechet_bias(x, 1000, 1000) < 0.021  # (4 + 4 * 5/4) 2/1000 for white features
        True
    """
    x = samples(x, x)[0]
    if min(n, m, len(x)) < 2:
        raise InvalidInputError(f"a covariance needs two samples or more: got {len(x)}, n={n}, m={m}")
    l = torch.linalg.eigvalsh(_moments(x)[1]).clamp_min(0)
    pairs = l[:, None] * l / (l[:, None] + l).clamp_min(torch.finfo(l.dtype).tiny)
    return (1 / n + 1 / m) * float(l.sum() + (pairs.sum() + pairs.diagonal().sum()) / 2)


def _warn_of_bias(x: Tensor, y: Tensor) -> None:
    """Say that the distance is mostly bias."""
    bias = frechet_bias(max(x, y, key=len), len(x), len(y))
    warn(
        f"Frechet distance of {len(x)} and {len(y)} samples in {x.shape[1]} dimensions: a covariance of so few is "
        f"singular, and the value too large, by roughly {bias:.3g} where both sets have one distribution "
        "(frechet_bias). Pass more samples, or compare only with values at the same sizes",
        RuntimeWarning,
    )


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    mean = z.mean(0)
    centred = z - mean
    return mean, centred.mT @ centred / (len(z) - 1)


def _root(c: Tensor) -> Tensor:
    """The symmetric square root of a covariance, rounding below 0 cut off."""
    values, vectors = torch.linalg.eigh((c + c.mT) / 2)
    if values[0] < -1e-8 * values[-1].abs():
        raise InvalidInputError(f"a covariance has the eigenvalue {float(values[0]):g}: expected positive semidefinite")
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT
