"""The paths of a model in all its directions: the forward SDE, the reverse SDE, and the probability flow both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..inference.grid import grid
from ..inference.sampling import encode, sample
from ..models.base import ScoreModel
from ..models.exact import MixtureModel
from ..noise.white import Noise, check_seed
from ..processes import SDE
from .densities import event_dim
from .models import device_of
from .paths import Path

KINDS = {
    "forward": "forward SDE",
    "encode": "probability flow, forward",
    "reverse": "reverse SDE",
    "flow": "probability flow",
}


def runs(
    model: ScoreModel,
    kinds: str | Sequence[str],
    *,
    data: Tensor | None,
    samples: int | None,
    steps: int,
    seed: int,
    cond: dict[str, Any],
) -> dict[str, Path]:
    """The paths asked for, by their titles: downward ones start at the same noise, upward ones at the same data."""
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise InvalidInputError(f"got kinds={kinds!r}, expected some of {', '.join(map(repr, KINDS))}")
    dim = event_dim(model)
    if dim > 2:
        raise InvalidInputError(f"the model works on points in {dim} dimensions: trajectories draws one or two")
    n = (300 if dim == 2 else 18) if samples is None else samples
    for name, value in (("samples", n), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"got {name}={value!r}, expected a whole number, at least 1")
    start = None if data is None else _checked(data, n, dim)
    seed = check_seed(seed)
    down = _times(model, steps)
    how: dict[str, Any] = {"steps": down, "seed": seed, "save": "all", "dtype": torch.float64, "progress": False}
    found: dict[str, Path] = {}
    if "reverse" in kinds:
        found["reverse"] = Path.of(sample(model, (n, dim), solver="ancestral", eta=1.0, **how, **cond))
    if "flow" in kinds or (data is None and not isinstance(model, MixtureModel)):
        found["flow"] = Path.of(sample(model, (n, dim), solver="heun", **how, **cond))
    if "forward" in kinds or "encode" in kinds:
        if start is None and isinstance(model, MixtureModel):
            start = model.mixture.sample(n, seed=seed, dtype=torch.float64)
        elif start is None:
            start = found["flow"].xs[-1]
        found["forward"] = _forward(model.sde, start, down.flip(0), seed)
    if "encode" in kinds:
        x = found["forward"].xs[0].to(device_of(model))
        up = encode(model, x, solver="heun", steps=down.flip(0), save="all", progress=False, **cond)
        found["encode"] = Path.of(up)
    return {KINDS[kind]: found[kind] for kind in kinds}


def _times(model: ScoreModel, steps: int) -> Tensor:
    """From t_max to t_min, half of the nodes even in t, half in the angle of sigma/alpha: together they suit all."""
    span = (model.sde.t_max, model.sde.t_min)
    even = grid(model, max(1, steps // 2), kind="uniform", t_span=span)
    angle = grid(model, max(1, steps - steps // 2), kind="theta", t_span=span)
    return torch.unique(torch.cat([even, angle])).flip(0)


def _checked(data: Tensor, n: int, dim: int) -> Tensor:
    if not isinstance(data, Tensor) or data.ndim != 2 or data.shape[1] != dim or not len(data):
        got = f"of shape {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise InvalidInputError(f"data is {got}: expected a tensor of shape (B, {dim})")
    return data[:n].detach().to("cpu", torch.float64)


def _forward(sde: SDE, x0: Tensor, ts: Tensor, seed: int) -> Path:
    """The forward SDE by its exact kernel from node to node, so that no step is too long."""
    noise = Noise(seed)
    x = sde.perturb(x0, ts[0], noise.standard(torch.zeros_like(ts[0]), ts[0], x0))
    xs = [x]
    for t, t_next in zip(ts[:-1], ts[1:]):
        x = sde.transition(x, t, t_next, noise.standard(t, t_next, x))
        xs.append(x)
    return Path(ts[:, None].expand(len(ts), len(x0)), torch.stack(xs))
