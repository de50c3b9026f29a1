"""Gradients through a belief, whatever mode the caller is in, and a belief with something added to its score."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import expand
from ...processes import SDE, Level, without_signal
from ..base import ScoreModel
from ..prediction import Prediction


def taken(model: ScoreModel, cond: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions among these that a model takes."""
    names = model.condition_names()
    return {name: value for name, value in cond.items() if names is None or name in names}


def check_words(model: ScoreModel, cond: Mapping[str, Any]) -> None:
    """Raise on a condition that no model inside takes."""
    known = model.condition_names() if cond else None
    unknown = [] if known is None else [name for name in cond if name not in known]
    if unknown:
        takes = ", ".join(sorted(known or ())) or "none"
        raise InvalidInputError(f"got condition {unknown[0]!r}, expected those that the model takes: {takes}")


@contextmanager
def differentiable(x: Tensor) -> Iterator[Tensor]:
    """x to take gradients in: x itself where the caller's graph goes through it, else a copy without history."""
    connected = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        yield x if connected else (x.clone() if x.is_inference() else x.detach()).requires_grad_()


class _Made(threading.local):
    count = 0


_made = _Made()


def products_made() -> int:
    """How many products with a belief's Jacobian this thread has made so far, those of a batch counted once: what
    `Solution.gradients` is a difference of."""
    return _made.count


def pulled_back(output: Tensor, x: Tensor, v: Tensor, *, graph: bool, counted: bool = True) -> Tensor:
    """(d output/d x)^T v, of x's shape; with `graph` it can be differentiated again.

    Raises:
        InvalidInputError: the output carries no gradient.
    """
    if not output.requires_grad:
        raise InvalidInputError(
            "what the gradient is to go through carries none: take no_grad, detach and numpy out of the network or the "
            "potential"
        )
    _made.count += counted
    found = torch.autograd.grad(output, x, v, retain_graph=True, create_graph=graph, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found


def check_signal(sde: SDE, level: Level, who: str) -> None:
    """Raise where there is no signal: sigma^2/alpha, which a gradient moves x0 by, is infinite there."""
    if without_signal(sde.at(sde.t_max)) and without_signal(level):
        raise InvalidInputError(
            f"{who}: at t = {sde.t_max:g} there is no signal (alpha = 0), so a gradient says nothing about the data "
            "there: begin at an earlier time, with t_span= or times in steps="
        )


def with_score(belief: Prediction, gradient: Tensor, level: Level, *, graph: bool) -> Prediction:
    """The belief whose score is larger by `gradient`: x0 + sigma^2/alpha gradient, noise - sigma gradient."""
    x0, noise = belief.x0, belief.noise
    x0 = x0 + expand(level.sigma**2 / level.alpha, x0) * gradient
    noise = noise - expand(level.sigma, noise) * gradient
    return Prediction(*((x0, noise) if graph else (x0.detach(), noise.detach())), belief.sde, belief.t)
