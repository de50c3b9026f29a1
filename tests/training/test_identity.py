"""A run goes on with its own data: others are refused with both values, or told; random ones are the same again."""

from __future__ import annotations

import functools
import math
import random
import shutil
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import points, small
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sdegen as sg
from sdegen.core.errors import IncompatibleCheckpointError, InvalidInputError
from sdegen.storage import read, steps, write
from sdegen.training.sources import batches

fit = functools.partial(sg.fit, progress=False, device="cpu")
X = points(100)


def labelled(k: int = 3):
    return [(x, {"label": i % k}) for i, x in enumerate(X)]


def classes(_: int = 0):
    return small(n_classes=3)


# ---- data

OTHER_DATA: dict[str, tuple[Any, Any]] = {
    "fewer": (X, X[:99]),
    "far away": (X, X + 50),
    "wider": (X, X * 3),
    "list": (list(X), list(X + 1)),
    "labels": (labelled(3), labelled(2)),
    "labels gone": (labelled(3), list(X)),
    "loader": (DataLoader(TensorDataset(X), batch_size=8, shuffle=True), DataLoader(TensorDataset(X + 1), batch_size=8, shuffle=True)),
    "loader of fewer": (DataLoader(TensorDataset(X), batch_size=8), DataLoader(TensorDataset(X[:98]), batch_size=8)),
    "generator": (lambda: (X[i : i + 20] for i in range(0, 100, 20)), lambda: (X[i : i + 20] + 9 for i in range(0, 100, 20))),
    "wide generator": (lambda: (X[i : i + 20] for i in range(0, 100, 20)), lambda: (X[i : i + 20] * 5 for i in range(0, 100, 20))),
}  # fmt: skip


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("then", "now"), OTHER_DATA.values(), ids=OTHER_DATA.keys())
def test_other_data_are_refused_with_the_two_values(tmp_path, then, now, finished):
    model = classes()
    then, now = (data() if callable(data) else data for data in (then, now))
    fit(model, then, steps=4, batch_size=8, seed=0, out=tmp_path)
    other = classes()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(IncompatibleCheckpointError, match=r"data .*got .*made with .*another out=") as error:
        fit(other, now, steps=4 if finished else 8, batch_size=8, out=tmp_path)
    told = str(error.value)
    assert told.count("mean") == 2 and told.count("standard deviation") == 2
    after = other.state_dict()
    assert before.keys() == after.keys() and other.data_mean is None and other.event_shape == (2,)
    assert all(torch.equal(after[name], value) for name, value in before.items() if value.isfinite().all())


ALIKE: dict[str, tuple[Any, Any]] = {
    "one row": (X, torch.cat([X[:50], X[50:51] + 3, X[51:]])),
    "drawn anew": (X, points(100, seed=4)),
    "in another order": (X, X.flip(0)),
    "rounded": (X, X.bfloat16().float()),
    "dataset": (TensorDataset(X), TensorDataset(X.flip(0))),
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("then", "now"), ALIKE.values(), ids=ALIKE.keys())
def test_other_data_of_the_same_size_and_spread_are_told(tmp_path, then, now, finished):
    """They may have been drawn anew."""
    fit(small(), then, steps=4, batch_size=8, seed=0, out=tmp_path)
    with pytest.warns(UserWarning, match="goes on with what is not as before: .*data: other samples"):
        fit(small(), now, steps=4 if finished else 8, batch_size=8, out=tmp_path)


def test_other_conditions_are_refused(tmp_path):
    label = torch.arange(100) % 3
    fit(classes(), X, steps=2, batch_size=8, seed=0, out=tmp_path, label=label)
    for cond in ({"label": (label + 1) % 3}, {"label": 1}, {}):
        with pytest.raises(IncompatibleCheckpointError, match="data"):
            fit(classes(), X, steps=4, batch_size=8, out=tmp_path, **cond)
    fit(classes(), X, steps=4, batch_size=8, out=tmp_path, label=label.clone())


class Changing(Dataset):
    """Samples that are never the same: drawn by the machine's own generator."""

    def __init__(self, scale: float = 1.0) -> None:
        self.random, self.scale = np.random.default_rng(), scale

    def __len__(self) -> int:
        return 400

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.random.standard_normal(2) * self.scale).float()


class Stop(Exception):
    pass


def _stop(*_: Any) -> None:
    raise Stop


@pytest.mark.parametrize(
    "data",
    [
        lambda: X.clone(),
        lambda: X.numpy(),
        lambda: list(X),
        lambda: labelled(3),
        Changing,
        lambda: DataLoader(TensorDataset(X), batch_size=8, shuffle=True),
        lambda: DataLoader(TensorDataset(X), batch_size=8, shuffle=True, generator=torch.Generator()),
        lambda: (torch.randn(64, 2) for _ in range(20)),
    ],
)
def test_the_same_data_go_on_without_a_word(tmp_path, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Stop):
            fit(classes(), data(), steps=8, batch_size=8, seed=0, out=tmp_path, save_every=1, callback=_stop, callback_every=4)  # fmt: skip
        torch.randn(5)
        fit(classes(), data(), steps=8, batch_size=8, out=tmp_path)


