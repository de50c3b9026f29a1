"""Bars show on terminals and in notebooks, and stay out of files."""

import io
import sys
import types

import pytest

from sdegen.core.progress import is_shown, progress_bar


@pytest.fixture
def notebook(monkeypatch):
    """An IPython whose shell has a kernel, as in Jupyter."""
    shell = types.SimpleNamespace(kernel=object(), config={})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_shown(None)
    assert list(progress_bar(None, range(3))) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""


def test_a_terminal_does(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_shown(None) and not is_shown(False)
    assert list(progress_bar(None, range(3), desc="work")) == [0, 1, 2]
    assert "work: 100%" in sys.stderr.getvalue()


def test_a_notebook_does(monkeypatch, notebook):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert is_shown(None) and not is_shown(False)


def test_a_terminal_of_ipython_without_a_kernel_is_no_notebook(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: object()))
    assert not is_shown(None)


def test_what_is_asked_for_is_done(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert is_shown(True)
    list(progress_bar(True, range(2), desc="told"))
    assert "told" in sys.stderr.getvalue()
