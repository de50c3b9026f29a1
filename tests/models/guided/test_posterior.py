"""Posteriors of linear observations: exact for Gaussian data, judged against the closed form for mixtures."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SOME_SDES
from torch import Tensor, nn

import sdegen as sg
from sdegen.models.guided import spread as spread_module
from sdegen.models.guided.spread import solve_spread
from sdegen.testing import check_model

F64 = torch.float64
WITH_SIGNAL = {name: sde for name, sde in SOME_SDES.items() if float(sde.alpha(sde.t_max)) > 0}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


ROOT = normals(4, 4, seed=1)
GAUSSIAN = sg.GaussianMixture(normals(1, 4, seed=2), covariances=ROOT @ ROOT.mT / 4 + 0.05 * torch.eye(4, dtype=F64))
A = normals(2, 4, seed=3)
POOL = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], dtype=F64)
PICK = torch.eye(4, dtype=F64)[[0, 2]]
OBSERVATIONS = {
    "mask": (sg.Observation.mask([1, 0, 1, 0], std=0.2), PICK),
    "linear": (sg.Observation.linear(A, std=0.2), A),
    "functions": (sg.Observation.linear((lambda x: x @ A.to(x).mT, lambda v: v @ A.to(v)), std=0.2), A),
    "average": (sg.Observation.average(2, std=0.2), POOL),
    "function": (sg.Observation.function(lambda x: x @ A.to(x).mT, std=0.2), A),
    "mask without noise": (sg.Observation.mask(torch.tensor([True, False, True, False])), PICK),
}


def states(sde: sg.SDE, mixture: sg.GaussianMixture = GAUSSIAN) -> tuple[Tensor, Tensor]:
    t = torch.linspace(sde.t_min, sde.t_max, 5, dtype=F64)
    return sde.perturb(mixture.sample(5, seed=1, dtype=F64), t, normals(5, mixture.dim, seed=4)), t


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("process", WITH_SIGNAL)
def test_moments_are_exact_for_gaussian_data(process, kind):
    """The belief of N(m, C) given y, one y for each sample, is that of the posterior in closed form."""
    sde, (observation, a) = WITH_SIGNAL[process], OBSERVATIONS[kind]
    posterior = sg.Posterior(sg.MixtureModel(GAUSSIAN, sde), observation)
    (x, t), y = states(sde), normals(5, 2, seed=5)
    got = posterior(x, t, y=y)
    for i in range(5):
        exact = sg.MixtureModel(GAUSSIAN.posterior(a, y[i], observation.std), sde)(x[i : i + 1], t[i])
        torch.testing.assert_close(got.x0[i], exact.x0[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got.noise[i], exact.noise[0], rtol=1e-10, atol=1e-10)


def test_so_are_samples_and_densities():
    """Every sample has its own y; the flow pushes the prior onto each posterior: slopes are seen in the density."""
    sde, (observation, a) = sg.EDMSDE(0.002, 1e4), OBSERVATIONS["linear"]
    posterior = sg.Posterior(sg.MixtureModel(GAUSSIAN, sde), observation)
    y = normals(6, 2, seed=6)
    exact = [GAUSSIAN.posterior(a, row, observation.std) for row in y]
    x = torch.cat([e.sample(1, seed=i, dtype=F64) for i, e in enumerate(exact)])
    got = sg.log_prob(posterior, x, rtol=1e-5, y=y).nats
    expected = torch.cat([sg.MixtureModel(e, sde).log_prob(x[i : i + 1], sde.t_min) for i, e in enumerate(exact)])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)
    one = y[:1].expand(4000, 2)
    found = sg.sample(posterior, 4000, rtol=1e-3, seed=0, y=one)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(exact[0].covariance), (found.x.double() - exact[0].mean).mT, upper=False
    )
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(4000) + 1e-2
    assert float((white.std(1) - 1).abs().max()) < 4 / math.sqrt(8000) + 1e-2
    assert int(found.nfe.max()) <= 30


def test_of_mixtures_it_is_near_the_closed_form_and_pigdm_is_farther():
    """A unimodal posterior of a mixture: error of the mean in posterior standard deviations."""
    mixture = sg.GaussianMixture(3 * normals(3, 4, seed=7), std=[0.4, 0.5, 0.6])
    sde, a = sg.VPSDE(), normals(2, 4, seed=8)
    y = mixture.means[0] @ a.mT + 0.1
    exact = mixture.posterior(a, y, 0.1)
    off = {}
    for likelihood in ("moments", "isotropic"):
        posterior = sg.Posterior(
            sg.MixtureModel(mixture, sde), sg.Observation.linear(a, std=0.1), likelihood=likelihood
        )
        found = sg.sample(posterior, 1000, rtol=1e-3, seed=0, y=y.expand(1000, 2)).x.double()
        off[likelihood] = float((found.mean(0) - exact.mean).norm() / exact.covariance.trace().sqrt())
    assert off["moments"] < 0.5 and off["moments"] < off["isotropic"]


@pytest.mark.parametrize("level", [0.5, 1.0, 2.0])
@torch.no_grad()
def test_moments_of_mixtures_are_asked_where_y_points(level):
    """E[x0 | x, y] is nearer to that in closed form than with the covariance at x, where states of the posterior are."""
    mixture, sde = sg.GaussianMixture(normals(6, 4, seed=9), std=0.3), sg.VPSDE()
    model, a = sg.MixtureModel(mixture, sde), torch.eye(4, dtype=F64)[:2]
    posterior, t = (
        sg.Posterior(model, sg.Observation.linear(a, std=0.2)),
        sde.time(-torch.tensor(level, dtype=F64).log()),
    )
    there, n = sde.at(t), 300
    errors = []
    for row in mixture.sample(6, seed=2, dtype=F64) @ a.mT:
        exact, y = mixture.posterior(a, row, 0.2), row.expand(n, 2)
        x = sde.perturb(exact.sample(n, seed=3, dtype=F64), t, normals(n, 4, seed=4))
        belief, gradient, _ = posterior.update(x, t, y=y)
        plain, right = belief.x0 + there.sigma**2 / there.alpha * gradient, sg.MixtureModel(exact, sde)(x, t).x0
        errors.append([(v - right).square().mean() for v in (posterior(x, t, y=y).x0, plain)])
    own, plain = torch.tensor(errors).mean(0).sqrt()
    assert own < 0.95 * plain


class Rippled(sg.ScoreModel):
    """An exact belief with a ripple on it that moves x0 little and its derivative much, as a network's error may."""

    def __init__(self, mixture: sg.GaussianMixture, size: float) -> None:
        super().__init__(sg.VPSDE(), data_mean=mixture.mean, data_std=0.7, event_shape=(mixture.dim,))
        self.model, self.size = sg.MixtureModel(mixture, self.sde), size

    def forward(self, x, t):
        belief = self.model(x, t)
        x0 = belief.x0 + self.size * torch.sin(50 * x)
        return sg.Prediction.from_x0(x, x0, self.sde, t)


