"""A network for points and small vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from .embeddings import Embedding, check_count, check_time


class MLP(nn.Module):
    """A residual multilayer perceptron whose every layer is scaled and shifted by the time.

    h_1 = m_1(W_1 x),  h_{k+1} = h_k + W_{k+1} SiLU(m_{k+1}(h_k)),  net = W_out SiLU(h_L),
    m_k(h) = (1 + a_k(e)) h + b_k(e),

    where e embeds time and label, and a_k and b_k are linear in it. W_out starts at zero. (Time features joined to x as
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

    Raises:
        InvalidInputError: arguments out of range; x, t or label of another shape.

    Source: the modulation is that of Perez et al. 2018 (FiLM).
    """

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
        self.config |= {"label_dropout": label_dropout} if label_dropout else {}  # older checkpoints do not tell it
        d = math.prod(shape)
        self.embedding = Embedding(
            embedding, time_features=time_features, n_classes=n_classes, label_dropout=label_dropout
        )
        self.modulations = nn.ModuleList(nn.Linear(embedding, 2 * hidden) for _ in range(layers))
        self.inp = nn.Linear(d, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.out = nn.Linear(hidden, d)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | int | None = None) -> Tensor:
        """The network's output.

        Args:
            x: (B, *event).
            t: (B,), the number that says the noise level.
            label: (B,) classes, one for all, or None.

        Returns:
            (B, *event), in the dtype of x.

        Raises:
            InvalidInputError: x, t or label of another shape, or a label for a network without classes.
        """
        if tuple(x.shape[1:]) != self.event_shape or not x.ndim:
            raise InvalidInputError(
                f"x has shape {tuple(x.shape)}: this network was built for (B, {', '.join(map(str, self.event_shape))})"
            )
        check_time(x, t)
        e = self.embedding(t, label)
        modulate, *modulations = self.modulations
        h = _modulated(self.inp(x.flatten(1) if x.ndim > 1 else x[:, None]), modulate(e))
        for layer, modulate in zip(self.hidden, modulations, strict=True):
            h = h + layer(F.silu(_modulated(h, modulate(e))))
        return self.out(F.silu(h)).reshape(x.shape).to(x.dtype)


def _modulated(h: Tensor, ab: Tensor) -> Tensor:
    a, b = ab.chunk(2, 1)
    return torch.addcmul(b, h, 1 + a)
