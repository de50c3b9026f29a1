"""sdegen: a diffusion model is a linear SDE plus a score; the rest is a choice of solver."""

from __future__ import annotations

import importlib
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

_ROOMS = ("data", "discrete", "metrics", "plot", "testing")  # imported when they are first asked for
_FORMER = {"checkpoint": "storage.folders"}  # a module that scripts written for 0.1 know by another name


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FORMER:
        return importlib.import_module(f"{__name__}.{_FORMER[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