@pytest.mark.parametrize("likelihood", ["moments", "isotropic"])
def test_a_network_is_not_trusted_with_its_derivative_at_high_noise(likelihood):
    """Far above the data's scale s an error of the derivative does not count, and below it the derivative is its own."""
    mixture, sde, observation = (
        sg.GaussianMixture([[0.5, -0.2]], std=0.7),
        sg.VPSDE(),
        sg.Observation.mask([1, 0], std=0.1),
    )
    exact = sg.MixtureModel(mixture.posterior(torch.eye(2)[:1], torch.tensor([0.3]), 0.1), sde)
    y, x = torch.full((50, 1), 0.3, dtype=F64), normals(50, 2, seed=1)
    posterior = sg.Posterior(Rippled(mixture, 0.01), observation, likelihood=likelihood)
    for ratio in (30.0, 100.0):
        t = sde.time(-torch.tensor(0.7 * ratio, dtype=F64).log())
        assert float((posterior(x, t, y=y).x0 - exact(x, t).x0).abs().max()) < 0.05
    smooth = sg.Posterior(sg.MixtureModel(mixture, sde), observation, likelihood=likelihood)
    own = sg.Posterior(Rippled(mixture, 0.0), observation, likelihood=likelihood)
    t = sde.time(-torch.tensor(0.7, dtype=F64).log())
    torch.testing.assert_close(own(x, t, y=y).x0, smooth(x, t, y=y).x0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", WITH_SIGNAL)
def test_isotropic_and_point_are_their_formulas(process):
    """J of a Gaussian belief is alpha C (alpha^2 C + sigma^2)^-1; V = r^2 s^2/(r^2 + s^2), or 0."""
    sde, (x, t), y = WITH_SIGNAL[process], states(WITH_SIGNAL[process]), normals(5, 2, seed=5)
    model, c = sg.MixtureModel(GAUSSIAN, sde), GAUSSIAN.covariance
    belief, s2 = model(x, t), model.data.scale**2
    for likelihood in ("isotropic", "point"):
        with pytest.warns(UserWarning, match="biased") if likelihood == "point" else torch.no_grad():
            posterior = sg.Posterior(model, sg.Observation.linear(A, std=0.2), likelihood=likelihood)
        got = posterior.score(x, t, y=y)
        for i in range(5):
            alpha, sigma = float(sde.alpha(t[i])), float(sde.sigma(t[i]))
            j = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(4, dtype=F64))
            r2 = (sigma / alpha) ** 2
            v = r2 * s2 / (r2 + s2) if likelihood == "isotropic" else 0.0
            s = v * A @ A.mT + 0.04 * torch.eye(2, dtype=F64)
            expected = belief.score[i] + j.mT @ A.mT @ torch.linalg.solve(s, y[i] - A @ belief.x0[i])
            torch.testing.assert_close(got[i], expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("process", WITH_SIGNAL)
def test_a_function_counts_with_its_derivative(process):
    """f = tanh(A x0), F its derivative at x0hat: score + J^T F^T (F V F^T + std^2)^-1 (y - f(x0hat)), V = sigma^2/alpha J."""
    sde, (x, t), y = WITH_SIGNAL[process], states(WITH_SIGNAL[process]), normals(5, 2, seed=5)
    model, c = sg.MixtureModel(GAUSSIAN, sde), GAUSSIAN.covariance
    belief = model(x, t)
    got = sg.Posterior(model, sg.Observation.function(lambda x0: (x0 @ A.to(x0).mT).tanh(), std=0.2)).score(x, t, y=y)
    for i in range(5):
        alpha, sigma = float(sde.alpha(t[i])), float(sde.sigma(t[i]))
        j = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(4, dtype=F64))
        seen = (A @ belief.x0[i]).tanh()
        f = (1 - seen**2)[:, None] * A
        s = sigma**2 / alpha * f @ j @ f.mT + 0.04 * torch.eye(2, dtype=F64)
        expected = belief.score[i] + j.mT @ f.mT @ torch.linalg.solve(s, y[i] - seen)
        torch.testing.assert_close(got[i], expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["mask without noise", "linear", "functions", "average"])
