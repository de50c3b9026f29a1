"""Optimisers, schedulers and loggers of the user's: what they decide, what a run folder keeps of them."""

from __future__ import annotations

import csv
import functools
import math
import warnings

import pytest
import torch
from cases import points, small
from crew import Crew
from torch import Tensor, nn

from sdegen.core.errors import IncompatibleCheckpointError, InvalidInputError
from sdegen.models.base import ScoreModel
from sdegen.storage.folders import read, steps
from sdegen.training import fit
from sdegen.training.losses import dsm_loss
from sdegen.training.states import packed, unpacked

fit = functools.partial(fit, progress=False, device="cpu")


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.double().nan_to_num(-1).flatten() for value in model.state_dict().values()])


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True)


def two_groups(weights):
    weights = list(weights)
    return torch.optim.RMSprop([{"params": weights[:2], "lr": 1e-2}, {"params": weights[2:]}], lr=1e-3, centered=True)


class Wandering(torch.optim.Optimizer):
    """Keeps numbers, tuples and tensors in its state, and a number in its group."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2, "made": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["made"] += 1
            for p in group["params"]:
                kept = self.state[p].setdefault("kept", {"pair": (torch.zeros_like(p), 0), "size": math.inf})
                mean, n = kept["pair"]
                mean = mean.lerp(p.grad, 1 / (n + 1))
                kept["pair"] = (mean, n + 1)
                p.sub_(group["lr"] / group["made"] ** 0.1 * mean)


SCHEDULERS = {
    "none": None,
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),  # it reads the rate that it left there
    "several": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4), torch.optim.lr_scheduler.StepLR(o, 3, 0.5)],
        milestones=[4],
    ),
}
OPTIMISERS = [
    sgd,
    two_groups,
    Wandering,
    functools.partial(torch.optim.Adam, lr=1e-3, amsgrad=True),
    torch.optim.Adadelta,
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMISERS, ids=["sgd", "groups", "wandering", "amsgrad", "adadelta"])
def test_a_resumed_run_has_the_same_bits_with_any_optimiser(tmp_path, optimizer, scheduler):
    words = dict(steps=14, batch_size=8, seed=1, save_every=3, optimizer=optimizer, lr_scheduler=SCHEDULERS[scheduler])
    fit(whole := small(), points(), out=tmp_path / "whole", **words)
    for at in (5, 8, 12):
        with pytest.raises(ZeroDivisionError):
            stop = dict(callback=lambda s, m, h, at=at: 1 / (s - at), callback_every=1)
            fit(small(), points(), out=tmp_path / "broken", **words, **stop)
    fit(broken := small(), points(), out=tmp_path / "broken", **words)
    assert torch.equal(flat(whole), flat(broken))
    files = [tmp_path / run / "step-00000014" / "training.safetensors" for run in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("scheduler", ["none", "cosine"])
def test_a_run_with_an_optimiser_is_the_plain_loop(scheduler):
    model, plain = small(), small()
    seeds: list = []

    def loss(m: ScoreModel, x0: Tensor, *, seed=None, **cond) -> Tensor:
        seeds.append((seed, x0))
        return dsm_loss(m, x0, seed=seed)

    words = dict(steps=12, batch_size=16, seed=3, ema=None, clip=None, warmup=None)
    fit(model, points(), loss=loss, optimizer=sgd, lr_scheduler=SCHEDULERS[scheduler], **words)
    plain.data_mean, plain.data_std, plain.data_turn = model.data_mean, model.data_std, model.data_turn
    optimiser = sgd(plain.parameters())
    schedule = SCHEDULERS[scheduler](optimiser) if SCHEDULERS[scheduler] else None
    for n, (seed, x0) in enumerate(list(seeds)):
        if schedule is None:
            optimiser.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * n / 12)) / 2
        optimiser.zero_grad()
        dsm_loss(plain, x0, seed=seed).mean().backward()
        optimiser.step()
        if schedule is not None:
            schedule.step()
    torch.testing.assert_close(flat(model), flat(plain), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", [sgd, functools.partial(torch.optim.SGD, lr=0.05, fused=True), None])
def test_a_step_that_is_not_finite_changes_nothing_with_any_optimiser(optimizer):
    def loss(m: ScoreModel, x0: Tensor, **cond) -> Tensor:
        return dsm_loss(m, x0, **cond) * math.nan

    before = small()
    words = {} if optimizer is None else {"optimizer": optimizer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = fit(model := small(), points(), steps=3, loss=loss, seed=0, ema=None, **words)
    assert history.skipped == [0, 1, 2]
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_of_another_optimiser_is_refused_and_unharmed(tmp_path):
    fit(small(), points(), steps=4, out=tmp_path, seed=0, optimizer=sgd)
    kept = read(steps(tmp_path)[-1], ["training"])[1]
    with pytest.raises(IncompatibleCheckpointError, match="optimizer: got that of fit.*made with torch.optim.sgd"):
        fit(small(), points(), steps=8, out=tmp_path)
    with pytest.raises(IncompatibleCheckpointError, match="lr_scheduler: got torch.*made with that of fit"):
        fit(small(), points(), steps=8, out=tmp_path, optimizer=sgd, lr_scheduler=SCHEDULERS["cosine"])
    assert read(steps(tmp_path)[-1], ["training"])[1] == kept
    fit(small(), points(), steps=8, out=tmp_path, optimizer=sgd)


def test_states_go_through_json_whole():
    import json

    state = {"a": (1, 2.5, None), 3: [True, "x"], "inf": -math.inf, "nan": math.nan, "t": {"z": torch.arange(3.0)}}
    tensors: dict = {}
    back = unpacked(json.loads(json.dumps(packed(state, "s", tensors), allow_nan=False)), tensors)
    assert list(tensors) == ["s.t.z"] and torch.equal(back["t"].pop("z"), torch.arange(3.0))
    assert (
        back["a"] == (1, 2.5, None)
        and back[3] == [True, "x"]
        and back["inf"] == -math.inf
        and back["nan"] != back["nan"]
    )
    with pytest.raises(InvalidInputError, match="got a function"):
        packed({"f": lambda: 0}, "s", {})


WRONG = [
    (
        dict(optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))])),
        "(?s)got optimizer=SGD.*expected a function of 1 argument",
    ),
    (dict(optimizer="sgd"), "expected a function of 1 argument"),
    (dict(optimizer=lambda w: None), "gives a NoneType"),
    (dict(optimizer=lambda w: torch.optim.SGD(w[:1])), "got one of 1 weights"),
    (dict(optimizer=torch.optim.LBFGS), "evaluates the loss itself"),
    (dict(optimizer=sgd, lr=1e-4), "got lr=0.0001 beside optimizer="),
    (dict(optimizer=sgd, weight_decay=0.1), "weight_decay=0.1 beside"),
    (dict(lr_scheduler=lambda o: 3), "gives a int"),
    (dict(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau), "waits for a loss"),
    (dict(lr_scheduler=SCHEDULERS["cosine"], warmup=3), "got warmup=3 beside lr_scheduler="),
    (dict(logger=print), "log.values, step"),
    (dict(optimiser=sgd), "optimizer= is one"),
    (dict(conds={"label": 1}), "cond= is one"),
]


@pytest.mark.parametrize(("words", "says"), WRONG)
def test_wrong_optimisers_are_refused_before_a_folder_is_made(tmp_path, words, says):
    with pytest.raises(InvalidInputError, match=says):
        fit(small(), points(), steps=2, out=tmp_path / "run", **words)
    assert not (tmp_path / "run").exists()


class Log:
    def __init__(self):
        self.rows = []

    def log(self, values, step):
        self.rows.append((step, values))


def test_a_logger_gets_the_rows_of_the_metrics(tmp_path):
    log, alone = Log(), Log()
    words = dict(steps=120, batch_size=8, seed=0, optimizer=sgd)
    fit(small(), points(), out=tmp_path, logger=log, **words)
    with open(tmp_path / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    ends = [1, 2, 4, 8, 16, 32, 50, 100, 120]
    assert [step for step, _ in log.rows] == [int(row.pop("step")) for row in rows] == ends
    for (_, values), row in zip(log.rows, rows, strict=True):
        assert values.keys() == row.keys() and all(math.isclose(values[k], float(row[k])) for k in row)
    for (_, values), end in zip(log.rows, ends, strict=True):
        assert math.isclose(values["lr"], 0.05 * min(1, end / 12) * (1 + math.cos(math.pi * (end - 1) / 120)) / 2)
    fit(small(), points(), logger=alone, **words)
    assert [(step, values["loss"]) for step, values in alone.rows] == [
        (step, values["loss"]) for step, values in log.rows
    ]


def train_again_and_again(rank: int, step, runs: int) -> list:
    losses = []
    for n in range(runs):
        log = Log()
        losses.append(fit(small(), points(), steps=3, batch_size=8, seed=n, logger=log).loss.tolist())
        assert bool(log.rows) == (rank == 0), "the first process speaks for all"
    return losses


def test_one_process_may_train_several_times():
    one, two = Crew(2, train_again_and_again, 4).results(), Crew(1, train_again_and_again, 4).results()
    assert one[0] == one[1]
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(two[0]), rtol=1e-5, atol=1e-6)
