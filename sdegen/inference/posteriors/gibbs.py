"""Gibbs sweeps: y is the noisy state at the level of its own noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import check_state
from ...loop.how import How
from ...loop.run import run
from ...loop.solution import Solution
from ...models.guided.posterior import Posterior
from ...noise.purposes import Purpose
from ...noise.white import Noise
from ...terms import ProbabilityFlow, ReverseSDE
from .request import Group, Request, answer, uniform_size, with_seen
from .twisted import twist_of

_KERNEL = "d-adams2-sde"  # eta = 1: other noise keeps the marginals, and not the law given where it starts


def gibbs(request: Request, group: Group) -> Solution:
    """Sweeps from a guided draw, or from x_init, each with noise of its own.

    A sweep leaves the law of x0 given y as it is. From elsewhere sweeps mend what is wrong within modes, and hardly the
    modes' weights.
    """
    level, size = level_of_seen(request)
    made = [] if group.x_init is not None else [_guided_draw(request, group)]
    x = made[0].x if group.x_init is None else group.x_init
    for p in range(request.passes):
        made.append(sweep(request, group, x, (level, size), group.noise.numbered(p + 1)))
        x = made[-1].x
        group.report((p + 1) / request.passes)
    found = answer(request, x, evaluations=0, calls=sum(part.calls for part in made), seed=group.noise.seed)
    found.nfe.copy_(torch.stack([part.nfe for part in made]).sum(0))
    return found


def sweep(request: Request, group: Group, x0: Tensor, level: tuple[float, float], noise: Noise) -> Solution:
    """x0 is noised to the level sigma/alpha = r, what A sees of it is replaced by alpha y, which is such a state, and
    x0 drawn anew by the reverse SDE from there.

    Args:
        level: (r, the eigenvalue of A A^T), as of `level_of_seen`.
        noise: of this sweep.

    Source: Wu et al. 2024 (arXiv 2405.18782), at the one level where their step towards y is a replacement.
    """
    (r, size), sde = level, request.model.sde
    t = sde.time(torch.tensor(-math.log(r), dtype=torch.float64, device="cpu"))
    z = noise.normal(x0.shape, Purpose.PARTICLE_START, dtype=x0.dtype, device=x0.device)
    x = with_seen(sde.perturb(x0, t, z), float(sde.alpha(t)) * group.y, request.observation, size)
    term = ReverseSDE(request.model, cond=group.cond)
    plan = How(_KERNEL, steps=request.steps).plan(term, x.dtype, span=(float(t), 0.0))
    return run(plan, term, x, noise=noise)


def level_of_seen(request: Request) -> tuple[float, float]:
    """The noise level sigma/alpha at which what A sees of a state is y, and the eigenvalue of A A^T.

    Raises:
        InvalidInputError: rows of A that are not orthogonal and of one length; a level that the model does not know.
    """
    size, sde = uniform_size(request), request.model.sde
    r = request.observation.std / math.sqrt(size)
    low, high = (math.exp(-float(sde.half_log_snr(t))) for t in (sde.t_min, sde.t_max))
    if not low < r < high:
        raise InvalidInputError(
            f'got method="gibbs" with std={request.observation.std:g}, expected more than {low * math.sqrt(size):.3g} '
            f'and less than {high * math.sqrt(size):.3g}, noise levels the model knows: use "twisted" or "repaint"'
        )
    return r, size


def _guided_draw(request: Request, group: Group) -> Solution:
    """By the flow of the guided belief."""
    posterior = Posterior(request.model, request.observation, likelihood=twist_of(request.observation, group.y))
    term, level = ProbabilityFlow(posterior, cond={**group.cond, "y": group.y}), request.level(request.times[0])
    z = group.noise.initial((group.size, *request.event), dtype=request.dtype, device=request.device)
    x = posterior.data.prior.noisy(z, float(level.alpha), float(level.sigma))
    plan = How(steps=request.steps).plan(term, x.dtype, span=(float(request.times[0]), 0.0))
    return run(plan, term, x, noise=group.noise)


def check_start(request: Request, x_init: Tensor | None, batch: int) -> None:
    """Raise unless sweeps can begin at x_init."""
    if x_init is None:
        return
    if request.method != "gibbs":
        raise InvalidInputError(f'got x_init= with method={request.method!r}, expected method="gibbs"')
    check_state(x_init, name="x_init", event_shape=request.event)
    if len(x_init) != batch:
        raise InvalidInputError(f"got {len(x_init)} samples in x_init, expected {batch}")
