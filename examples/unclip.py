"""Pictures by way of an embedding: a prior draws the embedding of a picture, a decoder draws a picture that has it.

python examples/unclip.py --out unclip                                                # digits
python examples/unclip.py --data fashion-mnist --text minilm --size 14 --out unclip   # or a folder of its idx files
python examples/unclip.py --data emoji.npz --text minilm --size 16 --out unclip       # of emoji_data.py

unCLIP (Ramesh et al. 2022, arXiv 2204.06125) on the two towers of clip.py, f of pictures and g of captions. The prior
is a diffusion model of vectors f(x), told g(y), the decoder one of pictures, told f(x), which has what captions say, so

- other noise with the same embedding varies a picture;
- embeddings on the arc between two (`slerp`), with one noise or on the arc of two, go from picture to picture;
- f(x) + a (g(y') - g(y)) in place of f(x), from the picture's own noise (`encode`), changes what a caption says.

Prints what a classifier that took no part finds, beside the caption's own embedding in place of the prior's. Writes
unclip.png (pictures, variations, changes, answers to captions) and between.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from captions import Captioned, captioned, encoder, spread
from clip import Pairs, towers
from text_to_image import judges
from torch import Tensor

import sdegen as sg

DRAWS = 3  # variations of one picture
WAY = torch.linspace(0, 1, 9)  # from one picture to another
CHANGES = (0.5, 1.0, 2.0)  # a
share = lambda hits: float(hits.double().mean())  # of what is true


@dataclass
class Unclip:
    """A prior and a decoder of embeddings u = (f(x) - mean)/std, which have the size that noise has."""

    prior: sg.ScoreModel  # of u (W,), told the caption's embedding as `vector`
    decoder: sg.ScoreModel  # of pictures, told u as `vector`
    mean: Tensor  # (W,) of f(x)
    std: Tensor
    steps: int = 10  # of sampling

    def standard(self, f: Tensor) -> Tensor:
        return (f - self.mean) / self.std

    def unit(self, u: Tensor) -> Tensor:
        """The embedding on the sphere, where arcs are."""
        return F.normalize(u * self.std + self.mean, dim=1)

    def imagined(self, g: Tensor, seed: int) -> Tensor:
        """u, one for each caption."""
        return sg.sample(self.prior, len(g), steps=self.steps, seed=seed, vector=g, batch_size=1000).x

    def painted(self, u: Tensor, seed: int, scale: float = 1.0, x_init: Tensor | None = None) -> Tensor:
        """A picture for each u; row i of a seed has the same noise whatever u is."""
        model = self.decoder if scale == 1 else sg.Guided(self.decoder, scale, null={"vector": None})
        how = {"steps": self.steps, "batch_size": 250, "x_init": x_init}
        return sg.sample(model, len(u), seed=seed, vector=u, **how).x

    def noise(self, x: Tensor, u: Tensor) -> Tensor:
        """The pictures' own, from which `painted` makes them again."""
        return sg.encode(self.decoder, x, steps=2 * self.steps, vector=u, batch_size=250).x

    def between(self, u: Tensor, v: Tensor, seed: int, scale: float = 1.0, noise: Iterable | None = None) -> Tensor:
        """(len(WAY), B, C, H, W) pictures on the arcs from u to v, of one noise or of some for each point."""
        arcs, noise = sg.slerp(self.unit(u), self.unit(v), WAY), noise or [None] * len(WAY)
        return torch.stack([self.painted(self.standard(z), seed, scale, e) for z, e in zip(arcs, noise, strict=True)])

    def changed(self, x: Tensor, u: Tensor, difference: Tensor, a: float) -> Tensor:
        """The pictures with embeddings moved along a difference of captions, from their own noise."""
        moved = self.standard(F.normalize(self.unit(u) + a * difference, dim=1))
        return self.painted(moved, seed=0, x_init=self.noise(x, u))


def trained(data: Captioned, f: Tensor, g: Tensor, args: argparse.Namespace) -> Unclip:
    """A prior and a decoder of pictures with embeddings f (N, W) and captions with g (K, W)."""
    torch.manual_seed(args.seed)
    mean, std = f.mean(0), f.std(0).clamp_min(1e-4)
    u, size, channels = (f - mean) / std, data.x.shape[-1], data.x.shape[1]
    told = {"vector_channels": f.shape[1], "vector_dropout": 0.1}
    vectors = sg.nets.MLP(f.shape[1], hidden=256, embedding=128, **told)
    prior = sg.Denoiser(vectors, sg.VPSDE(), parametrization="x0")
    captions = sg.data.Conditioned(u, vector=sg.data.Lookup(g, data.which))
    sg.fit(prior, captions, steps=args.prior_steps, batch_size=256, lr=2e-3, seed=args.seed)
    shape = {"patch": 2 if size >= 28 else 1, "multipliers": (1, 2), "attention": (-1,)}
    pictures = sg.nets.UNet(channels, channels=args.width, **shape, **told)
    decoder = sg.Denoiser(pictures, sg.VPSDE(), parametrization="edm")
    sg.fit(decoder, data.x, vector=u, steps=args.decoder_steps, batch_size=64, lr=2e-3, seed=args.seed)
    return Unclip(prior, decoder, mean, std, args.sampling_steps)


