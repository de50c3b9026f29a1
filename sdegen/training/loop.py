"""The training loop: there is one, and scripts, demos and users all go through it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .. import storage
from ..core.conditions import mapped, merged
from ..core.errors import IncompatibleCheckpointError, InvalidInputError
from ..core.shapes import as_time, check_state
from ..loop.modes import quiet
from ..models.base import ScoreModel
from ..models.denoiser import Denoiser
from ..noise.white import check_seed
from .batches import Batch, Batches, batches
from .draws import Draws, derived_seed, own_draws, seed_draws
from .ema import Average, power_function
from .folder import Found, Interrupts, RunFolder
from .history import History, Recorder, Step
from .logs import Logs
from .losses import dsm_loss
from .objective import Objective
from .options import PRECISIONS, Options
from .team import LostProcessError, Team, local_device, team

_WAIT_STEPS, _WAIT_SECONDS = 64, 0.5  # how many steps, and how long, are left unevaluated
_LOG_STEPS = 50  # between rows of the metrics
_PATIENCE = 1.0  # seconds in which a signal may reach one of several processes twice


def fit(
    model: ScoreModel,
    data: Any,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    ema: float | Sequence[float] | None = 0.999,
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
    accumulate: int = 1,
    precision: str = "full",
    tensorboard: bool = False,
    **cond: Any,
) -> History:
    """Train a model in place, on CUDA if there is one, and leave the averaged weights in it.

    AdamW on the mean of `loss` over batches from shuffled passes through the data. The gradient's norm is clipped, the
    learning rate rises over the warm-up and then follows its schedule, the weights are averaged. Data are taken as they
    are. Where the model does not know them, its statistics are measured: `data_mean`, event-shaped, and `data_std`, one
    number, the root mean square distance of the elements from it (of all rows of a tensor, of 4096 samples of a Dataset
    or DataLoader, of a generator's first batch).

    The seed decides the order of the data, the times and noise that the loss draws (by sample, where it takes a `seed`
    as sdegen's do), and through torch's global generator all else, such as dropout; afterwards that generator is as it
    was. A step whose loss or gradient is not finite is skipped, with a warning that names times and samples.

    With `out`, a folder gets checkpoints (`load(out)` is the averaged model of the newest), `metrics.csv`,
    `loss_by_level.csv` and a lock. Run again, it goes on from the newest valid checkpoint, and on the CPU ends with the
    same bits as a run that was never interrupted. SIGTERM and SIGINT finish the step, save, and exit with 143 or 130.

    Started by torchrun, or where torch.distributed has a process group, the processes share every batch: each makes its
    rows, gradients are added up, the first process writes, shows and speaks. The weights are those that one process
    makes, up to rounding. A process that is lost ends the others, after a checkpoint.

    Args:
        model: a ScoreModel with parameters, such as a Denoiser (with `out`: a Denoiser).
        data: a tensor (N, *event); what can be indexed (a Dataset, a list), holding samples x0 or (x0, dict of
            conditions); or what can only be iterated (a DataLoader, a generator), holding batches of either.
        steps: of the optimiser, in all: a resumed run makes those that are left.
        batch_size: samples a step, of all processes together; what is iterated has its own.
        lr: the largest learning rate.
        ema: decay of the weights' average per step, after a warm-up; None: the last weights. Or the widths of
            power-function averages in units of the run's length, such as (0.05, 0.1): the first one is the model's,
            and with `out` snapshots of all let `averaged` choose any other width afterwards.
        loss: a function like `dsm_loss`; its options as functools.partial(dsm_loss, weight="min-snr").
        out: the run folder.
        resume: "auto", or False to refuse a folder that has checkpoints.
        device: None: CUDA if there is one, of several processes each its own. The model stays there.
        seed: None: one from torch's global generator, told in the history.
        progress: a bar on stderr; None: if that is a terminal.
        callback: called as callback(step, model, history), step counting from 1, with the averaged weights in the model
            and in eval mode. What it draws does not touch the run.
        schedule: of the learning rate: "cosine" (to 0 at the last step) or "constant".
        warmup: steps; None: a tenth of all, at most 500.
        clip: the largest norm of the gradient; None: any.
        weight_decay: as in AdamW.
        callback_every: steps; None: a hundredth of all, and before that after 1, 2, 4, ... The last step always.
        save_every: steps; None: two minutes. The last step always.
        accumulate: parts that a batch is worked through in, for memory; the step is the same up to rounding.
        precision: what the network computes in, by torch.autocast: "full" (its own dtype), "bf16" or "fp16" (with a
            scaled loss). Weights, averages and the optimiser stay in the network's dtype.
        tensorboard: write the metrics for TensorBoard too, into `out`.
        **cond: conditions for the loss, by name: tensors have N rows and follow their samples, also inside dicts and
            tuples; all else goes as it is. Those whose names are options, of `fit` or of the loss, go in `cond={...}`;
            those that come with the data may have any names.

    Returns:
        The `History`.

    Raises:
        InvalidInputError: data, conditions or options that cannot work, before the network is called.
        NonFiniteError: ten steps in a row were not finite; the model has the averaged weights from before.
        RunLockedError: another process uses the folder.
        CheckpointError: a checkpoint cannot be written, none in the folder is sound, or they are of another run.
        SdegenError: another process of the run has ended.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101) for AdamW, 2017 (arXiv 1608.03983) for the schedule; Karras et
    al. 2024 (arXiv 2312.02696) section 3 for power-function averages; Micikevicius et al. 2018 (arXiv 1710.03740) for
    fp16.

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.Denoiser(sg.nets.MLP(2, hidden=16, layers=1), sg.VPSDE())
        >>> history = sg.fit(model, torch.randn(100, 2), steps=20, batch_size=32, seed=0, progress=False)
        >>> len(history.loss), history.seed
        (20, 0)
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
        accumulate=accumulate,
        precision=precision,
        tensorboard=tensorboard,
    )
    source = batches(data, _conditions(model, cond, options), batch_size)
    _check_model(model, source.first, saves=out is not None)
    Objective(loss).check(source.first.cond)
    place = local_device(_device(device))
    with ExitStack() as stack:
        crew = stack.enter_context(team(place))
        _check_parts(source.first.total, options, crew)
        folder = None if out is None or not crew.leads else RunFolder(out)
        found = crew.from_leader(lambda: stack.enter_context(folder).resumable(resume) if folder else None)
        chosen = crew.from_leader(lambda: _seed_of(seed, found))
        _learn_about_data(model, source, found, crew)
        run = _Run(model.to(place), options, chosen, crew)
        stack.enter_context(run.training())
        if found:
            run.restore(*found)
        found = None  # the run has copies
        _drive(run, source, folder, options, orderly=out is not None)
        return run.history()


