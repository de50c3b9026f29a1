"""Where a network is first asked by a tolerance: not at t_max, where it can tell the mean of its data and no more."""

import math

import pytest
import torch

import sdegen as sg
from sdegen.models.coordinates import Coordinates
from sdegen.solvers.multistep.adams import tolerance as by_tolerance
from sdegen.solvers.multistep.adams.first import quiet_time
from sdegen.solvers.tolerance import Tolerance, effective_variance

PROCESSES = [sg.VPSDE(), sg.EDMSDE(), sg.CosineSDE(), sg.LinearPathSDE()]


class Asked(sg.Wrapped):
    """An exact score that counts as a network, and remembers the noise levels that it is asked at."""

    def __init__(self, model, **facts):
        super().__init__(model, smooth=False, **facts)
        self.levels = []

    def forward(self, x, t, **cond):
        at = self.sde.at(torch.as_tensor(t, dtype=torch.float64))
        self.levels.append(torch.as_tensor(at.sigma / at.alpha, dtype=torch.float64).expand(len(x)).clone())
        return super().forward(x, t, **cond)


def mixture_model(sde, dim=2):
    means = torch.randn(5, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return sg.MixtureModel(sg.GaussianMixture(means.tolist(), std=0.3), sde)


def start(sde, n=64, dim=2):
    return sde.prior((n, dim), seed=0, dtype=torch.float64)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("tol", [0.1, 0.03, 0.01])
def test_it_is_first_asked_where_it_tells_more_than_the_mean(sde, tol):
    """At r max(0.2/tol, 5), r the level at which it turns, or at t_max where that is below."""
    model = Asked(mixture_model(sde))
    sg.sample(model, 64, x_init=start(sde), rtol=tol, atol=0.0)
    last = sde.at(sde.t_max)
    expected = min(model.data.turning * max(0.2 / tol, 5.0), last.sigma / last.alpha)
    torch.testing.assert_close(model.levels[0], torch.full((64,), expected, dtype=torch.float64), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("tol", [0.1, 0.03, 0.01])
def test_what_is_not_asked_costs_less_than_the_tolerance(sde, tol, monkeypatch):
    """Fewer evaluations than from t_max, and an end within the tolerance of the flow's (of most samples: some are at a
    watershed between modes)."""
    inner, x = mixture_model(sde, 8), start(sde, dim=8)
    span = (sde.t_max, sde.t_min)
    exact = sg.sample(inner, 64, x_init=x, rtol=1e-10, t_span=span).x
    found = sg.sample(Asked(inner), 64, x_init=x, rtol=0.0, atol=tol * inner.sigma_data, t_span=span)
    monkeypatch.setattr(by_tolerance, "quiet_time", lambda *_: None)
    asked = sg.sample(Asked(inner), 64, x_init=x, rtol=0.0, atol=tol * inner.sigma_data, t_span=span)
    errors, before = ((x - exact).square().mean(1).sqrt().quantile(0.8) / inner.sigma_data for x in (found.x, asked.x))
    assert float(errors) < max(1.2 * tol, 1.3 * float(before))
    assert float(found.nfe.double().mean()) < float(asked.nfe.double().mean()) - (0.9 if tol > 0.01 else 0.0)


def test_gaussian_data_of_the_path_are_exact_from_there():
    sde = sg.VPSDE()
    model = Asked(sg.MixtureModel(sg.GaussianMixture([[1.0, -2.0, 0.5]], std=0.7), sde))
    x, t_min = sde.prior((50, 3), seed=1, dtype=torch.float64), torch.tensor(sde.t_min, dtype=torch.float64)
    t_max = torch.tensor(sde.t_max, dtype=torch.float64)
    found = sg.sample(model, 50, x_init=x, rtol=0.1, t_span=(sde.t_max, sde.t_min))
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    before, after = (sde.alpha(t) ** 2 * 0.49 + sde.sigma(t) ** 2 for t in (t_max, t_min))
    expected = sde.alpha(t_min) * mean + (after / before).sqrt() * (x - sde.alpha(t_max) * mean)
    torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-9)


def test_whatever_mean_it_tells_there_is_taken():
    """Labels, or data about another mean than the model says: the slope at the end of the way is that of all of it."""
    mixture = sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4]], std=0.3)
    labelled = sg.MixtureModel(mixture, sg.VPSDE(), labels=[0, 1])
    label, x, span = torch.tensor([0, 1]).repeat(32), start(labelled.sde), (labelled.sde.t_max, labelled.sde.t_min)
    for facts in ({}, {"mean": torch.tensor([0.5, 0.5])}):
        model = Asked(labelled, **facts)
        exact = sg.sample(labelled, 64, x_init=x, rtol=1e-10, t_span=span, label=label).x
        found = sg.sample(model, 64, x_init=x, rtol=0.03, atol=0.0, t_span=span, label=label)
        assert float(model.levels[0].max()) == pytest.approx(model.data.turning * 0.2 / 0.03, rel=0.01)
        assert float((found.x - exact).square().mean().sqrt()) < 0.03 * labelled.sigma_data


