"""What is checked, and learned of the data, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import storage
from ..core.conditions import check_rows
from ..core.errors import IncompatibleCheckpointError, InvalidInputError, SdegenError, warn
from ..core.shapes import check_state
from ..core.team import Team
from ..models.base import ScoreModel
from ..models.denoiser import Denoiser
from ..models.networks import path_to, unwrapped
from ..noise.white import check_seed
from .batches import Batch, Statistics
from .folder import Found
from .objective import Objective
from .options import Options
from .statistics import learn_statistics


def check_kind(model: nn.Module, objective: Objective) -> None:
    """Raise unless the model is one of scores, or has a loss that is not made for these."""
    kind = type(model).__name__
    if not isinstance(model, ScoreModel) and isinstance(unwrapped(model), ScoreModel):
        path = path_to(ScoreModel, model)
        raise InvalidInputError(f"model: got one in {kind}, expected the model inside, model.{path}")
    if isinstance(model, ScoreModel) or (isinstance(model, nn.Module) and not objective.for_scores):
        return
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"model: got a {kind}, expected one such as Denoiser(net, sde), or any torch.nn.Module")
    raise InvalidInputError(
        f"model: got a {kind}, expected one such as Denoiser(net, sde); with a loss of its own, loss=f where "
        "f(model, x0, **cond) gives one number per sample, any torch.nn.Module is trained"
    )


def check_model(model: nn.Module, first: Batch, *, saves: bool) -> None:
    """Raise unless the model can be trained on batches of such shapes and conditions and, if asked for, kept."""
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidInputError(f"this {type(model).__name__} has no weights that ask for gradients: nothing to train")
    if isinstance(model, ScoreModel):
        _check_latents(model, first)
        check_state(first.x0, name="data", event_shape=model.event_shape, finite=False)
        model.check_conditions(first.cond, len(first.x0))
    for name, value in first.cond.items():
        check_rows(name, value, len(first.x0))
    if saves:
        storage.describe(saveable(model))


def _check_latents(model: ScoreModel, first: Batch) -> None:
    """Raise if the data cannot be latents of the model's space."""
    channels = None if model.space is None else model.space.channels
    if channels is not None and first.x0.shape[1:2] != (channels,):
        raise InvalidInputError(
            f"data has event shape {tuple(first.x0.shape[1:])}, but the model is of latents of {channels} channels: "
            "train it on model.space.latents(data)"
        )


def saveable(model: nn.Module) -> nn.Module:
    """The model, if `out=` can keep it."""
    if isinstance(model, ScoreModel) and not isinstance(model, Denoiser):
        raise InvalidInputError(f"out= keeps a Denoiser, not a {type(model).__name__}: train the one inside it")
    return model


def device_of(device: torch.device | str | None) -> torch.device:
    """The device asked for, or CUDA if there is one."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"got device={device!r}, expected 'cpu', 'cuda', 'cuda:1', ...") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device={device!r}, but there is no CUDA device here: use device='cpu' or None")
    return found


def seed_of(seed: int | None, found: Found | None) -> int:
    """The seed given, the one of the run that goes on, or a fresh one."""
    if not found:
        return check_seed(seed)
    before = progress_of(found).get("seed")
    if not isinstance(before, int):
        raise IncompatibleCheckpointError("the checkpoint in this folder has no seed: it is of no run")
    if seed is not None and check_seed(seed) != before:
        raise IncompatibleCheckpointError(
            f"seed: the run in this folder has seed {before}, not {seed}: leave it out to go on, or pass another out="
        )
    return before


def progress_of(found: Found) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    progress = found[1].get("training")
    if not isinstance(progress, dict) or not isinstance(progress.get("step"), int):
        raise IncompatibleCheckpointError("the checkpoint in this folder is a model, of no run: pass another out=")
    return progress


def check_parts(total: int, options: Options, team: Team) -> None:
    """Raise unless a batch can be cut into the parts asked for."""
    parts = options.accumulate * team.size
    if total < parts:
        raise InvalidInputError(
            f"a batch of {total} cannot be cut into {parts} parts (accumulate={options.accumulate} in {team.size} "
            "processes): pass a larger batch_size, or a smaller accumulate"
        )


def check_same_model(model: nn.Module, first: Batch, found: Found) -> None:
    """Raise unless a checkpoint is of such a model of such data."""
    try:
        storage.check_same(saveable(model), found[1].get("model"), first.x0.shape[1:])
    except SdegenError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise IncompatibleCheckpointError(f"the checkpoint does not say what its model was: {error!r}") from error


def learn_about_data(
    model: nn.Module, first: Batch, found: Found | None, measured: Statistics | None, options: Options, *, tell: bool
) -> str:
    """Event shape, mean and standard deviation: those of the checkpoint, or as `learn_statistics` says, in words."""
    if not isinstance(model, ScoreModel):
        return ""
    if model.event_shape is None:
        model.event_shape = tuple(first.x0.shape[1:])
    if found:
        kept = {name: found[0]["model"].get(name) for name in ("data_mean", "data_std")}
        if tell:
            _tell_unlike(model, kept)
        model.set_statistics(kept["data_mean"], kept["data_std"])
        model.data_turn = found[0]["model"].get("data_turn")
        if isinstance(model, Denoiser) and model.presumes_smooth:
            model.smooth = model.smooth_presumed = found[1]["model"].get("smooth") is True
        return "data_mean and data_std of the checkpoint"
    if measured is None:
        return "data_mean kept, data_std kept"
    wish, steps = options.statistics, options.steps
    return learn_statistics(model, measured.mean, measured.std, turn=measured.turn, wish=wish, steps=steps, tell=tell)


def _tell_unlike(model: ScoreModel, kept: Mapping[str, Tensor | None]) -> None:
    """Warn of statistics that a model was given and that are not those of the run that goes on."""
    changed = []
    for name, value in kept.items():
        own = getattr(model, name)
        if own is None or value is None:
            continue
        own, value = own.double().cpu(), value.double().cpu()
        if not torch.allclose(*torch.broadcast_tensors(own, value), rtol=1e-4, atol=1e-6):
            changed.append(
                f"{name} of the model, on average {float(own.mean()):.4g}, is taken to be {float(value.mean()):.4g}"
            )
    if changed:
        warn(f"this run goes on with what its checkpoint knows of the data: {'; '.join(changed)}", UserWarning)
