"""Discrete models: tables, their limits, every solver along them, the papers' objectives."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

import sdegen as sg
from sdegen import discrete
from sdegen.training.losses import dsm_loss

F64 = torch.float64
LINE = sg.GaussianMixture([[-1.0], [0.5], [2.0]], std=[0.2, 0.1, 0.5], weights=[1.0, 2.0, 3.0])
PAIR = sg.MixtureModel(LINE, sg.TabulatedVPSDE([0.1, 0.2]))
PLANE = sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.5)


def close(a, b, tolerance: float) -> None:
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=0, atol=tolerance)


# ---- tables


def test_linear_betas_are_ddpms():
    table = discrete.betas("linear")
    close(table, torch.linspace(1e-4, 0.02, 1000, dtype=F64), 1e-17)
    last = float(torch.cumprod(1 - table, 0)[-1])
    assert last == pytest.approx(4.0358e-5, rel=1e-4)
    assert last == pytest.approx(math.prod(1 - 1e-4 - 0.0199 * i / 999 for i in range(1000)), rel=1e-12)


def test_linear_betas_are_the_continuous_rate_at_any_n():
    """beta_i = beta((i - 1)/(n - 1))/n, beta(t) = 0.1 + 19.9 t."""
    for n in (50, 1000, 4000):
        u = torch.linspace(0, 1, n, dtype=F64)
        close(discrete.betas("linear", n), (0.1 + 19.9 * u) / n, 1e-15)


def test_scaled_linear_betas_are_latent_diffusions():
    close(discrete.betas("scaled-linear").sqrt(), torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64), 1e-16)


def test_sigmoid_betas():
    table = discrete.betas("sigmoid", 201, first=1e-3, last=0.1)
    close(table[100], (1e-3 + 0.1) / 2, 1e-15)
    close(table[[0, -1]] - torch.tensor([1e-3, 0.1]).double(), 0.099 / (1 + math.exp(6)) * torch.tensor([1, -1]), 1e-8)


def test_cosine_betas_are_clipped_at_the_last_node_only():
    table, t = discrete.betas("cosine"), torch.linspace(0, 1, 1001, dtype=F64)
    c = torch.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2
    assert (table == 0.999).nonzero().flatten().tolist() == [999]
    close(torch.cumprod(1 - table, 0)[:-1], (c / c[0])[1:-1], 1e-12)


@pytest.mark.parametrize("name", ["linear", "scaled-linear", "sigmoid", "cosine"])
def test_zero_terminal_snr_is_lin_et_al(name):
    """Algorithm 1 re-typed: alpha_1 stays, alpha_N is exactly 0, what is between is shifted and scaled."""
    table = discrete.betas(name, 100)
    alpha = torch.cumprod(1 - table, 0).sqrt()
    first, last = alpha[0].clone(), alpha[-1].clone()
    wanted = (alpha - last) * first / (first - last)
    rescaled = discrete.betas(name, 100, zero_snr=True)
    assert rescaled[-1] == 1.0
    close(torch.cumprod(1 - rescaled, 0).sqrt(), wanted, 1e-14)
    sde = sg.TabulatedVPSDE(rescaled)
    assert sde.alpha(1.0) == 0 and sde.half_log_snr(1.0) == -math.inf
    close(sde.alpha(sde.nodes), wanted, 1e-14)


def test_sigmas_are_geometric():
    table = discrete.sigmas(10, sigma_min=0.01, sigma_max=1.0)  # NCSN's
    close(table[1:] / table[:-1], torch.full((9,), 100 ** (1 / 9), dtype=F64), 1e-12)
    assert table[0] == 0.01 and table[-1] == 1.0


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_are_diffusers(spacing):
    diffusers = pytest.importorskip("diffusers")
    sde = sg.TabulatedVPSDE(discrete.betas())
    for s in (1, 3, 7, 50, 64, 999, 1000):
        scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(s)
        ts = discrete.spaced(sde, s, spacing=spacing)
        assert ts[-1] == 0 and len(ts) == s + 1
        expected = scheduler.timesteps + 1
        if spacing == "linspace" and s == 1:
            expected = torch.tensor([1])  # as it is: one step from the first node
        assert torch.round(ts[:-1] * 1000).to(torch.int64).tolist() == expected.tolist(), s
        assert set(ts[:-1].tolist()) <= set(sde.nodes.tolist())  # the very floats


def test_leading_takes_an_offset():
    ts = discrete.spaced(sg.TabulatedVPSDE(discrete.betas()), 50, offset=1)
    assert torch.round(ts[[0, -2]] * 1000).tolist() == [982, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discrete.betas("linear", 15), "pass first= and last="),
        (lambda: discrete.betas("line"), "'linear'"),
        (lambda: discrete.betas("linear", 0), "positive integer"),
        (lambda: discrete.zero_terminal_snr([0.1, 1.2]), "in \\(0, 1\\]"),
        (lambda: discrete.sigmas(5, sigma_min=2.0, sigma_max=1.0), "sigma_min"),
        (lambda: discrete.spaced(sg.VPSDE(), 5), "no table"),
        (lambda: discrete.spaced(sg.TabulatedVPSDE([0.1, 0.2]), 3), "2 nodes"),
        (lambda: discrete.spaced(sg.TabulatedVPSDE([0.1, 0.2]), 2, spacing="even"), "'leading'"),
        (lambda: discrete.spaced(sg.TabulatedVPSDE([0.1, 0.2]), 2, offset=1), "offset"),
        (lambda: discrete.ddpm(sg.MixtureModel(LINE, sg.TabulatedVPSDE([0.1, 0.2])), 3, variance="big"), "'small'"),
        (lambda: discrete.ddpm(sg.MixtureModel(LINE, sg.TabulatedVPSDE([0.1, 0.2])), 3, variance="learned"), "Learned"),
        (lambda: discrete.ddpm(sg.MixtureModel(LINE, sg.VPSDE()), 3), "no table"),
        (lambda: discrete.ddim(sg.MixtureModel(LINE, sg.TabulatedVPSDE([0.1, 0.2])), 3, eta=1.5), "eta"),
        (lambda: discrete.annealed_langevin(sg.MixtureModel(LINE, sg.VESDE()), 3), "no table"),
        (lambda: discrete.counting("noise").c_noise(sg.VPSDE(), torch.tensor(0.5)), "no table of nodes"),
        (lambda: discrete.betas("linear", 10, first="a"), "first='a'"),
        (lambda: discrete.betas("cosine", 10, most=1.5), "most in"),
        (lambda: discrete.betas("cosine", 10, offset=-2.0), "offset >= 0"),
        (lambda: discrete.ddpm(PAIR, 3, eta=0.5), "eta= is ddpm's own"),
        (lambda: discrete.ddim(PAIR, 3, solver="adams"), "solver= is ddim's own"),
        (lambda: discrete.ddim(PAIR, 3, steps=[2, 1]), "node i of 2 is at i/2"),
        (lambda: discrete.ddim(PAIR, 3, steps=torch.tensor([2, 1])), "node numbers"),
        (lambda: discrete.ddim_encode(PAIR, torch.zeros(3, 1), eta=1.0), "eta= is ddim_encode's"),
        (lambda: discrete.annealed_langevin(PAIR, 3, steps=5), "steps= is annealed_langevin's"),
        (lambda: discrete.langevin(PAIR, 3, t=0.0, step=0.1, n=2), r"one time in \[0.5, 1\]"),
        (lambda: discrete.langevin(PAIR, 3, t=0.5, step="a", n=2), "step='a'"),
        (lambda: discrete.langevin(PAIR, 3, t=0.5, step=0.0, n=2), "positive number"),
        (lambda: discrete.langevin(3, 3, t=0.5, step=0.1, n=2), "got model=3"),
        (lambda: discrete.ddpm_loss(PAIR, torch.zeros(3, 1), t=3), "expected 1 to 2 as integers"),
        (lambda: discrete.ddpm_loss(PAIR, torch.zeros(3, 1), t="uniform"), "t='uniform'"),
        (lambda: discrete.ddpm_loss(PAIR, torch.zeros(3, 1), t=torch.ones(3, dtype=torch.bool)), "node numbers 1 to 2"),
        (lambda: discrete.ddpm_loss(PAIR, torch.zeros(3, 1), t=torch.ones(2, dtype=torch.long)), r"expected one node for each sample, \(3,\)"),
        (lambda: discrete.ddpm_loss(PAIR, torch.zeros(3, 1), t=0.7), "of nodes of the table"),
        (lambda: discrete.vlb(PAIR, torch.zeros(3, 1), variance="learned", levels=3), "LearnedVariance"),
        (lambda: discrete.hybrid_loss(PAIR, torch.zeros(3, 1), levels=3), "LearnedVariance"),
        (lambda: discrete.LossAware(discrete.ddpm_loss, 5)(PAIR, torch.zeros(3, 1)), "5 nodes, the model's table has 2"),
        (lambda: discrete.LossAware(discrete.ddpm_loss, 2.5), "n=2.5"),
        (lambda: discrete.LossAware(None, 2), "got loss=None"),
    ],
)  # fmt: skip
def test_wrong_calls_say_what_was_wanted(call, message):
    with pytest.raises(sg.InvalidInputError, match=message):
        call()


def test_large_and_learned_variances_are_for_eta_1():
    model = sg.MixtureModel(LINE, sg.TabulatedVPSDE(discrete.betas("linear", 40)))
    solver = sg.make_solver("ancestral", noise="ddpm-large")
    with pytest.raises(sg.InvalidInputError, match="eta=1"):
        sg.sample(model, 3, solver=solver, eta=0.5, steps=5)


def test_networks_that_count_get_whole_numbers_at_the_nodes():
    heard = []

    class Net(nn.Module):
        def forward(self, x, t):
            heard.append(t)
            return torch.zeros_like(x)

    model = sg.Denoiser(Net(), sg.TabulatedVPSDE(discrete.betas()), parametrization=discrete.counting("noise"))
    x = torch.zeros(1000, 1, dtype=F64)
    model(x, model.sde.nodes)
    assert torch.equal(heard[-1], torch.arange(1000, dtype=F64))
    model(x[:1], 0.0123)  # between nodes: linear
    close(heard[-1], [11.3], 1e-12)


# ---- limits


def test_ddpms_table_tends_to_linear_vp_like_1_over_n():
    """alpha_bar at fixed times, and alpha_bar_N = 4.04e-5 against 4.32e-5 at N = 1000."""
    vp, errors = sg.VPSDE(), []
    for n in (250, 500, 1000, 2000):
        sde = sg.TabulatedVPSDE(discrete.betas("linear", n))
        t = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0], dtype=F64)
        errors.append(float((sde.half_log_snr(t) - vp.half_log_snr(t)).abs().max()))
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.9 < r < 2.1 for r in ratios), ratios


def test_ncsns_table_tends_to_ve_like_1_over_n():
    """sigma at node i is VE's at (i - 1)/(N - 1), so the gap at fixed t closes like 1/N."""
    ve, errors = sg.VESDE(), []
    for n in (125, 250, 500, 1000):
        sde = sg.TabulatedVESDE(discrete.sigmas(n))
        t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64)
        errors.append(float((sde.half_log_snr(t) - ve.half_log_snr(t)).abs().max()))
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.9 < r < 2.1 for r in ratios), ratios


