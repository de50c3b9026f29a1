"""Checkpoints: a model on disk, written atomically, verified to the last bit, rebuilt without running what a file says.

A checkpoint is a folder: safetensors files, `state.json`, and `manifest.json`, written last, with the size and SHA-256
of the others and a seal on itself. It is made under a temporary name beside its place, synced and renamed. When it
replaces another one, that stays as `.<name>.old` until the new one is there; `load` finds it if a crash fell between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import processes
from ..core.errors import (
    CheckpointError,
    IncompatibleCheckpointError,
    InvalidInputError,
    made_of_description,
    shortened,
)
from ..core.files import as_path, cure, previous
from ..core.kinds import checked
from ..core.shards import is_sharded
from ..core.team import local_device, team
from ..models.base import ScoreModel
from ..models.denoiser import Denoiser
from ..models.diffusers import as_network, is_network
from ..models.diffusers.folders import door_of
from ..models.learned_variance import LearnedVariance
from ..models.networks import class_of, unwrapped
from ..nets.conditions import Conditional
from ..processes import SDE
from ..solvers import Fitted
from .card import README
from .card import card as card_of
from .folders import MANIFEST, MAX_BYTES, newest, read, steps, write, write_together
from .networks import NETS, named, rebuilt_net, set_weights, weights_of
from .solvers import described_solvers, rebuilt_solvers, solvers_to_keep
from .spaces import check_same_space, described_space, rebuilt_space, space_tensors

PRETRAINED = ("fashion",)  # come with the package
_PRETRAINED = Path(__file__).parent / "pretrained"

_POINTS = 5  # of a process, to know it by
_MOST_AXES = 16  # of a sample

_ALSO = ("solvers", "autoencoder")  # files that a model may have besides its own

_MODULE = "Module"  # the class, in a file, of one that is no model of scores

# The only classes that a name in a file can mean.
_MODELS: dict[str, type[Denoiser]] = {model.__name__: model for model in (Denoiser, LearnedVariance)}

_SDES: dict[str, type[SDE]] = {
    name: getattr(processes, name)
    for name in (
        *("VPSDE", "SubVPSDE", "CosineSDE", "LinearPathSDE", "VESDE", "EDMSDE", "TrigSDE"),
        *("TabulatedVPSDE", "TabulatedVESDE"),
    )
}


@checked
def save(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    solvers: Fitted | Sequence[Fitted] | None = None,
    card: str | None = None,
) -> None:
    """Write a Denoiser to a checkpoint folder: weights, process, parametrisation, statistics, event shape, solvers,
    and its latent space.

    Any other module can be saved too: its weights and buffers, and for one of `sdegen.nets` its arguments.

    A checkpoint that is already there is replaced: a crash at any moment leaves the old one or the new one. Where the
    network is sharded over processes, all of them have to call it; the file is the same.

    Args:
        model: a Denoiser, or a module.
        path: the folder to make.
        solvers: what `fit_solver` returned for it, one or several; None: those in `model.solvers`.
        card: what the model is, in Markdown: the folder gets a README.md with that, its facts and a snippet that
            samples it, as model hubs show it. None: a README.md that is there stays.

    Raises:
        InvalidInputError: a model of scores that is not a Denoiser, a solver fitted to other weights, a folder at
            `path` that holds other things, or a card for a model that a snippet cannot sample.
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
    groups = tensor_groups(model)
    if found := solvers_to_keep(model, solvers):
        groups["solvers"], state["solvers"] = described_solvers(found)
    texts = {} if card is None else {README: card_of(model, as_path(path).name, card, ours=_is_ours(state["model"]))}
    if any(map(is_sharded, groups["model"].values())):
        write_together(path, groups, state, team(torch.device("cpu")), beside=texts)
    else:
        write(path, groups, state, beside=texts)


def _is_ours(state: Mapping[str, Any]) -> bool:
    """Whether `load` rebuilds everything from a description like this."""
    parts = (state.get("net"), state.get("sde"), state.get("space", {}).get("autoencoder"))
    return all(part["config"] is not None for part in parts if part is not None)


