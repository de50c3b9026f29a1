"""The training loop: what it learns, what the seed decides, what survives, what it refuses."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from itertools import islice
from pathlib import Path

import pytest
import torch
from cases import points, small
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sdegen.core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    InvalidInputError,
    NonFiniteError,
    RunLockedError,
)
from sdegen.distributions.mixture import GaussianMixture
from sdegen.models.base import ScoreModel
from sdegen.models.denoiser import Denoiser
from sdegen.models.exact import MixtureModel
from sdegen.nets import MLP, UNet
from sdegen.processes import EDMSDE, VESDE, VPSDE
from sdegen.storage.folders import steps
from sdegen.storage.models import load
from sdegen.training import History, fit
from sdegen.training.ema import Average
from sdegen.training.folder import Interrupts
from sdegen.training.losses import dsm_loss, implicit_loss, sliced_loss
from sdegen.training.options import Options
from sdegen.training.sources import batches

fit = functools.partial(fit, progress=False, device="cpu")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def same_history(a: History, b: History) -> bool:
    return (
        torch.equal(a.loss.nan_to_num(-1), b.loss.nan_to_num(-1))
        and torch.equal(a.loss_by_level.loss.nan_to_num(-1), b.loss_by_level.loss.nan_to_num(-1))
        and torch.equal(a.loss_by_level.count, b.loss_by_level.count)
        and (a.skipped, a.seed) == (b.skipped, b.seed)
    )


# ---- what it learns


@pytest.mark.parametrize("parametrization", ["x0", "noise", "score", "v", "velocity", "edm"])
def test_gaussian_data_are_learned(parametrization):
    """Held against the exact score of N(0.5, 0.3^2), E ||noise error||^2 must be small at every noise level."""
    torch.manual_seed(0)
    sde = VPSDE()
    model = Denoiser(MLP(1, hidden=16, layers=1, embedding=8), sde, parametrization=parametrization)
    mixture = GaussianMixture([[0.5]], std=0.3)
    fit(model, mixture.sample(2000, seed=0), steps=250, lr=1e-2, batch_size=128, seed=0)
    exact = MixtureModel(mixture, sde)
    x0 = mixture.sample(500, seed=1)
    t = torch.linspace(0.02, 1, 500, dtype=torch.float64)
    x = sde.perturb(x0, t, torch.randn(500, 1))
    with torch.no_grad():
        error = (model(x, t).noise - exact(x, t).noise).square().mean()
    assert float(error) < 0.02  # noise itself has mean square 1


@pytest.mark.parametrize("loss", [dsm_loss, implicit_loss, sliced_loss])
def test_any_loss_reaches_the_optimum_of_one_weight(loss):
    """s = -a x along VE on N(0, c^2) at one time: the optimum is a = 1/(c^2 + sigma^2)."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -self.a * x

    model = Denoiser(Line(), VESDE(0.1, 10.0), parametrization="score")
    x0 = torch.randn(4000, 1) * 0.8
    t = 0.5  # sigma = 1
    fit(model, x0, steps=300, lr=0.05, loss=functools.partial(loss, t=t, weight="one"), seed=0)
    assert abs(float(model.net.a.detach()) * (float(x0.var()) + 1.0) - 1) < 0.05  # averages of 128 x 100 draws: 1 %


def test_history_tells_the_loss_by_level():
    model = small()
    history = fit(model, points(), steps=150, seed=0)
    assert history.loss.shape == (150,) and history.loss.dtype == torch.float64
    assert history.loss[-30:].mean() < history.loss[:30].mean()
    levels = history.loss_by_level
    ends = model.sde.half_log_snr(torch.tensor([model.sde.t_max, model.sde.t_min], dtype=torch.float64))
    torch.testing.assert_close(levels.edges[[0, -1]], ends)
    assert (levels.edges.diff() > 0).all() and len(levels.edges) == len(levels.loss) + 1
    # the levels hold all samples of every eighth step, old ones counting less by 8/1000 each
    kept = (1 - 8 / 1000) ** torch.arange(18, -1, -1, dtype=torch.float64)
    assert math.isclose(float(levels.count.sum()), 128 * float(kept.sum()), rel_tol=1e-9)
    total = float((levels.loss * levels.count).nansum() / levels.count.sum())
    assert math.isclose(total, float((history.loss[::8] * kept).sum() / kept.sum()), rel_tol=1e-5)


def test_losses_go_to_the_bin_of_their_level():
    """A loss that is the half log-SNR itself must have a mean between the edges of its bin."""

    def level(model: ScoreModel, x0: Tensor, **cond) -> Tensor:
        t = model.sde.t_min + (model.sde.t_max - model.sde.t_min) * torch.rand(len(x0), dtype=torch.float64)
        return model(x0, t).noise.sum(1) * 0 + model.sde.half_log_snr(t)

    levels = fit(small(), points(), steps=30, loss=level, seed=0).loss_by_level
    full = levels.count > 0
    assert full.sum() > 10
    assert (levels.loss[full] >= levels.edges[:-1][full] - 1e-9).all()
    assert (levels.loss[full] <= levels.edges[1:][full] + 1e-9).all()


