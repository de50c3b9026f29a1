"""What half precision and compilation of a network save, and what they cost.

Errors: samples with the network in bfloat16 against the flow solved tightly in full precision from the same noise, root
mean square over samples and numbers, in standard deviations of the data; beside it the error of full precision, how far
the two are from each other, and the mean evaluations of a sample. Times: a call of the Fashion-MNIST network at batch
64 on one core, CPU time of the fastest of several, and its first call.

    python benchmarks/precision.py     # 5 minutes of one core; writes results/precision.json
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # first calls compile

import torch
from few_evaluations import Case, cases
from report import table, write

import sdegen as sg
from sdegen.core.modes import computing

HOW = ({"steps": 8}, {"steps": 20}, {"rtol": 1e-2}, {"rtol": 1e-3}, {"solver": "dopri5", "rtol": 1e-3})
REPEATS = 15


def errors(case: Case) -> list[list[Any]]:
    """One row for each way to solve."""
    case.model.solvers, rows = (), []
    for how in HOW:
        full, half = (case.sampled(precision=precision, dtype=torch.float32, **how) for precision in (None, "bf16"))
        apart = float((full.x - half.x).square().mean().sqrt()) / case.model.sigma_data
        counts = (float(found.nfe.float().mean()) for found in (full, half))
        words = ", ".join(f"{name}={value}" for name, value in how.items())
        rows.append([words, case.error(full.x), case.error(half.x), apart, *counts])
    return rows


def times() -> list[list[Any]]:
    """Seconds a call of the network as it is, in bfloat16, compiled, and compiled in bfloat16."""
    rows = []
    for words, compiled, dtype in (
        ("as it is", None, None),
        ('precision="bf16"', None, torch.bfloat16),
        ("torch.compile(net)", {}, None),
        ('torch.compile(net), precision="bf16"', {}, torch.bfloat16),
        ("torch.compile(net, dynamic=True)", {"dynamic": True}, None),
    ):
        model: Any = sg.load("fashion", device="cpu")
        if compiled is not None:
            torch._dynamo.reset()
            model.net = torch.compile(model.net, **compiled)
        with computing(dtype):
            first, again = called(model, 64)
            other, _ = called(model, 40)
        rows.append([words, again, first, other])
    return rows


def called(model: Any, n: int) -> tuple[float, float]:
    """Seconds of a first call with n samples, and of CPU time of the fastest of those after it."""
    x, t, label = torch.randn(n, 1, 28, 28), torch.tensor(0.4, dtype=torch.float64), torch.arange(n) % 10
    found = []
    with torch.no_grad():
        for clock in (time.perf_counter, *[time.process_time] * REPEATS):
            began = clock()
            model(x, t, label=label)
            found.append(clock() - began)
    return found[0], min(found[1:])


def main() -> None:
    torch.set_num_threads(1)
    columns = ["", "error", "error in bf16", "apart", "evaluations", "evaluations in bf16"]
    for name in ("fashion", "ring"):
        with torch.no_grad():
            case = cases()[name]()
            print(table(columns, errors(case), title=case.name))
    about = "The first call compiles, and so does the first with another number of samples."
    columns = ["network", "seconds a call", "first call", "first call with 40 samples"]
    print(table(columns, times(), title="Time of a call", about=about))
    write("precision", "Half precision and compilation", __doc__.split("\n\n")[1].replace("\n", " "))


if __name__ == "__main__":
    main()
