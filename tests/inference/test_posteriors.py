"""Draws given what was seen: unbiased weights, exact laws, groups that do not know of each other, wrong calls."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SOME_SDES
from torch import Tensor, nn

import sdegen as sg

F64 = torch.float64
SDES = {name: sde for name, sde in SOME_SDES.items() if float(sde.alpha(sde.t_max)) > 0}
MIXTURE = sg.GaussianMixture([[-1.0, -0.8], [0.9, -0.2], [0.8, 1.2]], std=[0.3, 0.4, 0.35], weights=[0.5, 0.2, 0.3])
A = torch.tensor([[1.0, 0.3]], dtype=F64)
Y, STD = 0.1, 0.4
CORRELATED = sg.GaussianMixture([[0.3, -0.2]], covariances=[[1.0, 0.8], [0.8, 1.0]])


def normal_log_prob(rest: Tensor, std: float) -> Tensor:
    return -((rest / std) ** 2).sum(1) / 2 - rest.shape[1] * math.log(std * math.sqrt(2 * math.pi))


def within(values: Tensor, others: Tensor, sigmas: float = 4.0) -> None:
    """The means of two sets of independent numbers are equal, to so many standard errors."""
    error = math.sqrt(float(values.var() / len(values) + others.var() / len(others)))
    assert abs(float(values.mean() - others.mean())) < sigmas * error


def even_in_angle(model: sg.ScoreModel, n: int) -> Tensor:
    """Times from t_max to 0, even in atan(sigma/(s alpha))."""
    sde, s = model.sde, model.data.scale
    first = math.atan(float(sde.sigma(sde.t_max)) / (s * float(sde.alpha(sde.t_max))))
    level = s * torch.tan(first * torch.arange(n, -1, -1, dtype=F64) / n)
    times = sde.time(-level.log())
    times[0], times[-1] = sde.t_max, 0.0
    return times


def chain(model: sg.ScoreModel, n: int, steps: int) -> Tensor:
    """What particles do where nothing is seen, in the frame x/alpha: x_s = x0 + (s/r)^2 (x - x0) + std z, std^2 the
    variance s^2 (1 - (s/r)^2) of DDPM and (1 - (s/r)^2)^2 v for what x0 leaves open, v = r^2 (1 - |noise|^2/d) between
    0 and r^2 c/(r^2 + c), c the data's variance."""
    generator = torch.Generator().manual_seed(1)
    times, c = even_in_angle(model, steps)[:-1], model.data.scale**2
    ratio = model.sde.sigma(times) / model.sde.alpha(times)
    x = torch.randn(n, *model.event_shape, dtype=F64, generator=generator)
    start = model.sde.at(times[0])
    x = model.data.prior.noisy(x, float(start.alpha), float(start.sigma)) / start.alpha
    for t, r, s in zip(times, ratio, ratio[1:], strict=False):
        belief, keep = model(x * model.sde.alpha(t), t), (s / r) ** 2
        v = r**2 * torch.minimum((1 - belief.noise.square().mean(1)).clamp_min(0), c / (r**2 + c))
        std = (s**2 * (1 - keep) + (1 - keep) ** 2 * v).sqrt()
        x = belief.x0 + keep * (x - belief.x0) + std[:, None] * torch.randn(x.shape, dtype=F64, generator=generator)
    return model(x * model.sde.alpha(times[-1]), times[-1]).x0


