"""The loop: where times start and end, what is saved and counted, how it fails (laws of solvers: test_orders)."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import pytest
import torch
from cases import Asked
from torch import Tensor

import sdegen as sg
from sdegen import testing
from sdegen.core.shapes import expand
from sdegen.loop.solution import describe
from sdegen.models.exact import MixtureModel
from sdegen.solvers import Solver, Step
from sdegen.terms import Counted
from sdegen.testing.doubles import WatchedModel

F64 = torch.float64
MIXTURE = sg.GaussianMixture([[1.0, 0.4], [-0.8, 0.9]], std=[0.3, 0.4])
MODEL = MixtureModel(MIXTURE, sg.VPSDE())
FLOW = sg.ProbabilityFlow(MODEL)


def states(n: int = 5, seed: int = 0) -> Tensor:
    return sg.Noise(seed).normal((n, 2), 41, dtype=F64, device="cpu")


class Decay(sg.Term):
    """dx/dt = -x, from time 0 on."""

    def drift(self, x, t):
        return -x


class Blowing(sg.Term):
    """dx/dt = x^2: infinite at t = 1/x(0)."""

    def drift(self, x, t):
        return x**2


class Jumping(sg.Term):
    """A field that no step resolves."""

    def drift(self, x, t):
        return 1e6 * torch.sign(torch.sin(1e7 * (x + t.reshape(-1, 1))))


# ---- times


def test_a_term_of_ones_own_is_an_equation_like_others():
    x = states()
    for solver, atol in (("rk4", 1e-6), ("dopri5", 1e-9), ("heun", 1e-3)):
        came = sg.solve(Decay(), x, solver=solver, steps=40, t_span=(0.0, 2.0))
        torch.testing.assert_close(came.x, x * math.exp(-2), rtol=0, atol=atol)
        back = sg.solve(Decay(), came.x, solver=solver, steps=40, t_span=(2.0, 0.0))
        torch.testing.assert_close(back.x, x, rtol=0, atol=20 * atol)
    for solver in ("dopri5", "bosh3"):
        came = sg.solve(Decay(), x, solver=solver, rtol=1e-8, t_span=(0.0, 2.0))
        torch.testing.assert_close(came.x, x * math.exp(-2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dopri5", "euler"])
def test_a_list_of_times_ending_at_zero_denoises_from_the_time_before(solver):
    x, t = states(), 0.3
    came = sg.solve(FLOW, x, solver=solver, steps=[t, 0.0])
    assert torch.equal(came.x, MODEL(x, torch.tensor(t, dtype=F64)).x0)
    assert came.calls == 1 and came.accepted.tolist() == [1] * 5
    two = sg.solve(FLOW, x, solver=solver, steps=[t, 0.2, 0.0])
    before = sg.solve(FLOW, x, solver=solver, steps=[t, 0.2])
    assert torch.equal(two.x, MODEL(before.x, torch.tensor(0.2, dtype=F64)).x0)


def test_a_span_to_zero_is_a_span_to_t_min_and_the_denoising():
    x, low = states(), torch.tensor(MODEL.sde.t_min, dtype=F64)
    for how in ({"steps": 7}, {"rtol": 1e-5, "solver": "dopri5"}):
        fewer = {"steps": 6} if "steps" in how else how  # the denoising is one of the steps
        came = sg.solve(FLOW, x, t_span=(0.5, 0.0), **how)
        before = sg.solve(FLOW, x, t_span=(0.5, float(low)), **fewer)
        torch.testing.assert_close(came.x, MODEL(before.x, low).x0, rtol=0, atol=1e-12)
        assert came.t.tolist() == [0.0] * 5 and before.t.tolist() == [float(low)] * 5
        only = sg.solve(FLOW, x, t_span=(float(low), 0.0), **how)
        assert torch.equal(only.x, MODEL(x, low).x0) and only.calls == 1


def test_default_spans_are_the_terms_whole_range():
    x = states()
    assert sg.solve(FLOW, x, solver="heun", steps=3, save="all").ts.tolist()[::3] == [1.0, MODEL.sde.t_min]
    forward = sg.solve(sg.ForwardSDE(MODEL.sde), x, steps=3, noise=1, save="all")
    assert forward.ts.tolist()[::3] == [0.0, 1.0]


def test_times_that_rounding_moved_out_of_the_range_are_moved_back():
    sde = MODEL.sde
    ts = [1.0 + 1e-9, 0.5, sde.t_min * (1 - 1e-9)]
    watched = WatchedModel(MODEL)
    came = sg.solve(sg.ProbabilityFlow(watched), states(), solver="dopri5", steps=ts)
    assert watched.last == 1.0 and watched.first == sde.t_min and came.t.tolist() == [sde.t_min] * 5


# ---- what is kept


@pytest.mark.parametrize(("solver", "order"), [("dopri5", 4), ("heun", 4), ("ddim", 2)])
def test_saved_times_inside_steps_are_interpolated_as_well_as_the_slopes_allow(solver, order):
    """A cubic through both ends and slopes is off by h^4, beside the method's own error."""
    x, when = states(9), torch.linspace(0.79, 0.31, 17, dtype=F64)
    exact = torch.stack([sg.solve(FLOW, x, solver="dopri5", steps=[0.8, *when[: k + 1].tolist()]).x for k in range(17)])
    misses = []
    for n in (20, 40):
        came = sg.solve(FLOW, x, solver=solver, steps=torch.linspace(0.8, 0.3, n + 1, dtype=F64), save=when)
        assert torch.equal(came.ts, when)
        misses.append(float((came.xs - exact).abs().max()))
    own = sg.make_solver(solver).order
    assert math.log2(misses[0] / misses[1]) >= min(own, order) - 0.5
    assert misses[1] < {"dopri5": 1e-5, "heun": 2e-3, "ddim": 0.03}[solver]


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "adams"])
def test_saved_times_under_error_control(solver):
    x, when = states(9), [0.8, 0.71, 0.5, 0.33, 0.3]
    came = sg.solve(FLOW, x, solver=solver, rtol=1e-7, t_span=(0.8, 0.3), save=when)
    for k, t in enumerate(when[1:], 1):
        exact = sg.solve(FLOW, x, solver="dopri5", rtol=1e-11, t_span=(0.8, t)).x
        assert float((came.xs[k] - exact).abs().max()) < 1e-3
    assert torch.equal(came.xs[0], x) and torch.equal(came.xs[-1], came.x)


