"""Solvers that integrate the linear part exactly and work on the model's prediction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import InvalidInputError
from ..noise import Noise
from ..shapes import expand
from ..terms import Term
from .base import Solver, State, Step


class FirstOrder(Solver):
    """The first-order family: x0 is held over the step and the rest is exact.

    With sh = sigma/alpha, rho = sh'/sh: x' = alpha' x0 + q noise + c z, and

        "sde"   q = sigma' rho^(eta^2),                       c = sigma' sqrt(1 - rho^(2 eta^2))     (the reverse SDE of noise eta)
        "ddim"  q = sigma' sqrt(1 - eta^2 (1 - rho^2)),       c = sigma' eta sqrt(1 - rho^2)         (the DDIM paper's eta)

    The two agree at eta = 0 (DDIM) and eta = 1 (DDPM's ancestral step with beta tilde). Order 1, 1 evaluation a step; at eta = 0 either direction.
    eta comes from the term.

    Source: Song et al. 2020 (arXiv 2010.02502) eq. 12 and 16; Ho et al. 2020 (arXiv 2006.11239) eq. 7 and algorithm 2.
    """

    order, kind, needs_model = 1, "any", True
    grid = "sqrt-time"

    def __init__(self, name: str, rule: str, source: str) -> None:
        self.name, self.rule, self.source = name, rule, source

    @property
    def default_eta(self) -> float:
        return 0.0 if self.rule == "ddim" else 1.0

    def check(self, term: Term) -> None:
        super().check(term)
        if self.rule == "ddim" and getattr(term, "eta", 0) > 1:
            raise InvalidInputError(f"eta={term.eta}: the DDIM paper's eta lies in [0, 1]; use 'ancestral' or 'euler-maruyama' for more noise")

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        there = term.sde.level(t_next)
        prediction = term.predict(x, t)

        def slope() -> Tensor:
            return prediction.velocity

        if term.eta == 0:
            return Step(prediction.combine(there.alpha, there.sigma), slope=slope)
        q, c = self.weights(term, t, t_next)
        x_next = prediction.combine(there.alpha, q)
        return Step(x_next + expand(c, x) * noise.standard(t, t_next, x))

    def weights(self, term: Term, t: Tensor, t_next: Tensor) -> tuple[Any, Any]:
        """(q, c) of the formula."""
        here, there = term.sde.level(t), term.sde.level(t_next)
        rho = there.sigma * here.alpha / (there.alpha * here.sigma)
        eta2 = term.eta**2
        if self.rule == "ddim":
            lost = eta2 * (1 - rho**2)
            return there.sigma * (1 - lost) ** 0.5, there.sigma * lost**0.5
        return there.sigma * rho**eta2, there.sigma * (1 - rho ** (2 * eta2)) ** 0.5
