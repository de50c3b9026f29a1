"""What every solver must keep: its order, exact laws on Gaussian data, independence of the batch, true counts."""

import math
from dataclasses import replace

import pytest
import torch

import sdegen as sg
from sdegen.noise import Noise
from sdegen.solvers import Multistep

F64 = torch.float64
MIXTURE = sg.GaussianMixture([[1.0, 2.0], [-1.0, 0.0], [2.0, -1.0]], std=[0.5, 0.4, 0.6])
MODEL = sg.MixtureModel(MIXTURE, sg.VPSDE())
SPAN = (0.8, 0.25)  # away from t_min: the field is smooth there, errors above 1e-12 are truncation
OWN = [r.name for r in sg.solvers() if ":" not in r.name]
FLOWS = [n for n in OWN if sg.make_solver(n).kind != "SDE"]
NOISY = [n for n in OWN if sg.make_solver(n).kind != "ODE"]


def times(n: int, *, irregular: bool, span=SPAN) -> torch.Tensor:
    """n steps, a multiple of 3; irregular: every third is twice as long, so neighbours have ratios 1/2 and 2."""
    width = torch.ones(n, dtype=F64)
    if irregular:
        width[1::3] = 2.0
    return span[0] + (span[1] - span[0]) * torch.cat([torch.zeros(1, dtype=F64), width.cumsum(0) / width.sum()])


@pytest.fixture(scope="module")
def ends():
    """Start and end of the flow over SPAN, to 1e-13."""
    x = MODEL.sde.alpha(SPAN[0]) * MIXTURE.sample(6, seed=1, dtype=F64) + MODEL.sde.sigma(SPAN[0]) * Noise(2).normal(
        (6, 2), 9, dtype=F64, device="cpu"
    )
    return x, sg.solve(sg.ProbabilityFlow(MODEL), x, solver="dopri5", rtol=1e-13, atol=1e-13, t_span=SPAN).x


def slope(errors: dict[int, float]) -> float:
    """Least squares of log error against log step."""
    n = torch.tensor([math.log(k) for k in errors], dtype=F64)
    e = torch.tensor([math.log(v) for v in errors.values()], dtype=F64)
    return float(-((n - n.mean()) * (e - e.mean())).sum() / ((n - n.mean()) ** 2).sum())


# name, order on even grids, order on uneven grids, steps: those of Runge-Kutta reach rounding early
ORDERS = [
    ("euler", 1, 1, (42, 84, 168)),
    ("ddim", 1, 1, (42, 84, 168)),
    ("heun", 2, 2, (42, 84, 168)),
    ("bosh3", 3, 3, (21, 42, 84)),
    ("rk4", 4, 4, (21, 42, 84)),
    ("dopri5", 5, 5, (18, 36, 72)),
    ("dpm-solver2m", 2, 2, (84, 168, 336)),
    ("dpm++2m", 2, 2, (84, 168, 336)),
]


@pytest.mark.parametrize("irregular", [False, True])
@pytest.mark.parametrize(("name", "even", "uneven", "steps"), ORDERS)
def test_order(name, even, uneven, steps, irregular, ends):
    x, exact = ends
    errors = {}
    for n in steps:
        found = sg.solve(sg.ProbabilityFlow(MODEL), x, solver=name, steps=times(n, irregular=irregular)).x
        errors[n] = float((found - exact).abs().max())
    p = uneven if irregular else even
    assert p - 0.15 <= slope(errors) <= p + 0.3, errors


def from_accurate_start(solver: Multistep, ts: torch.Tensor, x: torch.Tensor, warm: int) -> torch.Tensor:
    """The end of a multistep run whose first `warm` nodes are exact instead of its own low orders' (those cap its
    order)."""
    term = sg.ProbabilityFlow(MODEL)
    state = solver.start(term, x, ts[0], ts)
    node = x
    for k in range(len(ts) - 1):
        if 0 < k <= warm:
            fine = torch.linspace(float(ts[k - 1]), float(ts[k]), 4, dtype=F64)
            x = sg.solve(term, node, solver="dopri5", steps=fine).x
        node = x
        step = solver.step(term, x, ts[k], ts[k + 1], state, Noise(0))
        x, state = step.x, step.state
        if k <= warm:
            state = {"run": replace(state["run"], x=node)}
    return x


# exact weights have their full order; published rules keep or lose what solvers' docstrings say
MULTISTEP = [
    ("deis3", {}, 3),
    ("deis-tab3", {}, 3),
    ("lms4", {}, 4),
    ("dpm++3m", {}, 2),  # half the curvature: order 2
    ("dpm++3m", {"rule": "exact"}, 3),
    ("unipc2", {}, 3),
    ("unipc3", {}, 4),
    ("v-adams3", {}, 4),
]