def test_all_of_a_run_with_own_steps_is_kept_per_sample():
    x = 3 * states(9)
    came = sg.solve(FLOW, x, solver="dopri5", rtol=1e-5, t_span=(1.0, 0.0), save="all")
    assert came.ts.shape == came.xs.shape[:2] and len(came.ts) == int(came.accepted.max()) + 1
    for i in range(9):
        n = int(came.accepted[i])
        own = came.ts[: n + 1, i]
        assert own[0] == 1 and own[n] == 0 and bool((own.diff() < 0).all())
        assert bool((came.ts[n:, i] == 0).all()) and torch.equal(came.xs[-1, i], came.x[i])  # the end is repeated


def test_a_stochastic_run_saves_nodes_and_refuses_times_between():
    ts = [0.9, 0.5, 0.2]
    term = sg.ReverseSDE(MODEL)
    came = sg.solve(term, states(), steps=ts, noise=1, save=[0.5, 0.2])
    path = sg.solve(term, states(), steps=ts, noise=1, save="all")
    assert torch.equal(came.xs, path.xs[1:])
    with pytest.raises(sg.InvalidInputError, match="nodes of its grid"):
        sg.solve(term, states(), steps=ts, noise=1, save=[0.4])


def test_progress_is_reported_in_order_to_one():
    for how in ({"steps": 10}, {"rtol": 1e-4}, {"steps": 4, "solver": "ddim"}):
        seen: list[float] = []
        sg.solve(FLOW, states(), t_span=(0.8, 0.0), report=seen.append, **how)
        assert seen == sorted(seen) and seen[-1] == 1.0 and all(0 <= f <= 1 for f in seen)


def test_a_run_without_noise_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    sg.solve(FLOW, states(), steps=3, t_span=(0.8, 0.3))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(5)
    first = sg.solve(sg.ReverseSDE(MODEL), states(), steps=3, t_span=(0.8, 0.3))
    again = sg.solve(sg.ReverseSDE(MODEL), states(), steps=3, t_span=(0.8, 0.3), noise=first.seed)
    assert torch.equal(first.x, again.x)  # and a run with noise tells its seed


# ---- samples that step on their own


