"""sdegen info fashion"""

from __future__ import annotations

import argparse
from typing import Any

from ...core.show import brief, parameters
from ...models.denoiser import Denoiser
from ...models.space import shown_shape
from ...nets.conditions import CONDITIONS, Conditional
from ...solvers import make_solver
from ...solvers.advice import advise
from ...storage import newest
from ..options import add_model, classes_of
from ..saved import saved_model
from ..told import Told


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)


def run(args: argparse.Namespace) -> Told:
    """Process, network, data, training and what solver suits."""
    model = saved_model(args.model, args.device or "cpu")
    names, n = classes_of(model)
    told: dict[str, Any] = {
        "model": type(model).__name__,
        "process": repr(model.sde),
        "network": f"{type(model.net).__name__} of {parameters(model.net)} parameters",
        "parametrization": brief(model.parametrization),
        "events": None if model.event_shape is None else list(model.event_shape),
        "space": _space(model),
        "conditions": _conditions(model) or None,
        "classes": ", ".join(names) if names else n,
        "data": model.about.get("data"),
        "mean": None if model.data_mean is None else brief(model.data_mean.double().mean()),
        "std": None if model.data_std is None else brief(model.data_std.double().square().mean().sqrt()),
        "trained": _steps(args.model),
        "fitted solvers": ", ".join(map(repr, model.solvers)) or None,
        **_advice(model),
    }
    told = {name: value for name, value in told.items() if value is not None}
    width = max(map(len, told))
    return Told("\n".join(f"{name:{width}s}  {_shown(value)}" for name, value in told.items()), told)


def _space(model: Denoiser) -> str | None:
    """What the events are latents of."""
    if model.space is None:
        return None
    net, shape = model.space.autoencoder, shown_shape(model)
    shown = "" if shape is None else f", which decodes them to {list(shape)}"
    return f"latents of {type(net).__name__} of {parameters(net)} parameters{shown}"


def _conditions(model: Denoiser) -> list[str]:
    """Those that the network was built for."""
    names, net = model.condition_names() or set(), model.net
    return sorted(names - CONDITIONS | net.conditions.names & names if isinstance(net, Conditional) else names)


def _shown(value: Any) -> str:
    """For people: data by their source, and how they were read where not as they come."""
    if isinstance(value, dict):
        how = [f"{name}={v}" for name, v in value.items() if name != "source" and v is not None]
        return ", ".join([str(value.get("source")), *how])
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _steps(folder: str) -> str | None:
    """How far a run has come; None of a checkpoint alone."""
    found = newest(folder, [])
    return None if found is None else f"{found[1].get('training', {}).get('step')} steps"


def _advice(model: Denoiser) -> dict[str, str]:
    few, many = (advise(make_solver("adams").stepper(controlled=False), model, steps=n) for n in (8, 20))
    smooth = "smooth" if model.smooth else "rough"
    return {
        "with 5 to 10 evaluations": f"steps=8: auto takes adams on the grid {few.grid!r}, as the belief is {smooth}",
        "with 20": f"steps=20: auto takes adams on the grid {many.grid!r}",
        "for an error": "rtol=1e-2 to look at, 1e-3 to measure; eta=1 for draws that forget their start",
    }
