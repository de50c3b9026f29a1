"""The image scripts: what is refused leaves nothing, what a checkpoint tells is not obeyed, errors are one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from crew import Crew
from PIL import Image
from safetensors.torch import load_file

import sdegen as sg
from sdegen.app import cli
from sdegen.app.commands import train

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(monkeypatch, name: str, *words: object) -> None:
    """Run a script of examples/, or a command of that name."""
    assert status(monkeypatch, name, *words)[0] == 0


def status(monkeypatch, name: str, *words: object) -> tuple[int, str]:
    """Its exit status, and what it wrote to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        if not name.endswith(".py"):
            return cli.main([name, *map(str, words)]), told.getvalue()
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return caught.value.code, told.getvalue()


def refused(monkeypatch, name: str, *words: object) -> str:
    """The one line that a script ends with."""
    code, told = status(monkeypatch, name, *words)
    line = [line for line in told.strip().splitlines() if line.startswith("sdegen ")]
    assert code == 1 and len(line) == 1 and "Traceback" not in told, told
    return line[0].split(": ", 1)[1]


def pictures(folder: Path, n: int = 12, *, channels: int = 4) -> Path:
    """Two classes of n/2 pictures each."""
    rng = np.random.default_rng(0)
    for i in range(n):
        file = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, channels), dtype=np.uint8).squeeze()).save(file)
    return folder


def saved(path: Path, about: dict | None = None, *, channels: int = 1) -> Path:
    torch.manual_seed(0)
    net = sg.nets.UNet(channels, channels=8, multipliers=(1, 2), n_classes=2)
    model = sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=0.5)
    model.event_shape = (channels, 8, 8)
    model.about = {"n_classes": 2, "classes": ["cat", "dog"], **(about or {})}
    sg.save(model, path)
    return path


# from a folder of pictures to scores


def test_pictures_with_transparency_go_through_all_scripts(tmp_path, monkeypatch, capsys):
    """The names of the classes travel with the checkpoint; held-out images are made afterwards; none of it needs many."""
    pytest.importorskip("torchmetrics")
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos")
    words = ["--network", "mnist-small", "--net", "channels=8", "--net", "patch=1", "--smoke", "--cache", "kept"]
    run(monkeypatch, "train_images.py", "--data", "photos", "--channels", 4, *words, "--fit-solver", 3, "--out", "run")
    assert "3 evaluations: error" in capsys.readouterr().out
    assert list(sg.load("run/fitted").solvers[0].fits) == [3] and sg.load("run").solvers == ()
    about = sg.load("run").about
    assert about["classes"] == ["cat", "dog"] and "cache" not in about["data"]
    with Image.open("run/previews/step-00000004.png") as preview:
        assert preview.size[0] > 50
    run(monkeypatch, "sample_images.py", "run", "--smoke", "--label", "dog", "--out", "dogs")
    run(monkeypatch, "sample_images.py", "run", "--smoke", "--label", 1, "--out", "dogs")
    assert "6 were there" in capsys.readouterr().out
    with Image.open("dogs/000000.png") as image:
        assert image.mode == "RGBA" and image.size == (8, 8)
    data = ("run", "--smoke", "--data", "photos")
    assert "no held-out part: pass --held-out-every 10" in refused(monkeypatch, "evaluate_images.py", *data)
    with pytest.warns(RuntimeWarning, match="Frechet distance of 4"):
        run(monkeypatch, "evaluate_images.py", *data, "--held-out-every", 3, "--out", "scores.json", "--cache", "kept")
    said, scores = capsys.readouterr().out, json.loads(Path("scores.json").read_text())
    assert "trained on all of photos" in said and scores["samples"]["images"] == 4
    assert "kernel distance" not in scores["samples"] and scores["reconstruction"]["images"] == 4


