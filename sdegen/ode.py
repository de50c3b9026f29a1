"""The probability flow as a plain right-hand side, for any solver of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .coordinates import Coordinates


class ODE(NamedTuple):
    """dx/dt = rhs(t, x) over a span, and the way into and out of its coordinates.

    Attributes:
        rhs: (t, x) -> dx/dt, x (B, *event), t a number or a scalar tensor.
        span: (from, to), the times of rhs.
        into: the state at the span's beginning, as the model's own process has it -> x.
        out: x at the span's end -> the state there, as the model's own process has it.
    """

    rhs: Callable[[Any, Any], Any]
    span: tuple[float, float]
    into: Callable[[Any], Any]
    out: Callable[[Any], Any]


def in_best_coordinates(flow_of: Callable[..., Any], model: Any, span: tuple[float, float], like: Tensor | None) -> ODE:
    """The ODE of a flow of `model` in the coordinates that solvers find easiest, between times of its own process."""
    view = Coordinates.best_of(model)
    flow = flow_of(view.model)
    start, stop = (torch.tensor(t, dtype=torch.float64) for t in span)
    there = tuple(view.there(torch.stack([start, stop])).tolist())
    low, high = sorted(there)

    def rhs(t: Any, x: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64).clamp(low, high)  # some solvers overshoot
        return flow.drift(x, t)

    def into(x: Tensor) -> Tensor:
        return view.state_there(x, start)

    def out(x: Tensor) -> Tensor:
        return view.state_back(x, torch.tensor(there[1], dtype=torch.float64))

    if like is None:
        return ODE(rhs, (there[0], there[1]), into, out)

    def tensor(y: Any) -> Tensor:
        return torch.as_tensor(y, dtype=like.dtype, device=like.device).reshape(like.shape)

    def array(x: Tensor) -> Any:
        return x.detach().cpu().double().numpy().ravel()

    def flat_rhs(t: float, y: Any) -> Any:
        with torch.no_grad():
            return array(rhs(t, tensor(y)))

    return ODE(flat_rhs, (there[0], there[1]), lambda x: array(into(x)), lambda y: out(tensor(y)))
