"""Log-densities along the flow against closed forms: Gaussians, mixtures, Hutchinson's variance, a total mass of 1."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DISTINCT
from torch import Tensor, nn

import sdegen as sg
from sdegen.core.errors import InvalidInputError, MaxStepsError, NonFiniteError
from sdegen.inference.column import quadrature
from sdegen.inference.likelihood import LogProb, log_prob
from sdegen.models.base import ScoreModel
from sdegen.models.denoiser import Denoiser
from sdegen.models.exact import MixtureModel
from sdegen.noise.white import Noise
from sdegen.processes import EDMSDE, SDE, VESDE, VPSDE
from sdegen.solvers import Step

F64 = torch.float64

# Smooth enough for a few steps: where orders show.
SMOOTH = sg.GaussianMixture([[0.0, 0.5], [1.5, 0.0]], std=[0.5, 0.7])
GAUSSIAN = sg.GaussianMixture([[1.0, -2.0]], covariances=[[1.0, 0.8], [0.8, 2.0]])


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def mixture(dim: int, seed: int = 0) -> sg.GaussianMixture:
    """Five components with covariances of their own."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(5, dim, generator=g, dtype=F64)
    axes = torch.linalg.qr(torch.randn(5, dim, dim, generator=g, dtype=F64))[0]
    axes = axes * (0.1 + 0.4 * torch.rand(5, 1, dim, generator=g, dtype=F64))
    return sg.GaussianMixture(means, covariances=axes @ axes.mT, weights=1 + torch.rand(5, generator=g, dtype=F64))


def at_t_min(model: MixtureModel, n: int, seed: int = 1) -> Tensor:
    """n draws of the law at t_min."""
    x0 = model.mixture.sample(n, seed=seed, dtype=F64)
    return model.sde.perturb(x0, model.sde.t_min, Noise(seed).normal(x0.shape, 77, dtype=F64, device="cpu"))


def known(dim: int, sde: SDE, n: int) -> tuple[MixtureModel, Tensor, Tensor]:
    """A model, samples, and their exact log-density at t_min."""
    model = MixtureModel(mixture(dim), sde)
    x = at_t_min(model, n)
    return model, x, model.log_prob(x, sde.t_min)


