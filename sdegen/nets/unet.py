"""A network for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from .attention import ImageAttention, from_patches, group_norm, to_patches, zero
from .conditions import Conditional, ConditionOptions, check_count, check_share, with_image
from .embeddings import Embedding, check_input, check_time

EMBEDDING = 4  # the embedding of time and label is so many times as long as the finest level is wide


class UNet(Conditional):
    """Residual blocks down to coarse levels and up again, with skips between equal sizes.

    Level i works at 1/2^i of the image's size with multipliers[i] * channels channels. Going down, each block leaves
    its result for a block of the same level going up, which reads it beside its input; levels are joined by 2x2 means
    and nearest-neighbour repeats. The last convolution starts at zero. The defaults have 0.33M parameters, enough for
    digits of 8x8; `make_net` knows larger ones by name.

    Set `net.recompute = True` to keep only the blocks' inputs in training and compute the rest again on the way back:
    the same gradients, about a third more time, and several times less memory.

    Args:
        in_channels: C of x (B, C, H, W); H and W need not be equal, each divisible by patch * 2^(levels - 1).
        channels: channels of the finest level.
        multipliers: one per level.
        blocks: residual blocks per level, each way.
        attention: levels with self-attention after each block, 0 the finest, -1 the coarsest; the middle always has it.
        head_channels: channels per attention head.
        dropout: probability of dropping an activation inside a block, in training.
        n_classes: labels are 0 .. n_classes - 1, -1 or None for no class. None: a network without labels.
        out_channels: None for as many as in_channels; twice as many to learn a variance.
        time_features: "smooth" (Fourier features of t in any range, frequencies up to 12), "fourier" (up to 100) or
            "sinusoidal" (t in [0, 1]).
        label_dropout: in training, the probability that a label is left out, for guidance without a classifier.
        skip_rescale: whether sums of two branches are divided by sqrt(2).
        patch: pixels to a side of what the finest level sees as one: 2 costs a quarter.
        token_channels: D of token conditions (B, T, D), which every attention then reads too. None: no tokens.
        token_dropout: in training, the probability that all tokens of a sample are left out.
        vector_channels: length of a vector that is added to the embedding of time: of a picture or a sentence, a level
            of noise, any numbers. None: no vector.
        vector_dropout: in training, the probability that it is left out.
        image_channels: channels of an image as high and wide as x that is read beside it, by the first layer (of c_in x
            and the image as it is, in a Denoiser). 0: none.
        image_dropout: in training, the probability that it is left out, zeros in its place (Brooks et al. 2023, arXiv
            2211.09800, section 3.2.1). 0: the network is never without one.

    Raises:
        InvalidInputError: arguments out of range; x, t or conditions of a shape that does not fit, before any work.

    Source: Ho et al. 2020, appendix B, with the blocks of Dhariwal & Nichol 2021, section 3; skip_rescale: Song et al.
    2021, appendix H; tokens: Rombach et al. 2022, section 3.3.
    """

    down: Any  # per level, finest first, the list of its blocks
    up: Any  # the same, coarsest first

    @checked
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
        time_features: str = "smooth",
        label_dropout: float = 0.0,
        skip_rescale: bool = False,
        patch: int = 1,
        token_channels: int | None = None,
        token_dropout: float = 0.0,
        vector_channels: int | None = None,
        vector_dropout: float = 0.0,
        image_channels: int = 0,
        image_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = {
            "in_channels": check_count("in_channels", in_channels),
            "channels": check_count("channels", channels),
            "multipliers": [check_count("multipliers", m) for m in multipliers],
            "blocks": check_count("blocks", blocks),
            "attention": list(attention),
            "head_channels": check_count("head_channels", head_channels),
            "dropout": check_share("dropout", dropout),
            "n_classes": n_classes,
            "out_channels": check_count("out_channels", in_channels if out_channels is None else out_channels),
            "time_features": time_features,
        }
        # what older checkpoints do not tell is told only where it is not as it was
        conditions = ConditionOptions(
            n_classes=n_classes,
            label_dropout=label_dropout,
            token_channels=token_channels,
            token_dropout=token_dropout,
            vector_channels=vector_channels,
            vector_dropout=vector_dropout,
            image_channels=image_channels,
            image_dropout=image_dropout,
        )
        self.config |= {"label_dropout": label_dropout} if label_dropout else {}
        self.config |= conditions.in_config()
        self.config |= {"skip_rescale": True} if skip_rescale else {}
        self.config |= {"patch": patch} if check_count("patch", patch) > 1 else {}
        self.patch, self.recompute = patch, False
        widths = [m * channels for m in multipliers]
        attended = _levels(attention, len(widths))
        self.factor = patch * 2 ** (len(widths) - 1)
        width = EMBEDDING * channels
        self.embedding = Embedding(width, conditions, time_features=time_features)
        self._take(conditions)

        def block(c_in: int, c_out: int, attends: bool) -> Block:
            return Block(
                c_in,
                c_out,
                width,
                dropout=dropout,
                head_channels=head_channels if attends else None,
                token_channels=token_channels,
                skip_rescale=skip_rescale,
            )

        self.stem = nn.Conv2d((in_channels + image_channels) * patch**2, widths[0], 3, padding=1)
        self._stack(block, widths, attended, blocks)
        self.norm = group_norm(widths[0])
        self.out = zero(nn.Conv2d(widths[0], self.config["out_channels"] * patch**2, 3, padding=1))

    def _stack(self, block: Callable[[int, int, bool], Block], widths: list[int], attended: set[int], n: int) -> None:
        """The n blocks of every level, made by block(channels in, out, whether it attends), down and up again."""
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        h = widths[0]  # channels of the feature map so far
        for level, c in enumerate(widths):
            self.down.append(nn.ModuleList(block(h if k == 0 else c, c, level in attended) for k in range(n)))
            h = c
        self.middle = nn.ModuleList(block(h, h, True) for _ in range(n))
        for level, c in reversed(list(enumerate(widths))):
            # the last block narrows, before the finer level multiplies the pixels
            ends = [c] * (n - 1) + [widths[max(level - 1, 0)]]
            starts = [h, *ends[:-1]]
            self.up.append(nn.ModuleList(block(a + c, b, level in attended) for a, b in zip(starts, ends, strict=True)))
            h = ends[-1]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | int | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | bool | None = None,
        vector: Tensor | None = None,
        *,
        image: Tensor | None = None,
    ) -> Tensor:
        """The network's output.

        Args:
            x: (B, C, H, W), H and W divisible by patch * 2^(levels - 1).
            t: (B,), the number that says the noise level.
            label: (B,) classes, one for all, or None.
            tokens: (B, T, D), or None.
            token_mask: (B, T); where it is False a token is not seen, False alone: none is. A sample without any is one
                without condition.
            vector: (B, vector_channels), or None.
            image: (B, image_channels, H, W), where the network was built with one.

        Returns:
            (B, out_channels, H, W), in the dtype of x.

        Raises:
            InvalidInputError: x, t or conditions of another shape, or conditions that the network was not built for.
        """
        self.check(x, t)
        self.check_conditions(
            len(x), x.shape[1:], label=label, tokens=tokens, token_mask=token_mask, vector=vector, image=image
        )
        told = (self.embedding(t, label, vector), *self._with_no_token(len(x), tokens, token_mask))
        p, x = self.patch, with_image(x, self._image(x, image))
        h, skips = self.stem(to_patches(x, p) if p > 1 else x), []
        for level, blocks in enumerate(self.down):
            h = F.avg_pool2d(h, 2) if level else h
            for block in blocks:
                h = self._run(block, h, *told)
                skips.append(h)
        for block in self.middle:
            h = self._run(block, h, *told)
        for level, blocks in enumerate(self.up):
            h = F.interpolate(h, scale_factor=2.0, mode="nearest") if level else h
            for block in blocks:
                h = self._run(block, torch.cat([h, skips.pop()], 1), *told)
        y = self.out(F.silu(self.norm(h))).to(x.dtype)
        return from_patches(y, p) if p > 1 else y

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[return-value]
        return block(*inputs)

    def check(self, x: Tensor, t: Tensor) -> None:
        """Refuse shapes that do not fit, as `forward` does first.

        Args:
            x, t: as `forward` takes them.

        Raises:
            InvalidInputError: naming what it got and what it expected.
        """
        c, n, p = self.config["in_channels"], self.factor, self.patch
        check_input(x, self.stem.weight)
        if x.ndim != 4 or x.shape[1] != c:
            raise InvalidInputError(f"x has shape {tuple(x.shape)}: this network was built for (B, {c}, H, W)")
        if x.shape[2] % n or x.shape[3] % n or not x.shape[2] * x.shape[3]:
            patches = f" in patches of {p}" if p > 1 else ""
            raise InvalidInputError(
                f"images of {x.shape[2]}x{x.shape[3]}{patches} cannot be halved {(n // p).bit_length() - 1} times: "
                f"pad both sides to multiples of {n}, or build the network with fewer multipliers"
            )
        check_time(x, t)


class Block(nn.Module):
    """A residual block that the embedding e scales and shifts, then attention if asked.

    h = conv(SiLU(norm(x))),  y = scale (skip(x) + conv(SiLU((1 + a(e)) norm(h) + b(e)))); the second convolution
    starts at zero.

    Args:
        c_in, c_out: channels; skip is a 1x1 convolution where they differ.
        embedding: length of e.
        dropout: before the second convolution.
        head_channels: of the attention; None for none.
        token_channels: of the tokens that are attended to after the pixels themselves; None for none.
        skip_rescale: scale is 1/sqrt(2) instead of 1.

    Source: Dhariwal & Nichol 2021, section 3 (adaptive group normalisation).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        *,
        dropout: float = 0.0,
        head_channels: int | None = None,
        token_channels: int | None = None,
        skip_rescale: bool = False,
    ) -> None:
        super().__init__()
        self.scale = 0.5**0.5 if skip_rescale else 1.0
        self.norm_in, self.norm_out = group_norm(c_in), group_norm(c_out)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.attention, self.cross = nn.Identity(), None
        if head_channels is not None:
            heads = max(1, c_out // head_channels)
            self.attention = ImageAttention(c_out, heads, scale=self.scale)
            if token_channels is not None:
                self.cross = ImageAttention(c_out, heads, token_channels=token_channels, scale=self.scale)

    def forward(self, x: Tensor, e: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, c_in, H, W), (B, embedding), (B, T, D), (B, T) -> (B, c_out, H, W)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        a, b = self.modulation(e)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(b, self.norm_out(h), 1 + a)
        y = self.skip(x) + self.conv_out(self.dropout(F.silu(h)))
        y = self.attention(y if self.scale == 1 else y * self.scale)
        return y if self.cross is None else self.cross(y, tokens, mask)


def _levels(attention: Sequence[int], n: int) -> set[int]:
    if not n:
        raise InvalidInputError("multipliers is empty: expected one per level, for example (1, 2)")
    if any(isinstance(i, bool) or not isinstance(i, int) or not -n <= i < n for i in attention):
        raise InvalidInputError(
            f"got attention={list(attention)!r}, expected levels from 0 (finest) to {n - 1}, or -1 for the coarsest"
        )
    return {i % n for i in attention}
