"""How many past values of a multistep method pay on a grid of so many steps: measured, see docs/decisions.md."""

from __future__ import annotations

from bisect import bisect_left

from ...core.errors import warn

# The most steps that have 2 past values, 3, 4 ..., of the predictor; beyond the last, one more.
_SMOOTH = (8, 16, 26, 60)
_AFTER_LEAP = 6  # the first of these after a leap, which leaves past slopes behind


def advised_orders(steps: int, *, smooth: bool = True, leap: bool = False) -> tuple[int, int]:
    """(values of the predictor, values of the corrector) advisable for a number of steps.

    Args:
        steps: of the grid, the final denoising not counted.
        smooth: whether the model is smooth in time, see `ScoreModel`.
        leap: whether the first of the steps is a leap in closed form.
    """
    last = _SMOOTH
    if leap:
        steps, last = steps - 1, (_AFTER_LEAP, *last[1:])
    if not smooth:  # what networks make of time is rougher, and carries no more
        return (2, 3) if steps <= last[0] else (3, 3)
    values = 2 + bisect_left(last, steps)
    return values, values + 1


def warn_of_order(name: str, values: int, steps: int) -> None:
    """Warn where a multistep method uses more past values than a grid of so few steps allows.

    On exact scores one value more than advised was 1.5 to 50 times worse, two are wasted at best.
    """
    advised = advised_orders(steps)[0]
    if steps > 1 and values > advised + 1:
        warn(
            f"{name!r} with {values} past values on {steps} steps: so few steps allow about {advised}, more are "
            "likely to be worse; lower order=, or take more steps"
        )
