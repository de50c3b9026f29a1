"""Models: the laws of beliefs over all parametrisations and processes, learned or exact, and what the checks catch."""

from __future__ import annotations

import copy
import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import MIXTURES, PARAMETRIZATIONS, SDES, SOME_SDES
from torch import Tensor, nn

import sdegen as sg
from sdegen.core.errors import InvalidInputError
from sdegen.models.base import OnPath, ScoreModel
from sdegen.models.denoiser import Denoiser
from sdegen.models.exact import EmpiricalModel, MixtureModel
from sdegen.models.prediction import Prediction
from sdegen.processes import EDMSDE, VESDE, VPSDE, CosineSDE, LinearPathSDE, TrigSDE, without_signal
from sdegen.testing import LawError, check_model, model_laws
from sdegen.testing.models import LAWS

F64 = torch.float64


class Small(nn.Module):
    """A smooth network over vectors, with weights that are never 0."""

    def __init__(self, d: int = 2, classes: int = 0) -> None:
        super().__init__()
        self.event_shape = (d,)
        self.first, self.last = nn.Linear(d + 1, 16), nn.Linear(16, d)
        self.embed = nn.Embedding(classes, 16) if classes else None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, strength: float = 1.0) -> Tensor:
        h = torch.tanh(self.first(torch.cat([x, t[:, None]], 1)))
        if self.embed is not None and y is not None:
            h = h + strength * self.embed(y)
        return self.last(h)


