"""Gaussian mixtures, and the exact models made of them and of data sets: densities, scores, samples."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from cases import DENSE_MIXTURES, DISTINCT, MIXTURES, SDES, SOME_SDES
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sdegen.core.errors import InvalidInputError
from sdegen.core.quadrature import gauss_legendre
from sdegen.distributions.mixture import GaussianMixture
from sdegen.inference.sampling import sample
from sdegen.models.exact import EmpiricalModel, MixtureModel
from sdegen.processes import EDMSDE, VPSDE, TabulatedVPSDE
from sdegen.testing import check_model, model_laws
from sdegen.testing.models import LAWS

F64 = torch.float64


def covariances(m: GaussianMixture) -> Tensor:
    axes = torch.eye(m.dim, dtype=F64).expand(len(m.means), -1, -1) if m.axes is None else m.axes
    return axes @ torch.diag_embed(m.variances) @ axes.mT


def reference(m: GaussianMixture, alpha: float, sigma: float) -> MixtureSameFamily:
    """torch's own mixture, of alpha x0 + sigma z."""
    c = alpha**2 * covariances(m) + sigma**2 * torch.eye(m.dim, dtype=F64)
    return MixtureSameFamily(Categorical(m.weights), MultivariateNormal(alpha * m.means, c))


def some_data() -> Tensor:
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.tensor([1.0, 0.3, 2.0]) + 1


# ---- the density


@pytest.mark.parametrize("name", DENSE_MIXTURES)
def test_log_prob_is_that_of_torch(name):
    m = MIXTURES[name]
    x = torch.randn(50, m.dim, dtype=F64) * 3
    torch.testing.assert_close(m.log_prob(x), reference(m, 1.0, 0.0).log_prob(x), rtol=1e-10, atol=1e-10)
    assert m.log_prob(x.float()).dtype == torch.float32
    torch.testing.assert_close(m.log_prob(x.float()).double(), m.log_prob(x), rtol=1e-4, atol=1e-4)
    assert m.log_prob(x[:0]).shape == (0,)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("process", ["vp", "ve", "trig", "linear-path"])
