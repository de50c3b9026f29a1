"""The variational bound, term by term, and the hybrid loss that trains a learned variance with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.conditions import merged
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import check_state, event_mean, expand
from ..loop.modes import quiet
from ..models.base import ScoreModel
from ..models.learned_variance import fraction_of
from ..models.prediction import Prediction
from ..noise.purposes import Purpose
from ..noise.white import Noise, check_seed, noise_of
from ..processes import SDE
from .objectives import Seed, node_times
from .tables import nodes

_VARIANCES = ("small", "large", "learned")
_FIRST = ("beta_tilde_2", "beta_1")


@dataclass(frozen=True)
class Bound:
    """A variational bound on -log2 p(x0) per dimension.

    Attributes:
        total: (B,) bits per dimension, the sum of all others.
        prior: (B,) L_T, the divergence of q(x_N | x0) from the prior.
        terms: (B, N) L_0, the decoder's, in column 0, then L_1 ... L_(N-1): column i - 1 belongs to node i.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor


@checked
def vlb(
    model: ScoreModel,
    x0: Tensor,
    *,
    variance: str = "small",
    first: str = "beta_tilde_2",
    levels: int | None = 256,
    seed: int | None = None,
    **cond: Any,
) -> Bound:
    """The variational bound L_T + sum_i L_(i-1) + L_0 in bits per dimension, every term estimated with one noise.

    L_T is KL(q(x_N | x0) || the process's prior N(0, sigma_N^2)); see `vlb_term` for the others. N evaluations.

    Args:
        model: a ScoreModel on a process with a table.
        x0: (B, *event), for 8-bit images 2u/255 - 1.
        variance, first, levels: as `vlb_term`.
        seed: of the noise; sample i's depends on (seed, i).
        **cond: conditions, passed to the model by name.

    Returns:
        Bound.

    Raises:
        InvalidInputError: as `vlb_term`.

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 5.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 100))
        >>> model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=0.5), sde)
        >>> grey = torch.randint(0, 256, (4, 2), generator=torch.Generator().manual_seed(0))
        >>> bound = sg.discrete.vlb(model, 2 * grey / 255 - 1, seed=0)
        >>> tuple(bound.total.shape), tuple(bound.terms.shape)
        ((4,), (4, 100))
    """
    cond = merged(cond)
    _check(model, x0, variance, first, levels, cond)
    draws, n = Noise(check_seed(seed)), len(nodes(model))
    columns = []
    with quiet(model):
        for i in range(1, n + 1):
            noise = draws.normal(x0.shape, Purpose.CHAIN, i, dtype=x0.dtype, device=x0.device)
            t = torch.full((len(x0),), i / n, dtype=torch.float64, device=x0.device)
            prediction = model(model.sde.perturb(x0, t, noise), t, **cond)
            columns.append(_term(model.sde, t, prediction, x0, variance, first, levels=levels))
        prior = _prior_term(model.sde, x0)
    terms = torch.stack(columns, 1)
    return Bound(prior + terms.sum(1), prior, terms)


@checked
def vlb_term(
    model: ScoreModel,
    x0: Tensor,
    *,
    t: int | float | Tensor | None = None,
    noise: Tensor | None = None,
    variance: str = "small",
    first: str = "beta_tilde_2",
    levels: int | None = 256,
    seed: Seed = None,
    **cond: Any,
) -> Tensor:
    """One term of the bound in bits per dimension: L_(i-1) at node i >= 2, L_0 at node 1. Times N it estimates the sum.

        L_(i-1) = KL(q(x_(i-1) | x_i, x0) || N(mu_theta, Sigma)), both Gaussian, mu_theta the mean of q(. | x_i, D)
        L_0     = -log of N(D, Sigma)'s mass on the bin of x0: 2/(levels - 1) wide, the outer two unbounded

    With variance "small" L_(i-1) = (SNR_(i-1) - SNR_i) ||x0 - D||^2/2.

    Args:
        model: a ScoreModel on a process with a table.
        x0: (B, *event), 2u/(levels - 1) - 1 for u = 0 .. levels - 1.
        t: (B,) node numbers 1..N as integers, or times of nodes; None: uniform.
        noise: standard normals like x0; None: drawn.
        variance: "small", "large" or "learned" (see `ddpm`).
        first: beta_tilde_1 is 0; what stands for it, and for the variance of L_0 unless that is learned:
            "beta_tilde_2", as in the papers' code, or "beta_1".
        levels: how many values the data take; None: continuous data, L_0 the density's own.
        seed: as `dsm_loss`.
        **cond: conditions, passed to the model by name.

    Returns:
        (B,).

    Raises:
        InvalidInputError: no table, times that are not nodes, data that do not lie on `levels` values in [-1, 1].

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 5-8 and 13; Nichol & Dhariwal 2021 (arXiv 2102.09672) section 3.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 100))
        >>> model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=0.5), sde)
        >>> x0 = 2 * torch.randint(0, 256, (4, 2)) / 255 - 1
        >>> tuple(sg.discrete.vlb_term(model, x0, t=torch.tensor([1, 2, 50, 100]), seed=0).shape)
        (4,)
    """
    cond = merged(cond)
    _check(model, x0, variance, first, levels, cond)
    times = node_times(model, x0, t, seed)
    prediction, _ = _believed(model, x0, times, noise, seed, cond)
    return _term(model.sde, times, prediction, x0, variance, first, levels=levels)


