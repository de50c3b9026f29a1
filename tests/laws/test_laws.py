"""What samplers make of data whose law is known: exact flows, exact output laws, exact covariances, invariances.

The output laws need no sampling: on Gaussian data every step is affine in the state and in the noise, so
`testing.affine_law` feeds the solver one input at a time and has its mean and variance to rounding. The recursions they
are compared with are typed here from the papers, in plain floats. A few are sampled all the same, 100,000 at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sdegen as sg
from sdegen import testing
from sdegen.models.exact import MixtureModel
from sdegen.testing.doubles import NormalModel, RecordedNoise

F64 = torch.float64
MU, S = 0.7, 0.5
FLOWS = [r.name for r in sg.solvers() if ":" not in r.name and r.kind != "SDE"]


def normals(*shape: int, seed: int = 0) -> Tensor:
    return sg.Noise(seed).normal(shape, 31, dtype=F64, device="cpu")


def marginal(sde: sg.SDE, t: float) -> tuple[float, float]:
    """Mean and variance of x_t for data N(MU, S^2)."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    return alpha * MU, (alpha * S) ** 2 + sigma**2


# ---- flows


@pytest.mark.parametrize("name", ["vp", "sub-vp", "cosine", "linear-path", "ve", "edm", "trig"])
def test_the_flow_carries_a_full_covariance_along_its_axes(name):
    """xh' = mu + (xh - mu) sqrt((C + sh'^2)/(C + sh^2)), over the whole range of noise, by error control."""
    from cases import SDES

    sde = SDES[name]
    mu, c = torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
    model = MixtureModel(sg.GaussianMixture([mu.tolist()], covariances=c), sde)
    values, axes = torch.linalg.eigh(c)

    def spread(t: float) -> Tensor:
        sh = torch.exp(-sde.half_log_snr(t))
        return axes @ torch.diag(torch.sqrt(values + sh**2)) @ axes.T

    z = normals(9, 2)
    x_top = sde.alpha(sde.t_max) * (mu + z @ spread(sde.t_max))
    wanted = sde.alpha(sde.t_min) * (mu + z @ spread(sde.t_min))
    came = sg.sample(model, 9, x_init=x_top, t_span=(sde.t_max, sde.t_min), rtol=1e-9)
    torch.testing.assert_close(came.x, wanted, rtol=0, atol=2e-8)  # ten times the tolerance, the data's std being 1
    back = sg.encode(model, wanted, rtol=1e-9).x
    torch.testing.assert_close(back / x_top.std(), x_top / x_top.std(), rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "cosine", "linear-path", "ve", "edm"])
