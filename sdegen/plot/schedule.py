"""Processes against time: alpha, sigma, half the log signal-to-noise ratio, and g."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..models.base import ScoreModel
from ..processes import SDE
from .paths import array
from .style import colour, drawing, figure_of, panels, styled

QUANTITIES = {
    "alpha": r"$\alpha$  (factor on the data)",
    "sigma": r"$\sigma$  (noise)",
    "half_log_snr": r"$\lambda = \log\,\alpha/\sigma$",
    "diffusion": r"$g$  (diffusion)",
    "drift": r"$f$  (drift)",
}
STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))


@styled
@checked
def schedule(
    sde: SDE | ScoreModel | Sequence[SDE] | Mapping[str, SDE],
    *,
    ax: Axes | Sequence[Axes] | None = None,
    quantities: str | Sequence[str] = ("alpha", "sigma", "half_log_snr", "diffusion"),
) -> Axes | Figure:
    """Draw what processes do over time, a panel per quantity, a line per process.

    Time is t where all processes end at about the same t_max, else t/t_max. A scale is logarithmic where one process
    dwarfs the others.

    Args:
        sde: a process, a list of them, or a dict from names to them; a ScoreModel stands for its process.
        ax: Axes to draw on, one per quantity; None: a new figure.
        quantities: of "alpha", "sigma", "half_log_snr", "diffusion" (g), "drift" (f).

    Returns:
        The Figure, or the Axes where one quantity is asked for.

    Raises:
        InvalidInputError: not processes, an unknown quantity.

    Example:
        >>> import sdegen as sg
        >>> figure = sg.plot.schedule([sg.VPSDE(), sg.CosineSDE()])
    """
    names = [quantities] if isinstance(quantities, str) else list(quantities)
    unknown = [name for name in names if name not in QUANTITIES]
    if unknown or not names:
        raise InvalidInputError(f"got quantities={quantities!r}, expected some of {', '.join(map(repr, QUANTITIES))}")
    processes = _named(sde)
    ends = [p.t_max for p in processes.values()]
    together = max(ends) <= 1.02 * min(ends)
    axes = panels(ax, len(names), width=2.7, height=2.5)
    for a, name in zip(axes, names):
        curves = []
        for i, (label, process) in enumerate(processes.items()):
            t = _times(process)
            y = array(process.drift_coefficient(t) if name == "drift" else getattr(process, name)(t))
            x = t.numpy() if together else t.numpy() / process.t_max
            a.plot(x, y, color=colour(i), ls=STYLES[i % len(STYLES)], label=label)
            curves.append(y)
        a.set(title=QUANTITIES[name], xlabel="$t$" if together else r"$t\,/\,t_{\max}$")
        a.set_xlim(0, max(ends) if together else 1)
        if name in ("sigma", "diffusion") and _wide(curves):
            a.set_yscale("log")
            a.yaxis.set_major_locator(LogLocator(numticks=6))
        elif name in ("alpha", "sigma", "diffusion"):
            a.set_ylim(bottom=0)
    if len(processes) > 1 or isinstance(sde, Mapping):
        if ax is None:
            handles, labels = axes[0].get_legend_handles_labels()
            columns = min(len(labels), max(1, int(2.7 * len(axes) / 1.6)))
            figure_of(axes[0]).legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.4)
        else:
            axes[0].legend(handlelength=2.4)
    elif ax is None and len(axes) > 1:
        figure_of(axes[0]).suptitle(next(iter(processes)), fontsize=9)
    return drawing(axes)


def _named(sde: Any) -> dict[str, SDE]:
    """Processes by what the legend calls them."""
    found: dict[str, Any]
    if isinstance(sde, Mapping):
        found = {str(name): p.sde if isinstance(p, ScoreModel) else p for name, p in sde.items()}
    else:
        items = list(sde) if isinstance(sde, Sequence) and not isinstance(sde, str) else [sde]
        items = [p.sde if isinstance(p, ScoreModel) else p for p in items]
        short = [type(p).__name__ for p in items]
        labels = [repr(p) if short.count(name) > 1 or len(items) == 1 else name for p, name in zip(items, short)]
        found = {
            label if labels.count(label) == 1 else f"{label} ({i + 1})": p
            for i, (label, p) in enumerate(zip(labels, items))
        }
    if not found:
        raise InvalidInputError("there are no processes to draw: pass one such as VPSDE(), a list or a dict of them")
    for p in found.values():
        if not isinstance(p, SDE):
            raise InvalidInputError(
                f"schedule takes a process such as VPSDE(), a list or a dict of them; got {type(p).__name__}"
            )
    return found


def _times(sde: SDE) -> torch.Tensor:
    """Times of [t_min, t_max], dense near both ends, where schedules turn."""
    u = torch.linspace(0, 1, 801, dtype=torch.float64)
    u = u**2 * (3 - 2 * u)
    return (sde.t_min + (sde.t_max - sde.t_min) * u).clamp(sde.t_min, sde.t_max)


def _wide(curves: Sequence[np.ndarray]) -> bool:
    """Whether a linear scale would press some of the curves flat."""
    tops = [float(c[np.isfinite(c)].max(initial=0.0)) for c in curves]
    middle = [float(np.median(c)) for c in curves]
    return max(tops) > 8 * max(min(tops), 1e-300) or max(t / max(m, 1e-300) for t, m in zip(tops, middle)) > 20