# ---- the average, the learning rate


def test_average_is_the_exponential_one_with_its_warm_up():
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    average, expected = Average([p], 0.9), torch.zeros(3, dtype=torch.float64)
    for n in range(100):
        with torch.no_grad():
            p.copy_(torch.randn(3, dtype=torch.float64))
        average.update(n)
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * p.detach()
        torch.testing.assert_close(average.values[0], expected, rtol=1e-12, atol=1e-14)
    own = p.detach().clone()
    with average.in_place():
        assert torch.equal(p.detach(), average.values[0]) is False and torch.allclose(p.detach(), expected)
    assert torch.equal(p.detach(), own)
    average.settle()
    torch.testing.assert_close(p.detach(), expected)


def test_fit_is_the_plain_loop_it_says_it_is():
    """The same steps written out by hand: AdamW, warm-up and cosine, clipping, average."""
    data = points()
    model, mine = small(), small()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def spying(model: ScoreModel, x0: Tensor, **cond) -> Tensor:
        t, noise = torch.rand(len(x0), dtype=torch.float64).clamp(min=0.01), torch.randn_like(x0)
        seen.append((x0.clone(), t, noise))
        return dsm_loss(model, x0, t=t, noise=noise)

    words = dict(lr=0.01, ema=0.8, clip=0.5, warmup=8, weight_decay=0.1)
    fit(model, data, steps=40, batch_size=16, loss=spying, seed=1, **words)
    mine.set_statistics(data.double().mean(0), (data.double() - data.double().mean(0)).square().mean().sqrt())
    parameters = list(mine.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.1)
    averages = [p.detach().clone() for p in parameters]
    for n, (x0, t, noise) in enumerate(seen):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * min(1, (n + 1) / 8) * (1 + math.cos(math.pi * n / 40)) / 2
        optimiser.zero_grad()
        dsm_loss(mine, x0, t=t, noise=noise).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimiser.step()
        d = min(0.8, (1 + n) / (10 + n))
        averages = [d * a + (1 - d) * p.detach() for a, p in zip(averages, parameters, strict=True)]
    assert len(seen) == 40
    for p, a in zip(model.parameters(), averages, strict=True):
        torch.testing.assert_close(p.detach(), a, rtol=1e-4, atol=1e-6)  # float32, fused and unfused AdamW


def test_schedules_and_warm_up():
    words = dict.fromkeys(Options.__dataclass_fields__)
    words |= dict(batch_size=1, loss=dsm_loss, resume="auto", weight_decay=0.0, lr=2.0)
    words |= dict(accumulate=1, precision="full", tensorboard=False)
    cosine = Options(**{**words, "steps": 100, "schedule": "cosine", "warmup": 0})
    assert [round(cosine.rate(n), 6) for n in (0, 50, 100)] == [2.0, 1.0, 0.0]
    constant = Options(**{**words, "steps": 10_000, "schedule": "constant"})
    assert constant.rate(0) == 2.0 / 500 and constant.rate(499) == constant.rate(9_999) == 2.0


# ---- seeds and modes


