"""Data: `toys` in the plane, with densities known in closed form, and sets of images from `load_images`."""

from . import images, toys
from .batched import Batched
from .conditioned import Conditioned, Lookup
from .images import Images
from .load import load_images
from .masks import mask
from .shares import Shares

__all__ = ["Batched", "Conditioned", "Images", "Lookup", "Shares", "images", "load_images", "mask", "toys"]
