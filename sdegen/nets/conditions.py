"""What a network is told beside x and t: labels, vectors, tokens and images; how they are checked, left out and read.

In training a condition is left out of a sample with a given probability, drawn from torch's global generator, or in
`fit` by (seed, step) and the sample's place in the batch: a resumed run, and any number of processes, leaves out the
same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..core.show import ShownNet

CONDITIONS = frozenset({"label", "tokens", "token_mask", "vector", "image"})
_NOISE: ContextVar[Any] = ContextVar("noise", default=None)
_DROPPED = 1 << 20  # the address of its draws for what is left out
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


@dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """Which conditions a network is built for; see `UNet`.

    Raises:
        InvalidInputError: one that cannot be, or a dropout of what there is not.
    """

    n_classes: int | None = None
    label_dropout: float = 0.0
    token_channels: int | None = None
    token_dropout: float = 0.0
    vector_channels: int | None = None
    vector_dropout: float = 0.0
    image_channels: int = 0
    image_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count("image_channels", self.image_channels, 0)
        for kind in ("label", "token", "vector", "image"):
            channels = "n_classes" if kind == "label" else f"{kind}_channels"
            size, share = getattr(self, channels), getattr(self, f"{kind}_dropout")
            if size is not None and kind != "image":
                check_count(channels, size)
            if check_share(f"{kind}_dropout", share) and not size:
                what = "classes" if kind == "label" else f"{kind}s"
                raise InvalidInputError(f"{kind}_dropout={share} without {what}: pass {channels}=")

    @property
    def names(self) -> set[str]:
        """The words of `forward` that a network built so has a use for."""
        built = {
            "label": self.n_classes,
            "tokens": self.token_channels,
            "token_mask": self.token_channels,
            "vector": self.vector_channels,
            "image": self.image_channels,
        }
        return {name for name, size in built.items() if size}

    def in_config(self) -> dict[str, Any]:
        """What a config tells of them: those that are asked for, so that it is that of older checkpoints elsewhere."""
        names = (f"{kind}_{what}" for kind in ("token", "vector", "image") for what in ("channels", "dropout"))
        return {name: value for name in names if (value := getattr(self, name))}


class Conditional(ShownNet, nn.Module):
    """The base of networks that are told more than x and t.

    Attributes:
        conditions: which ones.
        no_token: (D,) the learned token that stands for none, where there are tokens.
    """

    conditions: ConditionOptions
    no_token: nn.Parameter
    embedding: Any  # of time, label and vector

    def _take(self, conditions: ConditionOptions) -> None:
        self.conditions = conditions
        if conditions.token_channels is not None:
            self.no_token = nn.Parameter(torch.zeros(conditions.token_channels))

    def check_conditions(
        self,
        batch: int,
        event_shape: Sequence[int] | None = None,
        *,
        label: Tensor | int | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | bool | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
    ) -> None:
        """Refuse conditions that do not fit, as `forward` does before any work.

        Args:
            batch: B, how many samples.
            event_shape: of x; None: not known.
            label, tokens, token_mask, vector, image: as `forward` takes them.

        Raises:
            InvalidInputError: a condition that the network was not built for, or of another shape; no image for one
                that was never without in training.
        """
        asked = self.conditions
        if label is not None and asked.n_classes is None:
            raise InvalidInputError(
                "this network was built without classes and takes no label: build it with n_classes="
            )
        if label is not None:
            self.embedding.label.check(label, batch)
        if asked.token_channels is None and (tokens is not None or token_mask is not None):
            raise InvalidInputError("this network was built without tokens: build it with token_channels=")
        if tokens is not None or token_mask is not None:
            _check_tokens(tokens, token_mask, batch, asked.token_channels)
        if vector is not None and asked.vector_channels is None:
            raise InvalidInputError("this network was built without a vector: build it with vector_channels=")
        if vector is not None:
            _check_floating("vector", vector, (batch, asked.vector_channels))
        if image is not None or (asked.image_channels and not asked.image_dropout):
            _check_image(image, batch, event_shape, asked.image_channels)

    def _with_no_token(
        self, batch: int, tokens: Tensor | None, mask: Tensor | bool | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens (B, 1 + T, D) after the one that stands for none, which is always seen, and which of them are seen."""
        if self.conditions.token_channels is None:
            return None, None
        none = self.no_token.expand(batch, 1, -1)
        if tokens is None:
            return none, None
        if isinstance(mask, bool):
            mask = None if mask else tokens.new_zeros(tokens.shape[:2], dtype=torch.bool)
        if self.training and self.conditions.token_dropout:
            kept = ~dropped(self.conditions.token_dropout, batch, tokens.device)[:, None].expand(tokens.shape[:2])
            mask = kept if mask is None else mask & kept
        if mask is None:
            return torch.cat([none, tokens.to(none.dtype)], 1), None
        tokens = tokens.masked_fill(~mask[..., None], 0.0)  # a weight of 0 would let NaN through
        return torch.cat([none, tokens.to(none.dtype)], 1), F.pad(mask, (1, 0), value=True)

    def _image(self, x: Tensor, image: Tensor | None) -> Tensor | None:
        """The image as it is read beside x: zeros where there is none, or where it is left out."""
        asked = self.conditions
        if not asked.image_channels:
            return None
        if image is None:
            return x.new_zeros(len(x), asked.image_channels, *x.shape[2:])
        if not self.training or not asked.image_dropout:
            return image
        left_out = dropped(asked.image_dropout, len(x), image.device)
        return torch.where(left_out.reshape(-1, *(1,) * (image.ndim - 1)), 0.0, image)


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
        if self.training and self.dropout:
            label = torch.where(dropped(self.dropout, batch, device), -1, label)
        return self.table(torch.where(label < 0, self.n_classes, label.long()))

    def check(self, label: Tensor | int, batch: int) -> None:
        """Refuse what is not (B,) integers in -1 .. n_classes - 1 (the range not on a GPU: it would wait)."""
        if isinstance(label, Tensor) and label.shape == (batch,) and label.dtype in INTEGERS:
            if torch.compiler.is_compiling() or label.device.type != "cpu" or not batch:
                return
            low, high = int(label.min()), int(label.max())
        elif isinstance(label, int) and not isinstance(label, bool):
            low = high = label
        else:
            got = f"{label.dtype} of shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise InvalidInputError(
                f"label is {got}: expected integers of shape ({batch},), one per sample, or None for no class"
            )
        if low < -1 or high >= self.n_classes:
            raise InvalidInputError(
                f"label holds values from {low} to {high}: this network has classes 0 to {self.n_classes - 1}, "
                "and -1 for no class"
            )