@checked
def load(
    path: str | os.PathLike,
    *,
    net: nn.Module | None = None,
    sde: SDE | None = None,
    autoencoder: nn.Module | None = None,
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
        autoencoder: your own, of the model's latent space, filled in place; sdegen's are rebuilt from the file.
        device: where to; None: CUDA if there is one, of several processes each its own.
        max_bytes: of JSON that is read into memory, in the state and in the headers of the tensors: more than any but
            the largest networks have, little enough to trust a stranger's file.

    Returns:
        A Denoiser, or a LearnedVariance where one was saved, with the solvers saved with it in `.solvers` and its
        latent space in `.space`; the module, where that was saved.

    Raises:
        CorruptCheckpointError: bytes on disk are not the bytes that were written.
        IncompatibleCheckpointError: another version, network or process, or one that needs `net=`, `sde=` or
            `autoencoder=`.
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
    for name, given in (("net", net), ("autoencoder", autoencoder)):
        if given is not None and not isinstance(given, nn.Module):
            raise InvalidInputError(f"{name}: got {shortened(given)}, expected a torch.nn.Module")
    tensors, state = _read_model(_place_of(path), max_bytes)
    with torch.device("cpu"):  # whatever the default device, that of the file's tensors
        model = _rebuilt(state.get("model"), tensors["model"], net, sde)
        if isinstance(model, Denoiser):
            model.space = rebuilt_space(state["model"].get("space"), tensors.get("autoencoder"), autoencoder)
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
        return {"class": _MODULE, "net": named(model, NETS)}
    if not isinstance(model, Denoiser) or class_of(model) not in _MODELS.values():
        raise InvalidInputError(f"only a Denoiser can be saved, not a {type(model).__name__}: save the one inside it")
    if not isinstance(model.net, nn.Module):
        raise InvalidInputError(
            f"got a Denoiser whose net is a {type(model.net).__name__}, expected a torch.nn.Module, which has weights "
            "to keep"
        )
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
        "net": named(model.net, NETS),
        "sde": {**named(sde, _SDES), "t_min": sde.t_min, "t_max": sde.t_max, "path": _path(sde)},
        "about": _plain(model.about),
        **({} if model.space is None else {"space": described_space(model.space)}),
    }


def _plain(about: Any) -> dict[str, Any]:
    """What JSON gives back for it."""
    try:
        plain = json.loads(json.dumps(about, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"model.about cannot be written as JSON: {error}") from error
    if not isinstance(plain, dict):
        raise InvalidInputError(f"model.about: got a {type(about).__name__}, expected a dict")
    return plain


def network_of(model: nn.Module) -> nn.Module:
    """What the weights are of: the network of a Denoiser, or the module itself."""
    return model.net if isinstance(model, Denoiser) else model


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model: "net.*" as in the plain network's state_dict, and the data's statistics in float64."""
    tensors = weights_of(network_of(model))
    for name in ("data_mean", "data_std", "data_turn"):
        if (value := getattr(model, name, None)) is not None and isinstance(model, Denoiser):
            tensors[name] = value.double()
    return tensors


def tensor_groups(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors of a model by the files that they go to: "model", and "autoencoder" where it has a latent space."""
    space = model.space if isinstance(model, Denoiser) else None
    return {"model": model_tensors(model), **({} if space is None else {"autoencoder": space_tensors(space)})}


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
    check_same_space(own.get("space"), description.get("space"))
    if isinstance(model, Denoiser):
        _check_path(model.sde, description["sde"].get("path"))


def _read_model(path: Path, max_bytes: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors and state of a checkpoint, of what a crash left of it, or of the newest one of a run."""
    path = Path(os.path.realpath(path))
    try:
        if not path.exists() and previous(path).is_dir():
            path = previous(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}: {cure(error)}") from error
    if not (path / MANIFEST).exists() and (door := door_of(path)):
        what = {"from_pipeline": "a pipeline", "from_diffusers": "a network"}.get(door, "an autoencoder")
        raise CheckpointError(f"{path} is {what} of diffusers: sg.{door}({os.fspath(path)!r}) reads it")
    if (
        steps(path)
        and not (path / MANIFEST).exists()
        and (found := newest(path, ["model"], also=_ALSO, max_bytes=max_bytes))
    ):
        return found
    return read(path, ["model"], also=_ALSO, max_bytes=max_bytes)


def _path(sde: SDE) -> list[list[float]]:
    """(t, alpha, sigma) at five times: tells one process from another."""
    t = torch.linspace(sde.t_min, sde.t_max, _POINTS, dtype=torch.float64, device="cpu")
    return torch.stack([t, sde.alpha(t), sde.sigma(t)], 1).tolist()


def _rebuilt(state: Any, tensors: Mapping[str, Tensor], net: nn.Module | None, sde: SDE | None) -> nn.Module:
    with made_of_description("model"):
        if state.get("class") == _MODULE:
            net = rebuilt_net(state["net"], tensors) if net is None else net
            set_weights(net, tensors)
            return net
        sde = _rebuilt_sde(state["sde"]) if sde is None else sde
        _check_path(sde, state["sde"]["path"])
        make = _MODELS[state.get("class", Denoiser.__name__)]
        net = rebuilt_net(state["net"], tensors) if net is None else _filled_in(net, make is LearnedVariance, state)
        set_weights(net, tensors)
        shape = None if state["event_shape"] is None else tuple(int(n) for n in state["event_shape"][:_MOST_AXES])
        _check_event(net, shape)
        model = make(net, sde, parametrization=state["parametrization"], smooth=state.get("smooth"))
        model.event_shape, model.smooth_presumed = shape, model.smooth
        model.set_statistics(tensors.get("data_mean"), tensors.get("data_std"))
        model.data_turn = tensors.get("data_turn")
        model.about = dict(state.get("about", {}))
        return model


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
    if type(net) in NETS.values():
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
