"""The promises of benchmarks/reliability.py, with few tries of each; the script itself has the large numbers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


@pytest.fixture(scope="module")
def harness():
    sys.path.insert(0, str(PATH.parent))
    spec = importlib.util.spec_from_file_location("reliability", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reliability"]
    sys.path.remove(str(PATH.parent))


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
        ("malicious", ["--malice", "12"], 2),
        ("calls", ["--calls", "60"], 1),
        ("shapes", [], 1),
        ("threads", ["--threads", "3"], 1),
        pytest.param("nan", [], 1, marks=pytest.mark.slow),
        pytest.param("splits", [], 1, marks=pytest.mark.slow),
        pytest.param("unreachable", [], 1, marks=pytest.mark.slow),
        pytest.param("pictures", ["--pictures", "3"], 1, marks=pytest.mark.slow),
        pytest.param("evaluation", ["--evaluations", "1"], 1, marks=pytest.mark.slow),
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


def test_a_model_whose_samples_depend_on_each_other_is_seen(harness, monkeypatch):
    """Where NaN of one sample reaches the others, the harness must see it."""
    monkeypatch.setattr(harness.promises, "OWN", ["ddim", "adams", "sra1"])
    assert harness.main(["--only", "nan"]) == 0
    exact = harness.promises.Hurt.forward

    def coupled(self, x, t, number):
        return exact(self, x, t, number) + 0 * exact(self, x, t, number).sum()

    monkeypatch.setattr(harness.promises.Hurt, "forward", coupled)
    assert harness.main(["--only", "nan"]) == 1


def test_what_is_typed_wrong_is_told(harness):
    with pytest.raises(SystemExit, match="expected some of kill"):
        harness.main(["--only", "nothing"])
