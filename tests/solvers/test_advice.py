"""What is advised: one function for all solvers, models and budgets, and defaults for a solver it does not know."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

import sdegen as sg
from sdegen.solvers import Step
from sdegen.solvers.advice import Advice, advise
from sdegen.solvers.grids import GRIDS
from sdegen.solvers.multistep.orders import advised_orders
from sdegen.solvers.tolerance import Tolerance

SMOOTH = sg.MixtureModel(sg.GaussianMixture([[1.0, 2.0], [-1.0, 0.0]], std=[0.5, 0.4]), sg.VPSDE())


def network() -> sg.Denoiser:
    torch.manual_seed(0)
    return sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1, embedding=4), sg.VPSDE(), data_mean=0.0, data_std=1.0)


@pytest.mark.parametrize("name", [row.name for row in sg.solvers()])
def test_there_is_advice_for_every_solver_model_and_budget(name):
    solver = sg.make_solver(name)
    for subject in (None, SMOOTH, network(), sg.ProbabilityFlow(SMOOTH), sg.ForwardSDE(sg.VPSDE())):
        for how in ({}, {"steps": 1}, {"steps": 8}, {"steps": 100}, {"tolerance": Tolerance(1e-3, 1e-3)}):
            advice = advise(solver, subject, **how)
            assert advice.coordinates in ("own", "best", "lambda") and advice.grid in GRIDS and advice.steps >= 50
            assert 0 < advice.first <= advice.largest <= 1
            assert (advice.leap is not None) == solver.leaps
            for stepper in (solver.stepper(controlled=False), solver.stepper(controlled=True)):
                assert advise(stepper, subject, **how) == advice, (
                    "the object that makes the steps is run as its name is"
                )
    with pytest.raises(FrozenInstanceError):
        advise(solver).grid = "theta"  # type: ignore[misc]


class Mine(sg.Solver):
    name = "mine"

    def step(self, term, x, t, t_next, state, noise):
        return Step(x + (t_next - t) * term.drift(x, t))


class Minded(Mine):
    coordinates, grid = "best", "theta"


class MyEuler(type(sg.make_solver("euler-maruyama"))):
    name = "my-euler"


def test_a_solver_of_ones_own_gets_defaults_says_its_own_or_inherits():
    assert advise(Mine(), SMOOTH) == Advice("own", "lambda", None, None, 1 / 20, 1 / 4, 100)
    assert advise(Minded(), SMOOTH) == Advice("best", "theta", None, None, 1 / 20, 1 / 4, 100)
    assert advise(MyEuler(), SMOOTH) == advise(sg.make_solver("euler-maruyama"), SMOOTH)


@pytest.mark.parametrize("leap", [False, True])
def test_orders_rise_with_the_steps_and_networks_get_lower_ones(leap):
    counts = range(1, 200)
    smooth, rough = ([advised_orders(n, smooth=s, leap=leap) for n in counts] for s in (True, False))
    for orders in (smooth, rough):
        assert orders == sorted(orders) and orders[0] == (2, 3)
    assert all(corrector == predictor + 1 for predictor, corrector in smooth)
    assert all(r <= s for s, r in zip(smooth, rough, strict=True))
    assert smooth[-1] == (6, 7) and rough[-1] == (3, 3)


def test_adams_is_told_what_suits_the_model_the_budget_and_the_start():
    adams, leaping = sg.make_solver("adams"), sg.make_solver("adams", start="gaussian")
    told = sg.make_solver("adams", order=(3, 4))
    for n in (5, 9, 10, 30):
        assert advise(adams, SMOOTH, steps=n).grid == "turn" and advise(leaping, SMOOTH, steps=n).grid == "theta"
        assert advise(adams, network(), steps=n).grid == "turn-time"
        assert advise(adams, SMOOTH, steps=n).orders == advised_orders(n)
        assert advise(adams, network(), steps=n).orders == advised_orders(n, smooth=False)
        assert advise(leaping, SMOOTH, steps=n).orders == advised_orders(n, leap=True)
        assert advise(told, SMOOTH, steps=n).orders is None
    for rtol in (1e-2, 1e-5):
        tolerance = Tolerance(rtol, rtol)
        assert advise(adams, SMOOTH, tolerance=tolerance).first == 1 / 12
        assert advise(adams, network(), tolerance=tolerance).first == min(1 / 48, math.sqrt(rtol) / 4)


@pytest.mark.parametrize("make", [lambda: SMOOTH, network], ids=["exact score", "network"])
def test_what_runs_is_what_is_advised(make):
    """The solution names the orders and the grid, and the times are that grid's."""
    model = make()
    for name in ("adams", "ddim", "heun", "karras-sde"):
        solver = sg.make_solver(name)
        for n in (8, 20):
            advice, solution = (
                advise(solver, model, steps=n),
                sg.sample(model, 2, solver=name, steps=n, seed=0, save="all"),
            )
            assert f"grid {advice.grid!r}" in solution.solver
            span = (model.sde.t_max, model.sde.t_min if advice.few else 0.0)
            rests = advice.few and model.data_mean is not None and model.data_std is not None
            ts = sg.grid(model, n + rests, kind=advice.grid, t_span=span)
            ts[-1] = 0.0
            torch.testing.assert_close(solution.ts, ts, rtol=1e-12, atol=1e-12)
            # the final denoising is not a step of the method
            orders = advise(solver, model, steps=n - (not advice.few)).orders
            assert orders is None or f"order {orders}" in solution.solver


