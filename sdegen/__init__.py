"""sdegen: a diffusion model is a linear SDE plus a score; the rest is a choice of solver."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

from typing import TYPE_CHECKING

from . import nets
from .core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    InvalidInputError,
    MaxStepsError,
    NonFiniteError,
    RunLockedError,
    SdegenError,
    SolverError,
    StepSizeUnderflowError,
)
from .distributions.gaussian import Gaussian
from .distributions.mixture import GaussianMixture
from .inference.bits import BitsPerDim, bits_per_dim
from .inference.compare import compare
from .inference.editing import edit, slerp, translate
from .inference.fit_solver import fit_solver
from .inference.grid import grid
from .inference.likelihood import LogProb, log_prob
from .inference.posteriors.verb import sample_posterior
from .inference.sampling import encode, sample
from .inference.shard import shard
from .loop.run import solve
from .loop.solution import Solution
from .models.base import ScoreModel, Wrapped
from .models.denoiser import Denoiser
from .models.diffusers import from_diffusers, to_scheduler
from .models.exact import EmpiricalModel, MixtureModel
from .models.facts import DataFacts
from .models.guided.guidance import Guided
from .models.guided.observation import Observation
from .models.guided.posterior import Posterior
from .models.guided.switched import Switched
from .models.guided.tilted import Tilted
from .models.parametrization import Parametrization
from .models.prediction import Prediction
from .noise.white import Noise
from .processes import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CoefficientSDE,
    CosineSDE,
    LinearPathSDE,
    PathSDE,
    SubVPSDE,
    TabulatedVESDE,
    TabulatedVPSDE,
    TrigSDE,
)
from .solvers import Solver, Step, make_solver, solvers
from .solvers.stochastic.analytic import NoiseLevel, measure_noise
from .storage.models import load, save
from .terms import ForwardSDE, ProbabilityFlow, ReverseSDE, Term
from .training import History, fit
from .training.autoencoder import autoencoder_loss
from .training.losses import dsm_loss, implicit_loss, sliced_loss

if TYPE_CHECKING:
    from . import data, discrete, metrics, plot, testing

__version__ = "0.2.0"

__all__ = [
    "BitsPerDim",
    "CheckpointError",
    "CoefficientSDE",
    "CorruptCheckpointError",
    "CosineSDE",
    "DataFacts",
    "Denoiser",
    "EDMSDE",
    "EmpiricalModel",
    "ForwardSDE",
    "Gaussian",
    "GaussianMixture",
    "Guided",
    "History",
    "IncompatibleCheckpointError",
    "InvalidInputError",
    "LinearPathSDE",
    "LogProb",
    "MaxStepsError",
    "MixtureModel",
    "Noise",
    "NoiseLevel",
    "NonFiniteError",
    "Observation",
    "Parametrization",
    "PathSDE",
    "Posterior",
    "Prediction",
    "ProbabilityFlow",
    "ReverseSDE",
    "RunLockedError",
    "SDE",
    "ScoreModel",
    "SdegenError",
    "Solution",
    "Solver",
    "SolverError",
    "Step",
    "StepSizeUnderflowError",
    "SubVPSDE",
    "Switched",
    "TabulatedVESDE",
    "TabulatedVPSDE",
    "Term",
    "Tilted",
    "TrigSDE",
    "VESDE",
    "VPSDE",
    "Wrapped",
    "autoencoder_loss",
    "bits_per_dim",
    "compare",
    "data",
    "discrete",
    "dsm_loss",
    "edit",
    "encode",
    "fit",
    "fit_solver",
    "from_diffusers",
    "grid",
    "implicit_loss",
    "load",
    "log_prob",
    "make_solver",
    "measure_noise",
    "metrics",
    "nets",
    "plot",
    "sample",
    "sample_posterior",
    "save",
    "shard",
    "sliced_loss",
    "slerp",
    "solve",
    "solvers",
    "testing",
    "to_scheduler",
    "translate",
]

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
