"""What a network's output means: four coefficients, x0 = c_skip x + c_out net(c_in x, c_noise)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, shortened
from ..core.kinds import checked
from ..core.show import Shown
from ..processes import SDE, nodes_of
from ..processes import in_tensors as _at

Function = Callable[[SDE, Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Parametrization(Shown):
    """What a network's output means: x0 = c_skip x + c_out net(c_in x, c_noise).

    Args:
        c_skip, c_out, c_in, c_noise: functions of (sde, t), t float64 times of the process, each giving t's shape.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 7.
    """

    c_skip: Function
    c_out: Function
    c_in: Function
    c_noise: Function

    def _facts(self):
        return vars(self)


@checked
def counting(of: str | Parametrization) -> Parametrization:
    """A parametrisation whose network gets node numbers 0 .. N - 1 in place of times, as code written for DDPM does.

    c_noise = N t - 1, which at node i of 1..N (t = i/N) is the integer i - 1; linear between the nodes.

    `parametrization="counting-noise"` is `counting("noise")` by name, and can be saved in a checkpoint.

    Args:
        of: what the output means, a name or a Parametrization; the process needs a table (`TabulatedVPSDE`,
            `TabulatedVESDE`).

    Returns:
        The Parametrization with this c_noise.

    Source: Ho et al. 2020 (arXiv 2006.11239) counts t = 1..N in the paper, 0..N - 1 in its code.

    Example:
        >>> import torch, sdegen as sg
        >>> told = []
        >>> net = lambda x, t: (told.append(t.tolist()), x)[1]  # a network that notes the times it gets
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 100))
        >>> model = sg.Denoiser(net, sde, parametrization=sg.discrete.counting("noise"))
        >>> prediction = model(torch.zeros(2, 1), torch.tensor([0.01, 1.0]))
        >>> [round(t) for t in told[-1]]
        [0, 99]
    """

    return replace(parametrization(of), c_noise=_node)


def _node(sde: SDE, t: Tensor) -> Tensor:
    count = len(nodes_of(sde)) * t - 1
    return count + (count.round() - count).detach() * ((count.round() - count).abs() < 1e-6)  # t = i/N is rounded


def _sigma(sde: SDE, t: Tensor) -> Tensor:
    return _at(sde, t).sigma


def _log_sigma(sde: SDE, t: Tensor) -> Tensor:
    """log(sigma/alpha)/4."""
    return -sde.half_log_snr(t) / 4


def zeros(sde: SDE, t: Tensor) -> Tensor:
    return torch.zeros_like(t)


def ones(sde: SDE, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _time(sde: SDE, t: Tensor) -> Tensor:
    return t


def _linear(c_skip: Function, c_out: Function) -> Parametrization:
    """A network that sees x and t as they are."""
    return Parametrization(c_skip, c_out, ones, _time)


def _w(sde: SDE, t: Tensor) -> Tensor:
    """alpha sigma' - alpha' sigma = g^2 alpha/(2 sigma), finite where alpha is 0 and g infinite."""
    at = _at(sde, t)
    d_alpha, d_sigma = at.rates
    return at.alpha * d_sigma - d_alpha * at.sigma


def _n(sde: SDE, t: Tensor) -> Tensor:
    return _at(sde, t).alpha ** 2 + _at(sde, t).sigma ** 2


_LINEAR = {
    "x0": _linear(zeros, ones),
    "noise": _linear(lambda sde, t: 1 / _at(sde, t).alpha, lambda sde, t: -_at(sde, t).sigma / _at(sde, t).alpha),
    "score": _linear(lambda sde, t: 1 / _at(sde, t).alpha, lambda sde, t: _at(sde, t).sigma ** 2 / _at(sde, t).alpha),
    "v": _linear(lambda sde, t: _at(sde, t).alpha / _n(sde, t), lambda sde, t: -_at(sde, t).sigma / _n(sde, t)),
    "velocity": _linear(
        lambda sde, t: _at(sde, t).rates[1] / _w(sde, t), lambda sde, t: -_at(sde, t).sigma / _w(sde, t)
    ),
}

NAMES = (*_LINEAR, "edm")
TOLD: dict[str, Function] = {"counting": _node, "sigma": _sigma, "log-sigma": _log_sigma}  # instead of t


def _edm(sigma_data: float) -> Parametrization:
    """Karras' preconditioning of any process: input and target of unit variance for data of standard deviation s.

    With r^2 = alpha^2 s^2 + sigma^2, the variance of x_t,
    c_skip = alpha s^2/r^2, c_out = sigma s/r, c_in = 1/r, c_noise = log(sigma/alpha)/4:
    the paper's with sigma/alpha for sigma and x/alpha for x, written so that alpha = 0 is no exception.

    Source: Karras et al. 2022 (arXiv 2206.00364) table 1 and appendix B.6.
    """
    s = sigma_data

    def r(sde: SDE, t: Tensor) -> Tensor:
        return torch.hypot(_at(sde, t).alpha * s, _at(sde, t).sigma)

    return Parametrization(
        c_skip=lambda sde, t: _at(sde, t).alpha * s**2 / r(sde, t) ** 2,
        c_out=lambda sde, t: _at(sde, t).sigma * s / r(sde, t),
        c_in=lambda sde, t: 1 / r(sde, t),
        c_noise=_log_sigma,
    )


def without_told(name: str) -> tuple[str, Function | None]:
    """What the output of a network means, by name, and what it is told where the name says that it is not t."""
    told, dash, of = name.rpartition("-")
    if not dash:
        return name, None
    if re.fullmatch(r"[1-9]\d{0,8}t", told):
        return of, partial(_times, int(told[:-1]))
    return (of, TOLD[told]) if told in TOLD else (name, None)


def _times(n: int, sde: SDE, t: Tensor) -> Tensor:
    return n * t


def parametrization(name: str | Parametrization, sigma_data: float = 1.0) -> Parametrization:
    """The coefficients behind a name; a Parametrization is returned as it is.

    Args:
        name: "x0" | "noise" | "score" | "v" | "velocity" | "edm". Before a dash it may say what the network is told in
            place of t: "counting-noise" (see `counting`), "1000t-velocity" (1000 t, or another whole number),
            "sigma-score" (sigma(t)), "log-sigma-v" (log(sigma/alpha)/4, as "edm" does by itself).
        sigma_data: the data's standard deviation, which "edm" needs.

    Raises:
        InvalidInputError: an unknown name.
    """
    if isinstance(name, Parametrization):
        return name
    plain, told = without_told(name) if isinstance(name, str) else (None, None)
    if plain not in NAMES:
        raise InvalidInputError(
            f"parametrization: got {shortened(name)}, expected one of {', '.join(map(repr, NAMES))}, any of them after "
            f"{', '.join(repr(word + '-') for word in TOLD)} or '1000t-', or a Parametrization"
        )
    found = _edm(sigma_data) if plain == "edm" else _LINEAR[plain]
    return found if told is None else replace(found, c_noise=told)
