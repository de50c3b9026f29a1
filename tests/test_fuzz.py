"""Every argument of every public door is given wrong and odd values: it works, or it is refused before any work.

`doors.py` finds the doors from the signatures of `sdegen.__all__`, `odd.py` has the values and the law. A new public
name is under the law the day it is listed; where an argument has a name that `doors.py` has no value for, it says so.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from doors import LEFT_OUT, Door, Net, doors, saved_model
from odd import EXCUSED, ODD, fault

import sdegen as sg

SEED = 20
DOORS = [door for door in doors() if door.name not in LEFT_OUT]
PARTS = 6  # tests, so that several processes share them
SLOW = (
    "plot.",
    "from_diffusers",
    "from_pipeline",
    "data.images.digits",
    "LogProb.",
)  # a call takes a tenth of a second or more


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a saved model, in which nothing that is written does harm."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    sg.save(saved_model(), "saved")
    with torch.random.fork_rng():
        yield
    plt.close("all")


def part(number: int) -> list[Door]:
    return [door for door in DOORS if zlib.crc32(door.name.encode()) % PARTS == number]


def faults(door: Door, draws: list[tuple[tuple[str, str], ...]]) -> list[str]:
    """The draws, each (argument, odd value) or several of these, that break the law."""
    found = []
    for drawn in draws:
        wrong = fault(door, {argument: ODD[value]() for argument, value in drawn})
        if wrong and not any((door.name, *one) in EXCUSED for one in drawn):
            found.append(f"{door.name}({', '.join(f'{a}={v}' for a, v in drawn)}): {wrong}")
    plt.close("all")
    return found


def singly(door: Door, each: int) -> list[tuple[tuple[str, str], ...]]:
    """So many odd values for each argument."""
    rng = random.Random(f"{SEED} {door.name}")
    return [((argument, value),) for argument in door.open for value in rng.sample(list(ODD), each)]


@pytest.mark.parametrize("number", range(PARTS))
def test_a_wrong_argument_is_refused_before_the_first_network_call(number: int) -> None:
    found = []
    for door in part(number):
        found += faults(door, singly(door, 1 if door.name.startswith(SLOW) else 8))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("number", range(PARTS))
def test_and_so_are_two(number: int) -> None:
    found = []
    for door in part(number):
        if len(door.open) < 2 or door.name.startswith(SLOW):
            continue
        rng = random.Random(f"{SEED} two {door.name}")
        pairs = [rng.sample(door.open, 2) for _ in range(4)]
        found += faults(door, [tuple((argument, rng.choice(list(ODD))) for argument in pair) for pair in pairs])
    assert not found, "\n".join(found)


FOUND = [  # by the slow test below: always asked
    ("data.Conditioned", "data", "np objects"),
    ("data.Images.only", "numbers", "tensor bool"),
    ("data.load_images", "labels", "tensor that asks"),
    ("plot.image_grid", "columns", "tensor meta"),
    ("Gaussian.of_data", "x0", "tensor()"),
    ("slerp", "w", "10**400"),
    ("Posterior.forward", "x", "tensor (3,)"),
    ("nets.MLP.forward", "x", "tensor meta"),
    ("compare", "steps", "(2**40, 2**40)"),
    ("compare", "reference", "tensor (0, 2)"),
    ("data.mask", "shape", "(2**40, 2**40)"),
    ("LatentSpace", "mean", "tensor meta"),
    ("LatentSpace", "std", "tensor sparse"),
    ("LatentSpace", "std", "10**400"),
    ("LatentSpace.latents", "images", "tensor sparse"),
    ("LatentSpace.latents", "cache", "long"),
    ("autoencoder_loss", "features", "layer"),
]


def test_what_was_found_once_stays_mended() -> None:
    named = {door.name: door for door in DOORS}
    found = [line for name, argument, value in FOUND for line in faults(named[name], [((argument, value),)])]
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PARTS))
def test_many_wrong_arguments(number: int) -> None:
    found = []
    for door in part(number):
        found += faults(door, singly(door, 6 if door.name.startswith(SLOW) else len(ODD)))
    assert not found, "\n".join(found)


# ---- numbers of numpy


def as_numpy(value: Any) -> Any:
    """The same number as numpy has it, None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return np.int64(value) if isinstance(value, int) else np.float64(value)


