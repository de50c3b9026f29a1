"""Solvers fitted to a model: the laws of the fit, when "auto" takes one, what is refused, and what a file keeps."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

import sdegen as sg
from sdegen.inference import fit_solver as fitting
from sdegen.inference import refine as refining
from sdegen.inference.lesson import Lesson, ridge_weights
from sdegen.inference.refine import Student, cost, refined
from sdegen.loop.modes import quiet
from sdegen.models.coordinates import Coordinates
from sdegen.models.identity import checksum, weights_of
from sdegen.models.prediction import Prediction
from sdegen.solvers.multistep.bands import Bands
from sdegen.solvers.multistep.fitted import Fit, Fitted, FittedTo
from sdegen.testing.wrappers import pass_through

F64 = torch.float64
RING = [[1.5 * math.cos(a), 1.5 * math.sin(a)] for a in torch.arange(8).mul(math.pi / 4).tolist()]
MIXTURE = sg.GaussianMixture(RING, std=0.3)
LABELS = torch.arange(24) % 2


def exact(sde: sg.SDE | None = None) -> sg.MixtureModel:
    return sg.MixtureModel(MIXTURE, sde or sg.VPSDE(), labels=[0, 1] * 4)


@pytest.fixture(scope="module")
def network() -> sg.Denoiser:
    """A small network of the ring's two classes."""
    torch.manual_seed(0)
    net = sg.nets.MLP(2, hidden=32, layers=2, n_classes=2, label_dropout=0.2)
    model, x = sg.Denoiser(net, sg.VPSDE()), MIXTURE.sample(2000, seed=0).float()
    label = ((x[:, 1].atan2(x[:, 0]) / (math.pi / 4)).round().long() % 2).long()
    sg.fit(model, x, steps=400, batch_size=128, lr=3e-3, seed=0, progress=False, label=label)
    return model.eval()


@pytest.fixture(scope="module")
def fitted(network: sg.Denoiser) -> sg.Solver:
    return sg.fit_solver(network, steps=(5, 8), samples=96, label=torch.arange(96) % 2)


def lesson(model: sg.ScoreModel, n: int = 32, *, steps: int = 64) -> Lesson:
    return Lesson.of(model, fitting.prior_draws(model, n, 0), {}, steps)


def holding(model: sg.ScoreModel, weights: torch.Tensor) -> Fitted:
    """The solver with these weights on the nodes that are not bent."""
    n = weights.shape[-1]
    return Fitted(FittedTo.of(model, ()), {n: Fit(nodes(model, n), weights, 0.0, 1.0, 0)})


def nodes(model: sg.ScoreModel, n: int) -> torch.Tensor:
    return fitting._nodes(Coordinates.best_of(model), n, (0.0, 0.0))


def errors(model, solver, n, *, seed=1, rows=64, **cond):
    end = sg.sample(model, rows, solver="adams", steps=150, seed=seed, **cond).x
    x = sg.sample(model, rows, solver=solver, steps=n, seed=seed, **cond).x
    return float((x - end).square().mean().sqrt()) / model.sigma_data


