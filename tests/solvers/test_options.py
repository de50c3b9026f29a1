"""Options of solvers: numbers of any library are numbers, and all else is refused with its name before any work."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest
import torch

import sdegen as sg
from sdegen.solvers import _TABLE

ODD = [
    None, True, 0, -1, 2.5, math.inf, math.nan, "x", "", (3,), (1, 2, 3), (2.5, 3), (3, "a"), [], {}, torch.ones(2),
    -torch.eye(2), np.float64(0.3), np.int64(2), object(), lambda l: l, (0, 0), (None, None), 10**30, 10**400,
]  # fmt: skip
OPTIONS = [
    (name, option)
    for name, build in _TABLE.items()
    if ":" not in name
    for option in inspect.signature(getattr(build, "builds", build)).parameters
    if option not in ("name", "source")
]
MIXTURE = sg.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], std=0.3)
FAMILIES = ("ddim", "adams", "d-adams2-sde", "karras-sde", "langevin", "predictor-corrector")  # one for each class

SIZES = (("langevin", "epsilon"), ("predictor-corrector", "snr"), ("karras-sde", "s_noise"))  # any size is a choice


class Counting(sg.MixtureModel):
    calls = 0

    def forward(self, x, t):
        self.calls += 1
        return super().forward(x, t)


@pytest.mark.parametrize(("name", "option"), [pair for pair in OPTIONS if pair[0] in FAMILIES])
def test_an_option_works_or_is_refused_before_the_first_evaluation(name, option):
    for value in ODD:
        model = Counting(MIXTURE, sg.VPSDE())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                solver = sg.make_solver(name, **{option: value})
                assert repr(solver)
                sg.sample(model, 2, solver=solver, steps=4, seed=0)
            except sg.InvalidInputError:
                assert model.calls == 0, value
            except sg.NonFiniteError:
                assert (name, option) in SIZES, value


def test_numbers_of_numpy_are_numbers():
    for name, options in (
        ("ddim", {"sigma_data": np.float32(0.5)}),
        ("dpm++2m", {"order": np.int64(3)}),
        ("adams", {"order": (np.int32(2), np.int64(3)), "max_order": np.int8(5), "aim": np.float64(0.4)}),
        ("langevin", {"corrections": np.int64(2), "epsilon": np.float32(1e-6)}),
        ("karras-sde", {"churn": np.float32(3.0)}),
    ):
        plain = {k: v.item() if hasattr(v, "item") else tuple(map(int, v)) for k, v in options.items()}
        came, wanted = (
            sg.sample(sg.MixtureModel(MIXTURE, sg.VPSDE()), 2, solver=sg.make_solver(name, **o), steps=12, seed=0).x
            for o in (options, plain)
        )
        assert torch.equal(came, wanted)


def test_a_number_of_corrections_without_end_is_refused():
    for name in ("langevin", "predictor-corrector"):
        with pytest.raises(sg.InvalidInputError, match="corrections=1000000.*from . to 10000"):
            sg.make_solver(name, corrections=10**6)
