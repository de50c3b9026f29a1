"""A path as a film: points of the plane, or images."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..distributions.mixture import GaussianMixture
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..models.exact import MixtureModel
from ..processes import SDE
from .densities import MASSES, Box, Density, as_density, mass_levels, on_grid
from .images import Mosaic, as_images, is_image, shades, show
from .paths import Path, Scale, array
from .plane import contours, plane, square
from .style import PALE, PALETTE, TIME, check_file, figure_of, panels, styled
from .trajectories import spread


class Film(FuncAnimation):
    """A FuncAnimation that plays in a notebook."""

    def _repr_html_(self) -> str:
        return self.to_jshtml(default_mode="loop")


HOLD = 1.5  # seconds that the last frame stays
COLOURS = 32  # of a GIF


@styled
@checked
def animate(
    solution: Solution,
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    fps: float = 15,
    frames: int = 60,
    samples: int | None = None,
    density: Any = None,
    sde: SDE | None = None,
    frame: str = "auto",
    nrow: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    trail: int = 0,
    dpi: float | None = None,
) -> Film:
    """Film the samples along their saved path, and write it as a GIF.

    Args:
        solution: saved with save="all" or at times; events (2,), (H, W) or (C, H, W).
        path: the .gif to write; None: nothing is written.
        ax: Axes to draw on; None: a new figure, closed once it is written.
        fps: frames a second.
        frames: at most so many, even in the number of saved times (or in their quantiles where samples have their own).
        samples: draw only the first so many; None: 1000 points, or 36 images.
        density: of points: drawn behind at each frame's own time t, as p_t: a MixtureModel, or a GaussianMixture with
            `sde`; a GaussianMixture alone is drawn as it is, at all times.
        sde: the process, for `frame` and p_t.
        frame: "x", "data" or "auto", as in `trajectories`.
        nrow: of images: how many in a row.
        value_range: of images: the values shown as black and as white.
        trail: of points: how many earlier frames a fading tail shows.
        dpi: of the file; None: 100.

    Returns:
        The Film, a matplotlib FuncAnimation: it plays in a notebook, and its `.save` writes other formats.

    Raises:
        InvalidInputError: a Solution without a path, events that are neither points of the plane nor images, a path
            that does not end in .gif.

    Example:
        >>> import tempfile, sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], std=0.3), sg.VPSDE())
        >>> found = sg.sample(model, 20, steps=4, save="all", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     film = sg.plot.animate(found, f"{folder}/samples.gif")
    """
    for name, value in (("fps", fps), ("frames", frames)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise InvalidInputError(f"got {name}={value!r}, expected a number, at least 1")
    file = None if path is None else check_file(path)
    if file is not None and file.suffix.lower() != ".gif":
        raise InvalidInputError(
            f"path={str(path)!r}: animate writes .gif; for other formats leave path out and call .save(path) "
            "on what it returns"
        )
    whole = Path.of(solution)
    event = tuple(whole.xs.shape[2:])
    if event != (2,) and not is_image(event):
        raise InvalidInputError(
            f"the solution holds events of shape {event}: expected points (2,), or images (H, W), (1, H, W), "
            "(3, H, W) or (4, H, W)"
        )
    whole = whole.first(samples or (1000 if event == (2,) else 36))
    ts, xs = whole.resampled(int(frames))
    shown = Path(ts[:, None].expand(len(ts), xs.shape[1]), xs)
    sde = density.sde if isinstance(density, ScoreModel) else sde
    scale = Scale.chosen(frame, sde, spread(density), whole)
    states = scale(shown)
    if event == (2,):
        a, update = _points(states, _Marginal.of(density, sde, ts, scale), ax, int(trail))
    else:
        a, update = _images(states, ax, nrow, value_range)
    caption = a.set_title(_caption(ts[0]), loc="left")

    def draw(k: int) -> list[Artist]:
        caption.set_text(_caption(ts[k]))
        return [caption, *update(k)]

    figure = figure_of(a)
    film = Film(figure, draw, frames=len(ts), interval=1000 / fps, repeat_delay=1000 * HOLD, blit=False)
    if file is not None:
        _write(figure, draw, len(ts), file, fps, dpi or 100)
        vars(film)["_draw_was_started"] = True  # it was drawn: no warning that it was not
        if ax is None:
            plt.close(figure)
    return film


def _caption(t: torch.Tensor) -> str:
    return f"t = {float(t):<7.3g}"


@dataclass(frozen=True)
class _Marginal:
    """The density behind each frame: p_t at the frame's time, on the scale of the drawing."""

    known: Density  # where the mass is, at t_min
    model: Any
    ts: torch.Tensor
    factors: torch.Tensor

    @classmethod
    def of(cls, density: Any, sde: SDE | None, ts: torch.Tensor, scale: Scale) -> _Marginal | None:
        if density is None or density is False:
            return None
        known = as_density(density)
        if known.dim != 2:
            raise InvalidInputError(f"density is over {known.dim} dimensions, the points over 2")
        model = MixtureModel(density, sde) if isinstance(density, GaussianMixture) and sde is not None else density
        return cls(known, None if isinstance(model, GaussianMixture) else model, ts, scale.factor(ts))

    def picture(self, a: Axes, box: Box, side: int = 161) -> Callable[[int], list[Artist]]:
        """Draws it behind, and gives what draws the k-th frame's."""
        if self.model is None:
            contours(a, self.known, box)
            return lambda k: []
        over: tuple[float, float, float, float] = (*box[0], *box[1])
        shown = a.imshow(
            np.zeros((side, side)), extent=over, origin="lower", cmap=PALE, interpolation="bilinear", vmin=0, zorder=0
        )

        def draw(k: int) -> list[Artist]:
            t = float(self.ts[k].clamp(self.model.sde.t_min, self.model.sde.t_max))
            _, log_p = on_grid(lambda x: self.model.log_prob(x / self.factors[k], t), box, side)
            p = array((log_p - log_p.max()).exp())
            shares = np.searchsorted(mass_levels(p), p, side="right") / len(MASSES)
            shown.set_data(np.ma.masked_equal(shares, 0))
            shown.set_clim(1 / len(MASSES), 1)
            return [shown]

        draw(0)
        return draw


def _points(states: np.ndarray, behind: _Marginal | None, ax: Axes | None, trail: int):
    (a,) = panels(ax, 1, width=3.6, height=3.7)
    box = square([states], None if behind is None else behind.known)
    shade = (lambda k: []) if behind is None else behind.picture(a, box)
    n = states.shape[1]
    size = float(np.clip(50 / n**0.5, 1.3, 4.5))
    tail = []
    for j in range(trail):
        faint = 0.3 * (1 - j / (trail + 1))
        tail += a.plot(*states[0].T, "o", ms=0.8 * size, color=TIME(0.55), alpha=faint, mew=0, zorder=1)
    (head,) = a.plot(*states[0].T, "o", ms=size, color=PALETTE[0], alpha=0.85, mew=0, zorder=2)
    plane(a, box)

    def update(k: int) -> list[Artist]:
        head.set_data(*states[k].T)
        for j, dots in enumerate(tail):
            dots.set_data(*states[max(0, k - 1 - j)].T)
        return [*shade(k), *tail, head]

    return a, update


def _images(states: np.ndarray, ax: Axes | None, nrow: int | None, value_range: tuple[float, float]):
    batches = torch.from_numpy(states)
    first = as_images(batches[0])
    n = len(first)
    columns = min(n, nrow or int(np.ceil(np.sqrt(n))))
    tiles = Mosaic(first.shape[1:3], columns, -(-n // columns))
    side = max(0.3, min(0.9, 3.6 / columns))
    (a,) = panels(ax, 1, width=side * columns + 0.1, height=side * columns * tiles.shape[0] / tiles.shape[1] + 0.35)
    show(a, tiles.of(shades(first, value_range)))
    picture = a.images[-1]

    def update(k: int) -> list[Artist]:
        picture.set_data(tiles.of(shades(as_images(batches[k]), value_range)))
        return [picture]

    return a, update


def _write(
    figure: Figure, draw: Callable[[int], list[Artist]], n: int, file: pathlib.Path, fps: float, dpi: float
) -> None:
    """A GIF of n frames, looping, the last one held: what moves is drawn over a still picture, in one palette."""
    shown_on, shown_dpi = figure.canvas, figure.dpi
    moving = draw(0)
    try:
        canvas = FigureCanvasAgg(figure)
        figure.dpi = dpi
        for artist in moving:
            artist.set_animated(True)
        canvas.draw()
        still = canvas.copy_from_bbox(figure.bbox)
        frames = []
        for k in range(n):
            canvas.restore_region(still)
            for artist in draw(k):
                artist.draw(canvas.get_renderer())
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()).convert("RGB"))
    finally:
        for artist in moving:
            artist.set_animated(False)
        figure.dpi = shown_dpi
        figure.set_canvas(shown_on)
    sheet = Image.new("RGB", (frames[0].width, 4 * frames[0].height))
    for i in range(4):  # the palette suits the whole film
        sheet.paste(frames[round(i * (n - 1) / 3)], (0, i * frames[0].height))
    palette = sheet.quantize(COLOURS)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [10 * round(100 / fps)] * (n - 1) + [int(1000 * HOLD)]
    small[0].save(file, save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True)
