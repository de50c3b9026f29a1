"""The one training loop."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..errors import InvalidInputError, NonFiniteError
from ..losses import dsm_loss
from ..model import Denoiser, ScoreModel
from ..noise import check_seed
from ..running import bar
from ..shapes import numbers
from .batches import Shuffled, Streamed, batches, statistics
from .history import History, Levels
from .run import Interrupted, Run

_MOST_SKIPPED = 10  # in a row
_LEVELS_EVERY = 8  # steps between notes of the loss by noise level


def fit(
    model: ScoreModel,
    data: Any,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    ema: float = 0.999,
    loss: Callable[..., Tensor] = dsm_loss,
    out: str | os.PathLike | None = None,
    resume: str | bool = "auto",
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callback: Callable[[int, ScoreModel], None] | None = None,
    callback_every: int = 100,
    save_every: int = 1000,
    warmup: int = 100,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    **cond: Any,
) -> History:
    """Train a model in place and leave its averaged weights in it.

    AdamW on the mean of `loss` over the batch; rate lr min(1, (k + 1)/warmup) sqrt(1 - k/steps) at step k; the gradient's norm clipped at `clip`; averages
    theta_bar <- theta_bar + (1 - d)(theta - theta_bar) with d = min(ema, (1 + k)/(10 + k)). What a step does depends on (seed, step) and the weights alone.

    Args:
        model: a Denoiser, or any ScoreModel with parameters.
        data: a tensor (N, *event), a Dataset of x0 or (x0, dict of conditions), or an iterable of batches of either. Never rescaled.
        steps: how many in all, those of a resumed run included.
        batch_size: samples a step (an iterable makes its own batches).
        lr: the highest learning rate.
        ema: the averages' longest memory, 1/(1 - ema) steps; 0: no averages.
        loss: a function like dsm_loss: (model, x0, **cond) -> (B,).
        out: a run folder: checkpoints every `save_every` steps and at the end; run again, it goes on where it stopped.
        resume: "auto": go on where there is a valid checkpoint; True: there must be one; False: there must be none.
        device: where to; None: CUDA if there is one. The model is moved there.
        seed: of the data's order, times and noise; the global generator is left as it was. None: a fresh one, told in the History.
        progress: a bar on stderr; None: where stderr is a terminal.
        callback: called as callback(step, model) every `callback_every` steps and at the end, with the averaged weights in the model, in eval mode.
        warmup, clip, weight_decay: see above.
        **cond: conditions of the data, (N, ...) tensors that go with their sample, or values for all.

    Returns:
        History.

    Raises:
        InvalidInputError: before the first step: empty data, NaN, shapes or conditions that do not fit, numbers out of range.
        NonFiniteError: loss or gradient was not finite in 10 steps in a row; the model keeps the averaged weights from before.
        RunLockedError: another process trains in `out`.
        SystemExit: SIGTERM (143) or SIGINT (130) with `out`: after the step and a checkpoint.

    Source: Kingma & Ba 2015, Loshchilov & Hutter 2019 (AdamW); Ho et al. 2020 (arXiv 2006.11239) for averaged weights.
    """
    _check(model, steps, batch_size, lr, ema, warmup, clip, save_every, callback_every)
    seed = check_seed(seed)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = batches(data, cond, batch_size, seed, place)
    _prepare(model, data, source, place)
    loop = _Loop(model, source, loss, seed, steps, lr, ema, warmup, clip, weight_decay)
    run = None if out is None else Run(out, resume)
    try:
        with Interrupted().listening() if run else _never() as interrupted, bar(progress, "training") as report:
            if run and (found := run.newest()):
                loop.restore(*found)
            while loop.k < steps:
                loop.step()
                report(loop.k / steps)
                last = loop.k == steps
                if callback and (last or loop.k % callback_every == 0):
                    with loop.averaged():
                        callback(loop.k, model)
                if run and (last or interrupted.signal or loop.k % save_every == 0):
                    run.save(loop.k, *loop.kept())
                if interrupted.signal and run:
                    raise SystemExit(128 + interrupted.signal)
        loop.leave_averages()
    finally:
        if run:
            run.close()
    return loop.history()


@contextmanager
def _never() -> Iterator[Interrupted]:
    yield Interrupted()


@dataclass
class _Loop:
    """The state of a run: weights, averages, optimiser, and how far it has come."""

    model: ScoreModel
    source: Shuffled | Streamed
    loss: Callable[..., Tensor]
    seed: int
    steps: int
    lr: float
    ema: float
    warmup: int
    clip: float
    weight_decay: float

    def __post_init__(self) -> None:
        self.k = 0
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.weights]
        self.optimiser = torch.optim.AdamW(self.weights, lr=self.lr, weight_decay=self.weight_decay)
        device = self.weights[0].device
        self.losses = torch.full((self.steps,), math.nan, dtype=torch.float64, device=device)
        self.levels = Levels(self.model.sde, device)
        self.skipped: list[int] = []
        self._time: Tensor | None = None

    def step(self) -> None:
        """One batch, one update; left out where loss or gradient is not finite."""
        k = self.k
        x0, cond = self.source(k)
        rate = self.lr * min(1.0, (k + 1) / max(self.warmup, 1)) * math.sqrt(1 - k / self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        with self._randomness(k), self._watching():
            each = self.loss(self.model, x0, **cond)
            self.optimiser.zero_grad(set_to_none=True)
            each.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.clip, foreach=True)
        if bool(torch.isfinite(norm) & torch.isfinite(each.detach().sum())):
            self.optimiser.step()
            decay = min(self.ema, (1 + k) / (10 + k))
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
            self.losses[k] = each.detach().mean()
            if k % _LEVELS_EVERY == 0 and 2 * k >= self.steps and self._time is not None:
                self.levels.add(self._time, each)
        else:
            self._skip(each)
        self.k += 1

    def _skip(self, each: Tensor) -> None:
        self.skipped.append(self.k)
        bad = (~torch.isfinite(each.detach())).nonzero().flatten().cpu()
        where = f"samples {numbers(bad)} of the batch" if len(bad) else "the gradient, all losses being finite"
        times = "" if self._time is None or not len(bad) else f" at t = {[round(float(t), 4) for t in self._time.expand(len(each))[bad[:8]]]}"
        row = len(self.skipped) >= _MOST_SKIPPED and self.skipped[-_MOST_SKIPPED] == self.k - _MOST_SKIPPED + 1
        message = f"step {self.k}: not finite: {where}{times}"
        if row:
            self.leave_averages()
            raise NonFiniteError(f"{message}; {_MOST_SKIPPED} steps in a row: lower lr, or look at the data and the network there. The averaged weights are kept")
        warnings.warn(f"{message}; the step is left out", RuntimeWarning, stacklevel=4)

    @contextmanager
    def _randomness(self, k: int) -> Iterator[None]:
        """The global generators seeded by (seed, k), and restored."""
        device = self.weights[0].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed((self.seed * 0x9E3779B1 + k) % 2**63)
            yield

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Note the times that the loss asks the model at."""

        def note(module: Any, args: tuple, kwargs: dict) -> None:
            t = args[1] if len(args) > 1 else kwargs.get("t")
            self._time = torch.as_tensor(t).detach()

        handle = self.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the model, in eval mode; then the raw ones again."""
        raw = [p.detach().clone() for p in self.weights]
        self.leave_averages()
        self.model.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, raw)

    def leave_averages(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.averages)
        self.model.eval()

    def history(self) -> History:
        return History(self.losses.cpu(), self.levels.means(), self.levels.edges, tuple(self.skipped), self.seed)

    # ---- checkpoints

    def kept(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(tensors, state) from which `restore` goes on."""
        if not isinstance(self.model, Denoiser):
            raise InvalidInputError(f"out= keeps a Denoiser, not a {type(self.model).__name__}: leave out= away")
        with self.averaged():
            model = {name: v.clone() for name, v in checkpoint.model_tensors(self.model).items()}
        optimiser = {
            f"{i}.{name}": torch.as_tensor(v) for i, own in self.optimiser.state_dict()["state"].items() for name, v in own.items()
        }
        tensors = {
            "model": model,
            "raw": {str(i): p.detach() for i, p in enumerate(self.weights)},
            "optimiser": optimiser,
            "history": {"loss": self.losses[: self.k], "levels": self.levels.sums},
        }
        return tensors, {"model": checkpoint.describe(self.model), "step": self.k, "seed": self.seed, "skipped": self.skipped}

    def restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.k, self.skipped = min(int(state["step"]), self.steps), list(state["skipped"])
        if isinstance(self.model, Denoiser):
            checkpoint.set_weights(self.model.net, tensors["model"])
        with torch.no_grad():
            torch._foreach_copy_(self.averages, self.weights)
            for i, p in enumerate(self.weights):
                p.copy_(tensors["raw"][str(i)])
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors["optimiser"].items():
            i, entry = name.split(".", 1)
            kept.setdefault(int(i), {})[entry] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": kept})
        self.losses[: self.k] = tensors["history"]["loss"][: self.k].to(self.losses.device)
        self.levels.sums.copy_(tensors["history"]["levels"])
        if self.seed != state["seed"]:
            self.seed = int(state["seed"])
            if isinstance(self.source, Shuffled):
                self.source.seed = self.seed


