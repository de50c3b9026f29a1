"""Models made of models: what is known of the data and which conditions are taken is passed on, and nothing else changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cases import MIXTURES, SOME_SDES, points, small
from torch import nn

import sdegen as sg
from sdegen.testing import LawError, check_wrapper

F64 = torch.float64


class Same(sg.Wrapped):
    def forward(self, x, t, **cond):
        return self.model(x, t, **cond)


class Net(nn.Module):
    """A smooth function of x, time and conditions."""

    event_shape = (2,)

    def forward(self, x, t, label, strength=1.0):
        return torch.tanh(x + label[:, None] + t[:, None]) * strength


class Wave(nn.Module):
    """Nothing like the zeros of a network that is not trained."""

    event_shape = (2,)

    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x, t):
        return torch.sin(self.factor * x.flip(1) + t[:, None])


def labelled() -> sg.Denoiser:
    return sg.Denoiser(Net(), sg.VPSDE(), data_mean=[0.5, -1.0], data_std=[1.0, 2.0])


MODELS = {
    **{f"exact-{name}": sg.MixtureModel(MIXTURES["plane"], sde) for name, sde in SOME_SDES.items()},
    "network": small(),
    "empirical": sg.EmpiricalModel(points(20), sg.VPSDE()),
    "elsewhere": sg.MixtureModel(MIXTURES["plane"], sg.VPSDE()).on(sg.EDMSDE()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_through_is_the_model_inside(name):
    model = MODELS[name]
    check_wrapper(Same(model), model)
    check_wrapper(Same(Same(model)), model)


def test_solvers_fitted_to_the_model_inside_do_not_count_against_a_wrapper():
    model = copy.deepcopy(MODELS["network"])
    fitted = sg.fit_solver(model, steps=6, samples=6)
    check_wrapper(Same(model), model)
    assert model.solvers == (fitted,)


def test_so_it_is_with_conditions():
    model = labelled()
    cond = {"label": torch.tensor([0.0, 1.0, 2.0]), "strength": 0.5}
    check_wrapper(Same(Same(model)), model, **cond)
    for word in ("lable", "guidance"):
        with pytest.raises(sg.InvalidInputError, match=f"'{word}' is unknown"):
            sg.sample(Same(Same(model)), 3, steps=4, label=cond["label"], **{word: 1})


def test_the_words_of_the_wrapper_are_added():
    class Scaled(sg.Wrapped):
        def forward(self, x, t, *, scale=1.0, **cond):
            p = self.model(x, t, **cond)
            return sg.Prediction.from_x0(x, p.x0 * scale, self.sde, t)

    assert Scaled(labelled()).condition_names() == {"label", "strength", "scale"}

    class Closed(sg.Wrapped):
        def forward(self, x, t, scale=1.0):
            return self.model(x, t)

    assert Closed(small()).condition_names() == {"scale"}


def test_a_wrapper_that_forgets_is_found():
    model = MODELS["exact-vp"]

    class Forgets(sg.ScoreModel):
        def __init__(self):
            super().__init__(model.sde, data_mean=model.data_mean, data_std=model.data_std, event_shape=(2,))
            self.model = model

        def forward(self, x, t, **cond):
            return self.model(x, t, **cond)

    with pytest.raises(LawError, match="of the data is passed on, fails"):
        check_wrapper(Forgets(), model)

    class Guesses(Same):
        def __init__(self, model):
            super().__init__(model)
            self._changed_facts = {"smooth": False}

    with pytest.raises(LawError, match="to the bit, fails"):
        check_wrapper(Guesses(model), model)


def test_what_changes_is_said_and_nothing_else():
    model = MODELS["exact-vp"]
    rough = Same(model, smooth=False)
    assert model.data.smooth and not rough.data.smooth and rough.data.mean is model.data.mean
    moved = Same(model, data_mean=torch.tensor([3.0, 4.0]))
    assert moved.data_mean.tolist() == [3, 4] and moved.data.std is model.data.std
    with pytest.raises(sg.InvalidInputError, match="got 'colour', expected what can be known of data"):
        Same(model, colour=1)
    with pytest.raises(sg.InvalidInputError, match="expected a ScoreModel"):
        Same(Net())


def test_what_is_known_is_known_at_once_through_any_number_of_wrappers():
    """A fit of the model inside, and an assignment, are seen outside."""
    inner = small()
    outer = Same(Same(inner))
    assert outer.data_std is None
    sg.fit(inner, points(), steps=1, batch_size=8, seed=0)
    torch.testing.assert_close(outer.data_mean, points().double().mean(0))
    inner.data_std = 3.0
    assert outer.sigma_data == 3.0
    outer.data_std = 5.0
    assert outer.sigma_data == 5.0 and inner.sigma_data == 3.0


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy", "wrapped by DataParallel", "double wrapped"])
def test_statistics_travel(way, tmp_path):
    """What is loaded samples what was saved."""
    model = small()
    sg.fit(model, points() * 3 + 7, steps=2, batch_size=8, seed=0)
    other = small(seed=1)
    if way == "state_dict":
        other.load_state_dict(model.state_dict())
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "wrapped by DataParallel":
        nn.DataParallel(other).load_state_dict(nn.DataParallel(model).state_dict())
    else:
        Same(other).load_state_dict(Same(model).state_dict())
    other.eval()
    for name in ("data_mean", "data_std"):
        assert torch.equal(getattr(other, name), getattr(model, name))
    assert torch.equal(sg.sample(other, (5, 2), steps=6, seed=1).x, sg.sample(model, (5, 2), steps=6, seed=1).x)


def test_dicts_without_statistics_still_load():
    model, other = small(), small(seed=1)
    other.data_mean, other.data_std = 1.0, 2.0
    plain = {k: v for k, v in model.state_dict().items() if not k.startswith("known_")}
    other.load_state_dict(plain)
    assert other.sigma_data == 2.0 and float(other.data_mean) == 1.0


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_the_weights_keeps_them(use_buffers):
    """torch's own averaging, begun before and after the statistics are known."""
    model = small()
    model.data_mean, model.data_std = torch.tensor([7.0, 6.0]), 1.5
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)
    for _ in range(3):
        average.update_parameters(model)
    assert average.module.data_mean.tolist() == [7, 6] and average.module.sigma_data == 1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_what_is_known(dtype):
    model = small()
    model.data_mean, model.data_std = torch.tensor([0.1, 300.03], dtype=F64), 1.0003
    model.to(dtype)
    assert model.data_mean.dtype == F64 and float(model.data_mean[1]) == 300.03 and model.sigma_data == 1.0003


