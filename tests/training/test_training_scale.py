"""Larger runs: parts of a batch, several processes, lower precision, averages of any width, what is written down."""

from __future__ import annotations

import csv
import functools
import math
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import points, small
from crew import Crew
from torch import Tensor, nn

from sdegen.core.errors import (
    CheckpointError,
    IncompatibleCheckpointError,
    InvalidInputError,
    NonFiniteError,
)
from sdegen.core.shards import whole
from sdegen.core.team import Team, team
from sdegen.models.base import ScoreModel
from sdegen.models.denoiser import Denoiser
from sdegen.nets import UNet
from sdegen.noise.white import Noise
from sdegen.processes import VPSDE
from sdegen.storage.folders import steps
from sdegen.storage.models import load
from sdegen.training import History, averaged, fit
from sdegen.training.draws import BatchNoise, takes_seed
from sdegen.training.ema import Average, exponential, gamma, mixture_of, power_function
from sdegen.training.folder import Interrupts
from sdegen.training.losses import dsm_loss, sliced_loss
from sdegen.training.sources import batches

fit = functools.partial(fit, progress=False, device="cpu")


def pictures(n: int = 64) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def unet(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(UNet(1, channels=8, multipliers=(1, 2), n_classes=3), VPSDE())


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()]).nan_to_num(-1.0)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return torch.equal(flat(a), flat(b))


def same_history(a: History, b: History) -> bool:
    pairs = ((a.loss, b.loss), (a.loss_by_level.loss, b.loss_by_level.loss))
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in pairs)


# ---- draws that belong to a place


