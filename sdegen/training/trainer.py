"""Everything that a step of training changes, and what a checkpoint keeps of it."""

from __future__ import annotations

import math
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from .. import storage
from ..core.conditions import mapped
from ..core.errors import IncompatibleCheckpointError, InvalidInputError, shortened
from ..core.shapes import as_time
from ..core.shards import is_sharded, local, sharded_as, whole
from ..core.team import Team, watched
from ..loop.modes import quiet
from ..models.base import ScoreModel
from ..models.networks import plain_names
from ..nets.conditions import dropping_by
from . import smoothness
from .batches import Batch
from .checks import saveable
from .draws import BatchNoise, derived_seed, own_draws, seed_draws
from .ema import Average, power_function
from .engine import engine_of
from .folder import Found
from .history import History, Recorder, Step
from .objective import Objective
from .optimiser import Optimiser
from .options import PRECISIONS, Options
from .states import packed, unpacked

_WAIT_STEPS, _WAIT_SECONDS = 64, 0.5  # how many steps, and how long, are left unevaluated
_HALF = (torch.float16, torch.bfloat16)
_LOG_STEPS = 50  # between rows of the metrics, after those of the first steps


class Trainer:
    """Everything that a step changes."""

    def __init__(self, model: nn.Module, options: Options, seed: int, team: Team, made_with: Mapping[str, Any]) -> None:
        self.model, self.options, self.seed, self.team = model, options, seed, team
        self.made_with = made_with  # what a checkpoint tells the run's data and settings by
        team.start_alike({name: value for name, value in model.state_dict().items() if not is_sharded(value)})
        _fill_memory(p for p in model.parameters() if p.requires_grad)
        self.engine = engine_of(options.strategy, model, Objective(options.loss), team)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(plain_names(model, named).values()), list(named.values())
        self.device = self.parameters[0].device
        self.masters = [_master(p) for p in self.parameters]
        self.optimiser = Optimiser(self.masters, self.names, options)
        self.clip = math.inf if options.clip is None else options.clip
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        decays = [partial(power_function, width) for width in options.widths] or [options.ema or 0.0]
        self.averages = [Average(self.parameters, decay, self.masters) for decay in decays]  # type: ignore[arg-type]
        self.recorder = Recorder(model.sde if isinstance(model, ScoreModel) else None)
        self.step = 0  # how many are done
        self.rates = array("d")  # of the steps
        self.data_states: list[Any] = [None]  # where streams are: of one process, or of all where each has its own
        self._times: Tensor | None = None  # at which the loss first asked the model, for some rows
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
        stack = ExitStack()
        if isinstance(self.model, ScoreModel):
            hook = self.model.register_forward_pre_hook(self._note_time, with_kwargs=True)
            stack.callback(hook.remove)
        try:
            with own_draws(self.device), torch.enable_grad():
                self.model.train()
                yield
        finally:
            stack.close()
            self.engine.forget()
            self.average.settle()
            for module, mode in modes.items():
                module.training = mode

    def advance(self, batch: Batch) -> None:
        """One step of the optimiser; if loss or gradient is not finite, it changes no weight."""
        for p in (*self.masters, *self.parameters):
            p.grad = None
        parts = batch.parts(self.options.accumulate)
        losses, t = self._summed([self._backward(part, last=part is parts[-1]) for part in parts], batch)
        for p, master in zip(self.parameters, self.masters, strict=True):
            if master is not p and p.grad is not None:
                master.grad = p.grad.to(master.dtype)
        self.scaler.unscale_(self.optimiser.inner)
        norm, mean = whole(clip_grad_norm_(self.masters, self.clip)), losses.mean()
        failed = ((norm + mean) * 0).nan_to_num(1.0).float()  # of NaN or infinity, not waited for
        self.rates.append(self.optimiser.step(self.step, failed))
        self.scaler.update()
        self._copy_masters()
        for average in self.averages:
            average.update(self.step)
        self.recorder.add(Step(losses, t, mean, norm, failed, batch.numbers))
        self.step += 1

    @torch.no_grad()
    def _copy_masters(self) -> None:
        """Give weights in half precision the values of what is trained in their place."""
        for p, master in zip(self.parameters, self.masters, strict=True):
            if master is not p:
                local(p).copy_(local(master))

    def _backward(self, part: Batch, *, last: bool) -> tuple[Tensor, Tensor | None]:
        """Add the gradient of these rows' part of the mean loss; their losses and times."""
        rows = len(part.x0)
        if not rows:
            raise InvalidInputError(f"a batch has {part.total} samples: too few for accumulate= and the processes")
        x0 = part.x0.to(self.device, non_blocking=True)
        cond = mapped(part.cond, lambda value: value.to(self.device, non_blocking=True))
        noise = BatchNoise(derived_seed(self.seed, "noise", self.step), part.start, part.start + rows, part.total)
        seed_draws(derived_seed(self.seed, "draws", self.step, part.start), self.device)
        self._times, dtype = None, PRECISIONS[self.options.precision]
        with watched(), self.engine.gathering(last), dropping_by(noise):
            with torch.autocast(self.device.type, dtype) if dtype is not None else nullcontext():
                losses = self.engine.losses(x0, cond, noise)
            _check_losses(losses, rows)
            self.scaler.scale(losses.sum() * self.engine.weight / part.total).backward()
        return losses.detach(), self._times

    def _summed(self, parts: list[tuple[Tensor, Tensor | None]], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Losses and times of the whole batch."""
        if self.team.size == 1 and len(parts) == 1:
            return parts[0]
        losses = torch.cat([own for own, _ in parts])
        times = [t.to(losses.device).expand(len(own)) for own, t in parts if t is not None]
        t = torch.cat(times) if len(times) == len(parts) else None
        if self.team.size > 1:
            both = torch.zeros(2, batch.total, dtype=torch.float64, device=self.device)
            rows = slice(batch.start, batch.start + len(losses))
            both[0, rows], both[1, rows] = losses, math.nan if t is None else t
            self.team.add_up(both)
            losses, t = both[0], None if t is None else both[1]
        return losses, t

    def _note_time(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._times is None:
            self._times = as_time(args[1] if len(args) > 1 else kwargs["t"]).detach()

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

    def show(self) -> Any:
        """Call the callback with the averaged model; what it returns."""
        with self.average.in_place(), own_draws(self.device), quiet(self.model):
            shown = self.options.callback(self.step, self.model, self.history())  # type: ignore[misc]
            self.engine.forget()
        return shown

    def rows(self, seconds: float) -> list[dict[str, Any]]:
        """The metrics since the last rows: for steps 1, 2, 4, ... 32, every fiftieth and the last."""
        (then, before), self._paced = self._paced, (self.step, seconds)
        pace = (self.step - then) * self.options.batch_size / max(seconds - before, 1e-9)
        ends = [n for n in range(self._logged + 1, self.step + 1) if _has_row(n) or n == self.options.steps]
        starts = [self._logged, *ends]
        self._logged = starts[-1]
        return [
            {
                "step": end,
                "loss": _mean(self.recorder.loss[start:end]),
                "gradient_norm": self.recorder.gradient_norm[end - 1],
                "lr": self.rates[end - 1],
                "skipped": sum(i < end for i in self.recorder.skipped),
                "samples_per_second": round(pace, 1),
                "seconds": round(seconds, 3),
            }
            for start, end in zip(starts, ends, strict=False)
        ]

    def own_data_state(self) -> Any:
        """Where this process's data are.

        Raises:
            IncompatibleCheckpointError: they were divided among another number of processes.
        """
        states = self.data_states
        if len(states) not in (1, self.team.size):
            raise IncompatibleCheckpointError(
                f"data: got {self.team.size} processes; the run in this folder was made with {len(states)}, each of "
                "which loaded data of its own: start as many, or pass another out= for a new run"
            )
        return states[self.team.rank if len(states) > 1 else 0]

    # ---- checkpoints

    def checkpoint(self) -> Found:
        """Tensors and state: "model" with the averaged weights, and more that `load` reads, and "training"."""
        with self.average.in_place():
            groups = storage.tensor_groups(saveable(self.model))
            model = {
                name: value.clone() if is_sharded(value) or value.dtype in _HALF else value
                for name, value in groups["model"].items()
            }
        training = self.recorder.tensors()
        for name, p, master, value in zip(self.names, self.parameters, self.masters, self.average.values, strict=True):
            training[f"weight.{name}"] = master
            if master is not p:
                training[f"average0.{name}"] = value
        moments, optimiser = self.optimiser.state()
        training |= moments
        for k, average in enumerate(self.averages[1:], 1):
            training |= {f"average{k}.{name}": value for name, value in zip(self.names, average.values, strict=True)}
        state: dict[str, Any] = {"step": self.step, "seed": self.seed, "failures": self.recorder.failures}
        state |= {"scaler": self.scaler.state_dict(), "made_with": self.made_with, "optimizer": optimiser}
        state["data"] = packed(self.data_states, "data", training)
        description = storage.describe(saveable(self.model))
        return {**groups, "model": model, "training": training}, {"model": description, "training": state}

    def find_out_smooth(self, cond: Mapping[str, Any]) -> bool | None:
        """Whether the averaged model is smooth in time; None where its flow cannot be solved."""
        with self.average.in_place(), own_draws(self.device):
            found = smoothness.find_out(self.model, cond, derived_seed(self.seed, "smooth"), self.device)  # type: ignore[arg-type]
            self.engine.forget()
        return found

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The averages as they are, and what they are."""
        tensors = {
            f"{k}.{name}": whole(value)
            for k, average in enumerate(self.averages)
            for name, value in zip(self.names, average.values, strict=True)
        }
        return tensors, {"step": self.step, "widths": list(self.options.widths), "names": self.names}

    def layout(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor to read one of a checkpoint into: sharded as the weight it belongs to, if that is."""
        weights = dict(zip(plain_names(self.model, n := dict(self.model.named_parameters())).values(), n.values()))
        _, _, rest = name.partition(".") if re.match(r"(weight|optimizer|average\d+)\.", name) else ("", "", name)
        while rest and rest not in weights:
            rest = rest.rpartition(".")[0]
        like = weights.get(rest)
        if like is None or not is_sharded(like) or like.shape != shape:
            return torch.empty(shape, dtype=dtype, device="cpu")
        return torch.empty_like(like, dtype=dtype)

    @torch.no_grad()
    def restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Raises:
            InvalidInputError: it is beyond the last step.
            IncompatibleCheckpointError: it does not have what this run needs, or holds NaN.
        """
        own, progress = tensors["training"], state["training"]
        if progress["step"] > self.options.steps:
            raise InvalidInputError(
                f"the run in this folder has made {progress['step']} steps, more than steps={self.options.steps}: "
                "pass more, or load the model"
            )
        _check_finite(own)
        try:
            storage.set_weights(storage.network_of(self.model), tensors["model"])
            for name, p, master, average in zip(
                self.names, self.parameters, self.masters, self.average.values, strict=True
            ):
                _put(average, p if master is p else own[f"average0.{name}"])
                _put(master, own[f"weight.{name}"])
            self._copy_masters()
            for k, average in enumerate(self.averages[1:], 1):
                for name, value in zip(self.names, average.values, strict=True):
                    _put(value, own[f"average{k}.{name}"])
            self.optimiser.restore(own, progress.get("optimizer"))
            if scaler := progress.get("scaler"):
                self.scaler.load_state_dict(scaler)
            self.recorder.restore(own, int(progress["failures"]))
        except IncompatibleCheckpointError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise IncompatibleCheckpointError(
                f"the checkpoint does not fit this run: {type(error).__name__}: {shortened(str(error), 300)}"
            ) from error
        self.data_states = unpacked(progress.get("data", {"list": [None]}), own)
        self.engine.forget()
        self.step = progress["step"]
        self.rates = array("d", [math.nan] * self.step)
        self._logged = next((n for n in range(self.step, 0, -1) if _has_row(n)), 0)
        self._paced = (self.step, 0.0)


def _check_finite(own: Mapping[str, Tensor]) -> None:
    """Raise on weights, averages or moments that no step can have left so."""
    for name, value in own.items():
        if re.match(r"weight\.|optimizer\.|average\d+\.", name) and not bool(torch.isfinite(local(value)).all()):
            raise IncompatibleCheckpointError(
                f"{name} of the checkpoint holds NaN or infinity: no run goes on with that. Remove this checkpoint; "
                "the one before it is taken then"
            )


def _has_row(n: int) -> bool:
    """Whether the metrics have a row after n steps."""
    return n % _LOG_STEPS == 0 or (n < _LOG_STEPS and n.bit_count() == 1)


def _fill_memory(parameters: Iterable[Tensor]) -> None:
    """Give parameters whose memory has gaps, or is shared by their elements, memory of their own.

    The fused optimiser walks memory, not elements.
    """
    for p in parameters:
        if p.stride() != torch.empty_like(p).stride():
            p.data = p.detach().clone()


def _master(p: Any) -> Any:
    """What is trained: a weight itself, of one in half precision a copy in float32, where small steps are not lost."""
    return nn.Parameter(p.detach().float()) if p.dtype in _HALF else p


def _put(place: Tensor, value: Tensor) -> None:
    local(place).copy_(local(sharded_as(place, value)))


def _check_losses(losses: Any, batch: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (batch,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InvalidInputError(f"loss: got {got} for {batch} samples, expected one number per sample, ({batch},)")
    if not losses.requires_grad:
        raise InvalidInputError("the loss does not depend on the model's weights: it must call the model it is given")


def _mean(values: Any) -> float:
    """The mean of those that are not NaN."""
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else math.nan
