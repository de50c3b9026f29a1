"""Many samples, in files: made in any number of processes, in any number of attempts, the folder is the same."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.conditions import mapped
from ..core.errors import InvalidInputError
from ..core.files import as_path, replacing, write_synced
from ..core.settings import claim
from ..core.team import place_here
from ..data.pixels import MODES
from ..data.png import decoded, encoded
from ..models.base import ScoreModel
from ..models.identity import weights_of
from ..models.space import shown_shape
from .sampling import sample

KINDS = ("npz", "png")


@dataclass(frozen=True)
class Written:
    """What `sample_files` did in this process.

    Attributes:
        made: files that it wrote.
        kept: files that were there and whole.
    """

    made: list[Path]
    kept: list[Path]


def sample_files(
    model: ScoreModel,
    folder: str | os.PathLike,
    n: int,
    *,
    kind: str = "npz",
    batch_size: int = 64,
    batches_per_file: int = 16,
    seed: int = 0,
    labels: Callable[[Tensor], Mapping[str, Any]] | None = None,
    **how: Any,
) -> Written:
    """Draw samples 0 .. n - 1 into files of a folder, a batch in memory at a time but for the file being written.

    Files are `samples-<first>-<last>.npz` with arrays x and index, or .zip archives of 8-bit PNGs, each written beside
    its place, synced and renamed. What is there and whole stays, so that a run that was killed goes on. The processes
    of torchrun share the files; each is made once, with the bytes that one process would write.

    Args:
        model: a ScoreModel that knows its event shape.
        folder: made if need be; one with samples of other settings is refused.
        n: how many samples.
        kind: "npz", or "png" for images (C, H, W) in [-1, 1].
        batch_size: samples solved together.
        batches_per_file: how many of these are a file.
        seed: sample i depends on (seed, i) alone.
        labels: a function of sample numbers (B,): their conditions by name.
        **how: solver, steps, rtol, atol, eta, ... of `sample`.

    Returns:
        `Written`.

    Raises:
        InvalidInputError: a folder of other settings, a kind that does not suit the samples, options of `sample`.
    """
    n = whole(n, "n", least=1)
    size = whole(batch_size, "batch_size", least=1) * whole(batches_per_file, "batches_per_file", least=1)
    _check_kind(model, kind)
    place = as_path(folder, "folder")
    settings = {"n": n, "kind": kind, "batch_size": batch_size, "batches_per_file": batches_per_file, "seed": seed}
    settings |= {name: v if isinstance(v, int | float | str | None) else repr(v) for name, v in how.items()}
    claim(place, {**settings, "weights": weights_of(model)})
    rank, processes = place_here()
    made, kept = [], []
    for start in range(rank * size, n, processes * size):
        stop = min(start + size, n)
        file = place / f"samples-{start:08d}-{stop - 1:08d}.{'npz' if kind == 'npz' else 'zip'}"
        if _is_whole(file):
            kept.append(file)
            continue
        x = torch.cat([part.cpu() for part in _batches(model, range(start, stop, batch_size), seed, labels, how)])
        with replacing(file) as fresh:
            write_synced(fresh, [_archive(x, start, kind)])
        made.append(file)
    return Written(made, kept)


def read_samples(folder: str | os.PathLike) -> Iterator[Tensor]:
    """The samples in a folder that `sample_files` wrote, in order, a file at a time.

    Args:
        folder: with files of either kind.

    Returns:
        Tensors (m, *event); PNGs in [-1, 1].
    """
    for file in sorted(as_path(folder, "folder").glob("samples-*")):
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                yield torch.from_numpy(arrays["x"])
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                yield torch.stack([decoded(archive.read(name)) for name in sorted(archive.namelist())])


def _batches(model: ScoreModel, starts: range, seed: int, labels: Any, how: Mapping[str, Any]) -> Iterable[Tensor]:
    """Samples numbered from `starts.start` on, those from one of `starts` to the next together."""
    device = next((p.device for p in model.parameters()), None)
    for first in starts:
        index = torch.arange(first, min(first + starts.step, starts.stop))
        cond = mapped({} if labels is None else dict(labels(index)), lambda value: value.to(device))
        yield model.decode(sample(model, len(index), index=index, seed=seed, cond=cond, progress=False, **how).x)


def _check_kind(model: ScoreModel, kind: str) -> None:
    if kind not in KINDS:
        raise InvalidInputError(f"got kind={kind!r}, expected 'npz' or 'png'")
    event = shown_shape(model)
    if event is None:
        raise InvalidInputError("model: got one that does not know its event shape, expected one that was trained")
    if kind == "png" and (len(event) != 3 or event[0] not in MODES):
        raise InvalidInputError(
            f"kind='png': got samples of shape {tuple(event)}, expected images (C, H, W): use 'npz'"
        )


def _is_whole(file: Path) -> bool:
    """Whether a file is there, and every part of it has the checksum that it says."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _archive(x: Tensor, start: int, kind: str) -> bytes:
    """A zip file, the same bytes whenever it is made."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in _members(x, start, kind):
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def _members(x: Tensor, start: int, kind: str) -> Iterator[tuple[str, bytes]]:
    if kind == "png":
        for i, image in enumerate(x, start):
            yield f"{i:08d}.png", encoded(image)
        return
    for name, array in (("x", x.numpy()), ("index", np.arange(start, start + len(x)))):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
        yield f"{name}.npy", stream.getvalue()
