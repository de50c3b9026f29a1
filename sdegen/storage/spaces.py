"""Latent spaces on disk: an autoencoder with the scale of its latents, in a file beside the model's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, IncompatibleCheckpointError, shortened
from ..models.space import LatentSpace
from .networks import NETS, named, rebuilt_net, set_weights, weights_of


def described_space(space: LatentSpace) -> dict[str, Any]:
    """Everything about a space but its tensors, and a digest of these, as JSON."""
    digest = hashlib.sha256()
    for name, value in space_tensors(space).items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {"autoencoder": named(space.autoencoder, NETS), "sha256": digest.hexdigest()}


def space_tensors(space: LatentSpace) -> dict[str, Tensor]:
    """The tensors of a space: those of the autoencoder, and mean and std in float64."""
    return {**weights_of(space.autoencoder), "mean": space.mean.double(), "std": space.std.double()}


def rebuilt_space(
    state: Any, tensors: Mapping[str, Tensor] | None, autoencoder: nn.Module | None
) -> LatentSpace | None:
    """The space of a description; None where a model has none.

    Args:
        state: what `described_space` gave, as it was read; None.
        tensors: what `space_tensors` gave; None where there is no such file.
        autoencoder: the user's own, to be filled.

    Raises:
        IncompatibleCheckpointError: nothing can be made of it, or not without `autoencoder=`.
    """
    if state is None:
        return None
    try:
        if tensors is None:
            raise IncompatibleCheckpointError("the checkpoint has a latent space, but no autoencoder.safetensors")
        if autoencoder is None:
            if state["autoencoder"]["config"] is None:
                name = str(state["autoencoder"]["name"])[:80]
                raise IncompatibleCheckpointError(
                    f"the autoencoder of the checkpoint's latent space, {name}, is your own: load it with autoencoder="
                )
            autoencoder = rebuilt_net(state["autoencoder"], tensors)
        set_weights(autoencoder, tensors)
        return LatentSpace(autoencoder, mean=tensors["mean"], std=tensors["std"])
    except CheckpointError:
        raise
    except Exception as error:  # whatever a stranger's file can lead to
        what = f"{type(error).__name__}: {shortened(str(error), 300)}"
        raise IncompatibleCheckpointError(
            f"no latent space can be made of the checkpoint's description: {what}"
        ) from error


def check_same_space(own: Any, theirs: Any) -> None:
    """Raise unless two descriptions are of the same space.

    Raises:
        IncompatibleCheckpointError: one of them is None, or their tensors differ.
    """
    if own != theirs:
        got, expected = "none" if own is None else "another one", "none" if theirs is None else "the checkpoint's"
        raise IncompatibleCheckpointError(
            f"space: got {got}, expected {expected}: latents of another autoencoder are other data; pass the same "
            "space, or another out= for a new run"
        )
