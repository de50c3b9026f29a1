"""Whether a model is smooth in time, found out by solving its flow both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models.base import ScoreModel
from ..noise.white import Noise
from ..terms import ProbabilityFlow
from .how import How
from .modes import quiet
from .run import run

_GAINS = {30: 1.0, 50: 1 / 3}  # of the error of so many steps, below which a model counts as smooth
_EXACT = 120  # steps that errors are measured by
EVALUATIONS = 2 * sum(_GAINS) + _EXACT  # of a flow


def smooth_in_time(model: ScoreModel, x: Tensor, cond: Mapping[str, Any]) -> bool:
    """Whether the orders and times that suit exact scores solve a model's flow better than those that suit networks:
    with less than a third of the error at 50 steps, and with less at 30. The model is left as it was.

    Args:
        model: any; it is asked `EVALUATIONS` times for each row of x.
        x: (B, *event), where flows begin, at t_max.
        cond: conditions, one row for each of x.

    Raises:
        SolverError: a flow that cannot be solved.
    """
    before, term = model.smooth, ProbabilityFlow(model, cond=dict(cond))

    def ends(smooth: bool, steps: int) -> Tensor:
        model.smooth = smooth
        plan = How("adams", steps).plan(term, x.dtype, span=(model.sde.t_max, 0.0))
        return run(plan, term, x, noise=Noise(0)).or_raise("raise").x

    def gains(steps: int) -> bool:
        rough, fine = (float((ends(smooth, steps) - exact).double().square().mean()) for smooth in (False, True))
        return fine < _GAINS[steps] ** 2 * rough

    try:
        with quiet(model):
            exact = ends(False, _EXACT)
            return all([gains(steps) for steps in _GAINS])
    finally:
        model.smooth = before
