"""What x and y say where the data are taken for N(mean, s^2 I), s their standard deviation: all that is known of them
without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.shapes import expand, flat
from ...processes import Level
from ..facts import DataFacts
from .observation import Observation
from .spread import solve_spread

_REACH = 1.5  # how far, in standard deviations of the noise for each number seen, `aim` moves a state at most
_FAR, _FALL = 10.0, 8  # noise over s at which a network's derivative counts half, and how fast it fades


@dataclass(frozen=True)
class PlainLaw:
    """N(mean, s^2 I) at a noise level."""

    data: DataFacts
    level: Level

    @property
    def ratio(self) -> Any:
        """r = sigma/alpha."""
        return self.level.sigma / self.level.alpha

    @property
    def share(self) -> Any:
        """How much of x/alpha - mean is data, s^2/(r^2 + s^2)."""
        return self.data.scale**2 / (self.ratio**2 + self.data.scale**2)

    @property
    def variance(self) -> Any:
        """Of x0 given x, r^2 s^2/(r^2 + s^2)."""
        return self.ratio**2 * self.share

    def x0(self, x: Tensor) -> Tensor:
        """E[x0 | x]."""
        mean = 0.0 if self.data.mean is None else self.data.mean.to(x)
        return mean + expand(self.share, x) * (x / expand(self.level.alpha, x) - mean)

    def aim(self, observation: Observation, x: Tensor, y: Tensor) -> Tensor:
        """l = (v A A^T + std^2)^-1 (y - A E[x0 | x]), (B, m), v the variance: p(x0 | x) exp(l A x0), which is the law
        of x0 given x + sigma^2/alpha A^T l, has the mean that y asks for. Shortened so that x/alpha moves by less than
        1.5 r for each of the m numbers seen, to where a network has been trained.
        """

        def spread(u: Tensor) -> Tensor:
            return expand(self.variance, u) * observation.measure(observation.adjoint(u, x))

        aim = solve_spread(spread, y - observation.measure(self.x0(x)), observation.std**2).value
        moved = expand(self.ratio, aim) * flat(observation.adjoint(aim, x)).norm(dim=1, keepdim=True)
        return aim / (1 + moved.square() / (_REACH**2 * y.shape[1])).sqrt()

    def trust(self) -> Tensor:
        """How much the derivative of a network counts beside that of this law, s^2/(r^2 + s^2)/alpha: 1/2 at r = 10 s,
        0 far above, where a network's output hardly depends on x and its derivative is mostly error."""
        return 1 / (1 + (torch.as_tensor(self.ratio) / (_FAR * self.data.scale)) ** _FALL)
