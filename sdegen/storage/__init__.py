"""Bytes on disk: checkpoint folders, and the models in them."""

from .folders import MANIFEST, STATE, VERSION, newest, read, steps, write
from .models import check_same, describe, load, model_tensors, save, set_weights

__all__ = [
    "MANIFEST",
    "STATE",
    "VERSION",
    "check_same",
    "describe",
    "load",
    "model_tensors",
    "newest",
    "read",
    "save",
    "set_weights",
    "steps",
    "write",
]
