"""Pictures show the numbers they are given, leave the user's settings alone, and say the cure where input is wrong."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from cases import beginning
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

import sdegen as sg
from sdegen import plot
from sdegen.plot.densities import as_density, mass_levels, on_grid
from sdegen.plot.fields import potential
from sdegen.plot.images import Mosaic
from sdegen.plot.paths import Path, Scale

RING = sg.GaussianMixture(
    [[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)],
    std=0.1,
)
LINE = sg.GaussianMixture([[-1.0], [0.8]], std=[0.1, 0.2], weights=[0.4, 0.6])
SLANTED = sg.GaussianMixture([[1.0, -2.0]], covariances=[[2.0, 0.6], [0.6, 0.5]])


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def ring(sde=None) -> sg.MixtureModel:
    return sg.MixtureModel(RING, sde or sg.VPSDE())


def solution(ts, xs) -> sg.Solution:
    """A solution with a path of our own making."""
    ts, xs = torch.as_tensor(ts, dtype=torch.float64), torch.as_tensor(xs, dtype=torch.float64)
    n = torch.ones(xs.shape[1], dtype=torch.int64)
    made = {"x": xs[-1], "ts": ts, "xs": xs, "nfe": n, "calls": 1, "accepted": n, "rejected": 0 * n, "status": 0 * n}
    return sg.Solution(**made, message="", solver="test", **_later_fields())


def _later_fields() -> dict:
    """Fields without a default that Solution may have gained: pictures read none of them."""
    import dataclasses

    known = {"x", "ts", "xs", "nfe", "calls", "accepted", "rejected", "status", "message", "solver"}
    missing = dataclasses.MISSING
    return {
        f.name: None
        for f in dataclasses.fields(sg.Solution)
        if f.name not in known and f.default is missing and f.default_factory is missing
    }


def flow_paths(n: int = 6, **options) -> sg.Solution:
    return sg.sample(ring(), n, seed=0, save="all", dtype=torch.float64, **{"solver": "heun", "steps": 12, **options})


def image_path(n: int = 3, shape=(1, 4, 4), steps: int = 10) -> sg.Solution:
    generator = torch.Generator().manual_seed(0)
    return solution(torch.linspace(1, 0, steps), torch.rand(steps, n, *shape, generator=generator) * 2 - 1)


ROWS = [
    {"solver": name, "nfe": n, "error": scale * n**-p, "seconds": 0.01 * n}
    for name, p, scale in (("euler", 1.0, 1.0), ("heun", 2.0, 4.0))
    for n in (8, 16, 32)
]

# Every function, on one Axes of the caller's where it can: what must hold for all of them is tested over this list.
CALLS = {
    "trajectories": lambda ax: plot.trajectories(flow_paths(), ax=ax, density=RING),
    "trajectories on the line": lambda ax: plot.trajectories(
        sg.sample(sg.MixtureModel(LINE, sg.VPSDE()), 4, solver="ddim", steps=5, save="all", seed=0),
        ax=ax,
        density=LINE,
        sde=sg.VPSDE(),
    ),
    "score_field": lambda ax: plot.score_field(ring(), 0.1, ax=ax),
    "density of samples": lambda ax: plot.density(RING.sample(200, seed=0), exact=RING, ax=ax),
    "density scattered": lambda ax: plot.density(RING.sample(200, seed=0), exact=RING, ax=ax, kind="scatter"),
    "density exact": lambda ax: plot.density(ring(), t=0.2, ax=ax),
    "density on the line": lambda ax: plot.density(LINE.sample(200, seed=0), exact=LINE, ax=ax),
    "schedule": lambda ax: plot.schedule([sg.VPSDE(), sg.VESDE()], ax=ax, quantities="sigma"),
    "image_grid": lambda ax: plot.image_grid(torch.zeros(5, 1, 8, 8), ax=ax, titles="abcde"),
    "denoising_strip": lambda ax: plot.denoising_strip(image_path(), ax=ax, samples=2, steps=4),
    "animate": lambda ax: plot.animate(flow_paths(), ax=ax, frames=3),
    "work_precision": lambda ax: plot.work_precision(ROWS, ax=ax),
}


# ---- all of them


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:Animation was deleted")
def test_the_users_axes_are_drawn_on_and_rc_params_are_left_alone(name):
    changed = {"font.size": 17.0, "axes.facecolor": "pink", "lines.linewidth": 9.0, "axes.spines.top": True}
    with matplotlib.rc_context(changed):
        before = dict(matplotlib.rcParams)
        _, ax = plt.subplots()
        bystander = plt.figure()
        came = CALLS[name](ax)
        assert dict(matplotlib.rcParams) == before
        assert plt.get_fignums() == [1, 2] and not bystander.axes  # no other figure was made or touched
        assert ax.has_data()
        if not isinstance(came, FuncAnimation):
            assert came is ax
        ax.figure.canvas.draw()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:Animation was deleted")
def test_a_new_figure_has_the_house_look_whatever_the_users(name, tmp_path):
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white", "axes.spines.top": True}):
        came = CALLS[name](None)
        figure = plt.gcf()
        assert figure.get_layout_engine() is not None
        ax = figure.axes[0]
        assert not ax.spines["top"].get_visible() and ax.get_facecolor() == (1, 1, 1, 1)
        if not isinstance(came, FuncAnimation):
            assert isinstance(came, Axes) and came.figure is figure
            file = plot.save(came, tmp_path / "a.png", dpi=40)
            assert not plt.get_fignums()  # closed
            with Image.open(file) as picture:
                assert min(picture.size) > 30 and len(picture.convert("L").getcolors()) > 2


def test_style_is_a_context_that_ends():
    before = dict(matplotlib.rcParams)
    with plot.style():
        assert not matplotlib.rcParams["axes.spines.top"]
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(RuntimeError), plot.style():
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_with_the_first_picture():
    code = (
        "import sys, sdegen as sg; before = 'matplotlib' in sys.modules; sg.plot.trajectories; sg.data; "
        "print(before, 'matplotlib' in sys.modules, 'plot' in dir(sg))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
    with pytest.raises(AttributeError, match="no attribute 'plots'"):
        sg.plots  # noqa: B018


# ---- trajectories


@pytest.mark.parametrize("how", [{}, {"solver": "dopri5", "steps": None, "rtol": 1e-3}], ids=["shared", "own"])
def test_lines_are_the_solutions_paths(how):
    found = flow_paths(**how)
    assert found.ts.ndim == (2 if how else 1)
    ax = plot.trajectories(found, color="sample")
    for i, line in enumerate(ax.lines):
        np.testing.assert_array_equal(line.get_xydata(), found.xs[:, i].numpy())
    assert len(ax.lines) == 6
    start, end = (c.get_offsets() for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_array_equal(start, found.xs[0].numpy())
    np.testing.assert_array_equal(end, found.x.numpy())


def test_pieces_coloured_by_time_join_the_states():
    found = flow_paths(n=2)
    ax = plot.trajectories(found)
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    pieces = np.array(lines.get_segments()).reshape(len(found.ts) - 1, 2, 2, 2)  # (steps, samples, ends, d)
    np.testing.assert_array_equal(pieces[:, :, 0], found.xs[:-1].numpy())
    np.testing.assert_array_equal(pieces[:, :, 1], found.xs[1:].numpy())
    times = np.asarray(lines.get_array()).reshape(-1, 2)
    np.testing.assert_allclose(times[:, 0], (found.ts[:-1] + found.ts[1:]).numpy() / 2)


def test_a_list_has_a_panel_each_and_samples_and_lines_are_counted():
    few, many = flow_paths(steps=3), flow_paths()
    figure = plot.trajectories({"three": few, "twelve": many}, color="sample", samples=5, lines=2)
    assert isinstance(figure, Figure) and [a.get_title() for a in figure.axes] == ["three", "twelve"]
    for ax, found in zip(figure.axes, (few, many)):
        assert len(ax.lines) == 2
        assert len(ax.collections[-1].get_offsets()) == 5
        np.testing.assert_array_equal(ax.lines[1].get_xydata(), found.xs[:, 1].numpy())
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    _, given = plt.subplots(2)
    plot.trajectories([few, many], ax=given)
    assert all(a.has_data() for a in given)


def test_points_on_the_line_are_drawn_against_time_in_the_direction_of_travel():
    model = sg.MixtureModel(LINE, sg.VPSDE())
    found = sg.sample(model, 5, solver="ddim", steps=8, save="all", seed=0)
    ax = plot.trajectories(found, density=model)
    for i, line in enumerate(ax.lines):
        np.testing.assert_array_equal(line.get_xdata(), found.ts.numpy())
        np.testing.assert_array_equal(line.get_ydata(), found.xs[:, i, 0].double().numpy())
    assert ax.get_xlim() == (1.0, 0.0)
    (mesh,) = (c for c in ax.collections if c.get_zorder() == 0)  # p_t behind the paths: a density at every time
    p = np.asarray(mesh.get_array()).reshape(301, 241)
    corners = mesh.get_coordinates()
    t, x = (torch.from_numpy(np.ascontiguousarray(v)) for v in (corners[0, :, 0], corners[:, 0, 1]))
    for k in (0, 100, 240):
        exact = model.log_prob(x[:, None], max(float(t[k]), model.sde.t_min)).exp()
        np.testing.assert_allclose(p[:, k], exact.numpy(), rtol=1e-9)
    assert plot.trajectories(solution([1.0, 0.5], [[0.0, 1.0], [0.1, 0.9]])).lines  # events of shape ()


def test_densities_on_the_datas_scale_are_densities_there():
    model = sg.MixtureModel(LINE, sg.EDMSDE())
    ax = plot.trajectories(sg.sample(model, 5, solver="ddim", steps=8, save="all", seed=0), density=model)
    (mesh,) = (c for c in ax.collections if c.get_zorder() == 0)
    p, x = np.asarray(mesh.get_array()).reshape(301, 241), mesh.get_coordinates()[:, 0, 1]
    mass = p.sum(0) * (x[1] - x[0])
    assert abs(mass[0] - 1) < 1e-3 and 0.95 < mass[-1] < 1  # at t_max 2.2 standard deviations are inside the picture
    assert ax.get_xlim()[0] > 0.99 and ax.get_xlim()[1] == 0  # the angle of sigma/alpha: t would squeeze it all to 0
    assert "arctan" in ax.get_xlabel()


@pytest.mark.parametrize("sde", [sg.VESDE(), sg.EDMSDE()], ids=repr)
def test_exploding_processes_are_drawn_on_the_datas_scale(sde):
    model = ring(sde)
    found = sg.sample(model, 4, solver="heun", steps=10, save="all", seed=1, dtype=torch.float64)
    s = model.sigma_data
    t = found.ts.clamp_min(sde.t_min)
    factor = torch.where(found.ts == 0, 1.0, s / (s**2 + sde.sigma(t) ** 2).sqrt())  # alpha = 1
    wanted = factor[:, None, None] * found.xs
    ax = plot.trajectories(found, density=model, color="sample")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), wanted[:, 0].numpy(), rtol=1e-12)
    assert max(map(abs, ax.get_xlim())) < 4 and "scaled" in ax.get_xlabel()
    plain = plot.trajectories(found, density=model, color="sample", frame="x")
    np.testing.assert_array_equal(plain.lines[0].get_xydata(), found.xs[:, 0].numpy())
    own = plot.trajectories(found, sde=sde, color="sample")  # s is then measured at the clean end
    assert "scaled" in own.get_xlabel()
    assert "scaled" not in plot.trajectories(flow_paths(), density=ring()).get_xlabel()  # VP keeps x's scale


def test_a_model_is_solved_in_all_directions_from_the_same_noise_and_data():
    figure = plot.trajectories(
        ring(), kinds=("forward", "encode", "reverse", "flow"), samples=40, steps=80, color="sample", seed=3
    )
    titles = [a.get_title() for a in figure.axes]
    assert titles == ["forward SDE", "probability flow, forward", "reverse SDE", "probability flow"]
    ends = []
    for ax in figure.axes:
        dots = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
        ends.append((np.asarray(dots[0]), np.asarray(dots[1])))
    (up, _), (encoded, latent), (reverse, sampled), (flow, flowed) = ends
    np.testing.assert_allclose(up, encoded, rtol=1e-12)  # the same data
    np.testing.assert_allclose(reverse, flow, rtol=1e-12)  # the same noise: the prior's draw of that seed
    np.testing.assert_allclose(flow, beginning(ring(), (40, 2), seed=3, t=1.0).numpy(), rtol=1e-9)
    for x in (up, sampled, flowed):  # all near a mode: P(|x - m| > 0.45) = exp(-10) for a std of 0.1
        assert np.linalg.norm(x[:, None] - RING.means.numpy(), axis=2).min(1).max() < 0.45
    assert np.linalg.norm(sampled - flowed, axis=1).mean() > 0.3  # yet the SDE's noise leads elsewhere
    assert 0.6 < latent.std() < 1.4
    counts = [len(a.lines) for a in figure.axes]
    assert counts == [5, 40, 5, 40]  # few rough paths, all the smooth ones
    again = plot.trajectories(ring(), kinds="flow", samples=40, steps=80, color="sample", seed=3)
    np.testing.assert_array_equal(again.lines[7].get_xydata(), figure.axes[3].lines[7].get_xydata())


def test_a_model_without_a_mixture_takes_data_or_starts_where_the_flow_arrives():
    model = _Hidden(ring())
    figure = plot.trajectories(model, kinds=("forward", "flow"), samples=7, steps=20)
    forward, flow = ([np.asarray(c.get_offsets()) for c in a.collections if isinstance(c, PathCollection)]
                     for a in figure.axes[:2])  # fmt: skip
    sigma = float(model.sde.sigma(model.sde.t_min))
    assert np.abs(forward[0] - flow[1]).max() < 6 * sigma  # perturbed by the noise at t_min
    data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    ax = plot.trajectories(model, kinds="forward", data=data, samples=2, steps=20)
    start = next(c for c in ax.collections if isinstance(c, PathCollection)).get_offsets()
    assert np.abs(np.asarray(start) - data.numpy()).max() < 6 * sigma


def test_forward_paths_have_the_forward_law():
    ax = plot.trajectories(
        sg.MixtureModel(LINE, sg.EDMSDE()), kinds="forward", samples=4000, lines=1, steps=12, density=False, frame="x"
    )
    end = np.asarray([c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)][-1])[:, 1]
    assert (
        abs(end.std() / 80 - 1) < 0.05
    )  # the exact kernel, in 12 steps up to sigma = 80; 4.5 standard errors of 1.1 %


class _Hidden(sg.ScoreModel):
    """A model whose density is not known: its score alone."""

    def __init__(self, model: sg.MixtureModel) -> None:
        super().__init__(model.sde, data_mean=model.data_mean, data_std=model.data_std, event_shape=model.event_shape)
        self.model = model

    def forward(self, x, t, *, shift=None):
        return self.model(x if shift is None else x - shift, t)


# ---- fields


def test_arrows_point_along_the_score_and_fit_their_cells():
    model, t, n = ring(), 0.1, 15
    ax = plot.score_field(model, t, arrows=n, extent=(-2, 2, -1.5, 1.5))
    (quiver,) = (c for c in ax.collections if isinstance(c, Quiver))
    points = torch.from_numpy(np.stack([quiver.X, quiver.Y], 1))
    assert len(points) == n * n and points[:, 1].abs().max() < 1.5
    score = model.score(points, t).numpy()
    drawn = np.stack([quiver.U, quiver.V], 1)
    norms, lengths = np.linalg.norm(score, axis=1), np.linalg.norm(drawn, axis=1)
    np.testing.assert_allclose(drawn / lengths[:, None], score / norms[:, None], atol=1e-9)
    assert lengths.max() < 4 / n
    assert np.all(np.diff(lengths[np.argsort(norms)]) > -1e-12)  # longer where the score is larger
    assert lengths.max() / np.median(lengths) < norms.max() / np.median(norms)  # but compressed
    assert ax.get_title() == "score at $t = 0.1$" and ax.get_aspect() == 1


def test_streamlines_follow_the_score():
    ax = plot.score_field(ring(), 0.1, kind="stream", density=False, arrows=9, extent=(0.5, 1.5, 0.5, 1.5))
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    pieces = torch.from_numpy(np.array(lines.get_segments()))
    along, score = pieces[:, 1] - pieces[:, 0], ring().score(pieces.mean(1), 0.1)
    cosine = torch.nn.functional.cosine_similarity(along, score)
    assert float((cosine > 0.7).double().mean()) > 0.9  # but where the score turns within a cell


def test_the_density_behind_a_learned_score_is_estimated_from_it():
    model, t = ring(), 0.1
    box = [(-2.0, 2.0), (-1.8, 1.8)]
    (x, y), s = on_grid(lambda p: model.score(p, t), box, 161)
    _, exact = on_grid(lambda p: model.log_prob(p, t), box, 161)
    found = potential(s.numpy(), x[1] - x[0], y[1] - y[0])
    offset = found - exact.numpy()
    assert np.ptp(offset) < 5e-3  # a constant, up to the trapezoid rule's h^2/12 |log p''''| L on this grid
    levels = []
    for shown in (model, _Hidden(model)):
        ax = plot.score_field(shown, t, extent=(-2, 2, -2, 2))
        levels.append(next(c for c in ax.collections if hasattr(c, "levels")).levels)
    np.testing.assert_allclose(*levels, rtol=0.02)


def test_conditions_reach_the_model():
    model = _Hidden(ring())
    plain = plot.score_field(model, 0.2, density=False, extent=(-1, 1, -1, 1)).collections[0]
    moved = plot.score_field(model, 0.2, density=False, extent=(-1, 1, -1, 1), shift=torch.ones(1, 2)).collections[0]
    assert np.abs(plain.U - moved.U).max() > 0.01
    with pytest.raises(sg.InvalidInputError, match="condition 'label' is unknown"):
        plot.score_field(model, 0.2, label=3)


def test_levels_enclose_the_shares_of_the_mass():
    known = as_density(SLANTED)
    _, log_p = on_grid(known.log_prob, [(-9.0, 11.0), (-8.0, 4.0)], 401)
    p = log_p.exp().numpy()
    # of a Gaussian in the plane the region that holds a share q is {p >= (1 - q) max p}
    np.testing.assert_allclose(mass_levels(p, (0.9, 0.5)) / p.max(), [0.1, 0.5], rtol=0.01)


def test_a_histogram_is_the_density_of_the_samples():
    x = SLANTED.sample(20_000, seed=0)
    ax = plot.density(x, exact=SLANTED, bins=40, extent=(-5, 7, -7, 5))
    (image,) = ax.images
    p = np.asarray(image.get_array())
    assert p.shape == (40, 40) and image.get_extent() == [-5, 7, -7, 5]
    assert abs(p.sum() * (12 / 40) ** 2 - 1) < 1e-3
    j, i = np.unravel_index(p.argmax(), p.shape)  # rows are x_2, upwards
    assert abs(-5 + (i + 0.5) * 0.3 - 1) < 0.7 and abs(-7 + (j + 0.5) * 0.3 + 2) < 0.7
    (lines,) = (c for c in ax.collections if hasattr(c, "levels"))
    top = 1 / (2 * math.pi * math.sqrt(2 * 0.5 - 0.36))
    np.testing.assert_allclose(lines.levels, [0.05 * top, 0.3 * top, 0.65 * top], rtol=0.02)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["samples", "exact"]


def test_samples_are_scattered_where_they_are_and_a_solution_shows_its_end():
    found = flow_paths()
    ax = plot.density(found, kind="scatter")
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), found.x.numpy())


def test_on_the_line_the_histogram_lies_under_the_exact_curve():
    x = LINE.sample(5000, seed=0)
    for samples in (x, x[:, 0]):
        ax = plot.density(samples, exact=LINE, bins=50)
        assert abs(sum(bar.get_height() * bar.get_width() for bar in ax.patches) - 1) < 1e-9
        at, p = ax.lines[0].get_data()
        np.testing.assert_allclose(p, LINE.log_prob(torch.from_numpy(at)[:, None]).exp().numpy())


def test_marginals_of_any_dimension_are_the_exact_ones():
    covariance = torch.tensor([[1.0, 0.5, 0.0], [0.5, 2.0, 0.3], [0.0, 0.3, 0.5]], dtype=torch.float64)
    mixture = sg.GaussianMixture([[0.0, 1.0, -1.0]], covariances=covariance)
    model = sg.MixtureModel(mixture, sg.VPSDE())
    figure = plot.density(mixture.sample(500, seed=0), exact=model, t=0.3, kind="marginals")
    alpha, sigma = float(model.sde.alpha(0.3)), float(model.sde.sigma(0.3))
    assert len(figure.axes) == 3
    for i, ax in enumerate(figure.axes):
        at, p = ax.lines[0].get_data()
        var = alpha**2 * float(covariance[i, i]) + sigma**2
        gauss = np.exp(-((at - alpha * float(mixture.means[0, i])) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)
        np.testing.assert_allclose(p, gauss, rtol=1e-9)


@pytest.mark.parametrize("kind", ["density", "log_prob", "contour"])
def test_a_known_density_is_drawn_at_its_time(kind):
    model = ring()
    ax = plot.density(model, t=0.3, kind=kind)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    if kind == "contour":
        (lines,) = (c for c in ax.collections if hasattr(c, "levels"))
        assert len(lines.levels) == 3
        return
    values = np.asarray(ax.images[0].get_array())
    centre = model.log_prob(torch.tensor([[(left + right) / 2, (low + high) / 2]], dtype=torch.float64), 0.3)
    wanted = float(centre.exp() if kind == "density" else centre)
    assert abs(values[150, 150] - wanted) < 1e-9
    line = plot.density(sg.MixtureModel(LINE, sg.VPSDE()), t=0.3, kind=kind).lines[0]
    assert len(line.get_xdata()) > 500


@pytest.mark.parametrize("kind", ["density", "log_prob", "contour"])
@pytest.mark.parametrize("t", [None, 0.2])
def test_a_learned_density_is_drawn_along_its_flow(kind, t):
    """A mixture's model that hides its density: what is drawn is the exact one, to the tolerance."""
    model = ring()
    ax = plot.density(_Hidden(model), kind=kind, t=t)
    if kind == "contour":
        assert any(hasattr(c, "levels") for c in ax.collections)
        return
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    x, y = torch.meshgrid(
        torch.linspace(left, right, 101).double(), torch.linspace(low, high, 101).double(), indexing="xy"
    )
    wanted = model.log_prob(torch.stack([x, y], 2).reshape(-1, 2), t or model.sde.t_min).reshape(101, 101).numpy()
    values = np.asarray(ax.images[0].get_array())
    wrong = np.abs(values - (np.exp(wanted) if kind == "density" else wanted))
    seen = wanted > wanted.max() - 6
    assert np.median(wrong[seen]) < 0.05


