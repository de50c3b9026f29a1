"""What a run knows itself by: a fingerprint of its data, and its settings.

When it goes on, what may have changed is told, what may not is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from torch import nn

from ..core.conditions import tensors_of
from ..core.errors import IncompatibleCheckpointError, warn
from ..models.networks import plain_names
from .batches import Batch, Batches, Statistics
from .functions import bytes_of, hash_of_code, in_words
from .optimiser import optimiser_in_words
from .options import Options

# Settings that another part of a run may have.
_FREE = (
    "steps",
    "batch_size",
    "accumulate",
    "lr",
    "schedule",
    "warmup",
    "clip",
    "weight_decay",
    "decay",
    "precision",
)
_FUNCTIONS = ("loss", "optimizer", "lr_scheduler")
_FIXED = {
    "loss": "pass the same one",
    "average": "ema= decides it: pass the same",
    "weights": "requires_grad decides which are trained: train the same",
    "optimizer": "pass the same one",
    "lr_scheduler": "pass the same one",
}

# Of mean and standard deviation, relative to the latter: what rounding, and at least what chance may change.
_ROUNDING, _CHANCE = 1e-5, 0.1


def fingerprint(source: Batches, statistics: Statistics) -> dict[str, Any]:
    """What tells data from other data, as JSON.

    How many samples there are, their shape and dtype, mean and standard deviation; and hashes of some of them and of
    their conditions, None where they are not the same when they are asked for again, as those of a generator.
    """
    first = source.first
    one, two = _hashes(source.some()), _hashes(source.some())
    return {
        "samples": source.size,
        "shape": list(first.x0.shape[1:]),
        "dtype": str(first.x0.dtype),
        "mean": float(statistics.mean.mean()) if statistics.mean.numel() else 0.0,
        "std": statistics.std,
        "measured": statistics.samples,
        "conditions": sorted(first.cond),
        "hashes": one if one is not None and one == two else None,
    }


def settings(options: Options, model: nn.Module) -> dict[str, Any]:
    """The settings that decide a run, as JSON: by name, functions in words and by a hash of their code."""
    widths = list(options.widths)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = sorted(plain_names(model, named).values())
    return {
        "loss": in_words(options.loss),
        "average": widths or "exponential",
        "decay": None if widths else options.ema,
        "weights": f"{len(named)} tensors ({blake2b(repr(trained).encode(), digest_size=4).hexdigest()})",
        **optimiser_in_words(named.values(), options),
        **{name: getattr(options, name) for name in _FREE if name != "decay"},
        "code": {name: hash_of_code(getattr(options, name)) for name in _FUNCTIONS},
    }


def check_same_run(found: Mapping[str, Any], data: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Compare a run with what its checkpoint says of itself.

    Args:
        found: what was kept, {"data": `fingerprint`, "settings": `settings`}; nothing in checkpoints from before.
        data, own: the same of now.

    Raises:
        IncompatibleCheckpointError: other data, another loss or weighting, other averages, another optimizer, other
            weights that are trained: with the two values.

    Warns:
        UserWarning: lists the settings that have changed and may; or that the data are others of the same law, as when
            they were drawn anew.
    """
    before = found.get("settings", {})
    for name, cure in _FIXED.items():
        if name in before and before[name] != own[name]:
            raise _refused(name, own[name], before[name], cure)
    names = [name for name in _FREE if name in before and not _alike(before[name], own[name])]
    changed = [f"{name} {before[name]!r} -> {own[name]!r}" for name in names]
    code = before.get("code", {})
    changed += [f"{name}: a function with other code" for name in code if code[name] != own["code"].get(name)]
    if found.get("data") and not _same_data(found["data"], data):
        changed.append("data: other samples, of the same number, mean and standard deviation as far as chance allows")
    if changed:
        warn(f"this run goes on with what is not as before: {'; '.join(changed)}", UserWarning)


def _same_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether data are the same for all that can be known, or else others that may have been drawn from the same law.

    Raises:
        IncompatibleCheckpointError: neither.
    """
    for name in ("samples", "shape", "conditions"):
        if before[name] != now[name]:
            raise _other_data(before, now, name)
    chance = max(_CHANCE, 5 / math.sqrt(max(1, min(before["measured"], now["measured"]))))
    low, std = sorted((before["std"], now["std"]))
    apart = max(abs(before["mean"] - now["mean"]), std - low)
    if not (apart <= chance * std and std - low <= chance * low):
        raise _other_data(before, now, "values")
    theirs, ours = before["hashes"], now["hashes"]
    if theirs is None or ours is None:
        return True
    if theirs["x0"] != ours["x0"]:
        return False
    if theirs["conditions"] != ours["conditions"]:
        raise _other_data(before, now, "conditions")
    return apart <= _ROUNDING * std


def _other_data(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> IncompatibleCheckpointError:
    def told(data: Mapping[str, Any]) -> str:
        size = "samples" if data["samples"] is None else f"{data['samples']} samples"
        conditions = f" with {', '.join(data['conditions'])}" if data["conditions"] else ""
        spread = f"mean {data['mean']:.4g}, standard deviation {data['std']:.4g}"
        return f"{size} {tuple(data['shape'])}{conditions}, {spread}"

    return _refused(f"data (their {name})", told(now), told(before), "pass the same ones")


def _refused(name: str, now: Any, before: Any, cure: str) -> IncompatibleCheckpointError:
    return IncompatibleCheckpointError(
        f"{name}: got {now}; the run in this folder was made with {before}: {cure}, or another out= for a new run, "
        "which may begin with this one's model: load(out)"
    )


def _alike(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-12) if numbers else a == b


# ---- data


def _hashes(batch: Batch | None) -> dict[str, str] | None:
    if batch is None:
        return None
    return {"x0": _hash({"x0": batch.x0}), "conditions": _hash(batch.cond)}


def _hash(named: Mapping[str, Any]) -> str:
    digest = blake2b(digest_size=16)
    for name, value in sorted(named.items()):
        digest.update(f"{name} {_kind(value)};".encode())
        for words, tensor in tensors_of(value, name):
            digest.update(f"{words} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str | bool | None) else type(value).__name__
