"""Checkpoint folders: written beside and renamed, sealed by a manifest, verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    InvalidInputError,
    shortened,
    warn,
)
from ..core.files import as_path, cure, replacing, sha256_of, write_synced
from ..core.shards import whole
from ..core.team import Team
from .parts import Like, plain, read_parts, write_parts

T = TypeVar("T")

VERSION = 1

MANIFEST, STATE = "manifest.json", "state.json"

_FORMAT = "sdegen checkpoint"

_FILE = re.compile(r"[a-z]+(-\d{5})?\.(safetensors|json)")

READ_BY_PEOPLE = ("README.md", ".gitattributes")  # may lie in a checkpoint's folder, and are changed at will
_STEP = re.compile(r"step-\d+")

MAX_BYTES = 1 << 22  # of JSON, which Python makes up to thirty times as much of in memory
_MOST_MANIFEST = 1 << 20  # bytes


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint folder of `<name>.safetensors` files and a JSON state, atomically.

    Args:
        path: the folder.
        tensors: by the names of their files, and their own.
        state: as JSON has it.
        beside: texts of files in `READ_BY_PEOPLE`, which are not sealed; those of a checkpoint that is replaced stay.

    Raises:
        InvalidInputError: `path` holds something that is no checkpoint, or a tensor that is sparse or of a dtype that
            safetensors has not.
        CheckpointError: the files could not be written.
    """
    place = as_path(path)
    text = json.dumps(state, allow_nan=False).encode()
    try:
        with replacing(place, _check_replaceable) as fresh:
            fresh.mkdir()
            for name, content in _beside(place, beside or {}).items():
                write_synced(fresh / name, [content])
            entries = {STATE: _entry(write_synced(fresh / STATE, [text]))}
            for name, group in tensors.items():
                file = f"{name}.safetensors"
                entries[file] = _entry(write_synced(fresh / file, _packed(group)))
            write_synced(fresh / MANIFEST, [_manifest(entries)])
    except OSError as error:
        raise _unwritten(place, error) from error


def _beside(place: Path, texts: Mapping[str, str]) -> dict[str, bytes]:
    """What people read in a checkpoint's folder: as it is there, and as it is given."""
    there = {name: (place / name).read_bytes() for name in READ_BY_PEOPLE if (place / name).is_file()}
    return {**there, **{name: text.encode() for name, text in texts.items()}}


