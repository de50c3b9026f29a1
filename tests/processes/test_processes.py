"""Forward processes: the laws over all of them, and the values that the papers fix."""

from __future__ import annotations

import math
import pickle
from collections import deque

import pytest
import torch
from cases import (
    BUILT_IN,
    DDPM_BETAS,
    DISTINCT,
    NCSN_SIGMAS,
    NO_SIGNAL_BETAS,
    SDES,
    SHORT_BETAS,
    SHORT_SIGMAS,
    SMOOTH,
    each_law,
    from_coefficients,
    from_path,
)
from torch import Tensor

from sdegen.core.errors import InvalidInputError
from sdegen.noise.white import Noise
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
from sdegen.testing import LawError, check_sde, sde_laws

F64 = torch.float64


def times(sde: SDE, n: int = 501) -> Tensor:
    """Times over the whole range, both ends included."""
    near = sde.t_min * (sde.t_max / sde.t_min) ** torch.linspace(0, 1, n, dtype=F64)
    t = torch.cat([torch.linspace(sde.t_min, sde.t_max, n, dtype=F64), near.clamp(sde.t_min, sde.t_max)])
    return t[sde.alpha(t) > 0]


def close(came: Tensor, expected: Tensor | float, rtol: float = 1e-12, atol: float = 0.0) -> None:
    torch.testing.assert_close(
        came, torch.as_tensor(expected, dtype=came.dtype).expand(came.shape), rtol=rtol, atol=atol
    )


# ---- laws


@pytest.mark.parametrize("law", each_law(SDES, sde_laws))
def test_the_laws_of_processes(law):
    law()


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "trig", "ve", "linear-path", "path-of-sub-vp"])
def test_gradcheck(name):
    sde = SDES[name]
    for t in (
        times(sde)[50:-50:100].clone().requires_grad_(),
        torch.tensor(sde.t_max / 3, dtype=F64, requires_grad=True),
    ):
        for function in (sde.alpha, sde.sigma, sde.half_log_snr, sde.drift_coefficient, sde.diffusion):
            assert torch.autograd.gradcheck(function, (t,), eps=1e-7 * float(t.detach().min()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_process_rebuilt_from_its_own_functions_is_the_same_to_1e_8(name):
    sde = BUILT_IN[name]
    t = times(sde)
    # lambda and f go through 0: their sizes are those of the terms they are made of
    speed = sde.drift_coefficient(t).abs() + sde.diffusion(t) ** 2 / (2 * sde.sigma(t) ** 2)
    for other in (from_path(sde), from_coefficients(sde)):
        for function in ("alpha", "sigma", "diffusion"):
            close(getattr(other, function)(t), getattr(sde, function)(t), rtol=1e-8)
        assert float((other.half_log_snr(t) - sde.half_log_snr(t)).abs().max()) < 1e-8
        assert float(((other.drift_coefficient(t) - sde.drift_coefficient(t)) / speed).abs().max()) < 1e-8
        close(other.time(sde.half_log_snr(t)), t, rtol=1e-8)
        x = torch.ones(5, 2)
        torch.testing.assert_close(other.prior_log_prob(x), sde.prior_log_prob(x))


@pytest.mark.parametrize("name", ["short-vp-table", "short-ve-table"])
def test_a_table_rebuilt_from_its_own_functions_is_the_same_to_1e_8(name):
    sde = BUILT_IN[name]
    t = times(sde, 60)
    for other in (from_path(sde), from_coefficients(sde)):
        close(other.alpha(t), sde.alpha(t), rtol=1e-8)
        close(other.sigma(t), sde.sigma(t), rtol=1e-8)
        close(other.time(sde.half_log_snr(t)), t, rtol=1e-8)


@pytest.mark.parametrize("name", DISTINCT)
def test_the_forward_sde_has_the_kernel_s_law(name):
    """Euler-Maruyama from x_a ~ kernel(x_0 = 1): mean alpha(b), variance sigma(b)^2, to the noise of 8,000 paths."""
    sde, n, steps = SDES[name], 8_000, 80
    levels = sde.half_log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=F64)).clamp(-2.5, 2.0)
    t = sde.time(torch.linspace(float(levels[0]), float(levels[1]), steps + 1, dtype=F64))
    noise = Noise(11)
    x = sde.perturb(torch.ones(n, dtype=F64), t[0], noise.normal((n,), 1, dtype=F64, device="cpu"))
    mean, variance = float(sde.alpha(t[0])), float(sde.sigma(t[0])) ** 2
    for a, b in zip(t[:-1], t[1:], strict=True):
        x = x + sde.drift(x, a) * (b - a) + sde.diffusion(a) * noise.increment(a, b, x)
        growth = 1 + float(sde.drift_coefficient(a) * (b - a))
        mean, variance = mean * growth, variance * growth**2 + float(sde.diffusion(a)) ** 2 * float(b - a)
    alpha, sigma = float(sde.alpha(t[-1])), float(sde.sigma(t[-1]))
    # the steps' own error, known from the same recursion without chance, is first order in the step
    bias = max(abs(mean - alpha) / (alpha + sigma), abs(variance / sigma**2 - 1))
    assert bias < 0.1
    # five standard errors of a mean, and of a variance of normals
    assert abs(float(x.mean()) - mean) < 5 * sigma / math.sqrt(n)
    assert abs(float(x.var()) / variance - 1) < 5 * math.sqrt(2 / n)


