"""How good samples of small networks are: Frechet distances to held-out images, with their floors.

The digits: a U-Net of 0.33M parameters, 1200 steps (about three minutes of one core), 1000 samples of both equations
against the 445 images held out, in pixels and in the features of a small classifier, and how far samples are from the
nearest training image. Fashion-MNIST: the model of the package, 1000 samples against 1000 held-out images, where the
data set is on this machine.

    python benchmarks/images.py [--quick] [--fashion FOLDER]
"""

from __future__ import annotations

import argparse

import torch
from report import table, write

import sdegen as sg
from sdegen.core.errors import InvalidInputError

HEAD = ("evaluations", "Frechet, pixels", "Frechet, features", "class right", "nearest training image")


def nearest(x: torch.Tensor, train: sg.data.Images) -> float:
    """The distance to the nearest training image, the median over x."""
    far = [torch.cdist(part.flatten(1), train.images.flatten(1)).min(1).values for part in x.split(100)]
    return float(torch.cat(far).median())


def spread(images: sg.data.Images, n: int) -> sg.data.Images:
    return images.only(torch.linspace(0, len(images) - 1, min(n, len(images))).round().long())


def measure(title: str, model: sg.Denoiser, train: sg.data.Images, held_out: sg.data.Images, runs, n: int) -> None:
    """A row for the floor, for each run and for the held-out images themselves."""
    features = sg.metrics.train_classifier(spread(train, 20_000).images, spread(train, 20_000).labels)
    near, y, real = spread(train, 10_000), held_out.images, spread(train, n)

    def row(name: str, x: torch.Tensor, labels: torch.Tensor, nfe: float | None) -> list:
        distances = [sg.metrics.frechet_distance(x, y), sg.metrics.frechet_distance(features(x), features(y))]
        shown = [f"{d:.3f} ({d / f:.2f})" if floor else f"{d:.3f}" for d, f in zip(distances, floor or distances)]
        right = f"{100 * features.accuracy(x, labels):.1f} %"
        if not floor:
            floor.extend(distances)
        return [name, "" if nfe is None else f"{nfe:.0f}", *shown, right, f"{nearest(x, near):.2f}"]

    floor: list[float] = []
    rows = [row(f"{len(real)} training images: the floor", real.images, real.labels, None)]
    rows[0][-1] = "0"
    for solver, steps in runs:
        labels = spread(held_out, n).labels if len(held_out) >= n else real.labels
        found = sg.sample(model, n, label=labels, solver=solver, steps=steps, seed=0, batch_size=250, progress=True)
        rows.append(row(solver, found.x, labels, float(found.nfe.double().mean())))
    right = f"{100 * features.accuracy(y, held_out.labels):.1f} %"
    rows.append([f"the {len(y)} held-out images", "", "", "", right, f"{nearest(y, near):.2f}"])
    print(table([f"{title} (times the floor)", *HEAD], rows), flush=True)


def digits(quick: bool) -> None:
    train, held_out = sg.data.images.digits("train"), sg.data.images.digits("held-out")
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.UNet(1, n_classes=10), sg.VPSDE(), parametrization="edm")
    steps = 5 if quick else 1200
    sg.fit(model, train.images, label=train.labels, steps=steps, batch_size=128, lr=2e-3, seed=0)
    runs = (("auto", 20), ("d-adams2-sde", 50), ("ancestral", 50))
    measure("8x8 digits", model, train, held_out, runs, 50 if quick else 1000)


def fashion(quick: bool, source: str) -> None:
    try:
        train, held_out = (sg.data.load_images(source, split=part) for part in ("train", "held-out"))
    except InvalidInputError as error:
        print(f"Fashion-MNIST is left out: {error}")
        return
    n = 50 if quick else 1000
    runs = (("auto", 10), ("auto", 20), ("d-adams2-sde", 30), ("d-adams2-sde", 50))
    measure("Fashion-MNIST, the model of the package", sg.load("fashion"), train, spread(held_out, n), runs, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps and samples, to see that it runs")
    parser.add_argument("--fashion", default="fashion-mnist", help="its folder, where it is not where Debian puts it")
    chosen = parser.parse_args()
    quick = chosen.quick
    torch.set_num_threads(1)
    digits(quick)
    fashion(quick, chosen.fashion)
    if not quick:
        write(
            "images", "Samples of small networks", "Frechet distances to held-out images; a row's floor is the first."
        )


if __name__ == "__main__":
    main()
