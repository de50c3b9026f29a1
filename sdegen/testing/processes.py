"""The laws of processes: one named function each, and `check_sde`, which tries them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.kinds import checked
from ..core.shapes import expand, flat
from ..processes import SDE, derivative
from .checks import DERIVATIVE, EXACT, FRACTIONS, NOISE, STATES, LawError, check_close, check_kind, inner_times, normals


@checked
def check_sde(sde: SDE) -> None:
    """Prove that a process keeps the laws every other part relies on.

    - alpha and sigma are positive and finite, lambda = log(alpha/sigma) is finite and falls (at t_max alpha may be 0);
    - f = d log(alpha)/dt, d(sigma^2)/dt = 2 f sigma^2 + g^2, rates and levels agree with them; all differentiable in t;
    - time(half_log_snr(t)) = t, differentiably;
    - functions of t keep t's shape and dtype, work element by element, and agree between float32 and float64;
    - drift is f x; perturb is alpha x0 + sigma noise; transitions compose: t -> u -> s is t -> s in law, and end on the
      marginals;
    - the prior is N(0, sigma(t_max)^2), sample i depends on (seed, its number) alone.

    Args:
        sde: an instance of a process.

    Raises:
        LawError: a law fails.

    Example:
        >>> import sdegen as sg
        >>> class Mine(sg.SDE):
        ...     def alpha(self, t):
        ...         return 1 - 0.9 * t**3
        ...     def sigma(self, t):
        ...         return t
        >>> sg.testing.check_sde(Mine())
    """
    for _, law in sde_laws(sde):
        law()


@checked
def sde_laws(sde: SDE) -> list[tuple[str, Callable[[], None]]]:
    """The laws of a process one by one, each with its name, for tests that report them apart.

    Args:
        sde: an instance of a process.

    Returns:
        (name, law) pairs; `law()` raises `LawError` where the law fails.

    Raises:
        InvalidInputError: `sde` is not an instance of a process.

    Example:
        >>> import sdegen as sg
        >>> names = [name for name, law in sg.testing.sde_laws(sg.VPSDE())]
        >>> len(names) > 5
        True
    """
    return [(name, partial(law, sde)) for name, law in LAWS.items()]


def ranges(sde: SDE) -> None:
    """alpha, sigma > 0 and finite on [t_min, t_max]; lambda = log(alpha/sigma) falls."""
    if not 0 < sde.t_min < sde.t_max < math.inf:
        raise LawError(f"{sde}: 0 < t_min < t_max, both finite, fails: got [{sde.t_min}, {sde.t_max}]")
    t = torch.linspace(sde.t_min, sde.t_max, 257, dtype=torch.float64)
    alpha, sigma, lam = sde.alpha(t), sde.sigma(t), sde.half_log_snr(t)
    open_end = float(alpha[-1]) == 0.0  # zero terminal signal-to-noise ratio
    inner = alpha > 0 if open_end else torch.ones_like(t, dtype=torch.bool)
    for name, value, good in (
        ("alpha is positive and finite", alpha, torch.isfinite(alpha) & ((alpha > 0) | ~inner)),
        ("sigma is positive and finite", sigma, torch.isfinite(sigma) & (sigma > 0)),
        ("half_log_snr is finite", lam, torch.isfinite(lam) | ~inner),
    ):
        if not bool(good.all()):
            i = int((~good).nonzero()[0])
            raise LawError(f"{sde}: {name} on [t_min, t_max], fails at t = {float(t[i]):g}: got {float(value[i]):g}")
    falls = lam[inner].diff() < 0
    if not bool(falls.all()):
        i = int((~falls).nonzero()[0])
        raise LawError(
            f"{sde}: half_log_snr falls as t grows, fails between t = {float(t[i]):g} and {float(t[i + 1]):g}: got "
            f"{float(lam[i]):.9g} and {float(lam[i + 1]):.9g}"
        )
    check_close(
        sde, "half_log_snr = log(alpha/sigma)", lam[inner], (alpha.log() - sigma.log())[inner], t[inner], add=1.0
    )


def coefficients(sde: SDE) -> None:
    """f = alpha'/alpha, (sigma^2)' = 2 f sigma^2 + g^2, lambda' = -g^2/(2 sigma^2)."""
    t = inner_times(sde)
    sigma, f, g = sde.sigma(t), sde.drift_coefficient(t), sde.diffusion(t)
    if not bool((g >= 0).all()):
        raise LawError(f"{sde}: diffusion is at least 0, fails at t = {float(t[~(g >= 0)][0]):g}")
    speed = f.abs() + g**2 / (2 * sigma**2)  # |d log|: the size that f, sigma'/sigma and lambda' are made of
    log_alpha = derivative(lambda u: torch.log(sde.alpha(u)), t)
    check_close(sde, "drift_coefficient = d log(alpha)/dt", f, log_alpha, t, rtol=DERIVATIVE, scale=speed)
    growth = derivative(lambda u: sde.sigma(u) ** 2, t)
    expected = 2 * f * sigma**2 + g**2
    check_close(
        sde, "d(sigma^2)/dt = 2 f sigma^2 + g^2", growth, expected, t, rtol=DERIVATIVE, scale=2 * sigma**2 * speed
    )
    fall = derivative(sde.half_log_snr, t)
    check_close(sde, "d lambda/dt = -g^2/(2 sigma^2)", fall, -(g**2) / (2 * sigma**2), t, rtol=DERIVATIVE, scale=speed)