# ---- the values that the papers fix


def test_vp_formulas():
    t, sde = times(VPSDE()), VPSDE()
    integral = 0.1 * t + 19.9 * t**2 / 2
    close(sde.alpha(t), torch.exp(-integral / 2))
    close(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, 1.0)
    close(sde.drift_coefficient(t), -(0.1 + 19.9 * t) / 2)
    close(sde.diffusion(t) ** 2, 0.1 + 19.9 * t)
    # Song et al. 2021: beta from 0.1 to 20, alpha_bar(1) = exp(-10.05)
    assert float(sde.alpha(1.0) ** 2) == pytest.approx(4.32e-5, rel=1e-3)


def test_sub_vp_formulas():
    t, sde, vp = times(SubVPSDE()), SubVPSDE(), VPSDE()
    close(sde.alpha(t), vp.alpha(t))
    close(sde.sigma(t), 1 - vp.alpha(t) ** 2, rtol=1e-11)  # 1 - alpha^2 cancels at small t
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    close(sde.diffusion(t) ** 2, beta * (1 - torch.exp(-2 * integral)), rtol=1e-11)


def test_cosine_formulas():
    t, sde, s = times(CosineSDE()), CosineSDE(), 0.008

    def c(t):
        return torch.cos(math.pi / 2 * (torch.as_tensor(t, dtype=F64) + s) / (1 + s)) ** 2

    close(sde.alpha(t) ** 2, c(t) / c(0.0), rtol=1e-10)
    beta = math.pi / (1 + s) * torch.tan(math.pi / 2 * (t + s) / (1 + s))
    close(sde.beta(t), beta)
    close(sde.diffusion(t) ** 2, beta)
    # Nichol & Dhariwal's discrete betas at N = 1000, of which only the last reaches their clip at 0.999
    n = 1000
    nodes = torch.arange(n, dtype=F64) / n
    betas = 1 - c(nodes + 1 / n) / c(nodes)
    assert (betas > 0.999).nonzero().flatten().tolist() == [n - 1]
    table = TabulatedVPSDE(betas.clamp_max(0.999))
    i = nodes[1:900]
    close(table.alpha(i) ** 2, CosineSDE().alpha(i) ** 2, rtol=1e-10)


def test_ve_formulas():
    t, sde = times(VESDE()), VESDE()
    close(sde.sigma(t), 0.01 * 5000**t)
    close(sde.diffusion(t) ** 2, 2 * (0.01 * 5000**t) ** 2 * math.log(5000))
    assert float(sde.sigma(0.0)) == pytest.approx(0.01)
    assert float(sde.alpha(t).min()) == float(sde.alpha(t).max()) == 1.0
    # from clean data the SDE has sigma_min^2 less variance at every t
    clean = CoefficientSDE(sde.drift_coefficient, sde.diffusion)
    close(clean.sigma(t) ** 2, sde.sigma(t) ** 2 - 0.01**2, rtol=1e-10)


def test_edm_formulas():
    t, sde = times(EDMSDE()), EDMSDE()
    close(sde.sigma(t), t)
    close(sde.diffusion(t) ** 2, 2 * t)
    assert (sde.t_min, sde.t_max) == (0.002, 80.0)


def test_linear_path_formulas():
    t, sde = times(LinearPathSDE()), LinearPathSDE()
    close(sde.alpha(t), 1 - t)
    close(sde.sigma(t), t)
    x0, noise = torch.randn(len(t), 3, dtype=F64), torch.randn(len(t), 3, dtype=F64)
    d_alpha, d_sigma = sde.rates(t)
    close(d_alpha[:, None] * x0 + d_sigma[:, None] * noise, noise - x0)  # the velocity of flow matching


