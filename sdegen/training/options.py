"""How a run is made: the options of `fit`, checked before anything happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import modes
from ..core.errors import InvalidInputError
from ..core.kinds import Kind, Unfit, check_places, kind_of, take, takes
from .ema import LARGEST_WIDTH
from .statistics import WISHES

# Factors on the learning rate, of the part of the run that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
}

# What networks compute in, under torch.autocast; weights, gradients and the optimiser stay as they are.
PRECISIONS: dict[str, torch.dtype | None] = {"full": None, **modes.PRECISIONS}

STRATEGIES = ("ddp", "fsdp")  # of several processes

_LR = 2e-3  # of fit's own optimiser, unless said otherwise
_SAVE_SECONDS = 120.0  # between checkpoints where no number of steps is given
_SNAPSHOTS = 32  # of the averages, in a run


def _as_loss(value: Any) -> Any:
    if not callable(value):
        raise Unfit
    check_places(value, 2, named=True)  # (model, x0), conditions by name
    return value


_LOSS = Kind("a function like dsm_loss (its options by functools.partial)", _as_loss)

_CALLBACK = kind_of(Callable[[Any, Any, Any], Any] | None)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `fit` that are numbers, names and functions; see there.

    Raises:
        InvalidInputError: one that cannot work.
    """

    steps: int
    batch_size: int
    lr: float
    ema: float | Sequence[float] | None
    loss: Callable[..., Tensor]
    resume: str | bool
    progress: bool | None
    callback: Callable[..., Any] | None
    schedule: str
    warmup: int | None
    clip: float | None
    weight_decay: float
    callback_every: int | None
    save_every: int | None
    accumulate: int
    precision: str
    tensorboard: bool
    statistics: str | None = None
    strategy: str | None = None
    workers: int = 0
    optimizer: Callable[..., Any] | None = None
    lr_scheduler: Callable[..., Any] | None = None
    logger: Any = None

    def __post_init__(self) -> None:
        self._check(_is_count, "a whole number, at least 1", "steps", "batch_size", "accumulate")
        self._check(_is_count, "a whole number of steps, at least 1", "callback_every", "save_every", none=True)
        self._check(lambda v: _is_count(v + 1), "a whole number of steps", "warmup", none=True)
        take(self.callback, "callback", _CALLBACK)
        self._check(lambda v: v > 0, "a positive number such as 1e-3", "lr")
        self._check(lambda v: v > 0, "a positive norm such as 1.0", "clip", none=True)
        self._check(
            lambda v: _are_widths(v) if isinstance(v, tuple | list) else 0 <= v < 1,
            "a decay in [0, 1) such as 0.999, or widths below 0.288 such as (0.05, 0.1)",
            "ema",
            none=True,
        )
        self._check(lambda v: v >= 0, "a number, at least 0", "weight_decay")
        take(self.loss, "loss", _LOSS)
        self._check(
            callable,
            "a function that makes one of weights, as lambda weights: torch.optim.SGD(weights, lr=0.1)",
            "optimizer",
            none=True,
        )
        self._check(callable, "a function that makes one of an optimizer", "lr_scheduler", none=True)
        self._check(lambda v: takes(v.log, 2), "an object with a method log(values, step)", "logger", none=True)
        self._check(lambda v: v in SCHEDULES, " or ".join(map(repr, SCHEDULES)), "schedule")
        self._check(lambda v: v in ("auto", True, False), "'auto', True or False", "resume")
        self._check(lambda v: v in PRECISIONS, " or ".join(map(repr, PRECISIONS)), "precision")
        self._check(lambda v: v in (True, False), "True or False", "progress", none=True)
        self._check(lambda v: v in (True, False), "True or False", "tensorboard")
        self._check(lambda v: v in WISHES, " or ".join(map(repr, WISHES)), "statistics", none=True)
        self._check(lambda v: _is_count(v + 1), "a whole number of processes", "workers", none=True)
        self._check(lambda v: v in STRATEGIES, " or ".join(map(repr, STRATEGIES)), "strategy", none=True)
        if self.strategy == "fsdp":
            self._check(lambda v: v != "fp16", "'bf16' or 'full' beside strategy='fsdp'", "precision")
        if self.optimizer is not None:
            self._check_unused("optimizer", "give it to the optimizer", lr=_LR, weight_decay=0.0)
        if self.lr_scheduler is not None:
            self._check_unused("lr_scheduler", "the scheduler alone decides", warmup=None, schedule="cosine")

    def _check(self, fits: Callable[[Any], bool], expected: str, *names: str, none: bool = False) -> None:
        for name in names:
            value = getattr(self, name)
            if none and value is None:
                continue
            try:
                good = fits(value) and not (isinstance(value, float) and not math.isfinite(value))
            except (TypeError, ValueError, RuntimeError, AttributeError):
                good = False
            if not good:
                raise InvalidInputError(f"got {name}={value!r}, expected {expected}{', or None' * none}")

    def _check_unused(self, by: str, cure: str, **unused: Any) -> None:
        """Raise on an option that another one takes the place of."""
        for name, default in unused.items():
            if getattr(self, name) != default:
                raise InvalidInputError(
                    f"got {name}={getattr(self, name)!r} beside {by}=, expected one of them: {cure}"
                )

    def rate(self, n: int, peak: float | None = None) -> float:
        """The learning rate of step n = 0, 1, ...: lr min(1, (n + 1)/warmup) schedule(n/steps), lr or another peak."""
        warmup = min(500, self.steps // 10) if self.warmup is None else self.warmup
        return (
            (self.lr if peak is None else peak)
            * min(1.0, (n + 1) / max(warmup, 1))
            * SCHEDULES[self.schedule](n / self.steps)
        )

    @property
    def widths(self) -> tuple[float, ...]:
        """Of the power-function averages, () where the average is exponential."""
        return tuple(self.ema) if isinstance(self.ema, Sequence) else ()

    def shows(self, n: int) -> bool:
        """Whether the callback is due after n steps: where nobody said, at first after 1, 2, 4, 8, ... steps."""
        every = self.callback_every or max(1, self.steps // 100)
        early = self.callback_every is None and n < every and n.bit_count() == 1
        return self.callback is not None and (n % every == 0 or n == self.steps or early)

    def keeps_averages(self, n: int) -> bool:
        """Whether a snapshot of the averages is due after n steps."""
        every = max(1, self.steps // _SNAPSHOTS)
        return bool(self.widths) and (n % every == 0 or n == self.steps)

    def acts(self, n: int) -> bool:
        """Whether anything but a checkpoint is due after n steps."""
        return n == self.steps or self.shows(n) or self.keeps_averages(n)

    def saves(self, n: int, seconds: float) -> bool:
        """Whether a checkpoint is due after n steps, so many seconds after the last."""
        return n == self.steps or (n % self.save_every == 0 if self.save_every else seconds > _SAVE_SECONDS)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_widths(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(0 < width < LARGEST_WIDTH for width in values)
