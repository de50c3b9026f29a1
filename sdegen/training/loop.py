"""The training loop: there is one, and scripts, demos and users all go through it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .. import storage
from ..core.conditions import gathered, merged
from ..core.errors import IncompatibleCheckpointError, InvalidInputError
from ..core.kinds import checked
from ..core.team import Groups, LostProcessError, Team, local_device, team
from ..models.base import ScoreModel
from .batches import Batches, Statistics
from .checks import (
    check_kind,
    check_model,
    check_parts,
    check_same_model,
    device_of,
    learn_about_data,
    progress_of,
    seed_of,
)
from .engine import shards
from .folder import Found, Interrupts, RunFolder, checkpoint_of
from .history import History
from .identity import check_same_run, fingerprint, settings
from .losses import dsm_loss
from .objective import Objective
from .optimiser import check_optimiser
from .options import Options
from .reporter import Reporter
from .rows import Rows
from .smoothness import affordable, told
from .sources import batches
from .statistics import count_steps
from .trainer import Trainer

_PATIENCE = 1.0  # seconds in which a signal may reach one of several processes twice


@checked
def fit(
    model: nn.Module,
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
    callback: Callable[[int, Any, History], Any] | None = None,
    schedule: str = "cosine",
    warmup: int | None = None,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    callback_every: int | None = None,
    save_every: int | None = None,
    accumulate: int = 1,
    precision: str = "full",
    tensorboard: bool = False,
    statistics: str | None = None,
    strategy: str | None = None,
    workers: int = 0,
    optimizer: Callable[[Sequence[torch.nn.Parameter]], Any] | None = None,
    lr_scheduler: Callable[[Any], Any] | None = None,
    logger: Any = None,
    columns: Mapping[str, str] | None = None,
    cond: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> History:
    """Train a model in place, on CUDA if there is one, and leave the averaged weights in it.

    AdamW on the mean of `loss` over batches from shuffled passes through the data. The gradient's norm is clipped, the
    learning rate rises over the warm-up and then follows its schedule, the weights are averaged. Data are taken as they
    are, a part of them in memory at a time (an np.memmap may be larger than that). Where the model does not know them,
    its statistics are measured: `data_mean`, event-shaped, and `data_std`, one number, the root mean square distance of
    the elements from it (of all rows of a tensor, of 4096 samples of a Dataset or DataLoader, of a generator's first
    batch).

    At the end of a run that drew 112,000 samples or more it finds out whether the model is smooth in time, as
    `measure_smooth` does, unless `Denoiser(smooth=)` says it: 3360 evaluations, less than a hundredth of the training.

    The seed decides the order of the data, the times and noise that the loss draws (by sample, where it takes a `seed`
    as sdegen's do), and through the global generators of torch, numpy and Python, seeded for every step, all else:
    random augmentation in a Dataset, dropout. Afterwards these are as they were. A step whose loss or gradient is not
    finite is skipped, with a warning that names times and samples.

    With `out`, a folder gets checkpoints (`load(out)` is the averaged model of the newest), `metrics.csv`,
    `loss_by_level.csv` and a lock. Run again, it goes on from the newest valid checkpoint, and on the CPU ends with the
    same bits as a run that was never interrupted. It knows its data, by size, shape, mean, standard deviation and the
    hash of some samples, and its settings: other data, another loss or weighting, other averages, another optimizer and
    other weights that are trained are refused, any other change, and other samples of the same size and spread, are
    told. SIGTERM and SIGINT finish the step, save, and exit with 143 or 130.

    Started by torchrun, or where torch.distributed has a process group, the processes share every batch: each makes its
    rows, gradients are added up, the first process writes, shows and speaks. The weights are those that one process
    makes, up to rounding. A process that is lost ends the others, after a checkpoint.

    Any other module is trained where `loss` is given: an autoencoder, a classifier, two towers. It has the same run
    folder, averages and processes; `load(out)` gives the module, or fills the one passed as `net=`. Its loss gets each
    process's rows, and with accumulate= each part's, so one that compares the samples of a batch sees these alone; the
    running statistics of batch norm are those of the last weights, not averages: pass ema=None with them.

    Args:
        model: a ScoreModel with parameters, such as a Denoiser (with `out`: a Denoiser), or any module, with `loss`.
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
            and in eval mode. What it draws does not touch the run; a figure that it returns, TensorBoard shows.
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
        statistics: "measure" takes `data_mean` and `data_std` of these data, "keep" leaves what the model knows. None:
            what an earlier `fit` measured is measured again if this one makes more steps than were trained so far (the
            real run after a trial); all else that is known is kept, and data far from it are told. A run that goes on
            keeps its own.
        strategy: of several processes: "ddp", DistributedDataParallel, or "fsdp", FSDP2: each process keeps a part of
            the weights, the averages and the optimizer's state, in the model too when `fit` is done. None: "ddp".
        workers: processes that load samples of a Dataset ahead of the step, the same ones in the same order. (A
            DataLoader may have its own; what is in memory needs none.)
        optimizer: a function that makes one of the weights, as `lambda weights: torch.optim.SGD(weights, lr=0.1)`, in
            place of AdamW with `lr` and `weight_decay`. The warm-up and the schedule multiply its own rates.
        lr_scheduler: a function that makes one of the optimizer, stepped after every step, in place of these two.
        logger: gets the rows of `metrics.csv` too, with or without `out`: anything with `log(values, step)`.
        columns: where rows are dicts, which of their columns are x0 and the conditions: {"x0": "pixels", "label":
            "digit"}. Other columns are not read.
        cond: conditions whose names are options, of `fit` or of the loss, by name.
        **conditions: conditions for the loss, by name: tensors have N rows and follow their samples, also inside dicts
            and tuples; all else goes as it is. Those that come with the data may have any names.

    Returns:
        The `History`.

    Raises:
        InvalidInputError: data, conditions or options that cannot work, before the network is called.
        NonFiniteError: ten steps in a row were not finite; the model has the averaged weights from before.
        RunLockedError: another process uses the folder.
        CheckpointError: a checkpoint cannot be written, none in the folder is sound, they are of another run (of other
            data, loss, averages, seed, network or process), or the folder is removed meanwhile.
        SdegenError: another process of the run has ended.

    Warns:
        UserWarning: the scale of the data does not suit the process, or is far from what the model knows; a run goes on
            with other steps, batch_size, accumulate, lr, schedule, warmup, clip, weight_decay, decay of the average or
            precision, with a function of the same name and other code, with statistics that were given otherwise, or
            with data that were drawn anew.

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
        statistics=statistics,
        strategy=strategy,
        workers=workers,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        logger=logger,
    )
    given, takes_label = _conditions(model, gathered(cond, conditions), loss)
    source = batches(data, given, batch_size, workers or 0, Rows(takes_label and "label" not in given, columns))
    check_model(model, source.first, saves=out is not None)
    Objective(loss).check(source.first.cond)
    _check_statistics(model, statistics)
    check_optimiser(model.parameters(), options)
    place = local_device(device_of(device))
    with ExitStack() as stack:
        processes = team(place)
        check_parts(source.first.total, options, processes)
        measured, fingerprinted = processes.from_leader(
            lambda: _survey(model, source, options, identified=out is not None)
        )
        made_with = {"data": fingerprinted, "settings": settings(options, model)}
        folder = None if out is None or not processes.leads else RunFolder(out)
        sharded = shards(strategy, model, processes)
        found = _found(
            processes, lambda: stack.enter_context(folder).resumable(resume, sharded=sharded) if folder else None
        )
        chosen = processes.from_leader(lambda: seed_of(seed, found))
        processes.from_leader(lambda: _check_same(model, source, found, made_with))
        learned = learn_about_data(model, source.first, found, measured, options, tell=processes.leads)
        trainer = Trainer(model.to(place), options, chosen, processes, made_with)
        stack.enter_context(trainer.training())
        if found:
            trainer.restore(*_with_parts(trainer, found, out))
        found = None  # the trainer has copies
        stack.callback(lambda begun: count_steps(model, trainer.step - begun), trainer.step)
        found_out = _drive(trainer, source, folder, orderly=out is not None)
        return replace(trainer.history(), statistics=", ".join(filter(None, (learned, found_out))))


