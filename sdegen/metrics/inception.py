"""The FID of papers, by torch-fidelity: Inception-v3 features, whose weights that library downloads once."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, warn
from ..core.kinds import checked

_FEATURES = 2048  # of Inception-v3


@checked
def fid(
    x: Tensor | str | os.PathLike,
    real: Tensor | str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> float:
    """Frechet inception distance, with the weights and the resizing of the original.

    Papers use 50,000 samples against the training set; fewer give larger values (see `frechet_distance`), and no more
    than 2048, the number of features, a RuntimeWarning.

    Args:
        x, real: images in [-1, 1], (N, C, H, W) with C = 1 or 3, or folders of pictures.
        weights: the file of Inception's weights; None: torch-fidelity's own place, downloaded on first use.
        batch_size: images a call of the network.
        device: None: CUDA if there is one.

    Returns:
        The FID.

    Raises:
        InvalidInputError: images of another shape, or fewer than two.
        ImportError: torch-fidelity is not installed.

    Source: Heusel et al. 2017; Obukhov et al. 2020, torch-fidelity.
    """
    inputs = [_input(z) for z in (x, real)]
    try:
        library: Any = importlib.import_module("torch_fidelity")
    except ImportError as error:
        raise ImportError(
            "FID is computed by torch-fidelity, which is not installed or does not find its own parts "
            f'({error}): pip install "sdegen[fid]"; without it, frechet_distance of train_classifier features is a '
            "distance of its own, under another name"
        ) from error
    counts = [len(z) for z in inputs if isinstance(z, _Bytes)]
    if counts and min(counts) <= _FEATURES:
        warn(
            f"FID of {min(counts)} images in {_FEATURES} dimensions: a covariance of so few is singular, and the value "
            "too large. Compare only with values at the same sizes, or pass more",
            RuntimeWarning,
        )
    found = library.calculate_metrics(
        input1=inputs[0],
        input2=inputs[1],
        fid=True,
        cuda=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type == "cuda",
        batch_size=batch_size,
        feature_extractor_weights_path=None if weights is None else os.fspath(weights),
        verbose=False,
    )
    return float(found["frechet_inception_distance"])


class _Bytes(torch.utils.data.Dataset):
    """Images in [-1, 1] as RGB bytes, the nearest of 256 levels."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        u = ((self.x[i].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return u.expand(3, -1, -1).contiguous()


def _input(z: Any) -> Any:
    if isinstance(z, str | os.PathLike):
        return os.fspath(z)
    if not isinstance(z, Tensor) or z.ndim != 4 or z.shape[1] not in (1, 3) or len(z) < 2 or not z.is_floating_point():
        got = f"{z.dtype} of shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise InvalidInputError(f"images are {got}: expected two or more in [-1, 1], (N, 1 or 3, H, W), or a folder")
    return _Bytes(z.detach().cpu())