@pytest.mark.parametrize(("name", "options", "p"), MULTISTEP)
def test_order_of_multistep_methods_from_an_accurate_start(name, options, p, ends):
    x, exact = ends
    solver = sg.make_solver(name, **options)
    errors = {
        n: float((from_accurate_start(solver, times(n, irregular=True), x, 4) - exact).abs().max())
        for n in (42, 84, 168)
    }
    assert p - 0.3 <= slope(errors) <= p + 0.6, errors  # the finest pair is close to rounding for order 4


def test_constant_weights_have_order_two_on_even_grids_in_sigma(ends):
    x, exact = ends
    sh = torch.exp(-MODEL.sde.half_log_snr(torch.tensor(SPAN, dtype=F64)))
    errors = {}
    for n in (80, 160, 320):
        ts = MODEL.sde.time(-torch.log(torch.linspace(float(sh[0]), float(sh[1]), n + 1, dtype=F64))).clamp(
            SPAN[1], SPAN[0]
        )
        errors[n] = float((sg.solve(sg.ProbabilityFlow(MODEL), x, solver="ipndm4", steps=ts).x - exact).abs().max())
    assert slope(errors) >= 1.85, errors


@pytest.mark.parametrize("name", ["adams", "dopri5", "bosh3"])
def test_error_is_proportional_to_the_tolerance(name):
    x = MODEL.sde.prior((40, 2), seed=0, dtype=F64)
    span = (MODEL.sde.t_max, MODEL.sde.t_min)
    exact = sg.sample(MODEL, 40, solver="dopri5", rtol=1e-12, x_init=x, t_span=span).x
    errors = {}
    for tol in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        solution = sg.sample(MODEL, 40, solver=name, atol=tol * MODEL.sigma_data, rtol=0.0, x_init=x, t_span=span)
        e = (solution.x - exact).square().mean(1).sqrt() / MODEL.sigma_data
        errors[tol] = float(e.quantile(0.9))
    values = list(errors.values())
    assert all(a > b for a, b in zip(values, values[1:], strict=False)), errors
    assert 0.7 <= -slope(errors) <= 1.2, errors
    if name == "adams":
        assert all(0.2 <= e / tol <= 2.5 for tol, e in errors.items()), errors


# ---- Gaussian data, closed forms

MEAN, STD = 0.7, 0.3
GAUSSIAN = sg.GaussianMixture([[MEAN]], std=STD)


@pytest.mark.parametrize(
    "sde", [sg.VPSDE(), sg.SubVPSDE(), sg.VESDE(), sg.EDMSDE(), sg.CosineSDE(), sg.LinearPathSDE()], ids=repr
)
@pytest.mark.parametrize(
    ("name", "how"),
    [("adams", {"rtol": 1e-4}), ("heun", {"steps": 8}), ("adams", {"steps": 6}), ("v-adams3", {"steps": 6})],
)
def test_gaussian_data_are_carried_exactly_in_the_best_coordinates(sde, name, how):
    """xh' = mu + (xh - mu) sqrt((s^2 + sh'^2)/(s^2 + sh^2)): the circular path around the mean solves it at any step
    (v-adams3 about 0)."""
    mean = 0.0 if name == "v-adams3" else MEAN
    model = sg.MixtureModel(sg.GaussianMixture([[mean]], std=STD), sde)
    x = sde.prior((5, 1), seed=0, dtype=F64)
    found = sg.sample(model, 5, solver=name, x_init=x, t_span=(sde.t_max, sde.t_min), **how).x
    a, b = (sde.alpha(t) for t in (sde.t_max, sde.t_min))
    p, q = (STD**2 + torch.exp(-2 * sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min))
    exact = b * (mean + (x / a - mean) * torch.sqrt(q / p))
    assert torch.allclose(found, exact, rtol=1e-9, atol=1e-10)