def _conditions(model: nn.Module, cond: dict[str, Any], loss: Callable[..., Tensor]) -> tuple[dict[str, Any], bool]:
    """Those given by name and those in `cond={...}`; and whether there is one that is called label."""
    objective = Objective(loss)
    check_kind(model, objective)
    known = model.condition_names() if isinstance(model, ScoreModel) else objective.conditions
    objective.check_names(cond, known)
    return merged(cond, fit, known), known is not None and "label" in known


def _found(processes: Team, look: Callable[[], Found | None]) -> Found | None:
    """What is found in the run folder, where the first process looks: everywhere."""
    box: list[Found | None] = [None]

    def tensors() -> Groups | None:
        box[0] = look()
        return box[0] and box[0][0]

    kept = processes.tensors_from_leader(tensors)
    state = processes.from_leader(lambda: box[0] and box[0][1])
    return None if kept is None or state is None else (kept, state)


def _with_parts(trainer: Trainer, found: Found, out: Any) -> Found:
    """What was found, and where weights are sharded this process's parts of them."""
    if not trainer.engine.sharded:
        return found
    path = checkpoint_of(out, progress_of(found)["step"])
    kept = {name: storage.read_sharded(path, [name], trainer.layout) for name in ("model", "training")}
    return kept, found[1]


