"""The Gaussian start: at high noise data are as good as Gaussian, and the way down from there has a closed form.

Symbols: sh = sigma/alpha the noise level, s the data's standard deviation, C their covariance; a prime marks the end.

Along the flow of N(0, C), data centred,

    x' = ((alpha'^2 C + sigma'^2)/(alpha^2 C + sigma^2))^(1/2) x:

one step, a leap, from t_max to a noise level of some s, without an evaluation. What the data differ from that Gaussian
by is seen at its end, by the first evaluation: delta = velocity - Gaussian velocity, on the circular path. Above, it
falls like sh^-k, k = 2 with the whole covariance, else 1. So

    x - delta s/((k + 1) sh)        is the state there corrected by what the leap from infinity left out, of which
                                    1 - (sh/sh_max)^(k + 1) lies below sh_max, and

    Gaussian velocity + delta (sh/sh_i)^k       are past slopes at noise levels sh_i above, for a multistep method.

The reverse SDE of N(m, C) goes down in closed form in the same way (`gaussian_step`).

Source: Wang & Vastola 2024 (arXiv 2412.09726) for the leap; the correction and the past slopes are this package's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import flat
from ...distributions.gaussian import Gaussian
from ...models.base import ScoreModel
from ...noise.purposes import Purpose
from ...noise.white import Noise
from ...terms import Term
from ..tolerance import Tolerance

# ---- where a leap ends, as sh/s; measured, see docs/decisions.md

FAR = 10.0  # of the reverse SDE: above it noisy data are as good as Gaussian
_DROWNED = 8.0  # noise over the data's scale at t_max, from which on a model says the mean and nothing else; measured


def leap_of_steps(n: int) -> float:
    """Of the flow, on a grid of n evaluations."""
    return min(max(0.25 * n**1.2, 3.5), 45.0)


def leap_of_tolerance(tolerance: Tolerance, s: float) -> float:
    """Of the flow, under error control."""
    return max(4.0, (10 * s / (tolerance.atol + tolerance.rtol * s)) ** 0.25)


# ---- along the flow


def begins_at_the_mean(model: ScoreModel, cond: Mapping[str, Any]) -> bool:
    """Whether the belief at t_max is the known mean of the data and nothing else: not that of a condition, and not
    what is seen through little noise."""
    known = model.data
    if cond or model.conditioned or known.mean is None or known.std is None:
        return False
    last = model.sde.at(model.sde.t_max)
    return bool(last.sigma > _DROWNED * known.scale * last.alpha)


def slope_above(term: Term, x: Tensor, t: float) -> Tensor | None:
    """dx/dt at pi/2, where a circular path would begin with noise alone: -mean, whatever the state.

    A past slope for a multistep method that begins at t below it, without an evaluation. None where it would be no
    help: for models that are not smooth, whose slope at t does not lie on a line with it; where t is not t_max or the
    belief there is more than the mean; where numbers of another kind travel beside the data; and where t is so near to
    pi/2 that rounding is most of what the two differ by.
    """
    model, far = term.model, math.pi / 2 - t
    if model is None or not model.smooth or term.sde.data_scale is None or t < term.t_max * (1 - 1e-6):
        return None
    if far < math.sqrt(torch.finfo(x.dtype).eps) or term.measured(x) is not x:
        return None
    if not begins_at_the_mean(model, term.cond):
        return None
    return -model.data.mean.to(x).expand_as(x)


@dataclass(frozen=True)
class GaussianStart:
    """A leap from `start` to `stop`, times of a circular path of data scale s.

    Args:
        law: the data's Gaussian; its mean is not used, the state being centred.
        s: alpha = cos t and sigma = s sin t.
        start, stop: times of the leap, falling.
        power: k.
    """

    law: Gaussian
    s: float
    start: float
    stop: float
    power: int

    @classmethod
    def planned(cls, term: Term, law: Gaussian | None, start: float, stop: float, x: Tensor) -> GaussianStart:
        """The leap for a term along a circular path: of `law` or, if None, of what its model knows of the data.

        Raises:
            InvalidInputError: another path, a law of another number of dimensions than x has.
        """
        s = scale_of_circle(term)
        if stop > start:
            raise InvalidInputError("start='gaussian' is for sampling, t falling: use start='point' upward")
        given: Gaussian = term.model.data.law if law is None else law
        d = math.prod(x.shape[1:])
        size = given.variances.shape[:1] if given.axes is None else given.axes.shape[:1]
        if size not in ((), (d,)):
            raise InvalidInputError(
                f"got a covariance of {size[0]} numbers, but an event of shape {tuple(x.shape[1:])} has {d}; "
                f"expected ({d}, {d}), or variances of the event's shape"
            )
        return cls(given.to(x), s, start, stop, 2 if given.complete else 1)

    @property
    def past(self) -> list[float]:
        """The times above the end that get a slope, the nearest first."""
        return [(self.start + self.stop) / 2, self.start]

    def at(self, x: Tensor, t: float) -> Tensor:
        """The Gaussian flow from x at `start` to t."""
        return self._applied(lambda v: kept(self._total(v, self.start), self._total(v, t)), x)

    def slope(self, x: Tensor, t: float) -> Tensor:
        """dx/dt of the Gaussian flow at (x, t)."""
        return self._applied(lambda v: (self.s**2 - v) * math.sin(t) * math.cos(t) / self._total(v, t), x)

    def corrected(self, x: Tensor, x_stop: Tensor, slope: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """(x at `stop` corrected, slopes at `past`, the correction), given x at `start` and the slope at `stop`."""
        delta, k = slope - self.slope(x_stop, self.stop), self.power
        share = 1 - (math.tan(self.stop) / math.tan(self.start)) ** (k + 1)  # of the integral to infinity
        correction = delta * share / ((k + 1) * math.tan(self.stop))
        slopes = [self.slope(self.at(x, t), t) + delta * (math.tan(self.stop) / math.tan(t)) ** k for t in self.past]
        return x_stop - correction, slopes, correction

    def _total(self, v: Any, t: float) -> Any:
        """alpha^2 v + sigma^2 at t."""
        return math.cos(t) ** 2 * v + (self.s * math.sin(t)) ** 2

    def _applied(self, f: Callable[[Any], Any], x: Tensor) -> Tensor:
        return self.law.apply(f, flat(x)).reshape(x.shape)


@dataclass(slots=True, eq=False)
class Leapt:
    """The flow after a leap, with the first evaluation made.

    Attributes:
        x: the state there, corrected.
        stop, past: the time there, and those above it that have slopes.
        slope, slopes: dx/dt there, and at `past`.
        good: (B,) for which samples the leap is good enough for the tolerance.
    """

    x: Tensor
    stop: float
    past: list[float]
    slope: Tensor
    slopes: list[Tensor]
    good: Tensor

    @classmethod
    def of(
        cls, term: Term, law: Gaussian | None, x: Tensor, span: tuple[float, float], tolerance: Tolerance, aim: float
    ) -> Leapt | None:
        """The leap from x at the first time of a span that a tolerance allows, of which a step may use the share `aim`;
        None: there is nothing to leap over."""
        begin, end = span
        stop = math.atan(leap_of_tolerance(tolerance, scale_of_circle(term)))
        if end < begin and not end < stop < begin:
            return None
        stop = max(stop, end)  # above `begin` where the way is up, which is refused
        leap = GaussianStart.planned(term, law, begin, stop, x)
        x_stop = leap.at(x, stop)
        slope = term.drift(x_stop, torch.full((len(x),), stop, dtype=torch.float64, device=x.device))
        x_stop, slopes, correction = leap.corrected(x, x_stop, slope)
        # what comes after the correction is smaller by about alpha s/sigma
        good = tolerance.ratio(correction, x, x_stop) / math.tan(stop) <= aim
        return cls(x_stop, stop, leap.past, slope, slopes, good)


def scale_of_circle(term: Term) -> float:
    """s of the circular path that a term lives on; any other path is refused."""
    s = term.sde.data_scale
    if s is None:
        raise InvalidInputError(
            f"start='gaussian' works on the circular path, not along {type(term.sde).__name__}: use sample(), or a "
            "term of model.on(TrigSDE(s))"
        )
    return s


def newton_table(slope: Tensor, slopes: Sequence[Tensor], t: float, past: Sequence[float]) -> list[Tensor]:
    """phi_1, phi_2, phi_3 of `Adams` at t, from the slopes there and at two times before."""
    first = slope - slopes[0]
    return [slope, first, first - (t - past[0]) / (past[0] - past[1]) * (slopes[0] - slopes[1])]


# ---- along the reverse SDE


def is_far(term: Term, l: Tensor) -> Tensor:
    """Whether noise levels l = log(alpha/sigma) are so high that a step down to them has a closed form."""
    if not term.eta or term.model.data_std is None:
        return torch.zeros_like(l, dtype=torch.bool)
    return l <= -math.log(FAR * term.model.sigma_data) + 1e-6


def far_time(term: Term) -> Tensor:
    """The time, a scalar, where the noise level is FAR s."""
    far = torch.tensor(-math.log(FAR * term.model.sigma_data), dtype=torch.float64, device="cpu")
    return term.sde.time(far).clamp(term.t_min, term.t_max)


def kept(before: Tensor, after: Tensor, e: float = 0.0) -> Tensor:
    """What a step keeps of an offset from the mean: (P'/P)^((1 + e)/2) from variance P to P', e = eta^2."""
    return (after / before) ** ((1 + e) / 2)


def gaussian_step(term: Term, x: Tensor, t: Tensor, t_next: Tensor, noise: Noise) -> Tensor:
    """One exact step of the reverse SDE of N(m, C), with what the model knows of m and C.

    Along an eigenvector of C with eigenvalue c, P = c + sh^2 and e = eta^2:

        xh' = m + (P'/P)^((1 + e)/2) (xh - m) + sqrt(P' (1 - (P'/P)^e)) z.
    """
    e = term.eta**2
    start, stop = term.sde.at(t), term.sde.at(t_next)
    q = term.model.data.law.to(x.double())
    after = q.variances + (stop.sigma / stop.alpha) ** 2
    total = q.total(start.alpha, start.sigma)  # alpha^2 P, which alpha = 0 leaves finite
    share = start.alpha**e * kept(total, after, e)
    std = (after * -torch.expm1(e * torch.log(start.alpha**2 * after / total))).sqrt()
    z = noise.normal(x.shape, Purpose.STEP, t, t_next, dtype=x.dtype, device=x.device)
    q = q.to(x)
    inner = share.to(x) * q.offset(flat(x), start.alpha) + std.to(x) * flat(z)
    if q.axes is not None:
        inner = inner @ q.axes.mT
    return stop.alpha * (q.mean + inner).reshape(x.shape)
