"""Autoencoders: their loss in closed form, codes that come back into use, and what a run and a file keep of them."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from crew import Crew
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import sdegen as sg
from sdegen.nets import Autoencoder
from sdegen.noise.purposes import Purpose

fit = functools.partial(sg.fit, progress=False, device="cpu", batch_size=16, seed=3)


def build(codes: int | None = None, **options) -> Autoencoder:
    torch.manual_seed(0)
    words = {"latent_channels": 3, "patch": 2, "width": 8, "blocks": 1} | options
    net = Autoencoder(1, codes=codes, **words)
    with torch.no_grad():
        for p in net.parameters():  # away from its start, where residual blocks are the identity
            p.add_(0.05 * torch.randn(p.shape))
    return net


def images(n: int = 40, side: int = 8) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


kinds = pytest.mark.parametrize("codes", [None, 6], ids=["kl", "codes"])


@kinds
@pytest.mark.parametrize("patch", [1, 2, 3, 4, 6])
def test_shapes(codes, patch):
    net = build(codes, patch=patch, width=32).eval()
    x = torch.rand(2, 1, 2 * patch, 3 * patch)
    mean, std = net.encode(x)
    assert mean.shape == (2, 3, 2, 3) and (std is None) == (codes is not None)
    assert net.decode(mean).shape == x.shape and torch.equal(net(x), net.decode(mean))


@kinds
def test_half_precision_and_autocast(codes):
    net, x = build(codes), images(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(sg.autoencoder_loss(net, x, seed=0)).all()
    net = net.eval().to(torch.bfloat16)
    assert net(x.bfloat16()).dtype == torch.bfloat16


def test_beta_1_is_the_evidence_bound():
    """E_q log p(x | z) - KL(q | N(0, I)) by torch's distributions, for each draw of the noise."""
    net, x = build().double(), images(5).double()
    mean, std = net.encode(x)
    noise = sg.Noise(7).normal(mean.shape, Purpose.LATENT, dtype=x.dtype, device="cpu")
    of_pixels = Normal(net.decode(mean + std * noise), torch.exp(net.log_variance / 2)).log_prob(x)
    divergence = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0))
    bound = of_pixels.flatten(1).sum(1) - divergence.flatten(1).sum(1)
    expected = -bound / 64 - math.log(2 * math.pi) / 2
    torch.testing.assert_close(sg.autoencoder_loss(net, x, beta=1.0, seed=7), expected, rtol=1e-10, atol=0)


