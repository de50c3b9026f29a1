"""Sets of images: whole grey levels in memory, numbers in [-1, 1] at the door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import one_of
from ..core.errors import InvalidInputError, warn
from ..core.kinds import checked, told
from ..core.show import Shown, picture_of
from .batched import Batched

SPLITS = ("train", "held-out", "all")


@dataclass(frozen=True, eq=False, repr=False)
class Images(Batched, Shown):
    """A set of N images, with or without labels.

    x = 2 u/(L - 1) - 1 for the integer levels u = 0 .. L - 1.

    `images[i]` is what `fit` and a DataLoader take: (x, {"label": y}), or x alone in a set without labels.

    With `flips` the set is twice as long: image N + i is image i mirrored left to right. A shuffled pass then sees each
    image both ways, nothing is drawn at random, and any batch of a run can be made again.

    Attributes:
        stored: u, (M, C, H, W), whole numbers as the source has them; or x itself, floating, where levels is None.
        labels: (len,), int64 in 0 .. n_classes - 1, -1 where an image has none; None: a set without labels.
        levels: L, as `bits_per_dim(levels=L)` takes it. None: the values are continuous.
        n_classes: how many classes; None without labels.
        classes: their names, where the source has names.
        flips: whether the mirrored images follow.
        skipped: what the source holds but could not be read, with the reasons.
        rows: (N,), which of the stored images these are, so that parts of a set share its memory; None: all.
    """

    stored: Tensor
    labels: Tensor | None
    levels: int | None
    n_classes: int | None
    classes: tuple[str, ...] | None = None
    flips: bool = False
    skipped: tuple[str, ...] = ()
    rows: Tensor | None = None

    def _facts(self):
        return {
            "images": len(self),
            "shape": self.shape,
            "levels": self.levels,
            "classes": ", ".join(self.classes) if self.classes else self.n_classes,
            "flips": self.flips or None,
            "skipped": len(self.skipped) or None,
        }

    def _picture(self):
        return picture_of(
            torch.stack([self[i][0] if self.labels is not None else self[i] for i in range(min(16, len(self)))])
        )

    def __len__(self) -> int:
        return self._n * (1 + self.flips)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.stored.shape[1:])

    @property
    def images(self) -> Tensor:
        """x of all of them, (len, C, H, W), float32 in [-1, 1]; made anew at every call."""
        x = self._scaled(self.stored if self.rows is None else self.stored[self.rows])
        return torch.cat([x, x.flip(-1)]) if self.flips else x

    @checked
    def batch(self, numbers: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Some images.

        Args:
            numbers: (B,) integers, 0 .. len - 1.

        Returns:
            x, (B, C, H, W) float32 in [-1, 1], and their conditions: {"label": (B,)}, or {} in a set without labels.

        Raises:
            InvalidInputError: numbers that are no integers of the set.
        """
        self.check_numbers(numbers)
        rows = numbers % self._n
        x = self._scaled(self.stored[rows if self.rows is None else self.rows[rows]])
        if self.flips:
            x = torch.where((numbers >= self._n)[:, None, None, None], x.flip(-1), x)
        return x, {} if self.labels is None else {"label": self.labels[numbers]}

    def flipped(self) -> Images:
        """The same images, their mirrored ones after them.

        Returns:
            `Images`, twice as many.

        Raises:
            InvalidInputError: they have that already.
        """
        if self.flips:
            raise InvalidInputError("this set has its mirrored images already")
        return replace(self, flips=True, labels=None if self.labels is None else self.labels.repeat(2))

    def unlabelled(self) -> Images:
        """The same images without labels.

        Returns:
            `Images`; the memory is shared.
        """
        return replace(self, labels=None, n_classes=None, classes=None)

    @checked
    def only(self, numbers: Tensor | Sequence[int] | slice) -> Images:
        """The images of these numbers, as a set of its own.

        Args:
            numbers: whole numbers or a slice, 0 .. N - 1.

        Returns:
            `Images`; the memory is shared.

        Raises:
            InvalidInputError: the set has flips: take the images first.
        """
        if self.flips:
            raise InvalidInputError("take images from a set before it is flipped")
        if not isinstance(numbers, slice):
            numbers = torch.as_tensor(numbers)
            outside = bool(((numbers < -self._n) | (numbers >= self._n)).any())
            mask = numbers.dtype == torch.bool and numbers.shape != (self._n,)
            if numbers.ndim != 1 or outside or mask or (numbers.is_floating_point() and len(numbers)):
                raise InvalidInputError(f"got numbers={told(numbers)}, expected whole numbers, 0 .. {self._n - 1}")
            numbers = numbers if numbers.dtype == torch.bool else numbers.long()
        rows = (torch.arange(self._n) if self.rows is None else self.rows)[numbers]
        return replace(self, rows=rows, labels=None if self.labels is None else self.labels[numbers])

    @checked
    def split(self, part: str, *, held_out_every: int) -> Images:
        """One part of the set, where images number k, 2k, 3k ... of each class are held out, k = `held_out_every`.

        They are counted from 1 in the set's order, and nothing is drawn at random.

        Args:
            part: "train", "held-out" or "all".
            held_out_every: k; 4 holds out a quarter.

        Returns:
            `Images`; the memory is shared. Where every class has fewer images, so that all are for training, a
            RuntimeWarning says so.

        Raises:
            InvalidInputError: an unknown part, held_out_every below 2, or nothing that would be held out.
        """
        check_split(part)
        if isinstance(held_out_every, bool) or not isinstance(held_out_every, int) or held_out_every < 2:
            raise InvalidInputError(f"got held_out_every={held_out_every!r}, expected a whole number, at least 2")
        if part == "all":
            return self
        labels = torch.zeros(len(self), dtype=torch.long) if self.labels is None else self.labels
        held_out = _rank_in_class(labels) % held_out_every == held_out_every - 1
        if not bool(held_out.any()):
            empty = f"no class has {held_out_every} images, so held_out_every={held_out_every} holds none out"
            if part == "held-out":
                raise InvalidInputError(f"{empty}: pass a smaller one, in training too")
            warn(f"{empty}: all {len(self)} are for training", RuntimeWarning)
        return self.only((held_out if part == "held-out" else ~held_out).nonzero()[:, 0])

    @property
    def _n(self) -> int:
        return len(self.stored if self.rows is None else self.rows)

    def _scaled(self, values: Tensor) -> Tensor:
        return values.float() if self.levels is None else values.float() * (2 / (self.levels - 1)) - 1