# ---- schedules


def test_schedules_are_the_processes():
    processes = [sg.VPSDE(), sg.CosineSDE(), sg.LinearPathSDE()]
    figure = plot.schedule(processes, quantities=["alpha", "sigma", "half_log_snr", "diffusion", "drift"])
    assert len(figure.axes) == 5
    for ax, name in zip(figure.axes, ("alpha", "sigma", "half_log_snr", "diffusion", "drift_coefficient")):
        for line, sde in zip(ax.lines, processes):
            t = torch.from_numpy(line.get_xdata())
            assert float(t[0]) == sde.t_min and float(t[-1]) == sde.t_max
            np.testing.assert_allclose(line.get_ydata(), getattr(sde, name)(t).numpy(), rtol=1e-12)
            assert line.get_label() == type(sde).__name__
    assert len(figure.legends) == 1


def test_processes_of_other_lengths_share_relative_time_and_a_logarithmic_scale():
    figure = plot.schedule({"a": sg.VPSDE(), "b": ring(sg.EDMSDE())})
    alpha, sigma, _, _ = figure.axes
    assert alpha.get_xlabel() == r"$t\,/\,t_{\max}$" and alpha.lines[1].get_xdata()[-1] == 1
    assert sigma.get_yscale() == "log" and alpha.get_yscale() == "linear"
    np.testing.assert_allclose(sigma.lines[1].get_ydata()[-1], 80)
    alone = plot.schedule(sg.VPSDE())
    assert [a.get_yscale() for a in alone.axes] == ["linear"] * 4 and not alone.legends
    twice = plot.schedule([sg.VPSDE(), sg.VPSDE(beta_max=10.0), sg.VPSDE()], quantities="alpha")
    assert len({line.get_label() for line in twice.lines}) == 3


