"""A small CLIP-type model: pictures and their captions in one space, and a diffusion model guided by a sentence.

python examples/clip.py --out pairs                              # digits
python examples/clip.py --data fashion-mnist --out pairs         # or a folder of its idx files
python examples/clip.py --data emoji.npz --text minilm --model-steps 0 --out pairs     # of emoji_data.py

Every picture has a caption, such as "a bright sandal" (see text_to_image.py). Two towers, one of pictures and one of
sentences, learn to bring pictures near their captions (Radford et al. 2021, arXiv 2103.00020, figure 3; captions that
several pictures of a batch share are all right, as in Yang et al. 2022, arXiv 2204.03610). Then

- retrieval: which of the 30 captions is nearest to a picture that was held out; zero-shot: the same with "a sandal";
- guidance: `Tilted` adds gamma times the gradient of the similarity of E[x0 | x] and a sentence to the score of a model
  that is told nothing. A classifier that took no part says whether it worked, beside guidance without a classifier.

Sentences are sums of hashed words, so that this runs anywhere; --text minilm reads them with a language model.
Writes guided.png: a row for each kind of guidance, a column for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from captions import Captioned, captioned, encoder
from torch import Tensor, nn

import sdegen as sg


class Pairs(nn.Module):
    """Two towers into one space of unit vectors."""

    def __init__(self, channels: int, text: int, width: int = 64) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU()]
        layers += [nn.Conv2d(64, 64, 3, 2, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, width)]
        self.of_pictures, self.of_sentences = nn.Sequential(*layers), nn.Linear(text, width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def picture(self, x: Tensor) -> Tensor:
        return F.normalize(self.of_pictures(x), dim=1)

    def sentence(self, features: Tensor) -> Tensor:
        return F.normalize(self.of_sentences(features), dim=1)

    @torch.no_grad()
    def pictures(self, x: Tensor) -> Tensor:
        """Of many, without gradients."""
        return torch.cat([self.picture(part) for part in x.split(500)])


def contrast(pairs: Pairs, x0: Tensor, text: Tensor) -> Tensor:
    """Half the cross-entropies of pictures given sentences and of sentences given pictures, (B,)."""
    logits = pairs.log_scale.exp() * pairs.picture(x0) @ pairs.sentence(text).mT
    same = (text[:, None] == text).all(-1).to(logits.dtype)
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, same, reduction="none") + F.cross_entropy(logits.mT, same, reduction="none")) / 2


def towers(data: Captioned, text: Tensor, args: argparse.Namespace, width: int = 64) -> Pairs:
    """The two, trained on pictures and the sentences of their captions, (K, D)."""
    torch.manual_seed(args.seed)
    pairs, rows = Pairs(data.x.shape[1], text.shape[1], width), sg.data.Lookup(text, data.which)
    how = {"steps": args.steps, "batch_size": 128, "lr": 2e-3, "ema": None, "seed": args.seed}
    sg.fit(pairs, sg.data.Conditioned(data.x, text=rows), loss=contrast, **how)
    return pairs.eval().requires_grad_(False)


def nearest(pairs: Pairs, x: Tensor, text: Tensor) -> Tensor:
    """Which sentence is nearest to each picture, (B,)."""
    return (pairs.pictures(x) @ pairs.sentence(text).mT).argmax(1)


def unguided(x: Tensor, labels: Tensor, args: argparse.Namespace) -> sg.Denoiser:
    """A model that can be told a class, or none: the one that comes along, or one trained here."""
    if args.data != "digits":
        return sg.load("fashion")
    torch.manual_seed(args.seed)
    model = sg.Denoiser(sg.nets.UNet(1, n_classes=10, label_dropout=0.1), sg.VPSDE(), parametrization="edm")
    sg.fit(model, x, label=labels, steps=args.model_steps, batch_size=128, lr=2e-3, seed=args.seed)
    return model


def draws(model: sg.Denoiser, pairs: Pairs, text: Tensor, labels: Tensor, args: argparse.Namespace) -> dict:
    """Samples by kind of guidance: by sentences of strength gamma, and without a classifier."""
    g, none = pairs.sentence(text).detach(), torch.full_like(labels, -1)

    def similarity(x0: Tensor, which: Tensor) -> Tensor:
        return pairs.log_scale.exp().detach() * (pairs.picture(x0) * g[which]).sum(1)

    how = {"steps": args.sampling_steps, "seed": args.seed, "batch_size": 250, "solver": "d-adams2-sde", "eta": 1.0}
    found = {"told nothing": sg.sample(model, len(labels), label=none, **how)}
    for gamma in args.gamma:
        tilted = sg.Tilted(model, similarity, scale=gamma)
        found[f"sentence, gamma {gamma:g}"] = sg.sample(tilted, len(labels), label=none, which=labels, **how)
    for scale in (1.0, 2.0):
        guided = sg.Guided(model, scale, null={"label": -1})
        found[f"class, guidance {scale:g}"] = sg.sample(guided, len(labels), label=labels, **how)
    return found


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--text", choices=("hashed", "minilm"), default="hashed")
    parser.add_argument("--steps", type=int, default=1500, help="of training the two towers")
    parser.add_argument("--model-steps", type=int, default=1200, help="of training a diffusion model; 0: no guidance")
    parser.add_argument("--gamma", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    parser.add_argument("--sampling-steps", type=int, default=30)
    parser.add_argument("--n", type=int, default=500, help="samples that are judged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pairs"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.model_steps, args.gamma, args.sampling_steps, args.n = 3, 3, [3.0], 3, 20
    args.out.mkdir(parents=True, exist_ok=True)

    train, held_out = (captioned(args.data, split, size=28) for split in ("train", "held-out"))
    labels, theirs = (data.thing[data.which] for data in (train, held_out))
    read, asked = encoder(args.text), held_out.which.unique()  # the captions that there are to choose from
    text, classes = read(train.texts)[2], read([f"a {kind}" for kind in train.kinds])[2]

    pairs = towers(train, text, args)
    judge = sg.metrics.train_classifier(train.x[:20_000], labels[:20_000], **({"steps": 20} if args.smoke else {}))
    y, found = held_out.x[: 2 * args.n], asked[nearest(pairs, held_out.x, text[asked])]
    right = lambda a, b: float((a == b).float().mean())
    frechet = lambda x: sg.metrics.frechet_distance(judge(x), judge(y))
    zero_shot = right(nearest(pairs, held_out.x, classes), theirs)
    both = {
        "tone right": right(train.tone[found], train.tone[held_out.which]),
        "caption right": right(found, held_out.which),
    }
    rows: list[dict[str, object]] = [
        {"": "held-out, nearest caption", "class right": right(train.thing[found], theirs), **both},
        {"": "held-out, zero-shot", "class right": zero_shot},
        {"": "held-out, the judge", "class right": judge.accuracy(held_out.x, theirs)},
    ]
    asked, first = torch.arange(args.n) % len(classes), {}
    model = unguided(train.x, labels, args) if args.model_steps else None
    if model:
        rows.append({"": "training pictures: the floor", "Frechet distance": frechet(train.x[: args.n])})
    for name, solution in draws(model, pairs, classes, asked, args).items() if model else ():
        judged = {"class right": judge.accuracy(solution.x, asked), "Frechet distance": frechet(solution.x)}
        rows.append({"": name, **judged, "evaluations": float(solution.nfe.double().mean())})
        first[name] = solution.x[:10]
    for row in rows:
        print(f"{row['']!s:32}" + "  ".join(f"{name} {value:.3g}" for name, value in row.items() if name))
    if model:
        picture = sg.plot.image_grid(torch.cat(list(first.values())), nrow=10, columns=train.kinds, rows=list(first))
        sg.plot.save(picture, args.out / "guided.png")
        print(f"wrote {args.out / 'guided.png'}")
    return rows


if __name__ == "__main__":
    main()
