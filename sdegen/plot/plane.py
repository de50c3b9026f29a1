"""What pictures of the plane share: their limits, axes and contours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..core.errors import InvalidInputError
from .densities import Box, Density, mass_levels, on_grid
from .paths import array
from .style import INK, PALE

LINES = (0.95, 0.7, 0.35)  # shares of the mass inside the contour lines, few so that samples show between them


def plane(a: Axes, box: Box, words: str = "", *, left: bool = True) -> None:
    """Axes of the plane, both with the same unit."""
    a.set(xlim=box[0], ylim=box[1], xlabel=f"$x_1${words}", ylabel=f"$x_2${words}" if left else "")
    a.set_aspect("equal", adjustable="box")


def contours(a: Axes, shade: Density, box: Box, *, n: int = 241) -> None:
    """Filled regions that hold given shares of a density's mass, pale enough to lie behind something."""
    inside = [(max(b[0], d[0]), min(b[1], d[1])) for b, d in zip(box, shade.box)]
    if any(low >= high for low, high in inside):
        return
    (x, y), log_p = on_grid(shade.log_prob, inside, n)
    fill(a, x, y, array(log_p))


def fill(a: Axes, x: np.ndarray, y: np.ndarray, log_p: np.ndarray) -> None:
    """The same from log p on a grid, up to a constant."""
    p = np.exp(log_p - log_p.max())
    a.contourf(x, y, p, levels=[*mass_levels(p), 1.01], cmap=PALE, zorder=0)


def contour_lines(a: Axes, known: Density, box: Box, color: str = INK) -> None:
    """Lines around the smallest regions that hold given shares of the mass."""
    (x, y), log_p = on_grid(known.log_prob, box, known.side)
    p = array(log_p.exp())
    a.contour(x, y, p, levels=mass_levels(p, LINES), colors=color, linewidths=0.8, alpha=0.9, zorder=2)


# ---- limits


def square(drawn: Iterable[np.ndarray], shade: Density | None, lines: Iterable[np.ndarray] = ()) -> Box:
    """Square limits that hold a density and arrays of points (..., 2), but for a few far excursions of many.

    They hold the whole of `lines`, (S, n, 2) each, but for those that would make the picture twice as wide.
    """
    points = np.concatenate([xy.reshape(-1, 2) for xy in drawn])
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        raise InvalidInputError("the paths hold no finite states: there is nothing to draw")
    low, high = np.quantile(points, 0.001, axis=0), np.quantile(points, 0.999, axis=0)
    if shade is not None:
        low = np.minimum(low, [b[0] for b in shade.box])
        high = np.maximum(high, [b[1] for b in shade.box])
    most = (high - low).max() / 2
    for line in (xy[:, i] for xy in lines for i in range(xy.shape[1])):
        if np.isfinite(line).all() and (line > low - most).all() and (line < high + most).all():
            low, high = np.minimum(low, line.min(0)), np.maximum(high, line.max(0))
    half = 1.04 * max(float((high - low).max()) / 2, 1e-12)
    return [(float(m) - half, float(m) + half) for m in (low + high) / 2]


def holds(box: Box, lines: np.ndarray) -> np.ndarray:
    """Which of the lines (S, n, 2) lie inside, (n,) bools."""
    low, high = np.array(box).T
    return ((lines >= low) & (lines <= high)).all(2).all(0)


def around(points: Tensor, known: Density | None) -> Box:
    """Limits that hold nearly all of the points (N, d), with a margin, and a density."""
    ends = torch.tensor([0.002, 0.998], dtype=torch.float64)
    low, high = torch.stack([torch.quantile(c[:: max(1, len(c) // 1_000_000)], ends) for c in points.T]).T
    margin = 0.08 * (high - low).max().clamp_min(1e-9)
    box = list(zip((low - margin).tolist(), (high + margin).tolist()))
    if known is not None:
        box = [(min(b[0], d[0]), max(b[1], d[1])) for b, d in zip(box, known.box)]
    return box


def squared(box: Box) -> Box:
    """The smallest square around a box."""
    half = max(high - low for low, high in box) / 2
    return [((low + high) / 2 - half, (low + high) / 2 + half) for low, high in box]


def inset(box: Box, n: int) -> Box:
    """The centres of the first and last of n cells a side."""
    return [(low + (high - low) / (2 * n), high - (high - low) / (2 * n)) for low, high in box]


def given(extent: Sequence[float], dim: int = 2) -> Box:
    """The limits a user asks for: (left, right), and in the plane (left, right, bottom, top)."""
    words = "(left, right)" if dim == 1 else "(left, right, bottom, top)"
    try:
        ends = [float(v) for v in extent]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"got extent={extent!r}, expected {words}") from error
    box = list(zip(ends[::2], ends[1::2]))
    if len(ends) != 2 * dim or any(not low < high for low, high in box):
        raise InvalidInputError(f"got extent={extent!r}, expected {words}, rising")
    return box
