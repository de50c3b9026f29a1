"""Orders of convergence: `check_solver` on every solver of the table, the tableaus' own conditions, strong orders.

Errors are measured in float64 against mixtures. Where the flow has no closed form the reference is Dormand-Prince at
1/160 of the span, itself checked here against SciPy's method of order 8 and against the quantiles of a line.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import each_law
from scipy.integrate import solve_ivp

import sdegen as sg
from sdegen import testing
from sdegen.noise.brownian import BrownianTree
from sdegen.solvers import Multistep
from sdegen.solvers.runge_kutta import RungeKutta, bosh3, dopri5, heun, rk4
from sdegen.solvers.tolerance import Tolerance
from sdegen.testing.doubles import NormalModel
from sdegen.testing.problems import smooth_problems, uneven_times

OWN = [row.name for row in sg.solvers() if ":" not in row.name]
RUNGE_KUTTA = {make().name: make() for make in (heun, rk4, bosh3, dopri5)}


@pytest.mark.parametrize("law", each_law({name: sg.make_solver(name) for name in OWN}, testing.solver_laws))
def test_every_solver_keeps_its_laws(law):
    law()


def _takes_any_grid(name: str) -> bool:
    """Others choose their own steps, or have the weights of equal ones."""
    return name.startswith("torch") and not name.endswith(("adams", "scipy_solver"))


OUTSIDE = {row.name: sg.make_solver(row.name) for row in sg.solvers() if ":" in row.name and _takes_any_grid(row.name)}


@pytest.mark.parametrize("law", each_law(OUTSIDE, testing.solver_laws))
def test_solvers_of_other_libraries_keep_the_laws(law):
    law()


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.TrigSDE(0.6)], ids=repr)
def test_eulers_step_of_a_model_is_that_of_its_drift(sde, eta):
    model = sg.MixtureModel(sg.GaussianMixture([[1.0, 2.0], [-1.0, 0.0]], std=[0.5, 0.4]), sde)
    term, x = sg.ReverseSDE(model, eta=eta), torch.randn(5, 2, dtype=torch.float64)
    for t in (torch.tensor(0.7, dtype=torch.float64), torch.linspace(0.5, 0.9, 5, dtype=torch.float64)):
        h = -0.1 * t
        wanted = x + h.reshape(-1, 1) * term.drift(x, t)
        torch.testing.assert_close(term.moved(x, t, h), wanted, rtol=1e-12, atol=1e-12)


def test_euler_follows_the_drift_that_a_subclass_gives_a_flow():
    class Pushed(sg.ProbabilityFlow):
        def drift(self, x, t):
            return super().drift(x, t) + 3.0

    model = sg.MixtureModel(sg.GaussianMixture([[1.0, 2.0], [-1.0, 0.0]], std=[0.5, 0.4]), sg.VPSDE())
    x, term = torch.randn(5, 2, dtype=torch.float64), Pushed(model)
    came = sg.solve(term, x, solver="euler", steps=[0.9, 0.7])
    wanted = x - 0.2 * term.drift(x, torch.tensor(0.9, dtype=torch.float64))
    torch.testing.assert_close(came.x, wanted)
    assert came.calls == 1


def test_the_reference_is_that_of_an_independent_method():
    model, problems = smooth_problems()
    x, span, exact = problems["down"]
    flow = sg.ProbabilityFlow(model)

    def right(t: float, y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return (
                flow.drift(torch.from_numpy(y).reshape(x.shape), torch.tensor(t, dtype=torch.float64)).numpy().ravel()
            )

    other = solve_ivp(right, span, x.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    # 1e-12: the tolerance asked of DOP853 and what neighbours of a separatrix make of it
    torch.testing.assert_close(exact.flatten(), torch.from_numpy(other), rtol=0, atol=1e-12)


# ---- Runge-Kutta


def _tableau(method: RungeKutta) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    s = len(method.b)
    a = np.zeros((s, s))
    for i, row in enumerate(method.a, 1):
        a[i, : len(row)] = row
    b_hat = None if method.error_weights is None else np.array(method.b) - np.array(method.error_weights)
    return a, np.array(method.b), np.array(method.c), b_hat


def _conditions(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> dict[int, list[float]]:
    """What the conditions of each order miss by: one per rooted tree (Hairer, Norsett & Wanner, table II.2.2)."""
    ac, acc, accc = a @ c, a @ c**2, a @ c**3
    return {
        1: [b.sum() - 1],
        2: [b @ c - 1 / 2],
        3: [b @ c**2 - 1 / 3, b @ ac - 1 / 6],
        4: [b @ c**3 - 1 / 4, b @ (c * ac) - 1 / 8, b @ acc - 1 / 12, b @ (a @ ac) - 1 / 24],
        5: [
            b @ c**4 - 1 / 5,
            b @ (c**2 * ac) - 1 / 10,
            b @ (c * acc) - 1 / 15,
            b @ (c * (a @ ac)) - 1 / 30,
            b @ ac**2 - 1 / 20,
            b @ accc - 1 / 20,
            b @ (a @ (c * ac)) - 1 / 40,
            b @ (a @ acc) - 1 / 60,
            b @ (a @ (a @ ac)) - 1 / 120,
        ],
    }


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_tableaus_meet_the_conditions_of_their_order_and_no_more(name):
    method = RUNGE_KUTTA[name]
    a, b, c, b_hat = _tableau(method)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-15)
    for weights, order in ((b, method.order), (b_hat, method.order - 1)):
        if weights is None:
            continue
        missed = _conditions(a, weights, c)
        for p in range(1, order + 1):
            np.testing.assert_allclose(missed[p], 0, atol=1e-15, err_msg=f"{name}, order {p}")
        if order < 5:
            assert np.abs(missed[order + 1]).max() > 1e-4
    if method.fsal:
        np.testing.assert_array_equal(a[-1], b)


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("name", ["euler", *RUNGE_KUTTA, "ddim", "reverse-diffusion", "euler-maruyama"])
def test_orders_hold_on_any_steps_with_ratios_up_to_two(name, direction):
    """Lengths in a pattern without symmetry; check_solver has even and alternating ones."""
    model, problems = smooth_problems()
    x, span, exact = problems[direction]
    solver, errors = sg.make_solver(name), []
    for n in (40, 80) if solver.order >= 4 else (80, 160):
        ts = uneven_times(span, n, (1.0, 2.0, 1.5, 0.75, 1.0))
        came = sg.solve(sg.ProbabilityFlow(model), x, solver=solver, steps=ts).x
        errors.append(float((came - exact).square().sum(1).log().mean().exp().sqrt()))
    assert solver.order - 0.15 <= math.log2(errors[0] / errors[1]) <= solver.order + 0.3


# ---- multistep methods beyond their start, error against tolerance


def _corrected_start(solver: Multistep, term: sg.Term, ts: torch.Tensor, x: torch.Tensor, warm: int) -> torch.Tensor:
    """The end of a run whose first `warm` nodes are exact instead of its own low orders', which cap its order."""
    state, node, noise = solver.start(term, x, ts[0], ts), x, sg.Noise(0)
    for k in range(len(ts) - 1):
        if 0 < k <= warm:
            fine = torch.linspace(float(ts[k - 1]), float(ts[k]), 4, dtype=torch.float64)
            x = sg.solve(term, node, solver="dopri5", steps=fine).x
        node = x
        step = solver.step(term, x, ts[k], ts[k + 1], state, noise)
        x, state = step.x, step.state
        if k <= warm:
            state = replace(state, x=node)
    return x


