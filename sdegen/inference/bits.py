"""Bits per dimension of discrete data: bounds from the density of dequantised data, by several draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import check_state, event_sum, flat
from ..core.show import Shown, spread
from ..models.base import ScoreModel
from ..noise.purposes import Purpose
from ..noise.white import Noise, check_seed
from .checks import check_model, sample_numbers
from .divergence import choose_divergence
from .likelihood import LogProb, check_levels, log_prob

DEQUANTISATIONS = ("truncated-normal", "uniform")


@dataclass(frozen=True, repr=False)
class BitsPerDim(Shown):
    """An upper bound on -log2 P(u)/d of discrete data u, per sample, and its errors.

    Attributes:
        bits: (B,) float64.
        stderr: (B,) the standard error from the draws, NaN for one.
        errors: those of `LogProb.errors` in bits per dimension, averaged over the draws, and "probes", the standard
            error from random probes. There is no "truncation": the bound is on the probability that the model at t_min
            gives the bin.
        nfe: (B,) evaluations of all draws.
        seed: of draws and probes.
    """

    bits: Tensor
    stderr: Tensor
    errors: dict[str, Tensor]
    nfe: Tensor
    seed: int

    def _facts(self):
        errors = {f"{name}_error": spread(size) for name, size in self.errors.items()}
        return {
            "bits": spread(self.bits),
            "stderr": spread(self.stderr),
            **errors,
            "evaluations": spread(self.nfe),
            "seed": self.seed,
        }


@checked
def bits_per_dim(
    model: ScoreModel,
    x: Tensor,
    *,
    levels: int,
    draws: int = 1,
    dequantisation: str = "truncated-normal",
    seed: int | None = None,
    index: Sequence[int] | Tensor | None = None,
    **how: Any,
) -> BitsPerDim:
    """-log2 P(u)/d of grey levels u = 0 .. L-1 scaled to x = 2 u/(L-1) - 1, as a bound.

    The probability of u is the integral of the density p over the bin of x, |v - x| <= b = 1/(L-1) in every dimension.
    With draws v_1 .. v_k of a density q on the bin

        -log P(u) <= E[-log (1/k) sum_j p(v_j)/q(v_j)],

    equal in the limit of large k. p is the law of x_t/alpha at t_min, r = sigma/alpha there:

        "uniform"           v = x + b (2 U - 1), which adds log2(L-1) - 1 bits per dimension to those of p
        "truncated-normal"  v = x + r z, z a normal inside |z| <= b/r: what the model was trained to see at t_min, so
                            one draw gives a tight bound where the noise there is a good part of the bin

    Args:
        model: a ScoreModel of data so scaled.
        x: (B, *event), clean data, on the L levels.
        levels: L, such as 256 or, for the digits, 17.
        draws: k. More than one needs the exact divergence: the exponential of a noisy logarithm is too large on
            average, and the bound would fail.
        dequantisation: "truncated-normal" or "uniform".
        seed: sample i's draws depend on (seed, its number) alone. None: a fresh one, told in `.seed`.
        index: the samples' numbers, default 0..B-1.
        **how: as `log_prob` takes them: solver, rtol, divergence, batch_size, conditions ...

    Returns:
        BitsPerDim.

    Raises:
        InvalidInputError: before the first evaluation: data off the levels, a model of latents, an unknown
            dequantisation, several draws with random probes, what `log_prob` would refuse.

    Source: Burda et al. 2016 (arXiv 1509.00519) eq. 8; Ho et al. 2019 (arXiv 1902.00275) for dequantisation; Zheng et
    al. 2023 (arXiv 2305.03935) section 4.2 for the truncated normal.

    Example:
        >>> import torch, sdegen as sg
        >>> grey = torch.randint(0, 17, (20, 2), generator=torch.Generator().manual_seed(0))  # 17 levels, uniform
        >>> model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=0.6), sg.EDMSDE(sigma_min=0.05))
        >>> found = sg.bits_per_dim(model, grey / 8 - 1.0, levels=17, rtol=1e-3, seed=0)
        >>> 4.0 < float(found.bits.mean()) < 5.0  # log2(17) = 4.09 are possible
        True
    """
    check_model(model)
    if model.space is not None:
        raise InvalidInputError(
            "this model is one of latents, which have no grey levels, and what they decode to has no density that is "
            "known: log_prob(model, model.space.encode(x)) is the density of latents"
        )
    check_state(x, event_shape=model.event_shape)
    _check(x, levels, draws, dequantisation, how)
    seed, numbers = check_seed(seed), sample_numbers(index, x.shape[0])
    noise, half = Noise(seed, index=numbers), 1 / (levels - 1)
    t = model.sde.t_min
    alpha, sigma = float(model.sde.alpha(t)), float(model.sde.sigma(t))
    dim = max(flat(x).shape[1], 1)
    logs, found = [], []
    for k in range(draws):
        z = noise.normal(x.shape, Purpose.DEQUANTISE, k, dtype=torch.float64, device=x.device)
        v, log_q = _inside(z, half, sigma / alpha if dequantisation == "truncated-normal" else None)
        one = log_prob(model, (x.double() + v).to(x.dtype) * alpha, seed=seed + k, index=numbers, **how)
        logs.append(one.nats + dim * math.log(alpha) - log_q)
        found.append(one)
    weights = torch.stack(logs)  # (k, B)
    log_p = torch.logsumexp(weights, 0) - math.log(draws)
    share = torch.softmax(weights, 0)  # the standard error of log(mean) is that of the mean over the mean
    spread = (
        (share - 1 / draws).square().sum(0).mul(draws / max(draws - 1, 1)).sqrt() if draws > 1 else log_p * math.nan
    )
    scale = dim * math.log(2)
    return BitsPerDim(-log_p / scale, spread / scale, _errors(found, scale), sum(f.nfe for f in found), seed)  # type: ignore


def _inside(z: Tensor, half: float, ratio: float | None) -> tuple[Tensor, Tensor]:
    """Normals z turned into draws v of q on |v| <= half, and log q(v), (B,); ratio: the normal's std, None: uniform."""
    u = torch.special.ndtr(z)
    d = z[0].numel() if len(z) else 1
    if ratio is None:
        return half * (2 * u - 1), torch.full_like(event_sum(z), -d * math.log(2 * half))
    tau = half / ratio
    below = float(torch.special.ndtr(torch.tensor(-tau, dtype=torch.float64, device="cpu")))
    inside = 1 - 2 * below
    normal = torch.special.ndtri(below + u * inside).clamp(-tau, tau)
    log_q = -event_sum(normal**2) / 2 - d * (math.log(2 * math.pi) / 2 + math.log(ratio) + math.log(inside))
    return ratio * normal, log_q