class Fixed(Noise):
    """Every standard normal is the same number."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def normal(self, shape, *address, dtype, device):
        return torch.full(tuple(shape), self.value, dtype=dtype, device=device)


def affine(name: str, sde: sg.SDE, t: float, t_next: float, eta: float, **options) -> tuple[float, float, float]:
    """(A, B, C) of M' = A M + B, V' = A^2 V + C in one step on Gaussian data: a step is affine in the state and its one
    normal."""
    term = sg.ReverseSDE(sg.MixtureModel(GAUSSIAN, sde), eta=eta)

    def step(x: float, z: float) -> float:
        start = torch.tensor([[x]], dtype=F64)
        return float(sg.solve(term, start, solver=sg.make_solver(name, **options), steps=[t, t_next], noise=Fixed(z)).x)

    b = step(0.0, 0.0)
    return step(1.0, 0.0) - b, b, (step(0.0, 1.0) - b) ** 2


def levels(sde: sg.SDE, t: float, t_next: float):
    a, a2 = float(sde.alpha(t)), float(sde.alpha(t_next))
    return a, a2, float(sde.sigma(t)) / a, float(sde.sigma(t_next)) / a2


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(sigma_max=1.0), sg.VESDE(sigma_max=2.0)], ids=repr)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_output_law_of_the_first_order_family(name, eta, sde):
    """A = (s^2 + r sh^2)/P, B = (1 - A) mu, C = sh'^2 - r^2 sh^2 in the frame x/alpha."""
    t, t_next = 0.6, 0.45
    a, a2, sh, sh2 = levels(sde, t, t_next)
    r = (sh2 / sh) ** (1 + eta**2)
    if name == "ddim":
        r = math.sqrt(sh2**2 - eta**2 * sh2**2 * (1 - sh2**2 / sh**2)) / sh
    big = (STD**2 + r * sh**2) / (STD**2 + sh**2)
    wanted = (big * a2 / a, (1 - big) * MEAN * a2, a2**2 * (sh2**2 - r**2 * sh**2))
    assert affine(name, sde, t, t_next, eta) == pytest.approx(wanted, rel=1e-10)


def test_output_law_of_euler_maruyama():
    sde, t, t_next = sg.VPSDE(), 0.6, 0.57
    h, beta, a, s2 = t - t_next, float(sde.beta(t)), float(sde.alpha(t)), float(sde.sigma(t)) ** 2
    p = a**2 * STD**2 + s2
    wanted = (1 + beta * h / 2 - beta * h / p, beta * h * a * MEAN / p, beta * h)
    assert affine("euler-maruyama", sde, t, t_next, 1.0) == pytest.approx(wanted, rel=1e-10)


def test_output_law_of_reverse_diffusion():
    table = sg.TabulatedVPSDE(torch.linspace(1e-4, 0.02, 100, dtype=F64))
    i = 60
    beta, a = float(table.betas[i - 1]), float(table.alpha(i / 100))
    p = a**2 * STD**2 + float(table.sigma(i / 100)) ** 2
    wanted = (2 - math.sqrt(1 - beta) - beta / p, beta * a * MEAN / p, beta)
    assert affine("reverse-diffusion", table, i / 100, (i - 1) / 100, 1.0) == pytest.approx(wanted, rel=1e-9)
    ve = sg.VESDE(sigma_max=2.0)
    _, _, sh, sh2 = levels(ve, 0.6, 0.5)
    delta, p = sh**2 - sh2**2, STD**2 + sh**2
    assert affine("reverse-diffusion", ve, 0.6, 0.5, 1.0) == pytest.approx(
        (1 - delta / p, MEAN * delta / p, delta), rel=1e-10
    )


def test_ancestral_steps_of_a_ddpm_table_are_the_papers():
    """Ho et al. 2020, algorithm 2 with beta tilde, re-typed."""
    betas = torch.linspace(1e-4, 0.02, 50, dtype=F64)
    bar = torch.cumprod(1 - betas, 0)
    sde = sg.TabulatedVPSDE(betas)
    model = sg.MixtureModel(MIXTURE, sde)
    x = sde.prior((4, 2), seed=0, dtype=F64)
    noise = Noise(5)
    found = sg.solve(
        sg.ReverseSDE(model), x, solver="ancestral", steps=[k / 50 for k in range(50, 0, -1)], noise=noise
    ).x
    for i in range(50, 1, -1):
        eps = model(x, i / 50).noise
        mean = (x - betas[i - 1] / torch.sqrt(1 - bar[i - 1]) * eps) / torch.sqrt(1 - betas[i - 1])
        variance = (1 - bar[i - 2]) / (1 - bar[i - 1]) * betas[i - 1]
        z = noise.standard(torch.tensor(i / 50, dtype=F64), torch.tensor((i - 1) / 50, dtype=F64), x)
        x = mean + variance.sqrt() * z
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-10)


