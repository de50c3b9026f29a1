"""The length of the average, chosen after the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import storage
from ..core.errors import CheckpointError, IncompatibleCheckpointError, InvalidInputError
from ..models.base import ScoreModel
from ..processes import SDE
from .ema import LARGEST_WIDTH, mixture_of
from .folder import snapshots


def averaged(
    run: str | os.PathLike,
    width: float,
    *,
    step: int | None = None,
    net: nn.Module | None = None,
    sde: SDE | None = None,
    device: torch.device | str | None = None,
) -> ScoreModel:
    """The model of a run with the power-function average of any width, made of those that the run kept.

    The average of width w after step t weighs the weights after step s with s^gamma; w is the standard deviation of
    this profile over [0, t], in units of t. It is mixed from the snapshots of a run of `fit(ema=(0.05, 0.1), out=run)`,
    the mixture being the one whose profile is nearest in the mean square.

    Args:
        run: the run folder.
        width: w, from the smallest of the run's to a little above 0.25.
        step: t; None: the last that was kept.
        net, sde, device: as `load`.

    Returns:
        The model, in eval mode.

    Raises:
        InvalidInputError: a width out of range, a step before the first snapshot.
        CheckpointError: the run kept no snapshots, or they cannot be read.

    Source: Karras et al. 2024 (arXiv 2312.02696) section 3.2.
    """
    if not 0 < width < LARGEST_WIDTH:
        raise InvalidInputError(f"got width={width!r}, expected a number in (0, {LARGEST_WIDTH:.3f}) such as 0.1")
    model = storage.load(run, net=net, sde=sde, device=device)
    kept = _readable(snapshots(run))
    if not kept:
        raise CheckpointError(f"{run} has no snapshots of averages: train with ema=(0.05, 0.1), for example")
    last = kept[-1][1]["step"] if step is None else step
    kept = [(path, state) for path, state in kept if state["step"] <= last]
    if not kept:
        raise InvalidInputError(f"step={step}: the first snapshot was made later")
    at = [(path, state, k) for path, state in kept for k in range(len(state["widths"]))]
    weights = mixture_of([state["step"] for _, state, _ in at], [state["widths"][k] for _, state, k in at], last, width)
    _fill(model, at, weights)
    return model


def _readable(paths: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The snapshots with their states."""
    return [(path, storage.read(path, [])[1]) for path in paths]


@torch.no_grad()
def _fill(model: ScoreModel, at: Sequence[tuple[Path, dict[str, Any], int]], weights: Sequence[float]) -> None:
    """Put the mixture of averages into the model, reading one snapshot at a time."""
    parameters = dict(model.named_parameters())
    sums: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for path, _, _ in at):
        tensors = storage.read(path, ["averages"])[0]["averages"]
        for (own, state, k), weight in zip(at, weights, strict=True):
            for name in state["names"] if own == path else ():
                value = float(weight) * tensors[f"{k}.{name}"].double()
                sums[name] = sums[name] + value if name in sums else value
    for name, value in sums.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise IncompatibleCheckpointError(f"the snapshots have {name} {tuple(value.shape)}, the model has not")
        parameters[name].copy_(value)
