"""One machine, many names: every recipe and named setting against its paper, re-typed here, and against diffusers.

A recipe and a paper's algorithm get the same network and the same noise; in float64 they agree to rounding (1e-10 where
the paper's own formula cancels). diffusers computes its tables in float32: with these it agrees to 1e-5 of the data's
scale, with its tables replaced by float64 ones to 1e-10.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

import sdegen as sg
from sdegen import discrete
from sdegen.noise.purposes import Purpose
from sdegen.noise.white import Noise

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

SEED = 11
SHAPE = (3, 2, 4, 4)
N = 40
F64 = torch.float64


@pytest.fixture(scope="session")
def diffusers():
    return pytest.importorskip("diffusers")


class Net(nn.Module):
    """A fixed smooth network in float64, told an integer (or a noise level)."""

    def __init__(self, out: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2 * out, 2, 3, 3, generator=generator, dtype=F64) / 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift = torch.cos(t.to(F64) / 7 + 0.3).reshape(-1, 1, 1, 1)
        return torch.tanh(nn.functional.conv2d(x, self.weight, padding=1) + shift)


def betas(n: int = N) -> Tensor:
    """A short table that destroys as much as DDPM's: alpha_bar_N = 4e-5."""
    return discrete.betas("linear", 1000).reshape(n, -1).sum(1)


def table_model(*, zero_snr: bool = False, of: str = "noise", net: nn.Module | None = None, wide: bool = False):
    table = discrete.zero_terminal_snr(betas()) if zero_snr else betas()
    make = discrete.LearnedVariance if wide else sg.Denoiser
    return make(net or Net(2 if wide else 1), sg.TabulatedVPSDE(table), parametrization=discrete.counting(of))


def latent(shape=SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=F64)


def z(t: Tensor, t_next: Tensor, x: Tensor, seed: int = SEED) -> Tensor:
    """The normals that a solver draws for its step from t to t_next."""
    return Noise(seed).standard(t, t_next, x)


def said(net: nn.Module, x: Tensor, i: int) -> Tensor:
    """The network at node i of 1..N."""
    with torch.no_grad():
        return net(x, torch.full((len(x),), float(i - 1)))


def numbers(ts: Tensor, n: int = N) -> list[int]:
    return torch.round(ts * n).to(torch.int64).tolist()


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest element, which is at least 1."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


# ---- the papers' algorithms


SUBSEQUENCES = {
    "all": None,
    "10": 10,
    "7": 7,
    "uneven": [1.0, 0.85, 0.8, 0.325, 0.05, 0.025, 0.0],
    "jump": [0.9, 0.5, 0.0],
}


def visited(model, steps) -> Tensor:
    if isinstance(steps, list):
        return torch.tensor(steps, dtype=F64)
    return discrete.spaced(model, steps)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("steps", SUBSEQUENCES.values(), ids=SUBSEQUENCES)
def test_ddpm_is_the_papers_algorithm_2(steps, variance):
    """Ho et al. 2020 algorithm 2, between any two nodes; Nichol & Dhariwal 2021 eq. 15 for the learned variance."""
    model = table_model(wide=variance == "learned")
    ts, x = visited(model, steps), latent()
    bar = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - betas(), 0)])
    solution = discrete.ddpm(
        model, SHAPE, steps=ts if isinstance(steps, list) else steps, variance=variance, x_init=x, seed=SEED, save="all"
    )
    for k, (i, p) in enumerate(zip(numbers(ts), numbers(ts)[1:], strict=False)):
        eps, *more = said(model.net, x, i).chunk(2, 1) if variance == "learned" else (said(model.net, x, i),)
        beta = 1 - bar[i] / bar[p]
        x = (x - beta / torch.sqrt(1 - bar[i]) * eps) / torch.sqrt(1 - beta)
        if p > 0:
            small = (1 - bar[p]) / (1 - bar[i]) * beta
            if variance == "learned":
                v = (more[0] + 1) / 2
                big = torch.exp(v * torch.log(beta) + (1 - v) * torch.log(small))
            else:
                big = {"small": small, "large": beta}[variance]
            x = x + torch.sqrt(big) * z(ts[k], ts[k + 1], x)
        close(solution.xs[k + 1], x, 1e-10)
    assert solution.nfe.tolist() == [len(ts) - 1] * len(x)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", SUBSEQUENCES.values(), ids=SUBSEQUENCES)
def test_ddim_is_the_papers_equation_12(steps, eta):
    model = table_model()
    ts, x = visited(model, steps), latent()
    bar = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - betas(), 0)])
    solution = discrete.ddim(
        model, SHAPE, steps=ts if isinstance(steps, list) else steps, eta=eta, x_init=x, seed=SEED, save="all"
    )
    for k, (i, p) in enumerate(zip(numbers(ts), numbers(ts)[1:], strict=False)):
        eps = said(model.net, x, i)
        s = eta * torch.sqrt((1 - bar[p]) / (1 - bar[i])) * torch.sqrt(1 - bar[i] / bar[p])
        x0 = (x - torch.sqrt(1 - bar[i]) * eps) / torch.sqrt(bar[i])
        noise = z(ts[k], ts[k + 1], x) if p > 0 else torch.zeros_like(x)
        x = torch.sqrt(bar[p]) * x0 + torch.sqrt(1 - bar[p] - s**2) * eps + s * noise
        close(solution.xs[k + 1], x, 1e-10)


