"""Precision and recall: how much of what was made looks real, and how much of what is real can be made."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..distributions import distances
from ..distributions.distances import Samples, samples


class PrecisionRecall(NamedTuple):
    """Precision and recall, each a share in [0, 1].

    Attributes:
        precision: of the samples, those that look real.
        recall: of the real ones, those that could be made.
    """

    precision: float
    recall: float


@checked
def precision_recall(x: Samples, real: Samples, *, k: int = 3) -> PrecisionRecall:
    """The share of samples within the real ones' manifold, and of real ones within that of the samples.

    The manifold of a set is the union of balls around its points, each reaching to the k-th nearest other one.
    precision = share of x inside some ball of `real`; recall = share of `real` inside some ball of x.

    Both depend on the sizes of the sets: take equal ones, and compare with two sets of real samples. One outlier makes
    a large ball.

    Args:
        x: features of samples, (N, *event).
        real: features of real samples, (M, *event).
        k: at least 1, below N and M.

    Returns:
        PrecisionRecall(precision, recall).

    Raises:
        InvalidInputError: shapes that differ, NaN or infinity, a k that does not fit.

    Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2, where k = 3.

    Example:
        >>> import torch, sdegen as sg
        >>> real = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> narrow = 0.1 * torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
        >>> found = sg.metrics.precision_recall(narrow, real)
        >>> found.precision > 0.9, found.recall < 0.5
        (True, True)
    """
    x, real = samples(x, real)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < min(len(x), len(real)):
        raise InvalidInputError(f"got k={k!r}, expected a whole number from 1 to {min(len(x), len(real)) - 1}")
    centre = real.mean(0)
    x, real = x - centre, real - centre
    return PrecisionRecall(_share_inside(x, real, _radii(real, k)), _share_inside(real, x, _radii(x, k)))


def _radii(z: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest other one, (N,)."""
    radii, start = [], 0
    for some in _portions(z, z):
        distance = torch.cdist(some, z)
        own = torch.arange(len(some), device=z.device)
        distance[own, start + own] = torch.inf
        radii.append(distance.kthvalue(k, 1).values)
        start += len(some)
    return torch.cat(radii)


def _share_inside(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(torch.cdist(some, centres) <= radii).any(1) for some in _portions(x, centres)]
    return float(torch.cat(inside).double().mean())


def _portions(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, distances.CHUNK // len(y)))
