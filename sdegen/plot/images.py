"""Images: a grid of them, and how they come out of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..core.conditions import merged, rows_of
from ..core.errors import InvalidInputError
from ..core.kinds import checked, kind_of, take, told
from ..loop.modes import quiet
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..processes import SDE
from .models import device_of
from .paths import Path, Scale
from .style import panels, styled

SMALLEST, SHARP = 6, 16  # images of so many pixels a side are drawn smoothed, so that an eye reads them
FINE = 32  # smaller tiles are enlarged by a whole number up to about this, so that the gaps can be thin


@styled
@checked
def image_grid(
    x: Tensor | Solution,
    *,
    nrow: int | None = None,
    ax: Axes | None = None,
    value_range: tuple[float, float] | None = None,
    titles: str | Sequence[str] | Tensor | None = None,
    columns: Sequence[Any] | None = None,
    rows: Sequence[Any] | None = None,
    title: str | None = None,
    smooth: bool | None = None,
) -> Axes:
    """Draw images in rows.

    Args:
        x: (B, H, W) or (B, C, H, W), or a Solution, whose end is drawn. C = 1 is grey, 3 RGB, 4 RGBA over white; of any
            other number each channel is drawn as a grey image, those of one sample side by side.
        nrow: images in each row; None: as many as make the grid about square.
        ax: Axes to draw on; None: a new figure.
        value_range: the values shown as black and as white; others are clipped. None: (-1, 1), for bytes (0, 255).
        titles: one per image, such as its label, written above it.
        columns: one per column, such as the name of its class, written above the first row.
        rows: one per row, such as the method that made it, written to its left.
        title: above the whole; None: of a Solution its solver and evaluations, else nothing.
        smooth: whether pixels are joined smoothly, or each is a sharp square; None: smoothly from 6 to 15
            pixels a side.

    Returns:
        The Axes, its one image the mosaic.

    Raises:
        InvalidInputError: not images, no images, a range that is empty, titles that do not fit.

    Example:
        >>> import torch, sdegen as sg
        >>> axes = sg.plot.image_grid(torch.rand(6, 1, 8, 8) * 2 - 1, nrow=3)
    """
    given = x.x if isinstance(x, Solution) else x
    title = _made_by(x) if title is None else title
    black_white = _default_range(given) if value_range is None else value_range
    separated, parts = _separated(given)
    images = as_images(separated)
    n = len(images) // parts
    if nrow is not None and (isinstance(nrow, bool) or not isinstance(nrow, int) or nrow < 1):
        raise InvalidInputError(f"got nrow={nrow!r}, expected a whole number of images in a row, at least 1")
    shape = images.shape[1] / (parts * images.shape[2])
    across = min(n, nrow or int(np.ceil(np.sqrt(n * shape))))
    words = _words(titles, n, "titles", "images")
    heads = _words(columns, across, "columns", "columns")
    tiles = Mosaic(images.shape[1:3], parts * across, -(-n // across), room=0.22 if words else 0.0, smooth=smooth)
    names = _words(rows, tiles.rows, "rows", "rows") or []
    side = max(0.45, min(0.9, 6 / tiles.columns)) * (1.0 if words is None else 1.1)
    wide = side * tiles.columns
    more = 0.3 * bool(title) + 0.2 * (heads is not None)
    beside = max([0.1 + 0.055 * len(name) for name in names], default=0.0)
    (a,) = panels(ax, 1, width=wide + 0.1 + beside, height=wide * tiles.shape[0] / tiles.shape[1] + 0.1 + more)
    show(a, tiles.of(shades(images, black_white)))
    for i, word in enumerate(words or heads or []):
        top, left = tiles.corner(*divmod(i * parts, tiles.columns))
        middle = left + (parts * (tiles.tile[1] + tiles.gap) - tiles.gap) / 2 - 0.5
        a.text(middle, top - 0.5 - 0.02 * tiles.tile[0], word, ha="center", va="bottom", fontsize=7)
    if names:
        a.set_anchor("W")  # where the layout looks for them
    for i, name in enumerate(names):
        top, _ = tiles.corner(i, 0)
        a.text(-0.5 - 2 * tiles.gap, top + tiles.tile[0] / 2 - 0.5, name, ha="right", va="center", fontsize=7)
    if title:
        a.set_title(title, pad=16 if heads and not words else None)
    return a


def _words(given: Any, n: int, name: str, of: str) -> list[str] | None:
    """One word for each of n, or None."""
    if given is None:
        return None
    each = list(_each(given, name))
    if any(isinstance(v, Tensor) and v.is_meta for v in each):
        raise InvalidInputError(f"got {name} on device meta, which holds nothing, expected words")
    words = [str(v.tolist() if isinstance(v, Tensor) else v) for v in each]
    if len(words) != n:
        raise InvalidInputError(f"{name} holds {len(words)} words for {n} {of}: pass one for each")
    return words


def _made_by(x: Any) -> str:
    """What a picture says of the solution that it shows."""
    if not isinstance(x, Solution) or not x.nfe.numel():
        return ""
    return f"{x.solver.split(',')[0]}, {float(x.nfe.double().mean()):.3g} evaluations"


@styled
@checked
def denoising_strip(
    solution: Solution,
    *,
    samples: int | Sequence[int] = 6,
    steps: int | Sequence[int] = 9,
    ax: Axes | None = None,
    model: ScoreModel | None = None,
    sde: SDE | None = None,
    frame: str = "auto",
    value_range: tuple[float, float] = (-1.0, 1.0),
    title: str = "",
    **cond: Any,
) -> Axes:
    """Draw images on their way out of noise: a row per sample, a column per saved time.

    Args:
        solution: saved with save="all" or at times; events (H, W) or (C, H, W).
        samples: how many, from the first, or which.
        steps: how many of the saved times, even in their number, or which (shared times only).
        ax: Axes to draw on; None: a new figure.
        model: draws under every row what the model predicts as the clean image from each state; it also tells the
            process.
        sde: the process, for `frame`.
        frame: "x": states as they are; "data": x s/sqrt(alpha^2 s^2 + sigma^2), so that noise keeps the contrast of
            data; "auto": "data" for processes that stretch data more than fourfold (VE, EDM), where `model` or `sde`
            tells them.
        value_range: the values shown as black and as white; others are clipped.
        title: above the whole.
        **cond: the conditions under which the solution was made, for `model`; tensors hold a row per sample of the
            solution.

    Returns:
        The Axes.

    Raises:
        InvalidInputError: a Solution without a path, events that are not images, unknown samples.

    Example:
        >>> import sdegen as sg
        >>> model = sg.Denoiser(sg.nets.UNet(1, channels=8), sg.VPSDE())
        >>> found = sg.sample(model, (3, 1, 8, 8), steps=6, save="all", seed=0)
        >>> axes = sg.plot.denoising_strip(found, steps=4, model=model)
    """
    path = Path.of(solution)
    if not is_image(path.xs.shape[2:]):
        raise InvalidInputError(
            f"the solution holds events of shape {tuple(path.xs.shape[2:])}: expected images (H, W), (1, H, W), "
            "(3, H, W) or (4, H, W); draw points with trajectories"
        )
    rows = _chosen(samples, path.xs.shape[1], "samples")
    if isinstance(steps, int):
        ts, xs = path.resampled(_count(steps, "steps"))
    elif path.shared:
        kept = _chosen(steps, len(path.ts), "steps")
        ts, xs = path.ts[kept, 0], path.xs[kept]
    else:
        raise InvalidInputError("steps= as a list needs times that all samples share; pass how many")
    picked = Path(ts[:, None].expand(len(ts), len(rows)), xs[:, rows])
    if cond and model is None:
        raise InvalidInputError(f"got {', '.join(cond)}, expected conditions only beside the model= that takes them")
    process = model.sde if model is not None else sde
    s = model.sigma_data if model is not None and model.data_std is not None else None
    scaled = torch.from_numpy(Scale.chosen(frame, process, s, path)(picked))
    strips = [scaled[:, i] for i in range(len(rows))]  # (S, *event) each
    if model is not None:
        guesses = _guesses(model, ts, xs, rows, cond)
        strips = [strip for pair in zip(strips, guesses.unbind(1)) for strip in pair]
    images = as_images(torch.cat(strips))
    tiles = Mosaic(images.shape[1:3], len(ts), len(strips), group=1 if model is None else 2)
    (a,) = panels(ax, 1, width=0.72 * len(ts) + 0.2, height=0.72 * len(ts) * tiles.shape[0] / tiles.shape[1] + 0.45)
    show(a, tiles.of(shades(images, value_range)))
    centre = (tiles.tile[1] - 1) / 2
    a.set_xticks(
        [tiles.corner(0, k)[1] + centre for k in range(len(ts))],
        [time_label(float(t), k == 0) for k, t in enumerate(ts)],
    )
    if model is not None:
        middle = (tiles.tile[0] - 1) / 2
        a.set_yticks([tiles.corner(k, 0)[0] + middle for k in range(len(strips))], ["$x_t$", r"$\hat x_0$"] * len(rows))
    a.tick_params(length=0)
    if title:
        a.set_title(title)
    return a


def _guesses(model: ScoreModel, ts: Tensor, xs: Tensor, rows: list[int], cond: dict[str, Any]) -> Tensor:
    """The clean images that a model predicts along the way, (S, n, *event); at t = 0 the state is its own."""
    given = rows_of(merged(cond), torch.tensor(rows))
    model.check_conditions(given, len(rows))
    device = device_of(model)
    clean = []
    with quiet(model):
        for t, x in zip(ts, xs[:, rows]):
            inner = t.clamp(model.sde.t_min, model.sde.t_max)
            clean.append(x if t == 0 else model(x.to(device), inner, **given).x0.to("cpu", torch.float64))
    return torch.stack(clean)


# ---- tiles


class Mosaic:
    """Where the tiles of a grid lie: each image enlarged by a whole number, small ones smoothly, with thin gaps.

    Args:
        size: (H, W) of one image.
        columns, rows: of the grid.
        room: empty space above each row, in tiles.
        group: rows that belong together; a wider gap divides the groups.
        smooth: whether pixels are joined smoothly; None: where they are few.
    """

    def __init__(
        self,
        size: Sequence[int],
        columns: int,
        rows: int,
        *,
        room: float = 0.0,
        group: int = 1,
        smooth: bool | None = None,
    ) -> None:
        self.smooth = SMALLEST <= min(size) < SHARP if smooth is None else smooth
        self.scale = max(1, round((2 if self.smooth else 1) * FINE / min(size)))
        self.tile = (size[0] * self.scale, size[1] * self.scale)
        self.gap = max(1, round(min(self.tile) / 24))
        self.columns, self.rows = columns, rows
        self._above = round(room * self.tile[0])
        self._group, self._between = group, 3 * self.gap if group > 1 else 0
        bottom, right = self.corner(rows - 1, columns - 1)
        self.shape = (bottom + self.tile[0], right + self.tile[1])

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The upper left pixel of a tile."""
        down = row * (self.tile[0] + self.gap + self._above) + self._above + row // self._group * self._between
        return down, column * (self.tile[1] + self.gap)

    def of(self, colours: np.ndarray) -> np.ndarray:
        """The picture (H, W, 4) of images (B, h, w, 3), row by row; what lies between them is transparent."""
        picture = np.ones((*self.shape, 4))
        picture[..., 3] = 0
        large = _smoothly(colours, self.scale) if self.smooth else colours.repeat(self.scale, 1).repeat(self.scale, 2)
        for i, image in enumerate(large):
            top, left = self.corner(*divmod(i, self.columns))
            picture[top : top + self.tile[0], left : left + self.tile[1], :3] = image
            picture[top : top + self.tile[0], left : left + self.tile[1], 3] = 1
        return picture