def rates(sde: SDE) -> None:
    """rates(t) = (alpha', sigma')."""
    t = inner_times(sde)
    alpha, sigma, f, g = sde.alpha(t), sde.sigma(t), sde.drift_coefficient(t), sde.diffusion(t)
    speed = f.abs() + g**2 / (2 * sigma**2)
    d_alpha, d_sigma = sde.rates(t)
    check_close(
        sde, "rates()[0] = d alpha/dt", d_alpha, derivative(sde.alpha, t), t, rtol=DERIVATIVE, scale=alpha * speed
    )
    check_close(
        sde, "rates()[1] = d sigma/dt", d_sigma, derivative(sde.sigma, t), t, rtol=DERIVATIVE, scale=sigma * speed
    )


def levels(sde: SDE) -> None:
    """level(t) has what the functions of t give, at a scalar time and at several."""
    t = inner_times(sde)
    alpha, sigma, g = sde.alpha(t), sde.sigma(t), sde.diffusion(t)
    d_alpha, d_sigma = sde.rates(t)
    speed = sde.drift_coefficient(t).abs() + g**2 / (2 * sigma**2)
    several = sde.at(t)
    for i in range(0, len(t), 6):
        one = t[i]
        single = sde.at(one)
        for name, expected in (
            ("alpha", alpha),
            ("sigma", sigma),
            ("d_alpha", d_alpha),
            ("d_sigma", d_sigma),
            ("g", g),
        ):
            got = torch.as_tensor(getattr(single, name), dtype=torch.float64)
            size = (alpha + sigma + g)[i] * (1 + speed[i])
            check_close(sde, f"at(t).{name} of a scalar t", got, expected[i], one, scale=size)
            check_close(sde, f"at(t).{name} of times (B,)", getattr(several, name)[i], expected[i], one, scale=size)


def rounding(function: Callable[[Tensor], Tensor], t: Tensor, sde: SDE) -> Tensor:
    """How far rounding moves the values of a function of time near t, (B,).

    The largest second difference of values 1e-6 t apart: of a smooth function 1e-12 of its size, more where it is made
    of differences of larger numbers, as sigma = (1 - alpha^2)^(1/2) is at early times.
    """
    apart = 1e-6 * torch.minimum(t, torch.full_like(t, sde.t_max - sde.t_min))
    middle = torch.minimum(torch.maximum(t, sde.t_min + 4 * apart), sde.t_max - 4 * apart)
    near = middle + apart * torch.arange(-4, 5, dtype=t.dtype)[:, None]
    return function(near.flatten()).reshape(near.shape).detach().diff(2, dim=0).abs().amax(0)


