"""Laws of the methods of torchdiffeq, scipy and torchsde: exact, counted, inside the span, and never hanging."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import sdegen as sg
from sdegen.noise.brownian import BrownianTree
from sdegen.solvers.external import scipy as ours_scipy
from sdegen.solvers.external import torchdiffeq as ours_torchdiffeq
from sdegen.solvers.external import torchsde as ours_torchsde

D = torch.float64
MEAN, STD = (0.3, -0.2), 0.7
ROWS = {row.name: row for row in sg.solvers() if ":" in row.name}
ODE = [name for name, row in ROWS.items() if row.kind == "ODE"]
SDE = [name for name, row in ROWS.items() if row.kind == "SDE"]
ADAPTIVE = [name for name in ODE if ROWS[name].adaptive]
SCIPY = [name for name in ODE if "scipy" in name]  # those that choose their own steps
STEPPED = [name for name in ODE if name not in SCIPY]
WAYS = [(name, {"rtol": 1e-5}) for name in ADAPTIVE] + [(name, {"steps": 24}) for name in STEPPED]
IDS = [f"{name}-{next(iter(how))}" for name, how in WAYS]


class Spy(sg.MixtureModel):
    """An exact model that writes down when it was asked."""

    def __init__(self, *args):
        super().__init__(*args)
        self.times = []

    def forward(self, x, t, **cond):
        t = torch.as_tensor(t)
        self.times += [t.amin().item(), t.amax().item()]
        return super().forward(x, t)

    @property
    def calls(self):
        return len(self.times) // 2


class Broken(Spy):
    """NaN for some of the samples, below a time."""

    def forward(self, x, t, bad, below=0.5):
        prediction = super().forward(x, t)
        nan = torch.where(bad & (torch.as_tensor(t) < below), torch.nan, 0.0)[:, None].to(x)
        return sg.Prediction(prediction.x0 + nan, prediction.noise + nan, self.sde, t)


class Field(sg.Term):
    """dx/dt = f(x, t) on [0, 2]."""

    t_min, t_max = 0.0, 2.0

    def __init__(self, f):
        self.f, self.times = f, []

    def drift(self, x, t):
        self.times.append(float(t))
        return self.f(x, t)


def mixture(dim=2):
    return sg.GaussianMixture([(MEAN * dim)[:dim]], std=STD)


def model(kind=Spy, sde=None, dim=2):
    return kind(mixture(dim), sde or sg.VPSDE())


def normals(*shape, dtype=D, seed=0):
    return sg.Noise(seed).normal(shape, 77, dtype=dtype, device="cpu")


def flowed(sde, x, t, t_next):
    """The flow of N(mu, s^2) data: x' = alpha' mu + sqrt(P'/P) (x - alpha mu), P = alpha^2 s^2 + sigma^2."""
    t, t_next = (torch.tensor(u, dtype=D) for u in (t, t_next))
    mu = torch.tensor(MEAN, dtype=D)
    alpha, sigma, alpha_next, sigma_next = sde.alpha(t), sde.sigma(t), sde.alpha(t_next), sde.sigma(t_next)
    growth = ((alpha_next * STD) ** 2 + sigma_next**2).sqrt() / ((alpha * STD) ** 2 + sigma**2).sqrt()
    return alpha_next * mu + growth * (x - alpha * mu)


def rms(x):
    return x.square().mean().sqrt().item()


# ---- names and options


def test_every_method_of_the_installed_libraries_is_listed():
    import torchsde.settings
    from scipy.integrate._ivp.ivp import METHODS
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(ours_torchdiffeq.METHODS) == set(SOLVERS)
    assert set(ours_scipy.METHODS) == set(METHODS)
    assert set(ours_torchsde.METHODS) == set(torchsde.settings.METHODS.all()) - {"adjoint_reversible_heun"}
    assert len(ROWS) == len(SOLVERS) + len(METHODS) + len(ours_torchsde.METHODS)


def test_rows_tell_what_the_objects_are():
    for name, row in ROWS.items():
        solver = sg.make_solver(name)
        assert (solver.name, solver.order, solver.evaluations) == (name, row.order, row.evaluations)
        assert row.source and row.order >= 1 and row.evaluations >= 1
        assert repr(solver) == name
        assert solver.default_eta == (1.0 if row.kind == "SDE" else 0.0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("scipy:dop853", "scipy:DOP853"),
        ("torchdiffeq:dopri55", "torchdiffeq:dopri5"),
        ("torchsde:adjoint_reversible_heun", "torchsde:reversible_heun"),
        ("torchdifeq:rk4", "torchdiffeq:rk4"),
    ],
)
def test_unknown_methods_name_a_close_one(name, hint):
    with pytest.raises(sg.InvalidInputError, match=f"did you mean '{hint}'"):
        sg.make_solver(name)