class VectorEmbedding(nn.Module):
    """W u + b of a vector u, which is a learned one where none is given.

    Args:
        channels: C of u (B, C).
        width: length of the result.
        dropout: in training, the probability that a sample's vector is left out.

    Source: as in Nichol et al. 2021 (arXiv 2112.10741), section 2.3, and Ramesh et al. 2022, section 2.1.
    """

    def __init__(self, channels: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.none = nn.Parameter(torch.zeros(channels))
        self.linear = nn.Linear(channels, width)

    def forward(self, vector: Tensor | None, batch: int) -> Tensor:
        """(B, C) or None -> (B, width)."""
        none = self.none.expand(batch, -1)
        u = none if vector is None else vector.to(none.dtype)
        if vector is not None and self.training and self.dropout:
            u = torch.where(dropped(self.dropout, batch, u.device)[:, None], none, u)
        return self.linear(u)


@contextmanager
def dropping_by(noise: Any) -> Iterator[None]:
    """Which samples conditions are left out of is drawn by their places in a larger batch, as its noise is.

    Args:
        noise: of its rows `start` .. `stop`, with a method `uniform`.
    """
    before = _NOISE.set([noise, 0])
    try:
        yield
    finally:
        _NOISE.reset(before)


def dropped(share: float, batch: int, device: torch.device) -> Tensor:
    """(B,) which samples a condition is left out of."""
    here = _NOISE.get()
    if here is None or batch != here[0].stop - here[0].start:
        return torch.rand(batch, device=device) < share
    here[1] += 1  # each condition, and each call, has draws of its own
    return here[0].uniform((batch,), _DROPPED, here[1], dtype=torch.float32, device=device) < share


def with_image(x: Tensor, image: Tensor | None) -> Tensor:
    """x and the image as channels of one input."""
    return x if image is None else torch.cat([x, image.to(x.dtype)], 1)


def image_size(channels: int, event_shape: Sequence[int]) -> int:
    """How many numbers the image has for x of this shape (C, *sides)."""
    return channels * math.prod(event_shape[1:])


_MOST = 2**24  # of channels, layers ...


def check_count(name: str, value: int, least: int = 1) -> int:
    """A whole number of at least `least`, or an InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
        raise InvalidInputError(f"got {name}={value!r}, expected a whole number, at least {least} and at most {_MOST}")
    return value


def check_share(name: str, value: float) -> float:
    """A probability in [0, 1), or an InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InvalidInputError(f"got {name}={value!r}, expected a probability in [0, 1)")
    return value


def _check_tokens(tokens: Tensor | None, mask: Tensor | bool | None, batch: int, channels: int | None) -> None:
    if tokens is None:
        if mask is not None:
            raise InvalidInputError("got a token_mask without tokens, expected both or none: pass tokens=")
        return
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[0] != batch or tokens.shape[2] != channels:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        wanted = f"({batch}, T, {channels}), from the text encoder that it was trained with"
        raise InvalidInputError(f"tokens have shape {got}: expected {wanted}")
    _check_floating("tokens", tokens, tokens.shape)
    if mask is None or isinstance(mask, bool):
        return
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise InvalidInputError(
            f"token_mask is {got}: expected bool {tuple(tokens.shape[:2])}, or True or False for all tokens"
        )


def _check_image(image: Tensor | None, batch: int, event_shape: Sequence[int] | None, channels: int) -> None:
    sides = ("...",) if event_shape is None else tuple(event_shape[1:])
    wanted = f"({', '.join(map(str, (batch, channels, *sides)))})"
    if image is None and channels:
        raise InvalidInputError(
            f"this network was built with image_channels={channels} and is asked without an image: pass image= of "
            f"shape {wanted} (or train one with image_dropout=, which knows what none is)"
        )
    if image is None:
        return
    if not channels:
        raise InvalidInputError("this network was built without an image: build it with image_channels=")
    shape = tuple(image.shape) if isinstance(image, Tensor) else None
    fits = shape is not None and shape[:2] == (batch, channels) and (event_shape is None or shape[2:] == sides)
    if shape is None or not fits:
        got = type(image).__name__ if shape is None else shape
        raise InvalidInputError(
            f"image: got {got}, expected {wanted}, as high and wide as x: resize it before, as F.interpolate does"
        )
    _check_floating("image", image, shape)


def _check_floating(name: str, value: Any, shape: Sequence[int | None]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape) or not value.is_floating_point():
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInputError(f"{name}: got {got}, expected floating numbers of shape {tuple(shape)}")
