"""What a number of steps is made into: the pilot's grid, the choice of order, the warning against too high a one."""

import warnings

import numpy
import pytest
import torch

import sdegen as sg


def model_of(sde):
    means = [[-1.0, 0.3, 0.0], [1.0, -0.4, 0.2], [0.2, 1.5, -0.1]]
    return sg.MixtureModel(sg.GaussianMixture(means, std=0.15, weights=[0.5, 0.3, 0.2]), sde)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.SubVPSDE(), sg.LinearPathSDE()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_a_pilot_grid_goes_down_from_end_to_end(sde, n):
    ts = sg.grid(model_of(sde), n, kind="pilot", samples=8)
    assert ts.shape == (n + 1,) and ts.dtype == torch.float64
    assert float(ts[0]) == sde.t_max and float(ts[-1]) == 0.0
    assert bool((ts.diff() < 0).all())
    if n > 1:
        assert float(ts[-2]) == sde.t_min


@pytest.mark.parametrize("smooth, lays", [(True, "turn"), (False, "turn-time")])
def test_a_pilot_grid_is_half_where_the_steps_of_error_control_are(smooth, lays):
    """With one sample, as many steps as it took have passed half by its own steps and half by those that adams lays."""
    model = model_of(sg.VPSDE())
    model.smooth = smooth
    span = (model.sde.t_max, model.sde.t_min)
    run = sg.sample(model, 1, solver="adams", rtol=1e-3, t_span=span, seed=5, save="all")
    n = len(run.ts) - 1
    assert 12 < n <= 22  # that the pilot takes the same tolerance
    ts = sg.grid(model, n, kind="pilot", t_span=span, samples=1, seed=5)

    def angle(t):
        return torch.atan(model.sde.sigma(t) / model.sde.alpha(t) / model.sigma_data).numpy()

    def passed(steps):
        return numpy.interp(angle(ts), angle(steps.double().flip(0)), numpy.linspace(n, 0, n + 1))

    both = (passed(run.ts[:, 0]) + passed(sg.grid(model, n, kind=lays, t_span=span))) / 2
    numpy.testing.assert_allclose(both, numpy.arange(n + 1), atol=0.1)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=repr)
def test_a_pilot_grid_pays_from_50_steps_on(sde):
    """On the average of mixtures; by how much depends on the mixture."""
    span, gains = (sde.t_max, sde.t_min), []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        means = torch.randn(4, 2, generator=g, dtype=torch.float64)
        model = sg.MixtureModel(sg.GaussianMixture(means, std=torch.full((4,), 0.1 + 0.05 * seed)), sde)
        x = sde.prior((48, 2), seed=seed, dtype=torch.float64)
        exact = sg.sample(model, x.shape, solver="adams", rtol=1e-10, t_span=span, x_init=x).x
        errors = []
        for kind in ("pilot", "blend"):
            steps = sg.grid(model, 50, kind=kind, t_span=span)
            got = sg.sample(model, x.shape, solver="adams", steps=steps, x_init=x).x
            errors.append((got - exact).square().mean().sqrt().log())
        gains.append(float(errors[0] - errors[1]))
    assert sum(gains) / len(gains) < -0.3


def test_a_pilot_leaves_nothing_behind():
    model = model_of(sg.VPSDE())
    first = sg.grid(model, 9, kind="pilot", seed=3)
    state = torch.random.get_rng_state()
    assert torch.equal(sg.grid(model, 9, kind="pilot", seed=3), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(sg.grid(model, 9, kind="pilot", seed=4), first)


def test_wrong_pilots():
    model = model_of(sg.VPSDE())
    with pytest.raises(sg.InvalidInputError, match="ScoreModel|Denoiser"):
        sg.grid(sg.VPSDE(), 5, kind="pilot")
    with pytest.raises(sg.InvalidInputError, match="event_shape"):
        sg.grid(sg.Denoiser(torch.nn.Identity(), sg.VPSDE(), parametrization="noise"), 5, kind="pilot")
    with pytest.raises(sg.InvalidInputError, match="falling"):
        sg.grid(model, 5, kind="pilot", t_span=(model.sde.t_min, 1.0))
    with pytest.raises(sg.InvalidInputError, match="n=0, expected a whole number from 1"):
        sg.grid(model, 0, kind="pilot")
    with pytest.raises(sg.InvalidInputError, match="'pilot'"):
        sg.grid(model, 5, kind="pilots")
    with pytest.raises(sg.InvalidInputError, match="label"):
        sg.grid(model, 5, kind="theta", label=3)


def test_the_solution_tells_what_was_chosen():
    model = model_of(sg.VPSDE())
    for n, order in ((8, (2, 3)), (9, (3, 4)), (10, (3, 4)), (20, (4, 5)), (61, (5, 6)), (70, (6, 7))):
        told = sg.sample(model, 4, steps=n, seed=0).solver
        assert told == f"adams, {n} steps, order {order}, grid 'turn'"
        assert int(sg.sample(model, 4, steps=n, seed=0).nfe.max()) == n


@pytest.mark.parametrize(
    "n, order, kind",
    [(8, (2, 3), "turn-time"), (9, (3, 3), "turn-time"), (70, (3, 3), "turn-time")],
)
def test_networks_are_given_lower_orders_and_other_times_than_exact_scores(n, order, kind):
    """Through `on` and around the data's mean, too."""
    exact = model_of(sg.VPSDE())
    network = sg.Denoiser(_Of(exact), sg.VPSDE(), parametrization="x0", data_mean=torch.tensor([0.1, 0.2, 0.3]))
    for model in (network, network.on(sg.EDMSDE())):
        assert not model.smooth
        told = sg.sample(model, (4, 3), steps=n, seed=0).solver
        assert told.removesuffix(", chosen for smooth=False") == f"adams, {n} steps, order {order}, grid {kind!r}"
    assert exact.smooth and exact.on(sg.EDMSDE()).smooth


class _Of(torch.nn.Module):
    """A network that knows the answer, and does not say so."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t):
        return self.model(x, t.double()).x0.to(x.dtype)


@pytest.mark.parametrize(
    "name, options", [("adams", {"order": (6, 7)}), ("multistep", {"order": 5}), ("deis3", {"order": 4})]
)
def test_an_order_above_what_the_budget_carries_is_warned_of(name, options):
    model = model_of(sg.VPSDE())
    if name == "multistep":
        name, options = "dpm++3m", {**options, "rule": "exact"}
    solver = sg.make_solver(name, **options)
    with pytest.warns(UserWarning, match="lower order="):
        sg.sample(model, 2, solver=solver, steps=8, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.sample(model, 2, solver=solver, steps=120, seed=0)


@pytest.mark.parametrize("name", [row.name for row in sg.solvers() if row.kind != "SDE" and ":" not in row.name])
def test_named_settings_do_not_warn_of_themselves(name):
    model = model_of(sg.VPSDE())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.sample(model, 2, solver=name, steps=17, seed=0)
