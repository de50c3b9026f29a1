"""Training in several processes: what a step costs, what is sent for it, and the memory of each process.

torchrun starts one, two and four processes on the CPU, joined by gloo, in a network of their own (`unshare --net`), so
that what the loopback device counts is theirs. "CPU time" is that of all processes for a step, over that of one process
for the same batch: what the engines add. Wall times and the speed-up need a core for each process; the table says how
many there are. "Sent" is by each process in a step, headers and small messages among it, over 2(p-1)/p numbers of four
bytes for each weight, which is the least that a sum of gradients in each of p processes needs (Patarasuk & Yuan 2009).
FSDP2 gathers weights twice and scatters gradients once, 3(p-1)/p; gloo scatters by a whole sum, which makes 4(p-1)/p.

Memory: all tensors that a process has between two steps, over the formula: weights, two moments and an average are 16
bytes a weight, divided by p under FSDP2; DDP keeps the buckets of the gradients, 4 more. Beside it the largest growth of the process's own pages (RssAnon) while it
trains: with gradients, activations, gathered blocks, gloo's buffers and what the allocator keeps.

    python benchmarks/machines.py     # some minutes; writes results/machines.json
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from report import table, write
from torch import Tensor, nn

import sdegen as sg
from sdegen.core.shards import local

RUNS = (("", 1), ("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4))
STEPS, WARM_UP = 13, 3
UNET, DIT = "U-Net of 0.33M weights, batch 512, 8x8 pixels", "DiT of 20M weights, batch 8, 8x8 pixels"


def own_pages() -> int:
    """Bytes of this process that belong to no file."""
    return int(re.findall(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def sent() -> int:
    """Bytes that went through the loopback device so far."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[1])


def held() -> int:
    """Bytes of all tensors of this process."""
    sizes = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            memory = local(thing).untyped_storage()
            sizes[memory.data_ptr()] = memory.nbytes()
    return sum(sizes.values())


def images(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model_of(name: str) -> sg.Denoiser:
    torch.manual_seed(0)
    net: nn.Module = (
        sg.nets.make_net("digits") if name == UNET else sg.nets.DiT(1, hidden=256, depth=16, heads=4, patch=4)
    )
    return sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=0.6)


def train(name: str, strategy: str | None, batch_size: int, loss: Any) -> sg.Denoiser:
    model = model_of(name)
    words: dict[str, Any] = {"steps": STEPS, "batch_size": batch_size, "seed": 0, "device": "cpu", "progress": False}
    sg.fit(model, images(1024), loss=loss, strategy=strategy, **words)
    return model


def steps_of(strategy: str | None) -> dict[str, float]:
    """Seconds of CPU and of wall, and bytes through the loopback device, of a step."""
    seen: list[tuple[float, float, int]] = []

    @functools.wraps(sg.dsm_loss)
    def loss(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((time.process_time(), time.perf_counter(), sent()))
        return sg.dsm_loss(*args, **kwargs)

    weights = sum(p.numel() for p in train(UNET, strategy, 512, loss).parameters())
    first, last = seen[WARM_UP], seen[-1]
    walls = [b[1] - a[1] for a, b in zip(seen[WARM_UP:], seen[WARM_UP + 1 :], strict=False)]
    n = len(seen) - 1 - WARM_UP
    return {
        "cpu": (last[0] - first[0]) / n,
        "wall": statistics.median(walls),
        "bytes": (last[2] - first[2]) / n,
        "weights": weights,
    }


def memory_of(strategy: str | None) -> dict[str, float]:
    """The largest growth of this process's pages while it trains, what its tensors hold, and how many weights are."""
    train(UNET, strategy, 64, sg.dsm_loss)  # what is loaded once
    model = model_of(DIT)
    whole = sum(p.numel() for p in model.parameters())
    del model
    before, largest, done, seen = own_pages(), [0], threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            if len(seen) > WARM_UP:
                largest[0] = max(largest[0], own_pages())
            time.sleep(0.002)

    @functools.wraps(sg.dsm_loss)
    def loss(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(held() if len(seen) == WARM_UP else 0)
        return sg.dsm_loss(*args, **kwargs)

    thread = threading.Thread(target=watch)
    thread.start()
    train(DIT, strategy, 8, loss)
    done.set()
    thread.join()
    return {"pages": largest[0] - before, "held": seen[WARM_UP], "whole": whole}


def measure(strategy: str | None, out: str) -> None:
    """In one of the processes of torchrun."""
    torch.set_num_threads(1)
    found = {**memory_of(strategy), **steps_of(strategy)}
    (Path(out) / os.environ["RANK"]).write_text(json.dumps(found))


def started(strategy: str, processes: int) -> list[dict[str, float]]:
    """What each process of a run has measured."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        words = [sys.executable, "-m", *own, __file__, "--measure", strategy, "--out", folder]
        alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        done = subprocess.run(
            [*alone, *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(processes)]


def rows_of(
    strategy: str, p: int, found: list[dict[str, float]], one: list[dict[str, float]]
) -> tuple[list, list, list]:
    """A row of each table: of the step, of what is sent, of memory."""
    name = strategy or "one process"
    cpu, wall = sum(f["cpu"] for f in found), max(f["wall"] for f in found)
    step = [name, p, 1e3 * cpu, cpu / one[0]["cpu"], 1e3 * wall, one[0]["wall"] / wall]
    least = 4 * found[0]["weights"] * 2 * (p - 1) / p
    each = found[0]["bytes"] / p
    sends = [name, p, each / 1e6, least / 1e6, each / least if least else 0.0]
    formula = found[0]["whole"] * (20 if strategy == "ddp" else 16) / (p if strategy == "fsdp" else 1)
    held, pages = (max(f[kind] for f in found) for kind in ("held", "pages"))
    return step, sends, [name, p, held / 1e6, formula / 1e6, held / formula, pages / 1e6]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--measure", help=argparse.SUPPRESS)
    options.add_argument("--out", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure is not None:
        measure(chosen.measure or None, chosen.out)
        return
    found = [(strategy, p, started(strategy, p)) for strategy, p in RUNS]
    tables = list(zip(*(rows_of(*run, one=found[0][2]) for run in found), strict=True))
    print(
        table(
            ["strategy", "processes", "CPU ms a step, of all", "over one process", "wall ms a step", "speed-up"],
            tables[0],
            title=f"A step: {UNET}, {len(os.sched_getaffinity(0))} cores",
        )
    )
    print(
        table(
            ["strategy", "processes", "MB sent by each in a step", "2(p-1)/p x 4 bytes a weight, MB", "over it"],
            tables[1][1:],
            title=f"What is sent: {UNET}",
        )
    )
    print(
        table(
            ["strategy", "processes", "held by a process, MB", "formula, MB", "over it", "growth of its pages, MB"],
            tables[2],
            title=f"Memory: {DIT}",
        )
    )
    about = "Processes on one machine's CPU, joined by gloo; NCCL and several machines were not tried."
    write("machines", "Several processes", about)


if __name__ == "__main__":
    main()
