"""Distances between two sets of samples, x (N, *event) and y (M, *event).

Samples are flattened to d numbers and computed with in float64 on the device of x. Sets of equal distribution are at a
distance of 0 only in the limit of large ones: compare with the distance of two sets known to be alike, of these sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.errors import InvalidInputError
from ..core.kinds import checked, kind_of, take

Samples = Tensor | np.ndarray | Sequence[Any]  # (N, *event)

CHUNK = 2**22  # numbers in the largest intermediate (32 MB)


@checked
def sliced_wasserstein(x: Samples, y: Samples, *, p: float = 2, projections: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein distance: the mean over directions of the transport cost on a line.

    SW_p = (E_theta W_p^p(theta.x, theta.y))^(1/p),  W_p^p = int_0^1 |F^-1(u) - G^-1(u)|^p du,

    exact on each line, for unequal sizes too (quantile functions are steps). Directions come in orthonormal sets of d,
    each one uniform: a pure shift s has SW_2 = |s|/sqrt(d) exactly if d divides their number. Bias: sets of equal
    distribution are of order N^(-1/2) apart for p = 1, for p = 2 too unless their projections have gaps, N^(-1/4) then.

    Args:
        x, y: (N, *event) and (M, *event).
        p: at least 1.
        projections: how many directions.
        seed: of the directions.

    Returns:
        SW_p, in the units of x.

    Raises:
        InvalidInputError: shapes that differ, empty sets, NaN or infinity; p or projections below 1.

    Source: Bonneel et al. 2015; orthogonal directions: Rowland et al. 2019; rates: Bobkov & Ledoux 2019.

    Example:
        >>> import torch, sdegen as sg
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> shift = torch.tensor([3.0, 0.0])
        >>> round(sg.metrics.sliced_wasserstein(x, x + shift), 4)  # 3/sqrt(2)
        2.1213
    """
    x, y = samples(x, y)
    if not p >= 1 or math.isinf(p):
        raise InvalidInputError(f"got p={p!r}, expected a finite number, at least 1")
    if isinstance(projections, bool) or not isinstance(projections, int) or projections < 1:
        raise InvalidInputError(f"got projections={projections!r}, expected a whole number, at least 1")
    (n, d), m = x.shape, len(y)
    projections = 1 if d == 1 else projections
    i, j, du = _quantile_steps(n, m, x.device)
    theta = _directions(d, projections, seed).to(x.device)
    total = 0.0
    for some in theta.split(max(1, CHUNK // (n + m)), 1):
        a, b = (x @ some).sort(0).values, (y @ some).sort(0).values
        gap = (a - b if n == m else a[i] - b[j]).abs()
        total += float((du[:, None] * gap**p).sum())
    return (total / projections) ** (1 / p)


@checked
def energy_distance(x: Samples, y: Samples) -> float:
    """Energy distance, a metric between distributions with a mean.

    E = sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|),

    each mean over all pairs, a sample with itself among them (the V-statistic, never negative). Bias: for equal
    distributions the mean of E^2 is (1/N + 1/M) E|X - X'|. Time O((N + M)^2), memory bounded.

    Args:
        x, y: (N, *event) and (M, *event).

    Returns:
        E, in the root of the units of x.

    Raises:
        InvalidInputError: shapes that differ, empty sets, NaN or infinity.

    Source: Szekely & Rizzo 2013; in one dimension it is scipy.stats.energy_distance.

    Example:
        >>> import torch, sdegen as sg
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> sg.metrics.energy_distance(x, x) < 1e-6 < sg.metrics.energy_distance(x, x + 1.0)
        True
    """
    x, y = samples(x, y)
    xy, xx, yy = (mean_over_pairs(a, b, _identity) for a, b in ((x, y), (x, x), (y, y)))
    squared = 2 * xy - xx - yy
    return math.sqrt(max(squared, 0.0))


@checked
def mmd(x: Samples, y: Samples, *, bandwidth: float | None = None) -> float:
    """Maximum mean discrepancy with a Gaussian kernel.

    MMD = sqrt(E k(X, X') + E k(Y, Y') - 2 E k(X, Y)),  k(a, b) = exp(-|a - b|^2/(2 h^2)),

    each mean over all pairs, a sample with itself among them (the V-statistic, never negative). Bias: for equal
    distributions the mean of MMD^2 is (1/N + 1/M) (1 - E k(X, X')). Time O((N + M)^2), memory bounded.

    Args:
        x, y: (N, *event) and (M, *event).
        bandwidth: h. None: `median_distance(x, y)`, which depends on the sets: fix it to compare several.

    Returns:
        MMD, between 0 and sqrt(2).

    Raises:
        InvalidInputError: shapes that differ, empty sets, NaN or infinity; a bandwidth that is not positive, or a
            median of 0.

    Source: Gretton et al. 2012, eq. 5; median heuristic: their section 8.

    Example:
        >>> import torch, sdegen as sg
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> sg.metrics.mmd(x, x, bandwidth=1.0) < 1e-6 < sg.metrics.mmd(x, x + 1.0, bandwidth=1.0)
        True
    """
    x, y = samples(x, y)
    h = median_distance(x, y) if bandwidth is None else bandwidth
    if not 1e-100 < h < 1e100:
        cure = "for most points coincide: pass bandwidth=" if bandwidth is None else "expected a positive number"
        raise InvalidInputError(f"got bandwidth={h!r}, {cure}")

    def kernel(distance: Tensor) -> Tensor:
        return distance.square_().mul_(-1 / (2 * h**2)).exp_()

    xy, xx, yy = (mean_over_pairs(a, b, kernel) for a, b in ((x, y), (x, x), (y, y)))
    squared = xx + yy - 2 * xy
    return math.sqrt(max(squared, 0.0))


@checked
def median_distance(x: Samples, y: Samples, *, rows: int = 1000) -> float:
    """The median distance of two points of both sets together, from at most `rows` evenly spaced rows of each.

    Args:
        x, y: (N, *event) and (M, *event).
        rows: of each set.

    Returns:
        In the units of x.

    Raises:
        InvalidInputError: shapes that differ, empty sets, NaN or infinity.

    Example:
        >>> import torch, sdegen as sg
        >>> sg.metrics.median_distance(torch.zeros(3, 1), torch.full((3, 1), 2.0))
        2.0
    """
    x, y = samples(x, y)
    whole(rows, "rows", least=1)
    some = (z[torch.linspace(0, len(z) - 1, min(rows, len(z))).round().long().to(z.device)] for z in (x, y))
    return float(torch.pdist(torch.cat(list(some))).median())


def as_samples(x: Samples, name: str) -> Tensor:
    """A tensor of what may be an array or a list, without its gradient."""
    try:
        tensor = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{name} is a {type(x).__name__} that is no tensor ({error})") from None
    return take(tensor, name, kind_of(Tensor))


def samples(x: Samples, y: Samples) -> tuple[Tensor, Tensor]:
    """Both sets as (N, d) and (M, d) in float64, or the reason why not."""
    x, y = as_samples(x, "x"), as_samples(y, "y")
    if not x.ndim or not y.ndim or x.shape[1:] != y.shape[1:]:
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: expected (N, *event) and (M, *event), the same event"
        )
    flat = []
    for name, z in (("x", x), ("y", y)):
        if not z.numel():
            raise InvalidInputError(f"{name} has shape {tuple(z.shape)}: there is nothing to compare")
        z = z.reshape(len(z), -1).to(x.device, torch.float64)
        bad = int((~torch.isfinite(z)).any(1).sum())
        if bad:
            raise InvalidInputError(f"{name} holds NaN or infinity in {bad} of {len(z)} samples: drop them, and say so")
        flat.append(z)
    return flat[0], flat[1]


def _directions(d: int, n: int, seed: int) -> Tensor:
    """n unit vectors in columns, (d, n), orthogonal within each d that follow each other."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    frames = torch.linalg.qr(torch.randn(-(-n // d), d, min(d, n), generator=generator, dtype=torch.float64)).Q
    return frames.transpose(0, 1).flatten(1)[:, :n]


def _quantile_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where two empirical quantile functions are constant: order statistics i of n, j of m, and each piece's length."""
    if n == m:
        i = torch.arange(n, device=device)
        return i, i, torch.full((n,), 1 / n, dtype=torch.float64, device=device)
    starts = torch.cat([torch.arange(n) * m, torch.arange(m) * n]).unique().to(device)  # in units of 1/(n m)
    du = torch.diff(starts, append=starts.new_tensor([n * m])).double() / (n * m)
    return starts // m, starts // n, du


def _identity(distance: Tensor) -> Tensor:
    return distance


def mean_over_pairs(x: Tensor, y: Tensor, function: Callable[[Tensor], Tensor]) -> float:
    """The mean of function(|x_i - y_j|) over all pairs, so many at a time; the function may overwrite its argument."""
    # differences, not |x|^2 + |y|^2 - 2 x.y, while they are cheap: they keep the digits of near points
    mode = "donot_use_mm_for_euclid_dist" if x.shape[1] <= 8 else "use_mm_for_euclid_dist"
    centre = x.mean(0)
    x, y = x - centre, y - centre
    chunks = x.split(max(1, CHUNK // len(y)))
    total = sum(float(function(torch.cdist(some, y, compute_mode=mode)).sum()) for some in chunks)
    return total / (len(x) * len(y))
