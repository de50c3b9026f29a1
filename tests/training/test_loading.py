"""Data that have to be loaded: ahead of the step, each process its share, and from where a run was stopped."""

from __future__ import annotations

import functools
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import points, small
from crew import Crew
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

import sdegen as sg
from sdegen.core.errors import InvalidInputError
from sdegen.training import fit, loading
from sdegen.training.losses import dsm_loss
from sdegen.training.sources import batches

fit = functools.partial(fit, progress=False, device="cpu")
KNOWN = dict(data_mean=0.0, data_std=1.0)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()]).nan_to_num(-1.0)


class Augmented(Dataset):
    """Samples that are drawn, by all three generators, and take a while to load."""

    def __init__(self, n: int = 40, seconds: float = 0.0, log: str | None = None) -> None:
        self.x, self.seconds, self.log = points(n), seconds, log

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        time.sleep(self.seconds)
        if self.log is not None:
            with open(f"{self.log}-{os.environ.get('RANK', 0)}", "a") as file:
                file.write(f"{i}\n")
        drawn = torch.randn(2) + np.random.randn() + random.random()  # noqa: NPY002
        return self.x[i] + 0.1 * drawn, {"label": torch.tensor(i % 3)}


class Several(Augmented):
    def __getitems__(self, numbers: list[int]):
        return [self[i] for i in numbers]


def loader(data: Dataset, **words) -> DataLoader:
    return DataLoader(data, batch_size=7, shuffle=True, **words)


class Whole(sg.data.Batched):
    """A set that gives whole batches, which it draws."""

    def __init__(self) -> None:
        self.x = points(40)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, numbers: Tensor):
        return self.x[numbers] + torch.randn(len(numbers), 2), {"label": numbers % 3}


KINDS = {
    "one that gives batches": Whole,
    "a dataset": Augmented,
    "one that loads several": Several,
    "a loader": lambda: loader(Augmented()),
    "a loader with a generator": lambda: loader(Augmented(), generator=torch.Generator()),
    "a loader that drops the last": lambda: loader(Augmented(), drop_last=True),
}


def first(data, steps: int, start: int = 0, workers: int = 0, share=None) -> list:
    source = batches(data, {}, 7, workers)
    words = {} if share is None else {"share": share}
    stream = source.from_step(start, 5, **words)
    found = [next(stream) for _ in range(steps)]
    stream.close()
    return [(b.x0.tolist(), b.cond["label"].tolist(), b.start, b.total) for b in found]


@pytest.mark.parametrize("kind", KINDS)
def test_workers_give_the_same_batches_from_any_step(kind):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = first(KINDS[kind](), 14)
    torch.manual_seed(3)
    ahead = first(KINDS[kind](), 14, workers=2)
    assert ahead == whole and torch.equal(torch.get_rng_state(), before), "and draw nothing of the user's"
    torch.manual_seed(8)
    assert first(KINDS[kind](), 5, start=9, workers=3) == whole[9:]
    assert first(KINDS[kind](), 5, start=9) == whole[9:]


def test_the_workers_of_a_loader_are_used():
    class Where(Augmented):
        def __getitem__(self, i: int):
            return torch.full((2,), float(os.getpid())), {"label": torch.tensor(0)}

    def pids(data, workers: int) -> set:
        return {x for batch in first(data, 6, workers=workers) for row in batch[0] for x in row}

    class WhereBatches(Whole):
        def batch(self, numbers: Tensor):
            return torch.full((len(numbers), 2), float(os.getpid())), {"label": numbers % 3}

    here = {float(os.getpid())}
    assert here.isdisjoint(pids(WhereBatches(), 2)) and pids(WhereBatches(), 0) == here
    assert pids(Where(), 0) == here and pids(loader(Where()), 0) == here
    assert here.isdisjoint(pids(Where(), 2)) and len(pids(loader(Where(), num_workers=2), 0)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_workers_has_the_bits_of_one_without(tmp_path, kind):
    words = dict(steps=12, batch_size=7, seed=2)
    plain = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1, n_classes=3), sg.VPSDE(), **KNOWN)
    fit(plain, KINDS[kind](), **words)
    for workers in (1, 3):
        torch.manual_seed(0)
        model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1, n_classes=3), sg.VPSDE(), **KNOWN)
        model.load_state_dict(start_of(plain, model))
        out = tmp_path / str(workers)
        with pytest.raises(ZeroDivisionError):
            stop = dict(callback=lambda s, m, h: 1 / (s - 7), callback_every=1, save_every=3)
            fit(model, KINDS[kind](), out=out, workers=workers, **words, **stop)
        fit(model, KINDS[kind](), out=out, workers=workers, **words)
        fresh = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1, n_classes=3), sg.VPSDE(), **KNOWN)
        fresh.load_state_dict(start_of(plain, fresh))
        fit(fresh, KINDS[kind](), **words)
        assert torch.equal(flat(model), flat(fresh))


