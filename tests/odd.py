"""Wrong and odd values for any argument, and what is allowed to happen where one is given."""

from __future__ import annotations

import contextlib
import io
import math
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from doors import Door, Net

import sdegen as sg

SECONDS = 10.0  # for one call: far more than any takes

ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "7": lambda: 7,
    "2**70": lambda: 2**70,
    "-2**70": lambda: -(2**70),
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "0.0": lambda: 0.0,
    "0.5": lambda: 0.5,
    "1.5": lambda: 1.5,
    "-0.5": lambda: -0.5,
    "1e300": lambda: 1e300,
    "1e-300": lambda: 1e-300,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1j": lambda: 1j,
    "Fraction": lambda: Fraction(1, 3),
    "Decimal": lambda: Decimal("0.5"),
    "np.int64": lambda: np.int64(2),
    "np.float32": lambda: np.float32(0.5),
    "np.float64 nan": lambda: np.float64("nan"),
    "np.bool": lambda: np.bool_(True),
    "np.array": lambda: np.array([0.5, 0.25]),
    "np.array()": lambda: np.array(0.5),
    "np objects": lambda: np.array([None, "a"], dtype=object),
    "''": lambda: "",
    "'wrong'": lambda: "wrong",
    "'0.5'": lambda: "0.5",
    "'\\0'": lambda: "a\0b",
    "long": lambda: "x" * 5000,
    "bytes": lambda: b"bytes",
    "path": lambda: Path("nowhere") / "at all",
    "[]": lambda: [],
    "()": lambda: (),
    "[1]": lambda: [1],
    "[-1]": lambda: [-1],
    "(0.5, nan)": lambda: (0.5, math.nan),
    "(1, 'a')": lambda: (1, "a"),
    "[None]": lambda: [None],
    "[[]]": lambda: [[], [1.0]],
    "(3, 2)": lambda: (3, 2),
    "(2**70, 2)": lambda: (2**70, 2),
    "(2**40, 2**40)": lambda: (2**40, 2**40),
    "(0.9, 0.1)": lambda: (0.9, 0.1),
    "range": lambda: range(3),
    "generator": lambda: (i for i in range(2)),
    "{}": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "{1: 2}": lambda: {1: 2},
    "set": lambda: {1, 2},
    "object": lambda: object(),
    "class": lambda: Hang,
    "module": lambda: contextlib,
    "()->": lambda: lambda: 0.5,
    "(a)->a": lambda: lambda a: a,
    "(*)->None": lambda: lambda *a, **k: None,
    "(*)->'a'": lambda: lambda *a, **k: "a",
    "tensor()": lambda: torch.tensor(0.5),
    "tensor nan": lambda: torch.tensor(math.nan),
    "tensor int": lambda: torch.tensor(2),
    "tensor bool": lambda: torch.tensor([True, False]),
    "tensor empty": lambda: torch.zeros(0),
    "tensor (0, 2)": lambda: torch.zeros(0, 2),
    "tensor (3,)": lambda: torch.tensor([0.1, 0.2, 0.3]),
    "tensor (3, 2)": lambda: torch.full((3, 2), 0.5),
    "tensor (3, 2) nan": lambda: torch.full((3, 2), math.nan),
    "tensor (3, 2) int": lambda: torch.ones(3, 2, dtype=torch.int64),
    "tensor (3, 2) half": lambda: torch.ones(3, 2, dtype=torch.float16),
    "tensor (3, 2) complex": lambda: torch.ones(3, 2, dtype=torch.complex64),
    "tensor (2, 3, 5)": lambda: torch.zeros(2, 3, 5),
    "tensor meta": lambda: torch.zeros(3, 2, device="meta"),
    "tensor sparse": lambda: torch.eye(3).to_sparse(),
    "tensor transposed": lambda: torch.ones(2, 3).T,
    "tensor that asks": lambda: torch.ones(3, 2, requires_grad=True),
    "dtype": lambda: torch.float64,
    "int dtype": lambda: torch.int64,
    "device": lambda: torch.device("meta"),
    "'cuda:7'": lambda: "cuda:7",
    "layer": lambda: torch.nn.Linear(2, 2),
    "process": lambda: sg.VPSDE(),
    "model": lambda: sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.EDMSDE()),
    "mixture": lambda: sg.GaussianMixture([[0.0]], std=1.0),
    "solver": lambda: sg.make_solver("euler-maruyama"),
    "Noise": lambda: sg.Noise(0),
}


# (door, argument, value): a function of the user's own that can be called so, and fails by itself.
EXCUSED = {("fit", "callback", "model"), ("fit", "callback", "layer"), ("solve", "report", "layer")}


class Hang(BaseException):
    """A call that takes longer than any may."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise Hang in the block after so many seconds of computing, or ten times as many on the clock."""
    worked, began = time.process_time(), time.monotonic()

    def ring(*_: Any) -> None:
        if time.process_time() - worked > seconds or time.monotonic() - began > 10 * seconds:
            raise Hang
        signal.setitimer(signal.ITIMER_REAL, seconds)  # others are at work on this machine

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault(door: Door, changed: Mapping[str, Any]) -> str:
    """What is wrong with how a door takes these arguments, '' where it works or refuses as promised."""
    arguments = {**door.arguments(), **changed}
    Net.calls = 0
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), alarm(SECONDS):
            warnings.simplefilter("ignore")
            door(arguments)
    except Hang:
        return "hangs"
    except sg.InvalidInputError as error:
        if Net.calls:
            return f"refused after {Net.calls} network calls at {_where(error)}: {error}"
        return "" if str(error).strip() else "says nothing"
    except sg.SdegenError:
        return ""
    except TypeError as error:
        own = _where(error)
        words = ("unexpected keyword argument", "required", "takes no keyword")
        if any(word in str(error) for word in words) and "tests/" in own:
            return ""
        return f"TypeError at {own}: {error}"
    except Exception as error:
        if _of_the_network(error):
            return ""
        return f"{type(error).__name__} at {_where(error)}: {error}"
    return ""


def _where(error: BaseException) -> str:
    """The innermost line of the package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if "/sdegen/" in f.filename]
    if not inside:
        return f"tests/:{frames[-1].lineno}"
    last = inside[-1]
    return f"{last.filename.rsplit('/sdegen/', 1)[1]}:{last.lineno} {last.name}"


def _of_the_network(error: BaseException) -> bool:
    """Whether a network that the test wrote was called by the package, and raised by itself."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    first = next((i for i, name in enumerate(files) if "/sdegen/" in name), len(files))
    return any(name.endswith("doors.py") for name in files[first:])
