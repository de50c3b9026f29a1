"""The networks: what they start as, what reaches what, and that they can be rebuilt."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from sdegen.errors import InvalidInputError
from sdegen.nets import MLP, UNet
from sdegen.nets.embeddings import FourierFeatures, SinusoidalFeatures
from sdegen.nets.unet import ImageAttention, SelfAttention

# every network, with a shape of one sample that it takes
NETS = {
    "mlp": (lambda **o: MLP(2, **o), (2,)),
    "mlp of an image": (lambda **o: MLP((1, 4, 6), hidden=24, layers=4, embedding=8, **o), (1, 4, 6)),
    "mlp of a scalar, one layer": (lambda **o: MLP((), hidden=8, layers=1, time_features="sinusoidal", **o), ()),
    "unet": (lambda **o: UNet(1, channels=8, **o), (1, 8, 8)),
    "unet, three levels, not square": (
        lambda **o: UNet(3, channels=8, multipliers=(1, 2, 3), blocks=2, attention=(1, -1), head_channels=8, **o),
        (3, 4, 12),
    ),
    "unet, one level, sinusoidal": (
        lambda **o: UNet(2, channels=6, multipliers=(2,), time_features="sinusoidal", **o),
        (2, 5, 3),
    ),
    "unet with a variance": (lambda **o: UNet(2, channels=8, out_channels=4, dropout=0.3, **o), (2, 4, 4)),
}
nets = pytest.mark.parametrize("name", NETS)


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter away from its start: a last layer of zeros would silence the rest."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            scale = 0.5 if p.ndim == 1 else p[0].numel() ** -0.5
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net


def build(
    name: str, *, n_classes: int | None = 3, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    make, shape = NETS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, *shape, generator=generator, dtype=dtype)
    t = torch.rand(8, generator=generator, dtype=dtype)
    label = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])
    return awake(make(n_classes=n_classes)).to(dtype).eval(), x, t, label


@nets
def test_starts_at_zero(name: str) -> None:
    make, shape = NETS[name]
    assert torch.all(make()(torch.randn(3, *shape), torch.rand(3)) == 0)


@nets
def test_output_has_the_shape_and_dtype_of_x(name: str) -> None:
    net, x, t, label = build(name)
    y = net(x, t, label=label)
    wanted = list(x.shape)
    if "variance" in name:
        wanted[1] *= 2
    assert list(y.shape) == wanted and y.dtype == x.dtype


@nets
def test_rebuilt_from_its_config(name: str) -> None:
    net, x, t, label = build(name)
    config = json.loads(json.dumps(net.config))
    assert config == net.config
    again = type(net)(**config)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    assert torch.equal(again.double().eval()(x, t, label=label), net(x, t, label=label))


@nets
def test_gradient_reaches_every_parameter(name: str) -> None:
    net, x, t, label = build(name)
    generator = torch.Generator().manual_seed(2)
    y = net(x, t, label=label)
    (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum().backward()
    for parameter, p in net.named_parameters():
        assert p.grad is not None, parameter
        reached = p.grad.abs().flatten(1).sum(1) if p.ndim > 1 else p.grad.abs()
        if "qkv.bias" in parameter:  # a bias of the keys moves all logits of a query alike: the softmax does not see it
            reached = torch.cat([reached[: len(p) // 3], reached[2 * len(p) // 3 :]])
        assert torch.all(reached > 1e-12), parameter


@nets
def test_samples_do_not_see_their_batch_mates(name: str) -> None:
    net, x, t, label = build(name)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], label=label[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(net(x, t, label=label), alone, rtol=0, atol=1e-11)  # rounding


@nets
def test_empty_batch(name: str) -> None:
    net, x, t, label = build(name)
    assert net(x[:0], t[:0], label=label[:0]).shape[0] == 0
    assert net(x[:0], t[:0]).shape[0] == 0


@nets
def test_strided_input_left_alone(name: str) -> None:
    net, x, t, label = build(name)
    wide = torch.stack([x, x], -1)
    strided = wide[..., 0]
    torch.testing.assert_close(
        net(strided, t.expand(2, 8).mT[:, 0], label=label), net(x, t, label=label), rtol=0, atol=1e-11
    )
    assert torch.equal(wide, torch.stack([x, x], -1))


@nets
def test_float32_agrees_with_float64(name: str) -> None:
    net, x, t, label = build(name)
    y = net(x, t, label=label).detach()
    y32 = net.float()(x.float(), t.float(), label=label)
    assert y32.dtype == torch.float32
    torch.testing.assert_close(
        y32.double(), y, rtol=0, atol=2e-4 * float(y.abs().max())
    )  # phases of 100 rad carry 1e-5


@nets
def test_autocast(name: str) -> None:
    """bfloat16 has 8 bits: the result is that of float32 to a few per cent, in float32, and the gradient is finite."""
    net, x, t, label = build(name, dtype=torch.float32)
    y = net(x, t, label=label).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y16 = net(x, t, label=label)
    assert y16.dtype == torch.float32
    assert float((y16.detach() - y).norm() / y.norm()) < 0.05
    y16.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_compiles_to_one_graph(name: str) -> None:
    net, x, t, label = build(name)
    torch.testing.assert_close(
        torch.compile(net, backend="eager", fullgraph=True)(x, t, label=label), net(x, t, label=label)
    )


def test_channels_last_gives_the_same() -> None:
    net, x, t, _ = build("unet, three levels, not square")
    y = net(x, t)
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t), y)


def test_sizes_told_in_the_docs() -> None:
    assert sum(p.numel() for p in MLP(2, hidden=88).parameters()) == 35_674
    assert round(sum(p.numel() for p in UNet(1).parameters()), -4) == 330_000


# labels


@nets
def test_no_label_is_the_null_class(name: str) -> None:
    net, x, t, _ = build(name)
    y = net(x, t)
    for label in (None, -1, torch.full((8,), -1), torch.full((8,), -1, dtype=torch.int32)):
        assert torch.equal(net(x, t, label=label), y)


@nets
def test_dropping_a_label_changes_that_sample_alone(name: str) -> None:
    net, x, t, _ = build(name)
    label = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    dropped = label.clone()
    dropped[3] = -1
    change = (net(x, t, label=label) - net(x, t, label=dropped)).abs().reshape(8, -1).sum(1)
    assert change[3] > 1e-6
    assert torch.all(change[torch.arange(8) != 3] == 0)


@nets
def test_one_integer_is_a_label_for_all(name: str) -> None:
    net, x, t, _ = build(name)
    assert torch.equal(net(x, t, label=2), net(x, t, label=torch.full((8,), 2)))
    assert not torch.equal(net(x, t, label=2), net(x, t, label=1))


# parts


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_attention_is_that_of_torch(heads: int) -> None:
    ours, theirs = awake(SelfAttention(12, heads)).double(), nn.MultiheadAttention(12, heads, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(3, 10, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=0, atol=1e-12)


def test_attention_treats_all_pixels_alike() -> None:
    attention, x = awake(ImageAttention(8, 2)).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    order = torch.randperm(15)
    moved = x.flatten(2)[:, :, order].unflatten(2, (3, 5))
    torch.testing.assert_close(attention(moved).flatten(2), attention(x).flatten(2)[:, :, order], rtol=0, atol=1e-12)


def test_blocks_going_up_read_what_their_level_left() -> None:
    """The last channels of each input going up are the results going down, latest first, of the same size."""
    net, x, t, _ = build("unet, three levels, not square", n_classes=None)
    left, read = [], []
    for blocks in net.down:
        for block in blocks:
            block.register_forward_hook(lambda _, args, y: left.append(y))
    for blocks in net.up:
        for block in blocks:
            block.register_forward_hook(lambda _, args, y: read.append(args[0]))
    net(x, t)
    assert len(left) == len(read) == 6
    for y, h in zip(reversed(left), read, strict=True):
        assert torch.equal(h[:, -y.shape[1] :], y)
    assert [tuple(y.shape[2:]) for y in left] == [(4, 12)] * 2 + [(2, 6)] * 2 + [(1, 3)] * 2


def test_attention_at_the_levels_asked() -> None:
    def attended(**options) -> list[list[bool]]:
        net = UNet(1, channels=8, multipliers=(1, 1, 1), **options)
        return [
            [not isinstance(b.attention, nn.Identity) for b in blocks] for blocks in (*net.down, net.middle, *net.up)
        ]

    assert attended() == [[False]] * 3 + [[True]] + [[False]] * 3
    assert attended(attention=(0, -1)) == [[True], [False], [True], [True], [True], [False], [True]]
    assert attended(attention=(1,), blocks=2) == [
        [False] * 2,
        [True] * 2,
        [False] * 2,
        [True] * 2,
        [False] * 2,
        [True] * 2,
        [False] * 2,
    ]


def test_dropout_only_in_training() -> None:
    net = awake(UNet(1, channels=8, dropout=0.5)).double()
    same = UNet(1, channels=8).double()
    same.load_state_dict(net.state_dict())
    x, t = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert not torch.equal(net(x, t), net(x, t))
    assert torch.equal(net.eval()(x, t), same(x, t))


def test_sinusoidal_features_are_those_of_ddpm() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.linspace(0, 1, 11)
    theirs = embeddings.get_timestep_embedding(1000 * t, 64, flip_sin_to_cos=False, downscale_freq_shift=1)
    torch.testing.assert_close(SinusoidalFeatures(32)(t), theirs, rtol=0, atol=2e-4)  # 1000 rad in float32


# what t may be: a time in [0, 1], log(sigma)/4, sigma
RANGES = {
    "time": torch.linspace(0, 1, 1001, dtype=torch.float64),
    "log-sigma/4": torch.linspace(math.log(0.002), math.log(80), 1001, dtype=torch.float64) / 4,
    "sigma": torch.logspace(-2, math.log10(80), 1001, dtype=torch.float64),
}


@pytest.mark.parametrize("name", RANGES)
def test_fourier_features_tell_times_apart(name: str) -> None:
    """Of a thousand times, neighbours differ, and little (|phi| is 4 or more); far ones never look alike."""
    phi = FourierFeatures().double()(RANGES[name])
    neighbours = (phi[1:] - phi[:-1]).norm(dim=1)
    assert float(neighbours.min()) > 1e-3 and float(neighbours.max()) < 1.5
    far = torch.cdist(phi, phi)[(torch.arange(1001)[:, None] - torch.arange(1001)).abs() > 200]
    assert float(far.min()) > 0.5
    assert float(phi.abs().max()) < 6


def test_fourier_features_are_their_formula() -> None:
    t = torch.tensor([-3.0, 0.0, 0.7, 80.0], dtype=torch.float64)
    features = FourierFeatures(3).double()
    assert features.w.tolist() == pytest.approx([0.5, math.sqrt(50), 100], rel=1e-6)
    for row, value in zip(features(t), t.tolist(), strict=True):
        u, w = math.asinh(value), features.w.tolist()
        wanted = [u, *(math.sin(k * u) for k in w), *(math.cos(k * u) for k in w)]
        assert row.tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("features", [FourierFeatures(), SinusoidalFeatures()])
def test_features_of_half_precision_times_are_those_of_their_values(features: nn.Module) -> None:
    t = torch.rand(100).bfloat16()
    phi = features(t)
    assert phi.dtype == torch.float32
    torch.testing.assert_close(phi, features(t.double()).float(), rtol=0, atol=2e-4)  # 1000 rad in float32


@pytest.mark.parametrize("name", RANGES)
def test_mlp_learns_a_function_of_time(name: str) -> None:
    """x cos(4 pi r), r the place of t in its range: two full turns, learned to 10 % within 400 steps."""
    torch.manual_seed(0)
    net, times = MLP(2, hidden=64), RANGES[name].float()
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        i, x = torch.randint(1001, (256,)), torch.randn(256, 2)
        target = x * torch.cos(4 * math.pi * i / 1000)[:, None]
        error = (net(x, times[i]) - target).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert float(error.detach() / target.square().mean()) < 0.1**2


# wrong input

WRONG = {
    "x of another shape (mlp)": (lambda: MLP(2)(torch.zeros(4, 3), torch.zeros(4)), r"\(4, 3\).*\(B, 2\)"),
    "x without a batch (mlp)": (lambda: MLP(2)(torch.zeros(2), torch.zeros(2)), r"\(2,\).*\(B, 2\)"),
    "t of another length": (lambda: MLP(2)(torch.zeros(4, 2), torch.zeros(3)), r"t has shape \(3,\): wanted \(4,\)"),
    "t a scalar": (
        lambda: UNet(1, channels=4)(torch.zeros(4, 1, 4, 4), torch.tensor(0.5)),
        r"t has shape \(\): wanted \(4,\)",
    ),
    "other channels": (lambda: UNet(1, channels=4)(torch.zeros(4, 3, 4, 4), torch.zeros(4)), r"\(B, 1, H, W\)"),
    "not an image": (lambda: UNet(1, channels=4)(torch.zeros(4, 1, 4), torch.zeros(4)), r"\(B, 1, H, W\)"),
    "odd size": (
        lambda: UNet(1, channels=4, multipliers=(1, 1, 1))(torch.zeros(4, 1, 8, 6), torch.zeros(4)),
        "8x6 cannot be halved 2 times: pad both sides to multiples of 4",
    ),
    "a label without classes": (lambda: MLP(2)(torch.zeros(4, 2), torch.zeros(4), label=1), "n_classes"),
    "a label out of range": (lambda: MLP(2, n_classes=3)(torch.zeros(4, 2), torch.zeros(4), label=3), "classes 0 to 2"),
    "a label below -1": (
        lambda: MLP(2, n_classes=3)(torch.zeros(2, 2), torch.zeros(2), label=torch.tensor([0, -2])),
        "from -2 to 0",
    ),
    "labels of another length": (
        lambda: MLP(2, n_classes=3)(torch.zeros(4, 2), torch.zeros(4), label=torch.zeros(3, dtype=torch.long)),
        r"wanted integers of shape \(4,\)",
    ),
    "labels not integers": (
        lambda: MLP(2, n_classes=3)(torch.zeros(4, 2), torch.zeros(4), label=torch.zeros(4)),
        "float32.*wanted integers",
    ),
    "unknown features": (lambda: MLP(2, time_features="random"), "'random' is not known.*'fourier', 'sinusoidal'"),
    "no layers": (lambda: MLP(2, layers=0), "layers=0"),
    "an empty event": (lambda: MLP((2, 0)), "event_shape=0"),
    "no classes": (lambda: UNet(1, n_classes=0), "n_classes=0"),
    "no levels": (lambda: UNet(1, multipliers=()), "multipliers is empty"),
    "attention below the coarsest level": (lambda: UNet(1, attention=(2,)), "levels from 0"),
    "heads that do not divide": (
        lambda: UNet(1, channels=9, multipliers=(1, 5), head_channels=20),
        "45 channels do not divide into 2 heads",
    ),
    "dropout of everything": (lambda: UNet(1, dropout=1.0), "dropout=1.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InvalidInputError, match=message):
        call()
