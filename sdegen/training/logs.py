"""What a run writes down for people: metrics as CSV and, if asked, for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from ..core.errors import InvalidInputError
from ..core.files import write_whole
from .folder import writing
from .history import LossByLevel

_METRICS, _LEVELS = "metrics.csv", "loss_by_level.csv"
_BANDS = 5  # of noise levels, in TensorBoard


class Logs:
    """The metrics of a run folder: rows of `metrics.csv` and `loss_by_level.csv`, which a resumed run continues.

    Use it in a `with` statement. What is after `step` in the files is forgotten.

    Args:
        folder: where.
        step: where the run goes on.
        tensorboard: write the same for TensorBoard too.

    Raises:
        InvalidInputError: TensorBoard is asked for and not installed.
        CheckpointError: the disk is full, or the folder's rights do not allow it.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self.folder = folder
        with writing(folder):
            for name in (_METRICS, _LEVELS):
                _rewind(folder / name, step)
        self._board = _board(folder, step) if tensorboard else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, rows: Sequence[Mapping[str, Any]], levels: LossByLevel) -> None:
        """Append rows of metrics, and the loss by noise level as it is at the last of them."""
        if not rows:
            return
        centres = ((levels.edges[:-1] + levels.edges[1:]) / 2).tolist()
        by_level = {f"{c:.3f}": loss for c, loss in zip(centres, levels.loss.tolist(), strict=True)}
        with writing(self.folder):
            _append(self.folder / _METRICS, rows)
            if by_level:
                _append(self.folder / _LEVELS, [{"step": rows[-1]["step"], **by_level}])
            if self._board is not None:
                for row in rows:
                    for name, value in row.items():
                        if name != "step":
                            self._board.add_scalar(name, value, row["step"])
                for name, value in _bands(levels).items():
                    self._board.add_scalar(f"loss_by_half_log_snr/{name}", value, rows[-1]["step"])

    def show(self, drawing: Any, step: int) -> None:
        """Give TensorBoard a figure, or the one of Axes, and close it; anything else is let go."""
        if self._board is None or not hasattr(drawing, "get_figure"):
            return
        with writing(self.folder):
            self._board.add_figure("picture", drawing.get_figure(root=True), step)


def _bands(levels: LossByLevel) -> dict[str, float]:
    """The mean loss in few bands of noise levels, from noise to data; those that had samples."""
    found = {}
    sums = (levels.loss * levels.count).nan_to_num(0.0)
    for k, part in enumerate(torch.arange(len(sums), device="cpu").chunk(_BANDS), 1):
        low, high = float(levels.edges[part[0]]), float(levels.edges[part[-1] + 1])
        if count := float(levels.count[part].sum()):
            found[f"{k}_from_{low:.1f}_to_{high:.1f}"] = float(sums[part].sum()) / count
    return found


def _append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    begins = not file.exists()
    with open(file, "a", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        if begins:
            writer.writeheader()
        writer.writerows(rows)


def _rewind(file: Path, step: int) -> None:
    """Forget the rows after a step, and a row that a crash cut short."""
    if not file.exists():
        return
    head, *rows = file.read_text().splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
    if not head.endswith("\n"):
        file.unlink()
        return
    write_whole(file, (head + "".join(kept)).encode())


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # where it is needed: importing it takes time
    except ImportError as error:
        raise InvalidInputError(
            "tensorboard=True, but TensorBoard is not installed: pip install 'sdegen[train]', or read metrics.csv"
        ) from error
    return SummaryWriter(str(folder), purge_step=step)
