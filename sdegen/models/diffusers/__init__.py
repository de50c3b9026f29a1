"""Models of diffusers: its networks with their schedulers, whole pipelines, and the way back."""

from .autoencoders import space_from_diffusers
from .networks import as_network, is_network
from .outward import to_scheduler
from .pipelines import Pipeline, from_pipeline
from .verb import from_diffusers

__all__ = [
    "Pipeline",
    "as_network",
    "from_diffusers",
    "from_pipeline",
    "is_network",
    "space_from_diffusers",
    "to_scheduler",
]
