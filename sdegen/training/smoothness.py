"""At the end of a run: whether what was trained is smooth in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.conditions import mapped
from ..core.errors import SdegenError
from ..loop.smoothness import EVALUATIONS, smooth_in_time
from ..loop.starts import unseen_starts
from ..models.denoiser import Denoiser
from .batches import Batch

_FLOWS = 12
_SHARE = 0.01  # of what training costs: a step asks and differentiates, which is three evaluations a sample


def affordable(model: Any, steps: int, first: Batch) -> bool:
    """Whether nobody said how smooth a model is, and finding out takes less than a hundredth of the training."""
    if not isinstance(model, Denoiser) or not model.presumes_smooth:
        return False
    return len(first.x0) >= _FLOWS and _SHARE * 3 * steps * first.total >= _FLOWS * EVALUATIONS


def find_out(model: Denoiser, cond: Mapping[str, Any], seed: int, device: torch.device) -> bool | None:
    """Whether a model is smooth; None where its flow cannot be solved. Nothing is changed.

    Args:
        model: as it will be sampled from.
        cond: of a batch; the first rows are taken.
        seed: of the noise.
        device: of the model.
    """
    known = model.condition_names()
    rows = mapped({k: v for k, v in cond.items() if known is None or k in known}, lambda v: v[:_FLOWS].to(device))
    try:
        return smooth_in_time(model, unseen_starts(model, _FLOWS, seed, torch.float32, device), rows)
    except SdegenError:
        return None


def told(model: nn.Module, smooth: bool | None) -> str:
    """Take in what was found, and say it with what it took."""
    if smooth is not None:
        model.smooth = model.smooth_presumed = smooth  # type: ignore[assignment]
    how = "not to be measured" if smooth is None else "measured"
    return f"smooth {how}: {model.smooth} ({_FLOWS * EVALUATIONS} evaluations)"
