"""What explicit schemes of SDEs have in common: they blow up where steps are long."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from ...terms import Term
from ..base import Solver, State

_LOWEST = -5.0  # log(alpha/sigma) that stands for an end without signal


class ExplicitScheme(Solver):
    """A scheme that takes the drift at the step's beginning, however long the step.

    At high noise level sh = sigma/alpha the reverse SDE pulls a state towards the data at the rate
    (1 + eta^2) per unit of l = log(alpha/sigma): a step of length h there multiplies it by about 1 - (1 + eta^2) h, and
    beyond h = 2/(1 + eta^2) every step makes it larger.

    Attributes:
        longest: the mean length in l, at eta = 1, up to which results keep their size; measured, docs/decisions.md.
    """

    longest: float = 0.9

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        if grid is not None:
            warn_of_long_steps(self.name, term, grid, self.longest)
        return None


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
    l = term.sde.half_log_snr(grid[[0, -1]]).clamp_min(_LOWEST)
    span, limit, n = float(l[1] - l[0]), longest * 2 / (1 + term.eta**2), len(grid) - 1
    if span > limit * n:
        warnings.warn(
            f"{name!r} with {n} steps over {span:.3g} units of log(alpha/sigma): explicit schemes blow up where steps "
            f"are longer than about {limit:.2g}; take at least {math.ceil(span / limit)} steps, or use 'ancestral', "
            "'dpm++2m-sde' or 'd-adams2-sde', which are stable at any length",
            stacklevel=2,
        )