class Net(nn.Module):
    """A small smooth network on any event, in float64."""

    def __init__(self, dim: int, hidden: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Sequential(nn.Linear(dim + 1, hidden), nn.Tanh(), nn.Linear(hidden, dim)).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        z = torch.cat([x.reshape(len(x), -1), t[:, None]], 1)
        return self.inner(z).reshape(x.shape)


# ---- exact laws


@pytest.mark.parametrize(
    "how", [{"rtol": 1e-2}, {"solver": "euler", "steps": 4}, {"solver": "ddim", "steps": 4}], ids=str
)
@pytest.mark.parametrize("name", DISTINCT)
def test_gaussian_data_have_their_exact_density(name, how):
    """To rounding, in a few evaluations, by any solver along any process: the departure is always 0."""
    model = MixtureModel(GAUSSIAN, DISTINCT[name])
    x = at_t_min(model, 3)
    found = log_prob(model, x, **how)
    torch.testing.assert_close(found.nats, model.log_prob(x, model.sde.t_min), rtol=1e-10, atol=1e-10)
    assert float(found.nfe.max()) < 16
    assert float(found.errors["prior"].abs().max()) < 1e-10


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hutch++"])
def test_gaussian_data_have_it_with_random_probes_too(kind):
    model = MixtureModel(GAUSSIAN, VPSDE())
    x = at_t_min(model, 5)
    found = log_prob(model, x, rtol=1e-2, divergence=kind, probes=6, seed=0)
    torch.testing.assert_close(found.nats, model.log_prob(x, VPSDE().t_min), rtol=1e-10, atol=1e-10)
    assert float(found.stderr.max()) < 1e-10


def test_a_standard_deviation_for_each_coordinate_makes_the_prior_exact():
    """Gaussian data along the axes: the law at t_max is known from data_mean and data_std alone, at any noise there."""
    model = MixtureModel(
        sg.GaussianMixture([[1.0, -2.0]], covariances=[[0.09, 0.0], [0.0, 4.0]]), EDMSDE(sigma_max=5.0)
    )
    truth = model.log_prob(x := at_t_min(model, 5), model.sde.t_min)
    model.data_covariance = None
    model.set_statistics(torch.tensor([1.0, -2.0]), torch.tensor([0.3, 2.0]))
    found = log_prob(model, x, rtol=1e-9)
    torch.testing.assert_close(found.nats, truth, rtol=0, atol=1e-6)
    model.set_statistics(torch.tensor([1.0, -2.0]), math.sqrt(4.09 / 2))  # one number for both: told as an error
    found = log_prob(model, x, rtol=1e-9)
    assert rms(found.nats - truth) > 1e-4
    assert rms(found.nats - found.errors["prior"] - truth) < 0.2 * rms(found.nats - truth)


class Ball(nn.Module):
    """The zero network, with a graph: a Denoiser of it believes in N(mean, std^2)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0 * x


@pytest.mark.parametrize("event", [(), (1,), (3,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("divergence", ["exact", "rademacher"])
def test_any_event_shape(event, divergence):
    sde, s = VPSDE(), 0.7
    model = Denoiser(Ball(), sde, data_mean=0.0, data_std=s)
    x = torch.randn(4, *event, dtype=F64)
    found = log_prob(model, x, rtol=1e-3, divergence=divergence, seed=0)
    std = (sde.alpha(sde.t_min) ** 2 * s**2 + sde.sigma(sde.t_min) ** 2).sqrt()
    wanted = torch.distributions.Normal(torch.zeros_like(std), std).log_prob(x).reshape(4, -1).sum(1)
    torch.testing.assert_close(found.nats, wanted, rtol=1e-10, atol=1e-10)
    assert found.latent.shape == x.shape and found.nats.shape == found.stderr.shape == found.nfe.shape == (4,)
    assert {name: tuple(e.shape) for name, e in found.errors.items()} == dict.fromkeys(
        ("solver", "prior", "truncation"), (4,)
    )


@pytest.mark.parametrize("dim, n, most", [(2, 32, 1e-4), (64, 6, 1e-5)])
@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=["vp", "edm"])
def test_mixtures_have_theirs_to_the_tolerance(dim, n, most, sde):
    """The number asked for is 1e-4 nats per dimension at rtol 1e-5, after the known error of the prior."""
    model, x, truth = known(dim, sde, n)
    found = log_prob(model, x, rtol=1e-5, divergence="exact")
    assert rms(found.nats - found.errors["prior"] - truth) / dim < most
    assert bool((found.stderr == 0).all())


@pytest.mark.parametrize(
    "how",
    [{"solver": "dopri5", "rtol": 1e-6}, {"solver": "rk4", "steps": 60}, {"solver": "adams", "steps": 100},
     {"solver": "unipc3", "steps": 100}, {"solver": "ipndm4", "steps": 100}, {"solver": "v-adams3", "steps": 100},
     {"solver": "torchdiffeq:dopri5", "rtol": 1e-6}, {"solver": "scipy:DOP853", "rtol": 1e-6}],
    ids=lambda how: how["solver"],
)  # fmt: skip
def test_every_solver_agrees(how):
    """Drifts or predictions, fixed steps or a tolerance, our loop or another's: one density, and the same latents."""
    model, x, truth = known(2, VPSDE(), 6)
    found = log_prob(model, x, **how)
    assert float((found.nats - truth).abs().median()) < 1e-3
    latent = sg.encode(model, x, rtol=1e-9).x
    assert float((found.latent - latent).abs().median()) < 1e-3


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_order_of_the_log_density_is_that_of_the_solver(solver, order):
    """Between 20 and 40 steps; the reference, at rtol 1e-9, is a thousand times closer."""
    model = MixtureModel(SMOOTH, VPSDE(t_min=0.05))
    x = at_t_min(model, 8)
    exact = log_prob(model, x, rtol=1e-9).nats
    coarse, fine = ((log_prob(model, x, solver=solver, steps=n).nats - exact).abs().median() for n in (20, 40))
    assert float(torch.log2(coarse / fine)) == pytest.approx(order, abs=0.25)


def test_the_density_of_a_network_integrates_to_one():
    """No score is exact here: the mass is 1 only if divergence, prior and change of variables fit each other."""
    for sde in (VPSDE(t_min=0.02), VESDE(0.1, 20.0)):
        model = Denoiser(Net(1), sde, data_mean=0.3, data_std=1.2)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        x = torch.linspace(-8, 8, 801, dtype=F64)[:, None]
        found = log_prob(model, x, solver="rk4", steps=60)
        assert float(torch.trapezoid(found.nats.exp(), x[:, 0])) == pytest.approx(1, abs=1e-5)
        assert rms(found.nats - torch.distributions.Normal(0.3, 1.2).log_prob(x[:, 0])) > 0.1  # it is not the reference


# ---- the errors told


@pytest.mark.parametrize("moments", [0, 1, 2], ids=["nothing known", "mean and std", "covariance"])
def test_the_priors_error_is_told(moments):
    """With little noise at t_max: what is told is the whole difference from the truth, to the lowest order."""
    mix = sg.GaussianMixture([[0.0, 1.0], [2.0, 0.0], [1.0, 1.5]], std=[0.3, 0.2, 0.4])
    model = MixtureModel(mix, EDMSDE(sigma_max=20.0))
    if moments < 2:
        model.data_covariance = None
    if moments == 0:
        model.set_statistics(None, None)
    x = at_t_min(model, 40)
    found = log_prob(model, x, rtol=1e-8)
    wrong = found.nats - model.log_prob(x, model.sde.t_min)
    assert rms(wrong) > 1e-6
    assert rms(found.errors["prior"] - wrong) < 0.15 * rms(wrong)


@pytest.mark.parametrize(
    "sde", [VPSDE(t_min=5e-3), EDMSDE(sigma_min=0.02), DISTINCT["linear-path"]], ids=["vp", "edm", "path"]
)
def test_the_truncation_is_told(sde):
    model = MixtureModel(sg.GaussianMixture([[0.0, 1.0], [2.0, 0.0]], std=[0.3, 0.5]), sde)
    x = at_t_min(model, 40)
    found = log_prob(model, x, rtol=1e-3)
    wrong = model.log_prob(x, sde.t_min) - model.mixture.log_prob(x)
    assert rms(found.errors["truncation"] - wrong) < 0.1 * rms(wrong)


def told_over_true(how: dict) -> float:
    """The geometric mean over samples of the error told over the error made: a median of ratios that spread over two
    decades moves three times as much between draws."""
    model, x, truth = known(16, VPSDE(), 32)
    found = log_prob(model, x, **how)
    return float((found.errors["solver"] / (found.nats - found.errors["prior"] - truth).abs()).log().mean().exp())


@pytest.mark.parametrize("how", [{"rtol": 1e-3}, {"rtol": 1e-5}, {"solver": "dopri5", "rtol": 1e-4}], ids=str)
def test_the_solvers_error_is_told_under_a_tolerance(how):
    assert 1.5 < told_over_true(how) < 20  # 3 to 10 over draws of 64


@pytest.mark.parametrize(
    "solver, steps", [("euler", 50), ("ddim", 50), ("dpm++2m", 50), ("unipc3", 50), ("heun", 30), ("adams", 30)]
)
def test_the_solvers_error_is_told_on_a_grid(solver, steps):
    assert 0.5 < told_over_true({"solver": solver, "steps": steps}) < 16  # 0.66 to 9.5 over draws of 64


def test_quadrature_is_exact_for_cubics_on_any_nodes():
    nodes = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.1, 2.0], dtype=F64)
    values = torch.stack([nodes**3 - nodes, torch.ones_like(nodes)], 1)
    torch.testing.assert_close(quadrature(nodes, values), torch.tensor([4.0 - 2.0, 2.0], dtype=F64))
    torch.testing.assert_close(quadrature(nodes[:2], values[:2, 1:]), torch.tensor([0.1], dtype=F64))