# ---- images


def test_pixels_stand_where_they_belong():
    x = torch.linspace(-1, 1, 5 * 16).reshape(5, 1, 4, 4)
    ax = plot.image_grid(x, nrow=3)
    tiles = Mosaic((4, 4), 3, 2)
    assert tiles.scale == 8 and tiles.gap == 1
    picture = np.asarray(ax.images[0].get_array())
    assert picture.shape == (2 * 32 + 1, 3 * 32 + 2, 4) and ax.images[0].get_interpolation() == "nearest"
    for i in range(5):
        top, left = tiles.corner(*divmod(i, 3))
        shown = picture[top : top + 32, left : left + 32]
        wanted = (x[i, 0].double().numpy() + 1) / 2
        np.testing.assert_allclose(shown[..., 0], wanted.repeat(8, 0).repeat(8, 1), atol=1e-7)
        assert (shown[..., 3] == 1).all() and (shown[..., 0] == shown[..., 2]).all()
    assert (picture[32, :, 3] == 0).all() and (
        picture[33:, 66:, 3] == 0
    ).all()  # the gap, and the sixth place, are empty


def test_colour_range_titles_and_what_is_no_number():
    x = torch.zeros(2, 3, 16, 16)
    x[0, 0], x[0, 1], x[1, 2, 0, 0] = 3.0, 1.0, math.nan
    ax = plot.image_grid(x, value_range=(0, 2), titles=torch.tensor([7, 8]), title="all")
    picture = np.asarray(ax.images[0].get_array())
    tiles = Mosaic((16, 16), 2, 1, room=0.22)
    top, left = tiles.corner(0, 1)
    np.testing.assert_allclose(picture[top + 5, 5], [1, 0.5, 0, 1])  # clipped, in the middle, black
    np.testing.assert_allclose(picture[top, left], [0.8, 0.1, 0.1, 1])  # NaN is red
    assert [text.get_text() for text in ax.texts] == ["7", "8"] and ax.get_title() == "all"
    assert all(text.get_position()[1] < top for text in ax.texts)