def test_the_seed_decides_everything_and_disturbs_nothing():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    a = small()
    torch.set_rng_state(before)
    one = fit(a, points(), steps=20, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is as it was"
    b = small()
    torch.manual_seed(99)
    two = fit(b, points(), steps=20, seed=5)
    assert equal(a, b) and same_history(one, two)
    c = small()
    fit(c, points(), steps=20, seed=6)
    assert not equal(a, c)
    torch.manual_seed(1)
    drawn = fit(small(), points(), steps=1).seed
    torch.manual_seed(1)
    assert fit(small(), points(), steps=1).seed == drawn


def test_every_step_draws_noise_of_its_own():
    drawn: list[Tensor] = []

    def noting(model: ScoreModel, x0: Tensor, *, seed, **cond) -> Tensor:
        drawn.append(seed.normal((len(x0), 3), 1, dtype=torch.float64, device="cpu"))
        return dsm_loss(model, x0, seed=seed, **cond)

    fit(small(), points(), steps=5, batch_size=10, loss=noting, seed=0)
    assert len(torch.stack(drawn).flatten().unique()) == 5 * 10 * 3


def test_callback_sees_the_averages_and_may_draw_what_it_likes():
    quiet, watched = small(dropout_free := 0), small(dropout_free)
    fit(quiet, points(), steps=30, seed=0)
    calls = []

    def look(step: int, model: ScoreModel, history: History) -> None:
        torch.randn(step)
        torch.manual_seed(step)
        assert not model.training and not model.net.training
        calls.append((step, len(history.loss), weights(model)))

    fit(watched, points(), steps=30, seed=0, callback=look, callback_every=7)
    assert [(step, n) for step, n, _ in calls] == [(s, s) for s in (7, 14, 21, 28, 30)]
    assert equal(quiet, watched) and watched.training
    last = calls[-1][2]
    assert all(torch.equal(last[k], v) for k, v in watched.state_dict().items()), "the averages are what is left"


def test_modes_and_frozen_weights_stay():
    model = small()
    model.net.embedding.eval()
    for p in model.net.inp.parameters():
        p.requires_grad_(False)
    frozen = model.net.inp.weight.clone()
    fit(model, points(), steps=5, seed=0)
    assert model.training and not model.net.embedding.training
    assert torch.equal(model.net.inp.weight, frozen)


def test_ema_none_keeps_the_last_weights():
    averaged, last = small(), small()
    fit(averaged, points(), steps=30, seed=0, ema=0.99)
    fit(last, points(), steps=30, seed=0, ema=None)
    assert not equal(averaged, last)
    seen = []
    fit(small(), points(), steps=30, seed=0, ema=None, callback=lambda s, m, h: seen.append(weights(m)))
    seen = seen[-1:]
    assert all(torch.equal(seen[0][k], v) for k, v in last.state_dict().items())


# ---- data


def test_statistics_are_measured_once_and_never_overwritten():
    data = points(500).double() + 3
    model = small()
    fit(model, data, steps=1, seed=0)
    torch.testing.assert_close(model.data_mean, data.mean(0))
    torch.testing.assert_close(model.data_std, (data - data.mean(0)).square().mean().sqrt())
    assert model.event_shape == (2,)
    fit(model, points(), steps=1, seed=0)
    torch.testing.assert_close(model.data_mean, data.mean(0))
    given = Denoiser(MLP(2), VPSDE(), data_std=0.125)
    fit(given, data, steps=1, seed=0)
    assert float(given.data_std) == 0.125
    torch.testing.assert_close(given.data_mean, data.mean(0))
    constant = small()
    fit(constant, torch.ones(7, 2), steps=2, seed=0)
    assert constant.data_std is None


class Labelled(Dataset):
    def __init__(self, n: int = 50) -> None:
        self.x, self.n = points(n), n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        return self.x[i], {"label": i % 3}


@pytest.mark.parametrize(("n", "batch_size"), [(50, 16), (50, 50), (7, 16), (1, 4), (10, 3)])
def test_order_is_shuffled_passes_that_can_begin_anywhere(n, batch_size):
    source = batches(torch.arange(n).double()[:, None], {}, batch_size)
    iterator = source.from_step(0, seed=4)
    whole = [next(iterator).numbers for _ in range(40)]
    assert all(len(b) == batch_size for b in whole)
    for step in (1, 13, 39):
        assert torch.equal(next(source.from_step(step, seed=4)).numbers, whole[step])
    stream = torch.cat(whole)
    length = n * math.ceil(batch_size / n)  # a pass
    first, second = stream[:length], stream[length : 2 * length]
    for each in (first, second):
        assert torch.equal(each.bincount(minlength=n), torch.full((n,), length // n))
    if n > 5:
        assert not torch.equal(first[:n], torch.arange(n)), "shuffled"
        assert not torch.equal(first, second), "another order in the next pass"
        assert not torch.equal(next(source.from_step(0, seed=5)).numbers, whole[0])


def test_a_generator_goes_on_where_it_should():
    items = [torch.full((2, 1), float(i)) for i in range(6)]
    for step in (0, 1, 4):
        found = [float(b.x0[0]) for b in islice(batches(iter(items), {}, 2).from_step(step, 0), 6 - step)]
        assert found == list(range(step, 6))


def test_conditions_follow_their_samples():
    n = 60
    x = torch.arange(n).float()[:, None].repeat(1, 2)
    seen = []

    def loss(model: ScoreModel, x0: Tensor, **cond) -> Tensor:
        seen.append((x0, cond))
        return dsm_loss(model, x0, label=cond["label"])

    label = torch.arange(n) % 3
    fit(small(n_classes=3), x, steps=9, batch_size=25, loss=loss, seed=0, label=label)
    assert len(seen) == 9
    assert all(torch.equal(cond["label"], x0[:, 0].long() % 3) for x0, cond in seen)
    fit(small(n_classes=3), x, steps=1, loss=loss, seed=0, label=2)
    assert seen[-1][1] == {"label": 2}


def test_every_kind_of_data_trains():
    x, labelled = points(50), Labelled()

    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.randn(8, 2)

    def once():
        for _ in range(6):
            yield points(8), {"label": torch.zeros(8, dtype=torch.long)}

    for data in (
        x,
        x.numpy(),
        x[::2],
        list(x),
        TensorDataset(x),
        labelled,
        [(p, {"label": 1}) for p in x],
        DataLoader(TensorDataset(x), batch_size=8, shuffle=True),
        DataLoader(labelled, batch_size=8),
        Endless(),
        once(),
    ):
        model = small(n_classes=3)
        history = fit(model, data, steps=6, batch_size=16, seed=0)
        assert torch.isfinite(history.loss).all() and model.event_shape == (2,)
        assert math.isclose(float(model.data_std), 0.5 if not isinstance(data, Endless) else 1.0, rel_tol=0.6)


def test_samples_of_a_dataset_are_those_of_the_tensor():
    x = points(50)
    models = [small(), small(), small()]
    for model, data in zip(models, (x, list(x), TensorDataset(x)), strict=True):
        fit(model, data, steps=5, batch_size=16, seed=0)
    assert equal(models[0], models[1]) and equal(models[0], models[2])


def test_images_and_other_processes_train():
    net = UNet(1, channels=8, multipliers=(1, 2))
    model = Denoiser(net, EDMSDE())
    history = fit(model, torch.rand(20, 1, 4, 4), steps=3, batch_size=4, seed=0)
    assert model.event_shape == (1, 4, 4) and torch.isfinite(history.loss).all()


# ---- numbers that are not finite


def test_a_step_that_is_not_finite_is_skipped_and_named():
    data = points(40)
    reference = small()

    def sometimes(model: ScoreModel, x0: Tensor, *, bad=(4, 5), calls=[], **cond) -> Tensor:  # noqa: B006
        calls.append(1)
        losses = dsm_loss(model, x0, t=torch.linspace(0.1, 1, len(x0), dtype=torch.float64), **cond)
        return losses * torch.where(torch.arange(len(x0)) == 3, math.nan, 1.0) if len(calls) - 1 in bad else losses

    with pytest.warns(RuntimeWarning) as told:
        history = fit(reference, data, steps=12, batch_size=10, loss=functools.partial(sometimes, calls=[]), seed=0)
    assert history.skipped == [4, 5]
    assert history.loss.isnan().nonzero().flatten().tolist() == [4, 5]
    assert all(torch.isfinite(p).all() for p in reference.parameters())
    number = int(next(batches(data, {}, 10).from_step(4, 0)).numbers[3])
    assert f"step 4: the loss is not finite for samples {number} at t = 0.4" in str(told[0].message)
    assert [str(w.message)[:6] for w in told] == ["step 4", "step 5"]
    assert not history.loss_by_level.loss[history.loss_by_level.count > 0].isnan().any()


def test_a_skipped_step_changes_no_weight():
    states: dict[int, dict[str, Tensor]] = {}

    def loss(model: ScoreModel, x0: Tensor, *, calls=[], **cond) -> Tensor:  # noqa: B006
        states[len(calls)] = weights(model)
        calls.append(1)
        return dsm_loss(model, x0) * (math.inf if len(calls) in (6, 7) else 1.0)

    with pytest.warns(RuntimeWarning):
        fit(small(), points(), steps=10, loss=loss, seed=0)

    def moved(a: int, b: int) -> bool:
        return any(not torch.equal(states[a][k], states[b][k]) for k in states[a])

    assert [moved(n, n + 1) for n in range(9)] == [True] * 5 + [False] * 2 + [True] * 2


def test_a_gradient_that_is_not_finite_is_told_apart():
    def loss(model: ScoreModel, x0: Tensor, **cond) -> Tensor:
        losses = dsm_loss(model, x0)
        return losses + 0 * torch.sqrt(losses - losses)  # 0 * inf in the gradient

    with warnings.catch_warnings(), pytest.raises(NonFiniteError, match="gradient is not finite"):
        warnings.simplefilter("ignore")
        fit(small(), points(), steps=30, loss=loss, seed=0)


def test_ten_failures_in_a_row_stop_the_run_and_keep_the_weights():
    model, before = small(), {}

    def failing(model: ScoreModel, x0: Tensor, *, calls=[], **cond) -> Tensor:  # noqa: B006
        calls.append(1)
        if len(calls) == 21:
            before.update(weights(model))
        return dsm_loss(model, x0) * (math.nan if len(calls) > 20 else 1.0)

    with warnings.catch_warnings(), pytest.raises(NonFiniteError, match="10 steps in a row") as error:
        warnings.simplefilter("ignore")
        fit(model, points(), steps=400, loss=failing, seed=0, ema=None)
    assert error.value.partial.skipped == list(range(20, 30))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    # nine, a good one, and nine more do not stop it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def loss(model: ScoreModel, x0: Tensor, *, calls=[], **cond) -> Tensor:  # noqa: B006
            calls.append(1)
            return dsm_loss(model, x0) * (math.nan if len(calls) % 10 else 1.0)

        assert len(fit(small(), points(), steps=40, loss=loss, seed=0).skipped) == 36


# ---- run folders


def test_a_run_folder_holds_the_averaged_model_and_metrics(tmp_path):
    model = small()
    history = fit(model, points(), steps=130, out=tmp_path / "run", seed=0, save_every=40)
    assert [p.name for p in steps(tmp_path / "run")] == ["step-00000120", "step-00000130"]
    assert equal(load(tmp_path / "run", device="cpu"), model)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "metrics.csv").read_text())))
    assert [int(row["step"]) for row in rows] == (ends := [1, 2, 4, 8, 16, 32, 50, 100, 130])
    for row, start, end in zip(rows, [0, *ends], ends, strict=False):
        assert math.isclose(float(row["loss"]), float(history.loss[start:end].mean()), rel_tol=1e-12)
        assert float(row["gradient_norm"]) > 0 and int(row["skipped"]) == 0
    again = small(1)
    assert same_history(fit(again, points(), steps=130, out=tmp_path / "run"), history), "a finished run is only read"
    assert equal(again, model)


