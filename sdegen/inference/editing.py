"""What the flow of a model, and that of another, make of given data: editing, translation, ways between latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import number
from ..core.conditions import gathered, merged
from ..core.errors import InvalidInputError
from ..core.kinds import kind_of, take, told
from ..core.shapes import check_state, flat
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..noise.white import Noise, check_seed
from ..solvers import Solver
from .checks import check_model, sample_numbers
from .sampling import encode, sample

_CONDITIONS = kind_of(Mapping[str, Any] | None)


def edit(
    model: ScoreModel,
    x: Tensor,
    t: float,
    *,
    solver: str | Solver = "auto",
    steps: int | Sequence[float] | Tensor | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 10_000,
    on_failure: str = "raise",
    batch_size: int | None = None,
    progress: bool | None = None,
    eta: float | None = None,
    seed: int | None = None,
    index: Sequence[int] | Tensor | None = None,
    save: str | Sequence[float] | Tensor = "last",
    cond: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Solution:
    """SDEdit: noise x to time t and solve back to data. A small t keeps x nearly as it is, a large t its outline alone.

    Args:
        model: a ScoreModel.
        x: (B, *event), clean data: a sketch, a collage, a sample to be varied.
        t: a time of the model's process, above t_min; `model.sde.time(-math.log(r))` is that of sigma/alpha = r.
        seed: of the noise, at the beginning and on the way. None: a fresh one, told in `.seed`.
        The rest: as `sample`.

    Returns:
        Solution.

    Raises:
        As `sample`; InvalidInputError: t outside the process.

    Source: Meng et al. 2022 (arXiv 2108.01073).

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0, -1.0], [1.0, 1.0]], std=0.1), sg.VPSDE())
        >>> sketch = torch.tensor([[0.6, 1.4]])
        >>> found = sg.edit(model, sketch, 0.1, rtol=1e-2, seed=0)
        >>> bool((found.x - 1).abs().max() < 0.4)
        True
    """
    check_model(model)
    check_state(x, event_shape=model.event_shape)
    t = number(t, "t", "a time of the model's process")
    if not model.sde.t_min < t <= model.sde.t_max * (1 + 1e-6):
        raise InvalidInputError(f"got t={t:g}, expected more than t_min = {model.sde.t_min:g}, to {model.sde.t_max:g}")
    seed, numbers = check_seed(seed), sample_numbers(index, len(x))
    given = merged(gathered(cond, conditions), edit, model.condition_names)
    noise = Noise(seed, index=numbers).initial(x.shape, dtype=x.dtype, device=x.device)
    found = sample(
        model,
        x.shape,
        solver=solver,
        steps=steps,
        rtol=rtol,
        atol=atol,
        t_span=None if _are_times(steps) else (t, 0.0),
        max_steps=max_steps,
        on_failure=on_failure,
        batch_size=batch_size,
        progress=progress,
        eta=eta,
        seed=seed,
        index=numbers,
        save=save,
        x_init=model.sde.perturb(x, t, noise),
        cond=given,
    )
    return replace(found, seed=seed)


def translate(
    a: ScoreModel,
    b: ScoreModel,
    x: Tensor,
    *,
    solver: str | Solver = "auto",
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 10_000,
    on_failure: str = "raise",
    batch_size: int | None = None,
    progress: bool | None = None,
    cond_a: Mapping[str, Any] | None = None,
    cond_b: Mapping[str, Any] | None = None,
) -> Solution:
    """Encode x to latents along the flow of a, and decode these along that of b: data of one kind as another kind.

    Of Gaussian data, N(m_a, v_a) and N(m_b, v_b) with much noise at the top, x becomes m_b + (v_b/v_a)^(1/2) (x - m_a);
    translate(a, a, x) is x but for the solver's errors.

    Args:
        a, b: models of the same events; b is followed along the process of a. They may be one model under two
            conditions.
        x: (B, *event), data of a's kind.
        cond_a, cond_b: the conditions of each, by name.
        The rest: as `sample`, for each of the two ways; steps is a number.

    Returns:
        Solution of the way down, `.nfe`, `.calls` and the counts of steps those of both.

    Raises:
        As `sample`; InvalidInputError: models of different events or noise levels.

    Source: Su et al. 2023 (arXiv 2203.08382).

    Example:
        >>> import sdegen as sg
        >>> sde = sg.EDMSDE()
        >>> a, b = (sg.GaussianMixture([[m]], std=s) for m, s in ((0.0, 1.0), (3.0, 0.5)))
        >>> x = a.sample(4, seed=0)
        >>> found = sg.translate(sg.MixtureModel(a, sde), sg.MixtureModel(b, sde), x, rtol=1e-4)
        >>> bool((found.x - (3 + 0.5 * x)).abs().max() < 0.05)
        True
    """
    check_model(a)
    check_model(b)
    if None not in (a.event_shape, b.event_shape) and a.event_shape != b.event_shape:
        raise InvalidInputError(f"got models of events {a.event_shape} and {b.event_shape}, expected the same")
    if steps is not None and _are_times(steps):
        raise InvalidInputError("got times in steps=, expected a number: each way has times of its own")
    along = b.on(a.sde)
    if along.sde.t_min > a.sde.t_min * (1 + 1e-6) or along.sde.t_max < a.sde.t_max * (1 - 1e-6):
        raise InvalidInputError(
            f"b knows a's process from {along.sde.t_min:g} to {along.sde.t_max:g} only, expected {a.sde.t_min:g} to "
            f"{a.sde.t_max:g}: pass a as a.on(narrower_process)"
        )
    check_state(x, event_shape=a.event_shape)
    up_cond, down_cond = (dict(take(c, n, _CONDITIONS) or {}) for n, c in (("cond_a", cond_a), ("cond_b", cond_b)))
    along.check_conditions(down_cond, len(x))
    how: dict[str, Any] = {
        "solver": solver,
        "steps": steps,
        "rtol": rtol,
        "atol": atol,
        "max_steps": max_steps,
        "on_failure": on_failure,
        "batch_size": batch_size,
        "progress": progress,
    }
    up = encode(a, x, cond=up_cond, **how)
    down = sample(along, x.shape, x_init=up.x, t_span=(a.sde.t_max, a.sde.t_min), eta=0.0, cond=down_cond, **how)
    both = {
        name: getattr(up, name) + getattr(down, name) for name in ("nfe", "calls", "gradients", "accepted", "rejected")
    }
    return replace(down, status=torch.maximum(up.status, down.status), **both)


def slerp(z0: Tensor, z1: Tensor, w: float | Tensor) -> Tensor:
    """The point at w of the arc from z0 to z1, each sample by itself:

        (sin((1 - w) theta) z0 + sin(w theta) z1)/sin(theta),    theta the angle between z0 and z1.

    The latents of a model are nearly on a sphere around 0, and a straight line between two leaves it.

    Args:
        z0, z1: (B, *event).
        w: a number, 0 at z0 and 1 at z1, or (n,).

    Returns:
        (B, *event), or (n, B, *event).

    Raises:
        InvalidInputError: shapes that differ, a vector of length 0, opposite directions.

    Source: Shoemake 1985, Animating rotation with quaternion curves.

    Example:
        >>> import torch, sdegen as sg
        >>> z0, z1 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> [round(v, 4) for v in sg.slerp(z0, z1, 0.5)[0].tolist()]
        [0.7071, 0.7071]
    """
    check_state(z0, name="z0")
    check_state(z1, name="z1", event_shape=z0.shape[1:])
    if z0.shape != z1.shape:
        raise InvalidInputError(f"got z0 of shape {tuple(z0.shape)} and z1 of {tuple(z1.shape)}, expected the same")
    try:
        ws = torch.as_tensor(w, dtype=torch.float64, device=z0.device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        ws = torch.full((), math.nan)
    if ws.ndim > 1 or not bool(torch.isfinite(ws).all()):
        raise InvalidInputError(f"got w={told(w)}, expected a number or (n,)")
    a, b = flat(z0).double(), flat(z1).double()
    size_a, size_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    if not bool((size_a > 0).all() and (size_b > 0).all()):
        raise InvalidInputError("got a vector of length 0, which has no direction")
    u, v = a / size_a, b / size_b
    theta = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    if bool((theta > math.pi - 1e-6).any()):
        raise InvalidInputError("got opposite directions, between which there are many arcs: go by a third point")
    s, small = ws.reshape(-1, 1, 1), theta < 1e-9
    sine = torch.where(small, 1.0, theta.sin())
    of_a = torch.where(small, 1 - s, ((1 - s) * theta).sin() / sine)
    of_b = torch.where(small, s, (s * theta).sin() / sine)
    return (of_a * a + of_b * b).to(z0.dtype).reshape(*ws.shape, *z0.shape)


def _are_times(steps: Any) -> bool:
    return isinstance(steps, Sequence | Tensor) and getattr(steps, "ndim", 1) > 0