def test_a_projection_agrees_with_what_was_seen(kind):
    """A x0 = y, and what A does not see is the model's."""
    (observation, a), sde = OBSERVATIONS[kind], sg.VPSDE()
    model, (x, t), y = sg.MixtureModel(GAUSSIAN, sde), states(sde), normals(5, 2, seed=5)
    got = sg.Posterior(model, observation, likelihood="project")(x, t, y=y).x0
    torch.testing.assert_close(got @ a.mT, y)
    unseen = torch.eye(4, dtype=F64) - torch.linalg.pinv(a) @ a
    torch.testing.assert_close(got @ unseen.mT, model(x, t).x0 @ unseen.mT)


@pytest.mark.parametrize("likelihood", ["moments", "isotropic", "project"])
def test_it_is_a_model(likelihood):
    mixture = sg.GaussianMixture([[1.0, 0.5], [-1.0, 0.0]], std=0.6)
    model = sg.MixtureModel(mixture, sg.VPSDE(), labels=[0, 1])
    posterior = sg.Posterior(model, sg.Observation.linear([[1.0, 0.3]], std=0.3), likelihood=likelihood)
    assert posterior.condition_names() == {"label", "y"}
    check_model(posterior, y=normals(4, 1), label=torch.tensor([0, 1, -1, 0]))
    guided = sg.Guided(posterior, 2.0, null={"label": -1})
    sg.sample(guided, 4, steps=6, seed=0, y=normals(4, 1), label=torch.tensor([0, 1, -1, 0]))


@pytest.mark.parametrize("event", [(4,), (4, 6), (3, 4, 6)])
def test_averages_and_their_transposes(event):
    """<A x, v> = <x, A^T v>, and A is the mean over blocks."""
    observation, x = sg.Observation.average(2), normals(5, *event)
    seen = observation.measure(x)
    v = normals(*seen.shape, seed=1)
    torch.testing.assert_close((seen * v).sum(1), (x * observation.adjoint(v, x)).flatten(1).sum(1))
    if len(event) == 3:
        torch.testing.assert_close(seen, torch.nn.functional.avg_pool2d(x, 2).flatten(1))