def test_euler_along_the_edm_path_is_ddim_and_heun_is_karras():
    model = MODEL.on(sg.EDMSDE(0.01, 20.0))
    x = model.sde.prior((4, 2), seed=0, dtype=F64)
    ts = sg.grid(model, 12, kind="karras", t_span=(model.sde.t_max, model.sde.t_min))
    flow = sg.ProbabilityFlow(model)
    assert torch.allclose(
        sg.solve(flow, x, solver="euler", steps=ts).x,
        sg.solve(flow, x, solver="ddim", steps=ts).x,
        rtol=1e-11,
        atol=1e-12,
    )
    found = sg.solve(flow, x, solver="heun", steps=torch.cat([ts, torch.zeros(1, dtype=F64)])).x
    for a, b in zip(ts, [*ts[1:], torch.tensor(0.0, dtype=F64)], strict=True):  # Karras et al. 2022, algorithm 1
        d = (x - model(x, a).x0) / a
        x_next = x + (b - a) * d
        x = x_next if b == 0 else x + (b - a) * (d + (x_next - model(x_next, b).x0) / b) / 2
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "name", ["ancestral", "dpm++2m-sde", "sra1", "karras-sde", "predictor-corrector", "euler-maruyama", "sa-solver3"]
)
def test_stochastic_samplers_reach_the_data_law(name):
    """Mean and variance of Gaussian data within 4 standard errors of 20,000 samples, plus what the law of so many steps
    is off."""
    model = sg.MixtureModel(GAUSSIAN, sg.VPSDE())
    solution = sg.sample(model, 20_000, solver=name, steps=100, seed=1, t_span=(1.0, model.sde.t_min))
    a, s = float(model.sde.alpha(model.sde.t_min)), float(model.sde.sigma(model.sde.t_min))
    var = a**2 * STD**2 + s**2
    assert float(solution.x.mean()) == pytest.approx(a * MEAN, abs=4 * math.sqrt(var / 20_000) + 0.02)
    assert float(solution.x.var()) == pytest.approx(var, rel=4 * math.sqrt(2 / 20_000) + 0.08)


# ---- invariances


