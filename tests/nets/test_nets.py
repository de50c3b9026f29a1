"""The networks: what they start as, what reaches what, and that they can be rebuilt."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from sdegen.core.errors import InvalidInputError
from sdegen.nets import MLP, PRESETS, DiT, UNet, make_net
from sdegen.nets.attention import CrossAttention, ImageAttention, SelfAttention
from sdegen.nets.conditions import LabelEmbedding
from sdegen.nets.dit import DiTBlock, positions
from sdegen.nets.embeddings import TIME_FEATURES, FourierFeatures, SinusoidalFeatures
from sdegen.nets.unet import Block

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
    "unet in patches, rescaled": (
        lambda **o: UNet(1, channels=8, patch=2, skip_rescale=True, attention=(0,), head_channels=4, **o),
        (1, 8, 12),
    ),
    "dit": (lambda **o: DiT(2, hidden=16, depth=2, heads=2, **o), (2, 4, 6)),
    "dit with a variance, sinusoidal": (
        lambda **o: DiT(1, hidden=12, depth=1, heads=3, patch=3, out_channels=2, time_features="sinusoidal", **o),
        (1, 9, 6),
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
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_autocast(name: str, dtype: torch.dtype, bits: int) -> None:
    """The result is that of float32 to a dozen roundings, in float32, and the gradient is finite."""
    net, x, t, label = build(name, dtype=torch.float32)
    y = net(x, t, label=label).detach()
    with torch.autocast("cpu", dtype):
        y16 = net(x, t, label=label)
    assert y16.dtype == torch.float32
    assert float((y16.detach() - y).norm() / y.norm()) < 12 * 2.0**-bits
    y16.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize("name", ["mlp", "unet in patches, rescaled", "dit"])
def test_compiles_to_one_graph(name: str) -> None:
    net, x, t, label = build(name)
    torch.testing.assert_close(
        torch.compile(net, backend="eager", fullgraph=True)(x, t, label=label), net(x, t, label=label)
    )


@pytest.mark.parametrize("name", ["unet, three levels, not square", "unet in patches, rescaled", "dit"])
def test_channels_last_gives_the_same(name: str) -> None:
    net, x, t, _ = build(name)
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


@nets
def test_labels_are_left_out_in_training_only(name: str) -> None:
    """As often as asked, each on its own, and a label left out is no label."""
    make, shape = NETS[name]
    net, x, t = awake(make(n_classes=3, label_dropout=0.5)), torch.ones(200, *shape), torch.full((200,), 0.3)
    label = torch.ones(200, dtype=torch.long)
    given, none = (net.eval()(x[:1], t[:1], label=k) for k in (1, -1))
    torch.testing.assert_close(net(x, t, label=label), given.expand_as(net(x, t)), rtol=0, atol=1e-3)
    net.embedding.train()
    y = net(x, t, label=label).detach()
    far = (given - none).detach().norm()
    dropped = (y - none).reshape(200, -1).norm(dim=1) < 0.01 * far
    assert torch.all(dropped | ((y - given).reshape(200, -1).norm(dim=1) < 0.01 * far))
    assert abs(int(dropped.sum()) - 100) < 5 * 50**0.5
    assert json.loads(json.dumps(net.config))["label_dropout"] == 0.5


def test_label_embedding_drops_as_often_as_asked() -> None:
    embedding = LabelEmbedding(2, 1, dropout=0.1)
    with torch.no_grad():
        embedding.table.weight.copy_(torch.tensor([[0.0], [1.0], [5.0]]))
    e = embedding(torch.arange(20_000) % 2, 20_000)[:, 0]
    assert abs(float((e == 5).double().mean()) - 0.1) < 5 * (0.09 / 20_000) ** 0.5
    assert torch.equal(e[e != 5], (torch.arange(20_000) % 2).float()[e != 5])


# less memory


@pytest.mark.parametrize("name", ["unet, three levels, not square", "unet with a variance", "dit", "tokens"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    """With dropout in the blocks too; and each block is computed twice."""
    if name == "tokens":
        net = awake(UNet(1, channels=8, token_channels=5)).double()
        x, t, cond = torch.randn(8, 1, 4, 4).double(), torch.rand(8).double(), {"tokens": torch.randn(8, 3, 5).double()}
    else:
        net, x, t, label = build(name)
        cond = {"label": label}
    calls = []
    for block in net.modules():
        if isinstance(block, Block | DiTBlock):
            block.register_forward_pre_hook(lambda *_: calls.append(1))
    found = []
    for net.recompute in (False, True):
        net.train().zero_grad()
        torch.manual_seed(3)
        net(x, t, **cond).square().sum().backward()
        found.append(([p.grad.clone() for p in net.parameters()], len(calls)))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert found[1][1] == 3 * found[0][1]  # once before, twice with it
    with torch.no_grad():
        net.eval()(x, t, **cond)
    assert len(calls) == 4 * found[0][1]


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


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_is_that_of_torch(heads: int, masked: bool) -> None:
    ours = awake(CrossAttention(12, 5, heads)).double()
    theirs = nn.MultiheadAttention(12, heads, kdim=5, vdim=5, batch_first=True).double()
    (wk, wv), (bk, bv) = ours.kv.weight.chunk(2), ours.kv.bias.chunk(2)
    theirs.load_state_dict(
        {
            "q_proj_weight": ours.q.weight,
            "k_proj_weight": wk,
            "v_proj_weight": wv,
            "in_proj_bias": torch.cat([ours.q.bias, bk, bv]),
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x, tokens = torch.randn(3, 10, 12, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True], [True, False, True, False], [False, False, False, True]])
    padding = {"key_padding_mask": ~mask} if masked else {}
    wanted = theirs(x, tokens, tokens, need_weights=False, **padding)[0]
    torch.testing.assert_close(ours(x, tokens, mask if masked else None), wanted, rtol=0, atol=1e-12)


def test_tokens() -> None:
    """Their order does not matter, those masked are not seen, none at all is no condition; all weights learn."""
    net = awake(UNet(1, channels=8, multipliers=(1, 2), attention=(0,), token_channels=5, n_classes=2)).double().eval()
    x, t, tokens = torch.randn(6, 1, 4, 8).double(), torch.rand(6).double(), torch.randn(6, 3, 5).double()
    y = net(x, t, tokens=tokens)
    assert float((y - net(x, t)).detach().norm()) > 1e-3
    torch.testing.assert_close(net(x, t, tokens=tokens.flip(1)), y, rtol=0, atol=1e-10)
    mask = torch.tensor([[True, True, False]]).expand(6, 3)
    torch.testing.assert_close(net(x, t, tokens=tokens, token_mask=mask), net(x, t, tokens=tokens[:, :2]))
    torch.testing.assert_close(net(x, t, tokens=tokens, token_mask=torch.zeros(6, 3, dtype=torch.bool)), net(x, t))
    torch.testing.assert_close(net(x, t, tokens=tokens[:, :0]), net(x, t))
    y.square().sum().backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None and float(p.grad.norm()) > 1e-12}
    assert {name for name, _ in net.named_parameters()} == reached
    again = UNet(**json.loads(json.dumps(net.config))).double().eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, t, tokens=tokens), y)


def test_block_is_its_formula() -> None:
    """With and without rescaling; group norm of two groups of four channels written out."""
    x, e = torch.randn(2, 8, 3, 5, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def norm(h: Tensor, layer: nn.GroupNorm) -> Tensor:
        g = h.reshape(2, 2, -1)
        g = (g - g.mean(2, keepdim=True)) / (g.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return g.reshape(h.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]

    for rescale in (False, True):
        block = awake(Block(8, 8, 6, skip_rescale=rescale)).double()
        a, b = (v[:, :, None, None] for v in (e @ block.modulation.weight.T + block.modulation.bias).split(8, 1))
        h = (1 + a) * norm(block.conv_in(nn.functional.silu(norm(x, block.norm_in))), block.norm_out) + b
        wanted = (x + block.conv_out(nn.functional.silu(h))) / (2**0.5 if rescale else 1)
        torch.testing.assert_close(block(x, e), wanted, rtol=0, atol=1e-12)


def test_rescaled_attention_keeps_the_variance() -> None:
    attention = ImageAttention(8, 2, scale=0.5**0.5)
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(attention(x), x * 0.5**0.5)  # at its start it adds nothing


def test_patches_are_channels() -> None:
    """With patch=2 the net is that of the four interleaved images as channels."""
    net = awake(UNet(1, channels=8, patch=2)).double()
    inner = UNet(4, channels=8).double()
    inner.load_state_dict(net.state_dict())
    x, t = torch.randn(3, 1, 8, 12, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    parts = torch.stack([x[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    y, of_parts = net(x, t), inner(parts, t)
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        torch.testing.assert_close(y[:, 0, i::2, j::2], of_parts[:, k], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in NETS if "mlp" not in n])
def test_every_pixel_sees_every_pixel(name: str) -> None:
    net, x, t, label = build(name)
    x = x[:1].requires_grad_()
    y = net(x, t[:1], label=label[:1])
    for place in ((0, 0), (-1, -1), (y.shape[2] // 2, 0)):
        (gradient,) = torch.autograd.grad(y[0, 0, place[0], place[1]], x, retain_graph=True)
        assert bool((gradient.abs() > 1e-14).all())


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


# the transformer


class Given(nn.Module):
    def __init__(self, e: Tensor) -> None:
        super().__init__()
        self.e = e

    def forward(self, *args, **options) -> Tensor:
        return self.e


def test_dit_block_is_that_of_diffusers() -> None:
    """diffusers' adaLN-Zero block with our weights: scale and shift in the same order, the same GELU."""
    attention = pytest.importorskip("diffusers.models.attention")
    theirs = attention.BasicTransformerBlock(
        16, 2, 8, activation_fn="gelu-approximate", attention_bias=True, num_embeds_ada_norm=3, norm_type="ada_norm_zero",
        norm_elementwise_affine=False, norm_eps=1e-6,
    ).double().eval()  # fmt: skip
    ours = awake(DiTBlock(16, 2)).double()
    q, k, v = ours.attention.qkv.weight.chunk(3)
    bq, bk, bv = ours.attention.qkv.bias.chunk(3)
    weights = {
        "norm1.linear.weight": ours.modulation.weight, "norm1.linear.bias": ours.modulation.bias,
        "attn1.to_q.weight": q, "attn1.to_q.bias": bq, "attn1.to_k.weight": k, "attn1.to_k.bias": bk,
        "attn1.to_v.weight": v, "attn1.to_v.bias": bv,
        "attn1.to_out.0.weight": ours.attention.out.weight, "attn1.to_out.0.bias": ours.attention.out.bias,
        "ff.net.0.proj.weight": ours.inner.weight, "ff.net.0.proj.bias": ours.inner.bias,
        "ff.net.2.weight": ours.outer.weight, "ff.net.2.bias": ours.outer.bias,
    }  # fmt: skip
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("norm1.emb") for name in missing)
    h, e = torch.randn(3, 10, 16, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    theirs.norm1.emb = Given(e)  # before its SiLU, where ours comes after it
    wanted = theirs(h, timestep=torch.zeros(3), class_labels=torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(ours(h, nn.functional.silu(e)), wanted, rtol=0, atol=1e-11)


def test_positions_are_those_of_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_2d_sincos_pos_embed(16, (4, 4), base_size=4, output_type="pt").float()
    torch.testing.assert_close(positions(4, 4, 16), theirs.reshape(16, 16), rtol=0, atol=1e-5)


def test_positions_tell_rows_from_columns() -> None:
    p = positions(3, 5, 8).unflatten(0, (3, 5))
    assert torch.equal(p[0, :, :4], p[2, :, :4]) and torch.equal(p[:, 0, 4:], p[:, 4, 4:])
    phases = torch.tensor([[j * w for w in (1.0, 0.01)] for j in range(5)])
    torch.testing.assert_close(p[0, :, :4], torch.cat([phases.sin(), phases.cos()], 1))
    torch.testing.assert_close(p[:, 0, 4:], torch.cat([phases[:3].sin(), phases[:3].cos()], 1))


def test_dit_puts_patches_where_they_came_from() -> None:
    """With the blocks at their start, an output patch depends on its own input patch alone."""
    net = DiT(1, hidden=16, depth=2, heads=2, patch=2).double()
    awake(net.out)
    x, t = torch.randn(2, 1, 4, 6, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    y = net(x, t)
    for i, j in ((0, 0), (1, 2), (0, 1)):
        moved = x.clone()
        moved[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += torch.randn(2, 1, 2, 2, dtype=torch.float64)
        change = (net(moved, t) - y).abs() > 1e-12
        assert bool(change[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].all()) and int(change.sum()) == 2 * 4


# named networks


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def on_meta(name: str, *args, **changes) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return make_net(name, *args, **changes)


@pytest.mark.parametrize(
    ("options", "millions"),
    [((384, 12, 6), 33), ((768, 12, 12), 130), ((1024, 24, 16), 458), ((1152, 28, 16), 675)],
)
def test_dit_has_the_parameters_of_the_paper(options: tuple[int, int, int], millions: int) -> None:
    """Peebles & Xie 2023, table 1: S/2, B/2, L/2, XL/2 on 4 channels, 1000 classes, with a variance."""
    hidden, depth, heads = options
    n = parameters(on_meta("dit-s/2", 4, hidden=hidden, depth=depth, heads=heads, n_classes=1000, out_channels=8))
    assert round(n / 1e6) == millions


def unet_parameters(c: int, options: dict) -> int:
    """Counted layer by layer from the description in `UNet`, without its code."""
    width, p = options.get("channels", 32), options.get("patch", 1)
    widths = [m * width for m in options.get("multipliers", (1, 2))]
    blocks, e = options.get("blocks", 1), 4 * width
    attended = {i % len(widths) for i in options.get("attention", ())}

    def conv(a: int, b: int, k: int) -> int:
        return k * k * a * b + b

    def block(a: int, b: int, attends: bool) -> int:
        n = 2 * a + conv(a, b, 3) + e * 2 * b + 2 * b + 2 * b + conv(b, b, 3) + (0 if a == b else conv(a, b, 1))
        return n + attends * (2 * b + 3 * (b * b + b) + b * b + b)

    total = (33 * e + e) + (e * e + e) + conv(c * p * p, widths[0], 3)  # 16 frequencies, their cosines, and u
    h = widths[0]
    for level, w in enumerate(widths):
        for _ in range(blocks):
            total += block(h, w, level in attended)
            h = w
    total += blocks * block(h, h, True)
    for level in reversed(range(len(widths))):
        for k in range(blocks):
            out = widths[level] if k < blocks - 1 else widths[max(level - 1, 0)]
            total += block(h + widths[level], out, level in attended)
            h = out
    return total + 2 * h + conv(h, c * p * p, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_named_networks(name: str) -> None:
    """Sizes as told and as counted, and the images they are for fit."""
    preset = PRESETS[name]
    net, n = on_meta(name), parameters(on_meta(name))
    if preset.kind is UNet:
        assert n == unet_parameters(preset.channels, preset.options) and 0.2e6 < n < 60e6
    told = float(preset.source.split("M")[0].split(" ")[-1])
    assert n / 1e6 == pytest.approx(told, rel=0.025)
    side = {"digits": 8, "mnist": 28, "mnist-small": 28, "dit-mini/2": 28}.get(name, 32)
    with torch.device("meta"):
        x, t = torch.empty(2, preset.channels, side, side), torch.empty(2)
    assert net(x, t).shape == x.shape
    other = on_meta(name, 5, n_classes=7, out_channels=10)
    assert other(x[:, :1].expand(2, 5, side, side), t, label=3).shape == (2, 10, side, side)


def test_cifar_networks_are_of_the_published_size() -> None:
    for name in ("cifar10-ddpm", "cifar10-edm"):
        assert 35e6 < parameters(on_meta(name)) < 60e6


def test_config_of_older_checkpoints_is_complete() -> None:
    """Arguments that came later are left out of the config where they change nothing."""
    old = {"in_channels", "channels", "multipliers", "blocks", "attention", "head_channels", "dropout", "n_classes"}
    assert set(UNet(1).config) == old | {"out_channels", "time_features"}


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


@pytest.mark.parametrize("features", ["smooth", "fourier"])
@pytest.mark.parametrize("name", RANGES)
def test_fourier_features_tell_times_apart(name: str, features: str) -> None:
    """Of a thousand times, neighbours differ, and little (|phi| is 4 or more); far ones never look alike."""
    phi = TIME_FEATURES[features]().double()(RANGES[name])
    neighbours = (phi[1:] - phi[:-1]).norm(dim=1)
    assert float(neighbours.min()) > 1e-3 and float(neighbours.max()) < 1.5
    far = torch.cdist(phi, phi)[(torch.arange(1001)[:, None] - torch.arange(1001)).abs() > 200]
    assert float(far.min()) > 0.5
    assert float(phi.abs().max()) < 6


def test_names_of_fourier_features_tell_their_highest_frequency() -> None:
    """Networks in older checkpoints were trained on "fourier": it means what it did."""
    assert TIME_FEATURES["fourier"]().w[-1] == pytest.approx(100)
    assert TIME_FEATURES["smooth"]().w[-1] == pytest.approx(12)
    assert {net.config["time_features"] for net in (MLP(2), UNet(1), DiT(1))} == {"smooth"}
    assert UNet(1, time_features="fourier").embedding.features.w[-1] == pytest.approx(100)


def test_fourier_features_are_their_formula() -> None:
    t = torch.tensor([-3.0, 0.0, 0.7, 80.0], dtype=torch.float64)
    features = FourierFeatures(100, 3).double()
    assert features.w.tolist() == pytest.approx([0.5, math.sqrt(50), 100], rel=1e-6)
    for row, value in zip(features(t), t.tolist(), strict=True):
        u, w = math.asinh(value), features.w.tolist()
        wanted = [u, *(math.sin(k * u) for k in w), *(math.cos(k * u) for k in w)]
        assert row.tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("features", [FourierFeatures(100), SinusoidalFeatures()])
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
    "t of another length": (lambda: MLP(2)(torch.zeros(4, 2), torch.zeros(3)), r"t has shape \(3,\): expected \(4,\)"),
    "t a scalar": (
        lambda: UNet(1, channels=4)(torch.zeros(4, 1, 4, 4), torch.tensor(0.5)),
        r"t has shape \(\): expected \(4,\)",
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
        r"expected integers of shape \(4,\)",
    ),
    "labels not integers": (
        lambda: MLP(2, n_classes=3)(torch.zeros(4, 2), torch.zeros(4), label=torch.zeros(4)),
        "float32.*expected integers",
    ),
    "unknown features": (
        lambda: MLP(2, time_features="random"),
        "time_features='random', expected 'smooth', 'fourier' or 'sinusoidal'",
    ),
    "no layers": (lambda: MLP(2, layers=0), "layers=0"),
    "an empty event": (lambda: MLP((2, 0)), "event_shape=0"),
    "no classes": (lambda: UNet(1, n_classes=0), "n_classes=0"),
    "no levels": (lambda: UNet(1, multipliers=()), "multipliers is empty"),
    "attention below the coarsest level": (lambda: UNet(1, attention=(2,)), "levels from 0"),
    "heads that do not divide": (
        lambda: UNet(1, channels=9, multipliers=(1, 5), head_channels=20),
        "45 channels do not divide into 2 heads",
    ),
    "label dropout without classes": (lambda: UNet(1, label_dropout=0.1), "pass n_classes="),
    "label dropout of everything": (lambda: DiT(1, n_classes=2, label_dropout=1), "label_dropout=1"),
    "tokens unasked": (
        lambda: UNet(1, channels=4)(torch.zeros(2, 1, 4, 4), torch.zeros(2), tokens=torch.zeros(2, 3, 4)),
        "built without tokens",
    ),
    "tokens of another width": (
        lambda: UNet(1, channels=4, token_channels=5)(
            torch.zeros(2, 1, 4, 4), torch.zeros(2), tokens=torch.zeros(2, 3, 4)
        ),
        r"tokens have shape \(2, 3, 4\): expected \(2, T, 5\), from the text encoder that it was trained with",
    ),
    "a mask of numbers": (
        lambda: UNet(1, channels=4, token_channels=5)(
            torch.zeros(2, 1, 4, 4), torch.zeros(2), tokens=torch.zeros(2, 3, 5), token_mask=torch.ones(2, 3)
        ),
        r"token_mask is torch.float32 of shape \(2, 3\): expected bool \(2, 3\)",
    ),
    "a size that does not divide into patches": (
        lambda: UNet(1, channels=4, patch=2)(torch.zeros(2, 1, 6, 8), torch.zeros(2)),
        "6x8 in patches of 2 cannot be halved 1 times: pad both sides to multiples of 4",
    ),
    "a size that does not divide (dit)": (
        lambda: DiT(1, hidden=8, heads=2)(torch.zeros(2, 1, 5, 8), torch.zeros(2)),
        "5x8 cannot be cut into patches of 2x2",
    ),
    "other channels (dit)": (lambda: DiT(1, hidden=8, heads=2)(torch.zeros(2, 3, 4, 4), torch.zeros(2)), "B, 1, H, W"),
    "a width without four parts": (lambda: DiT(1, hidden=6, heads=2), "hidden=6, expected a multiple of 4"),
    "heads that do not divide (dit)": (lambda: DiT(1, hidden=8, heads=3), "8 channels do not divide into 3 heads"),
    "an unknown name": (lambda: make_net("cifar"), "name='cifar', expected 'digits', 'mnist-small'"),
    "an argument of the other kind": (lambda: make_net("dit-s/2", blocks=3), "'dit-s/2' is a DiT: .*'blocks'"),
    "dropout of everything": (lambda: UNet(1, dropout=1.0), "dropout=1.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InvalidInputError, match=message):
        call()
