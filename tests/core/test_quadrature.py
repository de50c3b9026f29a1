"""Antiderivatives of any function a user may give: accurate between the panels' ends, near the start, across jumps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdegen.core.errors import InvalidInputError
from sdegen.core.quadrature import Antiderivative, gauss_legendre
from sdegen.processes import derivative

# 4001 times between 0 and 1, dense near 0 as well
T = torch.cat([torch.linspace(0, 1, 2001, dtype=torch.float64), torch.logspace(-9, 0, 2000, dtype=torch.float64)])


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_the_rule_is_exact_for_its_polynomials(n):
    x, w = gauss_legendre(n)
    for degree in range(2 * n):
        assert float((w * x**degree).sum()) == pytest.approx(1 / (degree + 1), rel=1e-14)
    if n < 8:  # and no further, as far as rounding can tell
        assert float((w * x ** (2 * n)).sum()) != pytest.approx(1 / (2 * n + 1), rel=1e-14)


# f, its antiderivative from 0, and the accuracy relative to the integral of |f| so far (default: rounding)
SMOOTH = {
    "constant": (lambda t: 3.0 * torch.ones_like(t), lambda t: 3 * t),
    "steep": (lambda t: torch.exp(30 * t), lambda t: torch.expm1(30 * t) / 30),
    "waves": (lambda t: 1 + torch.cos(300 * t), lambda t: t + torch.sin(300 * t) / 300),
    "peak": (
        lambda t: 1 / (1 + 1e4 * (t - 0.3) ** 2),
        lambda t: torch.atan2(100 * t, 1 - 30 * 100 * (t - 0.3)) / 100,  # atan(100 (t - 0.3)) + atan(30)
    ),
    "pole outside": (lambda t: 1 / (1.001 - t), lambda t: -torch.log1p(-t / 1.001)),
    "power": (lambda t: t**5, lambda t: t**6 / 6),
    "root": (lambda t: torch.sqrt(t), lambda t: 2 / 3 * t**1.5),
    "singular at 0": (lambda t: t**-0.5, lambda t: 2 * t**0.5),
    "logarithm at 0": (lambda t: -torch.log(t), lambda t: t - torch.special.xlogy(t, t)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_antiderivative_is_relatively_exact_at_every_time(name):
    f, integral = SMOOTH[name]
    came, wanted = Antiderivative(f, 0.0, 1.0)(T), integral(T)
    # |f| is f here, so "relative to the integral so far" is relative to the value; 1e-11 is ten times the asked 1e-12
    assert bool(((came - wanted).abs() <= 1e-11 * wanted + 1e-20).all())


@pytest.mark.parametrize("kink", [0.37, 1 / 3, 0.5])
def test_jumps_and_kinks_are_found(kink):
    came = Antiderivative(lambda t: torch.where(t < kink, 1.0, 5.0).to(t.dtype), 0.0, 1.0)(T)
    assert float((came - (T + 4 * (T - kink).clamp_min(0))).abs().max()) < 1e-11
    came = Antiderivative(lambda t: (t - kink).abs(), 0.0, 1.0)(T)
    wanted = (kink**2 + torch.sign(T - kink) * (T - kink) ** 2) / 2
    assert float((came - wanted).abs().max()) < 1e-11


def test_an_interior_singularity_that_can_be_integrated():
    came = Antiderivative(lambda t: torch.log((t - 0.3).abs().clamp_min(1e-300)), 0.0, 1.0)(T)
    u = T - 0.3
    wanted = torch.special.xlogy(u, u.abs()) - u - (-0.3 * math.log(0.3) + 0.3)
    assert float((came - wanted).abs().max()) < 1e-11


def test_many_jumps():
    n = 300
    rates = torch.rand(n, dtype=torch.float64) + 0.5
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), rates.cumsum(0) / n])

    def stairs(t: Tensor) -> Tensor:
        return rates[(t * n).long().clamp(0, n - 1)]

    nodes = torch.arange(n + 1, dtype=torch.float64) / n
    assert float((Antiderivative(stairs, 0.0, 1.0)(nodes) - steps).abs().max()) < 1e-10


def test_a_function_that_is_itself_noisy_is_accepted():
    def noisy(t: Tensor) -> Tensor:
        return torch.exp(t) * (1 + 1e-10 * torch.sin(1e9 * t))

    assert float((Antiderivative(noisy, 0.0, 1.0)(T) - torch.expm1(T)).abs().max()) < 1e-9


def test_another_interval():
    came = Antiderivative(torch.exp, -2.0, 3.0)(torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64))
    wanted = [0.0, math.exp(0) - math.exp(-2), math.exp(3) - math.exp(-2)]
    assert came.tolist() == pytest.approx(wanted, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3,), (2, 3)])
def test_any_shape_and_dtype(shape, dtype):
    t = torch.rand(shape, dtype=dtype)
    came = Antiderivative(torch.cos, 0.0, 1.0)(t)
    assert came.shape == t.shape and came.dtype == dtype
    torch.testing.assert_close(came, torch.sin(t))


def test_it_can_be_differentiated():
    f, t = Antiderivative(lambda t: torch.exp(3 * t), 0.0, 1.0), T[1:2000]
    # the interpolant's own accuracy: 1e-12 of the integral over panels 1/128 or wider of their distance from 0
    assert float((derivative(f, t) / torch.exp(3 * t) - 1).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda t: torch.where(t > 0.5, math.nan, 1.0), "not finite at t = 0.5"),
        (lambda t: torch.where(t > 0.5, math.inf, 1.0), "not finite"),
        (lambda t: 1 / t, "cannot be integrated across t = 0:"),
        (lambda t: 1 / (t - 0.3), "(near|across) t = 0.3"),
        # integrable, but numbers near 0.3 are 5e-17 apart and the integral over one gap is 2 sqrt(5e-17)
        (lambda t: (t - 0.3).abs().clamp_min(1e-300) ** -0.5, "(near|across) t = 0.3"),
        (lambda t: torch.frac(t * 1e6 * math.pi), "too rough"),
    ],
)
def test_what_cannot_be_integrated_says_so(f, words):
    with pytest.raises(InvalidInputError, match=words):
        Antiderivative(f, 0.0, 1.0, name="g")