def start_of(plain: nn.Module, model: nn.Module) -> dict:
    """First weights that are the same for all."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value
        if "known" in name or not value.is_floating_point()
        else torch.randn(value.shape, generator=generator)
        for name, value in model.state_dict().items()
    }


@pytest.mark.slow
def test_loading_ahead_costs_no_more_than_the_slower_of_loading_and_computing():
    """20 ms a sample, batches of 8 and four workers: 40 ms of loading a step, with steps of 10 and of 60 ms."""
    for seconds in (0.01, 0.06):

        def loss(model, x0, *, seconds=seconds, **cond):
            time.sleep(seconds)
            return dsm_loss(model, x0)

        model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), **KNOWN)
        data = Unlabelled(400, 0.02)
        begun: list[float] = []

        def note(step, m, history, begun=begun):
            begun.append(time.monotonic())

        fit(
            model,
            data,
            steps=60,
            batch_size=8,
            workers=4,
            seed=0,
            loss=loss,
            statistics="keep",
            callback=note,
            callback_every=10,
        )
        step = (begun[-1] - begun[0]) / 50
        assert step <= 1.3 * max(seconds, 0.02 * 8 / 4) + 0.005, step


class Unlabelled(Augmented):
    def __getitem__(self, i: int):
        return super().__getitem__(i)[0]


def loads(rank: int, step, kind: str, log: str, workers: int) -> list:
    data = Unlabelled(64, log=log)
    data = data if kind == "dataset" else DataLoader(data, batch_size=16, shuffle=True)
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), **KNOWN)
    fit(model, data, steps=20, batch_size=16, seed=0, statistics="keep", workers=workers)
    return flat(model).tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_each_process_loads_its_share(tmp_path, kind, workers):
    """A batch of 16 to look at, and then half of 20 batches, each: 176 and 176 samples, and what workers had ready."""
    two = Crew(2, loads, kind, str(tmp_path / "two"), workers).results()
    counts = [len((tmp_path / f"two-{rank}").read_text().split()) for rank in (0, 1)]
    ready = 2 * workers * 8
    assert all(176 <= count <= 176 + ready for count in counts), counts
    assert two[0] == two[1]


# ---- streams


class Counting(IterableDataset):
    """A stream that says where it is, like those of Hugging Face and torchdata; what is loaded is counted."""

    loaded = 0

    def __init__(self, n: int = 50, rank: int = 0, size: int = 1) -> None:
        self.x, self.rank, self.size, self.epoch, self.at, self.begin = points(n), rank, size, 0, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict:
        return {"at": self.at, "more": {"tensor": torch.tensor([self.at])}}

    def load_state_dict(self, state: dict) -> None:
        self.begin = state["at"]
        assert state["more"]["tensor"].tolist() == [self.begin]

    def __iter__(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch))
        for i in range(self.begin, len(order)):
            self.at = i + 1
            if i % self.size == self.rank:
                type(self).loaded += 1
                yield self.x[order[i]]


class Plain(IterableDataset):
    """A stream that does not say where it is."""

    def __iter__(self):
        return iter(points(50))


def stream_of(kind: str, rank: int = 0, size: int = 1):
    if kind == "counting":
        return DataLoader(Counting(50), batch_size=8)
    if kind == "counted":
        return DataLoader(Plain(), batch_size=8)
    return sg.data.Shares(DataLoader(Counting(50, rank, size), batch_size=8, drop_last=True))


def stopped_at(at: int, step: int, model, history) -> None:
    if step == at:
        raise SystemExit(3)


def stream_run(rank: int, step, kind: str, folder: str, words: dict) -> tuple:
    size = int(os.environ["WORLD_SIZE"])
    seen: list = []

    def loss(model, x0, *, seed=None, **cond):
        seen.append(x0.tolist())
        return dsm_loss(model, x0, seed=seed)

    Counting.loaded = 0
    model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), **KNOWN)
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    fit(model, stream_of(kind, rank, size), seed=4, loss=loss, out=folder, save_every=5, statistics="keep", **words)
    return seen, flat(model).tolist(), Counting.loaded


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", ["counting", "counted", "shares"])
def test_a_stream_that_was_cut_goes_on_with_the_same_batches(tmp_path, kind, size):
    whole = Crew(size, stream_run, kind, str(tmp_path / "whole"), dict(steps=30)).results()
    cut = Crew(
        size,
        stream_run,
        kind,
        str(tmp_path / "cut"),
        dict(steps=30, callback=functools.partial(stopped_at, 17), callback_every=1),
    )
    cut.results()
    rest = Crew(size, stream_run, kind, str(tmp_path / "cut"), dict(steps=30)).results()
    for one, other in zip(whole, rest, strict=True):
        assert other[0] == one[0][15:], "from the checkpoint of step 15 on"
        assert other[1] == one[1]
        if kind != "counted":
            assert other[2] < one[2] * 0.75, "what was seen is not loaded again"


def test_shares_are_together_the_batch_of_a_step(tmp_path):
    two = Crew(2, stream_run, "shares", str(tmp_path), dict(steps=6)).results()
    assert two[0][1] == two[1][1], "the same weights"
    first, second = (rows[0] for rows, _, _ in two)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.tensor(first), points(50)[order[0:16:2]])
    torch.testing.assert_close(torch.tensor(second), points(50)[order[1:16:2]])
    told = Crew(1, stream_run, "shares", str(tmp_path), dict(steps=8)).results()
    assert "IncompatibleCheckpointError: data: got 1 processes" in told[0] and "made with 2" in told[0]


def divided_twice(rank: int, step) -> None:
    sampler = DistributedSampler(points(), num_replicas=2, rank=rank)
    fit(small(), DataLoader(points(), batch_size=8, sampler=sampler), steps=1)


def test_a_sampler_that_would_divide_twice_is_refused():
    assert all(
        "DistributedSampler, whose part fit would divide once more" in t for t in Crew(2, divided_twice).results()
    )


def uneven(rank: int, step) -> None:
    rows = points(20)[rank::2]
    fit(small(), sg.data.Shares(DataLoader(rows, batch_size=4)), steps=9)


def test_shares_of_other_sizes_are_refused():
    told = Crew(2, uneven).results()
    assert any("a batch of 2 samples" in t and "drop_last=True" in t for t in told)


def test_data_that_cannot_be_sent_to_workers_are_refused(monkeypatch):
    class Local(Augmented):
        pass

    fit(small(), [x for x in points(16)], steps=2, workers=1)
    monkeypatch.setattr(loading.multiprocessing, "get_start_method", lambda: "spawn")
    with pytest.raises(InvalidInputError, match="workers=1: got a Local that cannot be sent to other processes"):
        fit(small(n_classes=3), Local(), steps=2, workers=1, cond={})
    with pytest.raises(InvalidInputError, match="workers=-1"):
        fit(small(), points(), steps=1, workers=-1)


def test_an_error_in_a_worker_is_told():
    class Broken(Unlabelled):
        def __getitem__(self, i: int):
            if i == 33:
                raise OSError("a picture is damaged")
            return super().__getitem__(i)

    with pytest.raises(OSError, match="a picture is damaged"):
        fit(small(), Broken(), steps=20, batch_size=8, workers=2, statistics="keep", seed=0)


@pytest.mark.slow
def test_a_set_of_eight_gigabytes_trains_in_little_memory(tmp_path):
    def own_memory() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    rows = 2**31 // 12288
    data = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (rows, 3, 64, 64))
    data[::1000] = np.random.default_rng(0).standard_normal(data[::1000].shape)
    assert data.nbytes > 8e9
    net = sg.nets.UNet(3, channels=8, multipliers=(1,), patch=8)
    before, most = own_memory(), []
    fit(
        sg.Denoiser(net, sg.VPSDE()),
        data,
        steps=5,
        batch_size=16,
        seed=0,
        out=tmp_path / "run",
        callback=lambda *_: most.append(own_memory()),
        callback_every=1,
    )
    assert max(most) - before < 1e9
