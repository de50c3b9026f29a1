"""Latents as data: what an encoder believes of many samples, computed once, kept in a file if asked for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..core.errors import InvalidInputError, warn
from ..core.files import as_path, cure, write_whole
from ..core.kinds import checked
from ..core.shapes import check_state
from ..core.show import Shown
from ..data.batched import Batched
from ..noise.purposes import Purpose
from ..noise.white import Noise, check_seed, fresh_seed

Moments = tuple[Tensor, Tensor | None]  # mean and std of what an encoder draws, None where it draws nothing

_PORTION = 1024  # samples hashed at a time


class Latents(Batched, Shown):
    """Latents of N samples, as `LatentSpace.latents` makes them: `fit` and `data.Conditioned` take them.

    Args:
        mean: (N, C, ...) standardised.
        std: of what the encoder draws around it; None: nothing.
        data: what was encoded, whose conditions are kept; None: without conditions.
        seed: None: drawn anew whenever they are asked for; a whole number: one draw each.

    Attributes:
        mean, std, data, seed: the same.

    Raises:
        InvalidInputError: mean, std and data of different sizes.
    """

    @checked
    def __init__(
        self, mean: Tensor, std: Tensor | None = None, data: Batched | None = None, *, seed: int | None = None
    ) -> None:
        if std is not None and std.shape != mean.shape:
            raise InvalidInputError(f"std has shape {tuple(std.shape)}, mean {tuple(mean.shape)}: expected the same")
        if not mean.ndim or (data is not None and len(data) != len(mean)):
            raise InvalidInputError(f"mean has shape {tuple(mean.shape)}: expected (N, C, ...), N as of the data")
        self.mean, self.std, self.data = mean, std, data
        self.seed = None if seed is None else check_seed(seed)

    def _facts(self):
        return {"samples": len(self), "shape": tuple(self.mean.shape[1:]), "data": self.data}

    def __len__(self) -> int:
        return len(self.mean)

    @checked
    def batch(self, numbers: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Some latents.

        Args:
            numbers: (B,) integers, 0 .. len - 1.

        Returns:
            z (B, C, ...), and their conditions by name.

        Raises:
            InvalidInputError: numbers that are no integers of the set.
        """
        self.check_numbers(numbers)
        z = self.mean[numbers]
        if self.std is not None:
            noise = Noise(fresh_seed() if self.seed is None else self.seed, index=numbers)
            z = z + self.std[numbers] * noise.normal(z.shape, Purpose.LATENT, dtype=z.dtype, device=z.device)
        return z, {} if self.data is None else self.data.batch(numbers)[1]


def moments_of(encode: Callable[[Tensor], Moments], data: Batched, numbers: Tensor, rows: int) -> Moments:
    """What an encoder makes of these samples, so many at a time, on the CPU in float32."""
    with torch.no_grad():
        parts = [encode(_checked(data.batch(some)[0])) for some in numbers.split(rows)]
    stds = [s.float().cpu() for _, s in parts if s is not None]
    return torch.cat([m.float().cpu() for m, _ in parts]), torch.cat(stds) if stds else None


def _checked(x: Tensor) -> Tensor:
    """Samples, which no encoder is asked of unless they are finite numbers."""
    check_state(x, name="data")
    return x


def kept(cache: str | os.PathLike | None, space: nn.Module, data: Batched, make: Callable[[], Moments]) -> Moments:
    """What `make` gives, from a file that an earlier call left where the space and the data were the same.

    The file is named after a digest of the weights of the space and of the data, and has one of its tensors.

    Raises:
        InvalidInputError: the folder cannot be written to.
    """
    if cache is None:
        return make()
    file = as_path(cache, "cache") / f"latents-{_key(space, data)}.safetensors"
    if (found := _read(file)) is not None:
        return found
    m, s = made = make()
    tensors = {"mean": m.contiguous(), **({} if s is None else {"std": s.contiguous()})}
    try:
        write_whole(file, safetensors.torch.save(tensors, {"sha256": _digest(tensors)}))
    except OSError as error:
        raise InvalidInputError(
            f"cache={str(cache)!r} cannot be written ({error}): {cure(error)}, or leave it out"
        ) from error
    return made


def _read(file: Path) -> Moments | None:
    """What is kept; None where there is nothing, and with a warning where it is damaged."""
    try:
        if not file.is_file():
            return None
    except OSError:  # a name that no disk takes: writing says so
        return None
    try:
        tensors = safetensors.torch.load_file(file)
        with safetensors.safe_open(file, "pt") as opened:
            digest = (opened.metadata() or {}).get("sha256")
        if digest == _digest(tensors):
            return tensors["mean"], tensors.get("std")
        damage = "not what was written"
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        damage = str(error)
    warn(f"kept latents are damaged and made again: {file}: {damage}", RuntimeWarning)
    return None


def _key(space: nn.Module, data: Batched) -> str:
    """A digest of the weights and of all samples."""
    digest = hashlib.sha256(_digest(space.state_dict()).encode())
    for some in torch.arange(len(data)).split(_PORTION):
        digest.update(_digest({"x": data.batch(some)[0]}).encode())
    return digest.hexdigest()[:24]


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
