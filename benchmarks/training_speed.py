"""Training speed and memory: `fit` against a bare PyTorch loop with the same network, loss, optimiser, average and
clipping.

Both are in one process and take turns step by step, in CPU time: the loss that `fit` is given first makes a step of the
bare loop, and whatever `fit` does from there to its next loss is its own. So a machine that is busy for a while is busy
for both, and nothing that `fit` does now and then is left out. The table has the ratio of the two and their difference a
step: means over eight runs, with 95 % intervals. Memory that is freed stays with the process, as its return to the
system and back falls on one of the two by chance. Records are evaluated every half second of wall time, in which `fit`
makes half the steps here that it would make alone, so that this counts more than it should. What `fit` adds to a step
shows best in small batches.

The bare loop calls the same `dsm_loss` (what the loop itself costs), or has the loss written out in float32 for this one
process (what generality costs on top). "one convolution" is hardly a network: there the loop is most of a step. "with a
folder" is `fit(out=...)`: locked, with metrics, and with a checkpoint every two minutes, whose wall time is measured by
itself (runs that save at every step against runs that do not) and added as it falls due.

Memory is the largest that a process ever had (VmHWM of Linux), each loop in processes of its own; `fit` with a folder,
and checkpoints on the way.

    python benchmarks/training_speed.py [--seconds 60] [--only U-Net] [--memory]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import table, write
from torch import Tensor, nn

from sdegen.models.denoiser import Denoiser
from sdegen.nets import MLP, make_net
from sdegen.processes import VPSDE
from sdegen.training import fit
from sdegen.training.losses import dsm_loss

EMA, CLIP, LR = 0.999, 1.0, 1e-3
INTERVAL = 120.0  # seconds between checkpoints, the default
RUNS, STUDENT = 8, 2.365  # of each measurement; the 97.5 % point of Student's t with RUNS - 1 degrees of freedom
LEAST, WARM_UP = 8, 3  # steps of a run: at least, and not counted
SAVED, MEMORY_STEPS = 12, 9  # steps that are timed with and without a checkpoint each; steps whose memory is measured


@dataclass(frozen=True)
class Case:
    """A network and data to train it on."""

    name: str
    network: str | None  # of `make_net`, or "convolution"; None: an MLP on points
    parametrization: str
    shape: tuple[int, ...]
    n: int
    batch_size: int

    def model(self) -> Denoiser:
        torch.manual_seed(0)
        if self.network is None:
            net: nn.Module = MLP(self.shape[0], hidden=128, layers=3)
        else:
            net = Convolution() if self.network == "convolution" else make_net(self.network)
        return Denoiser(net, VPSDE(), parametrization=self.parametrization, data_std=1.0)

    def data(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        if self.network is None:
            return torch.randn(self.n, *self.shape, generator=generator)
        return torch.rand(self.n, *self.shape, generator=generator) * 2 - 1

    def fit(self, model: Denoiser, data: Tensor, **how: Any) -> None:
        words = {"batch_size": self.batch_size, "lr": LR, "ema": EMA, "clip": CLIP, "seed": 0, "device": "cpu"}
        fit(model, data, **{**words, "progress": False, **how})


class Convolution(nn.Module):
    """Hardly a network: what is left is the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x)


CASES = (
    Case("MLP 3x128, (512, 2), edm", None, "edm", (2,), 20_000, 512),
    Case("MLP 3x128, (512, 2), noise", None, "noise", (2,), 20_000, 512),
    Case("one convolution, (128, 1, 8, 8)", "convolution", "noise", (1, 8, 8), 1800, 128),
    Case("U-Net 0.33M, (8, 1, 8, 8)", "digits", "noise", (1, 8, 8), 1800, 8),
    Case("U-Net 0.33M, (128, 1, 8, 8)", "digits", "noise", (1, 8, 8), 1800, 128),
    Case("U-Net 4.9M, (16, 3, 32, 32)", "cifar10-small", "noise", (3, 32, 32), 256, 16),
)


def written_out(model: Denoiser, x0: Tensor) -> Tensor:
    """The noise-prediction loss along linear VP as a script would have it."""
    t = torch.rand(len(x0)) * 0.999 + 0.001
    integral = (0.1 * t + 9.95 * t**2).reshape(-1, *[1] * (x0.ndim - 1))
    noise = torch.randn_like(x0)
    x = torch.exp(-integral / 2) * x0 + torch.sqrt(-torch.expm1(-integral)) * noise
    return (model.net(x, t) - noise).square().flatten(1).mean(1)


def bare_loop(model: Denoiser, data: Tensor, batch_size: int, loss: Callable[..., Tensor]) -> Callable[[int], None]:
    """A training loop as short as it can be."""
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            x0 = data[torch.randint(len(data), (batch_size,))]
            optimiser.zero_grad()
            loss(model, x0).mean().backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimiser.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - EMA)

    return run


