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
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .errors import InvalidInputError
from .memo import Memo
from .noise import PRIOR, Noise, check_seed
from .quadrature import Antiderivative
from .shapes import as_time, check_time, event_sum, expand


class Level(NamedTuple):
    """A process at one time: alpha, sigma, their derivatives in t, and g. Floats for a scalar t, else tensors (B,)."""

    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any
    g: Any


class SDE(ABC):
    """A linear forward process, defined by alpha(t) and sigma(t) on [t_min, t_max].

    Subclasses give `alpha` and `sigma` (torch functions) and set the range with `_set_range`; the rest follows by automatic
    differentiation, and may be overridden in closed form. `sdegen.testing.check_sde(sde)` proves the result.

    Attributes:
        t_min: the smallest time at which the process is used; positive, since every quantity must be finite there.
        t_max: the time of the prior.
        config: the constructor's arguments, from which a checkpoint rebuilds the process (None where they are functions).
    """

    t_min: float
    t_max: float
    config: dict[str, Any] | None = None

    # ---- what a subclass defines

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """The factor on x_0."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """The standard deviation of x_t given x_0."""

    def _set_range(self, t_min: float, t_max: float) -> None:
        t_min, t_max = float(t_min), float(t_max)
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
        return expand(self.drift_coefficient(t), x) * x

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') = (f alpha, f sigma + g^2/(2 sigma)), the derivatives in t: the coefficients of the velocity."""
        f, sigma = self.drift_coefficient(t), self.sigma(t)
        return f * self.alpha(t), f * sigma + self.diffusion(t) ** 2 / (2 * sigma)

    def level(self, t: Tensor) -> Level:
        """All coefficients at t, remembered for scalar times (see `Memo`): what solvers and predictions multiply with."""
        return Level(*self.levels(t))

    @property
    def levels(self) -> Memo:
        """The memo behind `level`; `sde.levels.warm(ts)` fills it for a whole grid at once."""
        memo = self.__dict__.get("_levels")
        if memo is None:
            memo = self.__dict__["_levels"] = Memo(lambda t: (self.alpha(t), self.sigma(t), *self.rates(t), self.diffusion(t)))
        return memo

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        """lambda(t) = log(alpha/sigma), half the log signal-to-noise ratio: falls with t, finite on [t_min, t_max]."""
        t = as_time(t)
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """The inverse of `half_log_snr`: Newton's method kept inside a bracket; values beyond the range give its ends."""
        wanted = as_time(half_log_snr)
        with torch.no_grad():
            target = wanted.detach().to(torch.float64)
            grid = self._bracket_times().to(target.device)
            levels = self.half_log_snr(grid)
            target = target.clamp(levels[-1], levels[0])
            cell = torch.searchsorted(-levels, -target.contiguous(), right=True).clamp(1, len(grid) - 1)
            low, high = grid[cell - 1], grid[cell]
            t = low + (high - low) * ((levels[cell - 1] - target) / (levels[cell - 1] - levels[cell])).clamp(0, 1)
            for _ in range(60):
                excess = self.half_log_snr(t) - target
                low, high = torch.where(excess > 0, t, low), torch.where(excess > 0, high, t)
                slope = -((self.diffusion(t) / self.sigma(t)) ** 2) / 2
                newton = t - excess / slope
                inside = (newton >= low) & (newton <= high)
                t_new = torch.where(inside, newton, (low + high) / 2)
                moved = (t_new - t).abs() > 4e-16 * t
                t = t_new
                if not bool(moved.any()):
                    break
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
        return torch.unique(torch.cat([ends, low, high, torch.linspace(self.t_min, self.t_max, 129, dtype=torch.float64)]))

    # ---- samples

    def perturb(self, x0: Tensor, t: float | Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) noise. Shapes: x0, noise (B, *event), t () or (B,)."""
        t = as_time(t)
        check_time(t, x0)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    def transition(self, x: Tensor, t: float | Tensor, t_next: float | Tensor, noise: Tensor) -> Tensor:
        """A draw from the forward kernel x_{t_next} given x_t, t <= t_next.

        x' = a x + sqrt(sigma'^2 - a^2 sigma^2) noise with a = alpha'/alpha; the variance is sigma'^2 (1 - exp(2 (lambda' - lambda))).
        """
        t, t_next = as_time(t), as_time(t_next)
        check_time(t, x)
        check_time(t_next, x)
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
        """The same process on a shorter range of times."""
        sde = copy.copy(self)
        sde.__dict__.pop("_levels", None)
        sde._set_range(max(t_min, self.t_min), min(t_max, self.t_max))
        return sde

    def _check_path(self) -> None:
        """Raise unless alpha, sigma are positive and finite and lambda falls on [t_min, t_max]: for user-made processes."""
        t = self._bracket_times()
        alpha, sigma = self.alpha(t), self.sigma(t)
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            if value.shape != t.shape:
                raise InvalidInputError(f"{name}(t) has shape {tuple(value.shape)} for t of shape {tuple(t.shape)}: wanted t's shape")
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
                f"the signal-to-noise ratio alpha/sigma does not fall between t = {float(coarse[i]):g} and {float(coarse[i + 1]):g}: "
                "wanted a forward process, noisier as t grows (its g^2 would be negative)"
            )

    def __repr__(self) -> str:
        words = {k: v for k, v in (self.config or {}).items() if not isinstance(v, list)}
        return f"{type(self).__name__}({', '.join(f'{k}={v:g}' for k, v in words.items())})"


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
    """Processes given by I(t) = int_0^t beta: alpha = exp(-I/2), f = -beta/2. Subclasses give I, beta and I's inverse."""

    @abstractmethod
    def _integral(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _beta(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_of_integral(self, integral: Tensor) -> Tensor: ...

    def beta(self, t: float | Tensor) -> Tensor:
        """The rate of noising."""
        return self._beta(as_time(t))

    def alpha(self, t):
        return torch.exp(-self._integral(as_time(t)) / 2)

    def drift_coefficient(self, t):
        return -self.beta(t) / 2


class _VariancePreserving(_FromIntegral):
    """alpha^2 + sigma^2 = 1, g^2 = beta; lambda = -log(e^I - 1)/2 and I = log(1 + e^(-2 lambda)), both without cancellation."""

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self._integral(as_time(t))))

    def diffusion(self, t):
        return self.beta(t).sqrt()

    def half_log_snr(self, t):
        integral = self._integral(as_time(t))
        return -(integral + torch.log(-torch.expm1(-integral))) / 2

    def time(self, half_log_snr):
        wanted = as_time(half_log_snr)
        return self._time_of_integral(torch.nn.functional.softplus(-2 * wanted, threshold=700))


class _LinearBeta(_FromIntegral):
    """beta(t) = beta_min + t (beta_max - beta_min)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, t_max: float = 1.0) -> None:
        if not 0 <= beta_min < beta_max < math.inf:
            raise InvalidInputError(f"beta_min={beta_min}, beta_max={beta_max}: wanted 0 <= beta_min < beta_max, both finite")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)
        self._set_range(t_min, t_max)
        self.config = {"beta_min": self.beta_min, "beta_max": self.beta_max, "t_min": self.t_min, "t_max": self.t_max}

    def _integral(self, t):
        return self.beta_min * t + (self.beta_max - self.beta_min) / 2 * t**2

    def _beta(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _time_of_integral(self, integral):
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral))


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

    def sigma(self, t):
        return -torch.expm1(-self._integral(as_time(t)))

    def diffusion(self, t):
        t = as_time(t)
        return torch.sqrt(self._beta(t) * -torch.expm1(-2 * self._integral(t)))

    def time(self, half_log_snr):
        # e^lambda = alpha/(1 - alpha^2): with u = e^(-lambda), alpha = 2/(u + sqrt(u^2 + 4))
        u = torch.exp(-as_time(half_log_snr))
        return self._time_of_integral(2 * torch.asinh(u / 2))


class CosineSDE(_VariancePreserving):
    """The cosine schedule as a VP process: alpha = cos(phi)/cos(phi_0), phi = (pi/2)(t + s)/(1 + s).

    beta = pi/(1 + s) tan(phi) is infinite at t = 1, so t_max stops short of it.

    Args:
        s: the offset that keeps beta small near 0.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 17; the range as in Lu et al. 2022 (arXiv 2206.00927) appendix D.
    """

    def __init__(self, s: float = 0.008, *, t_min: float = 1e-3, t_max: float = 0.9946) -> None:
        if not 0 < s < math.inf:
            raise InvalidInputError(f"s={s}: wanted a positive offset")
        if not t_max < 1:
            raise InvalidInputError(f"t_max={t_max}: the cosine schedule's beta is infinite at t = 1, use t_max < 1 such as 0.9946")
        self.s = float(s)
        self._set_range(t_min, t_max)
        self.config = {"s": self.s, "t_min": self.t_min, "t_max": self.t_max}

    def _phase(self, t: Tensor | float) -> Tensor:
        return (as_time(t) + self.s) * (math.pi / 2 / (1 + self.s))

    def _integral(self, t):
        # -2 log(cos(phi)/cos(phi_0)) through cos(phi_0) - cos(phi) = 2 sin((phi + phi_0)/2) sin((phi - phi_0)/2)
        phi, phi_0 = self._phase(t), self._phase(0.0).to(t.device)
        step = as_time(t) * (math.pi / 2 / (1 + self.s))
        return -2 * torch.log1p(-2 * torch.sin((phi + phi_0) / 2) * torch.sin(step / 2) / torch.cos(phi_0))

    def _beta(self, t):
        return math.pi / (1 + self.s) * torch.tan(self._phase(t))

    def _time_of_integral(self, integral):
        phi = torch.arccos(torch.exp(-integral / 2) * math.cos(math.pi / 2 * self.s / (1 + self.s)))
        return phi * (2 * (1 + self.s) / math.pi) - self.s


class LinearPathSDE(SDE):
    """The straight path between data and noise: alpha = 1 - t, sigma = t (rectified flow, flow matching).

    f = -1/(1 - t) is infinite at t = 1, so t_max stops short of it. The flow's velocity is noise - x0.

    Source: Liu et al. 2022 (arXiv 2209.03003); Lipman et al. 2022 (arXiv 2210.02747).
    """

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 0.999) -> None:
        if not t_max < 1:
            raise InvalidInputError(f"t_max={t_max}: alpha = 1 - t is 0 at t = 1 and the drift infinite, use t_max < 1 such as 0.999")
        self._set_range(t_min, t_max)
        self.config = {"t_min": self.t_min, "t_max": self.t_max}

    def alpha(self, t):
        return 1 - as_time(t)

    def sigma(self, t):
        return as_time(t) * 1.0

    def drift_coefficient(self, t):
        return -1 / (1 - as_time(t))

    def diffusion(self, t):
        t = as_time(t)
        return torch.sqrt(2 * t / (1 - t))

    def rates(self, t):
        t = as_time(t)
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, half_log_snr):
        return torch.sigmoid(-as_time(half_log_snr))


class _VarianceExploding(SDE):
    """alpha = 1, f = 0, g^2 = d(sigma^2)/dt."""

    def alpha(self, t):
        return torch.ones_like(as_time(t))

    def drift_coefficient(self, t):
        return torch.zeros_like(as_time(t))


class VESDE(_VarianceExploding):
    """Variance exploding: f = 0, sigma = sigma_min (sigma_max/sigma_min)^t, g^2 = 2 sigma^2 log(sigma_max/sigma_min).

    sigma(0) is sigma_min, not 0: the perturbation kernel has that much noise at t = 0 already, while the SDE started from clean
    data has sigma_min^2 less variance at every t. Start simulated paths with `perturb`.

    Args:
        sigma_min, sigma_max: noise at t = 0 and t = 1, in the data's units.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 9 and appendix C.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, t_min: float = 1e-3, t_max: float = 1.0) -> None:
        self.sigma_min, self.sigma_max = _check_sigmas(sigma_min, sigma_max)
        self._log_ratio = math.log(self.sigma_max / self.sigma_min)
        self._set_range(t_min, t_max)
        self.config = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "t_min": self.t_min, "t_max": self.t_max}

    def sigma(self, t):
        return self.sigma_min * torch.exp(self._log_ratio * as_time(t))

    def diffusion(self, t):
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time(self, half_log_snr):
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

    def sigma(self, t):
        return as_time(t) * 1.0

    def diffusion(self, t):
        return torch.sqrt(2 * as_time(t))

    def rates(self, t):
        t = as_time(t)
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, half_log_snr):
        return torch.exp(-as_time(half_log_snr))


class TrigSDE(SDE):
    """The circular path: alpha = cos t, sigma = s sin t, f = -tan t, g^2 = 2 s^2 tan t, s = sigma_data.

    Along it the probability flow is dx/dt = -s F(x/s, t), F the raw network of Karras' parametrisation, and Gaussian data of standard
    deviation s do not move at all in law and are solved exactly by any Runge-Kutta or Adams method. Its time is bounded: t = atan((sigma/alpha)/s).

    Args:
        sigma_data: s, the data's standard deviation.
        sigma_min, sigma_max: the range of sigma/alpha, in the data's units; it sets t_min and t_max.

    Source: Salimans & Ho 2022 (arXiv 2202.00512) for s = 1; Lu & Song 2024 (arXiv 2410.11081) "TrigFlow".
    """

    def __init__(self, sigma_data: float, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_data < math.inf:
            raise InvalidInputError(f"sigma_data={sigma_data}: wanted the data's standard deviation, positive and finite")
        self.sigma_data = float(sigma_data)
        low, high = _check_sigmas(sigma_min, sigma_max)
        self._set_range(math.atan(low / self.sigma_data), math.atan(high / self.sigma_data))
        self.config = {"sigma_data": self.sigma_data, "sigma_min": low, "sigma_max": high}

    def alpha(self, t):
        return torch.cos(as_time(t))

    def sigma(self, t):
        return self.sigma_data * torch.sin(as_time(t))

    def drift_coefficient(self, t):
        return -torch.tan(as_time(t))

    def diffusion(self, t):
        return self.sigma_data * torch.sqrt(2 * torch.tan(as_time(t)))

    def rates(self, t):
        t = as_time(t)
        return -torch.sin(t), self.sigma_data * torch.cos(t)

    def half_log_snr(self, t):
        return -torch.log(self.sigma_data * torch.tan(as_time(t)))

    def time(self, half_log_snr):
        return torch.atan(torch.exp(-as_time(half_log_snr)) / self.sigma_data)


class TabulatedVPSDE(_VariancePreserving):
    """A DDPM table as a process: node i of 1..N at t = i/N; the rate on ((i-1)/N, i/N] is the constant -N log(1 - beta_i).

    Then alpha^2 at node i is exactly prod_{j<=i} (1 - beta_j), and the kernel between neighbours has variance beta_i.

    Args:
        betas: (N,) with 0 < beta_i < 1; the last may be 1 (zero terminal signal-to-noise ratio, where the rate is infinite).

    Attributes:
        betas: the table, float64.

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 2-4.
    """

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        self.betas = _table(betas, "betas")
        if bool(((self.betas <= 0) | (self.betas > 1)).any()) or bool((self.betas[:-1] == 1).any()):
            raise InvalidInputError("betas: wanted 0 < beta < 1 at every node (the last may be 1)")
        n = len(self.betas)
        self._steps = -torch.log1p(-self.betas)
        self._nodes = torch.cat([torch.zeros(1, dtype=torch.float64), self._steps.cumsum(0)])
        self._set_range(1 / n, 1.0)
        self.config = {"betas": self.betas.tolist()}

    def _cell(self, t: Tensor) -> Tensor:
        return _cell(t, len(self.betas))

    def _integral(self, t):
        i = self._cell(t)
        fraction = t * len(self.betas) - i
        step = self._steps.to(t.device)[i]
        partial = torch.where(torch.isinf(step) & (fraction > 0), step, fraction * step)
        return (self._nodes.to(t.device)[i] + partial).to(t.dtype)

    def _beta(self, t):
        return (len(self.betas) * self._steps.to(t.device)[self._cell(t)]).to(t.dtype)

    def _time_of_integral(self, integral):
        nodes = self._nodes.to(integral.device)
        n = len(self.betas)
        i = (torch.searchsorted(nodes, integral.detach().to(torch.float64).contiguous()) - 1).clamp(0, n - 1)
        fraction = ((integral - nodes[i]) / self._steps.to(integral.device)[i]).nan_to_num(nan=1.0)
        return ((i + fraction) / n).to(integral.dtype)


class TabulatedVESDE(_VarianceExploding):
    """An NCSN table as a process: node i of 1..N at t = i/N; sigma(0) = 0, sigma^2 linear up to node 1, log sigma linear after.

    Args:
        sigmas: (N,) positive and increasing (noise grows with time), in the data's units.

    Attributes:
        sigmas: the table, float64.

    Source: Song & Ermon 2019 (arXiv 1907.05600); Song et al. 2021 (arXiv 2011.13456) section 3.4.
    """

    def __init__(self, sigmas: Sequence[float] | Tensor) -> None:
        self.sigmas = _table(sigmas, "sigmas")
        if bool((self.sigmas <= 0).any()) or bool((self.sigmas.diff() <= 0).any()):
            raise InvalidInputError("sigmas: wanted positive and increasing values (a table from large to small must be flipped)")
        n = len(self.sigmas)
        self._logs = torch.log(self.sigmas)
        self._set_range(1 / n, 1.0)
        self.config = {"sigmas": self.sigmas.tolist()}

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether t is in the first cell, the slope of log sigma there, and the distance from the cell's left node."""
        n = len(self.sigmas)
        i = _cell(t, n)
        logs = self._logs.to(t.device)
        left, right = logs[(i - 1).clamp_min(0)], logs[i]
        return i == 0, (right - left) * n, left + (right - left) * (t * n - i)

    def sigma(self, t):
        t = as_time(t)
        n = len(self.sigmas)
        first, _, log_sigma = self._parts(t)
        root = self.sigmas[0].to(t.device) * torch.sqrt(torch.where(first, t * n, 1.0))
        return torch.where(first, root, torch.exp(log_sigma)).to(t.dtype)

    def diffusion(self, t):
        t = as_time(t)
        n = len(self.sigmas)
        first, slope, _ = self._parts(t)
        return torch.where(first, self.sigmas[0].to(t.device) * math.sqrt(n), self.sigma(t) * torch.sqrt(2 * slope)).to(t.dtype)

    def time(self, half_log_snr):
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
        alpha, sigma: functions of a tensor t, elementwise, made of torch operations; positive on [t_min, t_max], alpha/sigma falling.

    Raises:
        InvalidInputError: they are not positive and finite, not of t's shape, or the signal-to-noise ratio does not fall.
    """

    def __init__(
        self,
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        self._alpha, self._sigma = _torch_function(alpha, "alpha"), _torch_function(sigma, "sigma")
        self._set_range(t_min, t_max)
        self._check_path()

    def alpha(self, t):
        return self._alpha(as_time(t))

    def sigma(self, t):
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
        self._f, self._g = _torch_function(drift, "drift"), _torch_function(diffusion, "diffusion")
        self._sigma_0 = float(sigma_0)
        self._set_range(t_min, t_max)
        t = self._bracket_times()
        g = self._g(t)
        if bool((g < 0).any()):
            i = int((g < 0).nonzero()[0])
            raise InvalidInputError(f"diffusion({float(t[i]):g}) = {float(g[i]):g} is negative: g must be at least 0")
        self._log_alpha = Antiderivative(self._f, 0.0, t_max, name="drift")
        self._growth = Antiderivative(
            lambda u: self._g(u) ** 2 * torch.exp(-2 * self._log_alpha(u)), 0.0, t_max, name="diffusion^2/alpha^2"
        )
        self._check_path()

    def alpha(self, t):
        return torch.exp(self._log_alpha(as_time(t)))

    def sigma(self, t):
        t = as_time(t)
        return self.alpha(t) * torch.sqrt(self._sigma_0**2 + self._growth(t))

    def drift_coefficient(self, t):
        return self._f(as_time(t))

    def diffusion(self, t):
        return self._g(as_time(t))


def _torch_function(f: Callable[[Tensor], Any], name: str) -> Callable[[Tensor], Tensor]:
    """A user's function of t whose results become tensors of t's shape, and whose failures say what was wanted."""
    if not callable(f):
        raise InvalidInputError(f"{name} is {f!r}: pass a function of a tensor t, such as lambda t: torch.cos(t)")
    try:
        f(torch.tensor([0.25, 0.5], dtype=torch.float64, requires_grad=True))
    except (TypeError, RuntimeError, ValueError) as error:
        raise InvalidInputError(f"{name}(t) failed on a tensor of two times ({error}): build it of torch functions, elementwise") from error

    def of_time(t: Tensor) -> Tensor:
        value = torch.as_tensor(f(t), dtype=t.dtype, device=t.device)
        return value.expand(t.shape) if value.ndim == 0 else value

    return of_time


def _cell(t: Tensor, n: int) -> Tensor:
    """Which of the cells ((i)/n, (i+1)/n], i = 0..n-1, holds t; a node that rounding moved counts as the node."""
    return (torch.ceil(t.detach() * n - 1e-6).to(torch.int64) - 1).clamp(0, n - 1)


def _table(values: Sequence[float] | Tensor, name: str) -> Tensor:
    table = torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    if table.ndim != 1 or not len(table) or not bool(torch.isfinite(table).all()):
        raise InvalidInputError(f"{name} has shape {tuple(table.shape)}: wanted a non-empty list of finite numbers, one per node")
    return table


def _check_sigmas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise InvalidInputError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: wanted 0 < sigma_min < sigma_max, both finite")
    return float(sigma_min), float(sigma_max)