def test_the_mean_of_the_channels_is_an_observation_of_every_method():
    """Colourisation: two functions that are transposes, rows of one length, so that all methods take it."""
    grey = sg.Observation.linear((lambda x: x.mean(1), lambda v: v[:, None].expand(-1, 3, -1, -1) / 3), std=0.1)
    x, v = normals(5, 3, 4, 4), normals(5, 16, seed=1)
    torch.testing.assert_close((grey.measure(x) * v).sum(1), (x * grey.adjoint(v, x)).flatten(1).sum(1))
    torch.testing.assert_close(grey.spectrum(x), torch.full((16,), 1 / 3, dtype=F64))
    model, y = sg.EmpiricalModel(torch.stack([x[0], -x[0], x[1]]), sg.VPSDE()), x[0].mean(0).expand(6, 4, 4)
    for how in ({"method": "repaint", "passes": 2}, {"method": "gibbs", "passes": 2}, {"particles": 4}):
        found = sg.sample_posterior(model, grey, 6, y=y, steps=20, seed=0, dtype=F64, **how).x
        torch.testing.assert_close(found, x[:1].expand(6, -1, -1, -1), rtol=0, atol=0.3)


def test_many_numbers_are_solved_to_a_tolerance_each_sample_by_itself():
    root = normals(6, 50, 50)
    s = root @ root.mT / 50
    rest = normals(6, 50, seed=1)
    spread = lambda v: (s[: len(v)] @ v[:, :, None])[:, :, 0]
    found = solve_spread(spread, rest, 0.1).value
    left = rest - spread(found) - 0.1 * found
    assert bool((left.norm(dim=1) <= 1.001e-3 * rest.norm(dim=1)).all())
    torch.testing.assert_close(found[:1], solve_spread(spread, rest[:1], 0.1).value, rtol=1e-11, atol=1e-11)


def test_conjugate_gradients_of_m_steps_are_the_exact_solve(monkeypatch):
    """From either side of the number of y from which they are taken."""
    monkeypatch.setattr(spread_module, "_TOLERANCE", 1e-12)
    for m in (32, 33, 48):
        root = normals(4, m, m)
        s, rest = root @ root.mT / m, normals(4, m, seed=1)
        found = solve_spread(lambda v, s=s: (s @ v[:, :, None])[:, :, 0], rest, 0.5)
        exact = torch.linalg.solve(s + 0.5 * torch.eye(m, dtype=F64), rest)
        torch.testing.assert_close(found.value, exact, rtol=1e-9, atol=1e-9)
        assert (found.log_det is None) == (m > 32)


@pytest.mark.parametrize("how", [{"rtol": 1e-3}, {"steps": 9, "eta": 1.0}])
@pytest.mark.parametrize("likelihood", ["moments", "isotropic", "project"])
def test_each_sample_has_its_own_y_whatever_the_batch(likelihood, how):
    """In parts, in another order, by its number, and beside a mate with another y."""
    mixture = sg.GaussianMixture(2 * normals(3, 4, seed=7), std=[0.4, 0.5, 0.6])
    posterior = sg.Posterior(sg.MixtureModel(mixture, sg.VPSDE()), OBSERVATIONS["linear"][0], likelihood=likelihood)
    y, call = normals(7, 2, seed=6), {**how, "seed": 5, "dtype": F64}
    whole = sg.sample(posterior, 7, y=y, **call)
    assert len(whole.x.unique(dim=0)) == 7
    parts = sg.sample(posterior, 7, y=y, batch_size=3, **call)
    order = torch.tensor([5, 0, 3])
    some = sg.sample(posterior, 4, y=torch.cat([y[order], 3 * y[:1]]), index=[5, 0, 3, 11], **call)
    for found, rows in ((parts.x, slice(None)), (some.x[:3], order)):
        torch.testing.assert_close(found, whole.x[rows], rtol=0, atol=1e-11)
    assert torch.equal(parts.nfe, whole.nfe) and torch.equal(some.nfe[:3], whole.nfe[order])


