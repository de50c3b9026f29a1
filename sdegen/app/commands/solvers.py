"""sdegen solvers
sdegen solvers dpm++2m
"""

from __future__ import annotations

import argparse
import inspect
from dataclasses import asdict

from ...solvers import make_solver, solvers
from ..told import Told


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="tell of this one")


def run(args: argparse.Namespace) -> Told:
    """The table, or one row of it with its options."""
    table = solvers()
    if args.name is None:
        return Told(str(table), [asdict(row) for row in table])
    solver = make_solver(args.name)
    row = next((row for row in table if row.name == solver.name), None)
    facts = {} if row is None else asdict(row)
    lines = [f"{name:12s} {value}" for name, value in facts.items()]
    words = inspect.getdoc(type(solver)) or ""
    options = {name: value for name, value in solver.options().items() if isinstance(value, str | int | float | bool)}
    return Told("\n".join([*lines, "", words]).strip(), {**facts, "options": options, "about": words})
