"""Latent spaces: what scale the autoencoder has does not matter, what a run and a file keep, a latent model in closed
form."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import os
import shutil

import pytest
import torch
from torch import Tensor, nn

import sdegen as sg
from sdegen.testing import check_wrapper
from sdegen.testing.wrappers import pass_through

fit = functools.partial(sg.fit, progress=False, device="cpu", batch_size=8, seed=3)
sample = functools.partial(sg.sample, progress=False)


def images(n: int = 24) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def autoencoder(codes: int | None = None) -> sg.nets.Autoencoder:
    torch.manual_seed(0)
    net = sg.nets.Autoencoder(1, 3, patch=2, width=8, blocks=1, codes=codes)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return net


def model_in(space: sg.LatentSpace | None) -> sg.Denoiser:
    torch.manual_seed(1)
    net = sg.nets.UNet(3, channels=8, multipliers=(1,), n_classes=2)
    nn.init.normal_(net.out.weight, std=0.05)
    return sg.Denoiser(net, sg.VPSDE(), space=space)


class Scaled(nn.Module):
    """k E and D(./k)."""

    def __init__(self, inner: nn.Module, k: float) -> None:
        super().__init__()
        self.inner, self.k, self.latent_channels = inner, k, 3

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, std = self.inner.encode(x)
        return self.k * mean, None if std is None else self.k * std

    def decode(self, z: Tensor) -> Tensor:
        return self.inner.decode(z / self.k)


kinds = pytest.mark.parametrize("codes", [None, 6], ids=["kl", "codes"])

# ---- the scale


@kinds
@pytest.mark.parametrize("k", [1 / 1000, 1 / 0.18215, 1000])
def test_the_scale_of_the_autoencoder_changes_nothing(codes, k):
    net, x = autoencoder(codes), images()
    spaces = [sg.LatentSpace.measured(e, x) for e in (net, Scaled(net, k))]
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(*[space.encode(x) for space in spaces])
    close(*[space.encode(x, seed=4) for space in spaces])
    close(*[space.latents(x, seed=2).batch(torch.arange(5))[0] for space in spaces])
    models = [model_in(space) for space in spaces]
    for model, space in zip(models, spaces, strict=True):
        fit(model, space.latents(x, seed=0), steps=2)
    z = [sample(model, 3, steps=5, seed=0).x for model in models]
    close(*z)
    close(*[model.decode(z[0]) for model in models])


@kinds
def test_drawn_latents_have_mean_0_and_standard_deviation_1_in_every_channel(codes):
    x = images(400)
    net = autoencoder(codes)
    space = sg.LatentSpace.measured(net, x, n=400)
    z = torch.stack([space.encode(x, seed=s) for s in range(4)]).double().movedim(2, 0).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.03)
    torch.testing.assert_close(z.std(1), torch.ones(3, dtype=torch.float64), rtol=0.02, atol=0)
    m, _ = net.encode(x)
    torch.testing.assert_close(space.decode(space.encode(x)), net.eval().decode(m), rtol=1e-4, atol=1e-5)


def test_mean_and_std_are_per_channel_by_hand():
    space = sg.LatentSpace(autoencoder(), mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 4.0])
    x = images(2)
    m, s = space.autoencoder.encode(x)
    for c in range(3):
        torch.testing.assert_close(space.encode(x)[:, c], (m[:, c] - (c + 1)) / 2**c)
        noise = sg.Noise(5).normal(m.shape, 71, dtype=m.dtype, device="cpu")[:, c]
        drawn = (m[:, c] + s[:, c] * noise - (c + 1)) / 2**c
        torch.testing.assert_close(space.encode(x, seed=5)[:, c], drawn, rtol=1e-4, atol=1e-5)


# ---- latents as data


def test_a_draw_belongs_to_the_seed_and_the_number_of_a_sample():
    space, x = sg.LatentSpace.measured(autoencoder(), images()), images()
    all_of_them = space.latents(x, seed=7).batch(torch.arange(24))[0]
    torch.testing.assert_close(all_of_them, space.encode(x, seed=7), rtol=1e-5, atol=1e-5)
    some = torch.tensor([20, 3, 3, 11])
    assert torch.equal(space.latents(x, seed=7).batch(some)[0], all_of_them[some])
    assert not torch.equal(space.latents(x, seed=8).batch(some)[0], all_of_them[some])
    anew = space.latents(x)
    torch.manual_seed(0)
    first, second = anew.batch(some)[0], anew.batch(some)[0]
    torch.manual_seed(0)
    assert torch.equal(first, anew.batch(some)[0]) and not torch.equal(first, second)


def test_conditions_stay_those_of_the_images():
    space = sg.LatentSpace.measured(autoencoder(), images())
    given = sg.data.Conditioned(images(), label=torch.arange(24) % 2, mean=lambda x: x.mean((1, 2, 3)))
    z, cond = space.latents(given).batch(torch.tensor([5, 2]))
    assert z.shape == (2, 3, 4, 4) and cond["label"].tolist() == [1, 0]
    torch.testing.assert_close(cond["mean"], images()[[5, 2]].mean((1, 2, 3)))


def test_what_is_cached_is_what_would_be_made(tmp_path, monkeypatch):
    space, x = sg.LatentSpace.measured(autoencoder(), images()), images()
    fresh = space.latents(x, seed=1)
    kept = space.latents(x, seed=1, cache=tmp_path / "cache")
    asked = []
    monkeypatch.setattr(space.autoencoder, "encode", lambda x: asked.append(len(x)))
    again = space.latents(x, seed=1, cache=tmp_path / "cache")
    monkeypatch.undo()
    for other in (kept, again):
        assert torch.equal(fresh.mean, other.mean) and torch.equal(fresh.std, other.std)
    assert not asked, "it was not encoded again"
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    changed = x.clone()
    changed[13, 0, 4, 4] += 0.1
    assert not torch.equal(space.latents(changed, cache=tmp_path / "cache").mean, fresh.mean), "other data"
    other = sg.LatentSpace(space.autoencoder, mean=space.mean, std=2 * space.std)
    torch.testing.assert_close(other.latents(x, cache=tmp_path / "cache").mean, fresh.mean / 2)
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.warns(RuntimeWarning, match="damaged and made again"):
        assert torch.equal(space.latents(x, cache=tmp_path / "cache").mean, fresh.mean)
    assert torch.equal(space.latents(x, cache=tmp_path / "cache").mean, fresh.mean)


# ---- carried by a model


def test_many_are_decoded_a_few_at_a_time(monkeypatch):
    """Unless z asks for gradients; what comes out is the same."""
    net, seen = sg.nets.Autoencoder(1, 4, patch=2, width=8, blocks=1), []
    space, decode = sg.LatentSpace(net, mean=0.5, std=2.0), net.decode
    monkeypatch.setattr(net, "decode", lambda z: seen.append(len(z)) or decode(z))
    z = torch.randn(150, 4, 8, 8)
    x = space.decode(z)
    assert sum(seen) == len(z) and max(seen) * z[0].numel() <= 2**13, seen
    del seen[:]
    whole = space.decode(z.requires_grad_())
    assert seen == [150] and whole.requires_grad and not x.requires_grad
    torch.testing.assert_close(x, whole.detach(), rtol=1e-5, atol=1e-6)
    assert space.decode(z[:0].detach()).shape == (0, 1, 16, 16)


def test_training_leaves_the_space_alone_and_it_moves_with_the_model():
    space = sg.LatentSpace.measured(autoencoder(6), images())
    before = copy.deepcopy(space.state_dict())
    model = model_in(space)
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in space.parameters()} and not any("autoencoder" in k for k in model.state_dict())
    fit(model, space.latents(images()), steps=3)
    assert model.space is space and all(torch.equal(v, before[k]) for k, v in space.state_dict().items())
    z = sample(model, 2, steps=3, seed=0).x
    space.train()
    assert not space.autoencoder.training and not model.decode(z).requires_grad
    assert torch.equal(model.decode(z), space.autoencoder.decode(z * space.std.float()[:, None, None] +
                                                                 space.mean.float()[:, None, None]))  # fmt: skip
    asking = z.clone().requires_grad_()
    assert model.decode(asking).requires_grad
    model.double()
    assert {p.dtype for p in space.autoencoder.parameters()} == {torch.float64}
    model.half()
    assert space.mean.dtype == torch.float64 and torch.equal(space.mean, before["mean"])
    twin = copy.deepcopy(model)
    assert twin.space is not space and torch.equal(twin.space.std, space.std)
    model.to("meta")
    assert next(space.parameters()).is_meta


def test_wrappers_pass_it_on():
    model = model_in(sg.LatentSpace.measured(autoencoder(), images()))
    fit(model, model.space.latents(images()), steps=1)
    z = sample(model, 2, steps=3, seed=0).x
    seen = sg.Observation.mask(torch.ones(3, 4, 4, dtype=torch.bool), std=0.1)
    for outer in (
        pass_through(pass_through(model)),
        sg.Guided(model, scale=2.0, null={"label": -1}),
        sg.Posterior(model, seen),
        model.on(sg.EDMSDE()),
    ):
        assert outer.space is model.space and torch.equal(outer.decode(z), model.decode(z))
    check_wrapper(pass_through(model), model, seed=1)
    plain = model_in(None)
    assert plain.space is None and plain.decode(z) is z


# ---- kept


@kinds
def test_a_saved_latent_model_is_the_same_to_the_bit(codes, tmp_path):
    space = sg.LatentSpace.measured(autoencoder(codes), images())
    model = model_in(space)
    fit(model, space.latents(images()), steps=4, out=tmp_path / "run")
    sg.save(model, tmp_path / "saved")
    expected = model.decode(sample(model, 3, steps=4, seed=0).x)
    for place in ("run", "saved"):
        again = sg.load(tmp_path / place, device="cpu")
        assert torch.equal(again.decode(sample(again, 3, steps=4, seed=0).x), expected)
        assert torch.equal(again.space.mean, space.mean) and again.space.mean.dtype == torch.float64
        assert again.space.autoencoder.config == space.autoencoder.config
    sg.save(again, tmp_path / "twice")
    for name in ("model", "autoencoder"):
        once, twice = ((tmp_path / k / f"{name}.safetensors").read_bytes() for k in ("saved", "twice"))
        assert once == twice


def test_a_model_and_an_autoencoder_of_two_checkpoints_are_never_mixed(tmp_path):
    """The manifest seals both: any one file of another checkpoint, or none, is refused."""
    for k, net in enumerate((autoencoder(), autoencoder(6))):
        sg.save(model_in(sg.LatentSpace.measured(net, images(10 + k))), tmp_path / str(k))
    for file in ("autoencoder.safetensors", "model.safetensors", "state.json"):
        mixed = tmp_path / f"mixed {file}"
        shutil.copytree(tmp_path / "0", mixed)
        other = (tmp_path / "1" / file).read_bytes()
        if other != (mixed / file).read_bytes():
            (mixed / file).write_bytes(other)
            with pytest.raises(sg.CorruptCheckpointError):
                sg.load(mixed)
        (mixed / file).unlink()
        with pytest.raises(sg.CorruptCheckpointError):
            sg.load(mixed)


@pytest.mark.parametrize("fails", range(1, 9))
def test_a_crash_between_the_files_leaves_the_old_ones_or_the_new(fails, tmp_path, monkeypatch):
    old, new = (model_in(sg.LatentSpace.measured(autoencoder(c), images())) for c in (None, 6))
    sg.save(old, tmp_path / "model")
    left, fsync = [fails], os.fsync

    def crash(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        fsync(handle)

    monkeypatch.setattr(os, "fsync", crash)
    with contextlib.suppress(KeyboardInterrupt):
        sg.save(new, tmp_path / "model")
    monkeypatch.undo()
    again = sg.load(tmp_path / "model", device="cpu")
    kept = next(m for m in (old, new) if m.space.autoencoder.config == again.space.autoencoder.config)
    z = torch.randn(2, 3, 4, 4)
    assert torch.equal(kept.decode(z), again.decode(z))


def test_your_own_autoencoder_is_filled(tmp_path):
    model = model_in(sg.LatentSpace(Scaled(autoencoder(), 2.0), mean=0.5, std=2.0))
    sg.save(model, tmp_path / "model")
    z = torch.randn(2, 3, 4, 4)
    with pytest.raises(sg.IncompatibleCheckpointError, match="Scaled, is your own: load it with autoencoder="):
        sg.load(tmp_path / "model")
    again = sg.load(tmp_path / "model", autoencoder=Scaled(sg.nets.Autoencoder(1, 3, patch=2, width=8, blocks=1), 2.0))
    assert torch.equal(model.decode(z), again.cpu().decode(z))
    with pytest.raises(sg.IncompatibleCheckpointError, match="the weights are not those of this"):
        sg.load(tmp_path / "model", autoencoder=Scaled(autoencoder(6), 2.0))


def test_a_run_goes_on_in_its_own_space_alone(tmp_path):
    one, two = (sg.LatentSpace.measured(autoencoder(), images(n)) for n in (20, 24))
    fit(model_in(one), one.latents(images()), steps=2, out=tmp_path)
    for other in (two, None):
        with pytest.raises(sg.IncompatibleCheckpointError, match="space: got .*, expected the checkpoint's"):
            fit(model_in(other), one.latents(images()), steps=4, out=tmp_path)
    fit(model_in(one), one.latents(images()), steps=4, out=tmp_path)


def test_a_file_that_lies_about_its_space_is_refused(tmp_path):
    from sdegen.storage import read, write

    sg.save(model_in(sg.LatentSpace.measured(autoencoder(), images())), tmp_path / "model")
    groups, state = read(tmp_path / "model", ["model", "autoencoder"])
    lies = [
        ({"model": groups["model"]}, state),
        ({**groups, "autoencoder": {**groups["autoencoder"], "std": torch.zeros(3)}}, state),
        ({**groups, "autoencoder": {**groups["autoencoder"], "mean": torch.zeros(4)}}, state),
        (groups, _with_space(state, {})),
        (groups, _with_space(state, 3)),
        (groups, _with_space(state, {"autoencoder": {"name": "Autoencoder", "config": {"channels": 10**6}}})),
        (groups, _with_space(state, {"autoencoder": {"name": "MLP", "config": {"event_shape": 2}}})),
    ]
    for k, (tensors, told) in enumerate(lies):
        write(tmp_path / str(k), tensors, told)
        with pytest.raises(sg.IncompatibleCheckpointError):
            sg.load(tmp_path / str(k))


def _with_space(state: dict, space) -> dict:
    told = json.loads(json.dumps(state))
    told["model"]["space"] = space
    return told


# ---- a whole latent model in closed form

D = 16


class Principal(nn.Module):
    """Orthogonal projection on the first axes of a covariance: the latents' law is N(0, diag(variances))."""

    def __init__(self, axes: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.axes, self.m, self.latent_channels = axes, mean, axes.shape[1]

    def encode(self, x: Tensor) -> tuple[Tensor, None]:
        return (x - self.m.to(x)) @ self.axes.to(x), None

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.axes.to(z).T + self.m.to(z)


VARIANCES = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
HOWS = [
    *({"solver": row.name, "steps": 200 if "SDE" in row.kind else 40} for row in sg.solvers() if ":" not in row.name),
    *({"solver": name, "rtol": 1e-3} for name in ("auto", "adams", "dopri5", "bosh3")),
    {"steps": 40},
    {"rtol": 3e-2, "eta": 1.0},
]


@pytest.mark.parametrize("how", HOWS, ids=lambda how: " ".join(map(str, how.values())))
def test_decoded_samples_have_the_law_of_the_projected_data(how):
    """x ~ N(m, C) seen through its four principal axes: D(z) ~ N(m, P C P), for every way to sample."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
    m = torch.randn(D, generator=generator, dtype=torch.float64)
    a = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)  # the mean of what the encoder gives
    space = sg.LatentSpace(Principal(q[:, :4], m - q[:, :4] @ a), mean=a, std=VARIANCES.sqrt())
    law = sg.GaussianMixture(torch.zeros(1, 4, dtype=torch.float64), covariances=torch.eye(4)[None].double())
    exact = sg.MixtureModel(law, sg.VPSDE())
    exact.space = space
    n = 4000
    x = exact.decode(sample(exact, n, seed=1, **how).x.double())
    expected = q[:, :4] @ torch.diag(VARIANCES) @ q[:, :4].T
    z = (x - m) @ q
    assert float(z[:, 4:].abs().max()) < 1e-5, "nothing outside of the plane"
    own = z[:, :4] / VARIANCES.sqrt()
    se = 1 / math.sqrt(n)
    assert float(own.mean(0).abs().max()) < 4.5 * se
    away = torch.cov(own.T) - torch.eye(4, dtype=torch.float64)
    assert float(away.abs().max()) < 4.5 * math.sqrt(2) * se + 0.01
    assert float((torch.cov(x.T) - expected).norm() / expected.norm()) < 0.12


# ---- wrong input

NET = autoencoder()
SPACE = sg.LatentSpace(NET, mean=0.0, std=1.0)
X = images(4)


def _density(x: Tensor, **words):
    model = model_in(SPACE)
    model.event_shape = (3, 4, 4)
    return sg.log_prob(model, x, steps=2, divergence="rademacher", progress=False, **words)


WRONG = [
    ("no autoencoder", lambda: sg.LatentSpace(nn.Linear(1, 1), mean=0.0, std=1.0), r"expected a module with encode"),
    ("std 0", lambda: sg.LatentSpace(NET, mean=0.0, std=[1.0, 0.0, 1.0]), "above 0"),
    ("NaN", lambda: sg.LatentSpace(NET, mean=math.nan, std=1.0), "finite"),
    ("channels of mean", lambda: sg.LatentSpace(NET, mean=[0.0] * 4, std=1.0), "4 channels, the autoencoder's .* 3"),
    ("words", lambda: sg.LatentSpace(NET, mean="a", std=1.0), "mean: got 'a'"),
    ("decode", lambda: SPACE.decode(torch.zeros(2, 4, 4, 4)), r"this space is of latents \(B, 3, ...\)"),
    ("latents of no set", lambda: SPACE.latents([1, 2]), "expected a tensor"),
    ("latents of nothing", lambda: SPACE.latents(X[:0]), "no samples"),
    ("numbers", lambda: SPACE.latents(X).batch(torch.tensor([4])), r"integers in 0 \.\. 3"),
    *(
        (f"{how}: {what}", functools.partial(lambda make, x: make(x), make, x), says)
        for how, make in (("measured", functools.partial(sg.LatentSpace.measured, NET)), ("latents", SPACE.latents))
        for what, x, says in (
            ("bytes", torch.zeros(2, 1, 8, 8).byte(), "data has dtype torch.uint8.*load_images"),
            ("a sample that is none", torch.full((2, 1, 8, 8), math.inf), r"data holds NaN or infinity in 2 samples"),
        )
    ),
    ("one sample", lambda: sg.LatentSpace.measured(NET, X, n=1), "n=1"),
    ("constant", lambda: sg.LatentSpace.measured(autoencoder(2).eval(), X[:1, :, :2, :2]), "a channel is constant"),
    ("network", lambda: sg.Denoiser(sg.nets.UNet(4), sg.VPSDE(), space=SPACE), "got one of 3 channels.* samples of 4"),
    ("event", lambda: sg.Denoiser(sg.nets.MLP((2, 4, 4)), sg.VPSDE(), space=SPACE), "3 channels"),
    ("no space", lambda: sg.Denoiser(sg.nets.UNet(3), sg.VPSDE(), space=NET), "expected LatentSpace|a LatentSpace"),
    ("assigned", lambda: setattr(model_in(None), "space", NET), "expected a LatentSpace"),
    ("pictures to fit", lambda: fit(model_in(SPACE), X, steps=1), r"train it on model.space.latents\(data\)"),
    ("density of pictures", lambda: _density(X), r"log_prob\(model, model.space.encode\(x\)\)"),
    ("levels", lambda: _density(torch.randn(2, 3, 4, 4)).bits_per_dim(256), "densities of latents"),
    ("grey levels", lambda: sg.bits_per_dim(model_in(SPACE), X, levels=256), "no grey levels"),
    ("load", lambda: sg.load("nowhere", autoencoder=3), "autoencoder=3, expected"),
]


class Answering(nn.Module):
    """An autoencoder of one's own that answers as it is told to."""

    def __init__(self, encode=lambda x: (x, None), decode=lambda z: z):
        super().__init__()
        self.encode, self.decode = encode, decode


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (lambda x: x, r"got a tensor \(2, 1, 8, 8\) for 2 samples, expected \(mean, std\), both \(2, C, ...\)"),
        (lambda x: None, "got a NoneType"),
        (lambda x: {"mean": x, "std": None}, "got a dict"),
        (lambda x: (x, x, x), r"got \(a tensor .*, a tensor .*, a tensor"),
        (lambda x: (x[:1], None), r"got \(a tensor \(1, 1, 8, 8\), a NoneType\)"),
        (lambda x: (x, x[:, :, :2]), r"got \(a tensor \(2, 1, 8, 8\), a tensor \(2, 1, 2, 8\)\)"),
    ],
)
def test_an_encoder_that_gives_no_pair_is_refused_whoever_asks(answers, says):
    """Two rows of a tensor would pass for a mean and a standard deviation."""
    net = Answering(answers)
    space, x = sg.LatentSpace(net, mean=0.0, std=1.0), images(2)
    for asked in (space.encode, space.latents, lambda x: sg.LatentSpace.measured(net, x)):
        with pytest.raises(sg.InvalidInputError, match="encode of Answering: " + says):
            asked(x)


@pytest.mark.parametrize(
    ("answers", "says"),
    [(lambda z: (z,), "got a tuple"), (lambda z: z[:1], r"got a tensor \(1, 1, 8, 8\) for 2 latents")],
)
def test_a_decoder_that_gives_no_row_for_each_latent_is_refused(answers, says):
    model = sg.Denoiser(
        sg.nets.UNet(1, channels=8), sg.VPSDE(), space=sg.LatentSpace(Answering(decode=answers), mean=0.0, std=1.0)
    )
    with pytest.raises(sg.InvalidInputError, match="decode of Answering: " + says):
        model.decode(images(2))


@pytest.mark.parametrize(("call", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input(call, says):
    with pytest.raises(sg.InvalidInputError, match=says):
        call()


def test_the_density_of_latents_is_that_of_a_model_without_a_space():
    found = _density(torch.randn(2, 3, 4, 4), seed=0)
    assert found.of_latents and torch.isfinite(found.nats).all() and torch.isfinite(found.bits_per_dim()).all()


def test_short_repr():
    assert "LatentSpace" in repr(model_in(SPACE)) and len(repr(SPACE)) < 600
    assert "samples=4" in repr(SPACE.latents(X))
