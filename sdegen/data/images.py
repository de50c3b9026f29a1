"""Sources of images: tensors scaled to [-1, 1], with what is needed to turn them back into grey levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError

SPLITS = ("train", "held-out", "all")


@dataclass(frozen=True)
class Images:
    """A set of images that fits into memory.

    x = 2 u/(L - 1) - 1 for the integer grey levels u = 0 .. L - 1.

    Attributes:
        images: x, (N, C, H, W), float32 in [-1, 1].
        labels: (N,), int64 in 0 .. n_classes - 1.
        levels: L; what bits per dimension have to be told.
        n_classes: how many classes.
    """

    images: Tensor
    labels: Tensor
    levels: int
    n_classes: int

    def __len__(self) -> int:
        return len(self.images)


def digits(split: str = "train", *, held_out_every: int = 4) -> Images:
    """The 1797 handwritten digits of scikit-learn, 8x8 with 17 grey levels u = 0 .. 16, scaled to x = 2 u/16 - 1.

    The split is fixed and draws nothing: of each class every fourth image, in the order of the source, is held out. The
    same people wrote both parts.

    Args:
        split: "train" (1352 images), "held-out" (445) or "all".
        held_out_every: the four in "every fourth".

    Returns:
        Images of shape (N, 1, 8, 8), labels 0 .. 9.

    Raises:
        InvalidInputError: an unknown split, or held_out_every below 2.
        ImportError: scikit-learn is not installed.

    Source: Alpaydin & Kaynak 1998, UCI machine learning repository, "Optical recognition of handwritten digits", its
    test part.
    """
    if split not in SPLITS:
        raise InvalidInputError(f"split={split!r} is not known: choose from {', '.join(map(repr, SPLITS))}")
    if isinstance(held_out_every, bool) or not isinstance(held_out_every, int) or held_out_every < 2:
        raise InvalidInputError(f"held_out_every={held_out_every!r}: wanted a whole number, at least 2")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the digits are those of scikit-learn, which is not installed: pip install "sdegen[data]"'
        ) from error
    source: Any = load_digits()
    images = torch.from_numpy(source.images).float()[:, None] * (2 / 16) - 1
    labels = torch.from_numpy(source.target).long()
    held_out = _rank_in_class(labels, 10) % held_out_every == held_out_every - 1
    chosen = {"train": ~held_out, "held-out": held_out, "all": torch.ones_like(held_out)}[split]
    return Images(images[chosen], labels[chosen], levels=17, n_classes=10)


def _rank_in_class(labels: Tensor, n_classes: int) -> Tensor:
    """How many earlier images have the same label, (N,)."""
    counts = torch.nn.functional.one_hot(labels, n_classes).cumsum(0)
    return counts.gather(1, labels[:, None])[:, 0] - 1
