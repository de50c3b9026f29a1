"""Images in [-1, 1] as PNG files of 8 bits, and back."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from .pixels import MODES


def encoded(x: Tensor) -> bytes:
    """An image (C, H, W) in [-1, 1] as a PNG file."""
    from PIL import Image  # where it is needed: it is an extra

    u = ((x.double().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(u[..., 0] if u.shape[2] == 1 else u, MODES[u.shape[2]]).save(stream, "png")
    return stream.getvalue()


def decoded(data: bytes) -> Tensor:
    """The image of a PNG file, (C, H, W) in [-1, 1].

    Raises:
        OSError, SyntaxError: as Pillow has them, for what is none or is damaged.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        u = torch.tensor(np.asarray(image), dtype=torch.float32) / 127.5 - 1
    return u[None] if u.ndim == 2 else u.permute(2, 0, 1)