def test_covariances_that_are_nearly_singular_or_not_positive_are_solved():
    """Those of learned beliefs are; no eigenvalue counts as less than rounding can tell from 0."""
    frame = torch.linalg.qr(normals(200, 6, 6))[0]
    signs = torch.where(normals(200, 6, seed=2) > -1, 1.0, -1.0)
    s = frame @ torch.diag_embed(signs * 10 ** (-16 * torch.rand(200, 6, dtype=F64))) @ frame.mT
    rest = normals(200, 6, seed=1)
    solved = solve_spread(lambda v: (s @ v[:, :, None])[:, :, 0], rest, 0.0)
    assert bool(solved.value.isfinite().all() and solved.log_det.isfinite().all())
    zero = solve_spread(lambda v: 0 * v, rest, 0.25)
    torch.testing.assert_close(zero.value, 4 * rest)


@pytest.mark.parametrize("mate", [1.0, 1e6, math.nan])
def test_a_mate_changes_nothing(mate):
    posterior = sg.Posterior(sg.MixtureModel(GAUSSIAN, sg.VPSDE()), OBSERVATIONS["linear"][0])
    (x, t), y = states(sg.VPSDE()), normals(5, 2)
    y[1] = mate
    x[1] = x[1] * mate if math.isnan(mate) else x[1]
    alone = posterior(x[:1], t[:1], y=y[:1])
    torch.testing.assert_close(posterior(x, t, y=y).x0[:1], alone.x0, rtol=1e-12, atol=1e-12)


class Watched(torch.autograd.Function):
    """The identity, which counts how often it is gone through backwards."""

    made = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Watched.made += 1
        return gradient


class Pulled(nn.Module):
    event_shape = (4,)

    def forward(self, x, t):
        return torch.tanh(Watched.apply(x)) * 0.5


@pytest.mark.parametrize("how", [{"steps": 5}, {"rtol": 3e-2}, {"steps": 6, "eta": 1.0}, {"steps": 5, "batch_size": 2}])
def test_products_with_the_jacobian_are_counted_apart(how):
    """m + 1 of them a call for the covariance of m numbers, one where it is not asked for, none for a projection, and
    none far above the data's scale."""
    model, y = sg.Denoiser(Pulled(), sg.VPSDE(), parametrization="x0", data_mean=0.0, data_std=1.0), torch.zeros(3, 2)
    mask, bent = OBSERVATIONS["mask"][0], sg.Observation.function(lambda x0: x0[:, :2].tanh(), std=0.3)
    for wrapped, each in [
        (sg.Posterior(model, mask), 3),
        (sg.Posterior(model, bent), 3),
        (sg.Posterior(model, mask, likelihood="isotropic"), 1),
        (sg.Posterior(model, mask, likelihood="project"), 0),
        (sg.Tilted(sg.Posterior(model, mask, likelihood="isotropic"), lambda x0: x0.sum(1)), None),
        (model, 0),
    ]:
        before = Watched.made
        found = sg.sample(wrapped, 3, seed=0, t_span=(0.5, 0.0), **how, **({} if wrapped is model else {"y": y}))
        assert found.gradients == Watched.made - before
        if each is not None:
            assert found.gradients == each * found.calls
    before = Watched.made
    drawn = sg.sample_posterior(model, mask, 3, y=y, particles=2, steps=4, batch_size=4, seed=0)
    assert drawn.gradients == Watched.made - before > 0