def test_trig_formulas():
    t, sde = times(TrigSDE(0.5)), TrigSDE(0.5)
    close(sde.alpha(t), torch.cos(t))
    close(sde.sigma(t), 0.5 * torch.sin(t))
    levels = (sde.sigma(t) / sde.alpha(t))[[0, 500]]
    assert levels.tolist() == pytest.approx([0.002, 80.0], rel=1e-12)
    # data of standard deviation sigma_data keep it: alpha^2 s^2 + sigma^2 = s^2
    close(sde.alpha(t) ** 2 * 0.25 + sde.sigma(t) ** 2, 0.25)


@pytest.mark.parametrize("betas", [DDPM_BETAS, torch.tensor(SHORT_BETAS), torch.tensor(NO_SIGNAL_BETAS)])
def test_a_ddpm_table_is_exact_at_its_nodes(betas):
    betas = betas.to(F64)
    n = len(betas)
    sde = TabulatedVPSDE(betas)
    nodes = torch.arange(n + 1, dtype=F64) / n
    alpha_bar = torch.cat([torch.ones(1, dtype=F64), (1 - betas).cumprod(0)])
    close(sde.alpha(nodes) ** 2, alpha_bar)
    close(sde.sigma(nodes) ** 2, 1 - alpha_bar, rtol=1e-10)
    # the kernel between neighbours is DDPM's step: sqrt(1 - beta) x + sqrt(beta) z
    ones, zeros = torch.ones(n, 1, dtype=F64), torch.zeros(n, 1, dtype=F64)
    close(sde.transition(ones, nodes[:-1], nodes[1:], zeros)[:, 0], (1 - betas).sqrt())
    close(sde.transition(zeros, nodes[:-1], nodes[1:], ones)[:, 0] ** 2, betas, rtol=1e-10)
    close(sde.diffusion(nodes[1:]) ** 2, -n * torch.log(1 - betas))
    close(sde.time(sde.half_log_snr(nodes[1:])), nodes[1:])
    assert (sde.t_min, sde.t_max) == (1 / n, 1.0)


@pytest.mark.parametrize("n", [5, 200, 1000])
def test_nodes_that_float32_rounded_are_still_nodes(n):
    betas = torch.linspace(0.01, 0.5, n, dtype=F64)
    sde = TabulatedVPSDE(betas)
    nodes = torch.arange(1, n + 1) / n
    assert nodes.dtype == torch.float32
    torch.testing.assert_close(sde.beta(nodes).double(), -n * torch.log(1 - betas), rtol=1e-6, atol=0)
    assert sde.beta(nodes).dtype == torch.float32
    sigmas = torch.linspace(0.1, 1, n, dtype=F64) ** 2
    ve = TabulatedVESDE(sigmas)
    torch.testing.assert_close(ve.sigma(nodes).double(), sigmas, rtol=1e-5, atol=0)
    # the rate of log(sigma) in the cell that ends at the node, as in float64
    torch.testing.assert_close(ve.diffusion(nodes).double(), ve.diffusion(torch.arange(1, n + 1, dtype=F64) / n))


