"""The flow of a guided belief, corrected by its own density: importance weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.conditions import rows_of
from ...core.errors import InvalidInputError
from ...loop.how import How
from ...loop.run import run
from ...loop.solution import Solution
from ...models.base import ScoreModel
from ...models.guided.posterior import Posterior
from ...noise.purposes import Purpose
from ...noise.white import Noise
from ...terms import ProbabilityFlow
from ..column import DensityColumn
from .particles import one_of_each
from .request import Group, Request, answer
from .twisted import told_at, twist_of

_MOST = 64  # dimensions


def weighted(request: Request, group: Group) -> Solution:
    """Draws x of the guided flow, of density q, count

        log w = log p(x) + log p(y | x0hat(x)) - log q(x),

    p the density of the model's own flow; both by exact divergences. Averages of w are unbiased for p(y) but for the
    errors of the two solves.
    """
    n, k = group.size, request.particles
    posterior = Posterior(request.model, request.observation, likelihood=twist_of(request.observation, group.y))
    y, cond = group.repeated(k)
    start, end = float(request.times[0]), float(request.times[-1])
    z = group.noise.normal(
        (n, k, *request.event), Purpose.PARTICLE_START, dtype=request.dtype, device=request.device
    ).flatten(0, 1)
    level, prior = request.level(start), posterior.data.prior
    states, log_w, calls, counted = [], [], 0, torch.zeros(n * k, dtype=torch.int64)
    pieces = list(request.parts(n * k))
    for i, rows in enumerate(pieces):
        seen, own = {**rows_of(cond, rows), "y": y[rows]}, rows_of(cond, rows)
        x = prior.noisy(z[rows], float(level.alpha), float(level.sigma))
        down = _with_density(request, posterior, x, seen, (start, end))
        group.report((i + 0.5) / len(pieces))
        up = _with_density(request, request.model, down.x, own, (end, start))
        told = told_at(request, posterior, down.x, end, y[rows], own)
        x0, log_y = told.settled(request, y[rows], end)
        states.append(x0)
        log_w.append(up.log_prob.double() + log_y - down.log_prob.double())  # type: ignore[union-attr]
        calls += down.calls + up.calls + 1
        counted[rows.cpu()] = down.nfe + up.nfe + 1
        group.report((i + 1) / len(pieces))
    weights = torch.cat(log_w).reshape(n, k).nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    x0, weighed = one_of_each(torch.cat(states), weights, group.noise)
    found = answer(request, x0, evaluations=0, calls=calls, seed=group.noise.seed, weighed=weighed)
    found.nfe.copy_(counted.reshape(n, k).sum(1))
    return found


def _with_density(request: Request, model: ScoreModel, x: Tensor, cond: dict, span: tuple[float, float]) -> Solution:
    """Along the flow with the log-density beside it."""
    plan = How(rtol=request.rtol).plan(ProbabilityFlow(model), x.dtype, span=span)
    column = DensityColumn(plan, ProbabilityFlow(model, cond=cond), x, Noise(0), divergence="exact")
    return column.read(run(column.inside, column.term, column.x, noise=column.noise))


def check_small(request: Request) -> None:
    """Raise above the dimension up to which divergences are exact."""
    d = math.prod(request.event)
    if d > _MOST:
        raise InvalidInputError(
            f'got method="weighted" for events of {d} numbers, expected at most {_MOST}, since its weights need exact '
            'divergences: use "twisted"'
        )
