"""What the benchmarks compare is compared in its own frame."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sdegen as sg

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROCESSES = {
    "edm": sg.EDMSDE(0.01, 80.0),
    "ve": sg.VESDE(0.01, 80.0),
    "sub-vp": sg.SubVPSDE(),
    "linear": sg.LinearPathSDE(),
}


@pytest.fixture
def learned(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("learned")


@pytest.mark.parametrize("name", PROCESSES)
def test_schedulers_of_others_see_one_gaussian_alike_along_every_process(learned, name):
    """On equal noise levels from equal noise a scheduler makes one sample, whatever the process of the network."""
    mixture = sg.GaussianMixture([[0.5, -1.0]], covariances=torch.tensor([[[0.2, 0.1], [0.1, 1.7]]]))
    one = sg.MixtureModel(mixture, sg.VPSDE())
    other = one.on(PROCESSES[name])
    ratio = torch.logspace(math.log10(40.0), math.log10(0.02), 9, dtype=torch.float64)
    x0 = torch.randn(6, 2, dtype=torch.float64)
    ends = []
    for model in (one, other):
        ts = model.sde.time(-torch.log(ratio))
        start = model.sde.alpha(ts[0]) * x0 + model.sde.sigma(ts[0]) * x0.flip(0)
        ends.append(
            {
                scheduler: learned.scheduled(make, model)(start, ts) / model.sde.alpha(ts[-1])
                for scheduler, make in learned.schedulers().items()
            }
        )
    for scheduler, end in ends[0].items():
        torch.testing.assert_close(ends[1][scheduler], end, rtol=1e-5, atol=1e-5)  # they compute sigmas in float32
        assert float((end - mixture.mean).abs().max()) < 10


def test_a_published_grid_spends_its_steps_where_euler_errs(learned):
    few = importlib.import_module("few_evaluations")
    model = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2), sg.VPSDE())
    case = few.Case("two modes", model, 32)
    gits, ddim = few.Gits(case), {}
    for n in (5, 10):
        grid = gits.grid(n)
        assert len(grid) == n + 1 and bool((grid.diff() < 0).all())
        torch.testing.assert_close(grid[[0, -1]], torch.tensor(case.span, dtype=torch.float64))
        for kind, times in (("gits", grid), ("even", case.grid(n, "uniform"))):
            ddim[kind, n] = case.error(case.sampled(solver="ddim", steps=times).x, clean=False)
        assert ddim["gits", n] < ddim["even", n]


def test_a_report_keeps_tables_as_they_are_and_no_path_of_the_machine(learned, tmp_path, monkeypatch):
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "_MADE", [])
    monkeypatch.setattr(sys, "argv", ["/somewhere/x.py", "--data", "/home/me/shoes", "--steps", "5"])
    printed = report.table(["n", "error"], [[5, 0.123456]], title="errors", about="of what")
    assert printed == "errors\n| n | error |\n| --- | --- |\n| 5 | 0.123 |\n"
    report.table(["by solver", "5"], [["adams", "1e-2"]])
    kept = json.loads(report.write("x", "X", "what it is", raw=[1.5]).read_text())
    assert kept["command"] == "python benchmarks/x.py --data shoes --steps 5" and kept["raw"] == [1.5]
    assert kept["tables"] == [
        {"title": "errors", "columns": ["n", "error"], "rows": [[5, 0.123456]], "about": "of what"},
        {"title": "by solver", "columns": ["", "5"], "rows": [["adams", "1e-2"]]},
    ]


def test_the_table_of_an_example_has_the_columns_of_all_its_rows(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report, examples = (importlib.import_module(name) for name in ("report", "examples"))
    rows = [{"": "held out", "right": 0.5}, {"": "samples", "distance": 2.0, "right": 1}]
    found = SimpleNamespace(main=lambda argv: rows, __doc__="What it is.\n\nMore.")
    monkeypatch.setitem(sys.modules, "clip", found)
    for name, value in (("RESULTS", tmp_path), ("_MADE", [])):
        monkeypatch.setattr(report, name, value)
    examples.run("clip", [])
    (kept,) = json.loads((tmp_path / "example-clip.json").read_text())["tables"]
    assert kept["columns"] == ["", "right", "distance"]
    assert kept["rows"] == [["held out", "0.5", ""], ["samples", "1", "2"]]
    examples.run("clip", [], of="emoji")  # of other data, beside it
    assert {path.name for path in tmp_path.iterdir()} == {"example-clip.json", "example-clip-emoji.json"}
