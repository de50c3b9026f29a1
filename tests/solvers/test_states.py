"""What solvers carry from step to step: values with types, cut by rows and taken back by rows, for one's own solvers too."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from torch import Tensor

import sdegen as sg
from sdegen.solvers import Step, choose
from sdegen.solvers.base import ControlState, merge, selected
from sdegen.solvers.tolerance import Tolerance

F64 = torch.float64
MODEL = sg.MixtureModel(sg.GaussianMixture([[1.0, 2.0], [-1.0, 0.0]], std=[0.5, 0.4]), sg.VPSDE())
LOOSE = Tolerance(1e3, 1e3)
OWN = [row.name for row in sg.solvers() if ":" not in row.name]


@dataclass(slots=True, eq=False)
class Inner:
    values: Tensor
    count: int


@dataclass(slots=True, eq=False)
class Outer(ControlState):
    inner: Inner | None = None
    maybe: Tensor | None = None


def outer(start: float, maybe: bool = True) -> Outer:
    rows = start + torch.arange(4.0)
    return Outer(ratio=rows, inner=Inner(torch.stack([rows, 10 * rows], 1), int(start)), maybe=rows if maybe else None)


def test_rows_are_cut_from_every_tensor_of_a_state_and_the_rest_is_shared():
    keep = torch.tensor([3, 0])
    state = selected(outer(5.0), keep)
    assert state.ratio.tolist() == state.maybe.tolist() == [8.0, 5.0]
    assert state.inner.values.tolist() == [[8.0, 80.0], [5.0, 50.0]] and state.inner.count == 5
    words = selected({"a": torch.arange(4.0), "b": None, "c": 3}, keep)
    assert words["a"].tolist() == [3.0, 0.0] and words["b"] is None and words["c"] == 3
    assert selected(None, keep) is None


def test_a_refused_sample_keeps_its_old_row_in_every_tensor():
    accept = torch.tensor([True, False, True, False])
    new, old = outer(100.0), outer(0.0, maybe=False)
    state = merge(accept, new, old)
    assert state.ratio.tolist() == [100.0, 1.0, 102.0, 3.0]
    assert state.inner.values[:, 1].tolist() == [1000.0, 10.0, 1020.0, 30.0] and state.inner.count == 100
    assert state.maybe.tolist() == [100.0, 101.0, 102.0, 103.0], "what was not there before comes from the new one"
    assert merge(torch.ones(4, dtype=torch.bool), new, old) is new
    words = merge(accept, {"k": torch.ones(4)}, {"k": torch.zeros(4)})
    assert words["k"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert merge(accept, ControlState(torch.ones(4)), None).ratio.tolist() == [1.0] * 4


@pytest.mark.parametrize("name", OWN)
def test_every_solver_carries_nothing_or_a_value_with_named_fields(name):
    solver = sg.make_solver(name)
    term = sg.ReverseSDE(MODEL) if solver.default_eta else sg.ProbabilityFlow(MODEL)
    ts = sg.grid(MODEL, 30, kind="lambda", t_span=(1.0, 0.01))
    x = MODEL.sde.prior((3, 2), seed=0, dtype=F64)
    for controlled in (False, True)[: 1 + solver.adaptive]:
        stepper = choose(solver, term, steps=None if controlled else ts, adaptive=controlled)
        t, t_next = (u.expand(3) if controlled else u for u in ts[:2])
        state = stepper.start(term, x, t, None if controlled else ts)
        step = stepper.step(term, x, t, t_next, state, sg.Noise(0))
        for carried in (state, step.state):
            assert carried is None or (is_dataclass(carried) and hasattr(type(carried), "__slots__"))
        if controlled:
            accept, _, after = stepper.judge(step, x, state, LOOSE)
            few = stepper.select(after, torch.tensor([2, 0]), x)
            assert bool(accept.all()) and type(few) is type(after)
            tensors = [v for v in (getattr(few, field.name) for field in fields(few)) if isinstance(v, Tensor)]
            assert tensors and all(2 in v.shape and 3 not in v.shape for v in tensors)


def test_the_steppers_of_one_name_do_what_the_name_does():
    """Both methods behind "adams" and "d-adams2-sde", step by step, are reached through the object that has the name."""
    ts = sg.grid(MODEL, 12, kind="theta", t_span=(0.9, 0.02))
    x = MODEL.sde.prior((3, 2), seed=0, dtype=F64)
    for name, term in (("adams", sg.ProbabilityFlow(MODEL)), ("d-adams2-sde", sg.ReverseSDE(MODEL))):
        solver = sg.make_solver(name)
        for controlled in (False, True):
            stepper = solver.stepper(controlled=controlled)
            assert type(stepper) is not type(solver) and repr(stepper) == repr(solver)
            assert stepper.stepper(controlled=controlled) is stepper
            ends = []
            for one in (solver, stepper):
                noise, y = sg.Noise(1), x
                own = [t.expand(3) if controlled else t for t in ts]
                state = one.start(term, y, own[0], None if controlled else ts)
                for t, t_next in zip(own, own[1:], strict=False):
                    step = one.step(term, y, t, t_next, state, noise)
                    y, before, state = step.x, state, step.state
                    if controlled:
                        _, _, state = one.judge(step, y, before, LOOSE)
                ends.append(y)
            assert torch.equal(*ends)


# ---- one's own solvers


class Midpoint(sg.Solver):
    """Six lines."""

    name, order, evaluations = "midpoint", 2, 2

    def step(self, term, x, t, t_next, state, noise):
        h = (t_next - t).reshape(-1, *(1,) * (x.ndim - 1)) if t.ndim else t_next - t
        return Step(x + h * term.drift(x + h / 2 * term.drift(x, t), t + (t_next - t) / 2))


class Controlled(Midpoint):
    """With an error estimate, and a state of one's own or none."""

    name, adaptive, error_order = "controlled", True, 2

    def __init__(self, state) -> None:
        self.state = state

    def start(self, term, x, t, grid=None):
        return self.state(x)

    def step(self, term, x, t, t_next, state, noise):
        h = (t_next - t).reshape(-1, *(1,) * (x.ndim - 1)) if t.ndim else t_next - t
        slope = term.drift(x, t)
        x_next = x + h * term.drift(x + h / 2 * slope, t + (t_next - t) / 2)
        return Step(x_next, self.state(x_next), x_next - (x + h * slope))


