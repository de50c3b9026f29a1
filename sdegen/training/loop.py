"""The training loop: there is one, and scripts, demos and users all go through it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .. import checkpoint
from ..errors import IncompatibleCheckpointError, InvalidInputError
from ..losses import dsm_loss
from ..model import Denoiser, ScoreModel
from ..noise import check_seed
from ..running import quiet
from ..shapes import as_time, check_state
from .batches import Batch, Batches, batches
from .draws import derived_seed, own_draws, seed_draws
from .ema import Average
from .folder import Found, Interrupts, RunFolder
from .history import History, Recorder, Step
from .options import Options

_WAIT_STEPS, _WAIT_SECONDS = 64, 0.5  # how many steps, and how long, are left unevaluated
_LOG_STEPS = 50  # between rows of the metrics


def fit(
    model: ScoreModel,
    data: Any,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    ema: float | None = 0.999,
    loss: Callable[..., Tensor] = dsm_loss,
    out: str | os.PathLike | None = None,
    resume: str | bool = "auto",
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callback: Callable[[int, ScoreModel, History], Any] | None = None,
    schedule: str = "cosine",
    warmup: int | None = None,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    callback_every: int | None = None,
    save_every: int | None = None,
    **cond: Any,
) -> History:
    """Train a model in place, on CUDA if there is one, and leave the averaged weights in it.

    AdamW on the mean of `loss` over batches from shuffled passes through the data. The gradient's norm is clipped, the
    learning rate rises over the warm-up and then follows its schedule, the weights are averaged. Data are taken as they
    are. Where the model does not know them, its statistics are measured: `data_mean`, event-shaped, and `data_std`, one
    number, the root mean square distance of the elements from it (of all rows of a tensor, of 4096 samples of a Dataset
    or DataLoader, of a generator's first batch).

    The seed decides the order of the data and, through torch's global generator, times, noise and dropout of each step;
    afterwards that generator is as it was. A step whose loss or gradient is not finite is skipped, with a warning that
    names times and samples.

    With `out`, a folder gets checkpoints (`load(out)` is the averaged model of the newest), `metrics.csv` and a lock.
    Run again, it goes on from the newest valid checkpoint, and on the CPU ends with the same bits as a run that was
    never interrupted. SIGTERM and SIGINT finish the step, save, and exit with 143 or 130.

    Args:
        model: a ScoreModel with parameters, such as a Denoiser (with `out`: a Denoiser).
        data: a tensor (N, *event); what can be indexed (a Dataset, a list), holding samples x0 or (x0, dict of
            conditions); or what can only be iterated (a DataLoader, a generator), holding batches of either.
        steps: of the optimiser, in all: a resumed run makes those that are left.
        batch_size: samples a step; what is iterated has its own.
        lr: the largest learning rate.
        ema: decay of the weights' average per step, after a warm-up; None: the last weights.
        loss: a function like `dsm_loss`; its options as functools.partial(dsm_loss, weight="min-snr").
        out: the run folder.
        resume: "auto", or False to refuse a folder that has checkpoints.
        device: None: CUDA if there is one. The model stays there.
        seed: None: one from torch's global generator, told in the history.
        progress: a bar on stderr; None: if that is a terminal.
        callback: called as callback(step, model, history), step counting from 1, with the averaged weights in the model
            and in eval mode. What it draws does not touch the run.
        schedule: of the learning rate: "cosine" (to 0 at the last step) or "constant".
        warmup: steps; None: a tenth of all, at most 500.
        clip: the largest norm of the gradient; None: any.
        weight_decay: as in AdamW.
        callback_every: steps; None: a hundredth of all. The last step always.
        save_every: steps; None: two minutes. The last step always.
        **cond: conditions for the loss, by name: tensors have N rows and follow their samples, all else goes as it is.

    Returns:
        The `History`.

    Raises:
        InvalidInputError: data, conditions or options that cannot work, before the network is called.
        NonFiniteError: ten steps in a row were not finite; the model has the averaged weights from before.
        RunLockedError: another process uses the folder.
        CheckpointError: a checkpoint cannot be written, none in the folder is sound, or they are of another run.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101) for AdamW, 2017 (arXiv 1608.03983) for the schedule.
    """
    options = Options(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        loss=loss,
        resume=resume,
        progress=progress,
        callback=callback,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        weight_decay=weight_decay,
        callback_every=callback_every,
        save_every=save_every,
    )
    source = batches(data, cond, batch_size)
    _check_model(model, source.first, saves=out is not None)
    place = _device(device)
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(RunFolder(out))
        found = None if folder is None else folder.resumable(resume)
        seed = _seed_of(seed, found)
        _learn_about_data(model, source, found)
        run = _Run(model.to(place), options, seed)
        stack.enter_context(run.training())
        if found:
            run.restore(*found)
        _drive(run, source, folder, options)
        return run.history()


def _drive(run: _Run, source: Batches, folder: RunFolder | None, options: Options) -> None:
    """Make the steps that are left, and all that happens between them."""
    from tqdm import tqdm  # where it is needed: importing it takes time

    interrupts = Interrupts()
    hidden = None if options.progress is None else not options.progress
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=options.steps, initial=run.step, disable=hidden, desc="fit", unit="step"))
        if folder is not None:
            folder.rewind(run.step)
            stack.enter_context(interrupts)
        saved = started = time.monotonic()
        for batch in islice(source.from_step(run.step, run.seed), options.steps - run.step):
            run.advance(batch)
            stops, shows = interrupts.number is not None, options.shows(run.step)
            saves = folder is not None and (stops or options.saves(run.step, time.monotonic() - saved))
            if shows or saves or run.step == options.steps or run.has_waited():
                run.evaluate()
                bar.update(run.step - bar.n)
                bar.set_postfix(loss=f"{run.recent_loss():.4g}", refresh=False)
                if folder is not None:
                    folder.log(run.rows(time.monotonic() - started))
            if shows:
                run.show()
            if folder is not None and saves:
                folder.save(run.step, *run.checkpoint())
                saved = time.monotonic()
            if stops:
                break
    if interrupts.number is not None:
        raise SystemExit(128 + interrupts.number)


class _Run:
    """Everything that a step changes."""

    def __init__(self, model: ScoreModel, options: Options, seed: int) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.model, self.options, self.seed = model, options, seed
        self.names, self.parameters = list(named), list(named.values())
        self.device = self.parameters[0].device
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True
        )
        self.clip = math.inf if options.clip is None else options.clip
        self.average = Average(self.parameters, options.ema or 0.0)
        self.recorder = Recorder(model.sde)
        self.step = 0  # how many are done
        self._first_draw = derived_seed(seed, "draws")
        self._asked: Tensor | None = None  # the times of the model's first call in this step
        self._evaluated = time.monotonic()
        self._logged = 0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training mode; afterwards modes and generators as they were, and the averages in the model."""
        modes = {module: module.training for module in self.model.modules()}
        hook = self.model.register_forward_pre_hook(self._note_time, with_kwargs=True)
        try:
            with own_draws(self.device):
                self.model.train()
                yield
        finally:
            hook.remove()
            self.average.settle()
            for module, mode in modes.items():
                module.training = mode

    def advance(self, batch: Batch) -> None:
        """One step of the optimiser; if loss or gradient is not finite, it changes no weight."""
        x0 = batch.x0.to(self.device, non_blocking=True)
        cond = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.cond.items()}
        self._asked = None
        seed_draws(self._first_draw + self.step, self.device)
        losses = self.options.loss(self.model, x0, **cond)
        _check_losses(losses, len(x0))
        mean = losses.mean()
        self.optimiser.zero_grad()
        mean.backward()
        norm = clip_grad_norm_(self.parameters, self.clip)
        failed = ((norm + mean.detach()) * 0 != 0).float()  # NaN or infinity, not waited for
        self.optimiser.found_inf = failed  # type: ignore  # with it the fused AdamW leaves weights and moments alone
        self.optimiser.param_groups[0]["lr"] = self.options.rate(self.step)
        self.optimiser.step()
        self.average.update(self.step)
        self.recorder.add(Step(losses.detach(), self._asked, mean.detach(), norm, failed, batch.numbers))
        self.step += 1

    def _note_time(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._asked is None:
            self._asked = as_time(args[1] if len(args) > 1 else kwargs["t"]).detach()

    # ---- what is known of the steps

    def has_waited(self) -> bool:
        """Whether it is time to evaluate."""
        return len(self.recorder) >= _WAIT_STEPS or time.monotonic() > self._evaluated + _WAIT_SECONDS

    def evaluate(self) -> None:
        self.recorder.evaluate(self.seed)
        self._evaluated = time.monotonic()

    def recent_loss(self) -> float:
        return _mean(self.recorder.loss[-_LOG_STEPS:])

    def history(self) -> History:
        return self.recorder.history(self.seed)

    def show(self) -> None:
        """Call the callback with the averaged model."""
        with self.average.in_place(), own_draws(self.device), quiet(self.model):
            self.options.callback(self.step, self.model, self.history())  # type: ignore[misc]

    def rows(self, seconds: float) -> list[dict[str, Any]]:
        """The metrics since the last rows: one for every so many steps, and one for the last."""
        ends = list(range(self._logged + _LOG_STEPS, self.step + 1, _LOG_STEPS))
        if self.step == self.options.steps and self.step % _LOG_STEPS:
            ends.append(self.step)
        starts = [self._logged, *ends]
        self._logged = starts[-1]
        return [
            {
                "step": end,
                "loss": _mean(self.recorder.loss[start:end]),
                "gradient_norm": self.recorder.gradient_norm[end - 1],
                "lr": self.options.rate(end - 1),
                "skipped": sum(i < end for i in self.recorder.skipped),
                "seconds": round(seconds, 3),
            }
            for start, end in zip(starts, ends, strict=False)
        ]

    # ---- checkpoints

    def checkpoint(self) -> Found:
        """Tensors and state: "model" with the averaged weights, as `load` reads it, and "training" with the rest."""
        with self.average.in_place():
            model = checkpoint.model_tensors(_saveable(self.model))
        training = self.recorder.tensors()
        for name, p in zip(self.names, self.parameters, strict=True):
            own = {"weight": p, **self.optimiser.state[p]}
            training |= {f"{key}.{name}": value for key, value in own.items()}
        state = {"step": self.step, "seed": self.seed, "failures": self.recorder.failures}
        description = checkpoint.describe(_saveable(self.model))
        return {"model": model, "training": training}, {"model": description, "training": state}

    @torch.no_grad()
    def restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Raises:
            InvalidInputError: it is beyond the last step.
            IncompatibleCheckpointError: it does not have what this run needs.
        """
        own, progress = tensors["training"], state["training"]
        if progress["step"] > self.options.steps:
            raise InvalidInputError(
                f"the run in this folder has made {progress['step']} steps, more than steps={self.options.steps}: "
                "pass more, or load the model"
            )
        try:
            checkpoint.set_weights(_saveable(self.model).net, tensors["model"])
            for name, p, average in zip(self.names, self.parameters, self.average.values, strict=True):
                average.copy_(p)
                p.copy_(own[f"weight.{name}"])
                moments = {key: own.get(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimiser.state[p] = {k: v.to(self.device) for k, v in moments.items() if v is not None}
            self.recorder.restore(own, progress["failures"])
        except (KeyError, RuntimeError) as error:
            raise IncompatibleCheckpointError(f"the checkpoint does not fit this run: {error!r}") from error
        self.step = progress["step"]
        self._logged = self.step // _LOG_STEPS * _LOG_STEPS


# ---- before the first step


def _check_model(model: ScoreModel, first: Batch, *, saves: bool) -> None:
    if not isinstance(model, ScoreModel):
        raise InvalidInputError(f"model is a {type(model).__name__}: wrap a network as Denoiser(net, sde)")
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidInputError(f"this {type(model).__name__} has no weights that ask for gradients: nothing to train")
    check_state(first.x0, name="data", event_shape=model.event_shape)
    model.check_conditions(first.cond, len(first.x0))
    if saves:
        checkpoint.describe(_saveable(model))


def _saveable(model: ScoreModel) -> Denoiser:
    if not isinstance(model, Denoiser):
        raise InvalidInputError(f"out= keeps a Denoiser, not a {type(model).__name__}: train the one inside it")
    return model


def _device(device: torch.device | str | None) -> torch.device:
    try:
        wanted = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device={device!r}: wanted 'cpu', 'cuda', 'cuda:1', ...") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device={device!r}, but there is no CUDA device here: use device='cpu' or None")
    return wanted


def _seed_of(seed: int | None, found: Found | None) -> int:
    """The seed given, the one of the run that goes on, or a fresh one."""
    if not found:
        return check_seed(seed)
    theirs = found[1]["training"]["seed"]
    if seed is not None and seed != theirs:
        raise IncompatibleCheckpointError(
            f"the run in this folder has seed {theirs}, not {seed}: leave seed out to go on, or pass another out="
        )
    return theirs


def _learn_about_data(model: ScoreModel, source: Batches, found: Found | None) -> None:
    """Event shape, mean and standard deviation: those of the checkpoint, else those known, else measured."""
    if model.event_shape is None:
        model.event_shape = tuple(source.first.x0.shape[1:])
    mean, std = model.data_mean, model.data_std
    if found:
        tensors, state = found
        checkpoint.check_same(_saveable(model), state["model"])
        mean, std = (tensors["model"].get(name) for name in ("data_mean", "data_std"))
    elif mean is None or std is None:
        measured_mean, measured_std = source.statistics()
        mean = measured_mean if mean is None else mean
        std = measured_std or None if std is None else std  # None where all samples are the same
    model.set_statistics(mean, std)


def _check_losses(losses: Any, batch: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (batch,):
        came = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InvalidInputError(f"loss returned {came} for {batch} samples: wanted one number per sample, ({batch},)")
    if not losses.requires_grad:
        raise InvalidInputError("the loss does not depend on the model's weights: it must call the model it is given")


def _mean(values: Any) -> float:
    """The mean of those that are not NaN."""
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else math.nan