def test_ddpm_with_the_small_variance_is_ddim_with_eta_1():
    model = table_model()
    a = discrete.ddpm(model, SHAPE, steps=9, seed=SEED)
    b = discrete.ddim(model, SHAPE, steps=9, eta=1.0, seed=SEED)
    close(a.x, b.x, 1e-12)


def test_ddim_encodes_by_the_same_step_upward():
    model = table_model()
    x = latent() / 2
    bar = torch.cumprod(1 - betas(), 0)
    solution = discrete.ddim_encode(model, x, steps=8, spacing="trailing", save="all")
    at = numbers(solution.ts)
    assert at[0] == 1 and at[-1] == N
    for k, (i, p) in enumerate(zip(at, at[1:], strict=False)):
        eps = said(model.net, x, i)
        x0 = (x - torch.sqrt(1 - bar[i - 1]) * eps) / torch.sqrt(bar[i - 1])
        x = torch.sqrt(bar[p - 1]) * x0 + torch.sqrt(1 - bar[p - 1]) * eps
        close(solution.xs[k + 1], x, 1e-10)


def test_ddim_decodes_what_it_encoded():
    """The two differ by where the network is asked, so by O(1/N): 40 nodes against 400."""
    errors = []
    for n in (40, 400):
        mixture = sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.5)
        model = sg.MixtureModel(
            mixture, sg.TabulatedVPSDE(discrete.betas("linear", n, first=4e-3 * 40 / n, last=18 / n))
        )
        x = mixture.sample(50, seed=1).to(F64)
        there = discrete.ddim_encode(model, x)
        back = discrete.ddim(model, x.shape, steps=discrete.spaced(model)[:-1], x_init=there.x)
        errors.append(float((back.x - x).square().mean().sqrt()))
    assert 7 < errors[0] / errors[1] < 13
    assert errors[1] < 0.02


def sigmas() -> Tensor:
    return discrete.sigmas(12, sigma_min=0.05, sigma_max=8.0)


def score_model():
    """A score network told its label in NCSN's order, from the largest sigma (0) to the smallest."""
    sde = sg.TabulatedVESDE(sigmas())
    kind = sg.Parametrization(
        c_skip=lambda sde, t: torch.ones_like(t),
        c_out=lambda sde, t: sde.sigma(t) ** 2,
        c_in=lambda sde, t: torch.ones_like(t),
        c_noise=lambda sde, t: 12 * (1 - t),
    )
    return sg.Denoiser(Net(), sde, parametrization=kind)


@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_langevin_is_ncsns_algorithm_1(denoise):
    """Song & Ermon 2019: a_i = e sigma_i^2/sigma_L^2, x + a_i/2 s + sqrt(a_i) z; their e is twice ours."""
    model, x, e = score_model(), latent() * 8, 2 * 1e-4
    solution = discrete.annealed_langevin(
        model, SHAPE, epsilon=1e-4, steps_per_level=3, denoise=denoise, x_init=x, seed=SEED
    )
    falling = sigmas().flip(0)
    for label, sigma in enumerate(falling):
        alpha = e * sigma**2 / falling[-1] ** 2
        t = torch.tensor((12 - label) / 12, dtype=F64)
        for k in range(3):
            noise = Noise(SEED).normal(SHAPE, Purpose.CORRECTOR, t, k, dtype=F64, device="cpu")
            with torch.no_grad():
                x = x + alpha / 2 * model.net(x, torch.full((3,), float(label))) + torch.sqrt(alpha) * noise
    if denoise:  # Song & Ermon 2020
        with torch.no_grad():
            x = x + falling[-1] ** 2 * model.net(x, torch.full((3,), 11.0))
    close(solution.x, x, 1e-10)
    assert solution.nfe.tolist() == [36 + denoise] * 3