@pytest.mark.parametrize("scale", [(), ("--scale", 2)], ids=["alone", "guided"])
@pytest.mark.parametrize(
    ("channels", "about", "colours"),
    [
        (4, {}, False),
        (4, {"levels": None, "data": {"source": "latents.npz", "channels": None}}, False),
        (4, {"levels": 256}, True),
        (4, {"data": {"source": "floats.npz", "channels": 4}}, True),
        (3, {}, True),
    ],
)
def test_four_channels_are_colours_where_the_data_are_known_to_be(
    channels, about, colours, scale, tmp_path, monkeypatch
):
    """Else they may be latents: numbers in files, each channel in grey in a picture; asked for, RGBA."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "model", about, channels=channels)
    words = ("sample", "model", "--n", 4, "--steps", 2, "--device", "cpu", *scale)
    run(monkeypatch, *words, "--to", "found")
    names = {file.suffix for file in Path("found").iterdir()} - {".json"}
    assert names == ({".png"} if colours else {".npz"})
    run(monkeypatch, *words, "--out", "grid.png")
    grey = np.ptp(np.asarray(Image.open("grid.png").convert("RGB")).astype(int), axis=2).max()
    assert bool(grey > 20) is colours
    run(monkeypatch, *words, "--to", "asked", "--kind", "image")
    with Image.open("asked/000000.png") as image:
        assert image.mode == {3: "RGB", 4: "RGBA"}[channels]


def test_previews_and_filling_in_take_no_latents_for_colours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).uniform(-1, 1, (24, 4, 8, 8))
    np.savez("latents.npz", images=x.astype(np.float32))
    np.savez("colours.npz", images=((x + 1) * 127.5).astype(np.uint8))
    words = ("--net", "channels=8", "--net", "patch=1", "--smoke", "--device", "cpu")
    for name, colours in (("latents", False), ("colours", True)):
        run(monkeypatch, "train", f"{name}.npz", *words, "--out", name)
        shown = np.asarray(Image.open(f"{name}/previews/step-00000004.png").convert("RGB")).astype(int)
        assert bool(np.ptp(shown, axis=2).max() > 20) is colours
    Image.new("RGB", (8, 8), "red").save("red.png")
    how = ("half", "--n", 2, "--steps", 2, "--passes", 1, "--device", "cpu")
    run(monkeypatch, "inpaint", "colours", "red.png", *how)
    assert "4 channels, expected one of pictures" in refused(monkeypatch, "inpaint", "latents", "red.png", *how)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_as_few_held_out_images_as_there_are(n, tmp_path, monkeypatch):
    """From one a class: each score is a number, or is left out with the reason."""
    pytest.importorskip("torchmetrics")
    monkeypatch.chdir(tmp_path)
    model = saved(tmp_path / "model", {"data": {"source": "photos", "channels": 1}})
    pictures(tmp_path / "photos", 2 * n, channels=1)
    (tmp_path / "photos" / "beside.png").write_bytes((tmp_path / "photos" / "cat" / "0.png").read_bytes())
    words = ("--smoke", "--data", "photos", "--held-out-every", n, "--n", 1 + n % 2, "--out", "s.json")
    with pytest.warns(RuntimeWarning):
        run(monkeypatch, "evaluate_images.py", model, *words)
    scores = json.loads(Path("s.json").read_text())
    assert np.isfinite(scores["likelihood"]["bits per dimension"]).all()
    assert np.isfinite(scores["reconstruction"]["PSNR"]) and len(scores["samples"]) > 0


# what a checkpoint tells


TOLD = ["photos", "/etc", "hf:me/mine", "../x.npz", "~", 7, None, ["digits"], "Digits", ""]


@pytest.mark.parametrize("source", TOLD, ids=str)
def test_a_checkpoint_does_not_choose_what_is_read(source, tmp_path, monkeypatch):
    """Neither folder nor data set nor cache, unless it is passed or agreed to; what is on the machine anyway, it may."""
    told = {"source": source, "cache": str(tmp_path / "theirs"), "labels": "/etc/passwd", "size": 8, "frames": "first"}
    model, asked = saved(tmp_path / "model", {"data": told}), []

    def load_images(**options):
        asked.append(options)
        raise sg.InvalidInputError("enough")

    monkeypatch.setattr(sg.data, "load_images", load_images)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    assert "pass --data" in refused(monkeypatch, "evaluate_images.py", model) and not asked
    if isinstance(source, str):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
        for answer in ("", "n", "no"):
            monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
            assert "pass --data" in refused(monkeypatch, "evaluate_images.py", model) and not asked
        monkeypatch.setattr("builtins.input", lambda question: "y")
        assert refused(monkeypatch, "evaluate_images.py", model) == "enough"
        assert asked.pop() == {"source": source, "size": 8, "cache": None, "split": "train"}
    assert refused(monkeypatch, "evaluate_images.py", model, "--data", "mine") == "enough"
    assert asked.pop() == {"source": "mine", "size": 8, "cache": None, "split": "train"}


def test_a_relative_path_is_told_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = saved(tmp_path / "model", {"data": {"source": "sets/photos"}})
    said = refused(monkeypatch, "evaluate_images.py", model)
    assert "trained on 'sets/photos', a relative path, of where training began: pass --data" in said
    pictures(tmp_path / "a" / "sets" / "photos", channels=1)
    words = ["--network", "mnist-small", "--net", "channels=8", "--net", "patch=1", "--smoke"]
    for where, source, out in (("a", "sets/photos", "run"), ("a/sets", "photos", "beside")):
        monkeypatch.chdir(tmp_path / where)
        run(monkeypatch, "train_images.py", "--data", source, *words, "--out", tmp_path / out)
        monkeypatch.chdir(tmp_path)
        said = refused(monkeypatch, "train_images.py", "--out", out, "--steps", 6)
        assert "it is a relative path: start where training began, or pass --data" in said
    run(monkeypatch, "train_images.py", "--out", "run", "--steps", 6, "--data", "a/sets/photos")
    assert (tmp_path / "run" / "step-00000006").exists()


# what is refused


def test_what_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    """A label, a solver, a number: after the error the right call works in the same folder."""
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    for words, message in (
        (("--label", 2), "--label 2: the model has classes 0 to 1"),
        (("--label", "bird"), "--label bird: the model's classes are cat, dog"),
        (("--solver", "eulr"), "did you mean"),
        (("--steps", 3, "--rtol", 0.1), "give one of them"),
        (("--steps", 0), "steps"),
        (("--index", "3-x"), "expected numbers and ranges"),
        (("--index", "5-2"), "expected numbers and ranges"),
        (("--index", "1-2-3"), "expected numbers and ranges"),
        (("--index", f"0-{10**30}"), "expected numbers and ranges"),
        (("--eta", 1, "--solver", "heun"), "eta"),
    ):
        assert message in refused(monkeypatch, "sample_images.py", model, "--out", out, *words), words
        assert not out.exists(), words
    run(monkeypatch, "sample_images.py", model, "--out", out, "--n", 2, "--steps", 2, "--label", "cat")
    (out / "settings.json").write_text("{")
    said = refused(monkeypatch, "sample_images.py", model, "--out", out, "--n", 3, "--steps", 2)
    assert "settings.json is damaged" in said


ERRORS = {
    "no data": ("train_images.py", "--data", "nowhere", "--out", "run"),
    "no such argument of the network": ("train_images.py", "--net", "colour=3", "--out", "run"),
    "an argument that is none": ("train_images.py", "--net", "colour", "--out", "run"),
    "a folder that is a file": ("train_images.py", "--out", "file", "--smoke"),
    "no model to sample": ("sample_images.py", "nowhere"),
    "no model to score": ("evaluate_images.py", "nowhere"),
    "a model that tells nothing": ("evaluate_images.py", "model"),
    "nowhere to write": ("evaluate_images.py", "digits", "--out", "no/where.json"),
    "another shape": ("evaluate_images.py", "model2", "--data", "digits"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    saved(tmp_path / "model"), saved(tmp_path / "digits", {"data": {"source": "digits"}})
    saved(tmp_path / "model2", {"data": {"source": "digits"}}, channels=3)
    refused(monkeypatch, *ERRORS[name])


# several processes


def torchrun(*words: object, processes: int = 2) -> subprocess.CompletedProcess:
    """The command line as a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, "-m", "sdegen", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def command(rank: int, step, *words: object) -> int:
    torch.set_num_threads(1)
    return cli.main([*map(str, words)])


