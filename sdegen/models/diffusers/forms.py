"""The network classes of diffusers that are sampled here: which conditions each takes, of which shapes, and its events.

A signature has the names of the conditions; a configuration says which of them this network needs and how wide they
are. How a network is told the time is in neither, so classes that are not in `FORMS` are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        shape: of one sample's, None for any size; () is a number, which all samples may share.
        required: whether the network cannot do without.
        below: labels are whole numbers from 0 to below - 1; None: they are any numbers.
        exact: whether it keeps its own dtype, as sizes do, where the network computes in half precision.
    """

    shape: Shape
    required: bool = True
    below: int | None = None
    exact: bool = False


Conditions = dict[str, "Condition | dict[str, Condition]"]


@dataclass(frozen=True)
class Form:
    """How networks of one class are called.

    Attributes:
        conditions: a configuration -> the conditions.
        event: a configuration and the number of channels -> the shape of a sample, None where any size will do.
        refusal: a configuration -> why such a network cannot be sampled, "": it can.
        time: a configuration -> what the scheduler's time is multiplied by.
        always: words that every call has.
        patch: pixels that become one token, side by side, before the network sees them; 1: none do.
    """

    conditions: Callable[[Config], Conditions]
    event: Callable[[Config, int], tuple[int, ...] | None]
    refusal: Callable[[Config], str] = lambda config: ""
    time: Callable[[Config], float] = lambda config: 1.0
    always: Callable[[Config], dict[str, Any]] = lambda config: {}
    patch: int = 1


def _image(config: Config, channels: int) -> tuple[int, ...] | None:
    size = config.get("sample_size")
    if size is None:
        return None
    return (channels, *((size, size) if isinstance(size, int) else size))


def _sequence(config: Config, channels: int) -> tuple[int, ...] | None:
    return None if config.get("sample_size") is None else (channels, config["sample_size"])


def _any_size(config: Config, channels: int) -> None:
    return None


# ---- UNets


def _labels(config: Config) -> Conditions:
    """`class_labels`, whatever stands for them."""
    kind, classes = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind is None:
        return {} if classes is None else {"class_labels": Condition((), below=classes)}
    if kind == "timestep":
        return {"class_labels": Condition((), exact=True)}
    width = config.get("projection_class_embeddings_input_dim") if "projection" in kind else None
    return {"class_labels": Condition((width,))}


def _unet_2d_condition(config: Config) -> Conditions:
    found = _labels(config)
    kind, width = config.get("encoder_hid_dim_type"), config["cross_attention_dim"]
    blocks = (*config["down_block_types"], config.get("mid_block_type") or "", *config["up_block_types"])
    attends = any("CrossAttn" in block for block in blocks)
    if kind in ("text_proj", "text_image_proj"):
        width = config["encoder_hid_dim"]
    width = width if isinstance(width, int) else width[0] if len(set(width)) == 1 else None
    by_image = kind == "image_proj"
    found["encoder_hidden_states"] = Condition((None, width), required=attends and not by_image)
    found["encoder_attention_mask"] = Condition((None,), required=False)
    added: dict[str, Condition] = {}
    if kind in ("image_proj", "text_image_proj") or config.get("addition_embed_type") in ("text_image", "image"):
        added["image_embeds"] = Condition((config.get("encoder_hid_dim") if by_image else None,))
    if config.get("addition_embed_type") == "text_time":
        added |= {"text_embeds": Condition((None,)), "time_ids": Condition((None,), exact=True)}
    if config.get("addition_embed_type") == "text_image":
        added["text_embeds"] = Condition((None,), required=False)
    if config.get("addition_embed_type") == "image_hint":
        added |= {"image_embeds": Condition((None,)), "hint": Condition((None, None, None))}
    return {**found, "added_cond_kwargs": added} if added else found


def _counted_refusal(config: Config) -> str:
    by_table = config.get("time_embedding_type") == "learned"
    return 'time_embedding_type="learned" knows the times of a table alone, and none between' if by_table else ""


