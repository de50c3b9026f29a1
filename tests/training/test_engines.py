"""Training by torch's engines: DistributedDataParallel and FSDP2 make one process's steps, and keep what it keeps."""

from __future__ import annotations

import functools
import json
import math
import os
import random
import signal
import time

import pytest
import torch
from cases import points, small
from crew import Crew
from torch import Tensor, nn

import sdegen as sg
from sdegen.core.errors import CheckpointError, InvalidInputError
from sdegen.core.shards import is_sharded
from sdegen.models.base import ScoreModel
from sdegen.models.denoiser import Denoiser
from sdegen.nets import MLP, DiT, UNet
from sdegen.processes import VPSDE
from sdegen.storage import read, steps
from sdegen.training import fit
from sdegen.training.engine import check_shardable
from sdegen.training.losses import dsm_loss, sliced_loss

fit = functools.partial(fit, progress=False, device="cpu")
STRATEGIES = ("ddp", "fsdp")


def pictures(n: int = 64) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


NETS = {
    "unet": lambda: UNet(1, channels=8, multipliers=(1, 2), n_classes=3),
    "channels last": lambda: UNet(1, channels=8, multipliers=(1,), n_classes=3).to(memory_format=torch.channels_last),
    "dropped labels": lambda: UNet(1, channels=8, multipliers=(1,), n_classes=3, label_dropout=0.4),
    "dit": lambda: DiT(1, hidden=16, depth=2, heads=2, patch=4, n_classes=3),
}


def model_of(net: str = "unet", seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(NETS[net](), VPSDE())


def flat(model: nn.Module) -> list[float]:
    parts = [p.full_tensor() if is_sharded(p) else p for p in model.state_dict().values()]
    return torch.cat([p.double().nan_to_num(-1).flatten() for p in parts]).tolist()


def train(rank: int, step, net: str, folder: str | None, words: dict) -> tuple:
    def tell(at: int, model: ScoreModel, history) -> None:
        step.value = at

    model = model_of(net, seed=rank)  # every process begins with other weights
    words = {"callback": tell, "callback_every": 1, **words}
    history = fit(model, pictures(), label=torch.arange(64) % 3, out=folder, **words)
    return flat(model), history.loss.tolist(), history.loss_by_level.loss.nan_to_num(-1).tolist()


def close(a, b, tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(mine), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_engine_makes_the_steps_of_one_process(tmp_path, net, strategy):
    words = dict(steps=50 if net == "unet" else 12, batch_size=16, seed=3)
    one = Crew(1, train, net, None, words).results()[0]
    two = Crew(2, train, net, str(tmp_path), words | {"strategy": strategy, "accumulate": 2}).results()
    assert two[0] == two[1], "both end with the same bits"
    close(one, two[0])
    saved = sg.load(tmp_path, device="cpu")
    assert flat(saved) == two[0][0]
    assert type(saved.net) in (UNet, DiT)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_four_processes_make_the_steps_of_one(strategy):
    words = dict(steps=50, batch_size=16, seed=3)
    one, four = (Crew(n, train, "unet", None, words | {"strategy": strategy}).results(120) for n in (1, 4))
    assert four[0] == four[3]
    close(one[0], four[0])


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.01, momentum=0.9)


RUNS = {
    "adam": {},
    "bf16, two averages": dict(precision="bf16", ema=(0.05, 0.1)),
    "sgd, scheduler": dict(optimizer=sgd, lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=5)),
}


def stopped(at: int, step: int, model: ScoreModel, history) -> None:
    if step == at:
        raise CheckpointError("stopped")


