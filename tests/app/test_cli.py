"""The command line: what it prints is what the library says, what it writes is what the library gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sdegen as sg
from sdegen.app import cli
from sdegen.app.demo import demo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.MLP(2, hidden=16), sg.VPSDE(), data_mean=0.0, data_std=0.7)
    path = tmp_path_factory.mktemp("saved") / "model"
    sg.save(model, path)
    return path


def test_sample_writes_the_samples_of_its_seed(saved, tmp_path, capsys):
    out = tmp_path / "x.npy"
    assert (
        cli.main(
            [
                "sample",
                str(saved),
                "--n",
                "5",
                "--solver",
                "ddim",
                "--steps",
                "7",
                "--seed",
                "3",
                "--device",
                "cpu",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    by_hand = sg.sample(sg.load(saved, device="cpu"), 5, solver="ddim", steps=7, seed=3)
    assert np.array_equal(np.load(out), by_hand.x.numpy())
    said = capsys.readouterr().out
    assert "ddim, 7 steps" in said and "7.0 evaluations" in said


def test_sample_draws_a_picture(saved, tmp_path):
    out = tmp_path / "x.png"
    assert cli.main(["sample", str(saved), "--n", "50", "--steps", "5", "--out", str(out)]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "nowhere"], "no checkpoint"),
        (["sample", "SAVED", "--solver", "dimm"], "did you mean 'ddim'"),
        (["sample", "SAVED", "--steps", "5", "--rtol", "0.1"], "give one of them"),
        (["sample", "SAVED", "--out", "x.bmp"], ".png"),
        (["sample", "SAVED", "--label", "3"], "label"),
    ],
)
def test_wrong_calls_say_why_and_exit_with_1(saved, words, message, capsys):
    assert cli.main([str(saved) if w == "SAVED" else w for w in words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("info", "MODEL"),
        ("sample", "MODEL", "--out", "x.npy"),
        ("evaluate", "MODEL", "--data", "digits"),
        ("compare", "MODEL"),
        ("fit-solver", "MODEL"),
        ("explore", "MODEL"),
        ("inpaint", "MODEL", "x.png", "half", "--out", "y.npy"),
    ],
    ids=lambda words: words[0],
)
def test_a_module_that_is_no_model_of_scores_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sg.save(sg.nets.Autoencoder(1), "autoencoder")
    assert cli.main(["autoencoder" if w == "MODEL" else w for w in words]) == 1
    assert "got the module Autoencoder, expected a model of scores" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["autoencoder"]


class Shrinks(torch.nn.Module):
    """A network of any event that counts its calls."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t):
        Shrinks.calls += 1
        return self.w * x


@pytest.mark.parametrize(
    "event", [(), (1,), (2,), (3,), (7,), (4, 5), (1, 8, 8), (2, 8, 8), (4, 8, 8), (5, 8, 8), (3, 2, 4, 4)]
)
def test_samples_that_cannot_be_drawn_are_not_made(event, tmp_path, monkeypatch, capsys):
    """Of every shape a picture comes out, or the refusal is before the first call of the network; .npy takes all."""
    model = sg.Denoiser(Shrinks(), sg.VPSDE(), data_mean=0.0, data_std=0.5)
    model.event_shape = event
    monkeypatch.setattr("sdegen.app.saved.load", lambda path, device: model)
    words = ["sample", "any", "--n", "50", "--steps", "3", "--device", "cpu", "--out"]
    Shrinks.calls = 0
    if cli.main([*words, str(tmp_path / "x.png")]) == 0:
        assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG" and Shrinks.calls
    else:
        assert Shrinks.calls == 0 and "ends in .npy" in capsys.readouterr().err
        assert event in ((3,), (7,), (3, 2, 4, 4))
    assert cli.main([*words, str(tmp_path / "x.npy")]) == 0 and np.load(tmp_path / "x.npy").shape == (50, *event)
    Shrinks.calls = 0
    assert cli.main([*words, str(tmp_path / "nowhere" / "x.npy")]) == 1 and not Shrinks.calls
    assert "there is no folder" in capsys.readouterr().err


