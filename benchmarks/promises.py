"""Promises about calls and about the command line: each function tries one of them and returns a row of the table."""

from __future__ import annotations

import concurrent.futures
import json
import math
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from victims import Row, Victim, fresh_model, newest_step

import sdegen as sg
from sdegen.app.cli import main

ROOT = Path(__file__).resolve().parent.parent
OWN = [row.name for row in sg.solvers() if ":" not in row.name]  # those that need no other package


def mixture(**words: Any) -> sg.MixtureModel:
    return sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.3), sg.VPSDE(), **words)


class Hurt(nn.Module):
    """The network of an exact model, whose answers are spoilt below a time, for one of the samples."""

    def __init__(self, spoilt: Callable[[Tensor], Tensor], which: int | None, below: float = 0.5) -> None:
        super().__init__()
        self.exact, self.spoilt, self.which, self.below = mixture(), spoilt, which, below
        self.mark = torch.zeros(2)

    def forward(self, x: Tensor, t: Tensor, number: Tensor) -> Tensor:
        noise = self.exact(x, t.double()).noise
        bad = (t < self.below) & ((number == self.which) if self.which is not None else True)
        return torch.where(bad[:, None], self.spoilt(noise), noise)


def hurt_model(spoilt: Callable[[Tensor], Tensor], which: int | None, below: float = 0.5) -> sg.Denoiser:
    net = Hurt(spoilt, which, below)
    return sg.Denoiser(net, sg.VPSDE(), parametrization="noise", data_mean=0.0, data_std=0.7)


# ---- commands


def command(tell: Callable[..., None], words: list[str]) -> None:
    warnings.simplefilter("ignore")
    os._exit(main(words))


def weights(run: Path) -> Tensor:
    return torch.cat([p.detach().flatten() for p in sg.load(run, device="cpu").parameters()])


def pictures(folder: Path, n: int, dice: random.Random) -> Row:
    """`sdegen train` on a folder of pictures, killed again and again, a byte of its cache flipped now and then."""
    from PIL import Image

    data, cache = folder / "data", folder / "cache"
    for i in range(60):
        place = data / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (8, 8), dice.randbytes(192)).save(place / f"{i}.png")
    words = [
        "train",
        str(data),
        "--network",
        "mnist-small",
        "--net",
        "channels=8",
        "--steps",
        "16",
        "--batch-size",
        "8",
    ]
    words += ["--flips", "--save-every", "3", "--preview-every", "16", "--device", "cpu", "--quiet"]
    start = time.monotonic()
    assert_ended(Victim(command, [*words, "--out", str(folder / "whole")]))
    length, wanted, broken, done, runs = time.monotonic() - start, weights(folder / "whole"), 0, 0, 0
    while done < n:
        out, reached = folder / "hurt", 0
        for _ in range(min(3, n - done)):
            victim, done = Victim(command, [*words, "--out", str(out), "--cache", str(cache)]), done + 1
            time.sleep(length * dice.random())
            victim.end(signal.SIGKILL)
            kept = newest_step(out) if out.exists() else 0
            broken, reached = broken + (kept < reached), kept
            for file in sorted(cache.glob("**/*.npy"))[:1] if dice.random() < 0.5 else []:
                flip(file, dice)
        assert_ended(Victim(command, [*words, "--out", str(out), "--cache", str(cache)]))
        broken, runs = broken + (not torch.equal(weights(out), wanted)), runs + 1
        shutil.rmtree(out)
    promise = "sdegen train goes on; final weights equal to the bit, without a cache, with one, and with a damaged one"
    return Row("picture folder with its cache: kill -9, flipped bytes", promise, n, broken, f"{runs} runs")