@pytest.mark.parametrize("observation", ["linear", "mask", "function"])
@pytest.mark.parametrize("process", SDES)
def test_weights_of_particles_are_unbiased(process, observation):
    """E[w f(x)] of a group is E[p(y | x0) f(x0)] of their chain on the same grid, for f = 1 and f = x0, whatever the
    number of particles; the errors of the grid are in both."""
    model, n = sg.MixtureModel(MIXTURE, SDES[process]), 2000
    seen, a = {
        "linear": (sg.Observation.linear(A, std=STD), lambda x: x @ A.mT),
        "mask": (sg.Observation.mask([0, 1], std=STD), lambda x: x[:, 1:]),
        "function": (
            sg.Observation.function(lambda x: (x**2).sum(1, keepdim=True), std=STD),
            lambda x: (x**2).sum(1, keepdim=True),
        ),
    }[observation]
    drawn = chain(model, 20_000, 30)
    likelihood = normal_log_prob(Y - a(drawn), STD).exp()
    found = sg.sample_posterior(model, seen, n, y=torch.full((n, 1), Y), particles=3, steps=30, seed=2, dtype=F64)
    weights = found.log_evidence.exp()
    within(weights, likelihood)
    for i in range(2):
        within(weights * found.x[:, i], likelihood * drawn[:, i])


def test_so_are_those_of_many_numbers():
    """Above 32 numbers seen the twist is the isotropic one, and its determinant that of A A^T."""
    d, std = 40, 4.0
    mixture = sg.GaussianMixture(torch.linspace(-1, 1, d).expand(2, d) * torch.tensor([[1.0], [-1.0]]), std=0.5)
    model, y = sg.MixtureModel(mixture, sg.VPSDE()), torch.linspace(-0.5, 1.0, 36, dtype=F64)
    rows = torch.linspace(0.5, 1.5, 36, dtype=F64)[:, None] * torch.eye(d, dtype=F64)[:36]
    for observation in (sg.Observation.linear(rows, std=std), sg.Observation.mask([1] * 36 + [0] * 4, std=std)):
        drawn = chain(model, 20_000, 10)
        likelihood = normal_log_prob(y - observation.measure(drawn), std)
        found = sg.sample_posterior(
            model, observation, 500, y=y.expand(500, 36), particles=2, steps=10, seed=2, dtype=F64
        )
        shift = likelihood.mean()
        within((found.log_evidence - shift).exp(), (likelihood - shift).exp())


def test_evidence_without_noise_is_the_density():
    """With std = 0 there is no likelihood of x0, and the twist at the last time stands for it, with its determinant."""
    model, y = sg.MixtureModel(MIXTURE, sg.VPSDE()), torch.tensor([[0.4]], dtype=F64)
    exact = sg.GaussianMixture(MIXTURE.means[:, :1], std=MIXTURE.variances[:, 0].sqrt(), weights=MIXTURE.weights)
    found = sg.sample_posterior(
        model, sg.Observation.mask([1, 0]), 800, y=y.expand(800, 1), particles=2, steps=80, seed=0, dtype=F64
    )
    p, density = found.log_evidence.exp(), float(exact.log_prob(y).exp())
    assert abs(float(p.mean()) - density) < 4 * float(p.std()) / math.sqrt(800) + 0.03 * density
    assert bool((found.x[:, 0] == 0.4).all())


def test_a_sharp_observation_is_met_as_sharply():
    """std of the order of the noise at t_min: what is left of y - A x0 has y's own spread, that of the last weight."""
    sde, n = sg.VPSDE(), 600
    std = float(sde.sigma(sde.t_min))
    found = sg.sample_posterior(
        sg.MixtureModel(MIXTURE, sde), sg.Observation.mask([1, 0], std=std), n, y=torch.full((n, 1), 0.4), particles=32, steps=40, seed=0, dtype=F64
    )  # fmt: skip
    rest = ((found.x[:, 0] - 0.4) / std).square()
    assert abs(float(rest.mean()) - 1) < 4 * float(rest.std()) / math.sqrt(n)


