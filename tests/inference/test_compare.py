"""compare: errors are distances to the truth, counts are true, words follow from the numbers."""

import math

import pytest
import torch

import sdegen as sg
from sdegen.inference.compare import Comparison, Comparisons, compare

MODEL = sg.MixtureModel(sg.GaussianMixture([[1.0, 2.0], [-1.0, 0.0]], std=[0.3, 0.2]), sg.VPSDE())


@pytest.fixture(scope="module")
def table():
    return compare(
        MODEL, 40, solvers=("adams", "ddim", "ancestral", "scipy:RK45"), steps=(10, 40), tolerances=(1e-2, 1e-4), seed=3
    )


def rows(table, solver):
    return {r.setting: r for r in table if r.solver == solver}


def test_a_row_is_what_sampling_by_hand_gives(table):
    exact = sg.sample(MODEL, 40, solver="dopri5", rtol=1e-10, seed=3, dtype=torch.float64).x
    by_hand = sg.sample(MODEL, 40, solver="ddim", steps=40, seed=3, dtype=torch.float64)
    error = float((by_hand.x - exact).square().mean().sqrt()) / MODEL.sigma_data
    row = rows(table, "ddim")["40 steps"]
    assert row.error == pytest.approx(error, rel=1e-4)  # the reference's own error is some 1e-7
    assert row.nfe == 40


def test_error_falls_with_the_budget_and_with_the_tolerance(table):
    for solver in ("adams", "ddim"):
        assert rows(table, solver)["40 steps"].error < rows(table, solver)["10 steps"].error
    for solver in ("adams", "scipy:RK45"):
        assert rows(table, solver)["rtol=0.0001"].error < rows(table, solver)["rtol=0.01"].error


def test_a_grid_that_a_solver_refuses_has_no_row_and_noise_has_no_error(table):
    assert set(rows(table, "scipy:RK45")) == {"rtol=0.01", "rtol=0.0001"}
    noisy = rows(table, "ancestral")["40 steps"]
    assert math.isnan(noisy.error) and noisy.distance > 0 and table.floor > 0


def test_the_recommendation_is_the_cheapest_that_is_good_enough():
    table = Comparisons(
        [
            Comparison("a", "10 steps", 10, 5e-2, 0, 0),
            Comparison("b", "20 steps", 20, 5e-3, 0, 0),
            Comparison("c", "30 steps", 30, 1e-3, 0, 0),
        ]
    )
    assert "b with 20 steps" in table.recommendation(1e-2)
    assert "a with 10 steps" in table.recommendation(1e-1)
    assert "no setting" in table.recommendation(1e-6) and "c with 30 steps" in table.recommendation(1e-6)


def test_wrong_calls():
    with pytest.raises(sg.InvalidInputError, match="nothing to compare"):
        compare(MODEL, 4, steps=(), tolerances=())
    with pytest.raises(sg.InvalidInputError, match="got solver="):
        compare(MODEL, 4, solvers=("dopri6",))
