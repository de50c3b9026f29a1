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
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .errors import InvalidInputError
from .memo import Latest, Memo, carries
from .noise import PRIOR, Noise, check_seed
from .quadrature import Antiderivative
from .shapes import as_number, as_time, check_time, event_sum, expand


class Level(NamedTuple):
    """A process at one time: alpha, sigma, their derivatives in t, and g, all computed and remembered."""

    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any
    g: Any

    @property
    def rates(self) -> tuple[Any, Any]:
        return self.d_alpha, self.d_sigma


class LevelsOf:
    """A process at times of any shape: as `Level`, but tensors, every one computed when first asked for."""

    __slots__ = ("_known", "_sde", "t")

    def __init__(self, sde: SDE, t: Tensor, **known: Tensor) -> None:
        self._sde, self.t = sde, t
        self._known: dict[str, Any] = known

    def _once(self, name: str, function: Callable[[Tensor], Any]) -> Any:
        value = function(self.t)
        if not carries(value[0] if isinstance(value, tuple) else value):
            self._known[name] = value
        return value

    @property
    def alpha(self) -> Tensor:
        return self._known["alpha"] if "alpha" in self._known else self._once("alpha", self._sde.alpha)

    @property
    def sigma(self) -> Tensor:
        return self._known["sigma"] if "sigma" in self._known else self._once("sigma", self._sde.sigma)

    @property
    def rates(self) -> tuple[Tensor, Tensor]:
        return self._known["rates"] if "rates" in self._known else self._once("rates", self._sde.rates)

    @property
    def d_alpha(self) -> Tensor:
        return self.rates[0]

    @property
    def d_sigma(self) -> Tensor:
        return self.rates[1]

    @property
    def g(self) -> Tensor:
        return self._known["g"] if "g" in self._known else self._once("g", self._sde.diffusion)


class SDE(ABC):
    """A linear forward process, defined by alpha(t) and sigma(t) on [t_min, t_max].

    Subclasses give `alpha` and `sigma` (torch functions) and set the range with `_set_range`; the rest follows by
    automatic differentiation, and may be overridden in closed form. `sdegen.testing.check_sde(sde)` proves the result.

    Attributes:
        t_min: the smallest time at which the process is used; positive, since every quantity must be finite there.
        t_max: the time of the prior.
        config: the constructor's arguments, from which a checkpoint rebuilds the process; None for functions.
    """

    t_min: float
    t_max: float
    config: dict[str, Any] | None = None
    _levels: Memo | None = None
    _latest: Latest | None = None

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

    def level(self, t: Tensor) -> Level | LevelsOf:
        """The coefficients at t: plain floats, remembered, for a scalar time (see `Memo`), else of t's shape."""
        return self.at(t) if t.ndim else Level(*self.levels(t))

    def at(self, t: Tensor) -> LevelsOf:
        """The coefficients at t as tensors of its shape, remembered until another tensor comes."""
        known = None if self._latest is None else self._latest.of(t)
        return self._kept(LevelsOf(self, t)) if known is None else known

    def _kept(self, levels: LevelsOf) -> LevelsOf:
        if self._latest is None:
            self._latest = Latest()
        self._latest.keep(levels.t, levels)
        return levels

    def at_ratio(self, ratio: Tensor) -> LevelsOf:
        """The coefficients where sigma/alpha is `ratio`, times moved onto [t_min, t_max] against rounding."""
        return self.at(self.time(-torch.log(ratio)).clamp(self.t_min, self.t_max))

    @property
    def levels(self) -> Memo:
        """The memo behind `level`; `sde.levels.warm(ts)` fills it for a whole grid at once."""
        if self._levels is None:
            self._levels = Memo(self._level_values)
        return self._levels

    def _level_values(self, t: Tensor) -> tuple[Tensor, ...]:
        return self.alpha(t), self.sigma(t), *self.rates(t), self.diffusion(t)

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
        return {name: value for name, value in self.__dict__.items() if name not in ("_levels", "_latest")}

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


