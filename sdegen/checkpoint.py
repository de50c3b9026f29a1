"""Checkpoints: a model on disk, written atomically, verified to the last bit, rebuilt without running what a file says.

A checkpoint is a folder: safetensors files, `state.json`, and `manifest.json`, written last, with the size and SHA-256
of the others and a seal on itself. It is made under a temporary name beside its place, synced and renamed. When it
replaces another one, that stays as `.<name>.old` until the new one is there; `load` finds it if a crash fell between.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from . import sde as processes
from .errors import (
    CheckpointError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    InvalidInputError,
    SdegenError,
)
from .model import Denoiser, ScoreModel
from .nets import MLP, DiT, UNet
from .sde import SDE
from .variance import LearnedVariance

VERSION = 1
MANIFEST, STATE = "manifest.json", "state.json"

_FORMAT = "sdegen checkpoint"
_FILE = re.compile(r"[a-z]+\.(safetensors|json)")
_STEP = re.compile(r"step-\d+")
_MOST_MANIFEST, _MOST_JSON, _MOST_HEADER = 1 << 20, 1 << 24, 1 << 24  # bytes: all three are read into memory whole

# The only classes that a name in a file can mean.
_MODELS: dict[str, type[Denoiser]] = {model.__name__: model for model in (Denoiser, LearnedVariance)}
_NETS: dict[str, type[nn.Module]] = {net.__name__: net for net in (MLP, UNet, DiT)}
_SDES: dict[str, type[SDE]] = {
    name: getattr(processes, name)
    for name in (
        *("VPSDE", "SubVPSDE", "CosineSDE", "LinearPathSDE", "VESDE", "EDMSDE", "TrigSDE"),
        *("TabulatedVPSDE", "TabulatedVESDE"),
    )
}


# ---- models


def save(model: Denoiser, path: str | os.PathLike) -> None:
    """Write a Denoiser to a checkpoint folder: weights, process, parametrisation, statistics and event shape.

    A checkpoint that is already there is replaced: a crash at any moment leaves the old one or the new one.

    Args:
        model: a Denoiser.
        path: the folder to make.

    Raises:
        InvalidInputError: a model that is not a Denoiser, or a folder at `path` that holds other things.
        IncompatibleCheckpointError: a Parametrization object: only its name could be stored.
        CheckpointError: the files could not be written (what was there before is unharmed).
    """
    state = {"model": describe(model)}
    write(path, {"model": model_tensors(model)}, state)


def load(
    path: str | os.PathLike,
    *,
    net: nn.Module | None = None,
    sde: SDE | None = None,
    device: torch.device | str | None = None,
) -> ScoreModel:
    """The model that `save` or a training run wrote, in eval mode.

    Args:
        path: a checkpoint, or the run folder of `fit`: then its newest valid checkpoint, with the averaged weights.
        net: your own network, filled with the weights in place; sdegen's are rebuilt from the file.
        sde: your own process; sdegen's are rebuilt from the file.
        device: where to; None: CUDA if there is one.

    Returns:
        A Denoiser, or a LearnedVariance where one was saved.

    Raises:
        CorruptCheckpointError: bytes on disk are not the bytes that were written.
        IncompatibleCheckpointError: another version, network or process, or one that needs `net=` or `sde=`.
        CheckpointError: there is nothing at `path`, or it cannot be read.
    """
    tensors, state = _read_model(Path(path).absolute())
    model = _rebuilt(state.get("model"), tensors["model"], net, sde)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def describe(model: Denoiser) -> dict[str, Any]:
    """Everything about a Denoiser but its tensors, as JSON."""
    if type(model) not in _MODELS.values():
        raise InvalidInputError(f"only a Denoiser can be saved, not a {type(model).__name__}: save the one inside it")
    if not isinstance(model.parametrization, str):
        raise IncompatibleCheckpointError(
            "a Parametrization object is made of functions, which a checkpoint cannot hold: use a parametrization "
            "that has a name, or keep model.net.state_dict() yourself"
        )
    sde = model.sde
    return {
        "class": type(model).__name__,
        "parametrization": model.parametrization,
        "event_shape": None if model.event_shape is None else list(model.event_shape),
        "net": _named(model.net, _NETS),
        "sde": {**_named(sde, _SDES), "t_min": sde.t_min, "t_max": sde.t_max, "path": _path(sde)},
        "about": _plain(model.about),
    }


def _plain(about: Any) -> dict[str, Any]:
    """What JSON gives back for it."""
    try:
        plain = json.loads(json.dumps(about, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"model.about cannot be written as JSON: {error}") from error
    if not isinstance(plain, dict):
        raise InvalidInputError(f"model.about is a {type(about).__name__}: wanted a dict")
    return plain


def model_tensors(model: Denoiser) -> dict[str, Tensor]:
    """The tensors of a Denoiser: "net.*" as in the network's state_dict, and the data's statistics in float64."""
    tensors = {f"net.{name}": value for name, value in model.net.state_dict().items()}
    bad = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if bad:
        raise InvalidInputError(f"the network's state_dict holds things that are no tensors: {', '.join(bad)}")
    for name in ("data_mean", "data_std"):
        if (value := getattr(model, name)) is not None:
            tensors[name] = value.double()
    return tensors


def check_same(model: Denoiser, description: Mapping[str, Any]) -> None:
    """Raise unless `describe` gave this description for the same network, parametrisation, event and process.

    Raises:
        IncompatibleCheckpointError: naming what differs.
    """
    own = json.loads(json.dumps(describe(model)))
    for key in ("class", "net", "parametrization", "event_shape"):
        theirs = description.get(key, Denoiser.__name__ if key == "class" else None)
        if own[key] != theirs:
            raise IncompatibleCheckpointError(f"the checkpoint's {key} is {theirs}, the model's {own[key]}")
    _check_path(model.sde, description["sde"]["path"])


def set_weights(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a network with the weights of `model_tensors`.

    Raises:
        IncompatibleCheckpointError: names, shapes or dtypes that are not the network's.
    """
    weights = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
    own = net.state_dict()
    wrong = [f"{name} is missing in the file" for name in own if name not in weights]
    wrong += [f"{name} is not in the network" for name in weights if name not in own]
    for name in own.keys() & weights.keys():
        theirs, ours = ((value.dtype, tuple(value.shape)) for value in (weights[name], own[name]))
        if theirs != ours:
            wrong.append(f"{name} is {theirs[0]} {theirs[1]}, the network has {ours[0]} {ours[1]}")
    if wrong:
        raise IncompatibleCheckpointError(
            f"the weights are not those of this {type(net).__name__}: {'; '.join(sorted(wrong)[:4])}"
            + f"; and {len(wrong) - 4} more" * (len(wrong) > 4)
        )
    net.load_state_dict(weights)