def test_facts_are_one_frozen_value():
    model = MODELS["exact-vp"]
    assert model.data is model.data
    with pytest.raises(AttributeError):
        model.data.smooth = False  # type: ignore[misc]
    for wrong in ({"std": -1.0}, {"std": 0.0}, {"mean": float("nan")}, {"std": "wide"}):
        with pytest.raises(sg.InvalidInputError, match="data_"):
            sg.DataFacts(**wrong)
    with pytest.raises(sg.InvalidInputError, match="event shape"):
        sg.DataFacts(mean=torch.zeros(3), event_shape=(2,))


def test_a_smooth_network_is_told():
    """smooth=True changes the grid and the orders that are chosen, as for exact scores, and is kept by a checkpoint."""
    rough, smooth = small(), small()
    smooth.smooth = True
    one, other = (sg.sample(m, (4, 2), steps=20, seed=0).solver for m in (rough, smooth))
    assert one != other and other == sg.sample(MODELS["exact-vp"], 4, steps=20, seed=0).solver
    assert sg.Denoiser(Net(), sg.VPSDE(), smooth=True).data.smooth


@pytest.mark.parametrize("how", [{"steps": 1}, {"steps": 5}, {"steps": 20}, {"steps": [1.0, 0.5, 0.1]}, {"rtol": 3e-2}])
@pytest.mark.parametrize("solver", ["auto", "dpm++2m", "d-adams2-sde", "dopri5"])
def test_where_roughness_was_presumed_is_told(solver, how):
    """Where a choice made for smooth=False makes another result, and nowhere else."""
    rough, smooth = (sg.Denoiser(Wave(2.0), sg.VPSDE(), data_std=1.0, smooth=s) for s in (None, True))
    if ("rtol" in how and solver == "dpm++2m") or ("rtol" not in how and solver == "dopri5"):
        return  # a solver for grids alone, or for tolerances
    one, other = (sg.sample(m, (4, 2), solver=solver, seed=0, **how) for m in (rough, smooth))
    assert ("chosen for smooth=False" in one.solver) == (not torch.equal(one.x, other.x))
    assert "smooth" not in other.solver


def widened(mean: float = 0.0, std: float = 1.0, factor: float = 2.0) -> sg.Denoiser:
    return sg.Denoiser(Wave(factor), sg.VPSDE(), data_mean=mean, data_std=std)


def averaged(model: sg.Denoiser) -> None:
    """An average of weights, as other libraries write it: parameters and buffers, in place."""
    average = torch.optim.swa_utils.AveragedModel(widened(1.0, 4.0), use_buffers=True)
    average.module = model
    average.update_parameters(widened(1.0, 4.0))


