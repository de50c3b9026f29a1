"""The promises of benchmarks/reliability.py, with few tries of each; the script itself has the large numbers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("reliability", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reliability"]


@pytest.mark.parametrize(
    ("fault", "options", "lines"),
    [
        ("kill", ["--kills", "2"], 1),
        ("signals", ["--signals", "2"], 1),
        ("faults", ["--stride", "19"], 4),
        ("disk", ["--disks", "1"], 1),
        ("corrupt", ["--corruptions", "64"], 1),
        ("pairs", ["--pairs", "1"], 1),
        ("sampling", ["--samplings", "2"], 1),
        pytest.param("rank", ["--ranks", "2"], 1, marks=pytest.mark.slow),
        pytest.param("processes", [], 1, marks=pytest.mark.slow),
    ],
)
def test_no_promise_is_broken(harness, capsys, fault, options, lines):
    assert harness.main([*options, "--only", fault]) == 0, capsys.readouterr().out
    table = capsys.readouterr().out.splitlines()[2:]
    assert len(table) == lines and all(int(line.split("|")[3]) > 0 for line in table)


def test_a_broken_promise_is_counted(harness, monkeypatch, capsys):
    """Where nothing is verified, damage passes: the harness must see it."""
    monkeypatch.setattr(harness.storage.folders, "_verify", lambda file, entry, max_bytes: None)
    assert harness.main(["--corruptions", "16", "--only", "corrupt"]) == 1
