"""What a reader sees at a glance: nothing leaves its panel, colours stand out, few points are points, films tell p_t."""

import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

import sdegen as sg
from sdegen import plot
from sdegen.plot.densities import MASSES
from sdegen.plot.images import Mosaic
from sdegen.plot.style import PALETTE, TIME

RING = sg.data.toys.ring(8)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def lines_of(a):
    return [np.array(line) for c in a.collections if isinstance(c, LineCollection) for line in c.get_segments()]


# ---- limits


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.LinearPathSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_no_drawn_path_leaves_its_axes_and_panels_share_limits(sde, seed):
    figure = plot.trajectories(sg.MixtureModel(RING, sde), seed=seed, steps=40)
    panels = figure.axes[:3]
    for a in panels:
        pieces = np.concatenate(lines_of(a))
        low, high = np.array([a.get_xlim(), a.get_ylim()]).T
        assert (pieces >= low).all() and (pieces <= high).all()
        assert a.get_xlim() == panels[0].get_xlim() and a.get_ylim() == panels[0].get_ylim()


def test_a_panel_says_how_many_paths_have_a_line():
    model = sg.MixtureModel(RING, sg.VPSDE())
    rough = sg.sample(model, 50, solver="ancestral", steps=40, save="all", seed=0)
    smooth = sg.sample(model, 50, solver="ddim", steps=40, save="all", seed=0)
    figure = plot.trajectories({"rough": rough, "smooth": smooth})
    said = [[t.get_text() for t in a.texts] for a in figure.axes[:2]]
    assert said == [["5 of 50 paths"], []]
    assert [len(lines_of(a)) for a in figure.axes[:2]] == [5 * 40, 50 * 40]
    legend = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert legend == ["start", "end"]


def test_a_path_that_runs_away_is_left_out_and_told():
    model = sg.MixtureModel(RING, sg.VPSDE())
    found = sg.sample(model, 200, solver="ddim", steps=10, save="all", seed=0)
    found.xs[3, 4] = 1e6
    a = plot.trajectories(found, lines=200)
    assert a.texts[0].get_text() == "199 of 200 paths, 1 leave the picture"
    assert a.get_xlim()[1] < 10


# ---- colours


def luminance(colour):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour, other):
    """WCAG 2's ratio."""
    high, low = sorted((luminance(colour), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*PALETTE, *(TIME(u)[:3] for u in np.linspace(0, 1, 11))])
def test_colours_stand_out_from_white_and_from_black(colour):
    assert contrast(colour, "white") > 2 and contrast(colour, "black") > 2


def test_lightness_alone_tells_times_apart():
    light = [luminance(TIME(u)[:3]) for u in np.linspace(0, 1, 21)]
    assert all(a < b for a, b in zip(light[:-1], light[1:], strict=True))


# ---- densities of samples


@pytest.mark.parametrize(("n", "points"), [(300, True), (6000, False)])
def test_few_samples_are_points_and_many_a_histogram(n, points):
    a = plot.density(RING.sample(n, seed=0))
    assert bool(a.images) != points
    if points:
        assert len(a.collections[0].get_offsets()) == n


# ---- images


