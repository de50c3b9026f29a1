"""sdegen: a diffusion model is a linear SDE plus a score; the rest is a choice of solver."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import nets
from .checkpoint import load, save
from .compare import compare
from .dequantisation import BitsPerDim, bits_per_dim
from .errors import (
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
from .gaussian import Gaussian
from .interop import from_diffusers, to_scheduler
from .likelihood import LogProb, log_prob
from .losses import dsm_loss
from .mixture import GaussianMixture
from .model import Denoiser, ScoreModel
from .noise import Noise
from .oracle import EmpiricalModel, MixtureModel
from .parametrization import Parametrization
from .prediction import Prediction
from .sampling import encode, grid, sample
from .sde import (
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
from .solution import Solution
from .solve import solve
from .solvers import Solver, make_solver, solvers
from .solvers.analytic import NoiseLevel, measure_noise
from .terms import ForwardSDE, ProbabilityFlow, ReverseSDE, Term
from .training import History, fit

if TYPE_CHECKING:
    from . import data, discrete, metrics, plot, testing

__version__ = "0.1.0"

__all__ = [
    "BitsPerDim",
    "CheckpointError",
    "CoefficientSDE",
    "CorruptCheckpointError",
    "CosineSDE",
    "Denoiser",
    "EDMSDE",
    "EmpiricalModel",
    "ForwardSDE",
    "Gaussian",
    "GaussianMixture",
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
    "Parametrization",
    "PathSDE",
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
    "StepSizeUnderflowError",
    "SubVPSDE",
    "TabulatedVESDE",
    "TabulatedVPSDE",
    "Term",
    "TrigSDE",
    "VESDE",
    "VPSDE",
    "bits_per_dim",
    "compare",
    "data",
    "discrete",
    "dsm_loss",
    "encode",
    "fit",
    "from_diffusers",
    "grid",
    "load",
    "log_prob",
    "make_solver",
    "measure_noise",
    "metrics",
    "nets",
    "plot",
    "sample",
    "save",
    "solve",
    "solvers",
    "testing",
    "to_scheduler",
]

_ROOMS = ("data", "discrete", "metrics", "plot", "testing")  # imported when they are first asked for


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
