"""One step of ancestral sampling, and what a gradient of a likelihood does to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...processes import Level


@dataclass(frozen=True)
class ReverseKernel:
    """p(x_s | x_t) of a belief (x0, noise) at t, s before t: N(of_x0 x0 + of_noise noise, std^2).

    A score larger by g moves its mean by pull g. Forward, x_t given x_s is N(keep x_s, spread^2).

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 6 and 7, for any process.
    """

    of_x0: float
    of_noise: float
    std: float
    pull: float
    keep: float
    spread: float

    @classmethod
    def between(cls, here: Level, there: Level) -> ReverseKernel:
        keep = here.alpha / there.alpha
        variance = here.sigma**2 - (keep * there.sigma) ** 2
        return cls(
            of_x0=there.alpha,
            of_noise=keep * there.sigma**2 / here.sigma,
            std=there.sigma * variance**0.5 / here.sigma,
            pull=variance / keep if keep else float("inf"),
            keep=keep,
            spread=variance**0.5,
        )

    def mean(self, x0: Tensor, noise: Tensor) -> Tensor:
        return self.of_x0 * x0 + self.of_noise * noise
