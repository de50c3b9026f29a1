"""One look for every picture, put on through a context manager: the user's rcParams stay as they are."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..core.errors import InvalidInputError, shortened
from ..core.kinds import checked, kind_of, take, told

P = ParamSpec("P")
R = TypeVar("R")

INK, FAINT = "#2b2b2b", "#8a8a8a"
# Okabe & Ito's colours, which people with any colour vision tell apart; their yellow is left out: it is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5A5A5A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
SAMPLES, EXACT = PALETTE[1], INK

DENSITY = LinearSegmentedColormap.from_list(
    "sdegen-density", ["#ffffff", "#d6e6f2", "#8fbcdc", "#3a86bd", "#0d4a80", "#062a4f"]
)
PALE = LinearSegmentedColormap.from_list("sdegen-pale", ["#eef3f8", "#c6d8e8", "#8fb3d1"])
# From data to noise, where it fades: the wild part of a path must not hide the part that decides. Every colour stands
# out from white and from black (contrast 2 at least), and lightness tells times apart without colour vision.
TIME = LinearSegmentedColormap.from_list(
    "sdegen-time", ["#5b2a86ff", "#9a3a86e8", "#cf5a5cd0", "#dc8440b8", "#cf9f3aa8"]
)

RC: dict[str, Any] = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titlepad": 6,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "image.interpolation": "nearest",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of sdegen's pictures for your own: `with sg.plot.style(): ...`.

    Returns:
        A context in which matplotlib's rcParams are sdegen's; afterwards they are what they were.

    Example:
        >>> import matplotlib.pyplot as plt, sdegen as sg
        >>> with sg.plot.style():
        ...     figure, axes = plt.subplots()
    """
    interactive = matplotlib.is_interactive()
    try:
        with matplotlib.style.context(["default", RC]):
            try:
                yield
            finally:  # a notebook's backend, loaded with the first figure, makes matplotlib interactive: that stays
                interactive = matplotlib.is_interactive()
    finally:
        matplotlib.interactive(interactive)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A drawing function that works inside `style`, and where it fails leaves no half-drawn figure of its own open."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        open_before = set(plt.get_fignums())
        try:
            with style():
                return draw(*args, **kwargs)
        except BaseException:
            for number in set(plt.get_fignums()) - open_before:
                plt.close(number)
            raise

    return inside


@checked
def save(drawing: Axes | Figure, path: str | os.PathLike[str], *, dpi: float | None = None) -> Path:
    """Write a picture to a file and close it.

    Args:
        drawing: what a function of `plot` returned, Axes or Figure.
        path: the file; its suffix says the format, .png, .pdf, .svg ...
        dpi: dots per inch, default the figure's own.

    Returns:
        The path.

    Raises:
        InvalidInputError: not a drawing, or no such folder.

    Example:
        >>> import tempfile, torch, sdegen as sg
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sg.plot.save(sg.plot.image_grid(torch.zeros(4, 1, 8, 8)), f"{folder}/grid.png")
    """
    figure = drawing.get_figure(root=True) if isinstance(drawing, Axes) else drawing
    if not isinstance(figure, Figure):
        raise InvalidInputError(
            f"got drawing={told(drawing)}, expected the Axes or Figure that a function of sdegen.plot returned"
        )
    if dpi is not None and not 10 <= dpi <= _MOST_DPI:
        raise InvalidInputError(f"got dpi={dpi}, expected dots per inch from 10 to {_MOST_DPI}")
    path = check_file(path)
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in kinds:
        raise InvalidInputError(f"got path={shortened(str(path))}, expected one that ends with .{', .'.join(kinds)}")
    try:
        figure.savefig(path, dpi="figure" if dpi is None else dpi)
    except OSError as error:
        raise InvalidInputError(f"cannot write {shortened(str(path))}: {error.strerror}") from error
    plt.close(figure)
    return path


_MOST_DPI = 2400
_LONGEST = 255  # bytes of a name, on most disks
_PATH = kind_of(str | os.PathLike[str])


def check_file(path: str | os.PathLike[str]) -> Path:
    """The path, whose folder is there."""
    path = Path(take(path, "path", _PATH))
    if path.is_dir() or len(os.fsencode(path.name)) > _LONGEST:
        raise InvalidInputError(
            f"got path={shortened(str(path))}, expected a file, its name of at most {_LONGEST} bytes"
        )
    if not path.parent.is_dir():
        raise InvalidInputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    return path


def panels(
    ax: Axes | Sequence[Axes] | None, n: int, *, width: float = 4.0, height: float = 3.2, columns: int | None = None
) -> list[Axes]:
    """n Axes to draw on: the user's, or those of a new figure of panels `width` x `height` inches each."""
    if ax is None:
        columns = min(n, columns or n)
        rows = -(-n // columns)
        figure, grid = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
        )
        axes = list(grid.flat)
        for spare in axes[n:]:
            spare.remove()
        for a in axes[:n]:  # ticks are made when they are drawn, long after the style has gone
            a.tick_params(color=INK, labelcolor=INK, labelsize=RC["xtick.labelsize"], width=0.8, length=3)
            a.tick_params(which="minor", color=INK, width=0.5, length=1.8)
        return axes[:n]
    return check_axes(ax, n)


def check_axes(ax: Any, n: int) -> list[Axes]:
    """The user's n Axes, given as one, a list or an array."""
    given: list[Any] = (
        [ax] if isinstance(ax, Axes) else list(getattr(ax, "flat", ax if isinstance(ax, Sequence) else [ax]))
    )
    for a in given:
        if not isinstance(a, Axes):
            raise InvalidInputError(
                f"got ax={told(a)}, expected a matplotlib Axes, such as the second value of plt.subplots()"
            )
    if len(given) != n:
        wanted = "one Axes" if n == 1 else f"a list of {n} Axes, one per panel"
        raise InvalidInputError(
            f"ax holds {len(given)} Axes, this picture has {n}: pass {wanted}, or None for a new figure"
        )
    return given


def drawing(axes: Sequence[Axes]) -> Axes | Figure:
    """What a function returns: one panel's Axes, or the figure of several."""
    return axes[0] if len(axes) == 1 else figure_of(axes[0])


def figure_of(ax: Axes) -> Figure:
    """The figure that the Axes is on."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise InvalidInputError("ax was removed from its figure: pass one that is still there")
    return figure


def colour(i: int) -> str:
    """The i-th colour of lines that are told apart."""
    return PALETTE[i % len(PALETTE)]