class Shifted(sg.ScoreModel):
    """Data at each sample's own place, told by a condition."""

    def forward(self, x, t, place=None, scale=1.0):
        prediction = MODEL(x - expand(self.sde.alpha(torch.as_tensor(t, dtype=F64)), x) * place, t)
        return sg.Prediction(prediction.x0 + place, prediction.noise, self.sde, t)


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "adams"])
def test_conditions_follow_their_samples_out_of_the_batch(solver):
    place = torch.linspace(-4, 4, 9, dtype=F64)[:, None].expand(9, 2).contiguous()
    model = Shifted(MODEL.sde)
    x = states(9)
    whole = sg.solve(sg.ProbabilityFlow(model, place=place, scale=2.0), x, solver=solver, rtol=1e-6)
    assert len(whole.nfe.unique()) > 1
    for i in range(9):
        alone = sg.solve(sg.ProbabilityFlow(model, place=place[i : i + 1]), x[i : i + 1], solver=solver, rtol=1e-6)
        torch.testing.assert_close(alone.x[0], whole.x[i], rtol=0, atol=1e-12)


def test_a_tolerance_below_the_dtypes_resolution_is_raised_with_a_warning():
    with pytest.warns(UserWarning, match="below what torch.float32 resolves"):
        came = sg.solve(FLOW, states().float(), solver="dopri5", rtol=1e-9, t_span=(0.8, 0.3))
    assert came.x.dtype == torch.float32 and bool((came.status == 0).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.solve(FLOW, states(), solver="dopri5", rtol=1e-9, t_span=(0.8, 0.3))
        sg.solve(FLOW, states().half(), solver="dopri5", t_span=(0.8, 0.3))  # the default is what half can carry


@pytest.mark.parametrize("how", [{"solver": "rk4", "steps": 20}, {"solver": "dopri5", "rtol": 1e-8}])
def test_a_solve_can_be_differentiated(how):
    x = states(3).requires_grad_()
    came = sg.solve(FLOW, x, t_span=(0.8, 0.3), **how)
    direction = states(3, seed=1)
    (slope,) = torch.autograd.grad((came.x * direction).sum(), x)
    h = 1e-5
    with torch.no_grad():
        up, down = (sg.solve(FLOW, x.detach() + s * h * direction, t_span=(0.8, 0.3), **how).x for s in (1, -1))
    wanted = ((up - down) * direction).sum() / (2 * h)
    assert float((slope * direction).sum()) == pytest.approx(float(wanted), rel=1e-5)


# ---- failures


@pytest.mark.parametrize("solver", ["dopri5", "bosh3"])
def test_nan_at_time_zero_ends_at_once(solver):
    class Nothing(sg.Term):
        def drift(self, x, t):
            return x * math.nan

    with pytest.raises(sg.NonFiniteError, match=r"5 of 5 samples .* at t = 0 after 0 accepted steps") as caught:
        sg.solve(Nothing(), states(), solver=solver, rtol=1e-3, t_span=(0.0, 1.0))
    assert caught.value.partial.calls < 200 and torch.equal(caught.value.partial.x, states())


def test_a_nan_that_a_shorter_step_avoids_is_no_failure():
    """A field that is not defined where too long a step would look."""

    class Narrow(sg.Term):
        def drift(self, x, t):
            return torch.where(x > 2.0, math.nan, 40 * (1 - x))

    x = torch.full((2, 1), -30.0, dtype=F64)
    for solver in ("dopri5", "bosh3", "adams"):
        came = sg.solve(Narrow(), x, solver=solver, rtol=1e-3, t_span=(0.0, 2.0))
        torch.testing.assert_close(came.x, torch.ones_like(x), rtol=0, atol=1e-2)
        assert bool((came.rejected > 0).all())


@pytest.mark.parametrize("how", [{"steps": 12}, {"rtol": 1e-2}, {"rtol": 1e-2, "batch_size": 4}], ids=str)
def test_a_sample_that_the_final_denoising_spoils_has_not_arrived(how):
    """It stays at t_min, all evaluations counted; the others are what they are without it."""

    class Spoiling(sg.Wrapped):
        spoils = True

        def forward(self, x, t, **cond):
            found = self.model(x, t, **cond)
            at_the_end = torch.as_tensor(t).ndim == 0 and float(t) <= self.sde.t_min
            bad = torch.where(x[:, :1] > 0, torch.nan, 0.0) if self.spoils and at_the_end else 0.0
            return sg.Prediction.from_x0(x, found.x0 + bad, self.sde, t)

    model = Spoiling(sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4]], std=0.2), sg.VPSDE()))
    how = {"seed": 1, "solver": "adams", "on_failure": "mark", "progress": False, **how}
    spoiled = sg.sample(model, 16, **how)
    model.spoils = False
    sound = sg.sample(model, 16, **how)
    bad = ~torch.isfinite(spoiled.x).all(1)
    assert 0 < int(bad.sum()) < 16 and torch.equal(bad, sound.x[:, 0] > 0)
    assert torch.equal(spoiled.status, bad.long()) and torch.equal(spoiled.t == 0, ~bad)
    torch.testing.assert_close(spoiled.t[bad], torch.full_like(spoiled.t[bad], model.sde.t_min))
    assert torch.equal(spoiled.nfe, sound.nfe) and torch.equal(spoiled.accepted, sound.accepted - bad.long())
    assert torch.equal(spoiled.x[~bad], sound.x[~bad])


