"""The Gaussian with the data's mean and covariance: what is known of the data before any network is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked, told
from ..core.shapes import flat
from ..core.show import Shown, spread


@dataclass(frozen=True, repr=False)
class Gaussian(Shown):
    """N(mean, C) over flattened events of d numbers, C = U diag(variances) U^T + rest (I - U U^T), U the `axes`.

    Made by `of_data(x0)`, `of_covariance(c)` or `of_variances(v)`; along a process its marginal at t is
    N(alpha mean, alpha^2 C + sigma^2 I).

    Args:
        mean: () or (d,).
        variances: () or (d,) without axes: C = variances I or diag(variances); (r,) with them, at least 0.
        axes: (d, r) orthonormal columns, or None.
        rest: the variance across the axes, where r < d.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor | None = None
    rest: float = 0.0

    def _facts(self):
        return {"mean": self.mean, "variances": spread(self.variances), "axes": self.axes, "rest": self.rest or None}

    @classmethod
    @checked
    def of_covariance(cls, covariance: Tensor, mean: Tensor | None = None) -> Gaussian:
        """From a covariance C (d, d); a tensor of another form is taken for variances.

        Raises:
            InvalidInputError: NaN or infinity, a negative eigenvalue or variance.
        """
        c = torch.as_tensor(covariance, dtype=torch.float64, device="cpu").detach()
        if c.ndim != 2 or c.shape[0] != c.shape[1]:
            return cls.of_variances(c, mean)
        if not bool(torch.isfinite(c).all()):
            raise InvalidInputError("the covariance holds NaN or infinity: clean the data first")
        variances, axes = torch.linalg.eigh((c + c.mT) / 2)
        if variances[0] < -1e-6 * variances[-1].abs():
            raise InvalidInputError(
                f"the covariance has the eigenvalue {float(variances[0]):.3g}: expected none below 0"
            )
        return cls(flat_mean(mean), variances.clamp_min(0), axes)

    @classmethod
    @checked
    def of_variances(cls, variances: Tensor, mean: Tensor | None = None) -> Gaussian:
        """C = diag(variances): one for each coordinate, of an event's shape, or one for all.

        Raises:
            InvalidInputError: NaN or infinity, a negative variance.
        """
        v = torch.as_tensor(variances, dtype=torch.float64, device="cpu").detach()
        if not bool((torch.isfinite(v) & (v >= 0)).all()):
            raise InvalidInputError(
                f"variances from {float(v.min()):.3g} to {float(v.max()):.3g}: expected none below 0"
            )
        return cls(flat_mean(mean), v.flatten().squeeze())

    @classmethod
    @checked
    def of_data(cls, x0: Tensor, rank: int | None = None) -> Gaussian:
        """The mean and covariance of samples (n, *event); with `rank` its largest axes and the mean of the other
        eigenvalues.

        Source: Tipping & Bishop 1999, probabilistic principal component analysis, eq. 7 and 8, for the latter.

        Raises:
            InvalidInputError: fewer than two samples, a rank outside 1..d.
        """
        if not x0.ndim:
            raise InvalidInputError(f"got x0={x0!r}, expected samples (n, *event)")
        x = flat(x0).detach().double().cpu()
        n, d = x.shape
        if n < 2 or (rank is not None and not 1 <= rank <= d):
            raise InvalidInputError(f"{n} samples of {d} numbers, rank={rank}: expected at least 2, a rank up to {d}")
        mean = x.mean(0)
        if rank is None:
            return cls.of_covariance((x - mean).mT @ (x - mean) / n, mean)
        _, singular, axes = torch.linalg.svd(x - mean, full_matrices=False)
        variances = singular**2 / n
        left = variances[rank:].sum() / max(d - rank, 1)
        return cls(mean, variances[:rank], axes[:rank].mT.contiguous(), float(left))

    @property
    def complete(self) -> bool:
        """Whether C is the whole covariance, not its diagonal or largest part."""
        return self.axes is not None and self.axes.shape[0] == self.axes.shape[1]

    def to(self, x: Tensor) -> Gaussian:
        """In x's dtype and on its device."""
        axes = None if self.axes is None else self.axes.to(x)
        return replace(self, mean=self.mean.to(x), variances=self.variances.to(x), axes=axes)

    def shifted(self, centre: Tensor | None) -> Gaussian:
        """The law of x0 - centre: the same covariance, another mean; None: no centre."""
        return self if centre is None else replace(self, mean=self.mean - centre.flatten().to(self.mean))

    def offset(self, x: Tensor, alpha: Any) -> Tensor:
        """x - alpha mean in the basis of the axes, (B, d)."""
        y = x - alpha * self.mean
        return y if self.axes is None else y @ self.axes

    def total(self, alpha: Any, sigma: Any) -> Any:
        """The eigenvalues of P = alpha^2 C + sigma^2 I, the covariance of alpha x0 + sigma z, one for each axis."""
        return alpha**2 * self.variances + sigma**2

    def apply(self, f: Callable[[Any], Any], y: Tensor) -> Tensor:
        """f(C) y for centred y (B, d); f takes variances, a tensor or a float."""
        if self.axes is None:
            return f(self.variances) * y
        rest = f(self.rest)
        return rest * y + ((y @ self.axes) * (f(self.variances) - rest)) @ self.axes.mT

    def noisy(self, z: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """alpha mean + (alpha^2 C + sigma^2)^(1/2) z, (B, *event) like z: a draw from the marginal at a time with
        these coefficients, where z is standard normal."""
        single = self.axes is None and not self.mean.ndim and not self.variances.ndim  # numbers multiply any tensor
        q, y = self if single else self.to(z), flat(z)
        spread = q.apply(lambda v: (alpha**2 * v + sigma**2) ** 0.5, y)
        return (alpha * q.mean + spread).reshape(z.shape)

    @checked
    def log_prob(self, x: Tensor, level: Any) -> Tensor:
        """log N(x; alpha mean, P), (B,) float64; x is (B, d)."""
        if x.ndim != 2 or not (isinstance(getattr(level, "alpha", None), float | Tensor)):
            raise InvalidInputError(f"got x={told(x)}, level={told(level)}, expected x (B, d), and sde.at(t)")
        q, x = self.to(x.double()), x.double()
        alpha, sigma = column(level.alpha, x), column(level.sigma, x)
        total = torch.as_tensor(q.total(alpha, sigma), dtype=x.dtype, device=x.device).expand_as(x)
        return -(q.offset(x, alpha) ** 2 / total + torch.log(2 * math.pi * total)).sum(1) / 2


def flat_mean(mean: Tensor | None) -> Tensor:
    """A mean as float64 over the flattened event, () where one number or none is known."""
    return (
        torch.zeros((), dtype=torch.float64, device="cpu")
        if mean is None
        else mean.detach().double().flatten().cpu().squeeze()
    )


def column(coefficient: Any, x: Tensor) -> Any:
    """A coefficient of t, a float or (B,), to multiply (B, d)."""
    return coefficient.to(x)[:, None] if isinstance(coefficient, Tensor) and coefficient.ndim else coefficient