def _smoothly(colours: np.ndarray, scale: int) -> np.ndarray:
    """Colours (B, h, w, 3) enlarged by bicubic interpolation."""
    x = torch.from_numpy(colours).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)
    return large.clamp(0, 1).permute(0, 2, 3, 1).numpy()


CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def is_image(event: Sequence[int]) -> bool:
    """Whether an event is an image: (H, W), or (C, H, W) with C = 1, 3 or 4."""
    return len(event) == 2 or (len(event) == 3 and event[0] in CHANNELS)


def _default_range(x: Any) -> tuple[float, float]:
    """What is black and what is white where nobody said it: bytes have 0 and 255."""
    dtype = x.dtype if isinstance(x, Tensor) else None
    return {torch.uint8: (0.0, 255.0), torch.bool: (0.0, 1.0)}.get(dtype, (-1.0, 1.0))  # type: ignore[arg-type]


def _separated(x: Any) -> tuple[Any, int]:
    """Images of a number of channels that no colour has, as (B C, H, W), and C; others as they are, and 1."""
    odd = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] not in CHANNELS
    if not odd or x.shape[3] in CHANNELS or not x.numel():  # the second: channels last, which as_images refuses
        return x, 1
    return x.flatten(0, 1), x.shape[1]


def as_images(x: Tensor) -> Tensor:
    """Images as (B, H, W, C) on the CPU, C = 1, 3 or 4."""
    if not isinstance(x, Tensor):
        raise InvalidInputError(f"got images={told(x)}, expected a tensor (B, C, H, W) or (B, H, W)")
    shape = tuple(x.shape)
    if x.ndim not in (3, 4) or (x.ndim == 4 and shape[1] not in CHANNELS):
        hint = (
            "; one image alone is x[None]"
            if x.ndim == 2
            else "; draw points with density or trajectories"
            if x.ndim < 3
            else "; channels last are x.permute(0, 3, 1, 2)"
            if x.ndim == 4 and shape[3] in CHANNELS
            else ""
        )
        raise InvalidInputError(f"images have shape {shape}: expected (B, H, W) or (B, C, H, W), C = 1, 3 or 4{hint}")
    if not x.numel():
        raise InvalidInputError(f"images have shape {shape}: there is nothing to draw")
    x = x.detach().to("cpu", torch.float64)
    return x[..., None] if x.ndim == 3 else x.permute(0, 2, 3, 1)


