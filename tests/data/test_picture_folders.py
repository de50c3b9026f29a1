"""Folders of pictures: classes, order, several pictures in a file, depths, and what is kept of them."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdegen.core.errors import InvalidInputError
from sdegen.data import Images, cache, load_images
from sdegen.data.folder import natural

ROOT = Path(__file__).parents[2]


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder


def read(source, **options) -> tuple[Images, list[str]]:
    """The images, and what was said."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        images = load_images(source, progress=False, **options)
    return images, [str(w.message) for w in told]


def grey(images: Images) -> np.ndarray:
    """The bytes 0 .. 255 of images of one channel."""
    return ((images.images[:, 0] + 1) * 127.5).round().numpy().astype(np.uint8)


# classes and their order


def test_pictures_beside_the_folders_of_classes_have_none(tmp_path: Path) -> None:
    """Every other picture keeps its label; how many have none, and which, is said."""
    names = ["cat/0.png", "cat/1.png", "dog/0.png", "preview.png", "a.png"]
    write(tmp_path, {name: bytes_of(4, 4, seed=i) for i, name in enumerate(names)})
    images, told = read(tmp_path)
    of = {
        name: int(images.labels[np.argmax((grey(images) == bytes_of(4, 4, seed=i)).all((1, 2)))])
        for i, name in enumerate(names)
    }  # type: ignore[index]
    assert of == {"cat/0.png": 0, "cat/1.png": 0, "dog/0.png": 1, "preview.png": -1, "a.png": -1}
    assert images.classes == ("cat", "dog") and images.n_classes == 2
    assert len(told) == 1 and "2 pictures lie beside" in told[0] and "a.png, preview.png" in told[0]
    (tmp_path / "a.png").unlink(), (tmp_path / "preview.png").unlink()
    assert read(tmp_path)[1] == []


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in (1, 2, 10, 11) for i in (1, 3, 20)]
    write(tmp_path, {name: np.full((2, 2), 10 * k, np.uint8) for k, name in enumerate(names)})
    images, _ = read(tmp_path)
    assert images.classes == ("1", "2", "10", "11")
    assert images.labels is not None and images.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert grey(images)[:, 0, 0].tolist() == [10 * k for k in range(12)]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_names_is_one(seed: int) -> None:
    """Names that differ have keys that differ, whatever mixture of words, zeros and digits; the list's order is no matter."""
    rng = np.random.default_rng(seed)
    names = sorted({"".join(rng.choice(list("a0179/_."), 6)) for _ in range(300)})
    wanted = sorted(names, key=natural)
    assert sorted(rng.permutation(names).tolist(), key=natural) == wanted
    assert len({repr(natural(name)) for name in names}) == len(names)


