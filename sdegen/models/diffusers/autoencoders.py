"""An autoencoder of diffusers as a latent space."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ..space import LatentSpace
from .folders import autoencoder_in


class Autoencoder(nn.Module):
    """encode(x) -> (mean, std or None) and decode(z) -> x of a diffusers autoencoder; a VQModel quantises in decode.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.latent_channels: int | None = vae.config.get("latent_channels")  # type: ignore[union-attr]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found: Any = self.vae.encode(x)  # type: ignore[operator]
        if "latent_dist" in found:
            return found.latent_dist.mean, found.latent_dist.std
        return found["latents" if "latents" in found else "latent"], None

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).sample  # type: ignore[operator]


@checked
def space_from_diffusers(vae: nn.Module | str | os.PathLike) -> LatentSpace:
    """The latent space of an autoencoder of diffusers, scaled as its configuration says.

    z = (E(x) - shift) scaling_factor, and where the configuration has latents_mean and latents_std
    z = (E(x) - latents_mean) scaling_factor/latents_std. `LatentSpace.measured(space.autoencoder, images)` is the same
    space with a scale of its own for each channel, measured.

    Args:
        vae: AutoencoderKL, AutoencoderTiny, AutoencoderDC, VQModel, ... of pictures; or a folder that
            `save_pretrained` wrote, of such a one or of a pipeline. Nothing is downloaded.

    Returns:
        LatentSpace.

    Raises:
        InvalidInputError: no autoencoder of diffusers.
        CheckpointError: a folder that has none, or that cannot be read.

    Example:
        space = sg.space_from_diffusers("sd-vae-ft-mse")
        model = sg.Denoiser(sg.nets.UNet(space.channels), sg.VPSDE(), space=space)
        sg.fit(model, space.latents(images), steps=10_000, out="latent")
        again = sg.load("latent", autoencoder=space.autoencoder)
    """
    if isinstance(vae, str | os.PathLike):
        vae = autoencoder_in(vae)
    config = getattr(vae, "config", None)
    if not isinstance(config, Mapping) or not hasattr(vae, "encode") or not hasattr(vae, "decode"):
        raise InvalidInputError(
            f"got a {type(vae).__name__}, expected an autoencoder of diffusers, such as AutoencoderKL"
        )
    factor = config.get("scaling_factor") or 1.0
    mean = config.get("latents_mean") or config.get("shift_factor") or 0.0
    each = config.get("latents_std")
    std = [s / factor for s in each] if each else 1.0 / factor
    return LatentSpace(Autoencoder(vae), mean=mean, std=std)
