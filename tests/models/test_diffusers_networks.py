"""Every network of diffusers: what it says through a model is what it says itself, or it is refused at the door."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from tiny import FLOWS, NETWORKS, network, normal, scheduler
from torch import Tensor, nn

import sdegen as sg
from sdegen.models.diffusers.forms import FORMS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
N = 3


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


def ours(diffusers, name: str, **config) -> sg.ScoreModel:
    return sg.from_diffusers(network(diffusers, name, **config), scheduler(diffusers, name))


def asked(net: nn.Module, name: str, x: Tensor, t: float, cond: dict) -> Tensor:
    """What the network itself says, called as the pipelines of diffusers call it."""
    kind, _, event, _ = NETWORKS[name]
    cond = dict(cond)
    if (image := cond.pop("image", None)) is not None:
        x = torch.cat([x, image], 1)
    if name in FLOWS:
        told = 1000 * t * {"flux": 1e-3, "flux told guidance": 1e-3, "sana": 0.5}.get(name, 1.0)
    else:
        told = 100 * t - 1
    time = torch.full((len(x),), told)
    if kind == "UNet2DConditionModel":
        cond.setdefault("encoder_hidden_states", None)
    if kind == "PixArtTransformer2DModel":
        cond.setdefault("added_cond_kwargs", {"resolution": None, "aspect_ratio": None})
    if kind == "FluxTransformer2DModel":
        pipeline = __import__("diffusers").FluxPipeline
        n, (channels, height, width) = len(x), event
        places = pipeline._prepare_latent_image_ids(n, height // 2, width // 2, "cpu", torch.float32)
        packed = pipeline._pack_latents(x, n, channels, height, width)
        out = net(hidden_states=packed, timestep=time, img_ids=places, txt_ids=torch.zeros(5, 3), **cond).sample
        return pipeline._unpack_latents(out, height, width, 1)
    first = "sample" if kind.startswith("UNet") else "hidden_states"
    return net(**{first: x}, timestep=time, **cond, return_dict=False)[0][:, : event[0]]


def raw(model: sg.ScoreModel, name: str, x: Tensor, t: float, cond: dict) -> Tensor:
    belief = model(x, t, **cond)
    return belief.velocity if name in FLOWS else belief.noise


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_says_what_its_network_says(diffusers, name):
    model = ours(diffusers, name)
    _, _, event, conditions = NETWORKS[name]
    assert model.event_shape in (event, None)
    x, cond, t = normal(N, *event), conditions(N), 0.4
    with torch.no_grad():
        close(raw(model, name, x, t, cond), asked(model.net.unet, name, x, t, cond))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_condition_is_heard_by_its_own_sample(diffusers, name):
    """Another value for one sample changes what is said of that sample and of no other."""
    model = ours(diffusers, name)
    _, _, event, conditions = NETWORKS[name]
    x, cond = normal(N, *event), conditions(N)
    parts = [(word, None) for word in cond if word != "added_cond_kwargs"]
    parts += [("added_cond_kwargs", key) for key in cond.get("added_cond_kwargs", {})]
    with torch.no_grad():
        before = model(x, 0.4, **cond).x0
        for word, key in parts:
            value = (cond[word] if key is None else cond[word][key]).clone()
            value[1] = (
                ~value[1]
                if value.dtype == torch.bool
                else value[2] - value[1] + 1
                if value.ndim == 1
                else -3 * value[1]
            )
            if word == "encoder_attention_mask":
                value[1] = torch.arange(5) < 1
            changed = {**cond, word: value if key is None else {**cond[word], key: value}}
            after = model(x, 0.4, **changed).x0
            moved = (after - before).abs().flatten(1).amax(1)
            assert moved[1] > 1e-5 and moved[0] < 1e-6 and moved[2] < 1e-6, (word, key, moved)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_sampled_in_parts_as_whole(diffusers, name):
    """Rows of conditions, also inside dicts, stay with their samples where samples leave under error control."""
    model = ours(diffusers, name)
    _, _, event, conditions = NETWORKS[name]
    whole = sg.sample(model, (N, *event), rtol=0.3, seed=0, max_steps=60, **conditions(N))
    parts = sg.sample(model, (N, *event), rtol=0.3, seed=0, max_steps=60, batch_size=2, **conditions(N))
    assert torch.isfinite(whole.x).all()
    close(whole.x, parts.x, 1e-4)


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][3](1)])
def test_conditions_that_are_lacking_are_refused_by_name_before_the_network_is_called(diffusers, name, monkeypatch):
    model = ours(diffusers, name)
    _, _, event, conditions = NETWORKS[name]
    monkeypatch.setattr(type(model.net.unet), "forward", lambda *a, **k: pytest.fail("the network was called"))
    for word in conditions(N):
        if word == "encoder_attention_mask":
            continue
        rest = {k: v for k, v in conditions(N).items() if k != word}
        with pytest.raises(sg.InvalidInputError, match=f"got no {word}=, expected .*told it"):
            sg.sample(model, (N, *event), steps=4, seed=0, **rest)
        if isinstance(conditions(N)[word], dict):
            for key in conditions(N)[word]:
                inner = {k: v for k, v in conditions(N)[word].items() if k != key}
                with pytest.raises(sg.InvalidInputError, match=f"{word}: got no '{key}'"):
                    sg.sample(model, (N, *event), steps=4, seed=0, **{**rest, word: inner})


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][3](1)])
def test_conditions_of_another_width_or_kind_are_refused_before_the_network_is_called(diffusers, name, monkeypatch):
    model = ours(diffusers, name)
    _, _, event, conditions = NETWORKS[name]
    monkeypatch.setattr(type(model.net.unet), "forward", lambda *a, **k: pytest.fail("the network was called"))
    for word, value in conditions(N).items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for key, part in parts:
            wrong = [torch.cat([part, part[:1]]), "words", part[..., None] if part.ndim < 4 else part[0]]
            if (
                part.ndim > 1
                and word != "encoder_attention_mask"
                and NETWORKS[name][0] != "UNet2DConditionModel"
                or part.ndim == 3
            ):
                wrong.append(torch.cat([part, part], -1))
            if word == "class_labels":
                wrong += [part + 1000, part - 7, part.float(), 1000]
            for other in wrong:
                cond = {**conditions(N), word: other if key is None else {**value, key: other}}
                with pytest.raises(sg.InvalidInputError, match=word):
                    sg.sample(model, (N, *event), steps=4, seed=0, **cond)
    with pytest.raises(sg.InvalidInputError, match="unknown to the model: it takes"):
        sg.sample(model, (N, *event), steps=4, seed=0, **conditions(N), prompts=1)


def test_joined_widths_are_told(diffusers):
    model = ours(diffusers, "stable diffusion xl")
    cond = NETWORKS["stable diffusion xl"][3](N)
    cond["added_cond_kwargs"]["time_ids"] = torch.ones(N, 5)
    with pytest.raises(
        sg.InvalidInputError, match="text_embeds of width 8 and 5 time_ids, expected .* such as 8 and 6"
    ):
        sg.sample(model, N, steps=4, **cond)


def test_a_mask_is_as_long_as_its_tokens(diffusers):
    model = ours(diffusers, "pixart")
    cond = {**NETWORKS["pixart"][3](N), "encoder_attention_mask": torch.ones(N, 4)}
    with pytest.raises(sg.InvalidInputError, match="encoder_attention_mask: got 4 tokens, expected .* 5"):
        sg.sample(model, N, steps=4, **cond)


def test_a_number_is_shared_by_all(diffusers):
    model = ours(diffusers, "flux told guidance")
    cond, x = NETWORKS["flux told guidance"][3](N), normal(N, 4, 8, 8)
    with torch.no_grad():
        close(model(x, 0.5, **cond).x0, model(x, 0.5, **{**cond, "guidance": 3.5}).x0, 0.0)


def test_half_precision_networks_get_conditions_in_theirs(diffusers):
    for name in ("stable diffusion xl", "flux", "dit"):
        model = ours(diffusers, name).to(torch.bfloat16)
        _, _, event, conditions = NETWORKS[name]
        assert torch.isfinite(model(normal(N, *event), 0.5, **conditions(N)).x0).all()


# ---- all the others


def classes(diffusers) -> list[str]:
    """The model classes that this release of diffusers has."""
    found = []
    for name in diffusers._import_structure["models"]:
        try:
            cls = getattr(diffusers, name)
        except (RuntimeError, ImportError):  # of another library that is not installed
            continue
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            found.append(name)
    return found


def test_every_model_class_of_diffusers_is_sampled_or_refused_by_name(diffusers):
    sampled, known = {kind for kind, *_ in NETWORKS.values()}, classes(diffusers)
    assert sampled == set(FORMS) and sampled <= set(known) and len(known) > 50
    for name in known:
        if name in sampled:
            continue  # above
        cls = getattr(diffusers, name)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        with pytest.raises(sg.InvalidInputError, match=f"got {name}, expected a network that is called in a way known"):
            sg.from_diffusers(made, diffusers.DDPMScheduler())


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("stable diffusion", {"time_cond_proj_dim": 8}, "distilled"),
        ("stable diffusion", {"attention_type": "gated"}, "boxes"),
        ("unet", {"time_embedding_type": "learned", "num_train_timesteps": 100}, "knows the times of a table alone"),
        ("flux", {"in_channels": 24, "out_channels": 16}, "another picture"),
        ("sana", {"guidance_embeds": True}, "distilled"),
        ("prior", {"added_emb_type": None}, "no embedding"),
        ("prior", {"clip_embed_dim": 7}, "no embedding"),
        ("stable diffusion", {"in_channels": 3}, "takes 3 channels and returns 4"),
    ],
)
def test_what_cannot_be_sampled_is_refused_at_the_door(diffusers, name, config, message):
    with pytest.raises(sg.InvalidInputError, match=message):
        ours(diffusers, name, **config)


def test_a_release_with_another_signature_is_refused(diffusers, monkeypatch):
    kind = diffusers.SD3Transformer2DModel

    def forward(self, hidden_states, depth_map, encoder_hidden_states=None, timestep=None, return_dict=True):
        raise NotImplementedError

    net = network(diffusers, "stable diffusion 3")
    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(sg.InvalidInputError, match="takes depth_map, which is not known here"):
        sg.from_diffusers(net, scheduler(diffusers, "stable diffusion 3"))


def test_channels_of_a_second_stage_are_told_by_its_scheduler(diffusers):
    """Six channels in and out are three of the sample, three of a picture, and three of a learned variance."""
    net = network(diffusers, "stable diffusion", in_channels=6, out_channels=6)
    model = sg.from_diffusers(net, diffusers.DDPMScheduler(variance_type="learned_range"))
    assert isinstance(model, sg.discrete.LearnedVariance) and model.event_shape == (3, 8, 8)
    assert {"image", "encoder_hidden_states"} <= model.condition_names()


# ---- folders


def written(diffusers, name: str, folder):
    net, table = network(diffusers, name), scheduler(diffusers, name)
    net.save_pretrained(folder / "unet")
    table.save_pretrained(folder / "scheduler")
    return net, table


@pytest.mark.parametrize("name", ["unet", "stable diffusion xl", "flux", "prior"])
def test_a_folder_is_the_model_that_was_written(diffusers, name, tmp_path):
    net, table = written(diffusers, name, tmp_path)
    given, read = sg.from_diffusers(net, table), sg.from_diffusers(tmp_path / "unet")
    again = sg.from_diffusers(str(tmp_path / "unet"), str(tmp_path / "scheduler"))
    _, _, event, conditions = NETWORKS[name]
    x, cond = normal(N, *event), conditions(N)
    with torch.no_grad():
        for model in (read, again):
            close(model(x, 0.4, **cond).x0, given(x, 0.4, **cond).x0, 0.0)


def spoilt(folder, how: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "gone":
        weights.unlink()
    elif how == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "shard":
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "second.safetensors"}}'
        )
    elif how == "config":
        (folder / "unet" / "config.json").write_text('{"_diffusers_version": 1, ')
    elif how == "vae":
        (folder / "unet" / "config.json").write_text('{"_diffusers_version": "1", "_class_name": "AutoencoderKL"}')
    elif how == "scheduler":
        (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "os"}')
    elif how == "alone":
        (folder / "scheduler").rename(folder / "other")
    elif how == "empty":
        for file in (folder / "unet").iterdir():
            file.unlink()
    elif how == "ours":
        for file in (folder / "unet").iterdir():
            file.unlink()
        (folder / "unet").rmdir()
        sg.save(sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE()), folder / "unet")
    elif how == "nothing":
        (folder / "unet").rename(folder / "there")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "has no weights .*fetch the whole folder again"),
        ("pointer", "holds the address of weights, not the weights.*git lfs pull"),
        ("cut", "cannot be read by diffusers"),
        ("shard", r"has no weights \(second.safetensors\)"),
        ("config", "config.json cannot be read"),
        ("vae", "has an autoencoder, AutoencoderKL: sg.space_from_diffusers reads it"),
        ("scheduler", "has a 'os', expected a scheduler of diffusers"),
        ("alone", "expected the diffusers scheduler that the network was trained with"),
        ("empty", "is no pipeline .* it has nothing"),
        ("ours", "is a checkpoint of sdegen: sg.load"),
        ("nothing", "there is no folder .*hf download"),
    ],
)
def test_folders_that_cannot_be_read_say_what_to_do(diffusers, how, message, tmp_path):
    written(diffusers, "unet", tmp_path)
    spoilt(tmp_path, how)
    with pytest.raises((sg.CheckpointError, sg.InvalidInputError), match=message):
        sg.from_diffusers(tmp_path / "unet")


@pytest.mark.parametrize("name", ["inpainting", "pixart", "flux"])
def test_a_model_of_diffusers_with_conditions_is_saved(diffusers, name, tmp_path):
    model = ours(diffusers, name)
    sg.save(model, tmp_path / name)
    back = sg.load(tmp_path / name, net=network(diffusers, name), device="cpu")
    _, _, event, conditions = NETWORKS[name]
    x, cond = normal(N, *event), conditions(N)
    with torch.no_grad():
        close(back(x, 0.4, **cond).x0, model(x, 0.4, **cond).x0, 0.0)
    assert type(back) is type(model)


def test_load_says_which_door_reads_a_folder_of_diffusers(diffusers, tmp_path):
    written(diffusers, "unet", tmp_path)
    with pytest.raises(sg.CheckpointError, match="is a network of diffusers: sg.from_diffusers"):
        sg.load(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(sg.CheckpointError, match="is a pipeline of diffusers: sg.from_pipeline"):
        sg.load(tmp_path)


@pytest.mark.parametrize(
    ("lacking", "cure"), [("diffusers", r"sdegen\[interop\]"), ("transformers", r"sdegen\[text\]")]
)
def test_what_is_not_installed_is_told_with_its_cure(lacking, cure, monkeypatch):
    from sdegen.models.diffusers import folders

    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "diffusers", None if lacking == "diffusers" else diffusers_or_skip())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else find(name))
    with pytest.raises(ImportError, match=cure):
        folders.library(text=True)


def diffusers_or_skip():
    return pytest.importorskip("diffusers")
