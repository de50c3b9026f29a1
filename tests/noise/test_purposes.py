"""What draws are for: every draw has its purpose from one list, and no two purposes share an address."""

import pytest
import torch
from cases import points, small

import sdegen as sg
from sdegen.noise import BrownianTree, Purpose, white
from sdegen.training.losses import sliced_loss

PLANE = sg.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], std=0.3)


def test_no_two_purposes_share_the_shape_of_an_address():
    shapes = [(int(purpose), purpose.length) for purpose in Purpose.__members__.values()]
    assert len(set(shapes)) == len(shapes)
    assert len(list(Purpose)) == len(Purpose.__members__)  # none is another name of another


def test_numbers_are_what_they_were():
    """A seed means the same samples for ever."""
    known = {"PRIOR": 1, "STEP": 2, "CORRECTOR": 3, "PROBE": 4, "LOSS_PROBE": 4, "DEQUANTISE": 5, "COMPONENT": 11}
    known |= {"COMPONENT_NOISE": 12, "LOSS_TIME": 21, "LOSS_NOISE": 22, "TREE_ENDS": 21, "TREE_HALVES": 22, "AREA": 23}
    known |= {"PATH_AHEAD": 24, "PATH_PIECE": 25, "NODE": 31, "CHAIN": 32, "CHAIN_LOSS": 32, "MEASURED_NOISE": 51}
    assert {name: int(Purpose[name]) for name in known} == known
    assert repr((Purpose.PRIOR, 0.5)) == "(1, 0.5)"


def calls():
    model, x = sg.MixtureModel(PLANE, sg.VPSDE()), points(4)
    ddpm = sg.MixtureModel(PLANE, sg.TabulatedVPSDE(sg.discrete.betas("linear", 50)))
    yield lambda: PLANE.sample(5, seed=0)
    yield lambda: sg.dsm_loss(small(), x, seed=0)
    yield lambda: sliced_loss(small(), x, seed=0)
    for how in ({"solver": "langevin", "steps": 20}, {"solver": "sra1", "steps": 20}, {"eta": 1.0, "rtol": 0.1}):
        yield lambda how=how: sg.sample(model, 4, seed=0, **how)
    yield lambda: sg.sample(model, 4, solver="predictor-corrector", steps=10, seed=0)
    yield lambda: sg.log_prob(model, x, steps=4, divergence="rademacher", probes=2, seed=0)
    yield lambda: sg.bits_per_dim(model, (x * 20).round().clamp(-1, 1), levels=3, steps=4, seed=0)
    yield lambda: sg.discrete.ddpm(ddpm, (3, 2), seed=0)
    yield lambda: sg.discrete.vlb(ddpm, x, levels=None, seed=0)
    yield lambda: sg.discrete.vlb_term(ddpm, x, t=3, levels=None, seed=0)
    yield lambda: BrownianTree(0, 1.0, 0.1).increment(torch.tensor(0.7), torch.tensor(0.4), x)


@pytest.mark.filterwarnings("ignore")
def test_every_draw_is_addressed_as_its_purpose_says(monkeypatch):
    seen, word = [], white._word
    monkeypatch.setattr(white, "_word", lambda address: seen.append(tuple(address)) or word(address))
    for call in calls():
        call()
    used = {purpose.name for purpose, *_ in seen}
    assert used >= {"PRIOR", "STEP", "CORRECTOR", "PROBE", "LOSS_PROBE", "LOSS_TIME", "LOSS_NOISE"} | {
        "AREA",
        "DEQUANTISE",
        "CHAIN",
        "CHAIN_LOSS",
        "COMPONENT",
        "COMPONENT_NOISE",
        "TREE_ENDS",
        "TREE_HALVES",
    }
    for purpose, *rest in seen:
        assert isinstance(purpose, Purpose) and len(rest) == purpose.length, (purpose, rest)
