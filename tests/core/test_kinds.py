"""Kinds of arguments, as annotations say them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdegen as sg
from sdegen.core.kinds import checked, kind_of, take

TENSOR = torch.tensor(0.5)

# (annotation, what it takes, as what it arrives), for each kind.
TAKEN = [
    (int, 3, 3),
    (int, np.int64(3), 3),
    (int, torch.tensor(3), 3),
    (float, 3, 3.0),
    (float, np.float32(0.5), 0.5),
    (float, np.array(0.5), 0.5),
    (float, TENSOR, 0.5),
    (float, Fraction(1, 2), 0.5),
    (float, math.inf, math.inf),
    (bool, np.bool_(True), True),
    (float | None, None, None),
    (float | Tensor, TENSOR, TENSOR),
    (int | Sequence[float] | Tensor, [1, np.float64(0.5)], [1.0, 0.5]),
    (Sequence[int], np.array([1, 2]), (1, 2)),
    (Sequence[int], range(2), (0, 1)),
    (tuple[float, float], [0, 1], (0.0, 1.0)),
    (str | os.PathLike, Path("a"), Path("a")),
    (torch.device | str | None, "cpu", torch.device("cpu")),
    (Callable[[Any, Any], Any], math.hypot, math.hypot),
    (Mapping[str, Any], {"a": 1}, {"a": 1}),
]
REFUSED = [
    (int, True),
    (int, 2.0),
    (int, "2"),
    (int, 2**70),
    (int, torch.tensor([1])),
    (int, torch.tensor(True)),
    (float, True),
    (float, math.nan),
    (float, 10**400),
    (float, 1j),
    (float, np.array([0.5])),
    (bool, 1),
    (bool, torch.tensor(True)),
    (str, b"a"),
    (str | os.PathLike, 3),
    (str | os.PathLike, ""),
    (str | os.PathLike, "a\0b"),
    (Tensor, [1.0]),
    (Tensor, torch.ones(2, dtype=torch.complex64)),
    (Tensor, torch.eye(2).to_sparse()),
    (Tensor, torch.ones(2, device="meta")),
    (torch.dtype, torch.int64),
    (torch.device | str | None, "wrong"),
    (torch.device | str | None, "cuda:99"),
    (torch.device | str | None, "meta"),
    (Sequence[int], "12"),
    (Sequence[int], [1, "a"]),
    (tuple[float, float], (1.0,)),
    (Callable[[Any, Any], Any], lambda a: a),
    (Callable[[Any], Any], lambda a, b: a),
    (Mapping[str, Any], {1: 2}),
    (sg.SDE, sg.VPSDE),
]


@pytest.mark.parametrize(("annotation", "given", "arrives"), TAKEN)
def test_a_value_arrives_as_the_kind_says(annotation: Any, given: Any, arrives: Any) -> None:
    found = take(given, "word", kind_of(annotation))
    assert type(found) is type(arrives) and (found is arrives or found == arrives)


@pytest.mark.parametrize(("annotation", "given"), REFUSED)
def test_another_kind_is_refused_with_its_name_and_what_was_expected(annotation: Any, given: Any) -> None:
    with pytest.raises(sg.InvalidInputError, match=r"got word=.*, expected \S+"):
        take(given, "word", kind_of(annotation))


def test_seeds_may_be_of_any_size() -> None:
    assert take(2**70, "seed", kind_of(int, "seed")) == 2**70


def test_a_function_gets_what_its_annotations_say() -> None:
    @checked
    def area(width: float, height: float = 2, *rest: Any, unit: str = "m", **more: Any) -> tuple[Any, ...]:
        return width, height, rest, unit, more

    assert area(np.int64(3)) == (3.0, 2, (), "m", {})
    assert area(1, 2, "x", unit="km", other=None) == (1.0, 2.0, ("x",), "km", {"other": None})
    for wrong in (lambda: area("3"), lambda: area(1, height="2"), lambda: area(1, unit=3)):
        with pytest.raises(sg.InvalidInputError):
            wrong()
    with pytest.raises(TypeError, match="missing"):
        area()  # type: ignore[call-arg]


def test_a_default_is_taken_whatever_its_kind() -> None:
    @checked
    def f(x: float = None) -> Any:  # type: ignore[assignment]
        return x

    assert f() is None and f(None) is None
