"""Runge-Kutta methods: of plain drifts, in the term's own time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.shapes import SMALL_EVENT, expand, factor, plus, scaled
from ..noise.white import Noise
from ..terms import Term
from .base import ControlState, Solver, Step


@dataclass(slots=True, eq=False)
class Stages(ControlState):
    """What a Runge-Kutta method carries on: the drift at the end of the step, where it is the next step's first."""

    last: Tensor | None = None


class RungeKutta(Solver):
    """An explicit Runge-Kutta method: k_i = drift(x + h sum_j a_ij k_j, t + c_i h), x' = x + h sum_i b_i k_i.

    With a second row of weights b_hat the error estimate is h sum_i (b_i - b_hat_i) k_i. Where the last stage is taken
    at x' itself ("first same as last") it is the next step's first: one evaluation less a step.

    Args:
        a: rows 1.. of the lower triangle; b: the weights; c: the nodes; b_hat: the embedded weights or None.
        fsal: whether the last row of a equals b.
    """

    coordinates, grid, refills = "best", "theta", True

    def __init__(
        self,
        name: str,
        order: int,
        a: Sequence[Sequence[float]],
        b: Sequence[float],
        c: Sequence[float],
        *,
        b_hat: Sequence[float] | None = None,
        fsal: bool = False,
        source: str = "",
    ) -> None:
        self.name, self.order, self.source = name, order, source
        self.a, self.b, self.c, self.fsal = a, b, c, fsal
        self.error_weights = None if b_hat is None else [u - v for u, v in zip(b, b_hat, strict=True)]
        self.adaptive = b_hat is not None
        self.error_order = order
        self.evaluations = len(b) - fsal

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> Stages:
        if grid is not None:
            inner = [node for node in self.c if 0 < node < 1]
            if inner:
                term.warm(torch.cat([torch.add(grid[:-1], grid.diff(), alpha=node) for node in inner]))
        return Stages(last=term.drift(x, t) if self.fsal else None)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: Stages, noise: Noise) -> Step:
        h = t_next - t
        width = factor(h, x)
        if t.ndim and x.numel() <= SMALL_EVENT * len(x):  # broadcasting it at every stage takes 4 times as long
            width = width.expand_as(x).contiguous()
        k = [term.drift(x, t) if state.last is None else state.last]
        for row, node in zip(self.a, self.c[1:], strict=True):
            stage = plus(x, width, _weighted(row, k))
            k.append(term.drift(stage, t_next if node == 1 else torch.add(t, h, alpha=node)))
        x_next = stage if self.fsal else plus(x, width, _weighted(self.b, k))
        error = width * _weighted(self.error_weights, k) if t.ndim and self.error_weights is not None else None
        last = k[-1] if self.fsal else None
        return Step(x_next, Stages(last=last), error, slope=k[0], slope_next=last)


def _weighted(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """sum_i w_i k_i without the zeros."""
    total = None
    for w, v in zip(weights, k, strict=False):
        if w != 0:
            total = (v if w == 1 else scaled(w, v)) if total is None else torch.add(total, v, alpha=w)
    return torch.zeros_like(k[0]) if total is None else total


class Euler(Solver):
    """x' = x + h drift(x, t), in the model's own time. Order 1, 1 evaluation a step."""

    name, grid, source = "euler", "theta", "Euler 1768"

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: None, noise: Noise) -> Step:
        h = t_next - t if t.ndim or t.requires_grad else float(t_next) - float(t)
        x_next = term.moved(x, t, h)
        return Step(x_next, slope=lambda: (x_next - x) / expand(h, x))


def heun() -> RungeKutta:
    """Trapezoidal predictor-corrector. Order 2, 2 evaluations a step. Along `EDMSDE` this is Karras' deterministic
    sampler."""
    return RungeKutta(
        "heun", 2, [[1.0]], [0.5, 0.5], [0.0, 1.0], source="Karras et al. 2022 (arXiv 2206.00364) algorithm 1"
    )


def rk4() -> RungeKutta:
    """The classical method. Order 4, 4 evaluations a step."""
    return RungeKutta(
        "rk4",
        4,
        [[0.5], [0.0, 0.5], [0.0, 0.0, 1.0]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
        [0.0, 0.5, 0.5, 1.0],
        source="Kutta 1901",
    )


def bosh3() -> RungeKutta:
    """Bogacki-Shampine 3(2). Order 3, 3 evaluations a step (the last is the next step's first), error estimate of order
    2."""
    return RungeKutta(
        "bosh3",
        3,
        [[1 / 2], [0.0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]],
        [2 / 9, 1 / 3, 4 / 9, 0.0],
        [0.0, 1 / 2, 3 / 4, 1.0],
        b_hat=[7 / 24, 1 / 4, 1 / 3, 1 / 8],
        fsal=True,
        source="Bogacki & Shampine 1989",
    )


def dopri5() -> RungeKutta:
    """Dormand-Prince 5(4). Order 5, 6 evaluations a step (the last is the next step's first), error estimate of order
    4."""
    return RungeKutta(
        "dopri5",
        5,
        [
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
            [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
        ],
        [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0],
        [0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0],
        b_hat=[5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40],
        fsal=True,
        source="Dormand & Prince 1980",
    )
