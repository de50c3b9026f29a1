"""What a number of steps can carry."""

from __future__ import annotations

import warnings

FAR = 10.0  # sigma/alpha in units of the data's standard deviation, above which noisy data are as good as Gaussian


def warn_of_order(name: str, values: int, steps: int) -> None:
    """Warn where a multistep method uses more past values than a grid of so few steps carries.

    On exact scores one value more than `carried` was 1.5 to 50 times worse, two are wasted at best (docs/decisions.md).
    """
    if steps > 1 and values > carried(steps)[0] + 1:
        warnings.warn(
            f"{name!r} with {values} past values on {steps} steps: so few carry about {carried(steps)[0]}, more are "
            "likely to be worse; lower order=, or take more steps",
            stacklevel=2,
        )


def carried(steps: int, smooth: bool = True, *, low: int | None = None) -> tuple[int, int]:
    """Values of the predictor and of the corrector that a grid of so many steps carries; up to `low` the fewest.

    Exact scores are smooth, networks are not; both were measured (docs/decisions.md).
    """
    last = (low or 8, 16, 26, 60) if smooth else (low or 24, 40)  # steps that carry 2 past values, 3, 4 ...
    values = 2 + sum(steps > n for n in last)
    return values, values + 1
