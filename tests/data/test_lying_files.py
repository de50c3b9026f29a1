"""Files that say more than they hold, hold more than they say, or unpack to more than memory: refused, in little memory."""

from __future__ import annotations

import gzip
import io
import resource
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdegen.core.errors import InvalidInputError
from sdegen.data import load_images
from sdegen.data.limits import LEAST

RATIO = LEAST * 8  # bytes of a bomb


def head(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def npz(path: Path, content: bytes, *, extra: int = 0, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive, archive.open("images.npy", "w") as stream:
        stream.write(content)
        for _ in range(extra // 2**24):
            stream.write(bytes(2**24))
    return path


def idx_head(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def gz(path: Path, content: bytes, *, extra: int = 0) -> Path:
    with gzip.open(path, "wb", 1) as stream:
        stream.write(content)
        for _ in range(extra // 2**24):
            stream.write(bytes(2**24))
    return path


def png(path: Path, width: int, height: int) -> Path:
    """A picture of nothing, unpacking to width x height x 3 bytes, written without having them."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def tall(folder: Path) -> Path:
    """A small animation of very many frames."""
    frame = Image.new("L", (1000, 1000))
    frame.save(
        folder / "1.gif", save_all=True, append_images=[Image.new("L", (1000, 1000), 1 + k % 2) for k in range(150)]
    )
    return folder


LIES = {
    "npz that says 1e15 bytes": lambda d: npz(d / "x.npz", head((10**9, 1, 1000, 1000)) + bytes(100)),
    "npz that says 1e30 elements": lambda d: npz(d / "x.npz", head((10**30, 1, 1)) + bytes(100)),
    "npz that says 1 GB of eights": lambda d: npz(d / "x.npz", head((2**27, 1, 1), "<f8") + bytes(100)),
    "npz that says less": lambda d: npz(d / "x.npz", head((4, 4, 4)) + bytes(1000)),
    "npz of nothing": lambda d: npz(d / "x.npz", head((RATIO // 2**20, 1024, 1024)), extra=RATIO),
    "npz with negative lengths": lambda d: npz(d / "x.npz", head((-1, 4, 4)) + bytes(100)),
    "npz of objects": lambda d: npz(d / "x.npz", head((4, 4, 4), "|O") + bytes(100)),
    "npz, stored, that says more": lambda d: npz(
        d / "x.npz", head((10**6, 28, 28)) + bytes(9), method=zipfile.ZIP_STORED
    ),
    "npy that says 1e15 bytes": lambda d: (
        (d / "x.npy").write_bytes(head((10**9, 1000, 1000)) + bytes(9)) and d / "x.npy"
    ),
    "idx.gz that says 4e9 x 4e9": lambda d: gz(d / "x-images-idx3-ubyte.gz", idx_head(2**32 - 1, 2**32 - 1, 1)),
    "idx.gz that says 1 GB": lambda d: gz(d / "x-images-idx3-ubyte.gz", idx_head(2**20, 32, 32)),
    "idx.gz that says 100 MB": lambda d: gz(d / "x-images-idx3-ubyte.gz", idx_head(100_000, 32, 32)),
    "idx.gz that holds more": lambda d: gz(d / "x-images-idx3-ubyte.gz", idx_head(4, 4, 4), extra=RATIO),
    "idx.gz of nothing": lambda d: gz(d / "x-images-idx3-ubyte.gz", idx_head(RATIO // 2**20, 1024, 1024), extra=RATIO),
    "idx that says 1 GB": lambda d: (
        (d / "x-images-idx3-ubyte").write_bytes(idx_head(2**20, 32, 32)) and d / "x-images-idx3-ubyte"
    ),
    "a picture of nothing": lambda d: png(d / "x.png", 9000, 9000).parent,
    "an animation of nothing": tall,
}


def most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in kB")
@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    """Named, whatever it is; within 300 MB more than the process has had (a bomb of the list unpacks to 1 GB)."""
    source = LIES[name](tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 8e6
    before = most_memory()
    with pytest.raises(InvalidInputError, match=r"x[.-]|1\.gif"):
        load_images(source, progress=False)
    assert most_memory() - before < 300


@pytest.mark.parametrize("kind", ["npz", "idx.gz", "picture"])
def test_max_bytes_decides(kind: str, tmp_path: Path) -> None:
    """What is unpacked, to the byte: one less is refused, and the message names the argument."""
    if kind == "picture":
        source, n = png(tmp_path / "x.png", 50, 40).parent, 50 * 40 * 3
    elif kind == "npz":
        source, n = npz(tmp_path / "x.npz", head((5, 10, 10)) + bytes(500)), 500
    else:
        source, n = gz(tmp_path / "x-images-idx3-ubyte.gz", idx_head(5, 10, 10) + bytes(500)), 500
    assert len(load_images(source)) in (1, 5) and len(load_images(source, max_bytes=n)) in (1, 5)
    with pytest.raises(InvalidInputError, match=f"unpacks to {n}, more than the {n - 1} allowed.*max_bytes="):
        load_images(source, max_bytes=n - 1)
    for wrong in (0, -1, 1.5, True, "1"):
        with pytest.raises(InvalidInputError, match="max_bytes="):
            load_images(source, max_bytes=wrong)  # type: ignore[arg-type]


def test_labels_that_lie(tmp_path: Path) -> None:
    (tmp_path / "y.npy").write_bytes(head((10**12,)) + bytes(9))
    gz(tmp_path / "y.idx.gz", idx_head(2**31))
    for name in ("y.npy", "y.idx.gz"):
        with pytest.raises(InvalidInputError, match=name):
            load_images(np.zeros((2, 4, 4), np.uint8), labels=tmp_path / name)


def test_more_than_the_machine_has(tmp_path: Path) -> None:
    """A size that nobody means is no endless wait."""
    png(tmp_path / "x.png", 50, 40)
    for source in (tmp_path, np.zeros((2, 4, 4), np.uint8)):
        with pytest.raises(InvalidInputError, match="GiB, more than this machine's"):
            load_images(source, size=10**7, progress=False)


@pytest.mark.parametrize("path", ["a" * 5000, "/".join(["ab"] * 3000), "x\0y", "", "\udcff"])
def test_paths_that_are_none(path: str) -> None:
    for call in (
        lambda: load_images(path or "/nowhere"),
        lambda: load_images(np.zeros((2, 4, 4), np.uint8), labels=path or "/nowhere"),
    ):
        with pytest.raises(InvalidInputError):
            call()
