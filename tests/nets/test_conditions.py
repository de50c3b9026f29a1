"""What networks are told: null laws to the bit, what is left out in training, what one sample's conditions reach."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
from torch import Tensor

import sdegen as sg
from sdegen.core.errors import InvalidInputError
from sdegen.models.guided.guidance import Guided
from sdegen.nets import MLP, DiT, UNet
from sdegen.nets.conditions import Conditional, dropped
from sdegen.training.losses import dsm_loss

T, D, V = 3, 5, 6
SIZES = {"n_classes": 3, "token_channels": D, "vector_channels": V, "image_channels": 2}
SHARES = {"label_dropout": 0.5, "token_dropout": 0.5, "vector_dropout": 0.5, "image_dropout": 0.5}
KINDS = {"label": ("label",), "token": ("tokens", "token_mask"), "vector": ("vector",), "image": ("image",)}

NETS = {
    "mlp": (lambda **o: MLP(2, hidden=16, layers=2, embedding=8, **o), (2,)),
    "mlp of an image": (lambda **o: MLP((1, 4, 4), hidden=16, layers=1, embedding=8, **o), (1, 4, 4)),
    "unet": (lambda **o: UNet(1, channels=8, multipliers=(1, 2), attention=(0,), head_channels=4, **o), (1, 4, 8)),
    "unet in patches": (lambda **o: UNet(3, channels=8, multipliers=(1,), patch=2, **o), (3, 4, 4)),
    "dit": (lambda **o: DiT(1, hidden=16, depth=2, heads=2, **o), (1, 4, 6)),
}
nets = pytest.mark.parametrize("name", NETS)


def build(name: str, n: int = 6, **options) -> tuple[Conditional, Tensor, Tensor, dict[str, Tensor]]:
    """A network with every condition, away from its start, and samples with all of them."""
    make, shape = NETS[name]
    torch.manual_seed(0)
    net = make(**{**SIZES, **options}).double().eval()
    generator = torch.Generator().manual_seed(1)
    normal = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(normal(p.shape) * (0.5 if p.ndim == 1 else p[0].numel() ** -0.5))
    image = normal(n, 2, *shape[1:])
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]]).repeat(-(-n // 3), 1)[:n]
    cond = {"label": torch.arange(n) % 3, "tokens": normal(n, T, D), "token_mask": mask, "vector": normal(n, V)}
    return net, normal(n, *shape), torch.rand(n, generator=generator, dtype=torch.float64), {**cond, "image": image}


@nets
def test_no_condition_is_the_null_condition_to_the_bit(name):
    net, x, t, cond = build(name, image_dropout=0.1)
    for dtype in (torch.float64, torch.float32):
        net, x, t = net.to(dtype), x.to(dtype), t.to(dtype)
        assert torch.equal(net(x, t, **{**cond, "label": None}), net(x, t, **{**cond, "label": -1}))
        nothing = {**cond, "tokens": None, "token_mask": None}
        unseen = {**cond, "token_mask": torch.zeros(6, T, dtype=torch.bool)}
        assert torch.equal(net(x, t, **nothing), net(x, t, **unseen))
        assert torch.equal(net(x, t, **nothing), net(x, t, **{**cond, "token_mask": False}))
        seen = net(x, t, **{**cond, "token_mask": torch.ones(6, T, dtype=torch.bool)})
        assert torch.equal(seen, net(x, t, **{**cond, "token_mask": True}))
        none = net(x, t, **{**cond, "image": None})
        assert torch.equal(none, net(x, t, **{**cond, "image": torch.zeros_like(cond["image"])}))
        for left_out in (nothing, *({**cond, name: None} for name in ("vector", "label", "image"))):
            assert float((net(x, t, **cond) - net(x, t, **left_out)).detach().abs().max()) > 1e-6, "and it matters"


@nets
def test_what_is_left_out_in_training_is_the_null_condition_to_the_bit(name):
    """Each kind by itself, each sample by itself, as often as asked; in eval mode nothing is."""
    n = 64
    for kind, names in KINDS.items():
        net, x, t, cond = build(name, n, **{f"{kind}_dropout": 0.5})
        given, none = net(x, t, **cond), net(x, t, **{**cond, **dict.fromkeys(names)})
        assert torch.equal(given, net(x, t, **cond))
        y = net.train()(x, t, **cond)
        is_given = (y == given).reshape(n, -1).all(1)
        is_none = (y == none).reshape(n, -1).all(1)
        assert torch.all(is_given | is_none), kind
        assert abs(int((is_none & ~is_given).sum()) - n / 2) < 4 * (n / 4) ** 0.5, kind


def test_as_often_as_asked():
    share = float(dropped(0.1, 40_000, torch.device("cpu")).double().mean())
    assert abs(share - 0.1) < 4 * (0.09 / 40_000) ** 0.5


@nets
@pytest.mark.parametrize("padding", [9.0, math.nan])
def test_padding_and_order_of_tokens_do_not_matter(name, padding):
    net, x, t, cond = build(name)
    y = net(x, t, **cond)
    padded = torch.cat([cond["tokens"], torch.full((6, 2, D), padding, dtype=x.dtype)], 1)
    mask = torch.cat([cond["token_mask"], torch.zeros(6, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(net(x, t, **{**cond, "tokens": padded, "token_mask": mask}), y, rtol=0, atol=1e-10)
    order = torch.tensor([4, 2, 0, 1, 3])
    turned = {**cond, "tokens": padded[:, order], "token_mask": mask[:, order]}
    torch.testing.assert_close(net(x, t, **turned), y, rtol=0, atol=1e-10)


@nets
def test_conditions_reach_their_own_sample_alone(name):
    net, x, t, cond = build(name)
    y, other = net(x, t, **cond), build(name, 7)[3]
    for key, value in cond.items():
        changed = value.clone()
        changed[2] = ~value[2] if value.dtype == torch.bool else (other[key][6] if key == "label" else value[2] + 1)
        moved = (net(x, t, **{**cond, key: changed}) - y).detach().reshape(6, -1).abs().amax(1)
        assert moved[2] > 1e-6 and torch.all(moved[torch.arange(6) != 2] == 0), key


@nets
def test_gradients_reach_every_weight(name):
    net, x, t, cond = build(name)
    without = {"image": cond["image"]}
    (net(x, t, **cond).square().sum() + net(x, t, **without).square().sum()).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or float(p.grad.norm()) < 1e-12]


@nets
def test_conditions_start_silent_and_are_rebuilt_from_config(name):
    make, shape = NETS[name]
    net, x, t, cond = build(name, **SHARES)
    assert json.loads(json.dumps(net.config)) == net.config
    again = type(net)(**net.config).double().eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, t, **cond), net(x, t, **cond)) and again.conditions == net.conditions
    assert {f"{kind}_{what}" for kind in ("token", "vector", "image") for what in ("channels", "dropout")}.isdisjoint(
        make().config
    )


class Spy(UNet):
    """Keeps what its first layer reads."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.stem.register_forward_pre_hook(lambda module, inputs: setattr(self, "seen", inputs[0].clone()))


