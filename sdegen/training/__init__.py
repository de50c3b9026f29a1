"""Training: `fit`, the one loop; what it feeds on, averages, records and keeps on disk."""

from .history import History, LossByLevel
from .loop import fit

__all__ = ["History", "LossByLevel", "fit"]
