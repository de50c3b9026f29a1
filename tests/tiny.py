"""Small random networks of diffusers, each with conditions that it takes, and small random pipelines on disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
ATTENDING = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4, "cross_attention_dim": 16, "sample_size": 8,
}  # fmt: skip
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
SDXL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 8 + 6 * 4,
}  # fmt: skip


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(n: int, width: int = 16, length: int = 5) -> dict[str, Any]:
    return {"encoder_hidden_states": normal(n, length, width)}


def joint(n: int) -> dict[str, Any]:
    return {**tokens(n), "pooled_projections": normal(n, 12, seed=6)}


def added(n: int) -> dict[str, Any]:
    sizes = torch.tensor([8.0, 8, 0, 0, 8, 8]).expand(n, 6)
    return {**tokens(n), "added_cond_kwargs": {"text_embeds": normal(n, 8, seed=7), "time_ids": sizes}}


# name -> (the class, its configuration, the shape of a sample, conditions of n samples)
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], Any]] = {
    "unet 1d": (
        "UNet1DModel",
        {"sample_size": 32, "in_channels": 2, "out_channels": 2, "extra_in_channels": 64},
        (2, 32), lambda n: {},
    ),
    "unet": (
        "UNet2DModel",
        {**BLOCKS, "sample_size": 8, "in_channels": 1, "out_channels": 1, "down_block_types": ("DownBlock2D",) * 2,
         "up_block_types": ("UpBlock2D",) * 2},
        (1, 8, 8), lambda n: {},
    ),
    "unet of classes": (
        "UNet2DModel",
        {**BLOCKS, "sample_size": 8, "in_channels": 1, "out_channels": 1, "down_block_types": ("DownBlock2D",) * 2,
         "up_block_types": ("UpBlock2D",) * 2, "num_class_embeds": 5},
        (1, 8, 8), lambda n: {"class_labels": torch.arange(n) % 5},
    ),
    "stable diffusion": ("UNet2DConditionModel", {**BLOCKS, **ATTENDING}, (4, 8, 8), tokens),
    "stable diffusion xl": ("UNet2DConditionModel", {**BLOCKS, **ATTENDING, **SDXL}, (4, 8, 8), added),
    "inpainting": (
        "UNet2DConditionModel", {**BLOCKS, **ATTENDING, "in_channels": 9, "out_channels": 4}, (4, 8, 8),
        lambda n: {**tokens(n), "image": normal(n, 5, 8, 8, seed=8)},
    ),
    "upscaler": (
        "UNet2DConditionModel",
        {**BLOCKS, **ATTENDING, "in_channels": 7, "num_class_embeds": 100}, (4, 8, 8),
        lambda n: {**tokens(n), "image": normal(n, 3, 8, 8, seed=8), "class_labels": torch.arange(n)},
    ),
    "kandinsky decoder": (
        "UNet2DConditionModel",
        {**BLOCKS, **ATTENDING, "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
         "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
         "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "encoder_hid_dim": 10, "encoder_hid_dim_type": "image_proj",
         "addition_embed_type": "image", "resnet_time_scale_shift": "scale_shift", "out_channels": 8},
        (4, 8, 8), lambda n: {"added_cond_kwargs": {"image_embeds": normal(n, 10)}},
    ),
    "video": (
        "UNet3DConditionModel",
        {**BLOCKS, "sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 4, "block_out_channels": (8, 8),
         "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        (4, 2, 8, 8), tokens,
    ),
    "dit": (
        "DiTTransformer2DModel", {**HEADS, "sample_size": 8, "num_embeds_ada_norm": 10, "norm_num_groups": 4,
                                  "out_channels": 8},
        (4, 8, 8), lambda n: {"class_labels": torch.arange(n)},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {**HEADS, "sample_size": 8, "cross_attention_dim": 16, "caption_channels": 24, "norm_num_groups": 4}, (4, 8, 8),
        lambda n: {**tokens(n, 24), "encoder_attention_mask": torch.arange(5).expand(n, 5) < 3},
    ),
    "pixart told sizes": (
        "PixArtTransformer2DModel",
        {**HEADS, "num_attention_heads": 3, "sample_size": 8, "cross_attention_dim": 24, "caption_channels": 24, "norm_num_groups": 4,
         "use_additional_conditions": True}, (4, 8, 8),
        lambda n: {**tokens(n, 24), "added_cond_kwargs": {"resolution": torch.full((n, 2), 64.0), "aspect_ratio": torch.ones(n, 1)}},
    ),
    "stable diffusion 3": (
        "SD3Transformer2DModel",
        {**HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 16,
         "caption_projection_dim": 16, "pooled_projection_dim": 12, "pos_embed_max_size": 8}, (4, 8, 8), joint,
    ),
    "flux": (
        "FluxTransformer2DModel",
        {**HEADS, "num_single_layers": 1, "in_channels": 16, "joint_attention_dim": 16, "pooled_projection_dim": 12,
         "axes_dims_rope": (2, 2, 4)}, (4, 8, 8), joint,
    ),
    "flux told guidance": (
        "FluxTransformer2DModel",
        {**HEADS, "num_single_layers": 1, "in_channels": 16, "joint_attention_dim": 16, "pooled_projection_dim": 12,
         "axes_dims_rope": (2, 2, 4), "guidance_embeds": True}, (4, 8, 8),
        lambda n: {**joint(n), "guidance": torch.full((n,), 3.5)},
    ),
    "sana": (
        "SanaTransformer2DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8,
         "cross_attention_dim": 16, "caption_channels": 24, "sample_size": 8, "timestep_scale": 0.5}, (4, 8, 8),
        lambda n: {**tokens(n, 24), "encoder_attention_mask": torch.ones(n, 5)},
    ),
    "prior": (
        "PriorTransformer", {**HEADS, "embedding_dim": 12, "num_embeddings": 5}, (12,),
        lambda n: {"proj_embedding": normal(n, 12, seed=9), **tokens(n, 12)},
    ),
}  # fmt: skip
FLOWS = ("stable diffusion 3", "flux", "flux told guidance", "sana")


def network(diffusers: Any, name: str, **config: Any) -> nn.Module:
    """One of `NETWORKS`, in eval mode, no weight of it 0 (where a layer starts at 0 conditions are not heard)."""
    kind, words, _, _ = NETWORKS[name]
    torch.manual_seed(0)
    net = getattr(diffusers, kind)(**{**words, **config}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.05)
    return net


def scheduler(diffusers: Any, name: str) -> Any:
    if name in FLOWS:
        return diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.DDIMScheduler(num_train_timesteps=100, beta_end=0.1, clip_sample=False)