@pytest.mark.parametrize("name", ROWS)
def test_unknown_options_are_refused(name):
    with pytest.raises(sg.InvalidInputError, match="does not take the option 'lr'"):
        sg.make_solver(name, lr=1)


def test_options_reach_the_library():
    flow, x = sg.ProbabilityFlow(model()), normals(4, 2)
    free = sg.solve(flow, x, solver="scipy:RK45", rtol=1e-4).accepted[0]
    held = sg.solve(flow, x, solver=sg.make_solver("scipy:RK45", max_step=0.02), rtol=1e-4).accepted[0]
    assert free < 20 and held >= 50
    held = sg.solve(flow, x, solver=sg.make_solver("torchdiffeq:dopri5", max_step=0.02), rtol=1e-4).accepted[0]
    assert held >= 50
    stopped = sg.make_solver("torchdiffeq:dopri5", step_t=torch.tensor([0.77, 0.33], dtype=D))
    nodes = sg.solve(flow, x, solver=stopped, rtol=1e-4, save="all").ts.tolist()
    assert 0.77 in nodes and 0.33 in nodes and nodes[-1] == 1e-3
    radau = sg.make_solver("torchdiffeq:scipy_solver", solver="Radau")
    assert rms(sg.solve(flow, x, solver=radau, rtol=1e-6).x - flowed(sg.VPSDE(), x, 1.0, 1e-3)) < 1e-5
    more = sg.solve(flow, x, solver=sg.make_solver("torchdiffeq:implicit_adams", rtol=1e-6, atol=1e-6), steps=24)
    assert more.calls > sg.solve(flow, x, solver="torchdiffeq:implicit_adams", steps=24).calls
    reverse = sg.ReverseSDE(model())
    start = sg.make_solver("torchsde:srk", dt=1e-4)
    few = sg.solve(reverse, x, solver="torchsde:srk", rtol=0.1, noise=0, t_span=(1.0, 0.5)).accepted[0]
    assert sg.solve(reverse, x, solver=start, rtol=0.1, noise=0, t_span=(1.0, 0.5)).accepted[0] > few


@pytest.mark.parametrize("name", SCIPY)
def test_libraries_that_choose_their_steps_refuse_a_grid(name):
    spy = model()
    with pytest.raises(sg.InvalidInputError, match="chooses its own steps: pass rtol"):
        sg.solve(sg.ProbabilityFlow(spy), normals(3, 2), solver=name, steps=10)
    assert spy.calls == 0


@pytest.mark.parametrize("name", [n for n in STEPPED if n not in ADAPTIVE])
def test_methods_of_fixed_steps_refuse_a_tolerance(name):
    with pytest.raises(sg.InvalidInputError, match="need a solver with an error estimate"):
        sg.solve(sg.ProbabilityFlow(model()), normals(3, 2), solver=name, rtol=1e-3)


@pytest.mark.parametrize("name", ["torchdiffeq:explicit_adams", "torchdiffeq:implicit_adams"])
def test_constant_weights_refuse_unequal_steps(name):
    spy = model()
    with pytest.raises(sg.InvalidInputError, match="weights of equal steps"):
        sg.solve(sg.ProbabilityFlow(spy), normals(3, 2), solver=name, steps=[1.0, 0.7, 0.6, 0.2])
    assert spy.calls == 0


def test_a_flow_solver_refuses_noise_and_large_jacobians_are_refused():
    with pytest.raises(sg.InvalidInputError, match="without noise"):
        sg.solve(sg.ReverseSDE(model()), normals(3, 2), solver="scipy:RK45", rtol=1e-3)
    for name in ("scipy:Radau", "scipy:BDF", "scipy:LSODA"):
        term = Field(lambda x, t: -x)
        with pytest.raises(sg.InvalidInputError, match="Jacobian"):
            sg.solve(term, torch.zeros(64, 3, 128, 128), solver=name, rtol=1e-3)
        assert not term.times


# ---- exact, counted, inside


# Error over tolerance in the end, in VP time, where nothing is exact. fehlberg2's estimate has a weight of 1/512 on the
# difference of its ends and says nearly nothing; the first steps of the others are blind where the flow is flat.
PROMISE = {"torchdiffeq:fehlberg2": 500.0}


