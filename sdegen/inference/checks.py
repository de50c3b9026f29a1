"""Arguments that the verbs share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_eta
from ..core.errors import InvalidInputError, shortened
from ..core.kinds import kind_of, take
from ..core.shapes import check_size, check_state
from ..models.base import ScoreModel
from ..models.networks import path_to
from ..noise.white import Noise
from ..solvers import Solver, is_auto, named


def check_model(model: ScoreModel) -> None:
    if not isinstance(model, ScoreModel):
        if path := path_to(ScoreModel, model):
            what = type(model).__name__
            raise InvalidInputError(f"model: got one in {what}, expected the model inside, model.{path}")
        take(model, "model", kind_of(ScoreModel))


def check_density_of(model: ScoreModel, x: Tensor) -> None:
    """Raise unless x is what the model has a density of; told apart for pictures given to a model of their latents."""
    event = model.event_shape
    if model.space is not None and event is not None and isinstance(x, Tensor) and tuple(x.shape[1:]) != event:
        raise InvalidInputError(
            f"x has event shape {tuple(x.shape[1:])}, but the model is one of latents {event}: it has a density of "
            "latents, log_prob(model, model.space.encode(x)), and none of what they decode to"
        )
    check_state(x, event_shape=event)


def sample_numbers(index: Sequence[int] | Tensor | None, batch: int) -> Tensor:
    """`index=` as (B,) sample numbers."""
    if index is None:
        return torch.arange(batch, device="cpu")
    given: Any = index if isinstance(index, range) and len(index) != batch else Noise(0, index=index).index
    if given is None or len(given) != batch:
        raise InvalidInputError(
            f"index names {0 if given is None else len(given)} samples, but shape asks for {batch}: pass one number "
            "per sample"
        )
    return given


def full_shape(model: ScoreModel, shape: int | Sequence[int], x_init: Tensor | None) -> tuple[int, ...]:
    """`shape=` as (B, *event), checked against what the model and `x_init` say."""
    if x_init is not None:
        check_state(x_init, name="x_init", event_shape=model.event_shape)
    event = model.event_shape if x_init is None else tuple(x_init.shape[1:])
    try:
        full = tuple(operator.index(n) for n in ((shape,) if not isinstance(shape, Sequence) else shape))
    except TypeError as error:
        raise InvalidInputError(
            f"got shape={shortened(shape)}, expected (B, *event), or B alone, as integers"
        ) from error
    if not full or any(n < 0 for n in full) or isinstance(shape, bool | str | bytes):
        raise InvalidInputError(f"got shape={shortened(shape)}, expected (B, *event) with B at least 0")
    check_size(full)
    if not isinstance(shape, Sequence):
        if event is None:
            raise InvalidInputError(
                f"shape={shape}: this model does not know its event shape, pass all of (B, *event), "
                f"such as ({shape}, 2)"
            )
        full = (*full, *event)
    if model.event_shape is not None and full[1:] != tuple(model.event_shape):
        wanted = ", ".join(map(str, (full[0], *model.event_shape)))
        raise InvalidInputError(
            f"shape={full}: the model works on events of shape {tuple(model.event_shape)}, expected ({wanted})"
        )
    if x_init is not None and tuple(x_init.shape) != full:
        raise InvalidInputError(
            f"x_init has shape {tuple(x_init.shape)}, but shape asks for {full}: they must be the same"
        )
    return full


def placed(model: ScoreModel, dtype: torch.dtype | None, x_init: Tensor | None) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of the state: the network's, at least float32."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidInputError(f"got dtype={dtype!r}, expected torch.float32 or torch.float64")
    if x_init is not None:
        return dtype or x_init.dtype, x_init.device
    tensor = next((p for p in model.parameters() if p.is_floating_point()), None)
    if tensor is None:
        return dtype or torch.get_default_dtype(), next((b.device for b in model.buffers()), torch.device("cpu"))
    return dtype or torch.promote_types(tensor.dtype, torch.float32), tensor.device


def noise_level(eta: Any, solver: str | Solver) -> float:
    """`eta=`, or where it is None the solver's own: 0 for a solver of flows and for "auto", else 1."""
    if eta is None:
        return 0.0 if is_auto(solver) else named(solver).default_eta
    return check_eta(eta)