# ---- random probes


def many_probes(probes: int, kind: str, n: int = 1000) -> tuple[LogProb, LogProb]:
    """One sample with the probes of n others, and its exact density by the same steps."""
    model, x, _ = known(2, VPSDE(), 1)
    how = {"solver": "rk4", "steps": 12}
    return log_prob(model, x.expand(n, -1), divergence=kind, probes=probes, seed=5, **how), log_prob(model, x, **how)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_standard_error_is_the_spread_over_1000_seeds(kind):
    """On one path the divergence is one quadratic form of the probes, and so is their sum along it."""
    found, exact = many_probes(4, kind)
    spread = float(found.nats.std())
    assert spread > 0.01
    assert math.sqrt(float(found.stderr.square().mean())) == pytest.approx(spread, rel=0.1)
    assert abs(float(found.nats.mean() - exact.nats)) < 4 * spread / math.sqrt(1000)


def test_one_probe_has_no_standard_error():
    model, x, _ = known(2, VPSDE(), 2)
    assert bool(log_prob(model, x, steps=5, divergence="rademacher", seed=0).stderr.isnan().all())


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_variance_along_the_flow_is_hutchinsons(kind):
    """Gaussian data measured from an isotropic q: the summed Jacobian is log sqrt((C + r_T^2)/(C + r_0^2))."""
    c = torch.tensor([[1.0, 0.8], [0.8, 2.0]], dtype=F64)
    model = MixtureModel(sg.GaussianMixture([[0.0, 0.0]], covariances=c), EDMSDE())
    model.data_covariance = None
    x = at_t_min(model, 1).expand(4000, -1)
    found = log_prob(model, x, solver="rk4", steps=25, divergence=kind, seed=0).nats
    values, axes = torch.linalg.eigh(c)
    s2, low, high = model.sigma_data**2, 0.002**2, 80.0**2
    grown = torch.log((values + high) / (values + low) * (s2 + low) / (s2 + high)) / 2
    a = axes @ grown.diag() @ axes.T
    wanted = 2 * a.square().sum() - (2 * a.diagonal().square().sum() if kind == "rademacher" else 0)
    # four standard errors of a variance; of Rademacher's two equally likely values it has none to first order
    error = (((found - found.mean()) ** 4).mean() - found.var() ** 2).clamp_min(0).div(4000).sqrt()
    assert abs(float(found.var() - wanted)) < 4 * float(error) + 20 / 4000 * float(wanted)


