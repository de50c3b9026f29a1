"""How a model is asked: eval mode, no gradients unless asked for, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..core.modes import evaluating
from ..models.base import ScoreModel


@contextmanager
def quiet(model: ScoreModel, *, grad: bool = False) -> Iterator[None]:
    """Eval mode and, unless asked for, no gradients; every module's mode is restored when the last thread is done."""
    with evaluating(model), torch.set_grad_enabled(grad):
        yield


@contextmanager
def bar(progress: bool | None, what: str = "") -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr that takes the fraction done."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda fraction: None
        return
    from tqdm import tqdm

    with tqdm(total=100, desc=what or None, bar_format="{l_bar}{bar}| {elapsed}<{remaining}", leave=False) as line:

        def report(fraction: float) -> None:
            line.update(100 * fraction - line.n)

        yield report
