"""The root finder: where a rising function of one variable takes given values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MOST = 60  # halvings of a bracket: to the last bit of float64
_ROUNDING = 4e-16


def find_root(
    rising: Callable[[Tensor], Tensor],
    values: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    slope: Callable[[Tensor], Tensor] | None = None,
    guess: Tensor | None = None,
) -> Tensor:
    """x in [low, high] with rising(x) = values, element by element, to rounding.

    Bisection; with a slope, Newton's method kept inside the bracket, which ends once every element has arrived.

    Args:
        rising: an elementwise function that rises from low to high.
        values: what it shall be, float64, any shape.
        low, high: the brackets, of the same shape.
        slope: its derivative.
        guess: where to begin; None: in the middle.
    """
    x = (low + high) / 2 if guess is None else guess
    for _ in range(_MOST):
        excess = rising(x) - values
        above = excess > 0
        low, high = torch.where(above, low, x), torch.where(above, x, high)
        middle = (low + high) / 2
        if slope is None:
            x = middle
            continue
        step = excess / slope(x)
        arrived = (step.abs() <= _ROUNDING * x) | (excess.abs() <= _ROUNDING * (1 + values.abs()))
        if bool(arrived.all()):
            break
        newton = x - step
        inside = (newton >= low) & (newton <= high)
        x = torch.where(arrived, x, torch.where(inside, newton, middle))
    return x
