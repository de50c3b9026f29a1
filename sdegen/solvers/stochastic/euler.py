"""Solvers of SDEs on a fixed grid: Euler-Maruyama, and the discrete forward chain reversed."""

from __future__ import annotations

from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import expand, factor, plus
from ...noise.white import Noise
from ...terms import Term
from ..base import State, Step
from .explicit import ExplicitScheme


class EulerMaruyama(ExplicitScheme):
    """x' = x + h drift(x, t) + g(t) (W(t') - W(t)), either direction of time.

    Strong order 1 (the noise is additive), 1 evaluation a step.

    Source: Maruyama 1955; Song et al. 2021 (arXiv 2011.13456) section 4.1.
    """

    name, order, kind = "euler-maruyama", 1, "any"
    source = "Maruyama 1955; arXiv 2011.13456 sec. 4.1"

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        x_next = plus(x, factor(t_next - t, x), term.drift(x, t))
        if term.stochastic:
            x_next = plus(x_next, factor(term.diffusion(t), x), noise.increment(t, t_next, x))
        return Step(x_next)


class StochasticHeun(ExplicitScheme):
    """Platen's explicit scheme for additive noise, either direction of time:

        y = x + h drift(x, t) + G,    x' = x + h/2 (drift(x, t) + drift(y, t')) + G,

    G = sqrt((g(t)^2 + g(t')^2)/2) dW. Weak order 2 (strong order 1), 2 evaluations a step; Heun's method without noise.

    Source: Kloeden & Platen 1992, section 15.1, eq. 1.1 with additive noise.
    """

    name, order, kind, evaluations = "heun-sde", 2, "any", 2
    longest, needs_signal = 0.75, "both"
    source = "Kloeden & Platen 1992 sec. 15.1 (Platen)"

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        h = factor(t_next - t, x)
        first = term.drift(x, t)
        moved = x
        if term.stochastic:
            g, g_next = term.diffusion(t), term.diffusion(t_next)
            moved = plus(x, factor(((g**2 + g_next**2) / 2) ** 0.5, x), noise.increment(t, t_next, x))
        second = term.drift(plus(moved, h, first), t_next)
        return Step(plus(moved, h / 2, first + second), slope=first)


def forward_kernel(term: Term, t: Tensor, t_next: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """(a, v) of the forward kernel x_t = a x_{t'} + sqrt(v) z between a time and an earlier one t'.

    a = alpha/alpha', v = sigma^2 - a^2 sigma'^2; of a DDPM table's neighbours sqrt(1 - beta_i) and beta_i.
    """
    start, stop = term.sde.at(t), term.sde.at(t_next)
    a = start.alpha / stop.alpha
    return a, start.sigma**2 - (a * stop.sigma) ** 2


class ReverseDiffusion(ExplicitScheme):
    """The discrete forward chain reversed: with x_t = a x_t' + sqrt(v) z forward,

        x' = (2 - a) x + (1 + eta^2)/2 v score + eta sqrt(v) z.

    For VP a = sqrt(1 - beta_i), v = beta_i; for VE a = 1, v = sigma^2 - sigma'^2. Weak order 1, 1 evaluation a step.

    Source: Song et al. 2021 (arXiv 2011.13456) appendix E, eq. 46.
    """

    name, order, kind, needs_model = "reverse-diffusion", 1, "any", True
    needs_signal = ""
    source = "arXiv 2011.13456 app. E"

    def check(self, term: Term) -> None:
        super().check(term)
        if not term.downward or term.eta is None:
            raise InvalidInputError(f"{self.name!r} reverses a process: use ReverseSDE(model)")

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        a, v = forward_kernel(term, t, t_next)
        eta = term.eta
        level = term.sde.at(t)
        x_next = expand(2 - a, x) * x + expand((1 + eta**2) / 2 * v / -level.sigma, x) * term.predict(x, t).noise
        if eta:
            x_next = x_next + expand(eta * v**0.5, x) * noise.standard(t, t_next, x)
        return Step(x_next)
