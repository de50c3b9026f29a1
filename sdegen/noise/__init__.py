"""The only source of randomness: white noise and Brownian paths, addressed by (seed, sample, interval)."""

from .brownian import BrownianTree
from .white import CORRECTOR, DEQUANTISE, PRIOR, PROBE, STEP, Noise, check_seed

__all__ = ["CORRECTOR", "DEQUANTISE", "PRIOR", "PROBE", "STEP", "BrownianTree", "Noise", "check_seed"]
