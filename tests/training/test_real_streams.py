"""Streams of Hugging Face's datasets, webdataset and torchdata: a run that was cut goes on with the same batches."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import points
from crew import Crew
from torch.utils.data import DataLoader

import sdegen as sg
from sdegen.training import fit
from sdegen.training.losses import dsm_loss

fit = functools.partial(fit, progress=False, device="cpu")
COLUMNS = {"x0": "x", "label": "y"}


def parquet(folder: Path, *, shuffled: bool = False):
    """A streamed data set of 80 rows in four files."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    files = [str(folder / f"{k}.parquet") for k in range(4)]
    if not os.path.exists(files[-1]):
        for k, x in enumerate(points(80).chunk(4)):
            datasets.Dataset.from_dict({"x": x.tolist(), "y": [k % 3] * 20, "name": ["a"] * 20}).to_parquet(files[k])
    made = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=str(folder))
    return (made.shuffle(seed=1, buffer_size=16) if shuffled else made).with_format("torch")


def tars(folder: Path, **how):
    """A webdataset of 80 samples in four tars."""
    wds = pytest.importorskip("webdataset")
    if not (folder / "3.tar").exists():
        for k, x in enumerate(points(80).numpy().reshape(4, 20, 2)):
            with wds.TarWriter(str(folder / f"{k}.tar")) as sink:
                for i, row in enumerate(x):
                    sink.write({"__key__": f"{k}{i:03d}", "x.npy": row.astype(np.float32), "cls": i % 3})
    made = wds.WebDataset(str(folder / "{0..3}.tar"), shardshuffle=4, seed=1, empty_check=False, **how)
    return made.shuffle(16, seed=2).decode().to_tuple("x.npy", "cls")


def ours(stream, rank: int, size: int):
    """The part of a stream of Hugging Face that is a process's."""
    from datasets.distributed import split_dataset_by_node

    return sg.data.Shares(DataLoader(split_dataset_by_node(stream, rank, size), batch_size=4, drop_last=True))


def nodes(folder: Path):
    wds = pytest.importorskip("webdataset")
    made = tars(folder, nodesplitter=wds.split_by_node)
    return sg.data.Shares(DataLoader(made, batch_size=4, drop_last=True))


def stateful(folder: Path, workers: int):
    module = pytest.importorskip("torchdata.stateful_dataloader")
    data = [(x, i % 3) for i, x in enumerate(points(50))]
    return module.StatefulDataLoader(data, batch_size=8, shuffle=True, num_workers=workers)


STREAMS = {
    "hub": lambda folder: DataLoader(parquet(folder), batch_size=8),
    "hub in batches": lambda folder: parquet(folder).batch(8),
    "hub shuffled": lambda folder: DataLoader(parquet(folder, shuffled=True), batch_size=8),
    "hub in two workers": lambda folder: DataLoader(parquet(folder), batch_size=8, num_workers=2),
    "tars": lambda folder: tars(folder).batched(8),
    "tars in a loader": lambda folder: DataLoader(tars(folder), batch_size=8),
    "tars in two workers": lambda folder: DataLoader(tars(folder), batch_size=8, num_workers=2),
    "stateful": lambda folder: stateful(folder, 0),
    "stateful in two workers": lambda folder: stateful(folder, 2),
}
DIVIDED = {
    "hub": lambda folder, rank, size: ours(parquet(folder), rank, size),
    "hub shuffled": lambda folder, rank, size: ours(parquet(folder, shuffled=True), rank, size),
    "tars": lambda folder, rank, size: nodes(folder),
}

SLOW = {k: [pytest.mark.slow] * ("workers" in k or "shuffled" in k) for k in STREAMS}  # a shuffled pass sleeps for 5 s


def stop(at: int, step: int, model, history) -> None:
    if step == at:
        raise SystemExit(3)


def run(data, folder: Path, at: int = 0) -> tuple[list, list]:
    """What a run of 18 steps, or to the step `at`, has seen, and the weights it ends with."""
    seen: list = []

    def loss(model, x0, *, seed=None, **cond):
        seen.append((x0.tolist(), cond["label"].tolist()))
        return dsm_loss(model, x0, seed=seed)

    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1, n_classes=3), sg.VPSDE(), data_mean=0.0, data_std=1.0)
    columns = COLUMNS if "columns" in folder.name else None
    words = dict(steps=18, seed=4, loss=loss, save_every=6, statistics="keep", columns=columns)
    with pytest.raises(SystemExit) if at else warnings.catch_warnings():
        fit(model, data, out=folder, callback=functools.partial(stop, at), callback_every=1, **words)
    return seen, torch.cat([p.flatten() for p in model.parameters()]).tolist()


@pytest.mark.parametrize("kind", [pytest.param(k, marks=SLOW[k]) for k in STREAMS])
def test_a_stream_that_was_cut_goes_on_with_the_same_batches(tmp_path, kind):
    make = functools.partial(STREAMS[kind], tmp_path)
    end = "columns" if "hub" in kind else "pairs"
    whole = run(make(), tmp_path / f"whole {end}")
    run(make(), tmp_path / f"cut {end}", at=14)  # in the second pass
    rest = run(make(), tmp_path / f"cut {end}")
    assert rest[0] == whole[0][12:] and rest[1] == whole[1]


def divided(rank: int, step, kind: str, folder: str, name: str, at: int) -> tuple:
    torch.distributed.init_process_group("gloo")  # by which webdataset tells processes apart
    data = DIVIDED[kind](Path(folder), rank, int(os.environ["WORLD_SIZE"]))
    return run(data, Path(folder) / f"{name} {'columns' if 'hub' in kind else 'pairs'}", at)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=SLOW[k]) for k in DIVIDED])
def test_shares_of_a_stream_that_was_cut_go_on_with_the_same_batches(tmp_path, kind):
    DIVIDED[kind](tmp_path, 0, 1)  # makes the files
    whole = Crew(2, divided, kind, str(tmp_path), "whole", 0).results()
    Crew(2, divided, kind, str(tmp_path), "cut", 14).results()
    rest = Crew(2, divided, kind, str(tmp_path), "cut", 0).results()
    for one, other in zip(whole, rest, strict=True):
        assert other[0] == one[0][12:] and other[1] == one[1]
    ranks = [{tuple(row) for x, _ in seen[:8] for row in x} for seen, _ in whole]
    assert ranks[0].isdisjoint(ranks[1]), "each process has rows of its own"


class Restless(torch.utils.data.IterableDataset):
    """Shuffles by what nobody sets."""

    def __iter__(self):
        x = points(64)
        return iter(x[np.random.default_rng().permutation(64)])


def test_a_stream_that_does_not_come_back_is_told(tmp_path):
    words = dict(steps=20, seed=1, out=tmp_path, statistics="keep", callback_every=1)
    model = lambda: sg.Denoiser(sg.nets.MLP(2, hidden=8), sg.VPSDE(), data_mean=0.0, data_std=1.0)  # noqa: E731
    with pytest.raises(SystemExit):
        fit(model(), DataLoader(Restless(), batch_size=8), callback=functools.partial(stop, 7), save_every=5, **words)
    with pytest.warns(UserWarning, match="gives other batches than when this run was stopped"):
        fit(model(), DataLoader(Restless(), batch_size=8), **words)
