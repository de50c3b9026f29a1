"""Conditions of the verbs: any name reaches the network, and what may be meant otherwise is refused."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

import sdegen as sg
from sdegen.inference.bits import bits_per_dim
from sdegen.inference.compare import compare
from sdegen.inference.grid import grid
from sdegen.solvers.stochastic.analytic import measure_noise
from sdegen.terms import ProbabilityFlow, ReverseSDE


class Listening(nn.Module):
    """A network of any condition that keeps what it was given."""

    event_shape = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.heard = nn.Linear(1, 1), []

    def forward(self, x: Tensor, time: Tensor, **cond) -> Tensor:
        self.heard.append(cond)
        return self.linear(x)


def listening() -> sg.Denoiser:
    return sg.Denoiser(Listening(), sg.VPSDE(), data_std=1.0)


X = torch.tensor([[-1.0], [0.0], [1.0]])
VERBS = {
    sg.sample: lambda model, **cond: sg.sample(model, 3, steps=2, **cond),
    sg.encode: lambda model, **cond: sg.encode(model, X, steps=2, **cond),
    sg.log_prob: lambda model, **cond: sg.log_prob(model, X, steps=2, **cond),
    bits_per_dim: lambda model, **cond: bits_per_dim(model, X, levels=3, steps=2, **cond),
    grid: lambda model, **cond: grid(model, 4, kind="pilot", samples=3, **cond),
    compare: lambda model, **cond: compare(model, 3, solvers=["euler"], steps=[2], tolerances=[], reference=X, **cond),
    measure_noise: lambda model, **cond: measure_noise(model, X, levels=2, **cond),
    ReverseSDE: lambda model, **cond: sg.solve(ReverseSDE(model, **cond), X, steps=2, solver="euler-maruyama"),
    ProbabilityFlow: lambda model, **cond: sg.solve(ProbabilityFlow(model, **cond), X, steps=2, solver="euler"),
}
NAMES = sorted({name for verb in VERBS for name in inspect.signature(verb).parameters} - {"x", "t"} | {"cond", "model"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_condition_of_any_name_reaches_the_network(verb, name):
    model, value = listening(), {"inner": torch.arange(3.0)}
    VERBS[verb](model, cond={name: value})
    assert model.net.heard
    for heard in model.net.heard:
        assert torch.equal(heard.pop(name)["inner"], value["inner"]) and not heard


@pytest.mark.parametrize(
    ("verb", "word", "option"),
    [
        (sg.sample, "step", "steps"),
        (sg.sample, "num_inference_steps", "steps"),
        (sg.sample, "batchsize", "batch_size"),
        (sg.sample, "generator", "seed"),
        (sg.encode, "method", "solver"),
        (sg.log_prob, "probe", "probes"),
        (compare, "solver", "solvers"),
        (grid, "sample", "samples"),
    ],
)
def test_near_misses_of_options_are_refused(verb, word, option):
    model = listening()
    with pytest.raises(sg.InvalidInputError, match=f"{word}= is no option of {verb.__name__}: {option}= is one"):
        VERBS[verb](model, **{word: 3})
    assert not model.net.heard
    VERBS[verb](model, cond={word: 3})  # of the network, then
    assert model.net.heard[0] == {word: 3}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb is not measure_noise])
@pytest.mark.parametrize("name", ["x", "t", "self"])
def test_what_no_model_can_be_told_is_refused(verb, name):
    model = listening()
    with pytest.raises(sg.InvalidInputError, match="argument that every model has"):
        VERBS[verb](model, cond={name: 3})
    assert not model.net.heard