def flip(file: Path, dice: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def assert_ended(victim: Victim) -> None:
    if (code := victim.end(seconds=300)) != 0:
        raise SystemExit(f"an undisturbed command ended with {code}")


def evaluation(folder: Path, n: int, dice: random.Random) -> Row:
    """`sdegen evaluate` killed; the numbers of the next are those of an undisturbed one."""
    run = folder / "run"
    train = [
        "train",
        "digits",
        "--net",
        "channels=8",
        "--steps",
        "4",
        "--batch-size",
        "16",
        "--smoke",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert_ended(Victim(command, [*train, "--out", str(run)]))
    words = ["evaluate", str(run), "--smoke", "--quiet", "--device", "cpu", "--only", "frechet", "reconstruction"]
    start = time.monotonic()
    assert_ended(Victim(command, [*words, "--out", str(folder / "whole.json")]))
    length, wanted, broken = time.monotonic() - start, json.loads((folder / "whole.json").read_text()), 0
    for i in range(n):
        (run / "classifier.safetensors").unlink(missing_ok=True)
        victim = Victim(command, [*words, "--out", str(folder / f"{i}.json")])
        time.sleep(length * dice.random())
        victim.end(signal.SIGKILL)
        assert_ended(Victim(command, [*words, "--out", str(folder / f"{i}.json")]))
        broken += json.loads((folder / f"{i}.json").read_text()) != wanted
    return Row("evaluation killed", "the next one gives the numbers of an undisturbed one", n, broken)


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


# ---- solves


def not_finite(folder: Path) -> Row:
    """NaN and infinity from the network in mid-solve, for one of five samples, with every solver."""
    broken, tries, worst = 0, 0, 0.0
    number = torch.arange(5)
    sound, words = (
        hurt_model(lambda v: v, 2),
        {"seed": 0, "cond": {"number": number}, "progress": False, "dtype": torch.float64},
    )
    for name in OWN:
        how = {"solver": name, "steps": 24} if name not in ("bosh3", "dopri5") else {"solver": name, "rtol": 1e-3}
        clean = sg.sample(sound, (5, 2), **how, **words).x
        for value in (math.nan, math.inf):
            tries += 1
            model = hurt_model(lambda v, value=value: v * 0 + value, 2)
            found = sg.sample(model, (5, 2), on_failure="mark", **how, **words)
            bad = [i for i, status in enumerate(found.status) if status]
            others = float((found.x - clean)[[0, 1, 3, 4]].abs().max())
            worst = max(worst, others)
            broken += bad != [2] or not others <= 1e-2
            try:
                sg.sample(model, (5, 2), **how, **words)
                broken += 1
            except sg.NonFiniteError as error:
                broken += not ("t =" in str(error) and "2" in str(error) and error.partial is not None)
    promise = "time and sample named; the others unharmed under on_failure='mark'"
    return Row(
        "NaN or infinity from the network in mid-solve",
        promise,
        tries,
        broken,
        f"{len(OWN)} solvers, others differ by {worst:.1e}",
    )


HOPELESS = [
    ("a tolerance beyond rounding", lambda: hurt_model(lambda v: v, None), {"rtol": 1e-15, "atol": 1e-30}),
    ("blow-up", lambda: hurt_model(lambda v: v * -1e4, None), {"rtol": 1e-6}),
    ("noise for an answer", lambda: hurt_model(lambda v: torch.randn_like(v), None), {"rtol": 1e-8}),
]


def hopeless() -> int:
    """How many of the hopeless solves did not end with a SolverError that has what was reached."""
    broken = 0
    warnings.simplefilter("ignore")
    for _, made, how in HOPELESS:
        for solver in ("adams", "bosh3", "dopri5"):
            try:
                sg.sample(
                    made(), (3, 2), solver=solver, max_steps=200, seed=0, number=torch.arange(3), progress=False, **how
                )
            except sg.SolverError as error:
                broken += error.partial is None
            except BaseException:
                broken += 1
    return broken


def unreachable(folder: Path) -> Row:
    """Hopeless solves, and a wrong call, with and without -O: none hangs."""
    broken, tries = 0, 0
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
        "OMP_NUM_THREADS": "1",
    }
    for options in ([], ["-O"], ["-OO"]):
        tries += 3 * len(HOPELESS)
        call = [sys.executable, *options, "-c", "import promises; print(promises.hopeless())"]
        try:
            done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
            broken += int(done.stdout) if done.returncode == 0 else 3 * len(HOPELESS)
        except subprocess.TimeoutExpired:
            broken += 3 * len(HOPELESS)
    promise = "ends within max_steps: with an answer, or an error that has what was reached; also under -O and -OO"
    return Row("unreachable tolerance, blow-up", promise, tries, broken)


# ---- calls


@contextmanager
def fuzz(folder: Path) -> Iterator[tuple[Any, Any]]:
    """The tests' doors and odd values, in a folder with a saved model."""
    import matplotlib

    matplotlib.use("Agg")
    sys.path.insert(0, str(ROOT / "tests"))
    import doors
    import odd

    with chdir(folder):
        sg.save(doors.saved_model(), "saved")
        yield doors, odd


def wrong_calls(folder: Path, n: int, dice: random.Random) -> Row:
    """Random public functions with one or two odd arguments each."""
    broken, seen = 0, ""
    with fuzz(folder) as (doors, odd):
        every = [door for door in doors.doors() if door.name not in doors.LEFT_OUT and door.open]
        for _ in range(n):
            door = dice.choice(every)
            drawn = {
                name: dice.choice(list(odd.ODD))
                for name in dice.sample(door.open, min(len(door.open), dice.choice([1, 1, 2])))
            }
            if any((door.name, name, value) in odd.EXCUSED for name, value in drawn.items()):
                continue
            wrong = odd.fault(door, {name: odd.ODD[value]() for name, value in drawn.items()})
            broken, seen = broken + bool(wrong), seen or (f"{door.name}({drawn}): {wrong}" if wrong else "")
    return Row(
        "wrong and odd arguments",
        "it works, or is refused clearly before the first call of a network",
        n,
        broken,
        seen[:200],
    )


def shapes(folder: Path) -> Row:
    """No sample, one, scalar events, strided and frozen input: as contiguous ones, with every solver."""
    broken, tries = 0, 0
    model = mixture()
    start = sg.sample(model, 4, steps=2, seed=0, dtype=torch.float64, progress=False).x
    strided = torch.stack([start, start], -1)[..., 0]
    for name in OWN:
        how = {"solver": name, "steps": 6, "seed": 0, "progress": False, "dtype": torch.float64}
        if name in ("bosh3", "dopri5"):
            how = {**how, "steps": None, "rtol": 1e-3}
        whole = sg.sample(model, 4, x_init=start, **how).x
        tries += 4
        broken += not torch.allclose(sg.sample(model, 4, x_init=strided, **how).x, whole, rtol=1e-12, atol=1e-12)
        broken += not torch.equal(start, strided)
        broken += tuple(sg.sample(model, 0, **how).x.shape) != (0, 2)
        one = sg.sample(model, 1, x_init=start[:1], **how).x
        broken += not torch.allclose(one, whole[:1], rtol=1e-9, atol=1e-9)
    return Row(
        "empty batch, batch of one, strided input",
        "as contiguous; nothing in, nothing out; one as among others",
        tries,
        broken,
    )


def splits(folder: Path) -> Row:
    """Batch sizes 1 to 37 against one batch: the same samples."""
    broken, tries, worst = 0, 0, 0.0
    learned = fresh_model().double()
    learned.data_mean, learned.data_std = 0.0, 0.5
    for model in (mixture(), learned):
        for name in OWN:
            for how in [{"steps": 8}, {"rtol": 1e-2}] if sg.make_solver(name).adaptive else [{"steps": 8}]:
                words = {"solver": name, "seed": 3, "progress": False, "dtype": torch.float64, **how}
                if name in ("bosh3", "dopri5") and "steps" in how:
                    continue
                whole = sg.sample(model, (37, 2), **words).x
                for size in (1, 2, 5, 8, 16):
                    tries += 1
                    difference = float((sg.sample(model, (37, 2), batch_size=size, **words).x - whole).abs().max())
                    worst = max(worst, difference)
                    broken += difference > 1e-12 * max(1.0, float(whole.abs().max()))
    return Row(
        "batch splits", "the same samples to 1e-12, error control too", tries, broken, f"largest difference {worst:.1e}"
    )


def threads(folder: Path, n: int) -> Row:
    """Threads that sample one model and save to one path at once."""
    model = fresh_model().eval()
    model.data_mean, model.data_std = 0.0, 0.5
    model.net.train()
    wanted = [sg.sample(model, (4, 2), steps=20, seed=seed, progress=False).x for seed in range(n)]
    broken = 0

    def work(seed: int) -> bool:
        found = sg.sample(model, (4, 2), steps=20, seed=seed, progress=False).x
        sg.save(model, folder / "model")
        return torch.equal(found, wanted[seed])

    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        broken += sum(not same for same in pool.map(work, list(range(n)) * 5))
    broken += not model.net.training
    again = sg.load(folder / "model", device="cpu")
    broken += any(not torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    broken += [p.name for p in folder.iterdir()] != ["model"]
    promise = "samples, modes and the saved model as of one thread"
    return Row(f"{n} threads sample one model and save to one path", promise, 5 * n, broken)
