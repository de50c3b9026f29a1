"""Conditions in data: rows of tables, of functions, of pairs and of dicts are those of plain tensors."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sdegen as sg
from sdegen.core.errors import InvalidInputError
from sdegen.data import Batched, Conditioned, Lookup
from sdegen.data.images import Images

N = 20
X = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABEL, WHICH = torch.arange(N) % 3, torch.arange(N) * 7 % 5
TABLE = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(1))
MASK = torch.rand(5, 3, generator=torch.Generator().manual_seed(2)) < 0.7


def low(x: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)


def weights(data, **words) -> Tensor:
    """Those that a short run on these data leaves."""
    torch.manual_seed(0)
    net = sg.nets.UNet(
        1, channels=8, multipliers=(1,), n_classes=3, token_channels=6, image_channels=1, token_dropout=0.3
    )
    model = sg.Denoiser(net, sg.VPSDE())
    sg.fit(model, data, **dict(steps=4, batch_size=6, seed=1, progress=False, device="cpu") | words)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Squares(Batched):
    """A set of the user's own."""

    def __len__(self) -> int:
        return N

    def batch(self, numbers: Tensor):
        return X[numbers], {"label": LABEL[numbers], "image": low(X[numbers])}


def ways() -> dict[str, tuple]:
    tokens, mask = Lookup(TABLE, WHICH), Lookup(MASK, WHICH)
    images = Images(X, LABEL, None, 3)
    return {
        "Conditioned": (Conditioned(X, label=LABEL, tokens=tokens, token_mask=mask, image=low), {}),
        "of an array": (Conditioned(X.numpy(), label=LABEL, tokens=tokens, token_mask=mask, image=low), {}),
        "of Images": (Conditioned(images, tokens=tokens, token_mask=mask, image=low), {}),
        "of a set": (Conditioned(Squares(), tokens=tokens, token_mask=mask), {}),
        "Lookup in fit": (Conditioned(X, image=low), {"label": LABEL, "tokens": tokens, "token_mask": mask}),
        "of Conditioned": (Conditioned(Conditioned(X, image=low), tokens=tokens, token_mask=mask), {"label": LABEL}),
    }


@pytest.mark.parametrize("way", ways())
def test_a_run_is_that_of_rows_for_each_sample(way):
    plain = weights(X, label=LABEL, tokens=TABLE[WHICH], token_mask=MASK[WHICH], image=low(X))
    data, cond = ways()[way]
    assert torch.equal(weights(data, **cond), plain)


def test_pairs_and_dicts_are_rows_with_names():
    pairs = TensorDataset(X, LABEL)
    rows = [{"pixels": x, "digit": int(y), "name": "seven"} for x, y in zip(X, LABEL, strict=True)]
    columns = {"x0": "pixels", "label": "digit"}
    ours = functools.partial(_small, batch_size=6, steps=4)
    wanted = ours(X, label=LABEL)
    assert torch.equal(ours(pairs), wanted)
    assert torch.equal(ours(rows, columns=columns), wanted)
    loaders = [DataLoader(pairs, batch_size=5), DataLoader(rows, batch_size=5)]
    batches = [(X[i : i + 5], {"label": LABEL[i : i + 5]}) for i in range(0, N, 5)]
    assert torch.equal(ours(loaders[0]), ours(batches_again(batches)))
    assert torch.equal(ours(loaders[1], columns=columns), ours(batches_again(batches)))


class batches_again:  # noqa: N801
    def __init__(self, batches) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def _small(data, **words) -> Tensor:
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.MLP((1, 4, 4), hidden=8, layers=1, n_classes=3), sg.VPSDE())
    sg.fit(model, data, seed=1, progress=False, device="cpu", **words)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_pair_of_a_module_goes_to_the_label_of_its_loss():
    def loss(model, x0, label):
        return F.cross_entropy(model(x0), label, reduction="none")

    found = []
    for data, words in ((TensorDataset(X, LABEL), {}), (X, {"label": LABEL})):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        sg.fit(net, data, loss=loss, steps=3, batch_size=6, seed=0, progress=False, device="cpu", **words)
        found.append(net[1].weight.detach())
    assert torch.equal(*found)


