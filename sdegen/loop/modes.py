"""How a model is asked: eval mode, no gradients unless asked for, a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..core.arguments import flag
from ..core.modes import evaluating
from ..core.progress import is_shown, progress_bar


@contextmanager
def quiet(model: nn.Module, *, grad: bool = False) -> Iterator[None]:
    """Eval mode and, unless asked for, no gradients; every module's mode is restored when the last thread is done."""
    with evaluating(model), torch.set_grad_enabled(bool(flag(grad, "grad"))):
        yield


def silent(fraction: float) -> None:
    """Nobody is told."""


@contextmanager
def bar(progress: bool | None, what: str = "") -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr that takes the fraction done."""
    if not is_shown(flag(progress, "progress", none=True)):
        yield silent
        return
    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with progress_bar(True, total=100, desc=what or None, bar_format=layout, leave=False) as line:
        yield lambda fraction: line.update(100 * fraction - line.n)
