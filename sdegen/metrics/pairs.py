"""How far a picture is from the one it should be, pair by pair: PSNR and SSIM of torchmetrics."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import number
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..distributions.distances import Samples, as_samples

_ROUNDING = 1e-3  # how far a value may lie beyond its range


@checked
def psnr(x: Samples, reference: Samples, *, data_range: float | None = None) -> Tensor:
    """Peak signal-to-noise ratio in decibels, 10 log10(data_range^2/mean squared error); infinite for equal images.

    Args:
        x, reference: (B, C, H, W).
        data_range: white less black. None: 255 for bytes, 2 for floating numbers in [-1, 1]; a reference that has no
            negative values, or values beyond, may be of another range, and it has to be said.

    Returns:
        (B,), float64.

    Raises:
        InvalidInputError: shapes or types that differ, no images, a range that is not positive, not known, or smaller
            than that of the reference.
        ImportError: torchmetrics is not installed.
    """
    x, reference, data_range = _pair(x, reference, data_range)
    compute = _library().peak_signal_noise_ratio
    return compute(x, reference, data_range=data_range, reduction="none", dim=(1, 2, 3))


@checked
def ssim(x: Samples, reference: Samples, *, data_range: float | None = None, sigma: float = 1.5) -> Tensor:
    """Structural similarity under a Gaussian window of standard deviation sigma, at most 1, for equal images.

    The window spans 2 round(3.5 sigma) + 1 pixels, 11 for the usual sigma, and is laid only where it fits. The formula
    compares means as they are, so that images with black at -1 and with black at 0 have other values.

    Args:
        x, reference: (B, C, H, W).
        data_range: white less black; None: as in `psnr`.
        sigma: in pixels; a smaller one for images below 11x11 (and say so).

    Returns:
        (B,), float64.

    Raises:
        InvalidInputError: shapes or types that differ, images that are smaller than the window, a range that is not
            positive, not known, or smaller than that of the reference.
        ImportError: torchmetrics is not installed.

    Source: Wang et al. 2004, eq. 13, with K1 = 0.01, K2 = 0.03.
    """
    x, reference, data_range = _pair(x, reference, data_range)
    number(sigma, "sigma", "a number above 0")
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


def _pair(x: Samples, reference: Samples, data_range: float | None) -> tuple[Tensor, Tensor, float]:
    """Both in float64 on one device, and white less black."""
    x, reference = as_samples(x, "x"), as_samples(reference, "reference")
    if x.shape != reference.shape or x.ndim != 4 or not x.numel():
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)} and reference {tuple(reference.shape)}: expected one shape (B, C, H, W)"
        )
    if x.is_floating_point() != reference.is_floating_point():
        raise InvalidInputError(
            f"x is {x.dtype} and reference {reference.dtype}: scale both alike, bytes to [-1, 1] as u / 127.5 - 1"
        )
    low, high = (float(f(reference.double())) for f in (torch.min, torch.max))  # which not all types have
    found = _range_of(reference.dtype, low, high) if data_range is None else data_range
    if not 0 < found < 1e100:
        raise InvalidInputError(f"got data_range={data_range!r}, expected white less black, 2.0 for images in [-1, 1]")
    if high - low > found * (1 + _ROUNDING):
        raise InvalidInputError(f"data_range={found:g}, but the reference has values from {low:g} to {high:g}")
    return x.double(), reference.to(x.device).double(), float(found)


def _range_of(dtype: torch.dtype, low: float, high: float) -> float:
    """White less black of images of which nobody said it."""
    if dtype in (torch.uint8, torch.bool):
        return 255.0 if dtype == torch.uint8 else 1.0
    if low >= 0 or max(-low, high) > 1 + _ROUNDING or not dtype.is_floating_point:
        raise InvalidInputError(
            f"the reference is {dtype} with values from {low:g} to {high:g}: pass data_range=, white less "
            "black: 2.0 for images in [-1, 1], 1.0 in [0, 1], 255.0 in [0, 255]"
        )
    return 2.0
