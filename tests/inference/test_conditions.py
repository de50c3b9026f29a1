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
SEEN = sg.Observation.mask([True], std=0.1)
Y = torch.zeros(3, 1)
MADE_OF_ONE = {
    "wrapped": lambda model, **cond: sg.sample(sg.Wrapped(model), 3, steps=2, **cond),
    "on": lambda model, **cond: sg.sample(model.on(sg.EDMSDE()), 3, steps=2, **cond),
    "guided": lambda model, cond: sg.sample(sg.Guided(model, 2.0, null=dict.fromkeys(cond, 0.0)), 3, steps=2, cond=cond),
    "tilted": lambda model, **cond: sg.sample(sg.Tilted(model, lambda x, /, **cond: x[:, 0]), 3, steps=2, **cond),
    "tilted at xt": lambda model, **cond: sg.sample(sg.Tilted(model, lambda x, t, /, **cond: x[:, 0], at="xt"), 3, steps=2, **cond),
    "posterior": lambda model, cond: sg.sample(sg.Posterior(model, SEEN), 3, steps=2, cond={**cond, "y": Y}),
    "edit": lambda model, **cond: sg.edit(model, X, 0.5, steps=2, **cond),
    "translate": lambda model, cond: sg.translate(model, model, X, steps=2, cond_a=cond, cond_b=cond),
    **{
        method: lambda model, method=method, **cond: sg.sample_posterior(model, SEEN, 3, y=Y, method=method, steps=3, particles=2, rtol=0.1, **cond)
        for method in ("twisted", "weighted", "gibbs", "repaint")
    },
}  # fmt: skip
MODELS = [c for c in (getattr(sg, name) for name in dir(sg)) if inspect.isclass(c) and issubclass(c, sg.ScoreModel)]
OTHERS = sorted(
    {"x0", "noise", "weight", "loss", "data", "name", "self_alone", "log_potential", "observation", "null", "fn"}
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_condition_of_any_name_reaches_the_network(verb, name):
    model, value = listening(), {"inner": torch.arange(3.0)}
    VERBS[verb](model, cond={name: value})
    assert model.net.heard
    for heard in model.net.heard:
        assert torch.equal(heard.pop(name)["inner"], value["inner"]) and not heard


@pytest.mark.parametrize("way", MADE_OF_ONE)
def test_a_condition_of_any_name_reaches_the_network_through_models_made_of_it(way):
    for name in OTHERS if way == "weighted" else sorted({*NAMES, *OTHERS}):
        model, value = listening(), torch.arange(3.0) + 1
        MADE_OF_ONE[way](model, cond={name: value})
        heard = [heard for heard in model.net.heard if heard.pop(name).any()]
        assert model.net.heard and len(heard) * 3 >= len(model.net.heard) and not any(map(len, model.net.heard)), name


@pytest.mark.parametrize("cls", MODELS)  # fmt: skip
def test_no_method_of_a_model_takes_a_condition_for_an_argument(cls):
    """But for x and t, whose names are refused."""
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        parameters = inspect.signature(method).parameters.values()
        if name[0] != "_" and any(p.kind is p.VAR_KEYWORD and p.name == "cond" for p in parameters):
            assert {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} <= {"self", "x", "t"}, name


def test_names_that_a_model_made_of_another_has_taken_are_refused():
    class WithY(nn.Module):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            raise AssertionError("called")

    model = sg.Denoiser(WithY(), sg.VPSDE(), data_std=1.0)
    with pytest.raises(sg.InvalidInputError, match="with a condition y of its own"):
        sg.sample(sg.Posterior(model, SEEN), (3, 1), steps=2, y=Y)
    with pytest.raises(sg.InvalidInputError, match="condition y beside y="):
        sg.sample_posterior(listening(), SEEN, 3, y=Y, cond={"y": Y})
    tilted = sg.Tilted(listening(), lambda x0, **cond: x0[:, 0])
    with pytest.raises(sg.InvalidInputError, match="'x0' has the name of an argument of log_potential"):
        sg.sample(tilted, 3, steps=2, cond={"x0": Y})
    with pytest.raises(sg.InvalidInputError, match="no batch axis"):
        sg.sample(sg.Guided(listening(), 2.0, null={"label": torch.zeros(3)}), 3, steps=2, label=torch.zeros(3))
    for model in (tilted.model, sg.Posterior(listening(), SEEN).model):
        assert not model.net.heard


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
