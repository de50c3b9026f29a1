"""Folders that diffusers wrote: whole pipelines, networks alone, schedulers. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ...core.errors import CheckpointError, InvalidInputError, shortened
from ...core.files import as_path
from .forms import FORMS

INDEX = "model_index.json"
NETWORKS = ("unet", "transformer", "prior")  # what pipelines call them
AUTOENCODERS = ("vae", "vqvae")
_NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")  # to sample
_WEIGHTS = (".safetensors", ".bin")


def library(*, text: bool = False) -> Any:
    """The module diffusers; with `text`, transformers are there too.

    Raises:
        ImportError: one that is not installed, with the cure.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f'diffusers is not installed ({error}): pip install "sdegen[interop]"') from error
    if text and importlib.util.find_spec("transformers") is None:
        raise ImportError('text encoders are transformers, which is not installed: pip install "sdegen[text]"')
    return diffusers


def door_of(folder: Path) -> str | None:
    """Which function reads a folder of diffusers; None: it is none."""
    if os.path.isfile(folder / INDEX):
        return "from_pipeline"
    config = folder / "config.json"
    if not os.path.isfile(config) or "_diffusers_version" not in config.read_text(errors="replace"):
        return None
    return "space_from_diffusers" if _is_autoencoder(config) else "from_diffusers"


def _is_autoencoder(config: Path) -> bool:
    try:
        name = str(_json(config).get("_class_name"))
    except CheckpointError:  # the function that reads the folder says so
        return False
    return "Autoencoder" in name or name == "VQModel"


def pipeline_in(path: str | os.PathLike) -> Any:
    """The pipeline in a folder.

    Raises:
        CheckpointError: there is none, or a part of it is missing or cannot be read.
    """
    folder = _folder(path)
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} is no pipeline ({INDEX}) but a part of one: sg.{door_of(folder)} reads it")
    without = {name: None for name in _parts(folder) if name in _NOT_NEEDED and not (folder / name).is_dir()}
    for name in _parts(folder):
        if name not in without:
            _check_part(folder / name)
    of_text = '"transformers"' in (folder / INDEX).read_text()
    read = library(text=of_text).DiffusionPipeline.from_pretrained
    return _loaded(folder, lambda: read(folder, local_files_only=True, **without))


def network_in(path: str | os.PathLike) -> tuple[nn.Module, Any]:
    """The network in a folder, of a pipeline or alone, and the scheduler there or beside it, None where there is none.

    Raises:
        InvalidInputError: a network that cannot be sampled here.
        CheckpointError: there is none, or it cannot be read.
    """
    folder = _folder(path)
    if (folder / INDEX).is_file():
        names = [name for name in _parts(folder) if name in NETWORKS]
        if not names:
            raise CheckpointError(f"{folder} has none of {', '.join(NETWORKS)}: no network that could be sampled")
        return network_in(folder / names[0])
    config = _json(folder / "config.json")
    name = config.get("_class_name")
    if door_of(folder) == "space_from_diffusers":
        raise InvalidInputError(f"{folder} has an autoencoder, {name}: sg.space_from_diffusers reads it")
    if name not in FORMS:
        raise InvalidInputError(f"{folder} has a {shortened(name)}, expected a network among {', '.join(FORMS)}")
    _check_part(folder)
    read = getattr(library(), name).from_pretrained
    net = _loaded(folder, lambda: read(folder, local_files_only=True))
    beside = folder.parent / "scheduler"
    return net, scheduler_in(beside) if beside.is_dir() else None


def autoencoder_in(path: str | os.PathLike) -> nn.Module:
    """The autoencoder in a folder, of a pipeline or alone.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    folder = _folder(path)
    if (folder / INDEX).is_file():
        folder = folder / next((name for name in _parts(folder) if name in AUTOENCODERS), AUTOENCODERS[0])
        _check_part(folder)
    if door_of(folder) != "space_from_diffusers":
        raise CheckpointError(f"{folder} has no autoencoder: sg.{door_of(folder)} reads it")
    _check_part(folder)
    read = getattr(library(), _json(folder / "config.json")["_class_name"]).from_pretrained
    return _loaded(folder, lambda: read(folder, local_files_only=True))


def scheduler_in(path: str | os.PathLike) -> Any:
    """The scheduler in a folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    folder = as_path(path)
    if os.path.isdir(folder / "scheduler"):
        folder = folder / "scheduler"
    name = _json(folder / "scheduler_config.json").get("_class_name")
    made = getattr(library(), str(name), None)
    if not str(name).endswith("Scheduler") or made is None:
        raise CheckpointError(f"{folder} has a {shortened(name)}, expected a scheduler of diffusers")
    return _loaded(folder, lambda: made.from_pretrained(folder, local_files_only=True))


def _folder(path: str | os.PathLike) -> Path:
    folder = as_path(path)
    if not os.path.isdir(folder):
        raise CheckpointError(
            f"there is no folder {shortened(str(folder), 200)}: expected one that save_pretrained of diffusers wrote "
            "(nothing is downloaded here; `hf download NAME --local-dir FOLDER` fetches one)"
        )
    if (folder / "manifest.json").is_file() and door_of(folder) is None:
        raise CheckpointError(f"{folder} is a checkpoint of sdegen: sg.load({os.fspath(path)!r}) reads it")
    if door_of(folder) is None:
        raise CheckpointError(
            f"{folder} is no pipeline ({INDEX}) and no network (config.json) that save_pretrained of diffusers wrote: "
            f"it has {', '.join(sorted(p.name for p in folder.iterdir())[:5]) or 'nothing'}"
        )
    return folder


def _parts(folder: Path) -> list[str]:
    """The folders that a pipeline says it is made of."""
    index = _json(folder / INDEX)
    return [k for k, v in index.items() if isinstance(v, list) and len(v) == 2 and all(isinstance(w, str) for w in v)]


def _check_part(part: Path) -> None:
    """Raise where a part of a pipeline is missing, has no weights, or has what Git LFS leaves in place of them."""
    again = "fetch the whole folder again (`hf download NAME --local-dir FOLDER`, or `git lfs pull` in a clone)"
    if not part.is_dir():
        raise CheckpointError(f"the folder {part} is missing: {again}")
    if not (part / "config.json").is_file():
        return  # schedulers, tokenizers: without weights
    weights = [file for file in part.iterdir() if file.suffix in _WEIGHTS]
    wanted = {name for file in part.glob("*.index.json") for name in _json(file).get("weight_map", {}).values()}
    lost = sorted(wanted - {file.name for file in weights})
    if not weights or lost:
        raise CheckpointError(f"{part} has no weights ({', '.join(lost[:3]) or '*.safetensors'}): {again}")
    for file in weights:
        with open(file, "rb") as stream:
            if stream.read(40).startswith(b"version https://git-lfs"):
                raise CheckpointError(f"{file} holds the address of weights, not the weights: {again}")


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {shortened(str(error), 200)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}, expected an object")
    return value


def _loaded(folder: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # whatever a stranger's file can lead to
        what = f"{type(error).__name__}: {shortened(str(error), 300)}"
        raise CheckpointError(f"{folder} cannot be read by diffusers: {what}") from error
