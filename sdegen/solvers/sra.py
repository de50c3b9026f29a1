"""A stochastic Runge-Kutta method of strong order 1.5 for additive noise."""

from __future__ import annotations

from torch import Tensor

from ..brownian import space_time_increment
from ..noise import Noise
from ..shapes import expand
from ..terms import Term
from .base import Solver, State, Step


class SRA1(Solver):
    """Roessler's SRA1, in the term's own time, either direction.

    With h = t' - t, dW the increment of the path over the step, dZ the integral of W - W(t) over it and I = dZ/|h|:

        k_1 = drift(x, t),    k_2 = drift(x + 3/4 h k_1 + 3/2 g(t') I, t + 3/4 h)
        x'  = x + h (k_1 + 2 k_2)/3 + g(t') (dW - I) + g(t) I

    Strong order 1.5 for additive noise (1 without the area dZ), 2 evaluations a step; without noise Ralston's method of
    order 2.

    Source: Roessler 2010 (SIAM J. Numer. Anal. 48), table 6.3, "SRA1".
    """

    name, order, kind, evaluations = "sra1", 1.5, "any", 2
    adaptive, error_order = True, 2
    default_steps = 250
    source = "Roessler 2010, table 6.3"

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        h = t_next - t
        width = expand(h, x)
        k1 = term.drift(x, t)
        middle = x + 0.75 * width * k1
        carried, euler = x, x + width * k1
        if term.stochastic:
            dw, dz = space_time_increment(noise, t, t_next, x)
            area = dz / expand(h.abs(), x)
            g, g_next = expand(term.diffusion(t), x), expand(term.diffusion(t_next), x)
            middle = middle + 1.5 * g_next * area
            carried, euler = x + g_next * (dw - area) + g * area, euler + g * dw
        k2 = term.drift(middle, t + 0.75 * h)
        x_next = carried + width * (k1 + 2 * k2) / 3
        return Step(x_next, error=x_next - euler, slope=k1)