class Stop(Exception):
    pass


def run_with_stops(folder: Path, data, stops: list[int], total: int, model_of=small, **words):
    """A run that dies in the step after each of `stops`, and starts again in a new process's state."""
    for at in [*stops, None]:
        model = model_of()

        def dies(model: ScoreModel, x0: Tensor, *, calls=[], at=at, **cond) -> Tensor:  # noqa: B006
            calls.append(1)
            if at is not None and len(calls) > at:
                raise Stop
            return dsm_loss(model, x0, **cond)

        torch.manual_seed(at or 0)
        try:
            return model, fit(model, data, steps=total, out=folder, loss=functools.partial(dies, calls=[]), **words)
        except Stop:
            continue
    raise AssertionError


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, kind):
    data = {
        "tensor": points(100),
        "dataset": [(x, {"label": i % 3}) for i, x in enumerate(points(100))],
        "loader": DataLoader(Labelled(100), batch_size=16, shuffle=True),
    }[kind]

    def model_of() -> Denoiser:
        torch.manual_seed(0)
        net = MLP(2, hidden=8, layers=1, embedding=4, n_classes=3)
        net.out = nn.Sequential(nn.Dropout(0.3), net.out)
        return Denoiser(net, VPSDE())

    words = dict(batch_size=16, save_every=10)
    a, whole = run_with_stops(tmp_path / "whole", data, [], 95, model_of, seed=2, **words)
    b, broken = run_with_stops(tmp_path / "broken", data, [37, 3, 25], 95, model_of, seed=2, **words)
    assert equal(a, b) and same_history(whole, broken)
    one, two = (
        [row.rpartition(",")[0] for row in (tmp_path / name / "metrics.csv").read_text().splitlines()]
        for name in ("whole", "broken")
    )
    for rows in (one, two):  # all but the seconds
        assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "4", "8", "16", "32", "50", "95"]
    assert [row.split(",")[:2] for row in one] == [row.split(",")[:2] for row in two]
    for name in ("model", "training"):
        files = [tmp_path / run / "step-00000095" / f"{name}.safetensors" for run in ("whole", "broken")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_resumed_run_lets_go_of_its_checkpoint(tmp_path):
    """Weights, average and moments are in memory once; the files are mapped while they are read."""
    mapped = []

    def look(*_: object) -> None:
        mapped.append(str(tmp_path) in Path("/proc/self/maps").read_text())

    fit(small(), points(), steps=2, out=tmp_path, device="cpu")
    fit(small(), points(), steps=4, out=tmp_path, device="cpu", callback=look)
    assert mapped and not any(mapped)


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    fit(small(), points(), steps=20, out=tmp_path, seed=0)
    model = small(1)
    history = fit(model, points(), steps=30, out=tmp_path)
    assert len(history.loss) == 30 and history.seed == 0
    assert equal(load(tmp_path, device="cpu"), model)
    with pytest.raises(InvalidInputError, match="more than steps=25"):
        fit(small(), points(), steps=25, out=tmp_path)


def test_damaged_checkpoints_are_skipped_and_replaced(tmp_path):
    a = small()
    fit(a, points(), steps=40, out=tmp_path / "a", seed=0, save_every=10)
    b = small()
    fit(b, points(), steps=40, out=tmp_path / "b", seed=0, save_every=10)
    newest = steps(tmp_path / "b")[-1]
    data = bytearray((newest / "training.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "training.safetensors").write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"skipped step-00000040: .*training\.safetensors was changed"):
        assert not equal(load(tmp_path / "b", device="cpu"), a)
    (newest / "manifest.json").unlink()
    c = small(1)
    with pytest.warns(RuntimeWarning, match="step-00000040"):
        fit(c, points(), steps=40, out=tmp_path / "b", save_every=10)
    assert equal(a, c) and equal(load(tmp_path / "b", device="cpu"), a)
    for path in steps(tmp_path / "b"):
        os.truncate(path / "state.json", 3)
    with pytest.raises(CorruptCheckpointError, match="no checkpoint in"):
        fit(small(), points(), steps=40, out=tmp_path / "b")
    with pytest.raises(CorruptCheckpointError, match="no checkpoint in"):
        load(tmp_path / "b")


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(small(), points(), steps=3, out=tmp_path, seed=0)
    for model, words, error, says in (
        (small(), dict(seed=1), IncompatibleCheckpointError, "seed 0, not 1"),
        (small(), dict(resume=False), InvalidInputError, "resume=False"),
        (Denoiser(MLP(2, hidden=9), VPSDE()), {}, IncompatibleCheckpointError, "net"),
        (Denoiser(small().net, EDMSDE()), {}, IncompatibleCheckpointError, "is not the process"),
        (Denoiser(small().net, VPSDE(), parametrization="v"), {}, IncompatibleCheckpointError, "parametrization"),
    ):
        with pytest.raises(error, match=says):
            fit(model, points(), steps=5, out=tmp_path, **words)
    with pytest.raises(InvalidInputError, match="resume=True"):
        fit(small(), points(), steps=5, out=tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be a folder"):
        fit(small(), points(), steps=5, out=tmp_path / "file")
    with pytest.raises(InvalidInputError, match="keeps a Denoiser"):
        fit(small().on(EDMSDE()), points(), steps=5, out=tmp_path / "path")


def test_a_failed_save_stops_the_run_and_keeps_what_was_there(tmp_path, monkeypatch):
    fit(small(), points(), steps=10, out=tmp_path, seed=0)
    before = load(tmp_path, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CheckpointError, match="No space left"):
            fit(small(), points(), steps=20, out=tmp_path)
    assert equal(load(tmp_path, device="cpu"), before)
    assert sorted(p.name for p in tmp_path.iterdir() if "step" in p.name) == ["step-00000010"]
    fit(small(), points(), steps=20, out=tmp_path)


def _hold(folder: str, ready, done) -> None:
    from sdegen.training.folder import RunFolder

    with RunFolder(folder):
        ready.set()
        done.wait(60)


def test_a_second_run_in_a_folder_is_refused_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, done))
    other.start()
    assert ready.wait(60)
    start = time.monotonic()
    with pytest.raises(RunLockedError, match=f"process {other.pid}"):
        fit(small(), points(), steps=2, out=tmp_path, seed=0)
    assert time.monotonic() - start < 1
    done.set()
    other.join()
    fit(small(), points(), steps=2, out=tmp_path, seed=0)

    def again(step: int, model: ScoreModel, history: History) -> None:  # nor in the same process
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
            fit(small(), points(), steps=2, out=tmp_path)

    fit(small(), points(), steps=4, out=tmp_path, callback=again)


def _train(folder: str, total: int, told, **words) -> None:
    """What a killed process was doing: it tells the step it is at."""

    def tell(step: int, model: ScoreModel, history: History) -> None:
        told.value = step

    fit(small(), points(), steps=total, out=folder, seed=0, batch_size=16, callback=tell, callback_every=1, **words)


def test_a_second_signal_acts_at_once(tmp_path):
    def send(step: int, model: ScoreModel, history: History) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        pytest.fail("still running")

    model = small()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner of tests may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(model, points(), steps=20, out=tmp_path, seed=0, callback=send, callback_every=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert model.training
    fit(model, points(), steps=1, out=tmp_path, seed=0)  # the lock is free


@pytest.mark.parametrize("kind", ["file", "link", "folder", "link to nothing"])
@pytest.mark.parametrize("place", [".", "averages"])
def test_what_is_named_as_temporaries_are_blocks_no_run(tmp_path, kind, place):
    run, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("kept")
    fit(small(), points(), steps=2, out=run, seed=0, ema=(0.05, 0.1))
    left = run / place / ".step-00000004.1.tmp"
    if kind == "file":
        left.write_text("x")
    elif kind == "folder":
        left.mkdir()
    else:
        left.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    fit(small(), points(), steps=4, out=run, ema=(0.05, 0.1))
    assert not left.exists() and not left.is_symlink() and (other / "kept").read_text() == "kept"


@pytest.mark.parametrize("then", ["nothing", "an empty folder", "another run"])
def test_a_run_whose_folder_is_removed_says_so_and_blocks_nobody(tmp_path, then):
    run = tmp_path / "run"

    def removes(step: int, model: ScoreModel, history: History) -> None:
        if step == 3:
            shutil.rmtree(run)
            if then == "an empty folder":
                run.mkdir()
            elif then == "another run":
                fit(small(1), points(), steps=2, out=run, seed=1)

    model = small()
    with pytest.raises(CheckpointError, match="removed, or replaced|No such file"):
        fit(model, points(), steps=9, out=run, seed=0, save_every=2, callback=removes, callback_every=1)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    start = time.monotonic()
    if then == "another run":
        assert [p.name for p in steps(run)] == ["step-00000002"]
    fit(small(1), points(), steps=4, out=run, seed=1)
    assert time.monotonic() - start < 30 and equal(load(run, device="cpu"), load(run, device="cpu"))


def test_a_run_folder_may_be_a_link_or_as_long_as_the_disk_takes(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for out in (tmp_path / "link", tmp_path / ("r" * 255)):
        fit(small(), points(), steps=2, out=out, seed=0)
        fit(small(), points(), steps=4, out=out)
        assert [p.name for p in steps(out)] == ["step-00000002", "step-00000004"]
    assert (tmp_path / "link").is_symlink()
    for wrong in (3, "", "a\0b", b"x"):
        with pytest.raises(InvalidInputError, match="got out=.*expected a path|out: got .*expected a path"):
            fit(small(), points(), steps=2, out=wrong)
    with pytest.raises(InvalidInputError, match="cannot be a folder"):
        fit(small(), points(), steps=2, out=tmp_path / ("r" * 256))


def test_wrapped_networks_go_on_as_the_plain_one(tmp_path):
    def model_of(wrap) -> Denoiser:
        model = small()
        model.net = wrap(model.net)
        return model

    plain = small()
    fit(plain, points(), steps=12, seed=0)
    wrappers = (nn.DataParallel, lambda net: torch.compile(net, backend="eager"), lambda net: net)
    for total, wrap in zip((4, 8, 12), wrappers, strict=True):
        model = model_of(wrap)
        with pytest.raises(Stop):
            fit(model, points(), steps=12, seed=0, out=tmp_path, save_every=total, callback=_stop_at(total + 1), callback_every=1)  # fmt: skip
        assert steps(tmp_path)[-1].name == f"step-{total:08d}" or total == 12
    fit(model_of(nn.DataParallel), points(), steps=12, out=tmp_path)
    assert equal(load(tmp_path, device="cpu"), plain)


def _stop_at(step: int):
    def stops(at: int, model: ScoreModel, history: History) -> None:
        if at == min(step, 12):
            raise Stop

    return stops


def test_conditions_in_dicts_and_tuples_follow_their_samples(tmp_path):
    n, seen = 60, []
    x = torch.arange(n).float()[:, None].repeat(1, 2)

    def loss(model: ScoreModel, x0: Tensor, *, where, **cond) -> Tensor:
        seen.append((x0[:, 0], where["a"], where["b"][0]))
        return dsm_loss(model, x0)

    model = small()
    model.condition_names = lambda: None
    where = {"a": torch.arange(n), "b": (torch.arange(n), 3)}
    fit(model, x, steps=4, batch_size=20, loss=loss, seed=0, where=where, accumulate=2, out=tmp_path)
    assert len(seen) == 8 and all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in seen)


def test_a_signal_after_the_last_step_is_passed_on():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda n, f: seen.append(n))
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)
            assert not seen
        assert seen == [signal.SIGTERM]
        interrupts = Interrupts(patience=0.05)
        with pytest.raises(SystemExit), interrupts:
            interrupts.note(signal.SIGTERM)  # another process of the run was told to end
            raise SystemExit(143)
        os.kill(os.getpid(), signal.SIGTERM)  # now this one is told, too, while it exits
        time.sleep(0.06)
        assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
        assert seen == [signal.SIGTERM] * 2 and signal.getsignal(signal.SIGTERM) is not interrupts._handle
    finally:
        signal.signal(signal.SIGTERM, before)


class Training:
    """A process that trains, to be killed."""

    def __init__(self, folder: Path, total: int, **words) -> None:
        context = multiprocessing.get_context("fork")
        self.step = context.Value("q", 0)
        self.process = context.Process(target=_train, args=(str(folder), total, self.step), kwargs=words)
        self.process.start()

    def reach(self, step: int) -> None:
        while self.step.value < step and self.process.is_alive():
            time.sleep(0.001)

    def end(self, number: int | None = None) -> int | None:
        if number is not None and self.process.pid:
            with contextlib.suppress(ProcessLookupError):  # it had finished already
                os.kill(self.process.pid, number)
        self.process.join(120)
        return self.process.exitcode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_exits(tmp_path, number, code):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_:

        def send(step: int, model: ScoreModel, history: History) -> None:
            if step == 7:
                os.kill(os.getpid(), number)

        words = dict(callback=send, callback_every=1)
        fit(small(), points(), steps=20, out=tmp_path / "run", seed=0, batch_size=16, **words)
    assert exit_.value.code == code and signal.getsignal(number) is before
    (kept,) = steps(tmp_path / "run")
    assert kept.name in ("step-00000007", "step-00000008")
    a, b = small(), small()
    fit(a, points(), steps=20, out=tmp_path / "run", batch_size=16)
    fit(b, points(), steps=20, seed=0, batch_size=16)
    assert equal(a, b)


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_loses_nothing(tmp_path, kills):
    dice = random.Random(kills)
    reached = 0
    for _ in range(kills):
        training = Training(tmp_path, 300, save_every=3)
        training.reach(min(reached + dice.randrange(2, 20), 299))
        time.sleep(dice.random() * 0.01)
        assert training.end(signal.SIGKILL) in (-9, 0)
        kept = [int(p.name.removeprefix("step-")) for p in steps(tmp_path)]
        assert kept and max(kept) >= reached, "no checkpoint is ever lost"
        reached = max(kept)
    model, reference = small(), small()
    history = fit(model, points(), steps=300, out=tmp_path, batch_size=16)
    assert same_history(fit(reference, points(), steps=300, seed=0, batch_size=16), history)
    assert equal(model, reference)
    assert not any(".tmp" in p.name for p in tmp_path.iterdir()), "temporaries of the dead are swept"


def test_sigterm_ends_a_process_in_good_order(tmp_path):
    training = Training(tmp_path, 10**6)
    training.reach(5)
    assert training.end(signal.SIGTERM) == 143
    assert len(steps(tmp_path)) == 1 and ".owner" not in [p.name for p in tmp_path.iterdir()]


# ---- wrong input


class Counting(MLP):
    calls = 0

    def forward(self, x, t, label=None):
        self.calls += 1
        return super().forward(x, t, label)


X = torch.zeros(6, 2)
WRONG = [
    ("NaN in data", dict(data=torch.full((6, 2), math.nan)), "NaN"),
    ("infinity in data", dict(data=torch.tensor([[1.0, math.inf]])), "infinity in 1 samples"),
    ("empty data", dict(data=torch.zeros(0, 2)), "empty"),
    ("empty list", dict(data=[]), "empty"),
    ("empty loader", dict(data=iter([])), "empty"),
    ("integer data", dict(data=X.long()), "float"),
    ("event shape", dict(data=torch.zeros(6, 3)), r"works on \(2,\)"),
    ("images for points", dict(data=torch.zeros(6, 1, 8, 8)), "event shape"),
    ("no data", dict(data=None), "NoneType"),
    ("a number", dict(data=3.0), "float"),
    ("a path", dict(data="data.npy"), "str"),
    ("a dict", dict(data={"x": X}), "dict"),
    ("a pair", dict(data=(X, {"label": 1})), "by name"),
    ("labels without a name", dict(data=TensorDataset(X, X)), "label"),
    ("ragged", dict(data=[torch.zeros(2), torch.zeros(3)]), "do not make a batch.*padded, with a token_mask"),
    ("NaN in a dataset", dict(data=[torch.full((2,), math.nan)]), "NaN"),
    ("integers in a dataset", dict(data=[torch.zeros(2, dtype=torch.int64)]), "float"),
    ("unknown condition", dict(colour=1), "it takes label"),
    ("unknown condition in data", dict(data=[(x, {"colour": 1}) for x in X]), "it takes label"),
    ("condition of another length", dict(label=torch.zeros(5)), "for 6 samples"),
    ("condition without rows", dict(data=DataLoader(X), label=torch.zeros(6)), "cannot be matched"),
    ("weight as an option", dict(weight="edm"), "option of the loss"),
    ("steps", dict(steps=0), "steps=0"),
    ("steps that are no number", dict(steps="many"), "whole number"),
    ("steps that are no whole number", dict(steps=10.5), "whole number"),
    ("batch size", dict(batch_size=0), "batch_size=0"),
    ("learning rate", dict(lr=0.0), "lr=0"),
    ("NaN learning rate", dict(lr=math.nan), "lr=nan"),
    ("ema", dict(ema=1.0), "ema=1"),
    ("clip", dict(clip=-1.0), "clip=-1"),
    ("warmup", dict(warmup=-5), "warmup=-5"),
    ("weight decay", dict(weight_decay=-0.1), "weight_decay"),
    ("schedule", dict(schedule="linear"), "'cosine' or 'constant'"),
    ("loss", dict(loss="dsm"), "got loss='dsm', expected a function"),
    ("weight name", dict(loss=functools.partial(dsm_loss, weight="snr")), "'min-snr'"),
    ("time law", dict(loss=functools.partial(dsm_loss, t="beta")), "expected .uniform., .log-normal."),
    ("callback", dict(callback=3), "callback=3"),
    ("callback_every", dict(callback_every=0), "callback_every=0"),
    ("save_every", dict(save_every=0), "save_every=0"),
    ("resume", dict(resume="maybe"), "resume='maybe'"),
    ("progress", dict(progress="bar"), "progress='bar'"),
    ("seed", dict(seed=0.5), "got seed=0.5, expected an integer"),
    ("device", dict(device="gpu"), "device='gpu'"),
    ("model", dict(model=MLP(2)), "Denoiser"),
    ("nothing to train", dict(model=MixtureModel(GaussianMixture([[0.0, 0.0]], std=1.0), VPSDE())), "nothing to train"),
]


@pytest.mark.parametrize(("arguments", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_refused_before_the_network_is_called(arguments, says):
    net = Counting(2, hidden=4, layers=1, embedding=4, n_classes=3)
    call = {"model": Denoiser(net, VPSDE()), "data": X, "steps": 2, "seed": 0, **arguments}
    with pytest.raises(InvalidInputError, match=says):
        fit(call.pop("model"), call.pop("data"), **call)
    assert net.calls == 0


def test_losses_of_the_wrong_kind_are_refused():
    for loss, says in (
        (lambda model, x0: dsm_loss(model, x0).mean(), r"loss: got \(\) for 6 samples"),
        (lambda model, x0: 1.0, "got float"),
        (lambda model, x0: dsm_loss(model, x0).detach(), "does not depend"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            fit(small(), X + torch.randn(6, 2), steps=2, batch_size=6, loss=loss, seed=0)
    with pytest.raises(InvalidInputError, match="ended before the last step"):
        fit(small(), iter([points(4)] * 3), steps=5, seed=0)
