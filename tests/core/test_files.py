"""The atomic writer: whole or not at all, one name each, links kept; and eval mode that threads share."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from torch import nn

from sdegen.core import files
from sdegen.core.errors import InvalidInputError
from sdegen.core.files import as_path, remove, replacing, write_synced, write_whole
from sdegen.core.modes import evaluating


def test_it_replaces_and_leaves_nothing_beside(tmp_path):
    for content in (b"one", b"", b"two"):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, operation):
    write_whole(tmp_path / "file", b"old")

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, operation, fails)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_it_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle, real=os.fsync: (done.append("synced"), real(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b, real=os.replace: (done.append("renamed"), real(a, b)))
    write_whole(tmp_path / "file", b"x")
    assert done == ["synced", "renamed", "synced"], "the file before it gets its name, the folder afterwards"


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "f"
    for text in ("one", "two"):
        with replacing(path) as fresh:
            assert fresh.parent == path.parent
            assert write_synced(fresh, [text[:1].encode(), text[1:].encode()])[0] == 3
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    with pytest.raises(ZeroDivisionError), replacing(path) as fresh:
        fresh.write_text("half of")
        _ = 1 / 0
    assert path.read_text() == "two" and os.listdir(path.parent) == ["f"]


def test_a_refusal_comes_before_anything_is_written(tmp_path):
    (tmp_path / "f").write_text("mine")

    def refuse(path: Path) -> None:
        raise InvalidInputError(path.read_text())

    with pytest.raises(InvalidInputError, match="mine"), replacing(tmp_path / "f", refuse):
        pytest.fail("asked too late")
    assert os.listdir(tmp_path) == ["f"]


def test_only_what_nobody_writes_any_more_is_swept(tmp_path):
    dead = f".f.999999999.{files._HOST}00000000.tmp"
    own_from_before = f".f.{os.getpid()}.{files._HOST}00000001.tmp"  # the number of a process that is no more
    alive = f".f.{os.getppid()}.{files._HOST}00000002.tmp"
    elsewhere, forgotten = ".f.1.00000000000003.tmp", ".f.1.00000000000004.tmp"  # other machines
    others = [".f.tmp", ".g.999999999.tmp", ".f.12.34.tmp", "f.999999999.tmp"]
    for name in (dead, own_from_before, alive, elsewhere, forgotten, *others):
        (tmp_path / name).write_text("x")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / forgotten, (long_ago, long_ago))
    with replacing(tmp_path / "f") as first, replacing(tmp_path / "f") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
        assert {p.name for p in tmp_path.iterdir()} == {first.name, second.name, alive, elsewhere, *others}
    assert (tmp_path / "f").read_text() == "1", "the last one to finish stays"


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "f").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert (tmp_path / "folder" / "f").read_text() == "kept" and not (tmp_path / "link").exists()
    remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_paths_are_paths():
    assert as_path("a") == Path("a").absolute() == as_path(Path("a"))
    for wrong in (1, None, 0.5, "", b"a", "a\0", object()):
        with pytest.raises(InvalidInputError, match="out: got .*expected a path"):
            as_path(wrong, "out")


# ---- eval mode


def test_eval_mode_lasts_until_the_last_thread_is_done():
    shared = nn.Dropout()
    one, two = nn.Sequential(shared, nn.Dropout().eval()), nn.Sequential(shared)
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with evaluating(two):
            entered.set()
            leave.wait(60)
            seen.append(shared.training)

    thread = threading.Thread(target=other)
    with evaluating(one):
        thread.start()
        assert entered.wait(60)
        with evaluating(one):
            pass
        assert not any(module.training for module in one.modules())
    assert [module.training for module in one] == [False, False] and one.training
    leave.set()
    thread.join()
    assert seen == [False] and [module.training for module in one] == [True, False] and two.training


def test_eval_mode_lasts_for_those_who_found_it_on():
    module = nn.Dropout()
    first, second = evaluating(module), evaluating(module)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not module.training
    second.__exit__(None, None, None)
    assert module.training
