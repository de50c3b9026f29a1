"""A name from another library leads to the solver that is meant, never to one that only looks alike."""

import pytest

import sdegen as sg
from sdegen.solvers.elsewhere import _MEANT, _SAME, meant

NAMES = {
    "rk45": "dopri5",
    "RK45": "dopri5",
    "ode45": "dopri5",
    "ddpm": "ancestral",
    "DDPMScheduler": "ancestral",
    "DPM++ 2M": "dpm++2m",
    "DPM++ 2M SDE": "dpm++2m-sde",
    "dpmpp_2m": "dpm++2m",
    "sample_dpmpp_2m": "dpm++2m",
    "sample_dpmpp_2m_sde": "dpm++2m-sde",
    "sample_euler_ancestral": "ancestral",
    "euler_a": "ancestral",
    "EulerDiscreteScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "ancestral",
    "DPMSolverMultistepScheduler": "dpm++2m",
    "UniPCMultistepScheduler": "unipc2",
    "DEISMultistepScheduler": "deis3",
    "PNDMScheduler": "ipndm4",
    "LMSDiscreteScheduler": "lms4",
    "HeunDiscreteScheduler": "heun",
    "DDIMScheduler": "ddim",
    "SASolverScheduler": "sa-solver3",
    "pc": "predictor-corrector",
    "dopri": "dopri5",
    "dmp++2m": "dpm++2m",
    "Adams": "adams",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_message_names_the_solver_that_is_meant(name):
    with pytest.raises(sg.InvalidInputError, match="did you mean '([^']*)'") as told:
        sg.make_solver(name)
    assert f"did you mean {NAMES[name]!r}" in str(told.value)


def test_what_means_nothing_gets_no_advice():
    with pytest.raises(sg.InvalidInputError, match=r"got solver='quicksort', expected one of"):
        sg.make_solver("quicksort")


def test_the_table_names_solvers_that_exist_and_each_name_once():
    known = {row.name for row in sg.solvers()}
    assert set(_SAME) <= known
    assert len(_MEANT) >= sum(map(len, _SAME.values()))  # no name stands for two solvers
    assert all(meant(own, known) == own for own in known if own in _SAME)


def test_diffusers_schedulers_are_known():
    """Every scheduler of diffusers whose method is here leads to it."""
    diffusers = pytest.importorskip("diffusers")
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    advised = [name for name in names if meant(name, [row.name for row in sg.solvers()])]
    assert {name for name in NAMES if name.endswith("Scheduler")} <= set(advised) and len(names) > 20
