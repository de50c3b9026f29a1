"""What is made once of a process, a grid and what is known of the data serves later requests, and changes none."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from cases import Asked

import sdegen as sg
from sdegen.models.coordinates import Coordinates

REQUESTS = {
    "few steps": {"steps": 6},
    "steps": {"steps": 12, "save": "all"},
    "tolerance": {"rtol": 1e-2},
    "to the middle": {"steps": 12, "t_span": (0.9, 0.2)},
    "nearly to the end": {"steps": 12, "t_span": (0.9, 0.1)},
    "multistep": {"solver": "dpm++2m", "steps": 12},
    "reverse SDE": {"solver": "dpm++2m-sde", "steps": 12},
    "half the noise": {"solver": "ancestral", "eta": 0.5, "steps": 12},
    "lambda": {"solver": "sra1", "steps": 20},
    "Gaussian start": {"solver": "adams", "rtol": 1e-2},
    "density": {"steps": 12, "return_log_prob": True},
}


def network(sde, mean=0.5):
    torch.manual_seed(3)
    net = sg.nets.MLP(2, hidden=16, layers=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return sg.Denoiser(net, sde, data_mean=torch.full((2,), mean), data_std=torch.tensor([0.7, 1.3]))


def ends(model, how):
    found = sg.sample(model, 5, seed=1, **how)
    return [found.x, found.ts, found.xs] + ([] if found.log_prob is None else [found.log_prob])


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", REQUESTS)
def test_what_was_asked_before_changes_nothing(name):
    model = network(sg.VPSDE())
    alone = ends(copy.deepcopy(model), REQUESTS[name])
    for other in REQUESTS.values():
        ends(model, other)
    assert same(ends(model, REQUESTS[name]), alone)
    model.data_std = torch.tensor([0.2, 0.3])
    assert same(ends(model, REQUESTS[name]), ends(copy.deepcopy(model), REQUESTS[name]))
    assert not same(ends(model, REQUESTS[name]), alone)
    for changed in (network(sg.VPSDE(), mean=-0.5), network(sg.VPSDE(beta_max=10.0))):
        model.data_mean, model.data_std, model.sde = changed.data_mean, changed.data_std, changed.sde
        assert same(ends(model, REQUESTS[name]), ends(changed, REQUESTS[name]))


@pytest.mark.parametrize("name", ["few steps", "multistep", "reverse SDE", "half the noise"])
def test_the_same_request_computes_no_coefficient_again(name):
    model = network(Asked())
    for times in range(3):
        before = len(model.sde.asked)
        ends(model, REQUESTS[name])
        assert (len(model.sde.asked) > before) == (times == 0)


class Timed(sg.ScoreModel):
    """A belief in which autograd keeps the time."""

    def forward(self, x, t):
        return sg.Prediction.from_x0(x, torch.tanh(x) * t, self.sde, t)


@pytest.mark.parametrize("solver", ["euler", "heun", "adams"])
def test_what_is_made_in_inference_mode_serves_gradients(solver):
    model, x = Timed(sg.VPSDE()), torch.linspace(-1, 1, 8).reshape(4, 2)
    with torch.inference_mode():
        before = sg.log_prob(model, x, solver=solver, steps=12).nats
    x.requires_grad_()
    found = sg.log_prob(model, x, solver=solver, steps=12, grad=True).nats
    found.sum().backward()
    assert torch.equal(found, before) and torch.isfinite(x.grad).all() and bool((x.grad != 0).any())


def test_what_a_solution_tells_is_the_users_own():
    model = network(sg.VPSDE())
    first = sg.sample(model, 5, seed=1, steps=6, save="all")
    ts, x = first.ts.clone(), first.x.clone()
    first.ts.zero_(), first.xs.zero_(), first.x.zero_()
    again = sg.sample(model, 5, seed=1, steps=6, save="all")
    assert torch.equal(again.ts, ts) and torch.equal(again.x, x)
    grid = sg.grid(model, 6, kind="lambda")
    kept = grid.clone()
    grid.zero_()
    assert torch.equal(sg.grid(model, 6, kind="lambda"), kept)


def test_processes_forget_when_they_are_copied():
    model = network(Asked())
    ends(model, REQUESTS["few steps"])
    other = copy.deepcopy(model)
    assert other.sde is not model.sde
    ends(other, REQUESTS["few steps"])
    assert len(other.sde.asked) > len(model.sde.asked)


@pytest.mark.parametrize("kind", ["best_of", "even_of"])
def test_coordinates_are_made_once_for_what_a_model_knows(kind):
    """They go with the model; a copy and a file of it make their own."""
    model, made = network(sg.VPSDE()), getattr(Coordinates, kind)
    view = made(model)
    assert made(model) is view
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made(other) is not view and made(other).model.model is other
    model.data_mean = torch.tensor([2.0, -1.0])
    assert made(model) is not view and torch.equal(made(model).centre, model.data_mean)
    gone = weakref.ref(model)
    del model, view
    gc.collect()
    assert gone() is None
