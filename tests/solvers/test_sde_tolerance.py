"""The law of the reverse SDE under error control, as a function of the tolerance: less asked for is never better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sdegen as sg
from sdegen.solvers.stochastic.adams import _narrowness

F64 = torch.float64


def exact(model: sg.MixtureModel, n: int) -> Tensor:
    """Draws of the law at t_min."""
    z = sg.Noise(99).normal((n, 2), 41, dtype=F64, device="cpu")
    return model.sde.perturb(model.mixture.sample(n, seed=98, dtype=F64), model.sde.t_min, z)


def kolmogorov(known: Tensor, found: Tensor) -> float:
    """The largest gap between two distribution functions."""
    known, found = known.sort().values, found.sort().values
    level = torch.searchsorted(known, found).to(F64) / len(known)
    steps = torch.arange(len(found) + 1, dtype=F64) / len(found)
    return float(torch.maximum((level - steps[1:]).abs(), (level - steps[:-1]).abs()).max())


def marginals(model: sg.MixtureModel, x: Tensor) -> list[Tensor]:
    """Radius, angle, both coordinates, and the log-density, which sees how wide the modes are."""
    return [x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0]), x[:, 0], x[:, 1], model.log_prob(x, model.sde.t_min)]


def distances(model: sg.MixtureModel, tolerances, n: int, known: int) -> list[float]:
    """The worst marginal's distance from the exact law, for each tolerance."""
    truth, found = marginals(model, exact(model, known)), []
    for rtol in tolerances:
        span = (model.sde.t_max, model.sde.t_min)
        x = sg.sample(model, (n, 2), solver="d-adams2-sde", rtol=rtol, seed=3, dtype=F64, t_span=span).x
        found.append(max(kolmogorov(a, b) for a, b in zip(truth, marginals(model, x), strict=True)))
    return found


def test_a_smaller_tolerance_brings_the_law_of_narrow_modes_nearer():
    """Eight modes of .1 on a circle; 20,000 exact draws are .010 away from the law at the most."""
    tolerances = (0.2, 0.05, 0.025)
    model = sg.MixtureModel(sg.data.toys.ring(8), sg.EDMSDE())
    far = distances(model, tolerances, 20_000, 200_000)
    assert all(d < 0.006 + 0.5 * tol for d, tol in zip(far[1:], tolerances[1:], strict=True)), far
    assert far[2] < far[1] < far[0] / 3, far


@pytest.mark.slow
@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=["vp", "edm"])
@pytest.mark.parametrize("std", [0.1, 0.05, 0.02])
def test_the_law_gets_no_worse_with_any_smaller_tolerance(std, sde):
    model = sg.MixtureModel(sg.data.toys.ring(8, std=std), sde)
    far = distances(model, (0.2, 0.1, 0.05, 0.025, 0.0125), 80_000, 1_000_000)
    floor = 1.36 / 80_000**0.5  # of exact draws, at the 95 % level of one marginal
    assert all(b < a + floor for a, b in zip(far, far[1:], strict=False)), far
    assert far[-1] < far[0] * 0.35, far


def test_narrowness_is_that_of_a_gaussian():
    """Data N(0, c I) in many dimensions: an error counts (R/w)^(1/2) as much, R^2 = s^2 + sh^2 and w^2 = c + sh^2."""
    s, c, d = 1.0, 0.04, 20_000
    for sh in (3.0, 0.3, 0.02):
        xh = torch.randn(1, d, generator=torch.Generator().manual_seed(0), dtype=F64) * (c + sh**2) ** 0.5
        belief = c / (c + sh**2) * xh
        found = float(_narrowness(xh, belief, torch.tensor([sh], dtype=F64), s))
        assert found == pytest.approx(((s**2 + sh**2) / (c + sh**2)) ** 0.25, rel=0.01)