# exact weights have their full order; published rules keep or lose what the solvers' docstrings say
MULTISTEP: list[tuple[str, dict[str, Any], int]] = [
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
def test_multistep_methods_have_their_full_order_from_an_accurate_start(name, options, p):
    """check_solver sees the order that the own start leaves, 2 or 3 at most."""
    model, problems = smooth_problems()
    x, span, exact = problems["down"]
    solver, errors = sg.make_solver(name, lower_order_final=False, **options), []
    for n in (40, 80):
        came = _corrected_start(solver, sg.ProbabilityFlow(model), uneven_times(span, n), x, 4)
        errors.append(float((came - exact).square().sum(1).log().mean().exp().sqrt()))
    assert p - 0.3 <= math.log2(errors[0] / errors[1]) <= p + 0.6, errors


class _Power(sg.Term):
    """dx/dt = t^p."""

    def __init__(self, p: int) -> None:
        self.p = p

    def drift(self, x, t):
        return (t**self.p)[:, None].expand(x.shape)


@pytest.mark.parametrize("p", range(9))
def test_adams_with_k_values_is_exact_for_slopes_of_degree_k_on_any_steps(p):
    """Its table step by step, at full order, on samples with uneven steps of their own: no estimate could hide a fault."""
    ts = torch.tensor([[0, 0.1, 0.25, 0.3, 0.7, 0.8, 1.3, 1.35, 1.6], [1, 0.9, 0.5, 0.45, 0.4, 0.1, 0, -0.3, -0.4]])
    ts, term, solver = ts.double().T, _Power(p), sg.make_solver("adams")
    x = torch.zeros(2, 3, dtype=torch.float64)
    state = solver.start(term, x, ts[0])
    for k, (t, t_next) in enumerate(zip(ts, ts[1:], strict=False), 1):
        step = solver.step(term, x, t, t_next, replace(state, order=torch.full((2,), k)), sg.Noise(0))
        wanted = ((t_next ** (p + 1) - t ** (p + 1)) / (p + 1))[:, None].expand(x.shape)
        if k >= p:
            torch.testing.assert_close(step.x - x, wanted, rtol=0, atol=1e-13)
        state = replace(state, differences=step.state.differences, spacings=step.state.spacings)
        x = step.x


class _Waves(sg.Term):
    """dx/dt = 4 x sin(9 t^2), sample by sample; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[torch.Tensor] = []

    def drift(self, x, t):
        self.asked.append(x)
        return 4 * torch.sin(9 * t**2).reshape(-1, *(1,) * (x.ndim - 1)).expand(len(x), *(1,) * (x.ndim - 1)) * x


@pytest.mark.parametrize("event", [(1,), (2,), (4, 4), (64,), (65,), (3, 5, 5)])
def test_adams_takes_the_same_steps_whatever_the_number_of_equal_coordinates(event):
    """Tables of small and of large events are laid out differently; models are given contiguous states of both."""
    start = torch.linspace(0.1, 3, 7, dtype=torch.float64)
    one = sg.solve(_Waves(), start, solver="adams", rtol=1e-5, t_span=(0.0, 1.5))
    term = _Waves()
    x = start.reshape(-1, *(1,) * len(event)).expand(7, *event).contiguous()
    many = sg.solve(term, x, solver="adams", rtol=1e-5, t_span=(0.0, 1.5))
    assert torch.equal(one.nfe, many.nfe) and int(one.rejected.sum()) > 7 and len(one.nfe.unique()) > 1
    torch.testing.assert_close(many.x, one.x.reshape(-1, *(1,) * len(event)).expand_as(x), rtol=1e-6, atol=0)
    assert many.x.is_contiguous() and all(asked.is_contiguous() for asked in term.asked)


@pytest.mark.parametrize("event", [(3,), (70,)])
def test_gradients_flow_through_the_steps_of_adams_by_tolerance(event):
    """On a linear equation, steps being what they are, x_end is proportional to x: its gradient is x_end/x."""
    x = torch.rand(6, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    x.requires_grad_()
    solution = sg.solve(_Waves(), x, solver="adams", rtol=1e-4, t_span=(0.0, 1.5))
    (slope,) = torch.autograd.grad(solution.x.sum(), x)
    assert int(solution.rejected.sum()) > 0
    torch.testing.assert_close(slope * x, solution.x, rtol=1e-11, atol=0)


@pytest.mark.parametrize("d", [2, 70])
def test_a_refused_step_leaves_the_table_of_adams_as_it_was(d):
    """Sample by sample: of two states, one a thousand times the other, an absolute tolerance refuses one."""
    term, solver, loose = _Waves(), sg.make_solver("adams"), Tolerance(1e-3, 0.0)
    x = torch.tensor([[1.0], [1000.0]], dtype=torch.float64).expand(2, d).contiguous()
    t, h = torch.zeros(2, dtype=torch.float64), torch.tensor([0.02, 0.03], dtype=torch.float64)
    state = solver.start(term, x, t)
    for _ in range(4):
        step = solver.step(term, x, t, t + h, state, sg.Noise(0))
        accept, _, state = solver.judge(step, x, state, loose)
        assert bool(accept.all())
        x, t, h = step.x, t + h, 1.2 * h
    step = solver.step(term, x, t, t + h, state, sg.Noise(0))
    errors = step.state.squares.gather(0, step.state.row).div(d).sqrt()
    accept, _, after = solver.judge(step, x, state, Tolerance(0.0, float(errors.log().mean().exp())))
    assert accept.tolist() == [True, False] and len(state.spacings) > 2
    axis, batch = (1, -1) if d == 2 else (0, 1)
    for i, source in enumerate((step.state, state)):
        for name, ax, b in (("differences", axis, batch), ("spacings", 0, 1)):
            width = min(getattr(of, name).shape[ax] for of in (after, source))
            came, wanted = (getattr(of, name).narrow(ax, 0, width).select(b, i) for of in (after, source))
            assert torch.equal(came, wanted), (name, i)


@pytest.mark.parametrize("d", [2, 70])
def test_what_adams_remembers_of_a_state_is_that_of_the_state(d):
    """The size that a tolerance is relative to is carried on, whether steps are accepted, refused or begun anew."""
    term, solver = _Waves(), sg.make_solver("adams")
    x = torch.rand(5, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, t, tolerance = x + torch.arange(5.0)[:, None], torch.zeros(5, dtype=torch.float64), Tolerance(1e-4, 1e-4)
    state, refusals = solver.enter(term, x, t, tolerance, sg.Noise(0), end=9.0).state, 0
    h = torch.tensor([0.01, 0.02, 0.05, 0.1, 0.2], dtype=torch.float64)
    for _ in range(12):
        torch.testing.assert_close(state.size, x.square().mean(1).sqrt())
        step = solver.step(term, x, t, t + h, state, sg.Noise(0))
        accept, factor, state = solver.judge(step, x, state, tolerance)
        x, t, h = torch.where(accept[:, None], step.x, x), torch.where(accept, t + h, t), h * factor
        refusals += int((~accept).sum())
    assert refusals > 3
    some = torch.tensor([3, 1])
    fresh = solver.enter(term, 2 * x[some], t[some], tolerance, sg.Noise(0), end=9.0).state
    torch.testing.assert_close(solver.select(state, some, x).size, x[some].square().mean(1).sqrt())
    x = x.index_copy(0, some, 2 * x[some])
    torch.testing.assert_close(solver.replace(state, some, fresh, x).size, x.square().mean(1).sqrt())


def test_the_error_of_adams_is_its_tolerance():
    """Of nine samples in ten within [0.2, 2.5] tolerances over five decades; check_solver asks proportion of three."""
    mixture = sg.GaussianMixture([[1.0, 2.0], [-1.0, 0.0], [2.0, -1.0]], std=[0.5, 0.4, 0.6])
    model = sg.MixtureModel(mixture, sg.VPSDE())
    x, span = model.sde.prior((40, 2), seed=0, dtype=torch.float64), (model.sde.t_max, model.sde.t_min)
    exact = sg.sample(model, 40, solver="dopri5", rtol=1e-12, x_init=x, t_span=span).x
    for tol in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        came = sg.sample(model, 40, atol=tol * model.sigma_data, rtol=0.0, x_init=x, t_span=span)
        error = (came.x - exact).square().mean(1).sqrt() / model.sigma_data
        assert 0.2 <= float(error.quantile(0.9)) / tol <= 2.5, tol


@pytest.mark.parametrize("name", ["adams", "dopri5"])
@pytest.mark.parametrize("knows", [True, False], ids=["covariance known", "unknown"])
def test_a_tolerance_holds_where_the_data_are_far_from_round(name, knows):
    """Exactly, on a Gaussian with nearly all of its variance in one direction of 64, as pictures have it."""
    variances = torch.full((64,), 0.05, dtype=torch.float64)
    variances[0] = 60.0
    model = sg.MixtureModel(
        sg.GaussianMixture(torch.zeros(1, 64), covariances=torch.diag(variances)[None]), sg.EDMSDE()
    )
    if not knows:  # as a network
        model.smooth, model.data_covariance = False, None
    low, high = (float(model.sde.sigma(t)) ** 2 for t in (model.sde.t_min, model.sde.t_max))
    x = model.sde.prior((40, 64), seed=0, dtype=torch.float64)
    exact = x * torch.sqrt((variances + low) / (variances + high))
    for tol in (1e-2, 1e-3, 1e-4, 1e-5):
        how = {"solver": name, "rtol": tol, "atol": tol * model.sigma_data}
        came = sg.sample(model, 40, x_init=x, t_span=(model.sde.t_max, model.sde.t_min), **how)
        error = (came.x - exact).square().mean(1).sqrt() / model.sigma_data
        assert float(error.median()) <= 2.5 * tol and float(error.quantile(0.9)) <= 6 * tol, tol


def test_a_tolerance_means_something_for_a_single_point():
    model = sg.MixtureModel(sg.GaussianMixture([[1.0, 2.0]], std=0.0), sg.VPSDE())
    for smooth in (True, False):
        model.smooth = smooth
        came = sg.sample(model, 3, rtol=1e-3, seed=0)
        torch.testing.assert_close(came.x, torch.tensor([1.0, 2.0]).expand(3, 2))


class Rough(sg.MixtureModel):
    """An exact score with a ripple along the noise levels, as time features leave it in a network."""

    smooth = False

    def forward(self, x, t):
        prediction, s = super().forward(x, t), self.sigma_data
        ratio = torch.exp(-self.sde.half_log_snr(torch.as_tensor(t, dtype=torch.float64)))
        ripple = 0.02 * torch.sin(12 * ratio.log() / 4) * s * ratio / torch.sqrt(s**2 + ratio**2)
        return sg.Prediction.from_x0(x, prediction.x0 + ripple.reshape(-1, *(1,) * (x.ndim - 1)).to(x), self.sde, t)


def test_a_tolerance_holds_for_a_model_that_is_rough_in_time():
    model = Rough(sg.GaussianMixture([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], std=[0.1, 0.1, 0.1]), sg.VPSDE())
    x = model.sde.prior((100, 2), seed=0, dtype=torch.float64)
    how = {"x_init": x, "t_span": (model.sde.t_max, model.sde.t_min)}
    exact = sg.sample(model, 100, rtol=1e-9, **how).x
    for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        came = sg.sample(model, 100, rtol=tol, atol=tol * model.sigma_data, **how)
        error = (came.x - exact).square().mean(1).sqrt() / model.sigma_data
        assert 0.3 <= float(error.quantile(0.9)) / tol <= 3, tol


def test_a_rough_model_is_allowed_a_third_of_the_estimated_error():
    """An estimate of four times the scale: accepted of an exact score (up to 6), not of a network (up to 2)."""
    mixture = sg.GaussianMixture([[1.0, 0.0], [-1.0, 0.0]], std=[0.1, 0.1])
    accepted = []
    for kind in (sg.MixtureModel, Rough):
        term = sg.ProbabilityFlow(kind(mixture, sg.TrigSDE(1.0)))
        solver = sg.make_solver("adams")
        x, t = torch.tensor([[0.7, 0.2]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
        state = solver.start(term, x, t)
        step = solver.step(term, x, t, t - 0.1, state, sg.Noise(0))
        error = float(step.state.squares.gather(0, step.state.row).div(2).sqrt())
        accept, _, _ = solver.judge(step, x, state, Tolerance(0.0, error / 4))
        accepted.append(bool(accept))
    assert accepted == [True, False]


def test_ancestral_at_eta_0_and_1_has_order_1_in_the_mean():
    """The mean of the output, exactly: on Gaussian data the solver is affine."""
    sde = sg.VPSDE()
    model = NormalModel(sde, 0.7, 0.5)
    for eta in (0.0, 0.5, 1.0):
        misses = []
        for n in (100, 200):
            ts = sg.grid(sde, n, kind="lambda", t_span=(0.8, 0.05))
            mean, variance = float(sde.alpha(0.8)) * 0.7, _variance(sde, 0.8, 0.5)
            term = sg.ReverseSDE(model, eta=eta)
            law = testing.affine_law(sg.make_solver("ancestral"), term, ts, mean, variance)
            misses.append(abs(law[1] / _variance(sde, 0.05, 0.5) - 1))
        assert 0.85 <= math.log2(misses[0] / misses[1]) <= 1.3


def _variance(sde: sg.SDE, t: float, std: float) -> float:
    return float(sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2)


# ---- strong orders, on one Brownian path


class _Path(sg.Noise):
    """Brownian paths as sums of fine increments: every interval between nodes of the fine grid."""

    def __init__(self, batch: int, event: int, span: tuple[float, float], n: int) -> None:
        super().__init__(0)
        self.low, self.cell = min(span), abs(span[1] - span[0]) / n
        draws = sg.Noise(23).normal((batch, n, event), 5, dtype=torch.float64, device="cpu")
        self.w = torch.cat([draws.new_zeros(batch, 1, event), draws.cumsum(1)], 1) * math.sqrt(self.cell)

    def increment(self, t, t_next, x, *, purpose=1):
        here, there = (round((float(u) - self.low) / self.cell) for u in (t, t_next))
        return (self.w[:, there] - self.w[:, here]).reshape(x.shape)

    def standard(self, t, t_next, x, *, purpose=1):
        return self.increment(t, t_next, x) / math.sqrt(abs(float(t_next) - float(t)))


def _strong_slopes(name: str, noise: sg.Noise, counts: tuple[int, ...], fine: int) -> list[float]:
    sde, span = sg.VPSDE(), (0.5, 0.1)
    mixture = sg.GaussianMixture([[1.0, 0.4], [-0.8, 0.9]], std=[0.5, 0.7])
    term = sg.ReverseSDE(sg.MixtureModel(mixture, sde))
    z = sg.Noise(1).normal((32, 2), 9, dtype=torch.float64, device="cpu")
    x = sde.perturb(mixture.sample(32, seed=2, dtype=torch.float64), span[0], z)

    def run(n: int) -> torch.Tensor:
        steps = torch.linspace(*span, n + 1, dtype=torch.float64)
        return sg.solve(term, x, solver=name, steps=steps, noise=noise).x

    exact = run(fine)
    errors = [float((run(n) - exact).square().mean().sqrt()) for n in counts]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


def test_euler_maruyama_has_strong_order_1():
    """Additive noise. The reference, 16 times finer, is off by a sixteenth: it moves the slope by 0.1 at most."""
    path = _Path(32, 2, (0.5, 0.1), 1024)
    for slope in _strong_slopes("euler-maruyama", path, (16, 32, 64), 1024):
        assert 0.85 <= slope <= 1.25


def test_a_brownian_tree_is_such_a_path():
    tree = BrownianTree(7, 0.5, 0.1, depth=10)
    assert 0.85 <= _strong_slopes("euler-maruyama", tree, (32, 64), 1024)[0] <= 1.25


def test_sra1_has_strong_order_one_and_a_half():
    tree = BrownianTree(7, 0.5, 0.1, depth=9)
    assert 1.35 <= _strong_slopes("sra1", tree, (16, 32), 512)[0] <= 1.8


def test_independent_increments_are_no_path():
    """The tests above can fail: noise drawn anew on every grid has no strong order at all."""
    assert abs(_strong_slopes("euler-maruyama", sg.Noise(3), (32, 64), 512)[0]) < 0.3


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++3m", "deis3", "unipc2", "unipc3", "sa-solver3"])
def test_order_falls_to_one_in_the_last_step_down_and_only_there(name):
    """The last step of a grid without denoising is of first order: D held; upward, and where it is told not to, it is not."""
    model, _ = smooth_problems()
    x, ts = torch.full((1, 2), 0.3, dtype=torch.float64), sg.grid(model, 6, kind="lambda", t_span=(0.9, 0.1))

    def last(ts, **options):
        term = sg.ProbabilityFlow(model)
        told = sg.make_solver(name, corrector=0, **options)  # one would move the state that the last step starts from
        run = sg.solve(term, x, solver=told, steps=ts, save="all").xs
        one = sg.solve(term, run[-2], solver=sg.make_solver(name, order=1, corrector=0), steps=ts[-2:]).x
        return float((run[-1] - one).abs().max())

    assert last(ts) < 1e-12 < last(ts, lower_order_final=False)
    assert last(ts.flip(0)) > 1e-12
