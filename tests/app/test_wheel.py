"""The wheel and the sdist hold everything, and run outside the checkout."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def git_files(folder: str) -> set[str]:
    """What the repository has there."""
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel made of the sdist, which is made of a copy of the tracked files."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    source.mkdir()
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(
        ["tar", "-C", str(ROOT), "--null", "-T", "-", "-cf", str(place / "s.tar")], input=archive, check=True
    )
    with tarfile.open(place / "s.tar") as tar:
        tar.extractall(source, filter="fully_trusted")
    backend = f"import setuptools.build_meta as b; print(b.build_sdist({str(place)!r}))"
    tools = place / "tools"
    venv.create(tools, with_pip=True)
    python = tools / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "setuptools>=77", "wheel"], check=True)
    subprocess.run([str(python), "-c", backend], cwd=source, check=True, capture_output=True)
    (sdist,) = place.glob("*.tar.gz")
    pip[-3:] = ["wheel", "-q", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "-w", str(place)]
    subprocess.run([*pip, str(sdist)], check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_nothing_else(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    assert inside == git_files("sdegen")
    with tarfile.open(sdist) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    assert git_files("sdegen") <= names and "pyproject.toml" in names and "LICENSE" in names


@pytest.mark.slow
def test_a_wheel_runs_outside_the_checkout(built, tmp_path):
    """Installed beside this interpreter's own libraries: the command, the model and the page that come with it."""
    home = tmp_path / "home"
    words = ["install", "-q", "--no-deps", "--no-index", "--target", str(home), str(built[1])]
    subprocess.run([sys.executable, "-m", "pip", *words, "--disable-pip-version-check"], check=True)
    there = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}

    def sdegen(*command):
        done = subprocess.run(
            [sys.executable, "-m", "sdegen", *command], cwd=tmp_path, env=there, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import sdegen; print(sdegen.__file__)"],
        cwd=tmp_path,
        env=there,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(home))
    assert "UNet" in sdegen("info", "fashion")
    sdegen("sample", "fashion", "--n", "4", "--steps", "3", "--out", "fashion.png")
    sdegen("explore", "--out", "explore.html")
    sdegen("train", "digits", "--smoke", "--net", "channels=8", "--out", "run")
    assert "4 samples made" in sdegen("sample", "run", "--n", "4", "--steps", "3", "--to", "made")
    assert {"fashion.png", "explore.html", "run", "made"} <= {p.name for p in tmp_path.iterdir()}
