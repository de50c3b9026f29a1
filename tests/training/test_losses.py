"""Score-matching objectives: what they estimate, how they are weighted, what times they draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sdegen.core.errors import InvalidInputError
from sdegen.distributions.mixture import GaussianMixture
from sdegen.models.base import ScoreModel
from sdegen.models.denoiser import Denoiser
from sdegen.models.exact import MixtureModel
from sdegen.models.prediction import Prediction
from sdegen.noise.purposes import Purpose
from sdegen.noise.white import Noise
from sdegen.processes import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    LinearPathSDE,
    PathSDE,
    SubVPSDE,
    TabulatedVESDE,
    TabulatedVPSDE,
    TrigSDE,
)
from sdegen.training.losses import dsm_loss, implicit_loss, sliced_loss

SDES = [
    VPSDE(),
    SubVPSDE(),
    CosineSDE(),
    LinearPathSDE(),
    VESDE(),
    EDMSDE(),
    TrigSDE(0.7),
    TabulatedVPSDE(torch.linspace(1e-3, 0.2, 40)),
    TabulatedVESDE(torch.logspace(-2, 1, 20)),
    PathSDE(lambda t: torch.exp(-2 * t), lambda t: t + 0.01),
]
PARAMETRIZATIONS = ["x0", "noise", "score", "v", "velocity", "edm"]
WEIGHTS = ["simple", "likelihood", "edm", "min-snr", "one"]
LAWS = ["uniform", "log-normal", "importance"]
STD = 0.7


def name(value: object) -> str:
    return type(value).__name__


class Net(nn.Module):
    """A smooth function of (x, t), float64."""

    def __init__(self, d: int = 3) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(d + 1, 16), nn.Linear(16, d)
        self.double()
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.out(torch.tanh(self.inp(torch.cat([x, t[:, None]], 1))))


class Shifted(ScoreModel):
    """A model whose score is off by delta(x) = shift tanh(x), a known error."""

    def __init__(self, model: ScoreModel, shift: float) -> None:
        super().__init__(model.sde, data_std=model.data_std, event_shape=model.event_shape)
        self.model, self.shift = model, shift

    def error(self, x: Tensor) -> Tensor:
        return self.shift * torch.tanh(x)

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        return Prediction.from_score(x, self.model(x, t).score + self.error(x), self.sde, t)


def mixture() -> GaussianMixture:
    return GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=[0.5, 0.3], weights=[1, 2])


def draw(n: int, d: int = 3) -> tuple[Tensor, Tensor]:
    return STD * torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)


def times(sde, n: int) -> Tensor:
    return sde.t_min + (sde.t_max - sde.t_min) * torch.rand(n, dtype=torch.float64)


def z_score(difference: Tensor, expected: float | Tensor = 0.0) -> float:
    """How many standard errors the mean of a sample is from what it should be."""
    excess = difference - expected
    return abs(float(excess.mean() / (excess.std() / math.sqrt(len(excess)))))


# ---- what the loss is


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_loss_is_the_weighted_error_of_score_noise_and_x0_alike(sde, parametrization, weight):
    model = Denoiser(Net(), sde, parametrization=parametrization, data_std=STD)
    x0, noise = draw(200)
    t = times(sde, 200)
    loss = dsm_loss(model, x0, t=t, noise=noise, weight=weight)
    alpha, sigma, g = sde.alpha(t)[:, None], sde.sigma(t)[:, None], sde.diffusion(t)[:, None]
    snr, sh = (alpha / sigma) ** 2, sigma / alpha
    belief = model(sde.perturb(x0, t, noise), t)
    score, eps, clean = (
        ((a - b) ** 2).mean(1) for a, b in ((belief.score, -noise / sigma), (belief.noise, noise), (belief.x0, x0))
    )
    # each weight in the residual it was published for
    published = {
        "simple": eps,
        "likelihood": g[:, 0] ** 2 * score,
        "edm": ((sh**2 + STD**2) / (sh * STD) ** 2)[:, 0] * clean,
        "min-snr": snr[:, 0].clamp(max=5) * clean,
        "one": score,
    }
    # 1e-10 of the loss where the reference does not itself cancel: x0 - x0-hat loses digits where the error is small
    torch.testing.assert_close(loss, published[weight], rtol=1e-10, atol=0)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_weight_may_be_a_function_of_time(sde):
    model = Denoiser(Net(), sde, data_std=STD)
    x0, noise = draw(50)
    t = times(sde, 50)
    expected = dsm_loss(model, x0, t=t, noise=noise, weight="likelihood")
    got = dsm_loss(model, x0, t=t, noise=noise, weight=lambda s, u: s.diffusion(u) ** 2)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    doubled = dsm_loss(model, x0, t=t, noise=noise, weight=lambda s, u: 2.0)
    torch.testing.assert_close(doubled, 2 * dsm_loss(model, x0, t=t, noise=noise, weight="one"), rtol=1e-14, atol=0)


@pytest.mark.parametrize("t", [2e-4, 0.02, 1.0, 80.0, 8e3])
def test_small_errors_survive_float32_at_every_noise_level(t):
    """The network is off by 1e-3 in F: the loss is 1e-6 at any noise level, to the rounding of F (1e-7/1e-3, twice)."""
    sde, m = EDMSDE(1e-4, 1e4), math.sqrt(t**2 + STD**2)

    class Almost(nn.Module):
        def forward(self, x: Tensor, _: Tensor) -> Tensor:
            return t / (STD * m) * x0 - STD / m * noise + 1e-3

    x0, noise = (z.float() for z in draw(1000))
    loss = dsm_loss(Denoiser(Almost(), sde, data_std=STD), x0, t=t, noise=noise)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.mean(), torch.tensor(1e-6), rtol=2e-3, atol=0)


def test_table_that_ends_in_pure_noise_has_finite_loss():
    sde = TabulatedVPSDE([0.1, 0.3, 0.6, 1.0])
    x0, noise = draw(400)
    for parametrization in ("v", "x0"):
        model = Denoiser(Net(), sde, parametrization=parametrization, data_std=1.0)
        assert torch.isfinite(dsm_loss(model, x0, noise=noise, weight=None)).all()
    with pytest.raises(InvalidInputError, match="uniform"):
        dsm_loss(model, x0, t="importance")


# ---- what it estimates


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.1, 5.0), LinearPathSDE()], ids=name)
@pytest.mark.parametrize("loss", [dsm_loss, implicit_loss, sliced_loss])
def test_gap_between_two_models_is_the_explicit_one(sde, loss):
    """E loss(model) - E loss(oracle) = E w ||s_theta - s||^2 / d (Vincent 2011): all else is a constant."""
    oracle = MixtureModel(mixture(), sde)
    wrong = Shifted(oracle, 1.0)
    n = 40_000
    x0 = mixture().sample(n, seed=1, dtype=torch.float64)
    t, noise = times(sde, n).clamp(min=0.1 * sde.t_max), torch.randn(n, 2, dtype=torch.float64)
    with torch.no_grad():
        at_wrong, at_oracle = (loss(m, x0, t=t, noise=noise, weight="simple", seed=3) for m in (wrong, oracle))
    gap = at_wrong - at_oracle
    explicit = sde.sigma(t) ** 2 * (wrong.error(sde.perturb(x0, t, noise)) ** 2).mean(1)
    assert explicit.mean() > 10 * gap.std() / math.sqrt(n), "the gap must be measurable"
    assert z_score(gap, explicit) < 4


def test_both_sliced_losses_have_the_mean_of_the_implicit_one():
    model = Shifted(MixtureModel(mixture(), VPSDE()), 0.4)
    x0 = mixture().sample(20_000, seed=1, dtype=torch.float64)
    noise = torch.randn_like(x0)
    with torch.no_grad():
        exact = implicit_loss(model, x0, t=0.4, noise=noise)
        reduced = sliced_loss(model, x0, t=0.4, noise=noise, seed=5)
        plain = sliced_loss(model, x0, t=0.4, noise=noise, seed=5, variance_reduced=False)
    assert z_score(reduced, exact) < 4 and z_score(plain, exact) < 4
    # their difference is that of (v's)^2 and its mean
    v, sde = Noise(5).normal(x0.shape, Purpose.LOSS_PROBE, dtype=x0.dtype, device="cpu"), model.sde
    score = model(sde.perturb(x0, 0.4, noise), 0.4).score
    wanted = float(sde.sigma(0.4)) ** 2 * ((v * score).sum(1) ** 2 - (score**2).sum(1)) / 2
    torch.testing.assert_close(plain - reduced, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_minimiser_is_the_true_score(sde):
    """For x0 ~ N(0, c^2) and s_theta = -a x the minimising a must be 1/(alpha^2 c^2 + sigma^2)."""

    class Linear(ScoreModel):
        def __init__(self) -> None:
            super().__init__(sde, data_std=STD)
            self.a = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
            return Prediction.from_score(x, -self.a * x, self.sde, t)

    model = Linear()
    n, t = 100_000, (sde.t_min + sde.t_max) / 2
    x0, noise = draw(n, 1)
    loss = dsm_loss(model, x0, t=t, noise=noise, weight="one").mean()
    (slope,) = torch.autograd.grad(loss, model.a, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, model.a)  # the loss is a parabola in a: one Newton step is exact
    best = float((model.a - slope / curvature).detach())
    true = 1 / float(sde.alpha(t) ** 2 * STD**2 + sde.sigma(t) ** 2)
    # relative Monte Carlo error of a: at most that of E[x^2] and E[x noise], with kappa = alpha c/sigma
    kappa = float(sde.alpha(t) / sde.sigma(t)) * STD
    assert abs(best / true - 1) < 5 * max(1, kappa) / math.sqrt(n)


# ---- the laws of time


class Asked(ScoreModel):
    """A model that keeps what it was asked."""

    def __init__(self, sde, std: float) -> None:
        super().__init__(sde, data_std=std)

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        self.x, self.t = x, torch.as_tensor(t)
        return Prediction.from_score(x, torch.zeros_like(x), self.sde, t)


def kolmogorov_smirnov(u: Tensor) -> float:
    """sqrt(n) times the largest gap between the law of a sample u and the uniform one; above 1.95 once in 1000."""
    n = len(u)
    return float((u.sort().values - (torch.arange(n) + 0.5) / n).abs().max()) * math.sqrt(n)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("seed", [None, 7])
def test_times_follow_their_law(sde, seed):
    model, x0 = Asked(sde, 0.3), torch.zeros(5000, 1, dtype=torch.float64)
    ends = sde.half_log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))

    dsm_loss(model, x0, t="uniform", seed=seed)
    assert kolmogorov_smirnov((model.t - sde.t_min) / (sde.t_max - sde.t_min)) < 1.95
    dsm_loss(model, x0, t="importance", seed=seed)
    assert kolmogorov_smirnov((ends[0] - sde.half_log_snr(model.t)) / (ends[0] - ends[1])) < 1.95
    dsm_loss(model, x0, t="log-normal", seed=seed)
    normal = torch.distributions.Normal(-1.2 + math.log(0.3 / 0.5), 1.2)
    low, high = normal.cdf(-ends[0]), normal.cdf(-ends[1])
    assert kolmogorov_smirnov((normal.cdf(-sde.half_log_snr(model.t)) - low) / (high - low)) < 1.95


@pytest.mark.parametrize("sde", [VPSDE(), CosineSDE(), LinearPathSDE(), SubVPSDE()], ids=name)
@pytest.mark.parametrize("weight", ["likelihood", "simple"])
def test_importance_sampling_keeps_the_mean(sde, weight):
    model = Denoiser(Net(1), sde, parametrization="noise")
    x0 = STD * torch.randn(200_000, 1, dtype=torch.float64)
    with torch.no_grad():
        uniform, importance = (dsm_loss(model, x0, t=law, weight=weight) for law in ("uniform", "importance"))
    error = math.sqrt(float(uniform.var() + importance.var()) / len(x0))
    assert abs(float(uniform.mean() - importance.mean())) < 4 * error
    if weight == "likelihood":
        assert importance.var() < uniform.var() / 2


def test_defaults_suit_the_parametrisation():
    x0 = STD * torch.randn(64, 3, dtype=torch.float64)
    suits = {
        "x0": ("uniform", "min-snr"),
        "noise": ("uniform", "simple"),
        "score": ("uniform", "simple"),
        "v": ("uniform", "edm"),
        "velocity": ("uniform", "edm"),
        "edm": ("log-normal", "edm"),
    }
    for parametrization in PARAMETRIZATIONS:
        model = Denoiser(Net(), VPSDE(), parametrization=parametrization, data_std=STD)
        law, weight = suits[parametrization]
        expected = dsm_loss(model, x0, seed=1, t=law, weight=weight)
        assert torch.equal(dsm_loss(model, x0, seed=1), expected)
    for weight, law in (("edm", "log-normal"), ("likelihood", "importance"), ("one", "uniform")):
        expected = dsm_loss(model, x0, seed=1, t=law, weight=weight)
        assert torch.equal(dsm_loss(model, x0, seed=1, weight=weight), expected)


# ---- seeds, shapes, wrong input


@pytest.mark.parametrize("loss", [dsm_loss, implicit_loss, sliced_loss])
def test_a_samples_draw_depends_on_its_number_alone(loss):
    model = Denoiser(Net(), VPSDE(), data_std=STD)
    x0, _ = draw(20)
    whole = loss(model, x0, seed=4)
    torch.testing.assert_close(loss(model, x0[:7], seed=4), whole[:7], rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(model, x0[11:], seed=Noise(4, index=range(11, 20))), whole[11:], rtol=1e-12, atol=0)
    assert not torch.allclose(loss(model, x0, seed=5), whole)
    before = torch.get_rng_state()
    loss(model, x0, seed=4)
    assert torch.equal(torch.get_rng_state(), before), "a seeded loss leaves the global generator alone"


@pytest.mark.parametrize("seed", [None, 7])
def test_time_and_noise_are_drawn_independently(seed):
    model, x0 = Asked(VPSDE(), 1.0), torch.zeros(5000, 1, dtype=torch.float64)
    dsm_loss(model, x0, t="uniform", seed=seed)
    noise = model.x[:, 0] / model.sde.sigma(model.t)
    assert abs(float(torch.corrcoef(torch.stack([model.t, noise]))[0, 1])) < 4 / math.sqrt(5000)


@pytest.mark.parametrize("loss", [dsm_loss, implicit_loss, sliced_loss])
@pytest.mark.parametrize("event", [(), (3,), (1, 2, 2)])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_event_and_batch(loss, event, batch):
    class Elementwise(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x) * torch.cos(t).reshape(-1, *(1,) * (x.ndim - 1))

    for dtype in (torch.float32, torch.float64):
        value = loss(Denoiser(Elementwise(), VPSDE()), torch.randn(batch, *event, dtype=dtype))
        assert value.shape == (batch,) and value.dtype == dtype


@pytest.mark.parametrize("loss", [implicit_loss, sliced_loss])
def test_implicit_losses_work_without_gradients_and_train_with_them(loss):
    model = Denoiser(Net(), VPSDE(), data_std=STD)
    x0, _ = draw(8)
    with torch.no_grad():
        assert not loss(model, x0, seed=1).requires_grad
    loss(model, x0, seed=1).mean().backward()
    assert all(p.grad is not None for p in model.parameters())


WRONG = [
    ("t", dict(t="gaussian"), "expected .uniform., .log-normal."),
    ("weight", dict(weight="snr"), "min-snr"),
    ("weight type", dict(weight=3), "function of"),
    ("weight shape", dict(weight=lambda sde, t: torch.ones(3)), "expected t's"),
    ("times outside", dict(t=2.0), "t_max=1"),
    ("negative time", dict(t=torch.full((4,), -0.1)), "t_min=0.001"),
    ("NaN time", dict(t=math.nan), "got t=nan"),
    ("times of another batch", dict(t=torch.full((5,), 0.5)), r"\(4,\)"),
    ("noise", dict(noise=torch.zeros(4, 2)), "expected x0's"),
    ("condition", dict(colour=1), "it takes label"),
    ("condition's batch", dict(label=torch.zeros(3)), "per sample"),
    ("integer x0", dict(x0=torch.zeros(4, 3, dtype=torch.int64)), "float"),
    ("event", dict(x0=torch.zeros(4, 5)), "event shape"),
    ("no batch", dict(x0=torch.zeros(())), "batch axis"),
    ("seed", dict(seed=1.5), "integer"),
    ("model", dict(model=Net()), "Denoiser"),
]


@pytest.mark.parametrize(("arguments", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_refused_before_the_network_is_called(arguments, says):
    net = Net()
    model = Denoiser(net, VPSDE())
    model.event_shape = (3,)
    call = {"model": model, "x0": torch.zeros(4, 3, dtype=torch.float64), **arguments}
    with pytest.raises(InvalidInputError, match=says):
        dsm_loss(**call)
    assert net.calls == 0