def test_processes_share_the_scores(tmp_path, monkeypatch, capfd):
    """Samples, bits and reconstructions by whole batches: the numbers of one process, written and told by one, and the
    bits those of any size of batch."""
    pytest.importorskip("torchmetrics")
    pictures(tmp_path / "photos", 48, channels=1)
    told = {"data": {"source": "photos", "channels": 1}}
    for processes in (1, 2):
        model, out = saved(tmp_path / f"m{processes}", told), tmp_path / f"{processes}.json"
        words = ("--data", tmp_path / "photos", "--held-out-every", 3, "--batch-size", 1, "--smoke", "--out", out)
        assert (
            Crew(processes, command, "evaluate", model, *words, "--device", "cpu", "--json").results()
            == [0] * processes
        )
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [json.loads((tmp_path / "1.json").read_text())] * 2
    one, two = (load_file(tmp_path / f"m{processes}" / "classifier.safetensors") for processes in (1, 2))
    assert all(torch.equal(value, two[name]) for name, value in one.items()), "trained by one process alone"
    words = (tmp_path / "m1", *words[:-3], "--smoke", "--only", "bits", "--batch-size", 4, "--out", tmp_path / "4.json")
    assert cli.main([*map(str, ("evaluate", *words, "--device", "cpu"))]) == 0
    some, all_ = (json.loads((tmp_path / f"{size}.json").read_text())["likelihood"] for size in (1, 4))
    assert some["bits per dimension"] == pytest.approx(all_["bits per dimension"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_train_together(tmp_path, capfd, strategy):
    """By either engine, with images read ahead: one run folder with its previews, one voice, the solver fitted last."""
    pictures(tmp_path / "photos", 24, channels=1)
    words = ("train", tmp_path / "photos", "--cache", tmp_path / "kept", "--net", "channels=8", "--net", "patch=1")
    words = (*words, "--smoke", "--device", "cpu", "--seed", 1, "--workers", 1, "--strategy", strategy)
    assert Crew(2, command, *words, "--out", tmp_path / "two", "--fit-solver", 3).results(120) == [0, 0]
    told = capfd.readouterr().out
    assert told.count("parameters") == 1 and told.count("now: sdegen sample") == told.count("3 evaluations") == 1
    assert (tmp_path / "two" / "previews" / "step-00000004.png").exists()
    assert list(sg.load(tmp_path / "two" / "fitted", device="cpu").solvers[0].fits) == [3]
    assert Crew(1, command, *words, "--out", tmp_path / "one").results(120) == [0]
    one, two = (sg.load(tmp_path / name, device="cpu").state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one(tmp_path):
    """And what it wrote is read by anybody."""
    pictures(tmp_path / "photos", 24, channels=1)
    words = ["train", tmp_path / "photos", "--net", "channels=8", "--net", "patch=1", "--smoke", "--device", "cpu"]
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        line = [sys.executable, "-m", "sdegen", *map(str, words), "--seed", "1", "--out", str(tmp_path / name), *more]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    plain, compiled = (sg.load(tmp_path / name, device="cpu").state_dict() for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_processes_share_the_samples(tmp_path, monkeypatch):
    """Two make together what one makes alone, each batch once."""
    model = saved(tmp_path / "model")
    words = ["--samples", "10", "--batch-size", "3", "--steps", "3", "--device", "cpu"]
    run(monkeypatch, "sample_images.py", model, *words, "--out", tmp_path / "one")
    done = torchrun("sample", model, *words, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 samples made, 0 were there; 3.0 evaluations a sample") == 1
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two and len(one) == 12  # samples, settings, grid


# previews


@pytest.mark.parametrize("step_seconds", [0.001, 0.1, 3.0])
@pytest.mark.parametrize("evaluation_seconds", [0.001, 0.1, 2.0])
@pytest.mark.parametrize("steps", [5, 300])
def test_previews_take_a_tenth_of_the_time(steps, evaluation_seconds, step_seconds, tmp_path, monkeypatch):
    """Whatever a step and an evaluation cost: all but the last together, and the first evaluation, stay within the share."""
    made, clock = [], [0.0]

    class Clocked(train.Previews):
        def draw(self, model, evaluations):
            clock[0] += evaluations * evaluation_seconds
            return sg.Solution if evaluations == 1 else torch.zeros(2, 1, 4, 4)

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(sg.plot, "image_grid", lambda *_, **__: None)
    monkeypatch.setattr(sg.plot, "save", lambda drawing, file: made.append(clock[0]))
    args = types.SimpleNamespace(smoke=False, steps=steps, preview_every=None, out=tmp_path)
    previews, spent = Clocked(args, None), 0.0
    for step in range(1, steps + 1):
        clock[0] += step_seconds
        if step == steps:
            spent = previews.spent
        previews(step, None, None)  # type: ignore[arg-type]
    training = steps * step_seconds
    assert spent <= 0.1 * training + evaluation_seconds * 1.001
    assert len(made) >= 1 and made[-1] == clock[0]
    few = 0.1 * training / (19 * evaluation_seconds)
    assert len(made) >= min(steps, few) / 2 - 1  # the share is used
