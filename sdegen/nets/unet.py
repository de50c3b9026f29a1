"""A network for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from .embeddings import Embedding, check_count, check_time

EMBEDDING = 4  # the embedding of time and label is so many times as long as the finest level is wide


class UNet(nn.Module):
    """Residual blocks down to coarse levels and up again, with skips between equal sizes.

    Level i works at 1/2^i of the image's size with multipliers[i] * channels channels. Going down, each block leaves
    its result for a block of the same level going up, which reads it beside its input; levels are joined by 2x2 means
    and nearest-neighbour repeats. The last convolution starts at zero. The defaults have 0.33M parameters, enough for
    digits of 8x8.

    Args:
        in_channels: C of x (B, C, H, W); H and W need not be equal, each divisible by 2^(levels - 1).
        channels: channels of the finest level.
        multipliers: one per level.
        blocks: residual blocks per level, each way.
        attention: levels with self-attention after each block, 0 the finest, -1 the coarsest; the middle always has it.
        head_channels: channels per attention head.
        dropout: probability of dropping an activation inside a block, in training.
        n_classes: labels are 0 .. n_classes - 1, -1 or None for no class. None: a network without labels.
        out_channels: None for as many as in_channels; twice as many to learn a variance.
        time_features: "fourier" (t in any range) or "sinusoidal" (t in [0, 1]).

    Raises:
        InvalidInputError: arguments out of range; x, t or label of a shape that does not fit, before any work.

    Source: Ho et al. 2020, appendix B, with the blocks of Dhariwal & Nichol 2021, section 3.
    """

    down: Any  # per level, finest first, the list of its blocks
    up: Any  # the same, coarsest first

    def __init__(
        self,
        in_channels: int,
        *,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        head_channels: int = 32,
        dropout: float = 0.0,
        n_classes: int | None = None,
        out_channels: int | None = None,
        time_features: str = "fourier",
    ) -> None:
        super().__init__()
        self.config = {
            "in_channels": check_count("in_channels", in_channels),
            "channels": check_count("channels", channels),
            "multipliers": [check_count("multipliers", m) for m in multipliers],
            "blocks": check_count("blocks", blocks),
            "attention": list(attention),
            "head_channels": check_count("head_channels", head_channels),
            "dropout": dropout,
            "n_classes": n_classes,
            "out_channels": check_count("out_channels", in_channels if out_channels is None else out_channels),
            "time_features": time_features,
        }
        widths = [m * channels for m in multipliers]
        attended = _levels(attention, len(widths))
        if not 0 <= dropout < 1:
            raise InvalidInputError(f"dropout={dropout!r}: wanted a probability in [0, 1)")
        self.factor = 2 ** (len(widths) - 1)
        width = EMBEDDING * channels
        self.embedding = Embedding(width, time_features=time_features, n_classes=n_classes)

        def block(c_in: int, c_out: int, attends: bool) -> Block:
            return Block(c_in, c_out, width, dropout=dropout, head_channels=head_channels if attends else None)

        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        h = widths[0]  # channels of the feature map so far
        for level, c in enumerate(widths):
            self.down.append(nn.ModuleList(block(h if k == 0 else c, c, level in attended) for k in range(blocks)))
            h = c
        self.middle = nn.ModuleList(block(h, h, True) for _ in range(blocks))
        for level, c in reversed(list(enumerate(widths))):
            # the last block narrows, before the finer level multiplies the pixels
            ends = [c] * (blocks - 1) + [widths[max(level - 1, 0)]]
            starts = [h, *ends[:-1]]
            self.up.append(nn.ModuleList(block(a + c, b, level in attended) for a, b in zip(starts, ends, strict=True)))
            h = ends[-1]
        self.norm = _norm(h)
        self.out = _zero(nn.Conv2d(h, self.config["out_channels"], 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | int | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) -> (B, out_channels, H, W)."""
        self.check(x, t)
        e = self.embedding(t, label)
        h, skips = self.stem(x), []
        for level, blocks in enumerate(self.down):
            h = F.avg_pool2d(h, 2) if level else h
            for block in blocks:
                h = block(h, e)
                skips.append(h)
        for block in self.middle:
            h = block(h, e)
        for level, blocks in enumerate(self.up):
            h = F.interpolate(h, scale_factor=2.0, mode="nearest") if level else h
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], 1), e)
        return self.out(F.silu(self.norm(h))).to(x.dtype)

    def check(self, x: Tensor, t: Tensor) -> None:
        """Refuse shapes that do not fit."""
        c, n = self.config["in_channels"], self.factor
        if x.ndim != 4 or x.shape[1] != c:
            raise InvalidInputError(f"x has shape {tuple(x.shape)}: this network was built for (B, {c}, H, W)")
        if x.shape[2] % n or x.shape[3] % n or not x.shape[2] * x.shape[3]:
            raise InvalidInputError(
                f"images of {x.shape[2]}x{x.shape[3]} cannot be halved {n.bit_length() - 1} times: "
                f"pad both sides to multiples of {n}, or build the network with fewer multipliers"
            )
        check_time(x, t)


class Block(nn.Module):
    """A residual block that the embedding e scales and shifts, then self-attention if asked.

    h = conv(SiLU(norm(x))),  y = skip(x) + conv(SiLU((1 + a(e)) norm(h) + b(e))); the second convolution starts at
    zero.

    Args:
        c_in, c_out: channels; skip is a 1x1 convolution where they differ.
        embedding: length of e.
        dropout: before the second convolution.
        head_channels: of the attention; None for none.

    Source: Dhariwal & Nichol 2021, section 3 (adaptive group normalisation).
    """

    def __init__(
        self, c_in: int, c_out: int, embedding: int, *, dropout: float = 0.0, head_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm_in, self.norm_out = _norm(c_in), _norm(c_out)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.attention = (
            nn.Identity() if head_channels is None else ImageAttention(c_out, max(1, c_out // head_channels))
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """(B, c_in, H, W), (B, embedding) -> (B, c_out, H, W)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        a, b = self.modulation(e)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(b, self.norm_out(h), 1 + a)
        return self.attention(self.skip(x) + self.conv_out(self.dropout(F.silu(h))))


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
        if channels % heads:
            raise InvalidInputError(
                f"{channels} channels do not divide into {heads} heads: change head_channels or channels"
            )
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, 2))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ImageAttention(nn.Module):
    """Self-attention over the pixels of a feature map, as a residual: x + attention(norm(x)), zero at the start."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.attention = SelfAttention(channels, heads)
        _zero(self.attention.out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(tokens).transpose(1, 2).reshape(x.shape)


def _norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most 32 groups of at least 4 channels, as far as they divide."""
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _levels(attention: Sequence[int], n: int) -> set[int]:
    if not n:
        raise InvalidInputError("multipliers is empty: wanted one per level, for example (1, 2)")
    if any(isinstance(i, bool) or not isinstance(i, int) or not -n <= i < n for i in attention):
        raise InvalidInputError(
            f"attention={list(attention)!r}: wanted levels from 0 (finest) to {n - 1}, or -1 for the coarsest"
        )
    return {i % n for i in attention}
