"""How a training run went: its loss over the steps, and by noise level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..training.history import History
from .paths import array
from .style import FAINT, PALETTE, figure_of, panels, styled

_PIECES = 60  # of the run, whose mean loss is a point of the line


@styled
@checked
def history(run: History, *, ax: Axes | Sequence[Axes] | None = None) -> Figure:
    """Draw what `fit` gave back: the loss of each step with its running mean, and the loss by noise level.

    Args:
        run: the History.
        ax: two Axes to draw on; None: a new figure.

    Returns:
        The Figure.

    Raises:
        InvalidInputError: not a History, or one of no steps.

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.Denoiser(sg.nets.MLP(2, hidden=16), sg.VPSDE())
        >>> run = sg.fit(model, torch.randn(64, 2), steps=5, seed=0, progress=False)
        >>> figure = sg.plot.history(run)
    """
    if not isinstance(run, History):
        raise InvalidInputError(f"got {type(run).__name__}, expected the History that fit gave back")
    loss = array(run.loss)
    if not np.isfinite(loss).any():
        raise InvalidInputError("got a History without a finite loss, expected at least one step")
    left, right = panels(ax, 2, width=3.6, height=2.7)
    steps = np.arange(1, len(loss) + 1)
    left.plot(steps, loss, ".", ms=1.5, color=FAINT, alpha=0.5, label="of a step", rasterized=True)
    pieces = [piece for piece in np.array_split(steps, min(_PIECES, len(steps))) if np.isfinite(loss[piece - 1]).any()]
    means = [np.nanmean(loss[piece - 1]) for piece in pieces]
    left.plot([piece.mean() for piece in pieces], means, color=PALETTE[0], label="mean")
    left.set(xlabel="step", ylabel="loss", title=f"{len(loss)} steps, {len(run.skipped)} skipped")
    if loss[np.isfinite(loss)].min() > 0:
        left.set_yscale("log")
    left.legend()
    levels = run.loss_by_level
    right.stairs(array(levels.loss), array(levels.edges), color=PALETTE[1], lw=1.5)
    right.set(xlabel=r"half log-SNR  $\log(\alpha/\sigma)$: noise to data", ylabel="loss", title="by noise level")
    right.set_ylim(bottom=0)
    return figure_of(left)
