"""Loops of the user's around `dsm_loss`: the recipes of docs/howto/machines.md, in two processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cases import points, small
from crew import Crew
from torch import nn

import sdegen as sg
from sdegen.core.errors import InvalidInputError
from sdegen.core.shards import whole
from sdegen.training.losses import dsm_loss, implicit_loss, sliced_loss

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "machines.md"


def recipes() -> dict:
    names: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M):
        exec(code, names)
    return names


def run(rank: int, step, name: str, folder: str) -> list:
    import os

    os.chdir(folder)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    model = recipes()[name](points(256))
    assert not isinstance(model, nn.parallel.DistributedDataParallel)
    moved = [float((whole(p) - q).abs().max()) for p, q in zip(model.parameters(), start().parameters(), strict=True)]
    assert max(moved) > 1e-4, "it was trained"
    return torch.cat([whole(p).flatten() for p in model.parameters()]).tolist()


def start() -> sg.Denoiser:
    torch.manual_seed(0)
    return sg.Denoiser(sg.nets.MLP(2), sg.VPSDE(), data_mean=0.0, data_std=1.0)


@pytest.mark.parametrize("name", ["own_ddp", "own_fsdp", "own_accelerate"])
def test_the_recipes_train_the_same_weights_in_two_processes(tmp_path, name):
    if name == "own_accelerate":
        pytest.importorskip("accelerate")
    one, two = Crew(2, run, name, str(tmp_path)).results()
    assert one == two, "every process has the weights of the others"
    if name == "own_fsdp":
        loaded = sg.load(tmp_path / "own_model", device="cpu")
        assert torch.cat([p.flatten() for p in loaded.parameters()]).tolist() == one


def wrapped_gradients(rank: int, step, loss) -> list:
    torch.distributed.init_process_group("gloo")
    model = small()
    wrapped = nn.parallel.DistributedDataParallel(model)
    rows = points(32)[16 * rank : 16 * rank + 16]
    loss(wrapped, rows, seed=rank).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).tolist()


@pytest.mark.parametrize("loss", [dsm_loss, implicit_loss, sliced_loss])
def test_a_wrapped_model_has_the_mean_gradient_of_the_processes(loss):
    one, two = Crew(2, wrapped_gradients, loss).results()
    model, x = small(), points(32)
    (loss(model, x[:16], seed=0).mean() + loss(model, x[16:], seed=1).mean()).div(2).backward()
    assert one == two
    plain = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(torch.tensor(one), plain, rtol=1e-5, atol=1e-6)


def test_a_wrapped_model_is_named_with_the_cure_where_it_cannot_go():
    model = nn.DataParallel(small())
    for call in (lambda: sg.sample(model, 2), lambda: sg.fit(model, points(), steps=1)):
        with pytest.raises(InvalidInputError, match="got one in DataParallel, expected the model inside, model.module"):
            call()
    averaged = torch.optim.swa_utils.AveragedModel(small())
    compiled = torch.compile(small(), backend="eager")
    inside = nn.ModuleDict({"one": nn.Identity(), "two": small()})
    for wrapper, path in ((averaged, "module"), (compiled, "_orig_mod"), (inside, "two")):
        with pytest.raises(InvalidInputError, match=rf"expected the model inside, model\.{path}$"):
            sg.sample(wrapper, 2)
    with pytest.raises(InvalidInputError, match=r"expected the model inside, model\._orig_mod$"):
        sg.fit(compiled, points(), steps=1)
    with pytest.raises(InvalidInputError, match="wrap a network"):
        dsm_loss(nn.DataParallel(nn.Linear(2, 2)), points())


class Step(nn.Module):
    """A module whose `forward` is its training step, as Lightning's strategies hand it to DistributedDataParallel."""

    def __init__(self, own) -> None:
        super().__init__()
        self.model, self.step = own.model, own.training_step

    def forward(self, *batch):
        return self.step(*batch)


def lightning_style(rank: int, step) -> list:
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    own = recipes()["OwnLightning"]()
    wrapped, optimizer = nn.parallel.DistributedDataParallel(Step(own)), own.configure_optimizers()
    before = torch.cat([p.detach().flatten() for p in own.model.parameters()])
    for i, rows in enumerate(points(64).chunk(4)):
        optimizer.zero_grad()
        wrapped(rows[8 * rank : 8 * rank + 8], i).backward()
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in own.model.parameters()])
    assert float((after - before).abs().max()) > 1e-4, "it was trained"
    return after.tolist()


def test_training_step_of_the_docs_trains_the_same_weights_in_two_processes():
    one, two = Crew(2, lightning_style).results()
    assert one == two


def trained_by_lightning(rank: int, step, folder: str) -> list:
    import os

    import lightning

    os.chdir(folder)
    torch.manual_seed(0)
    own = type("Own", (recipes()["OwnLightning"], lightning.LightningModule), {"__init__": begun})()
    batches = torch.utils.data.DataLoader(points(64), batch_size=8)
    words = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    words |= {"enable_checkpointing": False, "max_epochs": 1}
    lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", **words).fit(own, batches)
    return torch.cat([p.detach().flatten() for p in own.model.parameters()]).tolist()


def begun(self) -> None:
    """As a class that derives from LightningModule has it."""
    import lightning

    lightning.LightningModule.__init__(self)
    self.model = start()


def test_lightning_trains_the_same_weights_in_two_processes(tmp_path):
    pytest.importorskip("lightning")
    one, two = Crew(2, trained_by_lightning, str(tmp_path)).results()
    assert one == two
    moved = [float((torch.tensor(one) - torch.cat([p.detach().flatten() for p in start().parameters()])).abs().max())]
    assert moved[0] > 1e-4, "it was trained"
