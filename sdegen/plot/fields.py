"""Fields over the plane: the score of a model, and densities, of samples and exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.fft import dctn, idctn
from torch import Tensor

from ..core.arguments import whole
from ..core.conditions import mapped, merged
from ..core.errors import InvalidInputError
from ..core.kinds import checked, told
from ..core.shapes import check_state, flat
from ..distributions.mixture import GaussianMixture
from ..loop.modes import quiet
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..models.exact import MixtureModel
from .densities import (
    Box,
    Density,
    as_density,
    box_of,
    check_time_of,
    event_dim,
    flow_density,
    marginal,
    noised,
    on_grid,
)
from .models import device_of
from .paths import array
from .plane import around, contour_lines, fill, given, inset, plane, squared
from .style import DENSITY, EXACT, INK, SAMPLES, drawing, figure_of, panels, styled

MANY = 5000  # samples in the plane that a histogram needs

# ---- scores


@styled
@checked
def score_field(
    model: ScoreModel,
    t: float,
    *,
    ax: Axes | None = None,
    kind: str = "quiver",
    arrows: int = 21,
    density: bool = True,
    extent: tuple[float, float, float, float] | None = None,
    **cond: Any,
) -> Axes:
    """Draw the score grad log p_t(x) of a model in the plane as arrows over its density.

    The arrows' length is log(1 + |score|/m) with m the median norm, scaled so that the longest fits its cell: the score
    spans orders of magnitude. The density behind them is the model's own where it has log_prob(x, t); else it is
    estimated from the score, as the function whose gradient is nearest to it in least squares.

    Args:
        model: a ScoreModel of events of shape (2,).
        t: the time, in [t_min, t_max].
        ax: Axes to draw on; None: a new figure.
        kind: "quiver" (arrows on a grid) or "stream" (lines along the score).
        arrows: how many along a side.
        density: whether the density is drawn.
        extent: (left, right, bottom, top); None: where the mass is.
        **cond: conditions, passed to the model by name; tensors of one row (1, ...) count for all points.

    Returns:
        The Axes.

    Raises:
        InvalidInputError: a model of other events, a time outside its range, an unknown kind.

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], std=0.3), sg.VPSDE())
        >>> axes = sg.plot.score_field(model, 0.3)
    """
    if kind not in ("quiver", "stream"):
        raise InvalidInputError(f"got kind={kind!r}, expected 'quiver' or 'stream'")
    if isinstance(arrows, bool) or not isinstance(arrows, int) or arrows < 2:
        raise InvalidInputError(f"got arrows={arrows!r}, expected a whole number, at least 2")
    if event_dim(model) != 2:
        raise InvalidInputError(
            f"the model works on points in {event_dim(model)} dimensions: score_field draws the plane"
        )
    at = check_time_of(model, t)
    box = squared(box_of(model, at)) if extent is None else given(extent)
    device = device_of(model)
    cond = merged(cond, score_field, model.condition_names)
    model.check_conditions(cond, 1)
    (a,) = panels(ax, 1, width=3.8, height=3.6)

    def score(x: Tensor) -> Tensor:
        own = mapped(cond, lambda v: v.expand(len(x), *v.shape[1:]))
        with quiet(model):
            return model.score(x.to(device), at, **own).to("cpu", torch.float64)

    if density:
        fill(a, *_log_density(model, at, score, box, known=not cond))
    _arrows(a, *on_grid(score, inset(box, arrows), arrows), kind, 0.92 * (box[0][1] - box[0][0]) / arrows)
    a.set_title(f"score at $t = {at:.3g}$")
    plane(a, box)
    return a


def _arrows(a: Axes, points: Sequence[np.ndarray], score: Tensor, kind: str, cell: float) -> None:
    """A score on a grid of points, in arrows or lines; the longest fits a cell of this width."""
    (x, y), u, v = points, score[..., 0].numpy(), score[..., 1].numpy()
    norm = np.hypot(u, v)
    middle = float(np.median(norm)) or 1.0
    length = np.log1p(norm / middle)
    unit = np.where(norm > 0, length / np.maximum(norm, 1e-300), 0.0) / max(float(length.max()), 1e-300)
    if kind == "quiver":
        a.quiver(
            x, y, cell * unit * u, cell * unit * v, angles="xy", scale_units="xy", scale=1, pivot="mid", color=INK,
            alpha=0.85, width=0.0032, headwidth=3.6, headlength=4.2, headaxislength=3.8, minlength=0.1,
        )  # fmt: skip
    else:
        width = 0.3 + length / max(float(length.max()), 1e-300)
        a.streamplot(x, y, u, v, color=INK, linewidth=width, density=1.2, arrowsize=0.7)


def _log_density(
    model: ScoreModel, t: float, score: Callable[[Tensor], Tensor], box: Box, *, known: bool, n: int = 241
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p_t on a grid up to a constant: the model's own where it is known, or estimated from its score."""
    log_prob: Any = getattr(model, "log_prob", None)
    if known and callable(log_prob):
        with torch.no_grad():
            (x, y), log_p = on_grid(lambda points: log_prob(points, t), box, n)  # type: ignore[arg-type, return-value]
        return x, y, array(log_p)
    (x, y), s = on_grid(score, box, n)
    return x, y, potential(s.numpy(), x[1] - x[0], y[1] - y[0])


