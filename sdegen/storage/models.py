"""Checkpoints: a model on disk, written atomically, verified to the last bit, rebuilt without running what a file says.

A checkpoint is a folder: safetensors files, `state.json`, and `manifest.json`, written last, with the size and SHA-256
of the others and a seal on itself. It is made under a temporary name beside its place, synced and renamed. When it
replaces another one, that stays as `.<name>.old` until the new one is there; `load` finds it if a crash fell between.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .. import processes
from ..core.errors import (
    CheckpointError,
    IncompatibleCheckpointError,
    InvalidInputError,
    shortened,
)
from ..core.files import as_path, cure, previous
from ..core.kinds import checked
from ..core.shards import is_sharded, local, sharded_as
from ..core.team import local_device, team
from ..models.base import ScoreModel
from ..models.denoiser import Denoiser
from ..models.diffusers import as_network, is_network
from ..models.diffusers.folders import door_of
from ..models.learned_variance import LearnedVariance
from ..models.networks import class_of, plain_names, unwrapped
from ..nets import MLP, Autoencoder, DiT, UNet
from ..nets.conditions import Conditional
from ..processes import SDE
from ..solvers import Fitted
from .folders import MANIFEST, MAX_BYTES, newest, read, steps, write, write_together
from .solvers import described_solvers, rebuilt_solvers, solvers_to_keep

PRETRAINED = ("fashion",)  # come with the package
_PRETRAINED = Path(__file__).parent / "pretrained"

_POINTS = 5  # of a process, to know it by
_MOST_AXES, _LONGEST = 16, 256  # of a sample; of an argument of a network

_MODULE = "Module"  # the class, in a file, of one that is no model of scores

# The only classes that a name in a file can mean.
_MODELS: dict[str, type[Denoiser]] = {model.__name__: model for model in (Denoiser, LearnedVariance)}

_NETS: dict[str, type[nn.Module]] = {net.__name__: net for net in (MLP, UNet, DiT, Autoencoder)}

_SDES: dict[str, type[SDE]] = {
    name: getattr(processes, name)
    for name in (
        *("VPSDE", "SubVPSDE", "CosineSDE", "LinearPathSDE", "VESDE", "EDMSDE", "TrigSDE"),
        *("TabulatedVPSDE", "TabulatedVESDE"),
    )
}


@checked
def save(model: nn.Module, path: str | os.PathLike, *, solvers: Fitted | Sequence[Fitted] | None = None) -> None:
    """Write a Denoiser to a checkpoint folder: weights, process, parametrisation, statistics, event shape, solvers.

    Any module that is no model of scores is kept too: its weights and buffers, and one of `sdegen.nets` by its
    arguments as well.

    A checkpoint that is already there is replaced: a crash at any moment leaves the old one or the new one. Where the
    network is sharded over processes, all of them have to call it; the file is the same.

    Args:
        model: a Denoiser, or a module.
        path: the folder to make.
        solvers: what `fit_solver` returned for it, one or several; None: those in `model.solvers`.

    Raises:
        InvalidInputError: a model of scores that is not a Denoiser, a solver fitted to other weights, or a folder at
            `path` that holds other things.
        IncompatibleCheckpointError: a Parametrization object: only its name could be stored.
        CheckpointError: the files could not be written (what was there before is unharmed).

    Example:
        >>> import tempfile, sdegen as sg
        >>> model = sg.Denoiser(sg.nets.MLP(2, hidden=16, layers=1), sg.VPSDE(), data_std=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sg.save(model, f"{folder}/model")
        ...     again = sg.load(f"{folder}/model")
        >>> again.sde, float(again.data_std)
        (VPSDE(beta_min=0.1, beta_max=20, t_min=0.001, t_max=1), 0.5)
    """
    state: dict[str, Any] = {"model": describe(model)}
    groups = {"model": model_tensors(model)}
    if found := solvers_to_keep(model, solvers):
        groups["solvers"], state["solvers"] = described_solvers(found)
    if any(map(is_sharded, groups["model"].values())):
        write_together(path, groups, state, team(torch.device("cpu")))
    else:
        write(path, groups, state)


@checked
def load(
    path: str | os.PathLike,
    *,
    net: nn.Module | None = None,
    sde: SDE | None = None,
    device: torch.device | str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """The model that `save` or a training run wrote, in eval mode.

    Args:
        path: a checkpoint, or the run folder of `fit`: then its newest valid checkpoint, with the averaged weights. Or
            "fashion", where there is no folder of that name: the small U-Net of Fashion-MNIST (VP, ten classes) that
            comes with the package.
        net: your own network, filled with the weights in place, wrapped (torch.compile, DataParallel) or not; of a
            model by `from_diffusers`, the UNet. sdegen's are rebuilt from the file.
        sde: your own process; sdegen's are rebuilt from the file.
        device: where to; None: CUDA if there is one, of several processes each its own.
        max_bytes: of JSON that is read into memory, in the state and in the headers of the tensors: more than any but
            the largest networks have, little enough to trust a stranger's file.

    Returns:
        A Denoiser, or a LearnedVariance where one was saved, with the solvers saved with it in `.solvers`; the module,
        where that was saved.

    Raises:
        CorruptCheckpointError: bytes on disk are not the bytes that were written.
        IncompatibleCheckpointError: another version, network or process, or one that needs `net=` or `sde=`.
        CheckpointError: there is nothing at `path`, or it cannot be read.

    Example:
        >>> import tempfile, torch, sdegen as sg
        >>> model = sg.Denoiser(sg.nets.MLP(2, hidden=16, layers=1), sg.VPSDE())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sg.save(model, f"{folder}/model")
        ...     again = sg.load(f"{folder}/model")
        >>> all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
        True
    """
    if net is not None and not isinstance(net, nn.Module):
        raise InvalidInputError(f"net: got {shortened(net)}, expected a torch.nn.Module")
    tensors, state = _read_model(_place_of(path), max_bytes)
    model = _rebuilt(state.get("model"), tensors["model"], net, sde)
    if isinstance(model, ScoreModel):
        model.solvers = rebuilt_solvers(state.get("solvers", []), tensors.get("solvers", {}), model)
    if device is None:
        device = local_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return model.to(device).eval()


def _place_of(path: str | os.PathLike) -> Path:
    """The folder that is meant; of models that come with the package the name alone."""
    place = as_path(path)
    name = os.fspath(path)
    return _PRETRAINED / name if name in PRETRAINED and not place.exists() else place


def describe(model: nn.Module) -> dict[str, Any]:
    """Everything about a Denoiser, or a module, but its tensors, as JSON."""
    if not isinstance(model, ScoreModel):
        return {"class": _MODULE, "net": _named(model, _NETS)}
    if not isinstance(model, Denoiser) or class_of(model) not in _MODELS.values():
        raise InvalidInputError(f"only a Denoiser can be saved, not a {type(model).__name__}: save the one inside it")
    if not isinstance(model.parametrization, str):
        raise IncompatibleCheckpointError(
            "a Parametrization object is made of functions, which a checkpoint cannot hold: use a parametrization "
            "that has a name, or keep model.net.state_dict() yourself"
        )
    sde = model.sde
    return {
        "class": class_of(model).__name__,
        "parametrization": model.parametrization,
        "event_shape": None if model.event_shape is None else list(model.event_shape),
        "smooth": model.smooth,
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
        raise InvalidInputError(f"model.about: got a {type(about).__name__}, expected a dict")
    return plain


def network_of(model: nn.Module) -> nn.Module:
    """What the weights are of: the network of a Denoiser, or the module itself."""
    return model.net if isinstance(model, Denoiser) else model


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model: "net.*" as in the plain network's state_dict, and the data's statistics in float64."""
    tensors: dict[str, Tensor] = {f"net.{name}": value for name, value in _own_state(network_of(model)).items()}
    bad = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if bad:
        raise InvalidInputError(f"the network's state_dict holds things that are no tensors: {', '.join(bad)}")
    for name in ("data_mean", "data_std", "data_turn"):
        if (value := getattr(model, name, None)) is not None and isinstance(model, Denoiser):
            tensors[name] = value.double()
    return tensors


def _own_state(net: nn.Module) -> dict[str, Tensor]:
    """A network's state_dict, its names as if nothing in it were wrapped."""
    state = net.state_dict()
    names = plain_names(net, state)
    return {names[name]: value for name, value in state.items()}


def check_same(model: nn.Module, description: Any, event_shape: Sequence[int]) -> None:
    """Raise unless `describe` gave this description for the same network, parametrisation, event and process.

    Args:
        model: as it is now.
        description: as it was read.
        event_shape: of the data.

    Raises:
        IncompatibleCheckpointError: naming what differs.
    """
    own = json.loads(json.dumps(describe(model)))
    if isinstance(model, Denoiser):
        own["event_shape"] = list(event_shape)
    if not isinstance(description, dict) or ("sde" in own and not isinstance(description.get("sde"), dict)):
        raise IncompatibleCheckpointError(f"got {shortened(description)}, expected a model's description")
    for key in [key for key in ("class", "net", "parametrization", "event_shape") if key in own]:
        theirs = description.get(key, Denoiser.__name__ if key == "class" else None)
        if own[key] != theirs:
            raise IncompatibleCheckpointError(f"{key}: got {own[key]}, expected the checkpoint's {shortened(theirs)}")
    if isinstance(model, Denoiser):
        _check_path(model.sde, description["sde"].get("path"))


def set_weights(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a network with the weights of `model_tensors`.

    Raises:
        IncompatibleCheckpointError: names, shapes or dtypes that are not the network's.
    """
    weights = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
    own = _own_state(net)
    wrong = [f"{name} is missing in the file" for name in own if name not in weights]
    wrong += [f"{name} is not in the network" for name in weights if name not in own]
    for name in own.keys() & weights.keys():
        theirs, ours = ((value.dtype, tuple(value.shape)) for value in (weights[name], own[name]))
        if theirs != ours:
            wrong.append(f"{name} is {theirs[0]} {theirs[1]}, the network has {ours[0]} {ours[1]}")
    if wrong:
        raise IncompatibleCheckpointError(
            f"the weights are not those of this {type(unwrapped(net)).__name__}: {'; '.join(sorted(wrong)[:4])}"
            + f"; and {len(wrong) - 4} more" * (len(wrong) > 4)
        )
    _check_finite(net, weights)
    names = plain_names(net, net.state_dict())
    net.load_state_dict({name: sharded_as(own[plain], weights[plain]) for name, plain in names.items()})


def _check_finite(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise on NaN anywhere, and on parameters that are infinite (a buffer may be, as masks are)."""
    parameters = set(plain_names(net, dict(net.named_parameters())).values())
    for name, value in weights.items():
        if value.is_floating_point() and value.dtype.itemsize > 1:
            bad = ~torch.isfinite(local(value)) if name in parameters else torch.isnan(local(value))
            if bool(bad.any()):
                raise IncompatibleCheckpointError(
                    f"{name} holds NaN or infinity ({int(bad.sum())} of {value.numel()} numbers): nothing can be "
                    "sampled with such weights. Load an earlier checkpoint"
                )


def _read_model(path: Path, max_bytes: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors and state of a checkpoint, of what a crash left of it, or of the newest one of a run."""
    path = Path(os.path.realpath(path))
    try:
        if not path.exists() and previous(path).is_dir():
            path = previous(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}: {cure(error)}") from error
    if not (path / MANIFEST).exists() and (door := door_of(path)):
        what = "a pipeline" if door == "from_pipeline" else "a network"
        raise CheckpointError(f"{path} is {what} of diffusers: sg.{door}({os.fspath(path)!r}) reads it")
    if steps(path) and not (path / MANIFEST).exists() and (found := newest(path, ["model"], max_bytes=max_bytes)):
        return found
    return read(path, ["model"], also=["solvers"], max_bytes=max_bytes)


def _named(thing: Any, table: Mapping[str, type]) -> dict[str, Any]:
    """A class by name with its arguments, which are None where it is not ours to rebuild."""
    thing = unwrapped(thing)
    own = class_of(thing)
    name = own.__name__
    ours = table.get(name) is own
    return {"name": name, "config": getattr(thing, "config", None) if ours else None}


def _path(sde: SDE) -> list[list[float]]:
    """(t, alpha, sigma) at five times: tells one process from another."""
    t = torch.linspace(sde.t_min, sde.t_max, _POINTS, dtype=torch.float64, device="cpu")
    return torch.stack([t, sde.alpha(t), sde.sigma(t)], 1).tolist()


def _rebuilt(state: Any, tensors: Mapping[str, Tensor], net: nn.Module | None, sde: SDE | None) -> nn.Module:
    try:
        if state.get("class") == _MODULE:
            net = _rebuilt_net(state["net"], tensors) if net is None else net
            set_weights(net, tensors)
            return net
        sde = _rebuilt_sde(state["sde"]) if sde is None else sde
        _check_path(sde, state["sde"]["path"])
        make = _MODELS[state.get("class", Denoiser.__name__)]
        net = _rebuilt_net(state["net"], tensors) if net is None else _filled_in(net, make is LearnedVariance, state)
        set_weights(net, tensors)
        shape = None if state["event_shape"] is None else tuple(int(n) for n in state["event_shape"][:_MOST_AXES])
        _check_event(net, shape)
        model = make(net, sde, parametrization=state["parametrization"], smooth=state.get("smooth"))
        model.event_shape = shape
        model.set_statistics(tensors.get("data_mean"), tensors.get("data_std"))
        model.data_turn = tensors.get("data_turn")
        model.about = dict(state.get("about", {}))
        return model
    except CheckpointError:
        raise
    except Exception as error:  # whatever a stranger's file can lead to
        what = f"{type(error).__name__}: {shortened(str(error), 300)}"
        raise IncompatibleCheckpointError(f"no model can be made of the checkpoint's description: {what}") from error


def _filled_in(net: nn.Module, learned_variance: bool, state: Mapping[str, Any]) -> nn.Module:
    """The user's network as the model calls it: one of diffusers by itself is not."""
    if not is_network(net):
        return net
    channels = state["event_shape"][0] if state["event_shape"] else None
    return as_network(net, learned_variance=learned_variance, channels=channels)


def _check_event(net: nn.Module, shape: tuple[int, ...] | None) -> None:
    """Raise unless the network works on samples of this shape: asked on the meta device, where nothing is computed."""
    own = getattr(unwrapped(net), "event_shape", None)
    if shape is None:
        return
    if own is not None and (len(own), *own[:1]) != (len(shape), *shape[:1]):  # sides may be free
        raise IncompatibleCheckpointError(f"event_shape: got {list(shape)}, expected the network's {list(own)}")
    if type(net) in _NETS.values():
        x, t = torch.empty(1, *shape, device="meta"), torch.empty(1, device="meta")
        weights = {name: value.to("meta", torch.float32) for name, value in net.state_dict().items()}
        buffers = {name: value.to("meta") for name, value in net.named_buffers()}
        torch.func.functional_call(net, {**buffers, **weights}, (x, t), _image_for(net, shape))


def _image_for(net: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The image that a network cannot do without, as keywords."""
    channels = net.conditions.image_channels if isinstance(net, Conditional) else 0
    return {"image": torch.empty(1, channels, *shape[1:], device="meta")} if channels else {}


def _rebuilt_sde(state: Mapping[str, Any]) -> SDE:
    if state["name"] not in _SDES or state["config"] is None:
        name = str(state["name"])[:80]
        raise IncompatibleCheckpointError(f"the checkpoint's process, {name}, is your own: load it with sde=")
    return _SDES[state["name"]](**state["config"]).narrowed(float(state["t_min"]), float(state["t_max"]))


def _check_path(sde: SDE, path: Sequence[Sequence[float]]) -> None:
    if not isinstance(path, list) or len(path) != _POINTS:
        raise IncompatibleCheckpointError(f"path: got {shortened(path)}, expected {_POINTS} points of a process")
    t, *columns = torch.tensor(path, dtype=torch.float64, device="cpu").unbind(1)
    kept, found = torch.stack(columns, 1), torch.stack([sde.alpha(t), sde.sigma(t)], 1)
    if not torch.allclose(found, kept, rtol=1e-6, atol=1e-12):
        raise IncompatibleCheckpointError(
            f"{sde} is not the process of the checkpoint: alpha, sigma at t = {t.tolist()}: got {found.tolist()}, "
            f"expected {kept.tolist()}"
        )


def _rebuilt_net(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    if state["name"] not in _NETS or state["config"] is None:
        name = str(state["name"])[:80]
        raise IncompatibleCheckpointError(f"the checkpoint's network, {name}, is your own: load it with net=")
    for argument, value in state["config"].items():
        if isinstance(value, list | str) and len(value) > _LONGEST:
            raise IncompatibleCheckpointError(f"{argument}: got {len(value)} parts, expected {_LONGEST} at most")
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