class Scores:
    """Rows of what a classifier that took no part says of pictures, and of how far they are from held-out ones."""

    def __init__(self, data: Captioned, real: Captioned, args: argparse.Namespace) -> None:
        self.class_of, self.tone_of, self.judge = judges(data, args)
        self.data, self.real, self.rows, self.theirs = data, real, [], self.class_of(real.x)

    def add(self, name: str, x: Tensor, which: Tensor, far: Tensor | None = None, **more: float) -> None:
        """Of pictures of these captions; far: whose distance is told, in place of x."""
        right = {"class right": self.class_of(x) == self.data.thing[which]}
        right["tone right"] = self.tone_of(x) == self.data.tone[which]
        right["both right"] = right["class right"] & right["tone right"]
        far = self.judge(x if far is None else far)
        distance = {"Frechet distance": sg.metrics.frechet_distance(far, self.judge(self.real.x))}
        self.tell(name, **{key: share(hits) for key, hits in right.items()}, **distance, **more)

    def tell(self, name: str, **cells: float) -> None:
        self.rows.append({"": name, **cells})
        print(f"{name:30}" + "  ".join(f"{key} {value:.3g}" for key, value in cells.items()), flush=True)


def measure(model: Unclip, data: Captioned, real: Captioned, pairs: Pairs, g: Tensor, args) -> list[dict]:
    """A row for each way; `real` are pictures that nothing was trained on."""
    scores, y, some = Scores(data, real, args), real.which, spread(data, len(real.x)).x
    u, seen = (model.standard(pairs.pictures(x)) for x in (real.x, some))
    apart = lambda v: {"of embeddings": sg.metrics.frechet_distance(v, u)}
    scores.add("held-out; distance: training", real.x, y, far=some, **apart(seen))
    varied = torch.stack([model.painted(u, seed=k) for k in range(DRAWS)])
    within = torch.stack([real.x[real.thing[y] == k].var(0) for k in real.thing[y].unique()])
    differ = float((varied.var(0).mean() / within.mean()).sqrt())
    kept = lambda x: {"class kept": share(scores.class_of(x) == scores.theirs)}
    scores.add("variations", varied[0], y, **kept(varied[0]), differ=differ)
    drawn, own = model.imagined(g[y], seed=100), model.standard(g[y])
    scores.add("captions", model.painted(drawn, 101), y, **apart(drawn))
    scores.add("captions, guidance 2", model.painted(drawn, 101, scale=2.0), y)
    scores.add("captions, without a prior", model.painted(own, 101), y, **apart(own))
    other = real.in_another_tone(y)
    for a in CHANGES:
        x = model.changed(real.x, u, g[other] - g[y], a)
        scores.add(f"in another tone, a = {a:g}", x, other, **kept(x))
    rows = (scores.theirs != scores.theirs.flip(0)).nonzero()[:, 0][: args.n // 2]
    a, b = u[rows], u.flip(0)[rows]
    own = sg.slerp(model.noise(real.x[rows], a), model.noise(real.x.flip(0)[rows], b), WAY)
    for name, how in {"": {}, ", guidance 2": {"scale": 2.0}, ", from noise to noise": {"noise": [*own]}}.items():
        classes = torch.stack([scores.class_of(x) for x in model.between(a, b, seed=102, **how)])
        once = share((classes.diff(dim=0) != 0).sum(0) == 1)
        scores.tell(f"{len(rows)} ways between classes{name}", **{"class changes once": once})
    return scores.rows


def pictures(model: Unclip, real: Captioned, f: Tensor, g: Tensor, out: Path) -> None:
    """A column for each class; and between."""
    things, told = real.kinds, real.thing[real.which]
    first = torch.stack([(told == k).nonzero()[0, 0] for k in range(len(things))])
    x, u, y = real.x[first], model.standard(f[first]), real.which[first]
    rows = {"picture": x, **{f"variation {k}": model.painted(u, seed=k) for k in (1, 2)}}
    for k in (0, len(real.tones) - 1):
        wanted, tone = g[real.in_tone(y, k)], real.tones[k]
        rows[f"made {tone}"] = model.changed(x, u, wanted - g[y], 1.0)
        rows[f"caption, {tone}"] = model.painted(model.imagined(wanted, seed=3), 4, scale=2.0)
    grid = sg.plot.image_grid(torch.cat(list(rows.values())), nrow=len(things), columns=things, rows=list(rows))
    sg.plot.save(grid, out / "unclip.png")
    half = len(things) // 2
    way = model.between(u[:half], u[-half:], seed=5).transpose(0, 1).flatten(0, 1)
    names = [f"{a} to {b}" for a, b in zip(things[:half], things[-half:], strict=True)]
    grid = sg.plot.image_grid(way, nrow=len(WAY), columns=[f"{w:.3g}" for w in WAY.tolist()], rows=names)
    sg.plot.save(grid, out / "between.png")


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int, default=28, help="pixels a side, at most")
    parser.add_argument("--text", choices=("hashed", "minilm"), default="hashed")
    parser.add_argument("--steps", type=int, default=1500, help="of training the two towers")
    parser.add_argument("--prior-steps", type=int, default=4000)
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--embedding", type=int, default=64, help="numbers of an embedding")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--n", type=int, default=1000, help="held-out pictures that are used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("unclip"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.prior_steps, args.decoder_steps, args.sampling_steps, args.n, args.width = 3, 3, 3, 3, 60, 8
    args.out.mkdir(parents=True, exist_ok=True)
    data, held_out = (captioned(args.data, split, args.size) for split in ("train", "held-out"))
    text = encoder(args.text)(data.texts)[2]
    pairs, real = towers(data, text, args, args.embedding), spread(held_out, args.n)
    g = pairs.sentence(text)
    model = trained(data, pairs.pictures(data.x), g, args)
    rows = measure(model, data, real, pairs, g, args)
    pictures(model, real, pairs.pictures(real.x), g, args.out)
    print(f"wrote unclip.png and between.png into {args.out}")
    return rows


if __name__ == "__main__":
    main()