def test_particles_are_right_and_a_group_of_one_by_its_weight():
    """Against the closed form: weights of the modes and the mean, where guidance alone is far off."""
    mixture = sg.GaussianMixture(1.2 * torch.randn(8, 8, generator=torch.Generator().manual_seed(5)), std=0.35)
    a = torch.eye(8, dtype=F64)[:3]
    y = torch.tensor([0.32, 0.27, -0.94], dtype=F64)
    y = mixture.means[[3, 5]].mean(0)[:3] + 0.05
    exact, n = mixture.posterior(a, y, 0.3), 400
    assert float(exact.weights.max()) < 0.8
    model, observation = sg.MixtureModel(mixture, sg.VPSDE()), sg.Observation.linear(a, std=0.3)

    def off(x: Tensor, log_weights: Tensor | None = None) -> float:
        w = torch.softmax(torch.zeros(len(x), dtype=F64) if log_weights is None else log_weights, 0)
        nearest = lambda x: (x.double()[:, None] - exact.means).square().sum(2).argmin(1)
        right = nearest(exact.sample(20_000, seed=0)).bincount(minlength=8) / 20_000
        return 0.5 * float((nearest(x).bincount(w, minlength=8) - right).abs().sum())

    guided = sg.sample(sg.Posterior(model, observation), n, rtol=1e-3, seed=0, y=y.expand(n, 3))
    assert off(guided.x) > 0.15
    log_p = sg.GaussianMixture(mixture.means @ a.mT, std=math.hypot(0.35, 0.3)).log_prob(y[None])
    for how in ({"particles": 16}, {"particles": 1}, {"method": "weighted", "particles": 1}):
        found = sg.sample_posterior(model, observation, n, y=y.expand(n, 3), seed=1, **how)
        assert off(found.x, found.log_weights) < 0.08
        assert abs(float(found.log_evidence.logsumexp(0)) - math.log(n) - float(log_p)) < 0.2
        assert bool(((found.ess >= 1 / 16 - 1e-9) & (found.ess <= 1 + 1e-9)).all())
        if how.get("particles", 1) > 1:
            assert off(found.x) < 0.08


def test_the_weighted_flow_of_gaussian_data_has_equal_weights():
    """There guidance is exact: log w = log p(y) for every draw, so that nothing may be missing from it."""
    model, n = sg.MixtureModel(CORRELATED, sg.EDMSDE(0.002, 80.0)), 40
    found = sg.sample_posterior(
        model, sg.Observation.mask([1, 0], std=0.3), n, y=torch.full((n, 1), 0.9), method="weighted", particles=2, seed=0, rtol=1e-5, dtype=F64
    )  # fmt: skip
    exact = sg.GaussianMixture([[0.3]], std=math.hypot(1.0, 0.3)).log_prob(torch.tensor([[0.9]], dtype=F64))
    torch.testing.assert_close(found.log_weights, exact.expand(n), rtol=0, atol=2e-2)
    assert float(found.ess.min()) > 0.99


@pytest.mark.parametrize("process", SDES)
def test_sweeps_keep_exact_draws(process):
    """What has the law of x0 given y has it after four sweeps; with std = 1 the noise level of the kernel is seen."""
    model, n = sg.MixtureModel(CORRELATED, SDES[process]), 6000
    y = torch.tensor([1.5], dtype=F64)
    exact = CORRELATED.posterior(torch.tensor([[1.0, 0.0]]), y, 1.0)
    x = exact.sample(n, seed=3, dtype=F64)
    found = sg.sample_posterior(
        model, sg.Observation.mask([1, 0], std=1.0), n, y=y.expand(n, 1), method="gibbs", passes=4, steps=16, seed=4, x_init=x, dtype=F64
    ).x  # fmt: skip
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(exact.covariance), (found - exact.mean).mT, upper=False)
    assert float((found - x).abs().mean()) > 0.1
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(n) + 0.01
    assert float((white @ white.mT / n - torch.eye(2)).abs().max()) < 4 * math.sqrt(2 / n) + 0.02


def test_sweeps_of_averages_and_sweeps_from_nowhere():
    """A A^T = 1/2: the level is sqrt(2) std; without x_init sweeps begin at guided draws, exact for Gaussian data."""
    model, n, y = sg.MixtureModel(CORRELATED, sg.VPSDE()), 4000, torch.tensor([0.8], dtype=F64)
    exact = CORRELATED.posterior(torch.tensor([[0.5, 0.5]]), y, 0.3)
    found = sg.sample_posterior(
        model, sg.Observation.average(2, std=0.3), n, y=y.expand(n, 1), method="gibbs", passes=2, steps=16, seed=4, dtype=F64
    ).x  # fmt: skip
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(exact.covariance), (found - exact.mean).mT, upper=False)
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(n) + 0.01
    assert float((white @ white.mT / n - torch.eye(2)).abs().max()) < 4 * math.sqrt(2 / n) + 0.03


