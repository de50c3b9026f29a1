"""Files that are there whole or not at all."""

import os

import pytest

from sdegen.core.files import write_whole


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
    assert done == ["synced", "renamed"]
