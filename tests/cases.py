"""One list per kind: tests run over them, so a new process or parametrisation is under every law once it is listed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sdegen.distributions.gaussian import Gaussian
from sdegen.distributions.mixture import GaussianMixture
from sdegen.models.denoiser import Denoiser
from sdegen.models.parametrization import NAMES, Parametrization
from sdegen.nets import MLP
from sdegen.processes import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CoefficientSDE,
    CosineSDE,
    LinearPathSDE,
    PathSDE,
    SubVPSDE,
    TabulatedVESDE,
    TabulatedVPSDE,
    TrigSDE,
)
from sdegen.testing import LawError

# Ho et al. 2020: N = 1000, 1e-4 .. 0.02. The short ones are coarse, uneven and start or end hard.
DDPM_BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SHORT_BETAS = [0.02, 0.3, 0.05, 0.5, 0.9]
NO_SIGNAL_BETAS = [0.01, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
NCSN_SIGMAS = torch.logspace(-2, math.log10(50), 200, dtype=torch.float64)
SHORT_SIGMAS = [0.1, 0.11, 0.5, 3.0]

BUILT_IN: dict[str, SDE] = {
    "vp": VPSDE(),
    "vp-from-0": VPSDE(0.0, 12.0, t_min=1e-4, t_max=2.0),
    "sub-vp": SubVPSDE(),
    "cosine": CosineSDE(),
    "linear-path": LinearPathSDE(),
    "linear-path-to-1": LinearPathSDE(t_max=1.0),
    "ve": VESDE(),
    "ve-short": VESDE(0.5, 2.0),
    "edm": EDMSDE(),
    "trig": TrigSDE(0.5),
    "trig-wide": TrigSDE(3.0, sigma_min=0.01, sigma_max=1000.0),
    "trig-endless": TrigSDE(1.0, sigma_max=math.inf),
    "ddpm-table": TabulatedVPSDE(DDPM_BETAS),
    "short-vp-table": TabulatedVPSDE(SHORT_BETAS),
    "no-signal-table": TabulatedVPSDE(NO_SIGNAL_BETAS),
    "ncsn-table": TabulatedVESDE(NCSN_SIGMAS),
    "short-ve-table": TabulatedVESDE(SHORT_SIGMAS),
}

# Without a table's kinks and without rates that are infinite at the end.
SMOOTH = {
    name: sde
    for name, sde in BUILT_IN.items()
    if name not in ("linear-path-to-1", "trig-endless") and "table" not in name
}


def from_path(sde: SDE) -> PathSDE:
    """A process rebuilt from its alpha and sigma."""
    return PathSDE(sde.alpha, sde.sigma, t_min=sde.t_min, t_max=sde.t_max)


def from_coefficients(sde: SDE) -> CoefficientSDE:
    """A process rebuilt from its f and g (and the noise it has at t = 0)."""
    sigma_0 = float(sde.sigma(0.0))
    return CoefficientSDE(sde.drift_coefficient, sde.diffusion, sigma_0=sigma_0, t_min=sde.t_min, t_max=sde.t_max)


def _stairs(t: Tensor) -> Tensor:
    """A rate with jumps at 1/4 and 0.7."""
    return torch.where(t < 0.25, 1.0, torch.where(t < 0.7, 8.0, 3.0)).to(t.dtype)


def _kinked(t: Tensor) -> Tensor:
    return 0.5 + 4 * (t - 0.37).abs()


USER_MADE: dict[str, SDE] = {
    **{f"path-of-{name}": from_path(sde) for name, sde in SMOOTH.items()},
    **{f"coefficients-of-{name}": from_coefficients(sde) for name, sde in SMOOTH.items()},
    "path-of-table": from_path(BUILT_IN["short-vp-table"]),
    "coefficients-of-table": from_coefficients(BUILT_IN["short-vp-table"]),
    "stairs": CoefficientSDE(lambda t: -_stairs(t) / 2, lambda t: _stairs(t).sqrt()),
    "kinked": CoefficientSDE(lambda t: -_kinked(t), _kinked, sigma_0=0.01),
    "growing": CoefficientSDE(lambda t: 0.3 * torch.ones_like(t), lambda t: 1 + t),  # f > 0
    "root": CoefficientSDE(lambda t: -t, lambda t: t**-0.25),  # g infinite at 0, integrable
    "late": PathSDE(lambda t: torch.exp(-t), lambda t: t**3, t_min=0.1, t_max=4.0),
    "constant-alpha": PathSDE(lambda t: 2.0, lambda t: 0.1 + t),  # alpha need not start at 1
}

SDES: dict[str, SDE] = {**BUILT_IN, **USER_MADE}

# One of each: without the processes that were rebuilt from another's functions, and are equal to it.
DISTINCT = {name: sde for name, sde in SDES.items() if "-of-" not in name}

# For laws of models: few enough to be quick, and all kinds of end.
SOME_SDES = {name: SDES[name] for name in ("vp", "cosine", "linear-path-to-1", "ve", "edm", "trig", "no-signal-table")}

PARAMETRIZATIONS: dict[str, str | Parametrization] = {
    **{name: name for name in NAMES},
    "own": Parametrization(
        c_skip=lambda sde, t: sde.alpha(t) / 2,
        c_out=lambda sde, t: 1 + sde.sigma(t),
        c_in=lambda sde, t: 1 / (1 + sde.sigma(t)),
        c_noise=lambda sde, t: torch.sqrt(t),
    ),
}


def _rotated(variances: list[list[float]]) -> Tensor:
    """Full covariances with these eigenvalues, their axes turned by different angles."""
    generator = torch.Generator().manual_seed(5)
    covariances = []
    for values in variances:
        d = len(values)
        q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
        c = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
        covariances.append((c + c.T) / 2)
    return torch.stack(covariances)


MIXTURES: dict[str, GaussianMixture] = {
    "line": GaussianMixture([[-1.0], [0.5], [2.0]], std=[0.2, 0.1, 0.5], weights=[1, 2, 3]),
    "plane": GaussianMixture([[1.0, 1.0], [-1.0, 0.5]], std=0.3),
    "full": GaussianMixture(
        [[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0]], covariances=_rotated([[1, 0.2, 0.01], [0.5, 0.5, 0.1]]), weights=[0.3, 0.7]
    ),
    "shared-covariance": GaussianMixture([[0.0, 0.0], [3.0, 1.0]], covariances=[[1.0, 0.8], [0.8, 1.0]]),
    "flat": GaussianMixture([[1.0, 0.0], [-1.0, 1.0]], covariances=[[1.0, 1.0], [1.0, 1.0]]),  # singular: on lines
    "points": GaussianMixture([[1.0, 0.0], [-1.0, 1.0]], std=0.0),
}
DENSE_MIXTURES = {name: m for name, m in MIXTURES.items() if name not in ("flat", "points")}


# ---- something to train


def small(seed: int = 0, **words) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(MLP(2, hidden=8, layers=1, embedding=4, **words), VPSDE())


def points(n: int = 200, d: int = 2, seed: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.2


# ---- one test for each law and class

_OF_NOISE = "torchsde's controller knows noise: an error falls with the root of a tolerance"

# The laws that a class does not keep, with the reason; such a test has to fail.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("torchdiffeq:dopri8", "order"): "at 10 steps its errors are already rounding",
    ("torchdiffeq:dopri8", "tolerance"): "its errors fall faster than the tolerance",
    ("torchdiffeq:fehlberg2", "tolerance"): "its errors are hundreds of tolerances",
    ("torchsde:euler", "tolerance"): _OF_NOISE,
    ("torchsde:milstein", "tolerance"): _OF_NOISE,
    ("torchsde:srk", "tolerance"): _OF_NOISE,
    ("torchsde:euler_heun", "tolerance"): _OF_NOISE,
    ("torchsde:midpoint", "tolerance"): _OF_NOISE,
    ("torchsde:log_ode", "tolerance"): _OF_NOISE,
}


def each_law(classes: Mapping[str, Any], laws_of: Callable[[Any], Iterable[tuple[str, Any]]]) -> list[Any]:
    """Parameters (law,) for pytest: one for each law of each class, with its name; exceptions have to fail."""
    tests = []
    for name, instance in classes.items():
        for law_name, law in laws_of(instance):
            reason = EXCEPTIONS.get((name, law_name))
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, raises=LawError, strict=True)]
            tests.append(pytest.param(law, id=f"{name}-{law_name}", marks=marks))
    return tests


def beginning(model, shape: tuple[int, ...], *, seed: int, t: float, dtype=torch.float64) -> Tensor:
    """Where samples of a mixture begin: alpha mean + (alpha^2 C + sigma^2)^(1/2) z, z the seed's own."""
    sde = model.sde
    z = sde.prior(shape, seed=seed, dtype=dtype) / float(sde.sigma(sde.t_max))
    law = Gaussian.of_covariance(model.mixture.covariance, model.mixture.mean)
    return law.noisy(z, float(sde.alpha(t)), float(sde.sigma(t)))


class Asked(VPSDE):
    """A process that counts how often its signal is computed."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def alpha(self, t):
        self.asked.append(1)
        return super().alpha(t)
