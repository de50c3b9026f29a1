"""What survives: every promise about runs, checkpoints and sample folders, put to the test in real processes.

Processes are killed, disks filled, files damaged; the table says how often, and how often a promise was broken.

    python benchmarks/reliability.py [--kills 20] [--corruptions 600] [--only kill disk ...]
    python benchmarks/reliability.py --quick       # a few of each, about four minutes
    python benchmarks/reliability.py --long        # 500 kills, 10 000 corruptions, 100 pairs, 50 interrupted samplings
"""

from __future__ import annotations

import argparse
import builtins
import errno
import functools
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import damage
import promises
import torch
from report import table, write
from torch import Tensor
from victims import STEPS, Row, Victim, newest_step, reference, train, trained_by

import sdegen as sg
from sdegen import storage

ROOT = Path(__file__).resolve().parent.parent

# ---- the faults


def killed(folder: Path, n: int, dice: random.Random) -> Row:
    """kill -9 at random moments: in steps, in saves, in start-up."""
    broken, runs, left, lost = 0, 0, n, 0
    while left > 0:
        out, reached = folder / f"{runs}", 0
        runs += 1
        for _ in range(min(5, left)):
            left -= 1
            victim = Victim(trained_by, out, STEPS)
            victim.reach(min(STEPS - 1, reached + dice.randrange(0, STEPS // 4)))
            time.sleep(dice.random() * 0.02)
            victim.end(signal.SIGKILL)
            kept = newest_step(out)
            lost += kept < reached
            reached = kept
        broken += not torch.equal(train(out), reference())
        shutil.rmtree(out)
    return Row(
        "kill -9 during training, at random",
        "resumes; final weights equal to the bit",
        n,
        broken + lost,
        f"{runs} runs",
    )


def signalled(folder: Path, n: int, dice: random.Random) -> Row:
    """SIGTERM and SIGINT in turn, at random moments of a run whose rate does not depend on its length."""
    broken, slowest, level = 0, 0.0, {"schedule": "constant", "warmup": 0}
    for i in range(n):
        number, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[i % 2]
        out = folder / f"{i}"
        victim = Victim(trained_by, out, 100_000, level)
        victim.reach(dice.randrange(1, 20))
        at, start = victim.at.value, time.monotonic()
        ended = victim.end(number)
        slowest = max(slowest, time.monotonic() - start)
        kept = newest_step(out)
        whole = train(None, kept + 5, **level)
        broken += ended != code or kept < at or not torch.equal(train(out, kept + 5, **level), whole)
        shutil.rmtree(out)
    promise = "step finished, saved, exit 143 / 130; resumes to the bit"
    return Row("SIGTERM, SIGINT", promise, n, broken, f"slowest end {slowest:.2f} s")


class Faults:
    """Counts the file operations in a folder and acts at the n-th (and, if lasting, at all later ones)."""

    NAMES = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "scandir", "listdir")

    def __init__(self, folder: Path, at: int, act: Callable[[], None], *, lasting: bool = False) -> None:
        self.folder, self.at, self.act, self.lasting, self.count = str(folder), at, act, lasting, 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.at or (self.lasting and self.count > self.at > 0):
            self.act()

    def ours(self, target: Any) -> bool:
        return isinstance(target, int) or str(target).startswith(self.folder)

    @contextmanager
    def watching(self) -> Iterator[Faults]:
        real = {name: getattr(os, name) for name in self.NAMES}
        real_open = builtins.open

        def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(target: Any, *args: Any, **kwargs: Any) -> Any:
                if self.ours(target):
                    self.step()
                return function(target, *args, **kwargs)

            return call

        def opened(target: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if isinstance(target, int) or not self.ours(target):
                return real_open(target, mode, *args, **kwargs)
            self.step()
            stream = real_open(target, mode, *args, **kwargs)
            return stream if "r" in mode else _Writing(stream, self)

        for name, function in real.items():
            setattr(os, name, wrapped(function))
        builtins.open = io.open = opened  # type: ignore
        try:
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)
            builtins.open = io.open = real_open


class _Writing:
    """A stream whose writes are file operations too."""

    def __init__(self, stream: Any, faults: Faults) -> None:
        self._stream, self._faults = stream, faults

    def write(self, data: Any) -> Any:
        self._faults.step()
        return self._stream.write(data)

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


FAULT_STEPS = 8


def faulty(folder: Path, stride: int) -> list[Row]:
    """Runs that go on from a checkpoint, save three times, and meet a fault at their N-th file operation."""
    start = folder / "start"
    train(start, 4)
    run = functools.partial(train, steps=FAULT_STEPS, save_every=2)
    wanted = reference_of(start, folder / "whole", run)
    shutil.copytree(start, folder / "count")
    with Faults(folder / "count", 0, lambda: None).watching() as counter:
        run(folder / "count")
    rows = []
    for name, code in (("EIO", errno.EIO), ("ENOSPC", errno.ENOSPC), ("EACCES", errno.EACCES), ("crash", None)):
        broken, unclear, tries = 0, 0, 0
        for at in range(1, counter.count + 1, stride):
            out = folder / "hurt"
            shutil.copytree(start, out)
            before, tries = newest_step(out), tries + 1
            victim = Victim(hurt, out, at, code, run)
            ended = victim.end()
            unclear += ended not in (0, 3, 9)
            broken += newest_step(out) < before or not torch.equal(run(out), wanted)
            shutil.rmtree(out)
        promise = "the old or the new checkpoint; a clear error; resumes to the bit"
        rows.append(
            Row(
                f"{name} at the N-th file operation, every {stride}",
                promise,
                tries,
                broken + unclear,
                f"{counter.count} operations",
            )
        )
    return rows


def reference_of(start: Path, out: Path, run: Callable[[Path], Tensor]) -> Tensor:
    shutil.copytree(start, out)
    return run(out)


def hurt(tell: Callable[..., None], out: Path, at: int, code: int | None, run: Callable[[Path], Tensor]) -> None:
    """Exit 0: it went well; 3: an error of ours; 9: the crash; 4: any other error."""

    def act() -> None:
        if code is None:
            os._exit(9)
        raise OSError(code, os.strerror(code))

    warnings.simplefilter("ignore")
    try:
        with Faults(out, at, act, lasting=code == errno.ENOSPC).watching():
            run(out)
    except sg.SdegenError:
        os._exit(3)
    except BaseException:
        os._exit(4)
    os._exit(0)


def disk_full(folder: Path, n: int) -> Row:
    """A file system with no room: a small tmpfs where that may be mounted, else a limit on the size of files."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode == 0
    )
    broken = 0
    try:
        for i in range(n):
            out = disk / "run"
            train(out, 8, save_every=4)
            room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize if mounted else 0
            if mounted:
                (disk / "ballast").write_bytes(bytes(max(0, room - 1000 * (1 + 7 * i))))
            victim = Victim(filled, out, None if mounted else 2000 + 500 * i)
            broken += victim.end() != 3 or newest_step(out) < 8
            (disk / "ballast").unlink(missing_ok=True)
            broken += not torch.equal(train(out, 16, save_every=4), reference_of_two(16))
            shutil.rmtree(out)
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)
    return Row(
        "disk full",
        "a clear error, the last checkpoint kept; resumes to the bit",
        n,
        broken,
        "tmpfs of 256 kB" if mounted else "file size limit",
    )


@functools.cache
def reference_of_two(steps: int) -> Tensor:
    """A run in two parts whose schedules differ: what disk_full makes when there is room."""
    with tempfile.TemporaryDirectory() as out:
        train(Path(out), 8, save_every=4)
        return train(Path(out), steps, save_every=4)


def filled(tell: Callable[..., None], out: Path, limit: int | None) -> None:
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(out, 16, save_every=4)
    except sg.CheckpointError:
        os._exit(3)


def pairs(folder: Path, n: int) -> Row:
    broken, slowest = 0, 0.0
    out = folder / "run"
    for _ in range(n):
        victim = Victim(trained_by, out, 100_000)
        victim.reach(1)
        start = time.monotonic()
        try:
            train(out)
            broken += 1
        except sg.RunLockedError as error:
            broken += f"process {victim.process.pid}" not in str(error)
        took = time.monotonic() - start
        slowest = max(slowest, took)
        broken += took > 5  # it takes hundredths: the rest is for busy machines
        victim.end(signal.SIGKILL)
        shutil.rmtree(out)
    return Row(
        "two runs in one folder",
        "the second refused at once (5 s at most), naming the first",
        n,
        broken,
        f"slowest {slowest:.3f} s",
    )


def killed_rank(folder: Path, n: int, dice: random.Random) -> Row:
    """torchrun with two processes (gloo) on train_images.py; one of them is killed."""
    broken, slowest = 0, 0.0
    for i in range(n):
        out = folder / f"{i}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(ROOT / "examples" / "train_images.py"), "--data", "digits", "--out", str(out)]
        command += [
            "--steps",
            "100000",
            "--batch-size",
            "16",
            "--save-every",
            "5",
            "--preview-every",
            "100000",
            "--device",
            "cpu",
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        torchrun = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not storage.steps(out) and torchrun.poll() is None:
            time.sleep(0.05)
        time.sleep(dice.random())
        ranks = [int(p) for p in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()]
        start = time.monotonic()
        os.kill(ranks[i % 2], signal.SIGKILL)
        try:
            broken += torchrun.wait(60) == 0
        except subprocess.TimeoutExpired:
            torchrun.kill()
            broken += 1
        slowest = max(slowest, time.monotonic() - start)
        broken += slowest > 60 or any(Path(f"/proc/{rank}").exists() for rank in ranks)
        broken += newest_step(out) < 5
    return Row(
        "one of two processes killed",
        "all end (60 s at most); a valid checkpoint",
        n,
        broken,
        f"slowest {slowest:.1f} s",
    )


def two_processes(folder: Path) -> Row:
    """torchrun against one process, the same global batch, 50 steps."""
    weights = []
    for i, launch in enumerate(([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])):
        out = folder / f"{i}"
        command = [
            sys.executable,
            *launch,
            str(ROOT / "examples" / "train_images.py"),
            "--data",
            "digits",
            "--steps",
            "50",
        ]
        command += [
            "--batch-size",
            "32",
            "--drop-label",
            "0",
            "--preview-every",
            "50",
            "--device",
            "cpu",
            "--out",
            str(out),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        weights.append(torch.cat([p.detach().flatten() for p in sg.load(out, device="cpu").parameters()]))
    difference = float((weights[1] - weights[0]).abs().max())
    return Row(
        "two processes (gloo)",
        "equal one process to 1e-5 after 50 steps",
        1,
        int(difference > 1e-5),
        f"largest difference {difference:.1e}",
    )


# ---- the table


def rows(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    def room(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    dice = random.Random(args.seed)
    tests: dict[str, Callable[[Path], Row | list[Row]]] = {
        "kill": lambda f: killed(f, args.kills, dice),
        "pictures": lambda f: promises.pictures(f, args.pictures, dice),
        "signals": lambda f: signalled(f, args.signals, dice),
        "faults": lambda f: faulty(f, args.stride),
        "disk": lambda f: disk_full(f, args.disks),
        "corrupt": lambda f: damage.corrupt(f, args.corruptions, dice),
        "malicious": lambda f: damage.malicious(f, args.malice, dice),
        "pairs": lambda f: pairs(f, args.pairs),
        "rank": lambda f: killed_rank(f, args.ranks, dice),
        "processes": two_processes,
        "sampling": lambda f: promises.sampling(f, args.samplings, dice),
        "evaluation": lambda f: promises.evaluation(f, args.evaluations, dice),
        "nan": promises.not_finite,
        "unreachable": promises.unreachable,
        "calls": lambda f: promises.wrong_calls(f, args.calls, dice),
        "shapes": promises.shapes,
        "splits": promises.splits,
        "threads": lambda f: promises.threads(f, args.threads),
    }
    for name in args.only or tests:
        if name not in tests:
            raise SystemExit(f"--only {name}: expected some of {' '.join(tests)}")
        found = tests[name](room(name))
        yield from [found] if isinstance(found, Row) else found


# how many tries, or of the file operations every how manyth (stride)
USUAL = {
    "kills": 20,
    "pictures": 10,
    "signals": 10,
    "stride": 1,
    "disks": 3,
    "corruptions": 600,
    "malice": 200,
    "pairs": 10,
}
USUAL |= {"ranks": 2, "samplings": 10, "evaluations": 5, "calls": 2000, "threads": 8}
QUICK = {"kills": 5, "pictures": 3, "signals": 2, "stride": 19, "disks": 1, "corruptions": 64, "malice": 30, "pairs": 2}
QUICK |= {"ranks": 1, "samplings": 3, "evaluations": 2, "calls": 300, "threads": 4}
LONG = {"kills": 500, "pictures": 50, "corruptions": 10_000, "malice": 2000, "pairs": 100, "samplings": 50, "ranks": 10}
LONG |= {"evaluations": 20, "calls": 10_000}
ABOUT = (
    "Processes are killed, disks filled, files damaged, networks return NaN, calls are wrong: how often it was tried, and how "
    'often a promise was broken. The runs have bf16, averages, batches in two parts and an end in mid-pass; "to the bit" means '
    "as in a run that nobody disturbed."
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in USUAL.items():
        parser.add_argument(f"--{name}", type=int, default=None, help=f"how many; default: {usual}")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="kill pictures signals faults disk corrupt malicious pairs ..."
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few of each")
    size.add_argument("--long", action="store_true", help="500 kills, 10 000 corruptions, 100 pairs, 50 samplings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    usual = {**USUAL, **(QUICK if args.quick else LONG if args.long else {})}
    for name, number in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, number)
    torch.set_num_threads(1)
    broken, lines = 0, []
    print("| fault | what the user gets | tries | broken | |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(args, Path(folder)):
            lines.append([str(cell) for cell in row])
            print(f"| {' | '.join(lines[-1])} |", flush=True)
            broken += row.broken
    if arguments is None and not args.only:
        table(["fault", "what the user gets", "tries", "broken", "seen"], lines)
        write("reliability", "What survives", ABOUT)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
