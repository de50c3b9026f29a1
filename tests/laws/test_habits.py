"""Files that tools and people read beside the code: they parse, and say the same version everywhere."""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path

import pytest

import sdegen as sg

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEMPLATES = sorted(p for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config")


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert sg.__version__ == PROJECT["version"] == str(citation["version"])
    dated = re.search(rf"^## \[{re.escape(sg.__version__)}\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert dated and dated[1] == str(citation["date-released"])
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["title"] and citation["message"]
    assert citation["license"] == PROJECT["license"]


def test_sections_of_the_changelog_are_dated_newest_first():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    dates = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", h) for h in headings if "Unreleased" not in h]
    assert all(dates) and not any("Unreleased" in h for h in headings[1:])
    versions = [tuple(map(int, m[1].split("."))) for m in dates]
    days = [datetime.date.fromisoformat(m[2]) for m in dates]
    assert versions == sorted(versions, reverse=True) and days == sorted(days, reverse=True)


def test_ci_runs_ci_run_on_every_python_from_the_oldest_allowed():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    versions = job["strategy"]["matrix"]["python"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    named = [
        c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    ]
    assert f">={versions[0]}" == PROJECT["requires-python"] and versions == named and len(versions) >= 3


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids) >= 3
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown", "checkboxes") and part["attributes"]["label"]
        assert part["type"] != "checkboxes" or part["attributes"]["options"]


def test_hooks_are_local_and_run_the_projects_own_tools():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = {hook["id"]: hook for hook in repos[0]["hooks"]}
    assert {"ruff", "ruff-format", "import-layers"} <= set(hooks)
    for hook in hooks.values():
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/")
        assert re.compile(hook.get("files", "")).search("sdegen/core/errors.py")


def test_files_of_results_are_there_whole_or_not_at_all():
    """One function writes them; the mark of who holds a lock is no result."""
    for path in sorted((ROOT / "sdegen").rglob("*.py")):
        found = re.findall(
            r"^(?!.*>>>).*(?:\.write_text|\.write_bytes|\bnp\.save|\bopen\([^)]*[\"']w).*$", path.read_text(), re.M
        )
        allowed = {"core/files.py": 1, "training/folder.py": 1, "app/cli.py": 1}  # the writer; a lock; /dev/null
        assert len(found) <= allowed.get(path.relative_to(ROOT / "sdegen").as_posix(), 0), (path, found)


def test_a_module_of_the_first_version_has_its_name_still():
    """`sdegen.checkpoint.newest` is what scripts copied from 0.1 call."""
    from sdegen import checkpoint, storage

    assert checkpoint.newest is storage.newest and checkpoint.write is storage.write