def test_the_flow_along_tables_tends_to_the_flow_along_vp_like_1_over_n():
    """Start and end at the same times; the maps differ by what the tables' alpha and sigma differ, O(1/N)."""
    x = torch.randn(20, 2, dtype=F64)
    wanted = sg.sample(sg.MixtureModel(PLANE, sg.VPSDE()), x.shape, rtol=1e-10, t_span=(1.0, 0.1), x_init=x).x
    errors = []
    for n in (100, 200, 400):
        model = sg.MixtureModel(PLANE, sg.TabulatedVPSDE(discrete.betas("linear", n)))
        end = sg.sample(model, x.shape, rtol=1e-10, t_span=(1.0, 0.1), x_init=x).x
        errors.append(float((end - wanted).square().mean().sqrt()))
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.8 < r < 2.2 for r in ratios), ratios


def test_ancestral_sampling_tends_to_the_reverse_sde_like_1_over_n():
    """Weak order 1 in closed form for N(0, s^2) data: x' = A x + B z with A = alpha'/alpha (s^2 + r sh^2)/P."""
    s2, errors = 0.3, []
    for n in (50, 100, 200):
        sde = sg.TabulatedVPSDE(discrete.betas("linear", n))
        sh2 = torch.exp(-2 * sde.half_log_snr(sde.nodes)).flip(0)
        variance = sh2[0] + s2  # of x/alpha, exact at the start
        for a, b in zip(sh2, sh2[1:], strict=False):
            r = b / a
            variance = ((s2 + r * a) / (s2 + a)) ** 2 * variance + b - r**2 * a
        errors.append(abs(float(variance - s2 - sh2[-1])))
    model = sg.MixtureModel(
        sg.GaussianMixture([[0.0]], std=math.sqrt(s2)), sg.TabulatedVPSDE(discrete.betas("linear", 50))
    )
    down = discrete.spaced(model)[:-1]
    start = torch.randn(20000, 1, dtype=F64) * math.sqrt(
        float(model.sde.sigma(1.0)) ** 2 + float(model.sde.alpha(1.0)) ** 2 * s2
    )
    end = discrete.ddpm(model, start.shape, steps=down, x_init=start, seed=1).x / model.sde.alpha(down[-1])
    expected = s2 + float(torch.exp(-2 * model.sde.half_log_snr(down[-1])))
    # one side of the bias is what the closed form says, within 4 standard errors of the sample
    bias = float(end.var()) - expected
    assert abs(abs(bias) - errors[0]) < 4 * expected * math.sqrt(2 / 20000)
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.7 < r < 2.3 for r in ratios), ratios