@pytest.mark.parametrize(("name", "how"), WAYS, ids=IDS)
@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(sigma_min=0.02, sigma_max=20.0)], ids=["vp", "edm"])
def test_gaussian_flow_is_exact_and_every_evaluation_is_inside_and_counted(name, how, sde):
    """In `sample` along the path where these data are exact, there and back; in `solve`, only to the tolerance."""
    spy = model(sde=sde)
    x = flowed(sde, torch.tensor(MEAN, dtype=D) + STD * normals(5, 2), 1e-9, sde.t_max)
    wanted = flowed(sde, x, sde.t_max, sde.t_min)
    uneven = name.endswith(("euler", "adams"))  # those that stay in the process's own time
    end = sg.sample(spy, (5, 2), solver=name, x_init=x, t_span=(sde.t_max, sde.t_min), **how)
    assert end.calls == spy.calls and end.nfe.tolist() == [spy.calls] * 5
    assert min(spy.times) >= sde.t_min and max(spy.times) <= sde.t_max
    if not uneven:
        assert rms(end.x - wanted) < 1e-11
    if name not in SCIPY and "steps" in how:
        assert end.accepted.tolist() == [24] * 5 and end.rejected.tolist() == [0] * 5
        stages = ROWS[name].evaluations
        assert 24 * stages <= end.calls <= 24 * stages + 10  # + the first of a method that keeps its last; Adams' start
    spy.times.clear()
    back = sg.encode(spy, wanted, solver=name, **how)
    assert min(spy.times) >= sde.t_min and max(spy.times) <= sde.t_max and back.calls == spy.calls
    if not uneven:
        assert rms(back.x - x) < 1e-10 * sde.sigma(torch.tensor(sde.t_max)).item()
    if "rtol" in how:
        spy.times.clear()
        own = sg.solve(sg.ProbabilityFlow(spy), x, solver=name, **how)
        assert own.calls == spy.calls and min(spy.times) >= sde.t_min and max(spy.times) <= sde.t_max
        assert rms(own.x - wanted) < PROMISE.get(name, 40.0) * 1e-5 * max(1.0, rms(x))
        assert own.status.tolist() == [0] * 5 and bool((own.t == sde.t_min).all())
        if name not in ("scipy:Radau", "scipy:BDF", "scipy:LSODA", "torchdiffeq:scipy_solver"):
            assert own.calls == 2 + ROWS[name].evaluations * int(own.accepted[0] + own.rejected[0])


def curved(x, t):
    return torch.cos(3 * t) * x + torch.sin(x)


@pytest.fixture(scope="module")
def curve_end():
    """Where `curved` takes normals(4, 2) from 0 to 2: one method of order 8 in small steps, another by tolerance."""
    x = normals(4, 2)
    end = sg.solve(Field(curved), x, solver="torchdiffeq:dopri8", steps=100, t_span=(0.0, 2.0)).x
    other = sg.solve(Field(curved), x, solver="scipy:DOP853", rtol=1e-12, t_span=(0.0, 2.0)).x
    torch.testing.assert_close(end, other, rtol=0, atol=1e-10)
    return end


@pytest.mark.parametrize("name", STEPPED)
def test_orders_on_a_fixed_grid(name, curve_end):
    """The declared order, -0.15 +0.35, where errors are in the asymptotic range and above rounding."""
    how = {"solver": name, "t_span": (0.0, 2.0)}
    grids = {"torchdiffeq:dopri8": (12, 24), "torchdiffeq:dopri5": (64, 128)}.get(name, (100, 200))
    errors = [rms(sg.solve(Field(curved), normals(4, 2), steps=n, **how).x - curve_end) for n in grids]
    slope = math.log2(errors[0] / errors[1])
    assert ROWS[name].order - 0.15 < slope < ROWS[name].order + 0.35, (slope, errors)


