"""sdegen doctor"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

import torch

from ... import __version__
from ..told import Told

NEEDED = ("torch", "numpy", "scipy", "matplotlib", "torchdiffeq", "torchsde", "safetensors", "tqdm", "filelock")
OPTIONAL = {
    "scikit-learn": "the digits of the demo: pip install 'sdegen[data]'",
    "pillow": "GIFs and folders of images: pip install 'sdegen[data]'",
    "diffusers": "from_diffusers: pip install 'sdegen[interop]'",
    "transformers": "prompts of pipelines: pip install 'sdegen[interop,text]'",
    "tensorboard": "TensorBoard logs: pip install 'sdegen[train]'",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> Told:
    """Versions, devices and threads."""
    lines = [f"sdegen {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [f"  {name:12s} {_version(name) or 'MISSING: pip install ' + name}" for name in NEEDED]
    for name, what in OPTIONAL.items():
        lines.append(f"  {name:12s} {_version(name) or 'not installed (optional; ' + what + ')'}")
    devices = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(i)
        devices.append(f"cuda:{i}: {p.name}, {p.total_memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()}")
    lines += [f"  {device}" for device in devices] or ["  devices      cpu only (no CUDA device found)"]
    lines.append(f"  threads      torch {torch.get_num_threads()} of {os.cpu_count()} cores")
    versions = {name: _version(name) for name in ("sdegen", *NEEDED, *OPTIONAL)}
    return Told("\n".join(lines), {"versions": versions, "devices": devices, "threads": torch.get_num_threads()})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