def test_solvers_and_doctor(capsys):
    assert cli.main(["solvers"]) == 0
    assert capsys.readouterr().out.strip() == str(sg.solvers())
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in said and "threads" in said


def test_compare_prints_its_table(saved, capsys):
    assert cli.main(["compare", str(saved), "--solvers", "ddim", "--steps", "4", "--tolerances", "--n", "8"]) == 0
    assert "4 steps" in capsys.readouterr().out


def test_demo_in_small_makes_everything_it_names(tmp_path, capsys):
    summary = demo(tmp_path, scale=0.002, progress=False)
    said = capsys.readouterr().out
    named = [word for word in said.split() if word.endswith((".png", ".gif", ".json"))]
    assert len({n for n in named if "/" not in n}) >= 6
    for name in named:
        if name != "samples.png":
            assert (tmp_path / name).stat().st_size > 100, name
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert sum(summary["toy"]["mode_weights"]["probability_flow"]) == pytest.approx(1, abs=1e-3)
    assert (
        summary["toy"]["floor"]["distance"] < summary["toy"]["probability_flow"]["distance"]
    )  # ten steps have learned nothing
    assert sg.load(tmp_path / "digits_model", device="cpu").event_shape == (1, 8, 8)


def test_fit_solver_keeps_what_it_fits_where_the_model_is(tmp_path, capsys):
    torch.manual_seed(0)
    net = sg.nets.MLP(2, hidden=8, layers=1, n_classes=3)
    model = sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=0.7)
    path = str(tmp_path / "model")
    sg.save(model, path)
    assert cli.main(["fit-solver", path, "--steps", "3", "6", "--samples", "12", "--device", "cpu"]) == 0
    said, kept = capsys.readouterr().out, sg.load(path, device="cpu").solvers[0]
    by_hand = sg.fit_solver(sg.load(path, device="cpu"), steps=(3, 6), samples=12, label=torch.arange(12) % 3)
    for n, fit in by_hand.fits.items():
        assert torch.equal(fit.weights, kept.fits[n].weights) and f"{fit.error:.2e}" in said
    for words, message in ((["--label", "1", "--steps", "0"], "steps"), (["--samples", "2"], "samples")):
        assert cli.main(["fit-solver", path, *words]) == 1
        assert message in capsys.readouterr().err


def said(capsys, *words):
    """What a command prints."""
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr()