def slopes(sde: SDE) -> None:
    """What automatic differentiation says is what the values do (a kink may take either side's slope)."""
    t = inner_times(sde)
    h = 1e-5 * torch.minimum(t, t - sde.t_min).minimum(sde.t_max - t)
    for name in ("alpha", "sigma", "half_log_snr", "drift_coefficient", "diffusion"):
        function = getattr(sde, name)
        value, up, down = function(t), function(t + h), function(t - h)
        slope = derivative(function, t)
        secants = torch.stack([(up - down) / (2 * h), (up - value) / h, (value - down) / h])
        miss, which = (secants - slope).abs().min(0)
        secant = secants.gather(0, which[None])[0]
        # differences lose digits to rounding, and to the curvature over h
        lost = 1e-13 * (value.abs() + up.abs()) + 4 * rounding(function, t, sde)
        bad = ~(miss <= 1e-3 * secant.abs() + lost / h + 1e-6 * value.abs() / t)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise LawError(
                f"{sde}: {name} is differentiable in t, fails at t = {float(t[i]):g}: automatic differentiation gives "
                f"{float(slope[i]):g}, differences of its values {float(secant[i]):g}"
            )


def inverse(sde: SDE) -> None:
    """time(half_log_snr(t)) = t, and d time/d lambda = 1/lambda'."""
    t = torch.cat([torch.tensor([sde.t_min], dtype=torch.float64), inner_times(sde)])
    lam = sde.half_log_snr(t)
    lost = rounding(sde.half_log_snr, t, sde) * 2 * (sde.sigma(t) / sde.diffusion(t)) ** 2
    check_close(sde, "time(half_log_snr(t)) = t", sde.time(lam), t, t, scale=t + 4 * lost / EXACT)
    end = sde.time(sde.half_log_snr(sde.t_max))
    check_close(sde, "time(half_log_snr(t_max)) = t_max", end, torch.full_like(end, sde.t_max), end)
    t, lam = t[1:], lam[1:]  # t_min may be the first node of a table, where the rate jumps
    expected = -2 * (sde.sigma(t) / sde.diffusion(t)) ** 2
    got = derivative(sde.time, lam)
    check_close(sde, "time is differentiable: d time/d lambda = -2 sigma^2/g^2", got, expected, t, rtol=10 * DERIVATIVE)


_OF_TIME = ("alpha", "sigma", "half_log_snr", "drift_coefficient", "diffusion", "time", "rates")


def _call(sde: SDE, name: str, argument: Any) -> tuple[Tensor, ...]:
    got = getattr(sde, name)(argument)
    return got if isinstance(got, tuple) else (got,)


def elementwise(sde: SDE) -> None:
    """Functions of t keep its shape and dtype, work element by element, and take numbers."""
    t = inner_times(sde)[:6]
    lam = sde.half_log_snr(t)
    for name in _OF_TIME:
        several = lam if name == "time" else t
        law = f"{name} keeps the shape and dtype of its argument"
        for expected in _call(sde, name, several):
            check_kind(sde, law, expected, several.shape, torch.float64)
        number, table = _call(sde, name, float(several[4])), _call(sde, name, several.reshape(2, 3))
        for k, expected in enumerate(_call(sde, name, several)):
            size = expected.abs() + 1e-6
            check_kind(sde, f"{name} of a number is a float64 tensor of shape ()", number[k], (), torch.float64)
            check_close(sde, f"{name} of a number is {name} of a tensor", number[k], expected[4], t[4], scale=size[4])
            check_kind(sde, law, table[k], (2, 3), torch.float64)
            check_close(sde, f"{name} works element by element", table[k].flatten(), expected, t, scale=size)
        for shape, dtype in (((), torch.float64), ((), torch.float32), ((0,), torch.float64), ((2, 3), torch.float32)):
            argument = several[: math.prod(shape)].reshape(shape).to(dtype)
            for value in _call(sde, name, argument):
                check_kind(sde, law, value, shape, dtype)


