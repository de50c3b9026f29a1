"""The methods of torchdiffeq, scipy and torchsde by name, each run by its library's own loop.

The libraries are imported when a method runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..base import Solver
from . import scipy, torchdiffeq, torchsde

TABLE: dict[str, Callable[..., Solver]] = {
    **{f"torchdiffeq:{method}": partial(torchdiffeq.Torchdiffeq, method) for method in torchdiffeq.METHODS},
    **{f"scipy:{method}": partial(scipy.Scipy, method) for method in scipy.METHODS},
    **{f"torchsde:{method}": partial(torchsde.Torchsde, method) for method in torchsde.METHODS},
}