# ---- the ten laws


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_an_endless_ridge_is_adams_on_the_same_nodes(n):
    model, angles = exact(), nodes(exact(), n)
    learning = lesson(model)
    weights, _ = learning.learned(angles, Bands(), ridge=1e30)
    term = sg.ProbabilityFlow(learning.view.model)
    how = {"solver": sg.make_solver("adams", order=(2, 3)), "steps": angles, "save": "all"}
    found = sg.solve(term, learning.start, **how).xs
    slopes, y = [], learning.start
    for k in range(n):
        slopes.append(term.drift(y, angles[k]))
        y = learning.start + sum(w * v for w, v in zip(weights[k, 0], slopes))
        torch.testing.assert_close(y, found[k + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=["vp", "edm"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_round_gaussian_is_exact_in_one_step(sde, n):
    model = sg.MixtureModel(sg.GaussianMixture([[1.0, -2.0, 0.5]], std=0.7), sde)
    weights, error = lesson(model).learned(nodes(model, n), Bands())
    assert error < 1e-10
    how = {"seed": 0, "dtype": F64}
    found, end = (
        sg.sample(model, 16, solver=s, steps=k, **how).x for s, k in ((holding(model, weights), n), ("adams", 60))
    )
    torch.testing.assert_close(found, end, rtol=1e-10, atol=1e-10)


class Shaped(sg.Wrapped):
    """A belief about vectors as one about events of another shape."""

    def __init__(self, model, shape):
        super().__init__(model, covariance=None, mean=None, event_shape=shape)

    def forward(self, x, t):
        found = self.model(x.flatten(1), t)
        return Prediction(found.x0.reshape(x.shape), found.noise.reshape(x.shape), self.sde, t)


@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 2, 2)], ids=["vector", "image", "channels"])
def test_a_linear_model_with_a_band_for_each_direction_is_exact(shape):
    d, count = math.prod(shape), math.prod(shape[-2:])
    if len(shape) == 1:
        turn = torch.linalg.qr(torch.randn(d, d, dtype=F64, generator=torch.Generator().manual_seed(0))).Q
        bands = Bands.of(d, torch.zeros(1, d), turn.T @ torch.logspace(0.3, -2, d, dtype=F64).diag() @ turn)
    else:
        bands = Bands.of(count, torch.zeros(1, *shape))
    assert bands.band.bincount().tolist() == [d // count] * count
    turn = bands.into(torch.eye(d, dtype=F64).reshape(d, *shape)).reshape(d, d)  # its columns: directions
    covariance = turn @ torch.logspace(0.3, -2, count, dtype=F64)[bands.band].diag() @ turn.T
    model = Shaped(sg.MixtureModel(sg.GaussianMixture([[0.0] * d], covariances=covariance[None]), sg.VPSDE()), shape)
    learning = lesson(model, 24, steps=250)
    error, plain = (learning.learned(nodes(model, 8), b)[1] for b in (bands, Bands()))
    assert error < 1e-6 and plain > 20 * error


def test_more_past_slopes_never_leave_more():
    model = exact()
    learning = lesson(model)
    angles, y = nodes(model, 6), learning.start
    term = sg.ProbabilityFlow(learning.view.model)
    slopes = torch.stack([term.drift(learning.at(float(a)), a).flatten() for a in angles[:-1]])
    rest = (learning.at(float(angles[-1])) - y).flatten()
    left = []
    for k in range(1, 7):
        f = slopes[-k:]
        left.append(float((rest - ridge_weights(f @ f.T, f @ rest, 1e-10) @ f).norm()))
    assert left == sorted(left, reverse=True) and left[-1] < left[0] / 10


def test_a_fit_is_the_same_twice_and_a_batch_may_be_cut(network, fitted):
    again = sg.fit_solver(network, steps=(5, 8), samples=96, label=torch.arange(96) % 2)
    for n in (5, 8):
        assert torch.equal(again.fits[n].weights, fitted.fits[n].weights)
        assert torch.equal(again.fits[n].angles, fitted.fits[n].angles)
    how = {"steps": 8, "solver": fitted, "seed": 3, "label": LABELS, "dtype": F64}
    whole, cut = (sg.sample(copy.deepcopy(network).double(), 24, batch_size=b, **how).x for b in (None, 7))
    torch.testing.assert_close(whole, cut, rtol=1e-12, atol=1e-12)


def test_it_stays_ahead_as_the_steps_grow():
    model = sg.MixtureModel(sg.GaussianMixture(RING[:3], std=0.3), sg.VPSDE())
    model.smooth = False  # the orders of networks, which do not grow
    counts = (4, 8, 16, 32)
    solver = sg.fit_solver(model, steps=counts, samples=96)
    for n in counts:
        fit = solver.fits[n]
        own, other = (errors(model, s, n, dtype=F64) for s in (solver, "adams"))
        assert own <= 1.1 * other and (not fit.better or fit.error < 1.1 * fit.unfitted)
    assert solver.steps[:2] == (4, 8)


def test_processes_share_their_solvers(network, fitted):
    sde = network.sde
    low, high = (float(sde.sigma(t) / sde.alpha(t)) for t in (sde.t_min, sde.t_max))
    model = copy.deepcopy(network).double()
    other, x = model.on(sg.EDMSDE(low, high)), model.sde.prior((24, 2), seed=0, dtype=F64)
    there = x / float(sde.alpha(sde.t_max))
    how = {"steps": 8, "label": LABELS}
    one, two = (sg.sample(m, y.shape, x_init=y, **how) for m, y in ((model, x), (other, there)))
    assert one.solver == two.solver and "fitted" in two.solver
    torch.testing.assert_close(one.x, two.x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("counts", [(5,), (20,), (3, 8, 12)])
def test_evaluations_are_counted(network, fitted, counts):
    calls = []
    handle = network.net.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    try:
        found = sg.sample(network, 24, steps=8, seed=0, label=LABELS)
        assert found.nfe.tolist() == [8] * 24 and found.calls == len(calls) == 8
        calls.clear()
        fits = sg.fit_solver(copy.deepcopy(network), steps=counts, label=torch.arange(64) % 2).fits
    finally:
        handle.remove()
    assert abs(sum(fit.evaluations for fit in fits.values()) - sum(calls)) <= len(counts) / 2  # rounded shares
    assert all(fit.evaluations <= 10_000 for fit in fits.values())


@pytest.mark.parametrize("n", [5, 8, 15])
@pytest.mark.parametrize("size", [2, 64, 400])
def test_a_search_looks_at_all_samples_that_it_can_afford(size, n, monkeypatch):
    """A grid is the best one of the samples looked at: fewer than all that learn, only where more would cost probes."""
    calls, kept, search, refine = [], [0], fitting._searched, fitting.refined

    def also_watched(own, *args, most):
        before = own.spent[0]
        found = refine(own, *args, most=most)
        kept[0] += most * len(own.start) * cost(n) - (own.spent[0] - before)  # for refining, and not taken
        return found

    def watched(lesson, n, bend, probes, rests):
        before = lesson.spent[0]
        found = search(lesson, n, bend, probes, rests)
        calls.append((len(lesson.start), probes, lesson.spent[0] - before))
        return found

    monkeypatch.setattr(fitting, "_searched", watched)
    monkeypatch.setattr(fitting, "refined", also_watched)
    model = sg.MixtureModel(sg.GaussianMixture(torch.eye(size, dtype=F64)[:2] * 3, std=0.3), sg.VPSDE())
    fit = sg.fit_solver(model, steps=n).fits[n]
    ((rows, probes, spent),) = calls
    learning, left = 43, 10_000 - (fit.evaluations - spent + kept[0])
    assert rows >= min(learning, max(12, 1280 // size))  # whatever it costs
    assert rows == learning or left < fitting._PROBES * n * (rows + 6)  # what else a fit may look at, at most
    assert spent <= probes * n * rows and fit.evaluations <= 10_000


@pytest.mark.parametrize("n", [2, 5, 8])
def test_a_teacher_of_other_noises_is_found_out(network, n, monkeypatch):
    taught = Lesson.of

    def shuffled(*args, **kwargs):
        right = taught(*args, **kwargs)
        other = torch.randperm(len(right.start), generator=torch.Generator().manual_seed(0))
        return replace(right, path=right.path[:, other], end=right.end[other])

    monkeypatch.setattr(fitting.Lesson, "of", shuffled)
    model = copy.deepcopy(network)
    model.solvers = ()
    found = sg.fit_solver(model, steps=n, label=torch.arange(64) % 2)
    assert found.steps == () and not found.fits[n].better
    ran = sg.sample(model, 24, steps=n, seed=0, label=LABELS)
    assert "fitted" not in ran.solver
    told = sg.sample(model, 24, steps=n, seed=0, solver=found, label=LABELS)
    assert told.solver == ran.solver and torch.equal(told.x, ran.x)


@pytest.mark.parametrize("n", [5, 6])
def test_refining_takes_off_more_and_knows_its_cost(network, n):
    with quiet(network):
        learning = Lesson.of(network, fitting.prior_draws(network, 48, 0), {"label": torch.arange(48) % 2}, 48)
        rows = torch.arange(48)
        own, held = learning.only(rows[:32]), learning.only(rows[32:])
        angles = nodes(network, n)
        before = (angles, learning.learned(angles, Bands())[0])
        student, judge = (Student(some, Bands(), before[1]) for some in (own, held))
        own.spent[0] = 0
        after = refined(own, own, *before, Bands(), most=1)
        assert own.spent[0] <= 32 * (cost(n) + 2 * n)  # and two looks of the judge
        assert student.landed(*after)[1].norm() < 0.9 * student.landed(*before)[1].norm()
        stopped = refined(learning.only(rows[:3]), held, *before, Bands(), most=8)
        assert judge.error(*stopped) <= judge.error(*before)
        assert bool((after[0].diff() < 0).all()) and torch.equal(after[0][[0, -1]], angles[[0, -1]])


def test_differences_are_derivatives():
    model, n = exact(), 3
    learning, angles = lesson(model), nodes(exact(), n)
    weights = learning.learned(angles, Bands())[0]
    student = Student(learning, Bands(), weights)
    weights, rest, slopes = student.landed(angles, weights)
    found = student.jacobian(angles, weights, rest, slopes)
    assert found.shape == (len(rest), 2 + 1 + 2)
    for i in range(found.shape[1]):
        change = torch.zeros(5, dtype=F64)
        change[i] = 1e-3
        up, down = (student.landed(*refining._changed(angles, weights, sign * change))[1] for sign in (1, -1))
        torch.testing.assert_close(
            found[:, i], (up - down) / 2e-3, rtol=0.02, atol=0.02 * float(found[:, i].abs().max())
        )


# ---- what it brings, and when it is taken


def test_it_is_much_better_than_nothing_fitted(network, fitted):
    for n in (5, 8):
        own, other = (errors(network, s, n, label=torch.arange(64) % 2) for s in (fitted, "adams"))
        assert own < 0.7 * other
        assert 0.4 < own / fitted.fits[n].error < 2.5  # what it says of itself


RUNS = {
    "steps": {"steps": 7},
    "eta": {"eta": 1.0},
    "span": {"t_span": (0.5, 0.0)},
    "conditions": {"label": None},
    "tolerance": {"steps": None, "rtol": 1e-2},
    "times": {"steps": [1.0, 0.5, 0.1, 0.0]},
    "nothing": {"steps": None},
}


@pytest.mark.parametrize("changed", RUNS)
def test_other_runs_are_not_its_own(network, fitted, changed):
    how = {"steps": 8, "seed": 0, "label": LABELS, **RUNS[changed]}
    how = {name: value for name, value in how.items() if value is not None}
    assert "fitted" not in sg.sample(network, 24, **how).solver
    with pytest.raises(sg.InvalidInputError):
        sg.sample(network, 24, solver=fitted, **how)


def test_it_ends_at_t_min_too(network, fitted):
    span = (network.sde.t_max, network.sde.t_min)
    how = {"seed": 1, "t_span": span, "label": LABELS}
    found = sg.sample(network, 24, steps=8, **how)
    end, other = (sg.sample(network, 24, steps=n, solver="adams", **how).x for n in (150, 8))
    assert "fitted" in found.solver and found.nfe.tolist() == [8] * 24
    assert (found.x - end).norm() < 0.7 * (other - end).norm()


def test_changed_weights_are_refused_by_name(network, fitted, tmp_path):
    model = copy.deepcopy(network)
    name, weight = list(model.named_parameters())[3]
    weight.data[0] += 1e-6
    assert "fitted" not in sg.sample(model, 24, steps=8, seed=0, label=LABELS).solver
    for use in (
        lambda: sg.sample(model, 24, steps=8, solver=fitted, label=LABELS),
        lambda: sg.save(model, tmp_path / "model", solvers=fitted),
    ):
        with pytest.raises(sg.InvalidInputError, match=name):
            use()
    sg.save(model, tmp_path / "model")
    assert sg.load(tmp_path / "model").solvers == ()


def test_a_log_density_is_not_fitted(network, fitted):
    with pytest.raises(sg.InvalidInputError, match="densities"):
        sg.sample(network, 24, steps=8, solver=fitted, label=LABELS, return_log_prob=True)
    how = {"steps": 8, "seed": 0, "label": LABELS, "return_log_prob": True}
    assert "adams" in sg.sample(network, 24, **how).solver


def test_guidance_is_part_of_what_it_is_fitted_to(network):
    plain = copy.deepcopy(network)
    plain.solvers = ()
    guided = sg.Guided(plain, 2.0, null={"label": -1})
    found = sg.fit_solver(guided, steps=5, label=torch.arange(64) % 2)
    assert found.fits[5].better and found.fits[5].evaluations <= 2 * 10_000
    how = {"steps": 5, "seed": 0, "label": LABELS}
    ran = sg.sample(guided, 24, **how)
    assert "fitted" in ran.solver and ran.nfe.tolist() == [10] * 24
    again = sg.Guided(plain, 2.0, null={"label": -1})
    assert torch.equal(sg.sample(again, 24, **how).x, ran.x)
    stronger = sg.Guided(plain, 3.0, null={"label": -1})
    for other in (plain, stronger, pass_through(guided)):
        assert "fitted" not in sg.sample(other, 24, **how).solver
    with pytest.raises(sg.InvalidInputError, match="Guided"):
        sg.sample(plain, 24, solver=found, **how)
    with pytest.warns(UserWarning, match="Guided"):
        sg.sample(stronger, 24, solver=found, **how)
    also = sg.fit_solver(plain, steps=5, label=torch.arange(64) % 2)
    assert also in plain.solvers and found in plain.solvers
    assert all("fitted" in sg.sample(m, 24, **how).solver for m in (plain, guided))


class Bare(sg.Wrapped):
    """A wrapper without a `forward` of its own."""


def test_a_wrapper_that_changes_nothing_takes_the_solver_of_the_model_inside(network, fitted):
    model = copy.copy(network)
    model.solvers = (fitted,)
    words = {"steps": 5, "seed": 0, "label": LABELS}
    expected = sg.sample(model, 24, **words)
    assert "fitted" in expected.solver
    for wrapper in (Bare(model), Bare(Bare(model))):
        found = sg.sample(wrapper, 24, **words)
        assert found.solver == expected.solver and torch.equal(found.x, expected.x)
    for other in (pass_through(model), Bare(model, std=0.5)):  # its belief, or its data, may be another one
        assert "fitted" not in sg.sample(other, 24, **words).solver


def test_what_cannot_be_told_from_others_is_refused(network):
    strange = sg.Guided(network, lambda level: 2.0 + 0 * level, null={"label": -1})
    with pytest.raises(sg.InvalidInputError, match="scale of Guided"):
        sg.fit_solver(strange, steps=5, label=torch.arange(64) % 2)
    with pytest.raises(sg.InvalidInputError, match="bands"):
        sg.fit_solver(network, steps=5, bands=3, label=torch.arange(64) % 2)
    with pytest.raises(sg.InvalidInputError, match="label"):
        sg.fit_solver(network, steps=5, samples=32, label=torch.arange(64) % 2)


# ---- in a file


def test_a_file_keeps_it_to_the_bit(network, fitted, tmp_path):
    path = tmp_path / "model"
    sg.save(network, path, solvers=fitted)
    model = sg.load(path, device="cpu")
    how = {"steps": 5, "seed": 4, "label": LABELS}
    one, two = sg.sample(network, 24, solver=fitted, **how), sg.sample(model, 24, **how)
    assert torch.equal(one.x, two.x) and one.solver == two.solver
    (again,) = model.solvers
    assert again.to == fitted.to and again.steps == fitted.steps
    for name in ("angles", "weights"):
        read, kept = (getattr(solver.fits[8], name) for solver in (again, fitted))
        assert read.dtype == kept.dtype and torch.equal(read, kept)
    sg.save(model, tmp_path / "copy")  # what it carries goes with it
    assert sg.load(tmp_path / "copy", device="cpu").solvers[0].fits[8].error == fitted.fits[8].error


@pytest.mark.parametrize("bands", [1, 2])
def test_bands_are_kept(bands, tmp_path):
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.MLP(2, hidden=16, layers=1), sg.VPSDE(), data_mean=0.3, data_std=1.2)
    model.event_shape = (2,)
    solver = sg.fit_solver(model, steps=4, bands=bands)
    sg.save(model, tmp_path / "model")
    again = sg.load(tmp_path / "model", device="cpu")
    assert solver.bands.count == again.solvers[0].bands.count == bands
    one, two = (sg.sample(m, 5, steps=4, seed=0, solver=m.solvers[0]).x for m in (model.eval(), again))
    assert torch.equal(one, two)


def test_damage_and_other_weights_are_refused(network, fitted, tmp_path):
    path = tmp_path / "model"
    sg.save(network, path, solvers=fitted)
    whole = (path / "solvers.safetensors").read_bytes()
    for place in (40, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (path / "solvers.safetensors").write_bytes(bytes(damaged))
        with pytest.raises(sg.CorruptCheckpointError):
            sg.load(path)
    other = copy.deepcopy(network)
    next(other.parameters()).data.add_(0.1)
    (path / "solvers.safetensors").write_bytes(whole)
    state = sg.storage.read(path, ["model", "solvers"])
    tensors = {"model": sg.storage.model_tensors(other), "solvers": state[0]["solvers"]}
    sg.storage.write(tmp_path / "mixed", tensors, state[1])
    with pytest.raises(sg.IncompatibleCheckpointError, match="weights"):
        sg.load(tmp_path / "mixed")


STRANGE = {
    "no list": lambda state, tensors: state.update(solvers=7),
    "bands": lambda state, tensors: state["solvers"][0].update(bands=3),
    "no angles": lambda state, tensors: tensors.pop("0.5.angles"),
    "rising angles": lambda state, tensors: tensors.update({"0.5.angles": tensors["0.5.angles"].flip(0)}),
    "other weights": lambda state, tensors: tensors.update({"0.8.weights": tensors["0.5.weights"]}),
    "not finite": lambda state, tensors: tensors["0.8.weights"].fill_(math.nan),
    "words": lambda state, tensors: state["solvers"][0]["fits"].update(many=1),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_file_is_refused(network, fitted, tmp_path, what):
    sg.save(network, tmp_path / "model", solvers=fitted)
    tensors, state = sg.storage.read(tmp_path / "model", ["model", "solvers"])
    STRANGE[what](state, tensors["solvers"])
    sg.storage.write(tmp_path / "strange", tensors, state)
    with pytest.raises(sg.IncompatibleCheckpointError):
        sg.load(tmp_path / "strange")


# ---- what tells models apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64])
def test_no_change_of_a_number_goes_unseen(dtype):
    x = (torch.arange(1, 200).reshape(1, -1) / 8).to(dtype)
    for i in (0, 100, 198):
        y = x.clone()
        y[0, i] = y[0, i] * 1.01 + 1
        assert checksum(y) != checksum(x)
    assert checksum(x) == checksum(x.clone()) != checksum(x.flip(1)) and checksum(x) != checksum(x.T)


def test_dtypes_that_hold_the_same_numbers_are_the_same_model(network):
    assert (
        weights_of(copy.deepcopy(network).double()) == weights_of(network) != weights_of(copy.deepcopy(network).half())
    )
    one, two = (sg.MixtureModel(sg.GaussianMixture([[0.0], [m]], std=0.5), sg.VPSDE()) for m in (1.0, 1.1))
    assert weights_of(one) != weights_of(two)