def _unet_2d_refusal(config: Config) -> str:
    if config.get("time_cond_proj_dim") is not None:
        return "it is a distilled network (time_cond_proj_dim), which has no score at every noise level"
    if config.get("encoder_hid_dim_type") == "ip_image_proj":
        return "it has an IP adapter: load it without, pipe.unload_ip_adapter()"
    gated = config.get("attention_type", "default") != "default"
    return f"attention_type={config['attention_type']!r} takes boxes" if gated else ""


def _unet_3d(config: Config) -> Conditions:
    return {"encoder_hidden_states": Condition((None, config["cross_attention_dim"]))}


# ---- transformers


def _dit(config: Config) -> Conditions:
    """Classes, and one more number for none."""
    return {"class_labels": Condition((), below=config["num_embeds_ada_norm"] + 1)}


def _captions(config: Config) -> Conditions:
    return {
        "encoder_hidden_states": Condition((None, config["caption_channels"])),
        "encoder_attention_mask": Condition((None,), required=False),
    }


def _with_sizes(config: Config) -> bool:
    told = config.get("use_additional_conditions")
    return config.get("sample_size") == 128 if told is None else bool(told)


def _pixart(config: Config) -> Conditions:
    sizes = {"resolution": Condition((2,), exact=True), "aspect_ratio": Condition((1,), exact=True)}
    return {**_captions(config), "added_cond_kwargs": sizes} if _with_sizes(config) else _captions(config)


def _joint(config: Config) -> Conditions:
    return {
        "encoder_hidden_states": Condition((None, config["joint_attention_dim"])),
        "pooled_projections": Condition((config["pooled_projection_dim"],)),
    }


def _flux(config: Config) -> Conditions:
    guidance: Conditions = {"guidance": Condition(())} if config.get("guidance_embeds") else {}
    return _joint(config) | guidance


def _flux_refusal(config: Config) -> str:
    out = config.get("out_channels") or config["in_channels"]
    return "" if out == config["in_channels"] else "part of its input is another picture (Fill, Control)"


def _sana_refusal(config: Config) -> str:
    return "guidance_embeds=True is of a distilled network" if config.get("guidance_embeds") else ""


def _prior(config: Config) -> Conditions:
    width, tokens = config["embedding_dim"], config["num_embeddings"]
    needs_text = config.get("encoder_hid_proj_type") is not None
    return {
        "proj_embedding": Condition((config.get("embedding_proj_dim") or width,)),
        "encoder_hidden_states": Condition((tokens, width), required=needs_text),
        "attention_mask": Condition((tokens,), required=False),
    }


def _prior_refusal(config: Config) -> str:
    whole = config.get("added_emb_type") == "prd" and config.get("clip_embed_dim") in (None, config["embedding_dim"])
    return "" if whole else "what it returns is no embedding of the kind that it takes"


def _embedding(config: Config, channels: int) -> tuple[int, ...]:
    return (config["embedding_dim"],)


FORMS = {
    "UNet1DModel": Form(lambda config: {}, _sequence),
    "UNet2DModel": Form(_labels, _image, _counted_refusal),
    "UNet2DConditionModel": Form(_unet_2d_condition, _image, _unet_2d_refusal),
    "UNet3DConditionModel": Form(_unet_3d, _any_size, _unet_2d_refusal),
    "DiTTransformer2DModel": Form(_dit, _image),
    "PixArtTransformer2DModel": Form(
        _pixart,
        _image,
        always=lambda config: {} if _with_sizes(config) else {"added_cond_kwargs": {}},
    ),
    "SD3Transformer2DModel": Form(_joint, _image),
    "FluxTransformer2DModel": Form(_flux, _any_size, _flux_refusal, time=lambda config: 1e-3, patch=2),
    "SanaTransformer2DModel": Form(
        _captions, _image, _sana_refusal, time=lambda config: config.get("timestep_scale", 1.0)
    ),
    "PriorTransformer": Form(_prior, _embedding, _prior_refusal),
}
