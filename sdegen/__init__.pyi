"""The public names and the modules that they are imported from, one a line: type checkers and `__init__.py` read it.

A line that ends in `# unlisted` is reached as `sdegen.name`, and not in `__all__`.
"""

from . import core as core  # unlisted
from . import data as data
from . import discrete as discrete
from . import distributions as distributions  # unlisted
from . import inference as inference  # unlisted
from . import loop as loop  # unlisted
from . import metrics as metrics
from . import models as models  # unlisted
from . import nets as nets
from . import noise as noise  # unlisted
from . import plot as plot
from . import processes as processes  # unlisted
from . import storage as storage  # unlisted
from . import terms as terms  # unlisted
from . import testing as testing
from . import training as training  # unlisted
from .core.errors import CheckpointError as CheckpointError
from .core.errors import CorruptCheckpointError as CorruptCheckpointError
from .core.errors import IncompatibleCheckpointError as IncompatibleCheckpointError
from .core.errors import InvalidInputError as InvalidInputError
from .core.errors import MaxStepsError as MaxStepsError
from .core.errors import NonFiniteError as NonFiniteError
from .core.errors import RunLockedError as RunLockedError
from .core.errors import SdegenError as SdegenError
from .core.errors import SolverError as SolverError
from .core.errors import StepSizeUnderflowError as StepSizeUnderflowError
from .distributions.gaussian import Gaussian as Gaussian
from .distributions.mixture import GaussianMixture as GaussianMixture
from .inference.bits import BitsPerDim as BitsPerDim
from .inference.bits import bits_per_dim as bits_per_dim
from .inference.compare import compare as compare
from .inference.editing import edit as edit
from .inference.editing import slerp as slerp
from .inference.editing import translate as translate
from .inference.fit_solver import fit_solver as fit_solver
from .inference.grid import grid as grid
from .inference.likelihood import LogProb as LogProb
from .inference.likelihood import log_prob as log_prob
from .inference.posteriors.verb import sample_posterior as sample_posterior
from .inference.sampling import encode as encode
from .inference.sampling import sample as sample
from .inference.shard import shard as shard
from .inference.smoothness import measure_smooth as measure_smooth
from .loop.run import solve as solve
from .loop.solution import Solution as Solution
from .models.base import ScoreModel as ScoreModel
from .models.base import Wrapped as Wrapped
from .models.denoiser import Denoiser as Denoiser
from .models.diffusers import from_diffusers as from_diffusers
from .models.diffusers import from_pipeline as from_pipeline
from .models.diffusers import space_from_diffusers as space_from_diffusers
from .models.diffusers import to_scheduler as to_scheduler
from .models.exact import EmpiricalModel as EmpiricalModel
from .models.exact import MixtureModel as MixtureModel
from .models.facts import DataFacts as DataFacts
from .models.guided.guidance import Guided as Guided
from .models.guided.observation import Observation as Observation
from .models.guided.posterior import Posterior as Posterior
from .models.guided.switched import Switched as Switched
from .models.guided.tilted import Tilted as Tilted
from .models.parametrization import Parametrization as Parametrization
from .models.prediction import Prediction as Prediction
from .models.space import LatentSpace as LatentSpace
from .noise.white import Noise as Noise
from .processes import EDMSDE as EDMSDE
from .processes import SDE as SDE
from .processes import VESDE as VESDE
from .processes import VPSDE as VPSDE
from .processes import CoefficientSDE as CoefficientSDE
from .processes import CosineSDE as CosineSDE
from .processes import LinearPathSDE as LinearPathSDE
from .processes import PathSDE as PathSDE
from .processes import SubVPSDE as SubVPSDE
from .processes import TabulatedVESDE as TabulatedVESDE
from .processes import TabulatedVPSDE as TabulatedVPSDE
from .processes import TrigSDE as TrigSDE
from .solvers import Solver as Solver
from .solvers import Step as Step
from .solvers import make_solver as make_solver
from .solvers import solvers as solvers
from .solvers.stochastic.analytic import NoiseLevel as NoiseLevel
from .solvers.stochastic.analytic import measure_noise as measure_noise
from .storage.models import load as load
from .storage.models import save as save
from .terms import ForwardSDE as ForwardSDE
from .terms import ProbabilityFlow as ProbabilityFlow
from .terms import ReverseSDE as ReverseSDE
from .terms import Term as Term
from .training import History as History
from .training import fit as fit
from .training.autoencoder import autoencoder_loss as autoencoder_loss
from .training.losses import dsm_loss as dsm_loss
from .training.losses import implicit_loss as implicit_loss
from .training.losses import sliced_loss as sliced_loss

__version__: str
__all__: list[str]