@pytest.mark.parametrize("c", [1, 2, 3, 4, 5, 9])
def test_images_of_any_number_of_channels_are_drawn(c):
    """Grey, RGB and RGBA over white as Pillow shows them; of other numbers every channel as a grey image of its own."""
    u = torch.randint(0, 256, (3, c, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(c))
    picture = np.asarray(plot.image_grid(u, nrow=2, titles="abc", smooth=False).images[0].get_array())
    scaled = plot.image_grid(u.double() / 127.5 - 1, nrow=2, titles="abc", smooth=False)
    np.testing.assert_allclose(picture, np.asarray(scaled.images[0].get_array()), atol=1e-12)
    parts = 1 if c in (1, 3, 4) else c
    tiles = Mosaic((8, 6), 2 * parts, 2, room=0.22, smooth=False)
    assert picture.shape[:2] == tiles.shape
    for i in range(3 * parts):
        top, left = tiles.corner(*divmod(i, 2 * parts))
        shown = picture[top : top + tiles.tile[0] : tiles.scale, left : left + tiles.tile[1] : tiles.scale, :3]
        own = u[i // parts, i % parts : i % parts + 1] if parts > 1 or c == 1 else u[i]
        image = Image.fromarray(own.permute(1, 2, 0).squeeze(2).numpy())
        if c == 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        np.testing.assert_allclose(shown, np.asarray(image.convert("RGB")) / 255, atol=1.01 / 255)


def test_masks_are_black_and_white():
    picture = np.asarray(plot.image_grid(torch.eye(4, dtype=torch.bool)[None]).images[0].get_array())
    assert picture[0, 0, 0] == 1 and picture[0, -1, 0] == 0


def test_a_strip_has_samples_down_and_times_across():
    found = image_path(n=4, steps=9)
    ax = plot.denoising_strip(found, samples=[2, 0], steps=5)
    picture = np.asarray(ax.images[0].get_array())
    tiles = Mosaic((4, 4), 5, 2)
    for row, sample in enumerate((2, 0)):
        for column, step in enumerate((0, 2, 4, 6, 8)):
            top, left = tiles.corner(row, column)
            wanted = (found.xs[step, sample, 0].numpy() + 1) / 2
            np.testing.assert_allclose(picture[top : top + 32 : 8, left : left + 32 : 8, 0], wanted)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["$t = 1$", "0.75", "0.5", "0.25", "0"]
    chosen = plot.denoising_strip(found, samples=1, steps=[0, -1])
    assert [label.get_text() for label in chosen.get_xticklabels()] == ["$t = 1$", "0"]


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=repr)
def test_a_strip_shows_what_the_model_predicts(sde):
    data = torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4).double()
    model = sg.EmpiricalModel(data, sde)
    model.train()
    found = sg.sample(model, 2, solver="ddim", steps=6, save="all", seed=0)
    ax = plot.denoising_strip(found, samples=2, steps=3, model=model)
    assert model.training
    picture = np.asarray(ax.images[0].get_array())
    tiles = Mosaic((4, 4), 3, 4, group=2)
    for i in range(2):
        keep = [0, 3, 6] if len(found.ts) == 7 else [0, (len(found.ts) - 1) // 2, len(found.ts) - 1]
        for column, k in enumerate(keep):
            top, left = tiles.corner(2 * i + 1, column)
            x, t = found.xs[k, i : i + 1].double(), found.ts[k]
            wanted = x if t == 0 else model(x, t).x0
            shown = picture[top : top + 32 : 8, left : left + 32 : 8, 0]
            np.testing.assert_allclose(shown, (wanted[0, 0].numpy() + 1) / 2, atol=1e-9)
    first = tiles.corner(0, 0)  # the noise: of the data's contrast for EDM, whose states are 80 wide
    x = found.xs[0, 0, 0].double()
    if isinstance(sde, sg.EDMSDE):
        s = model.sigma_data
        x = x * s / math.hypot(s, 80.0)
    shown = picture[first[0] : first[0] + 32 : 8, first[1] : first[1] + 32 : 8, 0]
    np.testing.assert_allclose(shown, ((x + 1) / 2).clamp(0, 1).numpy(), atol=1e-6)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["$x_t$", r"$\hat x_0$"] * 2


# ---- paths and films


def test_paths_of_own_times_are_resampled_on_common_ones():
    ts = torch.tensor([[1.0, 1.0], [0.5, 0.2], [0.0, 0.0], [0.0, 0.0]])  # the second sample's last state repeats
    xs = torch.stack([3 * ts, ts - 1], 2)  # states linear in time: linear interpolation is exact
    path = Path.of(solution(ts, xs))
    at, states = path.resampled(4)
    np.testing.assert_allclose(at, [1.0, 0.5, 0.2, 0.0])
    np.testing.assert_allclose(states, torch.stack([3 * at, at - 1], 1)[:, None].expand(4, 2, 2), atol=1e-15)
    up, _ = Path.of(solution(1 - ts, xs)).resampled(3)
    assert bool((up.diff() > 0).all()) and float(up[0]) == 0 and float(up[-1]) == 1


def test_the_datas_scale_is_unit_at_the_data_and_undoes_the_spread_at_the_noise():
    for sde in (sg.VPSDE(), sg.VESDE(), sg.EDMSDE(), sg.SubVPSDE(), sg.TrigSDE(0.5)):
        scale = Scale(sde, 0.5)
        t = torch.tensor([0.0, sde.t_min, sde.t_max], dtype=torch.float64)
        spread = (sde.alpha(t[1:]) ** 2 * 0.25 + sde.sigma(t[1:]) ** 2).sqrt()
        np.testing.assert_allclose(scale.factor(t)[1:] * spread, 0.5, rtol=1e-12)
        assert float(scale.factor(t)[0]) == 1


def test_a_film_of_points_moves_them_along_the_path(tmp_path):
    found = flow_paths(steps=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        film = plot.animate(found, tmp_path / "a.gif", density=ring(), frames=8, fps=10, dpi=50)
        assert isinstance(film, FuncAnimation)
        del film
    assert not plt.get_fignums()  # written and closed
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 8 and gif.info["loop"] == 0
        frames, durations = [], []
        for k in range(8):
            gif.seek(k)
            frames.append(np.asarray(gif.convert("RGB"), dtype=float))
            durations.append(gif.info["duration"])
    assert durations == [100] * 7 + [1500]
    assert all(np.abs(a - b).max() > 50 for a, b in zip(frames, frames[1:]))
    assert (tmp_path / "a.gif").stat().st_size < 200_000


def test_a_film_can_be_drawn_by_matplotlib_too():
    found = flow_paths(steps=30)
    _, ax = plt.subplots()
    film = plot.animate(found, ax=ax, frames=8, trail=2)
    *tail, head = ax.lines
    kept = torch.linspace(0, len(found.ts) - 1, 8).round().long()
    for k in (0, 5, 7):
        film._draw_frame(k)
        np.testing.assert_array_equal(head.get_xydata(), found.xs[kept[k]].numpy())
        np.testing.assert_array_equal(tail[0].get_xydata(), found.xs[kept[max(0, k - 1)]].numpy())
        assert (
            ax.get_title("left").startswith("t = ")
            and abs(float(ax.get_title("left")[4:]) - float(found.ts[kept[k]])) < 1e-2
        )
    film._draw_was_started = True


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 8)])
def test_a_film_of_images_ends_with_the_samples(shape, tmp_path):
    found = image_path(n=4, shape=shape, steps=12)
    file = tmp_path / "b.gif"
    plot.animate(found, file, dpi=100, nrow=2)
    with Image.open(file) as gif:
        assert gif.n_frames == 12
        gif.seek(11)
        shown = np.asarray(gif.convert("L"), dtype=float) / 255
    wanted = (found.x.reshape(4, -1, 8, 8).mean((1, 2, 3)) + 1) / 2
    h, w = shown.shape
    top = h - w  # the caption is above the square of images
    mean = [shown[top + r * w // 2 + 8 : top + (r + 1) * w // 2 - 8, c * w // 2 + 8 : (c + 1) * w // 2 - 8].mean()
            for r in range(2) for c in range(2)]  # fmt: skip
    np.testing.assert_allclose(mean, wanted.numpy(), atol=0.06)  # of 64 pixels a tile, those near its edge are cut
    own = flow_paths(solver="dopri5", steps=None, rtol=1e-3)
    plot.animate(own, file, frames=5, dpi=50)
    with Image.open(file) as gif:
        assert gif.n_frames == 5


# ---- work and precision


@dataclass
class _Row:
    solver: str
    nfe: float
    error: float | torch.Tensor


def test_lines_are_the_tables_rows_in_order_of_cost():
    rows = [_Row("b", 32, 1e-3), _Row("a", 8, 0.5), _Row("b", 8, 1e-1), _Row("a", 32, torch.tensor(0.125))]
    rows += [_Row("a", 64, math.nan), _Row("a", 128, 0.0), _Row("c", 8, math.inf)]

    class Table:
        def __init__(self, rows):
            self.rows = rows

    for table in (rows, Table(rows), [vars(row) for row in rows], iter(rows)):
        ax = plot.work_precision(table, orders=())
        assert [line.get_label() for line in ax.lines] == ["b", "a"]
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[8, 1e-1], [32, 1e-3]])
        np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[8, 0.5], [32, 0.125]])
        assert ax.get_xscale() == ax.get_yscale() == "log"