class Interval(NamedTuple):
    """A figure, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:8.3f} ({self.low:6.3f} ..{self.high:6.3f})"


class Compared(NamedTuple):
    """fit's time over the bare loop's, what it takes more a step, and what the bare loop takes a step; in ms."""

    ratio: Interval
    more: Interval
    bare: float


def compared(case: Case, loss: Callable[..., Tensor], seconds: float, out: Path | None = None) -> Compared:
    """Of about so many seconds of CPU time, and as many runs as give intervals of the means over runs."""
    found = [by_turns(case, loss, seconds / RUNS, out and out / f"{i}") for i in range(RUNS)]
    fits, bares = torch.tensor(found, dtype=torch.float64).unbind(1)
    return Compared(interval(fits / bares), interval(fits - bares), float(bares.mean()))


def interval(values: Tensor) -> Interval:
    """The mean over the runs, by Student's t."""
    half = STUDENT * float(values.std()) / len(values) ** 0.5
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)


def by_turns(case: Case, loss: Callable[..., Tensor], seconds: float, out: Path | None) -> tuple[float, float]:
    """Milliseconds a step of fit and of the bare loop, in one run."""
    data, clock = case.data(), time.process_time
    bare = bare_loop(case.model().train(), data, case.batch_size, loss)
    bare(WARM_UP)
    last = clock()
    bare(WARM_UP)
    steps = max(LEAST, round(seconds * WARM_UP / (2 * (clock() - last)))) + WARM_UP
    fits, bares = [], []

    @functools.wraps(dsm_loss)
    def after_the_other(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal last
        now = clock()
        fits.append(now - last)
        bare(1)
        last = clock()
        bares.append(last - now)
        return dsm_loss(*args, **kwargs)

    # the one checkpoint that cannot be left out comes after the last loss
    case.fit(case.model(), data, steps=steps, loss=after_the_other, out=out, save_every=10**9)
    return 1e3 * statistics.mean(fits[WARM_UP:]), 1e3 * statistics.mean(bares[WARM_UP:])


def checkpoint_seconds(case: Case, folder: Path, repeats: int = 3) -> float:
    """Wall time of a checkpoint: of runs that save after every step, less that of runs that save once."""
    data, model, spent = case.data(), case.model(), []
    for i in range(repeats):
        seconds = []
        for every in (1, SAVED):
            begun = time.perf_counter()
            case.fit(model, data, steps=SAVED, out=folder / f"saved-{i}-{every}", save_every=every)
            seconds.append(time.perf_counter() - begun)
        spent.append((seconds[0] - seconds[1]) / (SAVED - 1))
    return max(statistics.median(spent), 0.0)


# ---- memory


def run_alone(case: Case, loop: str) -> None:
    """One loop, and then what the process needed at most, in MB."""
    data, model = case.data(), case.model()
    if loop == "bare":
        bare_loop(model.train(), data, case.batch_size, dsm_loss)(MEMORY_STEPS)
    else:
        with tempfile.TemporaryDirectory() as folder:
            case.fit(model, data, steps=MEMORY_STEPS, out=Path(folder) / "run", save_every=MEMORY_STEPS // 3)
    # not getrusage: what that says begins with the memory of the process that started this one
    print(int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024)


def peak(case: Case, loop: str, repeats: int = 3) -> float:
    """The median over processes of the most memory that a loop needed, MB."""
    command = [sys.executable, __file__, "--alone", loop, "--only", case.name]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repeats)]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=60, help="CPU time of each measurement, about")
    options.add_argument("--only", default="", help="cases whose names hold this")
    options.add_argument("--memory", action="store_true", help="nothing but memory")
    options.add_argument("--alone", choices=("fit", "bare"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in CASES if chosen.only in case.name]
    if chosen.alone:
        run_alone(cases[0], chosen.alone)
        return
    if not chosen.memory:
        time_all(cases, chosen.seconds)
    rows = []
    for case in cases:
        if case.network is not None:
            fits, bare = peak(case, "fit"), peak(case, "bare")
            rows.append([case.name, f"{fits / bare:.3f}", f"{fits:.0f}", f"{bare:.0f}"])
    if rows:
        print(table(["largest memory", "fit / bare", "fit, MB", "bare, MB"], rows))
    if not chosen.only:
        write("training_speed", "The cost of fit", "Ratios to a bare loop, means over eight runs, 95 % intervals.")


def keep_pages() -> None:
    """glibc keeps the memory that is freed: else one of the loops pays again and again for pages that it gives back."""
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 << 20)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def time_all(cases: Sequence[Case], seconds: float) -> None:
    keep_pages()
    rows = []
    for case in cases:
        rows.append(timed(case.name, compared(case, dsm_loss, seconds)))
        if case.parametrization == "noise" and case.network is None:
            rows.append(timed(f"{case.name}, loss written out", compared(case, written_out, seconds)))
        if case.network is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = compared(case, dsm_loss, seconds, Path(folder) / "run")
            each = checkpoint_seconds(case, Path(folder))
        rows.append(timed(f"{case.name}, with a folder", found))
        whole = Interval(*(end * (1 + each / INTERVAL) for end in found.ratio))
        rows.append([f"{case.name}, and its checkpoints ({1e3 * each:.0f} ms every two minutes)", str(whole), "", ""])
    print(table(["CPU time", "fit / bare", "fit - bare, ms a step", "bare, ms a step"], rows), flush=True)


def timed(name: str, found: Compared) -> list[str]:
    return [name, str(found.ratio), str(found.more), f"{found.bare:.3g}"]


if __name__ == "__main__":
    main()