def test_what_is_never_the_same_is_known_by_its_size_and_spread(tmp_path):
    fit(small(), Changing(), steps=2, batch_size=8, seed=0, out=tmp_path)
    for scale in (0.3, 3.0):
        with pytest.raises(IncompatibleCheckpointError, match="standard deviation"):
            fit(small(), Changing(scale), steps=4, batch_size=8, out=tmp_path)


def test_checkpoints_from_before_go_on_and_broken_ones_are_named(tmp_path):
    fit(small(), X, steps=2, batch_size=8, seed=0, out=tmp_path)
    newest = steps(tmp_path)[-1]
    tensors, state = read(newest, ["model", "training"])
    for made_with, error in (
        ({}, None),
        ({"settings": {}}, None),
        ([1], IncompatibleCheckpointError),
        ({"data": {"samples": 3}}, IncompatibleCheckpointError),
        ({"settings": 3}, IncompatibleCheckpointError),
    ):
        write(newest, tensors, {**state, "training": {**state["training"], "made_with": made_with}})
        if error is None:
            fit(small(), X + 1, steps=2, batch_size=8, out=tmp_path)
        else:
            with pytest.raises(error):
                fit(small(), X, steps=2, batch_size=8, out=tmp_path)
    for training in ({}, {"seed": 0}, {"step": "many", "seed": 0}, [], {**state["training"], "seed": "x"}, {**state["training"], "failures": None}):  # fmt: skip
        write(newest, tensors, {**state, "training": training})
        with pytest.raises(IncompatibleCheckpointError):
            fit(small(), X, steps=2, batch_size=8, out=tmp_path)
    for model in (None, [], {}, {**state["model"], "sde": {}}, {**state["model"], "sde": {"path": [[]] * 5}}):
        write(newest, tensors, {**state, "model": model})
        with pytest.raises(IncompatibleCheckpointError):
            fit(small(), X, steps=2, batch_size=8, out=tmp_path)


def test_a_run_does_not_go_on_with_weights_or_moments_that_are_not_finite(tmp_path):
    words = dict(batch_size=8, seed=0, out=tmp_path, ema=(0.05, 0.1))
    fit(small(), X, steps=4, save_every=2, **words)
    newest = steps(tmp_path)[-1]
    tensors, state = read(newest, ["model", "training"])
    kinds = ("weight.", "average1.", "optimizer.net.out.weight.exp_avg", "optimizer.net.out.weight.exp_avg_sq")
    for name in (next(name for name in tensors["training"] if name.startswith(kind)) for kind in kinds):
        for wrong in (math.nan, math.inf):
            spoilt = {**tensors["training"], name: tensors["training"][name].clone()}
            spoilt[name].view(-1)[0] = wrong
            write(newest, {**tensors, "training": spoilt}, state)
            with pytest.raises(IncompatibleCheckpointError, match="holds NaN or infinity"):
                fit(small(), X, steps=8, **words)
    shutil.rmtree(newest)
    assert len(fit(small(), X, steps=8, **words).loss) == 8  # from the one before it


# ---- random data


class Augmented(Dataset):
    """Noise from every global generator on every sample."""

    def __init__(self, seen: list | None = None) -> None:
        self.seen = seen

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> Tensor:
        noise = torch.tensor([float(torch.randn(())), np.random.standard_normal() + random.gauss(0, 1)])  # noqa: NPY002
        if self.seen is not None:
            self.seen.append(noise)
        return X[i] + noise.float()


class Batched(IterableDataset):
    def __iter__(self):
        for i in range(7):
            yield torch.stack([Augmented()[j] for j in range(i, i + 8)])


def never_the_same() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