# ---- solvers along tables


TABLES = {
    "ddpm": sg.TabulatedVPSDE(discrete.betas("linear", 1000)),
    "cosine": sg.TabulatedVPSDE(discrete.betas("cosine", 1000)),
    "short-ddpm": sg.TabulatedVPSDE(discrete.betas("linear", 40)),
    "ncsn": sg.TabulatedVESDE(discrete.sigmas(100)),
    "short-ncsn": sg.TabulatedVESDE(discrete.sigmas(10, sigma_max=5.0)),
}
NAMES = [row.name for row in sg.solvers() if ":" not in row.name]  # those of other libraries have tests of their own
FLOWS = [row.name for row in sg.solvers() if row.name in NAMES and row.kind != "SDE"]
NOISY = [name for name in NAMES if name not in FLOWS or sg.make_solver(name).default_eta]
SHORT = ["short-ddpm", "short-ncsn"]


@functools.cache
def reference(table: str) -> tuple[sg.MixtureModel, Tensor, Tensor]:
    """A model, a state at t = 0.99 and where the flow takes it by t_min."""
    model = sg.MixtureModel(PLANE, TABLES[table])
    x = sg.sample(model, 8, solver="ddim", steps=[1.0, 0.99], seed=3, dtype=F64).x
    return model, x, sg.sample(model, x.shape, rtol=1e-9, t_span=(0.99, model.sde.t_min), x_init=x).x