AFTERWARDS = {
    "assigned std": lambda m: setattr(m, "data_std", 4.0),
    "assigned mean": lambda m: setattr(m, "data_mean", torch.tensor([5.0, 6.0])),
    "assigned parametrization": lambda m: setattr(m, "parametrization", "v"),
    "assigned process": lambda m: setattr(m, "sde", sg.CosineSDE()),
    "assigned network": lambda m: setattr(m, "net", Wave(3.0)),
    "loaded": lambda m: m.load_state_dict(widened(1.0, 4.0, 3.0).state_dict()),
    "loaded by assignment": lambda m: m.load_state_dict(widened(1.0, 4.0, 3.0).state_dict(), assign=True),
    "loaded through a wrapper": lambda m: Same(m).load_state_dict(Same(widened(1.0, 4.0, 3.0)).state_dict()),
    "written in place": lambda m: m.data_std.fill_(4.0),
    "averaged": averaged,
    "fitted": lambda m: sg.fit(m, points() * 4, steps=1, batch_size=8, seed=0),
}
SEEN_AS = {
    "itself": lambda m: m,
    "wrapped": lambda m: Same(Same(m)),
    "along another path": lambda m: m.on(sg.EDMSDE()),
    "along two others": lambda m: m.on(sg.EDMSDE()).on(sg.LinearPathSDE()),
}


@pytest.mark.parametrize("view", SEEN_AS)
@pytest.mark.parametrize("change", AFTERWARDS)
def test_what_changes_after_the_first_use_is_used(change, view):
    """As if the model had been made so: nothing that was remembered before is used."""
    model = widened()
    if change == "assigned process":  # "edm" is one function of the noise level, whatever the process
        model.parametrization = "noise"
    x, ts = points(6), torch.full((6,), 0.4, dtype=F64)
    seen = SEEN_AS[view](model)
    before = [seen(x, t).x0 for t in (0.4, ts)]
    sg.sample(seen, (6, 2), steps=4, seed=0)
    AFTERWARDS[change](model)
    fresh = sg.Denoiser(model.net, model.sde, parametrization=model.parametrization)
    fresh.set_statistics(model.data_mean, model.data_std)
    fresh.data_turn = model.data_turn
    fresh = SEEN_AS[view](fresh)
    for t, old in zip((0.4, ts), before, strict=True):
        assert torch.equal(seen(x, t).x0, fresh(x, t).x0)
        assert change == "assigned mean" or not torch.equal(seen(x, t).x0, old)
    ours, theirs = (sg.sample(m.eval(), (6, 2), steps=5, seed=0).x for m in (seen, fresh))
    assert torch.equal(ours, theirs)


def test_another_path_can_be_assigned():
    """on(a) with b assigned is on(b), narrowed to what the model knows."""
    seen, x = widened().on(sg.EDMSDE()), points(6)
    seen(x, 0.4)
    seen.sde = sg.LinearPathSDE()
    fresh = widened().on(sg.LinearPathSDE())
    assert torch.equal(seen(x, 0.4).x0, fresh(x, 0.4).x0) and seen.sde.t_min == fresh.sde.t_min


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sde", "vp", "expected a process"),
        ("parametrization", "w", "expected one of 'x0'"),
        ("net", None, "expected a torch.nn.Module"),
        ("net", sg.nets.MLP(3), r"samples of shape \(3,\), but the model's have \(2,\)"),
        ("data_std", -1.0, "not negative"),
        ("data_mean", torch.zeros(3), "event shape"),
    ],
)
def test_what_cannot_be_is_refused_when_assigned(name, value, words):
    model, x = sg.Denoiser(sg.nets.MLP(2), sg.VPSDE(), data_std=2.0), points(3)
    before = model(x, 0.5).x0
    with pytest.raises(sg.InvalidInputError, match=words):
        setattr(model, name, value)
    assert torch.equal(model(x, 0.5).x0, before)
    if name == "sde":
        with pytest.raises(sg.InvalidInputError, match=words):
            Same(model).sde = value


@pytest.mark.parametrize("other", [nn.Linear(2, 2), None, 3])
def test_only_a_model_is_put_inside_a_wrapper(other):
    with pytest.raises(sg.InvalidInputError, match="got model="):
        Same(other)
    wrapped = Same(small())
    with pytest.raises(sg.InvalidInputError, match="got model=.* expected a ScoreModel"):
        wrapped.model = other
    wrapped.model = small(seed=1)
    assert torch.equal(sg.sample(wrapped, 2, steps=3, seed=0).x, sg.sample(small(seed=1), 2, steps=3, seed=0).x)


@pytest.mark.parametrize(
    "model, name", [(MODELS["exact-vp"], "mixture"), (MODELS["empirical"], "samples")], ids=["mixture", "samples"]
)
def test_what_an_exact_score_is_of_stays(model, name):
    """Its statistics follow from it."""
    value = getattr(model, name)
    with pytest.raises(sg.InvalidInputError, match=f"{name} of a .* cannot be assigned: make another"):
        setattr(model, name, value)
    assert getattr(model, name) is value


