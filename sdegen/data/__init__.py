"""Data to try things on: `toys` in the plane, with densities known in closed form, and `images`."""

from . import images, toys

__all__ = ["images", "toys"]