def potential(s: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The function on a grid whose differences are nearest to a vector field's, up to a constant: (ny, nx, 2) -> (ny,
    nx).

    Minimises the sum over edges of (phi_j - phi_i - h (s_i + s_j)/2)^2/h^2; the cosine transform diagonalises its
    Laplacian.
    """
    ny, nx = s.shape[:2]
    along = (s[:, 1:, 0] + s[:, :-1, 0]) / (2 * dx)  # edge differences over h^2
    across = (s[1:, :, 1] + s[:-1, :, 1]) / (2 * dy)
    source = np.zeros((ny, nx))
    source[:, 1:] += along
    source[:, :-1] -= along
    source[1:] += across
    source[:-1] -= across
    kx, ky = (2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in (nx, ny))
    laplacian = kx / dx**2 + ky[:, None] / dy**2
    laplacian[0, 0] = 1.0
    modes = dctn(source, norm="ortho") / laplacian
    modes[0, 0] = 0.0
    return np.asarray(idctn(modes, norm="ortho"))


# ---- densities


@styled
@checked
def density(
    what: Tensor | Solution | GaussianMixture | ScoreModel,
    *,
    exact: Any = None,
    t: float | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    kind: str = "auto",
    bins: int | None = None,
    extent: Sequence[float] | None = None,
) -> Axes | Figure:
    """Draw a distribution on the line or in the plane: samples, against the exact density, or a known density itself.

    In the plane samples are a histogram or points, and the exact density contours that enclose 35, 70 and 95 % of its
    mass. On the line they are a histogram under the exact curve; kind="marginals" does that for each coordinate of
    samples in any dimension.

    Args:
        what: samples (B,), (B, 1) or (B, 2), or a Solution, whose end is drawn; or a GaussianMixture; or a ScoreModel,
            by its own log_prob(x, t) if it has one (MixtureModel), else by `sdegen.log_prob` along its flow.
        exact: a GaussianMixture or MixtureModel, drawn over samples.
        t: the time of a model, None: t_min.
        ax: Axes to draw on (one per coordinate for "marginals"); None: a new figure.
        kind: "hist", "scatter" or "marginals" of samples; "density", "log_prob" or "contour" of a known density.
            "auto": "density", and of samples "hist", in the plane "scatter" for fewer than 5000 of them.
        bins: of a histogram, along a side; None: by the number of samples.
        extent: (left, right) or (left, right, bottom, top); None: where the samples or the mass are.

    Returns:
        The Axes, or the Figure of several marginals.

    Raises:
        InvalidInputError: samples in more than two dimensions (but for "marginals"), an unknown kind, something without
            a density.

    Example:
        >>> import sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0], [1.0]], std=0.3)
        >>> axes = sg.plot.density(mixture.sample(500, seed=0), exact=mixture)
    """
    x = what.x if isinstance(what, Solution) else what
    if isinstance(x, Tensor):
        few = x.ndim == 2 and x.shape[1] == 2 and len(x) < MANY and bins is None
        auto = "scatter" if few else "hist"
        return _of_samples(x, exact, t, ax, auto if kind == "auto" else kind, bins=bins, extent=extent)
    if exact is not None:
        raise InvalidInputError("exact= goes with samples; a known density is drawn by itself")
    return _of_density(what, t, ax, "density" if kind == "auto" else kind, extent)


def _of_density(what: Any, t: float | None, ax: Any, kind: str, extent: Sequence[float] | None) -> Axes:
    if kind not in ("density", "log_prob", "contour"):
        raise InvalidInputError(
            f"kind={kind!r}: of a known density expected 'density', 'log_prob' or 'contour'; {kind!r} goes with samples"
        )
    by_flow = isinstance(what, ScoreModel) and not hasattr(what, "log_prob")
    known = flow_density(what, t) if by_flow else as_density(what, t=t, name="what")
    box = _limits(known, extent)
    if known.dim == 1:
        (a,) = panels(ax, 1, width=3.8, height=2.8)
        (x,), log_p = on_grid(known.log_prob, box, known.side)
        y = array(log_p if kind == "log_prob" else log_p.exp())
        a.plot(x, y, color=EXACT)
        if kind != "log_prob":
            a.fill_between(x, y, color=DENSITY(0.3), lw=0)
            a.set_ylim(bottom=0)
        a.set(xlim=box[0], xlabel="$x$", ylabel=r"$\log p(x)$" if kind == "log_prob" else "$p(x)$")
        return a
    (a,) = panels(ax, 1, width=4.2, height=3.6)
    if kind == "contour":
        contour_lines(a, known, box)
    else:
        _, log_p = on_grid(known.log_prob, box, known.side)
        values = array(log_p if kind == "log_prob" else log_p.exp())
        low = max(float(values.min()), float(values.max()) - 12) if kind == "log_prob" else 0.0
        over: tuple[float, float, float, float] = (*box[0], *box[1])
        mesh = a.imshow(values, extent=over, origin="lower", cmap=DENSITY, vmin=low, interpolation="bilinear", zorder=0)
        extend = "min" if low > values.min() else "neither"
        bar = figure_of(a).colorbar(mesh, ax=a, shrink=0.8, aspect=24, pad=0.02, extend=extend)
        bar.set_label(r"$\log p(x)$" if kind == "log_prob" else "$p(x)$")
        bar.outline.set_visible(False)  # type: ignore[operator]
    plane(a, box)
    return a


def _of_samples(
    x: Tensor, exact: Any, t: float | None, ax: Any, kind: str, *, bins: int | None, extent: Sequence[float] | None
) -> Axes | Figure:
    if kind not in ("hist", "scatter", "marginals"):
        raise InvalidInputError(
            f"kind={kind!r}: of samples expected 'hist', 'scatter' or 'marginals'; {kind!r} may go with a known density"
        )
    check_state(x, name="samples")
    points = flat(x).detach().to("cpu", torch.float64)
    if not len(points):
        raise InvalidInputError("there are no samples to draw: the first axis has length 0")
    dim = points.shape[1]
    if x.ndim > 2 or (dim > 2 and kind != "marginals"):
        raise InvalidInputError(
            f"samples have events of shape {tuple(x.shape[1:])}: density draws points in one or two dimensions; pass "
            "two columns as samples[:, :2], or kind='marginals'; for images use image_grid"
        )
    if kind == "marginals" or dim == 1:
        return _marginals(points, exact, t, ax, bins, extent)
    known = None if exact is None else as_density(exact, t=t, name="exact")
    if known is not None and known.dim != 2:
        raise InvalidInputError(f"exact is over {known.dim} dimensions, the samples over 2")
    (a,) = panels(ax, 1, width=3.8, height=3.6)
    box = given(extent) if extent is not None else squared(around(points, known))
    if kind == "hist":
        _histogram(a, points, bins, box)
    else:
        size = float(np.clip(4000 / len(points), 1.0, 14.0))
        opacity = min(0.9, max(0.25, 40 / len(points) ** 0.5))
        a.scatter(*points.T.numpy(), s=size, color=SAMPLES, alpha=opacity, linewidths=0, zorder=1)
    if known is not None:
        line = EXACT if kind == "scatter" else SAMPLES
        contour_lines(a, known, box, color=line)
        dots = Line2D([], [], ls="", marker="o", ms=3.5, color=SAMPLES)
        mark = dots if kind == "scatter" else Patch(color=DENSITY(0.6))
        _legend(a, [mark, Line2D([], [], lw=0.9, color=line)], ["samples", "exact"])
    plane(a, box)
    return a


def _histogram(a: Axes, points: Tensor, bins: int | None, box: Box) -> None:
    """The density of points in the plane, by counting them."""
    own = int(min(120, max(24, 0.8 * len(points) ** 0.5)))
    n = own if bins is None else whole(bins, "bins", least=1, most=2**12)
    counts, x_edges, y_edges = np.histogram2d(*points.T.numpy(), bins=n, range=box)
    area = (x_edges[1] - x_edges[0]) * (y_edges[1] - y_edges[0])
    p, over = counts.T / (len(points) * area), (box[0][0], box[0][1], box[1][0], box[1][1])
    a.imshow(p, extent=over, origin="lower", cmap=DENSITY, interpolation="nearest", vmin=0, zorder=0)


def _marginals(
    points: Tensor, exact: Any, t: float | None, ax: Any, bins: int | None, extent: Sequence[float] | None
) -> Axes | Figure:
    """A histogram per coordinate, under the exact marginal."""
    dim = points.shape[1]
    mixture = None if exact is None else _mixture_at(exact, t)
    if mixture is not None and mixture.dim != dim:
        raise InvalidInputError(f"exact is over {mixture.dim} dimensions, the samples over {dim}")
    axes = panels(ax, dim, width=3.6 if dim == 1 else 2.6, height=2.7 if dim == 1 else 2.3, columns=4)
    for i, a in enumerate(axes):
        known = None if mixture is None else as_density(marginal(mixture, i), name="exact")
        box = around(points[:, i : i + 1], known) if extent is None else given(extent, 1)
        n = bins or int(min(100, max(16, 1.5 * len(points) ** 0.45)))
        values = points[:, i].numpy()
        a.hist(
            values, n, range=box[0], density=True, color=DENSITY(0.4), edgecolor="white", linewidth=0.3, label="samples"
        )
        if known is not None:
            (x,), log_p = on_grid(known.log_prob, box, 801)
            a.plot(x, array(log_p.exp()), color=SAMPLES, lw=1.3, label="exact")
        name = "x" if dim == 1 else f"x_{{{i + 1}}}"
        a.set(xlim=box[0], xlabel=f"${name}$", ylabel=f"$p({name})$" if dim == 1 or i % 4 == 0 else "")
        if known is not None and i == 0:
            _legend(a, *a.get_legend_handles_labels())
    return drawing(axes)


def _legend(a: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the picture, where it hides nothing."""
    a.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1.2, handlelength=1.4
    )


def _mixture_at(exact: Any, t: float | None) -> GaussianMixture:
    """The mixture whose marginals are meant."""
    if isinstance(exact, GaussianMixture) and t is None:
        return exact
    if isinstance(exact, MixtureModel):
        at = check_time_of(exact, exact.sde.t_min if t is None else t)
        return noised(exact.mixture, float(exact.sde.alpha(at)), float(exact.sde.sigma(at)))
    as_density(exact, t=t, name="exact")
    raise InvalidInputError(
        f"got exact={told(exact)}, expected a GaussianMixture or a MixtureModel, whose marginals are known"
    )


def _limits(known: Density, extent: Sequence[float] | None) -> Box:
    if known.dim > 2:
        raise InvalidInputError(
            f"the density is over {known.dim} dimensions: expected one or two; for samples there is kind='marginals'"
        )
    if extent is not None:
        return given(extent, known.dim)
    return known.box if known.dim == 1 else squared(known.box)
