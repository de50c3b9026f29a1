"""The names of `sdegen`: one stub lists them, each is imported when it is first used, none is taken by a module."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sdegen as sg

STUB = Path(sg.__file__).with_suffix(".pyi")


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("imported", ["sdegen", "sdegen.app.cli"])
def test_an_import_alone_imports_none_of_the_heavy_packages(imported):
    heavy = {"torch", "numpy", "scipy", "matplotlib"}
    assert in_a_new_process(f"import {imported}, sys; print({heavy} & set(sys.modules))") == "set()"


def test_help_and_version_import_none_of_them_either():
    run = "import sys; from sdegen.app.cli import main\ntry: main(['{}'])\nexcept SystemExit: print('torch' in sys.modules)"
    for option in ("--version", "--help"):
        assert in_a_new_process(run.format(option)).splitlines()[-1] == "False"


def test_the_package_has_what_type_checkers_read_in_the_stub():
    """Every statement of the stub is one import of one name under the same name, or an annotation."""
    unlisted = {line.split()[3] for line in STUB.read_text().splitlines() if line.endswith("  # unlisted")}
    listed = set()
    for statement in ast.parse(STUB.read_text()).body:
        if isinstance(statement, ast.ImportFrom):
            (name,) = statement.names
            assert name.name == name.asname and statement.level == 1
            home = importlib.import_module(f".{statement.module or name.name}", "sdegen")
            assert getattr(sg, name.name) is (getattr(home, name.name) if statement.module else home)
            listed |= {name.name} - unlisted
    assert sorted(listed) == sg.__all__ == [n for n in dir(sg) if n != "__version__"]


def test_a_public_name_stays_when_a_module_spelt_like_it_is_imported():
    code = "import sdegen, sdegen.solvers.base; print(callable(sdegen.solvers), sdegen.terms.__name__)"
    assert in_a_new_process(code) == "True sdegen.terms"
    assert in_a_new_process("from sdegen import *; print(callable(solvers), sample.__name__)") == "True sample"


def test_other_names_are_missing_as_everywhere():
    with pytest.raises(AttributeError, match="module 'sdegen' has no attribute 'Denoisr'"):
        _ = sg.Denoisr
    assert not hasattr(sg, "nonsense") and not hasattr(sg, "app_")
