"""Karras' stochastic sampler: a little noise up, a deterministic step down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import number
from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ...core.shapes import expand
from ...noise.white import Noise
from ...terms import Term
from ..base import Step
from .explicit import ExplicitScheme


@dataclass(frozen=True, slots=True)
class Churn:
    """What all steps of a grid share.

    Attributes:
        gamma: by which the noise level is raised, sh^ = sh (1 + gamma).
        highest: the process's largest sh.
    """

    gamma: float
    highest: float


class KarrasSDE(ExplicitScheme):
    """Churn and Heun: raise the noise level, then a Heun step of d(xh)/d(sh) = eps down to the next one.

    In the frame xh = x/alpha, sh = sigma/alpha, on a grid of N steps,

        gamma = min(churn/N, sqrt(2) - 1) for sh in [s_min, s_max], else 0
        sh^ = sh (1 + gamma),      xh^ = xh + sqrt(sh^^2 - sh^2) s_noise z

    where sh^ never rises above the process's largest sh. churn = 0 is the deterministic sampler. Weak order 2 in the
    deterministic part; 2 evaluations a step.

    Args:
        churn: how much noise over the whole run.
        s_min, s_max: between which sh noise is added.
        s_noise: the added noise's standard deviation, slightly above 1 where a network removes too much.

    Source: Karras et al. 2022 (arXiv 2206.00364) algorithm 2.
    """

    name, order, kind, evaluations, needs_model = "karras-sde", 2, "SDE", 2, True
    grid = "karras"
    source = "Karras et al. 2022 (arXiv 2206.00364) alg. 2"

    @checked
    def __init__(
        self, *, churn: float = 40.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
    ) -> None:
        for name, value in (("churn", churn), ("s_min", s_min), ("s_max", s_max), ("s_noise", s_noise)):
            number(value, name, "a number", infinite=True)
        if not (0 <= churn < math.inf and 0 <= s_min < s_max and 0 < s_noise < math.inf):
            raise InvalidInputError(
                f"got churn={churn}, s_min={s_min}, s_max={s_max}, s_noise={s_noise}, expected churn >= 0, "
                "0 <= s_min < s_max and s_noise > 0"
            )
        self.churn, self.s_min, self.s_max, self.s_noise = float(churn), float(s_min), float(s_max), float(s_noise)

    def options(self) -> dict[str, Any]:
        return {"churn": self.churn, "s_min": self.s_min, "s_max": self.s_max, "s_noise": self.s_noise}

    def check(self, term: Term) -> None:
        super().check(term)
        if term.eta != 1.0:
            raise InvalidInputError(
                f"'karras-sde' has no eta: got {term.eta}, expected none, since its noise is churn=; leave eta=None"
            )

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> Churn:
        if grid is None:
            raise InvalidInputError("'karras-sde' works on a fixed grid: pass steps= instead of a tolerance")
        super().start(term, x, t, grid)
        top = term.sde.at(term.t_max)
        return Churn(min(self.churn / len(grid), math.sqrt(2) - 1), top.sigma / top.alpha)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: Churn, noise: Noise) -> Step:
        sde = term.sde
        start, stop = sde.at(t), sde.at(t_next)
        sh, sh_next = start.sigma / start.alpha, stop.sigma / stop.alpha
        sh_up = min(sh * (1 + state.gamma), state.highest) if self.s_min <= sh <= self.s_max else sh
        t_up, alpha = t, start.alpha
        if sh_up > sh:
            t_up = sde.time(torch.tensor(-math.log(sh_up), dtype=torch.float64, device="cpu")).clamp_max(term.t_max)
            up = sde.at(t_up)
            alpha, sh_up = up.alpha, up.sigma / up.alpha
            lift = self.s_noise * math.sqrt(max(sh_up**2 - sh**2, 0.0))
            x = expand(alpha / start.alpha, x) * x + expand(alpha * lift, x) * noise.standard(t, t_next, x)
        first = term.predict(x, t_up).noise
        fall = sh_next - sh_up
        x_next = expand(stop.alpha / alpha, x) * x + expand(stop.alpha * fall, x) * first
        second = term.predict(x_next, t_next).noise
        return Step(x_next + expand(stop.alpha * fall / 2, x) * (second - first), state)
