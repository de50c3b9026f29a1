"""Checkpoints: what comes back is what went in, no damage passes, no crash loses both, nothing in a file runs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import sdegen
from sdegen import storage
from sdegen.core import files
from sdegen.core.errors import CheckpointError, CorruptCheckpointError, IncompatibleCheckpointError, InvalidInputError
from sdegen.distributions.mixture import GaussianMixture
from sdegen.models.denoiser import Denoiser
from sdegen.models.exact import MixtureModel
from sdegen.models.parametrization import Parametrization
from sdegen.nets import MLP, DiT, UNet
from sdegen.processes import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    LinearPathSDE,
    PathSDE,
    SubVPSDE,
    TabulatedVESDE,
    TabulatedVPSDE,
    TrigSDE,
)
from sdegen.storage.folders import read, write
from sdegen.storage.models import load, save

SDES = [
    VPSDE(0.2, 15.0, t_min=1e-4),
    SubVPSDE(),
    CosineSDE(),
    LinearPathSDE(),
    VESDE(),
    EDMSDE(0.01, 20.0),
    TrigSDE(0.7),
    TabulatedVPSDE(torch.linspace(1e-3, 0.2, 40)),
    TabulatedVESDE(torch.logspace(-2, 1, 20)),
]


class Own(nn.Module):
    """A network of a user's, with a tied weight."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(d, d), nn.Linear(d, d)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.b(self.a(x)) * t[:, None]


def name(value: object) -> str:
    return type(value).__name__


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that are nowhere zero, so that two networks differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 4)
    return net


def small(seed: int = 0, sde: SDE | None = None, **words) -> Denoiser:
    net = shaken(MLP(2, hidden=8, layers=1, embedding=4), seed)
    return Denoiser(net, sde or VPSDE(), data_mean=0.25, data_std=0.7, **words)


def assert_same(a: Denoiser, b: Denoiser, event=(2,)) -> None:
    x = torch.randn(5, *event)
    t = torch.linspace(a.sde.t_min, a.sde.t_max, 5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(a(x, t).x0, b(x, t).x0)
        assert torch.equal(a(x, t).noise, b(x, t).noise)


def same_weights(model: Denoiser, other: Denoiser) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(*map(torch.nan_to_num, (ours[k], theirs[k]))) for k in ours)


# ---- what comes back


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("parametrization", ["x0", "noise", "score", "v", "velocity", "edm"])
def test_a_model_comes_back_to_the_bit(tmp_path, sde, parametrization):
    narrow = sde.narrowed(sde.t_min + 0.1 * (sde.t_max - sde.t_min), sde.t_max)
    model = small(sde=narrow, parametrization=parametrization)
    model.event_shape = (2,)
    save(model, tmp_path / "model")
    back = load(tmp_path / "model", device="cpu")
    assert_same(model, back)
    assert type(back.sde) is type(sde) and (back.sde.t_min, back.sde.t_max) == (narrow.t_min, narrow.t_max)
    assert back.event_shape == (2,) and back.parametrization == parametrization and not back.training
    assert torch.equal(back.data_mean, model.data_mean) and torch.equal(back.data_std, model.data_std)
    assert back.data_std.dtype == torch.float64


