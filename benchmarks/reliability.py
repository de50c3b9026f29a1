"""What survives: every promise about runs, checkpoints and sample folders, put to the test in real processes.

Processes are killed, disks filled, files damaged; the table says how often, and how often a promise was broken.

    python benchmarks/reliability.py [--kills 20] [--corruptions 600] [--only kill disk ...]
    python benchmarks/reliability.py --long        # 500 kills, 10 000 corruptions, 100 pairs, 50 interrupted samplings
"""

from __future__ import annotations

import argparse
import builtins
import errno
import functools
import io
import multiprocessing
import os
import random
import resource
import runpy
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
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdegen as sg
from sdegen import storage

ROOT = Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("fork")
STEPS, SAVE_EVERY = 40, 4


class Row(NamedTuple):
    """A line of the table: the fault, what the user gets, tries, broken promises, and what else was seen."""

    fault: str
    promise: str
    tries: int
    broken: int
    seen: str = ""


# ---- a run to be hurt


def points() -> Tensor:
    return torch.randn(100, 2, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.2


def fresh_model(seed: int = 0) -> sg.Denoiser:
    torch.manual_seed(seed)
    return sg.Denoiser(sg.nets.MLP(2, hidden=16, layers=1, embedding=8), sg.VPSDE())


def train(out: Path | None, steps: int = STEPS, callback: Callable[..., Any] | None = None, **words: Any) -> Tensor:
    """A short run with everything on: bf16, averages, batches in parts that end in mid-pass. The weights, in a row."""
    model = fresh_model()
    words = {"precision": "bf16", "accumulate": 2, "save_every": SAVE_EVERY, **words}
    how: dict[str, Any] = {"batch_size": 16, "seed": 0, "progress": False, "device": "cpu"}
    sg.fit(model, points(), steps=steps, out=out, callback=callback, callback_every=1, **how, **words)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@functools.cache
def reference(steps: int = STEPS) -> Tensor:
    """What a run that nobody disturbs ends with."""
    return train(None, steps)


class Victim:
    """A process that does something, to be killed; it tells how far it is."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.at = FORK.Value("q", -1)
        self.process = FORK.Process(target=self._run, args=(work, arguments))
        self.process.start()

    def _run(self, work: Callable[..., Any], arguments: tuple) -> None:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nothing:
            sys.stdout = sys.stderr = nothing
            work(self.tell, *arguments)

    def tell(self, at: int, *_: Any) -> None:
        self.at.value = at

    def reach(self, at: int) -> None:
        while self.at.value < at and self.process.is_alive():
            time.sleep(0.0005)

    def end(self, number: int | None = None, seconds: float = 60) -> int | None:
        """Its exit code, after a signal; None if it hangs."""
        if number is not None and self.process.is_alive():
            os.kill(self.process.pid or 0, number)
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            return None
        return self.process.exitcode


def trained_by(tell: Callable[..., None], out: Path, steps: int, words: dict[str, Any] | None = None) -> None:
    train(out, steps, tell, **words or {})


def newest_step(out: Path) -> int:
    """Of the newest valid checkpoint, 0 if there is none; damage raises."""
    found = storage.newest(out, ["model", "training"])
    return 0 if found is None else found[1]["training"]["step"]


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


def corrupt(folder: Path, n: int, dice: random.Random) -> Row:
    """Damage of every kind to one of two checkpoints of a run: named when it is loaded, passed over by a run."""
    out = folder / "run"
    train(out, 8, save_every=4)
    sound = folder / "sound"
    shutil.copytree(out, sound)
    newest = storage.steps(out)[-1]
    other = storage.steps(out)[0]
    silent, unnamed, not_passed = 0, 0, 0
    for i in range(n):
        damage(newest, other, KINDS[i % len(KINDS)], dice)
        try:
            storage.read(newest, ["model", "training"])
            silent += 1
        except sg.CheckpointError:
            pass
        except Exception:
            unnamed += 1
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            not_passed += newest_step(out) != 4 or not any("skipped step-00000008" in str(w.message) for w in told)
        shutil.rmtree(newest)
        shutil.copytree(sound / newest.name, newest)
    seen = f"{silent} silent, {unnamed} unnamed, {not_passed} not passed over"
    return Row("corrupt checkpoint", "a named error; a run falls back", n, silent + unnamed + not_passed, seen)


KINDS = ("flip", "zero", "truncate", "grow", "swap", "missing", "manifest", "other's")


def damage(path: Path, other: Path, kind: str, dice: random.Random) -> None:
    files = sorted(path.iterdir())
    file = dice.choice(files)
    data = bytearray(file.read_bytes())
    if kind == "flip":
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == "zero":
        page = dice.randrange(len(data)) // 512 * 512
        if not any(data[page : page + 512]):
            page = 0
        data[page : page + 512] = bytes(len(data[page : page + 512]))
    elif kind == "truncate":
        del data[dice.randrange(len(data)) :]
    elif kind == "grow":
        data += bytes(dice.randrange(1, 5000))
    elif kind == "swap":
        second = dice.choice([f for f in files if f != file])
        data, theirs = bytearray(second.read_bytes()), bytes(data)
        second.write_bytes(theirs)
    elif kind == "missing":
        file.unlink()
        return
    elif kind == "manifest":
        file = path / storage.MANIFEST
        text = file.read_text()
        at = dice.choice([i for i, c in enumerate(text) if c.isdigit()])
        data = bytearray((text[:at] + str((int(text[at]) + dice.randrange(1, 10)) % 10) + text[at + 1 :]).encode())
    else:  # a file of the same run's other checkpoint; the same in both would be no damage
        file = path / dice.choice(["model.safetensors", "training.safetensors", storage.STATE, storage.MANIFEST])
        data = bytearray((other / file.name).read_bytes())
    file.write_bytes(data)


def malicious(folder: Path) -> Row:
    """The tests' hand-made attacks, in a process that counts what it runs and what memory it takes."""
    sys.path.insert(0, str(ROOT / "tests" / "storage"))
    import test_checkpoint as attacks

    broken = 0
    for i, attack in enumerate(attacks.MALICE.values()):
        path = folder / f"{i}"
        attacks.save(attacks.small(), path)
        attack(path)
        attacks.reseal(path)
        broken += Victim(attacked, path).end() != 0
    return Row("malicious checkpoint", "refused; nothing runs; under 300 MB more memory", len(attacks.MALICE), broken)


def attacked(tell: Callable[..., None], path: Path) -> None:
    ran = []
    sys.addaudithook(
        lambda event, _: (
            ran.append(event) if event in ("os.system", "subprocess.Popen", "exec", "os.exec") and watch else None
        )
    )
    before, watch = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, True
    try:
        sg.load(path, device="cpu")
        os._exit(1)
    except sg.CheckpointError:
        pass
    watch = False
    os._exit(0 if not ran and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000 else 2)


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
        broken += took > 1
        victim.end(signal.SIGKILL)
        shutil.rmtree(out)
    return Row(
        "two runs in one folder",
        "the second refused under 1 s, naming the first",
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
        broken += slowest > 30 or any(Path(f"/proc/{rank}").exists() for rank in ranks)
        broken += newest_step(out) < 5
    return Row(
        "one of two processes killed", "all end under 30 s; a valid checkpoint", n, broken, f"slowest {slowest:.1f} s"
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


def sampling(folder: Path, n: int, dice: random.Random) -> Row:
    """sample_images.py killed again and again; the folder against that of an undisturbed run."""
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.UNet(1, channels=8, multipliers=(1, 2)), sg.VPSDE(), data_std=0.5)
    model.event_shape = (1, 8, 8)
    sg.save(model, folder / "model")
    whole, hurt_ = folder / "whole", folder / "hurt"
    start = time.monotonic()
    Victim(sampled, folder / "model", whole).end()
    length = time.monotonic() - start
    wanted = {p.name: p.read_bytes() for p in whole.iterdir()}
    broken, done, rounds = 0, 0, 0
    while done < n:
        shutil.rmtree(hurt_, ignore_errors=True)
        rounds += 1
        for _ in range(min(10, n - done)):
            done += 1
            victim = Victim(sampled, folder / "model", hurt_)
            time.sleep(dice.random() * length)
            victim.end(signal.SIGKILL)
            broken += any(wanted[p.name] != p.read_bytes() for p in hurt_.glob("[0-9]*.png")) if hurt_.exists() else 0
        broken += Victim(sampled, folder / "model", hurt_).end() != 0
        broken += {p.name: p.read_bytes() for p in hurt_.iterdir() if not p.name.startswith(".")} != wanted
    return Row(
        "interrupted sampling",
        "killed and restarted: an identical folder",
        n,
        broken,
        f"{rounds} folders of {len(wanted) - 2}",
    )


def sampled(tell: Callable[..., None], model: Path, out: Path) -> None:
    sys.argv = ["sample_images.py", str(model), "--out", str(out), "--n", "24", "--batch-size", "4", "--steps", "4"]
    runpy.run_path(str(ROOT / "examples" / "sample_images.py"), run_name="__main__")


# ---- the table


def rows(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    def room(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    dice = random.Random(args.seed)
    tests: dict[str, Callable[[Path], Row | list[Row]]] = {
        "kill": lambda f: killed(f, args.kills, dice),
        "signals": lambda f: signalled(f, args.signals, dice),
        "faults": lambda f: faulty(f, args.stride),
        "disk": lambda f: disk_full(f, args.disks),
        "corrupt": lambda f: corrupt(f, args.corruptions, dice),
        "malicious": malicious,
        "pairs": lambda f: pairs(f, args.pairs),
        "rank": lambda f: killed_rank(f, args.ranks, dice),
        "processes": two_processes,
        "sampling": lambda f: sampling(f, args.samplings, dice),
    }
    for name in args.only or tests:
        found = tests[name](room(name))
        yield from [found] if isinstance(found, Row) else found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", type=int, default=10)
    parser.add_argument("--stride", type=int, default=1, help="of the file operations, which ones meet a fault")
    parser.add_argument("--disks", type=int, default=3)
    parser.add_argument("--corruptions", type=int, default=600)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--samplings", type=int, default=10)
    parser.add_argument(
        "--only", nargs="+", help="kill signals faults disk corrupt malicious pairs rank processes sampling"
    )
    parser.add_argument("--long", action="store_true", help="500 kills, 10 000 corruptions, 100 pairs, 50 samplings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.long:
        args.kills, args.corruptions, args.pairs, args.samplings, args.ranks = 500, 10_000, 100, 50, 10
    torch.set_num_threads(1)
    print("| fault | what the user gets | tries | broken | |\n|---|---|---|---|---|")
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(args, Path(folder)):
            print(f"| {row.fault} | {row.promise} | {row.tries} | {row.broken} | {row.seen} |", flush=True)
            broken += row.broken
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
