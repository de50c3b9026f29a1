"""What functions of a user's own classes return is checked, whatever they are used for."""

from __future__ import annotations

import pytest
import torch

import sdegen as sg

MODEL = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.3), sg.VPSDE())
X = torch.ones(3, 2)


def solver(returns, *, by_tolerance=False):
    class Own(sg.Solver):
        name, order, adaptive, error_order = "own", 1, by_tolerance, 2

        def step(self, term, x, t, t_next, state, noise):
            return returns(x)

    return Own()


def term(returns):
    class Own(sg.Term):
        def drift(self, x, t):
            return returns(x)

    return Own()


@pytest.mark.parametrize("by_tolerance", [False, True])
@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda x: x, "returned a Tensor"),
        (lambda x: None, "returned None"),
        (lambda x: sg.Step(x[:1], error=x), "a Step to a Tensor of shape"),
        (lambda x: sg.Step(x.sum(1), error=x), "a Step to a Tensor of shape"),
        (lambda x: sg.Step(0.0, error=x), "a Step to 0.0"),
    ],
)
def test_a_step_that_is_none_is_refused(returns, words, by_tolerance):
    how = {"rtol": 1e-1} if by_tolerance else {"steps": 4}
    with pytest.raises(sg.InvalidInputError, match=f"'own': step returned .*{words}|{words}.*expected a Step") as told:
        sg.sample(MODEL, 3, solver=solver(returns, by_tolerance=by_tolerance), **how)
    assert "expected a Step to x, (3, 2)" in str(told.value)


@pytest.mark.parametrize("how", [{"solver": "rk4", "steps": 3}, {"solver": "dopri5", "rtol": 1e-2}])
@pytest.mark.parametrize(
    "returns", [lambda x: x[:1], lambda x: None, lambda x: x.sum(1), lambda x: x.sum(), lambda x: 1.0]
)
def test_a_drift_of_another_shape_is_refused(returns, how):
    with pytest.raises(sg.InvalidInputError, match=r"Own.drift returned .*, expected a tensor like x, \(3, 2\)"):
        sg.solve(term(returns), X, t_span=(0.0, 1.0), **how)


def test_what_is_right_is_passed_on():
    found = sg.solve(term(lambda x: x), X, solver="rk4", steps=10, t_span=(0.0, 1.0)).x
    torch.testing.assert_close(found, X * torch.e, rtol=1e-5, atol=0.0)
    assert torch.equal(
        sg.sample(MODEL, 3, solver=solver(lambda x: sg.Step(x)), steps=2, t_span=(1.0, 0.5), x_init=X).x, X
    )