def _prepare(model: ScoreModel, data: Any, source: Shuffled | Streamed, device: torch.device) -> None:
    """Move the model, measure what it does not know, and try one batch's conditions."""
    x0, cond = source(0)
    if model.event_shape is not None and tuple(x0.shape[1:]) != model.event_shape:
        raise InvalidInputError(f"data have events of shape {tuple(x0.shape[1:])}, but the model works on {model.event_shape}")
    if not x0.is_floating_point():
        raise InvalidInputError(f"data have dtype {x0.dtype}: wanted a floating one, scaled as you want it, such as images in [-1, 1]")
    model.check_conditions(cond, len(x0))
    if model.data_mean is None or model.data_std is None:
        mean, std = statistics(data, source)
        if not float(std) > 0:
            raise InvalidInputError("all data are the same: there is nothing to learn; pass data with some variation")
        model.set_statistics(mean if model.data_mean is None else model.data_mean, std if model.data_std is None else model.data_std)
    model.event_shape = tuple(x0.shape[1:])
    model.to(device)


def _check(model: Any, steps: int, batch_size: int, lr: float, ema: float, warmup: int, clip: float, save_every: int, callback_every: int) -> None:
    if not isinstance(model, ScoreModel):
        raise InvalidInputError(f"model is {type(model).__name__}: wrap a network as Denoiser(net, sde)")
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidInputError("the model has no parameters to train: an exact model needs no fit")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("save_every", save_every), ("callback_every", callback_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name}={value!r}: wanted a positive integer")
    if not (0 < lr < math.inf and 0 <= ema < 1 and warmup >= 0 and clip > 0):
        raise InvalidInputError(f"lr={lr}, ema={ema}, warmup={warmup}, clip={clip}: wanted lr > 0, 0 <= ema < 1, warmup >= 0, clip > 0")