def test_the_ddpm_table_against_the_continuous_process():
    # Ho et al.'s table is beta((i-1)/(N-1))/N of the linear beta; alpha_bar_N tends to exp(-10.05) like 1/N
    beta = VPSDE().beta
    close(DDPM_BETAS, beta(torch.linspace(0, 1, 1000, dtype=F64)) / 1000)
    assert float(TabulatedVPSDE(DDPM_BETAS).alpha(1.0) ** 2) == pytest.approx(4.04e-5, abs=5e-8)
    errors = []
    for n in (500, 1000, 2000):
        table = TabulatedVPSDE(beta(torch.linspace(0, 1, n, dtype=F64)) / n)
        errors.append(float(VPSDE().half_log_snr(1.0) - table.half_log_snr(1.0)))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05) and errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_a_table_without_terminal_signal():
    sde = TabulatedVPSDE(NO_SIGNAL_BETAS)
    assert float(sde.alpha(1.0)) == 0.0 and float(sde.sigma(1.0)) == 1.0
    assert float(sde.half_log_snr(1.0)) == -math.inf and float(sde.time(-math.inf)) == 1.0
    x, noise = torch.ones(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    close(sde.transition(x, 6 / 7, 1.0, noise), noise)
    # in the last cell alpha falls linearly, so the velocity is finite and time(lambda) goes on
    t = torch.tensor([0.25, 0.5, 0.999, 1.0], dtype=F64)
    close(sde.alpha((6 + t) / 7), (1 - t) * sde.alpha(6 / 7), atol=1e-15)
    close(sde.rates((6 + t) / 7)[0], -7 * float(sde.alpha(6 / 7)))
    close(sde.rates(1.0)[1], 0.0)


@pytest.mark.parametrize("sigmas", [NCSN_SIGMAS, torch.tensor(SHORT_SIGMAS)])
def test_an_ncsn_table_is_exact_at_its_nodes(sigmas):
    sigmas = sigmas.to(F64)
    n = len(sigmas)
    sde = TabulatedVESDE(sigmas)
    nodes = torch.arange(n + 1, dtype=F64) / n
    close(sde.sigma(nodes), torch.cat([torch.zeros(1, dtype=F64), sigmas]))
    fraction = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    close(sde.sigma(fraction / n) ** 2, fraction * sigmas[0] ** 2)  # sigma^2 linear up to the first node
    close(sde.sigma((1 + fraction) / n), sigmas[0] ** (1 - fraction) * sigmas[1] ** fraction)  # then log sigma
    zeros, ones = torch.zeros(n, 1, dtype=F64), torch.ones(n, 1, dtype=F64)
    variance = sde.transition(zeros, nodes[:-1], nodes[1:], ones)[:, 0] ** 2
    close(variance, torch.cat([sigmas[:1] ** 2, sigmas[1:] ** 2 - sigmas[:-1] ** 2]), rtol=1e-10)


def test_coefficients_that_jump():
    sde, t = SDES["stairs"], torch.linspace(0.01, 1, 991, dtype=F64)
    integral = t.clamp_max(0.25) + 8 * (t - 0.25).clamp(0, 0.45) + 3 * (t - 0.7).clamp_min(0)
    close(sde.alpha(t), torch.exp(-integral / 2), rtol=1e-10)
    close(sde.sigma(t), torch.sqrt(-torch.expm1(-integral)), rtol=1e-10)
    close(sde.time(sde.half_log_snr(t)), t, rtol=1e-10)


def test_coefficients_with_a_singular_start():
    # g = t^(-1/4), f = -t: sigma^2 = e^(-t^2) int_0^t u^(-1/2) e^(u^2) du, as its power series
    sde, t = SDES["root"], torch.logspace(-3, 0, 50, dtype=F64)
    series = sum(t ** (2 * k + 0.5) / (math.factorial(k) * (2 * k + 0.5)) for k in range(25))
    close(sde.sigma(t) ** 2, torch.exp(-(t**2)) * series, rtol=1e-10)


# ---- the machinery


@pytest.mark.parametrize("name", SDES)
def test_times_beyond_the_range_stay_finite_and_in_order(name):
    sde = SDES[name]
    ends = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=F64)).clamp(-50, 50)
    low, high = sde.time(ends + torch.tensor([-0.5, 0.5], dtype=F64)).tolist()
    assert low >= float(sde.time(ends[0])) - 1e-12 and high <= float(sde.time(ends[1])) + 1e-12


def test_the_inverse_survives_levels_that_are_equal_to_rounding():
    sde = PathSDE(lambda t: torch.ones_like(t), lambda t: 1 + 1e-4 * t - 0.4999e-4 * t**2)
    levels = sde.half_log_snr(torch.tensor([sde.t_min, 0.5, sde.t_max], dtype=F64))
    # lambda is resolved to 1e-16, its slope is 1e-4 and at the end 2e-8
    assert sde.time(levels).tolist() == pytest.approx([1e-3, 0.5, 1.0], abs=1e-6)
    assert sde.time(torch.tensor([1.0, -1.0], dtype=F64)).tolist() == pytest.approx([1e-3, 1.0], abs=1e-6)


def coefficients(level):
    return level.alpha, level.sigma, level.d_alpha, level.d_sigma, level.g


