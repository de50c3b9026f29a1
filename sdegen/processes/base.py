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
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..core.cache import CachedFunction
from ..core.errors import InvalidInputError
from ..core.shapes import as_number, as_time, check_time, event_sum, expand
from ..noise.white import PRIOR, Noise, check_seed
from .level import Level, levels_of_numbers


class SDE(ABC):
    """A linear forward process, defined by alpha(t) and sigma(t) on [t_min, t_max].

    Subclasses give `alpha` and `sigma` (torch functions) and set the range with `_set_range`; the rest follows by
    automatic differentiation, and may be overridden in closed form. `sdegen.testing.check_sde(sde)` proves the result.

    Attributes:
        t_min: the smallest time at which the process is used; positive, since every quantity must be finite there.
        t_max: the time of the prior.
        data_scale: the standard deviation of the data whose scale the state keeps at all times, as on the circular path
            (`TrigSDE`); None for processes that keep none.
        config: the constructor's arguments, from which a checkpoint rebuilds the process; None for functions.
    """

    t_min: float
    t_max: float
    data_scale: float | None = None
    config: dict[str, Any] | None = None
    _cached: CachedFunction

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        sde = super().__new__(cls)
        sde._cached = CachedFunction(lambda t: Level(sde, t), levels_of_numbers)
        return sde

    # ---- what a subclass defines

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """The factor on x_0."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """The standard deviation of x_t given x_0."""

    def _set_range(self, t_min: float, t_max: float) -> None:
        t_min, t_max = as_number(t_min, "t_min"), as_number(t_max, "t_max")
        if not 0 < t_min < t_max < math.inf:
            raise InvalidInputError(f"time range [{t_min:g}, {t_max:g}]: wanted 0 < t_min < t_max, both finite")
        self.t_min, self.t_max = t_min, t_max

    # ---- what follows

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        """f(t) = d log(alpha)/dt."""
        return derivative(lambda u: torch.log(self.alpha(u)), as_time(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        """g(t) = sqrt(-2 sigma^2 dlambda/dt), the coefficient of dw."""
        t = as_time(t)
        g2 = -2 * self.sigma(t) ** 2 * derivative(self.half_log_snr, t)
        return g2.clamp_min(0).sqrt()

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """f(t) x. Shapes: x (B, *event), t () or (B,)."""
        t = as_time(t)
        check_time(t, x)
        return expand(self.drift_coefficient(t), x) * x

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') = (f alpha, f sigma + g^2/(2 sigma)), derivatives in t: the velocity's coefficients."""
        f, sigma = self.drift_coefficient(t), self.sigma(t)
        return f * self.alpha(t), f * sigma + self.diffusion(t) ** 2 / (2 * sigma)

    def at(self, t: float | Tensor) -> Level:
        """The coefficients at t, remembered: plain floats at one time, tensors of its shape at a tensor of times.

        A time that carries derivatives gives tensors and is never remembered; see `sdegen.core.cache`.
        """
        return self._cached(t)

    def at_ratio(self, ratio: Tensor) -> Level:
        """The coefficients where sigma/alpha is `ratio` (B,), times moved onto [t_min, t_max] against rounding."""
        return self.at(self.time(-torch.log(ratio)).clamp(self.t_min, self.t_max))

    def warm(self, ts: Tensor) -> None:
        """Compute the coefficients at all of these times in one go, once the first of them is asked for."""
        self._cached.warm(ts)

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        """lambda(t) = log(alpha/sigma), half the log signal-to-noise ratio: falls with t, finite on [t_min, t_max]."""
        t = as_time(t)
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """The inverse of `half_log_snr`: Newton's method inside a bracket. Values beyond the range give its ends."""
        wanted = as_time(half_log_snr)
        with torch.no_grad():
            target = wanted.detach().to(torch.float64)
            grid = self._bracket_times().to(target.device)
            levels = self.half_log_snr(grid)
            target = target.clamp(levels[-1], levels[0])
            cell = torch.searchsorted(-levels, -target.contiguous(), right=True).clamp(1, len(grid) - 1)
            low, high = grid[cell - 1], grid[cell]
            fall = (levels[cell - 1] - levels[cell]).clamp_min(1e-300)  # two neighbours may be equal to rounding
            t = low + (high - low) * ((levels[cell - 1] - target) / fall).clamp(0, 1)
            for _ in range(60):
                excess = self.half_log_snr(t) - target
                low, high = torch.where(excess > 0, t, low), torch.where(excess > 0, high, t)
                slope = -((self.diffusion(t) / self.sigma(t)) ** 2) / 2
                step = excess / slope
                there = (step.abs() <= 4e-16 * t) | (excess.abs() <= 4e-16 * (1 + target.abs()))  # to rounding
                if bool(there.all()):
                    break
                newton = t - step
                inside = (newton >= low) & (newton <= high)
                t = torch.where(there, t, torch.where(inside, newton, (low + high) / 2))
        if wanted.requires_grad:  # one more Newton step carries the derivative dt/dlambda
            slope = (-((self.diffusion(t) / self.sigma(t)) ** 2) / 2).detach()
            return (t - (self.half_log_snr(t).detach() - wanted) / slope).to(wanted.dtype)
        return t.to(wanted.dtype)

    def _bracket_times(self) -> Tensor:
        """Times of [t_min, t_max] dense near both ends, float64: where lambda is tabulated before it is inverted."""
        width = self.t_max - self.t_min
        rise = torch.logspace(-12, 0, 97, dtype=torch.float64)
        low = self.t_min + width / 2 * rise
        high = self.t_max - width / 2 * rise
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64)
        return torch.unique(
            torch.cat([ends, low, high, torch.linspace(self.t_min, self.t_max, 129, dtype=torch.float64)])
        )

    # ---- samples

    def perturb(self, x0: Tensor, t: float | Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) noise. Shapes: x0, noise (B, *event), t () or (B,)."""
        t = as_time(t)
        check_time(t, x0)
        _check_noise(noise, x0)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    def transition(self, x: Tensor, t: float | Tensor, t_next: float | Tensor, noise: Tensor) -> Tensor:
        """A draw from the forward kernel x_{t_next} given x_t, t <= t_next.

        x' = a x + sqrt(sigma'^2 - a^2 sigma^2) noise, a = alpha'/alpha; the variance is computed without cancellation
        as sigma'^2 (1 - exp(2 (lambda' - lambda))).

        Raises:
            InvalidInputError: t_next is before t.
        """
        t, t_next = as_time(t), as_time(t_next)
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
        z = noise.normal(shape, PRIOR, dtype=dtype or torch.get_default_dtype(), device=device or "cpu")
        return z * self.sigma(self.t_max)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, sigma(t_max)^2 I) in nats, (B,)."""
        std = float(self.sigma(self.t_max))
        constant = math.prod(x.shape[1:]) * (math.log(2 * math.pi) / 2 + math.log(std))
        return -event_sum((x / std) ** 2) / 2 - constant

    def narrowed(self, t_min: float, t_max: float) -> Self:
        """The same process on a shorter range of times: what both ranges share."""
        sde = copy.copy(self)
        sde._set_range(max(t_min, self.t_min), min(t_max, self.t_max))
        return sde

    def _check_path(self) -> None:
        """Raise unless alpha and sigma are positive and finite and lambda falls on [t_min, t_max]."""
        t = self._bracket_times()
        alpha, sigma = self.alpha(t), self.sigma(t)
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            if value.shape != t.shape:
                raise InvalidInputError(
                    f"{name}(t) has shape {tuple(value.shape)} for t of shape {tuple(t.shape)}: wanted t's shape"
                )
            bad = ~(torch.isfinite(value) & (value > 0))
            if bad.any():
                i = int(bad.nonzero()[0])
                raise InvalidInputError(
                    f"{name}({float(t[i]):g}) = {float(value[i]):g}: wanted positive and finite on [t_min, t_max] = "
                    f"[{self.t_min:g}, {self.t_max:g}]; narrow the range with t_min=, t_max="
                )
        coarse = torch.linspace(self.t_min, self.t_max, 129, dtype=torch.float64)
        rise = self.half_log_snr(coarse).diff()
        if bool((rise >= 0).any()):
            i = int((rise >= 0).nonzero()[0])
            raise InvalidInputError(
                f"the signal-to-noise ratio alpha/sigma does not fall between t = {float(coarse[i]):g} and "
                f"{float(coarse[i + 1]):g}: wanted a forward process, noisier as t grows (its g^2 would be negative)"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave behind what is remembered: it belongs to the process that made it."""
        return {name: value for name, value in self.__dict__.items() if name != "_cached"}

    def __repr__(self) -> str:
        words = {k: v if isinstance(v, list) else getattr(self, k, v) for k, v in (self.config or {}).items()}
        said = (f"{k}=[{len(v)} values]" if isinstance(v, list) else f"{k}={v:g}" for k, v in words.items())
        return f"{type(self).__name__}({', '.join(said)})"


def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """df/dt of an elementwise function, of t's shape; differentiable where t asks for it."""
    keep_graph = t.requires_grad and torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        u = t if keep_graph else t.detach().clone().requires_grad_()
        value = f(u)
        if not value.requires_grad:  # a constant
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), u, create_graph=keep_graph, allow_unused=True)
    return torch.zeros_like(t) if slope is None else slope


def _check_noise(noise: Tensor, x: Tensor) -> None:
    if noise.shape != x.shape:
        raise InvalidInputError(f"noise has shape {tuple(noise.shape)}, but x has {tuple(x.shape)}: wanted the same")
