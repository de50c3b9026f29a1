"""Asking a model from outside a solve: where it lives, in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model import ScoreModel


@contextmanager
def quiet(model: ScoreModel) -> Iterator[None]:
    """No gradients, eval mode; every module's mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: ScoreModel) -> torch.device:
    """Where the model's numbers are."""
    known = next((v for v in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if known is None else known.device
