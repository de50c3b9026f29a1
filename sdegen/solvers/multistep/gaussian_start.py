"""The Gaussian start: at high noise the flow is that of a Gaussian, so its first part has a closed form.

Along the flow of N(0, C), centred data, x' = ((alpha'^2 C + sigma'^2)/(alpha^2 C + sigma^2))^(1/2) x: one leap from
t_max to a noise level of some standard deviations of the data, without an evaluation. What the data differ from that
Gaussian by is seen at the landing: delta = velocity - Gaussian velocity, on the circular path. Above, it falls like
(sigma/alpha)^-k, k = 2 with the whole covariance, else 1. So

    x - delta s/((k + 1) sh)         is the landing corrected by what the leap from infinity left out, sh = sigma/alpha,
                                     of which 1 - (sh/sh_max)^(k + 1) lies below sh_max, and
    Gaussian velocity + delta (sh/sh_i)^k     are past slopes at noise levels sh_i above, for a multistep method.

Source: Wang & Vastola 2024 (arXiv 2412.09726) for the leap; the correction and the past slopes are this package's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import flat
from ...distributions.gaussian import Gaussian
from ...models.facts import known
from ...terms import Term


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
        law = known(term.model) if law is None else law
        d = math.prod(x.shape[1:])
        came = law.variances.shape[:1] if law.axes is None else law.axes.shape[:1]
        if came not in ((), (d,)):
            raise InvalidInputError(
                f"the covariance is of {came[0]} numbers, but an event of shape {tuple(x.shape[1:])} has {d}: wanted "
                f"({d}, {d}), or variances of the event's shape"
            )
        return cls(law.to(x), s, start, stop, 2 if law.complete else 1)

    @property
    def past(self) -> list[float]:
        """The times above the landing that get a slope, the nearest first."""
        return [(self.start + self.stop) / 2, self.start]

    def carried(self, x: Tensor, t: float) -> Tensor:
        """The Gaussian flow from x at `start` to t."""
        return self._applied(lambda v: (self._total(v, t) / self._total(v, self.start)) ** 0.5, x)

    def slope(self, x: Tensor, t: float) -> Tensor:
        """dx/dt of the Gaussian flow at (x, t)."""
        return self._applied(lambda v: (self.s**2 - v) * math.sin(t) * math.cos(t) / self._total(v, t), x)

    def landed(self, x: Tensor, x_stop: Tensor, slope: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """(x at `stop` corrected, slopes at `past`, the correction), given x at `start` and the slope at `stop`."""
        delta, k = slope - self.slope(x_stop, self.stop), self.power
        share = 1 - (math.tan(self.stop) / math.tan(self.start)) ** (k + 1)  # of the integral to infinity
        correction = delta * share / ((k + 1) * math.tan(self.stop))
        slopes = [
            self.slope(self.carried(x, t), t) + delta * (math.tan(self.stop) / math.tan(t)) ** k for t in self.past
        ]
        return x_stop - correction, slopes, correction

    def _total(self, v: Any, t: float) -> Any:
        """alpha^2 v + sigma^2 at t."""
        return math.cos(t) ** 2 * v + (self.s * math.sin(t)) ** 2

    def _applied(self, f: Callable[[Any], Any], x: Tensor) -> Tensor:
        return self.law.apply(f, flat(x)).reshape(x.shape)


def scale_of_circle(term: Term) -> float:
    """s of the circular path that a term lives on; any other path is refused."""
    sde, t = term.sde, term.t_min
    s = getattr(sde, "sigma_data", None)
    if s is None or abs(float(sde.alpha(t)) - math.cos(t)) > 1e-9:
        raise InvalidInputError(
            f"start='gaussian' works on the circular path, not along {type(sde).__name__}: use sample(), or a term "
            "of model.on(TrigSDE(s))"
        )
    return s


def newton_table(slope: Tensor, slopes: Sequence[Tensor], t: float, past: Sequence[float]) -> list[Tensor]:
    """phi_1, phi_2, phi_3 of `Adams` at t, from the slopes there and at two times before."""
    first = slope - slopes[0]
    return [slope, first, first - (t - past[0]) / (past[0] - past[1]) * (slopes[0] - slopes[1])]
