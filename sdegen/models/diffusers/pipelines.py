"""A whole pipeline of diffusers: its network as a model, its autoencoder as a space, its text encoders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ..denoiser import Denoiser
from ..space import LatentSpace
from .autoencoders import space_from_diffusers
from .folders import AUTOENCODERS, NETWORKS, pipeline_in
from .networks import Network
from .text import Text
from .verb import from_diffusers


class Pipeline(NamedTuple):
    """What a pipeline is made of.

    Attributes:
        model: its network along its scheduler's process.
        space: its autoencoder, the model's own `space`; None: it samples pictures themselves.
        text: prompts as conditions, see `Text`; None: it takes none.
    """

    model: Denoiser
    space: LatentSpace | None
    text: Text | None


@checked
def from_pipeline(
    folder: Any, *, device: torch.device | str | None = None, size: Sequence[int] | None = None
) -> Pipeline:
    """A pipeline of diffusers as model, latent space and text encoders.

    Any solver, tolerance, seed or guidance then works on it. Nothing is downloaded.

    Args:
        folder: what `save_pretrained` wrote, with its model_index.json; or a pipeline object.
        device: where to; None: where it is.
        size: (height, width) of the pictures; None: what it was trained for.

    Returns:
        Pipeline: (model, space, text). `model.decode(x)` gives the pictures in [-1, 1] of its samples.

    Raises:
        InvalidInputError: no pipeline, or one whose network or scheduler cannot be sampled here.
        CheckpointError: a folder that is no pipeline, or lacks a part of it.

    Example:
        model, space, text = sg.from_pipeline("folder")
        cond = text("a red boot", n=4)
        x = sg.sample(sg.Guided(model, 5.0, null=cond.pop("null")), 4, rtol=1e-2, seed=0, **cond).x
    """
    pipe = pipeline_in(folder) if isinstance(folder, str | os.PathLike) else folder
    if not isinstance(getattr(pipe, "components", None), dict):
        raise InvalidInputError(f"got a {type(pipe).__name__}, expected a pipeline of diffusers or its folder")
    if device is not None:
        pipe = pipe.to(device)
    parts = pipe.components
    names = [name for name in NETWORKS if parts.get(name) is not None]
    if not names or "scheduler" not in parts:
        raise InvalidInputError(
            f"{type(pipe).__name__} has {', '.join(sorted(parts))}: expected a scheduler and one of "
            f"{', '.join(NETWORKS)}, the network that is sampled"
        )
    model: Any = from_diffusers(parts[names[0]], parts["scheduler"])
    vae = next((parts[name] for name in AUTOENCODERS if parts.get(name) is not None), None)
    space = None if vae is None else space_from_diffusers(vae)
    network: Network = model.net
    pixels = _pixels(pipe, vae)
    side = getattr(pipe, "default_sample_size", None)
    if size is None and model.event_shape is None and isinstance(side, int):
        size = (side * pixels, side * pixels)
    if size is not None:
        model.event_shape = (network.channels, *_latent_sides(size, pixels, network.patch))
    model.space = space
    takes_text = hasattr(pipe, "encode_prompt") or (network.classes is not None and hasattr(pipe, "labels"))
    return Pipeline(model.eval(), space, Text(pipe, model, pixels) if takes_text else None)


def _pixels(pipe: Any, vae: Any) -> int:
    """How many pixels, side by side, become one number of the latents."""
    known = getattr(pipe, "vae_scale_factor", None)
    if isinstance(known, int) or vae is None:
        return known or 1
    return 2 ** (len(vae.config.get("block_out_channels", (1,))) - 1)


def _latent_sides(size: Sequence[int], pixels: int, patch: int) -> tuple[int, int]:
    """The sides of latents, `pixels` to a number, of which `patch` become one token."""
    sides = tuple(size)
    if len(sides) != 2 or not all(isinstance(n, int) and n > 0 and n % (pixels * patch) == 0 for n in sides):
        raise InvalidInputError(f"got size={sides}, expected (height, width), multiples of {pixels * patch}")
    return sides[0] // pixels, sides[1] // pixels
