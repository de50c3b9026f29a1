"""Models and noise for tests: one that notes what it is asked, one with a closed form, noise that is remembered."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.shapes import expand
from ..models.base import ScoreModel, Wrapped
from ..models.prediction import Prediction
from ..noise.white import Noise
from ..processes import SDE


class WatchedModel(Wrapped):
    """A model that counts what it is asked, and answers NaN to spoiled samples below a time.

    Args:
        model: the one that answers.
        below: samples for which the condition `spoiled` (B,) is True get NaN at times below this one.

    Attributes:
        calls, rows: how often it was called, and with how many samples in all.
        first, last: the smallest and the largest time it was asked about.
    """

    def __init__(self, model: ScoreModel, *, below: float = 0.0) -> None:
        super().__init__(model)
        self.below = below
        self.calls = self.rows = 0
        self.first, self.last = math.inf, -math.inf

    def forward(self, x: Tensor, t: float | Tensor, spoiled: Tensor | None = None) -> Prediction:
        times = torch.as_tensor(t, dtype=torch.float64)
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        if times.numel():
            self.first, self.last = min(self.first, float(times.min())), max(self.last, float(times.max()))
        prediction = self.model(x, t)
        if spoiled is None:
            return prediction
        bad = spoiled & (times < self.below)
        x0, noise = (part.where(~expand(bad, x).bool(), math.nan) for part in (prediction.x0, prediction.noise))
        return Prediction(x0, noise, self.sde, t)


class NormalModel(ScoreModel):
    """The exact belief about data of independent N(mean, std^2), any event shape.

    E[x0 | x] = mean + alpha std^2/(alpha^2 std^2 + sigma^2) (x - alpha mean).

    Args:
        sde: the process.
        mean, std: of every element of the data.
    """

    smooth = True

    def __init__(self, sde: SDE, mean: float, std: float) -> None:
        super().__init__(sde, data_mean=mean, data_std=std)
        self.mean, self.std = mean, std

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        total = (alpha * self.std) ** 2 + sigma**2
        offset = x - expand(alpha * self.mean, x)
        x0 = self.mean + expand(alpha * self.std**2 / total, x) * offset
        return Prediction(x0, expand(sigma / total, x) * offset, self.sde, t)


class RecordedNoise(Noise):
    """Noise that remembers what it gave: `known` has, for every address, the normals drawn there.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.known: dict[tuple[float, ...], Tensor] = {}

    def normal(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        z = super().normal(shape, *address, dtype=dtype, device=device)
        self.known[tuple(float(part) for part in address)] = z
        return z
