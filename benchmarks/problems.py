"""Problems with exact scores: random Gaussian mixtures in 2, 16 and 64 dimensions, along VP and along Karras' range of
noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sdegen as sg


@dataclass(frozen=True)
class Problem:
    """A model that knows its data's mean, standard deviation and turning level, and samples of its law at t_max."""

    name: str
    model: sg.ScoreModel
    x: Tensor  # (B, *event) at t_max, float64
    cond: dict[str, Any] = field(default_factory=dict)  # of all samples at once

    @property
    def std(self) -> float:
        return self.model.sigma_data

    def reference(self) -> Tensor:
        """The flow's end at t_min, to about 1e-11."""
        sde = self.model.sde
        return sg.sample(
            self.model, self.x.shape, solver="dopri5", rtol=3e-13, x_init=self.x, t_span=(sde.t_max, sde.t_min)
        ).x


def random_mixture(dim: int, seed: int) -> sg.GaussianMixture:
    """A mixture of 3 to 8 components with random means, covariances and weights, total standard deviation about 0.5 to
    2."""
    g = torch.Generator().manual_seed(1000 * dim + seed)
    k = int(torch.randint(3, 9, (), generator=g))
    scale = float(0.5 * 4 ** torch.rand((), generator=g, dtype=torch.float64))
    means = torch.randn(k, dim, generator=g, dtype=torch.float64)
    roots = torch.randn(k, dim, dim, generator=g, dtype=torch.float64) / dim**0.5
    stretch = 0.05 + 0.3 * torch.rand(k, 1, dim, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(roots)[0] * stretch
    weights = 0.3 + torch.rand(k, generator=g, dtype=torch.float64)
    return sg.GaussianMixture(scale * means, covariances=scale**2 * axes @ axes.mT, weights=weights)


# samples by dimension: where steps are few, the one in a hundred that ends beside another mode is most of the error
BATCH = {2: 512, 16: 384, 64: 192}


def problems(instances: int = 3, dims: tuple[int, ...] = (2, 16, 64), batch: int | None = None) -> list[Problem]:
    """`instances` random mixtures for each dimension and process."""
    made = []
    for dim in dims:
        for name, sde in (("VP", sg.VPSDE()), ("Karras", sg.EDMSDE())):
            for i in range(instances):
                model = sg.MixtureModel(random_mixture(dim, i + (100 if name == "Karras" else 0)), sde)
                turn = model.data.turning
                model.data_covariance, model.data_turn = None, turn
                x = sde.prior((batch or BATCH[dim], dim), seed=i, dtype=torch.float64)
                made.append(Problem(f"{dim}-D {name} {i}", model, x))
    return made
