"""What a call and a step cost beside the network, counted: operations on tensors and functions of Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sdegen as sg

ROOM = str(Path(sg.__file__).parent)
VIEWS = {"view", "unsqueeze", "squeeze", "select", "slice", "expand", "t", "detach", "unbind", "alias", "_unsafe_view"}


class Same(torch.nn.Module):
    """A network that costs nothing."""

    def forward(self, x, t):
        return x


class Operations(TorchDispatchMode):
    """How many operations that compute something, views left out."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).split(".")[1] not in VIEWS
        return function(*args, **(kwargs or {}))


def cost(run) -> tuple[int, int, int]:
    """(network calls, operations, calls of functions of the package) of a run that has been made before."""
    run()
    functions = 0

    def note(frame, event, _):
        nonlocal functions
        functions += event == "call" and frame.f_code.co_filename.startswith(ROOM)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    with Operations() as operations:
        found = run()
    return found.calls, operations.count, functions


def model(parametrization: str = "x0") -> sg.Denoiser:
    return sg.Denoiser(Same(), sg.VPSDE(), parametrization=parametrization)


def test_a_call_costs_little_before_its_first_step():
    one = model("noise")
    _, operations, functions = cost(lambda: sg.sample(one, (16, 2), solver="ddim", steps=1, seed=0))
    assert operations <= 85 and functions <= 235


@pytest.mark.parametrize("event", [(2,), (3, 16, 16)])
def test_a_step_of_adams_by_a_tolerance_is_few_operations(event):
    """Samples that come and go included: the cost of five batches less that of one."""
    one = model()
    short, long = (
        cost(lambda n=n: sg.sample(one, (8 * n, *event), solver="adams", rtol=1e-5, seed=0, batch_size=8))
        for n in (1, 5)
    )
    steps = long[0] - short[0]
    operations, functions = ((after - before) / steps for before, after in zip(short[1:], long[1:], strict=True))
    assert steps >= 40 and operations <= 150 and functions <= 165
