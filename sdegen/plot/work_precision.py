"""Error against cost, solver by solver."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked, told
from .style import FAINT, MARKERS, PALETTE, colour, figure_of, panels, styled

LABELS = {
    "nfe": "evaluations per sample",
    "seconds": "seconds",
    "calls": "network calls",
    "error": "error",
    "distance": "distance to the data",
}
TOLERANCE = " (tolerance)"


@styled
@checked
def work_precision(
    table: Any,
    *,
    ax: Axes | None = None,
    cost: str = "nfe",
    error: str = "error",
    group: str = "solver",
    orders: Sequence[float] | None = None,
) -> Axes:
    """Draw error against evaluations on logarithmic axes: a line per solver, and dotted ones for orders of convergence.

    Args:
        table: rows, dataclasses or dicts with the fields `group`, `cost` and `error`; or an object with such `.rows`.
            Rows whose cost or error is not a positive finite number are left out. Rows whose field `setting` is a
            tolerance ("rtol=...") are a line of their own beside the same solver's budgets.
        ax: Axes to draw on; None: a new figure.
        cost: the field on the horizontal axis: "nfe", "seconds" ...
        error: the field on the vertical axis: "error", "distance" ...
        group: the field that names a line.
        orders: the slopes drawn, error ~ cost^-p; None: those that the lines come near; (): none.

    Returns:
        The Axes.

    Raises:
        InvalidInputError: a row without these fields, no row to draw.

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0], [1.0]], std=0.2), sg.VPSDE())
        >>> table = sg.compare(model, 16, solvers=["euler", "adams"], steps=[5, 10], tolerances=[], seed=0)
        >>> axes = sg.plot.work_precision(table)
    """
    lines = _lines(table, cost, error, group)
    (a,) = panels(ax, 1, width=5.6, height=3.6)
    a.set(xscale="log", yscale="log", xlabel=LABELS.get(cost, cost), ylabel=LABELS.get(error, error))
    solvers = list(dict.fromkeys(name.removesuffix(TOLERANCE) for name in lines))
    for name, (x, y) in lines.items():
        i = solvers.index(name.removesuffix(TOLERANCE))
        stroke = "--" if name.endswith(TOLERANCE) else "-" if i < len(PALETTE) else "-."
        marks: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "ms": 4.5, "mec": "white", "mew": 0.5}
        a.plot(x, y, color=colour(i), ls=stroke, label=name, zorder=3, **marks)
    slopes = _orders(lines.values()) if orders is None else sorted({float(p) for p in orders})
    _guides(a, lines.values(), slopes)
    if cost == "nfe":
        a.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        a.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        a.xaxis.set_minor_locator(NullLocator())
    a.grid(True, which="major", color="#e6e6e6", lw=0.6)
    if ax is None:
        figure_of(a).legend(loc="outside right upper", handlelength=2.2)
    else:
        a.legend(handlelength=2.2)
    return a


Lines = dict[str, tuple[np.ndarray, np.ndarray]]


def _lines(table: Any, cost: str, error: str, group: str) -> Lines:
    """(cost, error) of each solver, by cost."""
    rows = getattr(table, "rows", table)
    if not isinstance(rows, Iterable) or isinstance(rows, str | Mapping | Tensor | np.ndarray):
        raise InvalidInputError(
            f"got table={told(table)}, expected a list of rows with {group!r}, {cost!r} and {error!r}, "
            "as compare returns"
        )
    by_setting: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for i, row in enumerate(rows):
        key = (str(_field(row, group, i)), _adaptive(row))
        by_setting.setdefault(key, []).append((_number(row, cost, i), _number(row, error, i)))
    found = {
        f"{name}{TOLERANCE}" if adaptive and (name, False) in by_setting else name: points
        for (name, adaptive), points in by_setting.items()
    }
    usable = {
        name: sorted(p for p in points if all(math.isfinite(v) and v > 0 for v in p)) for name, points in found.items()
    }
    usable = {name: points for name, points in usable.items() if points}
    if not usable:
        why = (
            f"none of {sum(map(len, found.values()))} rows has a positive finite {cost} and {error}"
            if found
            else "it has no rows"
        )
        raise InvalidInputError(f"the table has nothing to draw: {why}")
    return {name: (np.array(points)[:, 0], np.array(points)[:, 1]) for name, points in usable.items()}


def _adaptive(row: Any) -> bool:
    """Whether a row was made with a tolerance, where it has a `setting` that says so."""
    setting = row.get("setting") if isinstance(row, Mapping) else getattr(row, "setting", None)
    return str(setting).startswith(("rtol", "atol"))


def _field(row: Any, name: str, i: int) -> Any:
    if isinstance(row, Mapping) and name in row:
        return row[name]
    if not isinstance(row, Mapping) and hasattr(row, name):
        return getattr(row, name)
    known = (
        list(row)
        if isinstance(row, Mapping)
        else list(getattr(row, "__dict__", {})) or list(getattr(row, "_fields", ()))
    )
    raise InvalidInputError(
        f"row {i} of the table has no field {name!r}: it has {', '.join(map(str, known)) or 'none'}"
    )


def _number(row: Any, name: str, i: int) -> float:
    value = _field(row, name, i)
    if value is None:  # not measured
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise InvalidInputError(f"row {i} of the table: {name} is {value!r}, expected one number") from failure


def _orders(lines: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """The whole orders that the steepest parts of the lines come near, at most 5."""
    found = set()
    for x, y in lines:
        if len(x) < 2 or x[-1] <= x[0]:
            continue
        steps = np.diff(np.log(x))
        slopes = -np.diff(np.log(y))[steps > 0] / steps[steps > 0]
        p = round(float(np.median(slopes)))
        if 1 <= p <= 8:
            found.add(float(p))
    return sorted(found)[:5]


def _guides(a: Axes, lines: Iterable[tuple[np.ndarray, np.ndarray]], orders: Sequence[float]) -> None:
    """Dotted lines of slope -p from one point at the lower left, inside the frame the data makes."""
    if not orders:
        return
    points = np.concatenate([np.stack(line) for line in lines], 1)
    (x_low, y_low), (x_high, y_high) = np.log(points.min(1)), np.log(points.max(1))
    width, height = max(x_high - x_low, 0.5), max(y_high - y_low, 0.5)
    start = (x_low, y_low + 0.42 * height)
    floor = y_low - 0.04 * height
    words: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": FAINT, "ha": "left"}
    for p in orders:
        reach = min(0.3 * width, (start[1] - floor) / p)
        x, y = np.exp([start[0], start[0] + reach]), np.exp([start[1], start[1] - p * reach])
        a.plot(x, y, color=FAINT, lw=0.9, ls=":", zorder=1, label=f"_order {p:g}")
        a.annotate(f"{p:g}", (x[1], y[1]), xytext=(2, -1), va="top", **words)
    a.annotate("order", (math.exp(start[0]), math.exp(start[1])), xytext=(0, 3), va="bottom", **words)
