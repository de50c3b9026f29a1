"""Data: `toys` in the plane, with densities known in closed form, and sets of images from `load_images`."""

from . import images, toys
from .images import Images
from .load import load_images
from .shares import Shares

__all__ = ["Images", "Shares", "images", "load_images", "toys"]