def below(sde: sg.SDE, x: Tensor, t: float) -> Tensor:
    """The distribution function of LINE's marginal at t, (B,): the flow keeps it, F_t'(x') = F_t(x)."""
    means, std = torch.tensor([-1.0, 0.5, 2.0]).double(), torch.tensor([0.2, 0.1, 0.5]).double()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    z = (x - alpha * means) / torch.hypot(alpha * std, sigma)
    return (torch.tensor([1.0, 2.0, 3.0]).double() / 6 * torch.special.ndtr(z)).sum(1)


@pytest.mark.parametrize("table", SHORT)
@pytest.mark.parametrize("name", FLOWS)
def test_flow_solvers_run_along_tables(name, table):
    """In 100 steps every one arrives where adams with a tight tolerance does, those of first order nearly."""
    model, x, fine = reference(table)
    end = sg.sample(model, x.shape, solver=name, eta=0.0, steps=100, t_span=(0.99, model.sde.t_min), x_init=x).x
    first_order = name in ("euler", "ddim", "ancestral", "euler-maruyama", "reverse-diffusion")
    close(end, fine, 0.3 if first_order else 1e-2)


@pytest.mark.parametrize("table", SHORT)
@pytest.mark.parametrize("name", NOISY)
def test_reverse_sde_solvers_run_along_tables(name, table):
    """The law's mean and variance, to Monte Carlo and the bias of coarse steps."""
    model = sg.MixtureModel(PLANE, TABLES[table])
    solver = sg.make_solver("langevin", corrections=30) if name == "langevin" else name
    x = sg.sample(model, 1000, solver=solver, steps=30 if name == "langevin" else 100, seed=2, dtype=F64).x
    close(x.mean(0), PLANE.mean, 0.15)
    close(x.T.cov(), PLANE.covariance, 0.3)


OUTSIDE = [
    row for row in sg.solvers() if ":" in row.name and "reversible_heun" not in row.name
]  # unstable along VP too
QUICK = ("torchdiffeq:dopri5", "torchdiffeq:rk4", "scipy:DOP853", "scipy:LSODA", "torchsde:srk")


@pytest.mark.parametrize("table", SHORT)
@pytest.mark.parametrize(
    "row", [pytest.param(r, id=r.name, marks=[] if r.name in QUICK else pytest.mark.slow) for r in OUTSIDE]
)
def test_outside_solvers_run_along_tables(row, table):
    """Where they have error control they arrive to the tolerance, with fixed steps as ours of their order do."""
    if row.kind == "SDE":
        model = sg.MixtureModel(PLANE, TABLES[table])
        x = sg.sample(model, 500, solver=row.name, steps=60, seed=2, dtype=F64).x
        close(x.mean(0), PLANE.mean, 0.2)
        close(x.T.cov(), PLANE.covariance, 0.4)
        return
    model, x, fine = reference(table)
    how = {"rtol": 1e-5} if row.adaptive else {"steps": 100}
    end = sg.sample(model, x.shape, solver=row.name, t_span=(0.99, model.sde.t_min), x_init=x, **how).x
    close(end, fine, 3e-3 if row.adaptive else 0.3 if row.order == 1 else 3e-2)


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
@pytest.mark.parametrize("table", TABLES)
def test_tolerances_hold_along_tables(table, solver):
    """A table's kinks in alpha and sigma are not there along sigma/alpha: error against rtol as on a smooth process."""
    model = sg.MixtureModel(LINE, TABLES[table])
    x = torch.linspace(-2, 2, 41, dtype=F64)[:, None] * model.sde.sigma(1.0)
    before = below(model.sde, x, 1.0)
    errors = []
    for rtol in (1e-3, 1e-5, 1e-7):
        end = sg.sample(model, x.shape, solver=solver, rtol=rtol, t_span=(1.0, model.sde.t_min), x_init=x)
        density = torch.exp(model.log_prob(end.x, model.sde.t_min))
        error = (below(model.sde, end.x, model.sde.t_min) - before) / density.clamp_min(1e-2)
        errors.append(float(error.square().mean().sqrt()))
        assert errors[-1] < 30 * rtol, (rtol, errors)
    assert errors[2] < 1e-2 * errors[0], errors


def test_tables_cost_no_more_evaluations_than_the_smooth_process():
    """Adams on DDPM's table of 1000 and of 40 nodes, against the VP process that it tends to."""
    counts = {}
    for name, sde in {"vp": sg.VPSDE(t_min=1e-3), **{k: TABLES[k] for k in ("ddpm", "short-ddpm")}}.items():
        model = sg.MixtureModel(PLANE, sde)
        low = float(sde.time(2.5))
        counts[name] = float(sg.sample(model, 64, rtol=1e-5, seed=0, t_span=(1.0, low), dtype=F64).nfe.double().mean())
    assert counts["ddpm"] < 1.1 * counts["vp"] and counts["short-ddpm"] < 1.1 * counts["vp"], counts


def test_a_tables_nodes_are_exact():
    """alpha^2 at the nodes is the product; the kernel between neighbours has mean sqrt(1 - beta) and variance beta."""
    table = discrete.betas("cosine", 30)
    sde = sg.TabulatedVPSDE(table)
    close(sde.alpha(sde.nodes) ** 2, torch.cumprod(1 - table, 0), 1e-14)
    x, noise = torch.tensor([[1.0], [0.0]], dtype=F64), torch.tensor([[0.0], [1.0]], dtype=F64)
    for i in range(29):
        mean, std = sde.transition(x, sde.nodes[i], sde.nodes[i + 1], noise).flatten()
        close(mean**2, 1 - table[i + 1], 1e-12)
        close(std**2, table[i + 1], 1e-12)


