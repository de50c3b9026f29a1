"""sdegen explore --out explore.html
sdegen explore demo_output/toy_model --out explore.html --open
"""

from __future__ import annotations

import argparse
import os
import webbrowser
from pathlib import Path

from ...data import toys
from ..saved import saved_model
from ..told import Told


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a saved small network over the plane (default: a ring of modes)")
    parser.add_argument("--out", default="explore.html", help="the page (default: explore.html)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def run(args: argparse.Namespace) -> Told:
    """Write the page."""
    from ... import plot

    what = toys.ring(8) if args.model is None else saved_model(args.model, "cpu")
    page = plot.explore(what, args.out)
    if args.open:
        webbrowser.open(Path(page.path).absolute().as_uri())
    size = os.path.getsize(page)
    return Told(
        f"{page.path}: one page of {size / 1000:.0f} kB; open it in a browser", {"path": str(page.path), "bytes": size}
    )
