"""The list of deliberate faults fits the code, and the program that makes them tells what is seen from what is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import mutations
import pytest
from mutations import Mutation

LISTED = mutations.read()


@pytest.mark.parametrize("mutation", LISTED, ids=lambda m: m.what)
def test_every_fault_can_be_made(mutation):
    assert mutation.obstacle(mutations.ROOT) is None


def test_every_fault_is_listed_once():
    assert Counter((m.file, m.old, m.new) for m in LISTED).most_common(1)[0][1] == 1


def test_samples_of_successive_days_take_every_fault_in_turn():
    few = LISTED[:7]
    taken = Counter(m for day in range(7) for m in mutations.sample(few, 3, day=738000 + day))
    assert set(taken) == set(few) and set(taken.values()) == {3}
    assert mutations.sample(few, 100, day=0) != [] and len(mutations.sample(few, 100, day=0)) == 7


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package of one function, with a test that sees half of it and one that fails."""
    for folder in ("sdegen", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sdegen/__init__.py").write_text("def f(x):\n    if x > 0:\n        return 2 * x\n    return 0.0 * x\n")
    (tmp_path / "tests/test_f.py").write_text(
        "from sdegen import f\n\n\ndef test_f():\n    assert f(3) == 6\n\n\ndef test_wrong():\n    assert f(3) == 7\n"
    )
    return tmp_path


FAULTS = {
    "seen": Mutation("a", "sdegen/__init__.py", "2 * x", "3 * x", ("tests/test_f.py::test_f",)),
    "of the same size and time": Mutation("b", "sdegen/__init__.py", "2 * x", "x * 3", ("tests/test_f.py::test_f",)),
    "not seen": Mutation("c", "sdegen/__init__.py", "0.0 * x", "1.0 * x", ("tests/test_f.py::test_f",)),
    "no such text": Mutation("d", "sdegen/__init__.py", "4 * x", "3 * x", ("tests/test_f.py::test_f",)),
    "text there twice": Mutation("e", "sdegen/__init__.py", "* x", "* y", ("tests/test_f.py::test_f",)),
    "no such file": Mutation("f", "sdegen/other.py", "2 * x", "3 * x", ("tests/test_f.py::test_f",)),
    "no such test": Mutation("g", "sdegen/__init__.py", "2 * x", "3 * x", ("tests/test_f.py::test_g",)),
    "no such file of tests": Mutation("h", "sdegen/__init__.py", "2 * x", "3 * x", ("tests/test_g.py",)),
    "nothing changed": Mutation("i", "sdegen/__init__.py", "2 * x", "2 * x", ("tests/test_f.py::test_f",)),
    "fails anyway": Mutation("j", "sdegen/__init__.py", "2 * x", "x * 4", ("tests/test_f.py::test_wrong",)),
    "no Python": Mutation("k", "sdegen/__init__.py", "2 * x", "2 *", ("tests/test_f.py::test_f",)),
}


def test_what_is_seen_is_told_from_what_is_not(repository):
    before = (repository / "sdegen/__init__.py").read_text()
    lines = []
    missed = mutations.run(list(FAULTS.values()), repository, report=lines.append)
    told = {line[3]: line for line in lines if line[3:6].endswith(" [")}
    assert {letter for letter, line in told.items() if line.startswith("  ")} == {"a", "b", "j"}
    assert "NOT SEEN" in told["c"]
    for letter, words in {
        "d": "0 times",
        "e": "2 times",
        "f": "there is no",
        "g": "cannot be tried",
        "h": "gone",
    }.items():
        assert words in told[letter]
    assert "changes nothing" in told["i"] and "cannot be tried" in told["k"]
    assert any("test_wrong fails without any fault" in line for line in lines)
    assert missed == 9 and lines[-1].startswith("2 of 11 faults are seen")
    assert (repository / "sdegen/__init__.py").read_text() == before