@pytest.mark.parametrize("sde", [sg.TabulatedVESDE(sigmas()), sg.TabulatedVPSDE(betas())], ids=["ve", "vp"])
def test_langevin_is_langevin_dynamics_at_one_level(sde):
    model = sg.MixtureModel(sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.5), sde)
    x, t, a = latent((5, 2)), torch.tensor(0.5, dtype=F64), 0.02
    solution = discrete.langevin(model, (5, 2), t=0.5, step=a, n=20, x_init=x, seed=SEED)
    for k in range(20):
        noise = Noise(SEED).normal((5, 2), Purpose.CORRECTOR, t, k, dtype=F64, device="cpu")
        x = x + a * model.score(x, t) + (2 * a) ** 0.5 * noise
    close(solution.x, x, 1e-12)
    assert solution.nfe.tolist() == [20] * 5
    close(discrete.langevin(model, (5, 2), t=0.5, step=a, n=20, x_init=latent((5, 2)), seed=SEED, denoise=True).x,
          model(x, t).x0, 1e-12)  # fmt: skip


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_predictor_corrector_is_song_et_al_2021(kind):
    """Algorithms 2 and 4 (VE), 3 and 5 (VP) in the order of their code, each sample with its own norms."""
    model = table_model(of="score") if kind == "vp" else score_model()
    n = N if kind == "vp" else 12
    snr, ts = 0.16, torch.arange(n, 0, -1, dtype=F64) / n
    x = latent()
    solver = sg.make_solver("predictor-corrector", snr=snr, rule="norm")
    solution = sg.sample(model, SHAPE, solver=solver, steps=ts, x_init=x, seed=SEED, save="all")
    for k in range(n - 1):
        t, i = ts[k], n - k

        def score(x, i=i):
            return said(model.net, x, i if kind == "vp" else 12 - i + 1)

        c = 1 - betas()[i - 1] if kind == "vp" else 1.0
        noise = Noise(SEED).normal(SHAPE, Purpose.CORRECTOR, t, 0, dtype=F64, device="cpu")
        ratio = (noise.flatten(1).norm(dim=1) / score(x).flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
        step = 2 * c * (snr * ratio) ** 2
        x = x + step * score(x) + torch.sqrt(2 * step) * noise
        if kind == "vp":
            beta = betas()[i - 1]
            x = (2 - torch.sqrt(1 - beta)) * x + beta * score(x) + torch.sqrt(beta) * z(t, ts[k + 1], x)
        else:
            d = sigmas()[i - 1] ** 2 - sigmas()[i - 2] ** 2
            x = x + d * score(x) + torch.sqrt(d) * z(t, ts[k + 1], x)
        # VE scores of size 1/sigma from a network of size 1: the state grows, so the tolerance is relative
        torch.testing.assert_close(solution.xs[k + 1], x, rtol=1e-10, atol=1e-10)


# ---- diffusers, step by step


def float64_tables(scheduler):
    """The scheduler with its own betas, but everything after them in float64."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.to(F64), 0)
    scheduler.one = torch.ones((), dtype=F64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        to_one = scheduler.config["set_alpha_to_one"]
        scheduler.final_alpha_cumprod = scheduler.one if to_one else scheduler.alphas_cumprod[0]
    return scheduler


def given_noise(monkeypatch, module: str, draws) -> None:
    """diffusers draws from this iterator."""
    monkeypatch.setattr(
        importlib.import_module(f"diffusers.schedulers.{module}"), "randn_tensor", lambda *a, **k: next(draws)
    )


def check_scheduler(make, run) -> None:
    """`run(scheduler, tolerance)` with the scheduler's own tables, and with float64 ones."""
    run(make(), 1e-5)
    run(float64_tables(make()), 1e-10)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("s", [10, 7])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm_is_diffusers_step_by_step(diffusers, monkeypatch, spacing, s, variance):
    """The whole run: DDPMScheduler steps to the next time of its list, as we do."""
    kind = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[variance]

    def make():
        scheduler = diffusers.DDPMScheduler(
            num_train_timesteps=N, trained_betas=betas().tolist(), clip_sample=False, variance_type=kind,
            timestep_spacing=spacing,
        )  # fmt: skip
        scheduler.set_timesteps(s)
        return scheduler

    def run(scheduler, tolerance):
        model = sg.from_diffusers(_as_unet(diffusers, wide=variance == "learned"), scheduler)
        ts, x = discrete.spaced(model, s, spacing=spacing), latent()
        assert numbers(ts)[:-1] == (scheduler.timesteps + 1).tolist()
        solution = discrete.ddpm(
            model, SHAPE, steps=s, spacing=spacing, variance=variance, x_init=x, seed=SEED, save="all"
        )
        for k, t in enumerate(scheduler.timesteps[:-1]):
            given_noise(monkeypatch, "scheduling_ddpm", iter([z(ts[k], ts[k + 1], x)]))
            x = scheduler.step(said(model.net, x, int(t) + 1), t, x).prev_sample
            close(solution.xs[k + 1], x, tolerance)
        # the last step is to clean data; where its time is not 0 diffusers adds noise even there
        given_noise(monkeypatch, "scheduling_ddpm", iter([torch.zeros_like(x)]))
        x = scheduler.step(said(model.net, x, int(scheduler.timesteps[-1]) + 1), scheduler.timesteps[-1], x).prev_sample
        close(solution.x, x, tolerance)

    check_scheduler(make, run)


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("s", [10, 7])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_diffusers_step_by_step(diffusers, spacing, s, eta, to_one):
    """Every step by itself, to the time that DDIMScheduler steps to: N//S earlier, which is not always the next one."""

    def make():
        scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=N, trained_betas=betas().tolist(), clip_sample=False, set_alpha_to_one=to_one,
            timestep_spacing=spacing,
        )  # fmt: skip
        scheduler.set_timesteps(s)
        return scheduler

    def run(scheduler, tolerance):
        model = sg.from_diffusers(_as_unet(diffusers), scheduler)
        term = sg.ReverseSDE(model, eta=eta) if eta else sg.ProbabilityFlow(model)
        x = latent()
        assert numbers(discrete.spaced(model, s, spacing=spacing))[:-1] == (scheduler.timesteps + 1).tolist()
        for t in (scheduler.timesteps + 1).tolist():
            target = t - N // s
            if target < 1 and not to_one:
                target = 1  # what diffusers takes for the last one
            if target == t:
                continue  # from node 1 to itself
            times = torch.tensor([t, max(target, 0)], dtype=F64) / N
            noise = z(times[0], times[1], x) if target > 0 else torch.zeros_like(x)
            ours = sg.solve(term, x, solver="ddim", steps=times, noise=SEED)
            with torch.no_grad():
                x = scheduler.step(said(model.net, x, t), t - 1, x, eta=eta, variance_noise=noise if eta else None)[0]
            close(ours.x, x, tolerance)

    check_scheduler(make, run)


