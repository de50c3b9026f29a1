"""Whose a folder of results is: the settings that they were made with, in `settings.json` beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InvalidInputError
from .files import write_whole

_NAME = "settings.json"


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise if the folder has results of other settings."""
    file = folder / _NAME
    if not file.exists():
        return
    try:
        theirs = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError):
        raise InvalidInputError(
            f"folder: {file} is damaged: remove it if the results beside it are yours, or pass another folder"
        ) from None
    other = [name for name in settings if settings[name] != theirs.get(name)]
    if other:
        raise InvalidInputError(
            f"folder: got {folder} with samples of other settings ({', '.join(sorted(other))}), expected a new one"
        )


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, if need be, and say whose it is; raise if it has results of other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder, settings)
    if not (folder / _NAME).exists():
        write_whole(folder / _NAME, json.dumps(settings, indent=1, sort_keys=True).encode())