@checked
def digits(split: str = "train", *, held_out_every: int = 4) -> Images:
    """The 1797 handwritten digits of scikit-learn, 8x8 with 17 grey levels u = 0 .. 16, scaled to x = 2 u/16 - 1.

    The split is fixed and draws nothing: of each class every fourth image, in the order of the source, is held out. The
    same people wrote both parts.

    Args:
        split: "train" (1352 images), "held-out" (445) or "all".
        held_out_every: k, as in `Images.split`: 4 holds out a quarter.

    Returns:
        Images of shape (N, 1, 8, 8), labels 0 .. 9.

    Raises:
        InvalidInputError: an unknown split, or held_out_every below 2.
        ImportError: scikit-learn is not installed.

    Source: Alpaydin & Kaynak 1998, UCI machine learning repository, "Optical recognition of handwritten digits", its
    test part.
    """
    check_split(split)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the digits are those of scikit-learn, which is not installed: pip install "sdegen[data]"'
        ) from error
    source: Any = load_digits()
    values = torch.from_numpy(source.images).to(torch.uint8)[:, None]
    every = Images(values, torch.from_numpy(source.target).long(), levels=17, n_classes=10)
    return every.split(split, held_out_every=held_out_every)


def check_split(split: str) -> None:
    one_of(split, "split", SPLITS)


def _rank_in_class(labels: Tensor) -> Tensor:
    """How many earlier images have the same label, (N,)."""
    order = labels.argsort(stable=True)
    sorted_labels = labels[order]
    starts = torch.searchsorted(sorted_labels, sorted_labels)  # where the class of each begins
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(labels)) - starts)
