"""Discrete-time models as special cases: tables of noise, recipes of a few lines, and the papers' objectives.

A DDPM or an NCSN is a model along `TabulatedVPSDE(betas)` or `TabulatedVESDE(sigmas)`: node i of 1..N is the time i/N.
"""

from ..models.learned_variance import LearnedVariance
from ..models.parametrization import counting
from .bound import Bound, hybrid_loss, vlb, vlb_term
from .objectives import ddpm_loss, ncsn_loss
from .recipes import annealed_langevin, ddim, ddim_encode, ddpm, langevin
from .tables import betas, sigmas, spaced, zero_terminal_snr
from .times import LossAware

__all__ = [
    "Bound",
    "LearnedVariance",
    "LossAware",
    "annealed_langevin",
    "betas",
    "counting",
    "ddim",
    "ddim_encode",
    "ddpm",
    "ddpm_loss",
    "hybrid_loss",
    "langevin",
    "ncsn_loss",
    "sigmas",
    "spaced",
    "vlb",
    "vlb_term",
    "zero_terminal_snr",
]