def precision(sde: SDE) -> None:
    """Functions of t in float32 are close to those in float64."""
    # away from the ends: a time that float32 cannot tell from a table's node counts as the node, rate included
    low = (sde.t_min + (sde.t_max - sde.t_min) * FRACTIONS).float()
    high = low.double()
    for name in ("alpha", "sigma", "half_log_snr", "drift_coefficient", "diffusion"):
        got, expected = getattr(sde, name)(low).double(), getattr(sde, name)(high)
        # 1e-4: float32 keeps 1e-7, of which functions near their poles lose some digits
        size = expected.abs() + (1.0 if name == "half_log_snr" else 0.0)
        at, law = sde.alpha(high) > 0, f"{name} in float32 is close to float64"
        check_close(sde, law, got[at], expected[at], high[at], rtol=1e-4, scale=size[at])


def perturb_and_drift(sde: SDE) -> None:
    """perturb = alpha x0 + sigma noise and drift = f x, any event shape and dtype."""
    t = inner_times(sde)[::4]
    for event in ((), (3,), (2, 1, 3)):
        for dtype in (torch.float32, torch.float64):
            shape = (len(t), *event)
            x0, noise = normals(shape, STATES).to(dtype), normals(shape, NOISE).to(dtype)
            rtol = EXACT if dtype == torch.float64 else 1e-5
            for argument in (t, float(t[1])):
                times = torch.as_tensor(argument, dtype=torch.float64)
                coefficients = sde.alpha(times), sde.sigma(times), sde.drift_coefficient(times)
                alpha, sigma, f = (c.reshape(-1, *(1,) * len(event)) for c in coefficients)
                got = sde.perturb(x0, argument, noise)
                check_kind(sde, "perturb keeps the shape and dtype of x0", got, shape, dtype)
                expected, size = alpha * x0 + sigma * noise, alpha * x0.abs() + sigma * noise.abs()
                check_close(sde, "perturb = alpha x0 + sigma noise", got, expected, times, rtol=rtol, scale=size)
                got = sde.drift(x0, argument)
                check_kind(sde, "drift keeps the shape and dtype of x", got, shape, dtype)
                check_close(sde, "drift = f(t) x", got, f * x0, times, rtol=rtol, scale=(f * x0).abs() + 1e-30)
        empty = sde.perturb(torch.zeros(0, *event), t[0], torch.zeros(0, *event))
        check_kind(sde, "perturb of an empty batch is empty", empty, (0, *event), torch.float32)


def transitions(sde: SDE) -> None:
    """transition ends on the marginals, and t -> u -> s is t -> s in law."""
    t = inner_times(sde)
    lower, middle, upper = t[:-4], t[2:-2], t[4:]
    a, b = _kernel(sde, lower, upper)
    first_a, first_b = _kernel(sde, lower, middle)
    second_a, second_b = _kernel(sde, middle, upper)
    alpha, sigma = sde.alpha(upper), sde.sigma(upper)
    check_close(sde, "transition's mean factor is alpha(s)/alpha(t)", a, alpha / sde.alpha(lower), upper)
    got = (a * sde.sigma(lower)) ** 2 + b**2
    check_close(sde, "transition ends on the marginal: a^2 sigma(t)^2 + std^2 = sigma(s)^2", got, sigma**2, upper)
    check_close(sde, "transitions compose: mean of t -> u -> s", first_a * second_a, a, upper)
    got = (second_a * first_b) ** 2 + second_b**2
    check_close(sde, "transitions compose: variance of t -> u -> s", got, b**2, upper, scale=b**2 + 1e-7 * sigma**2)