@pytest.mark.parametrize(
    "net",
    [
        MLP((1, 4, 4), hidden=8, n_classes=2, label_dropout=0.1),
        UNet(1, channels=8, patch=2, skip_rescale=True, token_channels=3, attention=(0,), dropout=0.2),
        UNet(1, channels=8, n_classes=4, label_dropout=0.2),
        DiT(1, hidden=8, depth=1, heads=2, n_classes=2),
    ],
    ids=name,
)
def test_every_network_is_rebuilt(net: nn.Module, tmp_path: Path) -> None:
    model = Denoiser(shaken(net), VPSDE(), data_mean=0.1, data_std=0.5).eval()
    save(model, tmp_path / "m")
    again = load(tmp_path / "m", device="cpu")
    x = torch.randn(3, 1, 4, 4)
    assert isinstance(again, Denoiser) and again.net.config == net.config
    assert torch.equal(again(x, 0.4).x0, model(x, 0.4).x0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_other_networks_dtypes_and_statistics(tmp_path, dtype):
    net = shaken(UNet(1, channels=8, multipliers=(1, 2), n_classes=3).to(dtype))
    model = Denoiser(net, EDMSDE(), data_std=torch.full((1, 4, 4), 0.3))
    save(model, tmp_path / "m")
    back = load(tmp_path / "m", device="cpu")
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert back.data_mean is None and torch.equal(back.data_std, model.data_std) and back.event_shape is None
    assert_same(model.eval(), back, (1, 4, 4))


def test_own_networks_and_processes_are_passed_to_load(tmp_path):
    sde = PathSDE(lambda t: 1 - t, lambda t: t, t_max=0.99)
    model = Denoiser(shaken(Own()), sde)
    save(model, tmp_path / "m")
    for words, says in (
        ({}, "PathSDE, is your own: load it with sde="),
        ({"sde": sde}, "Own, is your own: load it with net="),
        ({"net": Own(), "sde": PathSDE(lambda t: 1 - t, lambda t: 2 * t, t_max=0.99)}, "is not the process"),
        ({"net": Own(3), "sde": sde}, "weights are not those of this Own"),
        ({"net": MLP(2), "sde": sde}, "not in the network"),
        ({"net": Own().double(), "sde": sde}, "float64"),
    ):
        with pytest.raises(IncompatibleCheckpointError, match=says):
            load(tmp_path / "m", device="cpu", **words)
    net = Own()
    back = load(tmp_path / "m", net=net, sde=sde, device="cpu")
    assert back.net is net and net.a.weight is net.b.weight
    assert_same(model, back)


def test_what_cannot_be_saved_says_so(tmp_path):
    custom = Parametrization(*(lambda sde, t: torch.ones_like(t),) * 4)
    with pytest.raises(IncompatibleCheckpointError, match="has a name"):
        save(Denoiser(MLP(2), VPSDE(), parametrization=custom), tmp_path / "m")
    with pytest.raises(InvalidInputError, match="MixtureModel"):
        save(MixtureModel(GaussianMixture([[0.0, 0.0]], std=1.0), VPSDE()), tmp_path / "m")
    with pytest.raises(InvalidInputError, match="OnPath"):
        save(small().on(EDMSDE()), tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    mine = tmp_path / "results"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInputError, match=r"thesis\.tex"):
        save(small(), mine)
    (mine / "thesis.tex").rename(mine / "notes.json")  # a name we use too, but no manifest beside it
    with pytest.raises(InvalidInputError, match="no manifest"):
        save(small(), mine)
    with pytest.raises(InvalidInputError, match="no checkpoint"):
        save(small(), mine / "notes.json")
    assert (mine / "notes.json").read_text() == "years of work"


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    for seed in range(3):
        save(small(seed), tmp_path / "deep" / "m")
        assert same_weights(load(tmp_path / "deep" / "m", device="cpu"), small(seed))
        assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m"]


def test_tensors_of_any_dtype_and_state_come_back(tmp_path):
    tensors = {
        "model": {"x": torch.arange(3), "y": torch.randn(2, 2).T, "empty": torch.zeros(0, 4)},
        "training": {"rng": torch.get_rng_state(), "scalar": torch.tensor(1.5, dtype=torch.float64)},
    }
    write(tmp_path / "c", tensors, {"step": 7, "words": ["é", None]})
    back, state = read(tmp_path / "c", ["model", "training"])
    assert state == {"step": 7, "words": ["é", None]}
    for group, named in tensors.items():
        for key, value in named.items():
            assert torch.equal(back[group][key], value) and back[group][key].dtype == value.dtype


def test_files_are_those_of_safetensors_to_the_bit(tmp_path):
    """Every dtype it has, in every kind of memory; its own writer gets each tensor alone and in one piece."""
    floats = [getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")]
    floats += [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64]
    whole = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]
    bits = torch.randint(256, (6 * 8,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    tensors = {str(d): bits.view(d).clone().reshape(2, 3, -1) for d in (*floats, *whole)}
    tensors["torch.bool"] = bits > 99
    tensors |= {f"{name} transposed": value.transpose(0, -1) for name, value in tensors.items()}
    for d in (torch.bfloat16, torch.float32, torch.bool, torch.complex64):
        tensors |= {f"a number {d}": torch.tensor(1.5).to(d), f"nothing {d}": torch.zeros(3, 0, 2, dtype=d)}
    a = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    tensors |= {"a": a, "a again": a, "a's rows": a[1:3], "a's column": a[:, 2], "one for all": a[:1].expand(4, 6)}
    tensors |= {"channels last": a.reshape(1, 4, 3, 2).contiguous(memory_format=torch.channels_last)}
    tensors |= {"weight": nn.Parameter(a), 'é"\n\x01\x7f': a, "": a[0, 0]}
    z = torch.view_as_complex(a.reshape(4, 3, 2))
    tensors |= {"conjugate": z.conj(), "minus": z.conj().imag[0, 0]}
    file = tmp_path / "all.safetensors"
    size, digest = files.write_synced(file, storage.folders._packed(tensors))
    plain = {name: torch.empty(value.shape, dtype=value.dtype).copy_(value.detach()) for name, value in tensors.items()}
    data = safetensors.torch.save(plain)
    assert file.read_bytes() == data
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    back = safetensors.torch.load_file(file)
    assert back.keys() == tensors.keys()
    for name, value in plain.items():
        assert (back[name].dtype, back[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (back[name], value))), name
    files.write_synced(file, storage.folders._packed(dict(reversed(tensors.items()))))
    assert file.read_bytes() == data
    files.write_synced(file, storage.folders._packed({}))
    assert file.read_bytes() == safetensors.torch.save({}) and storage.folders._joined([file], 1 << 20) == {}


def test_tensors_that_safetensors_cannot_keep_are_refused(tmp_path):
    for value, says in (
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "F4"),
        (torch.eye(2).to_sparse(), r"sparse tensors cannot be saved \(x\)"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            write(tmp_path / "c", {"model": {"x": value}}, {})
    assert not any(tmp_path.iterdir())


MEMORY = """
import pathlib, re, sys, torch
from sdegen.storage import write

def largest():
    return int(re.search("VmHWM: *\\t? *([0-9]+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

write(sys.argv[1] + "/small", {"model": {"x": torch.zeros(3, 2).T}}, {})
tensors = {str(i): torch.ones(1024, 1024) for i in range(24)}
tensors |= {f"{i} transposed": tensors[str(i)].T for i in range(12)}
tensors |= {f"{i} again": tensors[str(i)] for i in range(12)}
before = largest()
write(sys.argv[1] + "/large", {"model": tensors}, {})
print(largest() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's largest memory so")
def test_writing_takes_the_memory_of_few_tensors(tmp_path):
    """192 MB of 4 MB each, some of them shared and some not in one piece.

    (The ru_maxrss of getrusage would begin with what this process has: exec passes it on.)
    """
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 48 * 2**22
    assert float(run.stdout) < 24


def test_a_copy_is_gone_before_the_next_is_made(tmp_path):
    def watched(pieces):
        for piece in pieces:
            held, seen = [piece], weakref.ref(piece)
            del piece
            yield held.pop()
            gone.append(seen() is None)

    gone: list[bool] = []
    pieces = (memoryview(torch.ones(9, i).T.contiguous().numpy()).cast("B") for i in range(1, 5))
    files.write_synced(tmp_path / "f", watched(pieces))
    assert gone == [True] * 4
    whole = torch.ones(3, 3)
    _, piece = storage.folders._packed({"x": whole})
    whole[0, 0] = 2  # what needs no copy is none
    assert piece[:4] == whole[0, :1].numpy().tobytes()


# ---- damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "m"
    save(small(), path)
    return path


@pytest.fixture
def copy(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "m"))


def test_every_flipped_bit_is_caught(copy):
    files = sorted(copy.iterdir())
    assert [f.name for f in files] == ["manifest.json", "model.safetensors", "state.json"]
    dice = random.Random(0)
    for _ in range(200):
        for file in files:
            sound = file.read_bytes()
            bad = bytearray(sound)
            bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(CorruptCheckpointError):
                load(copy, device="cpu")
            file.write_bytes(sound)
    load(copy, device="cpu")


def edit_manifest(path: Path, change, *, seal: bool) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    if seal:
        manifest.pop("seal", None)
        manifest["seal"] = storage.folders._seal(manifest)
    (path / "manifest.json").write_bytes(storage.folders._sealed(manifest))


def reseal(path: Path) -> None:
    """What an attacker does: a manifest that fits whatever files there are."""
    entries = {
        f.name: {"bytes": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()}
        for f in path.iterdir()
        if f.name != "manifest.json"
    }
    (path / "manifest.json").write_bytes(storage.folders._manifest(entries))


def zero_a_page(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-64:] = bytes(64)
    (path / "model.safetensors").write_bytes(data)


def swap(path: Path) -> None:
    one, two = path / "model.safetensors", path / "state.json"
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)


def other_weights(path: Path) -> None:
    save(small(1), path.parent / "other")
    shutil.copy(path.parent / "other" / "model.safetensors", path)


DAMAGE = {
    "truncated": lambda p: os.truncate(p / "model.safetensors", 100),
    "emptied": lambda p: os.truncate(p / "state.json", 0),
    "empty manifest": lambda p: os.truncate(p / "manifest.json", 0),
    "longer": lambda p: os.truncate(p / "model.safetensors", 10_000),
    "zeroed page": zero_a_page,
    "swapped": swap,
    "weights of another": other_weights,
    "weights missing": lambda p: (p / "model.safetensors").unlink(),
    "state missing": lambda p: (p / "state.json").unlink(),
    "manifest missing": lambda p: (p / "manifest.json").unlink(),
    "a folder for a file": lambda p: ((p / "state.json").unlink(), (p / "state.json").mkdir()),
    "edited manifest": lambda p: edit_manifest(p, lambda m: m.update(version=2), seal=False),
    "edited size": lambda p: edit_manifest(p, lambda m: m["files"]["state.json"].update(bytes=1), seal=True),
    "edited hash": lambda p: edit_manifest(p, lambda m: m["files"]["state.json"].update(sha256="0" * 64), seal=True),
    "no files": lambda p: edit_manifest(p, lambda m: m.update(files=None), seal=True),
    "reformatted manifest": lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text() + " "),
    "manifest of nonsense": lambda p: (p / "manifest.json").write_text("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_has_a_name(copy, damage):
    damage(copy)
    with pytest.raises(CorruptCheckpointError, match=str(copy)):
        load(copy, device="cpu")


def test_other_versions_and_missing_parts_are_incompatible(copy):
    edit_manifest(copy, lambda m: m.update(version=99), seal=True)
    with pytest.raises(IncompatibleCheckpointError, match="expected version 1"):
        load(copy, device="cpu")
    edit_manifest(copy, lambda m: m.update(version=1), seal=True)
    with pytest.raises(IncompatibleCheckpointError, match=r"no training\.safetensors"):
        read(copy, ["training"])
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(copy.parent / "nowhere")


# ---- malice: files that fit their manifest


def edit_state(**changes):
    def edit(path: Path) -> None:
        state = json.loads((path / "state.json").read_text())
        for where, value in changes.items():
            place = state["model"]
            *parents, last = where.split("__")
            for key in parents:
                place = place[key]
            place[last] = value
        (path / "state.json").write_text(json.dumps(state))

    return edit


def replace(file: str, data: bytes):
    return lambda path: (path / file).write_bytes(data)


def header(text: bytes, claims: int | None = None, body: bytes = b"") -> bytes:
    return (len(text) if claims is None else claims).to_bytes(8, "little") + text + body


MALICE = {
    "class of the system": edit_state(net__name="os.system"),
    "class of ours, not a network": edit_state(net__name="Denoiser"),
    "process by import path": edit_state(sde__name="sdegen.processes.VPSDE"),
    "wide network": edit_state(net__config={"event_shape": [2], "hidden": 10**7}),
    "wider than memory": edit_state(net__config={"event_shape": [10**9], "hidden": 10**9}),
    "deep network": edit_state(net__config={"event_shape": [2], "hidden": 1, "layers": 10**9}),
    "many classes": edit_state(net__config={"event_shape": [2], "n_classes": 10**9}),
    "unknown argument": edit_state(net__config={"path": "/etc/passwd"}),
    "config that is a list": edit_state(net__config=[1, 2]),
    "event of nonsense": edit_state(event_shape=["a"]),
    "parametrisation of nonsense": edit_state(parametrization={"eval": "1"}),
    "process out of range": edit_state(sde__config={"beta_min": -1.0}),
    "negative time": edit_state(sde__t_max=-1.0),
    "path of nonsense": edit_state(sde__path="exp(t)"),
    "state without a model": replace("state.json", b"{}"),
    "state that is a number": replace("state.json", b"17"),
    "deep JSON": replace("state.json", b"[" * 10**6),
    "huge JSON": replace("state.json", b" " * (1 << 25)),
    "pickle for weights": replace("model.safetensors", b"\x80\x04cos\nsystem\n(S'false'\ntR."),
    "huge header": replace("model.safetensors", header(b"{}", claims=1 << 60)),
    "long header": replace("model.safetensors", header(b" " * (1 << 25))),
    "header of nonsense": replace("model.safetensors", header(b'{"a": 1}')),
    "tensor beyond the file": replace(
        "model.safetensors", header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}')
    ),
    "overlapping tensors": replace(
        "model.safetensors",
        header(
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
            body=b"abcd",
        ),
    ),
    "no tensors": replace("model.safetensors", header(b"{}")),
}


BOMBS = """
import json, pathlib, resource, sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import edit_state, header, replace, reseal
from sdegen.core.errors import CheckpointError
from sdegen.storage import load

path = pathlib.Path(sys.argv[1])
sound = {file: (path / file).read_bytes() for file in ("state.json", "model.safetensors")}
most = 2**22 - 2**16
entry = '"%d":{"dtype":"U8","shape":[],"data_offsets":[0,0]},'
bombs = {
    "name": edit_state(parametrization="counting-" * (most // 9) + "noise"),
    "a name beyond the cap": edit_state(parametrization="counting-" * 10**6),
    "no path": edit_state(sde__path=[]),
    "path of nothing": edit_state(sde__path=[[]] * (most // 4)),
    "long path": edit_state(sde__path=[[0, 0, 0]] * (most // 11)),
    "deep path": lambda p: replace("state.json", b'{"model": {"sde": {"path": ' + b"[" * 10**5 + b"]" * 10**5 + b"}}}")(p),
    "lists": lambda p: replace("state.json", b'{"model": [' + b"[]," * (most // 3) + b"[]]}")(p),
    "objects": lambda p: replace("state.json", b'{"model": [' + b"{}," * (most // 3) + b"{}]}")(p),
    "event of many axes": edit_state(event_shape=[1] * (most // 3)),
    "event beyond numbers": edit_state(event_shape=[10**30]),
    "wide event": edit_state(event_shape=[10**12]),
    "class names": edit_state(**{"class": "x" * most}),
    "network of lists": edit_state(net__config={"event_shape": [2] * (most // 3)}),
    "table": edit_state(sde__name="TabulatedVPSDE", sde__config={"betas": [0.5] * (most // 5)}),
    "headers of many tensors": replace("model.safetensors", header(("{" + "".join(entry % i for i in range(most // 60))[:-1] + "}").encode())),
    "headers of many axes": replace("model.safetensors", header(b'{"a":{"dtype":"U8","shape":[' + b"1," * (most // 2 - 99) + b'1],"data_offsets":[0,1]}}', body=b"a")),
}
load(path, device="cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, bomb in bombs.items():
    bomb(path)
    reseal(path)
    try:
        load(path, device="cpu")
        print("loaded", name)
    except CheckpointError as error:
        if len(str(error)) > 1000:
            print("a long message for", name)
    for file, data in sound.items():
        (path / file).write_bytes(data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > 300:
        print(f"{grown:.0f} MB for", name)
        break
"""


def test_bombs_are_defused(copy):
    """All of them together take less than 300 MB more than a load does."""
    run = subprocess.run(
        [sys.executable, "-c", BOMBS, str(copy), str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert not run.stdout, run.stdout


def test_the_cap_is_an_argument(copy):
    model = load(copy, device="cpu")
    model.about = {"names": ["x" * 100] * 50_000}
    save(model, copy)
    with pytest.raises(CorruptCheckpointError, match="more than max_bytes=4194304"):
        load(copy, device="cpu")
    assert load(copy, device="cpu", max_bytes=10**7).about == model.about


# ---- numbers and shapes that no model has


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(copy, bad):
    tensors, state = read(copy, ["model"])
    name = next(name for name in tensors["model"] if name.endswith("out.weight"))
    tensors["model"][name][0, 0] = bad
    write(copy, tensors, state)
    with pytest.raises(IncompatibleCheckpointError, match=f"{name.removeprefix('net.')} holds NaN or infinity"):
        load(copy, device="cpu")


def test_buffers_may_be_infinite_but_not_nan(tmp_path):
    class Masked(Own):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    net = Masked()
    save(Denoiser(net, VPSDE()), tmp_path / "m")
    load(tmp_path / "m", net=Masked(), device="cpu")
    net.mask[0] = torch.nan
    save(Denoiser(net, VPSDE()), tmp_path / "m")
    with pytest.raises(IncompatibleCheckpointError, match="mask holds NaN"):
        load(tmp_path / "m", net=Masked(), device="cpu")


@pytest.mark.parametrize(
    ("net", "good", "bad"),
    [
        (lambda: MLP(2, hidden=4), [(2,), None], [(3,), (2, 1), (), (0,), (-2,)]),
        (
            lambda: UNet(1, channels=8, multipliers=(1, 2)),
            [(1, 4, 4), (1, 8, 2)],
            [(2, 4, 4), (1, 3, 4), (1, 4), (1, 0, 4)],
        ),
        (lambda: DiT(1, hidden=8, depth=1, heads=2, patch=2), [(1, 4, 6)], [(1, 4, 5), (3, 4, 4), (4,)]),
    ],
    ids=["mlp", "unet", "dit"],
)
def test_an_event_shape_that_the_network_has_not_is_named(tmp_path, net, good, bad):
    for shape in (*good, *bad):
        path = tmp_path / "m"
        save(Denoiser(net(), VPSDE()), path)
        edit_state(event_shape=shape)(path)
        reseal(path)
        if shape in good:
            assert load(path, device="cpu").event_shape == shape
        else:
            with pytest.raises(IncompatibleCheckpointError):
                load(path, device="cpu")


def test_statistics_of_another_shape_are_named(tmp_path):
    model = small()
    model.event_shape = (2,)
    model.set_statistics(torch.zeros(2), 1.0)
    save(model, tmp_path / "m")
    tensors, state = read(tmp_path / "m", ["model"])
    tensors["model"]["data_mean"] = torch.zeros(3, dtype=torch.float64)
    write(tmp_path / "m", tensors, state)
    with pytest.raises(IncompatibleCheckpointError, match="data_mean has shape"):
        load(tmp_path / "m", device="cpu")


# ---- wrapped networks


WRAPPERS = [lambda net: net, nn.DataParallel, lambda net: torch.compile(net, backend="eager")]


@pytest.mark.parametrize("read_with", WRAPPERS, ids=["plain", "parallel", "compiled"])
@pytest.mark.parametrize("written_with", WRAPPERS, ids=["plain", "parallel", "compiled"])
def test_wrapped_networks_save_and_load_as_the_plain_one(tmp_path, written_with, read_with):
    plain = shaken(Own())
    save(Denoiser(written_with(plain), VPSDE()), tmp_path / "own")
    net = read_with(Own())
    back = load(tmp_path / "own", net=net, device="cpu")
    assert back.net is net
    assert_same(Denoiser(plain, VPSDE()), back)
    ours = small()
    ours.net = written_with(ours.net)
    save(ours, tmp_path / "ours")
    assert same_weights(load(tmp_path / "ours", device="cpu"), small())
    inside = nn.ModuleDict({"a": written_with(shaken(Own())), "b": nn.Linear(1, 1)})
    inside.forward = lambda x, t: inside["a"](x, t)
    save(Denoiser(inside, VPSDE()), tmp_path / "inside")
    other = nn.ModuleDict({"a": read_with(Own()), "b": nn.Linear(1, 1)})
    other.forward = lambda x, t: other["a"](x, t)
    assert_same(Denoiser(inside, VPSDE()), load(tmp_path / "inside", net=other, device="cpu"))


def test_models_of_diffusers_load_with_the_unet_alone(tmp_path):
    diffusers = pytest.importorskip("diffusers")

    def unet(out: int, classes: int | None) -> nn.Module:
        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=out, block_out_channels=(8, 16), layers_per_block=1,
            norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
            num_class_embeds=classes,
        )  # fmt: skip

    for out, classes in ((1, None), (2, None), (1, 3)):
        scheduler = diffusers.DDPMScheduler(variance_type="learned_range" if out == 2 else "fixed_small")
        model = sdegen.from_diffusers(shaken(unet(out, classes)), scheduler).eval()
        save(model, tmp_path / "m")
        cond = {} if classes is None else {"class_labels": 1}
        x = torch.randn(2, 1, 8, 8)
        for net in (
            unet(out, classes),
            nn.DataParallel(unet(out, classes)),
            sdegen.from_diffusers(unet(out, classes), scheduler).net,
        ):
            back = load(tmp_path / "m", net=net, device="cpu")
            assert type(back) is type(model)
            with torch.no_grad():
                assert torch.equal(back(x, 0.5, **cond).x0, model(x, 0.5, **cond).x0)


# ---- threads, links, names


def test_threads_that_save_to_one_path_leave_a_whole_checkpoint(tmp_path):
    models = [small(seed) for seed in range(4)]
    save(models[0], tmp_path / "m")
    failed: list[BaseException] = []

    def work(model: Denoiser) -> None:
        try:
            for _ in range(12):
                save(model, tmp_path / "m")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    back = load(tmp_path / "m", device="cpu")
    assert any(same_weights(back, model) for model in models)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_processes_that_save_to_one_path_leave_a_whole_checkpoint(tmp_path):
    children = []
    for seed in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                for _ in range(25):
                    save(small(seed), tmp_path / "m")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
    back = load(tmp_path / "m", device="cpu")
    assert any(same_weights(back, small(seed)) for seed in range(3))
    save(small(), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "m")
    for seed in range(2):  # a link to nothing, and to a checkpoint
        save(small(seed), tmp_path / "latest")
        assert (tmp_path / "latest").is_symlink()
        assert same_weights(load(tmp_path / "latest", device="cpu"), small(seed))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "latest"]
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["m"]
    os.rename(tmp_path / "disk" / "m", tmp_path / "disk" / ".m.old")  # what a crash between two renames leaves
    assert same_weights(load(tmp_path / "latest", device="cpu"), small(1))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError):
        save(small(), tmp_path / "loop")
    with pytest.raises(CheckpointError):
        load(tmp_path / "loop")


@pytest.mark.parametrize("kind", ["file", "link", "folder", "link to nothing"])
@pytest.mark.parametrize("name", [".m.999999999.tmp", ".m.old"])
def test_what_is_named_as_temporaries_are_blocks_nothing(tmp_path, kind, name):
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("kept")
    left = tmp_path / name
    for _ in range(2):
        if kind == "file":
            left.write_text("x")
        elif kind == "folder":
            left.mkdir()
        else:
            left.symlink_to(other if kind == "link" else tmp_path / "nowhere")
        save(small(), tmp_path / "m")
        assert same_weights(load(tmp_path / "m", device="cpu"), small())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "other"]
    assert (other / "kept").read_text() == "kept"


def test_names_as_long_as_the_disk_takes_and_longer(tmp_path):
    for name in ("m" * 255, "\N{GREEK SMALL LETTER MU}" * 127):
        for seed in range(2):
            save(small(seed), tmp_path / name)
            assert same_weights(load(tmp_path / name, device="cpu"), small(seed))
        assert [p.name for p in tmp_path.iterdir()] == [name]
        shutil.rmtree(tmp_path / name)
    with pytest.raises(CheckpointError, match="pass a shorter path"):
        save(small(), tmp_path / ("m" * 256))
    with pytest.raises(CheckpointError, match="pass a shorter path"):
        load(tmp_path / ("m" * 256))
    for wrong in (3, None, "", b"m", "a\0b", ["m"]):
        with pytest.raises(InvalidInputError, match="expected a path"):
            save(small(), wrong)
        with pytest.raises(InvalidInputError, match="expected a path"):
            load(wrong)


def test_sizes_are_checked_before_anything_is_read_into_memory(copy):
    for file, data, says in (
        ("state.json", b'{"model": "' + bytes(1 << 24) + b'"}', "bytes"),
        ("model.safetensors", header(b"{}" + b" " * (1 << 25)), "a header of"),
        ("model.safetensors", header(b"{}", claims=1 << 60), "a header of"),
    ):
        sound = (copy / file).read_bytes()
        replace(file, data)(copy)
        reseal(copy)
        with pytest.raises(CorruptCheckpointError, match=says):
            load(copy, device="cpu")
        replace(file, sound)(copy)
    os.truncate(copy / "manifest.json", 1 << 30)
    with pytest.raises(CorruptCheckpointError, match="more than any manifest"):
        load(copy, device="cpu")


@pytest.mark.parametrize("malice", MALICE.values(), ids=MALICE.keys())
def test_malicious_files_run_nothing_and_take_no_memory(copy, malice, monkeypatch):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("something ran"))
    malice(copy)
    reseal(copy)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load(copy, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


@pytest.mark.parametrize("listed", ["../../secret.json", "/etc/passwd", "a.pkl", "state.json\n", "", "A.safetensors"])
def test_names_outside_the_folder_are_never_opened(copy, listed):
    edit_manifest(copy, lambda m: m["files"].update({listed: m["files"]["state.json"]}), seal=True)
    with pytest.raises(CorruptCheckpointError, match="names that no checkpoint has"):
        load(copy, device="cpu")


# ---- faults at every file operation

OPERATIONS = ("open", "mkdir", "rename", "fsync", "unlink", "rmdir", "scandir", "listdir")


class Faulty:
    """Counts file operations and acts at the n-th."""

    def __init__(self, monkeypatch, at: int, act) -> None:
        self.at, self.act, self.count = at, act, 0
        for operation in OPERATIONS:
            monkeypatch.setattr(os, operation, self.wrapped(getattr(os, operation)))
        monkeypatch.setattr(files, "open", self.opened, raising=False)

    def step(self) -> None:
        self.count += 1
        self.act(self)

    def wrapped(self, function):
        def call(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return call

    def opened(self, *args):
        self.step()
        stream = open(*args)  # noqa: SIM115
        write = stream.write

        def faulty_write(data):
            self.step()
            return write(data)

        if "w" in args[1]:
            stream = Writing(stream, faulty_write)
        return stream


class Writing:
    def __init__(self, stream, write) -> None:
        self.stream, self.write = stream, write

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def operations_of_a_save(tmp_path, monkeypatch) -> int:
    save(small(0), tmp_path / "count")
    with monkeypatch.context() as patch:
        counter = Faulty(patch, 0, lambda _: None)
        save(small(1), tmp_path / "count")
    return counter.count


def test_everything_is_synced_before_and_after_it_gets_its_name(tmp_path, monkeypatch):
    save(small(0), tmp_path / "m")
    done = []
    for operation, kind in (("fsync", "fsync"), ("rename", "rename"), ("replace", "rename")):
        function = getattr(os, operation)
        monkeypatch.setattr(os, operation, lambda *a, k=kind, f=function: (done.append(k), f(*a))[1])
    save(small(1), tmp_path / "m")
    assert done == ["fsync"] * 4 + ["rename"] * 2 + ["fsync"]  # three files and their folder; the parent


@pytest.mark.parametrize(
    ("code", "lasting"), [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False), (errno.EACCES, True)]
)
def test_an_error_at_any_file_operation_leaves_the_old_or_the_new(tmp_path, monkeypatch, code, lasting):
    total = operations_of_a_save(tmp_path, monkeypatch)
    assert total > 15

    def fail(fault: Faulty) -> None:
        if fault.count == fault.at or (lasting and fault.count > fault.at):
            raise OSError(code, os.strerror(code))

    for at in range(1, total + 1):
        path = tmp_path / f"{at}" / "m"
        save(small(0), path)
        failed = False
        with monkeypatch.context() as patch:
            Faulty(patch, at, fail)
            try:
                save(small(1), path)
            except CheckpointError as error:
                failed = True
                assert os.strerror(code) in str(error) and "unharmed" in str(error)
                assert lasting or path.exists()
        back = load(path, device="cpu")
        assert same_weights(back, small(0)) or same_weights(back, small(1))
        assert failed or same_weights(back, small(1)), "a save that did not complain must have saved"
        save(small(2), path)  # and the next one works, and clears up
        assert same_weights(load(path, device="cpu"), small(2))
        assert [p.name for p in path.parent.iterdir()] == ["m"]


def test_a_crash_at_any_file_operation_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    total = operations_of_a_save(tmp_path, monkeypatch)
    seen = set()
    for at in range(1, total + 1):
        path = tmp_path / f"{at}" / "m"
        save(small(0), path)
        child = os.fork()
        if not child:  # dies like a killed process: nothing is cleaned up
            Faulty(monkeypatch, at, lambda fault: fault.count == fault.at and os._exit(9))
            save(small(1), path)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        back = load(path, device="cpu")
        seen.add("old" if same_weights(back, small(0)) else "new" if same_weights(back, small(1)) else "neither")
        save(small(2), path)
        assert same_weights(load(path, device="cpu"), small(2))
        assert [p.name for p in path.parent.iterdir()] == ["m"], "temporaries of the dead process are swept"
    assert seen == {"old", "new"}


def test_temporaries_of_living_processes_stay(tmp_path):
    theirs = tmp_path / f".m.{os.getppid()}.tmp"
    theirs.mkdir()
    save(small(), tmp_path / "m")
    assert theirs.exists()


def test_what_a_model_is_about_comes_back(tmp_path):
    model = small()
    model.about = {"data": {"source": "digits", "size": (8, 8)}, "levels": 17}  # type: ignore
    save(model, tmp_path / "m")
    assert load(tmp_path / "m", device="cpu").about == {"data": {"source": "digits", "size": [8, 8]}, "levels": 17}
    for about, says in (({"x": object()}, "JSON"), ([1], "expected a dict"), ({"x": float("nan")}, "JSON")):
        model.about = about  # type: ignore
        with pytest.raises(InvalidInputError, match=says):
            save(model, tmp_path / "m")
    assert load(tmp_path / "m", device="cpu").about["levels"] == 17


def test_a_run_folder_that_cannot_be_listed_says_so(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for name in ("listdir", "scandir"):  # one of them, by the version of Python
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*Permission denied"):
        storage.steps(tmp_path)


def test_a_tensor_of_one_number_is_saved_whatever_its_stride(tmp_path):
    net = nn.Linear(1, 1)
    net.register_buffer("one", torch.tensor(3.0).expand(1).clone())
    net.register_buffer("shared", torch.tensor(2.0).expand(4, 1))
    save(net, tmp_path / "m")
    back = load(tmp_path / "m", net=with_buffers_of(nn.Linear(1, 1), net), device="cpu")
    assert back.one.tolist() == [3.0] and back.shared.tolist() == [[2.0]] * 4


def with_buffers_of(made: nn.Module, like: nn.Module) -> nn.Module:
    for name, value in like.named_buffers():
        made.register_buffer(name, torch.zeros(value.shape))
    return made