def test_statistics_are_those_of_all_samples_in_memory():
    x = torch.cat([torch.zeros(6000, 2), torch.full((1, 2), 1e4)])  # the last is between those that are looked at
    found = []
    for data in (x, Conditioned(x, label=torch.zeros(6001).long())):
        model = sg.Denoiser(sg.nets.MLP(2, hidden=4, layers=1, n_classes=1), sg.VPSDE())
        with pytest.warns(UserWarning):
            sg.fit(model, data, steps=1, batch_size=4, seed=0, progress=False, device="cpu")
        found.append((float(model.data_std), model.data_mean.tolist()))
    assert found[0] == found[1]


class Drawn(Batched):
    """With noise that is drawn when a batch is asked for."""

    def __len__(self) -> int:
        return N

    def batch(self, numbers: Tensor):
        return X[numbers] + torch.randn(len(numbers), 1, 4, 4), {"label": LABEL[numbers]}


def test_what_a_set_draws_is_decided_by_seed_and_step(tmp_path):
    torch.manual_seed(5)
    one = _small(Drawn(), steps=9, batch_size=6, out=tmp_path / "whole", save_every=2)
    torch.manual_seed(6)
    assert torch.equal(one, _small(Drawn(), steps=9, batch_size=6))


WRONG = {
    "which beyond": (lambda: Lookup(TABLE, WHICH + 1), "from 1 to 5, expected 0 to 4"),
    "which negative": (lambda: Lookup(TABLE, WHICH - 1), "from -1 to 3"),
    "which no numbers": (lambda: Lookup(TABLE, WHICH.float()), "which: got torch.float32"),
    "values no tensor": (lambda: Lookup([1, 2], WHICH), "values: got a list"),
    "another number of samples": (
        lambda: Conditioned(X, tokens=Lookup(TABLE, WHICH[:7])),
        "for 7 samples, expected 20",
    ),
    "a tensor of another length": (lambda: Conditioned(X, label=LABEL[:7]), "for 20 samples"),
    "a list": (lambda: Conditioned(list(X), label=LABEL), "data: got a list"),
    "one number": (lambda: Conditioned(torch.zeros(()), label=LABEL), "data: got torch.float32 of shape"),
    "a Lookup for samples": (lambda: _sampled(label=Lookup(LABEL, WHICH)), "a Lookup: pass a tensor with a row"),
    "columns without x0": (lambda: _small(X, steps=1, columns={"label": "digit"}), "columns: got"),
    "columns for tensors": (lambda: _small(list(X), steps=1, columns={"x0": "p"}), "for rows that are dicts"),
    "dicts without columns": (lambda: _small([{"p": X[0]}], steps=1), "data gives dicts with 'p': say which is x0"),
    "a column that is missing": (lambda: _small([{"p": X[0]}], steps=1, columns={"x0": "q"}), "got 'q'.*have: 'p'"),
    "a second of a pair for a loss without": (
        lambda: sg.fit(torch.nn.Linear(4, 1), TensorDataset(X, LABEL), loss=lambda model, x0: x0, steps=1),
        "a label goes with its name",
    ),
}


def _sampled(**cond):
    return sg.sample(sg.Denoiser(sg.nets.MLP(2, n_classes=5), sg.VPSDE()), 20, steps=2, **cond)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case):
    call, says = WRONG[case]
    with pytest.raises(InvalidInputError, match=says):
        call()


def test_one_sample_is_a_row_of_a_batch():
    data = Conditioned(X, label=LABEL, tokens=Lookup(TABLE, WHICH))
    x0, cond = data[-1]
    assert (
        torch.equal(x0, X[-1])
        and int(cond["label"]) == int(LABEL[-1])
        and torch.equal(cond["tokens"], TABLE[WHICH[-1]])
    )
    with pytest.raises(IndexError):
        data[N]
    assert len(list(data)) == N and np.isfinite(float(x0.sum()))
