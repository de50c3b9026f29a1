"""Score-matching objectives: denoising, implicit and sliced, their weightings, and the laws that times are drawn from.

All three are E_t w(t) E ||s_theta - s||^2 / d up to a constant that theta does not enter, w being a weight on the
score's error and d the number of elements of the event. The square is a *mean* over the event, so that a learning rate
means the same for points and for images. (A likelihood bound in nats sums over the event: it is d (t_max - t_min)/2
times the loss with weight "likelihood".)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.conditions import merged
from ..core.errors import InvalidInputError
from ..core.kinds import checked, kind_of, take
from ..core.shapes import as_time, check_state, check_time, event_mean, expand, flat, plus
from ..models.base import ScoreModel
from ..models.networks import unwrapped
from ..models.parametrization import without_told
from ..noise.purposes import Purpose
from ..noise.white import Noise, noise_of
from ..processes import SDE

Times = str | float | Tensor  # the name of a law, or times
Weight = str | Callable[[SDE, Tensor], Any]  # the name of a weight, or a function of (sde, t)
Seed = int | Noise | None

_NEAR = 1e-6  # times are checked up to this, relative to t_max
_P_MEAN, _P_STD = -1.2 - math.log(0.5), 1.2  # of log sigma for data of std 1: Karras' -1.2 belongs to his std 0.5

_LAWS = ("uniform", "log-normal", "importance")

# The named weights as weights of F's error, w (c/sigma)^2 with c = alpha s/m, from (sde, t, alpha(t), sigma(t), c).
_WEIGHTS: dict[str, Callable[[SDE, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "simple": lambda sde, t, alpha, sigma, c: c**2,
    "likelihood": lambda sde, t, alpha, sigma, c: (sde.diffusion(t) / sigma * c) ** 2,
    "edm": lambda sde, t, alpha, sigma, c: torch.ones_like(c),
    "min-snr": lambda sde, t, alpha, sigma, c: c**2 * (5 * (sigma / alpha) ** 2).clamp_max(1),
    "one": lambda sde, t, alpha, sigma, c: (c / sigma) ** 2,
}

# What suits a parametrisation: (law, weight).
_SUITS = {
    "edm": ("log-normal", "edm"),
    "v": ("uniform", "edm"),
    "velocity": ("uniform", "edm"),
    "x0": ("uniform", "min-snr"),
}
_SUITS_ANY = ("uniform", "simple")

# The law that a weight brings where it is given alone; others: uniform.
_LAW_OF_WEIGHT = {"edm": "log-normal", "likelihood": "importance"}


@checked
def dsm_loss(
    model: ScoreModel | nn.Module,
    x0: Tensor,
    *,
    t: Times | None = None,
    noise: Tensor | None = None,
    weight: Weight | None = None,
    seed: Seed = None,
    **cond: Any,
) -> Tensor:
    """Denoising score matching: w(t) ||s_theta(x_t, t) + noise/sigma||^2 / d at x_t = alpha x0 + sigma noise.

    At each t its expectation is that of w ||s_theta - grad log p_t||^2 / d plus a constant. The error is measured where
    it is well conditioned at every noise level, in the raw network of Karras' parametrisation, s being the data's std:

        F = (sigma x0/s - alpha s noise)/m,  m^2 = sigma^2 + alpha^2 s^2,  score error = alpha s/(sigma m) F error

    Weights w(t), of the score's error:
        "simple": sigma^2, the plain error of the noise
        "likelihood": g^2
        "edm": sigma^2 m^2/(alpha s)^2, the plain error of F
        "min-snr": sigma^2 min(SNR, 5)/SNR
        "one": 1
        or a function of (sde, t) that gives t's shape.
    Laws of t:
        "uniform": on [t_min, t_max]
        "importance": density g^2/sigma^2 over its integral, that is uniform in log(alpha/sigma). The loss is divided by
            (t_max - t_min) times the density, so its mean stays that of uniform t; with "likelihood" its variance falls
        "log-normal": log(sigma/(alpha s)) ~ N(-1.2 + log 2, 1.2^2) within the range of the process. These are Karras'
            P_mean and P_std, which belong to data of std 0.5, for data of any std. The law is a part of the weighting:
            nothing is divided by its density.
    Where neither is given: parametrisation "edm" has log-normal times and weight "edm"; "v" and "velocity" have uniform
    times and weight "edm"; "x0" uniform and "min-snr"; all else uniform and "simple". A weight given alone brings its
    law: "edm" the log-normal, "likelihood" the importance law, all others the uniform.

    Args:
        model: a ScoreModel, also inside DistributedDataParallel or torch.compile, as accelerate's `prepare` gives it.
        x0: clean samples (B, *event).
        t: times, a scalar or (B,), or the name of a law.
        noise: standard normals like x0; None: drawn.
        weight: a name or a function.
        seed: sample i's time and noise depend on (seed, i) alone; a `Noise` gives other numbers than 0..B-1. None:
            torch's global generator.
        **cond: conditions, passed to the model by name; those called t, noise, weight, seed or x0 in `cond={...}`.

    Returns:
        (B,), one number per sample.

    Raises:
        InvalidInputError: shapes, dtypes or conditions that do not fit, unknown names, times outside the process;
            before the network is called.

    Source: Vincent 2011; Song et al. 2021 (arXiv 2011.13456) eq. 7; Song et al. 2021 (arXiv 2101.09258) section 5 for
    the likelihood weight and its importance law; Karras et al. 2022 (arXiv 2206.00364) table 1; Hang et al. 2023
    (arXiv 2303.09556) for min-SNR.

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.Denoiser(sg.nets.MLP(2), sg.VPSDE(), parametrization="noise")
        >>> x0 = torch.randn(64, 2)
        >>> loss = sg.dsm_loss(model, x0, seed=0)
        >>> loss.mean().backward()  # in a loop of your own; sg.fit has one
        >>> tuple(loss.shape)
        (64,)
    """
    cond = merged(cond)
    at = _draw(model, x0, t, noise, weight, seed, cond=cond)
    truth = expand(at.of_x0, x0) * x0 + expand(at.of_noise, x0) * at.noise
    error = model(at.x, at.t, **cond).combine(at.of_x0, at.of_noise) - truth
    return event_mean(error**2) * at.weight.to(x0.dtype)


@checked
def implicit_loss(
    model: ScoreModel | nn.Module,
    x0: Tensor,
    *,
    t: Times | None = None,
    noise: Tensor | None = None,
    weight: Weight | None = None,
    seed: Seed = None,
    **cond: Any,
) -> Tensor:
    """Implicit score matching: w(t) (2 tr(grad_x s_theta) + ||s_theta||^2) / d at x_t.

    Twice Hyvarinen's objective, so that its mean is that of `dsm_loss` less a constant, for any weight. The trace is
    exact and takes d backward passes: for small d.

    Args:
        model: a ScoreModel.
        x0: (B, *event), clean samples.
        t, noise, weight, seed, **cond: as `dsm_loss`.

    Returns:
        (B,), one number per sample.

    Raises:
        InvalidInputError: as `dsm_loss`.

    Source: Hyvarinen 2005, eq. 4, here at every noise level.

    Example:
        >>> import torch, sdegen as sg
        >>> exact = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=1.0), sg.VPSDE())
        >>> x0 = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> abs(float(sg.implicit_loss(exact, x0, weight="one", seed=0).detach().mean()) + 1) < 0.1  # -E|score|^2/d
        True
    """
    cond = merged(cond)
    at = _draw(model, x0, t, noise, weight, seed, cond=cond)
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x, score = _score(model, at, cond)
        trace = torch.zeros_like(score[:, 0])
        for i in range(score.shape[1]):
            trace = trace + _gradient(score[:, i], x)[:, i]
        loss = _per_dimension(2 * trace + (score**2).sum(1), at, score)
    return loss if keep else loss.detach()


@checked
def sliced_loss(
    model: ScoreModel | nn.Module,
    x0: Tensor,
    *,
    t: Times | None = None,
    noise: Tensor | None = None,
    weight: Weight | None = None,
    seed: Seed = None,
    variance_reduced: bool = True,
    **cond: Any,
) -> Tensor:
    """Sliced score matching: w(t) (2 v' grad_x(s_theta) v + ||s_theta||^2) / d at x_t, along one v ~ N(0, I).

    Its mean over v is `implicit_loss`, for one backward pass whatever d.

    Args:
        model: a ScoreModel.
        x0: (B, *event), clean samples.
        t, noise, weight, seed, **cond: as `dsm_loss`; the seed decides v too.
        variance_reduced: False puts (v' s_theta)^2 for ||s_theta||^2, which is its mean: the plain form.

    Returns:
        (B,), one number per sample.

    Raises:
        InvalidInputError: as `dsm_loss`.

    Source: Song et al. 2019 (arXiv 1905.07088) eq. 7 and 8.

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.Denoiser(sg.nets.MLP(2), sg.VPSDE())
        >>> loss = sg.sliced_loss(model, torch.randn(64, 2), seed=0)  # sg.fit(..., loss=sg.sliced_loss) trains with it
        >>> tuple(loss.shape)
        (64,)
    """
    cond = merged(cond)
    at = _draw(model, x0, t, noise, weight, seed, cond=cond)
    v = flat(_normal(seed, x0, Purpose.LOSS_PROBE))
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x, score = _score(model, at, cond)
        along = (score * v).sum(1)
        square = (score**2).sum(1) if variance_reduced else along**2
        loss = _per_dimension(2 * (_gradient(along, x) * v).sum(1) + square, at, score)
    return loss if keep else loss.detach()


# ---- where the model is asked


class _Draw(NamedTuple):
    """Noisy samples and what they were made of: x and noise (B, *event), the others (B,) in float64."""

    x: Tensor
    noise: Tensor
    t: Tensor
    sigma: Tensor
    of_x0: Tensor  # F = of_x0 x0 + of_noise noise
    of_noise: Tensor
    weight: Tensor  # of F's error, over the density of t where the law asks for that


def _draw(
    model: Any,
    x0: Tensor,
    t: Times | None,
    noise: Tensor | None,
    weight: Weight | None,
    seed: Seed,
    *,
    cond: dict[str, Any],
) -> _Draw:
    model = unwrapped(model)  # it is called as it is, wrapper and all; what is known of it, the model inside says
    take(model, "model", kind_of(ScoreModel))
    check_state(x0, name="x0", event_shape=model.event_shape, finite=False)
    if noise is not None and noise.shape != x0.shape:
        raise InvalidInputError(f"noise has shape {tuple(noise.shape)}, expected x0's {tuple(x0.shape)}")
    if cond:
        model.check_conditions(cond, len(x0))
    sde, std = model.sde, model.sigma_data
    law, weight = _chosen(model, t, weight)
    times, correction = _times(law, sde, std, x0, seed)
    noise = _normal(seed, x0, Purpose.LOSS_NOISE) if noise is None else noise
    alpha, sigma = sde.at(times).alpha, sde.at(times).sigma
    signal = std * alpha
    m = torch.hypot(sigma, signal)
    c = signal / m
    w = _weight(weight, sde, times, alpha, sigma, c)
    w = w if correction is None else w * correction
    x = plus(expand(alpha, x0) * x0, expand(sigma, x0), noise)
    return _Draw(x, noise, times, sigma, sigma / (std * m), -c, w)


def _chosen(model: ScoreModel, t: Times | None, weight: Weight | None) -> tuple[Times, Weight]:
    """The law (or the times) and the weight: those given, else those that suit."""
    if isinstance(t, str) and t not in _LAWS:
        raise InvalidInputError(f"got t={t!r}, expected {_listed(_LAWS)}, or times as a tensor")
    known = weight is None or (weight in _WEIGHTS if isinstance(weight, str) else callable(weight))
    if not known:
        raise InvalidInputError(f"got weight={weight!r}, expected {_listed(_WEIGHTS)}, or a function of (sde, t)")
    kind = model.parametrization
    law, suited = _SUITS.get(without_told(kind)[0], _SUITS_ANY) if isinstance(kind, str) else _SUITS_ANY
    if weight is not None:
        law = _LAW_OF_WEIGHT.get(weight, "uniform") if isinstance(weight, str) else "uniform"
    return law if t is None else t, suited if weight is None else weight


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))


def _times(law: Times, sde: SDE, std: float, x0: Tensor, seed: Seed) -> tuple[Tensor, Tensor | None]:
    """Times (B,) in float64, and what to multiply the loss with (None: nothing)."""
    if not isinstance(law, str):
        return _given_times(law, sde, x0), None
    u, length = _uniform(seed, x0), sde.t_max - sde.t_min
    if law == "uniform":
        return sde.t_min + length * u, None
    high, low = _half_log_snr(sde, sde.t_min), _half_log_snr(sde, sde.t_max)
    if law == "log-normal":
        centre = _P_MEAN + math.log(std)  # of -half_log_snr = log(sigma/alpha)
        first, last = (-high - centre) / _P_STD, (-low - centre) / _P_STD
        below, above = (math.erfc(-z / math.sqrt(2)) / 2 for z in (first, last))
        z = torch.special.ndtri(below + (above - below) * u).clamp(first, last)
        return sde.time(-centre - _P_STD * z).clamp(sde.t_min, sde.t_max), None
    if math.isinf(low):
        raise InvalidInputError(f"t='importance': the signal-to-noise ratio of {sde} ends at 0: use t='uniform'")
    t = sde.time(high + (low - high) * u).clamp(sde.t_min, sde.t_max)
    return t, 2 * (high - low) / length * (sde.at(t).sigma / sde.at(t).g) ** 2


def _given_times(t: float | Tensor, sde: SDE, x0: Tensor) -> Tensor:
    t = as_time(t).detach().to(x0.device, torch.float64)
    check_time(t, x0)
    slack = _NEAR * sde.t_max
    if t.numel() and not bool(((t >= sde.t_min - slack) & (t <= sde.t_max + slack)).all()):
        raise InvalidInputError(
            f"t reaches from {float(t.min()):g} to {float(t.max()):g}: expected times of the process, "
            f"from t_min={sde.t_min:g} to t_max={sde.t_max:g}"
        )
    return t.expand(len(x0))


def _half_log_snr(sde: SDE, t: float) -> float:
    """log(alpha/sigma) at one time, through the process's memo."""
    level = sde.at(t)
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf


def _weight(weight: Weight, sde: SDE, t: Tensor, alpha: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
    """The weight of F's error, w (c/sigma)^2: (B,) in float64."""
    if isinstance(weight, str):
        return _WEIGHTS[weight](sde, t, alpha, sigma, c)
    try:
        w = torch.as_tensor(weight(sde, t), dtype=torch.float64, device=t.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"weight(sde, t) is no tensor of t's shape: {error}") from error
    if w.ndim and w.shape != t.shape:
        raise InvalidInputError(f"weight(sde, t) has shape {tuple(w.shape)}: expected t's, {tuple(t.shape)}")
    return w * (c / sigma) ** 2


def _uniform(seed: Seed, x0: Tensor) -> Tensor:
    """(B,) numbers in [0, 1), float64."""
    if seed is None:
        return torch.rand(len(x0), dtype=torch.float64, device=x0.device)
    return noise_of(seed).uniform((len(x0),), Purpose.LOSS_TIME, dtype=torch.float64, device=x0.device)


def _normal(seed: Seed, x0: Tensor, purpose: int) -> Tensor:
    """Standard normals like x0."""
    if seed is None:
        return torch.randn_like(x0)
    return noise_of(seed).normal(x0.shape, purpose, dtype=x0.dtype, device=x0.device)


# ---- the score and its gradients


def _score(model: Any, at: _Draw, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """x_t, which asks for gradients, and the score there, (B, d)."""
    x = at.x.detach().requires_grad_()
    return x, flat(model(x, at.t, **cond).score)


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """grad_x of one number per sample, (B, d), with its own graph."""
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)
    return flat(gradient)


def _per_dimension(value: Tensor, at: _Draw, score: Tensor) -> Tensor:
    w = at.weight * (at.sigma / at.of_noise) ** 2
    return value / score.shape[1] * w.to(value.dtype)