def test_an_image_is_read_beside_the_scaled_state_as_it_is():
    model = sg.Denoiser(Spy(1, channels=8, image_channels=2), sg.VESDE(0.1, 50.0), data_std=0.5)
    x, image = 50 * torch.randn(3, 1, 4, 4), torch.randn(3, 2, 4, 4)
    model(x, 1.0, image=image)
    assert torch.equal(model.net.seen[:, 1:], image)
    assert 0.3 < float((model.net.seen[:, :1] / x).mean()) * (50**2 + 0.5**2) ** 0.5 < 1.1


def denoiser(name: str, **options) -> tuple[sg.Denoiser, Tensor, dict[str, Tensor]]:
    net, x, _, cond = build(name, 32, **options)
    return (
        sg.Denoiser(net.float(), sg.VPSDE()),
        x.float(),
        {k: v.float() if v.dtype == torch.float64 else v for k, v in cond.items()},
    )


class Stop(Exception):
    pass


@nets
def test_a_resumed_run_leaves_out_the_same_and_its_model_is_rebuilt(name, tmp_path):
    calls = []

    def loss(model, x0, stops_at=None, **cond):
        calls.append(1)
        if len(calls) == 8 and stops_at:
            raise Stop
        return dsm_loss(model, x0, **cond)

    words = dict(steps=12, batch_size=8, seed=4, save_every=3, progress=False, device="cpu")
    whole, x, cond = denoiser(name, **SHARES)
    sg.fit(whole, x, loss=loss, out=tmp_path / "whole", cond=cond, **words)
    calls.clear()
    for stops in (True, False):
        model, x, cond = denoiser(name, **SHARES)
        torch.manual_seed(int(stops))
        flagged = functools.partial(loss, stops_at=True)
        try:
            sg.fit(
                model,
                x,
                loss=loss if not stops else _named_as(loss, flagged),
                out=tmp_path / "broken",
                cond=cond,
                **words,
            )
        except Stop:
            continue
    again = sg.load(tmp_path / "broken", device="cpu")
    sg.load(tmp_path / "whole", device="cpu")
    for p, q in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    few = {k: v[:2] for k, v in cond.items()}
    assert torch.equal(again(x[:2], 0.5, **few).x0, whole.eval()(x[:2], 0.5, **few).x0)


