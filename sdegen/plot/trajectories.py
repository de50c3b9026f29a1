"""Paths of samples, in the plane or against time: of a Solution, or of a model in all its directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..distributions.mixture import GaussianMixture
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..models.exact import MixtureModel
from ..processes import SDE
from .densities import as_density
from .paths import Path, Scale
from .plane import contours, holds, plane, square
from .runs import runs
from .style import FAINT, INK, PALE, TIME, check_axes, colour, drawing, figure_of, panels, styled


@styled
@checked
def trajectories(
    paths: Solution | Sequence[Solution] | Mapping[str, Solution] | ScoreModel,
    *,
    ax: Axes | Sequence[Axes] | None = None,
    density: Any = None,
    sde: SDE | None = None,
    frame: str = "auto",
    color: str | None = None,
    samples: int | None = None,
    lines: int | None = None,
    kinds: str | Sequence[str] = ("forward", "reverse", "flow"),
    data: Tensor | None = None,
    steps: int = 200,
    seed: int = 0,
    **cond: Any,
) -> Axes | Figure:
    """Draw how samples travel between data and noise.

    Points in the plane: a line per sample from a ring to a dot, over contours of the data's density. Points on the
    line: x against time in the direction of travel, over the density p_t. A list of solutions, or a dict from titles
    to them, has a panel each. A ScoreModel is solved here: the forward SDE from data, and the reverse SDE and the
    probability flow from the same noise, a panel each.

    Args:
        paths: Solutions saved with save="all" (or at times), events of shape (), (1,) or (2,); or a ScoreModel of
            such events.
        ax: Axes to draw on, one per panel; None: a new figure.
        density: drawn behind: a GaussianMixture, or a MixtureModel (or another model with log_prob(x, t)), which also
            tells the process. None: of a model that knows its density, that; False: nothing.
        sde: the process of a Solution, where `density` does not tell it; needed for frame="data" and for p_t.
        frame: "x": as it is; "data": x s/sqrt(alpha^2 s^2 + sigma^2), s the data's standard deviation, so that noise
            is as wide as data; "auto": "data" where the process is known and stretches data more than fourfold.
        color: "time", "sample" (the same sample has the same colour in all panels), or a matplotlib colour for all.
            None: "time" in the plane, "sample" on the line.
        samples: only the first so many; of a model: how many, None: 300 in the plane, 18 on the line.
        lines: how many of them get a line, the others only their ends. None: all on the line; in the plane 5 where
            paths are rough, as an SDE's are, and 60 where they are smooth.
        kinds: of a model: which panels, of "forward", "encode" (the flow from data to noise), "reverse", "flow".
        data: (B, d), of a model: where upward paths start. None: draws from its mixture, or where the flow arrives.
        steps: of a model: steps per path.
        seed: of a model: of data and noise.
        **cond: of a model: its conditions.

    Returns:
        The Axes, or the Figure of several panels.

    Raises:
        InvalidInputError: a Solution without a path, events that are not points in one or two dimensions, options that
            are unknown.

    Example:
        >>> import sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], std=0.3)
        >>> found = sg.sample(sg.MixtureModel(mixture, sg.VPSDE()), 50, steps=20, save="all", seed=0)
        >>> axes = sg.plot.trajectories(found, density=mixture)
    """
    s = None
    if isinstance(paths, ScoreModel):
        if ax is not None:
            check_axes(ax, 1 if isinstance(kinds, str) else len(kinds))
        scenes = runs(paths, kinds, data=data, samples=samples, steps=steps, seed=seed, cond=cond)
        sde, s = paths.sde, paths.sigma_data if paths.data_std is not None else None
        density = paths if density is None and hasattr(paths, "log_prob") else density
    else:
        if cond:
            raise InvalidInputError(f"{', '.join(cond)}: no option of trajectories; conditions are passed with a model")
        scenes = {title: Path.of(solution).first(samples) for title, solution in _titled(paths).items()}
    dims = {_dim(path) for path in scenes.values()}
    if len(dims) > 1:
        raise InvalidInputError("the solutions hold points in one and in two dimensions: draw them apart")
    dim = dims.pop()
    density = None if density is False else density
    if density is not None:
        known = as_density(density)
        if known.dim != dim:
            raise InvalidInputError(f"density is over {known.dim} dimensions, the paths are over {dim}")
        sde = density.sde if isinstance(density, ScoreModel) else sde
        s = s or spread(density)
    scale = Scale.chosen(frame, sde, s, max(scenes.values(), key=lambda path: len(path.ts)))
    look = _Look(scale, density, sde, color or ("time" if dim == 2 else "sample"), lines)
    if dim == 2:
        axes = panels(ax, len(scenes), width=3.3, height=3.3, columns=2 if len(scenes) == 4 else None)
        _in_plane(axes, scenes, look)
        if ax is None and look.color == "time":
            _time_bar(axes, scenes.values())
        _ends_legend(axes[0])
    else:
        axes = panels(ax, len(scenes), width=3.8, height=2.9, columns=2 if len(scenes) == 4 else None)
        _against_time(axes, scenes, look)
    return drawing(axes)


@dataclass(frozen=True)
class _Look:
    """What all panels share."""

    scale: Scale
    density: Any
    sde: SDE | None
    color: str
    lines: int | None

    def shown(self, path: Path) -> int:
        """How many samples get a line: few where paths are rough."""
        if self.lines is not None or path.xs[0, 0].numel() == 1:
            return path.xs.shape[1] if self.lines is None else self.lines
        steps = path.xs.diff(dim=0).flatten(2)
        turns = (steps[1:] * steps[:-1]).sum(2) < 0  # every second step of a Brownian path, few of a smooth one
        return 5 if bool(turns.double().mean() > 0.25) else 60


def _titled(paths: Any) -> dict[str, Solution]:
    """Solutions by the titles of their panels."""
    if isinstance(paths, Solution):
        return {"": paths}
    found: dict[str, Any] = {}
    got = type(paths).__name__
    if isinstance(paths, Mapping):
        found = dict(paths)
    elif isinstance(paths, Sequence) and not isinstance(paths, str):
        found = {f"({chr(97 + i)})": solution for i, solution in enumerate(paths)}
    if found and not all(isinstance(solution, Solution) for solution in found.values()):
        got += f" of {', '.join(sorted({type(v).__name__ for v in found.values()}))}"
        found = {}
    if not found:
        raise InvalidInputError(f"trajectories takes a Solution, a list or dict of them, or a ScoreModel; got {got}")
    return found


def _dim(path: Path) -> int:
    event = tuple(path.xs.shape[2:])
    if event in ((), (1,)):
        return 1
    if event == (2,):
        return 2
    raise InvalidInputError(
        f"the solution holds events of shape {event}: trajectories draws points in one or two dimensions; "
        "for images use denoising_strip"
    )


def spread(density: Any) -> float | None:
    """The standard deviation of the data that a density or model knows."""
    if isinstance(density, GaussianMixture):
        return float(density.covariance.diagonal().mean().sqrt())
    return density.sigma_data if isinstance(density, ScoreModel) and density.data_std is not None else None


# ---- in the plane


def _in_plane(axes: Sequence[Axes], scenes: Mapping[str, Path], look: _Look) -> None:
    drawn = [look.scale(path) for path in scenes.values()]
    shade = None if look.density is None else as_density(look.density)
    counts = [min(xy.shape[1], look.shown(path)) for xy, path in zip(drawn, scenes.values())]
    box = square(drawn, shade, [xy[:, :n] for xy, n in zip(drawn, counts)])
    clock = _clock(scenes.values())
    for a, xy, n, (title, path) in zip(axes, drawn, counts, scenes.items()):
        if shade is not None:
            contours(a, shade, box)
        whole = holds(box, xy[:, :n])
        _lines(a, xy[:, :n][:, whole], path.ts[:, :n][:, whole], look.color, clock)
        _said(a, int(whole.sum()), n, xy.shape[1])
        few = max(0.3, min(1.0, math.sqrt(30 / xy.shape[1])))
        ring = {"facecolors": "white", "edgecolors": FAINT, "linewidths": 0.8 * math.sqrt(few)}
        a.scatter(*xy[0].T, s=12 * few, **ring, zorder=1.5, label="start")
        a.scatter(*xy[-1].T, s=12 * few, color=INK, alpha=0.8, linewidths=0, zorder=3, label="end")
        a.set_title(title)
        plane(a, box, look.scale.words, left=_leftmost(a, axes))


def _said(a: Axes, shown: int, chosen: int, all_of_them: int) -> None:
    """How many of the paths have a line, where not all have one."""
    if shown == all_of_them or not chosen:
        return
    leave = f", {chosen - shown} leave the picture" if shown < chosen else ""
    a.text(
        0.02, 0.02, f"{shown} of {all_of_them} paths{leave}", transform=a.transAxes, fontsize=6.5, color=FAINT, zorder=5
    )


def _lines(a: Axes, xy: np.ndarray, ts: Tensor, color: str, clock: Normalize) -> None:
    """A line per sample; coloured by time they are one collection of short pieces."""
    if color != "time":
        for i in range(xy.shape[1]):
            c = colour(i) if color == "sample" else color
            a.plot(*xy[:, i].T, color=c, lw=0.9, alpha=0.8, zorder=2, solid_joinstyle="round")
        return
    pieces = np.stack([xy[:-1], xy[1:]], 2).reshape(-1, 2, 2)
    lines = LineCollection(list(pieces), cmap=TIME, norm=clock, linewidths=0.9, zorder=2, capstyle="round")
    lines.set_array(((ts[:-1] + ts[1:]) / 2).flatten().numpy())
    a.add_collection(lines, autolim=False)


def _ends_legend(a: Axes) -> None:
    """Which mark is the start and which the end, in the corner where paths are rarest."""
    a.legend(
        loc="lower right", ncols=2, fontsize=6.5, labelcolor=FAINT, handletextpad=0.0, columnspacing=0.6, borderpad=0.0
    )


def _clock(paths: Iterable[Path]) -> Normalize:
    """What turns times into colours."""
    ends = [float(t) for path in paths for t in (path.ts.min(), path.ts.max())]
    return Normalize(min(ends), max(ends))


def _time_bar(axes: Sequence[Axes], paths: Iterable[Path]) -> None:
    shrink = 0.75 if len(axes) < 4 else 0.45
    bar = figure_of(axes[0]).colorbar(
        ScalarMappable(_clock(paths), TIME), ax=list(axes), shrink=shrink, aspect=28, pad=0.01
    )
    bar.set_label("time $t$")
    bar.outline.set_visible(False)  # type: ignore[operator]


def _leftmost(a: Axes, axes: Sequence[Axes]) -> bool:
    """Whether a panel has no neighbour on its left that could lend its label."""
    place = a.get_subplotspec()
    return a is axes[0] or (place is not None and place.is_first_col())


# ---- against time


def _against_time(axes: Sequence[Axes], scenes: Mapping[str, Path], look: _Look) -> None:
    drawn = [look.scale(path).reshape(*path.ts.shape) for path in scenes.values()]
    clock = _Clock.chosen(look)
    low, high = _range(drawn, look)
    ring = {"facecolors": "white", "edgecolors": FAINT, "linewidths": 0.7}
    for a, x, (title, path) in zip(axes, drawn, scenes.items()):
        if look.density is not None:
            _marginals(a, path, look, clock, (low, high))
        ts = clock(path.ts).numpy()
        for k in range(min(x.shape[1], look.shown(path))):
            c = TIME(0.25) if look.color == "time" else colour(k) if look.color == "sample" else look.color
            a.plot(ts[:, k], x[:, k], color=c, lw=0.9, alpha=0.9, zorder=2)
        a.scatter(ts[0], x[0], s=9, **ring, zorder=3, clip_on=False, label="start")
        a.scatter(ts[-1], x[-1], s=10, color=INK, linewidths=0, zorder=4, clip_on=False, label="end")
        a.set(title=title, xlabel=clock.label, ylabel=f"$x${look.scale.words}" if _leftmost(a, axes) else "")
        a.set(xlim=(float(ts[0].mean()), float(ts[-1].mean())), ylim=(low, high))


def _range(drawn: Iterable[np.ndarray], look: _Look) -> tuple[float, float]:
    """Limits that hold the paths, and where they are known the data and most of the noise."""
    values = np.concatenate([x.ravel() for x in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        raise InvalidInputError("the paths hold no finite states: there is nothing to draw")
    ends = [float(values.min()), float(values.max())]
    if look.density is not None:
        ends += as_density(look.density).box[0]
    if look.density is not None and look.sde is not None:
        end = torch.tensor(look.sde.t_max, dtype=torch.float64)
        noise = float(look.scale.factor(end) * look.sde.sigma(end))
        ends += [-2.2 * noise, 2.2 * noise]
    margin = 0.05 * max(max(ends) - min(ends), 1e-12)
    return min(ends) - margin, max(ends) + margin


@dataclass(frozen=True)
class _Clock:
    """The horizontal axis: t, or where t squeezes the picture to one side the angle of sigma/(alpha s), from 0 to 1."""

    sde: SDE | None
    s: float

    @classmethod
    def chosen(cls, look: _Look) -> _Clock:
        sde, s = look.sde, look.scale.s
        if sde is None:
            return cls(None, s)
        angle = cls(sde, s)
        noise = angle(torch.linspace(sde.t_min, sde.t_max, 1001, dtype=torch.float64))
        share = float(((noise > 0.05) & (noise < 0.95)).double().mean())  # of the time, in which data turns into noise
        return angle if share < 0.25 else cls(None, s)

    def __call__(self, t: Tensor) -> Tensor:
        if self.sde is None:
            return t
        inner = t.clamp(self.sde.t_min, self.sde.t_max)
        angle = torch.atan(self.sde.sigma(inner) / self.sde.alpha(inner) / self.s) / (math.pi / 2)
        return torch.where(t == 0, 0.0, angle)

    def between(self, first: float, last: float, n: int) -> Tensor:
        """n times from first to last, even on this axis."""
        if self.sde is None:
            return torch.linspace(first, last, n, dtype=torch.float64)
        ends = self(torch.tensor([first, last], dtype=torch.float64).clamp_min(self.sde.t_min))
        angle = torch.linspace(float(ends[0]), float(ends[1]), n, dtype=torch.float64)
        return self.sde.time(-torch.log(self.s * torch.tan(angle * (math.pi / 2))))

    @property
    def label(self) -> str:
        return "time $t$" if self.sde is None else r"noise  $\frac{2}{\pi}\,\arctan\,\sigma/(\alpha s)$"


def _marginals(a: Axes, path: Path, look: _Look, clock: _Clock, bounds: tuple[float, float]) -> None:
    """p_t(x), shaded by its square root so that the broad noise shows beside the narrow data."""
    model = look.density
    if isinstance(model, GaussianMixture):
        if look.sde is None:
            raise InvalidInputError(
                "density is a GaussianMixture: p_t behind the paths needs the process; pass sde=, or "
                "MixtureModel(mixture, sde)"
            )
        model = MixtureModel(model, look.sde)
    t = clock.between(float(path.ts.min()), float(path.ts.max()), 241)
    inner = t.clamp(model.sde.t_min, model.sde.t_max)
    x = torch.linspace(*bounds, 301, dtype=torch.float64)
    factor = look.scale.factor(inner)
    log_p = model.log_prob((x[:, None] / factor).reshape(-1, 1), inner.repeat(len(x)))
    p = (log_p.detach().reshape(len(x), len(t)) - factor.log()).exp().numpy()
    shades = PowerNorm(0.5, 0, float(np.quantile(p.max(0), 0.9)))
    a.pcolormesh(clock(t).numpy(), x.numpy(), p, cmap=PALE, norm=shades, shading="gouraud", zorder=0, rasterized=True)
