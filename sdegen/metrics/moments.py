"""Mean and covariance of features that are never all in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..distributions.distances import Samples, as_samples
from .frechet import frechet_distance_of_moments


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and sum of squares about the mean of N features, in float64: what a Frechet distance is made of.

    Moments of parts add up to those of the whole, whichever process saw which part.

    Attributes:
        n: how many.
        mean: (d,).
        squares: (d, d), the sum of (z - mean)(z - mean)'.
    """

    n: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, z: Samples) -> Moments:
        """The moments of features (N, *event), N at least 1.

        Raises:
            InvalidInputError: no features, or NaN or infinity among them.
        """
        z = as_samples(z, "z")
        if not z.ndim or not z.numel():
            raise InvalidInputError(f"z: got shape {tuple(z.shape)}, expected features (N, *event), at least one")
        z = z.reshape(len(z), -1).double().cpu()
        if not bool(torch.isfinite(z).all()):
            raise InvalidInputError("z: got NaN or infinity, expected finite features: drop such samples, and say so")
        mean = z.mean(0)
        return cls(len(z), mean, (z - mean).mT @ (z - mean))

    def __add__(self, other: Moments) -> Moments:
        """Of both together.

        Source: Chan, Golub & LeVeque 1983.
        """
        if other.mean.shape != self.mean.shape:
            raise InvalidInputError(
                f"moments: got features of {len(other.mean)} numbers, expected {len(self.mean)} as in the other part"
            )
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + torch.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), squares)

    @property
    def covariance(self) -> Tensor:
        """(d, d), with the divisor N - 1."""
        if self.n < 2:
            raise InvalidInputError("a covariance needs two samples or more: got 1")
        return self.squares / (self.n - 1)

    @checked
    def frechet_distance(self, other: Moments) -> float:
        """As `frechet_distance` of the features themselves.

        Args:
            other: moments of the other set's features.

        Returns:
            FD, at least 0, in the square of the features' units.
        """
        return frechet_distance_of_moments(self.mean, self.covariance, other.mean, other.covariance)


@checked
def moments_of(parts: Iterable[Samples]) -> Moments:
    """The `Moments` of features that come in parts (N_k, *event), one of them in memory at a time.

    Args:
        parts: such as a classifier's features of batches of images.

    Returns:
        `Moments`.

    Raises:
        InvalidInputError: no parts, other lengths, NaN or infinity.

    Example:
        >>> import torch, sdegen as sg
        >>> moments = sg.metrics.moments_of(torch.ones(100, 3) * k for k in range(5))
        >>> moments.n, moments.mean.tolist()
        (500, [2.0, 2.0, 2.0])
    """
    total: Moments | None = None
    for part in parts:
        own = Moments.of(part)
        total = own if total is None else total + own
    if total is None:
        raise InvalidInputError("parts: got none, expected features in one part or more")
    return total
