"""Arguments that are very long, or nested very deep: refused at once, in little memory, with a short message."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch

import sdegen as sg

X = torch.zeros(4, 2)
LONG = "q" * 10**7


def nested(levels: int = 10**5) -> list:
    value: list = [1]
    for _ in range(levels):
        value = [value]
    return value


def nested_dicts(levels: int = 10**5) -> dict:
    value: dict = {"a": X}
    for _ in range(levels):
        value = {"a": value}
    return value


def model() -> sg.Denoiser:
    return sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), data_std=1.0)


def told_about(about: Any) -> sg.Denoiser:
    made = model()
    made.about = about
    return made


DOORS = {
    "parametrization": lambda path: sg.Denoiser(lambda x, t: x, sg.VPSDE(), parametrization=LONG),
    "solver": lambda path: sg.sample(model(), 2, solver=LONG, steps=2),
    "kind": lambda path: sg.grid(model(), 4, kind=LONG),
    "name of a condition": lambda path: sg.sample(model(), 2, steps=2, cond={LONG: X}),
    "names in a condition": lambda path: sg.sample(model(), 2, steps=2, cond={"tokens": {LONG: X}}),
    "load": lambda path: sg.load(LONG),
    "save": lambda path: sg.save(model(), LONG),
    "out": lambda path: sg.fit(model(), X, steps=1, out=LONG),
    "deep steps": lambda path: sg.sample(model(), 2, steps=nested()),
    "deep times to save": lambda path: sg.sample(model(), 2, steps=2, save=nested()),
    "deep shape": lambda path: sg.sample(model(), nested()),
    "deep mean": lambda path: sg.Denoiser(lambda x, t: x, sg.VPSDE(), data_mean=nested()),
    "deep condition": lambda path: sg.sample(model(), 2, steps=2, cond={"tokens": nested_dicts()}),
    "deep about": lambda path: sg.save(told_about({"a": nested()}), path / "model"),
    "many numbers": lambda path: sg.sample(model(), 2, steps=2, index=range(10**10)),
    "many times to save": lambda path: sg.sample(model(), 2, steps=2, save=range(10**10)),
    "many steps": lambda path: sg.sample(model(), 2, steps=10**12),
    "many samples": lambda path: sg.sample(model(), 10**14, steps=2),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_much_too_large_is_refused_in_little_memory(tmp_path, door):
    tracemalloc.start()
    try:
        with pytest.raises(sg.SdegenError) as error:
            DOORS[door](tmp_path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 10 * len(LONG)
    assert len(str(error.value)) < 2000
