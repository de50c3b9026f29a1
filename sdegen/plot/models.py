"""Asking a model from outside a solve: where it lives, in eval mode, without gradients."""

from __future__ import annotations

import torch

from ..models.base import ScoreModel


def device_of(model: ScoreModel) -> torch.device:
    """Where the model's numbers are."""
    known = next((v for v in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if known is None else known.device
