"""The optimal variance of first-order steps, from the mean square of a model's predicted noise at each noise level.

A model's eps(x, t) is the mean of the noise given x, so that E|eps|^2/d lies between 0 and 1, and with sh = sigma/alpha

    E Var(x0 | x) = sh^2 (1 - E|eps|^2/d)         the mean over the d dimensions:

what a step that holds D = E[x0 | x] leaves out of the variance.

Source: Bao et al. 2022 (arXiv 2201.06503) theorem 1 and section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import whole
from ...core.conditions import merged, rows_of
from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ...core.shapes import check_state, event_mean
from ...models.base import ScoreModel
from ...noise.purposes import Purpose
from ...noise.white import Noise, check_seed


@dataclass(frozen=True)
class NoiseLevel:
    """E|eps(x, t)|^2/d as a function of l = log(alpha/sigma): linear between measured values and constant beyond.

    Near 1 where the model can predict all of the noise (high noise), smaller where noise and data cannot be told apart.

    Args:
        levels: (K,) l, rising.
        values: (K,), E|eps|^2/d there, from 0 to 1.
    """

    levels: Tensor
    values: Tensor

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        l = half_log_snr.clamp(float(self.levels[0]), float(self.levels[-1]))
        k = torch.searchsorted(self.levels, l).clamp(1, len(self.levels) - 1)
        u = (l - self.levels[k - 1]) / (self.levels[k] - self.levels[k - 1])
        return torch.lerp(self.values[k - 1], self.values[k], u)


@torch.no_grad()
@checked
def measure_noise(
    model: ScoreModel, data: Tensor, *, levels: int = 33, seed: int | None = None, batch_size: int = 1024, **cond: Any
) -> NoiseLevel:
    """Measure E|eps|^2/d of a model on data, once, for `make_solver("ancestral", variance=...)`.

    Each sample is perturbed once for every level, so the cost is `levels` evaluations a sample; some hundred samples
    are enough, since the mean runs over their dimensions too.

    Args:
        model: a ScoreModel, in the mode it will sample in.
        data: (n, *event), clean.
        levels: how many noise levels, equally spaced in log(alpha/sigma) over the model's range.
        seed: of the perturbations.
        batch_size: samples to a call.
        **cond: conditions; tensors are per sample of `data`.

    Returns:
        A function of log(alpha/sigma), linear between the levels, that gives E|eps|^2/d.

    Raises:
        InvalidInputError: data that are not (n, *event), fewer than two levels.

    Example:
        >>> import sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0], [1.0]], std=0.2)
        >>> model = sg.MixtureModel(mixture, sg.VPSDE())
        >>> level = sg.measure_noise(model, mixture.sample(200, seed=0), seed=0)
        >>> solver = sg.make_solver("ancestral", variance=level)
        >>> tuple(sg.sample(model, 10, solver=solver, steps=10, seed=0).x.shape)
        (10, 1)
    """
    check_state(data, name="data", event_shape=model.event_shape)
    if not len(data) or levels < 2:
        raise InvalidInputError(f"got {len(data)} samples and levels={levels}, expected at least 1 sample and 2 levels")
    whole(batch_size, "batch_size", least=1)
    sde, noise, cond = model.sde, Noise(check_seed(seed)), merged(cond)
    model.check_conditions(cond, len(data))
    ends = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu")).clamp_min(-10.0)
    l = torch.linspace(float(ends[0]), float(ends[1]), levels, dtype=torch.float64, device="cpu")
    ts = sde.time(l).clamp(sde.t_min, sde.t_max)
    totals = torch.zeros(levels, dtype=torch.float64, device="cpu")
    for rows in torch.arange(len(data), device="cpu").split(batch_size):
        some = data[rows.to(data.device)]
        for k, t in enumerate(ts):
            drawn = Noise(noise.seed, index=rows).normal(
                some.shape, Purpose.MEASURED_NOISE, k, dtype=some.dtype, device=some.device
            )
            eps = model(sde.perturb(some, t, drawn), t, **rows_of(cond, rows)).noise
            totals[k] += float(event_mean(eps.double().square()).sum())
    return NoiseLevel(l, (totals / len(data)).clamp(0.0, 1.0))


Variance = str | Callable[[Tensor], Tensor]


def check_variance(variance: Variance, order: int, corrector: int, noise: str) -> None:
    """Raise where an analytic variance cannot be meant."""
    if not (callable(variance) or variance in ("held", "analytic")):
        raise InvalidInputError(
            f"got variance={variance!r}, expected 'held', 'analytic', or a function of log(alpha/sigma) such as "
            "measure_noise(model, data) gives"
        )
    if variance != "held" and (order > 1 or corrector or noise not in ("sde", "ddim")):
        raise InvalidInputError("variance= is for first-order steps: 'ancestral' or 'ddim', without a corrector")


def widened(l: Tensor, l_next: Tensor, kept: Tensor, alpha_next: Tensor) -> Tensor:
    """What an error of D, in units of sh, adds to x' in steps xh' = D + r (xh - D) + ..., (n,): alpha' (1 - r) sh.

    0 for steps from or to a time without signal.

    Args:
        l, l_next: log(alpha/sigma) at the ends of the steps, (n,).
        kept: r, (n,).
        alpha_next: alpha at their ends, (n,).
    """
    width = alpha_next * (1 - kept) * torch.exp(-l)
    return torch.where(torch.isfinite(width) & torch.isfinite(l) & (l < math.inf), width, 0.0)