def _drive(run: _Run, source: Batches, folder: RunFolder | None, options: Options, *, orderly: bool) -> None:
    """Make the steps that are left, and what is due between them."""
    crew, interrupts = run.team, Interrupts(_PATIENCE if run.team.size > 1 else 0.0)
    with ExitStack() as stack:
        desk = stack.enter_context(_Desk(run, folder)) if crew.leads else None
        if orderly:
            stack.enter_context(interrupts)
        try:
            for batch in islice(source.from_step(run.step, run.seed, crew.share), options.steps - run.step):
                run.advance(batch)
                saves = desk is not None and desk.saves()
                signal, saves, waited = crew.agree(interrupts.number, saves, run.has_waited())
                if signal or saves or waited or options.acts(run.step):
                    run.evaluate()
                    if desk is not None:
                        desk.work(saves=bool(signal or saves))
                if signal:
                    raise SystemExit(128 + signal)
        except LostProcessError:
            if run.device.type == "cpu":  # a CUDA queue may wait for the lost one for ever
                run.evaluate()
                if desk is not None:
                    desk.work(saves=True)
            raise


class _Desk:
    """What one process does between the steps, for all: the bar, the metrics, the callback, the checkpoints."""

    def __init__(self, run: _Run, folder: RunFolder | None) -> None:
        self.run, self.folder, self.options = run, folder, run.options

    def __enter__(self) -> _Desk:
        from tqdm import tqdm  # where it is needed: importing it takes time

        options, run = self.options, self.run
        self.saved = self.started = time.monotonic()
        with ExitStack() as stack:
            hidden = None if options.progress is None else not options.progress
            words: dict[str, Any] = {"total": options.steps, "initial": run.step, "desc": "fit", "unit": "step"}
            self.bar = stack.enter_context(tqdm(disable=hidden, **words))
            if self.folder is not None:
                self.folder.rewind(run.step)
                self.logs = stack.enter_context(Logs(self.folder.path, run.step, tensorboard=options.tensorboard))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def saves(self) -> bool:
        """Whether a checkpoint is due."""
        return self.folder is not None and self.options.saves(self.run.step, time.monotonic() - self.saved)

    def work(self, *, saves: bool) -> None:
        """Whatever is due after this step, all steps having been evaluated."""
        run, folder = self.run, self.folder
        self.bar.update(run.step - self.bar.n)
        self.bar.set_postfix(loss=f"{run.recent_loss():.4g}", refresh=False)
        if folder is not None:
            self.logs.write(run.rows(time.monotonic() - self.started), run.recorder.levels())
        if self.options.shows(run.step):
            run.show()
        if folder is not None and self.options.keeps_averages(run.step):
            folder.keep_averages(run.step, *run.snapshot())
        if folder is not None and saves:
            folder.save(run.step, *run.checkpoint())
            self.saved = time.monotonic()


