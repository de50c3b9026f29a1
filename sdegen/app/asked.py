"""What is sampled, and with which conditions: a model of one's own with its classes, a pipeline with its prompts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import rows_of
from ..core.errors import InvalidInputError
from ..core.files import as_path
from ..models.base import ScoreModel
from ..models.diffusers import from_pipeline
from ..models.diffusers.folders import door_of
from ..models.guided.guidance import Guided
from .options import label_of, labels
from .saved import saved_model


@dataclass(frozen=True)
class Asked:
    """A model and the conditions of its samples.

    Attributes:
        model: the model, guided where that was asked for.
        conditions: of the samples of these numbers (B,), by name.
        settings: what decides them, besides the model.
    """

    model: ScoreModel
    conditions: Callable[[Tensor], dict[str, Any]]
    settings: dict[str, Any]


def device_of(model: ScoreModel) -> torch.device:
    return next(model.parameters()).device


def asked(args: argparse.Namespace, device: str | None) -> Asked:
    """What the options mean.

    Raises:
        InvalidInputError: a prompt for what takes none, none for what takes one, a class that is none.
    """
    return _pipeline(args, device) if door_of(as_path(args.model)) == "from_pipeline" else _own(args, device)


def _own(args: argparse.Namespace, device: str | None) -> Asked:
    if args.prompt or args.negative_prompt is not None or args.size:
        raise InvalidInputError(f"got --prompt or --size, expected --label: {args.model} is no pipeline of diffusers")
    model = saved_model(args.model, device)
    label = label_of(args.label, model)
    conditions = lambda index: labels(index, label, model, device_of(model))  # noqa: E731
    if args.scale is None:
        return Asked(model, conditions, {"label": label})
    if "label" not in conditions(torch.zeros(1, dtype=torch.long)):
        raise InvalidInputError(
            f"got --scale, expected none: {args.model} takes no label that guidance could leave out"
        )
    guided = Guided(model, args.scale, null={"label": -1})
    return Asked(guided, conditions, {"label": label, "scale": args.scale})


def _pipeline(args: argparse.Namespace, device: str | None) -> Asked:
    if device is None and torch.cuda.is_available():
        device = "cuda"
    model, _, text = from_pipeline(args.model, device=device, size=args.size)
    prompts = args.prompt or ([] if args.label is None else [args.label])
    if text is None:
        if prompts:
            raise InvalidInputError(f"got a prompt, expected none: {args.model} takes no text")
        return Asked(model, lambda index: {}, {"size": args.size})
    if not prompts:
        raise InvalidInputError(
            f'got no --prompt, expected what {args.model} is to show, such as --prompt "a red boot"'
        )
    cond = text([_number(word) for word in prompts] if text.of_classes else prompts, negative=args.negative_prompt)
    null, scale = cond.pop("null"), 5.0 if args.scale is None else args.scale
    settings = {"prompt": prompts, "negative_prompt": args.negative_prompt, "scale": scale, "size": args.size}

    def rows(index: Tensor) -> dict[str, Any]:
        return rows_of(cond, index % len(prompts)) | ({"guidance": scale} if told else {})

    told = "guidance" in (model.condition_names() or ())  # a network that learned what guidance does
    return Asked(model if told else Guided(model, scale, null=null), rows, settings)


def _number(word: str) -> int | str:
    return int(word) if word.isdecimal() else word


def sides(word: str) -> list[int]:
    """Height and width in pixels, as 512x768."""
    parts = word.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{word}: expected HEIGHTxWIDTH, such as 512x768")
    return [int(part) for part in parts]