@pytest.mark.parametrize("name", ["scipy:Radau", "scipy:BDF", "scipy:LSODA"])
def test_implicit_methods_solve_stiff_fields_with_a_block_for_each_sample(name):
    """Rates 1 and 3000, mixed: an explicit method needs some thousand evaluations, a wrong Jacobian many more steps."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=D)
    rate = turn @ torch.diag(torch.tensor([-1.0, -3000.0], dtype=D)) @ turn.T
    term, x = Field(lambda x, t: x @ rate), normals(5, 2)
    end = sg.solve(term, x, solver=name, rtol=1e-4, t_span=(0.0, 2.0))
    assert rms(end.x - x @ torch.linalg.matrix_exp(2 * rate)) < 1e-3
    assert end.calls == len(term.times) < 700


@pytest.mark.parametrize("name", [n for n in STEPPED if n in ADAPTIVE])
def test_steps_are_taken_whatever_their_error(name):
    term, ts = Field(lambda x, t: 50 * torch.sin(50 * t) + 0 * x), [0.0, 0.3, 0.35, 1.1, 2.0]
    end = sg.solve(term, normals(3, 2), solver=name, steps=ts, save="all")
    assert end.ts.tolist() == ts and end.accepted.tolist() == [4] * 3 and end.rejected.tolist() == [0] * 3
    assert len(term.times) == 4 * ROWS[name].evaluations + 1


# ---- the same as by hand


@pytest.mark.parametrize("name", [n for n in ADAPTIVE if n.startswith("torchdiffeq:") and n not in SCIPY])
def test_torchdiffeq_by_hand(name):
    """Equal but for the last step, which by hand goes past the end: there the library asks for times outside."""
    from torchdiffeq import odeint

    term, x, method = Field(curved), normals(4, 2), name.split(":")[1]
    ts = torch.tensor([2.0, 0.25], dtype=D)
    asked = []

    def f(t, y):
        asked.append(float(t))
        return term.f(y, t)

    how = {"method": method, "rtol": 1e-4, "atol": 1e-4}
    loose = odeint(f, x, ts, **how)[-1]
    assert min(asked) < 0.25
    asked.clear()
    exact = odeint(f, x, ts, options={"step_t": ts[1:]}, **how)[-1]
    end = sg.solve(term, x, solver=name, rtol=1e-4, t_span=(2.0, 0.25))
    torch.testing.assert_close(end.x, exact, rtol=0, atol=1e-13)
    torch.testing.assert_close(end.x, loose, rtol=0, atol=PROMISE.get(name, 40.0) * 1e-4)
    assert end.calls == len(term.times) == len(asked)
    assert min(term.times) >= 0.25 and max(term.times) <= 2.0


@pytest.mark.parametrize("name", [n for n in STEPPED if n not in ADAPTIVE])
def test_torchdiffeq_fixed_by_hand(name):
    from torchdiffeq import odeint

    term, x, method = Field(curved), normals(4, 2), name.split(":")[1]
    ts = torch.linspace(0.0, 1.5, 16, dtype=D)
    if not method.endswith("adams"):
        ts = ts**1.2
    how = {"rtol": 1e30, "atol": 1e30, "options": {"max_order": 5}} if method.endswith("adams") else {}
    exact = odeint(lambda t, y: term.f(y, t), x, ts, method=method, **how)
    end = sg.solve(term, x, solver=name, steps=ts, save="all")
    torch.testing.assert_close(end.xs, exact, rtol=0, atol=1e-14)
    assert torch.equal(end.ts, ts)


@pytest.mark.parametrize("name", SCIPY)
def test_scipy_by_hand(name):
    from scipy.integrate import solve_ivp
    from torchdiffeq import odeint

    term, x, ts, times = Field(curved), normals(4, 2), torch.tensor([2.0, 1.1, 0.25], dtype=D), []

    def f(t, y):
        times.append(float(t))
        return curved(torch.as_tensor(y), torch.tensor(float(t), dtype=D)).numpy()

    if name.startswith("scipy:"):
        method = name.split(":")[1]
        how = {"LSODA": {"lband": 1, "uband": 1}}.get(method, {})
        if method in ("Radau", "BDF"):
            how = {"jac_sparsity": np.kron(np.eye(4), np.ones((2, 2)))}
        exact = solve_ivp(f, (2.0, 0.25), x.numpy().ravel(), method, ts.numpy(), rtol=1e-6, atol=1e-6, **how)
        by_hand = torch.from_numpy(exact.y.T.copy()).reshape(3, 4, 2)
    else:
        by_hand = odeint(lambda t, y: torch.as_tensor(f(t, y)), x, ts, method="scipy_solver", rtol=1e-6, atol=1e-6)
    end = sg.solve(term, x, solver=name, rtol=1e-6, t_span=(2.0, 0.25), save=ts)
    # DOP853 is read off another interpolant between its nodes, which evaluates nothing
    torch.testing.assert_close(end.xs, by_hand, rtol=0, atol=1e-4 if name == "scipy:DOP853" else 1e-12)
    torch.testing.assert_close(end.x, by_hand[-1], rtol=0, atol=1e-12)
    assert end.calls == len(times) - (3 * len(ts) if name == "scipy:DOP853" else 0)
    assert min(term.times) >= 0.25 and max(term.times) <= 2.0


@pytest.mark.parametrize("name", SDE)
@pytest.mark.parametrize("kind", [sg.ForwardSDE, sg.ReverseSDE], ids=["forward", "reverse"])
def test_torchsde_by_hand(name, kind):
    """The library's own call on an equal grid in the time that rises, its drift and noise written out."""
    import torchsde

    sde, x, method = sg.VPSDE(), normals(6, 2), name.split(":")[1]
    term = sg.ForwardSDE(sde) if kind is sg.ForwardSDE else sg.ReverseSDE(model())
    sign = 1.0 if kind is sg.ForwardSDE else -1.0
    ts = torch.linspace(0.25, 0.75, 9, dtype=D) if sign > 0 else torch.linspace(0.75, 0.25, 9, dtype=D)
    tree = BrownianTree(3, 0.25, 0.75, depth=6)

    class Equation:
        noise_type, sde_type = "diagonal", ours_torchsde.METHODS[method].calculus

        def f(self, s, y):
            return sign * term.drift(y, sign * s)

        def g(self, s, y):
            return torch.full_like(y, float(term.diffusion(sign * s)))

    class Additive(Equation):
        noise_type = "additive"

        def g(self, s, y):
            return float(term.diffusion(sign * s)) * torch.eye(2, dtype=D).expand(6, 2, 2)

    class Path:
        shape, dtype, device, levy_area_approximation = x.shape, D, x.device, "foster"

        def __call__(self, a, b, return_U=False, return_A=False):
            w, u = tree.space_time(sign * a, sign * b, x)
            return (w, *([u] if return_U else []), *([None] if return_A else [])) if return_U or return_A else w

    equation = Additive() if method in ("srk", "milstein") else Equation()
    exact = torchsde.sdeint(equation, x, sign * ts, bm=Path(), method=method, dt=0.5 / 8)
    end = sg.solve(term, x, solver=name, steps=ts, noise=BrownianTree(3, 0.25, 0.75, depth=6), save="all")
    torch.testing.assert_close(end.xs, exact, rtol=0, atol=1e-12)


