"""A stochastic Runge-Kutta method of strong order 1.5 for additive noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.shapes import factor, plus
from ...noise.brownian import path_and_mean
from ...noise.white import Noise
from ...terms import Term
from ..base import State, Step
from .explicit import ExplicitScheme


class SRA1(ExplicitScheme):
    """Roessler's SRA1, in the term's own time, either direction.

    With h = t' - t, dW the increment of the path over the step and I the mean of W - W(t) over it:

        k_1 = drift(x, t),    k_2 = drift(x + 3/4 h k_1 + 3/2 g(t') I, t + 3/4 h)
        x'  = x + h (k_1 + 2 k_2)/3 + g(t') (dW - I) + g(t) I

    Strong order 1.5 for additive noise (1 without the area dZ), 2 evaluations a step; without noise Ralston's method of
    order 2.

    Source: Roessler 2010 (SIAM J. Numer. Anal. 48), table 6.3, "SRA1".
    """

    name, order, kind, evaluations = "sra1", 1.5, "any", 2
    adaptive, error_order, refills = True, 2, True
    longest, needs_signal = 0.75, "both"
    source = "Roessler 2010, table 6.3"

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> None:
        if grid is not None:
            term.warm(_middle(grid[:-1], grid[1:]))
        super().start(term, x, t, grid)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        h = factor(t_next - t, x)
        k1 = term.drift(x, t)
        middle, moved, noisy = plus(x, 0.75 * h, k1), x, x
        if term.stochastic:
            dw, mean = path_and_mean(noise, t, t_next, x)
            g, g_next = factor(term.diffusion(t), x), factor(term.diffusion(t_next), x)
            middle = plus(middle, 1.5 * g_next, mean)
            moved = plus(plus(x, g_next, dw), g - g_next, mean)
            noisy = plus(x, g, dw) if t.ndim else x
        k2 = term.drift(middle, _middle(t, t_next))
        x_next = plus(plus(moved, h / 3, k1), 2 * h / 3, k2)
        error = x_next - plus(noisy, h, k1) if t.ndim else None  # from Euler's method
        return Step(x_next, error=error, slope=k1)


def _middle(t: Tensor, t_next: Tensor) -> Tensor:
    """The time of the second evaluation."""
    return torch.add(t, t_next - t, alpha=0.75)
