"""What explicit schemes of SDEs have in common: where they cannot go, and where they blow up."""

from __future__ import annotations

import math

from torch import Tensor

from ...core.errors import InvalidInputError, warn
from ...terms import Term
from ..base import Solver, State
from ..grids import has_signal, spaced_level


class ExplicitScheme(Solver):
    """A scheme that takes the drift at the step's beginning, however long the step.

    At high noise level sh = sigma/alpha the reverse SDE pulls a state towards the data at the rate
    (1 + eta^2) per unit of l = log(alpha/sigma): a step of length h there multiplies it by about 1 - (1 + eta^2) h, and
    beyond h = 2/(1 + eta^2) every step makes it larger.

    Attributes:
        longest: the mean length in l, at eta = 1, up to which results keep their size; measured, docs/decisions.md.
        needs_signal: where alpha may not be 0, since drift and noise are infinite there: at a step's "start", at "both"
            ends, or "" for nowhere.
    """

    longest: float = 0.9
    needs_signal: str = "start"

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        if self.needs_signal:
            times = t.reshape(-1)[:1] if grid is None else grid
            check_signal(self.name, term, times[[0, -1]] if self.needs_signal == "both" else times[:1])
        if grid is not None:
            warn_of_long_steps(self.name, term, grid, self.longest)
        return None


def check_signal(name: str, term: Term, times: Tensor) -> None:
    """Raise where a scheme would have to take its drift, and its noise, at a time where they are infinite.

    Args:
        name: of the scheme.
        term: what it solves.
        times: where it takes them, as far as they can be infinite: the ends of a grid.
    """
    if not term.stochastic:
        return
    for t in times:
        lost = term.sde is not None and not bool(has_signal(term.sde, t))
        if lost or math.isinf(float(term.diffusion(t))):
            raise InvalidInputError(
                f"{name!r} cannot take a step at t = {float(t):g}, where the rate of noise is infinite"
                + (", since there is no signal (alpha = 0): pass earlier" if lost else ": pass other")
                + " times, with t_span= or in steps=, or use 'ancestral'"
            )


def warn_of_long_steps(name: str, term: Term, grid: Tensor, longest: float) -> None:
    """Warn where an explicit scheme takes steps so long that it blows up.

    Args:
        name: of the scheme.
        term: what it solves; only the reverse SDE of a model is stiff.
        grid: its times.
        longest: see `ExplicitScheme`.
    """
    if not term.stochastic or term.model is None or term.eta is None or len(grid) < 2:
        return
    l = spaced_level(term.sde, grid[[0, -1]])
    span, limit, n = float(l[1] - l[0]), longest * 2 / (1 + term.eta**2), len(grid) - 1
    if span > limit * n:
        warn(
            f"{name!r} with {n} steps over {span:.3g} units of log(alpha/sigma): explicit schemes blow up where steps "
            f"are longer than about {limit:.2g}; take at least {math.ceil(span / limit)} steps, or use 'ancestral', "
            "'dpm++2m-sde' or 'd-adams2-sde', which are stable at any length"
        )
