"""Which statistics of the data a model is trained with: those it knows, or those of the data that `fit` is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import warn
from ..models.base import ScoreModel
from ..models.facts import DataFacts
from ..models.scale import warn_out_of_scale

WISHES = ("keep", "measure")
_FAR = 2.0  # standard deviations whose ratio is beyond it, and means farther apart than its excess over 1, are told
_RECORD = "_statistics_of_fit"  # where a model keeps what fit measured


class Spread:
    """Rows evenly from all that pass by, however many they will be: 256 to 512, or all where they are fewer.

    Args:
        numbers: in a row; where 512 rows would have more than 2^24, fewer are kept.
    """

    def __init__(self, numbers: int) -> None:
        self._most = min(max(2**24 // max(numbers, 1), 32), 512)
        self._kept: list[Tensor] = []
        self._every, self._seen = 1, 0

    def add(self, chunk: Tensor) -> None:
        first = -self._seen % self._every
        self._kept += list(chunk[first :: self._every].detach().cpu())
        self._seen += len(chunk)
        while len(self._kept) > self._most:
            self._kept, self._every = self._kept[::2], 2 * self._every

    def rows(self) -> Tensor:
        return torch.stack(self._kept)


@dataclass
class Record:
    """What `fit` measured for a model, and how many steps were trained with it."""

    values: dict[str, Tensor | None]
    steps: int = 0


def learn_statistics(
    model: ScoreModel, mean: Tensor, std: float, *, turn: float = 0.0, wish: str | None, steps: int, tell: bool = True
) -> str:
    """Set a model's data_mean and data_std before a run, and say what was done.

    What is not known is measured. What an earlier `fit` measured is measured again where this run makes more steps
    than were trained with it so far, as after a trial run; else it is kept, for networks are trained to it.

    Args:
        model: its event shape is known.
        mean, std: of the data at hand; std 0 where all samples are the same.
        turn: the turning level of these data, 0 where they have none; it stays with the std that was measured with it.
        wish: "keep" or "measure", to decide for both; None: as above.
        steps: that this run makes.
        tell: warn of data that are far from what is kept, unless that was wished, and of data out of scale.

    Returns:
        In words, which of the two are measured, measured again or kept.
    """
    record = vars(model).get(_RECORD) or Record({})
    known: dict[str, Tensor | None] = {"data_mean": model.data_mean, "data_std": model.data_std}
    here = {"data_mean": mean, "data_std": torch.tensor(std, dtype=torch.float64, device="cpu") if std else None}
    done: dict[str, str] = {}
    for name, value in known.items():
        own = name in record.values and _equal(record.values[name], value)
        if value is None:
            done[name] = "measured"
        elif wish == "measure" or (wish is None and own and steps > record.steps):
            done[name] = "measured again" if not _equal(value, here[name]) else "kept"
        else:
            done[name] = "kept"
    chosen = {name: known[name] if how == "kept" else here[name] for name, how in done.items()}
    model.set_statistics(chosen["data_mean"], chosen["data_std"])
    if model.data_turn is None or done["data_std"] != "kept":
        model.data_turn = turn or None
    kept = {name for name, how in done.items() if how == "kept"}
    values = {name: chosen[name] for name in done if name not in kept or name in record.values}
    setattr(model, _RECORD, Record(values, 0 if "measured again" in done.values() else record.steps))
    if tell:
        if wish is None:
            _warn_of_far(model, mean, std)
        warn_out_of_scale(DataFacts(mean, here["data_std"], None, model.event_shape), model.sde, trained=True)
    return ", ".join(f"{name} {how}" for name, how in done.items())


def count_steps(model: nn.Module, steps: int) -> None:
    """Note that a run made so many steps with the statistics that the model has."""
    if record := vars(model).get(_RECORD):
        record.steps += steps


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a.cpu().expand_as(b), b.cpu()) if a.ndim <= b.ndim else False


def _warn_of_far(model: ScoreModel, mean: Tensor, std: float) -> None:
    """Warn if what the model knows of its data is far from these."""
    own_mean, own_std = model.data_mean.double().cpu(), model.data.scale
    apart = float((own_mean - mean).square().mean().sqrt()) if mean.numel() else 0.0
    ratio = max(own_std, std) / max(min(own_std, std), 1e-300) if model.data_std is not None else 1.0
    if ratio > _FAR or apart > (_FAR - 1) * max(own_std, std):
        warn(
            f"the model keeps its statistics, data_std {own_std:.3g} and a mean of {float(own_mean.mean()):.3g}, but "
            f"these data have {std:.3g} and {float(mean.mean()) if mean.numel() else 0.0:.3g}: pass "
            "statistics='measure' to take those of the data, or statistics='keep' if this is meant"
        )