def test_a_blow_up_is_told_where_it_is():
    x = torch.tensor([[1.0], [0.1]], dtype=F64)
    came = sg.solve(Blowing(), x, solver="dopri5", rtol=1e-6, t_span=(0.0, 2.0), on_failure="mark", max_steps=2000)
    assert came.status[1] == 0 and came.status[0] != 0
    assert float(came.t[0]) == pytest.approx(1.0, abs=1e-3) and float(came.t[1]) == 2.0
    assert float(came.x[1]) == pytest.approx(0.125, rel=1e-5)  # 1/(1/x - t)
    with pytest.raises((sg.StepSizeUnderflowError, sg.NonFiniteError), match=r"1 of 2 samples \(numbers 0\)"):
        sg.solve(Blowing(), x, solver="dopri5", rtol=1e-6, t_span=(0.0, 2.0), max_steps=2000)


def test_an_unreachable_tolerance_ends_within_max_steps():
    with pytest.raises((sg.MaxStepsError, sg.StepSizeUnderflowError), match="loosen rtol/atol") as caught:
        sg.solve(Jumping(), states(3), solver="dopri5", rtol=1e-10, t_span=(0.0, 1.0), max_steps=60)
    partial = caught.value.partial
    assert int((partial.accepted + partial.rejected).max()) <= 60
    assert torch.equal(partial.nfe, 1 + 6 * (partial.accepted + partial.rejected))


def test_failures_are_errors_also_when_python_runs_without_asserts():
    code = """
import torch, sdegen as sg
class Nothing(sg.Term):
    def drift(self, x, t):
        return x * float("nan")
class Jumping(sg.Term):
    def drift(self, x, t):
        return 1e6 * torch.sign(torch.sin(1e7 * (x + t.reshape(-1, 1))))
x = torch.ones(2, 1, dtype=torch.float64)
for term, solver, kinds in (
    (Nothing(), "dopri5", sg.NonFiniteError),
    (Nothing(), "adams", sg.NonFiniteError),
    (Jumping(), "bosh3", (sg.MaxStepsError, sg.StepSizeUnderflowError)),
):
    try:
        sg.solve(term, x, solver=solver, rtol=1e-9, t_span=(0.0, 1.0), max_steps=100)
    except kinds as error:
        print(type(error).__name__, error.partial.x.shape[0])
try:
    sg.solve(Nothing(), x, solver="rk4", steps=3, t_span=(0.0, 1.0))
except sg.NonFiniteError as error:
    print(type(error).__name__, error.partial.t.tolist())
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    lines = done.stdout.split("\n")
    assert lines[:2] == ["NonFiniteError 2", "NonFiniteError 2"], done.stderr
    assert lines[2] in ("MaxStepsError 2", "StepSizeUnderflowError 2") and lines[3] == "NonFiniteError [0.0, 0.0]"


class Failing(sg.Term):
    """dx/dt = 1 up to a time of each sample's own, and then infinite or undefined."""

    def __init__(self, last: Tensor, what: float) -> None:
        self.last, self.what = last[:, None], what

    def drift(self, x, t):
        return torch.where(t < self.last, 1.0, self.what).expand_as(x)


@pytest.mark.parametrize("what", [math.nan, math.inf])
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_the_step_in_which_a_sample_stops_being_finite_is_told_of_every_sample(steps, what):
    """On a grid: sample k fails in step k + 1, the last one in none, whichever of them are in the batch."""
    each = torch.arange(steps + 1)
    for rows in (each, *each.split(1), each.flip(0)):
        term = Failing(rows - 0.5, what)
        options = {"solver": "euler", "steps": steps, "t_span": (0.0, float(steps)), "on_failure": "mark"}
        came = sg.solve(term, torch.zeros(len(rows), 1, dtype=torch.float64), **options)
        assert came.status.tolist() == [0 if k == steps else 1 for k in rows.tolist()]
        assert came.accepted.tolist() == came.t.tolist() == rows.tolist()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_large_states_are_finite_though_their_sum_is_not(steps):
    """A batch is looked at by its sum first; where that is not finite, every sample by itself."""
    x = torch.full((4, 1), 3e38)
    came = sg.solve(Decay(), x, t_span=(0.0, 1e-3), solver="euler", steps=steps)
    assert not bool(torch.isfinite(came.x.sum())) and bool(torch.isfinite(came.x).all())
    assert came.status.tolist() == [0] * 4 and came.accepted.tolist() == [steps] * 4


