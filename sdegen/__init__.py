"""sdegen: a diffusion model is a linear SDE plus a score; the rest is a choice of solver."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.2.0"


def _read_stub() -> dict[str, tuple[str, bool]]:
    """Name -> (the module it is imported from, whether `__all__` has it), from the lines of __init__.pyi."""
    stub = os.path.join(os.path.dirname(__file__), "__init__.pyi")
    lines = (line.split() for line in __loader__.get_data(stub).decode().splitlines())
    # from .module import Name as Name  # unlisted
    return {words[3]: (words[1], words[-1] != "unlisted") for words in lines if words[:1] == ["from"]}


_HOMES = _read_stub()  # what is imported when it is first asked for: importing sdegen alone does not import torch
_FORMER = {"checkpoint": ".storage.folders"}  # a module that scripts written for 0.1 know by another name

__all__ = sorted(name for name, (_, listed) in _HOMES.items() if listed)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home, _ = _HOMES.get(name, (None, False))
    if name in _FORMER or home == ".":
        value = importlib.import_module(_FORMER.get(name, f".{name}"), __name__)
    elif home is not None:
        value = getattr(importlib.import_module(home, __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _Package(ModuleType):
    """Importing a submodule sets it as an attribute of the package: not where a public name is spelt like it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and _HOMES.get(name, (".", True))[0] != "."):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