@pytest.mark.parametrize("kind", ["exact", "rademacher", "hutch++"])
def test_the_batch_does_not_matter(kind):
    model, x, _ = known(3, VPSDE(), 5)
    how = {"rtol": 1e-2, "divergence": kind, "probes": 4, "seed": 3}
    whole = log_prob(model, x, **how)
    for size in (1, 2):
        part = log_prob(model, x, batch_size=size, **how)
        for name in ("nats", "stderr", "latent"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
        assert torch.equal(part.nfe, whole.nfe)
    some = log_prob(model, x[[4, 2]], index=[4, 2], **how)
    torch.testing.assert_close(some.nats, whole.nats[[4, 2]], rtol=1e-12, atol=1e-12)
    assert whole.seed == 3


# ---- gradients, modes, the network


@pytest.mark.parametrize(
    "how",
    [{"solver": "rk4", "steps": 6}, {"solver": "adams", "steps": 8}, {"solver": "dpm++2m", "steps": 8},
     {"solver": "rk4", "steps": 6, "divergence": "rademacher", "seed": 0}],
    ids=str,
)  # fmt: skip
def test_gradients_are_those_of_finite_differences(how):
    model = Denoiser(Net(2), VPSDE(), data_mean=0.1, data_std=0.8)
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    weight = model.net.inner[0].weight
    y = x.clone().requires_grad_()
    found = log_prob(model, y, grad=True, **how)
    by_x, by_weight = torch.autograd.grad(found.nats.sum(), [y, weight])
    h = 1e-5
    for i in range(2):
        shift = torch.zeros(2, dtype=F64).index_fill(0, torch.tensor(i), h)
        ends = [log_prob(model, x + sign * shift, **how).nats for sign in (1, -1)]
        torch.testing.assert_close(by_x[:, i], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        ends = []
        for sign in (1, -2):
            weight[1, 0] += sign * h
            ends.append(float(log_prob(model, x, **how).nats.sum()))
        weight[1, 0] += h
    assert float(by_weight[1, 0]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("solver", ["adams", "dopri5", "torchdiffeq:dopri5"])
def test_under_a_tolerance_the_gradient_is_the_score(solver):
    model, x, _ = known(2, VPSDE(), 6)
    x.requires_grad_()
    found = log_prob(model, x, solver=solver, rtol=1e-7, grad=True)
    (g,) = torch.autograd.grad(found.nats.sum(), x)
    torch.testing.assert_close(g, model.score(x.detach(), model.sde.t_min), rtol=1e-3, atol=1e-3)
    assert not found.latent.requires_grad and not found.errors["prior"].requires_grad


def test_it_runs_without_gradients_and_leaves_the_modes_alone():
    model = Denoiser(nn.Sequential(), VPSDE(), data_std=1.0)
    model.net = Net(2)
    model.train()
    model.net.inner.eval()
    x = torch.randn(3, 2, dtype=F64)
    plain = log_prob(model, x, steps=5)
    assert not plain.nats.requires_grad and model.training and not model.net.inner.training
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(log_prob(model, x, steps=5).nats, plain.nats, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(log_prob(model, x.clone(), steps=5).nats, plain.nats, rtol=0, atol=0)
        assert sg.sample(model, (2, 2), steps=5, seed=0, return_log_prob=True, dtype=F64).log_prob is not None


def test_a_network_that_cuts_its_graph_is_told_of():
    net = Net(2)
    model = Denoiser(
        type("Cut", (nn.Module,), {"forward": lambda self, x, t: net(x, t).detach()})(), VPSDE(), data_std=1.0
    )
    with pytest.warns(UserWarning, match="carries no gradient"):
        log_prob(model, torch.zeros(2, 2, dtype=F64), steps=3)


def test_conditions_follow_their_samples():
    class Shifted(ScoreModel):
        """Data at `centre`, a condition of each sample."""

        def forward(self, x, t, *, centre):
            return sg.Prediction.from_x0(x, centre[:, None].expand(x.shape) + 0 * x, self.sde, t)

    sde = VPSDE(t_min=0.05)
    centre = torch.tensor([-1.0, 0.0, 2.0], dtype=F64)
    x = torch.tensor([[0.3], [0.1], [1.0]], dtype=F64)
    found = log_prob(Shifted(sde), x, rtol=1e-8, batch_size=2, centre=centre)
    wanted = torch.distributions.Normal(sde.alpha(0.05) * centre, sde.sigma(0.05)).log_prob(x[:, 0])
    torch.testing.assert_close(found.nats - found.errors["prior"], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="condition 'label' is unknown"):
        log_prob(Shifted(sde), x, centre=centre, label=centre)


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
def test_the_data_keep_their_own_tolerance(solver):
    """Gaussian data have nothing to integrate beside the state: the steps are those of encode, for any number of probes."""
    model = MixtureModel(GAUSSIAN, VPSDE())
    x = at_t_min(model, 4)
    alone = sg.encode(model, x, solver=solver, rtol=1e-5)
    for probes in (1, 9):
        found = log_prob(model, x, solver=solver, rtol=1e-5, divergence="rademacher", probes=probes, seed=0)
        assert torch.equal(found.nfe, alone.nfe + 1)
        torch.testing.assert_close(found.latent, alone.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "how", [{"rtol": 1e-3}, {"solver": "heun", "steps": 7}, {"solver": "ddim", "steps": 7}], ids=str
)
def test_evaluations_are_counted(how, monkeypatch):
    model, x, _ = known(2, VPSDE(), 1)
    calls, forward = [], MixtureModel.forward
    monkeypatch.setattr(MixtureModel, "forward", lambda self, *args: (calls.append(1), forward(self, *args))[1])
    assert int(log_prob(model, x, **how).nfe) == len(calls)


# ---- there and back


@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8])
@pytest.mark.parametrize("dim", [2, 16])
def test_data_come_back_from_their_latents(dim, tol):
    model, x, _ = known(dim, VPSDE(), 24)
    latent = sg.encode(model, x, rtol=tol).x
    back = sg.sample(model, x.shape, x_init=latent, t_span=(model.sde.t_max, model.sde.t_min), rtol=tol).x
    assert float((back - x).norm() / x.norm()) < 10 * tol


@pytest.mark.parametrize(
    "how, denoised",
    [({"rtol": 1e-5}, True), ({"rtol": 1e-5, "batch_size": 3}, False), ({"solver": "rk4", "steps": 50}, True),
     ({"solver": "rk4", "steps": 50}, False), ({"solver": "unipc3", "steps": 100}, True),
     ({"solver": "unipc3", "steps": 100}, False), ({"solver": "torchdiffeq:dopri5", "rtol": 1e-6}, True)],
    ids=str,
)  # fmt: skip
def test_samples_come_with_their_log_density(how, denoised):
    """That of the state at t_min, whether or not the final denoising follows."""
    model = MixtureModel(mixture(2), VPSDE())
    span = (model.sde.t_max, model.sde.t_min)
    state = sg.sample(model, 4, seed=0, dtype=F64, rtol=1e-8, t_span=span).x
    found = sg.sample(
        model, 4, seed=0, dtype=F64, return_log_prob=True, **how, **({} if denoised else {"t_span": span})
    )
    assert found.log_prob is not None
    assert float((found.log_prob - model.log_prob(state, model.sde.t_min)).abs().median()) < 5e-3
    plain = sg.sample(model, 4, seed=0, dtype=F64, rtol=1e-8, **({} if denoised else {"t_span": span})).x
    assert found.x.shape == (4, 2) and float((found.x - plain).abs().median()) < 1e-3


def test_a_fixed_grid_draws_the_same_samples_with_and_without():
    model = MixtureModel(mixture(2), VPSDE())
    for solver in ("rk4", "adams", "dpm++2m"):
        plain, more = (
            sg.sample(model, 5, seed=0, solver=solver, steps=12, save="all", return_log_prob=r) for r in (False, True)
        )
        torch.testing.assert_close(more.x, plain.x)
        torch.testing.assert_close(more.xs, plain.xs)
        assert torch.equal(more.nfe, plain.nfe) and torch.equal(more.ts, plain.ts) and plain.log_prob is None


def test_samples_and_log_prob_tell_the_same():
    """Up to the solver's error, on an image-shaped event with a random probe."""
    model = Denoiser(Net(12), VPSDE(), data_mean=0.2, data_std=0.9)
    how = {"solver": "rk4", "steps": 60}
    drawn = sg.sample(model, (4, 3, 2, 2), seed=0, dtype=F64, t_span=(1.0, 1e-3), return_log_prob=True, **how)
    found = log_prob(model, drawn.x, **how)
    torch.testing.assert_close(drawn.log_prob, found.nats, rtol=1e-5, atol=1e-4)


# ---- bits


def test_bits_per_dim_are_offset_only_for_levels():
    model = Denoiser(Ball(), VPSDE(), data_mean=0.0, data_std=0.5)
    found = log_prob(model, torch.randn(3, 1, 4, 4, dtype=F64), steps=3)
    plain = found.bits_per_dim()
    torch.testing.assert_close(plain, -found.nats / (16 * math.log(2)))
    torch.testing.assert_close(found.bits_per_dim(256) - plain, torch.full((3,), 7.0, dtype=F64))
    torch.testing.assert_close(found.bits_per_dim(levels=17) - plain, torch.full((3,), math.log2(8.5), dtype=F64))
    with pytest.raises(InvalidInputError, match="levels=1"):
        found.bits_per_dim(1)


# ---- failures


class Fragile(ScoreModel):
    """NaN at middle noise for samples that are marked so."""

    def forward(self, x, t, *, bad):
        here = (self.sde.sigma(t) > 0.5) & (bad > 0)
        broken = torch.where(here[:, None], math.nan, 0.5) * x
        return sg.Prediction.from_x0(x, broken, self.sde, t)


@pytest.mark.parametrize(
    "how", [{"rtol": 1e-3}, {"solver": "rk4", "steps": 5}, {"solver": "ddim", "steps": 5}], ids=str
)
def test_a_failing_sample_harms_no_other(how):
    model = Fragile(VPSDE(), data_mean=0.0, data_std=1.0)
    x = torch.tensor([[0.1, 0.2], [3.0, 0.0], [0.5, -0.1]], dtype=F64)
    bad = torch.tensor([0.0, 1.0, 0.0])
    with pytest.raises(NonFiniteError) as caught:
        log_prob(model, x, bad=bad, **how)
    marked = log_prob(model, x, on_failure="mark", bad=bad, **how)
    alone = log_prob(model, x[[0, 2]], bad=bad[[0, 2]], **how)
    for found in (caught.value.partial, marked):
        assert isinstance(found, LogProb)
        assert (found.status != 0).tolist() == [False, True, False] == found.nats.isnan().tolist()
        assert found.errors["prior"].isnan().tolist() == found.stderr.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(found.nats[[0, 2]], alone.nats, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.errors["solver"][[0, 2]], alone.errors["solver"], rtol=1e-9, atol=1e-12)


class Sly(sg.Solver):
    """Euler's method that looks at beliefs and does not say so."""

    def step(self, term, x, t, t_next, state, noise):
        return Step(x + (t_next - t) * term.predict(x, t).velocity)


def test_a_solver_that_hides_how_it_works_is_refused():
    model, x, _ = known(2, VPSDE(), 3)
    with pytest.raises(InvalidInputError, match="needs_model"):
        log_prob(model, x, solver=Sly(), steps=4)
    with pytest.raises(InvalidInputError, match="needs_model"):
        sg.sample(model, 2, solver=Sly(), steps=4, return_log_prob=True)


def test_too_few_steps_are_an_error():
    model, x, _ = known(2, VPSDE(), 3)
    with pytest.raises(MaxStepsError):
        log_prob(model, x, rtol=1e-6, max_steps=5)


@pytest.mark.parametrize(
    "how", [{}, {"steps": 5}, {"divergence": "rademacher", "probes": 3}, {"batch_size": 2}], ids=str
)
def test_an_empty_batch_gives_an_empty_result(how):
    model, x, _ = known(2, VPSDE(), 3)
    found = log_prob(model, x[:0], **how)
    assert found.nats.shape == found.stderr.shape == found.nfe.shape == found.errors["solver"].shape == (0,)
    assert found.latent.shape == (0, 2) and found.bits_per_dim(256).shape == (0,)
    drawn = sg.sample(model, 0, return_log_prob=True)
    assert drawn.log_prob is not None and drawn.log_prob.shape == (0,)


def test_float32_keeps_what_it_can():
    model, x, truth = known(2, VPSDE(), 16)
    found = log_prob(model, x.float(), rtol=1e-4)
    assert found.latent.dtype == torch.float32 and found.nats.dtype == F64
    assert float((found.nats - truth).abs().median()) < 1e-3


WRONG = {
    "not a model": (lambda m, x: log_prob(nn.Linear(2, 2), x), "got model=Linear.*, expected a ScoreModel"),
    "not floating": (lambda m, x: log_prob(m, x.long()), "expected a floating one"),
    "another event": (lambda m, x: log_prob(m, x[:, :1]), r"event shape \(1,\)"),
    "infinite": (lambda m, x: log_prob(m, x / 0), "NaN or infinity in 3 samples"),
    "a solver of SDEs": (lambda m, x: log_prob(m, x, solver="langevin", steps=5), "draws noise"),
    "a tolerance for ddim": (lambda m, x: log_prob(m, x, solver="ddim", rtol=1e-3), "no|has none"),
    "both": (lambda m, x: log_prob(m, x, steps=5, rtol=1e-3), "both steps= and a tolerance"),
    "divergence": (lambda m, x: log_prob(m, x, divergence="trace"), "divergence='trace'"),
    "probes": (lambda m, x: log_prob(m, x, divergence="rademacher", probes=0), "probes=0"),
    "downward": (lambda m, x: log_prob(m, x, t_span=(1.0, 0.5)), "fall"),
    "beyond": (lambda m, x: log_prob(m, x, t_span=(1e-3, 2.0)), "outside"),
    "index": (lambda m, x: log_prob(m, x, index=[1]), "index names 1 samples"),
    "seed": (lambda m, x: log_prob(m, x, seed=0.5), "seed=0.5, expected an integer"),
    "batch size": (lambda m, x: log_prob(m, x, batch_size=0), "batch_size=0"),
    "on_failure": (lambda m, x: log_prob(m, x, on_failure="skip"), "on_failure='skip'"),
    "condition": (lambda m, x: log_prob(m, x, label=x), "condition 'label' is unknown"),
    "gradients by scipy": (lambda m, x: log_prob(m, x, solver="scipy:RK45", rtol=1e-3, grad=True), "cuts gradients"),
    "noisy samples": (lambda m, x: sg.sample(m, 3, eta=1.0, solver="ddim", return_log_prob=True), "drawn with noise"),
    "Langevin samples": (lambda m, x: sg.sample(m, 3, solver="langevin", return_log_prob=True), "drawn with noise"),
    "half the way": (lambda m, x: sg.sample(m, 3, t_span=(0.5, 0.0), x_init=x, return_log_prob=True), "t_max = 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_before_the_first_call(name, monkeypatch):
    call, said = WRONG[name]
    model, x, _ = known(2, VPSDE(), 3)
    calls = []
    monkeypatch.setattr(MixtureModel, "forward", lambda self, *args: calls.append(args))
    with pytest.raises(InvalidInputError, match=said):
        call(model, x)
    assert not calls
