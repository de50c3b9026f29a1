"""The laws of examples/clip.py: what its loss asks for, and that it is learned."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch

import sdegen as sg


@pytest.fixture
def clip(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    return importlib.import_module("clip")


class Known(torch.nn.Module):
    """Towers that see what they are given."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = torch.tensor(math.log(scale))

    def picture(self, x: torch.Tensor) -> torch.Tensor:
        return x

    sentence = picture


def test_the_loss_takes_every_picture_with_the_caption_for_right(clip):
    """Its least value is the entropy of the captions that are shared, reached where pictures lie on their captions."""
    text = torch.eye(3)[[0, 0, 1, 2]]
    loss = clip.contrast(Known(1e3), text, text)
    torch.testing.assert_close(loss, torch.tensor([math.log(2), math.log(2), 0.0, 0.0]))
    assert float(clip.contrast(Known(1e3), text[[2, 2, 0, 3]], text).mean()) > 100
    flat = clip.contrast(Known(1e-6), text, text)  # of four pictures that are all alike
    torch.testing.assert_close(flat, torch.full((4,), math.log(4)), rtol=1e-4, atol=0)


def test_towers_learn_which_caption_a_picture_has(clip):
    bright = torch.arange(400) % 2
    x = (2.0 * bright - 1)[:, None, None, None] + 0.1 * torch.randn(
        400, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    text = clip.encoder("hashed")(["a dark one", "a bright one"])[2]
    torch.manual_seed(0)
    pairs = clip.Pairs(1, text.shape[1])
    data = sg.data.Conditioned(x, text=sg.data.Lookup(text, bright))
    sg.fit(pairs, data, steps=60, batch_size=32, lr=3e-3, loss=clip.contrast, ema=None, seed=0, progress=False)
    pairs.eval().requires_grad_(False)
    assert (clip.nearest(pairs, x, text) == bright).all()
