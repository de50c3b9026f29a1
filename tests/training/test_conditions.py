"""Conditions in training: they follow their samples however they are nested, and none is taken for an option."""

from __future__ import annotations

import functools
import inspect
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sdegen import VPSDE, Denoiser, InvalidInputError
from sdegen import fit as real_fit
from sdegen.core.conditions import mapped, tensors_of
from sdegen.discrete.objectives import ddpm_loss
from sdegen.processes import TabulatedVPSDE
from sdegen.training.losses import dsm_loss, implicit_loss, sliced_loss

fit = functools.partial(real_fit, progress=False, device="cpu", seed=0, statistics="keep")

LOSSES = [dsm_loss, implicit_loss, sliced_loss, ddpm_loss]
NAMES = sorted({name for f in (real_fit, *LOSSES) for name in inspect.signature(f).parameters} - {"cond", "t"})
N = 12
Pair = namedtuple("Pair", "first second")


class Listening(nn.Module):
    """A network of any condition that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.heard = nn.Linear(1, 1), []

    def forward(self, x: Tensor, time: Tensor, **cond) -> Tensor:
        self.heard.append((x, cond))
        return self.linear(x)


def listening() -> Denoiser:
    table = TabulatedVPSDE(torch.linspace(1e-4, 0.02, 10, dtype=torch.float64))
    return Denoiser(Listening(), table, parametrization="noise", data_std=1.0)


def numbered() -> Tensor:
    return torch.arange(N).float()[:, None]


class WithNumber(Dataset):
    """Sample i is i, and so is every tensor in its condition."""

    def __init__(self, name: str, made_of=lambda i: i) -> None:
        self.name, self.made_of = name, made_of

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int):
        return numbered()[i], {self.name: self.made_of(torch.tensor(i))}


# ---- names


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NAMES)
def test_a_condition_of_any_name_reaches_the_network(loss, name):
    model, value = listening(), torch.arange(N)
    loss(model, numbered(), seed=0, cond={name: value})
    assert all(torch.equal(heard.pop(name), value) and not heard for _, heard in model.net.heard)
    assert model.net.heard


@pytest.mark.parametrize("loss", LOSSES)
def test_names_in_cond_are_names(loss):
    x0, value = numbered(), torch.arange(N)
    by_name, apart = listening(), listening()
    apart.load_state_dict(by_name.state_dict())
    assert torch.equal(loss(by_name, x0, seed=0, label=value), loss(apart, x0, seed=0, cond={"label": value}))
    for model in (by_name, apart):
        assert all(set(heard) == {"label"} for _, heard in model.net.heard)
    loss(by_name, x0, seed=0, cond=value)  # of the network's own, which is called so
    assert torch.equal(by_name.net.heard[-1][1]["cond"], value)


@pytest.mark.parametrize(
    "loss", [*LOSSES, functools.partial(dsm_loss, weight="one"), lambda m, x, **c: dsm_loss(m, x, **c)]
)
@pytest.mark.parametrize("name", [*NAMES, "cond"])
def test_conditions_of_the_data_are_never_options(loss, name):
    for data, words in ((WithNumber(name), {}), (numbered(), {"cond": {name: torch.arange(N)}})):
        model = listening()
        seen = []

        def spy(model, x0, seen=seen, **words):
            seen.append(x0)
            return loss(model, x0, **words)

        model.register_forward_pre_hook(lambda _, args, words, seen=seen: seen.append(words), with_kwargs=True)
        fit(model, data, steps=2, batch_size=5, loss=functools.wraps(loss)(spy), **words)
        x0, heard = seen[:2]
        assert torch.equal(heard.pop(name), x0[:, 0].long()) and not heard


def test_a_loss_may_ask_for_a_condition_by_name():
    def weighted(model, x0, weight, **cond):
        assert torch.equal(weight, x0[:, 0].long())
        return weight * dsm_loss(model, x0, **cond)

    fit(listening(), numbered(), steps=2, batch_size=5, loss=weighted, weight=torch.arange(N))
    fit(listening(), WithNumber("weight"), steps=2, batch_size=5, loss=weighted)


CLEAR = [
    ({"cond": {"label": torch.arange(N)}, "label": 1}, "given twice"),
    ({"cond": {3: 1}}, "a dict with names for keys"),
    ({"weight": "edm"}, "option of the loss"),
    ({"noise": torch.zeros(N, 1)}, "option of the loss"),
    ({"t": 0.5}, "option of the loss"),
    ({"cond": {"t": torch.zeros(N)}}, "argument that every model has"),
    ({"step": 3}, "steps= is one"),
    ({"learning_rate": 5}, "lr= is one"),
    ({"epochs": 7}, "steps= is one"),
    ({"batchsize": 4}, "batch_size= is one"),
    ({"Seed": 4}, "seed= is one"),
    ({"label": [1] * N}, "pass a tensor with a row"),
    ({"label": {"text": torch.zeros(5)}}, r"'label'\['text'\] has shape \(5,\)"),
    ({"label": 1, "loss": lambda model, x0: dsm_loss(model, x0)}, "unknown to the loss"),
]


@pytest.mark.parametrize(("words", "says"), CLEAR, ids=[says for _, says in CLEAR])
def test_what_may_be_meant_otherwise_is_refused(words, says):
    model = listening()
    with pytest.raises(InvalidInputError, match=says):
        fit(model, numbered(), **{"steps": 2, **words})
    assert not model.net.heard


def test_near_misses_that_the_network_knows_are_conditions():
    class Knows(nn.Linear):
        def forward(self, x, t, step, weight):
            return super().forward(x)

    fit(Denoiser(Knows(1, 1), VPSDE()), numbered(), steps=1, step=3, weight=torch.arange(N))


# ---- rows

NESTED = {
    "dict": lambda v: {"a": v, "b": {"c": v + 100, "scale": 3.0}},
    "tuple": lambda v: (v, (v + 100, v + 200)),
    "named tuple": lambda v: Pair(v, {"a": v + 100}),
    "dict of a tuple": lambda v: {"a": (v, v + 100)},
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("source", ["tensor", "dataset", "loader"])
def test_nested_conditions_follow_their_samples(kind, accumulate, source):
    nested = NESTED[kind]
    seen = []

    def loss(model, x0, **cond):
        seen.append((x0, cond["label"]))
        return dsm_loss(model, x0, **cond)

    words = {"tensor": {"label": nested(torch.arange(N))}}.get(source, {})
    data = {"tensor": numbered(), "dataset": WithNumber("label", nested)}.get(source)
    data = DataLoader(WithNumber("label", nested), batch_size=4) if data is None else data
    fit(listening(), data, steps=3, batch_size=5, accumulate=accumulate, loss=loss, **words)
    assert len(seen) == 3 * accumulate or source == "loader"
    for x0, label in seen:
        found = list(tensors_of(label, "label"))
        assert all(torch.equal(v.long() % 100, x0[:, 0].long()) for _, v in found if v.dtype == torch.int64)
        assert len(found) >= 2 and type(label) is type(nested(0))


def test_tensors_in_a_condition_are_changed_and_nothing_else():
    value = {"a": torch.ones(2), "b": ("text", 3, Pair(torch.ones(1), None))}
    changed = mapped(value, lambda v: v + 1)
    assert torch.equal(changed["a"], torch.full((2,), 2.0)) and changed["b"][:2] == ("text", 3)
    assert isinstance(changed["b"][2], Pair) and float(changed["b"][2].first) == 2.0


def test_nested_tensors_without_rows_are_refused_where_data_are_iterated():
    with pytest.raises(InvalidInputError, match=r"'label'\['a'\] is a tensor"):
        fit(listening(), DataLoader(numbered()), steps=1, label={"a": torch.arange(N)})
