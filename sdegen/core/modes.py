"""For a while: eval mode, shared by all threads that ask for it, and the precision in which networks compute."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

# What networks compute in, under torch.autocast.
PRECISIONS: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

_PRECISION: ContextVar[torch.dtype | None] = ContextVar("precision", default=None)
_LOCK = threading.Lock()
_ASKED: dict[int, list] = {}  # id of a module that is wanted in eval mode -> [by how many, its own mode]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every module inside is in eval mode; when nobody needs that any more, each has the mode from before again."""
    modules = list(module.modules())  # held until then, so that no other module gets the id of one of them
    with _LOCK:
        training = any([each.training for each in modules])
        if not training and not _ASKED:  # as nobody will have to restore
            modules = []
        for each in modules:
            _ASKED.setdefault(id(each), [0, each.training])[0] += 1
        if training:
            module.eval()
    try:
        yield
    finally:
        with _LOCK:
            for each in modules:
                asked = _ASKED[id(each)]
                asked[0] -= 1
                if not asked[0]:
                    if each.training != asked[1]:
                        each.training = asked[1]
                    del _ASKED[id(each)]


@contextmanager
def computing(dtype: torch.dtype | None) -> Iterator[None]:
    """Networks that this thread asks through `in_precision` compute in this dtype; None: nothing changes."""
    token = _PRECISION.set(dtype) if dtype is not None else None
    try:
        yield
    finally:
        if token is not None:
            _PRECISION.reset(token)


def in_precision(net: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A network as this thread is to call it: itself, or under torch.autocast."""
    dtype = _PRECISION.get()
    return net if dtype is None else torch.autocast(device.type, dtype)(net)