def test_numbers_of_numpy_are_numbers() -> None:
    found, asked = [], 0
    for door in DOORS:
        if door.name.startswith(("from_diffusers", "from_pipeline")):
            continue
        for argument in door.open:
            value = as_numpy(door.base[argument]() if argument in door.base else door.defaults.get(argument))
            if value is None:
                continue
            asked += 1
            if wrong := refused(door, {argument: value}):
                found.append(f"{door.name}({argument}={value!r}): {wrong}")
        plt.close("all")
    assert not found, "\n".join(found)
    assert asked > 300


def refused(door: Door, changed: dict[str, Any]) -> str:
    try:
        door({**door.arguments(), **changed})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ---- the doors themselves


def test_every_door_opens() -> None:
    shut = [f"{door.name}: {wrong}" for door in DOORS if (wrong := refused(door, {}))]
    assert not shut, "\n".join(shut)


def test_a_word_that_a_door_does_not_take_is_refused() -> None:
    taken = []
    for door in DOORS:
        arguments = {**door.arguments(), "no_such_word": 3}
        Net.calls = 0
        try:
            door(arguments)
        except (TypeError, sg.InvalidInputError):
            if Net.calls and not door.free:
                taken.append(f"{door.name} after {Net.calls} calls of the network")
        else:
            taken.append(door.name)
    allowed = {door.name for door in DOORS if door.words_go_anywhere}
    assert not set(taken) - allowed


@pytest.mark.parametrize("door", [door for door in DOORS if "cond" in door.open], ids=lambda door: door.name)
@pytest.mark.parametrize("word", ["no_such_word", "x", "t", "self"])
def test_a_condition_that_cannot_be_given_is_named_before_the_first_call(door: Door, word: str) -> None:
    rows = len(value) if isinstance(value := door.arguments().get("x", door.arguments().get("x0")), torch.Tensor) else 3
    arguments = {**door.arguments(), "cond": {word: torch.zeros(rows)}}
    Net.calls = 0
    with pytest.raises(sg.InvalidInputError, match=word):
        door(arguments)
    assert Net.calls == 0


@pytest.mark.parametrize("t", [float("nan"), float("inf"), -0.5, 1e9, [0.1, float("nan"), 0.2], [0.1, -0.2, 0.3]])
@pytest.mark.parametrize(
    "made", [door for door in DOORS if door.name.endswith(".forward") and "nets." not in door.name]
)
def test_models_refuse_times_that_no_process_has(made: Door, t: Any) -> None:
    if "t" not in made.open:
        pytest.skip("takes no time")
    Net.calls = 0
    with pytest.raises(sg.InvalidInputError, match="t = |finite times|time"):
        made({**made.arguments(), "t": torch.tensor(t) if isinstance(t, list) else t})
    assert Net.calls == 0


@pytest.mark.parametrize("made", [door for door in DOORS if door.name.endswith(".forward")])
def test_networks_and_models_refuse_complex_states(made: Door) -> None:
    Net.calls = 0
    with pytest.raises(sg.InvalidInputError, match="complex|floating|two numbers"):
        made({**made.arguments(), "x": made.arguments()["x"].to(torch.complex64)})
    assert Net.calls == 0


def test_a_bare_error_is_seen() -> None:
    """The law itself: functions that break it are found out."""

    def late(x: Any) -> None:
        Net.calls += 1
        raise sg.InvalidInputError("too late")

    def bare(x: Any) -> None:
        raise KeyError("x")

    def silent(x: Any) -> None:
        raise sg.InvalidInputError("")

    broken: list[Callable[..., Any]] = [late, bare, silent]
    for function in broken:
        door = Door(function.__name__, function, {"x": lambda: 1}, ("x",), False, {})
        assert fault(door, {"x": 2})
    assert not fault(Door("whole", lambda x: x, {"x": lambda: 1}, ("x",), False, {}), {"x": 2})
