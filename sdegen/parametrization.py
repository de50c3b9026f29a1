"""What a network's output means: four coefficients, x0 = c_skip x + c_out net(c_in x, c_noise)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InvalidInputError
from .sde import SDE

Function = Callable[[SDE, Tensor], Tensor]


@dataclass(frozen=True)
class Parametrization:
    """x0 = c_skip x + c_out net(c_in x, c_noise): four functions of (sde, t), each giving t's shape.

    x is the state of the process at hand and t its time. They are evaluated in float64.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 7.
    """

    c_skip: Function
    c_out: Function
    c_in: Function
    c_noise: Function


def _ones(sde: SDE, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _time(sde: SDE, t: Tensor) -> Tensor:
    return t


def _linear(c_skip: Function, c_out: Function) -> Parametrization:
    """A network that sees x and t as they are."""
    return Parametrization(c_skip, c_out, _ones, _time)


def _w(sde: SDE, t: Tensor) -> Tensor:
    """alpha sigma' - alpha' sigma = g^2 alpha/(2 sigma)."""
    return sde.diffusion(t) ** 2 * sde.alpha(t) / (2 * sde.sigma(t))


def _n(sde: SDE, t: Tensor) -> Tensor:
    return sde.alpha(t) ** 2 + sde.sigma(t) ** 2


_LINEAR = {
    "x0": _linear(lambda sde, t: torch.zeros_like(t), _ones),
    "noise": _linear(lambda sde, t: 1 / sde.alpha(t), lambda sde, t: -sde.sigma(t) / sde.alpha(t)),
    "score": _linear(lambda sde, t: 1 / sde.alpha(t), lambda sde, t: sde.sigma(t) ** 2 / sde.alpha(t)),
    "v": _linear(lambda sde, t: sde.alpha(t) / _n(sde, t), lambda sde, t: -sde.sigma(t) / _n(sde, t)),
    "velocity": _linear(lambda sde, t: sde.rates(t)[1] / _w(sde, t), lambda sde, t: -sde.sigma(t) / _w(sde, t)),
}

NAMES = (*_LINEAR, "edm")


def _edm(sigma_data: float) -> Parametrization:
    """Karras' preconditioning with sigma/alpha for sigma and x/alpha for x (systems of unit-variance input and target).

    c_skip = s^2/(sh^2 + s^2)/alpha, c_out = sh s/sqrt(sh^2 + s^2), c_in = 1/(alpha sqrt(sh^2 + s^2)), c_noise = log(sh)/4, sh = sigma/alpha.
    """
    s2 = sigma_data**2

    def sh(sde: SDE, t: Tensor) -> Tensor:
        return torch.exp(-sde.half_log_snr(t))

    return Parametrization(
        c_skip=lambda sde, t: s2 / (s2 + sh(sde, t) ** 2) / sde.alpha(t),
        c_out=lambda sde, t: sigma_data / torch.sqrt(1 + s2 / sh(sde, t) ** 2),
        c_in=lambda sde, t: 1 / (sde.alpha(t) * torch.sqrt(s2 + sh(sde, t) ** 2)),
        c_noise=lambda sde, t: -sde.half_log_snr(t) / 4,
    )


def parametrization(name: str | Parametrization, sigma_data: float = 1.0) -> Parametrization:
    """The coefficients behind a name; a Parametrization is returned as it is.

    Args:
        name: "x0" | "noise" | "score" | "v" | "velocity" | "edm".
        sigma_data: the data's standard deviation, which "edm" needs.

    Raises:
        InvalidInputError: an unknown name.
    """
    if isinstance(name, Parametrization):
        return name
    if name == "edm":
        return _edm(sigma_data)
    if name not in _LINEAR:
        raise InvalidInputError(f"parametrization {name!r}: wanted one of {', '.join(map(repr, NAMES))}, or a Parametrization")
    return _LINEAR[name]
