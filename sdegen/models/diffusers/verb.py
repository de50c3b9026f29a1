"""A network of diffusers and its scheduler as a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...core.errors import InvalidInputError, shortened
from ...core.kinds import checked
from ..base import ScoreModel
from ..denoiser import Denoiser
from ..learned_variance import LearnedVariance
from ..networks import unwrapped
from .folders import network_in, scheduler_in
from .networks import as_network, form_of
from .schedulers import process_of


@checked
def from_diffusers(network: nn.Module | str | os.PathLike, scheduler: Any = None) -> ScoreModel:
    """A network of diffusers and the scheduler that it was trained with, as a ScoreModel.

        betas                DDPM, DDIM, PNDM, DPM-Solver, UniPC, DEIS, Euler, ...: TabulatedVPSDE(betas), rescaled to
                             zero terminal signal-to-noise ratio where the scheduler is; the network counts from 0
        flow                 FlowMatch..., or use_flow_sigmas=True: LinearPathSDE(), the network told N t
        Karras               EDMEuler, EDMDPMSolver...: EDMSDE, parametrisation "edm"
        variance exploding   ScoreSdeVe: VESDE, the network a score told sigma

    The model's outputs are the network's own. Conditions are those of its signature that its configuration asks for, by
    the names that they have there: `encoder_hidden_states` (B, T, width), `class_labels` (B,), `pooled_projections`,
    `added_cond_kwargs` (a dict), `guidance` ... Where a network takes more channels than it returns, as for
    inpainting, the rest is the condition `image`, joined to its input. One that returns twice as many channels becomes
    a `LearnedVariance`.

    Args:
        network: UNet1DModel, UNet2DModel, UNet2DConditionModel, UNet3DConditionModel, or the transformers called DiT,
            PixArt, SD3, Flux, Sana or PriorTransformer; or a folder that `save_pretrained` wrote, of such a network or
            of a pipeline.
        scheduler: a scheduler object, or its folder; None: the one in or beside the network's folder.

    Returns:
        A Denoiser; `model.net.unet` is the network itself, with its weights.

    Raises:
        InvalidInputError: a network or a scheduler that is none of these: say so yourself, with
            Denoiser(net, sde, parametrization=...).
        CheckpointError: a folder that cannot be read.
    """
    if isinstance(network, str | os.PathLike):
        network, beside = network_in(network)
        scheduler = beside if scheduler is None else scheduler
    inner = unwrapped(network)
    form_of(inner)
    if isinstance(scheduler, str | os.PathLike):
        scheduler = scheduler_in(scheduler)
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        raise InvalidInputError(
            f"scheduler is {shortened(scheduler)}: expected the diffusers scheduler that the network was trained "
            "with, such as DDPMScheduler.from_pretrained(folder)"
        )
    sde, kind, std = process_of(scheduler)
    variance = scheduler.config.get("variance_type") if hasattr(sde, "betas") else None
    out = inner.config.get("out_channels")
    channels = out // 2 if out and variance in ("learned", "learned_range") else None
    net = as_network(network, learned_variance=False, channels=channels)
    learned = hasattr(sde, "betas") and variance != "learned" and out == 2 * net.out_channels
    if learned:
        net = as_network(network, learned_variance=True, channels=net.out_channels)
    make = LearnedVariance if learned else Denoiser
    return make(net, sde, parametrization=kind, data_std=std)