class _FromIntegral(SDE):
    """Processes given by I(t) = int_0^t beta: alpha = exp(-I/2), f = -beta/2. Subclasses give I, its inverse, beta."""

    @abstractmethod
    def _integral(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _beta(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_of_integral(self, integral: Tensor) -> Tensor: ...

    def beta(self, t: float | Tensor) -> Tensor:
        """The rate of noising."""
        return self._beta(as_time(t))

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(self._integral(as_time(t)) * -0.5)

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return -self.beta(t) / 2


class _VariancePreserving(_FromIntegral):
    """alpha^2 + sigma^2 = 1, g^2 = beta; lambda = -log(e^I - 1)/2, I = log(1 + e^(-2 lambda)), without cancellation."""

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(as_time(t))))

    def diffusion(self, t: float | Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        at = self.at(as_time(t))
        half = self.beta(at.t) * at.alpha / 2
        return -half, half * at.alpha / at.sigma

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        integral = self._integral(as_time(t))
        return -(integral + torch.log(-torch.expm1(-integral))) / 2

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        wanted = as_time(half_log_snr)
        return self._time_of_integral(torch.nn.functional.softplus(-2 * wanted, threshold=700))

    def at_ratio(self, ratio: Tensor) -> LevelsOf:
        square = ratio.square()
        t = self._time_of_integral(torch.log1p(square)).clamp(self.t_min, self.t_max)
        known = {"alpha": (square + 1).rsqrt(), "sigma": (square.reciprocal() + 1).rsqrt()}
        return self._kept(LevelsOf(self, t, **known))


class _LinearBeta(_FromIntegral):
    """beta(t) = beta_min + t (beta_max - beta_min)."""

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        beta_min, beta_max = as_number(beta_min, "beta_min"), as_number(beta_max, "beta_max")
        if not 0 <= beta_min < beta_max < math.inf:
            raise InvalidInputError(
                f"beta_min={beta_min}, beta_max={beta_max}: wanted 0 <= beta_min < beta_max, both finite"
            )
        self.beta_min, self.beta_max = beta_min, beta_max
        self._set_range(t_min, t_max)
        self.config = {"beta_min": self.beta_min, "beta_max": self.beta_max, "t_min": self.t_min, "t_max": self.t_max}

    def _integral(self, t: Tensor) -> Tensor:
        return t * (t * ((self.beta_max - self.beta_min) / 2) + self.beta_min)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        half, slope = self.beta_min / 2, self.beta_max - self.beta_min
        return integral / ((integral * (slope / 2) + half**2).sqrt() + half)


class VPSDE(_LinearBeta, _VariancePreserving):
    """Variance preserving: f = -beta/2, g^2 = beta, alpha^2 + sigma^2 = 1, beta linear in t.

    alpha = exp(-I/2), I = beta_min t + (beta_max - beta_min) t^2/2.

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1 (per unit of time).
        t_min, t_max: the range of times used.

    Raises:
        InvalidInputError: unless 0 <= beta_min < beta_max and 0 < t_min < t_max.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 11; Ho et al. 2020 in the limit of many steps.
    """


class SubVPSDE(_LinearBeta):
    """Sub-VP: f = -beta/2, g^2 = beta (1 - exp(-2 I)), so sigma = 1 - alpha^2 with VP's alpha.

    Args, Raises: as VPSDE.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 12 and appendix B.
    """

    def sigma(self, t: float | Tensor) -> Tensor:
        return -torch.expm1(-self._integral(as_time(t)))

    def diffusion(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        return torch.sqrt(self._beta(t) * -torch.expm1(-2 * self._integral(t)))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        # e^lambda = alpha/(1 - alpha^2): with u = e^(-lambda), alpha = 2/(u + sqrt(u^2 + 4))
        u = torch.exp(-as_time(half_log_snr))
        return self._time_of_integral(2 * torch.asinh(u / 2))


class CosineSDE(_VariancePreserving):
    """The cosine schedule as a VP process: alpha = cos(phi)/cos(phi_0), phi = (pi/2)(t + s)/(1 + s).

    beta = pi/(1 + s) tan(phi) is infinite at t = 1, so t_max stops short of it.

    Args:
        s: the offset that keeps beta small near 0.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 17; the range as in Lu et al. 2022 (arXiv 2206.00927)
    appendix D.
    """

    def __init__(self, s: float = 0.008, *, t_min: float = 1e-3, t_max: float = 0.9946) -> None:
        s = as_number(s, "s")
        if not 0 < s < math.inf:
            raise InvalidInputError(f"s={s}: wanted a positive offset")
        if not as_number(t_max, "t_max") < 1:
            raise InvalidInputError(
                f"t_max={t_max}: the cosine schedule's beta is infinite at t = 1, use t_max < 1 such as 0.9946"
            )
        self.s = s
        self._set_range(t_min, t_max)
        self.config = {"s": self.s, "t_min": self.t_min, "t_max": self.t_max}

    @property
    def _phase_0(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    def _integral(self, t: Tensor) -> Tensor:
        # -2 log(cos(phi)/cos(phi_0)) through cos(phi_0) - cos(phi) = 2 sin((phi + phi_0)/2) sin((phi - phi_0)/2)
        step, phi_0 = t * (math.pi / 2 / (1 + self.s)), self._phase_0
        return -2 * torch.log1p(-2 * torch.sin(step / 2 + phi_0) * torch.sin(step / 2) / math.cos(phi_0))

    def _beta(self, t: Tensor) -> Tensor:
        return math.pi / (1 + self.s) * torch.tan((t + self.s) * (math.pi / 2 / (1 + self.s)))

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        # sin(phi - phi_0) = (cos^2(phi_0) - cos^2(phi))/(sin(phi) cos(phi_0) + cos(phi) sin(phi_0)), where
        # cos(phi) = cos(phi_0) alpha: phi itself would cancel against phi_0 near t = 0
        sin_0, cos_0 = math.sin(self._phase_0), math.cos(self._phase_0)
        fallen = -(cos_0**2) * torch.expm1(-integral)
        sin, cos = torch.sqrt(sin_0**2 + fallen), cos_0 * torch.exp(-integral / 2)
        step = torch.atan2(fallen / (sin * cos_0 + cos * sin_0), cos * cos_0 + sin * sin_0)
        return step * (2 * (1 + self.s) / math.pi)


class LinearPathSDE(SDE):
    """The straight path between data and noise: alpha = 1 - t, sigma = t (rectified flow, flow matching).

    f = -1/(1 - t) is infinite at t = 1, so t_max stops short of it. The flow's velocity is noise - x0, finite even
    there: flow-matching checkpoints start at t_max = 1, as flow solvers can (alpha is 0 and half_log_snr -inf there).

    Args:
        t_min, t_max: the range of times used, t_max <= 1.

    Source: Liu et al. 2022 (arXiv 2209.03003); Lipman et al. 2022 (arXiv 2210.02747).
    """

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 0.999) -> None:
        if not as_number(t_max, "t_max") <= 1:
            raise InvalidInputError(
                f"t_max={t_max}: alpha = 1 - t is negative after t = 1, use t_max <= 1 such as 0.999"
            )
        self._set_range(t_min, t_max)
        self.config = {"t_min": self.t_min, "t_max": self.t_max}

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        return as_time(t) * 1.0

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return -1 / (1 - as_time(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        return torch.sqrt(2 * t / (1 - t))

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return torch.sigmoid(-as_time(half_log_snr))


class _VarianceExploding(SDE):
    """alpha = 1, f = 0, g^2 = d(sigma^2)/dt."""

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(as_time(t))

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(as_time(t))


class VESDE(_VarianceExploding):
    """Variance exploding: f = 0, sigma = sigma_min (sigma_max/sigma_min)^t, g^2 = 2 sigma^2 log(sigma_max/sigma_min).

    sigma(0) is sigma_min, not 0: the perturbation kernel has that much noise at t = 0 already, while the SDE started
    from clean data has sigma_min^2 less variance at every t. Start simulated paths with `perturb`.

    Args:
        sigma_min, sigma_max: noise at t = 0 and t = 1, in the data's units.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 9 and appendix C.
    """

    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        self.sigma_min, self.sigma_max = _check_sigmas(sigma_min, sigma_max)
        self._log_ratio = math.log(self.sigma_max / self.sigma_min)
        self._set_range(t_min, t_max)
        self.config = {
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "t_min": self.t_min,
            "t_max": self.t_max,
        }

    def sigma(self, t: float | Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * as_time(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return (-as_time(half_log_snr) - math.log(self.sigma_min)) / self._log_ratio


class EDMSDE(_VarianceExploding):
    """Time is the noise level: alpha = 1, sigma = t, g^2 = 2t, on [sigma_min, sigma_max].

    Euler's method along it is DDIM.

    Args:
        sigma_min, sigma_max: the range of times, in the data's units.

    Source: Karras et al. 2022 (arXiv 2206.00364) table 1.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        self._set_range(*_check_sigmas(sigma_min, sigma_max))
        self.config = {"sigma_min": self.t_min, "sigma_max": self.t_max}

    def sigma(self, t: float | Tensor) -> Tensor:
        return as_time(t) * 1.0

    def diffusion(self, t: float | Tensor) -> Tensor:
        return torch.sqrt(2 * as_time(t))

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return torch.exp(-as_time(half_log_snr))


class TrigSDE(SDE):
    """The circular path: alpha = cos t, sigma = s sin t, f = -tan t, g^2 = 2 s^2 tan t, s = sigma_data.

    Along it the probability flow is dx/dt = -s F(x/s, t), F the raw network of Karras' parametrisation. Centred
    Gaussian data of standard deviation s have the velocity 0, so any Runge-Kutta or Adams method is exact for them.
    Its time is bounded: t = atan((sigma/alpha)/s).

    Args:
        sigma_data: s, the data's standard deviation.
        sigma_min, sigma_max: the range of sigma/alpha, in the data's units; it sets t_min and t_max. sigma_max may be
            infinite: t_max = pi/2, where alpha is 0.

    Source: Salimans & Ho 2022 (arXiv 2202.00512) for s = 1; Lu & Song 2024 (arXiv 2410.11081) "TrigFlow".
    """

    def __init__(self, sigma_data: float, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        sigma_data = as_number(sigma_data, "sigma_data")
        if not 0 < sigma_data < math.inf:
            raise InvalidInputError(
                f"sigma_data={sigma_data}: wanted the data's standard deviation, positive and finite"
            )
        self.sigma_data = sigma_data
        low, high = _check_sigmas(sigma_min, sigma_max, endless=True)
        self._set_range(math.atan(low / self.sigma_data), math.atan(high / self.sigma_data))
        self.config = {"sigma_data": self.sigma_data, "sigma_min": low, "sigma_max": high}

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.cos(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return self.sigma_data * torch.sin(as_time(t))

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return -torch.tan(as_time(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        return self.sigma_data * torch.sqrt(2 * torch.tan(as_time(t)))

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        at = self.at(as_time(t))
        return at.sigma * (-1 / self.sigma_data), self.sigma_data * at.alpha

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        return -torch.log(self.sigma_data * torch.tan(as_time(t)))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return torch.atan(torch.exp(-as_time(half_log_snr)) / self.sigma_data)


class TabulatedVPSDE(_VariancePreserving):
    """A DDPM table as a process: node i of 1..N at t = i/N, node 0 clean data.

    The rate on ((i-1)/N, i/N] is the constant -N log(1 - beta_i). Then alpha^2 at node i is exactly
    prod_{j<=i} (1 - beta_j), and the kernel between neighbours has variance beta_i. Where the last beta is 1 (zero
    terminal signal-to-noise ratio) no constant rate does that: there alpha falls to 0 linearly in t.

    Args:
        betas: (N,), N >= 2, with 0 < beta_i < 1; the last may be 1.

    Attributes:
        betas: the table, float64.
        nodes: (N,), the times i/N, i = 1..N.

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 2-4.
    """

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        self.betas = _table(betas, "betas")
        if bool(((self.betas <= 0) | (self.betas > 1)).any()) or bool((self.betas[:-1] == 1).any()):
            raise InvalidInputError("betas: wanted 0 < beta < 1 at every node (the last may be 1)")
        n = len(self.betas)
        self.nodes = _nodes(n)
        steps = -torch.log1p(-self.betas)
        self._at_nodes = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])  # the integral of the rate
        self._to_zero = torch.isinf(steps)  # cells at whose end alpha is 0: none, or the last
        self._steps = torch.where(self._to_zero, 1.0, steps)
        self._set_range(1 / n, 1.0)
        self.config = {"betas": self.betas.tolist()}

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where in its cell t is, the integral at the cell's start, its rise over the cell, whether alpha ends at 0."""
        i, fraction = _cell(t, len(self.betas))
        start, step, to_zero = (table.to(t.device)[i] for table in (self._at_nodes, self._steps, self._to_zero))
        return fraction, start, step, to_zero

    def _integral(self, t: Tensor) -> Tensor:
        fraction, start, step, to_zero = self._parts(t)
        falling = -2 * torch.log1p(-torch.where(to_zero, fraction, 0.0))  # alpha proportional to 1 - fraction
        return (start + torch.where(to_zero, falling, fraction * step)).to(t.dtype)

    def _beta(self, t: Tensor) -> Tensor:
        fraction, _, step, to_zero = self._parts(t)
        rate = torch.where(to_zero, 2 / (1 - torch.where(to_zero, fraction, 0.0)), step)
        return (len(self.betas) * rate).to(t.dtype)

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        _, start, step, to_zero = self._parts(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        straight = torch.exp(-start / 2).to(t.dtype)  # finite at alpha = 0
        d_alpha = -len(self.betas) * torch.where(to_zero, straight, alpha * step.to(t.dtype) / 2)
        return d_alpha, -alpha * d_alpha / sigma

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        known, n = self._at_nodes.to(integral.device), len(self.betas)
        i = (torch.searchsorted(known, integral.detach().to(torch.float64).contiguous()) - 1).clamp(0, n - 1)
        rise = integral - known[i]
        to_zero = self._to_zero.to(integral.device)[i]
        steady = torch.where(to_zero, 0.0, rise) / self._steps.to(integral.device)[i]
        fraction = torch.where(to_zero, -torch.expm1(-torch.where(to_zero, rise, 0.0) / 2), steady)
        return ((i + fraction) / n).to(integral.dtype)


class TabulatedVESDE(_VarianceExploding):
    """An NCSN table as a process: node i of 1..N at t = i/N.

    sigma(0) = 0, sigma^2 is linear in t up to node 1 and log(sigma) linear between nodes after that.

    Args:
        sigmas: (N,), N >= 2, positive and increasing (noise grows with time), in the data's units.

    Attributes:
        sigmas: the table, float64.
        nodes: (N,), the times i/N, i = 1..N.

    Source: Song & Ermon 2019 (arXiv 1907.05600); Song et al. 2021 (arXiv 2011.13456) section 3.4.
    """

    def __init__(self, sigmas: Sequence[float] | Tensor) -> None:
        self.sigmas = _table(sigmas, "sigmas")
        if bool((self.sigmas <= 0).any()) or bool((self.sigmas.diff() <= 0).any()):
            raise InvalidInputError(
                "sigmas: wanted positive and increasing values (a table from large to small must be flipped)"
            )
        n = len(self.sigmas)
        self.nodes = _nodes(n)
        self._logs = torch.log(self.sigmas)
        self._set_range(1 / n, 1.0)
        self.config = {"sigmas": self.sigmas.tolist()}

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whether t is in the first cell, where in its cell, log(sigma) at the left node, its rise in the cell."""
        i, fraction = _cell(t, len(self.sigmas))
        logs = self._logs.to(t.device)
        left = logs[(i - 1).clamp_min(0)]
        return i == 0, fraction, left, logs[i] - left

    def sigma(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        first, fraction, left, rise = self._parts(t)
        root = self.sigmas[0].to(t.device) * torch.sqrt(torch.where(first, fraction, 1.0))
        return torch.where(first, root, torch.exp(left + rise * fraction)).to(t.dtype)

    def diffusion(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        n = len(self.sigmas)
        first, _, _, rise = self._parts(t)
        root = self.sigmas[0].to(t.device) * math.sqrt(n)
        return torch.where(first, root, self.sigma(t) * torch.sqrt(2 * n * rise)).to(t.dtype)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        wanted = as_time(half_log_snr)
        log_sigma = -wanted
        logs, n = self._logs.to(wanted.device), len(self.sigmas)
        i = torch.searchsorted(logs, log_sigma.detach().to(torch.float64).contiguous()).clamp(0, n - 1)
        left, right = logs[(i - 1).clamp_min(0)], logs[i]
        later = i + (log_sigma - left) / (right - left).clamp_min(1e-300)
        first = torch.exp(2 * (log_sigma - logs[0]))
        return (torch.where(i == 0, first, later) / n).to(wanted.dtype)


class PathSDE(SDE):
    """Your own process from alpha(t) and sigma(t): drift and diffusion follow by automatic differentiation.

    f = d log(alpha)/dt, g^2 = -2 sigma^2 dlambda/dt.

    Args:
        alpha, sigma: functions of a tensor t, elementwise, made of torch operations; positive on [t_min, t_max], their
            ratio alpha/sigma falling.

    Raises:
        InvalidInputError: they are not positive and finite, not elementwise, not differentiable, or alpha/sigma does
            not fall.
    """

    def __init__(
        self,
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        self._set_range(t_min, t_max)
        self._alpha, self._sigma = _torch_function(alpha, "alpha", self), _torch_function(sigma, "sigma", self)
        self._check_path()
        self._check_slopes()

    def _check_slopes(self) -> None:
        """Raise where automatic differentiation gives no slope, a wrong one, or one that rises."""
        h = 1e-5 * (self.t_max - self.t_min)
        t = torch.linspace(self.t_min + h, self.t_max - h, 129, dtype=torch.float64)
        slopes = []
        for name, function in (("alpha", self._alpha), ("sigma", self._sigma)):
            slope = derivative(lambda u, function=function: torch.log(function(u)), t)
            if not bool(torch.isfinite(slope).all()):
                i = int((~torch.isfinite(slope)).nonzero()[0])
                raise InvalidInputError(
                    f"the derivative of {name}(t) at t = {float(t[i]):g} is {float(slope[i])}: wanted finite"
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
                f"the signal-to-noise ratio alpha/sigma rises at t = {float(t[i]):g}: wanted a forward process, "
                "noisier as t grows (its g^2 would be negative)"
            )

    def alpha(self, t: float | Tensor) -> Tensor:
        return self._alpha(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return self._sigma(as_time(t))


class CoefficientSDE(SDE):
    """Your own process from f(t) and g(t): dx = f(t) x dt + g(t) dw; the marginals follow by quadrature.

    log alpha = int_0^t f,    sigma^2 = alpha^2 (sigma_0^2 + int_0^t g^2/alpha^2), to about 1e-12.

    Args:
        drift, diffusion: the coefficients f and g, functions of a tensor t, elementwise.
        sigma_0: noise already there at t = 0 (0: clean data).
        t_min, t_max: the range; f and g must be finite on (0, t_max).

    Raises:
        InvalidInputError: they are not finite or not of t's shape, g is negative or 0 on a stretch.
    """

    def __init__(
        self,
        drift: Callable[[Tensor], Tensor],
        diffusion: Callable[[Tensor], Tensor],
        *,
        sigma_0: float = 0.0,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        self._set_range(t_min, t_max)
        sigma_0 = as_number(sigma_0, "sigma_0")
        if not 0 <= sigma_0 < math.inf:
            raise InvalidInputError(f"sigma_0={sigma_0}: wanted the noise at t = 0, finite and at least 0")
        self._sigma_0 = sigma_0
        self._f, self._g = _torch_function(drift, "drift", self), _torch_function(diffusion, "diffusion", self)
        t = self._bracket_times()
        for name, value in (("drift", self._f(t)), ("diffusion", self._g(t))):
            bad = ~torch.isfinite(value) | ((value < 0) if name == "diffusion" else False)
            if bool(bad.any()):
                i = int(bad.nonzero()[0])
                wanted = "a finite number" + " of at least 0" * (name == "diffusion")
                raise InvalidInputError(f"{name}({float(t[i]):g}) = {float(value[i]):g}: wanted {wanted}")
        self._log_alpha = Antiderivative(self._f, 0.0, self.t_max, name="drift")
        self._growth = Antiderivative(
            lambda u: self._g(u) ** 2 * torch.exp(-2 * self._log_alpha(u)), 0.0, self.t_max, name="diffusion^2/alpha^2"
        )
        self._check_path()

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(self._log_alpha(as_time(t)))

    def sigma(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        return self.alpha(t) * torch.sqrt(self._sigma_0**2 + self._growth(t))

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        return -torch.log(self._sigma_0**2 + self._growth(as_time(t))) / 2

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return self._f(as_time(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        return self._g(as_time(t))


def _torch_function(f: Callable[[Tensor], Any], name: str, sde: SDE) -> Callable[[Tensor], Tensor]:
    """A user's function of t whose results become tensors of t's shape, and whose failures say what was wanted."""
    if not callable(f):
        raise InvalidInputError(f"{name} is {f!r}: pass a function of a tensor t, such as lambda t: torch.cos(t)")

    def of_time(t: Tensor) -> Tensor:
        value = torch.as_tensor(f(t), dtype=t.dtype, device=t.device)
        if value.shape != t.shape and value.ndim:
            raise InvalidInputError(
                f"{name}(t) has shape {tuple(value.shape)} for t of shape {tuple(t.shape)}: wanted one value per time"
            )
        return value.expand(t.shape)

    width = sde.t_max - sde.t_min
    probe = torch.tensor([sde.t_min + width / 3, sde.t_min + width / 2], dtype=torch.float64, requires_grad=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = of_time(probe).detach()
            apart = torch.stack([of_time(probe[0]), of_time(probe[1])]).detach()
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{name}(t) failed on a tensor of two times ({error}): build it of torch functions, elementwise"
        ) from error
    if not torch.allclose(both, apart, rtol=1e-10, atol=0, equal_nan=True):
        raise InvalidInputError(
            f"{name} of two times together is {both.tolist()}, of each alone {apart.tolist()}: wanted an elementwise "
            "function"
        )
    return of_time


def _check_noise(noise: Tensor, x: Tensor) -> None:
    if noise.shape != x.shape:
        raise InvalidInputError(f"noise has shape {tuple(noise.shape)}, but x has {tuple(x.shape)}: wanted the same")


def _cell(t: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Which of the cells (i/n, (i+1)/n], i = 0..n-1, holds t, and where in it, in (0, 1], float64.

    A node that rounding moved counts as the node: it keeps the cell below it, of which it is the end.
    """
    u = t.to(torch.float64) * n
    slack = min(4 * n * torch.finfo(t.dtype).eps, 0.25)
    i = (torch.ceil(u.detach() - slack).to(torch.int64) - 1).clamp(0, n - 1)
    fraction = u - i
    return i, fraction - (fraction.detach() - 1).clamp(0, slack)


def _nodes(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64) / n


def _table(values: Sequence[float] | Tensor, name: str) -> Tensor:
    try:
        table = torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{name} could not be read as a list of numbers ({error})") from error
    if table.ndim != 1 or len(table) < 2:
        raise InvalidInputError(f"{name} has shape {tuple(table.shape)}: wanted (N,), one number per node, N >= 2")
    if not bool(torch.isfinite(table).all()):
        raise InvalidInputError(f"{name} holds NaN or infinity: wanted finite numbers, one per node")
    return table


def _check_sigmas(sigma_min: float, sigma_max: float, *, endless: bool = False) -> tuple[float, float]:
    sigma_min, sigma_max = as_number(sigma_min, "sigma_min"), as_number(sigma_max, "sigma_max")
    if not 0 < sigma_min < sigma_max or (sigma_max == math.inf and not endless):
        raise InvalidInputError(
            f"sigma_min={sigma_min}, sigma_max={sigma_max}: wanted 0 < sigma_min < sigma_max, both finite"
        )
    return sigma_min, sigma_max
