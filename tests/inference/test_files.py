"""Samples that several processes share: the same ones, each made once, in files that any number of attempts leave alike."""

from __future__ import annotations

import os
import signal
import time
import zipfile

import numpy as np
import pytest
import torch
from crew import Crew

import sdegen as sg
from sdegen.app.cli import main
from sdegen.core.errors import InvalidInputError
from sdegen.inference import files as module
from sdegen.inference.files import read_samples, sample_files

HOW = dict(batch_size=4, batches_per_file=2, steps=4, seed=3)


def model() -> sg.Denoiser:
    torch.manual_seed(0)
    net = sg.nets.UNet(1, channels=8, multipliers=(1,), n_classes=3)
    own = sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=0.5)
    own.event_shape = (1, 8, 8)
    return own


def labels(index):
    return {"label": index % 3}


def contents(folder) -> dict:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("batch_size", [None, 1, 4, 7])
@pytest.mark.parametrize("n", [0, 1, 10, 29])
def test_shares_are_all_numbers_once_in_order(monkeypatch, n, batch_size):
    for size in (1, 2, 3, 8):
        parts = []
        for rank in range(size):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(size))
            parts.append(sg.shard(n, batch_size=batch_size))
        assert torch.equal(torch.cat(parts), torch.arange(n))
        whole = batch_size or 1
        assert all(int(part[0]) % whole == 0 for part in parts if len(part))
        batches = [-(-len(part) // whole) for part in parts]
        assert max(batches) - min(batches) <= 1
    with pytest.raises(InvalidInputError, match="n=-1"):
        sg.shard(-1)


def share(rank: int, step, folder: str, kind: str) -> tuple:
    made = sample_files(model(), folder, 37, kind=kind, labels=labels, **HOW)
    mine = sg.shard(37, batch_size=4)
    return [p.name for p in made.made], sg.sample(
        model(), len(mine), index=mine, batch_size=4, seed=3, steps=4, label=mine % 3
    ).x.tolist()


@pytest.mark.parametrize("kind", module.KINDS)
def test_processes_share_the_files_of_one(tmp_path, kind):
    one = sample_files(model(), tmp_path / "one", 37, kind=kind, labels=labels, **HOW)
    found = Crew(3, share, str(tmp_path / "three"), kind).results()
    made = [name for names, _ in found for name in names]
    assert sorted(made) == sorted(p.name for p in one.made) and len(made) == 5, "each file was made once"
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    direct = sg.sample(model(), 37, batch_size=4, seed=3, steps=4, label=torch.arange(37) % 3).x
    x = torch.cat(list(read_samples(tmp_path / "one")))
    assert torch.equal(torch.cat([torch.tensor(x) for _, x in found]), direct)
    if kind == "npz":
        assert torch.equal(x, direct)
        with np.load(one.made[-1]) as last:
            assert last["index"].tolist() == list(range(32, 37))
    else:
        assert float((x - direct.clamp(-1, 1)).abs().max()) <= 1 / 255 + 1e-6


def test_what_is_whole_stays_and_the_rest_is_made_again(tmp_path):
    words = dict(labels=labels, **HOW)
    before = contents(tmp_path) if sample_files(model(), tmp_path, 37, **words) else {}
    files = sorted(tmp_path.glob("samples-*"))
    files[0].unlink()
    data = bytearray(files[1].read_bytes())
    data[-300] ^= 1
    files[1].write_bytes(data)
    files[2].write_bytes(files[2].read_bytes()[:100])
    again = sample_files(model(), tmp_path, 37, **words)
    assert again.made == files[:3] and again.kept == files[3:] and contents(tmp_path) == before
    for other in (dict(seed=4), dict(steps=5), dict(batch_size=8), dict(kind="png")):
        with pytest.raises(InvalidInputError, match=f"other settings .{next(iter(other))}"):
            sample_files(model(), tmp_path, 37, **{**words, **other})
    changed = model()
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    with pytest.raises(InvalidInputError, match="other settings .weights"):
        sample_files(changed, tmp_path, 37, **words)
    assert contents(tmp_path) == before


def test_wrong_files_are_refused_before_a_folder_is_made(tmp_path):
    points = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=1.0), sg.VPSDE())
    for words, says in (
        (dict(kind="png"), "images .C, H, W."),
        (dict(kind="gif"), "'npz' or 'png'"),
        (dict(n=0), "n=0"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            sample_files(points, tmp_path / "d", **{"n": 4, **words})
    assert not (tmp_path / "d").exists()


def killed(rank: int, step, folder: str) -> None:
    sample_files(model(), folder, 400, labels=labels, **HOW)


def test_killed_processes_leave_a_folder_that_goes_on(tmp_path):
    sample_files(model(), tmp_path / "one", 400, labels=labels, **HOW)
    crew = Crew(2, killed, str(tmp_path / "two"))
    while len(list((tmp_path / "two").glob("samples-*"))) < 5 and any(p.is_alive() for p in crew.processes):
        time.sleep(0.001)
    for process in crew.processes:
        os.kill(process.pid, signal.SIGKILL)
    crew.results()
    some = len(list((tmp_path / "two").glob("samples-*")))
    crew = Crew(2, killed, str(tmp_path / "two"))
    crew.results()
    assert 5 <= some < 50 and contents(tmp_path / "one") == contents(tmp_path / "two")


def command(rank: int, step, arguments: list) -> int:
    return main(arguments)


def test_the_command_line_shares_under_torchrun(tmp_path, capfd):
    sg.save(model(), tmp_path / "model")
    words = [
        "sample",
        str(tmp_path / "model"),
        "--samples",
        "20",
        "--label",
        "1",
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    for name, size in (("one", 1), ("two", 2)):
        assert Crew(size, command, [*words, "--out", str(tmp_path / f"{name}.npy")]).results() == [0] * size
        to = ["--to", str(tmp_path / name), "--kind", "png"]
        assert Crew(size, command, [*words, *to]).results() == [0] * size
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with zipfile.ZipFile(next((tmp_path / "two").glob("samples-*"))) as archive:
        assert len(archive.namelist()) == 20
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 6, "one process speaks"
    assert main(words + ["--to", str(tmp_path / "one")]) == 1


def test_moments_of_parts_are_those_of_the_whole():
    z = torch.randn(500, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13).reshape(3, 4) + 100
    whole = sg.metrics.Moments.of(z)
    parts = sg.metrics.moments_of(z.split([1, 7, 200, 292]))
    torch.testing.assert_close(parts.mean, z.flatten(1).double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.covariance, torch.cov(z.flatten(1).double().mT), rtol=1e-10, atol=1e-10)
    other = torch.randn(300, 12)
    expected = sg.metrics.frechet_distance(z.flatten(1), other)
    assert abs(parts.frechet_distance(sg.metrics.Moments.of(other)) / expected - 1) < 1e-9
    assert abs(whole.frechet_distance(parts)) < 1e-6 and parts.n == 500
    for call, says in (
        (lambda: sg.metrics.Moments.of(torch.full((3, 2), torch.nan)), "NaN"),
        (lambda: sg.metrics.moments_of([]), "got none"),
        (lambda: whole + sg.metrics.Moments.of(other[:, :3]), "features of 3"),
        (lambda: sg.metrics.Moments.of(other[:1]).covariance, "two samples"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            call()