def test_neither_steps_nor_a_tolerance_takes_the_advised_number():
    for name in ("ddim", "heun-sde", "d-adams2-sde"):
        solution = sg.sample(SMOOTH, 2, solver=name, seed=0, save="all")
        assert len(solution.ts) - 1 == advise(sg.make_solver(name), SMOOTH).steps + (name == "d-adams2-sde")


# ---- both ends of few steps


class Asked(sg.Wrapped):
    """Notes the times it is asked about."""

    def __init__(self, model):
        super().__init__(model)
        self.times = []

    def forward(self, x, t, **cond):
        self.times.append(float(t.flatten()[0] if t.ndim else t))
        return self.model(x, t, **cond)


@pytest.mark.parametrize("smooth", [True, False])
def test_few_steps_spend_no_evaluation_on_what_is_known_at_both_ends(smooth):
    """All n evaluations are between t_max and t_min; of other numbers the first is at t_max, and the last, the final
    denoising, at t_min."""
    for n in (1, 2, 11, 12):
        model = Asked(SMOOTH)
        model.smooth = smooth
        found = sg.sample(model, 3, steps=n, seed=0, save="all")
        few = 2 <= n <= 11
        assert len(model.times) == n and found.nfe.tolist() == [n] * 3
        assert (max(model.times) < model.sde.t_max * 0.95) == few
        assert (min(model.times) > model.sde.t_min * 1.5) == (few or n == 1)
        assert float(found.ts[0]) == model.sde.t_max and float(found.ts[-1]) == 0.0
        assert len(found.ts) == n + 1 + few


@pytest.mark.parametrize(
    ("changed", "label", "evaluations"),
    [
        (lambda m: m.set_statistics(None, m.data_std), False, 1),
        (lambda m: m.set_statistics(m.data_mean, None), False, 1),
        (lambda m: None, True, 1),
        (lambda m: sg.Guided(m, scale=2.0, null={"label": -1}), True, 2),
    ],
    ids=["mean unknown", "std unknown", "condition", "guided"],
)
def test_where_the_belief_at_t_max_is_not_known_it_is_asked(changed, label, evaluations):
    model = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4]], std=0.3), sg.VPSDE(), labels=[0, 1])
    asked = Asked(changed(model) or model)
    cond = {"label": torch.zeros(3, dtype=torch.long)} if label else {}
    found = sg.sample(asked, 3, steps=5, seed=0, **cond)
    assert max(asked.times) == model.sde.t_max and found.nfe.tolist() == [5 * evaluations] * 3


