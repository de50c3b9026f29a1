"""The only source of randomness: white noise and Brownian paths, addressed by (seed, sample, interval)."""

from .brownian import BrownianTree
from .purposes import Purpose as Purpose
from .white import Noise
from .white import check_seed as check_seed

__all__ = ["BrownianTree", "Noise"]
