"""Conditions at any depth: rows are checked, and what would silently be the same for all samples is refused."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

import sdegen as sg

Pair = namedtuple("Pair", "first second")
INSIDE = {
    "itself": (lambda v: v, "'extra'"),
    "in a dict": (lambda v: {"a": v}, r"'extra'\['a'\]"),
    "in a tuple": (lambda v: (1, v), r"'extra'\[1\]"),
    "in a named tuple": (lambda v: Pair(1, v), r"'extra'\[1\]"),
    "deep": (lambda v: {"a": ({"b": v},)}, r"'extra'\['a'\]\[0\]\['b'\]"),
}
PER_SAMPLE = {
    "list": [1.0, 2.0, 3.0, 4.0],
    "list of tensors": [torch.ones(2)] * 4,
    "list of words": ["a", "b", "c", "d"],
    "range": range(4),
    "set": {1, 2, 3, 4},
    "generator": iter([1, 2, 3, 4]),
    "array": np.ones(4),
}


class Net(nn.Module):
    event_shape = (2,)
    calls = 0

    def forward(self, x, t, extra=None):
        self.calls += 1
        return x


def model() -> sg.Denoiser:
    return sg.Denoiser(Net(), sg.VPSDE())


VERBS = {
    "sample": lambda m, v: sg.sample(m, 4, steps=2, seed=0, extra=v),
    "encode": lambda m, v: sg.encode(m, torch.ones(4, 2), steps=2, extra=v),
    "log_prob": lambda m, v: sg.log_prob(m, torch.ones(4, 2), steps=2, extra=v),
    "dsm_loss": lambda m, v: sg.dsm_loss(m, torch.ones(4, 2), seed=0, extra=v),
}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("kind", PER_SAMPLE)
def test_what_is_of_many_samples_and_no_tensor_is_refused(kind, inside):
    put, words = INSIDE[inside]
    m = model()
    with pytest.raises(sg.InvalidInputError, match=f"condition {words} is a .*: pass a tensor with a row"):
        VERBS["sample"](m, put(PER_SAMPLE[kind]))
    assert m.net.calls == 0


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("verb", VERBS)
def test_rows_are_checked_at_any_depth_by_every_verb(verb, inside):
    put, words = INSIDE[inside]
    m = model()
    with pytest.raises(sg.InvalidInputError, match=rf"condition {words} has shape \(3,\) for 4 samples"):
        VERBS[verb](m, put(torch.ones(3)))
    with pytest.raises(sg.InvalidInputError, match=f"condition {words} is a list"):
        VERBS[verb](m, put([1, 2, 3, 4]))
    assert m.net.calls == 0


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("value", [1, 2.5, "word", None, True, np.float32(2), np.array(2.0), (1, 2), torch.ones(4, 3)])
def test_values_that_all_share_and_rows_go_to_the_network(value, inside):
    m = model()
    assert VERBS["sample"](m, INSIDE[inside][0](value)).x.shape == (4, 2)
    assert m.net.calls == 2