@pytest.mark.parametrize("change", ["made", "assigned", "loaded", "copied"])
def test_inference_mode(change):
    """Statistics that were set under inference mode are seen, and followed, outside it."""
    model = widened()
    with torch.inference_mode():
        if change == "made":
            model = widened(1.0, 4.0)
        elif change == "assigned":
            model.set_statistics(1.0, 4.0)
        elif change == "loaded":
            model.load_state_dict(widened(1.0, 4.0).state_dict())
        else:
            model = copy.deepcopy(widened(1.0, 4.0))
        x = sg.sample(model, (4, 2), steps=3, seed=0).x
    assert torch.equal(sg.sample(model, (4, 2), steps=3, seed=0).x, x)
    assert float(model.data_mean) == 1 and model.sigma_data == 4
    if change != "copied":  # torch's deepcopy makes tensors of inference mode, which take no writing
        model.data_std.fill_(3.0)
        assert model.sigma_data == 3
    model.data_std = 2.0
    assert model.sigma_data == 2


def test_a_model_made_without_memory_keeps_what_is_known():
    """The way of large networks: made on the device "meta", given memory, loaded."""
    saved = sg.Denoiser(Net(), sg.VPSDE(), data_mean=1.0, data_std=4.0)
    for assign in (False, True):
        with torch.device("meta"):
            model = sg.Denoiser(Net(), sg.VPSDE(), data_std=3.0)
        assert model.to("meta").sigma_data == 3 and model.to_empty(device="cpu").sigma_data == 3
        model.load_state_dict(saved.state_dict(), assign=assign)
        assert model.sigma_data == 4 and float(model.data_mean) == 1


class WithBuffers(nn.Module):
    """A network with a running mean, as batch normalisation has."""

    event_shape = (2,)

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("frequencies", torch.tensor(3.0))

    def forward(self, x, t):
        return self.norm(x) * self.frequencies


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_average_made_before_the_data_are_known_mixes_nothing_up(use_buffers, when):
    """Buffers are paired by their order: a model has the same ones before and after its statistics are known."""
    model = sg.Denoiser(WithBuffers(), sg.VPSDE())
    if when == "before":
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)
    model.set_statistics(points().mean(0) + 7, 1.5)
    if when == "after":
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)
    average.update_parameters(model)
    for name, value in model.named_buffers():
        found = dict(average.module.named_buffers())[name]
        assert bool(((found == value) | (found.isnan() & value.isnan())).all()), name
    for ours, theirs in zip(average.module.state_dict().values(), model.state_dict().values(), strict=True):
        assert bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def test_what_was_saved_with_nothing_known_is_loaded_so():
    model, other = small(), small(seed=1)
    other.set_statistics(1.0, 2.0)
    other.load_state_dict(model.state_dict())
    assert other.data.mean is None and other.data.std is None


def test_exact_scores_do_not_take_the_statistics_of_other_data():
    for one, other in (
        (sg.EmpiricalModel(points(20), sg.VPSDE()), sg.EmpiricalModel(points(20) + 5, sg.VPSDE())),
        (
            sg.MixtureModel(MIXTURES["plane"], sg.VPSDE()),
            sg.MixtureModel(sg.GaussianMixture([[5.0, 5.0]], std=1.0), sg.VPSDE()),
        ),
    ):
        kept = copy.deepcopy(one)
        kept.load_state_dict(one.state_dict())
        for model in (kept, Same(kept)):
            before = sg.sample(model, 3, steps=4, seed=0).x
            with pytest.raises(RuntimeError, match="statistics of other data"):
                model.load_state_dict(Same(other).state_dict() if model is not kept else other.state_dict())
            assert torch.equal(sg.sample(model, 3, steps=4, seed=0).x, before)


class Bare(sg.Wrapped):
    """A wrapper without a `forward` of its own."""


@pytest.mark.parametrize(
    "how", [{"steps": 6}, {"rtol": 1e-2}, {"solver": "euler", "steps": 8}, {"steps": 6, "eta": 1.0}]
)
@pytest.mark.parametrize("sde", [sg.EDMSDE(), sg.CosineSDE(), sg.VESDE()], ids=lambda sde: type(sde).__name__)
def test_on_a_process_of_its_own_a_wrapper_is_the_model_on_that_process(sde, how):
    model = small()
    before = sg.sample(model, 3, seed=0, **how).x
    guided = sg.Guided(model, 2.0, against=MODELS["network"].on(model.sde), interval=(0.1, 2.0))
    for inner in (model, guided):
        on = inner.on(sde)
        wrapped = Bare(inner, sde=on.sde)
        found, expected = (sg.sample(m, 3, seed=0, **how) for m in (wrapped, on))
        torch.testing.assert_close(found.x, expected.x, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.nfe, expected.nfe)
    assert torch.equal(sg.sample(model, 3, seed=0, **how).x, before)  # the model inside was asked about no other times
