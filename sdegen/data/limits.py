"""How much a file may unpack to: small files that claim or hold far more than pictures do are refused by name."""

from __future__ import annotations

import os
from typing import Any

from ..core.errors import InvalidInputError

RATIO, LEAST = 200, 2**27  # photographs pack 2 to 50 times, masks up to 200, nothing but zeros 1000 times


def check_unpacked(nbytes: int, packed: int, most: int | None, name: str) -> None:
    """Raise if a source of `packed` bytes says that it unpacks to more than it may.

    Args:
        nbytes: what it says.
        packed: the size of its file.
        most: the bytes allowed; None: 200 times the file's, at least 128 MiB.
        name: of the source.

    Raises:
        InvalidInputError: it is more.
    """
    allowed = max(LEAST, RATIO * packed) if most is None else most
    if nbytes > allowed:
        raise InvalidInputError(
            f"{name} has {packed} bytes and says that it unpacks to {nbytes}, more than the {allowed} allowed: it is "
            "damaged or not what it seems; if you trust it, pass max_bytes="
        )


def check_memory(nbytes: int, name: str, cure: str) -> None:
    """Raise if an array is larger than the machine's memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not known here
        return
    if nbytes > memory > 0:
        raise InvalidInputError(
            f"{name} would take {nbytes / 2**30:.1f} GiB, more than this machine's {memory / 2**30:.1f}: {cure}"
        )


def check_max_bytes(value: Any) -> None:
    """Raise unless it is a number of bytes, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidInputError(f"got max_bytes={value!r}, expected a whole number of bytes, or None")
