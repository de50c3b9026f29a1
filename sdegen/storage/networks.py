"""Networks on disk: by name and arguments, and their weights by the names they have where nothing is wrapped."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..core.errors import IncompatibleCheckpointError, InvalidInputError
from ..core.shards import local, sharded_as
from ..models.networks import class_of, plain_names, unwrapped
from ..nets import MLP, Autoencoder, DiT, UNet

_LONGEST = 256  # parts of an argument

# The only networks that a name in a file can mean.
NETS: dict[str, type[nn.Module]] = {net.__name__: net for net in (MLP, UNet, DiT, Autoencoder)}


def named(thing: Any, table: Mapping[str, type]) -> dict[str, Any]:
    """A class by name with its arguments, which are None where it is not ours to rebuild."""
    thing = unwrapped(thing)
    own = class_of(thing)
    name = own.__name__
    ours = table.get(name) is own
    return {"name": name, "config": getattr(thing, "config", None) if ours else None}


def rebuilt_net(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    if state["name"] not in NETS or state["config"] is None:
        name = str(state["name"])[:80]
        raise IncompatibleCheckpointError(f"the checkpoint's network, {name}, is your own: load it with net=")
    for argument, value in state["config"].items():
        if isinstance(value, list | str) and len(value) > _LONGEST:
            raise IncompatibleCheckpointError(f"{argument}: got {len(value)} parts, expected {_LONGEST} at most")
    weights = [value for name, value in tensors.items() if name.startswith("net.")]
    with _no_more_parameters_than(sum(value.numel() for value in weights), len(weights)):
        net = NETS[state["name"]](**state["config"])
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


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network: "net.*" as in its state_dict, if nothing in it were wrapped.

    Raises:
        InvalidInputError: a state_dict that holds other things.
    """
    tensors: dict[str, Tensor] = {f"net.{name}": value for name, value in _own_state(net).items()}
    bad = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if bad:
        raise InvalidInputError(f"the network's state_dict holds things that are no tensors: {', '.join(bad)}")
    return tensors


def _own_state(net: nn.Module) -> dict[str, Tensor]:
    """A network's state_dict, its names as if nothing in it were wrapped."""
    state = net.state_dict()
    names = plain_names(net, state)
    return {names[name]: value for name, value in state.items()}


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