def test_elsewhere_it_is_asked_from_the_beginning():
    sde, tol = sg.VPSDE(), Tolerance(0.1, 0.1)
    model = Asked(mixture_model(sde))
    view = Coordinates.best_of(model).model
    flow, x, begin = sg.ProbabilityFlow(view), start(sde), view.sde.t_max
    expected = math.atan(5.0 * view.data.turning / view.sigma_data)
    assert quiet_time(flow, x, begin, 0.01, tol) == pytest.approx(expected)
    assert quiet_time(flow, x, begin * (1 - 1e-3), 0.01, tol) is None
    for other in (
        mixture_model(sde),  # exact
        Asked(mixture_model(sg.VPSDE(t_max=0.3))),  # through little noise
        sg.Denoiser(torch.nn.Identity(), sde, data_mean=0.0, data_std=1.0),  # where it turns is not known
        sg.Denoiser(torch.nn.Identity(), sde),  # nothing is known
        sg.Guided(
            Asked(sg.MixtureModel(mixture_model(sde).mixture, sde, labels=[0, 0, 0, 1, 1])), 2.0, null={"label": -1}
        ),
    ):
        along = other.on(sg.TrigSDE(1.0))
        assert quiet_time(sg.ProbabilityFlow(along), x, along.sde.t_max, 0.01, tol) is None
    assert quiet_time(sg.ProbabilityFlow(model), x, sde.t_max, 0.01, tol) is None  # another path


@pytest.mark.parametrize("made", [Asked, lambda model: model], ids=["network", "Gaussian start"])
@pytest.mark.parametrize("share", [0.98, 0.9, 0.7, 0.5])
def test_a_way_that_ends_above_is_not_left(made, share):
    """To an end above the level of the first evaluation, too: at it, and right."""
    inner = mixture_model(sg.VPSDE())
    model = made(inner)
    x, span = start(inner.sde), (inner.sde.t_max, share * inner.sde.t_max)
    solver = "adams" if isinstance(model, Asked) else sg.make_solver("adams", start="gaussian")
    exact = sg.sample(inner, 64, x_init=x, rtol=1e-10, t_span=span).x
    found = sg.sample(model, 64, x_init=x, rtol=0.05, t_span=span, solver=solver)
    assert float((found.x - exact).square().mean().sqrt()) < 0.05


@pytest.mark.parametrize("share", [0.98, 0.9, 0.7])
def test_a_way_of_the_reverse_sde_that_ends_above_is_not_left(share):
    """x_t has the covariance alpha^2 C + sigma^2 at any time, also where the step in closed form would go further."""
    model, sde = mixture_model(sg.VPSDE()), sg.VPSDE()
    found = sg.sample(
        model,
        4000,
        solver="d-adams2-sde",
        rtol=0.05,
        seed=0,
        t_span=(sde.t_max, share * sde.t_max),
        dtype=torch.float64,
    )
    at = sde.at(share * sde.t_max)
    expected = at.alpha**2 * model.data_covariance + at.sigma**2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(found.x.T), expected, rtol=0.0, atol=0.12)


def test_densities_travel_from_t_max():
    """Numbers beside the data have no Gaussian to leap with."""
    sde = sg.VPSDE()
    model = Asked(mixture_model(sde))
    found = sg.sample(model, 16, seed=0, rtol=0.1, return_log_prob=True)
    assert float(model.levels[0].min()) > 100
    assert bool(torch.isfinite(found.log_prob).all())


@pytest.mark.parametrize("sde", PROCESSES[:2], ids=repr)
def test_states_inside_the_leap_are_kept(sde):
    inner = mixture_model(sde)
    times = torch.tensor([sde.t_max, 0.999 * sde.t_max, 0.9 * sde.t_max, sde.t_min], dtype=torch.float64)
    x = start(sde)
    exact = sg.sample(inner, 64, x_init=x, rtol=1e-10, t_span=(sde.t_max, sde.t_min), save=times).xs
    found = sg.sample(Asked(inner), 64, x_init=x, rtol=0.05, t_span=(sde.t_max, sde.t_min), save=times).xs
    sizes = exact.square().mean((1, 2)).sqrt()
    assert bool(((found - exact).square().mean((1, 2)).sqrt() < 0.05 * sizes).all())
    torch.testing.assert_close(found[0], x)
    whole = sg.sample(Asked(inner), 64, x_init=x, rtol=0.05, t_span=(sde.t_max, sde.t_min), save="all")
    at = sde.at(whole.ts[1, :1])
    assert float(at.sigma / at.alpha) == pytest.approx(inner.data.turning * 5.0, rel=1e-6)


def test_the_widest_directions_are_read_off_the_turning_level():
    """v = (2 r)^2 between s^2 and the bound d s^2, of networks; a covariance that is known says it itself."""
    d, s = 50, 0.5
    model, x = sg.Denoiser(torch.nn.Identity(), sg.VPSDE(), data_mean=0.0, data_std=s), torch.zeros(3, d)
    for facts, expected in (({"turn": 0.1}, s**2), ({"turn": 0.8}, 1.6**2), ({"turn": 9.0}, d * s**2), ({}, d * s**2)):
        term = sg.ProbabilityFlow(sg.Wrapped(model, **facts).on(sg.TrigSDE(s)))
        assert effective_variance(term, x) == pytest.approx(expected)
    c = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    exact = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0, 0.0]], covariances=c), sg.VPSDE())
    term = sg.ProbabilityFlow(Asked(exact).on(sg.TrigSDE(1.0)))
    assert effective_variance(term, torch.zeros(3, 3)) == pytest.approx(18 / 6)


def test_the_first_step_after_a_leap_is_twice_as_long():
    sde = sg.VPSDE()
    model = Asked(mixture_model(sde))
    x = start(sde, 1)
    sg.sample(model, 1, x_init=x, rtol=0.01, t_span=(sde.t_max, sde.t_min))
    s = model.sigma_data
    at = sde.at(torch.tensor(sde.t_max, dtype=torch.float64))
    angles = [
        math.atan(float(at.sigma / at.alpha) / s),
        *(math.atan(float(level[0]) / s) for level in model.levels[:2]),
    ]
    assert angles[1] - angles[2] == pytest.approx(2 * (angles[0] - angles[1]), rel=1e-6)