@pytest.mark.parametrize(("spacing", "s"), [("leading", 40), ("leading", 10), ("leading", 7), ("trailing", 8)])
def test_ddim_is_diffusers_run(diffusers, spacing, s):
    """The whole run, where the time DDIMScheduler steps to is the next in its list."""
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=N, trained_betas=betas().tolist(), clip_sample=False, timestep_spacing=spacing
    )
    scheduler.set_timesteps(s)
    model, x = sg.from_diffusers(_as_unet(diffusers), float64_tables(scheduler)), latent()
    solution = discrete.ddim(model, SHAPE, steps=s, spacing=spacing, x_init=x)
    for t in scheduler.timesteps:
        x = scheduler.step(said(model.net, x, int(t) + 1), t, x).prev_sample
    close(solution.x, x, 1e-10)


def _as_unet(diffusers, *, wide: bool = False) -> nn.Module:
    """The fixed network in the clothes of a UNet2DModel."""
    net = Net(2 if wide else 1)

    class Clothed(nn.Module):
        config = {"in_channels": 2, "out_channels": 4 if wide else 2, "sample_size": 4}

        def forward(self, x, t, return_dict=True):
            return (net(x, t),)

    return Clothed().to(F64)


def test_reverse_diffusion_and_its_corrector_are_diffusers_score_sde_ve(diffusers, monkeypatch):
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.05, sigma_max=8.0, snr=0.16)
    scheduler.set_timesteps(12)
    scheduler.set_sigmas(12)
    scheduler.discrete_sigmas = sigmas()
    model, x = score_model(), latent()[:1]  # a batch of one: diffusers' norms are means over the batch
    ts = torch.arange(12, 0, -1, dtype=F64) / 12
    solver = sg.make_solver("predictor-corrector", snr=0.16, rule="norm")
    solution = sg.sample(
        model, x.shape, solver=solver, steps=torch.cat([ts, torch.zeros(1)]), x_init=x, seed=SEED, save="all"
    )
    for k, t in enumerate(ts):
        i = 12 - k
        if i > 1:  # ours ends with the denoising alone
            given_noise(monkeypatch, "scheduling_sde_ve",
                        iter([Noise(SEED).normal(x.shape, Purpose.CORRECTOR, t, 0, dtype=F64, device="cpu")]))  # fmt: skip
            x = scheduler.step_correct(said(model.net, x, 13 - i), x).prev_sample
        noise = z(t, ts[k + 1], x) if i > 1 else torch.zeros_like(x)
        given_noise(monkeypatch, "scheduling_sde_ve", iter([noise]))
        where = (i - 0.5) / 11  # diffusers' time of level i: its index is floor(11 t)
        x = scheduler.step_pred(said(model.net, x, 13 - i), where, x).prev_sample
        close(solution.xs[k + 1], x, 1e-5)  # its corrector's step is a float32


# ---- the multistep machine's settings, against the update functions of diffusers in float64


class Grid:
    """An irregular grid of n steps along VP with the exact belief of a mixture, and a start."""

    n = 10

    def __init__(self) -> None:
        mixture = sg.GaussianMixture([[1.0, 0.3], [-0.8, -1.0], [0.2, 1.5]], std=0.4, weights=[0.3, 0.5, 0.2])
        self.sde = sg.VPSDE()
        self.model = sg.MixtureModel(mixture, self.sde)
        generator = torch.Generator().manual_seed(3)
        levels = torch.linspace(float(self.sde.half_log_snr(1.0)), 4.0, self.n + 1, dtype=F64)
        levels[1:-1] += 0.15 * torch.rand(self.n - 1, generator=generator, dtype=F64)
        self.ts = self.sde.time(levels)
        self.ts[0] = 1.0
        self.alpha, self.sigma = self.sde.alpha(self.ts), self.sde.sigma(self.ts)
        self.x = torch.randn(5, 2, 1, 1, dtype=F64, generator=generator)

    def ours(self, name: str, eta: float, options: dict) -> Tensor:
        term = sg.ReverseSDE(self.model, eta=eta) if eta else sg.ProbabilityFlow(self.model)
        solver = sg.make_solver(name, **options)
        return sg.solve(term, self.x[..., 0, 0], solver=solver, steps=self.ts, noise=SEED, save="all").xs

    def x0(self, x: Tensor, k: int) -> Tensor:
        return self.model(x[..., 0, 0], self.ts[k]).x0[..., None, None]

    def eps(self, x: Tensor, k: int) -> Tensor:
        return self.model(x[..., 0, 0], self.ts[k]).noise[..., None, None]

    def z(self, k: int) -> Tensor:
        return z(self.ts[k], self.ts[k + 1], self.x[..., 0, 0])[..., None, None]

    def prepared(self, scheduler):
        """The scheduler on this grid, in float64."""
        scheduler.set_timesteps(self.n)
        scheduler.sigmas, scheduler.timesteps = self.sigma / self.alpha, torch.arange(self.n)
        scheduler._step_index = scheduler._begin_index = 0
        return scheduler

    def states(self, update) -> Tensor:
        x, xs = self.x, [self.x]
        for k in range(self.n):
            x = update(x, k)
            xs.append(x)
        return torch.stack(xs)[..., 0, 0]


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid()