def test_alpha_falls_linearly_where_the_last_beta_is_1():
    """No constant rate takes alpha to 0; all but the rate of noise stays finite there, and time has its inverse."""
    sde = sg.TabulatedVPSDE(discrete.betas("linear", 50, zero_snr=True))
    u = torch.linspace(0, 0.99, 11, dtype=F64)  # 1 is the node before
    t = 1 - u / 50
    close(sde.alpha(t), u * sde.alpha(sde.nodes[-2]), 1e-12)
    close(sde.rates(t)[0], (-50 * sde.alpha(sde.nodes[-2])).expand(11), 1e-9)
    close(sde.rates(t)[1], -sde.alpha(t) * sde.rates(t)[0] / sde.sigma(t), 1e-12)
    close(sde.time(sde.half_log_snr(t)), t, 1e-14)
    assert sde.diffusion(1.0) == math.inf


# ---- objectives


class Net(nn.Module):
    """A small network in float64 for points, with twice the outputs where asked."""

    def __init__(self, dim: int = 2, out: int = 1) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(dim + 1, 16), nn.Tanh(), nn.Linear(16, out * dim)).to(F64)

    def forward(self, x, t):
        return self.layers(torch.cat([x, torch.cos(t.to(x) / 9)[:, None]], 1))


def table(n: int = 20) -> Tensor:
    return discrete.betas("linear", n, first=1e-2, last=0.5)


def test_ddpms_loss_is_the_papers_and_dsm_loss():
    model = sg.Denoiser(Net(), sg.TabulatedVPSDE(table()), parametrization=discrete.counting("noise"))
    x0, noise, i = torch.randn(7, 2, dtype=F64), torch.randn(7, 2, dtype=F64), torch.tensor([1, 2, 5, 9, 19, 20, 20])
    bar = torch.cumprod(1 - table(), 0)[i - 1][:, None]
    x = torch.sqrt(bar) * x0 + torch.sqrt(1 - bar) * noise
    paper = (noise - model.net(x, i - 1.0)).square().mean(1)
    close(discrete.ddpm_loss(model, x0, t=i, noise=noise), paper, 1e-10)
    close(discrete.ddpm_loss(model, x0, t=i / 20, noise=noise), paper, 1e-6)  # float32 times
    for node in (1, 9, 20):  # one for all: an integer is a node, a float its time
        by_number, by_time = (discrete.ddpm_loss(model, x0, t=t, noise=noise) for t in (node, node / 20))
        assert torch.equal(by_number, by_time)
    close(dsm_loss(model, x0, t=i.double() / 20, noise=noise, weight="simple"), paper, 1e-10)


@pytest.mark.parametrize("of", ["x0", "v", "noise", "score"])
def test_ddpms_loss_means_the_noise_whatever_the_network_predicts(of):
    model = sg.Denoiser(Net(), sg.TabulatedVPSDE(table()), parametrization=discrete.counting(of))
    x0, noise, i = torch.randn(20, 2, dtype=F64), torch.randn(20, 2, dtype=F64), torch.arange(1, 21)
    x = model.sde.perturb(x0, i / 20.0, noise)
    believed = model(x, model.sde.nodes).noise
    x = model.sde.perturb(x0, model.sde.nodes, noise)
    believed = model(x, model.sde.nodes).noise
    close(discrete.ddpm_loss(model, x0, t=i, noise=noise).detach(), (believed - noise).square().mean(1).detach(), 1e-9)


def test_ncsns_loss_is_the_papers_and_dsm_loss():
    levels = discrete.sigmas(10, sigma_min=0.1, sigma_max=5.0)
    model = sg.Denoiser(Net(), sg.TabulatedVESDE(levels), parametrization=discrete.counting("score"))
    x0, z, i = torch.randn(10, 2, dtype=F64), torch.randn(10, 2, dtype=F64), torch.arange(1, 11)
    sigma = levels[:, None]
    score = model.net(x0 + sigma * z, i - 1.0)
    paper = sigma.flatten() ** 2 * (score + z / sigma).square().sum(1) / 2  # their 1/2, and a sum over the event
    close(discrete.ncsn_loss(model, x0, t=i, noise=z).detach(), paper.detach(), 1e-10)  # d = 2: sum/2 is the mean
    close(dsm_loss(model, x0, t=model.sde.nodes, noise=z, weight="simple").detach(), paper.detach(), 1e-10)


