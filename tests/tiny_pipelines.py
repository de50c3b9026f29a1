"""Small random pipelines of diffusers, with text encoders that know single letters."""

from __future__ import annotations

import string
from typing import Any

import torch
from tiny import network

LETTERS = list(string.ascii_lowercase)
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=12)


def _clip(seed: int, width: int = 16, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    words = {**_TEXT, "hidden_size": width, "vocab_size": 54, "max_position_embeddings": 12, "eos_token_id": 53}
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**words)).eval()


def _t5(width: int = 24) -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {"tokenizer": T5Tokenizer(vocab=words, extra_ids=0), "text_encoder": T5EncoderModel(config).eval()}


def _vae(diffusers: Any, **config: Any) -> Any:
    torch.manual_seed(4)
    words = {
        "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    return diffusers.AutoencoderKL(**{**words, **config}).eval()


def _vqvae(diffusers: Any) -> Any:
    torch.manual_seed(4)
    words = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "num_vq_embeddings": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.VQModel(**words, **blocks, scaling_factor=0.7).eval()


def _ddim(diffusers: Any) -> Any:
    """As Stable Diffusion's: the nodes begin at 1, and the last step ends at the first one."""
    return diffusers.DDIMScheduler(
        num_train_timesteps=100, beta_start=1e-3, beta_end=0.08, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def _stable_diffusion(diffusers: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=_vae(diffusers), text_encoder=_clip(1), tokenizer=_tokenizer(), unet=network(diffusers, "stable diffusion"),
        scheduler=_ddim(diffusers), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _stable_diffusion_xl(diffusers: Any) -> Any:
    unet = network(diffusers, "stable diffusion xl", cross_attention_dim=32)
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(diffusers, **statistics), text_encoder=_clip(1), text_encoder_2=_clip(2, projected=True), unet=unet,
        tokenizer=_tokenizer(), tokenizer_2=_tokenizer(), scheduler=_ddim(diffusers), add_watermarker=False,
    )  # fmt: skip


def _dit(diffusers: Any) -> Any:
    names = {i: f"thing {i}, item {i}" for i in range(1000)}
    return diffusers.DiTPipeline(
        network(diffusers, "dit", num_embeds_ada_norm=1000), _vae(diffusers), _ddim(diffusers), id2label=names
    )


def _stable_diffusion_3(diffusers: Any) -> Any:
    t5 = _t5(32)
    return diffusers.StableDiffusion3Pipeline(
        transformer=network(diffusers, "stable diffusion 3", joint_attention_dim=32, pooled_projection_dim=16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(diffusers, shift_factor=0.3),
        text_encoder=_clip(1, projected=True), tokenizer=_tokenizer(), text_encoder_2=_clip(2, projected=True),
        tokenizer_2=_tokenizer(), text_encoder_3=t5["text_encoder"], tokenizer_3=t5["tokenizer"],
    )  # fmt: skip


def _pixart(diffusers: Any) -> Any:
    return diffusers.PixArtAlphaPipeline(
        **_t5(), vae=_vae(diffusers), transformer=network(diffusers, "pixart"), scheduler=_ddim(diffusers)
    )


def _latent_diffusion(diffusers: Any) -> Any:
    torch.manual_seed(0)
    unet = network(diffusers, "unet", in_channels=4, out_channels=4)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100, beta_end=0.08, clip_sample=False)
    return diffusers.LDMPipeline(vqvae=_vqvae(diffusers), unet=unet, scheduler=scheduler)


def _flux(diffusers: Any) -> Any:
    t5 = _t5()
    return diffusers.FluxPipeline(
        transformer=network(diffusers, "flux told guidance", joint_attention_dim=24, pooled_projection_dim=16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), vae=_vae(diffusers, shift_factor=0.3),
        text_encoder=_clip(1), tokenizer=_tokenizer(), text_encoder_2=t5["text_encoder"], tokenizer_2=t5["tokenizer"],
    )  # fmt: skip


PIPELINES = {
    "stable diffusion": _stable_diffusion,
    "stable diffusion xl": _stable_diffusion_xl,
    "dit": _dit,
    "stable diffusion 3": _stable_diffusion_3,
    "pixart": _pixart,
    "latent diffusion": _latent_diffusion,
    "flux": _flux,
}


def pipeline(diffusers: Any, name: str) -> Any:
    """One of `PIPELINES`, in eval mode."""
    made = PIPELINES[name](diffusers)
    made.set_progress_bar_config(disable=True)
    return made
