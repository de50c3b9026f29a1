"""Densities as pictures need them: log p on a grid, where the mass is, and levels that enclose shares of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import told
from ..distributions.mixture import GaussianMixture
from ..inference.likelihood import log_prob
from ..models.base import ScoreModel
from ..models.exact import MixtureModel
from ..processes import SDE

Box = list[tuple[float, float]]  # (low, high) of each coordinate
MASSES = (0.95, 0.8, 0.6, 0.4, 0.2)  # shares of the mass that the contours enclose


@dataclass(frozen=True)
class Density:
    """log p of points (N, d) -> (N,), a box that holds nearly all of the mass, whether log p costs next to nothing."""

    log_prob: Callable[[Tensor], Tensor]
    box: Box
    cheap: bool = True

    @property
    def dim(self) -> int:
        return len(self.box)

    @property
    def side(self) -> int:
        """How many points along a side of a picture."""
        fine, coarse = (1001, 301) if self.dim == 1 else (301, 101)
        return fine if self.cheap else coarse


def as_density(what: Any, *, t: float | None = None, sde: SDE | None = None, name: str = "density") -> Density:
    """A mixture, the same noised up to t along a process, or a model with log_prob(x, t) (t None: at t_min)."""
    if isinstance(what, GaussianMixture):
        if t is not None and sde is None:
            raise InvalidInputError(
                f"{name} is a GaussianMixture, which has no time: pass MixtureModel(mixture, sde) for its "
                f"density at t={t:g}"
            )
        if t is None or sde is None:
            if bool((what.variances == 0).any()):
                raise InvalidInputError(
                    f"{name} is a mixture with a standard deviation of 0, which has no density: pass "
                    "MixtureModel(mixture, sde)"
                )
            return Density(what.log_prob, mixture_box(what))
        what = MixtureModel(what, sde)
    exact: Any = getattr(what, "log_prob", None)
    if not isinstance(what, ScoreModel) or not callable(exact):
        raise InvalidInputError(
            f"got {name}={told(what)}, expected a GaussianMixture or a MixtureModel, whose densities are known exactly"
        )
    at = check_time_of(what, what.sde.t_min if t is None else t)
    return Density(lambda x: exact(x, at), box_of(what, at))  # type: ignore[arg-type, return-value]


def flow_density(model: ScoreModel, t: float | None = None) -> Density:
    """Any model's density, by its log-density along the probability flow to a relative tolerance of 1e-2."""
    at = check_time_of(model, model.sde.t_min if t is None else t)
    box = box_of(model, at)

    def along(x: Tensor) -> Tensor:
        parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
        start = x.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))
        span = (at, model.sde.t_max)
        return log_prob(model, start, rtol=1e-2, t_span=span, batch_size=4096, progress=False).nats.cpu()

    return Density(along, box, cheap=False)


def check_time_of(model: ScoreModel, t: Any) -> float:
    """t as a number inside the model's range."""
    try:
        at = float(t)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"got t={t!r}, expected one time") from error
    low, high = model.sde.t_min, model.sde.t_max
    if not low * (1 - 1e-6) <= at <= high * (1 + 1e-6):
        raise InvalidInputError(f"time {at:g} is outside [t_min, t_max] = [{low:g}, {high:g}]")
    return min(max(at, low), high)


def mixture_box(mixture: GaussianMixture, alpha: float = 1.0, sigma: float = 0.0) -> Box:
    """Three standard deviations around each component, at (alpha, sigma)."""
    variances = coordinate_variances(mixture)
    reach = 3 * (alpha**2 * variances + sigma**2).sqrt()
    low, high = (alpha * mixture.means - reach).amin(0), (alpha * mixture.means + reach).amax(0)
    return list(zip(low.tolist(), high.tolist()))


def box_of(model: ScoreModel, t: float) -> Box:
    """Where a model's mass is at t: from its mixture, or from its data's mean and standard deviation."""
    alpha, sigma = float(model.sde.alpha(t)), float(model.sde.sigma(t))
    if isinstance(model, MixtureModel):
        return mixture_box(model.mixture, alpha, sigma)
    zeros = torch.zeros(event_dim(model), dtype=torch.float64)
    mean = zeros if model.data_mean is None else zeros + model.data_mean.double().cpu()
    std = zeros + (model.sigma_data if model.data_std is None else model.data_std.double().cpu())
    reach = 2.5 * (alpha**2 * std**2 + sigma**2).sqrt()
    return list(zip((alpha * mean - reach).tolist(), (alpha * mean + reach).tolist()))


def event_dim(model: ScoreModel) -> int:
    """How many coordinates the model's events have (2 where it does not say)."""
    shape = model.event_shape
    if shape is None:
        known = next((v for v in (model.data_mean, model.data_std) if v is not None and v.ndim), None)
        shape = (2,) if known is None else tuple(known.shape)
    if len(shape) != 1:
        raise InvalidInputError(
            f"the model works on events of shape {tuple(shape)}: expected points, (1,) or (2,); images go to image_grid"
        )
    return shape[0]


def coordinate_variances(mixture: GaussianMixture) -> Tensor:
    """The variance of each coordinate in each component, (K, d)."""
    if mixture.axes is None:
        return mixture.variances
    return torch.einsum("kie,ke->ki", mixture.axes**2, mixture.variances)


def marginal(mixture: GaussianMixture, i: int) -> GaussianMixture:
    """The law of coordinate i."""
    variances = coordinate_variances(mixture)[:, i]
    return GaussianMixture(mixture.means[:, i : i + 1], covariances=variances[:, None, None], weights=_weights(mixture))


def noised(mixture: GaussianMixture, alpha: float, sigma: float) -> GaussianMixture:
    """The mixture after noise: means alpha m_k, covariances alpha^2 C_k + sigma^2 I."""
    variances = alpha**2 * mixture.variances + sigma**2
    if mixture.axes is None:
        covariances = torch.diag_embed(variances)
    else:
        covariances = torch.einsum("kie,ke,kje->kij", mixture.axes, variances, mixture.axes)
        covariances = (covariances + covariances.mT) / 2
    return GaussianMixture(alpha * mixture.means, covariances=covariances, weights=_weights(mixture))


def on_grid(function: Callable[[Tensor], Tensor], box: Box, n: int) -> tuple[list[np.ndarray], Tensor]:
    """The axes of n points a side of the box, d = 1 or 2, and a function's values there: (n,) or (n, n), y first."""
    axes = [torch.linspace(low, high, n, dtype=torch.float64) for low, high in box]
    mesh = torch.meshgrid(*axes, indexing="xy")
    points = torch.stack([m.flatten() for m in mesh], 1)
    values = function(points)
    return [a.numpy() for a in axes], values.reshape(*(n,) * len(box), *values.shape[1:])


def mass_levels(p: np.ndarray, masses: Sequence[float] = MASSES) -> np.ndarray:
    """Levels of a density on an even grid whose regions {p >= level} hold these shares of the mass, rising."""
    ordered = np.sort(p.ravel())[::-1]
    held = np.cumsum(ordered)
    levels = ordered[np.searchsorted(held, np.sort(masses)[::-1] * held[-1]).clip(0, len(held) - 1)]
    return np.unique(levels)


def _weights(mixture: GaussianMixture) -> Tensor:
    """Those of a posterior may have underflowed to 0."""
    return mixture.weights.clamp_min(torch.finfo(mixture.weights.dtype).tiny)