def test_the_worst_failure_is_spoken_of_and_where_it_was_first():
    watched = WatchedModel(MODEL, below=0.5)
    spoiled = torch.tensor([False, True, False, True, False])
    term = sg.ProbabilityFlow(watched, spoiled=spoiled)
    ts = [0.8, 0.7, 0.6, 0.4, 0.2]
    came = sg.solve(term, states(), solver="ddim", steps=ts, on_failure="mark")
    assert came.status.tolist() == [0, 1, 0, 1, 0] and came.accepted.tolist() == [4, 3, 4, 3, 4]
    assert came.t.tolist() == [0.2, 0.4, 0.2, 0.4, 0.2]
    for words in ("2 of 5 samples (numbers 1, 3)", "t = 0.4", "after 3 accepted steps", "precision"):
        assert words in came.message


def test_of_several_failures_the_one_after_the_fewest_steps_is_named():
    """Of the worst kind; a step size that ran out after no step at all is less than a NaN."""
    reached = torch.tensor([0.2, 0.4, 0.6, 0.7], dtype=F64)
    said = describe(torch.tensor([0, 1, 1, 3]), reached, torch.tensor([4, 3, 1, 0]))
    assert "2 of 4 samples (numbers 1, 2)" in said and "t = 0.6 after 1 accepted steps" in said


def test_what_is_left_to_do_at_the_last_time_is_watched_too():
    """Langevin's steps at the last node."""
    watched = WatchedModel(MODEL, below=0.25)
    term = sg.ReverseSDE(watched, spoiled=torch.tensor([True, False]))
    came = sg.solve(term, states(2), solver="langevin", steps=[0.5, 0.3, 0.2], noise=1, on_failure="mark")
    assert came.status.tolist() == [1, 0] and came.t.tolist() == [0.2, 0.2]


# ---- check_solver finds what is wrong with a solver


class Plain(Solver):
    """Euler's method, to be spoiled."""

    name, order, kind, grid = "plain", 1, "any", "theta"

    def step(self, term, x, t, t_next, state, noise):
        x_next = x + expand(t_next - t, x) * term.drift(x, t)
        if term.stochastic:
            x_next = x_next + self.noise(term, t, t_next, x, noise)
        return Step(x_next)

    def noise(self, term, t, t_next, x, noise):
        return term.diffusion(t) * noise.increment(t, t_next, x)


class Overstated(Plain):
    order = 2


class Understated(Plain):
    order, kind = 1, "ODE"

    def step(self, term, x, t, t_next, state, noise):
        h = expand(t_next - t, x)
        k = term.drift(x, t)
        return Step(x + h / 2 * (k + term.drift(x + h * k, t_next)))


class Loud(Plain):
    def noise(self, term, t, t_next, x, noise):
        return 1.1 * super().noise(term, t, t_next, x, noise)


class NoiseByTime(Plain):
    """The step's length where its root belongs."""

    def noise(self, term, t, t_next, x, noise):
        return term.diffusion(t) * noise.standard(t, t_next, x) * (t - t_next)


class SameNoise(Plain):
    """One draw for all steps."""

    def noise(self, term, t, t_next, x, noise):
        z = noise.normal(x.shape, 1, dtype=x.dtype, device=x.device)
        return term.diffusion(t) * z * (t - t_next).abs().sqrt()


class GlobalNoise(Plain):
    def noise(self, term, t, t_next, x, noise):
        return term.diffusion(t) * torch.randn_like(x) * (t - t_next).abs().sqrt()


class Coupled(Plain):
    """A norm over the batch."""

    def step(self, term, x, t, t_next, state, noise):
        step = super().step(term, x, t, t_next, state, noise)
        return Step(step.x * (1 + 1e-9 * step.x.norm()))


