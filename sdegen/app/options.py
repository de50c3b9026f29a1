"""Options that several commands take, and what they mean."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.modes import PRECISIONS
from ..models.denoiser import Denoiser


def count(word: str) -> int:
    """A whole number of at least 1."""
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word}: expected a whole number, at least 1")
    return int(word)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, and where it runs."""
    parser.add_argument("model", help="a run folder or a checkpoint: what sdegen.save or fit(out=...) wrote")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")


def add_how(parser: argparse.ArgumentParser) -> None:
    """How samples are solved for."""
    parser.add_argument("--solver", default="auto", help="of the samples, a name from `sdegen solvers` (default: auto)")
    parser.add_argument("--steps", type=int, help="a fixed number of steps")
    parser.add_argument("--rtol", type=float, help="error control instead of steps")
    parser.add_argument("--atol", type=float, help="the absolute part of the tolerance (default: as --rtol)")
    parser.add_argument("--eta", type=float, help="noise: 0 probability flow, 1 reverse SDE")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="what the network computes in")
    parser.add_argument("--seed", type=int, default=0, help="decides all random numbers (default: %(default)s)")


def how(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_how` added, as `sample` takes it."""
    return {name: getattr(args, name) for name in ("solver", "steps", "rtol", "atol", "eta", "seed", "precision")}


def classes_of(model: Denoiser) -> tuple[list[str], int | None]:
    """The names of a model's classes, where it knows them, and how many there are."""
    about, config = model.about, getattr(model.net, "config", None) or {}
    return [str(name) for name in about.get("classes") or []], about.get("n_classes") or config.get("n_classes")


def label_of(word: str | None, model: Denoiser) -> int | None:
    """The number of the class asked for, by name or number.

    Raises:
        InvalidInputError: a class that the model does not know.
    """
    names, n = classes_of(model)
    if word is None or word in names:
        return None if word is None else names.index(word)
    try:
        label = int(word)
    except ValueError:
        known = f"the model's classes are {', '.join(names)}" if names else "the model's classes have no names"
        raise InvalidInputError(f"--label {word}: {known}, or pass a number") from None
    if n is None and "label" not in (model.condition_names() or ("label",)):
        raise InvalidInputError(f"--label {word}: the model takes no label")
    if n is not None and not -1 <= label < n:
        raise InvalidInputError(f"--label {label}: the model has classes 0 to {n - 1}, and -1 for none")
    return label


def labels(index: Tensor, label: int | None, model: Denoiser, device: torch.device) -> dict[str, Any]:
    """The conditions of these samples: one class for all, or the classes in turn."""
    n = classes_of(model)[1]
    if label is not None:
        return {"label": torch.full_like(index, label).to(device)}
    takes = model.condition_names()
    return {"label": (index % n).to(device)} if n is not None and (takes is None or "label" in takes) else {}