def shades(images: Tensor, value_range: tuple[float, float]) -> np.ndarray:
    """Values (B, H, W, C) as colours (B, H, W, 3) in [0, 1], RGBA over white; what is not a number is red."""
    try:
        low, high = (float(v) for v in value_range)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"got value_range={value_range!r}, expected (low, high)") from error
    if not low < high:
        raise InvalidInputError(f"got value_range={value_range!r}, expected low < high")
    colours = ((images - low) / (high - low)).clamp(0, 1)
    if images.shape[3] == 4:
        opacity = colours[..., 3:]
        colours = colours[..., :3] * opacity + 1 - opacity
    colours = colours.expand(*images.shape[:3], 3).clone()
    colours[~torch.isfinite(images).all(3)] = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    return colours.numpy()


def show(a: Axes, picture: np.ndarray) -> None:
    """A picture without a frame."""
    a.imshow(picture, interpolation="nearest")
    a.set_xticks([])
    a.set_yticks([])
    for spine in a.spines.values():
        spine.set_visible(False)


def time_label(t: float, first: bool) -> str:
    number = f"{t:.0f}" if t >= 10 or t == 0 else f"{t:.2g}"
    return f"$t = {number}$" if first else f"{number}"


# ---- which


def _count(n: int, name: str) -> int:
    if isinstance(n, bool) or n < 1:
        raise InvalidInputError(f"got {name}={n!r}, expected a whole number, at least 1, or a list of numbers")
    return n


def _chosen(which: int | Sequence[int], n: int, name: str) -> list[int]:
    if isinstance(which, int):
        return list(range(min(n, _count(which, name))))
    chosen = [int(i) for i in which]
    if not chosen or any(not -n <= i < n for i in chosen):
        raise InvalidInputError(f"got {name}={list(which)}, expected numbers below {n}, at least one")
    return [i % n for i in chosen]


def _each(titles: Any, name: str) -> Any:
    """One title for each image; a tensor of one number is none."""
    if isinstance(titles, Tensor):
        titles = take(titles, name, kind_of(Tensor))
    if isinstance(titles, Tensor) and not titles.ndim:
        raise InvalidInputError(f"got {name}={titles!r}, expected a word for each")
    return titles
