"""Training speed and memory: `fit` against a bare PyTorch loop with the same network, loss, optimiser, average and
clipping.

Both run in turns within one process, a block of steps each, and every block of `fit` is divided by the mean of the bare
blocks before and after it; the table has the median of these ratios, in CPU time. The bare loop calls the same
`dsm_loss` (what the loop itself costs), or has the loss written out in float32 for this one process (what generality
costs on top). A busy machine blurs the ratios of large networks by some per cent: what the loop adds to a step does not
depend on the network, and shows on one that costs nothing ("one convolution"). "with a folder" is `fit(out=...)`: locked, with metrics, and with a checkpoint every two minutes, whose
wall time is measured by itself (runs that save at every step against runs that do not) and added as it falls due.

Memory is the largest that the process ever had (resource.getrusage), each loop in a process of its own; `fit` with a
folder, and checkpoints on the way.

    python benchmarks/training_speed.py [--blocks 40] [--steps 100] [--only U-Net]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdegen.losses import dsm_loss
from sdegen.model import Denoiser
from sdegen.nets import MLP, make_net
from sdegen.sde import VPSDE
from sdegen.training import fit

EMA, CLIP, LR = 0.999, 1.0, 1e-3
INTERVAL = 120.0  # seconds between checkpoints, the default
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


def ratio(
    case: Case, loss: Callable[..., Tensor], blocks: int, steps: int, out: Path | None = None
) -> tuple[float, float, float]:
    """Median of fit's time over the bare loop's, and milliseconds a step of both (CPU time)."""
    data = case.data()
    bare = bare_loop(case.model().train(), data, case.batch_size, loss)
    bare(steps)
    fits, bares, last = [], [], 0.0

    def take_turns(step: int, model: object, history: object) -> None:
        nonlocal last
        now = time.process_time()
        fits.append(now - last)
        with torch.enable_grad():
            bare(steps)
        last = time.process_time()
        bares.append(last - now)

    model = case.model()
    last = time.process_time()
    # the one checkpoint that cannot be left out, after the last step, is in no block
    how = {"out": out, "save_every": 10**9, "callback": take_turns, "callback_every": steps}
    case.fit(model, data, steps=steps * (blocks + 1), **how)
    ratios = [2 * fits[i] / (bares[i - 1] + bares[i]) for i in range(1, blocks + 1)]  # the first holds the start
    fit_ms, bare_ms = (1e3 * statistics.median(times[1:]) / steps for times in (fits, bares))
    return statistics.median(ratios), fit_ms, bare_ms


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
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak(case: Case, loop: str, repeats: int = 3) -> float:
    """The median over processes of the most memory that a loop needed, MB."""
    command = [sys.executable, __file__, "--alone", loop, "--only", case.name]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repeats)]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--blocks", type=int, default=40)
    options.add_argument("--steps", type=int, default=100, help="in a block; a tenth for images of 8x8, few for larger")
    options.add_argument("--only", default="", help="cases whose names hold this")
    options.add_argument("--alone", choices=("fit", "bare"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in CASES if chosen.only in case.name]
    if chosen.alone:
        run_alone(cases[0], chosen.alone)
        return
    print(f"{'CPU time':32}{'fit / bare':>12}{'fit ms':>10}{'bare ms':>10}")
    for case in cases:
        steps = max(1, chosen.steps // {None: 1, "convolution": 1, "digits": 10}.get(case.network, 50))
        blocks = chosen.blocks if case.network in (None, "convolution", "digits") else max(1, chosen.blocks // 2)
        r, fit_ms, bare_ms = ratio(case, dsm_loss, blocks, steps)
        print(f"{case.name:32}{r:12.3f}{fit_ms:10.3f}{bare_ms:10.3f}", flush=True)
        if case.parametrization == "noise" and case.network in (None, "digits"):
            r, fit_ms, bare_ms = ratio(case, written_out, blocks, steps)
            print(f"{'  loss written out':32}{r:12.3f}{fit_ms:10.3f}{bare_ms:10.3f}", flush=True)
        if case.network is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            r, fit_ms, bare_ms = ratio(case, dsm_loss, blocks, steps, Path(folder) / "run")
            seconds = checkpoint_seconds(case, Path(folder))
        print(f"{'  with a folder':32}{r:12.3f}{fit_ms:10.3f}{bare_ms:10.3f}", flush=True)
        whole = r * (1 + seconds / INTERVAL)
        print(f"{'  and its checkpoints':32}{whole:12.3f}   {1e3 * seconds:.0f} ms every two minutes", flush=True)
        fits, bare = peak(case, "fit"), peak(case, "bare")
        print(f"{'  memory':32}{fits / bare:12.3f}{fits:7.0f} MB{bare:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
