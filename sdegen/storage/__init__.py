"""Bytes on disk: checkpoint folders, and the models in them."""

from .folders import (
    MANIFEST,
    STATE,
    VERSION,
    newest,
    newest_path,
    read,
    read_sharded,
    statistics_of,
    steps,
    write,
    write_together,
)
from .models import check_same, describe, load, model_tensors, network_of, save, tensor_groups
from .networks import set_weights

__all__ = [
    "MANIFEST",
    "STATE",
    "VERSION",
    "check_same",
    "describe",
    "load",
    "model_tensors",
    "network_of",
    "newest",
    "newest_path",
    "read",
    "read_sharded",
    "save",
    "set_weights",
    "statistics_of",
    "steps",
    "tensor_groups",
    "write",
    "write_together",
]
