"""One step of ancestral sampling, and what a gradient of a likelihood does to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.shapes import event_mean, expand
from ...processes import Level


@dataclass(frozen=True)
class ReverseKernel:
    """p(x_s | x_t) of a belief (x0, noise) at t, s before t: N(of_x0 x0 + of_noise noise, std^2).

    A score larger by g moves its mean by pull g, an error e of x0 by of_error e. Forward, x_t given x_s is
    N(keep x_s, spread^2); `ratio` is sigma/alpha at t.

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 6 and 7, for any process.
    """

    of_x0: float
    of_noise: float
    std: float
    pull: float
    keep: float
    spread: float
    of_error: float
    ratio: float

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
            of_error=there.alpha - keep * there.sigma**2 * here.alpha / here.sigma**2,
            ratio=here.sigma / here.alpha if keep else float("inf"),
        )

    def mean(self, x0: Tensor, noise: Tensor) -> Tensor:
        return self.of_x0 * x0 + self.of_noise * noise

    def widened(self, noise: Tensor, data_std: float) -> Tensor:
        """The standard deviation of x_s with what x0 leaves open, one for each sample, for x (B, *event):

            (std^2 + of_error^2 v)^(1/2),    v = r^2 (1 - |noise|^2/d), from 0 to r^2 s^2/(r^2 + s^2), s = data_std.

        Long steps without it end in too narrow a law.

        Source: Bao et al. 2022 (arXiv 2201.06503) theorem 1, |noise|^2/d being the sample's own.
        """
        r2, s2 = float(self.ratio) ** 2, data_std**2
        left = r2 * (1 - event_mean(noise.double().square())).clamp(0.0, s2 / (r2 + s2))
        return expand(torch.sqrt(float(self.std) ** 2 + float(self.of_error) ** 2 * left), noise)