def test_small_images_are_drawn_smoothly_and_larger_ones_pixel_by_pixel():
    x = torch.zeros(2, 8, 8)
    x[0, 4, 4] = 1.0
    smooth, sharp = (np.asarray(plot.image_grid(x, smooth=s).images[0].get_array()) for s in (None, False))
    assert len(np.unique(sharp[..., 0][sharp[..., 3] > 0])) == 2 < len(np.unique(smooth[..., 0].round(6)))
    # interpolation keeps each pixel at its centre, and a flat image flat
    tiles = Mosaic((8, 8), 2, 1)
    assert smooth[4 * tiles.scale + tiles.scale // 2, 4 * tiles.scale + tiles.scale // 2, 0] > 0.9
    other = smooth[: tiles.tile[0], tiles.tile[1] + tiles.gap :, 0]
    np.testing.assert_allclose(other, 0.5, atol=1e-12)
    large = np.asarray(plot.image_grid(x.repeat(1, 4, 4)).images[0].get_array())
    assert len(np.unique(large[..., 0][large[..., 3] > 0])) == 2


def test_columns_are_named_above_the_first_row():
    a = plot.image_grid(torch.zeros(6, 1, 8, 8), nrow=3, columns=["shirt", "bag", "boot"])
    assert [t.get_text() for t in a.texts] == ["shirt", "bag", "boot"]
    at = [t.get_position() for t in a.texts]
    assert at[0][0] < at[1][0] < at[2][0] and len({y for _, y in at}) == 1 and at[0][1] < 0
    with pytest.raises(sg.InvalidInputError, match="columns holds 2 words for 3 columns"):
        plot.image_grid(torch.zeros(6, 1, 8, 8), nrow=3, columns=["a", "b"])


def test_rows_are_named_to_the_left_of_their_first_image():
    a = plot.image_grid(torch.zeros(5, 1, 8, 8), nrow=3, rows=["real", "made by a model of a long name"])
    assert [t.get_text() for t in a.texts] == ["real", "made by a model of a long name"]
    tiles = Mosaic((8, 8), 3, 2)
    for i, t in enumerate(a.texts):
        x, y = t.get_position()
        assert x < -0.5 and tiles.corner(i, 0)[0] < y < tiles.corner(i, 0)[0] + tiles.tile[0]
    figure = a.get_figure()
    figure.canvas.draw()
    assert all(t.get_window_extent().x0 >= 0 for t in a.texts)  # nothing is cut off
    with pytest.raises(sg.InvalidInputError, match="rows holds 1 words for 2 rows"):
        plot.image_grid(torch.zeros(5, 1, 8, 8), nrow=3, rows=["a"])


def test_a_grid_of_a_solution_says_what_made_it():
    model = sg.EmpiricalModel(torch.rand(5, 1, 8, 8), sg.VPSDE())
    found = sg.sample(model, 4, solver="ddim", steps=7, seed=0)
    assert plot.image_grid(found).get_title() == "ddim, 7 evaluations"
    assert plot.image_grid(found, title="mine").get_title() == "mine"
    assert plot.image_grid(found.x).get_title() == ""


# ---- films


def test_the_density_behind_a_film_is_that_of_the_frame():
    model = sg.MixtureModel(RING, sg.VPSDE())
    found = sg.sample(model, 400, solver="ddim", steps=12, save="all", seed=0)
    film = plot.animate(found, density=model)
    shown = film._fig.axes[0].images[0]
    inside = []
    for k in (0, 6, 12):
        film._func(k)
        shares = shown.get_array()
        # the darkest region holds the smallest share of p_t: compare with p_t itself on the same grid
        side = shares.shape[0]
        x, y = (np.linspace(*limits, side) for limits in (film._fig.axes[0].get_xlim(), film._fig.axes[0].get_ylim()))
        points = torch.tensor(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
        t = min(max(float(found.ts[k]), model.sde.t_min), 1.0)
        p = model.log_prob(points, t).exp().reshape(side, side).numpy()
        held = [p[(shares.filled(0) * len(MASSES)).round() >= j].sum() / p.sum() for j in range(1, len(MASSES) + 1)]
        np.testing.assert_allclose(held, sorted(MASSES, reverse=True), atol=0.05 if k < 12 else 0.15)
        inside.append(int((~np.ma.getmaskarray(shares)).sum()))
    assert inside[0] > 2 * inside[2]  # noise is wide, data narrow
    assert film._repr_html_().count("data:image/png;base64") == len(found.ts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del film


# ---- a run


def test_a_history_is_drawn_by_step_and_by_level():
    model = sg.Denoiser(sg.nets.MLP(2), sg.VPSDE())
    run = sg.fit(model, RING.sample(500, seed=0), steps=40, batch_size=64, seed=0)
    figure = plot.history(run)
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), run.loss.numpy())
    assert math.isclose(np.mean(left.lines[1].get_ydata()), float(run.loss.mean()), rel_tol=0.02)
    np.testing.assert_allclose(right.patches[0].get_data().values, run.loss_by_level.loss.numpy())
    for wrong, words in ((run.loss, "expected a History"), (None, "expected a History")):
        with pytest.raises(sg.InvalidInputError, match=words):
            plot.history(wrong)


def test_completion_offers_the_public_names_alone():
    assert set(dir(plot)) == set(plot.__all__)
    assert set(dir(sg)) == {*sg.__all__, "__version__"}


def test_a_backend_that_becomes_interactive_with_the_first_figure_stays_so():
    """Notebooks load theirs there; pictures after the first would not be shown."""
    import matplotlib

    before = matplotlib.is_interactive()
    try:
        for wanted in (True, False):
            with sg.plot.style():
                matplotlib.interactive(wanted)
            assert matplotlib.is_interactive() == wanted
    finally:
        matplotlib.interactive(before)