DPM = {
    # name: (order, algorithm_type, solver_type, eta, our options)
    "ddim": (1, "dpmsolver++", "midpoint", 0.0, {}),
    "ancestral": (1, "sde-dpmsolver++", "midpoint", 1.0, {}),
    "dpm-solver2m": (2, "dpmsolver", "midpoint", 0.0, {}),
    "dpm-solver2m exact": (2, "dpmsolver", "heun", 0.0, {"rule": "exact"}),
    "dpm++2m": (2, "dpmsolver++", "midpoint", 0.0, {}),
    "dpm++2m exact": (2, "dpmsolver++", "heun", 0.0, {"rule": "exact"}),
    "dpm++2m-sde": (2, "sde-dpmsolver++", "midpoint", 1.0, {}),
    "dpm++2m-sde exact": (2, "sde-dpmsolver++", "heun", 1.0, {"rule": "exact"}),
    "dpm-solver3m": (3, "dpmsolver", "midpoint", 0.0, {}),
    "dpm++3m": (3, "dpmsolver++", "midpoint", 0.0, {}),
}


@pytest.mark.parametrize("lowered", [True, False], ids=["lowered", "not lowered"])
@pytest.mark.parametrize("name", DPM)
def test_dpm_solvers_are_diffusers(diffusers, grid, name, lowered):
    order, algorithm, kind, eta, options = DPM[name]
    scheduler = grid.prepared(
        diffusers.DPMSolverMultistepScheduler(
            solver_order=order, algorithm_type=algorithm, solver_type=kind, prediction_type="sample",
            final_sigmas_type="sigma_min",
        )
    )  # fmt: skip
    past: list[Tensor] = []

    def update(x, k):  # its `step` casts to float32, its update functions do not
        scheduler._step_index = k
        past.append(scheduler.convert_model_output(grid.x0(x, k), sample=x))
        words = {"sample": x, "noise": grid.z(k) if eta else None}
        here = min(order, k + 1, grid.n - k if lowered else order)
        if here == 1:
            return scheduler.dpm_solver_first_order_update(past[-1], **words)
        if here == 2:
            return scheduler.multistep_dpm_solver_second_order_update(past, **words)
        return scheduler.multistep_dpm_solver_third_order_update(past, **words)

    options = options if lowered or order == 1 else {**options, "lower_order_final": False}
    close(grid.ours(name.split()[0], eta, options), grid.states(update), 1e-12)


@pytest.mark.parametrize("gauge", ["data", "noise"])
@pytest.mark.parametrize("kind", ["bh2", "bh1"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("lowered", [True, False], ids=["lowered", "not lowered"])
def test_unipc_is_diffusers(diffusers, grid, order, kind, gauge, lowered):
    scheduler = grid.prepared(
        diffusers.UniPCMultistepScheduler(
            solver_order=order, solver_type=kind, predict_x0=gauge == "data", prediction_type="sample",
            lower_order_final=lowered,
        )
    )  # fmt: skip
    theirs = grid.states(lambda x, k: scheduler.step(grid.x0(x, k), k, x, return_dict=False)[0])
    options = {"gauge": gauge, "rule": {"bh2": "mean", "bh1": "end"}[kind], "lower_order_final": lowered}
    close(grid.ours(f"unipc{order}", 0.0, options), theirs, 1e-11)


@pytest.mark.parametrize("order", [2, 3])
def test_deis_is_diffusers(diffusers, grid, order):
    scheduler = grid.prepared(diffusers.DEISMultistepScheduler(solver_order=order))
    past: list[Tensor] = []

    def update(x, k):
        scheduler._step_index = k
        past.append(grid.eps(x, k))
        here = min(order, k + 1, grid.n - k)
        if here == 1:
            return scheduler.deis_first_order_update(past[-1], sample=x)
        if here == 2:
            return scheduler.multistep_deis_second_order_update(past, sample=x)
        return scheduler.multistep_deis_third_order_update(past, sample=x)

    close(grid.ours("deis3", 0.0, {"order": order}), grid.states(update), 1e-11)


def test_ipndm_is_diffusers(diffusers, grid):
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(grid.n)
    scheduler.betas, scheduler.alphas = grid.sigma, grid.alpha  # its names for sigma and alpha
    scheduler._step_index = 0

    def update(x, k):
        v = grid.model(x[..., 0, 0], grid.ts[k]).v[..., None, None]
        return scheduler.step(v, k, x, return_dict=False)[0]

    close(grid.ours("ipndm4", 0.0, {}), grid.states(update), 1e-11)


def test_lms_is_diffusers(diffusers, grid):
    scheduler = diffusers.LMSDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(grid.n)
    scheduler.sigmas, scheduler.timesteps = grid.sigma / grid.alpha, torch.arange(grid.n)
    scheduler._step_index, scheduler.is_scale_input_called = 0, True
    coefficient = scheduler.get_lms_coefficient  # to 1e-4 by default; the integrand is a polynomial, so any is exact

    def update(x, k):  # its state is x/alpha, its derivative eps
        scheduler._step_index = k
        past.insert(0, grid.eps(x, k))
        order = min(4, k + 1)
        weights = [coefficient(order, k, i) for i in range(order)]
        hat = x / grid.alpha[k] + sum(w * e for w, e in zip(weights, past, strict=False))
        return grid.alpha[k + 1] * hat

    past: list[Tensor] = []
    close(grid.ours("lms4", 0.0, {}), grid.states(update), 1e-11)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(3, 4), (3, 3), (2, 2), (1, 2)])