@pytest.mark.parametrize("loss", [discrete.ddpm_loss, discrete.vlb_term])
def test_losses_draw_nodes_uniformly_and_by_seed_alone(loss):
    heard = []

    class Listening(Net):
        def forward(self, x, t):
            heard.append(t.clone())
            return super().forward(x, t)

    model = sg.Denoiser(Listening(), sg.TabulatedVPSDE(table()), parametrization=discrete.counting("noise"))
    words = {"levels": None} if loss is discrete.vlb_term else {}
    x0 = torch.randn(4000, 2, dtype=F64)
    whole = loss(model, x0, seed=5, **words)
    drawn = heard[-1].round().long()
    assert torch.equal(drawn.double(), heard[-1]) and drawn.min() == 0 and drawn.max() == 19
    counts = torch.bincount(drawn, minlength=20).double()
    assert float(((counts - 200) ** 2 / 190).sum()) < 50  # chi-squared of 19 degrees of freedom, 99.99 %: 50.8
    part = loss(model, x0[:10], seed=5, **words)
    close(part.detach(), whole[:10].detach(), 1e-12)
    assert not torch.equal(loss(model, x0[:10], seed=6, **words), part)
    torch.manual_seed(1)
    assert not torch.equal(loss(model, x0[:10], **words), loss(model, x0[:10], **words))


# ---- the bound


def kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    return 0.5 * (var_q / var_p - 1 - torch.log(var_q / var_p) + (mean_q - mean_p) ** 2 / var_p)


def images(n: int = 6, levels: int = 256) -> Tensor:
    u = torch.randint(0, levels, (n, 2), generator=torch.Generator().manual_seed(2))
    u[0] = torch.tensor([0, levels - 1])
    return 2 * u.double() / (levels - 1) - 1


@pytest.mark.parametrize("first", ["beta_tilde_2", "beta_1"])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_bounds_terms_are_the_papers(variance, first):
    """Ho et al. 2020 eq. 5-8 and 13, Nichol & Dhariwal 2021 eq. 15, re-typed with one noise a node."""
    betas = table()
    wide = variance == "learned"
    make = discrete.LearnedVariance if wide else sg.Denoiser
    model = make(Net(out=2 if wide else 1), sg.TabulatedVPSDE(betas), parametrization=discrete.counting("noise"))
    bar = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - betas, 0)])
    x0, noise = images(), torch.randn(6, 2, dtype=F64)
    tilde = torch.cat([torch.zeros(1), (1 - bar[1:-1]) / (1 - bar[2:]) * betas[1:]]).double()  # of nodes 1..N
    tilde[0] = tilde[1] if first == "beta_tilde_2" else betas[0]
    for i in range(1, 21):
        b, x = betas[i - 1], torch.sqrt(bar[i]) * x0 + torch.sqrt(1 - bar[i]) * noise
        with torch.no_grad():
            said = model.net(x, torch.full((6,), i - 1.0))
        eps = said[:, :2]
        mean_p = (x - b / torch.sqrt(1 - bar[i]) * eps) / torch.sqrt(1 - b)
        if variance == "learned":
            v = (said[:, 2:] + 1) / 2
            var_p = torch.exp(v * torch.log(b) + (1 - v) * torch.log(tilde[i - 1]))
        else:
            var_p = (b if variance == "large" and i > 1 else tilde[i - 1]).expand(6, 2)
        if i > 1:
            mean_q = torch.sqrt(bar[i - 1]) * b / (1 - bar[i]) * x0
            mean_q = mean_q + torch.sqrt(1 - b) * (1 - bar[i - 1]) / (1 - bar[i]) * x
            nats = kl(mean_q, tilde[i - 1], mean_p, var_p)
        else:
            law = torch.distributions.Normal(mean_p, torch.sqrt(var_p))
            above = torch.where(x0 > 0.999, 1.0, law.cdf(x0 + 1 / 255))
            below = torch.where(x0 < -0.999, 0.0, law.cdf(x0 - 1 / 255))
            nats = -torch.log(above - below)
        wanted = nats.mean(1) / math.log(2)
        got = discrete.vlb_term(model, x0, t=torch.full((6,), i), noise=noise, variance=variance, first=first).detach()
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_with_the_small_variance_terms_are_differences_of_snr():
    model = sg.MixtureModel(PLANE, sg.TabulatedVPSDE(table()))
    x0, noise, sde = torch.randn(19, 2, dtype=F64), torch.randn(19, 2, dtype=F64), model.sde
    t = sde.nodes[1:]
    snr = torch.exp(2 * sde.half_log_snr(sde.nodes))
    x0_hat = model(sde.perturb(x0, t, noise), t).x0
    wanted = (snr[:-1] - snr[1:]) / 2 * (x0 - x0_hat).square().mean(1) / math.log(2)
    close(discrete.vlb_term(model, x0, t=torch.arange(2, 21), noise=noise, levels=None), wanted, 1e-10)


def test_the_bound_is_the_sum_of_its_terms():
    model = sg.MixtureModel(PLANE, sg.TabulatedVPSDE(table()))
    x0 = images(5)
    bound = discrete.vlb(model, x0, seed=3)
    assert bound.terms.shape == (5, 20) and bound.total.shape == bound.prior.shape == (5,)
    close(bound.total, bound.prior + bound.terms.sum(1), 1e-12)
    bar_n = torch.cumprod(1 - table(), 0)[-1]
    close(bound.prior, kl(bar_n.sqrt() * x0, 1 - bar_n, torch.zeros(()), 1 - bar_n).mean(1) / math.log(2), 1e-12)
    close(discrete.vlb(model, x0[:2], seed=3).total, bound.total[:2], 1e-12)  # by (seed, sample) alone
    close(discrete.vlb(model, x0, seed=3).total, bound.total, 0)
    many = x0[1:2].expand(20000, 2)
    terms, sums = 20 * discrete.vlb_term(model, many, seed=4), discrete.vlb(model, many[:1000], seed=5).terms.sum(1)
    error = 4 * (float(terms.var()) / 20000 + float(sums.var()) / 1000) ** 0.5
    assert abs(float(terms.mean() - sums.mean())) < error < 1.0


