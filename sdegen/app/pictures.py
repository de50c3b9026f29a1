"""Whether samples are pictures, and how the command line draws them where they are not."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .. import plot
from ..data.pixels import MODES
from ..models.base import ScoreModel, Wrapped
from ..models.denoiser import Denoiser
from ..models.space import shown_shape

_OPACITY = 4  # channels of a colour with its opacity, and of many a latent


def is_picture(model: ScoreModel) -> bool:
    """Whether what a sample shows is a picture, grey or in colour.

    Four channels are as often latents as colours with their opacity: they are a picture's where a latent space decodes
    to them, or where the model says so of its data (`model.about["levels"]`, as `sdegen train` notes it).
    """
    shape = shown_shape(model)
    if shape is None or len(shape) != 3 or shape[0] not in MODES:
        return False
    return shape[0] != _OPACITY or model.space is not None or _of_pictures(model)


def grid_of(model: ScoreModel, x: Tensor, *, nrow: int | None = None) -> Any:
    """What samples show, in rows; channels that are no colours in grey, those of a sample side by side."""
    if x.ndim != 4 or x.shape[1] != _OPACITY or is_picture(model):
        return plot.image_grid(x, nrow=nrow)
    across = max(1, nrow // _OPACITY) if nrow else math.ceil(math.sqrt(len(x) / _OPACITY))
    return plot.image_grid(x.flatten(0, 1), nrow=_OPACITY * across)


def _of_pictures(model: ScoreModel) -> bool:
    while isinstance(model, Wrapped):
        model = model.model
    about = model.about if isinstance(model, Denoiser) else {}
    source = about.get("data")
    return bool(about.get("levels") or (isinstance(source, dict) and source.get("channels")))