@pytest.mark.parametrize("lowered", [True, False], ids=["lowered", "not lowered"])
def test_sa_solver_is_diffusers(diffusers, grid, monkeypatch, predictor, corrector, tau, lowered):
    """Its tau is our eta; its corrector's order counts the new node."""
    scheduler = grid.prepared(
        diffusers.SASolverScheduler(
            predictor_order=predictor, corrector_order=corrector, prediction_type="sample", lower_order_final=lowered,
            tau_func=lambda t: torch.tensor(tau, dtype=F64),
        )
    )  # fmt: skip
    given_noise(monkeypatch, "scheduling_sasolver", iter(grid.z(k) for k in range(grid.n)))
    theirs = grid.states(lambda x, k: scheduler.step(grid.x0(x, k), k, x, return_dict=False)[0])
    options = {"order": predictor, "corrector": corrector - 1, "lower_order_final": lowered}
    close(grid.ours("sa-solver3", tau, options), theirs, 1e-11)


# ---- whole runs of diffusers, each scheduler as it comes: its times, its first and last steps


AS_IT_COMES = {
    # name: (scheduler, what it is told, our options, eta, whether it goes on to sigma = 0)
    "unipc2": ("UniPCMultistepScheduler", {}, {}, 0.0, True),
    "unipc3": ("UniPCMultistepScheduler", {"solver_order": 3}, {}, 0.0, True),
    "unipc3 to sigma_min": ("UniPCMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}, {}, 0.0, False),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}, {}, 0.0, True),
    "dpm++3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}, 0.0, True),
    "dpm++3m to sigma_min": ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}, {}, 0.0, False),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}, 1.0, True),
    "deis3": ("DEISMultistepScheduler", {"solver_order": 3}, {}, 0.0, False),
    "deis3 of order 2": ("DEISMultistepScheduler", {}, {"order": 2}, 0.0, False),
    "sa-solver3": ("SASolverScheduler", {"tau_func": lambda t: 1.0}, {"order": 2, "corrector": 1}, 1.0, False),
    "sa-solver3 of 3 and 4": (
        "SASolverScheduler", {"tau_func": lambda t: 1.0, "predictor_order": 3, "corrector_order": 4}, {}, 1.0, False
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*past values")
@pytest.mark.parametrize("n", [5, 8, 14, 15, 20])
@pytest.mark.parametrize("name", AS_IT_COMES)
def test_a_published_name_is_what_diffusers_ships(diffusers, monkeypatch, name, n):
    kind, told, options, eta, to_zero = AS_IT_COMES[name]
    scheduler = getattr(diffusers, kind)(**told)
    scheduler.set_timesteps(n)
    model = sg.from_diffusers(_as_unet(diffusers), scheduler)
    ts = torch.cat([(scheduler.timesteps.to(F64) + 1) / 1000, torch.tensor([0.0 if to_zero else 1e-3], dtype=F64)])
    x = latent()
    given = sg.make_solver(name.split()[0], **options)
    solution = sg.sample(model, SHAPE, solver=given, steps=ts, x_init=x, seed=SEED, eta=eta)
    if eta:
        draws = [z(a, b, x) for a, b in zip(ts, ts[1:], strict=False)]
        module = {"SASolverScheduler": "scheduling_sasolver"}.get(kind, "scheduling_dpmsolver_multistep")
        given_noise(monkeypatch, module, iter(draws))
    for t in scheduler.timesteps:
        x = scheduler.step(said(model.net, x, int(t) + 1), t, x, return_dict=False)[0]
    close(solution.x, x.to(F64), 1e-4)  # its tables and, in part, its states are float32
    assert int(solution.nfe[0]) == n


def test_er_sde_2_is_the_papers(grid):
    """Cui et al. 2023, ER-SDE-Solver-2 with the function 5, its integral of 1/phi by a fine sum."""

    def phi(s):
        return s * (torch.exp(s**0.3) + 10)

    sh, last = grid.sigma / grid.alpha, []

    def update(x, k):
        d = grid.x0(x, k)
        r = phi(sh[k + 1]) / phi(sh[k])
        hat = r * x / grid.alpha[k] + (1 - r) * d
        if k:
            s = torch.logspace(float(sh[k + 1].log10()), float(sh[k].log10()), 20001, dtype=F64)
            integral = torch.trapezoid(phi(sh[k + 1]) / phi(s), s)
            hat = hat + (sh[k + 1] - sh[k] + integral) * (d - last[-1]) / (sh[k] - sh[k - 1])
        last.append(d)
        return grid.alpha[k + 1] * (hat + torch.sqrt(sh[k + 1] ** 2 - r**2 * sh[k] ** 2) * grid.z(k))

    close(grid.ours("er-sde2", 1.0, {}), grid.states(update), 1e-7)  # the sum's error


def test_er_sde_is_for_eta_1_and_without_noise_dpm_plus_plus(grid):
    ours = grid.ours("er-sde2", 0.0, {"variable": "lambda"})
    close(ours, grid.ours("dpm++2m", 0.0, {"rule": "exact", "lower_order_final": False}), 1e-12)
    with pytest.raises(sg.InvalidInputError, match="eta=1"):
        grid.ours("er-sde2", 0.5, {})


# ---- the reverse claims


def on_edm(model) -> tuple[sg.ScoreModel, Tensor, Tensor]:
    """A table's model along EDMSDE, and the sigma/alpha and alpha of its nodes from the last to the first."""
    ts = discrete.spaced(model)[:-1]
    alpha, sigma = model.sde.alpha(ts), model.sde.sigma(ts)
    sh = sigma / alpha
    return model.on(sg.EDMSDE(float(sh[-1]), float(sh[0]))), sh, alpha


def test_ddim_is_eulers_method_along_edm():
    model, x = table_model(), latent()
    along, sh, alpha = on_edm(model)
    ddim = discrete.ddim(model, SHAPE, steps=discrete.spaced(model)[:-1], x_init=x, save="all")
    term = sg.ProbabilityFlow(along)
    euler = sg.solve(term, x / alpha[0], solver="euler", steps=sh, save="all")
    for k in range(N):
        # x/alpha is 160 times larger at the start than at the end
        torch.testing.assert_close(euler.xs[k] * alpha[k], ddim.xs[k], rtol=1e-9, atol=1e-9)


def test_ancestral_is_the_family_of_first_order_at_eta_1():
    """x/alpha: r (xh - D) + D + sqrt(sh'^2 - r^2 sh^2) z with r = (sh'/sh)^2, along the table and along EDM alike."""
    model, x = table_model(), latent()
    along, sh, alpha = on_edm(model)
    ts = discrete.spaced(model)[:-1]
    table = discrete.ddpm(model, SHAPE, steps=ts, x_init=x, seed=SEED, save="all")
    hat = x / alpha[0]
    for k in range(N - 1):
        d = along(hat, sh[k]).x0.detach()
        r = (sh[k + 1] / sh[k]) ** 2
        hat = d + r * (hat - d) + torch.sqrt(sh[k + 1] ** 2 - r**2 * sh[k] ** 2) * z(ts[k], ts[k + 1], hat)
        torch.testing.assert_close(hat * alpha[k + 1], table.xs[k + 1], rtol=1e-9, atol=1e-9)


def test_the_large_variance_is_exact_for_standard_normal_data():
    """Data N(0, 1) along VP are N(0, 1) at every node: the step x' = A x + s z must have A^2 + s^2 = 1."""
    model = sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.TabulatedVPSDE(betas()))
    for steps in ([1.0, 0.5], [0.5, 0.1], [0.2, 0.175], [0.05, 0.025]):
        x = torch.tensor([[0.0], [1.0]], dtype=F64)
        ts = torch.tensor(steps, dtype=F64)
        end = discrete.ddpm(model, x.shape, steps=ts, variance="large", x_init=x, seed=SEED).x
        noise = z(ts[0], ts[1], x)
        s = end[0] / noise[0]
        a = end[1] - s * noise[1]
        close(a**2 + s**2, torch.ones(1, dtype=F64), 1e-12)


