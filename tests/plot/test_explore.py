"""The explorer: solvers in a browser end where they end in Python, from one file that asks for nothing."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
import torch

import sdegen as sg
from sdegen.noise.purposes import Purpose
from sdegen.plot.explore import HOWS, TESTED

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

SLANTED = sg.GaussianMixture(
    [[1.0, 2.0], [3.0, -1.0], [0.0, 0.0]],
    covariances=[[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]], [[0.1, 0.0], [0.0, 0.1]]],
    weights=[1.0, 2.0, 3.0],
)


def network(sde, *, parametrization="edm", n_classes=None, features="smooth", spread=0.2):
    torch.manual_seed(0)
    net = sg.nets.MLP(2, hidden=24, layers=3, n_classes=n_classes, time_features=features)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=spread)
    facts = {"data_mean": torch.tensor([0.3, -0.1]), "data_std": torch.tensor([0.5, 0.9])}
    return sg.Denoiser(net, sde, parametrization=parametrization, **facts)


SUBJECTS = {
    "a ring": lambda: sg.data.toys.ring(8),
    "a slanted mixture": lambda: SLANTED,
    "a mixture along its own process": lambda: sg.MixtureModel(SLANTED, sg.VPSDE(beta_max=12.0)),
    "a network": lambda: network(sg.VPSDE()),
    "a network with classes": lambda: network(
        sg.CosineSDE(), parametrization="v", n_classes=3, features="sinusoidal", spread=0.1
    ),
}


def opened(path, *, script="", part="", wait=8000):
    """The page's elements after its scripts ran, with a script of the test's own at the end."""
    if script:
        text = path.read_text().replace("</body>", f"<script>{script}</script></body>")
        path = path.with_name("scripted.html")
        path.write_text(text)
    quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    words = [CHROMIUM, "--headless", "--no-sandbox", *quiet, "--disable-sync", "--disable-quic", "--dump-dom"]
    words += [f"--user-data-dir={path.parent / 'profile'}", f"--virtual-time-budget={wait}", f"file://{path}{part}"]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


def element(dom, name):
    found = re.search(rf'<\w+ id="{name}"[^>]*>(.*?)</', dom, re.S)
    return found and found.group(1)


@browser
@pytest.mark.parametrize("subject", SUBJECTS)
def test_solvers_on_the_page_end_where_python_ends(tmp_path, subject):
    page = sg.plot.explore(SUBJECTS[subject](), tmp_path / "explore.html")
    dom = opened(page.path, part="#test")
    assert element(dom, "test-result") == "ok"
    assert int(re.search(r'data-runs="(\d+)"', dom).group(1)) == len(HOWS) * len(TESTED) == 18
    assert len({how["solver"] for how in HOWS}) == 6


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("2 * rho", "3 * rho"),
        ("sigma * w0", "sigma * w1"),
        ("0.3 / 5", "0.4 / 5"),
        ("problem.model.variance", "1"),
        ("u ** 1.6", "u ** 1.5"),
        ("slopeAlpha - 1", "slopeAlpha"),
        ("z >> 27n", "z >> 26n"),
    ],
)
def test_the_page_sees_what_is_wrong_in_it(slanted, text, wrong):
    source, data = slanted
    assert text in source
    assert proof(source, data) == "ok"
    assert proof(source.replace(text, wrong), data) != "ok"


@pytest.fixture(scope="module")
def slanted(tmp_path_factory):
    """The mathematics of a page, and its data."""
    text = sg.plot.explore(SLANTED, tmp_path_factory.mktemp("page") / "explore.html").path.read_text()
    return solve_js(), re.search(r'application/json">(.*?)</script>', text, re.S).group(1)


def solve_js():
    return (files("sdegen.plot") / "page" / "solve.js").read_text()


def by_node(source):
    """What a script prints, without a page."""
    if NODE is None:
        pytest.skip("no node")
    return subprocess.run([NODE, "-"], input=source, capture_output=True, text=True, check=True).stdout.strip()


def proof(source, data):
    return by_node(f"{source}\nconsole.log(test({data}).verdict)")


@browser
def test_a_page_tells_the_evaluations_the_error_and_the_call(tmp_path):
    page = sg.plot.explore(sg.data.toys.ring(8), tmp_path / "explore.html")
    turn = """
    const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input", { bubbles: true })); };
    const told = {};
    const look = (name) => (told[name] = [$("told-nfe").textContent, $("told-error").textContent, $("python").textContent]);
    setTimeout(() => { look("ten");
      set("steps", 30);
      setTimeout(() => { look("thirty");
        set("solver", "dopri5"); set("rtol", -4);
        setTimeout(() => { look("tolerance");
          set("equation", "sde"); set("eta", 0.5);
          setTimeout(() => { look("sde"); set("data-choice", "own");
            $("plane").dispatchEvent(new MouseEvent("click", { clientX: 300, clientY: 300, bubbles: true }));
            setTimeout(() => { look("own");
              const box = document.createElement("pre"); box.id = "seen"; box.textContent = JSON.stringify(told);
              document.body.append(box);
            }, 300); }, 300); }, 300); }, 300); }, 300);
    """
    told = json.loads(element(opened(page.path, script=turn), "seen").replace("&gt;", ">").replace("&amp;", "&"))
    nfe, error, python = zip(*told.values(), strict=True)
    assert nfe[0] == "10" and nfe[1] == "30" and "at most" in nfe[2]
    far = [float(words.split()[0]) for words in error[:3]]
    assert far[0] > 3 * far[1] > 3 * far[2] > 0
    assert error[3] == "noise of its own"
    assert "eta=0.5" in python[3] and "GaussianMixture" in python[4]
    # the call that it shows gives what it tells
    scope: dict = {}
    exec(compile(python[0], "copied", "exec"), scope)  # noqa: S102
    exact = sg.sample(scope["model"], (200, 2), rtol=1e-8, seed=0, dtype=torch.float64).x
    rms = float((scope["found"].x - exact).square().mean().sqrt()) / scope["model"].sigma_data
    assert far[0] == pytest.approx(rms, rel=0.06)  # two digits are shown
    exec(compile(python[2], "copied", "exec"), scope)  # noqa: S102
    mean = float(scope["found"].nfe.double().mean())  # in single precision
    assert float(nfe[2].split()[0]) == pytest.approx(mean, rel=0.03)


@browser
def test_a_redraw_is_quick(tmp_path):
    """200 points and 20 evaluations within a frame or two of the screen, on a machine that does other things as well."""
    page = sg.plot.explore(sg.data.toys.ring(8), tmp_path / "explore.html")
    turn = """
    $("steps").value = 20;
    for (let i = 0; i < 5; i++) update();
    const times = [];
    for (let i = 0; i < 9; i++) { const began = performance.now(); update(); times.push(performance.now() - began); }
    const box = document.createElement("pre"); box.id = "seen"; box.textContent = times.sort((a, b) => a - b)[0];
    document.body.append(box);
    """
    assert float(element(opened(page.path, script=turn), "seen")) < 60


class Controls(HTMLParser):
    """Which inputs have a label."""

    def __init__(self):
        super().__init__()
        self.inside, self.named, self.bare, self.targets = 0, 0, [], []

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if tag == "label":
            self.inside += 1
            self.targets.append(told.get("for"))
        if tag in ("input", "select", "button", "canvas"):
            good = self.inside or told.get("aria-label") or told.get("id") in self.targets or tag == "button"
            self.named += 1
            if not good:
                self.bare.append(told)

    def handle_endtag(self, tag):
        self.inside -= tag == "label"


def test_a_page_is_one_small_file_and_every_control_has_a_name(tmp_path):
    torch.manual_seed(0)
    ring = sg.Denoiser(sg.nets.MLP(2, hidden=88), sg.VPSDE())
    for what in (sg.data.toys.ring(8), ring):
        page = sg.plot.explore(what, tmp_path / "explore.html")
        text = page.path.read_text()
        assert os.path.getsize(page) < 400_000
        assert not re.search(r"https?://|src=|@import|fetch\(|XMLHttpRequest|WebSocket", text)
        controls = Controls()
        controls.feed(text)
        assert controls.named > 15 and not controls.bare
        assert "prefers-color-scheme: dark" in text
        assert page._repr_html_().startswith("<iframe") and len(repr(page)) < 200


def test_the_noise_of_the_page_is_the_seeds():
    """The starts of a problem are the draws of Python, whatever the seed."""
    draws = "console.log(JSON.stringify([0, 1, 123456789].map((seed) => Array.from(normals(seed, 5000, 1)))))"
    made = json.loads(by_node(f"{solve_js()}\n{draws}"))
    for seed, values in zip((0, 1, 123456789), made, strict=True):
        z = sg.Noise(seed).normal((5000, 2), Purpose.PRIOR, dtype=torch.float64, device="cpu")
        np.testing.assert_allclose(np.array(values).reshape(5000, 2), z.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: sg.plot.explore(sg.GaussianMixture([[0.0]], std=1.0), path), r"shape \(1,\), expected points"),
        (lambda path: sg.plot.explore(sg.EmpiricalModel(torch.randn(5, 2), sg.VPSDE()), path), "got EmpiricalModel"),
        (lambda path: sg.plot.explore(3, path), "got what=3, expected"),
        (lambda path: sg.plot.explore(network(sg.VPSDE()), path, sde=sg.VPSDE()), "got sde= beside a model"),
        (lambda path: sg.plot.explore(SLANTED, path / "no" / "folder.html"), "there is no folder"),
        (
            lambda path: sg.plot.explore(sg.Denoiser(sg.nets.MLP(2, hidden=300), sg.VPSDE()), path),
            "kB: expected at most 400 kB",
        ),
    ],
)
def test_what_cannot_run_on_a_page_is_refused(tmp_path, call, words):
    with pytest.raises(sg.InvalidInputError, match=words):
        call(tmp_path / "explore.html")
    assert not list(tmp_path.iterdir())
