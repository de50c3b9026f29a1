"""Where a network is first asked by a tolerance: below t_max, where it tells more than a mean."""

from __future__ import annotations

import math

from torch import Tensor

from ....terms import Term
from ...tolerance import Tolerance

# The noise level of the first evaluation over that where the model turns: this over the tolerance, and at least that.
# Measured, see docs/decisions.md.
_QUIET, _LOUD = 0.2, 5.0


def quiet_time(term: Term, x: Tensor, begin: float, end: float, tolerance: Tolerance) -> float | None:
    """The time of the circular path down to which a network need not be asked by a tolerance; None: it is at `begin`.

    Far above the level r at which it turns, E[x0 | x] hardly depends on x, and the slope is constant but for what falls
    like r/sh: one step by the slope at its end, whatever mean it tells, leaves out about (r/sh)^2 of the data's scale.
    Measured it is less than the tolerance where sh/r is a fifth of its inverse. Exact scores have estimates to go by.
    """
    model, s = term.model, None if term.sde is None else term.sde.data_scale
    if model is None or model.smooth or model.conditioned or s is None or begin < term.t_max * (1 - 1e-6):
        return None
    turning = model.data.turning
    if turning is None or term.breaks() or term.measured(x) is not x:
        return None
    stop = math.atan(turning / s * max(_QUIET * s / (tolerance.atol + tolerance.rtol * s), _LOUD))
    return stop if end < stop < begin else None
