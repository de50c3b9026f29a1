"""Kernel distance: an unbiased estimate, which small sets do not flatter and do not punish."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..distributions import distances
from ..distributions.distances import Samples, samples


class KernelDistance(NamedTuple):
    """An estimate of MMD^2 and its standard error.

    Attributes:
        value: of MMD^2; it may be negative.
        stderr: its standard error.
    """

    value: float
    stderr: float


@checked
def kernel_distance(x: Samples, y: Samples, *, groups: int = 20) -> KernelDistance:
    """Squared maximum mean discrepancy of features with the kernel of KID.

    MMD^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),  k(a, b) = (a.b/d + 1)^3,

    the means over pairs of different samples: unbiased at any size. The standard error is that of the jackknife over
    groups of samples left out; for equal distributions it is too large rather than too small. It is called KID only on
    Inception-v3 features (where the mean over random subsets is usual: it has the same expectation and more noise).

    Args:
        x, y: features, (N, *event) and (M, *event).
        groups: how many are left out in turn; each set has two samples in each group at least.

    Returns:
        KernelDistance(value, stderr).

    Raises:
        InvalidInputError: shapes that differ, NaN or infinity, fewer than two groups or sets smaller than 2 groups.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), section 4; Gretton et al. 2012, eq. 3; Efron & Stein 1981.

    Example:
        >>> import torch, sdegen as sg
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> found = sg.metrics.kernel_distance(x[:200], x[200:] + 2.0)
        >>> found.value > 5 * found.stderr
        True
    """
    x, y = samples(x, y)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 2:
        raise InvalidInputError(f"got groups={groups!r}, expected a whole number, at least 2")
    if min(len(x), len(y)) < 2 * groups:
        raise InvalidInputError(f"{groups} groups need {2 * groups} samples or more: got {len(x)} and {len(y)}")
    xx, yy, xy = _sums(x, x, groups), _sums(y, y, groups), _sums(x, y, groups)
    n, m = (torch.tensor([len(z[g::groups]) for g in range(groups)]).double() for z in (x, y))
    left_out = torch.stack([_estimate(*(_without(s, g) for s in (xx, yy, xy, n, m))) for g in range(groups)])
    squares = (left_out - left_out.mean()).square().sum()
    return KernelDistance(float(_estimate(xx, yy, xy, n, m)), float((squares * (groups - 1) / groups).sqrt()))


def _sums(x: Tensor, y: Tensor, groups: int) -> Tensor:
    """Sums of k over the pairs of each two groups, (G, G) on the CPU; a sample is not paired with itself."""
    d = x.shape[1]
    sums = torch.zeros(groups, groups, dtype=torch.float64, device=x.device)
    of_x, of_y = (torch.arange(len(z), device=z.device) % groups for z in (x, y))
    portion = max(1, distances.CHUNK // len(y))
    for some, group in zip(x.split(portion), of_x.split(portion), strict=True):
        k = (some @ y.mT / d + 1).pow_(3)
        sums.index_add_(0, group, k.new_zeros(len(k), groups).index_add_(1, of_y, k))
    if x is y:
        sums.diagonal().index_add_(0, of_x, -(x.square().sum(1) / d + 1).pow_(3))
    return sums.cpu()


def _without(sums: Tensor, g: int) -> Tensor:
    keep = torch.arange(len(sums)) != g
    return sums[keep][:, keep] if sums.ndim == 2 else sums[keep]


def _estimate(xx: Tensor, yy: Tensor, xy: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """MMD^2 of sums over pairs and of group sizes."""
    n, m = n.sum(), m.sum()
    return xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * xy.sum() / (n * m)