@pytest.mark.filterwarnings("ignore:the data's standard deviation")
@pytest.mark.parametrize("most", [0.5, 2.0, 50.0])
def test_where_the_noise_at_t_max_is_not_far_above_the_data_it_is_asked(most):
    """The slope there is not 0, and to take it for that is an error that falls slowly with the steps."""
    mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2)
    model = sg.MixtureModel(mixture, sg.VESDE(0.01, most))
    asked = Asked(model)
    sg.sample(asked, 3, steps=5, seed=0)
    assert (max(asked.times) > 0.99 * model.sde.t_max) == (most < 8 * model.data.scale)
    exact = sg.sample(model, 256, rtol=1e-7, seed=0, dtype=torch.float64).x
    ends = (sg.sample(model, 256, steps=n, seed=0, dtype=torch.float64).x for n in (5, 11))
    five, eleven = (float((x - exact).square().mean().sqrt()) for x in ends)
    assert eleven < 0.36 * five


def test_a_way_that_begins_elsewhere_is_asked_from_its_beginning():
    for span in ((0.7, 0.0), (0.7, SMOOTH.sde.t_min)):
        model = Asked(SMOOTH)
        found = sg.sample(model, 3, steps=5, seed=0, t_span=span)
        assert max(model.times) == pytest.approx(0.7, rel=1e-9) and found.nfe.tolist() == [5] * 3
    up = Asked(SMOOTH)
    sg.encode(up, torch.zeros(3, 2), steps=5)
    assert len(up.times) == 5 and min(up.times) == pytest.approx(SMOOTH.sde.t_min)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_steps_end_at_single_points_of_data_and_not_beyond(smooth, n):
    """Far fewer samples than two standard deviations of the modes away than where the last step follows its slope."""
    mixture = sg.data.toys.ring(8, std=0.01)
    model = sg.MixtureModel(mixture, sg.VPSDE())
    model.smooth = smooth
    x = sg.sample(model, 2000, steps=n, seed=0).x
    model.set_statistics(None, None)  # every evaluation is a step from t_max, and none knows the scale
    blind = sg.sample(model, 2000, steps=n, seed=0).x
    away, without = (torch.cdist(v.double(), mixture.means).amin(1).square().mean().sqrt() for v in (x, blind))
    assert float(away) < 0.75 * float(without)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=repr)
@pytest.mark.parametrize("std", [0.3, 2.0])
def test_where_they_land_is_exact_for_gaussian_data(sde, std):
    """The flow of N(m, s^2 I) down to 0 is x = m + s (x_T - alpha m)/sqrt(alpha^2 s^2 + sigma^2)."""
    model = sg.MixtureModel(sg.GaussianMixture([[1.0, -2.0]], std=std), sde)
    x = sde.prior((50, 2), seed=1, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    exact = mean + std * (x - alpha * mean) / math.sqrt(alpha**2 * std**2 + sigma**2)
    torch.testing.assert_close(sg.sample(model, x.shape, x_init=x, steps=4).x, exact, rtol=1e-9, atol=1e-9)


def test_times_states_and_densities_that_were_asked_for_are_given():
    """A list of times is walked as it is, t_span to t_min ends there, and densities are of the state at t_min."""
    lowest = SMOOTH.sde.t_min
    for how in (
        {"steps": sg.grid(SMOOTH, 5, kind="turn")},
        {"steps": 5, "t_span": (1.0, lowest)},
        {"steps": 5, "return_log_prob": True},
    ):
        model = Asked(SMOOTH)
        sg.sample(model, 3, seed=0, **how)
        at_t_min = abs(min(model.times) / lowest - 1) < 1e-6
        assert at_t_min == ("t_span" not in how), how
    at_times = sg.sample(SMOOTH, 3, steps=6, seed=0, save=[0.5, lowest, 0.0])
    assert bool(torch.isfinite(at_times.xs).all())
    torch.testing.assert_close(at_times.xs[1], at_times.xs[2], rtol=0, atol=0.05)
