"""Forward processes: what noise does to data.

Every process here is a linear SDE dx = f(t) x dt + g(t) dw, so x_t given x_0 is N(alpha(t) x_0, sigma(t)^2 I) with

    d log(alpha)/dt = f,        d(sigma^2)/dt = 2 f sigma^2 + g^2.

Either pair determines the other. Half the log signal-to-noise ratio, lambda = log(alpha/sigma), falls with t.
Time runs from 0 (data) to t_max (noise). Functions of t accept a number or a tensor of any shape, return that shape and
can be differentiated; a number gives a float64 tensor.
"""

from __future__ import annotations

import copy
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..core.cache import CachedFunction, Recent, carries_derivatives
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.roots import find_root
from ..core.shapes import as_number, as_time, check_state, check_time, event_sum, expand
from ..core.show import Shown, curves
from ..core.unwritten import Unwritten
from ..noise.white import Noise, check_seed
from .functions import NAMES as FUNCTIONS
from .functions import Time, check_elementwise, derivative, function_of_time, process_time
from .level import Level, levels_of_numbers

_MOST_ANSWERS = 16  # that are remembered of a process, besides its coefficients
_FOLLOWS = ("_cached", "_answers", "_unwritten", "_curves")  # attributes that follow from the others
_NEAR_0, _BEYOND = 1e-6, 1.01  # parts of t_min and t_max between which times have coefficients


class _Immutable(ABCMeta):
    """Classes whose objects are checked once they are made, and do not change afterwards."""

    _checked: bool

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if cls._checked:
            made._check()
        made._finish()
        return made


