"""The way back: a diffusers scheduler for a model's network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ...processes import nodes_of
from ..base import ScoreModel
from ..denoiser import Denoiser
from ..learned_variance import LearnedVariance
from ..parametrization import parametrization
from .folders import library
from .schedulers import PREDICTIONS


@checked
def to_scheduler(model: ScoreModel) -> Any:
    """A diffusers scheduler for a model's network: the same process, prediction and network time.

    DDIMScheduler for a table of betas (DDPMScheduler for a `LearnedVariance`), FlowMatchEulerDiscreteScheduler,
    EDMEulerScheduler, ScoreSdeVeScheduler. What the network means is found from its coefficients, so a Denoiser made by
    hand has one too; other deterministic schedulers come from this one by their `from_config`.

    Args:
        model: a Denoiser.

    Returns:
        The scheduler, with its sampling settings switched off (clip_sample, thresholding).

    Raises:
        InvalidInputError: where diffusers has none: another process, or a network that is told the time differently,
            such as the t = i/N of a model made here (use `discrete.counting`).
    """
    if not isinstance(model, Denoiser):
        raise InvalidInputError(f"{type(model).__name__} has no network of its own: expected a Denoiser")
    at, diffusers = _Seen(model), library()
    if at.is_table:
        betas = model.sde.betas  # type: ignore[attr-defined]
        common: dict[str, Any] = {
            "num_train_timesteps": len(betas),
            "trained_betas": betas.tolist(),
            "prediction_type": at.prediction(("epsilon", "sample", "v_prediction")),
            "clip_sample": False,
            "timestep_spacing": "trailing" if betas[-1] == 1 else "leading",
        }
        at.check_time(len(betas) * at.t - 1, "the integer N t - 1 (see discrete.counting)")
        if isinstance(model, LearnedVariance):
            return diffusers.DDPMScheduler(variance_type="learned_range", **common)
        return diffusers.DDIMScheduler(**common)
    if at.follows(1 - at.t, at.t):
        at.prediction(("flow_prediction",))
        n = round(float(at.c_noise[-1] / at.t[-1]))
        at.check_time((n if n > 1 else 1000) * at.t, "N t, N > 1")
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=n)
    one = torch.ones_like(at.t)
    if at.follows(one, at.t):
        sign, s = at.edm_sign(), model.sigma_data
        at.check_time(torch.log(at.sigma) / 4, "log(sigma)/4")
        return diffusers.EDMEulerScheduler(
            sigma_min=model.sde.t_min,
            sigma_max=model.sde.t_max,
            sigma_data=s,
            prediction_type="epsilon" if sign > 0 else "v_prediction",
        )
    if bool((at.alpha == 1).all()) and at.is_geometric() and at.means("score"):
        at.check_time(at.sigma, "sigma")
        low, high = (float(model.sde.sigma(t)) for t in (0.0, 1.0))
        return diffusers.ScoreSdeVeScheduler(sigma_min=low, sigma_max=high, sampling_eps=model.sde.t_min)
    raise InvalidInputError(
        f"diffusers has no scheduler for {model.sde!r}: it has them for TabulatedVPSDE, LinearPathSDE, EDMSDE and VESDE"
    )


class _Seen:
    """A Denoiser's process and coefficients at some of its times, from which its kind is told."""

    def __init__(self, model: Denoiser) -> None:
        sde = model.sde
        self.sde, self.std = sde, model.sigma_data
        self.is_table = hasattr(sde, "betas")
        if self.is_table:
            nodes = nodes_of(sde)
            self.t = nodes[:-1][:: max(1, len(nodes) // 16)]
        else:
            self.t = torch.linspace(sde.t_min, sde.t_max, 19, dtype=torch.float64, device="cpu")[1:-1]
        self.alpha, self.sigma = sde.alpha(self.t), sde.sigma(self.t)
        c = model.coefficients()
        self.c_skip, self.c_out, self.c_in, self.c_noise = (
            f(sde, self.t).expand(self.t.shape) for f in (c.c_skip, c.c_out, c.c_in, c.c_noise)
        )

    def means(self, name: str) -> bool:
        """Whether the network is called and read as a parametrisation of this name."""
        c = parametrization(name, self.std)
        wanted = (c.c_skip, c.c_out, c.c_in)
        return all(
            _close(a, f(self.sde, self.t)) for a, f in zip((self.c_skip, self.c_out, self.c_in), wanted, strict=True)
        )

    def prediction(self, known: tuple[str, ...]) -> str:
        """diffusers' word for what the network predicts."""
        for word in known:
            if self.means(PREDICTIONS[word]):
                return word
        raise InvalidInputError(
            f"the network predicts nothing that diffusers has for {self.sde!r}: expected a parametrisation "
            f"{', '.join(repr(PREDICTIONS[w]) for w in known)}"
        )

    def edm_sign(self) -> float:
        if self.means("edm"):
            return 1.0
        self.c_out = -self.c_out
        if self.means("edm"):
            return -1.0
        raise InvalidInputError(f"the network along {self.sde!r} has not Karras' preconditioning: expected 'edm'")

    def follows(self, alpha: Tensor, sigma: Tensor) -> bool:
        return _close(self.alpha, alpha) and _close(self.sigma, sigma)

    def is_geometric(self) -> bool:
        step = torch.log(self.sigma).diff()
        return _close(step, step.mean().expand(step.shape)) and float(step[0]) > 0

    def check_time(self, wanted: Tensor, words: str) -> None:
        if not _close(self.c_noise, wanted):
            raise InvalidInputError(
                f"the network is told {float(self.c_noise[0]):g} at t = {float(self.t[0]):g}, where diffusers would "
                f"tell it {float(wanted[0]):g}: expected a Parametrization whose c_noise is {words}"
            )


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-9 * (1 + b.abs())).all())