@dataclass
class Last(ControlState):
    x: Tensor | None = None


STATES = {
    "none": lambda x: None,
    "a dict": lambda x: {"x": x},
    "a dataclass": lambda x: Last(x=x),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_ones_own_solver_is_controlled_whatever_it_carries(state):
    """The same samples, and the memory of the controller is cut with the batch: alone as in company."""
    whole = sg.sample(MODEL, 5, solver=Controlled(state), rtol=1e-3, seed=0, dtype=F64)
    plain = sg.sample(MODEL, 5, solver=Controlled(STATES["none"]), rtol=1e-3, seed=0, dtype=F64)
    assert torch.equal(whole.x, plain.x) and int(whole.rejected.sum()) > 0 and len(whole.nfe.unique()) > 1
    alone = sg.sample(MODEL, 5, solver=Controlled(state), rtol=1e-3, seed=0, dtype=F64, batch_size=1)
    torch.testing.assert_close(whole.x, alone.x)
    assert torch.equal(whole.nfe, alone.nfe)


def test_a_state_that_cannot_remember_is_refused_by_name():
    with pytest.raises(sg.InvalidInputError, match="inherits ControlState"):
        sg.sample(MODEL, 2, solver=Controlled(lambda x: Inner(x, 0)), rtol=1e-3, seed=0, dtype=F64)


def test_six_lines_are_a_solver():
    sg.testing.check_solver(Midpoint())
    few, many = (sg.sample(MODEL, 4, solver=Midpoint(), steps=n, seed=0, dtype=F64).x for n in (20, 80))
    exact = sg.sample(MODEL, 4, rtol=1e-8, seed=0, dtype=F64).x
    assert float((many - exact).norm()) < 0.2 * float((few - exact).norm())


def test_a_step_that_is_unlike_its_state_is_refused_with_the_cure():
    """Times are float64 under error control: a width that is not cast makes float64 of a float32 state."""
    with pytest.raises(sg.InvalidInputError, match=r"got torch.float64 \(2, 2\), expected torch.float32 .*reshape"):
        sg.sample(MODEL, 2, solver=Controlled(STATES["none"]), rtol=1e-3, seed=0, dtype=torch.float32)
