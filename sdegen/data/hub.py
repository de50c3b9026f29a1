"""Data sets of Hugging Face's `datasets`, by name."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from .arrays import Raw
from .pixels import Picture, Wanted, decode

_HELD_OUT = ("test", "validation", "valid", "val")


def read_hub(name: str, column: str | None, part: str, wanted: Wanted) -> tuple[Raw, bool]:
    """The images of "name" or "name:configuration", and whether they have a held-out part of their own.

    Args:
        name: as `datasets.load_dataset` takes it.
        column: that of the labels; None: the one that holds classes.
        part: "train", "held-out" or "all".
        wanted: what the pictures are made into.

    Raises:
        ImportError: datasets is not installed.
        InvalidInputError: it cannot be loaded, or has no column of images.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"'hf:{name}' is loaded by Hugging Face's datasets, which is not installed: pip install \"sdegen[hub]\""
        ) from error
    path, _, configuration = name.partition(":")
    try:
        parts = datasets.load_dataset(path, configuration or None)
    except Exception as error:  # of the network, of the disk, of a hub: each its own class
        raise InvalidInputError(f"datasets could not load {name!r}: {type(error).__name__}: {error}") from error
    held_out = next((end for end in _HELD_OUT if end in parts), None)
    if "train" not in parts:
        raise InvalidInputError(f"{name!r} has the parts {', '.join(parts)}: expected one called train")
    chosen = {"train": ["train"], "held-out": [held_out], "all": ["train", held_out]}[part] if held_out else ["train"]
    rows = [(parts[end], i) for end in chosen if end for i in range(len(parts[end]))]
    features = parts["train"].features
    images = _column(name, features, "Image", None)
    if images is None:
        raise InvalidInputError(f"{name!r} has no column of images: it has {', '.join(features)}")
    classes = _column(name, features, "ClassLabel", column)
    files = [Picture(f"row {i}", lambda t=t, i=i: t[i][images]) for t, i in rows]
    found = decode(files, wanted._replace(decides=not held_out))
    raw = Raw(found.pixels, None, 256, None, found.skipped, found.kept, found.notes)
    if classes is None:
        return raw, bool(held_out)
    labels = np.concatenate([np.asarray(parts[end][classes]) for end in chosen if end])[found.files]
    names = getattr(features[classes], "names", None)
    return raw._replace(labels=labels, classes=names and tuple(names)), bool(held_out)


def _column(name: str, features: Any, kind: str, wanted: str | None) -> str | None:
    """The column of a kind of feature; the one asked for, "label", or the first."""
    if wanted is not None:
        if wanted not in features:
            raise InvalidInputError(f"{name!r} has no column {wanted!r}: it has {', '.join(features)}")
        return wanted
    able = [key for key, feature in features.items() if type(feature).__name__ == kind]
    return "label" if "label" in able else next(iter(able), None)