@checked
def hybrid_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    t: int | float | Tensor | None = None,
    noise: Tensor | None = None,
    weight: Any = None,
    seed: Seed = None,
    scale: float = 1e-3,
    first: str = "beta_tilde_2",
    levels: int | None = 256,
    **cond: Any,
) -> Tensor:
    """The simple loss, which trains the mean, plus scale N `vlb_term`, which trains the learned variance alone.

    N, because the bound is a sum over nodes and one is drawn: the papers' code has N/1000 of one term, here scale N.

    Args:
        model: a `LearnedVariance` on a process with a table.
        x0, t, noise, seed, first, levels, **cond: as `vlb_term`.
        weight: must be None; it stands here for the signature that `fit` calls.
        scale: of the bound.

    Returns:
        (B,).

    Raises:
        InvalidInputError: as `vlb_term`.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 16.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("cosine", 50))
        >>> net = sg.nets.UNet(1, channels=8, out_channels=2)
        >>> model = sg.discrete.LearnedVariance(net, sde, parametrization="noise")
        >>> x0 = 2 * torch.randint(0, 256, (2, 1, 8, 8)) / 255 - 1
        >>> tuple(sg.discrete.hybrid_loss(model, x0, seed=0).shape)
        (2,)
    """
    if weight is not None:
        raise InvalidInputError(f"weight={weight!r}: the hybrid loss has its own, leave it None")
    cond = merged(cond)
    _check(model, x0, "learned", first, levels, cond)
    times = node_times(model, x0, t, seed)
    prediction, noise = _believed(model, x0, times, noise, seed, cond)
    simple = event_mean((prediction.noise - noise) ** 2)
    bound = _term(model.sde, times, prediction, x0, "learned", first, levels=levels, stop_mean=True)
    return simple + scale * len(nodes(model)) * bound


class _Between(NamedTuple):
    """What q(x' | x_i, x0) is made of, node i to i - 1, (B,) float64: its variance, the kernel's, the factor on x0."""

    posterior: Tensor
    kernel: Tensor
    factor: Tensor


def _between(sde: SDE, t: Tensor, first: str) -> _Between:
    n = len(nodes(sde))

    def variances(t: Tensor) -> _Between:
        before = (t - 1 / n).clamp_min(1 / n)
        lost = -torch.expm1(2 * (sde.half_log_snr(t) - sde.half_log_snr(before)))  # 1 - (sh'/sh)^2
        return _Between(sde.sigma(before) ** 2 * lost, sde.sigma(t) ** 2 * lost, sde.alpha(before) * lost)

    here, at_first = variances(t), _is_first(t, n)
    second = variances(torch.full_like(t, 2 / n)).posterior
    beta_1 = sde.sigma(t) ** 2
    return _Between(
        torch.where(at_first, second if first == "beta_tilde_2" else beta_1, here.posterior),
        torch.where(at_first, beta_1, here.kernel),
        torch.where(at_first, 1.0, here.factor),
    )


def _is_first(t: Tensor, n: int) -> Tensor:
    return t < 1.5 / n


