"""Two autoencoders of Fashion-MNIST, and a model of latents beside one of pixels with as many parameters.

python benchmarks/latents.py [--data FOLDER] [--steps 2500 2500] [--minutes 8] [--out FOLDER] [--name NAME]

The autoencoders are those of examples/train_autoencoder.py (patches of 4 pixels to 4 numbers), variational and with 256
codes; their runs are in OUT, and go on or are read if they are there. Then two U-Nets of about 0.25M parameters are
trained, one on the latents of the first autoencoder and one on pixels, for as many CPU minutes in all: the autoencoder's
are counted. One seed; 1000 samples of each by 20 evaluations, with the classes of 1000 held-out images, are compared
with the other held-out ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import table, write

import sdegen as sg

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_autoencoder import main as train_autoencoder
from train_autoencoder import seconds_of

N = 1000
TITLE = "Autoencoders of Fashion-MNIST, and a model of latents"


def cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def trained(
    net: torch.nn.Module, data: object, minutes: float, space: sg.LatentSpace | None
) -> tuple[sg.Denoiser, dict]:
    """A model trained for so many CPU minutes, and what a step takes."""
    model, trial, batch = sg.Denoiser(net, sg.VPSDE(), space=space), 10, 64
    how = {"batch_size": batch, "seed": 0, "progress": False, "device": "cpu"}
    sg.fit(model, data, steps=2, **how)  # what is slow once
    began = time.process_time()
    sg.fit(model, data, steps=trial, **how)
    each = (time.process_time() - began) / trial
    steps = int(60 * minutes / each)
    sg.fit(model, data, steps=steps, **how)
    count = sum(p.numel() for p in net.parameters())
    return model, {"parameters": count, "minutes": minutes, "ms a step": 1e3 * each, "steps": steps}


def scored(model: sg.Denoiser, judge: sg.metrics.Classifier, labels: torch.Tensor, y: torch.Tensor) -> dict:
    """Distance and class of samples, and which share of their time decoding is."""
    began = time.process_time()
    z = sg.sample(model, N, steps=20, seed=0, batch_size=250, label=labels, progress=False).x
    sampled = time.process_time()
    x = model.decode(z)
    decoded = time.process_time() - sampled
    return {
        "Frechet distance": sg.metrics.frechet_distance(judge(x), y),
        "class right": judge.accuracy(x, labels),
        "ms a sample": 1e3 * (sampled - began + decoded) / N,
        "decoding, % of it": 100 * decoded / (sampled - began + decoded) if model.space is not None else None,
    }


def compared(source: str, run: Path, minutes: float) -> list[dict]:
    """A model of latents and one of pixels, and real images."""
    data, held_out = (sg.data.load_images(source, split=part) for part in ("train", "held-out"))
    judge = sg.metrics.train_classifier(data.images, data.labels, seed=1)
    half, rest = (held_out.only(slice(k, None, 2)) for k in (0, 1))
    half = half.only(torch.linspace(0, len(half) - 1, N).round().long())
    y, labels = judge(rest.images), half.labels
    space = sg.LatentSpace.measured(sg.load(run, device="cpu"), data)
    rows = [{"": f"{N} held-out images", "Frechet distance": sg.metrics.frechet_distance(judge(half.images), y),
             "class right": judge.accuracy(half.images, labels)}]  # fmt: skip
    torch.manual_seed(0)
    in_space = sg.nets.UNet(space.channels, channels=32, multipliers=(1,), blocks=2, attention=(0,), n_classes=10)
    in_pixels = sg.nets.UNet(1, channels=26, multipliers=(1, 2), patch=2, attention=(-1,), n_classes=10)
    for name, net, train_on, where, already in (
        ("latents", in_space, space.latents(data), space, seconds_of(run) / 60),
        ("pixels", in_pixels, data, None, 0.0),
    ):
        model, cost = trained(net, train_on, minutes - already, where)
        rows.append({"": name, **cost, **scored(model, judge, labels, y)})
        print(rows[-1], flush=True)
    return rows


def show(title: str, rows: list[dict]) -> None:
    heads = list(dict.fromkeys(key for row in rows for key in row if key))
    table([title, *heads], [[cell(row.get(key)) for key in ("", *heads)] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--steps", type=int, nargs=2, default=(2500, 2500), help="of the one and the other autoencoder")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training in all, the autoencoder's too")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "sdegen-latents")
    parser.add_argument("--name", default="latents", help="of the results, where several are kept")
    chosen = parser.parse_args()
    for name in ("--data", "--out"):  # where things are on this machine is of no interest
        if name in sys.argv:
            at = sys.argv.index(name)
            del sys.argv[at : at + 2]
    torch.set_num_threads(1)
    words = ["--data", chosen.data, "--patch", "4", "--steps"]
    rows = train_autoencoder([*words, str(chosen.steps[0]), "--out", str(chosen.out / "kl")])
    rows += train_autoencoder([*words, str(chosen.steps[1]), "--codes", "256", "--out", str(chosen.out / "vq")])
    models = compared(chosen.data, chosen.out / "kl", chosen.minutes) if chosen.minutes else []
    show("autoencoder", rows)
    if models:
        show(f"trained on, {chosen.minutes:g} CPU minutes in all", models)
    write(chosen.name, TITLE, __doc__.split("\n\n")[2])


if __name__ == "__main__":
    main()