def test_levels_are_remembered_for_scalars_and_forgotten_by_a_narrowed_process():
    sde = VPSDE()
    t = torch.tensor([0.2, 0.4], dtype=F64)
    sde.warm(t)
    first = sde.at(t[0])
    assert all(isinstance(value, float) for value in coefficients(first))
    assert first is sde.at(0.2)
    assert first.alpha == float(sde.alpha(0.2)) and first.g == float(sde.diffusion(0.2))
    for u in (0.1, 0.5, 0.9, 0.5, 0.1, 0.2):  # each time has its own values, however often others are asked between
        level = sde.at(u)
        assert (level.alpha, level.sigma, level.g) == tuple(float(f(u)) for f in (sde.alpha, sde.sigma, sde.diffusion))
    u = t[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(sde.at(u).alpha, u)
    assert float(slope) == pytest.approx(first.d_alpha, rel=1e-12)
    narrow = sde.narrowed(0.1, 0.5)
    assert (narrow.t_min, narrow.t_max) == (0.1, 0.5) and (sde.t_min, sde.t_max) == (1e-3, 1.0)
    assert narrow.at(0.2) is not sde.at(0.2)
    check_sde(narrow)
    assert (narrow.narrowed(0.0, 9.0).t_min, narrow.narrowed(1e-9, 9.0).t_max) == (0.1, 0.5)


@pytest.mark.parametrize("name", SDES)
def test_a_ratio_of_noise_to_signal_has_one_time_and_its_coefficients(name):
    sde = SDES[name]
    t = torch.linspace(sde.t_min, sde.t_max, 41, dtype=F64)[1:-1]
    there = sde.at_ratio(sde.sigma(t) / sde.alpha(t))
    torch.testing.assert_close(there.t, t, rtol=1e-9, atol=1e-12 * sde.t_max)
    for name, expected in (("alpha", sde.alpha(t)), ("sigma", sde.sigma(t)), ("g", sde.diffusion(t))):
        torch.testing.assert_close(getattr(there, name), expected, rtol=1e-8, atol=1e-10 * float(sde.sigma(sde.t_max)))
    assert sde.at(there.t) is there
    outside = sde.at_ratio(torch.exp(torch.tensor([-60.0, 60.0], dtype=F64))).t
    assert bool(((outside >= sde.t_min) & (outside <= sde.t_max)).all())


def test_levels_of_times_are_computed_once_for_a_tensor_and_anew_where_they_would_differ():
    asked = deque()  # a list that it used would be watched
    rate = torch.tensor(2.0, dtype=F64, requires_grad=True)

    def alpha(t):
        asked.append(len(t) if t.ndim else 1)
        return torch.exp(-(rate if learned else 2.0) * t)

    learned = False
    sde = PathSDE(alpha, lambda t: torch.sqrt(-torch.expm1(-4.0 * t)))
    t = torch.tensor([0.2, 0.4], dtype=F64)
    asked.clear()
    assert sde.at(t).alpha is sde.at(t).alpha and list(asked) == [2]
    assert torch.equal(sde.at(t.clone()).alpha, sde.alpha(t)) and len(asked) == 3
    before = sde.at(t).alpha
    t += 0.1
    torch.testing.assert_close(sde.at(t).alpha, torch.exp(-2.0 * t))
    assert sde.at(t).alpha is not before
    with torch.inference_mode():
        assert torch.equal(sde.at(t + 0.0).alpha, sde.at(t).alpha)
    learned = True  # what depends on weights keeps its gradient, whatever was asked before under no_grad
    u = t.clone()
    with torch.no_grad():
        assert not sde.at(u).alpha.requires_grad
    for _ in range(2):
        (slope,) = torch.autograd.grad(sde.at(u).alpha.sum(), rate)
        torch.testing.assert_close(slope, -(u * torch.exp(-2.0 * u)).sum())
    v = t.clone().requires_grad_()
    for _ in range(2):
        (slope,) = torch.autograd.grad(sde.at(v).alpha.sum(), v)
        torch.testing.assert_close(slope, -2.0 * torch.exp(-2.0 * t))


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_processes_can_be_pickled_rebuilt_and_printed(name):
    sde = BUILT_IN[name]
    t = torch.tensor(sde.t_max * 0.7, dtype=F64)
    sde.at(t)
    copy = pickle.loads(pickle.dumps(sde))
    rebuilt = type(sde)(**sde.config)
    for other in (copy, rebuilt):
        assert (other.t_min, other.t_max) == (sde.t_min, sde.t_max)
        assert coefficients(other.at(t)) == coefficients(sde.at(t))
    assert repr(sde).startswith(type(sde).__name__ + "(") and len(repr(sde)) < 100


def test_the_prior_takes_its_seed_from_torch_where_none_is_given():
    sde = EDMSDE()
    torch.manual_seed(1)
    a, b = sde.prior((4, 2)), sde.prior((4, 2))
    torch.manual_seed(1)
    assert torch.equal(a, sde.prior((4, 2))) and not torch.equal(a, b)
    assert a.dtype == torch.float32 and sde.prior((2, 2), dtype=F64).dtype == F64


# ---- wrong input: what came, what was expected, the cure


def ones(t: Tensor) -> Tensor:
    return torch.ones_like(t)


X = torch.zeros(3, 2)
WRONG = {
    "beta order": (lambda: VPSDE(20.0, 0.1), "beta_min=20.0, beta_max=0.1, expected 0 <= beta_min < beta_max"),
    "beta infinite": (lambda: VPSDE(0.1, math.inf), "both finite"),
    "t_min 0": (lambda: VPSDE(t_min=0.0), "expected 0 < t_min < t_max"),
    "t range": (lambda: SubVPSDE(t_min=0.5, t_max=0.2), r"time range \[0.5, 0.2\]"),
    "t nan": (lambda: VPSDE(t_max=math.nan), "got t_max=nan"),
    "cosine to 1": (lambda: CosineSDE(t_max=1.0), "infinite at t = 1"),
    "cosine s": (lambda: CosineSDE(0.0), "expected a positive offset"),
    "linear to 1": (lambda: LinearPathSDE(t_max=1.5), "use t_max <= 1"),
    "ve order": (lambda: VESDE(50.0, 0.01), "expected 0 < sigma_min < sigma_max"),
    "edm zero": (lambda: EDMSDE(0.0), "expected 0 < sigma_min < sigma_max"),
    "trig scale": (lambda: TrigSDE(-1.0), "sigma_data=-1.0, expected the data's standard deviation"),
    "beta table 0": (lambda: TabulatedVPSDE([0.0, 0.1]), "expected 0 < beta < 1 at every node"),
    "beta table 1 inside": (lambda: TabulatedVPSDE([0.1, 1.0, 0.1]), "the last may be 1"),
    "beta table negative": (lambda: TabulatedVPSDE([0.1, -0.1]), "expected 0 < beta < 1"),
    "beta table nan": (lambda: TabulatedVPSDE([0.1, math.nan]), "got betas=.*NaN"),
    "beta table short": (lambda: TabulatedVPSDE([0.1]), r"betas has shape \(1,\): expected \(N,\)"),
    "beta table empty": (lambda: TabulatedVPSDE([]), "N >= 2"),
    "beta table 2-D": (lambda: TabulatedVPSDE(torch.full((2, 2), 0.1)), r"shape \(2, 2\)"),
    "beta table text": (lambda: TabulatedVPSDE(["a", "b"]), "expected a list of numbers"),
    "sigma table falls": (lambda: TabulatedVESDE([3.0, 2.0, 1.0]), "must be flipped"),
    "sigma table repeats": (lambda: TabulatedVESDE([1.0, 1.0]), "positive and increasing"),
    "path not callable": (lambda: PathSDE(1.0, ones), "got alpha=1.0, expected a function of 1 argument"),
    "path math.cos": (lambda: PathSDE(math.cos, torch.sin), "alpha.t. failed on a tensor of two times"),
    "path numpy": (lambda: PathSDE(lambda t: t.numpy(), ones), "build it of torch functions"),
    "path detached": (
        lambda: PathSDE(lambda t: torch.cos(t.detach()), torch.sin),
        "automatic differentiation of log alpha",
    ),
    "path half detached": (
        lambda: PathSDE(lambda t: torch.cos(t), lambda t: torch.sin(t.detach()) * t),
        "without detach",
    ),
    "path shape": (lambda: PathSDE(lambda t: torch.cos(t)[..., None], torch.sin), "expected one value per time"),
    "path sum": (lambda: PathSDE(lambda t: torch.exp(-t.sum()), torch.sin), "expected an elementwise function"),
    "path cumulative": (lambda: PathSDE(lambda t: torch.exp(-t.cumsum(0) / 9), torch.sin), "elementwise|failed"),
    "path negative": (
        lambda: PathSDE(lambda t: torch.cos(2 * t), torch.sin),
        r"alpha\(.*\) = -.*: expected positive and finite",
    ),
    "path zero": (lambda: PathSDE(lambda t: 1 - t, lambda t: t), "alpha.1. = 0: expected positive"),
    "path nan": (lambda: PathSDE(ones, lambda t: torch.sqrt(t - 0.5)), "sigma.* = nan: expected positive and finite"),
    "path backwards": (lambda: PathSDE(lambda t: t, lambda t: 1.5 - t), "alpha/sigma does not fall"),
    "path constant": (lambda: PathSDE(ones, ones), "alpha/sigma does not fall"),
    "path bump": (
        lambda: PathSDE(ones, lambda t: t + 0.2 * torch.exp(-((t - 0.5) ** 2) / 1e-3)),
        "does not fall between t = 0.5",
    ),
    "path ripple": (lambda: PathSDE(ones, lambda t: 0.1 + t + 0.004 * torch.sin(500 * t)), "rises at t ="),
    "path slope": (
        lambda: PathSDE(ones, lambda t: 1 + t + 0 * torch.sqrt(t - t)),
        "derivative of sigma.t. at t = .* is nan",
    ),
    "negative g": (
        lambda: CoefficientSDE(lambda t: -t, lambda t: t - 0.5),
        r"diffusion\(0.001\) = -0.499: expected .* at least 0",
    ),
    "g of 0": (lambda: CoefficientSDE(lambda t: -t, torch.zeros_like), "expected positive and finite|does not fall"),
    "g stops": (lambda: CoefficientSDE(lambda t: -t, lambda t: (0.5 - t).clamp_min(0)), "does not fall between"),
    "f nan": (
        lambda: CoefficientSDE(lambda t: torch.log(0.5 - t), ones),
        r"drift\(.*\) = nan: expected a finite number",
    ),
    "g infinite": (lambda: CoefficientSDE(lambda t: -t, lambda t: 1 / (1 - t)), r"diffusion\(1\) = inf"),
    "f pole at 0": (lambda: CoefficientSDE(lambda t: -1 / t, ones), "drift.t. cannot be integrated across t = 0"),
    "f shape": (lambda: CoefficientSDE(lambda t: t[..., None], ones), "drift.t. has shape"),
    "sigma_0": (lambda: CoefficientSDE(lambda t: -t, ones, sigma_0=-1.0), "sigma_0=-1.0"),
    "t shape": (lambda: VPSDE().perturb(X, torch.zeros(2), X), r"t has shape \(2,\), but x has 3 samples"),
    "t 2-D": (lambda: VPSDE().drift(X, torch.zeros(3, 2)), r"t has shape \(3, 2\)"),
    "noise shape": (
        lambda: VPSDE().perturb(X, 0.5, torch.zeros(3, 1, 2)),
        r"noise has shape \(3, 1, 2\), but x has \(3, 2\)",
    ),
    "transition noise": (lambda: VPSDE().transition(X, 0.1, 0.2, X[:1]), "expected the same"),
    "transition down": (lambda: VPSDE().transition(X, 0.5, 0.4, X), "goes down from t = 0.5 to t_next = 0.4"),
    "narrowed away": (lambda: VPSDE().narrowed(2.0, 3.0), "time range"),
    "prior shape": (lambda: VPSDE().prior(()), r"expected \(B, \*event\)"),
    "prior number": (lambda: VPSDE().prior(5), "got shape=5, expected a list of whole numbers"),
    "prior negative": (lambda: VPSDE().prior((-1, 2)), "integers of at least 0"),
    "prior seed": (lambda: VPSDE().prior((1, 2), seed=0.5), "got seed=0.5, expected an integer"),
    "prior index": (lambda: VPSDE().prior((2, 2), index=[1]), "index names 1 samples, but the batch has 2"),
    "check_sde of a class": (lambda: check_sde(VPSDE), "a class: make an object of it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name):
    call, words = WRONG[name]
    with pytest.raises(InvalidInputError, match=words):
        call()


# ---- the checks themselves catch what they are for


class Liar(VPSDE):
    """A VP process, one of whose answers is changed."""


def liar(name: str, wrong) -> SDE:
    right = getattr(VPSDE, name)
    return type(Liar)(
        "Liar", (Liar,), {name: lambda self, *args, **kw: wrong(right(self, *args, **kw), *args)}, checked=False
    )()


LIES = {
    "drift factor": ("drift_coefficient", lambda y, t: 2 * y, "d log(alpha)/dt"),
    "diffusion variance": ("diffusion", lambda y, t: y**2, "2 f sigma^2 + g^2"),
    "diffusion sign": ("diffusion", lambda y, t: -y, "diffusion is at least 0"),
    "sigma squared": ("sigma", lambda y, t: y**2, "log(alpha/sigma)"),
    "lambda not half": ("half_log_snr", lambda y, t: 2 * y, "log(alpha/sigma)"),
    "lambda sign": ("half_log_snr", lambda y, t: -y, "falls as t grows"),
    "time off": ("time", lambda y, lam: y * (1 + 1e-7), "time(half_log_snr(t)) = t"),
    "time detached": ("time", lambda y, lam: y.detach(), "time is differentiable"),
    "alpha detached": ("alpha", lambda y, t: y.detach(), "d log(alpha)/dt"),
    "drift detached": ("drift_coefficient", lambda y, t: y.detach(), "drift_coefficient is differentiable"),
    "rates swapped": ("rates", lambda y, t: (y[1], y[0]), "rates()[0]"),
    "sigma rate": ("rates", lambda y, t: (y[0], y[1] * 1.001), "rates()[1]"),
    "couples times": (
        "diffusion",
        lambda y, t: y + 1e-6 * (y - y.flatten()[-1:].squeeze()) if y.numel() else y,
        "fails",
    ),
    "drift twice": ("drift", lambda y, x, t: 2 * y, "drift = f(t) x"),
    "perturb variance": ("perturb", lambda y, x0, t, noise: y + 1e-3 * noise, "perturb = alpha x0 + sigma noise"),
    "transition mean": ("transition", lambda y, x, t, u, noise: y + 1e-3 * x, "mean factor"),
    "transition variance": ("transition", lambda y, x, t, u, noise: y + 1e-3 * noise, "ends on the marginal"),
    "prior unit": ("prior", lambda y, shape: y * 1.1, "the prior's variance"),
    "prior shift": ("prior", lambda y, shape: y + 0.1, "the prior's mean"),
    "prior in batch": ("prior", lambda y, shape: y - 1e-9 * y[:1] if len(y) else y, "depends on (seed, i) alone"),
    "prior density": ("prior_log_prob", lambda y, x: y + 1e-3, "prior_log_prob"),
}


@pytest.mark.parametrize("name", LIES)
def test_check_sde_catches(name):
    function, wrong, words = LIES[name]
    with pytest.raises(LawError) as caught:
        check_sde(liar(function, wrong))
    assert words in str(caught.value) and "fails" in str(caught.value)


def test_times_that_are_warmed_are_computed_together_and_only_when_asked_for():
    from sdegen.core.cache import CachedFunction

    calls = []

    def square(t):
        calls.append(len(t) if t.ndim else 0)
        return (t**2,)

    cached = CachedFunction(square)
    cached.warm(torch.linspace(0, 1, 5, dtype=torch.float64))
    cached.warm(torch.linspace(2, 3, 5, dtype=torch.float64))
    assert calls == []
    assert cached(0.25) == (0.0625,) and cached(torch.tensor(2.5)) == (6.25,) and calls == [10]
    assert cached(7.0) == (49.0,) and calls == [10, 1]
    cached.warm(torch.linspace(0, 1, 5, dtype=torch.float64))  # all of them known
    assert cached(8.0) == (64.0,) and calls == [10, 1, 1]
    assert cached.of_several(torch.tensor([0.5, 11.0, 12.0], dtype=torch.float64)) == [(0.25,), (121.0,), (144.0,)]
    assert calls == [10, 1, 1, 3]
    for k in range(3000):  # grids that nobody asks about do not pile up
        cached.warm(torch.linspace(20 + k, 21 + k, 5, dtype=torch.float64))
    assert len(cached._awaited) <= 8192


@pytest.mark.parametrize("name", SDES)
def test_derivatives_and_axes_of_a_time_are_never_lost_to_what_is_remembered(name):
    sde = SDES[name]
    ts = sde.t_min + (sde.t_max - sde.t_min) * torch.tensor([0.11, 0.37, 0.59, 0.83], dtype=F64)  # no table's nodes
    t = ts[2]
    for of_time, slope in ((lambda u: sde.at(u).alpha, sde.rates(t)[0]), (lambda u: sde.at(u).sigma, sde.rates(t)[1])):
        sde.at(t)  # remembered
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(t, torch.ones_like(t))
            tangent = torch.autograd.forward_ad.unpack_dual(of_time(dual)).tangent
            tangent = torch.zeros_like(t) if tangent is None else tangent  # of a constant
        for found in (torch.func.jvp(of_time, (t,), (torch.ones_like(t),))[1], torch.func.grad(of_time)(t), tangent):
            torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-12)
        several = torch.stack([torch.as_tensor(of_time(u), dtype=F64) for u in ts])
        torch.testing.assert_close(torch.func.vmap(of_time)(ts), several, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.tensor(of_time(t), dtype=F64), several[2])  # and nothing foreign is kept


def test_a_process_whose_rate_begins_at_0_has_a_time_for_no_noise():
    rate = VPSDE(beta_min=0.0)._rate
    for dtype in (torch.float32, torch.float64):
        assert rate.time(torch.tensor([0.0, 1e-6], dtype=dtype))[0] == 0
