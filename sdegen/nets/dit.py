"""A transformer for images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from .attention import CrossAttention, SelfAttention, from_patches, to_patches, zero
from .conditions import Conditional, ConditionOptions, check_count, check_share, with_image
from .embeddings import Embedding, check_input, check_time


class DiT(Conditional):
    """Patches of an image as tokens, through transformer blocks that the embedding scales, shifts and gates.

    h = W patches(x) + position,  h <- block(h, e) `depth` times,  net = unpatch(W_out ((1 + a(e)) norm(h) + b(e))).

    Positions are sines and cosines of the row and of the column, computed for the size at hand, so one network takes
    images of any size. Every gate and the last layer start at zero. hidden=384, depth=12, heads=6, patch=2 is DiT-S/2
    of 33M parameters.

    Set `net.recompute = True` to keep only the blocks' inputs in training, as in `UNet`.

    Args:
        in_channels: C of x (B, C, H, W); H and W need not be equal, each divisible by patch.
        patch: pixels to a side of a patch.
        hidden: width of a token, divisible by 4 and by heads.
        depth: how many blocks.
        heads: of the attention.
        mlp_ratio: the inner layer of a block's perceptron is so many times as wide.
        dropout: probability of dropping an activation after attention and perceptron, in training.
        n_classes: labels are 0 .. n_classes - 1, -1 or None for no class. None: a network without labels.
        out_channels: None for as many as in_channels; twice as many to learn a variance.
        time_features: "smooth" (Fourier features of t in any range, frequencies up to 12), "fourier" (up to 100) or
            "sinusoidal" (t in [0, 1]).
        label_dropout: in training, the probability that a label is left out, for guidance without a classifier.
        token_channels: D of token conditions (B, T, D), which every block reads after its attention. None:
            no tokens.
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

    Source: Peebles & Xie 2023 (arXiv 2212.09748), section 3, blocks "adaLN-Zero"; tokens: Chen et al. 2023 (arXiv
    2310.00426), section 2.3.
    """

    blocks: nn.ModuleList

    @checked
    def __init__(
        self,
        in_channels: int,
        *,
        patch: int = 2,
        hidden: int = 128,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        n_classes: int | None = None,
        out_channels: int | None = None,
        time_features: str = "smooth",
        label_dropout: float = 0.0,
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
            "patch": check_count("patch", patch),
            "hidden": check_count("hidden", hidden),
            "depth": check_count("depth", depth),
            "heads": check_count("heads", heads),
            "mlp_ratio": check_count("mlp_ratio", mlp_ratio),
            "dropout": check_share("dropout", dropout),
            "n_classes": n_classes,
            "out_channels": check_count("out_channels", in_channels if out_channels is None else out_channels),
            "time_features": time_features,
            "label_dropout": label_dropout,
        }
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
        self.config |= conditions.in_config()
        if hidden % 4:
            raise InvalidInputError(
                f"got hidden={hidden}, expected a multiple of 4, for sines and cosines of two coordinates"
            )
        self.recompute = False
        self.embedding = Embedding(hidden, conditions, time_features=time_features)
        self._take(conditions)
        self.inp = nn.Linear((in_channels + image_channels) * patch**2, hidden)
        self.blocks = nn.ModuleList(DiTBlock(hidden, heads, mlp_ratio, dropout, token_channels) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.modulation = zero(nn.Linear(hidden, 2 * hidden))
        self.out = zero(nn.Linear(hidden, self.config["out_channels"] * patch**2))

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
            x: (B, C, H, W), H and W divisible by patch.
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
        p = self.config["patch"]
        rows, columns = x.shape[2] // p, x.shape[3] // p
        self.check_conditions(
            len(x), x.shape[1:], label=label, tokens=tokens, token_mask=token_mask, vector=vector, image=image
        )
        e = self.embedding(t, label, vector)
        told = (e, *self._with_no_token(len(x), tokens, token_mask))
        h = self.inp(to_patches(with_image(x, self._image(x, image)), p).flatten(2).transpose(1, 2))
        h = h + positions(rows, columns, self.config["hidden"], x.device).to(h.dtype)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(block, h, *told, use_reentrant=False)
            else:
                h = block(h, *told)
        a, b = self.modulation(e)[:, None].chunk(2, 2)
        y = self.out(torch.addcmul(b, self.norm(h), 1 + a)).to(x.dtype)
        return from_patches(y.transpose(1, 2).unflatten(2, (rows, columns)), p)

    def check(self, x: Tensor, t: Tensor) -> None:
        """Refuse shapes that do not fit, as `forward` does first.

        Args:
            x, t: as `forward` takes them.

        Raises:
            InvalidInputError: naming what it got and what it expected.
        """
        c, p = self.config["in_channels"], self.config["patch"]
        check_input(x, self.inp.weight)
        if x.ndim != 4 or x.shape[1] != c:
            raise InvalidInputError(f"x has shape {tuple(x.shape)}: this network was built for (B, {c}, H, W)")
        if x.shape[2] % p or x.shape[3] % p or not x.shape[2] * x.shape[3]:
            raise InvalidInputError(
                f"images of {x.shape[2]}x{x.shape[3]} cannot be cut into patches of {p}x{p}: pad both sides to "
                f"multiples of {p}, or build the network with another patch="
            )
        check_time(x, t)


class DiTBlock(nn.Module):
    """Attention and perceptron, each scaled, shifted and gated by the embedding e.

    h <- h + g_1 attention((1 + a_1) norm(h) + b_1),  h <- h + cross(norm(h), tokens) where there are tokens,
    h <- h + g_2 mlp((1 + a_2) norm(h) + b_2),  (b_1, a_1, g_1, b_2, a_2, g_2) linear in e, at zero to begin with.

    Args:
        hidden: width of a token.
        heads: of the attention.
        mlp_ratio: the inner layer is so many times as wide.
        dropout: after attention and perceptron.
        token_channels: of the tokens; None for none. Attention to them starts at zero.

    Source: Peebles & Xie 2023, figure 3.
    """

    def __init__(
        self, hidden: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0, token_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.norm_mlp = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(hidden, heads)
        self.inner = nn.Linear(hidden, mlp_ratio * hidden)
        self.outer = nn.Linear(mlp_ratio * hidden, hidden)
        self.modulation = zero(nn.Linear(hidden, 6 * hidden))
        self.dropout = nn.Dropout(dropout)
        self.cross = None
        if token_channels is not None:
            self.norm_cross = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
            self.cross = CrossAttention(hidden, token_channels, heads, silent=True)

    def forward(self, h: Tensor, e: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, N, hidden), (B, hidden), (B, T, D), (B, T) -> (B, N, hidden)."""
        b1, a1, g1, b2, a2, g2 = self.modulation(e)[:, None].chunk(6, 2)
        h = h + g1 * self.dropout(self.attention(torch.addcmul(b1, self.norm_attention(h), 1 + a1)))
        if self.cross is not None and tokens is not None:
            h = h + self.cross(self.norm_cross(h), tokens, mask)
        inner = F.gelu(self.inner(torch.addcmul(b2, self.norm_mlp(h), 1 + a2)), approximate="tanh")
        return h + g2 * self.dropout(self.outer(inner))


def positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of each patch's place, (rows * columns, width), the column's half first.

    [sin(w_k j), cos(w_k j), sin(w_k i), cos(w_k i)],  w_k = 10000^(-k/K),  k = 0 .. K - 1,  K = width/4.

    Source: Vaswani et al. 2017, section 3.5, for two coordinates as in Peebles & Xie 2023 (their code).
    """
    k = torch.arange(width // 4, device=device, dtype=torch.float32)
    w = 10000.0 ** (-k / (width // 4))
    i, j = (torch.arange(n, device=device, dtype=torch.float32)[:, None] * w for n in (rows, columns))
    of_row, of_column = (torch.cat([phase.sin(), phase.cos()], 1) for phase in (i, j))
    return torch.cat([of_column.repeat(rows, 1), of_row.repeat_interleave(columns, 0)], 1)
