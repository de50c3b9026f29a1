"""How far a picture is from the one it should be, pair by pair: PSNR and SSIM of torchmetrics."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError


def psnr(x: Tensor, reference: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in decibels, 10 log10(data_range^2/mean squared error); infinite for equal images.

    Args:
        x, reference: (B, C, H, W).
        data_range: white less black: 2 for images in [-1, 1].

    Returns:
        (B,), float64.

    Raises:
        InvalidInputError: shapes that differ, no images, a range that is not positive.
        ImportError: torchmetrics is not installed.
    """
    x, reference = _pair(x, reference, data_range)
    compute = _library().peak_signal_noise_ratio
    return compute(x, reference, data_range=data_range, reduction="none", dim=(1, 2, 3))


def ssim(x: Tensor, reference: Tensor, *, data_range: float = 2.0, sigma: float = 1.5) -> Tensor:
    """Structural similarity under a Gaussian window of standard deviation sigma, at most 1, for equal images.

    The window spans 2 round(3.5 sigma) + 1 pixels, 11 for the usual sigma, and is laid only where it fits.

    Args:
        x, reference: (B, C, H, W).
        data_range: white less black: 2 for images in [-1, 1].
        sigma: in pixels; a smaller one for images below 11x11 (and say so).

    Returns:
        (B,), float64.

    Raises:
        InvalidInputError: shapes that differ, images that are smaller than the window, a range that is not positive.
        ImportError: torchmetrics is not installed.

    Source: Wang et al. 2004, eq. 13, with K1 = 0.01, K2 = 0.03.
    """
    x, reference = _pair(x, reference, data_range)
    window = 2 * int(3.5 * sigma + 0.5) + 1
    if not sigma > 0 or min(x.shape[2:]) < window:
        raise InvalidInputError(
            f"images of {x.shape[2]}x{x.shape[3]} are smaller than the window of {window}x{window} that "
            f"sigma={sigma!r} asks for: pass a smaller one, above 0"
        )
    compute = _library().structural_similarity_index_measure
    _, full = compute(x, reference, data_range=data_range, sigma=sigma, reduction="none", return_full_image=True)
    rim = window // 2  # where torchmetrics mirrors the image
    h, w = x.shape[2:]
    return full[:, :, rim : h - rim, rim : w - rim].mean((1, 2, 3))


def _library() -> Any:
    try:
        return importlib.import_module("torchmetrics.functional.image")
    except ImportError as error:
        raise ImportError(
            'PSNR and SSIM are those of torchmetrics, which is not installed: pip install "sdegen[metrics]"'
        ) from error


def _pair(x: Tensor, reference: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    x, reference = torch.as_tensor(x).detach().double(), torch.as_tensor(reference).detach().double()
    if x.shape != reference.shape or x.ndim != 4 or not x.numel():
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)} and reference {tuple(reference.shape)}: wanted one shape (B, C, H, W)"
        )
    if not data_range > 0:
        raise InvalidInputError(f"data_range={data_range!r}: wanted white less black, 2.0 for images in [-1, 1]")
    return x, reference.to(x.device)
