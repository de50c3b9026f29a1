"""Where the steps are on a fixed budget: grids of times."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.errors import InvalidInputError, shortened
from ..core.kinds import told
from ..core.roots import find_root
from ..models.base import ScoreModel
from ..models.facts import DataFacts
from ..processes import SDE

_NO_SIGNAL = -20.0  # log(alpha/sigma) below which there is no signal: times are too close to alpha = 0 to be told apart
_LOWEST = -5.0  # what stands for that, about where linear VP ends

_MOST_STEPS = 10**8
GRIDS = ("uniform", "sqrt-time", "lambda", "theta", "blend", "turn", "turn-time", "karras")
_SMOOTH_TURN, _FEW_TURN, _ROUGH_TURN = 0.4, 0.5, 0.7  # where grids by the turning level have their middle; measured
_FEW = 9  # steps up to which it is _FEW_TURN
_ROUGH_SHARE = 0.1  # of "sqrt-time" in "turn-time"; measured


def count_or_times(steps: Any, least: int = 2) -> int | Tensor | None:
    """What `steps=` asks for: a number of steps, times in the order they are visited as (S,) float64, or None.

    `least` is how few times the solver can work with.
    """
    if steps is None:
        return None
    expected = "expected a number of steps such as 50, or a list of times in the order they are visited"
    if isinstance(steps, bool | str):
        raise InvalidInputError(f"got steps={shortened(steps)}, {expected}")
    try:
        count = operator.index(steps)
    except TypeError:
        pass
    else:
        if not 1 <= count <= _MOST_STEPS:
            raise InvalidInputError(f"got steps={shortened(count)}, expected at least 1 and at most {_MOST_STEPS}")
        return count
    try:
        times = torch.as_tensor(steps, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(f"got steps={shortened(steps)}, {expected}") from error
    if times.ndim == 0:
        raise InvalidInputError(f"got steps={shortened(steps)}, {expected}")
    if times.ndim > 1:
        raise InvalidInputError(
            f"got steps of shape {tuple(times.shape)}, expected times of shape (S,), shared by all samples"
        )
    if len(times) < least:
        raise InvalidInputError(
            f"got steps with {len(times)} times, expected at least 2: where it starts and where it ends"
        )
    if not bool(torch.isfinite(times).all()):
        raise InvalidInputError(f"steps holds NaN or infinity: {times.tolist()}")
    return times


def check_span(t_span: Any) -> tuple[float, float]:
    """(from, to) as two finite floats."""
    try:
        start, stop = (float(t) for t in t_span)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(f"got t_span={t_span!r}, expected (from, to), two times") from error
    if not (math.isfinite(start) and math.isfinite(stop)):
        raise InvalidInputError(f"got t_span={t_span!r}, expected two finite times")
    return start, stop


def formula_grid(
    sde: SDE,
    n: int,
    *,
    kind: str,
    start: float,
    stop: float,
    sigma_data: float = 1.0,
    turn: float | None = None,
    fraction: Tensor | None = None,
) -> Tensor:
    """n + 1 times from `start` to `stop`, both in [t_min, t_max] of `sde`, float64: equally spaced in a variable u(t),
    or at these fractions of it, (n + 1,) from 0 to 1.

        "uniform"    u = t
        "sqrt-time"  u = sqrt(t_VP), t_VP the time of equal noise of the linear VP process
        "lambda"     u = log(alpha/sigma)
        "theta"      u = atan(sh/s)^(1/1.6), sh = sigma/alpha, s = sigma_data
        "blend"      u = 3/4 atan(sh/s)^(1/1.3) and 1/4 lambda, each divided by its range: most steps where Gaussian
                     data of scale s would turn, the rest wherever structure of another scale may be
        "turn"       the same with 0.4 r for s (0.5 r up to nine steps), r = turn the level at which half of the
                     data's variance is explained; "blend" where that is None
        "turn-time"  nine parts of the lambda of "blend", with 0.7 r for s where r is known, and one of "sqrt-time"'s
        "karras"     u = sh^(1/7)

    An end without signal, where alpha is 0 (or below exp(-20) sigma), is spaced as if lambda were -5 there.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 5 for "karras"; Lu et al. 2022 (arXiv 2206.00927) for "lambda";
    Song et al. 2020 (arXiv 2010.02502) appendix D.2 "quadratic" for "sqrt-time"; this package for the others,
    docs/decisions.md.
    """
    if kind not in GRIDS:
        raise InvalidInputError(f"got kind={kind!r}, expected one of {', '.join(map(repr, GRIDS))}, 'pilot'")
    ends = torch.tensor([start, stop], dtype=torch.float64, device="cpu")
    if fraction is None:
        fraction = torch.linspace(0, 1, n + 1, dtype=torch.float64, device="cpu")
    share = {"turn": _FEW_TURN if n <= _FEW else _SMOOTH_TURN, "turn-time": _ROUGH_TURN}.get(kind)
    middle = sigma_data if share is None or turn is None else share * turn
    if kind == "uniform":
        ts = ends[0] + fraction * (ends[1] - ends[0])
    elif kind == "turn-time":
        level = spaced_level(sde, ends)
        blend = _spaced("blend", middle, level, fraction)
        ts = sde.time(torch.lerp(blend, _spaced("sqrt-time", 1.0, level, fraction), _ROUGH_SHARE))
    else:
        ts = sde.time(_spaced("blend" if kind == "turn" else kind, middle, spaced_level(sde, ends), fraction))
    ts[0], ts[-1] = ends[0], ends[1]
    return ts


def _spaced(kind: str, s: float, ends: Tensor, fraction: Tensor) -> Tensor:
    """lambda at these fractions of the variable u between two levels."""
    to_u, to_lambda = _variable(kind, s, ends)
    u = to_u(ends)
    return to_lambda(u[0] + fraction * (u[1] - u[0]))


def has_signal(sde: SDE, t: Tensor) -> Tensor:
    """Whether there is signal at these times: alpha is not 0, nor so near it that times cannot be told apart."""
    return ~(sde.half_log_snr(t) < _NO_SIGNAL)


def spaced_level(sde: SDE, t: Tensor) -> Tensor:
    """lambda = log(alpha/sigma) at these times, -5 where there is no signal."""
    return torch.where(has_signal(sde, t), sde.half_log_snr(t), _LOWEST)


def grid_along(model: ScoreModel | SDE, n: int, *, kind: str, t_span: tuple[float, float] | None = None) -> Tensor:
    """The grid of a formula for a model or a process: n + 1 times, the last of n steps to 0 being the final denoising.

    `sdegen.grid` describes the kinds.
    """
    sde = model.sde if isinstance(model, ScoreModel) else model
    if not isinstance(sde, SDE):
        raise InvalidInputError(f"got model={told(model)}, expected a ScoreModel or an SDE")
    n = whole(n, "n", least=1, most=_MOST_STEPS)
    data = model.data if isinstance(model, ScoreModel) else DataFacts()
    how: dict[str, Any] = {"kind": kind, "sigma_data": data.scale, "turn": data.turning}
    start, stop = (sde.t_max, 0.0) if t_span is None else check_span(t_span)
    for t, zero in ((start, False), (stop, True)):
        if not (zero and t == 0) and not sde.t_min * (1 - 1e-6) <= t <= sde.t_max * (1 + 1e-6):
            raise InvalidInputError(
                f"time {t:g} is outside [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}]; to end with clean data go to "
                "exactly 0"
            )
    if start == stop:
        raise InvalidInputError(f"got t_span={t_span}, expected two different times")
    if stop != 0:
        return formula_grid(sde, n, start=start, stop=stop, **how)
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    if n == 1:
        return torch.cat([torch.tensor([start], dtype=torch.float64, device="cpu"), zero])
    return torch.cat([formula_grid(sde, n - 1, start=start, stop=sde.t_min, **how), zero])


def _variable(kind: str, s: float, ends: Tensor):
    """The variable u as a function of lambda between `ends`, and back."""
    if kind == "lambda":
        return (lambda half: half), (lambda u: u)
    if kind == "karras":
        return (lambda half: torch.exp(-half / 7)), (lambda u: -7 * torch.log(u))

    def angle(half: Tensor, root: float) -> Tensor:
        return torch.atan(torch.exp(-half) / s) ** (1 / root)

    if kind == "theta":
        return (lambda half: angle(half, 1.6)), (lambda u: -torch.log(s * torch.tan(u**1.6)))
    if kind == "blend":
        first, range_, width = angle(ends[0], 1.3), angle(ends, 1.3).diff(), ends.diff()

        def blend(half: Tensor) -> Tensor:
            turned = torch.atan(torch.exp(-half) / s) ** (1 / 1.3)
            return 0.75 * (turned - first) / range_ + 0.25 * (half - ends[0]) / width

        return blend, lambda u: find_root(blend, u, ends[0].expand_as(u), ends[1].expand_as(u))

    def integral(half: Tensor) -> Tensor:  # int beta of the linear VP process, in units of its time squared
        return torch.nn.functional.softplus(-2 * half, threshold=700)

    low, slope = 0.1, 19.9

    def to_u(half: Tensor) -> Tensor:
        i = integral(half)
        return torch.sqrt(2 * i / (low + torch.sqrt(low**2 + 2 * slope * i)))

    def to_lambda(u: Tensor) -> Tensor:
        i = low * u**2 + slope / 2 * u**4
        return -(i + torch.log(-torch.expm1(-i))) / 2

    return to_u, to_lambda
