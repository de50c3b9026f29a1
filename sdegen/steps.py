"""Where the steps are: grids of times for fixed budgets; tolerance and step-size controller for error control."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidInputError
from .sde import SDE, TrigSDE
from .shapes import event_mean

_LOWEST = -5.0  # stands for the lambda of an end without signal: about where linear VP ends
GRIDS = ("uniform", "sqrt-time", "lambda", "theta", "blend", "karras")
FAR = 10.0  # sigma/alpha in units of the data's standard deviation, above which noisy data are as good as Gaussian


def count_or_times(steps: Any, least: int = 2) -> int | Tensor | None:
    """What `steps=` asks for: a number of steps, times in the order they are visited as (S,) float64, or None.

    `least` is how few times the solver can work with.
    """
    if steps is None:
        return None
    wanted = "wanted a number of steps such as 50, or a list of times in the order they are visited"
    if isinstance(steps, bool | str):
        raise InvalidInputError(f"steps={steps!r}: {wanted}")
    try:
        count = operator.index(steps)
    except TypeError:
        pass
    else:
        if count < 1:
            raise InvalidInputError(f"steps={count}: wanted at least 1")
        return count
    try:
        times = torch.as_tensor(steps, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"steps={steps!r}: {wanted}") from error
    if times.ndim == 0:
        raise InvalidInputError(f"steps={steps!r}: {wanted}")
    if times.ndim > 1:
        raise InvalidInputError(
            f"steps has shape {tuple(times.shape)}: wanted times of shape (S,), shared by all samples"
        )
    if len(times) < least:
        raise InvalidInputError(f"steps holds {len(times)} times: wanted at least 2, where it starts and where it ends")
    if not bool(torch.isfinite(times).all()):
        raise InvalidInputError(f"steps holds NaN or infinity: {times.tolist()}")
    return times


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


def check_span(t_span: Any) -> tuple[float, float]:
    """(from, to) as two finite floats."""
    try:
        start, stop = (float(t) for t in t_span)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"t_span={t_span!r}: wanted (from, to), two times") from error
    if not (math.isfinite(start) and math.isfinite(stop)):
        raise InvalidInputError(f"t_span={t_span!r}: wanted two finite times")
    return start, stop


def formula_grid(sde: SDE, n: int, *, kind: str, start: float, stop: float, sigma_data: float = 1.0) -> Tensor:
    """n + 1 times from `start` to `stop`, both in [t_min, t_max] of `sde`, float64: equally spaced in a variable u(t).

        "uniform"    u = t
        "sqrt-time"  u = sqrt(t_VP), t_VP the time of equal noise of the linear VP process
        "lambda"     u = log(alpha/sigma)
        "theta"      u = atan(sh/s)^(1/1.6), sh = sigma/alpha, s = sigma_data
        "blend"      u = 3/4 atan(sh/s)^(1/1.3) and 1/4 lambda, each divided by its range: most steps where Gaussian
                     data of scale s would turn, the rest wherever structure of another scale may be
        "karras"     u = sh^(1/7)

    An end where alpha is 0, and sh infinite, is spaced as if lambda were -5 there.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 5 for "karras"; Lu et al. 2022 (arXiv 2206.00927) for "lambda";
    Song et al. 2020 (arXiv 2010.02502) appendix D.2 "quadratic" for "sqrt-time"; this package for the others,
    docs/decisions.md.
    """
    if kind not in GRIDS:
        raise InvalidInputError(f"grid kind {kind!r}: wanted one of {', '.join(map(repr, GRIDS))}, 'pilot'")
    ends = torch.tensor([start, stop], dtype=torch.float64)
    fraction = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    if kind == "uniform":
        ts = ends[0] + fraction * (ends[1] - ends[0])
    else:
        levels = sde.half_log_snr(ends)
        levels = torch.where(torch.isinf(levels), _LOWEST, levels)
        to_u, to_lambda = _variable(kind, sigma_data, levels)
        u = to_u(levels)
        ts = sde.time(to_lambda(u[0] + fraction * (u[1] - u[0])))
    ts[0], ts[-1] = ends[0], ends[1]
    return ts


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
            return 0.75 * (angle(half, 1.3) - first) / range_ + 0.25 * (half - ends[0]) / width

        return blend, lambda u: _solved(blend, u, ends)

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


def _solved(rising: Callable[[Tensor], Tensor], u: Tensor, ends: Tensor) -> Tensor:
    """Where a function that rises from ends[0] to ends[1] is u, by bisection."""
    below, above = ends[0].expand_as(u), ends[1].expand_as(u)
    for _ in range(60):
        middle = (below + above) / 2
        high = rising(middle) > u
        below, above = torch.where(high, below, middle), torch.where(high, middle, above)
    return (below + above) / 2


@dataclass(frozen=True)
class Tolerance:
    """The scale of an allowed error: share (atol + rtol |x|), |x| the root mean square of a sample's state.

    In coordinates where the state keeps the data's scale all the way (`TrigSDE`), atol and rtol are in data units at
    the end, as far as the data are round; `share`, 1 or (B,), is what is left of them where they are not (see
    `share_of`).
    """

    rtol: float
    atol: float
    share: float | Tensor = 1.0

    def ratio(self, error: Tensor, x: Tensor, x_next: Tensor) -> Tensor:
        """Root mean square error of each sample over its scale, (B,) float64, without gradients."""
        return rms(error.detach()).to(torch.float64) / self.scale(x.detach(), x_next.detach())

    def scale(self, x: Tensor, x_next: Tensor) -> Any:
        """The allowed error of each sample: a float, or (B,) float64."""
        if self.rtol == 0:
            return self.atol * self.share
        return (self.atol + self.rtol * torch.maximum(rms(x), rms(x_next)).to(torch.float64)) * self.share


def share_of(sde: TrigSDE, widest: float, t: Tensor) -> Tensor:
    """The share of a tolerance that an error at t may have on the way down a circular path, to be within it at the end.

        share = (alpha^2 + sigma^2/v)^(1/2),    v = `widest`, the data's variance in their widest directions.

    An error at noise level sh = sigma/alpha in a direction of variance v is multiplied by (v/(v + sh^2))^(1/2) on its
    way, along the flow of N(0, v); the circular path, made for data of variance s^2 all around, lets it be as large as
    (1 + sh^2/s^2)^(1/2) tolerances. For images v comes near to the whole variance d s^2.
    """
    at = sde.at(t)
    return torch.sqrt(at.alpha.square() + at.sigma.square() / widest)


def rms(x: Tensor) -> Tensor:
    """Root mean square over the event, (B,)."""
    return event_mean(x.square()).sqrt()


@dataclass(frozen=True)
class Controller:
    """The proportional-integral step-size controller.

    factor = safety ratio^(-a/(p + 1)) ratio_before^(b/(p + 1)), clipped; a step is accepted where ratio <= 1.

    Source: Gustafsson 1991; Hairer & Wanner, Solving Ordinary Differential Equations II, section IV.2.
    """

    safety: float = 0.9
    least: float = 0.2
    most: float = 5.0
    proportional: float = 0.7
    integral: float = 0.3

    def propose(self, ratio: Tensor, before: Tensor | None, order: int) -> tuple[Tensor, Tensor]:
        """(accept, factor), (B,) each; a ratio that is not finite is a rejection with the smallest factor."""
        accept = ratio <= 1
        log_r = ratio.clamp_min(1e-10).log()
        growth = log_r * (-1 / order)
        if before is not None:
            smoothed = torch.add(growth * self.proportional, before.clamp_min(1e-10).log(), alpha=self.integral / order)
            growth = torch.where(accept, smoothed, growth)
        factor = (self.safety * growth.exp()).clamp(self.least, self.most)
        return accept, factor.nan_to_num(self.least)


def resolution(t: Tensor, length: float) -> Tensor:
    """The smallest step that time can resolve at t, on a span of this length (which matters where t is 0)."""
    return 16 * torch.finfo(torch.float64).eps * t.abs().clamp_min(1e-3 * length)


def clamp_tolerance(value: float, dtype: torch.dtype) -> float:
    """The tolerance that a dtype can carry: at least 10 eps."""
    return max(value, 10 * torch.finfo(dtype).eps)


def check_tolerances(rtol: float | None, atol: float | None) -> Tolerance:
    """One tolerance sets both; both must be finite, not negative, not both 0."""
    r = rtol if rtol is not None else atol
    a = atol if atol is not None else rtol
    for name, value in (("rtol", r), ("atol", a)):
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise InvalidInputError(f"{name}={value!r}: wanted a number of at least 0, such as 1e-3")
    if r == 0 and a == 0:
        raise InvalidInputError("rtol=0 and atol=0 ask for no error at all: give one of them, such as rtol=1e-3")
    return Tolerance(float(r), float(a))  # type: ignore[arg-type]
