"""What a Denoiser asks its network: the module behind wrappers, names without them, the dtype it computes in."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

_COMPUTES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # float8 weights are stored, not computed in


def _inside(module: nn.Module) -> str | None:
    """The name under which a wrapper (torch.compile, DataParallel, DistributedDataParallel) has its module."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # where nothing was compiled, importing it takes seconds
    return "_orig_mod" if compiler and isinstance(module, compiler.OptimizedModule) else None


def unwrapped(net: Any) -> Any:
    """The network itself, without torch.compile's, DataParallel's or DistributedDataParallel's module around it."""
    while isinstance(net, nn.Module) and (name := _inside(net)):
        net = net._modules[name]
    return net


def path_to(kind: type[nn.Module], module: Any) -> str | None:
    """The name under which a module has the first one of a class in it; None where it has none."""
    parts = module.named_modules() if isinstance(module, nn.Module) else ()
    return next((path for path, part in parts if path and isinstance(part, kind)), None)


def sharded_modules(net: nn.Module) -> list[Any]:
    """The modules in a network that fully_shard was called on."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [m for m in net.modules() if isinstance(m, fsdp.FSDPModule)] if fsdp else []


def class_of(net: Any) -> type:
    """The class of a network, also where fully_shard put its own before it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    own = type(net)
    return next(c for c in own.__mro__ if not issubclass(c, fsdp.FSDPModule)) if fsdp else own


def plain_names(net: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names of parameters and buffers -> what they would be if no module in the network were wrapped."""
    wrappers = [(path, name) for path, module in net.named_modules() if (name := _inside(module))]
    prefixes = [(f"{path}.{name}." if path else f"{name}.", f"{path}." if path else "") for path, name in wrappers]
    prefixes.sort(key=lambda pair: -len(pair[0]))  # the innermost first: the outer ones still match then
    plain = {}
    for name in names:
        short = name
        for prefix, without in prefixes:
            if short.startswith(prefix):
                short = without + short.removeprefix(prefix)
        plain[name] = short
    return plain


def channels_of(net: Any) -> int | None:
    """How many channels the samples of a network have, as its config says; None: it does not."""
    config = getattr(unwrapped(net), "config", None)
    found = config.get("in_channels") if isinstance(config, Mapping) else None
    return found if isinstance(found, int) else None


class ComputingDtype:
    """The dtype of a network's first floating parameter.

    To search for it takes longer than many a small layer, so its path is kept; it is looked up by name every time,
    because parameters and modules may be replaced (LoRA, quantisation). A network without parameters is searched once.

    Args:
        net: the network, or any callable.
    """

    def __init__(self, net: Any) -> None:
        self._path: tuple[str, ...] | None = None
        inner = unwrapped(net)
        self._said = getattr(inner, "__dict__", {})  # the network's own attributes, looked up at every call
        self._of_class: torch.dtype | None = getattr(type(inner), "time_dtype", None)
        self._without = not isinstance(net, nn.Module) or next(net.parameters(), None) is None

    def of(self, net: Any, otherwise: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """Of this network, `otherwise` where it has no such parameter; and the dtype in which it is told times: its
        `time_dtype`, or at least float32."""
        found, module = None, net
        if not self._without and self._path is not None:
            for name in self._path[:-1]:
                module = None if module is None else module._modules.get(name)
            parameter = None if module is None else module._parameters.get(self._path[-1])
            found = None if parameter is None else parameter.dtype
        if found not in _COMPUTES and not self._without:
            named = net.named_parameters()
            name, found = next(((n, p.dtype) for n, p in named if p.dtype in _COMPUTES), ("", None))
            self._path = tuple(name.split(".")) if name else None
        dtype = otherwise if found is None else found
        said = self._said.get("time_dtype", self._of_class)
        return dtype, said or (torch.float32 if dtype.itemsize < 4 else dtype)


class SaysConditions(nn.Module):
    """The base of networks of others that say which conditions they take."""

    def condition_names(self) -> set[str]:
        """The words that `forward` takes beyond (x, t)."""
        raise NotImplementedError

    def check_conditions(self, batch: int, event_shape: tuple[int, ...] | None, cond: Mapping[str, Any]) -> None:
        """Refuse conditions that are lacking or do not fit, before any work.

        Args:
            batch: B, how many samples.
            event_shape: of x; None: not known.
            cond: by name, all of them in `condition_names`.

        Raises:
            InvalidInputError: naming the condition, what it is and what is expected.
        """
        raise NotImplementedError
