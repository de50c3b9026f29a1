"""Every public object tells itself in a line, and in a small table with a picture in notebooks."""

import inspect
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from cases import SDES

import sdegen as sg
from sdegen.core.show import curves, picture_of, spread

MIXTURE = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], std=0.2)
EXACT = sg.MixtureModel(MIXTURE, sg.VPSDE(), labels=[0, 1, 1])
PLAIN = sg.MixtureModel(MIXTURE, sg.EDMSDE())
DENOISER = sg.Denoiser(sg.nets.UNet(3), sg.CosineSDE(), parametrization="v")
X = MIXTURE.sample(300, seed=0)


def objects():
    """One object of each public class, as a reader meets it."""
    solution = sg.sample(PLAIN, 300, rtol=1e-2, seed=0, save="all", return_log_prob=True)
    observation = sg.Observation.mask([True, False], std=0.1)
    trained = sg.Denoiser(sg.nets.MLP(2), sg.EDMSDE())
    yield from (MIXTURE, EXACT, DENOISER, solution, observation, trained, PLAIN.data, DENOISER.data)
    yield sg.fit(trained, X, steps=3, batch_size=8, seed=0)
    yield sg.log_prob(PLAIN, X[:20], rtol=1e-2)
    yield sg.bits_per_dim(PLAIN, 2 * torch.arange(6.0).reshape(3, 2) / 255 - 1, levels=256, rtol=1e-1, seed=0)
    yield sg.EmpiricalModel(X, sg.VESDE())
    yield sg.Guided(EXACT, lambda level: 2.0, null={"label": -1}, interval=(0.1, 2.0))
    yield sg.Switched(EXACT, 0.5, {"label": "style"})
    yield sg.Tilted(DENOISER, lambda x0: x0.flatten(1).sum(1))
    yield sg.Posterior(sg.Guided(EXACT, 2.0, against=EXACT), observation)
    yield sg.Observation.linear(np.eye(2), std=0.1)
    yield sg.Observation.average(2)
    yield sg.Observation.function(torch.sin, std=0.1)
    yield sg.Noise(0, index=range(1000))
    yield from (sg.ForwardSDE(sg.VPSDE()), sg.ReverseSDE(EXACT), sg.ProbabilityFlow(DENOISER))
    yield EXACT(X, 0.5)
    yield DENOISER.coefficients()
    yield sg.Gaussian.of_data(torch.randn(200, 50))
    yield sg.PathSDE(lambda t: 1 - t / 2, lambda t: t)
    yield sg.CoefficientSDE(lambda t: -t, lambda t: 1 + t)
    yield from (sg.make_solver(row.name) for row in sg.solvers()[::5])
    yield sg.measure_noise(PLAIN, X, levels=3, seed=0)
    yield sg.data.load_images("digits")
    yield sg.LatentSpace(sg.nets.Autoencoder(1, 2, patch=2, width=8, blocks=1), mean=0.0, std=1.0)
    yield from SDES.values()
    yield sg.discrete.LossAware(sg.discrete.vlb_term, 100)
    yield from (sg.nets.MLP(2), sg.nets.UNet(3, n_classes=10), sg.nets.DiT(1, patch=2, hidden=32, depth=1, heads=2))
    yield sg.nets.Autoencoder(1, 2, patch=2, width=8, blocks=1)
    yield sg.metrics.train_classifier(torch.zeros(8, 1, 8, 8), torch.arange(8) % 2, steps=1)


OBJECTS = list(objects())


def test_every_public_class_is_among_them():
    met = {kind for shown in OBJECTS for kind in type(shown).__mro__}
    classes = {c for name in sg.__all__ if inspect.isclass(c := getattr(sg, name))}
    # Step is what a solver's step hands to the loop, Wrapped and the like are met in their subclasses
    assert {c.__name__ for c in classes - met if not issubclass(c, BaseException)} <= {"Step"}


@pytest.mark.parametrize("shown", OBJECTS, ids=lambda shown: type(shown).__name__)
def test_the_line_is_short(shown):
    assert len(repr(shown)) < 400 and "\n" not in repr(shown) and "object at 0x" not in repr(shown)


