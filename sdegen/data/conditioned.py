"""Samples with their conditions, where these are too many, or too large, to be a row for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import check_rows, rows_of
from ..core.errors import InvalidInputError
from ..core.kinds import checked, kind_of, take
from ..core.show import Shown
from .batched import Batched

_TENSOR = kind_of(Tensor)


class Lookup(Shown):
    """A condition that many samples share: sample i has values[which[i]].

    Thirty captions of 12 tokens take the memory of thirty, whatever the number of pictures.

    Args:
        values: (K, ...) one for each kind of sample.
        which: (N,) whole numbers 0 .. K - 1, the kind of each sample.

    Raises:
        InvalidInputError: other shapes, or a kind that there is not.

    Example:
        >>> import torch, sdegen as sg
        >>> tokens = sg.data.Lookup(torch.randn(3, 12, 384), torch.tensor([0, 2, 2, 1]))
        >>> len(tokens), tokens[torch.tensor([1, 2])].shape
        (4, torch.Size([2, 12, 384]))
    """

    def __init__(self, values: Tensor, which: Tensor) -> None:
        if not isinstance(values, Tensor) or values.ndim == 0:
            raise InvalidInputError(f"values: got {_kind(values)}, expected a tensor (K, ...)")
        if not isinstance(which, Tensor) or which.ndim != 1 or which.is_floating_point() or which.dtype == torch.bool:
            raise InvalidInputError(f"which: got {_kind(which)}, expected whole numbers (N,)")
        if len(which) and not 0 <= int(which.min()) <= int(which.max()) < len(values):
            raise InvalidInputError(
                f"which: got numbers from {int(which.min())} to {int(which.max())}, expected 0 to {len(values) - 1}, "
                f"one of the {len(values)} values"
            )
        self.values, self.which = values, which
        self.ndim = values.ndim  # as of the tensor that it stands for

    def _facts(self):
        return {"values": tuple(self.values.shape), "samples": len(self)}

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, rows: Any) -> Tensor:
        return self.values[self.which[rows]]


class Conditioned(Batched, Shown):
    """Samples with conditions by name, as `fit` takes them.

    Args:
        data: a tensor or array (N, *event), or a set such as `Images` (any `Batched`), whose conditions are kept.
        **cond: conditions by name. A tensor (N, ...) or a `Lookup` has one for each sample; a function gets x0
            (B, *event) of a batch and gives a tensor (B, ...), such as a copy at lower resolution.

    Raises:
        InvalidInputError: data of another kind, conditions for another number of samples.

    Example:
        >>> import torch, torch.nn.functional as F, sdegen as sg
        >>> low = lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)
        >>> pairs = sg.data.Conditioned(torch.randn(100, 1, 8, 8), image=low)
        >>> model = sg.Denoiser(sg.nets.UNet(1, channels=8, image_channels=1), sg.VPSDE())
        >>> history = sg.fit(model, pairs, steps=2, batch_size=8, progress=False)
    """

    def __init__(self, data: Any, **cond: Any) -> None:
        if isinstance(data, np.ndarray) and data.dtype.kind in "fiub":
            data = torch.from_numpy(data)
        if not (isinstance(data, Tensor) and data.ndim) and not isinstance(data, Batched):
            raise InvalidInputError(
                f"data: got {_kind(data)}, expected a tensor (N, *event) or a set such as Images: rows of a Dataset "
                "carry their conditions themselves, as (x0, {'label': y})"
            )
        if isinstance(data, Tensor):
            take(data, "data", _TENSOR)
        for name, value in cond.items():
            if isinstance(value, Lookup):
                _check_length(name, value, len(data))
            elif not callable(value):
                check_rows(name, value, len(data))
        self.data, self.cond = data, cond

    def _facts(self):
        return {"samples": len(self), "conditions": ", ".join(self.cond)}

    def __len__(self) -> int:
        return len(self.data)

    @checked
    def batch(self, numbers: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Some samples.

        Args:
            numbers: (B,) integers, 0 .. len - 1.

        Returns:
            x0 (B, *event), and its conditions by name.

        Raises:
            InvalidInputError: numbers that are no whole numbers.
        """
        self.check_numbers(numbers)
        if isinstance(self.data, Tensor):
            x0, theirs = self.data[numbers.to(self.data.device)], {}
        else:
            x0, theirs = self.data.batch(numbers)
        return x0, {**theirs, **{name: _rows(value, numbers, x0) for name, value in self.cond.items()}}


def _rows(value: Any, numbers: Tensor, x0: Tensor) -> Any:
    """The condition of these samples."""
    if isinstance(value, Lookup):
        return value[numbers]
    if isinstance(value, Callable):
        return value(x0)
    return rows_of({"": value}, numbers)[""]


def _check_length(name: str, value: Lookup, samples: int) -> None:
    if len(value) != samples:
        raise InvalidInputError(
            f"condition {name!r}: got a Lookup for {len(value)} samples, expected {samples}, as many as the data have"
        )


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
