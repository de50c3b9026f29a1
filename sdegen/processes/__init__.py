"""What noise does to data: linear SDEs, from the published ones to a user's own."""

from .base import SDE, nodes_of, once
from .crossing import Crossing, rescaling
from .custom import CoefficientSDE, PathSDE
from .exploding import EDMSDE, VESDE
from .functions import derivative
from .interpolating import LinearPathSDE, TrigSDE
from .level import Level, in_tensors, without_signal
from .preserving import VPSDE, CosineSDE, SubVPSDE
from .tables import TabulatedVESDE, TabulatedVPSDE

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "CoefficientSDE",
    "CosineSDE",
    "Crossing",
    "Level",
    "LinearPathSDE",
    "PathSDE",
    "SubVPSDE",
    "TabulatedVESDE",
    "TabulatedVPSDE",
    "TrigSDE",
    "derivative",
    "in_tensors",
    "nodes_of",
    "once",
    "rescaling",
    "without_signal",
]
