"""The model that a command is given."""

from __future__ import annotations

from ..core.errors import InvalidInputError
from ..models.denoiser import Denoiser
from ..storage.models import load


def saved_model(path: str, device: str | None) -> Denoiser:
    """A model of scores from a run folder or a checkpoint.

    Raises:
        InvalidInputError: a module that is none, such as an autoencoder.
        CheckpointError: as `load`.
    """
    model = load(path, device=device)
    if not isinstance(model, Denoiser):
        raise InvalidInputError(
            f"{path}: got the module {type(model).__name__}, expected a model of scores, as sdegen train and "
            "save(Denoiser(...)) write them"
        )
    return model
