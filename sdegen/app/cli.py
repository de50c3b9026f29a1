"""The command line: `sdegen COMMAND ...`, or `python -m sdegen`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .. import __version__
from ..core.errors import SdegenError
from .told import Told

COMMANDS = {
    "train": "train a model on images: a folder, a file, a named set",
    "sample": "draw samples from a saved model: a picture, numbers, or a folder of images",
    "inpaint": "fill in what a mask leaves out of a picture, with a saved model of images",
    "evaluate": "score a model of images: distances, bits per dimension, reconstructions",
    "explore": "write a page on which solvers, steps and tolerances are tried live",
    "compare": "measure solvers, budgets and tolerances on a saved model",
    "fit-solver": "fit a solver for few evaluations to a saved model",
    "info": "tell what a saved model is, what it was trained on, and which solver suits it",
    "solvers": "print the table of solvers, or tell of one",
    "doctor": "print versions, devices, threads and what is not installed",
    "demo": "train, sample and draw a 2-D mixture and handwritten digits, in under three minutes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 with the error's message on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(words)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return 2
    try:
        with _printing(args):
            told = args.run(args)
        _print(told, args)
    except BrokenPipeError:  # its reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SdegenError, OSError, ImportError) as error:
        print(f"sdegen {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _print(told: Any, args: argparse.Namespace) -> None:
    """The result, as words or as JSON; nothing of a process that leaves speaking to another."""
    if told == Told(""):
        return
    if args.json:
        print(json.dumps(told.values), flush=True)
    elif told.text and not args.quiet:
        print(told.text, flush=True)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Only the command that is called is imported: --help and --version wait for nothing."""
    parser = argparse.ArgumentParser(
        prog="sdegen", description="Continuous-time diffusion models: a linear SDE, a score, a choice of solver."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, does in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        if name in words:
            module = importlib.import_module(f".commands.{name.replace('-', '_')}", __package__)
            module.arguments(command)
            command.epilog, command.formatter_class = module.__doc__, argparse.RawDescriptionHelpFormatter
            command.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
            command.add_argument("--quiet", action="store_true", help="print errors only")
            command.set_defaults(run=module.run)
            recalled = getattr(module, "recalled", None)
            if recalled is not None:  # what options mean that are not given
                given, _ = command.parse_known_args([word for word in words if word != name])
                command.set_defaults(**recalled(given))
    return parser


@contextlib.contextmanager
def _printing(args: argparse.Namespace) -> Iterator[None]:
    """What a command prints on its way goes to stderr where the result is for a program, and nowhere with --quiet."""
    if not (args.json or args.quiet):
        yield
        return
    with contextlib.ExitStack() as stack:
        stream = sys.stderr if args.json else stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(stream))
        yield


if __name__ == "__main__":
    sys.exit(main())