def test_names_of_classes_go_with_the_labels_they_name(tmp_path: Path) -> None:
    write(tmp_path, {f"{c}/{i}.png": bytes_of(2, 2) for c in "ab" for i in range(2)})
    assert read(tmp_path)[0].classes == ("a", "b")
    for labels in ([0, 5, 6, 7], False):
        assert read(tmp_path, labels=labels)[0].classes is None
    assert read(tmp_path, labels=[0, 5, 6, 7])[0].n_classes == 8


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """Its pictures would be missing without a word."""
    write(tmp_path, {f"{c}/1.png": bytes_of(2, 2) for c in "abc"})
    (tmp_path / "b").chmod(0)
    try:
        if os.access(tmp_path / "b", os.R_OK):
            pytest.skip("root may open everything")
        with pytest.raises(InvalidInputError, match=r"b cannot be opened: Permission"):
            load_images(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


# several pictures in a file


@pytest.mark.parametrize("ending", ["tif", "gif", "webp", "png"])
def test_every_picture_of_a_file_counts(ending: str, tmp_path: Path) -> None:
    """In their order, between those of the files before and after, with the class of their folder; and it is said."""
    frames = [np.full((8, 8), 40 * k, np.uint8) for k in range(5)]
    (tmp_path / "b").mkdir()
    images = [Image.fromarray(f) for f in frames]
    images[0].save(
        tmp_path / "b" / f"2.{ending}",
        save_all=True,
        append_images=images[1:],
        **({"lossless": True} if ending == "webp" else {}),
    )
    write(tmp_path, {"a/1.png": np.full((8, 8), 70, np.uint8), "b/10.png": np.full((8, 8), 90, np.uint8)})
    found, told = read(tmp_path, channels=1)
    assert grey(found)[:, 3, 3].tolist() == [70, 0, 40, 80, 120, 160, 90]
    assert found.labels is not None and found.labels.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert len(told) == 1 and f"b/2.{ending}: 5" in told[0] and "frames='first'" in told[0]
    labels = np.arange(7)
    assert torch.equal(read(tmp_path, channels=1, labels=labels, cache=tmp_path / "kept")[0].labels, torch.arange(7))  # type: ignore[arg-type]
    first, told = read(tmp_path, channels=1, frames="first")
    assert grey(first)[:, 3, 3].tolist() == [70, 0, 90] and told == []


def test_pages_of_a_stack_that_are_smaller_copies_are_no_pictures(tmp_path: Path) -> None:
    """A pyramid has one picture; pages that differ in size otherwise are told as pictures that do."""
    large, small = Image.fromarray(bytes_of(8, 8)), Image.fromarray(bytes_of(4, 4))
    large.save(tmp_path / "1.tif", save_all=True, append_images=[small])
    with pytest.raises(InvalidInputError, match=r"1.tif\[0\] is 8x8, 1.tif\[1\] 4x4"):
        load_images(tmp_path)
    small.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
    large.save(tmp_path / "1.tif", save_all=True, append_images=[small])
    assert grey(read(tmp_path)[0]).shape == (1, 8, 8)


def test_a_damaged_page_is_named_alone(tmp_path: Path) -> None:
    pages = [Image.fromarray(bytes_of(64, 64, seed=k)) for k in range(3)]
    pages[0].save(tmp_path / "1.tif", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    with Image.open(tmp_path / "1.tif") as image:
        image.seek(1)
        at = image.tag_v2[273][0]
    content = bytearray((tmp_path / "1.tif").read_bytes())
    content[at : at + 200] = bytes(200)
    (tmp_path / "1.tif").write_bytes(content)
    found, told = read(tmp_path, corrupt="skip", labels=[5, 6, 7])
    assert np.array_equal(grey(found), np.stack([bytes_of(64, 64, seed=k) for k in (0, 2)]))
    assert found.labels is not None and found.labels.tolist() == [5, 7] and "1.tif[1]" in told[0]


# depths


RAMP = np.arange(64).reshape(8, 8)


@pytest.mark.parametrize("kind", ["pictures", "array"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_that_are_used_decide_what_white_is(bits: int, kind: str, tmp_path: Path) -> None:
    """A ramp to 2^b - 1 in 16 bits comes out as the same ramp for every b, and whoever assumes a depth says so."""
    white = 2**bits - 1
    values = np.round(RAMP * white / 63).astype(np.uint16)
    source = values[None] if kind == "array" else write(tmp_path, {"1.png": values, "2.tif": values})
    found, told = read(source)
    torch.testing.assert_close(
        found.images[0, 0], torch.from_numpy(RAMP / 31.5 - 1).float(), atol=1.5 / min(white, 255), rtol=0
    )
    assert len(told) == (bits < 16) and all(f"taken as {2**bits} levels" in note for note in told)
    said, told = read(source, levels=2**bits)
    assert torch.equal(said.images, found.images) and told == []
    dark, told = read(source, levels=65536)
    assert told == [] and float(dark.images.max()) == pytest.approx(2 * white / 65535 - 1, abs=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["pictures", "array"])
def test_masks_of_0_and_1_are_black_and_white(dtype: type, kind: str, tmp_path: Path) -> None:
    mask = (RAMP > 20).astype(dtype)
    found, told = read(mask[None] if kind == "array" else write(tmp_path, {"1.png": mask}))
    assert np.array_equal(found.images[0, 0].numpy(), np.where(RAMP > 20, 1, -1))
    assert len(told) == 1 and "taken as 2 levels" in told[0]
    assert read(np.zeros((2, 4, 4), dtype))[1] == []  # all black may be


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (8, 8, 4)])
def test_other_small_values_are_told_and_levels_decide(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Values up to 10 of 255: nothing is guessed; transparency is no brightness."""
    values = bytes_of(*shape) % 11
    values.flat[0] = 10
    if shape[2:] == (4,):
        values[..., 3] = 255
    source, options = write(tmp_path, {"1.png": values}), {"channels": 4 if shape[2:] == (4,) else None}
    dark, told = read(source, **options)
    assert len(told) == 1 and "nearly black: pass levels=11" in told[0]
    found, told = read(source, levels=11, **options)
    wanted = np.atleast_3d(np.floor(25.5 * values + 0.5)).transpose(2, 0, 1)
    if shape[2:] == (4,):
        wanted[3] = 255
    assert told == [] and np.array_equal(((found.images[0] + 1) * 127.5).round().numpy(), wanted)
    with pytest.raises(InvalidInputError, match=r"values go from 0 to 10, and \(0, 5\) are black and white"):
        load_images(source, levels=6, **options)
    assert not np.array_equal(dark.images, found.images)


def test_floating_pictures_have_a_told_range(tmp_path: Path) -> None:
    values = np.linspace(-2, 3, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "1.tif")
    with pytest.raises(InvalidInputError, match="no known range: pass value_range"):
        load_images(tmp_path)
    found, told = read(tmp_path, value_range=(-2, 3))
    torch.testing.assert_close(found.images[0, 0], torch.from_numpy(values * 0.4 - 0.2), atol=0.5 / 127, rtol=0)
    with pytest.raises(InvalidInputError, match="black below white"):
        load_images(tmp_path, value_range=(1, 1))


def test_parts_of_a_set_are_scaled_alike(tmp_path: Path) -> None:
    """The values of one part decide nothing: the other may have larger ones."""
    train, test = (
        (np.arange(64).reshape(1, 8, 8) * 65).astype(np.uint16),
        (np.arange(64).reshape(1, 8, 8)).astype(np.uint16),
    )
    np.savez(tmp_path / "x.npz", x_train=train, x_test=test)
    for split, values in (("train", train), ("held-out", test), ("all", np.concatenate([train, test]))):
        found, told = read(tmp_path / "x.npz", split=split)
        assert found.levels == 65536 and len(told) == 1 and "nearly black" in told[0]
        assert np.allclose(found.images[:, 0], values / 32767.5 - 1, atol=1e-6)


# one picture is no set


def test_one_picture_is_not_taken_for_many() -> None:
    for shape in ((20, 30, 3), (8, 8, 4)):
        with pytest.raises(InvalidInputError, match=r"one picture \(H, W, C\): a set of one is x\[None\]"):
            load_images(bytes_of(*shape))
        assert len(load_images(bytes_of(*shape)[None])) == 1 and len(load_images(bytes_of(*shape)[None]).images) == 1
        assert len(load_images(bytes_of(*shape), layout="channels-first")) == shape[0]
    found, told = read(bytes_of(3, 20, 30))
    assert len(found) == 3 and "taken as 3 grey images: one picture (C, H, W) is x[None]" in told[0]


# parts


def test_a_part_that_would_be_empty_is_told() -> None:
    labels = np.arange(12) // 2
    with pytest.raises(
        InvalidInputError, match="no class has 3 images, so held_out_every=3 holds none out: pass a smaller"
    ):
        load_images(bytes_of(12, 4, 4), labels=labels, split="held-out", held_out_every=3)
    with pytest.warns(RuntimeWarning, match="no class has 3 images"):
        assert len(load_images(bytes_of(12, 4, 4), labels=labels, held_out_every=3)) == 12


# kept pictures


def damages(array: Path, listed: Path) -> dict[str, object]:
    """What can befall two files, by name."""
    content, words = bytearray(array.read_bytes()), listed.read_bytes()
    state = json.loads(words)

    def flipped(file: Path, at: int):
        def damage() -> None:
            changed = bytearray(file.read_bytes())
            changed[at] ^= 1
            file.write_bytes(changed)

        return damage

    def edited(**changes):
        return lambda: listed.write_text(json.dumps({**state, **changes}))

    found = {
        f"byte {at} of the array": flipped(array, at) for at in (0, 5, 40, 129, len(content) // 2, len(content) - 1)
    }
    found |= {f"byte {at} of the list": flipped(listed, at) for at in range(0, len(words), 7)}
    found |= {
        "fewer pictures": edited(kept=state["kept"][:5], files=state["files"][:5]),
        "another order": edited(kept=state["kept"][::-1]),
        "other labels": edited(files=[0] * len(state["files"])),
        "the digest of another array": edited(pixels="0" * 64),
        "no digest": lambda: listed.write_text(json.dumps({k: v for k, v in state.items() if k != "state"})),
        "a list of numbers": lambda: listed.write_text("[1, 2]"),
        "no JSON": lambda: listed.write_text("{"),
        "no list": listed.unlink,
        "an empty list": lambda: listed.write_bytes(b""),
        "no text": lambda: listed.write_bytes(b"\xff\xfe\x00"),
        "a nest": lambda: listed.write_text("[" * 100_000),
        "no array": array.unlink,
        "a truncated array": lambda: array.write_bytes(content[:300]),
        "an empty array": lambda: array.write_bytes(b""),
        "a longer array": lambda: array.write_bytes(content + b"x"),
    }
    return found


def test_whatever_befalls_kept_pictures_they_are_the_same_again(tmp_path: Path) -> None:
    """And it is said, once: the next call finds them whole. (Without a list they were never whole.)"""
    write(tmp_path / "set", {f"{c}/{i}.png": bytes_of(8, 8, seed=i) for c in "ab" for i in range(6)})
    wanted, _ = read(tmp_path / "set", cache=tmp_path / "kept")
    array, listed = next((tmp_path / "kept").glob("*.npy")), next((tmp_path / "kept").glob("*.json"))
    kinds = damages(array, listed)
    whole = array.read_bytes(), listed.read_bytes()
    for name, damage in kinds.items():
        array.write_bytes(whole[0]), listed.write_bytes(whole[1])
        damage()  # type: ignore[operator]
        found, told = read(tmp_path / "set", cache=tmp_path / "kept")
        assert torch.equal(found.images, wanted.images) and torch.equal(found.labels, wanted.labels), name  # type: ignore[arg-type]
        assert name == "no list" or [note for note in told if "damaged and made again" in note], name
        assert read(tmp_path / "set", cache=tmp_path / "kept")[1] == [], name
        assert sorted(p.suffix for p in (tmp_path / "kept").iterdir()) == [".json", ".lock", ".npy"], name


def test_kept_pictures_are_told_of_as_new_ones(tmp_path: Path) -> None:
    write(tmp_path / "set", {"1.png": (RAMP > 9).astype(np.uint8)})
    new, told = read(tmp_path / "set", cache=tmp_path / "kept")
    again, told_again = read(tmp_path / "set", cache=tmp_path / "kept")
    assert told == told_again and len(told) == 1 and torch.equal(new.images, again.images)
    assert float(read(tmp_path / "set", cache=tmp_path / "kept", levels=256)[0].images.max()) < -0.9


def test_a_link_to_nowhere_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "set", {"1.png": bytes_of(8, 8)})
    (tmp_path / "set" / "2.png").symlink_to(tmp_path / "nowhere")
    for options in ({}, {"cache": tmp_path / "kept"}):
        with pytest.raises(InvalidInputError, match="1 of 2 pictures cannot be read: 2.png"):
            load_images(tmp_path / "set", **options)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All room is reserved first: writing through a map to a full disk would kill the process."""
    write(tmp_path / "set", {f"{i}.png": bytes_of(8, 8, seed=i) for i in range(4)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InvalidInputError, match=r"kept' cannot be written .*No space left.*: free some space"):
        load_images(tmp_path / "set", cache=tmp_path / "kept")
    assert [p.suffix for p in (tmp_path / "kept").iterdir()] == [".lock"]
    monkeypatch.delattr(os, "posix_fallocate")
    assert np.array_equal(
        grey(load_images(tmp_path / "set", cache=tmp_path / "kept")), grey(load_images(tmp_path / "set"))
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        load_images(tmp_path / "set", cache=tmp_path / "file")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files")
def test_a_process_that_has_no_room_lives(tmp_path: Path) -> None:
    """With a real limit of the system in place of a full disk."""
    write(tmp_path / "set", {f"{i}.png": bytes_of(64, 64, seed=i) for i in range(40)})
    code = (
        "import resource, signal, sys; from sdegen.data import load_images; from sdegen.core.errors import SdegenError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: load_images(sys.argv[1], cache=sys.argv[2], progress=False)\n"
        "except SdegenError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and "cannot be written" in done.stdout, done.stderr


def test_all_bytes_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first portion too."""
    monkeypatch.setattr(cache, "_PORTION", 100)
    write(tmp_path / "set", {f"{i}.png": bytes_of(16, 16, seed=i) for i in range(3)})
    read(tmp_path / "set", cache=tmp_path / "kept")
    array = next((tmp_path / "kept").glob("*.npy"))
    content = bytearray(array.read_bytes())
    content[-50] ^= 4
    array.write_bytes(content)
    assert "made again" in read(tmp_path / "set", cache=tmp_path / "kept")[1][0]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_paths_is_that_of_their_words_and_numbers(seed):
    """As of lists of words and numbers, part by part; equal ones by the text."""

    def words(path: str) -> list:
        split = [re.split("([0-9]+)", part) for part in path.split("/")]
        return [
            ([int(w) if k % 2 else w for k, w in enumerate(ws)], p)
            for ws, p in zip(split, path.split("/"), strict=True)
        ]

    draws = random.Random(seed)
    for _ in range(200):
        parts = ["".join(draws.choices("a0129b-.Z é", k=draws.randint(1, 5))) for _ in range(60)]
        names = list({"/".join(draws.sample(parts, draws.randint(1, 3))) for _ in range(30)})
        assert sorted(names, key=natural) == sorted(names, key=words)


@pytest.mark.slow
def test_a_hundred_thousand_pictures_take_little_memory(tmp_path):
    """Listed, decoded into a cache of 19 MB and read from there: 2 kB a file at most, and 1 kB the second time."""
    for k in range(10):
        folder = tmp_path / "photos" / f"c{k}"
        folder.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(folder / "0.png")
        for i in range(1, 10_000):
            os.link(folder / "0.png", folder / f"{i}.png")
    code = (
        "import re, sys, pathlib, PIL.Image, sdegen as sg\n"
        "def peak(): return int(re.findall(r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[0])\n"
        "import sdegen.data.load, torch\n"
        "before = peak()\n"
        "images = sg.data.load_images(sys.argv[1] + '/photos', cache=sys.argv[1] + '/kept', progress=False)\n"
        "assert len(images) == 100_000 and images.n_classes == 10\n"
        "print(peak() - before)\n"
    )
    grown = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert grown[0] < 100_000 * 2.2 and grown[1] < 100_000 * 1.2, grown  # kB: 2 or 1 a file, and the pixels