def _named_as(loss, other):
    """Another function that a run knows by the same name."""
    return functools.wraps(loss)(lambda *args, **cond: other(*args, **cond))


def test_guidance_against_no_tokens():
    """x0_none + 2 (x0 - x0_none), None being a null condition like any."""
    net, x, _, cond = build("unet")
    model = sg.Denoiser(net, sg.VPSDE())
    null = {"tokens": None, "token_mask": None, "vector": None, "label": -1}
    belief = Guided(model, 2.0, null=null)(x, 0.5, **cond).x0
    a, b = model(x, 0.5, **cond).x0, model(x, 0.5, image=cond["image"]).x0
    torch.testing.assert_close(belief, b + 2 * (a - b))


def test_guidance_against_no_image_for_networks_that_know_what_none_is():
    net, x, _, cond = build("unet", image_dropout=0.1)
    model = sg.Denoiser(net, sg.VPSDE())
    belief = Guided(model, 2.0, null={"image": None})(x, 0.5, **cond).x0
    a, b = model(x, 0.5, **cond).x0, model(x, 0.5, **{**cond, "image": None}).x0
    torch.testing.assert_close(belief, b + 2 * (a - b))
    model.event_shape = tuple(x.shape[1:])
    assert sg.sample(model, 2, steps=2, seed=0, progress=False).x.shape == (2, *x.shape[1:])
    stranger = sg.Denoiser(build("unet")[0], sg.VPSDE())
    with pytest.raises(InvalidInputError, match="asked without an image: pass image=.*image_dropout="):
        Guided(stranger, 2.0, null={"image": None})(x, 0.5, **cond)


