"""Training: `fit`, the one loop; what it feeds on, averages, records and keeps on disk."""

from .history import History, LossByLevel
from .loop import fit
from .posthoc import averaged

__all__ = ["History", "LossByLevel", "averaged", "fit"]
