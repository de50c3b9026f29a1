"""Checkpoints that chance damages and that others forge: each function tries it and returns a row of the table."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from victims import Row, Victim, newest_step, train

import sdegen as sg
from sdegen import storage

ROOT = Path(__file__).resolve().parent.parent


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
        spoil(newest, other, KINDS[i % len(KINDS)], dice)
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


def spoil(path: Path, other: Path, kind: str, dice: random.Random) -> None:
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


def malicious(folder: Path, n: int, dice: random.Random) -> list[Row]:
    """The tests' hand-made attacks and random ones, in a process that counts what it runs and what memory it takes."""
    sys.path.insert(0, str(ROOT / "tests" / "storage"))
    import test_checkpoint as attacks

    attacks.save(attacks.small(), folder / "sound")
    sg.load(folder / "sound", device="cpu")  # what the package itself evaluates once, its annotations, is done
    broken = 0
    for i, attack in enumerate(attacks.MALICE.values()):
        path = folder / f"{i}"
        attacks.save(attacks.small(), path)
        attack(path)
        attacks.reseal(path)
        broken += Victim(attacked, path).end() != 0
    hand_made = Row(
        "malicious checkpoint", "refused; nothing runs; under 300 MB more memory", len(attacks.MALICE), broken
    )
    broken, refused, kinds = 0, 0, {0: "refused", 1: "loaded whole"}
    for i in range(n):
        path = folder / f"random {i}"
        attacks.save(attacks.small(), path)
        vandalise(path, dice)
        attacks.reseal(path)
        ended = Victim(attacked, path).end()
        broken, refused = broken + (ended not in kinds), refused + (ended == 0)
        shutil.rmtree(path)
    promise = "refused by name, or loaded with finite weights; nothing runs; under 300 MB more memory"
    return [hand_made, Row("checkpoint edited at random and sealed again", promise, n, broken, f"{refused} refused")]


ODD = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    10**9,
    "os.system",
    "",
    "../../etc/passwd",
    [],
    [[[]]],
    {},
    {"name": "VPSDE"},
    "x" * 9999,
)


def vandalise(path: Path, dice: random.Random) -> None:
    """One to three edits: a value of the state replaced, removed or added, or bytes of the tensors' head."""
    for _ in range(dice.randrange(1, 4)):
        if dice.random() < 0.3:
            file = path / "model.safetensors"
            data = bytearray(file.read_bytes())
            for _ in range(dice.randrange(1, 8)):
                data[dice.randrange(min(len(data), 400))] = dice.randrange(256)
            file.write_bytes(data)
            continue
        file = path / storage.STATE
        state = json.loads(file.read_text())
        at = state
        while isinstance(at, dict) and at:
            name = dice.choice(sorted(at))
            if isinstance(at[name], dict) and at[name] and dice.random() < 0.8:
                at = at[name]
                continue
            if dice.random() < 0.2:
                del at[name]
            else:
                at[dice.choice([name, "path", "net"])] = dice.choice(ODD)
            break
        file.write_text(json.dumps(state))


def attacked(tell: Callable[..., None], path: Path) -> None:
    ran = []
    sys.addaudithook(
        lambda event, _: (
            ran.append(event) if event in ("os.system", "subprocess.Popen", "exec", "os.exec") and watch else None
        )
    )
    before, watch = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, True
    try:
        model, code = sg.load(path, device="cpu"), 1
        code = 1 if all(bool(torch.isfinite(p).all()) for p in model.parameters()) else 4
    except sg.CheckpointError:
        code = 0
    except BaseException:
        code = 3
    watch = False
    os._exit(code if not ran and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000 else 2)