@pytest.mark.parametrize(
    ("solver", "how"),
    [("adams", {"rtol": 1e-4}), ("adams", {"steps": 6}), ("heun", {"steps": 8}), ("v-adams3", {"steps": 6})],
)
def test_data_of_one_width_are_carried_exactly_at_any_step_in_the_best_coordinates(name, solver, how):
    """xh' = mu + (xh - mu) sqrt((s^2 + sh'^2)/(s^2 + sh^2)): the circular path around the mean (v-adams3: around 0)."""
    from cases import SDES

    sde, mu = SDES[name], 0.0 if solver == "v-adams3" else MU
    model = MixtureModel(sg.GaussianMixture([[mu]], std=S), sde)
    x = sde.prior((5, 1), seed=0, dtype=F64)
    came = sg.sample(model, 5, solver=solver, x_init=x, t_span=(sde.t_max, sde.t_min), **how).x
    (a, sh), (b, sh_next) = frame(sde, sde.t_max), frame(sde, sde.t_min)
    wanted = b * (mu + (x / a - mu) * math.sqrt((S**2 + sh_next**2) / (S**2 + sh**2)))
    torch.testing.assert_close(came, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", ["dopri5", "adams", "bosh3"])
def test_a_flow_on_the_line_keeps_every_samples_quantile(solver):
    """F_t(x_t) does not depend on t: a trajectory in closed form, and not of Gaussian data."""
    mixture = sg.GaussianMixture([[-1.0], [0.5], [2.0]], std=[0.2, 0.1, 0.5], weights=[1, 2, 3])
    sde = sg.VPSDE()
    model = MixtureModel(mixture, sde)

    def quantile(x: Tensor, t: float) -> Tensor:
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        spread = torch.sqrt(alpha**2 * mixture.variances[:, 0] + sigma**2)
        return torch.special.ndtr((x - alpha * mixture.means[:, 0]) / spread) @ mixture.weights

    tol = 1e-6 if solver == "bosh3" else 1e-8
    x = sde.prior((41, 1), seed=4, dtype=F64)
    times = [1.0, 0.5, 0.2, 0.05, 0.01, 0.001]
    path = sg.sample(model, 41, x_init=x, solver=solver, rtol=tol, t_span=(1.0, sde.t_min), save=times)
    level = quantile(x, 1.0)
    end = quantile(path.xs[-1], times[-1])
    assert float((end - level).abs().max()) < 20 * tol  # density up to 2, tolerance in units of the state
    for t, x_t in zip(times, path.xs, strict=True):  # between steps the path is interpolated
        assert float((quantile(x_t, t) - level).abs().max()) < max(20 * tol, 2e-4)


def test_the_flow_of_a_line_is_the_transport_of_its_quantiles_in_every_solver():
    """All flow solvers end on the same closed form, at many steps."""
    mixture = sg.GaussianMixture([[-1.0], [1.5]], std=[0.4, 0.6], weights=[1, 2])
    sde = sg.VPSDE()
    model = MixtureModel(mixture, sde)
    p = torch.linspace(0.05, 0.95, 13, dtype=F64)

    def state(t: float) -> Tensor:
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        spread = torch.sqrt(alpha**2 * mixture.variances[:, 0] + sigma**2)
        low, high = torch.full_like(p, -30.0), torch.full_like(p, 30.0)
        for _ in range(80):
            middle = (low + high) / 2
            level = torch.special.ndtr((middle[:, None] - alpha * mixture.means[:, 0]) / spread) @ mixture.weights
            low, high = torch.where(level < p, middle, low), torch.where(level < p, high, middle)
        return middle[:, None]

    for name in FLOWS:
        solver = sg.make_solver(name)
        n = 300 if solver.order == 1 else 80
        steps = sg.grid(model, n, kind="theta", t_span=(0.9, 0.05))
        came = sg.solve(sg.ProbabilityFlow(model), state(0.9), solver=solver, steps=steps).x
        error = float((came - state(0.05)).abs().max())
        allowed = {"reverse-diffusion": 0.5}.get(name, 0.03 if solver.order == 1 else 5e-3)
        assert error < allowed, (name, error)


# ---- the whole law of stochastic samplers, without sampling

Recursion = Callable[[float, float, float, float], tuple[float, float]]


def law_of(solver: str | sg.Solver, sde: sg.SDE, ts: Tensor, *, eta: float = 1.0) -> tuple[float, float]:
    solver = sg.make_solver(solver) if isinstance(solver, str) else solver
    model = NormalModel(sde, MU, S)
    term = sg.ReverseSDE(model, eta=eta) if eta else sg.ProbabilityFlow(model)
    law = testing.affine_law(solver, term, ts, *marginal(sde, float(ts[0])))
    assert law is not None
    return law


def along(ts: Tensor, sde: sg.SDE, step: Recursion) -> tuple[float, float]:
    """Mean and variance after all steps of M' = step(M, V, t, t')."""
    mean, variance = marginal(sde, float(ts[0]))
    for t, t_next in pairwise(ts.tolist()):
        mean, variance = step(mean, variance, t, t_next)
    return mean, variance


def assert_law(came: tuple[float, float], wanted: tuple[float, float]) -> None:
    """To 1e-9: some hundred affine steps in double precision."""
    assert came == pytest.approx(wanted, rel=1e-9, abs=1e-11)


def frame(sde: sg.SDE, t: float) -> tuple[float, float]:
    """alpha and sigma/alpha."""
    alpha = float(sde.alpha(t))
    return alpha, float(sde.sigma(t)) / alpha


def family(sde: sg.SDE, r_of: Callable[[float, float], float]) -> Recursion:
    """xh' = D + r (xh - D) + sqrt(sh'^2 - r^2 sh^2) z: A = (s^2 + r sh^2)/P, B = (1 - A) mu, C = sh'^2 - r^2 sh^2."""

    def step(mean: float, variance: float, t: float, t_next: float) -> tuple[float, float]:
        (alpha, sh), (alpha_next, sh_next) = frame(sde, t), frame(sde, t_next)
        r = r_of(sh, sh_next)
        a = (S**2 + r * sh**2) / (S**2 + sh**2)
        mean_hat, variance_hat = mean / alpha, variance / alpha**2
        mean_hat = a * mean_hat + (1 - a) * MU
        variance_hat = a**2 * variance_hat + sh_next**2 - r**2 * sh**2
        return alpha_next * mean_hat, alpha_next**2 * variance_hat

    return step


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.VESDE(), sg.CosineSDE()], ids=["vp", "ve", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.5])
def test_law_of_the_first_order_family(sde, eta):
    """r = (sh'/sh)^(1 + eta^2): DDIM at 0, DDPM's ancestral step at 1."""
    ts = sg.grid(sde, 30, kind="lambda", t_span=(sde.t_max, sde.t_min))
    wanted = along(ts, sde, family(sde, lambda sh, sh_next: (sh_next / sh) ** (1 + eta**2)))
    assert_law(law_of("ancestral", sde, ts, eta=eta), wanted)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=["vp", "edm"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_law_of_ddim_with_the_papers_eta(sde, eta):
    """C = eta^2 sh'^2 (1 - sh'^2/sh^2), r = sqrt(sh'^2 - C)/sh."""

    def r_of(sh: float, sh_next: float) -> float:
        return math.sqrt(sh_next**2 - eta**2 * sh_next**2 * (1 - (sh_next / sh) ** 2)) / sh

    ts = sg.grid(sde, 30, kind="theta", t_span=(sde.t_max, sde.t_min))
    assert_law(law_of("ddim", sde, ts, eta=eta), along(ts, sde, family(sde, r_of)))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_law_of_euler_maruyama(eta):
    """Along VP, b = beta (t - t'), k = (1 + eta^2)/2: A = 1 + b/2 - k b/P, B = k b alpha mu/P, C = eta^2 b."""
    sde = sg.VPSDE()
    ts = sg.grid(sde, 60, kind="theta", t_span=(sde.t_max, sde.t_min))

    def step(mean: float, variance: float, t: float, t_next: float) -> tuple[float, float]:
        bh, (m, p) = float(sde.beta(t)) * (t - t_next), marginal(sde, t)
        pull = (1 + eta**2) / 2 * bh / p
        a = 1 + bh / 2 - pull
        return a * mean + pull * m, a**2 * variance + eta**2 * bh

    assert_law(law_of("euler-maruyama", sde, ts, eta=eta), along(ts, sde, step))


def test_law_of_euler_maruyama_upward():
    """The forward SDE from data: M' = (1 - beta h/2) M, V' = (1 - beta h/2)^2 V + beta h."""
    sde = sg.VPSDE()
    ts = torch.linspace(0.0, 1.0, 41, dtype=F64)
    mean, variance = MU, S**2
    for t, t_next in pairwise(ts.tolist()):
        bh = float(sde.beta(t)) * (t_next - t)
        mean, variance = (1 - bh / 2) * mean, (1 - bh / 2) ** 2 * variance + bh
    came = testing.affine_law(sg.make_solver("euler-maruyama"), sg.ForwardSDE(sde), ts, MU, S**2)
    assert_law(came, (mean, variance))


def reverse_diffusion_vp(sde: sg.TabulatedVPSDE, eta: float = 1.0) -> Recursion:
    """With k = (1 + eta^2)/2: A = 2 - sqrt(1 - beta) - k beta/P, B = k beta alpha mu/P, C = eta^2 beta, at the nodes."""

    def step(mean: float, variance: float, t: float, t_next: float) -> tuple[float, float]:
        beta, (m, p) = float(sde.betas[round(t * len(sde.betas)) - 1]), marginal(sde, t)
        pull = (1 + eta**2) / 2 * beta / p
        a = 2 - math.sqrt(1 - beta) - pull
        return a * mean + pull * m, a**2 * variance + eta**2 * beta

    return step


def reverse_diffusion_ve(sde: sg.SDE, eta: float = 1.0) -> Recursion:
    """With Delta = sh^2 - sh'^2, k as above: A = 1 - k Delta/P, B = k mu Delta/P, C = eta^2 Delta."""

    def step(mean: float, variance: float, t: float, t_next: float) -> tuple[float, float]:
        delta = float(sde.sigma(t)) ** 2 - float(sde.sigma(t_next)) ** 2
        a = 1 - (1 + eta**2) / 2 * delta / marginal(sde, t)[1]
        return a * mean + (1 - a) * MU, a**2 * variance + eta**2 * delta

    return step


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_law_of_reverse_diffusion(eta):
    table = sg.TabulatedVPSDE(torch.linspace(1e-3, 0.2, 50, dtype=F64))
    nodes = torch.arange(50, 0, -1, dtype=F64) / 50
    assert_law(
        law_of("reverse-diffusion", table, nodes, eta=eta), along(nodes, table, reverse_diffusion_vp(table, eta))
    )
    ve = sg.VESDE()
    ts = sg.grid(ve, 60, kind="lambda", t_span=(ve.t_max, ve.t_min))
    assert_law(law_of("reverse-diffusion", ve, ts, eta=eta), along(ts, ve, reverse_diffusion_ve(ve, eta)))


@pytest.mark.parametrize("corrections", [1, 3])
def test_law_of_predictor_corrector(corrections):
    """K Langevin steps at t with a = 2 c snr^2 sigma^2, each A = 1 - a/P, B = a m/P, C = 2a; then reverse diffusion."""
    snr = 0.2
    table = sg.TabulatedVPSDE(torch.linspace(1e-3, 0.2, 50, dtype=F64))
    ve = sg.VESDE()
    for sde, ts, predict in (
        (table, torch.arange(50, 0, -1, dtype=F64) / 50, reverse_diffusion_vp(table)),
        (ve, sg.grid(ve, 60, kind="lambda", t_span=(ve.t_max, ve.t_min)), reverse_diffusion_ve(ve)),
    ):

        def step(mean, variance, t, t_next, sde=sde, predict=predict):
            m, p = marginal(sde, t)
            c = 1.0 if isinstance(sde, sg.VESDE) else 1 - float(sde.betas[round(t * 50) - 1])
            a = 2 * c * snr**2 * float(sde.sigma(t)) ** 2
            for _ in range(corrections):
                mean, variance = (1 - a / p) * mean + a / p * m, (1 - a / p) ** 2 * variance + 2 * a
            return predict(mean, variance, t, t_next)

        solver = sg.make_solver("predictor-corrector", snr=snr, corrections=corrections)
        assert_law(law_of(solver, sde, ts), along(ts, sde, step))


@pytest.mark.parametrize("sde", [sg.VESDE(), sg.VPSDE()], ids=["ve", "vp"])
def test_law_of_annealed_langevin(sde):
    """K steps of e = 2a at every level, the last included: rho = 1 - e/(2P), V_inf = P/(1 - e/(4P)),

    V <- V_inf + rho^(2K) (V - V_inf), M <- mu + rho^K (M - mu), of x/alpha.
    """
    k, epsilon = 4, 2e-5
    ts = sg.grid(sde, 25, kind="lambda", t_span=(sde.t_max, sde.t_min))
    sh_min = frame(sde, sde.t_min)[1]
    alpha = frame(sde, float(ts[0]))[0]
    mean, variance = marginal(sde, float(ts[0]))
    mean, variance = mean / alpha, variance / alpha**2
    for t in ts.tolist():
        sh = frame(sde, t)[1]
        p, e = S**2 + sh**2, 2 * epsilon * (sh / sh_min) ** 2
        rho, limit = 1 - e / (2 * p), p / (1 - e / (4 * p))
        mean, variance = MU + rho**k * (mean - MU), limit + rho ** (2 * k) * (variance - limit)
    alpha = frame(sde, float(ts[-1]))[0]
    came = law_of(sg.make_solver("langevin", epsilon=epsilon, corrections=k), sde, ts)
    assert_law(came, (alpha * mean, alpha**2 * variance))


@pytest.mark.parametrize("name", ["vp", "linear-path", "ve"])
@pytest.mark.parametrize("solver", ["karras-sde", "predictor-corrector", "d-adams2-sde", "heun-sde"])
def test_small_steps_have_the_datas_law_along_every_process(solver, name):
    """The misses of mean and variance, in units of the marginal's, fall with the steps, along any process."""
    from cases import SDES

    sde = SDES[name]
    wanted = marginal(sde, sde.t_min)

    def miss(n: int) -> float:
        ts = sg.grid(sde, n, kind="lambda", t_span=(sde.t_max, sde.t_min))
        mean, variance = law_of(solver, sde, ts)
        return max(abs(mean - wanted[0]) / wanted[1] ** 0.5, abs(variance / wanted[1] - 1))

    few, many = miss(40), miss(120)
    assert many < 0.1 and many < 0.45 * few


@pytest.mark.parametrize("name", ["ancestral", "euler-maruyama", "predictor-corrector"])
def test_samples_have_that_law(name):
    """100,000 samples, mean and variance within four standard errors: the noise is as white as it says."""
    sde, n = sg.VPSDE(), 100_000
    model = NormalModel(sde, MU, S)
    ts = sg.grid(sde, 20, kind="theta", t_span=(sde.t_max, sde.t_min))
    mean, variance = marginal(sde, sde.t_max)
    x = mean + math.sqrt(variance) * normals(n, 1)
    came = sg.solve(sg.ReverseSDE(model), x, solver=name, steps=ts, noise=5).x[:, 0]
    wanted_mean, wanted_variance = law_of(name, sde, ts)
    assert abs(float(came.mean()) - wanted_mean) < 4 * math.sqrt(wanted_variance / n)
    assert abs(float(came.var()) / wanted_variance - 1) < 4 * math.sqrt(2 / n)
    kurtosis = float(((came - came.mean()) ** 4).mean() / came.var() ** 2)
    assert abs(kurtosis - 3) < 4 * math.sqrt(24 / n)


def test_the_norm_rule_is_the_papers_algorithm_for_a_single_sample():
    """a = 2 c (snr |z|/|s|)^2 with both norms of the sample (Song et al. 2021, algorithms 4 and 5, batch of one)."""
    sde, snr = sg.VESDE(), 0.16
    mixture = sg.GaussianMixture([[1.0, -1.0, 0.5]], std=0.4)
    model = MixtureModel(mixture, sde)
    ts = sg.grid(sde, 6, kind="lambda", t_span=(0.8, 0.3))
    x = normals(1, 3) * 10
    recorded = RecordedNoise(3)
    solver = sg.make_solver("predictor-corrector", snr=snr, rule="norm")
    came = sg.solve(sg.ReverseSDE(model), x, solver=solver, steps=ts, noise=recorded).x
    z = iter(recorded.known.values())
    for t, t_next in pairwise(ts.tolist()):
        noise, score = next(z), model.score(x, t)
        size = 2 * (snr * float(noise.norm()) / float(score.norm())) ** 2
        x = x + size * score + math.sqrt(2 * size) * noise
        delta = float(sde.sigma(t)) ** 2 - float(sde.sigma(t_next)) ** 2
        x = x + delta * model.score(x, t) + math.sqrt(delta) * next(z)
    torch.testing.assert_close(came, x, rtol=1e-11, atol=1e-11)


# ---- any data law


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_one_steps_covariance_on_any_data(eta):
    """Var(xh') = target - (1 - r)^2 E[Var(x0|xh)], E[Var(x0|xh)] = sh^2 (1 - E eps^2), by quadrature over the line."""
    mixture = sg.GaussianMixture([[-1.0], [0.5], [2.0]], std=[0.2, 0.3, 0.5], weights=[1, 2, 3])
    sde = sg.VPSDE()
    model = MixtureModel(mixture, sde)
    variance_0 = float(mixture.covariance)
    for t, t_next in ((0.9, 0.3), (0.4, 0.35), (0.3, 0.05)):
        (_, sh), (alpha_next, sh_next) = frame(sde, t), frame(sde, t_next)
        x = torch.linspace(-12, 14, 20001, dtype=F64)[:, None]  # the trapezoidal rule, exact here to rounding
        weight = torch.exp(model.log_prob(x, t)) * float(x[1] - x[0])
        term = sg.ReverseSDE(model, eta=eta) if eta else sg.ProbabilityFlow(model)
        steps = torch.tensor([t, t_next], dtype=F64)
        out = [
            sg.solve(term, x, solver="ancestral", steps=steps, noise=_Constant(z)).x[:, 0] / alpha_next
            for z in (0.0, 1.0)
        ]
        added = float((out[1] - out[0]).square().mean())
        mean = float(weight @ out[0])
        came = float(weight @ (out[0] - mean) ** 2) + added
        eps = model(x, t).noise[:, 0]
        r = (sh_next / sh) ** (1 + eta**2)
        left = sh**2 * (1 - float(weight @ eps**2))
        assert float(weight.sum()) == pytest.approx(1, abs=1e-9)
        assert mean == pytest.approx(float(mixture.mean), rel=1e-8)
        assert came == pytest.approx(variance_0 + sh_next**2 - (1 - r) ** 2 * left, rel=1e-8)


class _Constant(sg.Noise):
    """Every normal is the same number."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def normal(self, shape, *address, dtype, device):
        return torch.full(tuple(shape), self.value, dtype=dtype, device=device)


# ---- names for the same thing


def test_heun_along_edm_is_karras_deterministic_sampler():
    """Algorithm 1 of Karras et al. 2022 typed from the paper: Heun in sigma, its last step, to 0, Euler's."""
    mixture = sg.GaussianMixture([[1.0, 0.0], [-1.0, 1.0]], std=[0.2, 0.4])
    n, rho = 18, 7.0
    low, high = 0.002, 80.0
    model = MixtureModel(mixture, sg.EDMSDE(low, high))
    i = torch.arange(n, dtype=F64)
    sigmas = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    torch.testing.assert_close(sg.grid(model, n, kind="karras")[:-1], sigmas, rtol=1e-13, atol=0)
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=F64)])
    x = start = normals(5, 2) * high
    for k in range(n):
        here, there = float(sigmas[k]), float(sigmas[k + 1])
        d = (x - mixture.denoise(x, 1.0, here)[1]) / here
        x_next = x + (there - here) * d
        if there != 0:
            d_next = (x_next - mixture.denoise(x_next, 1.0, there)[1]) / there
            x_next = x + (there - here) * (d + d_next) / 2
        x = x_next
    came = sg.solve(sg.ProbabilityFlow(model), start, solver="heun", steps=sg.grid(model, n, kind="karras"))
    torch.testing.assert_close(came.x, x, rtol=0, atol=1e-11)
    assert came.nfe.tolist() == [2 * n - 1] * 5