def test_the_decoders_masses_add_up_to_one():
    """Over all 256 values, for a belief far narrower and far wider than a bin, inside and outside [-1, 1]."""
    x0 = (2 * torch.arange(256, dtype=F64) / 255 - 1)[:, None]
    for first in (1e-10, 1e-6, 1e-2, 0.9):
        for mean in (-3.0, -1.0, 0.1234, 0.999):

            class Constant(nn.Module):
                def forward(self, x, t, mean=mean):
                    return torch.full_like(x, mean)

            model = sg.Denoiser(Constant(), sg.TabulatedVPSDE([first, first]), parametrization="x0")
            bits = discrete.vlb_term(model, x0, t=torch.ones(256, dtype=torch.int64), first="beta_1")
            assert torch.isfinite(bits).all()
            close(torch.exp2(-bits).sum(), 1.0, 1e-12)


def test_the_bound_is_tight_where_the_reverse_chain_is_exact():
    """N(0, 1) data: reverse kernels are N(sqrt(1 - beta) x, beta), "large" with beta_1 at the decoder; so the mean of
    the bound over its noise is -log2 p(x0) at every x0 (the prior is N(0, 1) to alpha_bar_N = 1e-3)."""
    betas = discrete.betas("linear", 30, first=1e-2, last=0.5)
    model = sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.TabulatedVPSDE(betas))
    points = torch.tensor([[-2.0], [-0.5], [0.0], [1.0], [3.0]], dtype=F64)
    n = 4000
    bound = discrete.vlb(model, points.repeat(n, 1), variance="large", first="beta_1", levels=None, seed=1)
    draws = bound.total.reshape(n, 5)
    truth = (points.flatten() ** 2 / 2 + math.log(2 * math.pi) / 2) / math.log(2)
    error = (draws.mean(0) - truth).abs()
    slack = 2 * float(model.sde.alpha(1.0)) ** 2 * (1 + points.flatten() ** 2)
    assert bool((error < 4 * draws.std(0) / n**0.5 + slack).all()), (error, draws.std(0) / n**0.5)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_bound_bounds(variance):
    """Its mean is above the entropy of a mixture, by less with more nodes."""
    gaps = []
    x0 = LINE.sample(5000, seed=3).to(F64)
    entropy = -LINE.log_prob(x0).mean() / math.log(2)
    for n in (25, 100):
        betas = discrete.betas("linear", n, first=0.1 / n, last=18 / n)
        model = sg.MixtureModel(LINE, sg.TabulatedVPSDE(betas))
        bound = discrete.vlb(model, x0, variance=variance, levels=None, seed=4)
        assert bool((bound.terms[:, 1:] >= -1e-9).all()) and bool((bound.prior >= 0).all())  # divergences
        gaps.append(float(bound.total.mean() - entropy))
    assert gaps[0] > gaps[1] > 0, gaps


def test_data_off_the_levels_are_refused():
    model = sg.MixtureModel(PLANE, sg.TabulatedVPSDE(table()))
    for x0 in (torch.randn(4, 2).double(), images() / 2 + 0.5 / 255, images() * 1.5):
        with pytest.raises(sg.InvalidInputError, match="256 equally spaced values"):
            discrete.vlb(model, x0)
    assert torch.isfinite(discrete.vlb(model, images().float()).total).all()
    assert torch.isfinite(discrete.vlb(model, images(levels=17), levels=17).total).all()
    with pytest.raises(sg.InvalidInputError, match="17"):
        discrete.vlb(model, images(), levels=17)
    for words in ({"variance": "medium"}, {"first": "beta_0"}, {"levels": 1}, {"t": torch.tensor([0])}):
        with pytest.raises(sg.InvalidInputError):
            discrete.vlb_term(model, images(), **words)
    with pytest.raises(sg.InvalidInputError, match="of nodes of the table"):
        discrete.vlb_term(model, images(), t=torch.tensor(0.512))


# ---- the hybrid loss


def learned() -> discrete.LearnedVariance:
    return discrete.LearnedVariance(Net(out=2), sg.TabulatedVPSDE(table()), parametrization=discrete.counting("noise"))


def test_the_hybrid_loss_is_simple_plus_bound():
    model = learned()
    x0, noise, i = images(), torch.randn(6, 2, dtype=F64), torch.tensor([1, 1, 2, 5, 19, 20])
    simple = discrete.ddpm_loss(model, x0, t=i, noise=noise)
    term = discrete.vlb_term(model, x0, t=i, noise=noise, variance="learned")
    close(discrete.hybrid_loss(model, x0, t=i, noise=noise).detach(), (simple + 1e-3 * 20 * term).detach(), 1e-9)