def test_json_is_all_that_is_printed_and_quiet_prints_nothing(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = {
        "sample": [saved, "--n", 3, "--steps", 4, "--out", "x.npy"],
        "compare": [saved, "--solvers", "ddim", "--steps", 4, "--tolerances", "--n", 4],
        "explore": ["--out", "e.html"],
        "info": [saved],
        "solvers": [],
        "doctor": [],
        "fit-solver": [saved, "--steps", 3, "--samples", 12, "--device", "cpu", "--out", "fitted"],
        "train": ["digits", "--smoke", "--net", "channels=8", "--out", "run"],
    }
    for name, words in calls.items():
        told = said(capsys, name, *words, "--json").out
        assert json.loads(told), name
        assert said(capsys, name, *words, "--quiet").out == "", name
    assert set(calls) | {"evaluate", "inpaint", "demo"} == set(cli.COMMANDS)


def test_every_command_has_help_with_an_example(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as done:
            cli.main([name, "--help"])
        assert done.value.code == 0 and f"sdegen {name}" in capsys.readouterr().out.split("usage:")[1]


def test_info_tells_what_a_model_is(saved, capsys, tmp_path):
    told = json.loads(said(capsys, "info", saved, "--json").out)
    assert told["process"].startswith("VPSDE(") and told["events"] == [2] and told["std"] == "0.7"
    count = sum(p.numel() for p in sg.load(saved, device="cpu").parameters())
    assert f"{count / 1e3:.3g}k parameters" in told["network"]
    run = tmp_path / "run"
    assert cli.main(["train", "digits", "--smoke", "--net", "channels=8", "--out", str(run)]) == 0
    capsys.readouterr()
    told = json.loads(said(capsys, "info", run, "--json").out)
    assert told["trained"] == "4 steps" and told["data"]["source"] == "digits" and told["classes"] == 10
    assert told["conditions"] == ["label"]  # what the network was built for, not all that networks can be told


def test_a_solver_is_told_of_and_a_wrong_name_helped(capsys):
    told = json.loads(said(capsys, "solvers", "dpm++2m", "--json").out)
    assert told["order"] == 2 and told["name"] == "dpm++2m" and "2211.01095" in told["source"]
    assert cli.main(["solvers", "dpm++2n"]) == 1
    assert "dpm++2m" in capsys.readouterr().err


def test_explore_writes_the_page_of_a_model(saved, tmp_path, capsys):
    out = tmp_path / "e.html"
    assert "one page of" in said(capsys, "explore", saved, "--out", out).out
    assert '"kind":"network"' in out.read_text()
    assert cli.main(["explore", str(saved), "--out", str(tmp_path / "no" / "e.html")]) == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m sdegen solvers | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)  # noqa: S602
    assert done.stdout.startswith("name") and done.stderr == ""


def test_labels_come_in_turn_or_by_name(tmp_path, capsys):
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.MLP(2, hidden=8, n_classes=3), sg.VPSDE(), data_mean=0.0, data_std=0.7)
    for p in model.net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    model.about = {"classes": ["cat", "dog", "bird"], "n_classes": 3}
    sg.save(model, tmp_path / "model")
    model = sg.load(tmp_path / "model", device="cpu")
    words = ["sample", tmp_path / "model", "--n", 6, "--steps", 4, "--device", "cpu", "--out", tmp_path / "x.npy"]
    said(capsys, *words)
    in_turn = sg.sample(model, 6, steps=4, seed=0, label=torch.arange(6) % 3).x
    assert np.array_equal(np.load(tmp_path / "x.npy"), in_turn.numpy())
    said(capsys, *words, "--label", "dog")
    assert np.array_equal(
        np.load(tmp_path / "x.npy"), sg.sample(model, 6, steps=4, seed=0, label=torch.ones(6).long()).x
    )


def test_inpaint_keeps_what_is_seen_and_refuses_what_is_no_picture(tmp_path, capsys):
    from PIL import Image

    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.UNet(1), sg.EDMSDE(), data_mean=0.0, data_std=0.5)
    model.event_shape = (1, 8, 8)
    sg.save(model, tmp_path / "model")
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(pixels).save(tmp_path / "x.png")
    Image.fromarray(255 * (np.arange(64).reshape(8, 8) % 3 == 0).astype(np.uint8)).save(tmp_path / "mask.png")
    words = ["inpaint", str(tmp_path / "model"), str(tmp_path / "x.png")]
    few = ["--steps", "3", "--passes", "2", "--n", "2", "--device", "cpu"]
    for mask, seen in (
        ("half", np.arange(8)[None] < 4),
        (str(tmp_path / "mask.png"), np.arange(64).reshape(8, 8) % 3 == 0),
    ):
        assert cli.main([*words, mask, *few, "--out", str(tmp_path / "y.npy")]) == 0
        found = np.load(tmp_path / "y.npy")
        kept = np.broadcast_to(seen, (2, 1, 8, 8))
        expected = np.broadcast_to(pixels / 127.5 - 1, (2, 1, 8, 8))
        assert found.shape == (2, 1, 8, 8) and np.abs(found - expected)[kept].max() < 1e-6
    for method in ("guided", "twisted"):
        more = ["--method", method, "--particles", "2"]
        assert cli.main([*words, "rows", *few, *more, "--out", str(tmp_path / "y.png")]) == 0
        assert (tmp_path / "y.png").stat().st_size > 1000
    capsys.readouterr()
    for wrong, said in (
        ([*words, "left"], "got mask 'left'"),
        ([*words[:2], str(tmp_path / "none.png"), "half"], "no such picture"),
        ([*words, "half", "--out", str(tmp_path / "y.jpg")], "ending in .png or .npy"),
    ):
        assert cli.main(wrong) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_says_what_it_is(command, tmp_path):
    words = [command, "--out", str(tmp_path / "none")]  # what a run there was started with would be recalled
    subparsers = next(a for a in cli._parser(words)._actions if a.dest == "command")
    for action in subparsers.choices[command]._actions:
        assert action.help, action.option_strings