def _check_statistics(model: nn.Module, wish: str | None) -> None:
    if wish is not None and not isinstance(model, ScoreModel):
        raise InvalidInputError(
            f"statistics={wish!r}: a {type(model).__name__} keeps none of its data; leave it out: only models of "
            "scores have data_mean and data_std"
        )


def _survey(
    model: nn.Module, source: Batches, options: Options, *, identified: bool
) -> tuple[Statistics | None, dict[str, Any] | None]:
    """Statistics of the data, all finite, and their fingerprint where a run has to know them again."""
    if isinstance(model, ScoreModel):
        keeps = options.statistics == "keep" and model.data_mean is not None and model.data_std is not None
    else:
        keeps = True
    if keeps and not identified and not source.in_memory:
        return None, None
    measured = source.statistics()
    return measured, fingerprint(source, measured) if identified else None


def _check_same(model: nn.Module, source: Batches, found: Found | None, made_with: dict[str, Any]) -> None:
    """Raise unless what was found in the folder is of this model and this run."""
    if not found:
        return
    check_same_model(model, source.first, found)
    before = progress_of(found).get("made_with", {})
    try:
        check_same_run(before, made_with["data"], made_with["settings"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise IncompatibleCheckpointError(f"the checkpoint does not say what its run was: {error!r}") from error


def _drive(trainer: Trainer, source: Batches, folder: RunFolder | None, *, orderly: bool) -> str:
    """Make the steps that are left, and what is due between them; what was found out of the model, in words."""
    processes, options, found_out = trainer.team, trainer.options, ""
    interrupts = Interrupts(_PATIENCE if processes.size > 1 else 0.0)
    with ExitStack() as stack:
        if orderly:
            stack.enter_context(interrupts)
        takes_part = processes.leads or trainer.engine.sharded  # in what is gathered, to be shown or kept
        reporter = stack.enter_context(Reporter(trainer, folder, keeps=orderly)) if takes_part else None
        source.go_on(trainer.step, trainer.own_data_state())
        stream = source.from_step(trainer.step, trainer.seed, processes.share, trainer.device)
        try:
            for batch in islice(stream, options.steps - trainer.step):
                trainer.advance(batch)
                saves = processes.leads and reporter is not None and reporter.saves()
                signal, saves, waited = processes.agree(interrupts.number, saves, trainer.has_waited())
                interrupts.note(signal)
                if signal or saves or waited or options.acts(trainer.step):
                    trainer.evaluate()
                    if trainer.step == options.steps:
                        found_out = _find_out(trainer, source)
                    if signal or saves:
                        trainer.data_states = _states(source, processes)
                    if reporter is not None:
                        reporter.act(saves=bool(signal or saves))
                if signal:
                    raise SystemExit(128 + signal)
        except LostProcessError:
            alone = not (trainer.engine.sharded or source.divided)  # no other's part is needed
            if trainer.device.type == "cpu" and alone:  # CUDA may wait for the lost one for ever
                trainer.evaluate()
                trainer.data_states = [source.state()]
                if reporter is not None:
                    reporter.act(saves=True)
            raise
    return found_out


def _find_out(trainer: Trainer, source: Batches) -> str:
    """Whether the model is smooth in time, where nobody said it and the run was long enough; in words."""
    model, first = trainer.model, source.first
    if trainer.engine.sharded or not affordable(model, trainer.step, first):
        return ""
    return told(model, trainer.team.from_leader(lambda: trainer.find_out_smooth(first.cond)))


def _states(source: Batches, processes: Team) -> list[Any]:
    """Where the data are: in every process where each has its own, else in one."""
    return processes.of_all(source.state()) if source.divided else [source.state()]
