"""Training: `fit`, the one loop, its batches, its averages and its run folders."""

from .fit import fit
from .history import History

__all__ = ["History", "fit"]
