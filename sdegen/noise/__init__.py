"""The only source of randomness: white noise and Brownian paths, addressed by (seed, sample, interval)."""

from .brownian import BrownianTree
from .purposes import Purpose
from .white import Noise, check_seed

__all__ = ["BrownianTree", "Noise", "Purpose", "check_seed"]