class Picture(nn.Module):
    """A convolutional network over (C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.Conv2d(8, 2, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.sin(self.norm(self.first(x)) + t[:, None, None, None]))


def denoiser(
    sde=None, parametrization: Any = "edm", *, dtype: torch.dtype = F64, data_std: float | None = 0.5
) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Small().to(dtype), sde or VPSDE(), parametrization=parametrization, data_std=data_std)


def says_nothing_at_the_end(name: str, sde) -> bool:
    """Noise and score say nothing about the data where no signal is left, and log(sigma/alpha) is infinite there."""
    return name in ("noise", "score", "edm") and without_signal(sde.at(sde.t_max))


# ---- laws


@pytest.mark.parametrize("law", [law for law in LAWS if law != "density"])
@pytest.mark.parametrize("process", SOME_SDES)
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_the_laws_of_models_for_networks(name, process, law):
    sde = SDES[process]
    if says_nothing_at_the_end(name, sde):
        sde = sde.narrowed(sde.t_min, 0.85)
    for dtype in (F64, torch.float32):
        dict(model_laws(denoiser(sde, PARAMETRIZATIONS[name], dtype=dtype)))[law]()


NEARLY_SILENT = {
    "cosine of pi/2": sg.PathSDE(lambda t: torch.cos(t * math.pi / 2), lambda t: torch.sin(t * math.pi / 2)),
    "much noise": VPSDE(beta_max=200.0),
    "all noise": LinearPathSDE(t_max=1.0),
}


@pytest.mark.parametrize("name", ["noise", "score", "v", "x0"])
@pytest.mark.parametrize("process", NEARLY_SILENT)
def test_rounding_is_not_taken_for_a_signal(process, name):
    """Where alpha is 0 up to rounding a noise says as little of the data as where it is 0."""
    sde, calls = NEARLY_SILENT[process], []
    assert float(sde.alpha(sde.t_max)) < 1e-16

    class Counting(Small):
        def forward(self, x, t):
            calls.append(len(x))
            return super().forward(x, t)

    torch.manual_seed(0)
    model = Denoiser(Counting(), sde, parametrization=name, data_mean=0.0, data_std=0.5)
    for how in ({"steps": 5}, {"rtol": 1e-2}, {"steps": 5, "solver": "ddim"}, {"steps": 20, "solver": "ancestral"}):
        if name in ("v", "x0"):
            assert float(sg.sample(model, (4, 2), seed=0, **how).x.abs().max()) < 30
            continue
        with pytest.raises(InvalidInputError, match="no signal .alpha = .* begin at an earlier time"):
            sg.sample(model, (4, 2), seed=0, **how)
        assert not calls
    earlier = float(sde.time(torch.tensor(-1.0, dtype=F64)))
    assert float(sg.sample(model, (4, 2), seed=0, steps=5, t_span=(earlier, 0.0)).x.abs().max()) < 30


def test_the_laws_of_models_for_pictures():
    torch.manual_seed(0)
    model = Denoiser(Picture(), TrigSDE(0.5), data_mean=torch.zeros(2, 4, 4), data_std=torch.full((2, 4, 4), 0.5))
    check_model(model, event_shape=(2, 4, 4))
    check_model(Denoiser(Picture().double(), VESDE(), parametrization="v"), event_shape=(2, 3, 5))


def test_the_laws_of_models_with_conditions():
    torch.manual_seed(0)
    model = Denoiser(Small(classes=3).double(), VPSDE(), data_std=0.5)
    y = torch.tensor([0, 1, 2, 2, 1])
    check_model(model, y=y, strength=2.0)
    check_model(model.on(EDMSDE()), y=y)
    t = torch.tensor(0.5, dtype=F64)
    x = torch.ones(5, 2, dtype=F64)
    assert not torch.allclose(model(x, t, y=y).x0, model(x, t, y=y.flip(0)).x0)


@pytest.mark.parametrize("process", ["vp", "edm", "linear-path-to-1"])
def test_the_laws_of_models_along_another_path_of_another(process):
    exact = MixtureModel(MIXTURES["full"], SDES[process])
    check_model(exact.on(TrigSDE(2.0)))
    check_model(exact.on(LinearPathSDE()).on(VESDE()))
    check_model(OnPath(exact, CosineSDE(), exact.mixture.mean))
    check_model(OnPath(exact, CosineSDE(), exact.mixture.mean).on(VESDE()))


# ---- the same belief along another process


def test_edm_networks_are_one_function_along_every_process():
    """Its input and time depend on x/alpha and sigma/alpha alone, so training on one path is training on all."""
    torch.manual_seed(0)
    net = Small().double()
    for sde in (VPSDE(), VESDE(), TrigSDE(0.5), LinearPathSDE()):
        moved, own = Denoiser(net, EDMSDE(), data_std=0.5).on(sde), Denoiser(net, sde, data_std=0.5)
        t = torch.linspace(moved.sde.t_min, moved.sde.t_max, 9, dtype=F64)
        x = torch.randn(9, 2, dtype=F64)
        torch.testing.assert_close(moved(x, t).x0, own(x, t).x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moved(x, t).velocity, own(x, t).velocity, rtol=1e-9, atol=1e-9)


def test_on_is_narrowed_to_what_the_model_knows():
    model = denoiser(VESDE(0.1, 2.0))
    edm = model.on(EDMSDE())
    # sigma from 0.1 * 20^0.001 to 2
    assert edm.sde.t_min == pytest.approx(0.1 * 20**1e-3) and edm.sde.t_max == pytest.approx(2.0)
    assert isinstance(edm.sde, EDMSDE)
    narrow = model.on(EDMSDE(0.5, 1.0))
    assert (narrow.sde.t_min, narrow.sde.t_max) == (0.5, 1.0)
    # back on the first process: no wider than the way there was
    back = narrow.on(VESDE(0.1, 2.0))
    assert back.sde.sigma(back.sde.t_min) == pytest.approx(0.5) and back.sde.sigma(back.sde.t_max) == pytest.approx(1.0)
    assert model.on(model.sde) is model and edm.on(model.sde) is model
    with pytest.raises(InvalidInputError, match="share no noise level"):
        model.on(EDMSDE(10.0, 20.0))


def test_on_carries_what_is_known_of_the_data():
    model = Denoiser(Small(), VPSDE(), data_mean=torch.tensor([1.0, 2.0]), data_std=0.3)
    moved = model.on(EDMSDE())
    assert moved.event_shape == (2,) and moved.sigma_data == pytest.approx(0.3)
    assert moved.data_mean is not None and moved.data_mean.tolist() == [1.0, 2.0]
    assert moved.condition_names() == model.condition_names() == {"y", "strength"}


def test_coefficients_are_remembered_and_warmed():
    model = MixtureModel(MIXTURES["plane"], VPSDE()).on(TrigSDE(1.0))
    t = torch.linspace(model.sde.t_min, model.sde.t_max, 5, dtype=F64)
    x = torch.randn(4, 2, dtype=F64)
    cold = [model(x, u).velocity for u in t]
    again = MixtureModel(MIXTURES["plane"], VPSDE()).on(TrigSDE(1.0))
    again.warm(t)
    for u, wanted in zip(t, cold, strict=True):
        torch.testing.assert_close(again(x, u).velocity, wanted, rtol=1e-12, atol=1e-12)


# ---- the network's own


def test_the_network_is_called_in_its_own_dtype():
    seen = []

    class Spy(Small):
        def forward(self, x, t):
            seen.append((x.dtype, t.dtype, t.shape))
            return super().forward(x, t)

    for own, given in ((torch.float32, F64), (F64, torch.float32), (torch.bfloat16, torch.float32)):
        net = Spy().to(own)
        net.time_dtype = own
        model = Denoiser(net, VPSDE())
        for t in (0.5, torch.full((3,), 0.5), torch.full((3,), 0.5, dtype=F64)):
            p = model(torch.ones(3, 2, dtype=given), t)
            assert p.x0.dtype == p.noise.dtype == p.velocity.dtype == given
            assert seen.pop() == (own, own, (3,))


def test_gradients_reach_the_weights_the_state_and_the_time():
    model = denoiser()
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor(0.3, dtype=F64, requires_grad=True)
    (model(x, t).velocity.square().sum()).backward()
    for tensor in (x, t, *model.net.parameters()):
        assert tensor.grad is not None and bool((tensor.grad != 0).any())
    assert torch.autograd.gradcheck(lambda x, t: model(x, t).score, (x, t))
    several = torch.tensor([0.1, 0.5, 0.9], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: model(x.detach(), t).velocity, (several,))


def test_the_data_s_spread_reaches_edm_and_keeps_its_digits():
    model, x = denoiser(data_std=None), torch.ones(2, 2, dtype=F64)
    assert model.sigma_data == 1.0
    before = model(x, 0.5).x0
    model.set_statistics(None, torch.tensor([0.3, 0.4]))
    assert model.sigma_data == pytest.approx((0.125) ** 0.5) and not torch.allclose(model(x, 0.5).x0, before)
    wanted = model.sigma_data
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert denoiser(data_std=wanted).to(dtype).sigma_data == wanted  # statistics are not weights


def test_copies_and_pickles():
    model = denoiser()
    x = torch.randn(3, 2, dtype=F64)
    wanted = model(x, 0.5).x0
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (twin, torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(x, 0.5).x0, wanted)
        other.set_statistics(None, 2.0)  # its own coefficients, not those of the first
        assert not torch.allclose(other(x, 0.5).x0, wanted)
        torch.testing.assert_close(model(x, 0.5).x0, wanted)
    check_model(copy.deepcopy(model.on(EDMSDE())))


def test_eval_mode_for_the_check_only():
    class Dropping(Small):
        def forward(self, x, t):
            return nn.functional.dropout(super().forward(x, t), 0.5, self.training)

    model = Denoiser(Dropping().double(), VPSDE(), data_std=0.5)
    model.train()
    check_model(model)
    assert model.training and model.net.training


# ---- wrong input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Denoiser(Small(), VPSDE(), parametrization="eps"), "parametrization: got 'eps', expected one of"),
        (lambda: Denoiser(Small(), VPSDE), "expected a process such as VPSDE"),
        (lambda: Denoiser(3, VPSDE()), "got net=3, expected a torch.nn.Module"),
        (
            lambda: Denoiser(Small(), VPSDE(), data_std=0.0),
            "data_std = 0.0: expected finite numbers, not negative, not all 0",
        ),
        (lambda: Denoiser(Small(), VPSDE(), data_std=float("nan")), "got data_std=nan"),
        (
            lambda: Denoiser(Small(), VPSDE(), data_mean=torch.zeros(3)),
            r"data_mean has shape \(3,\), expected a scalar or the event",
        ),
        (lambda: denoiser()(torch.zeros(3, 2), torch.zeros(2)), r"t has shape \(2,\), but x has 3 samples"),
        (lambda: Denoiser(lambda x, t: x[:, :1], VPSDE())(torch.zeros(3, 2), 0.5), r"the network returned \(3, 1\)"),
        (lambda: Denoiser(lambda x, t: (x, t), VPSDE())(torch.zeros(3, 2), 0.5), "the network returned tuple"),
        (
            lambda: denoiser().check_conditions({"z": 1}, 3),
            "condition 'z' is unknown to the model: it takes strength, y",
        ),
        (
            lambda: denoiser().check_conditions({"y": torch.zeros(2)}, 3),
            r"condition 'y' has shape \(2,\) for 3 samples",
        ),
        (lambda: denoiser().check_conditions({"y": torch.tensor(1)}, 3), "pass a Python number"),
        (lambda: MixtureModel(MIXTURES["plane"], VPSDE()).check_conditions({"y": 1}, 3), "it takes none"),
        (lambda: check_model(Denoiser(Picture(), VPSDE())), "pass event_shape="),
        (lambda: check_model(MixtureModel), "a class: make an object of it"),
    ],
)
def test_wrong_input(call, words):
    with pytest.raises(InvalidInputError, match=words):
        call()


# ---- the check itself catches what it is for


class Liar(ScoreModel):
    """The exact model of a mixture, whose answer is changed by `wrong(prediction, x, t)`."""

    def __init__(self, wrong) -> None:
        super().__init__(VPSDE(), data_mean=0.0, data_std=1.0, event_shape=(2,))
        self.exact, self.wrong = MixtureModel(MIXTURES["shared-covariance"], self.sde), wrong
        self.calls = 0

    def forward(self, x, t):
        self.calls += 1
        return self.wrong(self, self.exact(x, t), x, torch.as_tensor(t, dtype=F64))


class Scribbles(Small):
    """A network that writes into the times it is given."""

    def forward(self, x, t):
        out = super().forward(x, t)
        t.mul_(1000)
        return out


class Tensors(ScoreModel):
    """What people write first: a forward that returns the score."""

    def forward(self, x, t, **cond):
        return -x


class WrapsTensors(sg.Wrapped):
    def forward(self, x, t, **cond):
        return self.model(x, t, **cond).x0


PLANE = torch.zeros(3, 2)
USES = {
    "steps": lambda m: sg.sample(m, 3, steps=5),
    "a tolerance": lambda m: sg.sample(m, 3, rtol=1e-1),
    "noise": lambda m: sg.sample(m, 3, steps=5, eta=1.0),
    "ddim": lambda m: sg.sample(m, 3, solver="ddim", steps=4),
    "a density": lambda m: sg.log_prob(m, PLANE, rtol=1e-1),
    "encode": lambda m: sg.encode(m, PLANE, steps=4),
    "a loss": lambda m: sg.dsm_loss(m, PLANE),
    "a score": lambda m: m.score(PLANE, 0.5),
    "along another process": lambda m: m.on(EDMSDE())(PLANE, 0.5),
    "guidance": lambda m: sg.Guided(m, 2.0, against=m)(PLANE, 0.5),
    "its laws": lambda m: check_model(m),
    "a wrapper": lambda m: sg.testing.check_wrapper(sg.Wrapped(m), m),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_that_returns_a_tensor_is_told_what_to_return(use, wrapped):
    model: ScoreModel = Tensors(VPSDE(), event_shape=(2,), data_mean=0.1, data_std=1.0)
    if wrapped:
        model = WrapsTensors(MixtureModel(MIXTURES["plane"], VPSDE()))
    with pytest.raises(InvalidInputError, match=f"{type(model).__name__} returned .*, expected a Prediction"):
        USES[use](model)


@pytest.mark.parametrize("copied", [False, True])
def test_numbers_that_a_parametrisation_uses_may_change(copied):
    share = torch.tensor(1.0, dtype=F64)
    bias = {"skip": 0.0}
    own = sg.Parametrization(
        lambda sde, t: 0 * t + bias["skip"],
        lambda sde, t: share * torch.ones_like(t),
        lambda sde, t: 0 * t + 1,
        lambda sde, t: t,
    )
    model, x = denoiser(parametrization=own), torch.randn(3, 2, dtype=F64)
    model(x, 0.5), model(x, torch.full((3,), 0.5))
    if copied:
        model = copy.deepcopy(model)
    for change in (lambda: share.mul_(0.5), lambda: bias.update(skip=0.3)):
        change()
        for t in (0.5, torch.full((3,), 0.5, dtype=F64)):
            again = denoiser(parametrization=own)
            again.load_state_dict(model.state_dict())
            assert torch.equal(model(x, t).x0, again(x, t).x0)


@pytest.mark.parametrize("parametrization", ["edm", "noise"])
def test_a_network_may_write_into_its_times(parametrization):
    """Coefficients of one tensor of times are remembered: what the network gets is its own."""
    torch.manual_seed(0)
    tidy, untidy = Small().double(), Scribbles().double()
    untidy.load_state_dict(tidy.state_dict())
    t, x = torch.linspace(0.2, 0.8, 5, dtype=F64), torch.randn(5, 2, dtype=F64)
    wanted = Denoiser(tidy, VPSDE(), parametrization=parametrization)(x, t).score
    model = Denoiser(untidy, VPSDE(), parametrization=parametrization)
    assert all(torch.equal(model(x, t).score, wanted) for _ in range(3))
    along = model.on(TrigSDE(1.0, sigma_min=0.1, sigma_max=9.0))
    first = along(x, t).velocity
    assert all(torch.equal(along(x, t).velocity, first) for _ in range(3))
    assert torch.equal(t, torch.linspace(0.2, 0.8, 5, dtype=F64))


class Mistold(Prediction):
    """A belief one of whose views is wrong."""

    __slots__ = ("_wrong",)

    def __init__(self, p: Prediction, name: str) -> None:
        super().__init__(p.x0, p.noise, p.sde, p.t)
        self._wrong = name

    def _told(self, name: str) -> Tensor:
        right = getattr(Prediction, name).fget(self)
        return 1.001 * right if name == self._wrong else right

    score = property(lambda self: self._told("score"))
    v = property(lambda self: self._told("v"))
    velocity = property(lambda self: self._told("velocity"))


def remade(p: Prediction, x: Tensor, x0: Tensor) -> Prediction:
    """A consistent belief with another x0."""
    return Prediction.from_x0(x, x0, p.sde, p.t)


LIES = {
    "noise": (lambda m, p, x, t: Prediction(p.x0, 1.001 * p.noise, p.sde, p.t), "x = alpha x0 + sigma noise"),
    "score": (lambda m, p, x, t: Mistold(p, "score"), "score = -noise/sigma"),
    "v": (lambda m, p, x, t: Mistold(p, "v"), "v = alpha noise - sigma x0"),
    "velocity": (lambda m, p, x, t: Mistold(p, "velocity"), "velocity ="),
    "float32 inside": (lambda m, p, x, t: Prediction(p.x0.float(), p.noise.float(), p.sde, p.t), "dtype of x"),
    "float64 always": (
        lambda m, p, x, t: Prediction(p.x0.double(), p.noise.double(), p.sde, p.t),
        "float32 in, float32 out",
    ),
    "batch mean": (lambda m, p, x, t: remade(p, x, p.x0 + 1e-5 * x.mean(0)) if len(x) else p, "(x0), fails"),
    "order": (lambda m, p, x, t: remade(p, x, p.x0 + 1e-5 * torch.arange(len(x))[:, None]), "another order"),
    "scalar times": (lambda m, p, x, t: remade(p, x, p.x0 * (1 + 1e-5 * t.ndim)), "scalar time"),
    "forgets": (lambda m, p, x, t: remade(p, x, p.x0 + 1e-6 * m.calls), "fails"),
    "nan": (
        lambda m, p, x, t: remade(p, x, torch.where(t.reshape(-1, 1) == 1, torch.nan, p.x0)),
        "x0 is finite, fails at t = 1",
    ),
    "memory order": (lambda m, p, x, t: remade(p, x, p.x0 + 1e-5 * x.is_contiguous()), "strided"),
    "no empty batch": (lambda m, p, x, t: p if len(x) else Prediction(x[0:0, :1], x[0:0, :1], p.sde, p.t), "empty"),
    "detached": (lambda m, p, x, t: Prediction(p.x0.detach(), p.noise.detach(), p.sde, p.t), "can be differentiated"),
}


@pytest.mark.parametrize("name", LIES)
def test_check_model_catches(name):
    wrong, words = LIES[name]
    check_model(Liar(lambda m, p, x, t: p))
    with pytest.raises(LawError) as caught:
        check_model(Liar(wrong))
    assert words in str(caught.value) and "fails" in str(caught.value)


def test_check_model_catches_a_wrong_score_through_its_density():
    class Shifted(MixtureModel):
        def log_prob(self, x, t):
            return super().log_prob(x + 1e-5, t)

    class Halved(MixtureModel):
        def forward(self, x, t):
            p = super().forward(x, t)
            return Prediction.from_x0(x, 0.999 * p.x0, p.sde, p.t)

    for liar in (Shifted, Halved):
        with pytest.raises(LawError, match="score = grad_x log_prob"):
            check_model(liar(MIXTURES["plane"], VPSDE()))


def test_check_model_catches_a_wrong_path():
    class Moved(MixtureModel):
        def __init__(self, mixture, sde, *, factor=1.0, widen=False) -> None:
            super().__init__(mixture, sde)
            self.factor, self.widen = factor, widen

        def on(self, sde):
            moved = super().on(sde)
            if self.widen:
                moved._shared = (self.sde, sde, SimpleNamespace(sde=sde, to_known=moved.crossing.to_known))
                return moved
            inner = moved.forward
            moved.forward = lambda x, t: inner(self.factor * x, t)
            return moved

    check_model(Moved(MIXTURES["plane"], VPSDE()))
    with pytest.raises(LawError, match="same function of x/alpha and sigma/alpha"):
        check_model(Moved(MIXTURES["plane"], VPSDE(), factor=1.001))
    with pytest.raises(LawError, match="narrowed to the levels"):
        check_model(Moved(MIXTURES["plane"], VPSDE(), widen=True))


def test_an_empirical_model_has_no_log_prob_to_check():
    check_model(EmpiricalModel(torch.randn(5, 2, dtype=F64), VPSDE()))


def test_a_time_that_no_network_can_be_given():
    with pytest.raises(InvalidInputError, match="c_noise .* is infinite: begin at an earlier time"):
        denoiser(SDES["no-signal-table"])(torch.ones(2, 2), 1.0)


def test_the_scale_of_the_data_follows_what_is_written_into_its_tensor():
    model = Denoiser(nn.Identity(), SDES["vp"], parametrization="noise", data_std=torch.tensor([3.0, 4.0]))
    assert model.sigma_data == pytest.approx(12.5**0.5)
    model.data_std.mul_(2)
    assert model.sigma_data == pytest.approx(50**0.5)
