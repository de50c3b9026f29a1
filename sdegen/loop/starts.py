"""Where flows begin that a model is judged by."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.base import ScoreModel
from ..noise.purposes import Purpose
from ..noise.white import Noise


def unseen_starts(model: ScoreModel, samples: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(samples, *event) states at t_max, by noise that `sample` never draws; of a model that knows its event shape."""
    shape, sde = (samples, *(model.event_shape or ())), model.sde
    z = Noise(seed, index=torch.arange(samples)).normal(shape, Purpose.SOLVER_FIT, dtype=dtype, device=device)
    return model.data.prior.noisy(z, float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max)))