@pytest.mark.parametrize("churn", [3.0, 8.0])  # churn/n below and above the most, sqrt(2) - 1
def test_churn_is_karras_stochastic_sampler(churn):
    """Algorithm 2 of Karras et al. 2022 typed from the paper."""
    mixture = sg.GaussianMixture([[1.0, 0.0], [-1.0, 1.0]], std=[0.2, 0.4])
    model = MixtureModel(mixture, sg.EDMSDE(0.01, 100.0))
    n, s_min, s_max, s_noise = 12, 0.05, 30.0, 1.003
    ts = torch.cat([sg.grid(model, n, kind="karras", t_span=(60.0, 0.01))[:n], torch.zeros(1, dtype=F64)])
    x = start = normals(5, 2) * 60
    recorded = RecordedNoise(6)
    solver = sg.make_solver("karras-sde", churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    came = sg.solve(sg.ReverseSDE(model), start, solver=solver, steps=ts, noise=recorded).x
    draws = iter(recorded.known.values())
    for here, there in pairwise(ts.tolist()):
        gamma = min(churn / n, math.sqrt(2) - 1) if s_min <= here <= s_max and there > 0 else 0.0
        hat = here * (1 + gamma)
        if gamma:
            x = x + math.sqrt(hat**2 - here**2) * s_noise * next(draws)
        d = (x - mixture.denoise(x, 1.0, hat)[1]) / hat
        x_next = x + (there - hat) * d
        if there != 0:
            d_next = (x_next - mixture.denoise(x_next, 1.0, there)[1]) / there
            x_next = x + (there - hat) * (d + d_next) / 2
        x = x_next
    torch.testing.assert_close(came, x, rtol=0, atol=1e-10)


# ---- invariances

MIXTURE = sg.GaussianMixture([[1.0, 0.4], [-0.8, 0.9], [0.2, -1.0]], std=[0.3, 0.35, 0.25], weights=[1, 2, 1.5])
IN_X_OVER_ALPHA = [
    name
    for name in (r.name for r in sg.solvers() if ":" not in r.name)
    if getattr(sg.make_solver(name), "needs_model", 0)
]


def frame_result(name: str, sde: sg.SDE, *, levels: Tensor, mixture: sg.GaussianMixture = MIXTURE) -> Tensor:
    """x'/alpha' that a solver makes, along a process, of the same states x/alpha on the same grid of lambda."""
    model = MixtureModel(mixture, sde)
    ts = sde.time(levels)
    x = normals(6, 2) * float(torch.exp(-levels[0])) * sde.alpha(ts[0])
    solver = sg.make_solver(name)
    stochastic = solver.kind == "SDE" or solver.default_eta > 0
    term = sg.ReverseSDE(model) if stochastic else sg.ProbabilityFlow(model)
    came = sg.solve(term, x, solver=solver, steps=ts, noise=_ByStep(3, ts))
    return came.x / sde.alpha(ts[-1])


class _ByStep(sg.Noise):
    """Noise addressed by the number of the node instead of its time, so that processes can share it."""

    def __init__(self, seed: int, ts: Tensor) -> None:
        super().__init__(seed)
        self.nodes = {t: k for k, t in enumerate(ts.tolist())}

    def normal(self, shape, *address, dtype, device):
        numbers = [self.nodes[float(a)] if isinstance(a, Tensor) else int(a) for a in address]
        return super().normal(shape, *numbers, dtype=dtype, device=device)


LEVELS = torch.linspace(-3.0, 3.0, 16, dtype=F64)
# in the frame x/alpha a step of these depends on alpha itself: they are discretisations in x
OF_X = ("reverse-diffusion", "predictor-corrector", "deis-tab3")


@pytest.mark.parametrize("name", [n for n in IN_X_OVER_ALPHA if n not in OF_X])
def test_every_process_gives_the_same_samples_on_the_same_levels(name):
    one = frame_result(name, sg.VPSDE(t_min=1e-4), levels=LEVELS)
    for sde in (sg.VESDE(0.001, 100.0), sg.EDMSDE(), sg.LinearPathSDE(), sg.TrigSDE(0.7)):
        other = frame_result(name, sde, levels=LEVELS)
        # 1e-12, and what the processes' inverse of lambda leaves
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [n for n in IN_X_OVER_ALPHA if n != "deis-tab3"])
def test_another_clock_changes_nothing(name):
    """The same process by another time, u -> t = u^2."""
    vp = sg.VPSDE()
    other = sg.PathSDE(lambda u: vp.alpha(u**2), lambda u: vp.sigma(u**2), t_min=1e-3**0.5, t_max=1.0)
    levels = torch.linspace(-3.0, 2.5, 16, dtype=F64)
    came, wanted = (frame_result(name, sde, levels=levels) for sde in (other, vp))
    torch.testing.assert_close(came, wanted, rtol=1e-9, atol=1e-9)  # PathSDE's inverse of lambda is Newton's


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "unipc3", "v-adams3", "ancestral", "euler-maruyama"])
def test_turning_and_scaling_the_data_turns_and_scales_the_samples(name):
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
    sde = sg.VPSDE()
    solver = sg.make_solver(name)
    ts = sg.grid(sde, 12, kind="lambda", t_span=(0.8, 0.05))

    def run(mixture: sg.GaussianMixture, x: Tensor, noise: sg.Noise) -> Tensor:
        model = MixtureModel(mixture, sde)
        term = sg.ReverseSDE(model) if solver.default_eta else sg.ProbabilityFlow(model)
        return sg.solve(term, x, solver=solver, steps=ts, noise=noise).x

    class Turned(sg.Noise):
        def normal(self, shape, *address, dtype, device):
            return super().normal(shape, *address, dtype=dtype, device=device) @ turn.T

    x = normals(6, 2)
    turned = sg.GaussianMixture(MIXTURE.means @ turn.T, std=[0.3, 0.35, 0.25], weights=[1, 2, 1.5])
    came = run(turned, x @ turn.T, Turned(4))
    torch.testing.assert_close(came, run(MIXTURE, x, sg.Noise(4)) @ turn.T, rtol=0, atol=1e-12)


