"""The optimiser of a run: fit's AdamW or the user's own, its learning rate, and its state as tensors and JSON."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import IncompatibleCheckpointError, InvalidInputError
from ..core.shards import local, replicated_beside, sharded_as
from .functions import value_in_words
from .options import Options
from .states import packed, unpacked

_OF_ADAM = ("step", "exp_avg", "exp_avg_sq")
_HOW = ("params", "foreach", "fused", "capturable", "differentiable")  # of a group: not what is computed


class Optimiser:
    """Steps of the weights, left out where loss or gradient was not finite.

    The rate of step n is that of `Options.rate`, times each group's own where the optimiser is the user's; with an
    `lr_scheduler` it is what that makes of it.

    Args:
        parameters, names: what is trained, and what a checkpoint calls it.
        options: of the run.

    Raises:
        InvalidInputError: the factories do not give what they should.

    Attributes:
        inner: the torch.optim.Optimizer.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], names: Sequence[str], options: Options) -> None:
        self.parameters, self.names, self.options = list(parameters), list(names), options
        self.inner: Any = _made(self.parameters, options)
        self.skips_by_itself = bool(getattr(self.inner, "_step_supports_amp_scaling", False))
        self._peaks = [float(group["lr"]) for group in self.inner.param_groups]
        self.scheduler: Any = None if options.lr_scheduler is None else _scheduler(options.lr_scheduler, self.inner)

    def step(self, n: int, failed: Tensor) -> float:
        """Step n = 0, 1, ..., which changes nothing where `failed` is 1; the learning rate that it took.

        Fused optimisers read `failed` on their device; for others it is waited for.
        """
        groups = self.inner.param_groups
        if self.scheduler is None:
            for group, peak in zip(groups, self._peaks, strict=True):
                group["lr"] = self.options.rate(n, peak)
        rate = float(groups[0]["lr"])
        if self.skips_by_itself:
            self.inner.found_inf = replicated_beside(self.parameters[0], failed)
            self.inner.step()
        elif not bool(failed):
            self.inner.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return rate

    # ---- what a checkpoint keeps of it

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and the rest as JSON."""
        tensors: dict[str, Tensor] = {}
        state: dict[str, Any] = {"class": _words(self.inner)}
        state["weights"] = [
            [name, packed({k: v for k, v in self.inner.state[p].items()}, f"optimizer.{name}", tensors)]
            for name, p in zip(self.names, self.parameters, strict=True)
            if p in self.inner.state
        ]
        if self.options.optimizer is not None:
            groups = [{k: v for k, v in group.items() if k != "params"} for group in self.inner.param_groups]
            state["groups"] = packed(groups, "optimizer.groups", tensors)
        if self.scheduler is not None:
            state["scheduler"] = packed(self.scheduler.state_dict(), "optimizer.scheduler", tensors)
        return tensors, state

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` gave; None: from a checkpoint of AdamW, before there were others."""
        if state is None:
            state = {"class": "torch.optim.adamw.AdamW", "weights": _from_before(tensors, self.names)}
        for what, now, before in (
            ("optimizer", _words(self.inner), state["class"]),
            ("lr_scheduler", self.scheduler is not None, "scheduler" in state),
        ):
            if now != before:
                raise IncompatibleCheckpointError(
                    f"{what}: got {now}; the run in this folder was made with {before}: pass the same one, or another "
                    "out= for a new run"
                )
        kept = dict(state["weights"])
        for name, p in zip(self.names, self.parameters, strict=True):
            if name in kept:
                self.inner.state[p] = _laid_out(p, unpacked(kept[name], tensors))
        if "groups" in state:
            for group, before in zip(self.inner.param_groups, unpacked(state["groups"], tensors), strict=True):
                group.update(before)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(unpacked(state["scheduler"], tensors))