def test_wrong_input_is_refused_before_the_first_call():
    class Net(nn.Module):
        event_shape = (2, 2)
        calls = 0

        def forward(self, x, t):
            self.calls += 1
            return x

    net = Net()
    model = sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=0.5)
    mask = sg.Observation.mask(torch.ones(2, 2))
    for make, said in [
        (lambda: sg.Observation.mask(torch.full((2, 2), 0.5)), "got a mask of shape"),
        (lambda: sg.Observation.mask(torch.zeros(2, 2)), "not all 0"),
        (lambda: sg.Observation.mask("left"), "mask=.left., expected a tensor"),
        (lambda: sg.Observation.mask(torch.ones(2, 2), std=-0.1), "got std=-0.1"),
        (lambda: sg.Observation.linear([1.0, 2.0], std=0.1), "got A of shape"),
        (lambda: sg.Observation.linear((torch.tanh, 2), std=0.1), "expected two functions"),
        (lambda: sg.Observation.average(0), "got k=0"),
        (lambda: sg.Observation.function(torch.tanh, std=0.0), "got std=0"),
        (lambda: sg.Observation.function(3, std=1.0), "got f=3"),
        (lambda: sg.Posterior(model, torch.ones(2, 2)), "got observation="),
        (lambda: sg.Posterior(model, mask, likelihood="dps"), "got likelihood='dps'"),
        (lambda: sg.Posterior(model, mask, likelihood="point"), "with std=0"),
        (
            lambda: sg.Posterior(model, sg.Observation.function(torch.tanh, std=1.0), likelihood="project"),
            "of a function",
        ),
        (lambda: sg.Posterior(model, sg.Observation.mask(torch.ones(4))), "expected the event shape"),
        (lambda: sg.Posterior(model, sg.Observation.average(3)), "expected a divisor"),
        (lambda: sg.Posterior(model, sg.Observation.linear(torch.ones(1, 3), std=0.0)), "expected \\(m, 4\\)"),
    ]:
        with pytest.raises(sg.InvalidInputError, match=said):
            make()
    good = torch.zeros(3, 2, 2)
    for cond, said in [
        ({}, "got y=None"),
        ({"y": [0.0]}, "got y="),
        ({"y": good[:2]}, "for 3 samples"),
        ({"y": torch.zeros(3, 3)}, "got y of 3 numbers"),
        ({"y": good * math.nan}, "got NaN"),
        ({"y": good + 128.0}, "expected the units of the data"),
        ({"y": good, "z": 1}, "'z' is unknown"),
    ]:
        with pytest.raises(sg.InvalidInputError, match=said):
            sg.sample(sg.Posterior(model, mask), 3, steps=4, **cond)
    assert net.calls == 0
    blind = sg.Posterior(sg.MixtureModel(GAUSSIAN, sg.LinearPathSDE(t_max=1.0)), OBSERVATIONS["linear"][0])
    with pytest.raises(sg.InvalidInputError, match="no signal"):
        sg.sample(blind, 3, steps=4, solver="euler", y=torch.zeros(3, 2))


def test_gaussian_starts_and_error_control_are_refused_where_they_make_no_sense():
    """The start leaps to the law of the data, which samples of a posterior have not; DPS is stiff."""
    model, y = sg.MixtureModel(GAUSSIAN, sg.VPSDE()), torch.zeros(3, 2)
    gaussian = sg.make_solver("adams", start="gaussian")
    for wrapped, cond in [
        (sg.Posterior(model, OBSERVATIONS["mask"][0]), {"y": y}),
        (sg.Tilted(sg.Posterior(model, OBSERVATIONS["mask"][0]), lambda x0: x0[:, 0]), {"y": y}),
        (sg.Guided(model, 2.0, against=model), {}),
    ]:
        for how in ({"steps": 8}, {"rtol": 1e-2}):
            with pytest.raises(sg.InvalidInputError, match="start='gaussian'"):
                sg.sample(wrapped, 3, solver=gaussian, **how, **cond)
    sg.sample(sg.Guided(model, 1.0, against=model), 3, solver=gaussian, steps=8)
    with pytest.warns(UserWarning, match="biased"):
        point = sg.Posterior(model, OBSERVATIONS["linear"][0], likelihood="point")
    for how in ({"rtol": 1e-2}, {"solver": "dopri5"}):
        with pytest.raises(sg.InvalidInputError, match="stiff: use steps="):
            sg.sample(point, 3, y=y, **how)
    sg.sample(point, 3, y=y, steps=5)
    with pytest.raises(sg.InvalidInputError, match="drawn with noise"):
        sg.sample(
            sg.Posterior(model, OBSERVATIONS["mask"][0]), 3, y=y, solver="ddim", eta=1.0, steps=5, return_log_prob=True
        )


@pytest.mark.parametrize("how", [{"steps": 6}, {"rtol": 1e-2}, {"solver": "ancestral", "steps": 6, "save": "all"}])
@pytest.mark.parametrize("likelihood", ["moments", "isotropic", "project"])
def test_numbers_seen_without_noise_are_in_samples_to_the_bit(likelihood, how):
    posterior = sg.Posterior(
        sg.MixtureModel(GAUSSIAN, sg.VPSDE()), OBSERVATIONS["mask without noise"][0], likelihood=likelihood
    )
    y = normals(5, 4).float()
    for model in (posterior, sg.Tilted(posterior, lambda x0: -x0.square().sum(1))):
        found = sg.sample(model, 5, seed=0, y=y, batch_size=2, **how)
        assert torch.equal(found.x[:, [0, 2]], y[:, [0, 2]]) and torch.equal(found.xs[-1], found.x)
        there = sg.sample(model, 5, seed=0, y=y, t_span=(1.0, 1e-3), steps=6)
        assert not torch.equal(there.x[:, [0, 2]], y[:, [0, 2]])


