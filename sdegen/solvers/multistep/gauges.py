"""Ways to split the flow of a linear process into a part that is solved exactly and a value that is integrated.

Symbols, here and in `coefficients`; a prime marks the next time:

    xh = x/alpha                the state in the frame of the data
    sh = sigma/alpha            its noise level
    l = log(alpha/sigma)        half the log signal-to-noise ratio, sh = exp(-l)
    D = E[x0 | x]               the model's belief of the data
    eps = (xh - D)/sh           the model's belief of the noise
    e = eta^2                   eta the noise level of the reverse SDE, 0 for the flow
    s                           the data's standard deviation, `sigma_data`
    theta = atan(sh/s)          the angle of the circular path
    R = sqrt(s^2 + sh^2)        its radius

In this frame the flow of every linear process is d(xh)/d(sh) = eps. A *gauge* solves a part of the step exactly and
leaves a value V to be integrated:

    "noise"     xh' = xh + int eps d(sh)                                            V = eps

    "data"      xh' = (sh'/sh)^(1 + e) xh + int (1 + e) exp((1 + e)(l - l')) D dl   V = D

    "v"         xh' = (R'/R) xh - R' int F d(theta)                                 V = F

with F = sin(theta) D/s - cos(theta) eps, the velocity of Karras' preconditioning. "data" is the only one with noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...processes import SDE


@dataclass(frozen=True)
class Gauge:
    """One way to split the flow, for noise level e and data scale s; l and l' are (n,) or (n, q).

    Attributes:
        linear: (l, l', e, s) -> (A, A sh), A the factor on xh.
        weight: (l, l', e, s) -> the weight of V at l per dl, in a step to l'.
        value: (l, s) -> (a, b) of V = a D + b eps.
        total: (l, l', e, s) -> the weight's whole integral, exactly.
    """

    linear: Callable[..., tuple[Tensor, Tensor]]
    weight: Callable[..., Tensor]
    value: Callable[..., tuple[Any, Any]]
    total: Callable[..., Tensor]


def _data_linear(l, l_next, e, s):
    rho = torch.exp(l - l_next)
    return rho ** (1 + e), torch.exp(-l_next) * rho**e


def _radius(l, s):
    return torch.sqrt(s**2 + torch.exp(-2 * l))


def angle(l: Tensor, s: float) -> Tensor:
    """theta = atan(sh/s)."""
    return torch.atan(torch.exp(-l) / s)


GAUGES = {
    "noise": Gauge(
        linear=lambda l, l_next, e, s: (torch.ones_like(l), torch.exp(-l)),
        weight=lambda l, l_next, e, s: -torch.exp(-l),
        value=lambda l, s: (torch.zeros_like(l), torch.ones_like(l)),
        total=lambda l, l_next, e, s: torch.exp(-l_next) - torch.exp(-l),
    ),
    "data": Gauge(
        linear=_data_linear,
        weight=lambda l, l_next, e, s: (1 + e) * torch.exp((1 + e) * (l - l_next)),
        value=lambda l, s: (torch.ones_like(l), torch.zeros_like(l)),
        total=lambda l, l_next, e, s: -torch.expm1((1 + e) * (l - l_next)),
    ),
    "v": Gauge(
        linear=lambda l, l_next, e, s: (
            _radius(l_next, s) / _radius(l, s),
            _radius(l_next, s) * torch.sin(angle(l, s)),
        ),
        weight=lambda l, l_next, e, s: _radius(l_next, s) * torch.sin(angle(l, s)) * torch.cos(angle(l, s)),
        value=lambda l, s: (torch.sin(angle(l, s)) / s, -torch.cos(angle(l, s))),
        total=lambda l, l_next, e, s: -_radius(l_next, s) * (angle(l_next, s) - angle(l, s)),
    ),
}

# What the polynomial through past values may be a function of.
VARIABLES: dict[str, Callable[[SDE, Tensor, float], Tensor]] = {
    "lambda": lambda sde, l, s: l,
    "theta": lambda sde, l, s: angle(l, s),
    "sigma": lambda sde, l, s: torch.exp(-l),
    "time": lambda sde, l, s: sde.time(l),
    "sqrt-time": lambda sde, l, s: sde.time(l).sqrt(),
}


# ---- gauge "data" with more noise at high noise levels: r = phi(sh')/phi(sh), phi(u) = u (exp(u^0.3) + 10)


def log_phi(l: Tensor) -> Tensor:
    """log phi(sh). Source: Cui et al. 2023 (arXiv 2309.06169), ER-SDE-5."""
    return -l + torch.logaddexp(torch.exp(-0.3 * l), torch.tensor(math.log(10.0), dtype=l.dtype, device="cpu"))


def _er_weight(l: Tensor, l_next: Tensor, e: float, s: float) -> Tensor:
    """d/dl of phi(sh')/phi(exp(-l))."""
    power = torch.exp(-0.3 * l)
    slope = 1 + 0.3 * power * torch.sigmoid(power - math.log(10.0))  # d log(phi)/d log(sh)
    return slope * torch.exp(log_phi(l_next) - log_phi(l))


ER = Gauge(
    linear=lambda l, l_next, e, s: (
        torch.exp(log_phi(l_next) - log_phi(l)),
        torch.exp(log_phi(l_next) - log_phi(l) - l),
    ),
    weight=_er_weight,
    value=GAUGES["data"].value,
    total=lambda l, l_next, e, s: -torch.expm1(log_phi(l_next) - log_phi(l)),
)
