"""What a diffusers scheduler tells: the process, what the network predicts, and how it is told the time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...processes import EDMSDE, SDE, VESDE, LinearPathSDE, TabulatedVPSDE
from ..parametrization import Parametrization, parametrization

PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
_DISTILLED = (
    "LCM",
    "TCD",
    "CMStochastic",
    "ConsistencyDecoder",
    "SCM",
    "FlowMatchLCM",
    "HeliosDMD",
)  # their networks are no scores


def process_of(scheduler: Any) -> tuple[SDE, str | Parametrization, float | None]:
    """The process, what the network means, and the data's standard deviation where the scheduler knows it."""
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith(_DISTILLED):
        raise InvalidInputError(f"{name} belongs to a distilled network, which has no score at every noise level")
    if "sigma_data" in config:
        return _karras(config, name)
    if "sampling_eps" in config and "sigma_max" in config:
        sde = VESDE(config["sigma_min"], config["sigma_max"], t_min=config["sampling_eps"])
        return sde, "sigma-score", None
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return _flow(scheduler, config)
    if getattr(scheduler, "betas", None) is not None and "prediction_type" in config:
        return _tabulated(scheduler, config)
    raise InvalidInputError(
        f"{name} has neither betas nor flow nor Karras sigmas: expected a scheduler such as DDPMScheduler, "
        "EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler or EDMEulerScheduler; "
        "otherwise use Denoiser(net, sde, parametrization=...)"
    )


def _tabulated(scheduler: Any, config: Any) -> tuple[SDE, str, None]:
    betas = _betas_in_force(scheduler)
    name = _prediction(config, ("epsilon", "sample", "v_prediction"))
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        return TabulatedVPSDE(betas), f"log-sigma-{name}", None
    return TabulatedVPSDE(betas), f"counting-{name}", None


def _betas_in_force(scheduler: Any) -> Tensor:
    """Those whose products are `alphas_cumprod`, float64: some schedulers change these by hand afterwards."""
    betas = scheduler.betas.detach().cpu().double()
    left = scheduler.alphas_cumprod.detach().cpu().double()
    if betas[-1] >= 1 and 0 < left[-1] < left[-2]:  # a little signal kept at the last node
        betas[-1] = 1 - left[-1] / left[-2]
    if torch.allclose(torch.cumprod(1 - betas, 0), left, rtol=1e-3, atol=1e-6):
        return betas
    return 1 - left / torch.cat([torch.ones_like(left[:1]), left[:-1]])


def _flow(scheduler: Any, config: Any) -> tuple[SDE, str, None]:
    if config.get("invert_sigmas"):
        raise InvalidInputError("invert_sigmas=True runs from data to noise: expected a scheduler that samples")
    n = config["num_train_timesteps"]
    name = "velocity" if "prediction_type" not in config else _prediction(config, tuple(PREDICTIONS))
    return LinearPathSDE(t_min=1 / n, t_max=1.0), f"{n}t-{name}", None


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
    return PREDICTIONS[kind]
