"""What suits a solver: coordinates, grid, orders, and how many and how long steps. Measured, see docs/decisions.md.

A solver makes steps; which of them to ask of it, for a model and a budget, is said here. A solver that is not in the
table gets what `_PLAIN` says, and the coordinates and the grid that its class names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..models.base import ScoreModel
from ..terms import Term
from .base import Solver
from .external.torchsde import Torchsde
from .multistep.adams.method import AdamsMethod
from .multistep.gaussian_start import FAR, leap_of_steps
from .multistep.orders import advised_orders
from .stochastic.adams import StochasticAdamsMethod
from .stochastic.euler import EulerMaruyama, ReverseDiffusion, StochasticHeun
from .stochastic.karras import KarrasSDE
from .stochastic.langevin import Langevin, PredictorCorrector
from .stochastic.sra import SRA1
from .tolerance import Tolerance


@dataclass(frozen=True, slots=True)
class Advice:
    """How to run a solver.

    Attributes:
        coordinates: "own" (the model's process, about a mean that is far from 0), "best" (the circular path of the
            data's scale) or "lambda" (a process whose time is log(alpha/sigma)).
        grid: the kind of grid for `steps=N`.
        orders: (values of the predictor, values of the corrector) where the solver leaves them open, else None.
        leap: where a first step in closed form ends, as sigma/alpha over the data's standard deviation; None: no such
            step.
        first, largest: the first and the largest step under error control, in fractions of the span. At high noise the
            right-hand side is flat and every error estimate blind, so that without a largest step a solver could step
            over all that matters.
        steps: their number, where neither that nor a tolerance is given.
        few: whether what is known at both ends should stand for evaluations: the last step of the grid ends at 0 by
            itself, none being spent at t_min, and the first needs none at t_max where the model tells the data's mean
            there (see `AdamsPlan`).
    """

    coordinates: str
    grid: str
    orders: tuple[int, int] | None
    leap: float | None
    first: float
    largest: float
    steps: int
    few: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """Default number of steps; first and largest step under error control. From docs/decisions.md."""

    steps: int = 100
    first: float = 1 / 20
    largest: float = 1 / 4


_PLAIN = _Row()

_LARGEST_ROUGH = 1 / 6  # Adams' largest step for models that are not smooth: five networks
# The fewest and the most evaluations of which Adams' method spends none on the ends. Measured, see docs/decisions.md.
_FEW = (2, 11)
_TABLE: dict[type[Solver], _Row] = {
    AdamsMethod: _Row(50, 1 / 12, 1 / 8),  # 18 mixtures; a cap of 1/6 or 1/10 costs 4 %; of networks 1/6, see below
    StochasticAdamsMethod: _Row(50, 1 / 20, 1 / 9),
    EulerMaruyama: _Row(500),
    StochasticHeun: _Row(250),
    SRA1: _Row(250),
    ReverseDiffusion: _Row(500),
    PredictorCorrector: _Row(250),
    Langevin: _Row(50),
    KarrasSDE: _Row(64),
    Torchsde: _Row(500),
}


def advise(
    solver: Solver,
    subject: ScoreModel | Term | None = None,
    *,
    steps: int | None = None,
    tolerance: Tolerance | None = None,
    smooth: bool | None = None,
) -> Advice:
    """How to run a solver on a model, for a number of steps or a tolerance.

    Args:
        solver: any.
        subject: the model, or a term that may have one; None: nothing is known, which counts as smooth.
        steps: how many of them; None: the solver's default.
        tolerance: of error control.
        smooth: whether the belief is smooth in time; None: as the model says.

    Returns:
        Advice.
    """
    row = _PLAIN
    for kind in reversed(type(solver).__mro__):  # the nearest class counts
        row = _TABLE.get(kind, row)
    model = subject.model if isinstance(subject, Term) else subject
    fine: bool = (model is None or model.smooth) if smooth is None else smooth
    n = row.steps if steps is None else steps
    grid, orders, first, largest = solver.grid, None, row.first, row.largest
    if isinstance(solver, AdamsMethod):
        grid = _adams_grid(solver, fine)
        orders = _adams_orders(solver, n, fine)
        if not fine and tolerance is not None:  # no estimate sees what a network makes of time in the first step
            first = min(first / 4, math.sqrt(tolerance.rtol or tolerance.atol) / 4)
            largest = _LARGEST_ROUGH
    leap = None
    if solver.leaps:
        leap = leap_of_steps(n) if isinstance(solver, AdamsMethod) else FAR
    few = orders is not None and leap is None and few_steps(n)
    return Advice(solver.coordinates, grid, orders, leap, first, largest, row.steps, few)


def few_steps(n: int) -> bool:
    """Whether so few evaluations are better not made where the answer is known."""
    return _FEW[0] <= n <= _FEW[1]


def _adams_grid(solver: AdamsMethod, smooth: bool) -> str:
    if solver.leaps:
        return "theta"  # nothing is left to find far above the data's scale
    return solver.grid if smooth else "turn-time"


def _adams_orders(solver: AdamsMethod, steps: int, smooth: bool) -> tuple[int, int] | None:
    told = solver.orders is not None
    return None if told or steps < 1 else advised_orders(steps, smooth=smooth, leap=solver.leaps)