RANDOM = {
    "dataset": Augmented,
    "loader": lambda: DataLoader(Augmented(), batch_size=8, shuffle=True),
    "loader with a generator": lambda: DataLoader(Augmented(), batch_size=8, shuffle=True, generator=never_the_same()),
    "workers": lambda: DataLoader(Augmented(), batch_size=8, shuffle=True, num_workers=2, multiprocessing_context="fork"),
    "workers that stay": lambda: DataLoader(
        Augmented(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    ),
    "iterable": Batched,
    "iterable, a worker seeded by a generator": lambda: DataLoader(
        Batched(), batch_size=None, num_workers=1, generator=never_the_same(), multiprocessing_context="fork"
    ),
    "generator": lambda: (torch.stack([Augmented()[j] for j in range(8)]) for _ in range(100)),
}  # fmt: skip


@pytest.mark.parametrize("kind", RANDOM)
def test_random_data_are_decided_by_seed_and_step(tmp_path, kind):
    """The same after any cut, whatever the generators were before; and they are as they were afterwards."""

    def run(name: str, stops: tuple[int, ...]) -> nn.Module:
        for at in (*stops, None):
            torch.manual_seed(random.randrange(10**6))
            np.random.seed(random.randrange(10**6))  # noqa: NPY002

            def look(step: int, model: sg.ScoreModel, history: sg.History, at: int | None = at) -> None:
                if step == at:
                    raise Stop

            model = small()
            before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
            try:
                fit(model, RANDOM[kind](), steps=18, batch_size=8, seed=3, out=tmp_path / name, save_every=1, callback=look, callback_every=1)  # fmt: skip
            except Stop:
                continue
            finally:
                after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
                assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        return model

    random.seed(kind)
    whole, broken = run("whole", ()), run("broken", (1, 8, 9, 15))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))


def test_the_first_step_draws_by_the_seed_and_every_step_draws_anew():
    seen: list[list[Tensor]] = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(before)
        drawn: list[Tensor] = []
        history = fit(small(), Augmented(drawn), steps=3, batch_size=8, seed=seed)
        assert history.seed == seed
        seen.append(drawn[-24:])
    one, same, other = (torch.stack(drawn) for drawn in seen)
    assert torch.equal(one, same) and len(one.unique()) == 48
    assert not torch.isin(other, one).any()


# ---- files larger than memory


@pytest.mark.parametrize("view", ["file", "reversed", "slice"])
def test_a_mapped_file_trains_as_the_array(tmp_path, view):
    cut = {"file": np.s_[:], "reversed": np.s_[::-1], "slice": np.s_[3:90:2]}[view]
    array = X.numpy()
    array.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=array.shape)
    one, two = small(), small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(one, array[cut].copy(), steps=5, batch_size=16, seed=0)
        fit(two, mapped[cut], steps=5, batch_size=16, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_what_is_measured_of_a_mapped_file_takes_no_more_memory_for_more_or_larger_samples(tmp_path):
    """The largest tensor that is made on the way, samples that are kept for principal axes among them."""

    class Largest(TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, tuple | list) else (out,):
                if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() != given:
                    self.nbytes = max(self.nbytes, part.untyped_storage().nbytes())
            return out

    for shape in ((900, 1, 160, 160), (40_000, 600), (33, 1, 512, 512)):
        with open(tmp_path / "x", "wb") as file:
            file.truncate(4 * math.prod(shape))
        data = torch.from_numpy(np.memmap(tmp_path / "x", np.float32, "r+", shape=shape))
        given = data.untyped_storage().data_ptr()
        with Largest() as seen:
            batches(data, {}, 4).statistics()
        assert seen.nbytes <= 2**26, shape


@pytest.mark.parametrize("dtype", [">f4", "f2", "i8", "O", "U3", "c8"])
def test_arrays_that_are_no_numbers_are_refused(dtype):
    data = np.zeros((4, 2), dtype)
    if dtype == "f2":  # half precision is a floating dtype
        fit(small().half(), data + np.float16(1), steps=1, batch_size=4, seed=0, loss=lambda m, x0: m(x0.float(), 0.5).x0.mean(1))  # fmt: skip
        return
    with pytest.raises(InvalidInputError, match="data"):
        fit(small(), data, steps=1)


@pytest.mark.parametrize("statistics", [None, "keep", "measure"])
@pytest.mark.parametrize("known", [True, False])
def test_data_that_are_not_finite_are_refused_whatever_is_known(statistics, known):
    x = X.clone()
    x[70, 1] = torch.nan
    model = small()
    if known:
        model.set_statistics(0.0, 1.0)
    for data in (x, x.numpy()):
        with pytest.raises(InvalidInputError, match=r"NaN or infinity in 1 samples \(70\)"):
            fit(model, data, steps=2, batch_size=8, seed=0, statistics=statistics)


def test_statistics_do_not_depend_on_the_chunks(monkeypatch):
    from sdegen.training import indexed as module
    from sdegen.training.sources import batches

    x = torch.randn(300, 3, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100
    for numbers in (1, 40, 10**9):
        monkeypatch.setattr(module, "_CHUNK_NUMBERS", numbers)
        found = batches(x, {}, 8).statistics()
        torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-12, atol=0)
        assert found.std == pytest.approx(float((x.double() - found.mean).square().mean().sqrt()), rel=1e-10)
        assert found.samples == 300
    x[::50] = torch.inf
    with pytest.raises(InvalidInputError, match=r"infinity in 6 samples \(0, 50, 100, 150, 200, 250\)"):
        batches(x, {}, 8).statistics()