def _errors(found: list[LogProb], scale: float) -> dict[str, Tensor]:
    parts = {name: [f.errors[name] for f in found] for name in ("solver", "prior")}
    parts["probes"] = [f.stderr for f in found]
    return {name: torch.stack(values).mean(0) / scale for name, values in parts.items()}


def _check(x: Tensor, levels: int, draws: int, dequantisation: str, how: dict[str, Any]) -> None:
    if dequantisation not in DEQUANTISATIONS:
        wanted = " or ".join(map(repr, DEQUANTISATIONS))
        raise InvalidInputError(f"got dequantisation={dequantisation!r}, expected {wanted}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InvalidInputError(f"got draws={draws!r}, expected a number of draws, at least 1")
    kind = choose_divergence(how.get("divergence", "auto"), flat(x).shape[1], how.get("probes", 1))
    if draws > 1 and kind != "exact":
        raise InvalidInputError(
            f"draws={draws} with random probes: the exponential of a noisy logarithm is too large on average, and the "
            "bound fails; pass divergence='exact', or draws=1"
        )
    if how.get("grad") or "t_span" in how:
        raise InvalidInputError("grad= and t_span= have no meaning for a bound in bits; use log_prob")
    u = (x.double() + 1) * (check_levels(levels) - 1) / 2
    off = (u - u.round()).abs()
    if x.numel() and (bool((off > 1e-3).any()) or bool((u < -0.5).any()) or bool((u > levels - 0.5).any())):
        raise InvalidInputError(
            f"x is not on {levels} levels: expected clean data 2 u/{levels - 1} - 1, u = 0 .. {levels - 1}, but a "
            f"value is {float(x.flatten()[off.flatten().argmax()]):g}; for data scaled otherwise use log_prob"
        )
