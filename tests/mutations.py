"""Deliberate faults, and whether the tests still see them: `make mutations`.

`mutations.toml` lists them: `what` is wrong, in which `file`, the `old` text (it occurs there once), the `new` text, and
the `tests` that fail then. Each is made in a copy of the repository, never in the working tree, and its tests are run
until one fails. A fault that no test sees any more, one whose text is gone or stands there twice, one whose tests are
gone, and a test that fails without the fault as well are failures of this program.

    python tests/mutations.py                  all of them
    python tests/mutations.py --sample 20      others every day, all of them in turn
    python tests/mutations.py --only adams     those that say so in `what` or `file`
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
LEFT_OUT = (".*", "__pycache__", "build", "dist", "demo_output", "*.egg-info", "results")
PYTEST = ("-q", "-x", "-p", "no:cacheprovider", "-m", "", "--tb=no", "--no-header", "-rf")
LONGEST = 300  # seconds; a fault that makes a test hang is seen too


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Args:
        what: what is wrong, in words.
        file: path from the repository's root.
        old, new: text that stands in the file once, and what takes its place.
        tests: node ids or files, as for pytest; the first failure is enough.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def obstacle(self, root: Path) -> str | None:
        """Why this fault cannot be made in these files; None where it can."""
        path = root / self.file
        if not path.is_file():
            return f"no longer applies: there is no {self.file}"
        count = path.read_text(encoding="utf-8").count(self.old)
        if count != 1:
            return f"no longer applies: its text stands {count} times in {self.file}"
        if self.old == self.new or not self.tests:
            return "changes nothing, or names no tests"
        gone = [test for test in self.tests if not (root / test.partition("::")[0]).is_file()]
        return f"its tests are gone: {', '.join(gone)}" if gone else None

    @contextmanager
    def made(self, root: Path) -> Iterator[None]:
        """The fault is in these files inside the with block."""
        path = root / self.file
        right, stat = path.read_text(encoding="utf-8"), path.stat()
        try:
            path.write_text(right.replace(self.old, self.new), encoding="utf-8")
            os.utime(path, (stat.st_atime, stat.st_mtime + 10))  # compiled files go by the time in seconds
            yield
        finally:
            path.write_text(right, encoding="utf-8")
            os.utime(path, (stat.st_atime, stat.st_mtime))


@dataclass(frozen=True)
class Verdict:
    """What came of one fault: whether it was seen, in words, and the test that saw it."""

    mutation: Mutation
    seen: bool
    words: str
    test: str | None = None


def read(path: Path = LIST) -> list[Mutation]:
    """The faults in a list."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    return [Mutation(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def sample(mutations: Sequence[Mutation], n: int, day: int) -> list[Mutation]:
    """n of them in an order that is none; the next day the n after these, so that all have their turn."""
    mixed = random.Random(0).sample(list(mutations), len(mutations))
    n = min(n, len(mixed))
    return [mixed[(day * n + i) % len(mixed)] for i in range(n)]


def copied(root: Path, place: Path) -> Path:
    """A copy of a repository's files, compiled."""
    shutil.copytree(root, place, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for folder in ("sdegen", "tests"):
        compileall.compile_dir(place / folder, quiet=2)
    return place


def pytest(root: Path, tests: Sequence[str], *options: str) -> tuple[int | None, list[str]]:
    """pytest's exit status (None: out of time) and the tests that failed."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *PYTEST, *options, *tests]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return None, []
    failed = [line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return done.returncode, [line.partition(" - ")[0] for line in failed]


def tried(mutation: Mutation, root: Path) -> Verdict:
    """Make one fault in a copy and run its tests."""
    obstacle = mutation.obstacle(root)
    if obstacle:
        return Verdict(mutation, False, obstacle)
    with mutation.made(root):
        status, failed = pytest(root, mutation.tests)
    if status is None:
        return Verdict(mutation, True, "seen: its tests do not end")
    if status == 1 and failed:
        return Verdict(mutation, True, f"seen by {failed[0]}", failed[0])
    if status == 0:
        return Verdict(mutation, False, f"NOT SEEN by {', '.join(mutation.tests)}")
    return Verdict(mutation, False, f"cannot be tried: pytest ends with {status} on {', '.join(mutation.tests)}")


def fail_anyway(verdicts: Sequence[Verdict], root: Path) -> list[str]:
    """The tests that saw a fault and fail without one as well."""
    tests = sorted({v.test for v in verdicts if v.test})
    return pytest(root, tests, "--maxfail=1000")[1] if tests else []


def run(mutations: Sequence[Mutation], root: Path = ROOT, jobs: int = 2, report: Callable[[str], None] = print) -> int:
    """Try faults in copies of a repository, `jobs` at a time; returns how many are not seen."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        copies = [copied(root, Path(place) / str(i)) for i in range(jobs)]
        free, lock = list(copies), threading.Lock()

        def one(mutation: Mutation) -> Verdict:
            with lock:
                copy = free.pop()
            try:
                verdict = tried(mutation, copy)
            finally:
                with lock:
                    free.append(copy)
            report(f"{'  ' if verdict.seen else '!!'} {mutation.what} [{mutation.file}]: {verdict.words}")
            return verdict

        with ThreadPoolExecutor(jobs) as pool:
            verdicts = list(pool.map(one, mutations))
        broken = fail_anyway(verdicts, copies[0])
    for test in broken:
        report(f"!! {test} fails without any fault")
    missed = sum(not v.seen or v.test in broken for v in verdicts)
    report(f"{len(verdicts) - missed} of {len(verdicts)} faults are seen ({time.monotonic() - start:.0f} s)")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Do the tests still see the faults of mutations.toml?")
    parser.add_argument("--sample", type=int, metavar="N", help="N of them, others every day")
    parser.add_argument("--day", type=int, default=datetime.date.today().toordinal(), help="the sample of which day")
    parser.add_argument("--only", metavar="WORD", help="those that have this word in what or file")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    args = parser.parse_args(argv)
    chosen = [m for m in read() if not args.only or args.only in m.what or args.only in m.file]
    if args.sample is not None:
        chosen = sample(chosen, args.sample, args.day)
        print(f"{len(chosen)} faults, those of day {args.day}", flush=True)
    return int(run(chosen, jobs=args.jobs, report=lambda line: print(line, flush=True)) > 0)


if __name__ == "__main__":
    sys.exit(main())
