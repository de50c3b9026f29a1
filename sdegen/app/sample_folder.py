"""A folder of samples: each image a file of its own, made once, by however many processes, however often stopped."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.files import write_whole
from ..data.png import decoded
from ..models.base import ScoreModel


def settings_of(model: ScoreModel, how: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What decides the samples of a folder."""
    parts = [*model.parameters(), *(model.space.state_dict().values() if model.space is not None else ())]
    weights = hashlib.sha256()
    for part in parts:  # one at a time: a large model is not copied
        weights.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {**how, **more, "weights": weights.hexdigest()}


def image_of(path: Path) -> Tensor | None:
    """The image of a file, None where there is none or it is damaged."""
    try:
        return decoded(path.read_bytes())
    except (OSError, SyntaxError):  # Pillow's words for a broken one
        return None


def write_array(path: Path, array: np.ndarray) -> None:
    """An array in a .npy file, that is there whole or not at all."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    write_whole(path, stream.getvalue())
