"""Langevin dynamics at a level of noise: predictor-corrector sampling and annealed Langevin sampling."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ...core.arguments import number, whole
from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ...core.shapes import event_sum, expand
from ...noise.purposes import Purpose
from ...noise.white import Noise
from ...terms import Term
from ..base import State, Step
from .euler import ReverseDiffusion, forward_kernel
from .explicit import ExplicitScheme

_MOST = 10_000  # corrections at a time


class PredictorCorrector(ExplicitScheme):
    """Langevin corrections at t, then the reverse-diffusion step to t'.

    Corrector: x <- x + a score + sqrt(2a) z with c = (alpha/alpha')^2, which is 1 for VE and 1 - beta_i between a DDPM
    table's nodes, and

        "level"  a = 2 c snr^2 sigma^2, the step of a score of the usual size, |score| = |z|/sigma
        "norm"   a = 2 c (snr |z|/|score|)^2, norms of the sample itself (the paper averages them over the batch)

    The published "norm" rule makes the step depend on the state, which in few dimensions pulls the law away from the
    data's: 60 % too much variance on a 2-D mixture where "level" has none.

    Weak order 1, 1 + corrections evaluations a step.

    Args:
        snr: the ratio that sets the step.
        corrections: corrector steps at each time.
        rule: "level" or "norm".

    Source: Song et al. 2021 (arXiv 2011.13456) algorithms 2-5, in the order of their published code (correct, then
    predict).
    """

    name, order, kind, needs_model = "predictor-corrector", 1, "SDE", True
    needs_signal = ""
    source = "arXiv 2011.13456 alg. 2-5"

    @checked
    def __init__(self, *, snr: float = 0.16, corrections: int = 1, rule: str = "level") -> None:
        if number(snr, "snr", "a number above 0") <= 0:
            raise InvalidInputError(f"got snr={snr}, expected a number above 0")
        if rule not in ("level", "norm"):
            raise InvalidInputError(f"got rule={rule!r}, expected 'level' or 'norm'")
        self.snr, self.rule = float(snr), rule
        self.corrections = whole(corrections, "corrections", least=0, most=_MOST)
        self.evaluations = 1 + self.corrections
        self._predictor = ReverseDiffusion()

    def check(self, term: Term) -> None:
        super().check(term)
        self._predictor.check(term)

    def options(self) -> dict[str, Any]:
        return {"snr": self.snr, "corrections": self.corrections, "rule": self.rule}

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        a, _ = forward_kernel(term, t, t_next)
        for k in range(self.corrections):
            z = noise.normal(x.shape, Purpose.CORRECTOR, t, k, dtype=x.dtype, device=x.device)
            score = term.predict(x, t).score
            ratio = term.sde.at(t).sigma ** 2
            if self.rule == "norm":
                ratio = event_sum(z.square()) / event_sum(score.square())
            size = 2 * a**2 * self.snr**2 * ratio
            x = x + expand(size, x) * score + expand((2 * size) ** 0.5, x) * z
        return self._predictor.step(term, x, t, t_next, state, noise)


class Langevin(ExplicitScheme):
    """Annealed Langevin dynamics: at each time of the grid K steps x <- x + a s + sqrt(2a) z.

    a = epsilon (sh/sh_min)^2.

    In the frame x/alpha with sh = sigma/alpha and the score s of x/alpha, so that it means the same along every
    process; between times the state x/alpha stays as it is. sh_min is the model's smallest sh. One time alone is plain
    Langevin dynamics.

    Args:
        epsilon: the step at the smallest noise level; None: 0.1 sh_min^2, that is a = 0.1 sh^2 at every level.
        corrections: K.

    Source: Song & Ermon 2019 (arXiv 1907.05600) algorithm 1, in the convention of 2020 (arXiv 2006.09011): their 2019
    epsilon is twice this.
    """

    name, order, kind, needs_model = "langevin", 1, "SDE", True
    least_times = 1
    longest = 0.4  # of five steps a level, see `_longest`
    source = "arXiv 1907.05600 alg. 1"

    @checked
    def __init__(self, *, epsilon: float | None = None, corrections: int = 5) -> None:
        if epsilon is not None and number(epsilon, "epsilon", "a number above 0, or None") <= 0:
            raise InvalidInputError(f"got epsilon={epsilon}, expected a number above 0, or None")
        self.epsilon = None if epsilon is None else float(epsilon)
        self.corrections = whole(corrections, "corrections", least=1, most=_MOST)
        self.evaluations = self.corrections
        if self.epsilon is None:
            self.longest = _longest(self.corrections)

    def options(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "corrections": self.corrections}

    def check(self, term: Term) -> None:
        super().check(term)
        if term.eta != 1.0:
            raise InvalidInputError(
                f"'langevin' has no eta: got {term.eta}, expected none, since its noise belongs to its steps; leave "
                "eta=None"
            )

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        ratio = term.sde.at(t_next).alpha / term.sde.at(t).alpha
        return Step(self._settle(term, x, t, noise) * expand(ratio, x))

    def finish(self, term: Term, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """The steps at the last time of the grid."""
        return self._settle(term, x, t, noise)

    def _settle(self, term: Term, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        level = term.sde.at(t)
        lowest = term.sde.at(term.sde.t_min)
        sh_min = lowest.sigma / lowest.alpha
        epsilon = 0.1 if self.epsilon is None else self.epsilon / sh_min**2  # a/sh^2
        for k in range(self.corrections):
            z = noise.normal(x.shape, Purpose.CORRECTOR, t, k, dtype=x.dtype, device=x.device)
            belief = term.predict(x, t).noise  # the score of x/alpha is -noise/sh
            x = x + expand(level.sigma * (2 * epsilon) ** 0.5, x) * z - expand(level.sigma * epsilon, x) * belief
        return x


def _longest(corrections: int) -> float:
    """How far log(sigma/alpha) may fall from one level to the next, by L.

    Relative to the noise the state's variance grows by e^(2 L) there, and each step of a = 0.1 sh^2 takes it back by
    0.9^2: for five steps L = 0.4, for each further one log(1/0.9) more.
    """
    return max(0.4 + (corrections - 5) * math.log(1 / 0.9), 0.05)
