"""What is hurt: a short run, in a process of its own that can be killed; and a row of the table that tells of it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdegen as sg
from sdegen import storage

FORK = multiprocessing.get_context("fork")
STEPS, SAVE_EVERY = 40, 4


class Row(NamedTuple):
    """A line of the table: the fault, what the user gets, tries, broken promises, and what else was seen."""

    fault: str
    promise: str
    tries: int
    broken: int
    seen: str = ""


# ---- a run to be hurt


def points() -> Tensor:
    return torch.randn(100, 2, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.2


def fresh_model(seed: int = 0) -> sg.Denoiser:
    torch.manual_seed(seed)
    return sg.Denoiser(sg.nets.MLP(2, hidden=16, layers=1, embedding=8), sg.VPSDE())


def train(out: Path | None, steps: int = STEPS, callback: Callable[..., Any] | None = None, **words: Any) -> Tensor:
    """A short run with everything on: bf16, averages, batches in parts that end in mid-pass. The weights, in a row."""
    model = fresh_model()
    words = {"precision": "bf16", "accumulate": 2, "save_every": SAVE_EVERY, **words}
    how: dict[str, Any] = {"batch_size": 16, "seed": 0, "progress": False, "device": "cpu"}
    sg.fit(model, points(), steps=steps, out=out, callback=callback, callback_every=1, **how, **words)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@functools.cache
def reference(steps: int = STEPS) -> Tensor:
    """What a run that nobody disturbs ends with."""
    return train(None, steps)


class Victim:
    """A process that does something, to be killed; it tells how far it is."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.at = FORK.Value("q", -1)
        self.process = FORK.Process(target=self._run, args=(work, arguments))
        self.process.start()

    def _run(self, work: Callable[..., Any], arguments: tuple) -> None:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nothing:
            sys.stdout = sys.stderr = nothing
            work(self.tell, *arguments)

    def tell(self, at: int, *_: Any) -> None:
        self.at.value = at

    def reach(self, at: int) -> None:
        while self.at.value < at and self.process.is_alive():
            time.sleep(0.0005)

    def end(self, number: int | None = None, seconds: float = 60) -> int | None:
        """Its exit code, after a signal; None if it hangs."""
        if number is not None and self.process.is_alive():
            os.kill(self.process.pid or 0, number)
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            return None
        return self.process.exitcode


def trained_by(tell: Callable[..., None], out: Path, steps: int, words: dict[str, Any] | None = None) -> None:
    train(out, steps, tell, **words or {})


def newest_step(out: Path) -> int:
    """Of the newest valid checkpoint, 0 if there is none; damage raises."""
    found = storage.newest(out, ["model", "training"])
    return 0 if found is None else found[1]["training"]["step"]