def test_the_bound_does_not_move_the_mean_in_the_hybrid_loss():
    """Gradients at the two halves of the output: of the simple loss on the mean's, of the bound alone on the other."""
    x0, noise, i = images(), torch.randn(6, 2, dtype=F64), torch.tensor([1, 1, 2, 5, 19, 20])

    def gradient(loss) -> Tensor:
        model = learned()
        loss(model).sum().backward()
        return model.net.layers[-1].weight.grad  # rows 0, 1: the mean; rows 2, 3: the variance

    simple = gradient(lambda m: discrete.ddpm_loss(m, x0, t=i, noise=noise))
    bound = gradient(lambda m: discrete.vlb_term(m, x0, t=i, noise=noise, variance="learned"))
    both = gradient(lambda m: discrete.hybrid_loss(m, x0, t=i, noise=noise))
    close(both[:2], simple[:2], 1e-10)
    close(both[2:], 1e-3 * 20 * bound[2:], 1e-10)
    assert bound[:2].abs().max() > 0.1 and bound[2:].abs().max() > 1e-3 and simple[2:].abs().max() == 0


def test_the_hybrid_loss_learns_the_best_variance():
    """For N(0, 1) data the best log Sigma is log beta, the large one (v = 1): train the variance's bias alone."""
    sde = sg.TabulatedVPSDE(table(8))
    truth = sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sde)

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.zeros(9, dtype=F64))

        def forward(self, x, t):
            rows = (t * 8).round().long()
            return torch.cat([truth(x, t).noise, 2 * torch.sigmoid(self.v[rows])[:, None] - 1], 1)

    model = discrete.LearnedVariance(Half(), sde, parametrization="noise")
    x0 = truth.mixture.sample(1000, seed=0).to(F64)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.2)
    for step in range(60):
        optimiser.zero_grad()
        discrete.hybrid_loss(model, x0, seed=step, scale=1.0, levels=None).mean().backward()
        optimiser.step()
    assert bool((torch.sigmoid(model.net.v[2:]) > 0.9).all()), torch.sigmoid(model.net.v)


def test_learned_variance_says_what_it_wants():
    model = discrete.LearnedVariance(Net(), sg.TabulatedVPSDE(table()))
    with pytest.raises(sg.InvalidInputError, match=r"expected \(3, 4\)"):
        model(torch.zeros(3, 2, dtype=F64), 0.5)
    with pytest.raises(sg.InvalidInputError, match="weight"):
        discrete.hybrid_loss(learned(), images(), weight="simple")
    prediction = learned()(torch.zeros(3, 2, dtype=F64), 0.5)
    assert prediction.fraction.shape == (3, 2) and prediction.x0.shape == (3, 2)


def test_a_learned_variance_is_a_denoiser_for_everything_else():
    model = learned()
    plain = sg.Denoiser(FirstHalf(model.net), model.sde, parametrization=discrete.counting("noise"))
    a, b = (sg.sample(m, (3, 2), solver="dpm++2m", steps=8, seed=0).x for m in (model, plain))
    close(a, b, 1e-12)
    assert torch.isfinite(sg.sample(model, (3, 2), rtol=1e-3, seed=0).x).all()


class FirstHalf(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return self.net(x, t).chunk(2, 1)[0]


# ---- which nodes to train on


def test_loss_aware_nodes_keep_the_mean_and_lower_the_variance():
    """On terms that differ by orders of magnitude, as the bound's do; p is sqrt(E L^2) by definition."""
    truth = torch.logspace(0, -4, 20, dtype=F64)

    def loss(model, x0, *, t, noise=None, seed=None):
        return truth[t - 1] * (1 + 0.1 * torch.cos(torch.arange(len(t), dtype=F64)))

    aware = discrete.LossAware(loss, 20, history=3)
    x0 = torch.zeros(500, 1)
    assert torch.equal(aware.probabilities, torch.full((20,), 0.05, dtype=F64))
    for seed in range(8):
        aware(None, x0, seed=seed)
    p = aware.probabilities
    close(p.sum(), 1.0, 1e-12)
    wanted = 0.999 * truth / truth.sum() + 0.001 / 20
    assert bool((torch.log(p / wanted).abs() < 0.25).all())
    values = torch.cat([aware(None, x0, seed=seed) for seed in range(100, 140)])
    assert abs(float(values.mean() - truth.mean())) < 4 * float(values.std()) / len(values) ** 0.5 + 0.02 * truth.mean()
    uniform = truth[torch.randint(0, 20, (20000,))]
    assert values.std() < 0.2 * uniform.std()


def test_loss_aware_is_a_loss():
    model = sg.Denoiser(Net(), sg.TabulatedVPSDE(table()), parametrization=discrete.counting("noise"))
    aware = discrete.LossAware(lambda *a, **k: discrete.vlb_term(*a, levels=None, **k), 20, history=2)
    x0 = torch.randn(64, 2, dtype=F64)
    for _ in range(10):
        aware(model, x0).mean().backward()
    assert not torch.equal(aware.probabilities, torch.full((20,), 0.05, dtype=F64))
    given = aware(model, x0, t=torch.full((64,), 3), seed=1)
    close(given.detach(), discrete.vlb_term(model, x0, t=torch.full((64,), 3), seed=1, levels=None).detach(), 0)
    with pytest.raises(sg.InvalidInputError):
        discrete.LossAware(discrete.vlb_term, 0)
    aware.update(torch.tensor([1, 2]), torch.tensor([math.nan, math.inf]))
    assert torch.isfinite(aware.probabilities).all()