@pytest.mark.parametrize(
    ("strategy", "run"),
    [
        *(("ddp", run) for run in RUNS),
        ("fsdp", "sgd, scheduler"),
        pytest.param("fsdp", "adam", marks=pytest.mark.slow),
        pytest.param("fsdp", "bf16, two averages", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_to_the_bit_by_every_engine(tmp_path, strategy, run):
    words = dict(steps=14, batch_size=10, seed=3, save_every=4, strategy=strategy, **RUNS[run])
    whole = Crew(2, train, "dit", str(tmp_path / "whole"), words).results()
    broken = str(tmp_path / "broken")
    for at in (6, 11):
        told = Crew(2, train, "dit", broken, words | {"callback": functools.partial(stopped, at)}).results(20)
        assert "stopped" in told[0]
    assert Crew(2, train, "dit", broken, words).results() == whole
    places = [tmp_path / r / "step-00000014" for r in ("whole", "broken")]
    (a, state), (b, same) = (read(place, ["model", "training"]) for place in places)
    assert state == same and all(torch.equal(x, b[g][n]) for g, named in a.items() for n, x in named.items())
    kept = json.loads((places[0] / "manifest.json").read_bytes())["files"]
    assert ("training-00002.safetensors" in kept) == (strategy == "fsdp")


@pytest.mark.parametrize(
    ("first", "then"), [("fsdp", 1), ("fsdp", 3), ("ddp", 2), pytest.param(None, 2, marks=pytest.mark.slow)]
)
def test_a_run_goes_on_in_other_processes_and_engines(tmp_path, first, then):
    """Kept by one engine, gone on with by FSDP2 in another number of processes or by one alone: the run is the same."""
    words = dict(steps=16, batch_size=12, seed=3, ema=(0.05, 0.1))
    alone = Crew(1, train, "dit", None, words).results()[0]
    half = words | {"callback": functools.partial(stopped, 9), "save_every": 8, "strategy": first}
    Crew(2 if first else 1, train, "dit", str(tmp_path), half).results(20)
    assert [p.name for p in steps(tmp_path)] == ["step-00000008"]
    rest = Crew(then, train, "dit", str(tmp_path), words | {"strategy": "fsdp"}).results()
    assert all(r == rest[0] for r in rest)
    close(alone[:2], rest[0][:2])


def test_a_sharded_checkpoint_that_is_damaged_is_seen(tmp_path):
    Crew(2, train, "unet", str(tmp_path), dict(steps=3, batch_size=8, seed=0, strategy="fsdp")).results()
    (place,) = steps(tmp_path)
    groups, _ = read(place, ["model", "training"])
    assert all(name.removeprefix("net.") for name in groups["model"]) and "history.loss" in groups["training"]
    file = place / "training-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="training-00002.safetensors was changed"):
        read(place, ["model"])


def use_after(rank: int, step, folder: str) -> list:
    model = model_of()
    fit(model, pictures(), label=0, steps=3, batch_size=8, seed=0, strategy="fsdp")
    assert any(is_sharded(p) for p in model.parameters())
    first = sg.sample(model, 4, steps=3, seed=1, label=0).x
    sg.save(model, folder)
    history = fit(model, pictures(), label=0, steps=2, batch_size=8, seed=1)  # goes on as it is
    assert len(history.loss) == 2 and not torch.equal(sg.sample(model, 4, steps=3, seed=1, label=0).x, first)
    return first.tolist()


def test_a_sharded_model_samples_is_saved_and_is_loaded_by_one_process(tmp_path):
    two = Crew(2, use_after, str(tmp_path / "model")).results()
    model = sg.load(tmp_path / "model", device="cpu")
    own = sg.sample(model, 4, steps=3, seed=1, label=0).x
    for x in two:
        torch.testing.assert_close(torch.tensor(x), own, rtol=1e-6, atol=1e-6)


def partly(rank: int, step, strategy: str) -> list:
    """A loss that leaves some weights out, in one process only."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = MLP(2, hidden=8, layers=1), MLP(2, hidden=8, layers=1), nn.Linear(3, 3)

        def forward(self, x, t, which=0):
            return self.b(x, t) if which else self.a(x, t)

    torch.manual_seed(0)
    model = Denoiser(Two(), VPSDE())
    half = torch.tensor([0.0, 1.0])

    def loss(m: ScoreModel, x0: Tensor, *, seed=None, which) -> Tensor:
        return dsm_loss(m, x0, seed=seed, which=int(which[0]))

    data = [(x, {"which": half[i // 8]}) for i, x in enumerate(points(16))]
    fit(model, data, steps=3, batch_size=16, loss=loss, seed=0, strategy=strategy)
    return flat(model)


def test_weights_that_a_loss_does_not_reach_stop_nobody():
    one, two = Crew(2, partly, "ddp").results()
    assert one == two


def derivatives(rank: int, step, strategy: str) -> list:
    model = small()
    fit(model, points(), steps=6, batch_size=16, loss=sliced_loss, seed=0, strategy=strategy)
    return flat(model)


def test_losses_that_take_derivatives_train_in_several_processes():
    one, two = Crew(1, derivatives, None).results(), Crew(2, derivatives, "ddp").results()
    assert two[0] == two[1]
    close([one[0]], [two[0]])


def own_shards(rank: int, step, words: dict) -> list:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    model = model_of()
    fully_shard(model.net)
    fit(model, pictures(), label=torch.arange(64) % 3, **words)
    return flat(model)


def test_a_network_that_the_user_sharded_trains():
    words = dict(steps=8, batch_size=16, seed=3)
    fit(plain := model_of(), pictures(), label=torch.arange(64) % 3, **words)
    one, two = Crew(2, own_shards, words).results()
    assert one == two
    close([flat(plain)], [one])
    told = Crew(2, own_shards, words | {"strategy": "ddp"}).results()
    assert all("fully_shard was called on" in t for t in told)


class WithNumber(MLP):
    def __init__(self, shared: bool) -> None:
        super().__init__(2, hidden=8, layers=2)
        self.number = nn.Parameter(torch.zeros(()) if not shared else torch.zeros(1))
        if shared:
            self.modulations[0].weight = self.modulations[1].weight


def test_what_cannot_be_sharded_is_refused_at_once(tmp_path):
    for net, says in (
        (WithNumber(False), "the single number net.number"),
        (WithNumber(True), "modulations.0.weight and net.modulations.1.weight"),
        (nn.DataParallel(MLP(2)), "DistributedDataParallel"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            check_shardable(Denoiser(net, VPSDE()))
        with pytest.raises(InvalidInputError, match=says):
            fit(Denoiser(net, VPSDE()), points(), steps=1, strategy="fsdp", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InvalidInputError, match="'ddp' or 'fsdp'"):
        fit(small(), points(), steps=1, strategy="deepspeed")
    with pytest.raises(InvalidInputError, match="'bf16' or 'full' beside strategy='fsdp'"):
        fit(small(), points(), steps=1, strategy="fsdp", precision="fp16")


def other_networks(rank: int, step) -> None:
    fit(Denoiser(MLP(2, hidden=8 + rank), VPSDE()), points(), steps=1)


def test_processes_with_other_networks_are_told():
    told = Crew(2, other_networks).results()
    assert all("expected the same in all processes" in t for t in told)


def killed(strategy: str, folder: str, times: int, seed: int) -> None:
    draws = random.Random(seed)
    words = dict(steps=60, batch_size=8, seed=3, save_every=5, strategy=strategy)
    whole = Crew(2, train, "dit", folder + "/whole", words).results()
    for _ in range(times):
        crew = Crew(2, train, "dit", folder + "/broken", words)
        until = crew.step.value + draws.randint(1, 60 // times + 6)
        end = time.monotonic() + 30
        while crew.step.value < until and time.monotonic() < end and all(p.is_alive() for p in crew.processes):
            time.sleep(0.001)
        os.kill(crew.processes[draws.randint(0, 1)].pid, signal.SIGKILL)
        crew.results(30)
        if kept := steps(folder + "/broken"):
            sg.load(kept[-1], device="cpu")
    assert Crew(2, train, "dit", folder + "/broken", words).results() == whole


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_process_ends_all_and_the_run_goes_on_to_the_bit(tmp_path, strategy):
    killed(strategy, str(tmp_path), 1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ten_kills_at_random_lose_nothing(tmp_path, strategy):
    killed(strategy, str(tmp_path), 10, seed=1)


def not_finite(rank: int, step, strategy: str) -> tuple:
    calls = []

    def loss(m: ScoreModel, x0: Tensor, **cond) -> Tensor:
        calls.append(0)
        return dsm_loss(m, x0, **cond) * (math.nan if rank == 1 and len(calls) == 3 else 1.0)

    model = model_of("dit")
    history = fit(model, pictures(), label=0, steps=5, batch_size=8, seed=0, loss=loss, strategy=strategy)
    return history.skipped, flat(model)


@pytest.mark.filterwarnings("ignore:step 2")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all(strategy):
    one, two = Crew(2, not_finite, strategy).results()
    assert one == two
    assert one[0] == [2] and all(map(math.isfinite, one[1]))


def compiled(rank: int, step, folder: str, strategy: str | None, at: int) -> list:
    model = model_of("dit")
    model.net.compile(backend="aot_eager")
    how = dict(label=torch.arange(64) % 3, steps=6, batch_size=8, seed=3, save_every=2, strategy=strategy)
    fit(model, pictures(), out=folder, callback=functools.partial(stopped, at), callback_every=1, **how)
    return flat(model)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [None, "ddp"])
def test_a_compiled_network_makes_the_steps_of_the_plain_one_and_goes_on(tmp_path, strategy):
    words = dict(steps=6, batch_size=8, seed=3)
    plain = Crew(1, train, "dit", None, words).results()[0][0]
    size = 2 if strategy else 1
    told = Crew(size, compiled, str(tmp_path), strategy, 5).results(120)
    assert "stopped" in told[0] and [p.name for p in steps(tmp_path)] == ["step-00000002", "step-00000004"]
    found = Crew(size, compiled, str(tmp_path), strategy, 0).results(120)
    assert all(f == found[0] for f in found)
    close([plain], [found[0]], 1e-4)
    assert type(sg.load(tmp_path, device="cpu").net) is DiT
