"""A process of one's own in a few lines, and what all processes refuse: other numbers later, times that are none."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import types

import numpy as np
import pytest
import torch
from cases import BUILT_IN, SDES

import sdegen as sg
from sdegen.core.errors import InvalidInputError
from sdegen.testing import check_sde

F64 = torch.float64
FUNCTIONS = ("alpha", "sigma", "drift_coefficient", "diffusion", "rates", "half_log_snr", "at")


class Cubic(sg.SDE):
    def alpha(self, t):
        return 1 - 0.9 * t**3

    def sigma(self, t):
        return t


class Lambdas(sg.SDE):
    t_min, t_max = 0.01, 2.0
    alpha = lambda self, t: torch.exp(-t)  # noqa: E731
    sigma = lambda self, t: 2 * t  # noqa: E731


class Scaled(sg.SDE):
    def __init__(self, scale):
        super().__init__(t_max=3.0)
        self.scale = scale

    def alpha(self, t):
        return 1.0  # the same at all times

    def sigma(self, t):
        return self.scale * t


class OfAlpha(sg.SDE):  # as papers write it: 1 - alpha^2 loses 9 of 16 digits where it begins
    def alpha(self, t):
        return 1 - 0.9 * t**3

    def sigma(self, t):
        return torch.sqrt(1 - self.alpha(t) ** 2)


class OfExponentials(sg.SDE):
    def alpha(self, t):
        return torch.exp(-5 * t**2)

    def sigma(self, t):
        return (1 - torch.exp(-10 * t**2)) ** 0.5


OWN = {
    "cubic": Cubic(),
    "lambdas": Lambdas(),
    "scaled": Scaled(2.0),
    "of alpha": OfAlpha(),
    "of exponentials": OfExponentials(),
}


@pytest.mark.parametrize("name", OWN)
def test_a_process_of_a_few_lines_keeps_all_laws(name):
    check_sde(OWN[name])
    again = pickle.loads(pickle.dumps(OWN[name]))
    assert (again.t_min, again.t_max) == (OWN[name].t_min, OWN[name].t_max)
    assert again.at(0.5).sigma == OWN[name].at(0.5).sigma


def test_the_range_is_that_of_the_class_or_of_the_object():
    assert (Cubic().t_min, Cubic().t_max) == (1e-3, 1.0)
    assert (Cubic(t_max=0.5).t_min, Cubic(t_max=0.5).t_max) == (1e-3, 0.5)
    assert (Lambdas().t_min, Lambdas().t_max) == (0.01, 2.0)
    assert (Scaled(2.0).t_min, Scaled(2.0).t_max) == (1e-3, 3.0)
    for wrong in ({"t_min": 0.0}, {"t_max": math.inf}, {"t_min": 0.5, "t_max": 0.2}):
        with pytest.raises(InvalidInputError, match="expected 0 < t_min < t_max"):
            Cubic(**wrong)


@pytest.mark.parametrize("name", OWN)
def test_every_verb_takes_a_process_of_ones_own(name):
    model = sg.MixtureModel(sg.GaussianMixture([[1.0, -0.5], [0.0, 0.5]], std=0.5), OWN[name])
    for how in ({"steps": 20}, {"rtol": 1e-2}, {"solver": "ancestral", "steps": 20}):
        assert bool(torch.isfinite(sg.sample(model, 16, seed=0, **how).x).all())
    x = torch.tensor([[1.0, -0.5], [0.2, 0.1]], dtype=F64)
    exact = model.mixture.log_prob(x)
    torch.testing.assert_close(sg.log_prob(model, x, rtol=1e-5).nats, exact, rtol=0, atol=5e-2)  # the density at t_min
    assert sg.encode(model, x, rtol=1e-3).x.shape == x.shape
    learned = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), OWN[name])
    history = sg.fit(learned, torch.randn(64, 2), steps=3, batch_size=16, seed=0, progress=False)
    assert bool(torch.isfinite(torch.as_tensor(history.loss)).all())


def test_what_is_saved_with_a_process_of_ones_own_is_loaded_with_it(tmp_path):
    learned = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), Cubic(), data_std=1.0)
    sg.save(learned, tmp_path / "model")
    with pytest.raises(sg.IncompatibleCheckpointError, match="Cubic, is your own: load it with sde="):
        sg.load(tmp_path / "model")
    x = torch.randn(3, 2)
    assert torch.equal(sg.load(tmp_path / "model", sde=Cubic())(x, 0.5).x0, learned(x, 0.5).x0)


def of(**functions):
    return type(sg.SDE)("Own", (sg.SDE,), {name: f for name, f in functions.items()})


@pytest.mark.parametrize(
    ("alpha", "sigma", "words"),
    [
        (lambda self, t: 1 - t, lambda self, t: t, r"alpha\(1\) = 0: expected positive and finite"),
        (lambda self, t: 1 - 0.5 * t, lambda self, t: 1 - 0.9 * t, "does not fall"),
        (lambda self, t: torch.exp(-t), lambda self, t: t / 0.0, "expected positive and finite"),
        (lambda self, t: math.cos(t), lambda self, t: t, "failed on a tensor of two times"),
        (lambda self, t: torch.exp(-t).detach(), lambda self, t: t, "automatic differentiation of log alpha"),
        (lambda self, t: torch.exp(-t.sum()), lambda self, t: t, "expected an elementwise function"),
        (lambda self, t: torch.exp(-t)[..., None], lambda self, t: t, "expected one value per time"),
        (lambda self, t: "1", lambda self, t: t, "expected a tensor"),
        (lambda self, t: None, lambda self, t: t, "expected a tensor"),
    ],
)
def test_a_wrong_process_is_refused_when_it_is_made(alpha, sigma, words):
    with pytest.raises(InvalidInputError, match=words):
        of(alpha=alpha, sigma=sigma)()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_functions_give_the_kind_of_their_times_whatever_is_written(dtype):
    sde = of(alpha=lambda self, t: torch.exp(-t.double()), sigma=lambda self, t: t)()
    for t in (torch.tensor([0.2, 0.5], dtype=dtype), torch.tensor(0.5, dtype=dtype)):
        for name in ("alpha", "sigma", "drift_coefficient", "diffusion", "half_log_snr"):
            value = getattr(sde, name)(t)
            assert (value.shape, value.dtype) == (t.shape, dtype), name
    t = torch.tensor([0.2, 0.5])
    sde.sigma(t).zero_()
    assert t.tolist() == pytest.approx([0.2, 0.5])  # a function that returns its argument does not hand it out


# ---- a process does not change


@pytest.mark.parametrize("name", {**SDES, **OWN})
def test_a_number_of_a_process_cannot_be_assigned_after_it_is_made(name):
    sde = {**SDES, **OWN}[name]
    before = sde.at(0.5 * sde.t_max).sigma
    assigned = [key for key, value in vars(sde).items() if isinstance(value, float | int | torch.Tensor)]
    assert {"t_min", "t_max"} <= set(assigned)
    for same in (sde, copy.copy(sde), copy.deepcopy(sde), pickled(sde), sde.narrowed(sde.t_min, 0.9 * sde.t_max)):
        for key in assigned:
            with pytest.raises(InvalidInputError, match=f"{type(sde).__name__}.{key} cannot be assigned"):
                setattr(same, key, 0.123)
    assert sde.at(0.5 * sde.t_max).sigma == before


@pytest.mark.parametrize("name", SDES)
def test_what_a_built_in_process_is_made_of_cannot_be_assigned(name):
    sde = SDES[name]
    for part in vars(sde).values():
        for key in vars(part) if type(part).__module__.startswith("sdegen.processes") else ():
            with pytest.raises(InvalidInputError, match=f"{key} of a .* cannot be assigned|{key} cannot be assigned"):
                setattr(part, key, 0.123)


def test_what_cannot_change_is_not_watched():
    """To watch it would take time at every step."""
    for name in ("vp", "sub-vp", "cosine", "linear-path", "ve", "edm", "trig"):
        assert SDES[name]._unwritten is None, name


class Held(sg.SDE):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def alpha(self, t):
        return 1 - 0.9 * t ** self.now()

    def sigma(self, t):
        return t

    def now(self):
        return self.power


class InDict(Held):
    def __init__(self, power):
        super().__init__({"power": [power]})

    def now(self):
        return self.power["power"][0]


def in_function(power):
    return sg.PathSDE(lambda t: 1 - 0.9 * t**power, lambda t: t)


HOLDERS = {"attribute": Held, "in a dict": InDict, "of a function": in_function}


@pytest.mark.parametrize("use", ["at one time", "at several", "a grid", "another path"])
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("where", HOLDERS)
def test_a_process_whose_tensor_is_written_into_is_honoured_or_refused(where, copied, use):
    uses = {
        "at one time": lambda sde: sde.at(0.5).alpha,
        "at several": lambda sde: sde.at(torch.tensor([0.5, 0.6], dtype=F64)).alpha[0],
        "a grid": lambda sde: sg.grid(sde, 5, kind="lambda")[2],
        "another path": lambda sde: sg.MixtureModel(sg.GaussianMixture([[1.0]], std=1.0), sde).on(sg.VESDE()).sde.t_max,
    }
    power = torch.tensor(3.0, dtype=F64)
    sde = HOLDERS[where](power)
    if copied:
        sde = sde.narrowed(sde.t_min, sde.t_max)
    power.fill_(2.0)  # nobody has asked yet
    fresh = HOLDERS[where](2.0)
    assert float(uses[use](sde)) == pytest.approx(float(uses[use](fresh)), rel=1e-12)
    uses["at one time"](sde)
    power.fill_(1.0)
    with pytest.raises(InvalidInputError, match="numbers that the process has used were changed"):
        uses["at one time"](sde)
    expected = pytest.approx(float(uses[use](HOLDERS[where](1.0))), rel=1e-12)
    assert float(uses[use](HOLDERS[where](power))) == expected
    try:  # what remembers nothing is as a new process says
        assert float(uses[use](sde)) == expected
    except InvalidInputError as error:
        assert "numbers that the process has used were changed" in str(error)


class OfClass(sg.SDE):
    power = 3.0

    def alpha(self, t):
        return 1 - 0.9 * t**self.power

    def sigma(self, t):
        return t


class OfObject(Held):
    def __init__(self, power):
        super().__init__(types.SimpleNamespace(power=power))

    def now(self):
        return self.power.power


POWER = 3.0


def of_closure():
    power = 3.0

    def change(value):
        nonlocal power
        power = value

    return sg.PathSDE(lambda t: 1 - 0.9 * t**power, lambda t: t), change


def of_array():
    power = np.array([3.0])
    return sg.PathSDE(lambda t: 1 - 0.9 * t ** float(power[0]), lambda t: t), lambda value: power.fill(value)


def of_partial():
    numbers = {"power": 3.0}
    alpha = functools.partial(lambda numbers, t: 1 - 0.9 * t ** numbers["power"], numbers)
    return sg.PathSDE(lambda t: alpha(t), lambda t: t), lambda value: numbers.update(power=value)


def of_module():
    return sg.PathSDE(lambda t: 1 - 0.9 * t**POWER, lambda t: t), lambda value: globals().update(POWER=value)


def held_in(kind, change):
    sde = kind(3.0) if kind is not OfClass else kind()
    return sde, lambda value: change(sde, value)


CHANGED = {
    "a list in a dict": lambda: held_in(InDict, lambda sde, value: sde.power["power"].__setitem__(0, value)),
    "an entry of a dict": lambda: held_in(InDict, lambda sde, value: sde.power.update(power=[value])),
    "an object": lambda: held_in(OfObject, lambda sde, value: setattr(sde.power, "power", value)),
    "its class": lambda: held_in(OfClass, lambda sde, value: setattr(OfClass, "power", value)),
    "a variable around a function": of_closure,
    "an array that a function uses": of_array,
    "an argument of a partial function": of_partial,
    "a variable of the module": of_module,
}


@pytest.mark.parametrize("where", CHANGED)
def test_a_process_whose_numbers_are_changed_is_honoured_or_refused(where):
    sde, change = CHANGED[where]()
    copied = copy.deepcopy(sde) if where not in ("an array that a function uses",) else sde.narrowed(1e-3, 1.0)
    try:
        change(2.0)  # nobody has asked yet
        assert sde.at(0.5).alpha == pytest.approx(1 - 0.9 * 0.5**2)
        model = sg.MixtureModel(sg.GaussianMixture([[1.0]], std=1.0), sde)
        sg.sample(model, 2, steps=3, seed=0)
        change(1.0)
        for ask in (lambda: sde.at(0.5), lambda: sg.sample(model, 2, steps=3, seed=0)):
            with pytest.raises(InvalidInputError, match="numbers that the process has used were changed"):
                ask()
        assert copied.at(0.5).alpha in (pytest.approx(1 - 0.9 * 0.5), pytest.approx(1 - 0.9 * 0.5**3))
    finally:
        change(3.0)


def test_a_process_that_counts_its_calls_goes_on():
    seen, times = {"calls": 0}, []

    def alpha(t):
        seen["calls"] += 1
        times.append(t)
        return 1 - 0.9 * t**3

    model = sg.MixtureModel(sg.GaussianMixture([[1.0]], std=1.0), sg.PathSDE(alpha, lambda t: t))
    first, second = (sg.sample(model, 2, steps=3, seed=0).x for _ in range(2))
    assert torch.equal(first, second) and seen["calls"] == len(times)


@pytest.mark.parametrize("name", SDES)
def test_the_arguments_that_a_process_tells_are_copies(name):
    sde = copy.deepcopy(SDES[name])
    before = sde.config
    for key in before or ():
        sde.config[key] = None
    assert sde.config == before


def test_a_process_is_trained_until_its_numbers_are_remembered():
    power = torch.nn.Parameter(torch.tensor(3.0, dtype=F64))
    sde, ts = Held(power), torch.tensor([0.5, 0.6], dtype=F64)
    for _ in range(2):
        sde.at(ts).alpha.sum().backward()
        with torch.no_grad():
            power.sub_(0.1)
    assert float(sde.at(0.5).alpha.detach()) == pytest.approx(1 - 0.9 * 0.5**2.8)
    with torch.no_grad():
        sde.at(0.5)
        power.sub_(0.1)
    with pytest.raises(InvalidInputError, match="numbers that the process has used were changed"):
        sde.at(0.5)
    for copied in (copy.deepcopy(sde), copy.copy(sde)):
        assert float(copied.at(0.5).alpha.detach()) == pytest.approx(1 - 0.9 * 0.5**2.7)


def test_numbers_at_several_times_are_remembered_once_they_are_asked_for():
    power, ts = torch.tensor(3.0, dtype=F64), torch.tensor([0.5, 0.6], dtype=F64)
    sde = Held(power)
    level = sde.at(ts)
    power.fill_(2.0)  # nobody has asked for a number yet
    assert torch.equal(sde.at(ts).alpha, 1 - 0.9 * ts**2) and torch.equal(level.alpha, 1 - 0.9 * ts**2)
    power.fill_(1.0)
    with pytest.raises(InvalidInputError, match="numbers that the process has used were changed"):
        sde.at(ts)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if "table" in name.lower() or "Tabulated" in name])
def test_tables_are_copies_and_are_not_written_into(name):
    sde = copy.deepcopy(BUILT_IN[name])
    before = sde.at(0.5 * sde.t_max).sigma
    for key, value in vars(sde).items():
        if isinstance(value, torch.Tensor):
            again = copy.deepcopy(sde)
            again.at(0.5 * sde.t_max)
            getattr(again, key).mul_(1.1)
            with pytest.raises(InvalidInputError, match="numbers that the process has used were changed"):
                again.at(0.5 * sde.t_max)
    assert sde.at(0.5 * sde.t_max).sigma == before


def pickled(sde):
    try:
        return pickle.loads(pickle.dumps(sde))
    except (AttributeError, pickle.PicklingError):  # made of lambdas
        return sde


# ---- times


WRONG_TIMES = {
    "NaN": math.nan,
    "infinite": math.inf,
    "negative": -0.1,
    "one of several NaN": torch.tensor([0.5, math.nan]),
    "one of several infinite": torch.tensor([0.5, math.inf]),
    "one of several negative": torch.tensor([-1e-3, 0.5]),
    "a tensor NaN": torch.tensor(math.nan),
    "complex": torch.tensor([0.5 + 0.1j, 0.2]),
    "complex number": 0.5 + 0.1j,
    "text": "0.5",
    "nothing": None,
    "truth": True,
}


@pytest.mark.parametrize("what", WRONG_TIMES)
@pytest.mark.parametrize("name", {**BUILT_IN, **OWN})
def test_times_that_are_none_are_refused(name, what):
    sde, t = {**BUILT_IN, **OWN}[name], WRONG_TIMES[what]
    x = torch.zeros(2, 2)
    calls = {function: lambda function=function: getattr(sde, function)(t) for function in FUNCTIONS}
    calls |= {"drift": lambda: sde.drift(x, t), "perturb": lambda: sde.perturb(x, t, x)}
    calls["network"] = lambda: sg.Denoiser(lambda x, t: x, sde)(x, t).x0
    calls["exact"] = lambda: sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=1.0), sde)(x, t).x0
    calls["other path"] = lambda: sg.Denoiser(lambda x, t: x, sde).on(sg.VESDE(0.02, 5.0))(x, t).x0
    for call in calls.values():
        with pytest.raises(InvalidInputError, match=r"t = |t is "):
            call()


def test_states_that_are_not_real_are_refused():
    model = sg.Denoiser(lambda x, t: x, sg.VPSDE())
    for x in (torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(InvalidInputError, match="expected a floating one"):
            model(x, 0.5)


def test_nothing_is_made_on_a_default_device():
    """Constants are made beside what they meet: on a default device without numbers all works that is told a device."""
    with torch.device("meta"):
        for make in (
            lambda: Cubic(),
            lambda: sg.VPSDE(),
            lambda: sg.TrigSDE(0.5),
            lambda: sg.TabulatedVPSDE([0.1, 0.2, 0.3]),
        ):
            sde = make()
            assert sde.alpha(0.5).device.type == "cpu"
            assert 0 < sde.at(0.5).alpha < 1
            level = sde.half_log_snr(torch.tensor([0.5], device="cpu"))
            torch.testing.assert_close(sde.time(level), torch.tensor([0.5], device="cpu"))
            noise = torch.zeros(3, 2, device="cpu")
            assert sde.perturb(noise, 0.5, noise).device.type == "cpu"
            assert bool(torch.isfinite(sde.prior((3, 2), seed=0, device="cpu")).all())


def test_verbs_work_beside_another_default_device():
    model = sg.MixtureModel(sg.GaussianMixture([[1.0, -0.5], [0.0, 0.5]], std=0.5), sg.VPSDE())
    net = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), data_mean=0.1, data_std=0.5)
    x = torch.randn(8, 2)
    calls = [
        lambda: sg.sample(model, 8, steps=10, seed=0).x,
        lambda: sg.sample(model, 8, rtol=1e-2, seed=0).x,
        lambda: sg.sample(net, (8, 2), steps=10, seed=0).x,
        lambda: sg.sample(net, (8, 2), rtol=1e-2, seed=0).x,
        lambda: sg.sample(model, 8, solver="dpm++2m-sde", steps=10, seed=0).x,
        lambda: sg.log_prob(model, x, rtol=1e-2, seed=0).nats,
        lambda: sg.encode(model, x, steps=10).x,
        lambda: sg.dsm_loss(net, x, seed=0),
    ]
    for call in calls:
        expected = call()
        with torch.device("meta"):
            assert torch.equal(call(), expected)


def test_a_run_is_the_same_beside_another_default_device(tmp_path):
    """Trained, saved, resumed and loaded: a default device without numbers is not asked for any."""
    data = torch.randn(40, 2)

    def trained(out, steps):
        torch.manual_seed(0)
        with torch.device("cpu"):
            model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE())
        words = dict(batch_size=8, out=out, progress=False, device="cpu", workers=0)
        seed = sg.fit(model, data, steps=steps, **words).seed
        assert sg.fit(model, data, steps=6, **words).seed == seed
        return sg.load(out, device="cpu")

    expected = trained(tmp_path / "plain", 3)
    with torch.device("meta"):
        found = trained(tmp_path / "meta", 3)
    pairs = zip(found.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