CALLS = {
    "twisted": {"particles": 3, "steps": 8},
    "weighted": {"particles": 2, "rtol": 1e-2},
    "gibbs": {"passes": 2, "steps": 6},
    "repaint": {"passes": 2, "steps": 8},
}


@pytest.mark.parametrize("method", CALLS)
def test_a_sample_is_its_seed_number_and_y_alone(method):
    """Whatever the batch size, the order, and the y of its mates."""
    model = sg.MixtureModel(MIXTURE, sg.VPSDE(), labels=[0, 1, 1])
    observation, how = (
        sg.Observation.mask([1, 0], std=0.3),
        {**CALLS[method], "method": method, "seed": 7, "dtype": F64},
    )
    y, label = torch.linspace(-0.5, 0.5, 5, dtype=F64)[:, None], torch.tensor([0, 1, -1, 1, 0])
    whole = sg.sample_posterior(model, observation, 5, y=y, label=label, **how)
    assert whole.seed == 7 and len(whole.x.unique(dim=0)) == 5
    for size in (1, 4):
        parts = sg.sample_posterior(model, observation, 5, y=y, label=label, batch_size=size, **how)
        for name in ("x", "nfe", *(("log_weights", "ess") if whole.ess is not None else ())):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    order = torch.tensor([3, 1])
    mates = torch.cat([y[order], torch.full((1, 1), 9.0, dtype=F64)])
    some = sg.sample_posterior(model, observation, 3, y=mates, label=label[[3, 1, 0]], index=[3, 1, 9], **how)
    torch.testing.assert_close(some.x[:2], whole.x[order], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(some.nfe[:2], whole.nfe[order])
    assert not torch.equal(
        sg.sample_posterior(model, observation, 5, y=y, label=label, **{**how, "seed": 8}).x, whole.x
    )


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.rows, self.most, self.weight = 0, 0, 0, nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        self.calls, self.rows, self.most = self.calls + 1, self.rows + len(x), max(self.most, len(x))
        return self.weight * x / (1 + x.abs())


@pytest.mark.parametrize("method", CALLS)
def test_evaluations_are_counted_and_batches_bounded(method):
    net = Counting()
    model = sg.Denoiser(net, sg.VPSDE(), parametrization="x0", data_mean=0.0, data_std=1.0)
    model.event_shape = (2,)
    found = sg.sample_posterior(
        model, sg.Observation.mask([1, 0], std=0.3), 5, y=torch.zeros(5, 1), method=method, seed=0, batch_size=4, **CALLS[method]
    )  # fmt: skip
    assert int(found.nfe.sum()) == net.rows
    assert net.most <= 4 and not net.weight.grad and net.training


class Recorded(sg.ScoreModel):
    """Believes in 0 and notes what it is asked."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(sg.VPSDE(), data_mean=0.0, data_std=1.0, event_shape=(2,))
        self.smooth = smooth
        self.asked: list[tuple[float, Tensor]] = []

    def forward(self, x, t):
        self.asked.append((float(t), x))
        return sg.Prediction.from_x0(x, 0.0 * x, self.sde, t)


@pytest.mark.parametrize("steps", [1, 2, 9, 30])
@pytest.mark.parametrize("smooth", [True, False])
def test_particles_of_networks_step_as_ancestral_sampling_does(smooth, steps):
    """Those of exact scores evenly in the angle, few of them down to 0."""
    model = Recorded(smooth)
    sg.sample_posterior(model, sg.Observation.mask([1, 0], std=0.3), 1, y=torch.zeros(1, 1), particles=1, steps=steps)
    expected = sg.grid(model, steps, kind="theta" if smooth else "sqrt-time")
    expected = even_in_angle(model, steps) if smooth and steps < 26 else expected
    torch.testing.assert_close(torch.tensor([t for t, _ in model.asked], dtype=F64), expected[:-1])


@pytest.mark.parametrize("steps", [3, 12, 25])
def test_few_steps_stay_above_t_min_where_data_are_narrow(steps):
    model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.01]], std=0.1), sg.VPSDE())
    how = {"y": torch.zeros(2, 1), "particles": 2, "steps": steps, "seed": 0}
    found = sg.sample_posterior(model, sg.Observation.mask([1, 0], std=0.1), 2, **how)
    assert int(found.nfe[0]) == 2 * steps and bool(torch.isfinite(found.x).all())


def test_a_few_particles_of_a_few_steps_beat_one_pass():
    """At as many evaluations a sample, without weights: a small group is nearer to the exact posterior than guidance,
    and steps even in the angle down to 0 are better for it than those that go on to t_min."""
    mixture = sg.GaussianMixture(1.2 * torch.randn(8, 8, generator=torch.Generator().manual_seed(5)), std=0.35)
    a, n = torch.eye(8, dtype=F64)[:3], 500
    model, observation = sg.MixtureModel(mixture, sg.VPSDE()), sg.Observation.linear(a, std=0.3)
    y = mixture.means[[3, 5]].mean(0)[:3] + 0.05
    exact, y = mixture.posterior(a, y, 0.3).sample(n, seed=0, dtype=F64), y.expand(n, 3)

    def off(found: sg.Solution) -> float:
        assert bool((found.nfe <= 25).all())
        return float(sg.metrics.sliced_wasserstein(found.x.double(), exact, projections=128))

    posterior = sg.Posterior(model, observation)
    one_pass = [off(sg.sample(posterior, n, solver=s, steps=25, seed=1, y=y)) for s in ("adams", "d-adams2-sde")]
    few = {"y": y, "particles": 4, "seed": 1}
    group = off(sg.sample_posterior(model, observation, n, steps=6, **few))
    to_t_min = off(sg.sample_posterior(model, observation, n, steps=sg.grid(model, 6, kind="theta"), **few))
    assert group < 0.75 * min(one_pass) and group < to_t_min, (group, to_t_min, one_pass)


def test_every_pass_has_noise_of_its_own():
    model = Recorded()
    sg.sample_posterior(
        model, sg.Observation.mask([1, 0]), 1, y=torch.zeros(1, 1), method="repaint", passes=4, steps=3, seed=0
    )
    (t, first), *later = [(t, x[0, 1]) for t, x in model.asked if t == model.asked[0][0]]
    (s, _) = next(pair for pair in model.asked if pair[0] != t)
    here, there = model.sde.at(t), model.sde.at(s)
    ratio = (
        (here.alpha / there.alpha) ** 2 * there.sigma**2 / here.sigma**2
    )  # of x through a step without data and back
    kicks, x = [], first
    for _, after in later:
        kicks.append(float(after - ratio * x))
        x = after
    assert len({round(kick, 5) for kick in kicks}) == len(kicks) == 3


@pytest.mark.parametrize("method", ["twisted", "repaint"])
@pytest.mark.parametrize("count", [6, 40])
def test_pixels_seen_without_noise_are_in_the_result_to_the_bit(method, count):
    data = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(64, dtype=torch.bool).index_fill(0, torch.arange(count) * 3 % 64, True).reshape(1, 8, 8)
    found = sg.sample_posterior(
        sg.EmpiricalModel(data, sg.VPSDE()), sg.Observation.mask(mask), 4, y=data[:4], method=method, particles=2, passes=2, steps=6, seed=0
    )  # fmt: skip
    assert torch.equal(found.x[:, mask], data[:4][:, mask]) and found.x.dtype == torch.float32


def test_wrong_calls_are_refused_before_the_network_is_asked():
    net = Counting()
    model = sg.Denoiser(net, sg.VPSDE(), parametrization="x0", data_mean=0.0, data_std=1.0)
    model.event_shape = (2,)
    mask, y = sg.Observation.mask([1, 0], std=0.3), torch.zeros(3, 1)
    skew = sg.Observation.linear([[1.0, 0.3], [0.0, 1.0]], std=0.3)
    for said, observation, how in [
        ("got observation=", torch.ones(2), {}),
        ("got method='smc'", mask, {"method": "smc"}),
        ("got particles=0", mask, {"particles": 0}),
        ("got particles=2.5", mask, {"particles": 2.5}),
        ("got passes=0", mask, {"method": "gibbs", "passes": 0}),
        ("got y=None", mask, {"y": None}),
        ("for 3 samples", mask, {"y": y[:2]}),
        ("got y of 3 numbers", mask, {"y": torch.zeros(3, 3)}),
        ("expected the units of the data", mask, {"y": y + 200}),
        ("expected finite", mask, {"y": y * math.nan}),
        ("expected the event shape", sg.Observation.mask([1, 0, 1]), {}),
        ("got steps=None", mask, {"steps": None}),
        ("expected times that fall to 0", mask, {"steps": [1.0, 0.5, 0.1]}),
        ("expected more than", sg.Observation.mask([1, 0]), {"method": "gibbs"}),
        ("orthogonal rows", skew, {"method": "gibbs", "y": torch.zeros(3, 2)}),
        ("orthogonal rows", skew, {"method": "repaint", "y": torch.zeros(3, 2)}),
        ("orthogonal rows", sg.Observation.function(torch.tanh, std=0.1), {"method": "repaint", "y": torch.zeros(3, 2)}),
        ("got x_init=", mask, {"x_init": torch.zeros(3, 2)}),
        ("got 2 samples in x_init", mask, {"method": "gibbs", "x_init": torch.zeros(2, 2)}),
        ("'label' is unknown", mask, {"label": torch.zeros(3)}),
        ("no density along their way", mask, {"return_log_prob": True}),
        ("index names", mask, {"index": [1]}),
        ("batch_size", mask, {"batch_size": 0}),
        ("rtol", mask, {"method": "weighted", "rtol": -1.0}),
        ("on_failure", mask, {"on_failure": "ignore"}),
    ]:  # fmt: skip
        with pytest.raises(sg.InvalidInputError, match=said):
            sg.sample_posterior(model, observation, 3, **{"y": y, **how})
    wide = sg.Denoiser(net, sg.VPSDE(), data_std=1.0)
    wide.event_shape = (70,)
    with pytest.raises(sg.InvalidInputError, match="at most 64"):
        sg.sample_posterior(wide, sg.Observation.mask([1] * 70, std=0.1), 2, y=torch.zeros(2, 70), method="weighted")
    with pytest.raises(sg.InvalidInputError, match="not linear, expected at most 32"):
        sg.sample_posterior(wide, sg.Observation.function(torch.tanh, std=0.1), 2, y=torch.zeros(2, 70))
    silent = sg.Denoiser(net, sg.LinearPathSDE(t_max=1.0), data_std=1.0)
    silent.event_shape = (2,)
    with pytest.raises(sg.InvalidInputError, match="no signal"):
        sg.sample_posterior(silent, mask, 3, y=y)
    assert net.calls == 0


def test_a_group_that_fails_is_told():
    class Broken(Recorded):
        def forward(self, x, t):
            return sg.Prediction.from_x0(x, x * math.nan, self.sde, t)

    how = {"y": torch.zeros(3, 1), "seed": 0, "steps": 4}
    for method in ("twisted", "repaint"):
        with pytest.raises(sg.NonFiniteError) as caught:
            sg.sample_posterior(Broken(), sg.Observation.mask([1, 0], std=0.1), 3, method=method, **how)
        assert caught.value.partial.status.tolist() == [1, 1, 1]