def _read_model(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors and state of a checkpoint, of what a crash left of it, or of the newest one of a run."""
    if not path.exists() and _old(path).is_dir():
        path = _old(path)
    if steps(path) and not (path / MANIFEST).exists() and (found := newest(path, ["model"])):
        return found
    return read(path, ["model"])


def _named(thing: Any, table: Mapping[str, type]) -> dict[str, Any]:
    """A class by name with its arguments, which are None where it is not ours to rebuild."""
    name = type(thing).__name__
    ours = table.get(name) is type(thing)
    return {"name": name, "config": getattr(thing, "config", None) if ours else None}


def _path(sde: SDE) -> list[list[float]]:
    """(t, alpha, sigma) at five times: tells one process from another."""
    t = torch.linspace(sde.t_min, sde.t_max, 5, dtype=torch.float64)
    return torch.stack([t, sde.alpha(t), sde.sigma(t)], 1).tolist()


def _rebuilt(state: Any, tensors: Mapping[str, Tensor], net: nn.Module | None, sde: SDE | None) -> Denoiser:
    try:
        sde = _rebuilt_sde(state["sde"]) if sde is None else sde
        _check_path(sde, state["sde"]["path"])
        net = _rebuilt_net(state["net"], tensors) if net is None else net
        set_weights(net, tensors)
        statistics = {name: tensors.get(name) for name in ("data_mean", "data_std")}
        make = _MODELS[state.get("class", Denoiser.__name__)]
        model = make(net, sde, parametrization=state["parametrization"], **statistics)
        model.event_shape = None if state["event_shape"] is None else tuple(int(n) for n in state["event_shape"])
        model.about = dict(state.get("about", {}))
        return model
    except CheckpointError:
        raise
    except (SdegenError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise IncompatibleCheckpointError(f"no model can be made of the checkpoint's description: {error!r}") from error


def _rebuilt_sde(state: Mapping[str, Any]) -> SDE:
    if state["name"] not in _SDES or state["config"] is None:
        raise IncompatibleCheckpointError(f"the checkpoint's process, {state['name']}, is your own: load it with sde=")
    return _SDES[state["name"]](**state["config"]).narrowed(float(state["t_min"]), float(state["t_max"]))


def _check_path(sde: SDE, path: Sequence[Sequence[float]]) -> None:
    wanted = torch.tensor(path, dtype=torch.float64)
    t, wanted = wanted[:, 0], wanted[:, 1:]
    found = torch.stack([sde.alpha(t), sde.sigma(t)], 1)
    if not torch.allclose(found, wanted, rtol=1e-6, atol=1e-12):
        raise IncompatibleCheckpointError(
            f"{sde} is not the process of the checkpoint: alpha, sigma at t = {t.tolist()} are {found.tolist()}, "
            f"and were {wanted.tolist()}"
        )


def _rebuilt_net(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    if state["name"] not in _NETS or state["config"] is None:
        raise IncompatibleCheckpointError(f"the checkpoint's network, {state['name']}, is your own: load it with net=")
    weights = [value for name, value in tensors.items() if name.startswith("net.")]
    with _no_more_parameters_than(sum(value.numel() for value in weights), len(weights)):
        net = _NETS[state["name"]](**state["config"])
    dtypes = {value.dtype for value in weights if value.is_floating_point()}
    return net.to(dtypes.pop()) if len(dtypes) == 1 else net


@contextmanager
def _no_more_parameters_than(elements: int, tensors: int):
    """Stops the making of a network that outgrows the weights it is for, however large its arguments are."""
    left, thread = [elements, tensors], threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == thread:
            left[0] -= parameter.numel()
            left[1] -= 1
            if min(left) < 0:
                raise IncompatibleCheckpointError("the checkpoint describes a larger network than it has weights for")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


# ---- folders of named tensors and a state


def write(path: str | os.PathLike, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write a checkpoint folder of `<name>.safetensors` files and a JSON state, atomically.

    Raises:
        InvalidInputError: `path` holds something that is no checkpoint, or a tensor that is sparse or of a dtype that
            safetensors has not.
        CheckpointError: the files could not be written.
    """
    path = Path(path).absolute()
    text = json.dumps(state, allow_nan=False).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy(path)
        _check_replaceable(path)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            fresh.mkdir()
            entries = {STATE: _write_file(fresh / STATE, [memoryview(text)])}
            for name, group in tensors.items():
                entries[f"{name}.safetensors"] = _write_file(fresh / f"{name}.safetensors", _packed(group))
            _write_file(fresh / MANIFEST, [memoryview(_manifest(entries))])
            _sync(fresh)
            _put(fresh, path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"could not write the checkpoint {path}: {error}. What was there before is unharmed; make room or see to "
            "the folder's rights, and save again"
        ) from error


def read(path: str | os.PathLike, names: Iterable[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The named tensors and the state of a checkpoint folder, after every file of it was verified.

    Raises:
        CorruptCheckpointError: bytes on disk are not the bytes that were written.
        IncompatibleCheckpointError: another version, or a file that this one needs is not part of it.
        CheckpointError: it cannot be read.
    """
    path = Path(path)
    try:
        files = _verified(path)
        wanted = {name: f"{name}.safetensors" for name in names}
        for file in (STATE, *wanted.values()):
            if file not in files:
                raise IncompatibleCheckpointError(f"the checkpoint {path} has no {file}")
        state = _parsed((path / STATE).read_bytes(), path / STATE)
        return {name: _tensors(path / file) for name, file in wanted.items()}, state
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"the checkpoint {path} is not whole: {error}") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error


def steps(run: str | os.PathLike) -> list[Path]:
    """The checkpoints `step-<n>` of a run folder, oldest first.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    try:
        found = [p for p in Path(run).iterdir() if _STEP.fullmatch(p.name)] if Path(run).is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{run} cannot be read: {error}") from error
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def newest(
    run: str | os.PathLike, names: Sequence[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """What `read` gives for the newest valid checkpoint of a run folder; a warning says which ones it skipped, and why.

    None if there are no checkpoints at all.

    Raises:
        CorruptCheckpointError: there are checkpoints, but none is valid.
    """
    skipped: list[str] = []
    for path in reversed(steps(run)):
        try:
            found = read(path, names)
        except CheckpointError as error:
            skipped.append(f"{path.name}: {error}")
            continue
        if skipped:
            warnings.warn(f"using {path}; skipped {'; '.join(skipped)}", RuntimeWarning, stacklevel=3)
        return found
    if skipped:
        raise CorruptCheckpointError(f"no checkpoint in {run} is valid: {'; '.join(skipped)}")
    return None


# ---- files


def _manifest(entries: Mapping[str, Any]) -> bytes:
    body = {"format": _FORMAT, "version": VERSION, "files": entries}
    return _sealed({**body, "seal": _seal(body)})


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest, so that a change of any byte shows."""
    return json.dumps(manifest, sort_keys=True, indent=1).encode()


def _verified(path: Path) -> dict[str, Any]:
    """The files that the manifest lists, once size and hash of each were found right."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}")
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise CorruptCheckpointError(f"{path} has no {MANIFEST}: it is no checkpoint, or not a whole one")
    if (size := manifest_path.stat().st_size) > _MOST_MANIFEST:
        raise CorruptCheckpointError(f"{manifest_path} has {size} bytes, more than any manifest")
    raw = manifest_path.read_bytes()
    manifest = _parsed(raw, manifest_path)
    body = {key: value for key, value in manifest.items() if key != "seal"}
    if manifest.get("seal") != _seal(body) or _sealed(manifest) != raw:
        raise CorruptCheckpointError(f"{manifest_path} was changed after it was written")
    if (body.get("format"), body.get("version")) != (_FORMAT, VERSION):
        raise IncompatibleCheckpointError(
            f"{path} is a {body.get('format')!r} of version {body.get('version')!r}: wanted version {VERSION}"
        )
    files = body.get("files")
    if not isinstance(files, dict) or not all(_FILE.fullmatch(name) for name in files):
        raise CorruptCheckpointError(f"{manifest_path} lists no files, or names that no checkpoint has")
    for name, entry in files.items():
        _verify(path / name, entry)
    return files


def _verify(file: Path, entry: Any) -> None:
    if not file.is_file():
        raise CorruptCheckpointError(f"{file} is missing")
    size = file.stat().st_size
    if not isinstance(entry, dict) or size != entry.get("bytes") or (file.suffix == ".json" and size > _MOST_JSON):
        raise CorruptCheckpointError(f"{file} has {size} bytes, the manifest has {entry!r}")
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != entry.get("sha256"):
        raise CorruptCheckpointError(f"{file} was changed after it was written (its SHA-256 is another)")


def _parsed(raw: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{file} holds a {type(value).__name__}, wanted an object")
    return value


def _tensors(file: Path) -> dict[str, Tensor]:
    with open(file, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > _MOST_HEADER:
        raise CorruptCheckpointError(f"{file} claims a header of {header} bytes, more than any checkpoint has")
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{file} is no safetensors file: {error}") from error


def _packed(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """A safetensors file in pieces, its header and then every tensor: what safetensors.torch.save gives, never whole.

    Tensors that share memory become separate, others are not copied but to move them to the CPU or into one piece.
    """
    header = _header(tensors)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in header:
        yield _raw(tensors[name])


def _header(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """By name, in the order of the file: dtype, shape, and the bytes where the data start and end.

    safetensors says what it calls the dtypes and how it sorts: this is its own header for empty tensors, with shapes.
    """
    if bad := [name for name, value in tensors.items() if value.layout != torch.strided]:
        raise InvalidInputError(f"sparse tensors cannot be saved ({', '.join(bad[:4])}): make them dense")
    try:
        packed = safetensors.torch.save({name: torch.empty(0, dtype=value.dtype) for name, value in tensors.items()})
        safetensors.torch.load(packed)
    except KeyError as error:
        raise InvalidInputError(f"safetensors cannot keep tensors of {error}: convert them to another dtype") from error
    header, end = json.loads(packed[8:]), 0
    for name, entry in header.items():
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    return header


def _raw(value: Tensor) -> memoryview:
    """(bytes,) the elements in a row, little-endian; a view of the tensor's own memory where that is what it holds."""
    value = value.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    value = torch.view_as_real(value) if value.is_complex() else value
    numbers = value.reshape(-1).view(torch.uint8).numpy().view(f"u{value.element_size()}")
    return numbers.astype(f"<{numbers.dtype.str[1:]}", copy=False).view(np.uint8).data


def _write_file(file: Path, pieces: Iterable[memoryview]) -> dict[str, Any]:
    """Write and sync a file; its entry in the manifest."""
    size, digest = 0, hashlib.sha256()
    with open(file, "wb") as stream:
        for piece in pieces:
            stream.write(piece)
            digest.update(piece)
            size += len(piece)
            del piece  # before the next one is made
        stream.flush()
        os.fsync(stream.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- replacing a folder


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _put(fresh: Path, path: Path) -> None:
    """Rename a finished folder into its place; whatever fails, the old one or the new one is there."""
    replaces = path.exists()
    if replaces:
        os.rename(path, _old(path))
    try:
        os.rename(fresh, path)
    except OSError:
        if replaces:
            os.rename(_old(path), path)
        raise
    _sync(path.parent)
    shutil.rmtree(_old(path), ignore_errors=True)


def _tidy(path: Path) -> None:
    """Clear up after a crash: an old checkpoint without successor goes back, temporaries of dead processes go."""
    if _old(path).exists():
        if path.exists():
            shutil.rmtree(_old(path))
        else:
            os.rename(_old(path), path)
    temporary = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.tmp")
    for stale in list(path.parent.iterdir()):
        if (match := temporary.fullmatch(stale.name)) and not _another_runs(int(match[1])):
            shutil.rmtree(stale)


def _another_runs(pid: int) -> bool:
    """Whether another process of this number may be running."""
    if pid == os.getpid():
        return False
    if os.name == "nt":  # asking there means killing
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    others = [p.name for p in path.iterdir() if not _FILE.fullmatch(p.name)] if path.is_dir() else [path.name]
    if others or (any(path.iterdir()) and not (path / MANIFEST).exists()):
        raise InvalidInputError(
            f"{path} is there and is no checkpoint ({', '.join(others[:3]) or 'no manifest'}): it would be replaced. "
            "Pass the name of a new folder"
        )
