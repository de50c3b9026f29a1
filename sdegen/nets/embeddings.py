"""What a network is told beside x: the time and a class label, as one vector per sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InvalidInputError

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


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
        u = torch.asinh(_at_least_float32(t))[:, None]
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
        phase = _at_least_float32(t)[:, None] * self.w
        return torch.cat([phase.sin(), phase.cos()], 1)


TIME_FEATURES: dict[str, Callable[[], FourierFeatures | SinusoidalFeatures]] = {
    "smooth": partial(FourierFeatures, 12),
    "fourier": partial(FourierFeatures, 100),
    "sinusoidal": SinusoidalFeatures,
}


class LabelEmbedding(nn.Module):
    """One learned vector per class, and one more for "no class", so that labels can be dropped.

    Args:
        n_classes: labels are 0 .. n_classes - 1; -1 or None stand for no class, the last row of the table.
        width: length of a vector.
        dropout: in training, the probability that a sample's label is taken for "no class".
    """

    def __init__(self, n_classes: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_classes, self.dropout = n_classes, dropout
        self.table = nn.Embedding(n_classes + 1, width)

    def forward(self, label: Tensor | int | None, batch: int) -> Tensor:
        """(B,) integers, one integer for all, or None -> (B, width)."""
        device = self.table.weight.device
        if label is None or isinstance(label, int):
            label = torch.full((batch,), -1 if label is None else label, dtype=torch.long, device=device)
        self.check(label, batch)
        if self.training and self.dropout:
            label = torch.where(torch.rand(batch, device=device) < self.dropout, -1, label)
        return self.table(torch.where(label < 0, self.n_classes, label.long()))

    def check(self, label: Tensor, batch: int) -> None:
        """Refuse what is not (B,) integers in -1 .. n_classes - 1 (the range not on a GPU: it would wait)."""
        came = f"{label.dtype} of shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
        if not isinstance(label, Tensor) or label.shape != (batch,) or label.dtype not in INTEGERS:
            raise InvalidInputError(
                f"label is {came}: expected integers of shape ({batch},), one per sample, or None for no class"
            )
        if torch.compiler.is_compiling() or label.device.type != "cpu" or not batch:
            return
        low, high = int(label.min()), int(label.max())
        if low < -1 or high >= self.n_classes:
            raise InvalidInputError(
                f"label holds values from {low} to {high}: this network has classes 0 to {self.n_classes - 1}, "
                "and -1 for no class"
            )


class Embedding(nn.Module):
    """Time and label as one activated vector: e = SiLU(W_2 SiLU(W_1 phi(t)) + table[label]).

    Args:
        width: length of e.
        time_features: "smooth" (Fourier features of t in any range, frequencies up to 12), "fourier" (up to 100) or
            "sinusoidal" (t in [0, 1]).
        n_classes: None for a network without labels.
        label_dropout: in training, the probability that a label is left out.

    Raises:
        InvalidInputError: an unknown name of features; a label given to a network that has none, or one out of range.
    """

    def __init__(
        self,
        width: int,
        *,
        time_features: str = "smooth",
        n_classes: int | None = None,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if time_features not in TIME_FEATURES:
            raise InvalidInputError(
                f"time_features={time_features!r} is not known: choose from {', '.join(map(repr, TIME_FEATURES))}"
            )
        self.features = TIME_FEATURES[time_features]()
        self.inner = nn.Linear(self.features.size, width)
        self.outer = nn.Linear(width, width)
        if check_share("label_dropout", label_dropout) and n_classes is None:
            raise InvalidInputError(f"label_dropout={label_dropout} without classes: pass n_classes=")
        self.label = (
            None if n_classes is None else LabelEmbedding(check_count("n_classes", n_classes), width, label_dropout)
        )

    def forward(self, t: Tensor, label: Tensor | int | None = None) -> Tensor:
        """(B,), (B,) -> (B, width)."""
        e = self.outer(F.silu(self.inner(self.features(t).to(self.inner.weight.dtype))))
        if self.label is not None:
            e = e + self.label(label, t.shape[0])
        elif label is not None:
            raise InvalidInputError(
                "this network was built without classes and takes no label: build it with n_classes="
            )
        return F.silu(e)


def check_time(x: Tensor, t: Tensor) -> None:
    """Refuse a t that is not one number per sample of x."""
    if t.shape != x.shape[:1]:
        raise InvalidInputError(
            f"t has shape {tuple(t.shape)}: expected ({x.shape[0]},), one time per sample; use t.expand({x.shape[0]})"
        )


def check_count(name: str, value: int, least: int = 1) -> int:
    """A whole number of at least `least`, or an InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInputError(f"{name}={value!r}: expected a whole number, at least {least}")
    return value


def check_share(name: str, value: float) -> float:
    """A probability in [0, 1), or an InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InvalidInputError(f"{name}={value!r}: expected a probability in [0, 1)")
    return value


def _at_least_float32(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))
