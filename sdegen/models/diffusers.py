"""Models between sdegen and diffusers: a UNet with its scheduler as a ScoreModel, and a scheduler for a model.

A scheduler's configuration tells three things: the forward process (its table of betas, flow or Karras sigmas), what
the network predicts, and how it is told the time. Its sampling settings (clip_sample, thresholding, spacing ...) belong
to no model and are left behind. diffusers is imported when it is first needed.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..processes import EDMSDE, SDE, VESDE, LinearPathSDE, TabulatedVPSDE
from .base import ScoreModel
from .denoiser import Denoiser
from .learned_variance import LearnedVariance
from .networks import unwrapped
from .parametrization import Parametrization, parametrization

_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
_DISTILLED = ("LCM", "TCD", "CMStochastic", "ConsistencyDecoder", "SCM", "FlowMatchLCM")  # their networks are no scores


class _Unconditional(nn.Module):
    """A diffusers UNet called as net(x, t)."""

    time_dtype = torch.float32  # timesteps up to 999 have no place in half precision

    def __init__(self, unet: nn.Module, channels: int) -> None:
        super().__init__()
        self.unet, self.channels = unet, channels
        config: Any = unwrapped(unet).config
        size = config.get("sample_size")
        sides = (size, size) if isinstance(size, int) else size
        self.event_shape = None if sides is None else (config["in_channels"], *sides)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self._call(x, t)

    def _call(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.unet(x, t, return_dict=False, **cond)[0][:, : self.channels]


class _ClassConditional(_Unconditional):
    """A diffusers UNet called as net(x, t, class_labels=labels): (B,) integers, or one for all."""

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | int | None = None) -> Tensor:
        if class_labels is None:
            raise InvalidInputError(
                "this network is class-conditional: pass class_labels=, (B,) integers or one for all"
            )
        if not isinstance(class_labels, Tensor):
            class_labels = torch.full((len(x),), class_labels, device=x.device)
        return self._call(x, t, class_labels=class_labels)


@checked
def from_diffusers(unet: Any, scheduler: Any) -> ScoreModel:
    """A diffusers UNet and the scheduler that it was trained with, as a ScoreModel.

        betas                DDPM, DDIM, PNDM, DPM-Solver, UniPC, DEIS, Euler, ...: TabulatedVPSDE(betas), rescaled to
                             zero terminal signal-to-noise ratio where the scheduler is; the network counts from 0
        flow                 FlowMatch..., or use_flow_sigmas=True: LinearPathSDE(), the network told N t
        Karras               EDMEuler, EDMDPMSolver...: EDMSDE, parametrisation "edm"
        variance exploding   ScoreSdeVe: VESDE, the network a score told sigma

    The model's outputs are the UNet's own. A UNet with twice as many channels out as in becomes a `LearnedVariance`.

    Args:
        unet: a UNet2DModel, unconditional or class-conditional (then the condition's name is `class_labels`).
        scheduler: a scheduler object.

    Returns:
        A Denoiser; `model.net.unet` is the UNet itself, with its weights.

    Raises:
        InvalidInputError: a network or a scheduler that is none of these: say so yourself, with
            Denoiser(net, sde, parametrization=...).
    """
    _check_unet(unet)
    if not hasattr(scheduler, "config"):
        raise InvalidInputError(f"scheduler is {type(scheduler).__name__}: expected a diffusers scheduler object")
    sde, kind, std = _process(scheduler)
    config = unwrapped(unet).config
    wide = config["out_channels"] == 2 * config["in_channels"]
    learned = wide and hasattr(sde, "betas") and scheduler.config.get("variance_type") != "learned"
    make = LearnedVariance if learned else Denoiser
    return make(as_network(unet, learned_variance=learned), sde, parametrization=kind, data_std=std)


def is_unet(net: Any) -> bool:
    """Whether this is a UNet as `from_diffusers` takes it, and not yet what a model calls."""
    config = getattr(unwrapped(net), "config", None)
    return isinstance(config, Mapping) and {"in_channels", "out_channels", "down_block_types"} <= config.keys()


def as_network(unet: Any, *, learned_variance: bool) -> nn.Module:
    """A UNet called as net(x, t), or as net(x, t, class_labels=labels) where it has classes.

    Args:
        unet: a UNet2DModel, wrapped or not.
        learned_variance: whether its second half of channels, if there is one, is passed on.

    Raises:
        InvalidInputError: a network that is none of these.
    """
    config = _check_unet(unet)
    labelled = config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None
    channels = config["out_channels" if learned_variance else "in_channels"]
    return (_ClassConditional if labelled else _Unconditional)(unet, channels)


def _check_unet(unet: Any) -> Any:
    """Its configuration, if it is a network that can be called as net(x, t)."""
    config = getattr(unwrapped(unet), "config", None)
    if not isinstance(unet, nn.Module) or config is None or "in_channels" not in config:
        raise InvalidInputError(f"unet is {type(unet).__name__}: expected a diffusers UNet2DModel")
    takes = inspect.signature(unwrapped(unet).forward).parameters
    if "cross_attention_dim" in config or {"hidden_states", "encoder_hidden_states"} & takes.keys():
        raise InvalidInputError(
            f"{type(unet).__name__} takes conditions (token conditions ...): wrap it in a module net(x, t, **cond) and "
            "use Denoiser(net, sde, parametrization=...)"
        )
    c_in, c_out = config["in_channels"], config["out_channels"]
    if c_out not in (c_in, 2 * c_in):
        raise InvalidInputError(
            f"the UNet takes {c_in} channels and returns {c_out}: expected as many, or twice as many with a learned "
            "variance; where part of its input is a condition, wrap it in a module net(x, t, **cond)"
        )
    return config


def _process(scheduler: Any) -> tuple[SDE, str | Parametrization, float | None]:
    """The process, what the network means, and the data's standard deviation where the scheduler knows it."""
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith(_DISTILLED):
        raise InvalidInputError(f"{name} belongs to a distilled network, which has no score at every noise level")
    if "sigma_data" in config:
        return _karras(config, name)
    if "sampling_eps" in config and "sigma_max" in config:
        sde = VESDE(config["sigma_min"], config["sigma_max"], t_min=config["sampling_eps"])
        return sde, dataclasses.replace(parametrization("score"), c_noise=lambda sde, t: sde.sigma(t)), None
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return _flow(scheduler, config)
    if getattr(scheduler, "betas", None) is not None and "prediction_type" in config:
        return _tabulated(scheduler, config)
    raise InvalidInputError(
        f"{name} has neither betas nor flow nor Karras sigmas: expected a scheduler such as DDPMScheduler, "
        "EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler or EDMEulerScheduler; "
        "otherwise use Denoiser(net, sde, parametrization=...)"
    )


def _tabulated(scheduler: Any, config: Any) -> tuple[SDE, str | Parametrization, None]:
    betas = scheduler.betas.detach().cpu().double()
    left = scheduler.alphas_cumprod.detach().cpu().double()
    if betas[-1] >= 1 and 0 < left[-1] < left[-2]:  # some keep a little signal at the last node, by hand
        betas[-1] = 1 - left[-1] / left[-2]
    name = _prediction(config, ("epsilon", "sample", "v_prediction"))
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        return TabulatedVPSDE(betas), dataclasses.replace(parametrization(name), c_noise=_quarter_log_sigma), None
    return TabulatedVPSDE(betas), f"counting-{name}", None


def _flow(scheduler: Any, config: Any) -> tuple[SDE, Parametrization, None]:
    if config.get("invert_sigmas"):
        raise InvalidInputError("invert_sigmas=True runs from data to noise: expected a scheduler that samples")
    n = config["num_train_timesteps"]
    name = "velocity" if "prediction_type" not in config else _prediction(config, tuple(_PREDICTIONS))
    kind = dataclasses.replace(parametrization(name), c_noise=lambda sde, t: n * t)
    return LinearPathSDE(t_min=1 / n, t_max=1.0), kind, None


def _karras(config: Any, name: str) -> tuple[SDE, str | Parametrization, float]:
    std = float(config["sigma_data"])
    kind = parametrization("edm", std)
    if config["prediction_type"] not in ("epsilon", "v_prediction"):
        raise InvalidInputError(f"prediction_type={config['prediction_type']!r} has no meaning for {name}")
    if config["prediction_type"] == "v_prediction":  # the same with the other sign
        out = kind.c_out
        kind = dataclasses.replace(kind, c_out=lambda sde, t: -out(sde, t))
    if name.startswith("Cosine"):
        kind = dataclasses.replace(kind, c_noise=lambda sde, t: torch.atan(sde.sigma(t)) * (2 / math.pi))
    sde = EDMSDE(config["sigma_min"], config["sigma_max"])
    plain = config["prediction_type"] == "epsilon" and not name.startswith("Cosine")
    return sde, "edm" if plain else kind, std


def _prediction(config: Any, known: tuple[str, ...]) -> str:
    kind = config["prediction_type"]
    if kind not in known:
        raise InvalidInputError(
            f"prediction_type={kind!r} has no meaning for this process: expected {', '.join(map(repr, known))}"
        )
    return _PREDICTIONS[kind]


def _quarter_log_sigma(sde: SDE, t: Tensor) -> Tensor:
    return -sde.half_log_snr(t) / 4


# ---- the way back


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
    import diffusers

    if not isinstance(model, Denoiser):
        raise InvalidInputError(f"{type(model).__name__} has no network of its own: expected a Denoiser")
    at = _Seen(model)
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
            nodes = sde.nodes  # type: ignore[attr-defined]
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
            if self.means(_PREDICTIONS[word]):
                return word
        raise InvalidInputError(
            f"the network predicts nothing that diffusers has for {self.sde!r}: expected a parametrisation "
            f"{', '.join(repr(_PREDICTIONS[w]) for w in known)}"
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