@kinds
def test_a_sample_has_the_same_loss_in_any_batch(codes):
    net, x = build(codes).eval(), images(6)
    together = sg.autoencoder_loss(net, x, seed=5)
    alone = [sg.autoencoder_loss(net, x[i : i + 1], seed=sg.Noise(5, index=[i])) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert codes or not torch.equal(together, sg.autoencoder_loss(net, x, seed=6))


def test_features_are_added():
    net, x = build().eval(), images(3)
    twice = functools.partial(sg.autoencoder_loss, net, x, seed=0)
    added = twice(features=lambda y: 3 * y) - twice(features=None)
    mean, std = net.encode(x)
    noise = sg.Noise(0).normal(mean.shape, Purpose.LATENT, dtype=x.dtype, device="cpu")
    expected = 9 * ((net.decode(mean + std * noise) - x) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-6)


def test_gradients_pass_straight_through_and_codes_are_drawn_to_latents():
    """Of the loss by hand: the encoder's z gets the decoder's gradient at e and a quarter of 2 (z - e), e gets
    2 (e - z)."""
    net, x = build(6).double().eval(), images(3).double()
    sg.autoencoder_loss(net, x).sum().backward()
    got = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    z = net.encode(x)[0]
    numbers = torch.cdist(z.movedim(1, -1).reshape(-1, 3), net.codes).argmin(1)
    assert torch.equal(numbers, net.quantise(z)[1].flatten())
    e = F.embedding(numbers, net.codes).reshape(3, 4, 4, 3).movedim(-1, 1)
    at = e.detach().requires_grad_()
    decoded = (((net.decoder(at) - x) ** 2).mean() * 3 / (2 * net.log_variance.exp())).sum()
    (through,) = torch.autograd.grad(decoded, at)
    n = z[0].numel()
    z.backward(through + 0.25 * 2 * (z - e).detach() / n, retain_graph=True)
    e.backward(2 * (e - z).detach() / n)
    for name, p in net.named_parameters():
        if name.startswith(("encoder", "codes")):
            torch.testing.assert_close(got[name], p.grad, rtol=1e-9, atol=1e-12)


def test_unused_codes_are_put_on_latents_of_the_batch_and_used_ones_are_left():
    net, x = build(6), images(8)
    z = net.encode(x)[0].detach()
    rows = z.movedim(1, -1).reshape(-1, 3)
    with torch.no_grad():
        net.codes.fill_(100.0)
        net.codes[2] = rows.mean(0)
        net.unused.zero_()
    before = net.codes.detach().clone()
    net.eval().quantise(z)
    assert torch.equal(before, net.codes) and not net.unused.any()
    net.train()
    for _ in range(16):
        assert (net.quantise(z)[1] == 2).all() and torch.equal(before, net.codes)
    net.quantise(z)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(net.codes[2], before[2])
    assert all((net.codes[k] == rows).all(1).any() for k in others), "each is a latent of the batch"
    net.quantise(z)
    assert int((net.unused == 0).sum()) > 1, "and they are in use"


def test_a_dead_codebook_comes_back():
    """A codebook far from all latents: after a few steps all of it is in use."""
    net = build(8)
    with torch.no_grad():
        net.codes.fill_(30.0)
    fit(net, images(), loss=sg.autoencoder_loss, steps=40)
    numbers = net.quantise(net.encode(images())[0])[1]
    assert len(numbers.unique()) == 8


@kinds
def test_training_goes_on_to_the_bit(codes, tmp_path):
    class Stop(Exception):
        pass

    def stop(step, *_):
        if step == 7:
            raise Stop

    whole, parts = build(codes), build(codes)
    words = dict(loss=sg.autoencoder_loss, steps=12, save_every=3)
    fit(whole, images(), out=tmp_path / "whole", **words)
    with pytest.raises(Stop):
        fit(parts, images(), out=tmp_path / "parts", callback=stop, callback_every=1, **words)
    parts = build(codes)
    fit(parts, images(), out=tmp_path / "parts", **words)
    for net in (parts, sg.load(tmp_path / "whole", device="cpu"), sg.load(tmp_path / "parts", device="cpu")):
        assert net.config == whole.config
        for name, value in whole.state_dict().items():
            assert torch.equal(value, net.state_dict()[name]), name


def _trained(rank: int, step, codes: int | None) -> list:
    net = build(codes)
    if codes:
        net.codes.data[1:] = 30.0
    fit(net, images(), loss=sg.autoencoder_loss, steps=20, ema=None)
    return [p.detach().flatten().tolist() for p in net.parameters()]


def test_codes_are_the_same_in_all_processes():
    one, two = Crew(2, _trained, 6).results()
    assert one == two


def test_two_processes_train_what_one_does():
    (one,), (two, _) = (Crew(n, _trained, None).results() for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-4)


NET = build()
WRONG = [
    ("patch", lambda: Autoencoder(1, patch=0), "patch=0"),
    ("codes", lambda: Autoencoder(1, codes=0), "codes=0"),
    ("channels", lambda: NET(torch.zeros(2, 3, 8, 8)), r"built for \(B, 1, H, W\)"),
    ("side", lambda: NET(torch.zeros(2, 1, 8, 7)), "multiples of 2"),
    ("latents", lambda: NET.decode(torch.zeros(2, 4, 4, 4)), r"latents \(B, 3, h, w\)"),
    ("no codes", lambda: NET.quantise(torch.zeros(2, 3, 4, 4)), "build it with codes="),
    ("beta", lambda: sg.autoencoder_loss(NET, images(2), beta=-1.0), "beta=-1.0, expected a number, at least 0"),
    ("features", lambda: sg.autoencoder_loss(NET, images(2), features=lambda x: x.sum()), "features gave"),
    ("another model", lambda: sg.autoencoder_loss(torch.nn.Linear(1, 1), images(2)), "expected a nets.Autoencoder"),
]


@pytest.mark.parametrize(("call", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input(call, says):
    with pytest.raises(sg.InvalidInputError, match=says):
        call()
