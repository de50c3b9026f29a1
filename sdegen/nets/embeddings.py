"""What a network is told beside x: the time, a class label and a vector, as one vector per sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.arguments import one_of
from ..core.errors import InvalidInputError
from .conditions import ConditionOptions, LabelEmbedding, VectorEmbedding


class FourierFeatures(nn.Module):
    """Time features for any range of t: its compressed value and sines and cosines of that.

    phi(t) = [u, sin(w_k u), cos(w_k u)],  u = asinh(t),  w_k geometric from 1/2 to `highest`.

    u is t near 0 and sign(t) log|2t| far from it, so one set of frequencies resolves a time in [0, 1], a log-sigma/4 in
    [-2, 2] and a sigma up to 80 alike. What oscillates in the features oscillates in the network, and a solver has to
    follow it: with highest = 100 a trained network of digits takes two and a half times the evaluations of one with 12
    at a tolerance of 1e-4, at the same loss. At least float32 inside, whatever the network's dtype: large phases mean
    nothing in bfloat16.

    Source: Tancik et al. 2020 (arXiv:2006.10739), eq. 5, here with fixed frequencies.
    """

    w: Tensor

    def __init__(self, highest: float, frequencies: int = 16) -> None:
        super().__init__()
        self.size = 2 * frequencies + 1
        w = torch.logspace(math.log10(0.5), math.log10(highest), frequencies)
        self.register_buffer("w", w, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, 2K + 1)."""
        u = torch.asinh(t if t.dtype.itemsize >= 4 else t.float())[:, None]
        phase = u * self.w
        return torch.cat([u, phase.sin(), phase.cos()], 1)


class SinusoidalFeatures(nn.Module):
    """DDPM's time features, for t in [0, 1].

    phi(t) = [sin(w_k 1000 t), cos(w_k 1000 t)],  w_k = 10000^(-k/(K-1)),  k = 0..K-1.

    Source: Ho et al. 2020 (their code), with step i of 1000 at t = i/1000.
    """

    w: Tensor

    def __init__(self, frequencies: int = 32) -> None:
        super().__init__()
        self.size = 2 * frequencies
        self.register_buffer("w", 1000 * torch.logspace(0, -4, frequencies), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, 2K)."""
        phase = (t if t.dtype.itemsize >= 4 else t.float())[:, None] * self.w
        return torch.cat([phase.sin(), phase.cos()], 1)


TIME_FEATURES: dict[str, Callable[[], FourierFeatures | SinusoidalFeatures]] = {
    "smooth": partial(FourierFeatures, 12),
    "fourier": partial(FourierFeatures, 100),
    "sinusoidal": SinusoidalFeatures,
}


class Embedding(nn.Module):
    """Time, label and vector as one activated vector: e = SiLU(W_2 SiLU(W_1 phi(t)) + table[label] + W_v u + b_v).

    Args:
        width: length of e.
        time_features: "smooth" (Fourier features of t in any range, frequencies up to 12), "fourier" (up to 100) or
            "sinusoidal" (t in [0, 1]).
        conditions: which ones the network takes: a label and a vector, here.

    Raises:
        InvalidInputError: an unknown name of features.
    """

    def __init__(self, width: int, conditions: ConditionOptions, *, time_features: str = "smooth") -> None:
        super().__init__()
        one_of(time_features, "time_features", TIME_FEATURES)
        self.features = TIME_FEATURES[time_features]()
        self.inner = nn.Linear(self.features.size, width)
        self.outer = nn.Linear(width, width)
        n, c = conditions.n_classes, conditions.vector_channels
        self.label = None if n is None else LabelEmbedding(n, width, conditions.label_dropout)
        self.vector = None if c is None else VectorEmbedding(c, width, conditions.vector_dropout)

    def forward(self, t: Tensor, label: Tensor | int | None = None, vector: Tensor | None = None) -> Tensor:
        """(B,), (B,), (B, C) -> (B, width)."""
        e = self.outer(F.silu(self.inner(self.features(t).to(self.inner.weight.dtype))))
        if self.label is not None:
            e = e + self.label(label, t.shape[0])
        if self.vector is not None:
            e = e + self.vector(vector, t.shape[0])
        return F.silu(e)


def check_input(x: Tensor, weight: Tensor) -> None:
    """Refuse an x that is no tensor of floating numbers in the network's dtype, which autocast changes."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InvalidInputError(f"got x of {got}, expected a floating tensor (B, *event)")
    if x.device != weight.device and "meta" in (x.device.type, weight.device.type):
        raise InvalidInputError(f"got x on {x.device}, expected it on the network's device, {weight.device}")
    if x.dtype != weight.dtype and weight.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
        raise InvalidInputError(f"got x of {x.dtype}, expected the network's {weight.dtype}: x.to({weight.dtype})")


def check_time(x: Tensor, t: Tensor) -> None:
    """Refuse a t that is not one number per sample of x."""
    if not isinstance(t, Tensor):
        raise InvalidInputError(f"got t={t!r}, expected a tensor ({x.shape[0]},), one time per sample")
    if t.shape != x.shape[:1]:
        raise InvalidInputError(
            f"t has shape {tuple(t.shape)}: expected ({x.shape[0]},), one time per sample; use t.expand({x.shape[0]})"
        )