def test_the_noisy_density_is_that_of_torch(name, process):
    m, sde = MIXTURES[name], SDES[process]
    model = MixtureModel(m, sde)
    for t in torch.linspace(sde.t_min * 1.5, sde.t_max, 4, dtype=F64):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        x = alpha * m.sample(20, seed=1, dtype=F64) + sigma * torch.randn(20, m.dim, dtype=F64)
        wanted = reference(m, alpha, sigma).log_prob(x)
        # a Cholesky factor of a covariance with condition number 1e6 and more keeps about this much
        torch.testing.assert_close(model.log_prob(x, t), wanted, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(model.log_prob(x, t.expand(20)), wanted, rtol=1e-7, atol=1e-7)


def test_the_density_integrates_to_one():
    m = MIXTURES["line"]
    x = torch.linspace(-10, 12, 20_001, dtype=F64)[:, None]
    assert float(torch.trapezoid(m.log_prob(x).exp(), x[:, 0])) == pytest.approx(1, rel=1e-10)


# ---- the belief


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("process", DISTINCT)
def test_the_laws_of_models_along_every_process(process, law):
    dict(model_laws(MixtureModel(MIXTURES["full"], SDES[process])))[law]()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("process", SOME_SDES)
@pytest.mark.parametrize("name", MIXTURES)
def test_the_laws_of_models_for_every_mixture(name, process, law):
    dict(model_laws(MixtureModel(MIXTURES[name], SDES[process])))[law]()


@pytest.mark.parametrize("sigma", [0.003, 0.05, 0.5, 3.0, 80.0])
def test_the_denoiser_is_the_posterior_mean_by_brute_force(sigma):
    """E[x0 | x] and E[z | x] in one dimension, by Gauss-Legendre quadrature over x0."""
    m, alpha = MIXTURES["line"], 0.7
    x = alpha * m.sample(7, seed=2, dtype=F64) + sigma * torch.randn(7, 1, dtype=F64)
    nodes, weights = gauss_legendre(16)
    # the posterior lives within 9 of its standard deviations of x/alpha, and within the prior's bulk
    edges = []
    for point in x[:, 0] / alpha:
        low, high = max(-6.0, float(point) - 9 * sigma / alpha), min(8.0, float(point) + 9 * sigma / alpha)
        edges.append(torch.linspace(low, high, 801, dtype=F64))
    left, width = torch.stack([e[:-1] for e in edges]), torch.stack([e.diff() for e in edges])
    x0 = (left[..., None] + width[..., None] * nodes).flatten(1)
    w = (width[..., None] * weights).flatten(1)
    log_p = m.log_prob(x0.reshape(-1, 1)).reshape(x0.shape) - ((x - alpha * x0) / sigma) ** 2 / 2
    mass = w * torch.exp(log_p - log_p.amax(1, keepdim=True))
    mean = (mass * x0).sum(1) / mass.sum(1)
    noise = (mass * (x - alpha * x0) / sigma).sum(1) / mass.sum(1)
    log_density = torch.log(mass.sum(1)) + log_p.amax(1) - math.log(sigma * math.sqrt(2 * math.pi))
    came = m.denoise(x, alpha, sigma)
    for value, wanted in zip(came, (log_density, mean[:, None], noise[:, None]), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["flat", "points"])
def test_singular_covariances(name):
    """Data on lines or points: the belief stays on them, and the noisy density exists where the clean one does not."""
    m = MIXTURES[name]
    x = torch.randn(30, 2, dtype=F64)
    for sigma in (1e-3, 0.3, 50.0):
        log_p, x0, noise = m.denoise(x, 1.0, sigma)
        assert bool(torch.isfinite(log_p).all() and torch.isfinite(x0).all() and torch.isfinite(noise).all())
        torch.testing.assert_close(x0 + sigma * noise, x)
    x0 = m.denoise(m.sample(30, seed=0, dtype=F64), 1.0, 1e-4)[1]
    # "flat": x - y is 1 or -2 on the two lines; "points": the two points themselves
    offset = x0[:, 0] - x0[:, 1]
    assert bool((((offset - 1).abs() < 1e-7) | ((offset + 2).abs() < 1e-7)).all())
    with pytest.raises(InvalidInputError, match="no density"):
        m.log_prob(x)


def test_small_noise_in_float32():
    """At sigma = 1e-3 x0 and noise keep float32's digits: (x - x0)/sigma would have lost three of them."""
    m, t = MIXTURES["plane"], 1e-3
    model = MixtureModel(m, EDMSDE(sigma_min=t))
    x = (m.sample(500, seed=0, dtype=F64) + t * torch.randn(500, 2, dtype=F64)).float()
    low, high = model(x, t), model(x.double(), t)
    scale = float(high.noise.abs().mean())
    assert float((low.noise.double() - high.noise).abs().max()) / scale < 1e-5
    assert float((low.x0.double() - high.x0).abs().max()) < 1e-6
    naive = (x - low.x0) / t
    assert float((naive.double() - high.noise).abs().max()) / scale > 1e-2


# ---- samples


@pytest.mark.parametrize("name", MIXTURES)
def test_moments_of_samples(name):
    m, n = MIXTURES[name], 100_000
    x, label = m.sample_labelled(n, seed=4)
    torch.testing.assert_close(x, m.sample(n, seed=4, dtype=F64))
    share = torch.bincount(label, minlength=len(m.weights)) / n
    assert bool(((share - m.weights).abs() < 4.5 * torch.sqrt(m.weights * (1 - m.weights) / n)).all())
    std = m.covariance.diagonal().sqrt()
    assert bool(((x.mean(0) - m.mean).abs() < 4.5 * std / math.sqrt(n)).all())
    # the variance of a product of two coordinates, estimated from the samples themselves
    centred = x - m.mean
    products = centred[:, :, None] * centred[:, None]
    error = products.std(0) / math.sqrt(n)
    assert bool(((products.mean(0) - m.covariance).abs() < 4.5 * error + 1e-12).all())
    for k in range(len(m.means)):
        part = x[label == k] - m.means[k]
        products = part[:, :, None] * part[:, None]
        error = products.std(0) / math.sqrt(len(part))
        assert bool(((products.mean(0) - covariances(m)[k]).abs() < 5 * error + 1e-12).all())


def test_a_draw_depends_on_seed_and_number_alone():
    m = MIXTURES["full"]
    assert torch.equal(m.sample(10, seed=3), m.sample(1000, seed=3)[:10])
    assert not torch.equal(m.sample(10, seed=3), m.sample(10, seed=4))
    assert m.sample(0, seed=3).shape == (0, 3) and m.sample(2).dtype == torch.float32
    torch.manual_seed(0)
    a = m.sample(3)
    torch.manual_seed(0)
    assert torch.equal(a, m.sample(3))


def test_mean_and_covariance_in_closed_form():
    m = GaussianMixture([[0.0, 0.0], [2.0, 0.0]], std=[1.0, 3.0], weights=[3, 1])
    assert m.mean.tolist() == [0.5, 0.0] and m.weights.tolist() == [0.75, 0.25]
    # within: 0.75 * 1 + 0.25 * 9; between: 0.75 * 0.25 * 4 in the first coordinate
    torch.testing.assert_close(m.covariance, torch.tensor([[3.75, 0.0], [0.0, 3.0]], dtype=F64))


# ---- no signal at the end


@pytest.mark.parametrize("model", ["mixture", "empirical"])
def test_where_no_signal_is_left_the_belief_is_the_mean(model):
    sde = TabulatedVPSDE([0.1, 0.5, 1.0])
    made = MixtureModel(MIXTURES["plane"], sde) if model == "mixture" else EmpiricalModel(some_data(), sde)
    x = torch.randn(4, *made.event_shape, dtype=F64)
    for t in (1.0, torch.ones(4, dtype=F64)):
        p = made(x, t)
        torch.testing.assert_close(p.x0, made.data_mean.expand(x.shape))
        torch.testing.assert_close(p.noise, x)
        torch.testing.assert_close(p.score, -x)


# ---- a finite data set


@pytest.mark.parametrize("process", SOME_SDES)
def test_the_laws_of_models_for_a_data_set(process):
    check_model(EmpiricalModel(some_data(), SDES[process]))


@pytest.mark.parametrize("event", [(), (1,), (2, 3), (1, 2, 2)])
def test_the_laws_of_models_for_any_event_shape(event):
    check_model(EmpiricalModel(torch.randn(9, *event, dtype=F64), VPSDE()))


def test_a_data_set_is_the_mixture_of_its_points():
    data, sde = some_data(), VPSDE()
    points, model = MixtureModel(GaussianMixture(data, std=0.0), sde), EmpiricalModel(data, sde)
    torch.testing.assert_close(model.data_mean, data.mean(0))
    assert model.sigma_data == pytest.approx(float((data - data.mean(0)).square().mean().sqrt()))
    for t in (1e-3, 0.02, 0.3, 1.0):
        x = sde.perturb(data, t, torch.randn(40, 3, dtype=F64))
        came, wanted = model(x, t), points(x, t)
        torch.testing.assert_close(came.x0, wanted.x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(came.noise, wanted.noise, rtol=1e-8, atol=1e-8)


def test_a_data_set_far_from_zero_keeps_its_digits():
    data, sde = some_data(), EDMSDE()
    near, far = EmpiricalModel(data, sde), EmpiricalModel(data + 1000, sde)
    for t in (0.002, 0.1, 2.0):
        x = sde.perturb(data, t, torch.randn(40, 3, dtype=F64))
        # x + 1000 is rounded to 1e-13, which the softmax multiplies by distance/sigma^2 <= 1e6
        torch.testing.assert_close(far(x + 1000, t).x0 - 1000, near(x, t).x0, rtol=0, atol=1e-6)


def test_the_empirical_score_can_be_differentiated_twice():
    data, sde = some_data(), VPSDE()
    model = EmpiricalModel(data, sde)
    x = sde.perturb(data[:3], 0.3, torch.randn(3, 3, dtype=F64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, 0.3).score, (x,))
    assert torch.autograd.gradgradcheck(lambda x: model(x, 0.3).score, (x,))


def test_a_single_point_and_repeated_points():
    for data in (torch.ones(1, 2), torch.ones(4, 2)):
        model = EmpiricalModel(data, VPSDE())
        assert model.data_std is None and model.sigma_data == 1.0
        torch.testing.assert_close(model(torch.randn(3, 2), 0.5).x0, torch.ones(3, 2))


# ---- wrong input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GaussianMixture([1.0, 2.0], std=1.0), r"means has shape \(2,\): expected \(K, d\)"),
        (lambda: GaussianMixture([], std=1.0), "expected .K, d."),
        (lambda: GaussianMixture([[math.nan]], std=1.0), "means holds NaN or infinity"),
        (lambda: GaussianMixture([["a"]], std=1.0), "means could not be read as numbers"),
        (lambda: GaussianMixture([[0.0]]), "exactly one of std="),
        (lambda: GaussianMixture([[0.0]], std=1.0, covariances=[[1.0]]), "exactly one of std="),
        (lambda: GaussianMixture([[0.0]], std=-1.0), "not negative"),
        (lambda: GaussianMixture([[0.0]], std=[1.0, 2.0]), r"std has shape \(2,\)"),
        (lambda: GaussianMixture([[0.0, 0.0]], covariances=[[1.0]]), r"covariances has shape \(1, 1\)"),
        (lambda: GaussianMixture([[0.0, 0.0]], covariances=[[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (lambda: GaussianMixture([[0.0, 0.0]], covariances=[[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalue"),
        (lambda: GaussianMixture([[0.0]], std=1.0, weights=[1.0, 1.0]), "one per component"),
        (lambda: GaussianMixture([[0.0], [1.0]], std=1.0, weights=[1.0, -1.0]), "all positive"),
        (lambda: GaussianMixture([[0.0], [1.0]], std=1.0, weights=[1.0, 0.0]), "leave out"),
        (lambda: MIXTURES["plane"].log_prob(torch.zeros(3, 3)), r"x has shape \(3, 3\): this mixture is over \(B, 2\)"),
        (lambda: MixtureModel(MIXTURES["plane"], VPSDE())(torch.zeros(3, 1, 2), 0.5), r"over \(B, 2\)"),
        (lambda: MixtureModel(MIXTURES["plane"], VPSDE())(torch.zeros(3, 2), torch.zeros(2)), r"t has shape \(2,\)"),
        (lambda: MixtureModel(MIXTURES["plane"], VPSDE), "expected a process"),
        (lambda: EmpiricalModel(torch.zeros(0, 2), VPSDE()), "data is empty"),
        (lambda: EmpiricalModel(torch.tensor([[1.0, math.nan]]), VPSDE()), "data holds NaN"),
        (lambda: EmpiricalModel(torch.ones(3, 2, dtype=torch.int64), VPSDE()), "data has dtype torch.int64"),
        (lambda: EmpiricalModel(torch.ones(3, 2), VPSDE())(torch.zeros(2, 3), 0.5), r"event shape \(3,\)"),
    ],
)
def test_wrong_input(call, words):
    with pytest.raises(InvalidInputError, match=words):
        call()


def test_a_mixture_does_not_change_once_it_is_made():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    mixture = GaussianMixture(means, std=0.3)
    model = MixtureModel(mixture, VPSDE())
    before = sample(model, 3, steps=4, seed=0).x
    means.add_(1.0)  # the caller's own
    assert torch.equal(sample(model, 3, steps=4, seed=0).x, before)
    for name in ("means", "variances", "weights", "log_weights", "axes"):
        with pytest.raises(InvalidInputError, match=f"{name} of a GaussianMixture cannot be assigned"):
            setattr(mixture, name, None)
    for name in ("means", "variances", "weights", "log_weights"):
        for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), MixtureModel(mixture, VPSDE())):
            getattr(copied.mixture, name).mul_(1.5)
            with pytest.raises(InvalidInputError, match="written into"):
                sample(copied, 3, steps=4, seed=0)
            mixture = GaussianMixture(means - 1, std=0.3)
