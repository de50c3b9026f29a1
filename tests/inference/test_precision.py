"""`precision=`: the network in half precision, and nothing else."""

from __future__ import annotations

import pytest
import torch

import sdegen as sg
from sdegen.core.modes import computing

MIXTURE = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2)


class Exact(torch.nn.Module):
    """The exact mean of the data, of a mixture, by way of a linear layer that does nothing but round."""

    event_shape = (2,)

    def __init__(self):
        super().__init__()
        self.same = torch.nn.Linear(2, 2)
        torch.nn.init.eye_(self.same.weight)
        torch.nn.init.zeros_(self.same.bias)
        self.exact = sg.MixtureModel(MIXTURE, sg.VPSDE())
        self.seen = []

    def forward(self, x, t):
        device = x.device.type
        with torch.autocast(device, enabled=False):
            x0 = self.exact(x, t).x0
        out = self.same(x0)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self.seen.append((x.dtype, t.dtype, dtype, out.dtype))
        return out


def rounding() -> sg.Denoiser:
    mean, variance = MIXTURE.mean, MIXTURE.covariance.diagonal()
    return sg.Denoiser(
        Exact(), sg.VPSDE(), parametrization="x0", smooth=True, data_mean=mean.float(), data_std=variance.mean().sqrt()
    )


HOW = [
    {"steps": 8},
    {"solver": "heun", "steps": 10},
    {"eta": 1.0, "steps": 20},
    {"rtol": 1e-2},
    {"eta": 1.0, "rtol": 0.1},
]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_only_the_network_computes_in_it(how, precision, dtype):
    """State, times, seeds and counts are as they were, and samples move by no more than the network's rounding."""
    model = rounding()
    plain = sg.sample(model, 64, seed=3, progress=False, **how)
    before = len(model.net.seen)
    half = sg.sample(model, 64, seed=3, progress=False, precision=precision, **how)
    assert set(model.net.seen[:before]) == {(torch.float32, torch.float32, None, torch.float32)}
    assert set(model.net.seen[before:]) == {(torch.float32, torch.float32, dtype, dtype)}
    assert half.x.dtype == torch.float32 and half.seed == plain.seed
    if "steps" in how:
        assert torch.equal(half.ts, plain.ts) and torch.equal(half.nfe, plain.nfe)
    away = (half.x - plain.x).square().mean().sqrt() / MIXTURE.covariance.diagonal().mean().sqrt()
    assert 0 < away < 4 * torch.finfo(dtype).eps


def test_encoding_too():
    model, x = rounding(), MIXTURE.sample(32, seed=0).float()
    plain, half = (sg.encode(model, x, steps=20, precision=precision) for precision in (None, "bf16"))
    assert {seen[2] for seen in model.net.seen[-20:]} == {torch.bfloat16}
    assert 0 < (half.x - plain.x).square().mean().sqrt() < 2e-2 * plain.x.std()


def test_tolerances_that_rounding_hides_are_raised_and_told():
    """Error control would take rounding for curvature: no more evaluations than eps/8 needs, with a warning."""
    model = rounding()
    with pytest.warns(UserWarning, match="network in torch.bfloat16"):
        fine = sg.sample(model, 16, seed=0, rtol=1e-6, precision="bf16")
    least = torch.finfo(torch.bfloat16).eps / 8
    assert torch.equal(fine.x, sg.sample(model, 16, seed=0, rtol=least, precision="bf16").x)


def test_the_choice_ends_with_the_call():
    model = rounding()
    with pytest.raises(RuntimeError), computing(torch.bfloat16):
        raise RuntimeError
    sg.sample(model, 4, steps=2, seed=0, precision="bf16")
    sg.sample(model, 4, steps=2, seed=0)
    assert model.net.seen[-1][2] is None


@pytest.mark.parametrize("word", ["full", "float16", torch.bfloat16, True])
def test_other_words_are_refused_before_the_first_call(word):
    model = rounding()
    with pytest.raises(sg.InvalidInputError, match="precision"):
        sg.sample(model, 4, steps=2, precision=word)
    assert not model.net.seen


def test_models_without_a_network_are_told():
    with pytest.raises(sg.InvalidInputError, match="MixtureModel"):
        sg.sample(sg.MixtureModel(MIXTURE, sg.VPSDE()), 4, steps=2, precision="bf16")
    assert sg.sample(rounding().on(sg.EDMSDE()), 4, steps=2, precision="bf16").x.dtype == torch.float32


@pytest.mark.parametrize(
    "make", [lambda: sg.nets.MLP(2, hidden=16), lambda: sg.nets.UNet(1, channels=8)], ids=["MLP", "UNet"]
)
def test_networks_of_the_package_take_it(make):
    torch.manual_seed(0)
    net = make()
    for parameter in net.parameters():  # last layers begin at zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    model = sg.Denoiser(net, sg.EDMSDE(), data_std=0.5)
    shape = (4, *(model.event_shape or (1, 8, 8)))
    plain, half = (sg.sample(model, shape, steps=5, seed=0, precision=precision).x for precision in (None, "bf16"))
    assert 0 < (plain - half).abs().max() < 0.05 * plain.abs().max()