@pytest.mark.parametrize(
    "name", ["ddim", "dpm++2m", "dpm++3m", "deis3", "unipc3", "ipndm4", "v-adams3", "ancestral", "dpm++2m-sde"]
)
def test_vp_and_ve_agree_on_the_same_noise_levels(name):
    ve = sg.MixtureModel(MIXTURE, sg.EDMSDE(0.01, 20.0))
    vp = ve.on(sg.VPSDE(t_min=1e-5))
    half = torch.linspace(-math.log(19.0), -math.log(0.02), 16, dtype=F64)
    x = ve.sde.prior((5, 2), seed=0, dtype=F64)
    ends = []
    for model in (ve, vp):
        ts = model.sde.time(half)

        class Numbered(Noise):  # the same noise at the same level, whatever its time is called
            def standard(self, t, t_next, x, *, purpose=3, ts=ts):
                k = int((ts - t).abs().argmin())
                return self.normal(x.shape, purpose, k, dtype=x.dtype, device=x.device)

        term = sg.ReverseSDE(model) if sg.make_solver(name).default_eta else sg.ProbabilityFlow(model)
        a, b = model.sde.alpha(ts[0]), model.sde.alpha(ts[-1])
        ends.append(sg.solve(term, a * x, solver=name, steps=ts, noise=Numbered(1)).x / b)
    assert torch.allclose(*ends, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", OWN)
def test_a_sample_does_not_depend_on_its_batch(name):
    hows = [{"steps": 6}] + ([{"rtol": 1e-3}] if sg.make_solver(name).adaptive else [])
    for how in hows:
        whole = sg.sample(MODEL, 37, solver=name, seed=4, dtype=F64, **how)
        for size in (1, 5, 16):
            parts = sg.sample(MODEL, 37, solver=name, seed=4, dtype=F64, batch_size=size, **how)
            assert torch.allclose(parts.x, whole.x, rtol=1e-11, atol=1e-11), (how, size)
            assert torch.equal(parts.nfe, whole.nfe)
        some = sg.sample(MODEL, 3, solver=name, seed=4, dtype=F64, index=[30, 2, 17], **how)
        assert torch.allclose(some.x, whole.x[[30, 2, 17]], rtol=1e-11, atol=1e-11)


class Recording(torch.nn.Module):
    """A network that writes down the times and the rows it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.3, dtype=F64))
        self.times: list[torch.Tensor] = []

    def forward(self, x, t):
        self.times.append(t.detach().clone())
        return self.scale * torch.tanh(x)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("to", ["t_min", "zero"])
def test_counts_are_the_calls_made_and_times_stay_inside(name, to):
    sde = sg.VPSDE()
    hows = [{"steps": 5}] + ([{"rtol": 1e-3}] if sg.make_solver(name).adaptive else [])
    for how in hows:
        net = Recording()
        model = sg.Denoiser(net, sde, parametrization="noise")
        solution = sg.sample(
            model, (7, 2), solver=name, seed=0, t_span=(1.0, sde.t_min if to == "t_min" else 0.0), **how
        )
        assert solution.calls == len(net.times)
        assert int(solution.nfe.sum()) == sum(len(t) for t in net.times)
        every = torch.cat(net.times)
        assert float(every.min()) >= sde.t_min * (1 - 1e-9) and float(every.max()) <= sde.t_max * (1 + 1e-9)
        assert bool((solution.status == 0).all())
        if "steps" in how:
            assert bool((solution.accepted == 5).all()) and bool((solution.rejected == 0).all())


@pytest.mark.parametrize("name", FLOWS)
def test_saving_changes_nothing(name):
    plain = sg.sample(MODEL, 4, solver=name, steps=9, seed=0, dtype=F64)
    kept = sg.sample(MODEL, 4, solver=name, steps=9, seed=0, dtype=F64, save="all")
    assert torch.equal(plain.x, kept.x) and torch.equal(kept.xs[-1], kept.x) and torch.equal(plain.nfe, kept.nfe)
    assert kept.xs.shape == (10, 4, 2) and float(kept.ts[0]) == 1.0 and float(kept.ts[-1]) == 0.0


@pytest.mark.parametrize("name", ["adams", "dopri5", "bosh3"])
def test_encode_and_decode_come_back(name):
    x = MIXTURE.sample(20, seed=3, dtype=F64)
    for tol in (1e-4, 1e-7):
        latent = sg.encode(MODEL, x, solver=name, rtol=tol)
        back = sg.sample(MODEL, 20, solver=name, rtol=tol, x_init=latent.x, t_span=(MODEL.sde.t_max, MODEL.sde.t_min))
        assert float((back.x - x).square().mean().sqrt()) < 10 * tol * MODEL.sigma_data


# ---- what goes wrong


class Poisoned(torch.nn.Module):
    """A sound network, but for one sample below t = 0.3."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x, t, bad=None):
        out = 0.3 * torch.tanh(x)
        return out if bad is None else torch.where((bad & (t < 0.3))[:, None], torch.nan, out)


@pytest.mark.parametrize("name", [n for n in OWN if n != "adams"] + ["adams"])
def test_a_nan_is_named_and_leaves_the_others_alone(name):
    model = sg.Denoiser(Poisoned(), sg.VPSDE(), parametrization="noise")
    bad = torch.zeros(6, dtype=torch.bool)
    bad[[1, 4]] = True
    for how in [{"steps": 12}] + ([{"rtol": 1e-3}] if sg.make_solver(name).adaptive else []):
        with pytest.raises(sg.NonFiniteError, match=r"2 of 6 samples \(numbers 1, 4\)") as caught:
            sg.sample(model, (6, 2), solver=name, seed=0, bad=bad, **how)
        assert "t = " in str(caught.value) and "step" in str(caught.value)
        marked = sg.sample(model, (6, 2), solver=name, seed=0, bad=bad, on_failure="mark", **how)
        clean = sg.sample(model, (6, 2), solver=name, seed=0, **how)
        assert marked.status.tolist() == [0, 1, 0, 0, 1, 0]
        good = ~bad
        assert torch.allclose(marked.x[good], clean.x[good], rtol=1e-11, atol=1e-11)
        assert torch.equal(caught.value.partial.x[good], marked.x[good])


class Rough(torch.nn.Module):
    """A field that no step size resolves."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x, t):
        return torch.sin(1e9 * t)[:, None] * (1 + x.abs())


@pytest.mark.parametrize("name", ["adams", "dopri5", "bosh3"])
def test_an_unreachable_tolerance_ends_with_an_error_and_the_partial_result(name):
    model = sg.Denoiser(Rough(), sg.VPSDE(), parametrization="noise")
    with pytest.raises((sg.MaxStepsError, sg.StepSizeUnderflowError)) as caught:
        sg.sample(model, (2, 2), solver=name, rtol=1e-9, seed=0, max_steps=200)
    assert caught.value.partial.x.shape == (2, 2)
    assert int(caught.value.partial.nfe.max()) <= 200 * 6 + 2


@pytest.mark.parametrize("name", OWN)
def test_an_empty_batch_is_an_empty_result(name):
    solution = sg.sample(MODEL, 0, solver=name, seed=0)
    assert solution.x.shape == (0, 2) and solution.calls == 0