def check_optimiser(parameters: Iterable[nn.Parameter], options: Options) -> None:
    """Raise unless the user's factories give an optimiser, and a scheduler, for these weights."""
    if options.optimizer is not None or options.lr_scheduler is not None:
        trained = [p for p in parameters if p.requires_grad]
        Optimiser(trained, [str(i) for i in range(len(trained))], options)


def optimiser_in_words(parameters: Iterable[nn.Parameter], options: Options) -> dict[str, str]:
    """The user's optimiser, with the numbers of its groups, and scheduler, by the options' names."""
    found = {"optimizer": "that of fit", "lr_scheduler": "that of fit"}
    if options.optimizer is None and options.lr_scheduler is None:
        return found
    made = _made(list(parameters), options)
    if options.optimizer is not None:
        groups = [_told({**group, "weights": len(group["params"])}) for group in made.param_groups]
        found["optimizer"] = f"{_words(made)} {'; '.join(groups)}"
    if options.lr_scheduler is not None:
        scheduler = _scheduler(options.lr_scheduler, made)
        found["lr_scheduler"] = f"{_words(scheduler)} {_told(scheduler.state_dict())}"
    return found


def _told(state: Mapping[str, Any]) -> str:
    """The numbers of an optimiser's group or a scheduler, but for those that choose how they are computed."""
    return ", ".join(
        f"{name}={value_in_words(tuple(value) if isinstance(value, list) else value)}"
        for name, value in sorted(state.items())
        if not (name in _HOW or name[0] == "_") and isinstance(value, int | float | str | tuple | list | Tensor)
    )


def _made(parameters: list[nn.Parameter], options: Options) -> Any:
    if options.optimizer is None:
        return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
    made: Any = _called(options.optimizer, "optimizer", parameters)
    if not all(hasattr(made, name) for name in ("step", "zero_grad", "param_groups", "state")):
        raise InvalidInputError(
            f"optimizer: the function gives a {type(made).__name__}, expected a torch.optim.Optimizer, as "
            "optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1)"
        )
    own = {id(p) for group in made.param_groups for p in group["params"]}
    if own != {id(p) for p in parameters}:
        raise InvalidInputError(
            f"optimizer: got one of {len(own)} weights, expected the {len(parameters)} it is given: to leave some as "
            "they are, switch off their gradients, weight.requires_grad_(False)"
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InvalidInputError(
            f"optimizer: {type(made).__name__} evaluates the loss itself: expected one that does not"
        )
    return made


def _called(make: Any, name: str, given: Any) -> Any:
    """What a user's factory gives, or why it gives nothing."""
    try:
        return make(given)
    except TypeError as error:
        raise InvalidInputError(f"{name}: got a function that fails: {error}") from error


def _scheduler(make: Any, optimiser: Any) -> Any:
    made = _called(make, "lr_scheduler", optimiser)
    if not all(hasattr(made, name) for name in ("step", "state_dict", "load_state_dict")):
        raise InvalidInputError(
            f"lr_scheduler: the function gives a {type(made).__name__}, expected a scheduler of torch.optim, as "
            "lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)"
        )
    if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InvalidInputError(
            "lr_scheduler: ReduceLROnPlateau waits for a loss to fall: expected one that counts steps"
        )
    return made


def _words(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _laid_out(p: Tensor, state: Any) -> Any:
    """A copy beside a parameter; tensors of its shape in its memory layout: fused optimisers walk both as one."""
    if isinstance(state, dict):
        return {key: _laid_out(p, value) for key, value in state.items()}
    if not isinstance(state, Tensor):
        return state
    if state.shape != p.shape:
        return state.to(p.device, copy=True)
    moment = torch.empty_like(p, dtype=state.dtype)
    local(moment).copy_(local(sharded_as(p, state)))
    return moment


def _from_before(tensors: Mapping[str, Tensor], names: Sequence[str]) -> list[Any]:
    """The moments of AdamW under the names of older checkpoints."""
    return [
        [name, {"dict": [[key, {"tensor": f"{key}.{name}"}] for key in _OF_ADAM if f"{key}.{name}" in tensors]}]
        for name in names
    ]