def test_scaling_space_is_scaling_noise():
    """Data three times as large and noise levels three times as high: states three times as large."""
    big = sg.GaussianMixture(3 * MIXTURE.means, std=[0.9, 1.05, 0.75], weights=[1, 2, 1.5])
    for name in ("ddim", "unipc3", "heun", "ancestral"):
        results = []
        for scale, mixture in ((1.0, MIXTURE), (3.0, big)):
            model = MixtureModel(mixture, sg.EDMSDE(0.01 * scale, 20.0 * scale))
            x = normals(6, 2) * 20 * scale
            term = sg.ReverseSDE(model) if name == "ancestral" else sg.ProbabilityFlow(model)
            ts = (scale * torch.logspace(math.log10(20), -2, 15, dtype=F64)).clamp(model.sde.t_min, model.sde.t_max)
            results.append(sg.solve(term, x, solver=name, steps=ts, noise=_ByStep(2, ts)).x / scale)
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-11)


def test_gaussian_data_of_the_gauges_scale_are_solved_exactly_in_one_step():
    """TrigSDE(s) and N(0, s^2 I): the flow does not move x at all, whatever Runge-Kutta or Adams method follows it."""
    s = 0.6
    model = MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=s), sg.TrigSDE(s))
    x = normals(5, 2)
    for name in ("euler", "heun", "rk4", "bosh3", "dopri5", "adams", "v-adams3"):
        ts = torch.tensor([model.sde.t_max, model.sde.t_min], dtype=F64)
        came = sg.solve(sg.ProbabilityFlow(model), x, solver=name, steps=ts).x
        torch.testing.assert_close(came, x, rtol=1e-12, atol=1e-12)


def test_a_point_is_hit_in_one_step_by_the_first_order_family():
    """The prediction of a point mass never changes: x0 in one step, from any noise."""
    point = sg.GaussianMixture([[0.3, -2.0]], std=0.0)
    for sde in (sg.VPSDE(), sg.EDMSDE()):
        model = MixtureModel(point, sde)
        x = normals(5, 2) * float(sde.sigma(sde.t_max))
        for name in ("ddim", "ancestral"):
            came = sg.solve(sg.ReverseSDE(model), x, solver=name, steps=[sde.t_max, 0.0], noise=1).x
            torch.testing.assert_close(came, point.means.expand(5, 2), rtol=1e-12, atol=1e-12)
