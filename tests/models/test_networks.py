"""What a Denoiser does with its network: whose memory it gets, what it is told, what wraps it, what is replaced in it."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from cases import PARAMETRIZATIONS, points
from torch import Tensor, nn

import sdegen as sg
from sdegen.models.denoiser import Denoiser
from sdegen.models.learned_variance import LearnedVariance
from sdegen.models.networks import plain_names, unwrapped
from sdegen.nets import MLP
from sdegen.training.losses import dsm_loss, implicit_loss, sliced_loss

WRAPPERS = {
    "compiled": partial(torch.compile, backend="eager"),
    "parallel": nn.DataParallel,
    "compiled parallel": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
}


class Careful(nn.Module):
    """net(x/2 + t) in memory of its own."""

    event_shape = (2,)

    def __init__(self, out: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, out)

    def forward(self, x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
        return self.layer(torch.tanh(x / 2 + 3 * t[:, None] + shift))


class Careless(Careful):
    """The same, written over what it is given."""

    def forward(self, x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
        x /= 2
        t *= 3
        x += t[:, None] + shift
        return self.layer(x.tanh_())


def pair(parametrization: Any, make: type[Denoiser] = Denoiser) -> list[Denoiser]:
    out = 4 if make is LearnedVariance else 2
    kind = PARAMETRIZATIONS[parametrization]
    return [make(net(out), sg.VPSDE(), parametrization=kind, data_std=0.6) for net in (Careful, Careless)]


# ---- a network that works in place


@pytest.mark.parametrize("make", [Denoiser, LearnedVariance])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_what_a_network_does_to_its_input_stays_its_own(parametrization, make):
    careful, careless = pair(parametrization, make)
    for dtype in (torch.float32, torch.float64):
        x = points(5).to(dtype)
        for t in (0.4, torch.tensor(0.4), torch.linspace(0.1, 1, 5, dtype=torch.float64)):
            for given in (x, x.t().contiguous().t(), x[:1].expand(5, 2)):
                before, at = given.clone(), torch.as_tensor(t).clone()
                wanted, found = careful(given, t), careless(given, t)
                assert torch.equal(wanted.x0, found.x0) and torch.equal(wanted.noise, found.noise)
                assert torch.equal(given, before) and torch.equal(torch.as_tensor(t), at)


@pytest.mark.parametrize("solver", [row.name for row in sg.solvers() if ":" not in row.name])
def test_every_solver_is_safe_from_networks_that_work_in_place(solver):
    careful, careless = pair("x0")
    options = {"rtol": 0.1} if solver in ("adams", "dopri5") else {"steps": 6}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, found = (sg.sample(model, 3, seed=0, solver=solver, **options).x for model in (careful, careless))
    assert torch.equal(wanted, found)


def through_numpy(x: Tensor) -> None:
    view = x.detach().numpy()
    view *= 0.5


WAYS = {"in place": lambda x: x.mul_(0.5), "by .data": lambda x: x.data.mul_(0.5), "through numpy": through_numpy}


class Late(nn.Module):
    """tanh(x/2), written over its input from this call on, in a way that torch may not see."""

    def __init__(self, way: str, first: int) -> None:
        super().__init__()
        self.write, self.first, self.calls = WAYS[way], first, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        if self.calls < self.first:
            return torch.tanh(x / 2)
        self.write(x)
        return torch.tanh(x)


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_however_and_whenever_a_network_writes_into_its_input(way, first):
    never, late = (Denoiser(Late(way, k), sg.VPSDE(), parametrization="noise") for k in (99, first))
    x = points(3).float()
    before = x.clone()
    with torch.no_grad():
        for model in (never.train(), never.eval(), late.eval(), late.train()):
            model(x, 0.4)
            assert torch.equal(x, before)
    for model in (never, late):
        model.net.calls = 0
    wanted, found = (sg.sample(model, (3, 2), steps=6, seed=0).x for model in (never, late))
    assert torch.equal(wanted, found)


@pytest.mark.parametrize("loss", [dsm_loss, implicit_loss, sliced_loss])
def test_losses_and_likelihoods_are_safe_too(loss):
    careful, careless = pair("noise")
    x = points(4)
    before = x.clone()
    gradients = []
    for model in (careful, careless):
        value = loss(model, x, seed=0)
        gradients.append((value, *torch.autograd.grad(value.sum(), list(model.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    wanted, found = (sg.log_prob(model, x, solver="dopri5", rtol=0.1, seed=0).nats for model in (careful, careless))
    assert torch.equal(wanted, found) and torch.equal(x, before)


class Marking(nn.Module):
    """A network that writes into its conditions, where it may."""

    def __init__(self, *, careless: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.careless = nn.Linear(2, 2), careless

    def forward(self, x, t, label, parts):
        if self.careless:
            parts["shift"].add_(label.mul_(2)[:, None])
        else:
            parts = {"shift": parts["shift"] + 2 * label[:, None]}
        return self.linear(x + parts["shift"])


def test_what_a_network_does_to_its_conditions_stays_its_own():
    x = points(4)
    careful, careless = (sg.Denoiser(Marking(careless=c), sg.VPSDE(), data_std=0.6) for c in (False, True))
    verbs = {
        "model": lambda model, **cond: model(x, 0.4, **cond).x0,
        "sample": lambda model, **cond: sg.sample(model, (4, 2), steps=4, seed=0, **cond).x,
        "encode": lambda model, **cond: sg.encode(model, x, steps=4, **cond).x,
        "log_prob": lambda model, **cond: sg.log_prob(model, x, steps=4, seed=0, **cond).nats,
        "loss": lambda model, **cond: dsm_loss(model, x, seed=0, **cond),
        "solve": lambda model, **cond: sg.solve(sg.ProbabilityFlow(model, **cond), x, steps=4).x,
        "guided": lambda model, **cond: sg.Guided(model, 1.5, null={"label": 0.5})(x, 0.4, **cond).x0,
    }
    for name, verb in verbs.items():
        cond = {"label": torch.arange(4.0), "parts": {"shift": torch.ones(4, 2)}}
        before = {"label": cond["label"].clone(), "parts": {"shift": cond["parts"]["shift"].clone()}}
        wanted, found = verb(careful, **before), verb(careless, **cond)
        assert torch.equal(wanted, found), name
        assert torch.equal(cond["label"], before["label"]), name
        assert torch.equal(cond["parts"]["shift"], before["parts"]["shift"]), name


def test_nothing_is_copied_where_nothing_is_shared():
    """c_in x, or another dtype, is new memory: the network gets that; only x itself is copied."""
    copies: list[int] = []

    class Spy(Careful):
        def forward(self, x, t):
            copies.append(counted.clones)
            return super().forward(x, t)

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        clones = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.clones += func is torch.ops.aten.clone.default and args[0].shape == (7, 2)
            return func(*args, **(kwargs or {}))

    for parametrization, dtype in (("edm", torch.float32), ("noise", torch.float64), ("noise", torch.float32)):
        model, x = Denoiser(Spy(), sg.VPSDE(), parametrization=parametrization, data_std=0.5), points(7).to(dtype)
        with Counted() as counted:
            model(x, 0.5)
    assert copies == [0, 0, 1]


# ---- what it is told


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_times_are_not_rounded_unless_the_network_says_so(dtype):
    seen: list[Tensor] = []

    class Net(Careful):
        def forward(self, x, t):
            seen.append(t)
            return super().forward(x, t.to(x.dtype))

    table = sg.TabulatedVPSDE(sg.discrete.betas("linear", 1000))
    net = Net().to(dtype)
    model = Denoiser(net, table, parametrization="counting-noise")
    nodes = torch.arange(1, 1001, dtype=torch.float64)
    model(torch.zeros(1000, 2), nodes / 1000)
    assert torch.equal(seen[-1].double(), nodes - 1)
    model(torch.zeros(3, 2), 0.991)
    assert seen[-1].tolist() == [990.0] * 3
    net.time_dtype = torch.bfloat16
    model(torch.zeros(3, 2), 0.991)
    assert seen[-1].dtype == torch.bfloat16 and seen[-1].tolist() == [992.0] * 3


def test_a_half_network_that_cannot_take_such_times_learns_the_cure():
    class Net(Careful):
        def forward(self, x, t):
            return self.layer(x + t[:, None])

    model = Denoiser(Net().bfloat16(), sg.VPSDE())
    with pytest.raises(RuntimeError) as error:
        model(torch.zeros(3, 2), 0.5)
    assert "time_dtype" in error.value.__notes__[0]
    model.net.time_dtype = torch.bfloat16
    assert torch.isfinite(model(torch.zeros(3, 2), 0.5).x0).all()


# ---- what is replaced in it, what is around it


def test_replaced_parameters_and_modules_are_seen():
    model, x = Denoiser(Careful(), sg.VPSDE()), torch.ones(3, 2, dtype=torch.float64)
    seen = []
    model.net.register_forward_pre_hook(lambda net, args: seen.append(args[0].dtype))
    model(x, 0.5)
    model.net.layer.weight = nn.Parameter(model.net.layer.weight.double())
    model.net.layer.bias = nn.Parameter(model.net.layer.bias.double())
    model(x, 0.5)
    model.net.layer = nn.Sequential(nn.Linear(2, 2))
    model(x, 0.5)
    model.net.layer = nn.Linear(2, 2).double()
    model(x, 0.5)
    model.net = nn.Sequential().append(Careful())[0]
    model(x, 0.5)
    model.net.layer.weight.data = model.net.layer.weight.data.double()
    model.net.layer.bias.data = model.net.layer.bias.data.double()
    model.net.register_forward_pre_hook(lambda net, args: seen.append(args[0].dtype))
    model(x, 0.5)
    assert seen == [torch.float32, torch.float64, torch.float32, torch.float64, torch.float64]


def test_stored_float8_is_no_dtype_to_compute_in():
    class Stored(Careful):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False)
            self._parameters = {"scale": self._parameters["scale"]}

        def forward(self, x, t):
            return self.layer(x * self.scale.to(x.dtype) + t[:, None])

    x = points(3)
    assert torch.equal(Denoiser(Stored(), sg.VPSDE())(x, 0.5).x0, Denoiser(Stored(), sg.VPSDE())(x, 0.5).x0)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_network_is_known_as_the_plain_one(wrap):
    plain, wrapped = Denoiser(Careful(), sg.VPSDE()), Denoiser(wrap(Careful()), sg.VPSDE())
    assert unwrapped(wrapped.net).__class__ is Careful and wrapped.event_shape == (2,)
    assert wrapped.condition_names() == plain.condition_names() == {"shift"}
    x = points(3)
    assert torch.equal(wrapped(x, 0.3, shift=1.0).x0, plain(x, 0.3, shift=1.0).x0)
    with pytest.raises(sg.InvalidInputError, match="colour"):
        sg.sample(wrapped, 2, steps=2, colour=1)


def test_names_without_wrappers_anywhere():
    plain = nn.Sequential(MLP(2), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    names = list(plain.state_dict())
    plain[1][0] = torch.compile(plain[1][0], backend="eager")
    plain[1] = nn.DataParallel(plain[1])
    wrapped = torch.compile(nn.DataParallel(torch.compile(plain, backend="eager")), backend="eager")
    assert list(plain_names(wrapped, wrapped.state_dict()).values()) == names
    named = nn.Module()
    named.module, named._orig_mod = nn.Linear(2, 2), nn.Linear(2, 2)  # names alone wrap nothing
    assert all(k == v for k, v in plain_names(named, named.state_dict()).items())