def read(
    path: str | os.PathLike, names: Iterable[str], *, also: Iterable[str] = (), max_bytes: int = MAX_BYTES
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The named tensors and the state of a checkpoint folder, after every file of it was verified.

    Args:
        path: the folder.
        names: of the groups of tensors.
        also: of groups that come with them where they are part of it.
        max_bytes: of its JSON: the state, and the header of each file of tensors. Python makes up to thirty times as
            much of it in memory, so a file that lies is refused before that.

    Raises:
        CorruptCheckpointError: bytes on disk are not the bytes that were written.
        IncompatibleCheckpointError: another version, or a file that this one needs is not part of it.
        CheckpointError: it cannot be read.
    """
    path = as_path(path)
    try:
        files = _verified(path, max_bytes)
        groups = {name: f"{name}.safetensors" for name in names}
        parts = {name: [path / file for file in sorted(files) if _is_part(file, name)] for name in names}
        for file in (STATE, *(groups[name] for name in names if not parts[name])):
            if file not in files:
                raise IncompatibleCheckpointError(f"the checkpoint {path} has no {file}")
        groups |= {name: f"{name}.safetensors" for name in also if f"{name}.safetensors" in files}
        state = _parsed((path / STATE).read_bytes(), path / STATE)
        return {name: _joined(parts.get(name) or [path / file], max_bytes) for name, file in groups.items()}, state
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"the checkpoint {path} is not whole: {error}") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}: {cure(error)}") from error


def write_together(
    path: str | os.PathLike,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    team: Team,
    *,
    in_parts: Sequence[str] = (),
    beside: Mapping[str, str] | None = None,
) -> None:
    """`write` where tensors are sharded over processes, which all have to call it, and share a disk.

    The groups of tensors named in `in_parts` are kept in one file for each process, all others whole.

    Raises:
        As `write`, in every process.
    """
    place, text = as_path(path), json.dumps(state, allow_nan=False).encode()
    entries: dict[str, Any] = {}
    with ExitStack() as stack:

        def begun() -> Path:
            fresh = stack.enter_context(replacing(place, _check_replaceable))
            fresh.mkdir()
            for name, content in _beside(place, beside or {}).items():
                write_synced(fresh / name, [content])
            entries[STATE] = _entry(write_synced(fresh / STATE, [text]))
            return fresh

        try:
            fresh = team.from_leader(begun)
            for name, group in tensors.items():
                if name in in_parts:
                    files = write_parts(fresh, name, group, team)
                    entries |= {
                        file.name: _entry((file.stat().st_size, sha256_of(file))) for file in files if team.leads
                    }
                else:
                    entries[f"{name}.safetensors"] = _gathered(fresh / f"{name}.safetensors", group, team)
            team.from_leader(lambda: (write_synced(fresh / MANIFEST, [_manifest(entries)]), stack.close()))
        except OSError as error:
            raise _unwritten(place, error) from error


def _gathered(file: Path, group: Mapping[str, Tensor], team: Team) -> Any:
    """Write a file of tensors that are gathered one at a time; only the leader keeps them."""
    pieces, failure = _packed(group), None
    entry: Any = None
    try:
        entry = _entry(write_synced(file, pieces)) if team.leads else None
    except OSError as error:
        failure = error
    for _ in pieces:  # the other processes gather all of them
        pass
    team.from_leader(lambda: _raised(failure))
    return entry


def _raised(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def read_sharded(path: str | os.PathLike, names: Sequence[str], like: Like) -> dict[str, Tensor]:
    """The named groups of a checkpoint that was verified, each process its parts of them; all have to call it."""
    path = as_path(path)
    files = [p for p in sorted(path.glob("*.safetensors")) if any(p.stem == n or _is_part(p.name, n) for n in names)]
    return read_parts(files, like, alone=False)


def statistics_of(path: Path) -> dict[str, Tensor]:
    """What a model's file says of the data, without its weights."""

    def like(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        return None if name.startswith("net.") else plain(name, shape, dtype)

    return read_parts([path / "model.safetensors"], like, alone=True)


def steps(run: str | os.PathLike) -> list[Path]:
    """The checkpoints `step-<n>` of a run folder, oldest first.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    try:
        found = [p for p in Path(run).iterdir() if _STEP.fullmatch(p.name)] if Path(run).is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{run} cannot be read: {error}") from error
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def newest(
    run: str | os.PathLike, names: Sequence[str], *, also: Sequence[str] = (), max_bytes: int = MAX_BYTES
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """What `read` gives for the newest valid checkpoint of a run folder; a warning says which ones it skipped, and why.

    None if there are no checkpoints at all.

    Raises:
        CorruptCheckpointError: there are checkpoints, but none is valid.
    """
    return _newest(run, lambda path: read(path, names, also=also, max_bytes=max_bytes))


def newest_path(run: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> tuple[Path, dict[str, Any]] | None:
    """Path and state of the newest valid checkpoint, as `newest`."""
    return _newest(run, lambda path: (path, read(path, (), max_bytes=max_bytes)[1]))


def _newest(run: str | os.PathLike, take: Callable[[Path], T]) -> T | None:
    skipped: list[str] = []
    for path in reversed(steps(run)):
        try:
            found = take(path)
        except CheckpointError as error:
            skipped.append(f"{path.name}: {error}")
            continue
        if skipped:
            warn(f"using {path}; skipped {'; '.join(skipped)}", RuntimeWarning)
        return found
    if skipped:
        raise CorruptCheckpointError(f"no checkpoint in {run} is valid: {'; '.join(skipped)}")
    return None


def _unwritten(place: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"could not write the checkpoint {place}: {error}. What was there before is unharmed; {cure(error)}, and save "
        "again"
    )


def _entry(written: tuple[int, str]) -> dict[str, Any]:
    return {"bytes": written[0], "sha256": written[1]}


def _manifest(entries: Mapping[str, Any]) -> bytes:
    body = {"format": _FORMAT, "version": VERSION, "files": entries}
    return _sealed({**body, "seal": _seal(body)})


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest, so that a change of any byte shows."""
    return json.dumps(manifest, sort_keys=True, indent=1).encode()


def _verified(path: Path, max_bytes: int) -> dict[str, Any]:
    """The files that the manifest lists, once size and hash of each were found right."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}")
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise CorruptCheckpointError(f"{path} has no {MANIFEST}: it is no checkpoint, or not a whole one")
    if (size := manifest_path.stat().st_size) > _MOST_MANIFEST:
        raise CorruptCheckpointError(f"{manifest_path} has {size} bytes, more than any manifest")
    raw = manifest_path.read_bytes()
    manifest = _parsed(raw, manifest_path)
    body = {key: value for key, value in manifest.items() if key != "seal"}
    if manifest.get("seal") != _seal(body) or _sealed(manifest) != raw:
        raise CorruptCheckpointError(f"{manifest_path} was changed after it was written")
    if (body.get("format"), body.get("version")) != (_FORMAT, VERSION):
        what = f"{shortened(body.get('format'))} of version {shortened(body.get('version'))}"
        raise IncompatibleCheckpointError(f"{path} is {what}: expected version {VERSION}")
    files = body.get("files")
    if not isinstance(files, dict) or not all(_FILE.fullmatch(name) for name in files):
        raise CorruptCheckpointError(f"{manifest_path} lists no files, or names that no checkpoint has")
    for name, entry in files.items():
        _verify(path / name, entry, max_bytes)
    return files


def _verify(file: Path, entry: Any, max_bytes: int) -> None:
    if not file.is_file():
        raise CorruptCheckpointError(f"{file} is missing")
    size = file.stat().st_size
    if not isinstance(entry, dict) or size != entry.get("bytes"):
        raise CorruptCheckpointError(f"{file}: got {size} bytes, the manifest has {shortened(entry)}")
    if file.suffix == ".json" and size > max_bytes:
        raise _too_large(file, f"{size} bytes of JSON", max_bytes)
    digest = sha256_of(file)
    if digest != entry.get("sha256"):
        raise CorruptCheckpointError(f"{file} was changed after it was written (its SHA-256 is another)")


def _too_large(file: Path, what: str, max_bytes: int) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{file} has {what}, more than max_bytes={max_bytes}: if it is from a source that you trust, pass a larger one"
    )


def _parsed(raw: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{file} holds a {type(value).__name__}, expected an object")
    return value


def _check_header(file: Path, max_bytes: int) -> None:
    with open(file, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > max_bytes:
        raise _too_large(file, f"a header of {header} bytes", max_bytes)


def _is_part(file: str, name: str) -> bool:
    """Whether a file has what one of several processes kept of a group."""
    return re.fullmatch(rf"{name}-\d{{5}}\.safetensors", file) is not None


def _joined(files: Sequence[Path], max_bytes: int) -> dict[str, Tensor]:
    """The tensors of a file, or of the parts that several processes wrote."""
    for file in files:
        _check_header(file, max_bytes)
    try:
        return safetensors.torch.load_file(files[0]) if len(files) == 1 else read_parts(files, plain, alone=True)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{files[0]} is no safetensors file: {error}") from error


def _packed(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """A safetensors file in pieces, its header and then every tensor: what safetensors.torch.save gives, never whole.

    Tensors that share memory become separate, others are not copied but to move them to the CPU or into one piece.
    """
    header = _header(tensors)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in header:
        yield _raw(tensors[name])


def _header(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """By name, in the order of the file: dtype, shape, and the bytes where the data start and end.

    safetensors says what it calls the dtypes and how it sorts: this is its own header for empty tensors, with shapes.
    """
    if bad := [name for name, value in tensors.items() if value.layout != torch.strided]:
        raise InvalidInputError(f"sparse tensors cannot be saved ({', '.join(bad[:4])}): make them dense")
    try:
        packed = safetensors.torch.save(
            {name: torch.empty(0, dtype=value.dtype, device="cpu") for name, value in tensors.items()}
        )
        safetensors.torch.load(packed)
    except KeyError as error:
        raise InvalidInputError(f"safetensors cannot keep tensors of {error}: convert them to another dtype") from error
    header, end = json.loads(packed[8:]), 0
    for name, entry in header.items():
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    return header


def _raw(value: Tensor) -> memoryview:
    """(bytes,) the elements in a row, little-endian; a view of the tensor's own memory where that is what it holds."""
    value = whole(value).detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    value = torch.view_as_real(value) if value.is_complex() else value
    row = value.as_strided((value.numel(),), (1,))  # of one number the stride may be anything
    numbers = row.view(torch.uint8).numpy().view(f"u{value.element_size()}")
    return numbers.astype(f"<{numbers.dtype.str[1:]}", copy=False).view(np.uint8).data


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    others = (
        [p.name for p in path.iterdir() if not _FILE.fullmatch(p.name) and p.name not in READ_BY_PEOPLE]
        if path.is_dir()
        else [path.name]
    )
    if others or (any(path.iterdir()) and not (path / MANIFEST).exists()):
        raise InvalidInputError(
            f"{path} is there and is no checkpoint ({', '.join(others[:3]) or 'no manifest'}): it would be replaced. "
            "Pass the name of a new folder"
        )