# ---- saving


@pytest.mark.parametrize("name", ADAPTIVE)
def test_saving_changes_nothing_and_is_as_exact(name):
    """The end to its tolerance; between, interpolants of order 4 in long steps, and errors that shrink on their way."""
    sde, x, spy = sg.VPSDE(), normals(4, 2), model()
    rtol = 1e-4 if ROWS[name].order < 3 else 1e-6
    plain = sg.solve(sg.ProbabilityFlow(spy), x, solver=name, rtol=rtol)
    ts = [1.0, 0.83, 0.5, 0.1234, 1e-3]
    saved = sg.solve(sg.ProbabilityFlow(spy), x, solver=name, rtol=rtol, save=ts)
    assert torch.equal(plain.x, saved.x) and plain.calls == saved.calls
    assert rms(plain.x - flowed(sde, x, 1.0, 1e-3)) < PROMISE.get(name, 40.0) * rtol
    for t, state in zip(ts, saved.xs):
        assert rms(state - flowed(sde, x, 1.0, t)) < max(PROMISE.get(name, 40.0), 300.0) * rtol, t
    every = sg.solve(sg.ProbabilityFlow(spy), x, solver=name, rtol=rtol, save="all")
    assert torch.equal(every.x, plain.x) and every.calls == plain.calls
    assert every.ts[0] == 1.0 and every.ts[-1] == 1e-3 and bool((every.ts.diff() < 0).all())
    assert len(every.ts) == every.accepted[0] + 1 and torch.equal(every.xs[0], x)
    torch.testing.assert_close(every.xs[-1], plain.x)
    for t, state in zip(every.ts[1:-1:7].tolist(), every.xs[1:-1:7]):
        assert rms(state - flowed(sde, x, 1.0, t)) < max(PROMISE.get(name, 40.0), 300.0) * rtol


# ---- samples, shapes, dtypes


@pytest.mark.parametrize("name", STEPPED + SDE)
def test_a_fixed_grid_gives_each_sample_the_same_in_any_batch(name):
    spy, x = model(), normals(7, 2)
    how = {"steps": 8, "solver": name, "dtype": D, "seed": 3}
    whole = sg.sample(spy, (7, 2), **how).x
    assert (sg.sample(spy, (7, 2), batch_size=3, **how).x - whole).abs().max() < 1e-12
    if name in SDE:
        assert not torch.equal(sg.sample(spy, (7, 2), **{**how, "seed": 4}).x, whole)
        part = sg.solve(sg.ReverseSDE(spy), x[4:6], solver=name, steps=12, noise=sg.Noise(3, index=[4, 5])).x
        all_of_it = sg.solve(sg.ReverseSDE(spy), x, solver=name, steps=12, noise=3).x
        torch.testing.assert_close(part, all_of_it[4:6], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ROWS)