class SDE(Shown, metaclass=_Immutable):
    """A linear forward process, defined by alpha(t) and sigma(t) on [t_min, t_max].

    Subclasses give `alpha` and `sigma`, functions of a tensor t in torch functions; the rest follows by automatic
    differentiation, and may be overridden in closed form. What they return is checked when an object is made, and
    `sdegen.testing.check_sde(sde)` proves the result. The range of times is that of the class (`t_min = 1e-3`,
    `t_max = 1.0` in its body) or of the object (`super().__init__(t_min=..., t_max=...)`).

    A process does not change once it is made, since much that is computed of it is remembered: to assign an attribute
    is refused, and so is a process after numbers were changed that it has used: in its tensors, arrays, lists and
    dicts, in its class, and in variables of its functions.

    Attributes:
        t_min: the smallest time at which the process is used; positive, since every quantity must be finite there.
        t_max: the time of the prior.
        data_scale: the standard deviation of the data whose scale the state keeps at all times, as on the circular path
            (`TrigSDE`); None for processes that keep none.
        nodes: (N,), the times at which a process is the discrete one of a table; None for those without one.
        config: the constructor's arguments, from which a checkpoint rebuilds the process, a copy of them; None for
            functions.

    Raises:
        InvalidInputError: alpha or sigma is not positive and finite, not elementwise, not differentiable, or
            alpha/sigma does not fall; a time that is negative, infinite or NaN; an attribute is assigned later.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    data_scale: float | None = None
    nodes: Tensor | None = None
    _checked: bool = False
    _finished: bool = False
    _config: dict[str, Any] | None = None
    _unwritten: Unwritten | None = None  # its numbers that can be changed, where it has some
    _curves: list[list[float]] | None = None  # what they made of alpha and sigma
    _expected = "a process such as VPSDE()"
    _cached: CachedFunction
    _answers: Recent

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        sde = super().__new__(cls)
        cached = CachedFunction(sde._level, levels_of_numbers)
        vars(sde)["_cached"], vars(sde)["_answers"] = cached, Recent(_MOST_ANSWERS)
        return sde

    @checked
    def __init__(self, *, t_min: float | None = None, t_max: float | None = None) -> None:
        t_min = as_number(self.t_min if t_min is None else t_min, "t_min")
        t_max = as_number(self.t_max if t_max is None else t_max, "t_max")
        if not 0 < t_min < t_max < math.inf:
            raise InvalidInputError(f"time range [{t_min:g}, {t_max:g}]: expected 0 < t_min < t_max, both finite")
        self.t_min, self.t_max = t_min, t_max

    def __init_subclass__(cls, *, checked: bool = True, **kwargs: Any) -> None:
        """`checked`: whether alpha and sigma are checked when an object is made; False where tests have proved them."""
        super().__init_subclass__(**kwargs)
        cls._checked = checked
        for name in FUNCTIONS:
            function = cls.__dict__.get(name)
            if callable(function) and not getattr(function, "__isabstractmethod__", False):
                setattr(cls, name, function_of_time(function, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if self._finished:
            raise InvalidInputError(
                f"{type(self).__name__}.{name} cannot be assigned: a process does not change once it is made; "
                "make another one, or take sde.narrowed(t_min, t_max) for a shorter range of times"
            )
        super().__setattr__(name, value)

    def _finish(self) -> None:
        """From here on it does not change."""
        vars(self)["_curves"] = self._curve() if self._numbers() else None
        vars(self)["_unwritten"] = self._numbers() or None  # as the curve has left them: it may be counted
        vars(self)["_finished"] = True

    def _numbers(self) -> Unwritten:
        return Unwritten([*self._held(), *_of_classes(type(self))])

    def _curve(self) -> list[list[float]]:
        """alpha and sigma at 129 times from t_min to t_max."""
        with torch.inference_mode(False), torch.no_grad():
            t = torch.linspace(self.t_min, self.t_max, 129, dtype=torch.float64, device="cpu")
            return [self.alpha(t).tolist(), self.sigma(t).tolist()]

    def _held(self) -> list[Any]:
        """What it keeps, but for what follows from it."""
        return [value for name, value in vars(self).items() if name not in (*_FOLLOWS, "_config")]

    @property
    def config(self) -> dict[str, Any] | None:
        """The constructor's arguments."""
        return copy.deepcopy(self._config)

    @config.setter
    def config(self, value: dict[str, Any] | None) -> None:
        self._config = value

    # ---- what a subclass defines

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """The factor on x_0."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """The standard deviation of x_t given x_0."""

    # ---- what follows

    @function_of_time
    def drift_coefficient(self, t: Time) -> Tensor:
        """f(t) = d log(alpha)/dt."""
        return derivative(lambda u: torch.log(self.alpha(u)), t)

    @function_of_time
    def diffusion(self, t: Time) -> Tensor:
        """g(t) = sqrt(-2 sigma^2 dlambda/dt), the coefficient of dw."""
        g2 = -2 * self.sigma(t) ** 2 * derivative(self.half_log_snr, t)
        return g2.clamp_min(0).sqrt()

    @checked
    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f(t) x. Shapes: x (B, *event), t () or (B,)."""
        t = process_time(t)
        check_time(t, x)
        return expand(self.drift_coefficient(t), x) * x

    @function_of_time
    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') = (f alpha, f sigma + g^2/(2 sigma)), derivatives in t: the velocity's coefficients."""
        f, sigma = self.drift_coefficient(t), self.sigma(t)
        return f * self.alpha(t), f * sigma + self.diffusion(t) ** 2 / (2 * sigma)

    def at(self, t: float | Tensor) -> Level:
        """The coefficients at t, remembered: plain floats at one time, tensors of its shape at a tensor of times.

        A time that carries derivatives gives tensors and is never remembered; see `sdegen.core.cache`.
        """
        if self._unwritten is not None and not self._unwritten():
            self._check_nothing_remembered()
        return self._cached(t if isinstance(t, (Tensor, float)) else as_time(t))

    def _check_nothing_remembered(self) -> None:
        """Numbers that it holds were changed: raise if they matter to what is remembered; a counter does not."""
        used = self._cached.used or self._answers.used
        same = self._unwritten is not None and self._unwritten.same_tensors()
        if used and not (same and self._curve() == self._curves):
            raise InvalidInputError(
                f"{type(self).__name__}: numbers that the process has used were changed, expected a process that does "
                "not change; make another one"
            )
        self._finish()

    def _level(self, t: Tensor) -> Level:
        """The coefficients at times that rounding, at most, has put outside [t_min, t_max]; 0 is none of these."""
        return Level(self, process_time(t, least=self.t_min * _NEAR_0, most=self.t_max * _BEYOND))

    def at_ratio(self, ratio: Tensor) -> Level:
        """The coefficients where sigma/alpha is `ratio` (B,), times moved onto [t_min, t_max] against rounding."""
        return self.at(self.time(-torch.log(ratio)).clamp(self.t_min, self.t_max))

    def warm(self, ts: Tensor) -> None:
        """Compute the coefficients at all of these times in one go, once the first of them is asked for."""
        self._cached.warm(ts)

    @function_of_time
    def half_log_snr(self, t: Time) -> Tensor:
        """lambda(t) = log(alpha/sigma), half the log signal-to-noise ratio: falls with t, finite on [t_min, t_max]."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    @function_of_time
    def time(self, half_log_snr: Time) -> Tensor:
        """The inverse of `half_log_snr`: Newton's method inside a bracket. Values beyond the range give its ends."""
        with torch.no_grad():
            grid = self._bracket_times().to(half_log_snr.device)
            levels = self.half_log_snr(grid)
            level = half_log_snr.detach().to(torch.float64).clamp(levels[-1], levels[0])
            cell = torch.searchsorted(-levels, -level.contiguous(), right=True).clamp(1, len(grid) - 1)
            low, high = grid[cell - 1], grid[cell]
            fall = (levels[cell - 1] - levels[cell]).clamp_min(1e-300)  # two neighbours may be equal to rounding
            guess = low + (high - low) * ((levels[cell - 1] - level) / fall).clamp(0, 1)
            t = find_root(lambda u: -self.half_log_snr(u), -level, low, high, slope=self._rate_of_fall, guess=guess)
        if carries_derivatives(half_log_snr):  # one more Newton step carries the derivative dt/dlambda
            slope = -self._rate_of_fall(t).detach()
            return t - (self.half_log_snr(t).detach() - half_log_snr) / slope
        return t

    def _rate_of_fall(self, t: Tensor) -> Tensor:
        """-d lambda/dt = g^2/(2 sigma^2)."""
        return (self.diffusion(t) / self.sigma(t)) ** 2 / 2

    def _bracket_times(self) -> Tensor:
        """Times of [t_min, t_max] dense near both ends, float64: where lambda is tabulated before it is inverted."""
        width = self.t_max - self.t_min
        rise = torch.logspace(-12, 0, 97, dtype=torch.float64, device="cpu")
        low = self.t_min + width / 2 * rise
        high = self.t_max - width / 2 * rise
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64, device="cpu")
        return torch.unique(
            torch.cat([ends, low, high, torch.linspace(self.t_min, self.t_max, 129, dtype=torch.float64, device="cpu")])
        )

    # ---- samples

    @checked
    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) noise. Shapes: x0, noise (B, *event), t () or (B,)."""
        t = process_time(t)
        check_time(t, x0)
        _check_noise(noise, x0)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    @checked
    def transition(self, x: Tensor, t: Time, t_next: Time, noise: Tensor) -> Tensor:
        """A draw from the forward kernel x_{t_next} given x_t, t <= t_next.

        x' = a x + sqrt(sigma'^2 - a^2 sigma^2) noise, a = alpha'/alpha; the variance is computed without cancellation
        as sigma'^2 (1 - exp(2 (lambda' - lambda))).

        Raises:
            InvalidInputError: t_next is before t.
        """
        t, t_next = process_time(t), process_time(t_next)
        check_time(t, x)
        check_time(t_next, x)
        _check_noise(noise, x)
        if bool((t_next < t - 1e-6 * self.t_max).any()):  # the slack: times that float32 rounded
            raise InvalidInputError(
                f"transition goes down from t = {float(t.max()):g} to t_next = {float(t_next.min()):g}: the forward "
                "kernel needs t <= t_next (the way down is sampling)"
            )
        ratio = self.alpha(t_next) / self.alpha(t)
        growth = 2 * (self.half_log_snr(t_next) - self.half_log_snr(t))
        std = self.sigma(t_next) * (-torch.expm1(growth)).clamp_min(0).sqrt()
        return expand(ratio, x) * x + expand(std, x) * noise

    @checked
    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: int | None = None,
        index: Sequence[int] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A draw from N(0, sigma(t_max)^2 I) of `shape` (B, *event); sample i depends on (seed, its number) alone."""
        noise = Noise(check_seed(seed), index=index)
        z = noise.initial(shape, dtype=dtype or torch.get_default_dtype(), device=device or "cpu")
        return z * self.sigma(self.t_max)

    @checked
    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, sigma(t_max)^2 I) in nats, (B,)."""
        check_state(x, finite=False)
        std = float(self.sigma(self.t_max))
        constant = math.prod(x.shape[1:]) * (math.log(2 * math.pi) / 2 + math.log(std))
        return -event_sum((x / std) ** 2) / 2 - constant

    @checked
    def narrowed(self, t_min: float, t_max: float) -> Self:
        """The same process on a shorter range of times: what both ranges share."""
        sde = copy.copy(self)
        vars(sde)["_finished"] = False
        SDE.__init__(sde, t_min=max(t_min, self.t_min), t_max=min(t_max, self.t_max))
        sde._finish()
        return sde

    def _check(self) -> None:
        """Raise unless alpha and sigma are elementwise, differentiable, positive and finite, and alpha/sigma falls."""
        for name in ("alpha", "sigma"):
            check_elementwise(getattr(type(self), name).given.__get__(self), name, self.t_min, self.t_max)
        self._check_path()
        self._check_slopes()

    def _check_path(self) -> None:
        """Raise unless alpha and sigma are positive and finite and lambda falls on [t_min, t_max]."""
        t = self._bracket_times()
        alpha, sigma = self.alpha(t), self.sigma(t)
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            bad = ~(torch.isfinite(value) & (value > 0))
            if bad.any():
                i = int(bad.nonzero()[0])
                raise InvalidInputError(
                    f"{name}({float(t[i]):g}) = {float(value[i]):g}: expected positive and finite on [t_min, t_max] = "
                    f"[{self.t_min:g}, {self.t_max:g}]; narrow the range with t_min=, t_max="
                )
        coarse = torch.linspace(self.t_min, self.t_max, 129, dtype=torch.float64, device="cpu")
        rise = self.half_log_snr(coarse).diff()
        if bool((rise >= 0).any()):
            i = int((rise >= 0).nonzero()[0])
            raise InvalidInputError(
                f"the signal-to-noise ratio alpha/sigma does not fall between t = {float(coarse[i]):g} and "
                f"{float(coarse[i + 1]):g}: expected a forward process, noisier as t grows (its g^2 would be negative)"
            )

    def _check_slopes(self) -> None:
        """Raise where automatic differentiation gives no slope, a wrong one, or one that rises."""
        h = 1e-5 * (self.t_max - self.t_min)
        t = torch.linspace(self.t_min + h, self.t_max - h, 129, dtype=torch.float64, device="cpu")
        slopes = []
        for name, function in (("alpha", self.alpha), ("sigma", self.sigma)):
            slope = derivative(lambda u, function=function: torch.log(function(u)), t)
            if not bool(torch.isfinite(slope).all()):
                i = int((~torch.isfinite(slope)).nonzero()[0])
                raise InvalidInputError(
                    f"the derivative of {name}(t) at t = {float(t[i]):g} is {float(slope[i])}: expected finite"
                )
            secant = (torch.log(function(t + h)) - torch.log(function(t - h))) / (2 * h)
            slack = 1e-2 * (slope.abs() + secant.abs()) + 1e-6 / (self.t_max - self.t_min)
            wrong = (slope - secant).abs() > slack
            if wrong.sum() > len(t) / 2:  # here and there it may: a function is allowed its kinks
                i = int(wrong.nonzero()[0])
                raise InvalidInputError(
                    f"automatic differentiation of log {name}(t) at t = {float(t[i]):g} gives {float(slope[i]):g}, "
                    f"differences of its values {float(secant[i]):g}: build {name} of torch functions, without "
                    "detach, numpy or math"
                )
            slopes.append(slope)
        rises = slopes[0] - slopes[1] > 1e-9 * (slopes[0].abs() + slopes[1].abs())
        if bool(rises.any()):
            i = int(rises.nonzero()[0])
            raise InvalidInputError(
                f"the signal-to-noise ratio alpha/sigma rises at t = {float(t[i]):g}: expected a forward process, "
                "noisier as t grows (its g^2 would be negative)"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave behind what is remembered: it belongs to the process that made it."""
        return {name: value for name, value in self.__dict__.items() if name not in _FOLLOWS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._finish()

    def _facts(self):
        if self.config is None:
            return {"t_min": f"{self.t_min:g}", "t_max": f"{self.t_max:g}"}
        words = {k: v if isinstance(v, list) else getattr(self, k, v) for k, v in self.config.items()}
        return {k: f"[{len(v)} values]" if isinstance(v, list) else f"{v:g}" for k, v in words.items()}

    def _picture(self):
        """The shares of data (falling) and noise (rising) in x, over time."""
        level = self.at(torch.linspace(self.t_min, self.t_max, 100, dtype=torch.float64, device="cpu"))
        size = torch.hypot(level.alpha, level.sigma)
        return curves(level.alpha / size, level.sigma / size)


def nodes_of(sde: SDE) -> Tensor:
    """The times of the nodes of a process that has a table, (N,)."""
    if not isinstance(sde, SDE) or sde.nodes is None:
        raise InvalidInputError(
            f"got {sde!r}, which has no table of nodes, expected TabulatedVPSDE(betas) or TabulatedVESDE(sigmas)"
        )
    return sde.nodes


def _of_classes(kind: type) -> list[Any]:
    """What a user's classes give a process, numbers and functions by name."""
    package = __name__.partition(".")[0]
    return [vars(cls) for cls in kind.__mro__ if issubclass(cls, SDE) and cls.__module__.partition(".")[0] != package]


def once(sde: SDE, asked: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What follows from a process and from what is `asked` alone, made once: a grid, another process's times.

    Nobody may write into it.
    """

    def made() -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return make()

    if sde._unwritten is not None and not sde._unwritten():
        sde._check_nothing_remembered()
    return sde._answers.of(asked, made)


def _check_noise(noise: Tensor, x: Tensor) -> None:
    if noise.device != x.device:
        raise InvalidInputError(f"noise is on {noise.device}, but x on {x.device}: expected the same device")
    if noise.shape != x.shape:
        raise InvalidInputError(f"noise has shape {tuple(noise.shape)}, but x has {tuple(x.shape)}: expected the same")