def _term(
    sde: SDE,
    t: Tensor,
    prediction: Prediction,
    x0: Tensor,
    variance: str,
    first: str,
    *,
    levels: int | None,
    stop_mean: bool = False,
) -> Tensor:
    """`vlb_term` from a belief at x_t."""
    between, at_first = _between(sde, t, first), _is_first(t, len(nodes(sde)))
    small, large = torch.log(between.posterior), torch.log(between.kernel)
    if variance == "learned":
        v = fraction_of(prediction)
        log_var = v * expand(large, x0) + (1 - v) * expand(small, x0)
    else:
        # as in the papers' code, the decoder of "large" is that of "small"
        log_var = expand(torch.where(at_first, small, large) if variance == "large" else small, x0)
    d = prediction.x0.detach() if stop_mean else prediction.x0
    log_ratio = expand(small, x0) - log_var
    apart = (expand(between.factor, x0) * (x0 - d)) ** 2 * torch.exp(-log_var)
    nats = event_mean((torch.exp(log_ratio) - 1 - log_ratio + apart) / 2)
    rows = at_first.nonzero().flatten()
    if len(rows):
        std = torch.exp(log_var / 2).expand(x0.shape)[rows]
        nats = nats.index_copy(0, rows, event_mean(-_log_mass(x0[rows], d[rows], std, levels)).to(nats.dtype))
    return nats / math.log(2)


def _log_mass(x: Tensor, mean: Tensor, std: Tensor, levels: int | None) -> Tensor:
    """log of N(mean, std^2)'s mass on the bins of x; None: its log density. Computed in float64."""
    x, mean, std = x.double(), mean.double(), std.double()
    if levels is None:
        return -((x - mean) ** 2) / (2 * std**2) - torch.log(std) - math.log(2 * math.pi) / 2
    half = 1 / (levels - 1)
    low, high = (x - mean - half) / std, (x - mean + half) / std
    # the upper tail is mirrored, so that the difference of the two masses does not cancel
    mirrored = low > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    at_bottom, at_top = x < half - 1, x > 1 - half
    open_below = torch.where(mirrored, at_top, at_bottom)
    open_above = torch.where(mirrored, at_bottom, at_top)
    upper = torch.where(open_above, 0.0, torch.special.log_ndtr(high))
    lower = torch.special.log_ndtr(low)
    gap = torch.where(open_below, -math.inf, lower - upper)
    return upper + torch.where(gap > -0.7, torch.log(-torch.expm1(gap)), torch.log1p(-torch.exp(gap)))


def _prior_term(sde: SDE, x0: Tensor) -> Tensor:
    """KL(N(alpha_N x0, sigma_N^2) || N(0, sigma_N^2)) in bits per dimension."""
    square = (sde.alpha(sde.t_max) / sde.sigma(sde.t_max)) ** 2
    return event_mean(x0**2) * float(square) / (2 * math.log(2))


def _believed(
    model: ScoreModel, x0: Tensor, t: Tensor, noise: Tensor | None, seed: Seed, cond: dict[str, Any]
) -> tuple[Prediction, Tensor]:
    if noise is None:
        noise = (
            torch.randn_like(x0)
            if seed is None
            else noise_of(seed).normal(x0.shape, Purpose.CHAIN_LOSS, dtype=x0.dtype, device=x0.device)
        )
    return model(model.sde.perturb(x0, t, noise), t, **cond), noise


def _check(model: ScoreModel, x0: Tensor, variance: str, first: str, levels: int | None, cond: dict[str, Any]) -> None:
    nodes(model)
    check_state(x0, name="x0", event_shape=model.event_shape)
    model.check_conditions(cond, len(x0))
    if variance not in _VARIANCES or first not in _FIRST:
        raise InvalidInputError(
            f"got variance={variance!r}, first={first!r}, expected variance {', '.join(map(repr, _VARIANCES))}; "
            f"first {', '.join(map(repr, _FIRST))}"
        )
    if levels is None:
        return
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise InvalidInputError(f"got levels={levels!r}, expected at least 2, or None for continuous data")
    u = (x0.double() + 1) * ((levels - 1) / 2)
    if not bool((((u - u.round()).abs() < 1e-2) & (u > -0.5) & (u < levels - 0.5)).all()):
        raise InvalidInputError(
            f"x0 does not lie on {levels} equally spaced values from -1 to 1: scale it as 2u/{levels - 1} - 1, say how "
            "many values it takes in levels=, or pass levels=None for continuous data"
        )
