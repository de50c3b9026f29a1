"""sdegen: a diffusion model is a linear SDE plus a score; the rest is a choice of solver."""

from __future__ import annotations

from . import nets
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
from .mixture import GaussianMixture
from .model import Denoiser, ScoreModel
from .noise import Noise
from .oracle import EmpiricalModel, MixtureModel
from .parametrization import Parametrization
from .prediction import Prediction
from .sampling import encode, grid, sample
from .sde import (
    SDE,
    VESDE,
    VPSDE,
    CoefficientSDE,
    CosineSDE,
    EDMSDE,
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
from .terms import ForwardSDE, ProbabilityFlow, ReverseSDE, Term

__version__ = "0.1.0"
