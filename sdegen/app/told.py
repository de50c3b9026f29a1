"""What a command found: words for people, values for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Told:
    """The result of a command.

    Attributes:
        text: what it prints.
        values: the same as JSON has it, for --json.
    """

    text: str
    values: dict[str, Any] | list[Any] = field(default_factory=dict)
