"""The precision in which networks compute, of the verbs that take `precision=`."""

from __future__ import annotations

from typing import Any

import torch

from ..core.arguments import one_of
from ..core.errors import InvalidInputError, warn
from ..core.modes import PRECISIONS
from ..models.base import ScoreModel
from ..models.denoiser import Denoiser
from ..solvers.tolerance import check_tolerances


def precision_of(precision: Any, model: ScoreModel) -> torch.dtype | None:
    """`precision=` as the dtype of autocast; None: networks compute in what they are."""
    if precision is None:
        return None
    dtype = PRECISIONS[one_of(precision, "precision", PRECISIONS)]
    if not any(isinstance(part, Denoiser) for part in model.modules()):
        raise InvalidInputError(
            f"got precision={precision!r} for a {type(model).__name__}, expected a model with a Denoiser inside, whose "
            "network it is about: leave it out, or put torch.autocast around what the model's own forward calls"
        )
    return dtype


def told_apart(dtype: torch.dtype | None, rtol: float | None, atol: float | None) -> tuple[float | None, float | None]:
    """The tolerances, not below eps/8 of what networks compute in: smaller ones cost steps and gain nothing.

    Measured (benchmarks/precision.py): rounding moves the ends by 0.3 to 0.9 eps, and below rtol = eps/8 error
    control takes it for curvature, at three times the evaluations.
    """
    if dtype is None or (rtol is None and atol is None):
        return rtol, atol
    asked, least = check_tolerances(rtol, atol), torch.finfo(dtype).eps / 8
    r, a = (max(value, least) if value else value for value in (asked.rtol, asked.atol))
    if (r, a) != (asked.rtol, asked.atol):
        warn(
            f"rtol={asked.rtol:g}, atol={asked.atol:g} are below what a network in {dtype} resolves: using {r:.2g}, "
            f"{a:.2g}; leave precision= out for less"
        )
    return r, a
