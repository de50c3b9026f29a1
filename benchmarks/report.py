"""What a benchmark prints and keeps: its tables and lines, in results/NAME.json, from which the site is made."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sdegen as sg

RESULTS = Path(__file__).parent / "results"
_MADE: list[dict] = []  # the tables of this process, in order
_DRAWN: list[dict] = []  # its figures


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", about: str = "") -> str:
    """A table as Markdown, kept for `write`: its title is the first heading where no other is given.

    Cells are words or numbers; numbers are kept as they are and shown with three digits.
    """
    columns = list(head) if title else ["", *head[1:]]
    kept = {"title": title or head[0], "columns": columns, "rows": [list(row) for row in rows]}
    _MADE.append({**kept, "about": about} if about else kept)
    shown = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    lines = "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *shown])
    return f"{title}\n{lines}\n".lstrip("\n")


def figure(title: str, lines: Mapping[str, Iterable[tuple[float, float]]], error: str) -> None:
    """Keep lines of (evaluations, error) by name, which the site draws; `error` names the vertical axis."""
    kept = {name: [[float(f"{v:.5g}") for v in point] for point in line] for name, line in lines.items()}
    _DRAWN.append({"title": title, "error": error, "lines": kept})


def write(name: str, title: str, about: str, **more: Any) -> Path:
    """Write the tables made so far, with the command, the day, the version, the machine and more; returns the file."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]  # no path of a machine
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(shlex.quote, words)])
    report = {
        "title": title,
        "about": about,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "version": sg.__version__,
        "machine": _machine(),
        "tables": _MADE,
        "figures": _DRAWN,
        **more,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def _machine() -> str:
    """The processor's name, and what runs on it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    cpu = names[0].split(":")[1].strip() if names else platform.machine()
    return f"{cpu}, one thread, Python {platform.python_version()}"