# ---- no signal at the last node


class Exact(nn.Module):
    """The exact belief of a mixture as a network of some parametrisation."""

    def __init__(self, model, of: str) -> None:
        super().__init__()
        self.model, self.of = model, of

    def forward(self, x, t):
        belief = self.model(x, t)
        if self.of == "edm":
            alpha, sigma, s = self.model.sde.alpha(t)[:, None], self.model.sde.sigma(t)[:, None], 1.0
            r = torch.hypot(alpha * s, sigma)
            return (belief.x0 - alpha * s**2 / r**2 * x) / (sigma * s / r)
        return getattr(belief, self.of)


ENDLESS = {
    "table": sg.TabulatedVPSDE(discrete.zero_terminal_snr(betas())),
    "flow": sg.LinearPathSDE(t_min=0.025, t_max=1.0),
}


@pytest.mark.parametrize("of", ["x0", "v", "velocity", "edm"])
@pytest.mark.parametrize("name", ENDLESS)
def test_every_flow_starts_where_there_is_no_signal(name, of):
    """x' = alpha' D + sigma' eps there; every parametrisation of one belief gives one sample."""
    sde = ENDLESS[name]
    truth = sg.MixtureModel(sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.5), sde)
    kind = of
    if of == "edm":  # a network told t and x as they are
        edm = sg.models.parametrization.parametrization("edm", 1.0)
        kind = sg.Parametrization(edm.c_skip, edm.c_out, lambda sde, t: torch.ones_like(t), lambda sde, t: t)
    known = {"data_mean": truth.data_mean, "data_std": truth.data_std}  # which choose the coordinates
    model = sg.Denoiser(Exact(truth, of), sde, parametrization=kind, **known)
    model.smooth = True  # this network is
    assert sde.half_log_snr(1.0) == -torch.inf
    x = latent((6, 2))
    for solver, eta in (
        ("ddim", 0.0),
        ("ddim", 0.5),
        ("ancestral", 1.0),
        ("dpm++2m", 0.0),
        ("unipc3", 0.0),
        ("adams", 0.0),
    ):
        ts = torch.cat([torch.arange(20, 0, -1, dtype=F64) / 20, torch.zeros(1)])
        how = {"solver": solver, "eta": eta, "x_init": x, "seed": SEED, "steps": ts, "dtype": F64}
        close(sg.sample(model, x.shape, **how).x, sg.sample(truth, x.shape, **how).x, 1e-8)
    first = sg.sample(model, x.shape, solver="ddim", steps=[1.0, 0.5], x_init=x).x
    d = truth(x, torch.tensor(1.0)).x0
    close(first, sde.alpha(0.5) * d + sde.sigma(0.5) * x, 1e-12)