def test_any_event_shape_and_dtype(name):
    """Elements do not talk to each other here, so every shape of the same numbers gives the same numbers."""
    if name in SDE:
        term = sg.ForwardSDE(sg.VPSDE())
        hows = [{"steps": 4}, {"rtol": 1.0}]
    else:
        term = Field(lambda x, t: torch.cos(3 * t) * x)
        hows = ([{"rtol": 1e-4}] if ROWS[name].adaptive else []) + ([] if name in SCIPY else [{"steps": 4}])
    for how in hows:
        how = {**how, "solver": name, "noise": 5}
        flat = sg.solve(term, normals(4, 8), **how).x
        for event in [(8,), (2, 2, 2)]:
            x = normals(4, 8).reshape(4, *event)
            end = sg.solve(term, x, **how)
            assert end.x.shape == x.shape and end.x.dtype == D
            torch.testing.assert_close(end.x.reshape(4, 8), flat, rtol=0, atol=1e-13)
        single = sg.solve(term, normals(4, 8).float(), **how).x
        assert single.dtype == torch.float32
        # rounding may flip the accept of a step: then two paths differ by the tolerance's effect, not by rounding
        assert (single.double() - flat).abs().max() < (1e-5 if "steps" in how else 1.0 if name in SDE else 2e-3)
        half = sg.solve(term, normals(4, 8).to(torch.bfloat16), **{**how, "rtol": 1.0} if "rtol" in how else how).x
        assert half.dtype == torch.bfloat16 and bool(torch.isfinite(half).all())
        for shape in [(3,), (1, 1), (0, 2), (2, 0)]:
            end = sg.solve(term, normals(3, 2).flatten()[: math.prod(shape)].reshape(shape), **how)
            assert end.x.shape == shape and end.status.tolist() == [0] * shape[0]


@pytest.mark.parametrize("name", ROWS)
def test_final_denoising_is_one_more_evaluation(name):
    spy = model()
    how = {"rtol": 0.1} if name in SCIPY else {"steps": 12}
    end = sg.sample(spy, (3, 2), solver=name, seed=0, dtype=D, **how)
    assert end.calls == spy.calls and end.ts.tolist() == [0.0] and bool((end.t == 0).all())
    assert min(spy.times) == pytest.approx(sg.VPSDE().t_min, rel=1e-12)
    if "steps" in how:
        assert end.accepted.tolist() == [12] * 3
    one = sg.sample(spy, (3, 2), solver=name, seed=0, dtype=D, t_span=(spy.sde.t_min, 0.0), **how)
    assert one.calls == 1


def test_gradients_pass_through_torchdiffeq_and_torchsde():
    """d x(t')/d x(t) of the Gaussian flow is the ratio of standard deviations; of the forward SDE, alpha'/alpha."""
    x = normals(3, 2).requires_grad_()
    for name, how in [("torchdiffeq:dopri5", {"rtol": 1e-8}), ("torchdiffeq:rk4", {"steps": 40})]:
        end = sg.solve(sg.ProbabilityFlow(model()), x, solver=name, t_span=(0.8, 0.2), **how).x
        wanted = flowed(sg.VPSDE(), x, 0.8, 0.2)
        (slope,), (exact,) = torch.autograd.grad(end.sum(), x), torch.autograd.grad(wanted.sum(), x)
        torch.testing.assert_close(slope, exact, rtol=1e-5, atol=0)
    sde = sg.VPSDE()
    end = sg.solve(sg.ForwardSDE(sde), x, solver="torchsde:srk", steps=60, noise=0).x
    (slope,) = torch.autograd.grad(end.sum(), x)
    ratio = (sde.alpha(torch.tensor(sde.t_max, dtype=D)) / sde.alpha(torch.tensor(sde.t_min, dtype=D))).item()
    torch.testing.assert_close(slope, torch.full_like(slope, ratio), rtol=2e-2, atol=0)


# ---- noise


