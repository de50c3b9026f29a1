"""A folder of samples: each image a file of its own, made once, by however many processes, however often stopped."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.files import write_whole
from ..data.pixels import MODES
from ..models.base import ScoreModel


def settings_of(model: ScoreModel, how: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What decides the samples of a folder."""
    parts = [*model.parameters(), *(model.space.state_dict().values() if model.space is not None else ())]
    weights = hashlib.sha256()
    for part in parts:  # one at a time: a large model is not copied
        weights.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {**how, **more, "weights": weights.hexdigest()}


def check(out: Path, settings: dict[str, Any]) -> None:
    """See that the folder has no samples of other settings."""
    file = out / "settings.json"
    if not file.exists():
        return
    try:
        theirs = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise InvalidInputError(
            f"{file} is damaged: remove it if the samples beside it are yours, or pass another --out"
        ) from None
    other = [name for name in settings if settings[name] != theirs.get(name)]
    if other:
        raise InvalidInputError(f"{out} has samples of other settings ({', '.join(other)}): pass another --out")


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder ours: when there is a sample to keep, so that what is refused leaves nothing."""
    out.mkdir(parents=True, exist_ok=True)
    check(out, settings)
    if not (out / "settings.json").exists():
        write_whole(out / "settings.json", json.dumps(settings, indent=1, sort_keys=True).encode())


def encoded(x: Tensor) -> bytes:
    """An image (C, H, W) in [-1, 1] as a PNG file."""
    u = ((x.double().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(u[..., 0] if u.shape[2] == 1 else u, MODES[u.shape[2]]).save(stream, "png")
    return stream.getvalue()


def decoded(path: Path) -> Tensor | None:
    """The image of a file, None where there is none or it is damaged."""
    try:
        with Image.open(path) as image:
            u = np.asarray(image)
    except (OSError, SyntaxError):  # Pillow's words for no such file and for a broken one
        return None
    u = torch.tensor(u, dtype=torch.float32) / 127.5 - 1
    return u[None] if u.ndim == 2 else u.permute(2, 0, 1)