@pytest.mark.parametrize("of", ["noise", "score"])
@pytest.mark.parametrize("name", ENDLESS)
def test_noise_and_score_say_nothing_where_there_is_no_signal(name, of):
    sde = ENDLESS[name]
    truth = sg.MixtureModel(sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.5), sde)
    model = sg.Denoiser(Exact(truth, of), sde, parametrization=of)
    with pytest.raises(sg.InvalidInputError, match="says nothing about the data there"):
        sg.sample(model, (4, 2), solver="ddim", steps=[1.0, 0.5, 0.0])
    with pytest.raises(sg.InvalidInputError, match="says nothing about the data there"):
        model(latent((4, 2)), torch.ones(4))
    assert torch.isfinite(sg.sample(model, (4, 2), solver="ddim", steps=[0.975, 0.5, 0.0]).x).all()


@pytest.mark.parametrize("name", ENDLESS)
def test_adaptive_solvers_start_where_there_is_no_signal(name):
    """They run on the circular path, where nothing is infinite; 500 DDIM steps are right to 4e-3."""
    truth = sg.MixtureModel(sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.5), ENDLESS[name])
    x = latent((6, 2))
    fine = sg.sample(truth, x.shape, rtol=1e-9, x_init=x, dtype=F64).x
    for how in ({"solver": "adams", "rtol": 1e-5}, {"solver": "dopri5", "rtol": 1e-6}):
        close(sg.sample(truth, x.shape, x_init=x, dtype=F64, **how).x, fine, 1e-3)
    close(sg.sample(truth, x.shape, solver="ddim", steps=500, x_init=x, dtype=F64).x, fine, 1e-2)
    down = torch.cat([torch.arange(60, 1, -1, dtype=F64) / 60, torch.tensor([truth.sde.t_min])])
    for solver in ("unipc3", "deis3", "v-adams3"):  # up to infinite sigma/alpha, too
        low = sg.sample(truth, x.shape, solver=solver, steps=down, x_init=x).x
        close(sg.encode(truth, low, solver=solver, steps=down.flip(0)).x, x, 0.05)
    back = sg.encode(
        truth, sg.sample(truth, x.shape, rtol=1e-9, t_span=(1.0, truth.sde.t_min), x_init=x).x, rtol=1e-9
    ).x
    close(back, x, 1e-6)


def test_noisy_solvers_of_higher_order_start_where_there_is_no_signal():
    """From pure noise nothing of the state is kept: every one of them returns the data's law."""
    mixture = sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.5)
    for solver in ("dpm++2m-sde", "sa-solver3", "er-sde2", "er-sde3", "d-adams2-sde"):
        truth = sg.MixtureModel(mixture, ENDLESS["table"])
        x = sg.sample(truth, 2000, solver=solver, steps=40, seed=1, dtype=F64).x
        close(x.mean(0), mixture.mean, 4 * 2000**-0.5)
        close(x.T.cov(), mixture.covariance, 0.15)


def test_noise_that_is_infinite_says_so():
    truth = sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), ENDLESS["table"])
    with pytest.raises(sg.InvalidInputError, match="infinite"):
        sg.sample(truth, 2, solver="euler-maruyama", steps=10)
    with pytest.raises(sg.InvalidInputError, match="no signal .* pass earlier times"):
        sg.sample(truth, 2, solver="langevin", steps=[1.0, 0.5])


@pytest.mark.parametrize("of", ["x0", "v"])
def test_a_table_without_signal_is_diffusers(diffusers, of):
    """DDIM's own zero-terminal-SNR table, trailing, as Lin et al. 2024 ask."""
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=N, beta_start=2e-3, beta_end=0.4, rescale_betas_zero_snr=True, clip_sample=False,
        prediction_type={"x0": "sample", "v": "v_prediction"}[of], timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(8)
    model, x = sg.from_diffusers(_as_unet(diffusers), float64_tables(scheduler)), latent()
    assert model.sde.alpha(1.0) == 0
    solution = discrete.ddim(model, SHAPE, steps=8, spacing="trailing", x_init=x)
    for t in scheduler.timesteps:
        x = scheduler.step(said(model.net, x, int(t) + 1), t, x).prev_sample
    close(solution.x, x, 1e-10)
