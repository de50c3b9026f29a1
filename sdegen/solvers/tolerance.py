"""Error control: tolerance and step-size controller."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.arguments import number
from ..core.errors import InvalidInputError
from ..core.shapes import SMALL_EVENT, event_mean, flat
from ..processes import SDE
from ..terms import Term

_WIDE = 2.0  # standard deviation along the data's widest directions over the level at which they turn; measured


@dataclass(frozen=True)
class Tolerance:
    """The scale of an allowed error: share (atol + rtol |x|), |x| the root mean square of a sample's state.

    In coordinates where the state keeps the data's scale all the way (`TrigSDE`), atol and rtol are in data units at
    the end, as far as the data are round; `share`, 1 or (B,), is what is left of them where they are not (see
    `share_of`). `measured` takes the part of a state whose size |x| is; None: all of it.
    """

    rtol: float
    atol: float
    share: float | Tensor = 1.0
    measured: Callable[[Tensor], Tensor] | None = None

    def ratio(self, error: Tensor, x: Tensor, x_next: Tensor) -> Tensor:
        """Root mean square error of each sample over its scale, (B,) float64, without gradients."""
        return rms(error.detach()).to(torch.float64) / self.scale(x.detach(), x_next.detach())

    def scale(self, x: Tensor, x_next: Tensor) -> Tensor:
        """The allowed error of each sample, (B,) float64."""
        return self.allowed(torch.maximum(self.size(x), self.size(x_next)))

    def size(self, x: Tensor) -> Tensor:
        """|x| of each sample, (B,), without gradients."""
        x = x.detach()
        return rms(x if self.measured is None else self.measured(x))

    def allowed(self, size: Tensor, times: float = 1.0) -> Tensor:
        """`times` the allowed error of samples of these sizes, (B,) float64."""
        error = (size.to(torch.float64) * (self.rtol * times)).add_(self.atol * times)
        return error * self.share if isinstance(self.share, Tensor) or self.share != 1.0 else error


def effective_variance(term: Term, x: Tensor, *, smooth: bool | None = None) -> float | None:
    """v = |C|_F^2/tr C, the variance along the data's widest directions.

    Errors made at high noise lie in these directions and shrink less on the way down, so a tolerance is tightened for
    them (`share_of`). Without a known covariance C it is (2 r)^2, r the level at which the model turns, or the upper
    bound d s^2 where that is less or r is not known; for exact scores, and along paths that do not keep the data's
    scale, None: the data count as round. `smooth` is as the model says, unless given.
    """
    model = term.model
    if model is None or term.sde.data_scale is None:
        return None
    s = term.sde.data_scale
    if model.data_covariance is not None:
        covariance = model.data_covariance.double()
        total = covariance.trace().clamp_min(torch.finfo(torch.float64).tiny)  # of a single point it is 0
        return max(float(covariance.square().sum() / total), s**2)
    if model.smooth if smooth is None else smooth:
        return None
    bound, turning = flat(x).shape[1] * s**2, model.data.turning
    return bound if turning is None else min(bound, max((_WIDE * turning) ** 2, s**2))


def share_of(sde: SDE, variance: float, t: Tensor) -> Tensor:
    """The share of a tolerance that an error made at t on the way down may take, so that the end is within it.

    On the circular path, alpha = cos t and sigma = s sin t, with sh = sigma/alpha: an error e of x is an error e/alpha
    of x/alpha, which the flow of data of variance v in its direction shrinks by (v/(v + sh^2))^(1/2) down to sh = 0.
    It ends as

        e/(alpha^2 + sigma^2/v)^(1/2),      so that      share = (alpha^2 + sigma^2/v)^(1/2):

    1 at all times for v = s^2, the scale that the path is made for, and less at high noise for wider directions.

    Args:
        sde: of the circular path.
        variance: v, see `effective_variance`; for images it comes near to the whole variance d s^2.
        t: (B,).
    """
    at = sde.at(t)
    return torch.addcmul(at.alpha.square(), at.sigma, at.sigma, value=1 / variance).sqrt()


def rms(x: Tensor) -> Tensor:
    """Root mean square over the event, (B,)."""
    d = math.prod(x.shape[1:])
    if d <= SMALL_EVENT:  # few numbers: a norm over them takes longer
        return event_mean(x.square()).sqrt()
    return torch.linalg.vector_norm(flat(x), dim=1) * d**-0.5


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
            growth = torch.where(accept & ~before.isnan(), smoothed, growth)  # NaN: of a first step
        factor = (self.safety * growth.exp()).clamp(self.least, self.most)
        return accept, factor.nan_to_num(self.least)


def resolution(t: Tensor, length: float) -> Tensor:
    """The smallest step that time can resolve at t, on a span of this length (which matters where t is 0)."""
    return 16 * torch.finfo(torch.float64).eps * t.abs().clamp_min(1e-3 * length)


def clamp_tolerance(value: float, dtype: torch.dtype) -> float:
    """The tolerance, or the least that a dtype resolves: 10 eps; 0 stays 0."""
    return max(value, 10 * torch.finfo(dtype).eps) if value else value


def check_tolerances(rtol: float | None, atol: float | None) -> Tolerance:
    """One tolerance sets both; both must be finite, not negative, not both 0."""
    r = rtol if rtol is not None else atol
    a = atol if atol is not None else rtol
    for name, value in (("rtol", r), ("atol", a)):
        number(value, name, "a number of at least 0, such as 1e-3", least=0.0)
    if r == 0 and a == 0:
        raise InvalidInputError("rtol=0 and atol=0 ask for no error at all: give one of them, such as rtol=1e-3")
    return Tolerance(float(r), float(a))  # type: ignore[arg-type]