@pytest.mark.parametrize("shown", [o for o in OBJECTS if hasattr(o, "_repr_html_")], ids=lambda o: type(o).__name__)
def test_the_table_is_html_that_closes_what_it_opens(shown):
    text = shown._repr_html_()
    ElementTree.fromstring(text.replace("&nbsp;", " "))
    for value in (f for f in shown._facts().values() if isinstance(f, str)):
        assert value[:20].split("<")[0] in text


def test_a_network_tells_its_parameters_and_arguments_and_is_one_phrase_inside_a_model():
    net = sg.nets.UNet(3, n_classes=10)
    count = sum(p.numel() for p in net.parameters())
    assert f"parameters={count / 1e3:.3g}k" in repr(net) and "n_classes=10" in repr(net)
    assert f"net=UNet of {count / 1e3:.3g}k parameters" in repr(sg.Denoiser(net, sg.VPSDE()))


def test_what_a_reader_needs_is_in_the_line():
    line = repr(sg.sample(PLAIN, 50, solver="ddim", steps=10, seed=7))
    for word in ("(50, 2)", "ddim", "evaluations=10", "all 50 samples arrived", "seed=7"):
        assert word in line
    line = repr(DENOISER)
    for word in ("UNet", "parameters", "CosineSDE", "parametrization=v"):
        assert word in line
    count = sum(p.numel() for p in DENOISER.net.parameters())
    assert f"{count / 1e3:.3g}k" in line
    assert "alpha=halved" in repr(sg.PathSDE(halved, torch.sin, t_max=0.5))


def halved(t):
    return 1 - t / 2


def test_a_spread_is_mean_and_range():
    assert spread(torch.tensor([1.0, 2.0, 6.0])) == "3 (1 to 6)"
    assert spread(torch.tensor([4, 4])) == "4"
    assert spread(torch.empty(0)) == "none"


def test_a_scatter_draws_every_point_within_its_frame():
    text = picture_of(torch.tensor([[0.0, 0.0], [100.0, 50.0], [-3.0, 7.0]]))
    circles = list(ElementTree.fromstring(text).iter("circle"))
    at = np.array([[float(c.get("cx")), float(c.get("cy"))] for c in circles])
    assert at.shape == (3, 2) and (at >= 0).all() and (at <= 120).all()
    assert at[1, 0] > at[0, 0] and at[1, 1] < at[0, 1]  # to the right, and above: y of the page runs down
    across, down = at[1] - at[0]
    assert across / -down == pytest.approx(2, rel=0.01)  # one scale


def test_a_grid_holds_the_pixels():
    import base64
    import io

    from PIL import Image

    x = torch.full((4, 1, 8, 8), -1.0)
    x[1] = 1.0
    code = picture_of(x).split("base64,")[1].split("'")[0]
    sheet = np.array(Image.open(io.BytesIO(base64.b64decode(code))))
    assert sheet.shape == (16, 16)
    assert (sheet[:8, :8] == 0).all() and (sheet[:8, 8:] == 255).all() and (sheet[8:] == 0).all()


def test_pictures_leave_out_what_cannot_be_drawn():
    assert picture_of(torch.full((5, 2), float("nan"))) == ""
    assert picture_of(torch.zeros(0, 2)) == ""
    assert picture_of(torch.zeros(3, 7)) == ""
    assert curves(torch.tensor([float("nan")])) == ""
    line = curves(torch.tensor([3.0, float("nan"), 1.0, 2.0]))
    points = ElementTree.fromstring(line).find("polyline").get("points").split()
    assert len(points) == 3 and points[0].endswith("5.0") and points[1].endswith("95.0")


def test_tables_show_as_html_and_go_to_pandas():
    found = sg.compare(PLAIN, 8, solvers=["euler", "adams"], steps=[5], tolerances=[1e-1], seed=0)
    for rows in (sg.solvers(), found):
        assert rows._repr_html_().count("<tr>") == len(rows) + 1
        assert str(rows).splitlines()[0].split()[0] == rows.header[0]
        pandas = pytest.importorskip("pandas")
        frame = rows.to_pandas()
        assert isinstance(frame, pandas.DataFrame) and len(frame) == len(rows)
    assert found.recommendation() in found._repr_html_()
