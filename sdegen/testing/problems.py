"""What laws of solvers are tried on: data with exact scores, spans, grids, and exact solutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..distributions.mixture import GaussianMixture
from ..loop.run import solve
from ..models.base import ScoreModel
from ..models.exact import MixtureModel
from ..processes import TrigSDE
from ..solvers import Solver
from ..solvers.runge_kutta import dopri5
from ..terms import ProbabilityFlow, ReverseSDE, Term
from .checks import NOISE, STATES, normals

PROCESS = TrigSDE(1.0, sigma_min=0.01, sigma_max=50.0)
SPAN = (0.7, 0.4)  # sigma/alpha from 0.84 to 0.42: the modes part, and nothing is flat or sharp
ALTERNATING = (1.0, 2.0)  # lengths of steps, by turns


@cache
def smooth_problems() -> tuple[MixtureModel, dict[str, tuple[Tensor, tuple[float, float], Tensor]]]:
    """A model, and for both directions states at the first time, the span, and the exact states at the last."""
    mixture = GaussianMixture([[1.0, 0.4], [-0.8, 0.9], [0.2, -1.0]], std=[0.2, 0.25, 0.15], weights=[1, 2, 1.5])
    model = MixtureModel(mixture, PROCESS)
    x0, z = mixture.sample(37, seed=1, dtype=torch.float64), normals((37, 2), NOISE)
    problems = {}
    for name, span in (("down", SPAN), ("up", (SPAN[1], SPAN[0]))):
        x = PROCESS.perturb(x0, span[0], z)
        exact = solve(ProbabilityFlow(model), x, solver=dopri5(), steps=uneven_times(span, 160, (1.0,)))
        problems[name] = (x, span, exact.x)
    return model, problems


@cache
def wide_problem() -> tuple[MixtureModel, Tensor, Tensor]:
    """A model, states at t_max and the exact ones at t_min, over the whole range of noise."""
    model, _ = smooth_problems()
    x = float(PROCESS.sigma(PROCESS.t_max)) * normals((37, 2), STATES)
    ts = torch.linspace(PROCESS.t_max, PROCESS.t_min, 201, dtype=torch.float64)
    return model, x, solve(ProbabilityFlow(model), x, solver=dopri5(), steps=ts).x


def uneven_times(span: tuple[float, float], n: int, ratios: Sequence[float] = ALTERNATING) -> Tensor:
    """n steps over a span whose lengths follow these ratios, again and again."""
    lengths = torch.tensor(ratios, dtype=torch.float64).repeat(n // len(ratios) + 1)[:n]
    fraction = torch.cat([lengths.new_zeros(1), lengths.cumsum(0) / lengths.sum()])
    ts = span[0] + (span[1] - span[0]) * fraction
    ts[-1] = span[1]
    return ts


def equation(solver: Solver, model: ScoreModel, **cond: Any) -> Term:
    """The equation that laws of either kind are tried on: the flow, or the reverse SDE for a solver of SDEs only."""
    return ReverseSDE(model, **cond) if solver.kind == "SDE" else ProbabilityFlow(model, **cond)


def settings(solver: Solver) -> list[dict[str, Any]]:
    """How the laws run a solver: on a grid, and by tolerance where it can."""
    return [GRID, by_tolerance(solver)] if solver.adaptive else [GRID]


GRID: dict[str, Any] = {"steps": uneven_times(SPAN, 12)}


def by_tolerance(solver: Solver) -> dict[str, Any]:
    """The tolerance that laws ask of a solver; where noise rules, an error estimate falls with the root of a step."""
    return {"t_span": SPAN, "rtol": 1e-2 if solver.kind == "SDE" else 1e-5}