def _kernel(sde: SDE, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """a and std of the transition x_end = a x_start + std noise."""
    ones, zeros = torch.ones(len(start), 1, dtype=torch.float64), torch.zeros(len(start), 1, dtype=torch.float64)
    return sde.transition(ones, start, end, zeros)[:, 0], sde.transition(zeros, start, end, ones)[:, 0]


def transition_of_samples(sde: SDE) -> None:
    """transition = a x + std noise, any event shape and dtype, at scalar times too."""
    t = inner_times(sde)
    lower, upper = t[:-4], t[4:]
    a, b = _kernel(sde, lower, upper)
    x, noise = normals((len(lower), 2, 3), STATES), normals((len(lower), 2, 3), NOISE)
    expected = expand(a, x) * x + expand(b, x) * noise
    for dtype, rtol in ((torch.float64, EXACT), (torch.float32, 1e-4)):
        got = sde.transition(x.to(dtype), lower, upper, noise.to(dtype))
        check_kind(sde, "transition keeps the shape and dtype of x", got, x.shape, dtype)
        size = expand(a, x) * x.abs() + expand(b, x) * noise.abs()
        check_close(sde, "transition = a x + std noise", got.double(), expected, upper, rtol=rtol, scale=size)
    one = sde.transition(x[:1], float(lower[0]), float(upper[0]), noise[:1])
    check_close(
        sde, "transition of scalar times is that of times (B,)", one, expected[:1], upper[:1], scale=x[:1].abs() + 1
    )


def prior(sde: SDE) -> None:
    """The prior has the moments of N(0, sigma(t_max)^2); sample i depends on (seed, i) alone."""
    std = float(sde.sigma(sde.t_max))
    n = 4096
    z = sde.prior((n, 2), seed=3, dtype=torch.float64) / std
    for name, got, expected, error in (
        ("mean is 0", z.mean(), 0.0, 1 / math.sqrt(2 * n)),
        ("variance is sigma(t_max)^2", z.square().mean(), 1.0, math.sqrt(2 / (2 * n))),
        ("fourth moment is that of a normal", z.pow(4).mean(), 3.0, math.sqrt(96 / (2 * n))),
    ):
        if not abs(float(got) - expected) < 5 * error:  # five standard errors
            raise LawError(
                f"{sde}: the prior's {name}, fails: got {float(got):g} (in units of sigma), expected {expected:g}"
            )
    index = [7, 2, 4000]
    rows = sde.prior((3, 2), seed=3, index=index, dtype=torch.float64)
    if not torch.equal(rows / std, z[index]):
        raise LawError(f"{sde}: the prior's sample i depends on (seed, i) alone, fails: other values for rows {index}")
    if torch.equal(sde.prior((3, 2), seed=4, dtype=torch.float64) / std, z[:3]):
        raise LawError(f"{sde}: the prior depends on the seed, fails: seeds 3 and 4 draw the same")


def prior_log_prob(sde: SDE) -> None:
    """prior_log_prob(x) = log N(x; 0, sigma(t_max)^2), any event shape and dtype."""
    for event in ((), (3,), (2, 1, 3)):
        for dtype in (torch.float32, torch.float64):
            x = sde.prior((5, *event), seed=0, dtype=dtype)
            check_kind(sde, "prior has the shape and dtype asked for", x, (5, *event), dtype)
            got = sde.prior_log_prob(x)
            check_kind(sde, "prior_log_prob is one number per sample", got, (5,), dtype)
            normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), sde.sigma(sde.t_max))
            expected = flat(normal.log_prob(x.double())).sum(1)
            rtol = EXACT if dtype == torch.float64 else 1e-5
            law = "prior_log_prob = log N(x; 0, sigma(t_max)^2)"
            check_close(
                sde, law, got.double(), expected, torch.tensor(sde.t_max), rtol=rtol, add=float(flat(x).shape[1])
            )
        check_kind(
            sde, "the prior of an empty batch is empty", sde.prior((0, *event)), (0, *event), torch.get_default_dtype()
        )


LAWS: dict[str, Callable[[SDE], None]] = {
    "range": ranges,
    "coefficients": coefficients,
    "rates": rates,
    "levels": levels,
    "slopes": slopes,
    "inverse": inverse,
    "elementwise": elementwise,
    "float32": precision,
    "perturb-and-drift": perturb_and_drift,
    "transitions": transitions,
    "transition-of-samples": transition_of_samples,
    "prior": prior,
    "prior-log-prob": prior_log_prob,
}
