"""A network for points and small vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import flat
from .attention import CrossAttention, zero
from .conditions import Conditional, ConditionOptions, check_count, image_size
from .embeddings import Embedding, check_input, check_time


class MLP(Conditional):
    """A residual multilayer perceptron whose every layer is scaled and shifted by the time.

    h_1 = m_1(W_1 x),  h_{k+1} = h_k + W_{k+1} SiLU(m_{k+1}(h_k)),  net = W_out SiLU(h_L),
    m_k(h) = (1 + a_k(e)) h + b_k(e),

    where e embeds time, label and vector, and a_k and b_k are linear in it; an image is read beside x, and tokens after
    every layer, h_k <- h_k + attention(h_k, tokens). W_out starts at zero. (Time features joined to x as
    further inputs drown two coordinates among thirty: on a ring of modes such a network stays at the mean for thousands
    of steps.)

    hidden=88 has 35,674 parameters in two dimensions, enough for eight modes.

    Args:
        event_shape: shape of one sample; an integer d stands for (d,). x is flattened, the result has its shape back.
        hidden: width of the hidden layers.
        layers: how many hidden layers.
        embedding: length of e.
        time_features: "smooth" (Fourier features of t in any range, frequencies up to 12), "fourier" (up to 100) or
            "sinusoidal" (t in [0, 1]).
        n_classes: labels are 0 .. n_classes - 1, -1 or None for no class. None: a network without labels.
        label_dropout: in training, the probability that a label is left out, for guidance without a classifier.
        token_channels: D of token conditions (B, T, D), which every layer then reads. None: no tokens.
        token_dropout: in training, the probability that all tokens of a sample are left out.
        vector_channels: length of a vector that is added to the embedding of time: of a picture or a sentence, a level
            of noise, any numbers. None: no vector.
        vector_dropout: in training, the probability that it is left out.
        image_channels: C of an image (B, C, *event_shape[1:]) that is read beside x, by the first layer (of c_in x and
            the image as it is, in a Denoiser). 0: none.
        image_dropout: in training, the probability that it is left out, zeros in its place (Brooks et al. 2023, arXiv
            2211.09800, section 3.2.1). 0: the network is never without one.

    Raises:
        InvalidInputError: arguments out of range; x, t or conditions of another shape.

    Source: the modulation is that of Perez et al. 2018 (FiLM).
    """

    @checked
    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        hidden: int = 128,
        layers: int = 3,
        embedding: int = 32,
        time_features: str = "smooth",
        n_classes: int | None = None,
        label_dropout: float = 0.0,
        token_channels: int | None = None,
        token_dropout: float = 0.0,
        vector_channels: int | None = None,
        vector_dropout: float = 0.0,
        image_channels: int = 0,
        image_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shape = [event_shape] if isinstance(event_shape, int) else list(event_shape)
        self.event_shape = tuple(check_count("event_shape", n) for n in shape)
        self.config = {
            "event_shape": shape,
            "hidden": check_count("hidden", hidden),
            "layers": check_count("layers", layers),
            "embedding": check_count("embedding", embedding),
            "time_features": time_features,
            "n_classes": n_classes,
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
        self.config |= {"label_dropout": label_dropout} if label_dropout else {}  # older checkpoints do not tell it
        self.config |= conditions.in_config()
        d = math.prod(shape)
        self.embedding = Embedding(embedding, conditions, time_features=time_features)
        self._take(conditions)
        self.modulations = nn.ModuleList(nn.Linear(embedding, 2 * hidden) for _ in range(layers))
        self.inp = nn.Linear(d + image_size(image_channels, shape), hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.out = nn.Linear(hidden, d)
        zero(self.out)
        if token_channels is not None:
            self.crosses = nn.ModuleList(CrossAttention(hidden, token_channels, 1, silent=True) for _ in range(layers))

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
            x: (B, *event).
            t: (B,), the number that says the noise level.
            label: (B,) classes, one for all, or None.
            tokens: (B, T, D), or None.
            token_mask: (B, T); where it is False a token is not seen, False alone: none is. A sample without any is one
                without condition.
            vector: (B, vector_channels), or None.
            image: (B, image_channels, *event_shape[1:]), where the network was built with one.

        Returns:
            (B, *event), in the dtype of x.

        Raises:
            InvalidInputError: x, t or conditions of another shape, or conditions that the network was not built for.
        """
        check_input(x, self.inp.weight)
        if tuple(x.shape[1:]) != self.event_shape or not x.ndim:
            raise InvalidInputError(
                f"x has shape {tuple(x.shape)}: this network was built for (B, {', '.join(map(str, self.event_shape))})"
            )
        check_time(x, t)
        self.check_conditions(
            len(x), x.shape[1:], label=label, tokens=tokens, token_mask=token_mask, vector=vector, image=image
        )
        e = self.embedding(t, label, vector)
        reads = self.conditions.token_channels is not None
        told = self._with_no_token(len(x), tokens, token_mask) if reads else (None, None)
        modulate, *modulations = self.modulations
        image = self._image(x, image)
        seen = flat(x) if image is None else torch.cat([flat(x), flat(image).to(x.dtype)], 1)
        h = _modulated(self.inp(seen), modulate(e))
        h = self._with_tokens(0, h, *told) if reads else h
        for k, (layer, modulate) in enumerate(zip(self.hidden, modulations, strict=True), 1):
            h = h + layer(F.silu(_modulated(h, modulate(e))))
            h = self._with_tokens(k, h, *told) if reads else h
        return self.out(F.silu(h)).reshape(x.shape).to(x.dtype)

    def _with_tokens(self, k: int, h: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """h after layer k has read the tokens."""
        return h + self.crosses[k](h[:, None], tokens, mask)[:, 0]


def _modulated(h: Tensor, ab: Tensor) -> Tensor:
    a, b = ab.chunk(2, 1)
    return torch.addcmul(b, h, 1 + a)
