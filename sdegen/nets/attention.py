"""Attention: of tokens to each other, of pixels to each other, of pixels to tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InvalidInputError


class SelfAttention(nn.Module):
    """Multi-head self-attention: W_o [softmax(q_h k_h^T / sqrt(d_h)) v_h]_h with (q, k, v) = W x.

    Args:
        channels: C, divisible by heads.
        heads: how many.

    Raises:
        InvalidInputError: channels that do not divide.

    Source: Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = check_heads(channels, heads)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        q, k, v = (split_heads(y, self.heads) for y in self.qkv(x).chunk(3, 2))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to tokens: W_o [softmax(q_h k_h^T / sqrt(d_h)) v_h]_h with q = W_q x and (k, v) = W y.

    Args:
        channels: C of x, divisible by heads.
        token_channels: D of the tokens y.
        heads: how many.
        silent: whether it gives 0 to begin with.

    Raises:
        InvalidInputError: channels that do not divide.

    Source: Vaswani et al. 2017, section 3.2; in a U-Net: Rombach et al. 2022, section 3.3.
    """

    def __init__(self, channels: int, token_channels: int, heads: int, *, silent: bool = False) -> None:
        super().__init__()
        self.heads = check_heads(channels, heads)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        if silent:
            zero(self.out)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, C), (B, T, D), (B, T) -> (B, N, C); only tokens whose mask is True are seen."""
        # The first token by itself: rounding in a product depends on its size and strides, and the result with all
        # others masked is to be that without them, to the bit.
        both = self.kv(tokens[:, :1].contiguous())
        if tokens.shape[1] > 1:
            both = torch.cat([both, self.kv(tokens[:, 1:])], 1)
        k, v = (split_heads(y, self.heads) for y in both.chunk(2, 2))
        seen = None if mask is None else mask[:, None, None]
        y = F.scaled_dot_product_attention(split_heads(self.q(x), self.heads), k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).flatten(2))


class ImageAttention(nn.Module):
    """Attention of the pixels of a feature map, to each other or to tokens, as a residual that starts at zero.

    y = scale (x + attention(norm(x))).

    Args:
        channels: C.
        heads: how many.
        token_channels: None for self-attention.
        scale: 1, or 1/sqrt(2), which keeps the variance of two equal summands.
    """

    def __init__(self, channels: int, heads: int, *, token_channels: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.norm = group_norm(channels)
        self.attention = (
            SelfAttention(channels, heads)
            if token_channels is None
            else CrossAttention(channels, token_channels, heads)
        )
        zero(self.attention.out)

    def forward(self, x: Tensor, *tokens: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        y = x + self.attention(pixels, *tokens).transpose(1, 2).reshape(x.shape)
        return y if self.scale == 1 else y * self.scale


def check_heads(channels: int, heads: int) -> int:
    if channels % heads:
        raise InvalidInputError(
            f"{channels} channels do not divide into {heads} heads: change head_channels or channels"
        )
    return heads


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C/heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def to_patches(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) -> (B, C p^2, H/p, W/p), `F.pixel_unshuffle` for empty batches too."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4).reshape(b, c * p * p, h // p, w // p)


def from_patches(x: Tensor, p: int) -> Tensor:
    """(B, C p^2, H, W) -> (B, C, H p, W p), the inverse."""
    b, c, h, w = x.shape
    return x.reshape(b, c // p**2, p, p, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // p**2, h * p, w * p)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most 32 groups of at least 4 channels, as far as they divide."""
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