def test_the_error_of_the_prior_is_unknown_of_a_guided_law():
    model = sg.MixtureModel(GAUSSIAN, sg.VPSDE())
    x = GAUSSIAN.sample(3, seed=0)
    assert bool(torch.isfinite(sg.log_prob(model, x, rtol=1e-2).errors["prior"]).all())
    guided = sg.log_prob(sg.Posterior(model, OBSERVATIONS["mask"][0]), x, rtol=1e-2, y=torch.zeros(3, 2))
    assert bool(guided.errors["prior"].isnan().all() and guided.errors["solver"].isfinite().all())


# ---- the noise that it advises


def two_groups(n: int) -> tuple[sg.Posterior, Tensor, sg.GaussianMixture]:
    """A pair of numbers of which one is seen, two groups of data agreeing with it; (posterior, y, the exact one)."""
    mixture = sg.GaussianMixture([[-1.0, -1.2], [0.2, 0.9], [1.0, 0.0]], std=[0.3, 0.35, 0.2], weights=[0.5, 0.3, 0.2])
    y = torch.full((n, 1), -0.3, dtype=F64)
    exact = mixture.posterior(torch.eye(2, dtype=F64)[:1], y[0], 0.1)
    return sg.Posterior(sg.MixtureModel(mixture, sg.VPSDE()), sg.Observation.mask([1, 0], std=0.1)), y, exact


def test_new_samples_on_a_grid_are_drawn_with_noise():
    """As if it were asked for by name; by eta=0, a tolerance, a start, a density and times between nodes it is the
    flow."""
    posterior, y, _ = two_groups(6)
    rough = sg.Posterior(Rippled(sg.GaussianMixture([[0.5, -0.2]], std=0.7), 0.0), posterior.observation)
    for model, eta in ((posterior, 2.0), (rough, 1.0), (posterior.on(sg.EDMSDE()), 2.0)):
        how = {"steps": 8, "seed": 0, "y": y, "dtype": F64}
        found = sg.sample(model, 6, **how)
        assert model.advised_eta == eta
        assert torch.equal(found.x, sg.sample(model, 6, solver="d-adams2-sde", eta=eta, **how).x)
        assert not torch.equal(found.x, sg.sample(model, 6, eta=0.0, **how).x)
        for more in ({"x_init": found.x}, {"save": [0.5]}, {"return_log_prob": True}, {"steps": None}):
            flow = {**how, **more}
            assert torch.equal(sg.sample(model, (6, 2), **flow).x, sg.sample(model, (6, 2), eta=0.0, **flow).x)
    assert sg.Posterior(rough, posterior.observation, likelihood="project").advised_eta == 1.0
    assert sg.Posterior(rough.model, posterior.observation, likelihood="project").advised_eta == 0.0


def test_noise_mends_the_shares_of_the_modes():
    """The flow's share of the upper group is off by its bias, whatever the number of steps; noise has less of it."""
    n = 2000
    posterior, y, exact = two_groups(n)
    right = float((exact.sample(40_000, seed=1, dtype=F64)[:, 1] > -0.1).double().mean())
    for steps in (25, 40):
        plain, noisy = (sg.sample(posterior, n, steps=steps, seed=0, y=y, **how).x for how in ({"eta": 0.0}, {}))
        off, less = (abs(float((x[:, 1] > -0.1).double().mean()) - right) for x in (plain, noisy))
        assert less < 0.85 * off, (steps, less, off)


def test_sharp_measurements_of_a_network_are_kept_in_few_steps():
    """The flow is stiff where std is far below the data's, and its few steps leave y; those with noise agree with it."""
    mixture, n = sg.GaussianMixture(normals(5, 12, seed=7), std=0.2), 40
    a, std = normals(8, 12, seed=8), 0.02
    observation = sg.Observation.linear(a, std=std)
    posterior = sg.Posterior(Rippled(mixture, 0.01), observation, likelihood="isotropic")
    y = mixture.sample(n, seed=3, dtype=F64) @ a.mT

    def left(steps: int, **how: float) -> float:
        x = sg.sample(posterior, n, steps=steps, seed=0, y=y, dtype=F64, **how).x
        return float((x @ a.mT - y).square().mean().sqrt())

    assert left(10) < 0.1 * left(10, eta=0.0) and left(25) < 2 * std < left(25, eta=0.0)
