"""Models of diffusers: its networks with their schedulers, and the way back."""

from .networks import as_network, is_network
from .outward import to_scheduler
from .verb import from_diffusers

__all__ = ["as_network", "from_diffusers", "is_network", "to_scheduler"]