def test_tolerances_are_a_line_of_their_own_beside_budgets():
    settings = [("8 steps", 8), ("rtol=0.1", 10), ("16 steps", 16), ("rtol=0.01", 20)]
    rows = [{"solver": "adams", "setting": setting, "nfe": n, "error": 1 / n} for setting, n in settings]
    rows.append({"solver": "dopri5", "setting": "rtol=0.1", "nfe": 30, "error": 0.1})
    ax = plot.work_precision(rows, orders=())
    found = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert found == {"adams": [8, 16], "adams (tolerance)": [10, 20], "dopri5": [30]}
    budgets, tolerances, other = (line.get_color() for line in ax.lines)
    assert budgets == tolerances != other


def test_the_dotted_lines_have_the_slopes_of_the_orders():
    ax = plot.work_precision(ROWS)
    dotted = {line.get_label(): np.log(line.get_xydata()) for line in ax.lines if line.get_linestyle() == ":"}
    assert list(dotted) == ["_order 1", "_order 2"]  # what the lines come near
    for p, points in enumerate(dotted.values(), 1):
        slope = (points[1, 1] - points[0, 1]) / (points[1, 0] - points[0, 0])
        assert abs(slope + p) < 1e-9
    asked = plot.work_precision(ROWS, orders=[4], cost="seconds")
    assert [line.get_label() for line in asked.lines] == ["euler", "heun", "_order 4"]
    assert asked.get_xlabel() == "seconds"