class _Run:
    """Everything that a step changes."""

    def __init__(self, model: ScoreModel, options: Options, seed: int, crew: Team) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.model, self.options, self.seed, self.team = model, options, seed, crew
        _start_alike(model, crew)
        _fill_memory(named.values())
        self.names, self.parameters = list(named), list(named.values())
        self.device = self.parameters[0].device
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True
        )
        self.clip = math.inf if options.clip is None else options.clip
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        decays = [partial(power_function, width) for width in options.widths] or [options.ema or 0.0]
        self.averages = [Average(self.parameters, decay) for decay in decays]  # type: ignore[arg-type]
        self.recorder = Recorder(model.sde)
        self.step = 0  # how many are done
        self.objective = Objective(options.loss)
        self._asked: Tensor | None = None  # the times of the model's first call for some rows
        self._evaluated = time.monotonic()
        self._logged = 0
        self._paced = (0, 0.0)  # how many steps were made when the metrics were last written, and the seconds then

    @property
    def average(self) -> Average:
        """The one that the model is left with."""
        return self.averages[0]

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
        self.optimiser.zero_grad()
        losses, t = self._summed([self._backward(part) for part in batch.parts(self.options.accumulate)], batch)
        self.scaler.unscale_(self.optimiser)
        norm, mean = clip_grad_norm_(self.parameters, self.clip), losses.mean()
        failed = ((norm + mean) * 0).nan_to_num(1.0).float()  # of NaN or infinity, not waited for
        self.optimiser.found_inf = failed  # type: ignore  # with it the fused AdamW leaves weights and moments alone
        self.optimiser.param_groups[0]["lr"] = self.options.rate(self.step)
        self.optimiser.step()
        self.scaler.update()
        for average in self.averages:
            average.update(self.step)
        self.recorder.add(Step(losses, t, mean, norm, failed, batch.numbers))
        self.step += 1

    def _backward(self, part: Batch) -> tuple[Tensor, Tensor | None]:
        """Add the gradient of these rows' part of the mean loss; their losses and times."""
        rows = len(part.x0)
        if not rows:
            raise InvalidInputError(f"a batch has {part.total} samples: too few for accumulate= and the processes")
        x0 = part.x0.to(self.device, non_blocking=True)
        cond = mapped(part.cond, lambda v: v.to(self.device, non_blocking=True))
        noise = Draws(derived_seed(self.seed, "noise", self.step), part.start, part.start + rows, part.total)
        seed_draws(derived_seed(self.seed, "draws", self.step, part.start), self.device)
        self._asked, dtype = None, PRECISIONS[self.options.precision]
        with torch.autocast(self.device.type, dtype) if dtype is not None else nullcontext():
            losses = self.objective(self.model, x0, cond, noise)
        _check_losses(losses, rows)
        self.scaler.scale(losses.sum() / part.total).backward()
        return losses.detach(), self._asked

    def _summed(self, parts: list[tuple[Tensor, Tensor | None]], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Losses and times of the whole batch; gradients are added up over the processes."""
        if self.team.size == 1 and len(parts) == 1:
            return parts[0]
        losses = torch.cat([own for own, _ in parts])
        asked = [t.to(losses.device).expand(len(own)) for own, t in parts if t is not None]
        t = torch.cat(asked) if len(asked) == len(parts) else None
        if self.team.size > 1:
            told = torch.zeros(2, batch.total, dtype=torch.float64, device=self.device)
            rows = slice(batch.start, batch.start + len(losses))
            told[0, rows], told[1, rows] = losses, math.nan if t is None else t
            self.team.add_up([told, *(p.grad for p in self.parameters if p.grad is not None)])
            losses, t = told[0], None if t is None else told[1]
        return losses, t

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
        (then, before), self._paced = self._paced, (self.step, seconds)
        pace = (self.step - then) * self.options.batch_size / max(seconds - before, 1e-9)
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
                "samples_per_second": round(pace, 1),
                "seconds": round(seconds, 3),
            }
            for start, end in zip(starts, ends, strict=False)
        ]

    # ---- checkpoints

    def checkpoint(self) -> Found:
        """Tensors and state: "model" with the averaged weights, as `load` reads it, and "training" with the rest."""
        with self.average.in_place():
            model = storage.model_tensors(_saveable(self.model))
        training = self.recorder.tensors()
        for name, p in zip(self.names, self.parameters, strict=True):
            own = {"weight": p, **self.optimiser.state[p]}
            training |= {f"{key}.{name}": value for key, value in own.items()}
        for k, average in enumerate(self.averages[1:], 1):
            training |= {f"average{k}.{name}": value for name, value in zip(self.names, average.values, strict=True)}
        state = {"step": self.step, "seed": self.seed, "failures": self.recorder.failures}
        state["scaler"] = self.scaler.state_dict()
        description = storage.describe(_saveable(self.model))
        return {"model": model, "training": training}, {"model": description, "training": state}

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The averages as they are, and what they are."""
        tensors = {
            f"{k}.{name}": value
            for k, average in enumerate(self.averages)
            for name, value in zip(self.names, average.values, strict=True)
        }
        return tensors, {"step": self.step, "widths": list(self.options.widths), "names": self.names}

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
            storage.set_weights(_saveable(self.model).net, tensors["model"])
            for name, p, average in zip(self.names, self.parameters, self.average.values, strict=True):
                average.copy_(p)
                p.copy_(own[f"weight.{name}"])
                moments = {key: own.get(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimiser.state[p] = {k: _laid_out_as(p, v) for k, v in moments.items() if v is not None}
            for k, average in enumerate(self.averages[1:], 1):
                for name, value in zip(self.names, average.values, strict=True):
                    value.copy_(own[f"average{k}.{name}"])
            if scaler := progress.get("scaler"):
                self.scaler.load_state_dict(scaler)
            self.recorder.restore(own, progress["failures"])
        except (KeyError, RuntimeError) as error:
            raise IncompatibleCheckpointError(f"the checkpoint does not fit this run: {error!r}") from error
        self.step = progress["step"]
        self._logged = self.step // _LOG_STEPS * _LOG_STEPS
        self._paced = (self.step, 0.0)


# ---- before the first step


def _conditions(model: ScoreModel, cond: dict[str, Any], options: Options) -> dict[str, Any]:
    """Those given by name and those in `cond={...}`."""
    if not isinstance(model, ScoreModel):
        raise InvalidInputError(f"model is a {type(model).__name__}: wrap a network as Denoiser(net, sde)")
    known = model.condition_names()
    Objective(options.loss).check_names(cond, known)
    return merged(cond, fit, known)


def _check_model(model: ScoreModel, first: Batch, *, saves: bool) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidInputError(f"this {type(model).__name__} has no weights that ask for gradients: nothing to train")
    check_state(first.x0, name="data", event_shape=model.event_shape)
    model.check_conditions(first.cond, len(first.x0))
    if saves:
        storage.describe(_saveable(model))


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


def _check_parts(total: int, options: Options, crew: Team) -> None:
    parts = options.accumulate * crew.size
    if total < parts:
        raise InvalidInputError(
            f"a batch of {total} cannot be cut into {parts} parts (accumulate={options.accumulate} in {crew.size} "
            "processes): pass a larger batch_size, or a smaller accumulate"
        )


def _start_alike(model: ScoreModel, crew: Team) -> None:
    """Weights and buffers are those of the first process."""
    if crew.size > 1:
        model.load_state_dict(crew.from_leader(lambda: {k: v.cpu() for k, v in model.state_dict().items()}))


def _fill_memory(parameters: Iterable[Tensor]) -> None:
    """Give parameters whose memory has gaps, or is shared by their elements, memory of their own.

    The fused optimiser walks memory, not elements.
    """
    for p in parameters:
        if p.stride() != torch.empty_like(p).stride():
            p.data = p.detach().clone()


def _laid_out_as(p: Tensor, moment: Tensor) -> Tensor:
    """A copy beside a parameter and, but for numbers, in its memory layout: the fused optimiser walks both as one."""
    if moment.shape != p.shape:
        return moment.to(p.device, copy=True)
    return torch.empty_like(p, dtype=moment.dtype).copy_(moment)


def _learn_about_data(model: ScoreModel, source: Batches, found: Found | None, crew: Team) -> None:
    """Event shape, mean and standard deviation: those of the checkpoint, else those known, else measured."""
    if model.event_shape is None:
        model.event_shape = tuple(source.first.x0.shape[1:])
    mean, std = model.data_mean, model.data_std
    if found:
        tensors, state = found
        storage.check_same(_saveable(model), state["model"])
        mean, std = (tensors["model"].get(name) for name in ("data_mean", "data_std"))
    elif mean is None or std is None:
        measured_mean, measured_std = crew.from_leader(source.statistics)
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
