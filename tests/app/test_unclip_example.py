"""The laws of examples/unclip.py, where the answer is known: Gaussian captions, embeddings and pictures."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdegen as sg


@pytest.fixture
def unclip(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    return importlib.import_module("unclip")


class Told(sg.ScoreModel):
    """The exact model of x ~ N(A v + b, C), told v; without v, of x ~ N(b, A A^T + C), as where v ~ N(0, I)."""

    def __init__(self, a: Tensor, b: Tensor, c: Tensor, event: tuple[int, ...]) -> None:
        super().__init__(sg.VPSDE(), data_mean=0.0, data_std=1.0, event_shape=event)
        self.a, self.b, self.c = a, b, c

    def condition_names(self) -> set[str]:
        return {"vector"}

    def forward(self, x: Tensor, t: Any, vector: Tensor | None = None) -> sg.Prediction:
        at, eye = self.sde.at(torch.as_tensor(t)), torch.eye(len(self.c), dtype=x.dtype)
        mean = self.b if vector is None else vector @ self.a.mT + self.b
        c = self.c + self.a @ self.a.mT if vector is None else self.c
        gain = at.alpha * c @ torch.linalg.inv(at.alpha**2 * c + at.sigma**2 * eye)
        return sg.Prediction.from_x0(
            x, (mean + (x.flatten(1) - at.alpha * mean) @ gain.mT).reshape(x.shape), self.sde, t
        )


def gaussian(unclip: Any) -> tuple[Any, Any, Any]:
    """Captions of 2 numbers, embeddings of 3, pictures of 4: y -> z -> x, linear with noise."""
    draw = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    covariance = lambda d: (lambda r: 0.3 * r @ r.mT / d + 0.05 * torch.eye(d, dtype=torch.float64))(normal(d, d))
    mean, std = normal(3), normal(3).abs() + 0.5
    prior = Told(0.7 * normal(3, 2), 0.3 * normal(3), covariance(3), (3,))
    decoder = Told(0.7 * normal(4, 3), 0.3 * normal(4), covariance(4), (1, 2, 2))
    return unclip.Unclip(prior, decoder, mean, std, steps=40), prior, decoder


def test_prior_and_decoder_together_draw_the_law_of_pictures_given_a_caption(unclip):
    """x | y ~ N(B (A y + a) + b, B C_z B^T + C_x): the integral over embeddings, in closed form."""
    model, prior, decoder = gaussian(unclip)
    n = 4000
    y = torch.tensor([0.8, -1.2], dtype=torch.float64).expand(n, 2)
    x = model.painted(model.imagined(y, seed=0), seed=1).flatten(1)
    mean = decoder.a @ (prior.a @ y[0] + prior.b) + decoder.b
    covariance = decoder.a @ prior.c @ decoder.a.mT + decoder.c
    error = (x.mean(0) - mean) / (covariance.diagonal() / n).sqrt()
    assert float(error.abs().max()) < 4, error
    spread = (covariance.square() + covariance.diagonal().outer(covariance.diagonal())) / n
    error = (x.mT.cov() - covariance) / spread.sqrt()
    assert float(error.abs().max()) < 4, error


def test_without_its_embedding_a_decoder_draws_all_pictures_and_guidance_goes_away_from_these(unclip):
    model, _, decoder = gaussian(unclip)
    u = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64).expand(2000, 3)
    told, none, more = (model.painted(u, seed=1, scale=s).flatten(1).mean(0) - decoder.b for s in (1.0, 0.0, 2.0))
    assert float(none.norm()) < 0.1 < float(told.norm()) < float(more.norm())


def test_ways_begin_and_end_with_the_embeddings_they_lead_between_and_keep_the_noise(unclip):
    model, _, _ = gaussian(unclip)
    f = torch.nn.functional.normalize(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double(), dim=2)
    u, v = (model.standard(each) for each in f)
    torch.testing.assert_close(model.unit(u), f[0])
    way = model.between(u, v, seed=7)
    torch.testing.assert_close(way[0], model.painted(u, seed=7))
    torch.testing.assert_close(way[-1], model.painted(v, seed=7))
    steps = way.diff(dim=0).flatten(2).norm(dim=2)
    assert float(steps.max() / steps.mean()) < 3  # nowhere a jump, as other noise would make
    x, z = (model.painted(each, seed) for each, seed in ((u, 3), (v, 4)))
    own = sg.slerp(model.noise(x, u), model.noise(z, v), unclip.WAY)
    way = model.between(u, v, seed=7, noise=[*own])
    torch.testing.assert_close(way[[0, -1]], torch.stack([x, z]), rtol=0, atol=0.02)  # the pictures themselves


def test_a_picture_with_no_difference_stays_and_moves_along_one(unclip):
    """From its own noise a Gaussian picture moves by A times the move of its embedding, nothing else."""
    model, _, decoder = gaussian(unclip)
    f = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    u = model.standard(f)
    x = model.painted(u, seed=3)
    difference = torch.tensor([0.3, 0.1, -0.2], dtype=torch.float64).expand(6, 3)
    torch.testing.assert_close(model.changed(x, u, difference, 0.0), x, rtol=0, atol=0.02)
    moved = model.standard(torch.nn.functional.normalize(f + 2 * difference, dim=1)) - u
    found = model.changed(x, u, difference, 2.0) - x
    torch.testing.assert_close(found.flatten(1), moved @ decoder.a.mT, rtol=0, atol=0.03)


@pytest.mark.slow
def test_variations_of_digits_keep_their_class_and_differ(unclip, tmp_path):
    rows = {row[""]: row for row in unclip.main(["--out", str(tmp_path), "--n", "400"])}
    assert rows["variations"]["class kept"] >= 0.8 and rows["variations"]["differ"] >= 0.5
    assert rows["captions"]["of embeddings"] < rows["captions, without a prior"]["of embeddings"] / 5