# ---- wrong input

POINTS = torch.zeros(4, 2)


def _last() -> sg.Solution:
    return sg.sample(ring(), 3, solver="ddim", steps=3, seed=0)


WRONG = {
    "a path was not saved": (lambda: plot.trajectories(_last()), r"1 saved time.*save='all'"),
    "a strip without a path": (lambda: plot.denoising_strip(_last()), "save='all'"),
    "a film without a path": (lambda: plot.animate(_last()), "save='all'"),
    "no solution": (lambda: plot.trajectories(POINTS), "got paths=a Tensor .*expected a Solution"),
    "a list of other things": (lambda: plot.trajectories([POINTS]), "expected a Solution, a list"),
    "an empty list": (lambda: plot.trajectories([]), "got list"),
    "no samples": (lambda: plot.trajectories(solution([1.0, 0.0], torch.zeros(2, 0, 2))), "holds no samples"),
    "images as points": (lambda: plot.trajectories(image_path()), "shape \\(1, 4, 4\\).*denoising_strip"),
    "points in space": (lambda: plot.trajectories(solution([1.0, 0.0], torch.zeros(2, 3, 3))), "one or two dim"),
    "nothing finite": (lambda: plot.trajectories(solution([1.0, 0.0], torch.full((2, 1, 2), math.nan))), "no finite"),
    "mixed dimensions": (
        lambda: plot.trajectories([flow_paths(), solution([1.0, 0.0], torch.zeros(2, 3, 1))]),
        "draw them apart",
    ),
    "a frame": (
        lambda: plot.trajectories(flow_paths(), frame="unit"),
        "frame='unit', expected one of 'auto', 'x', 'data'",
    ),
    "a frame without a process": (
        lambda: plot.trajectories(flow_paths(), frame="data"),
        "needs the process: pass sde=",
    ),
    "a density that is none": (
        lambda: plot.trajectories(flow_paths(), density=_Hidden(ring())),
        "GaussianMixture or a",
    ),
    "a density of other dimension": (lambda: plot.trajectories(flow_paths(), density=LINE), "over 1 dim.*over 2"),
    "p_t of a mixture without a process": (
        lambda: plot.trajectories(solution([1.0, 0.0], torch.zeros(2, 3, 1)), density=LINE),
        "pass sde=",
    ),
    "an unknown word": (lambda: plot.trajectories(flow_paths(), colour="red"), "colour: no option of trajectories"),
    "kinds": (lambda: plot.trajectories(ring(), kinds="backward"), "expected some of 'forward'"),
    "steps": (lambda: plot.trajectories(ring(), steps=0), "steps=0, expected a whole number"),
    "data": (
        lambda: plot.trajectories(ring(), data=torch.zeros(3, 4)),
        r"shape \(3, 4\): expected a tensor of shape \(B, 2",
    ),
    "a model of images": (lambda: plot.trajectories(_images_model()), "events of shape \\(1, 8, 8\\)"),
    "too few axes": (lambda: plot.trajectories(ring(), ax=plt.subplots()[1]), "holds 1 Axes, this picture has 3"),
    "no axes": (lambda: plot.image_grid(torch.zeros(1, 4, 4), ax=plt.figure()), "got ax=.Figure .*expected an Axes"),
    "no model": (lambda: plot.score_field(RING, 0.1), "got model=GaussianMixture.*expected a ScoreModel"),
    "a time outside": (lambda: plot.score_field(ring(), 1.5), r"time 1.5 is outside \[t_min, t_max\]"),
    "a time that is none": (lambda: plot.score_field(ring(), "now"), "got t='now', expected a number"),
    "a kind of field": (lambda: plot.score_field(ring(), 0.1, kind="heat"), "expected 'quiver' or 'stream'"),
    "a field on the line": (lambda: plot.score_field(sg.MixtureModel(LINE, sg.VPSDE()), 0.1), "1 dimensions"),
    "an extent": (
        lambda: plot.score_field(ring(), 0.1, extent=(1, -1, 0, 1)),
        r"expected \(left, right, bottom, top\)",
    ),
    "samples in space": (lambda: plot.density(torch.zeros(5, 3)), r"samples\[:, :2\], or kind='marginals'"),
    "images as samples": (lambda: plot.density(torch.zeros(5, 1, 8, 8)), "image_grid"),
    "no samples to count": (lambda: plot.density(torch.zeros(0, 2)), "no samples"),
    "samples with NaN": (lambda: plot.density(torch.full((3, 2), math.nan)), "NaN"),
    "a kind of samples": (lambda: plot.density(POINTS, kind="log_prob"), "of samples expected 'hist'"),
    "a kind of density": (lambda: plot.density(RING, kind="hist"), "of a known density expected"),
    "exact twice": (lambda: plot.density(RING, exact=RING), "exact= goes with samples"),
    "exact of other dimension": (lambda: plot.density(POINTS, exact=LINE), "over 1 dimensions, the samples over 2"),
    "a mixture at a time": (lambda: plot.density(RING, t=0.5), "has no time: pass MixtureModel"),
    "a density of points": (lambda: plot.density(sg.GaussianMixture([[0.0, 0.0]], std=0.0)), "deviation of 0"),
    "a learned density as exact": (lambda: plot.density(POINTS, exact=_Hidden(ring())), "or a MixtureModel"),
    "a learned density of images": (
        lambda: plot.density(_images_model(), kind="log_prob"),
        "images go to image_grid",
    ),
    "no process": (lambda: plot.schedule("vp"), "expected a process such as VPSDE"),
    "no processes": (lambda: plot.schedule([]), "no processes"),
    "a quantity": (lambda: plot.schedule(sg.VPSDE(), quantities="beta"), "expected some of 'alpha'"),
    "one image alone": (lambda: plot.image_grid(torch.zeros(8, 8)), r"one image alone is x\[None\]"),
    "channels last": (lambda: plot.image_grid(torch.zeros(2, 8, 8, 3)), r"channels last are x.permute\(0, 3, 1, 2\)"),
    "no images": (lambda: plot.image_grid(torch.zeros(0, 8, 8)), "nothing to draw"),
    "an array": (lambda: plot.image_grid(np.zeros((1, 8, 8))), "got x=a ndarray .*expected a torch.Tensor"),
    "nrow": (lambda: plot.image_grid(torch.zeros(1, 8, 8), nrow=0), "nrow=0"),
    "titles": (lambda: plot.image_grid(torch.zeros(2, 8, 8), titles=["a"]), "1 words for 2 images"),
    "a range": (lambda: plot.image_grid(torch.zeros(2, 8, 8), value_range=(1, 0)), "expected low < high"),
    "samples of a strip": (lambda: plot.denoising_strip(image_path(), samples=[5]), "expected numbers below 3"),
    "points as a strip": (lambda: plot.denoising_strip(flow_paths(), frame="x"), "draw points with traj"),
    "a model of a strip": (lambda: plot.denoising_strip(image_path(), model=RING), "got model=GaussianMixture"),
    "a film's format": (lambda: plot.animate(flow_paths(), "a.mp4"), "writes .gif"),
    "a film's folder": (lambda: plot.animate(flow_paths(), "/nowhere/a.gif"), "no folder '/nowhere'"),
    "a film's frames": (lambda: plot.animate(flow_paths(), frames=0), "frames=0"),
    "a film's speed": (lambda: plot.animate(flow_paths(), fps=0), "fps=0"),
    "a film on the line": (
        lambda: plot.animate(solution([1.0, 0.0], torch.zeros(2, 3, 1))),
        "expected points \\(2,\\)",
    ),
    "no table": (lambda: plot.work_precision(3), "table=3, expected a list of rows"),
    "an empty table": (lambda: plot.work_precision([]), "it has no rows"),
    "a row without a field": (
        lambda: plot.work_precision([{"solver": "a", "nfe": 3}]),
        "no field 'error'.*solver, nfe",
    ),
    "nothing finite in the table": (
        lambda: plot.work_precision([{"solver": "a", "nfe": 3, "error": math.nan}]),
        "none of 1 rows has a positive finite nfe and error",
    ),
    "a word for a number": (lambda: plot.work_precision([{"solver": "a", "nfe": "x", "error": 1}]), "nfe is 'x'"),
    "save what": (lambda: plot.save("a", "a.png"), "got drawing='a'"),
    "save where": (lambda: plot.save(plt.figure(), "/nowhere/a.png"), "no folder '/nowhere'"),
}


def _images_model() -> sg.ScoreModel:
    return sg.EmpiricalModel(torch.zeros(2, 1, 8, 8) + torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), sg.VPSDE())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_says_the_cure(name):
    call, message = WRONG[name]
    with pytest.raises(sg.InvalidInputError, match=message):
        call()


def test_a_failure_leaves_no_figure_open():
    class Broken(_Hidden):
        def forward(self, x, t):
            raise RuntimeError("broken")

    mine = plt.figure()
    with pytest.raises(RuntimeError, match="broken"):
        plot.score_field(Broken(ring()), 0.1)
    assert plt.get_fignums() == [mine.number]
