"""Build emoji.npz: some 1,900 named colour pictures, each drawn by two artists, for text, translation and the like.

npm pack emoji-datasource-google@16.0.0     # 74 MB, Noto Color Emoji: Apache-2.0
npm pack emoji-datasource-twitter@16.0.0    # 62 MB, Twemoji: CC-BY 4.0; names and categories: MIT
python examples/emoji_data.py --size 32 --out emoji.npz

Nothing is downloaded here, and nothing of the packages is run: two archives are read. The file holds, a row for each
emoji: noto and twemoji (N, S, S, 3), uint8 on white; names and categories; code_points; held_out, every eighth, for
both artists alike. Skin tones are left out: they would be the same picture on both sides of the split. And for scripts
that take images with classes, both artists' pictures one after the other, with the number of their category:

    data = sg.data.load_images("emoji.npz", split="held-out")
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import sdegen as sg

ARTISTS = {"noto": "google", "twemoji": "twitter"}  # the names in emoji.npz, and in the packages
LICENCES = {
    "noto": "Noto Color Emoji, Google: Apache License 2.0",
    "twemoji": "Twemoji, Twitter and contributors: CC-BY 4.0, which asks to be named where pictures are shown",
    "names and categories": "emoji-datasource, Cal Henderson: MIT",
}


def archive(folder: Path, artist: str) -> Path:
    """The package of an artist, or how to get it."""
    package = f"emoji-datasource-{ARTISTS[artist]}"
    found = sorted(folder.glob(f"{package}-*.tgz"))
    if not found:
        sys.exit(f"there is no {package}-*.tgz in {folder.resolve()}: run `npm pack {package}@16.0.0` there")
    return found[-1]


def entries(path: Path) -> list[dict]:
    """What both artists have drawn, but for the bare skin tones, in the order of emoji keyboards."""
    with tarfile.open(path) as tar:
        found = json.load(member(tar, "package/emoji.json"))
    both = [e for e in found if e["has_img_google"] and e["has_img_twitter"] and e["category"] != "Component"]
    return sorted(both, key=lambda e: e["sort_order"])


def pictures(path: Path, artist: str, names: list[str], size: int) -> np.ndarray:
    """(N, size, size, 3) uint8, on white, in the order of these files' names."""
    wanted = {f"package/img/{ARTISTS[artist]}/64/{name}": i for i, name in enumerate(names)}
    found = np.zeros((len(names), size, size, 3), np.uint8)
    with tarfile.open(path) as tar:
        for entry in tar:  # in the archive's own order: it is compressed as a whole
            if entry.name in wanted:
                found[wanted.pop(entry.name)] = on_white(member(tar, entry.name), size)
    if wanted:
        sys.exit(
            f"{path} lacks {len(wanted)} pictures, such as {next(iter(wanted))}: take both packages of one version"
        )
    return found


def on_white(file: io.IOBase, size: int) -> np.ndarray:
    picture = Image.open(file).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(ground, picture).convert("RGB")
    return np.asarray(flat.resize((size, size), Image.Resampling.BOX if size < 64 else Image.Resampling.LANCZOS))


def member(tar: tarfile.TarFile, name: str) -> io.IOBase:
    file = tar.extractfile(name)
    if file is None:
        sys.exit(f"{tar.name} has no {name}: is it a package of emoji-datasource?")
    return io.BytesIO(file.read())


def stand_in(folder: Path, n: int = 40) -> None:
    """Two packages of the same form with digits in two colours, for a trial."""
    digits = sg.data.images.digits("train")
    names = [f"{i:04x}.png" for i in range(n)]
    told = [
        {"name": f"DIGIT {digits.labels[i]}", "unified": f"{i:04X}", "image": name, "category": "Digits"}
        | {"sort_order": i, "has_img_google": True, "has_img_twitter": True}
        for i, name in enumerate(names)
    ]
    for artist, colour in (("google", (255, 120, 0)), ("twitter", (0, 90, 255))):
        files = {"package/emoji.json": json.dumps(told).encode()}
        for i, name in enumerate(names):
            ink = np.uint8((digits.images[i, 0].numpy() + 1) * 127.5)
            flat = np.dstack([*(np.full_like(ink, c) for c in colour), ink])
            Image.fromarray(flat).save(file := io.BytesIO(), "png")
            files[f"package/img/{artist}/64/{name}"] = file.getvalue()
        with tarfile.open(folder / f"emoji-datasource-{artist}-0.tgz", "w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path(), help="the folder that has both .tgz")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("emoji.npz"))
    parser.add_argument("--smoke", action="store_true", help="digits in two colours, in place of the packages")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as trial:
        if args.smoke:
            args.packages = Path(trial)
            stand_in(args.packages)
        archives = {artist: archive(args.packages, artist) for artist in ARTISTS}
        told = entries(archives["twemoji"])
        files = [e["image"] for e in told]
        drawn = {artist: pictures(path, artist, files, args.size) for artist, path in archives.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    held_out = np.arange(len(told)) % 8 == 7
    kinds = np.unique([e["category"] for e in told], return_inverse=True)[1]
    parts = {"train": ~held_out, "test": held_out}
    images = {f"x_{part}": np.concatenate([drawn[artist][rows] for artist in ARTISTS]) for part, rows in parts.items()}
    labels = {f"y_{part}": np.tile(kinds[rows], len(ARTISTS)) for part, rows in parts.items()}
    np.savez_compressed(
        args.out,
        **drawn,
        **images,
        **labels,
        names=np.array([(e["name"] or e["short_name"]).lower() for e in told]),
        categories=np.array([e["category"] for e in told]),
        code_points=np.array([e["unified"] for e in told]),
        held_out=held_out,
    )
    shown = torch.from_numpy(np.stack([drawn[artist][:: max(1, len(told) // 16)][:16] for artist in ARTISTS]))
    rows = shown.flatten(0, 1).permute(0, 3, 1, 2) / 127.5 - 1
    picture = args.out.with_suffix(".png")
    sg.plot.save(sg.plot.image_grid(rows, nrow=shown.shape[1]), picture)

    for category, n in Counter(e["category"] for e in told).most_common():
        print(f"{category:20}{n:6}")
    print(f"{'all':20}{len(told):6}, {held_out.sum()} of them held out")
    for what, licence in LICENCES.items():
        print(f"{what}: {licence}")
    print(f"wrote {args.out} and {picture}")


if __name__ == "__main__":
    main()
