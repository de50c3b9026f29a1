"""Modules that are no models of scores, trained by the same loop with a loss of their own."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import points
from crew import Crew
from torch import Tensor, nn

import sdegen as sg
from sdegen.core.errors import CheckpointError, InvalidInputError
from sdegen.storage.folders import steps
from sdegen.training.losses import dsm_loss

fit = functools.partial(sg.fit, progress=False, device="cpu")


class Towers(nn.Module):
    """With what a run has to keep besides weights: batch norm's running statistics, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def towers() -> Towers:
    torch.manual_seed(0)
    return Towers()


def entropy(model: Towers, x0: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model.one(x0), label, reduction="none")


def labels(n: int = 200) -> Tensor:
    return torch.arange(n) % 3


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def _train(folder: str, total: int, step=None, **words) -> nn.Module:
    def tell(at: int, model: nn.Module, history: sg.History) -> None:
        if step is not None:
            step.value = at

    model = towers()
    words = dict(batch_size=16, seed=5, save_every=3, callback=tell, callback_every=1) | words
    fit(model, points(), label=labels(), loss=entropy, steps=total, out=folder, **words)
    return model


def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    dice = random.Random(1)
    for _ in range(3):
        context = multiprocessing.get_context("fork")
        step = context.Value("q", 0)
        process = context.Process(target=_train, args=(str(tmp_path / "run"), 150, step))
        process.start()
        kept = steps(tmp_path / "run")
        goal = (int(kept[-1].name[5:]) if kept else 0) + dice.randrange(4, 20)
        while step.value < goal and process.is_alive():
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert steps(tmp_path / "run"), "it was killed on the way"
    again, whole = _train(str(tmp_path / "run"), 150), _train(str(tmp_path / "whole"), 150)
    assert equal(again, whole)
    found = sg.load(tmp_path / "run", net=Towers(), device="cpu")
    assert equal(found, whole) and not found.training


def test_averages_metrics_and_modes(tmp_path):
    """The averaged weights are left in the module and seen by the callback, the last ones are not."""
    seen = []

    def look(at: int, model: nn.Module, history: sg.History) -> None:
        seen.append((model.training, model.one[0].weight.clone()))

    model, last = towers().eval(), towers()
    words = dict(label=labels(), loss=entropy, steps=20, batch_size=16, seed=1)
    history = fit(model, points(), out=tmp_path, callback=look, ema=0.9, **words)
    fit(last, points(), ema=None, **words)
    assert not any(mode for mode, _ in seen) and not model.training
    assert torch.equal(seen[-1][1], model.one[0].weight) and not torch.equal(seen[-1][1], last.one[0].weight)
    assert torch.equal(model.one[1].running_mean, last.one[1].running_mean)
    assert len(history.loss) == 20 and len(history.loss_by_level.loss) == 0 and history.statistics == ""
    assert (tmp_path / "metrics.csv").exists() and not (tmp_path / "loss_by_level.csv").exists()


def _mean_field(rank: int, step, folder: str) -> list:
    torch.manual_seed(rank)
    model = nn.Linear(2, 2)
    loss = lambda model, x0: (model(x0) - x0).square().sum(1)  # noqa: E731
    fit(model, points(), loss=loss, steps=30, batch_size=16, seed=3, out=folder)
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def test_two_processes_equal_one(tmp_path):
    one, two = (Crew(n, _mean_field, str(tmp_path / str(n))).results() for n in (1, 2))
    assert two[0] == two[1]
    torch.testing.assert_close(torch.tensor(two[0]), torch.tensor(one[0]), rtol=1e-5, atol=1e-6)


def test_modules_of_nets_are_rebuilt_from_the_file(tmp_path):
    net = sg.nets.MLP(2, hidden=8, layers=1)
    sg.save(net, tmp_path / "net")
    again = sg.load(tmp_path / "net", device="cpu")
    assert type(again) is sg.nets.MLP and equal(net, again)
    sg.save(towers(), tmp_path / "own")
    with pytest.raises(CheckpointError, match="Towers, is your own: load it with net="):
        sg.load(tmp_path / "own")


X = torch.zeros(6, 2)
WRONG = [
    ("no loss", dict(), r"got a Towers, expected one such as Denoiser.*loss=f"),
    ("a loss of scores", dict(loss=functools.partial(dsm_loss, weight="edm")), "got a Towers"),
    ("no module", dict(model=lambda x: x, loss=entropy), "expected a torch.nn.Module"),
    ("statistics", dict(loss=entropy, statistics="measure", label=labels(6)), "keeps none of its data"),
    ("NaN", dict(loss=entropy, data=X / 0, label=labels(6)), "NaN"),
    ("rows", dict(loss=entropy, label=labels(5)), "for 6 samples"),
    ("unknown condition", dict(loss=entropy, label=labels(6), colour=1), "'colour' is unknown to the loss"),
    ("near miss", dict(loss=entropy, label=labels(6), epochs=3), "steps= is one"),
    ("nothing to train", dict(model=nn.Flatten(), loss=entropy, label=labels(6)), "nothing to train"),
]


@pytest.mark.parametrize(("arguments", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_refused_before_the_module_is_called(arguments, says):
    calls = []
    model = towers()
    model.one.register_forward_hook(lambda *_: calls.append(1))
    call = {"model": model, "data": X, "steps": 2, "seed": 0, **arguments}
    with pytest.raises(InvalidInputError, match=says):
        fit(call.pop("model"), call.pop("data"), **call)
    assert not calls


def test_another_module_is_refused_in_the_same_folder(tmp_path):
    """By its network's name and weights, as a Denoiser is."""
    _train(str(tmp_path), 6)
    words = dict(loss=entropy, label=labels(), steps=9, batch_size=16, out=Path(tmp_path))
    for other, says in ((nn.Linear(2, 3), "expected the checkpoint's"), (Towers(), "loss:")):
        if isinstance(other, Towers):
            words["loss"] = lambda model, x0, label: entropy(model, x0, label)
        with pytest.raises(CheckpointError, match=says):
            fit(other, points(), **words)