@pytest.mark.parametrize("name", SDE)
def test_law_of_the_reverse_and_the_forward_sde(name):
    """Mean and variance within 4 standard errors of the exact marginals; 150 steps leave a bias below one of them."""
    sde, n = sg.VPSDE(), 2000
    z = normals(n, 2)
    for kind, start, stop, steps in [("reverse", 1.0, 0.05, 150), ("forward", 0.05, 0.6, 60)]:
        begin, end = (torch.tensor(t, dtype=D) for t in (start, stop))
        (first_mean, first_var), (mean, var) = (
            (sde.alpha(t) * torch.tensor(MEAN, dtype=D), (sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2)
            for t in (begin, end)
        )
        x = first_mean + z * first_var.sqrt()
        spy = model()
        term = sg.ReverseSDE(spy) if kind == "reverse" else sg.ForwardSDE(sde)
        done = sg.solve(term, x, solver=name, steps=steps, t_span=(start, stop), noise=1)
        assert ((done.x.mean(0) - mean).abs() < 4 * (var / n).sqrt()).all(), kind
        assert ((done.x.var(0) - var).abs() < 4 * var * math.sqrt(2 / n)).all(), kind
        if kind == "reverse":
            stages = ROWS[name].evaluations
            assert done.calls == spy.calls == steps * stages + (name == "torchsde:reversible_heun")
            assert min(spy.times) >= 0.05 and max(spy.times) <= 1.0
            assert done.seed == 1


def test_euler_is_euler_maruyama_on_the_same_noise():
    x, how = normals(5, 2), {"steps": [1.0, 0.8, 0.75, 0.3, 0.01], "noise": 9, "save": "all"}
    for term in (sg.ReverseSDE(model()), sg.ReverseSDE(model(), eta=0.3)):
        ours = sg.solve(term, x, solver="euler-maruyama", **how)
        for name in ("torchsde:euler", "torchsde:milstein"):
            theirs = sg.solve(term, x, solver=name, **how)
            torch.testing.assert_close(theirs.xs, ours.xs, rtol=0, atol=1e-14)
            assert theirs.calls == ours.calls == 4


def test_strong_order_along_one_path():
    """1 for the Euler methods, 1.5 at least for srk, on one path per sample asked for at more and more times."""
    x, span, reverse = normals(48, 2), (1.0, 0.2), sg.ReverseSDE(model())

    def end(name, n):
        return sg.solve(reverse, x, solver=name, steps=n, t_span=span, noise=BrownianTree(7, *span, depth=8)).x

    exact = end("torchsde:srk", 256)
    for name, order in [("torchsde:euler", 1.0), ("torchsde:euler_heun", 1.0), ("torchsde:srk", 1.5)]:
        slope = math.log2(rms(end(name, 16) - exact) / rms(end(name, 32) - exact))
        assert order - 0.15 < slope < order + 0.7, (name, slope)


@pytest.mark.parametrize("name", SDE)
def test_adaptive_sde_follows_the_path_of_its_noise(name):
    """Against many small steps along the same path: what was drawn for rejected steps is not lost."""
    spy, x, span = model(), normals(6, 2), (1.0, 0.3)
    reverse, tree = sg.ReverseSDE(spy), BrownianTree(2, *span)
    exact = sg.solve(reverse, x, solver="torchsde:srk", steps=256, t_span=span, noise=tree).x
    spy.times.clear()
    start = {"torchsde:reversible_heun": sg.make_solver(name, dt=0.2), "torchsde:srk": sg.make_solver(name, dt=0.3)}
    done = sg.solve(reverse, x, solver=start.get(name, name), rtol=0.05, t_span=span, noise=2, save="all")
    assert rms(done.x - exact) < 0.2
    assert done.calls == spy.calls and min(spy.times) >= 0.3 and max(spy.times) <= 1.0
    assert done.status.tolist() == [0] * 6
    if name in start:
        assert done.rejected[0] > 0
    if name != "torchsde:reversible_heun":  # whose evaluations are not at its states
        assert len(done.ts) == done.accepted[0] + 1 and bool((done.ts.diff() < 0).all())
    torch.testing.assert_close(done.xs[-1], done.x)


def test_the_global_generator_is_left_alone():
    for name in SDE:
        state = torch.get_rng_state()
        sg.solve(sg.ReverseSDE(model()), normals(3, 2), solver=name, steps=3, noise=0)
        assert torch.equal(torch.get_rng_state(), state), name


# ---- failures


FAILING = [(name, {"rtol": 1e-3}) for name in ADAPTIVE + SDE] + [(name, {"steps": 10}) for name in STEPPED + SDE]
FAILING_IDS = [f"{name}-{next(iter(how))}" for name, how in FAILING]


@pytest.mark.parametrize(("name", "how"), FAILING, ids=FAILING_IDS)
@pytest.mark.parametrize("below", [2.0, 0.5])
def test_nan_of_one_sample_harms_no_other(name, how, below):
    how = {"rtol": 0.3} if name in SDE and "rtol" in how else how
    broken, x, bad = model(Broken), normals(4, 2), torch.tensor([False, True, False, False])
    kind = sg.ReverseSDE if name in SDE else sg.ProbabilityFlow
    how = {"solver": name, "t_span": (1.0, 0.25), "max_steps": 2000, **how}
    marked = sg.solve(kind(broken, bad=bad, below=below), x, on_failure="mark", noise=1, **how)
    assert marked.status.tolist() == [0, 1, 0, 0] and marked.calls == broken.calls
    assert "numbers 1" in marked.message and "NaN" in marked.message
    assert 0.4 < marked.t[1] <= 1.0  # a step that looks below 0.5 begins above 0.4
    assert marked.t[1] == 1.0 or below < 1
    keep = torch.tensor([0, 2, 3])
    alone = sg.solve(kind(broken, bad=bad[keep], below=below), x[keep], noise=sg.Noise(1, index=keep), **how)
    torch.testing.assert_close(marked.x[keep], alone.x, rtol=0, atol=1e-12)
    with pytest.raises(sg.NonFiniteError, match="numbers 1") as caught:
        sg.solve(kind(broken, bad=bad, below=below), x, noise=1, **how)
    assert caught.value.partial.status.tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(caught.value.partial.x[keep], alone.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ADAPTIVE + SDE)
def test_a_step_budget_is_kept(name):
    how = {"solver": name, "rtol": 1e-6, "max_steps": 3, "noise": 0}
    spy = model()
    term = (sg.ReverseSDE if name in SDE else sg.ProbabilityFlow)(spy)
    with pytest.raises(sg.MaxStepsError) as caught:
        sg.solve(term, normals(3, 2), **how)
    partial = caught.value.partial
    assert bool((partial.accepted + partial.rejected <= 3).all()) and partial.calls == spy.calls < 60
    times = [1.0, 1e-3] if name in SDE else [1.0, 0.5, 1e-3]  # a path of an SDE is known at its nodes only
    marked = sg.solve(term, normals(3, 2), on_failure="mark", save=times, **how)
    assert marked.status.tolist() == [2, 2, 2] and bool((marked.t > 1e-3).all())
    assert marked.xs.shape == (len(times), 3, 2) and bool(torch.isfinite(marked.xs).all())
    assert torch.equal(marked.xs[0], normals(3, 2))
    sampled = sg.sample(spy, (3, 2), solver=name, rtol=1e-6, max_steps=1, seed=0, dtype=D, on_failure="mark")
    assert sampled.status.tolist() in ([0] * 3, [2] * 3)  # one step may do along the best path


LAZY_AND_HOPELESS = """
import sys, torch, sdegen as sg

libraries = {"scipy", "torchdiffeq", "torchsde"}
sg.solvers()
sg.make_solver("scipy:RK45")
assert_ = lambda right: right or sys.exit("not so")
assert_(not libraries & set(sys.modules))
one = sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.VPSDE())
sg.sample(one, 2, solver="torchdiffeq:euler", steps=3)
assert_("torchsde" not in sys.modules)

class Field(sg.Term):
    t_min, t_max = 0.0, 2.0
    def __init__(self, f):
        self.f = f
    def drift(self, x, t):
        return self.f(x, t)

fields = {
    "nan": lambda x, t: x * float("nan"),
    "blow-up": lambda x, t: x**2,
    "huge": lambda x, t: x * 1e300,
    "pole": lambda x, t: 1 / (t - 1.0) ** 2 + 0 * x,
    "wild": lambda x, t: torch.sin(1e9 * t) * 1e6 + 0 * x,
}
def slow(signum, frame):
    raise KeyboardInterrupt("hangs")
import signal
signal.signal(signal.SIGALRM, slow)
for row in sg.solvers():
    if ":" not in row.name:
        continue
    ways = [{"rtol": 1e-3}] if row.adaptive else []
    ways += [] if "scipy" in row.name else [{"steps": 8}]
    for how in ways:
        for what, f in fields.items():
            signal.alarm(20)
            how["max_steps"] = 15
            x = torch.ones(3, 2, dtype=torch.float64)
            try:
                sg.solve(Field(f), x, solver=row.name, t_span=(0.0, 2.0), noise=0, **how)
            except sg.SolverError as error:
                assert_(error.partial.x.shape == (3, 2))
                continue
            except BaseException as error:
                print(row.name, how, what, type(error).__name__, error)
                continue
            if "rtol" in how or what == "nan":
                print(row.name, how, what, "passed for solved")
        signal.alarm(20)
        empty = sg.solve(Field(fields["nan"]), torch.ones(0, 2), solver=row.name, t_span=(0.0, 2.0), **how)
        assert_(empty.x.shape == (0, 2))
        signal.alarm(0)
print("done", sys.flags.optimize)
"""


def test_hopeless_fields_end_in_our_errors_and_imports_are_lazy():
    """NaN, blow-up, overflow, a pole, an unreachable tolerance, an empty batch, where asserts are compiled away."""
    done = subprocess.run(
        [sys.executable, "-O", "-W", "ignore", "-c", LAZY_AND_HOPELESS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done 1", done.stdout


@pytest.mark.parametrize("name", [n for n in ADAPTIVE if n.startswith("torchdiffeq:") and n not in SCIPY])
def test_steps_below_the_resolution_of_time_are_our_error(name):
    """The library looks for them in an assert."""
    with pytest.raises(sg.StepSizeUnderflowError):
        sg.solve(Field(lambda x, t: x * 1e300), normals(2, 1), solver=name, rtol=1e-3, t_span=(0.0, 2.0))


@pytest.mark.parametrize("name", ROWS)
def test_errors_of_the_term_pass_as_they_are(name):
    class Oops(ValueError):
        pass

    def f(x, t):
        raise Oops("mine")

    with pytest.raises(Oops, match="mine"):
        how = {"rtol": 1e-3} if name in SCIPY else {"steps": 5}
        sg.solve(Field(f), normals(3, 2), solver=name, noise=0, **how)


def test_no_warning_is_left_over():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ROWS:
            how = {"rtol": 1e-2} if name in SCIPY else {"steps": 16}
            sg.sample(model(), (2, 2), solver=name, seed=0, dtype=D, **how)