class Remembering(Plain):
    """Keeps a slope between calls."""

    kind, last = "ODE", None

    def step(self, term, x, t, t_next, state, noise):
        k = term.drift(x, t)
        mixed = k if self.last is None or self.last.shape != k.shape else k + 1e-6 * self.last
        self.last = k
        return Step(x + expand(t_next - t, x) * mixed)


class Wandering(Plain):
    """Looks a little past the step's end."""

    kind = "ODE"

    def step(self, term, x, t, t_next, state, noise):
        term.drift(x, t_next + 0.01 * (t_next - t))
        return super().step(term, x, t, t_next, state, noise)


class Uncounted(Plain):
    """Goes around the counter."""

    kind = "ODE"

    def step(self, term, x, t, t_next, state, noise):
        term.term.drift(x, t)
        return super().step(term, x, t, t_next, state, noise)


class InFloat32(Plain):
    def step(self, term, x, t, t_next, state, noise):
        return Step(super().step(term, x, t, t_next, state, noise).x.float().to(x.dtype))


class Silent(Plain):
    """Hides NaN."""

    def step(self, term, x, t, t_next, state, noise):
        return Step(super().step(term, x, t, t_next, state, noise).x.nan_to_num(0.0))


class Ignoring(Plain):
    """A grid of its own."""

    adaptive, kind = True, "ODE"

    def step(self, term, x, t, t_next, state, noise):
        step = super().step(term, x, t, t_next, state, noise)
        return Step(step.x, error=torch.zeros_like(x))


def test_a_sound_solver_passes():
    testing.check_solver(Plain())


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (Overstated(), "order 2"),
        (Understated(), "order 1"),
        (Loud(), "variance"),
        (NoiseByTime(), "variance"),
        (SameNoise(), "variance"),
        (GlobalNoise(), r"\(seed, i\) alone"),
        (Coupled(), "batch mates"),
        (Remembering(), "the one before"),
        (Wandering(), r"inside \[t_min, t_max\]"),
        (Uncounted(), "calls"),
        (InFloat32(), "float64 throughout"),
        (Silent(), "NaN"),
        (Ignoring(), "leave the batch|falls"),
    ],
    ids=lambda v: v.__class__.__name__ if isinstance(v, Solver) else "",
)
def test_a_spoiled_solver_does_not(solver, words):
    with pytest.raises(testing.LawError, match=words):
        testing.check_solver(solver)


def test_check_solver_takes_instances():
    with pytest.raises(sg.InvalidInputError, match="expected a Solver such as"):
        testing.check_solver("heun")


class CountingVP(sg.VPSDE):
    """Notes how often its coefficients are computed."""

    computed = 0

    def alpha(self, t):
        type(self).computed += 1
        return super().alpha(t)


@pytest.mark.parametrize(
    "name", ["euler", "heun", "rk4", "dopri5", "ddim", "unipc3", "adams", "ancestral", "euler-maruyama"]
)
def test_the_coefficients_of_a_fixed_grid_are_computed_together(name):
    """As often for 40 steps as for 10: before the first of them."""
    counts = []
    for steps in (10, 40):
        model = sg.Denoiser(torch.nn.Identity(), CountingVP(), parametrization="noise")
        model.net.forward = lambda x, t: x
        CountingVP.computed = 0
        sg.sample(model, (2, 3), solver=name, steps=steps, seed=0)
        counts.append(CountingVP.computed)
    assert counts[0] == counts[1]


def test_counting_calls_hides_nothing_of_a_term():
    """What a term may define, the counted term passes on: a default in its place would go unnoticed."""
    public = {name for name, value in vars(sg.Term).items() if callable(value) and not name.startswith("_")}
    left = public - set(vars(Counted))
    assert left == {"check", "select"}  # asked of the term itself, before it is counted and by `restrict`


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "dopri5", "dpm++2m", "adams", "heun-sde", "sra1"])
def test_coefficients_of_a_grid_are_computed_all_together(name):
    sde = Asked()
    model = sg.Denoiser(torch.nn.Module(), sde, parametrization="noise")
    model.net.forward = lambda x, t: x
    term = sg.ReverseSDE(model) if name in ("heun-sde", "sra1") else sg.ProbabilityFlow(model)
    asked = []
    for steps in (5, 8, 40):
        before = len(sde.asked)
        sg.solve(term, torch.ones(2, 3), solver=name, steps=steps, t_span=(0.9, 0.1 + 0.001 * steps), noise=0)
        asked.append(len(sde.asked) - before)
    assert asked[1] == asked[2]  # the first asks for the ends too