IMAGE = torch.zeros(4, 2, 4, 4)
WRONG = {
    "no image": ({}, r"image_channels=2 and is asked without an image: pass image= of shape \(4, 2, 4, 4\)"),
    "an image of another size": ({"image": IMAGE[..., :3]}, r"image: got \(4, 2, 4, 3\), expected \(4, 2, 4, 4\)"),
    "an image with other channels": ({"image": IMAGE[:, :1]}, r"got \(4, 1, 4, 4\)"),
    "an image of bytes": ({"image": IMAGE.byte()}, "uint8.*expected floating"),
    "an image that is a number": ({"image": 1.0}, "got float"),
    "tokens of another width": ({"image": IMAGE, "tokens": torch.zeros(4, 3, 4)}, r"tokens.*expected \(4, T, 5\)"),
    "token numbers": ({"image": IMAGE, "tokens": torch.zeros(4, 3, 5).long()}, "int64.*expected floating"),
    "a mask alone": ({"image": IMAGE, "token_mask": torch.ones(4, 3).bool()}, "token_mask without tokens"),
    "a mask of another length": (
        {"image": IMAGE, "tokens": torch.zeros(4, 3, 5), "token_mask": torch.ones(4, 2).bool()},
        r"expected bool \(4, 3\)",
    ),
    "a mask that is a word": (
        {"image": IMAGE, "tokens": torch.zeros(4, 3, 5), "token_mask": "all"},
        r"token_mask is 'all': expected bool \(4, 3\), or True or False",
    ),
    "a vector of another length": ({"image": IMAGE, "vector": torch.zeros(4, 5)}, r"vector: got.*\(4, 5\).*\(4, 6\)"),
    "an unknown class": ({"image": IMAGE, "label": torch.full((4,), 3)}, "classes 0 to 2"),
    "unknown": ({"image": IMAGE, "prompt": 1}, "'prompt' is unknown to the model"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("verb", ["sample", "fit"])
def test_wrong_conditions_are_refused_before_the_network_is_called(case, verb):
    cond, says = WRONG[case]
    net = UNet(1, channels=8, **SIZES)
    model = sg.Denoiser(net, sg.VPSDE())
    model.event_shape = (1, 4, 4)
    calls: list[int] = []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InvalidInputError, match=says):
        if verb == "sample":
            sg.sample(model, 4, steps=4, seed=0, progress=False, **cond)
        else:
            sg.fit(model, torch.zeros(4, 1, 4, 4), steps=1, batch_size=4, progress=False, device="cpu", **cond)
    assert not calls


class Own(UNet):
    """With a condition of its own, of which it makes the image."""

    def forward(self, x, t, picture):
        return super().forward(x, t, image=picture.float())


def test_a_subclass_has_the_conditions_of_its_own_forward():
    model = sg.Denoiser(Own(1, channels=8, image_channels=2), sg.VPSDE())
    sg.sample(model, (2, 1, 4, 4), steps=2, seed=0, progress=False, picture=torch.zeros(2, 2, 4, 4).byte())
    with pytest.raises(InvalidInputError, match="'image' is unknown to the model: it takes picture"):
        sg.sample(model, (2, 1, 4, 4), steps=2, seed=0, progress=False, image=torch.zeros(2, 2, 4, 4))


@pytest.mark.parametrize("cond", ["tokens", "vector", "image", "label"])
@nets
def test_conditions_that_a_network_was_not_built_for(name, cond):
    make, _ = NETS[name]
    _, x, t, conditions = build(name)
    with pytest.raises(InvalidInputError, match=r"built without"):
        make()(x.float(), t.float(), **{cond: conditions[cond]})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token_dropout": 0.1}, "token_dropout=0.1 without tokens: pass token_channels="),
        ({"vector_dropout": 0.1}, "vector_dropout=0.1 without vectors: pass vector_channels="),
        ({"image_dropout": 0.1}, "image_dropout=0.1 without images: pass image_channels="),
        ({"image_channels": 1, "image_dropout": -0.1}, "image_dropout=-0.1, expected a probability"),
        ({"token_channels": 0}, "token_channels=0"),
        ({"vector_channels": 1.5}, "vector_channels=1.5"),
        ({"image_channels": -1}, "image_channels=-1"),
        ({"vector_channels": 2, "vector_dropout": 1.0}, r"vector_dropout=1.0, expected a probability"),
    ],
)
@nets
def test_options_that_cannot_be(name, options, says):
    with pytest.raises(InvalidInputError, match=says):
        NETS[name][0](**options)