@pytest.mark.parametrize("total", [1, 3, 16, 37])
@pytest.mark.parametrize("event", [(1,), (3, 20, 40)])
def test_rows_draw_what_the_whole_batch_draws(total, event):
    words = dict(dtype=torch.float32, device="cpu")
    whole = BatchNoise(7, 0, total, total).normal((total, *event), 5, **words)
    times = BatchNoise(7, 0, total, total).uniform((total, *event), 5, **words)
    assert bool(((times >= 0) & (times < 1)).all())
    for ends in ([0, total], [0, total // 2, total], [0, 1, total], sorted({0, total // 3, 2 * total // 3, total})):
        rows = [BatchNoise(7, a, b, total).normal((b - a, *event), 5, **words) for a, b in zip(ends, ends[1:])]
        assert torch.equal(torch.cat(rows), whole)
        rows = [BatchNoise(7, a, b, total).uniform((b - a, *event), 5, **words) for a, b in zip(ends, ends[1:])]
        assert torch.equal(torch.cat(rows), times)
    chosen = torch.tensor([total - 1])  # as samples of a batch they keep their numbers
    z = BatchNoise(7, 0, total, total).select(chosen).normal((1, *event), 5, **words)
    assert torch.equal(z, Noise(7, index=[total - 1]).normal((1, *event), 5, **words))
    assert not torch.equal(BatchNoise(7, 0, total, total).normal((total, *event), 6, **words), whole)
    assert not torch.equal(BatchNoise(8, 0, total, total).normal((total, *event), 5, **words), whole)


def test_draws_are_normal_and_blocks_are_not_alike():
    z = BatchNoise(0, 0, 400, 400).normal((400, 100), 1, dtype=torch.float64, device="cpu")
    n = z.numel()
    assert abs(float(z.mean())) < 4 / n**0.5 and abs(float(z.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((z[:100] * z[100:200]).mean())) < 4 / (n / 4) ** 0.5


def test_only_losses_with_a_free_seed_get_one():
    assert takes_seed(dsm_loss) and takes_seed(functools.partial(sliced_loss, weight="one"))
    assert not takes_seed(functools.partial(dsm_loss, seed=3))
    assert not takes_seed(lambda model, x0, **cond: x0)


# ---- parts of a batch


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_batch_in_parts_makes_the_same_step(accumulate):
    label = torch.arange(64) % 3
    whole, parts = unet(), unet()
    words = dict(label=label, steps=12, batch_size=16, seed=4)
    one = fit(whole, pictures(), **words)
    two = fit(parts, pictures(), accumulate=accumulate, **words)
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(flat(parts), flat(whole), rtol=0, atol=1e-4)  # Adam divides rounding by small gradients
    torch.testing.assert_close(two.loss_by_level.count, one.loss_by_level.count)
    with pytest.raises(InvalidInputError, match="cannot be cut into 5 parts"):
        fit(small(), points(), steps=1, batch_size=4, accumulate=5)


def test_a_failure_in_a_part_is_named_by_its_place_in_the_batch():
    data = points(40)

    def loss(model: ScoreModel, x0: Tensor, *, bad=data[7], **cond) -> Tensor:
        losses = dsm_loss(model, x0, t=torch.linspace(0.1, 1, len(x0), dtype=torch.float64))
        return torch.where((x0 == bad).all(1), math.nan, losses)

    for accumulate in (1, 4):
        with pytest.warns(RuntimeWarning, match="not finite for samples 7 at t"):
            fit(small(), data, steps=2, batch_size=40, loss=loss, seed=0, accumulate=accumulate)


def test_parts_of_any_batch_are_its_rows_in_order():
    source = batches(points(50), {"label": torch.arange(50)}, 10)
    whole = next(source.from_step(0, 1))
    for n in (1, 2, 3, 7):
        parts = whole.parts(n)
        assert torch.equal(torch.cat([p.x0 for p in parts]), whole.x0)
        assert torch.equal(torch.cat([p.cond["label"] for p in parts]), whole.cond["label"])
        assert [p.start for p in parts] == [i * 10 // n for i in range(n)]
        crew = [next(source.from_step(0, 1, Team(r, n).share)) for r in range(n)]
        assert torch.equal(torch.cat([p.x0 for p in crew]), whole.x0) and all(p.total == 10 for p in crew)


# ---- precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_the_same_and_keeps_full_weights(precision):
    full, low = unet(), unet()
    words = dict(label=torch.arange(64) % 3, steps=24, batch_size=16, seed=4, ema=0.9)
    one = fit(full, pictures(), **words)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # the first loss scales may be too large: those steps are skipped
        two = fit(low, pictures(), precision=precision, **words)
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    assert not equal(full, low), "the network did compute in another precision"
    a, b = (h.loss[-10:].nanmean() for h in (one, two))
    assert abs(float(a / b) - 1) < 0.1 and len(two.skipped) < 8


def test_an_overflow_of_the_loss_scale_skips_and_halves():
    """A loss of 300 times a scale of 2^16 overflows float16 in the network's backward pass until the scale has fallen."""
    model = unet()
    x = pictures()
    with pytest.warns(RuntimeWarning, match="gradient is not finite"):
        history = fit(
            model, x, label=0, steps=20, batch_size=8, seed=0, precision="fp16", loss=lambda m, x0, **c: 300 * dsm_loss(m, x0, **c)
        )  # fmt: skip
    assert (
        0 < len(history.skipped) < 10
        and history.skipped[0] == 0
        and len(history.skipped) == int(history.loss.isnan().sum())
    )
    assert all(torch.isfinite(p).all() for p in model.parameters())


def large(model: ScoreModel, x0: Tensor, *, seed=None, **cond) -> Tensor:
    """So large that the loss scale of fp16 has to fall."""
    return 300 * dsm_loss(model, x0, seed=seed, **cond)


@pytest.mark.parametrize(
    "words", [dict(precision="bf16"), dict(precision="fp16", loss=large), dict(accumulate=3), dict(ema=(0.05, 0.1))], ids=lambda w: next(iter(w))
)  # fmt: skip
def test_a_resumed_run_has_the_same_bits_whatever_it_runs_with(tmp_path, words):
    words = dict(label=torch.arange(64) % 3, steps=14, batch_size=6, seed=1, save_every=3, **words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        a, b = unet(), unet()
        whole = fit(a, pictures(), out=tmp_path / "whole", **words)
        for at in (5, 8, 12):
            with pytest.raises(ZeroDivisionError):
                fit(unet(), pictures(), out=tmp_path / "broken", **words, callback=lambda s, m, h, at=at: 1 / (s - at), callback_every=1)  # fmt: skip
        broken = fit(b, pictures(), out=tmp_path / "broken", **words)
    assert equal(a, b) and same_history(whole, broken)
    files = [tmp_path / run / "step-00000014" / "training.safetensors" for run in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


# ---- averages


def test_the_power_function_average_weighs_by_the_power():
    """After t steps the weight of the parameters after step s is near (gamma + 1) s^gamma/t^(gamma + 1), and sums to 1."""
    width, t = 0.1, 400
    weights = np.zeros(t)
    for n in range(t):
        d = power_function(width, n)
        weights = d * weights
        weights[n] += 1 - d
    s = (np.arange(t) + 0.5) / t
    g = gamma(width)
    assert abs(weights.sum() - 1) < 1e-12 and power_function(width, 0) == 0
    np.testing.assert_allclose(weights * t, (g + 1) * s**g, atol=0.05 * (g + 1))
    mean = weights @ s
    assert abs(math.sqrt(weights @ (s - mean) ** 2) - width) < 2e-3


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_gamma_gives_the_width(width):
    g = gamma(width)
    assert math.isclose((g + 1) / ((g + 2) ** 2 * (g + 3)), width**2, rel_tol=1e-9)


def test_any_width_is_mixed_from_two():
    """On a path of weights with drift and noise, the mixture of kept averages against the average itself."""
    generator = torch.Generator().manual_seed(0)
    path = torch.cumsum(torch.randn(960, 5, generator=generator, dtype=torch.float64), 0) / 30 + torch.linspace(0, 3, 960)[:, None] ** 2  # fmt: skip
    p = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    kept, own = {}, {}
    averages = {w: Average([p], functools.partial(power_function, w)) for w in (0.05, 0.1, 0.07, 0.15, 0.2)}
    for n in range(960):
        with torch.no_grad():
            p.copy_(path[n])
        for w, average in averages.items():
            average.update(n)
            if (n + 1) % 30 == 0:
                (kept if w in (0.05, 0.1) else own)[w, n + 1] = average.values[0].clone()
    widths, at = [w for w, _ in kept], [t for _, t in kept]
    for w in (0.07, 0.15, 0.2):
        for step, tolerance in ((960, 2e-3), (600, 4e-3)):
            known = [i for i, t in enumerate(at) if t <= step]
            weights = mixture_of([at[i] for i in known], [widths[i] for i in known], step, w)
            mixed = sum(a * kept[widths[i], at[i]] for a, i in zip(weights, known, strict=True))
            assert float((mixed - own[w, step]).norm() / own[w, step].norm()) < tolerance
    assert np.abs(np.subtract(mixture_of([30, 60, 60], [0.05, 0.05, 0.1], 60, 0.1), [0, 0, 1])).max() < 1e-6


def test_a_run_lets_the_width_be_chosen_afterwards(tmp_path):
    model, other = small(), small()
    words = dict(steps=160, batch_size=32, seed=0, lr=1e-2, schedule="constant")
    fit(model, points(), out=tmp_path / "run", ema=(0.05, 0.1), save_every=50, **words)
    assert equal(load(tmp_path / "run", device="cpu"), model), "the first width is the model's"
    assert torch.allclose(flat(averaged(tmp_path / "run", 0.05, device="cpu")), flat(model), atol=1e-5)
    for width in (0.07, 0.1, 0.15):
        fit(other := small(), points(), ema=(width,), **words)
        mixed = averaged(tmp_path / "run", width, device="cpu")
        assert float((flat(mixed) - flat(other)).norm() / (flat(model) - flat(other)).norm()) < 0.1
    middle = averaged(tmp_path / "run", 0.1, step=80, device="cpu")
    assert not equal(middle, mixed)
    fit(small(), points(), steps=3, out=tmp_path / "plain", seed=0)
    with pytest.raises(CheckpointError, match="no snapshots"):
        averaged(tmp_path / "plain", 0.1)
    with pytest.raises(InvalidInputError, match="width=0.4"):
        averaged(tmp_path / "run", 0.4)
    with pytest.raises(InvalidInputError, match="made later"):
        averaged(tmp_path / "run", 0.1, step=1)
    with pytest.raises(InvalidInputError, match="widths below"):
        fit(small(), points(), steps=3, ema=(0.05, 0.4))
    with pytest.raises(
        IncompatibleCheckpointError, match="average: got .0.05, 0.1.; the run in this folder was made with exponential"
    ):
        fit(small(), points(), steps=3, out=tmp_path / "plain", ema=(0.05, 0.1), resume=True)


def test_the_exponential_warm_up():
    assert [round(exponential(0.999, n), 4) for n in (0, 10, 10**6)] == [0.1, 0.55, 0.999]


# ---- what is written down


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_metrics_tell_pace_and_loss_by_level_and_go_on(tmp_path):
    fit(small(), points(), steps=120, out=tmp_path, seed=0, batch_size=16)
    rows, levels = rows_of(tmp_path / "metrics.csv"), rows_of(tmp_path / "loss_by_level.csv")
    first = [1, 2, 4, 8, 16, 32, 50, 100]
    assert [int(row["step"]) for row in rows] == [*first, 120]
    assert all(float(r["samples_per_second"]) > 0 for r in rows)
    assert len(levels[-1]) == 25 and int(levels[-1]["step"]) == 120
    with open(tmp_path / "metrics.csv", "a") as stream:
        stream.write("11")  # of "119, ...", cut short by a crash
    history = fit(small(), points(), steps=220, out=tmp_path, batch_size=16)
    assert [int(row["step"]) for row in rows_of(tmp_path / "metrics.csv")] == [*first, 120, 150, 200, 220]
    last = rows_of(tmp_path / "loss_by_level.csv")[-1]
    found = torch.tensor([float(last[name]) for name in list(last)[1:]], dtype=torch.float64)
    torch.testing.assert_close(found, history.loss_by_level.loss, equal_nan=True)


def events_of(folder: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_gets_the_same_numbers(tmp_path):
    history = fit(small(), points(), steps=100, out=tmp_path, seed=0, tensorboard=True)
    events = events_of(tmp_path)
    loss = {e.step: e.value for e in events.Scalars("loss")}
    assert list(loss) == [1, 2, 4, 8, 16, 32, 50, 100]
    assert math.isclose(loss[100], float(history.loss[50:].mean()), rel_tol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_tensorboard_has_few_curves_and_pictures_of_the_shortest_run(steps, tmp_path):
    """A scalar for every number of a row, five bands of noise levels whose mean is that of all, and no NaN."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    shown = iter([Figure(), Figure().subplots(), 3, None] * steps)
    words = dict(steps=steps, batch_size=512, out=tmp_path, seed=0, tensorboard=True, callback=lambda *_: next(shown))
    levels = fit(small(), points(), callback_every=1, **words).loss_by_level
    events = events_of(tmp_path)
    bands = sorted(tag for tag in events.Tags()["scalars"] if tag.startswith("loss_by"))
    counts = [part.sum() for part in levels.count.chunk(5)]
    assert 3 <= len(bands) <= 5 and len(bands) == sum(count > 0 for count in counts)
    assert len(events.Tags()["scalars"]) <= 15
    assert all(math.isfinite(e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag))
    values = torch.tensor([events.Scalars(tag)[-1].value for tag in bands], dtype=torch.float64)
    counts = torch.stack([count for count in counts if count > 0])
    whole = (levels.loss * levels.count).nansum() / levels.count.sum()
    torch.testing.assert_close((values * counts).sum() / counts.sum(), whole, rtol=1e-5, atol=0.0)
    assert {e.step for e in events.Images("picture")} == {n for n in range(1, steps + 1) if n % 4 in (1, 2)}


def test_the_first_previews_come_after_the_first_steps():
    seen: list[int] = []
    fit(small(), points(), steps=500, batch_size=4, seed=0, callback=lambda s, m, h: seen.append(s))
    assert seen[:6] == [1, 2, 4, 5, 10, 15] and seen[-1] == 500 and len(seen) == 103


# ---- several processes


def train(rank: int, step, folder: str | None, words: dict) -> tuple[list, list, list]:
    def tell(at: int, model: ScoreModel, history: History) -> None:
        step.value = at

    model = unet(rank)  # every process begins with other weights
    history = fit(model, pictures(), label=torch.arange(64) % 3, out=folder, callback=tell, callback_every=1, **words)
    return flat(model).tolist(), history.loss.tolist(), history.loss_by_level.loss.nan_to_num(-1).tolist()


def test_two_processes_equal_one(tmp_path):
    """To 1e-5 after 50 steps, statistics, averages and history too; a third process count differs no more."""
    words = dict(steps=50, batch_size=16, seed=3)
    one, two = Crew(1, train, None, words).results()[0], Crew(2, train, str(tmp_path / "two"), words).results()
    assert two[0] == two[1], "both end with the same bits"
    for mine, theirs in zip(one, two[0], strict=True):
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(mine), rtol=1e-5, atol=1e-5)
    saved = load(tmp_path / "two", device="cpu")
    assert flat(saved).tolist() == two[0][0]


def train_wrapped(rank: int, step, folder: str, words: dict) -> list:
    torch.distributed.init_process_group("gloo")
    model = unet()
    model.net = nn.parallel.DistributedDataParallel(model.net)
    fit(model, pictures(), label=torch.arange(64) % 3, out=folder, **words)
    torch.distributed.destroy_process_group()
    return flat(model).tolist()


def test_a_network_in_distributed_data_parallel_trains_and_is_kept_as_the_plain_one(tmp_path):
    words = dict(steps=8, batch_size=16, seed=3)
    fit(plain := unet(), pictures(), label=torch.arange(64) % 3, **words)
    one, two = Crew(2, train_wrapped, str(tmp_path / "run"), words).results()
    assert one == two == flat(load(tmp_path / "run", device="cpu")).tolist()
    torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), flat(plain), rtol=1e-5, atol=1e-5)


def test_two_processes_resume_to_the_bit(tmp_path):
    words = dict(steps=24, batch_size=10, seed=3, save_every=6, precision="bf16", accumulate=2)
    whole = Crew(2, train, str(tmp_path / "whole"), words).results()
    crew = Crew(2, train, str(tmp_path / "broken"), words)
    while crew.step.value < 13:
        time.sleep(0.001)
    for process in crew.processes:
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)  # as torchrun does, once more
    crew.results()
    assert [p.exitcode for p in crew.processes] == [143, 143]
    assert steps(tmp_path / "broken"), "the step was finished, and kept"
    assert Crew(2, train, str(tmp_path / "broken"), words).results() == whole


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_a_valid_checkpoint(tmp_path, victim):
    words = dict(steps=100_000, batch_size=8, seed=3, save_every=10)
    crew = Crew(2, train, str(tmp_path), words)
    while crew.step.value < 15:
        time.sleep(0.001)
    start = time.monotonic()
    os.kill(crew.processes[victim].pid, signal.SIGKILL)
    told = crew.results(30)[1 - victim]
    assert time.monotonic() - start < 30 and "another process of this run has ended" in told
    kept = steps(tmp_path)
    assert kept and int(kept[-1].name[5:]) >= (10 if victim == 0 else 15)
    load(tmp_path, device="cpu")
    assert fit(unet(), pictures(), label=torch.arange(64) % 3, out=tmp_path, steps=int(kept[-1].name[5:]), batch_size=8)


def test_an_error_of_one_process_is_every_ones(tmp_path):
    fit(unet(), pictures(), label=0, steps=1, out=tmp_path, seed=0)
    words = dict(steps=5, batch_size=8, seed=1)
    told = Crew(2, train, str(tmp_path), words).results()
    assert all(t.startswith("IncompatibleCheckpointError") and "seed 0, not 1" in t for t in told)
    told = Crew(2, train, None, words | {"batch_size": 1}).results()
    assert all(t.startswith("InvalidInputError") and "into 2 parts" in t for t in told)


def begins(rank: int, step) -> int:
    begin = dist.init_process_group

    def slowly(*arguments, **words) -> None:
        begin(*arguments, **words)
        if rank == 1:
            time.sleep(0.5)
            step.value = 1

    dist.init_process_group = slowly
    team(torch.device("cpu"))
    return step.value


def test_no_process_goes_on_before_all_have_begun():
    """One that ended at once would take the group from those that still connect."""
    assert Crew(2, begins).results() == [1, 1]


def fails(rank: int, step, folder: str) -> None:
    def loss(model: ScoreModel, x0: Tensor, **cond) -> Tensor:
        return dsm_loss(model, x0, **cond) * (math.nan if rank == 1 else 1.0)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            fit(unet(), pictures(), label=0, steps=100, batch_size=8, seed=0, out=folder, loss=loss)
        except NonFiniteError as error:
            assert error.partial.skipped == list(range(10))
    assert any("samples" in str(w.message) for w in told)


def test_what_is_not_finite_in_one_process_is_skipped_by_all(tmp_path):
    crew = Crew(2, fails, str(tmp_path))
    crew.results()
    assert [p.exitcode for p in crew.processes] == [0, 0]


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda n, f: seen.append(n))
    try:
        with Interrupts(patience=0.05) as interrupts:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.001)
            assert interrupts.number == signal.SIGTERM and not seen
            time.sleep(0.06)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- weights in half precision


def half(seed: int = 0) -> Denoiser:
    model = unet(seed)
    model.net.bfloat16()
    return model


@pytest.mark.parametrize("ema", [None, 0.9, (0.05, 0.1)])
def test_weights_in_half_precision_take_steps_that_they_cannot_hold(ema):
    """Steps of 1e-4 of a weight: lost in bfloat16, whose numbers are 4e-3 apart, unless float32 copies take them."""
    words = dict(label=torch.arange(64) % 3, steps=60, batch_size=16, seed=4, lr=2e-5, schedule="constant", ema=ema)
    moved = []
    for model in (unet(), half()):
        for p in model.parameters():
            p.data = p.data.bfloat16().to(p.dtype)  # both begin at the same weights
        before = torch.cat([p.detach().double().flatten() for p in model.parameters()])
        history = fit(model, pictures(), **words)
        moved.append(torch.cat([p.detach().double().flatten() for p in model.parameters()]) - before)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    full, own = moved
    assert float(torch.dot(full, own) / full.norm() ** 2) > 0.8, "as far as in full precision"
    assert bool(history.loss.isfinite().all())


@pytest.mark.parametrize("strategy", [None, "ddp", "fsdp"])
def test_a_run_of_weights_in_half_precision_goes_on_to_the_bit(tmp_path, strategy):
    words = dict(steps=14, batch_size=10, seed=3, save_every=4, strategy=strategy)
    size = 2 if strategy else 1
    whole = Crew(size, train_half, str(tmp_path / "whole"), words, 0).results()
    Crew(size, train_half, str(tmp_path / "broken"), words, 10).results()
    assert [p.name for p in steps(tmp_path / "broken")] == ["step-00000004", "step-00000008"]
    assert Crew(size, train_half, str(tmp_path / "broken"), words, 0).results() == whole
    loaded = load(tmp_path / "broken", device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16} and flat(loaded).tolist() == whole[0][0]


def train_half(rank: int, step, folder: str, words: dict, at: int) -> tuple:
    def stop(step: int, model: ScoreModel, history: History) -> None:
        if step == at:
            raise SystemExit(3)

    model = half(rank)
    how = dict(label=torch.arange(64) % 3, out=folder, callback=stop, callback_every=1, ema=(0.05, 0.1))
    history = fit(model, pictures(), **how, **words)
    return flat_whole(model), history.loss.tolist()


def flat_whole(model: nn.Module) -> list[float]:
    return torch.cat([whole(p).double().nan_to_num(-1).flatten() for p in model.state_dict().values()]).tolist()
