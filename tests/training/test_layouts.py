"""Memory layout: whatever a network's weights look like in memory, a run trains them and goes on to the bit."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sdegen as sg
from sdegen.app.cli import main
from sdegen.app.commands import train
from sdegen.models.base import ScoreModel
from sdegen.training.losses import dsm_loss

fit = functools.partial(sg.fit, progress=False, device="cpu")
PICTURES = torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def channels_last() -> nn.Module:
    return sg.nets.UNet(2, channels=8, multipliers=(1, 2)).to(memory_format=torch.channels_last)


def convolutions(**words) -> nn.Module:
    return sg.nets.UNet(2, channels=8, multipliers=(1, 2), dropout=0.2, **words)


class Pointwise(nn.Module):
    """A small network whose one weight lies in memory as it is told."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias, self.norm = nn.Parameter(torch.zeros(4)), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.einsum("bchw,ck->bkhw", x, self.weight) + self.bias[:, None, None] * t[:, None, None, None]
        return self.last(self.norm(h).relu())


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tied() -> nn.Module:
    net = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))).to(memory_format=torch.channels_last)
    net[2].weight = net[0].weight

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x + t[:, None, None, None]).tanh()

    return Timed()


def frozen() -> nn.Module:
    net = channels_last()
    for p in list(net.parameters())[::3]:
        p.requires_grad_(False)
    return net


def half() -> nn.Module:
    return channels_last().to(torch.bfloat16)


def normed() -> nn.Module:
    net = Pointwise(normals(2, 4).t().contiguous().t())
    net.last = parametrizations.weight_norm(net.last.to(memory_format=torch.channels_last))
    return net


NETS = {
    "plain": convolutions,
    "channels last": channels_last,
    "transposed": lambda: Pointwise(normals(4, 2).t()),
    "with gaps": lambda: Pointwise(normals(2, 8)[:, ::2]),
    "rows of a larger one": lambda: Pointwise(normals(7, 4)[2:4]),
    "one for all": lambda: Pointwise(normals(1, 4).expand(2, 4)),
    "tied": tied,
    "frozen": frozen,
    "half": half,
    "weight norm": normed,
}
HOW = {
    "plainly": {},
    "in parts": dict(accumulate=3, clip=0.1),
    "several averages": dict(ema=(0.05, 0.1)),
    "bf16": dict(precision="bf16"),
}


def model_of(make) -> sg.Denoiser:
    torch.manual_seed(0)
    return sg.Denoiser(make(), sg.VPSDE(), parametrization="v")


class Stop(Exception):
    pass


def run(make, out: Path, stops: tuple[int, ...], **words) -> sg.Denoiser:
    """A run that dies in the step after each of `stops`."""
    words = dict(steps=14, batch_size=6, seed=1, save_every=3, out=out, **words)
    for at in stops:

        def dies(step: int, model: ScoreModel, history: sg.History, at: int = at) -> None:
            if step >= at:
                raise Stop

        with pytest.raises(Stop):
            fit(model_of(make), PICTURES, callback=dies, callback_every=1, **words)
    model = model_of(make)
    fit(model, PICTURES, callback=lambda *_: None, callback_every=1, **words)
    return model


def files(out: Path) -> list[bytes]:
    return [(out / "step-00000014" / f"{name}.safetensors").read_bytes() for name in ("model", "training")]


@pytest.mark.parametrize(
    ("net", "how"), [*((net, "plainly") for net in NETS), *(("channels last", how) for how in HOW if how != "plainly")]
)
def test_a_run_goes_on_to_the_bit_however_its_weights_lie_in_memory(tmp_path, net, how):
    run(NETS[net], tmp_path / "whole", (), **HOW[how])
    run(NETS[net], tmp_path / "broken", (5, 11), **HOW[how])
    assert files(tmp_path / "whole") == files(tmp_path / "broken")


@pytest.mark.parametrize("net", ["channels last", "transposed", "with gaps", "rows of a larger one", "tied", "half"])
def test_training_does_not_depend_on_the_layout(net):
    """To rounding (of kernels that sum in another order), the weights are those of the same network in plain memory."""
    plain, laid = model_of(NETS[net]), model_of(NETS[net])
    own = list(plain.net.modules())
    for module in own:
        for name, p in module._parameters.items():
            if p is not None:
                p.data = p.detach().clone(memory_format=torch.contiguous_format)
                assert module._parameters[name].is_contiguous()
    for model in (plain, laid):
        fit(model, PICTURES, steps=8, batch_size=6, seed=1, lr=1e-2)
    tolerance = 0.05 if net == "half" else 1e-4
    for a, b in zip(plain.parameters(), laid.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_what_shares_memory_with_a_weight_is_left_alone():
    whole = normals(2, 8)
    before = whole.clone()
    fit(model_of(lambda: Pointwise(whole[:, ::2])), PICTURES, steps=3, batch_size=6, seed=1)
    assert torch.equal(whole, before)


# ---- the image script


def script(monkeypatch, words: list[str], stop: int | None) -> None:
    """The command train, told to stop by a signal after some steps."""

    def preview(self, step: int, model: ScoreModel, history: sg.History) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Previews, "__call__", preview)
    if stop is None:
        assert main(["train", *words]) == 0
    else:
        with pytest.raises(SystemExit) as ended:
            main(["train", *words])
        assert ended.value.code == 143


def test_the_image_script_goes_on_to_the_bit_on_a_folder_of_pictures(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from PIL import Image

    pixels = (torch.rand(24, 8, 8, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    for i, picture in enumerate(pixels):
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    words = ["--data", str(tmp_path / "pictures"), "--cache", str(tmp_path / "cache"), "--flips", "--device", "cpu"]
    words += ["--net", "channels=8", "--net", "multipliers=[1,2]", "--steps", "14", "--batch-size", "6"]
    words += ["--preview-every", "1"]
    script(monkeypatch, [*words, "--out", str(tmp_path / "whole")], None)
    for stop in (5, 9, None):
        script(monkeypatch, [*words, "--out", str(tmp_path / "broken")], stop)
    assert files(tmp_path / "whole")[1] == files(tmp_path / "broken")[1]
    model = sg.load(tmp_path / "broken", device="cpu")
    assert model.about["arguments"]["steps"] == 14 and dsm_loss(model, torch.zeros(2, 3, 8, 8)).isfinite().all()
