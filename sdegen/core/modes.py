"""Eval mode for a while, shared by all threads that ask for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_LOCK = threading.Lock()
_ASKED: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()  # module -> [how many want eval mode, its own mode]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every module inside is in eval mode; when nobody needs that any more, each has the mode from before again."""
    modules = list(module.modules())
    with _LOCK:
        for each in modules:
            _ASKED.setdefault(each, [0, each.training])[0] += 1
        module.eval()
    try:
        yield
    finally:
        with _LOCK:
            for each in modules:
                asked = _ASKED[each]
                asked[0] -= 1
                if not asked[0]:
                    each.training = asked[1]
                    del _ASKED[each]
