"""Replacement with resampling: what was seen is put into the state at every step, and steps are taken again."""

from __future__ import annotations

import torch

from ...loop.solution import Solution
from ...noise.purposes import Purpose
from .kernel import ReverseKernel
from .request import Group, Request, answer, uniform_size, with_seen


def repaint(request: Request, group: Group) -> Solution:
    """Ancestral sampling where at every level sigma/alpha down to y's own what A sees of the state is replaced by

        alpha y + (sigma^2 - alpha^2 std^2)^(1/2) A z,    A A^T = 1,

    and each step is taken `passes` times, the state noised again in between. One pass is plain replacement; more bring
    the seen and the unseen part into harmony, and leave a bias.

    Source: Lugmayr et al. 2022 (arXiv 2201.09865) algorithm 1.
    """
    observation, size = request.observation, uniform_size(request)
    shape, times = (group.size, *request.event), request.times.tolist()
    level, own = request.level(times[0]), observation.std**2 / size

    def drawn(*address: float, p: int = 0) -> torch.Tensor:
        noise = group.noise if p == 0 else group.noise.numbered(p)
        return noise.normal(shape, *address, dtype=request.dtype, device=request.device)

    def seen(x: torch.Tensor, t: float, p: int) -> torch.Tensor:
        there = request.level(t)
        left = float(there.sigma**2 - there.alpha**2 * own)
        if left < 0:
            return x
        z = drawn(Purpose.SEEN, t, p=p)
        return with_seen(x, there.alpha * group.y + left**0.5 * observation.measure(z), observation, size)

    z = group.noise.initial(shape, dtype=request.dtype, device=request.device)
    x = request.model.data.prior.noisy(z, float(level.alpha), float(level.sigma))
    x, evaluations, calls = seen(x, times[0], 0), 0, 0
    for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        kernel = ReverseKernel.between(request.level(t), request.level(t_next))
        for p in range(request.passes):
            belief = request.model(x, t, **group.cond)
            evaluations, calls = evaluations + int(request.model.evaluations(torch.tensor(t))), calls + 1
            z = drawn(Purpose.STEP, t, t_next, p=p)
            x = seen(kernel.mean(belief.x0, belief.noise) + kernel.std * z, t_next, p)
            if p + 1 < request.passes:
                x = kernel.keep * x + kernel.spread * drawn(Purpose.STEP, t_next, t, p=p)
        group.report((i + 1) / len(times))
    belief = request.model(x, times[-1], **group.cond)
    evaluations, calls = evaluations + int(request.model.evaluations(torch.tensor(times[-1]))), calls + 1
    x0 = observation.known(belief.x0, group.y)
    return answer(request, x0, evaluations=evaluations, calls=calls, seed=group.noise.seed)
