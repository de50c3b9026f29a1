"""The noise level at which half of the data is told, and what solvers that choose for themselves make of it."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen as sg
from sdegen.models.facts import spread_out, turning_level, turning_of
from sdegen.solvers.multistep.adams.grid import AdamsPlan

F64 = torch.float64


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("s", [1e-4, 0.3, 7.0])
def test_of_round_data_it_is_their_standard_deviation(s):
    assert turning_level(torch.full((5,), s**2, dtype=F64)) == pytest.approx(s, rel=1e-9)


def test_it_scales_with_the_data_and_lies_where_half_of_the_best_linear_guess_is_told():
    c = normals(40).exp() ** 3
    level = turning_level(c)
    told = (c**2 / (c + level**2)).sum() / c.sum()
    assert float(told) == pytest.approx(0.5, rel=1e-9)
    assert turning_level(9 * c) == pytest.approx(3 * level, rel=1e-9)
    assert turning_level(torch.cat([c, torch.zeros(100)])) == pytest.approx(level, rel=1e-9)
    assert turning_level(torch.zeros(3)) == 0.0


@pytest.mark.parametrize("n, d", [(4000, 3), (300, 4000)])
def test_samples_have_that_of_their_covariance(n, d):
    """Few samples of many numbers, too: their axes are those of the Gram matrix."""
    widths = torch.cat([torch.tensor([5.0, 3.0, 2.0], dtype=F64), torch.full((d - 3,), 1e-3, dtype=F64)])
    found = turning_of(normals(n, d) * widths + 4.0)
    assert found == pytest.approx(turning_level(widths**2), rel=0.1)


def test_rows_are_taken_from_the_whole_set():
    rows = spread_out(torch.arange(100_000.0)[:, None])
    assert len(rows) == 512 and float(rows[0]) == 0 and float(rows[-1]) == 99_999


def test_a_mixtures_model_knows_it_at_its_own_and_at_labels():
    mixture = sg.GaussianMixture([[-4.0, 0.0], [4.0, 0.5]], std=0.3)
    level = turning_level(torch.linalg.eigvalsh(mixture.covariance))
    for model in (sg.MixtureModel(mixture, sg.VPSDE()), sg.MixtureModel(mixture, sg.VPSDE(), labels=[0, 1])):
        for seen in (model, model.on(sg.EDMSDE()), sg.Wrapped(model)):
            assert seen.data.turning == pytest.approx(level, rel=1e-9)
    empirical = sg.EmpiricalModel(mixture.sample(3000, seed=0), sg.VPSDE())
    assert empirical.data.turning == pytest.approx(level, rel=0.05)


def network(**known) -> sg.Denoiser:
    torch.manual_seed(0)
    return sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), **known)


def test_fit_measures_it_and_files_and_dicts_keep_it(tmp_path):
    """From all of the data, however they are ordered; where nothing is known of the turn, nothing is presumed."""
    x = torch.cat([normals(3000, 2) * 0.1 + 2, normals(3000, 2, seed=1) * 0.1 - 2]).float()
    model = network()
    assert model.data_turn is None and model.data.turning is None
    before = list(model.state_dict())
    sg.fit(model, x, steps=2, batch_size=8, seed=0, progress=False)
    assert model.data.turning == pytest.approx(turning_of(x), rel=0.02)
    assert list(model.state_dict()) == before and "known_turn" in before  # averages pair buffers by their order
    sg.save(model, tmp_path / "model")
    assert torch.equal(sg.load(tmp_path / "model").data_turn, model.data_turn)
    other = network()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.data_turn, model.data_turn)
    old = {name: value for name, value in model.state_dict().items() if name != "known_turn"}
    fresh = network()
    fresh.load_state_dict(old)  # of a version that did not know it
    assert fresh.data_turn is None


def test_a_fit_that_keeps_a_known_scale_keeps_its_turn():
    x = normals(500, 2).float()
    model = network(data_mean=0.0, data_std=1.0)
    model.data_turn = 3.0
    sg.fit(model, x, steps=1, batch_size=8, seed=0, progress=False, statistics="keep")
    assert float(model.data_turn) == 3.0
    sg.fit(model, x, steps=1, batch_size=8, seed=0, progress=False, statistics="measure")
    assert float(model.data_turn) == pytest.approx(turning_of(x), rel=0.02)


@pytest.mark.parametrize("kind", ["turn", "turn-time"])
def test_an_unknown_turn_is_not_taken_for_one(kind):
    """Steps are then laid by the scale alone: in 16 dimensions modes part far above 0.4 standard deviations."""
    law = sg.MixtureModel(sg.GaussianMixture(normals(4, 16) * 1.5, std=0.2), sg.VPSDE())
    known = sg.grid(law, 12, kind=kind)
    law.data_covariance = law.data_turn = None
    unknown = sg.grid(law, 12, kind=kind)
    assert law.data.turning is None and not torch.equal(known, unknown)
    if kind == "turn":
        assert torch.equal(unknown, sg.grid(law, 12, kind="blend"))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, [1.0, 2.0]])
def test_what_is_no_level_is_refused(value):
    with pytest.raises(sg.InvalidInputError, match="turn"):
        network().data_turn = value


# ---- what becomes of it


def test_grids_of_auto_move_with_the_turn():
    """Twice the level is where twice the noise is, both for exact scores and for networks."""
    for kind in ("turn", "turn-time"):
        model = network(data_mean=0.0, data_std=1.0)
        middles = []
        for turn in (0.5, 1.0, 2.0, 4.0):
            model.data_turn = turn
            ts = sg.grid(model, 20, kind=kind, t_span=(1.0, 1e-3))
            middles.append(float(model.sde.half_log_snr(ts[10])))
        assert all(a > b + 0.1 for a, b in zip(middles, middles[1:], strict=False)), middles


def test_networks_are_not_extrapolated_from_the_noisiest_slope_and_end_with_low_order():
    ts = torch.linspace(1.5, 0.1, 9, dtype=F64)
    plan = AdamsPlan.of(ts, (3, 3), left=8)
    count = [sum(w != 0 for w in row) for row in plan.predictor]
    assert count == [1, 1, 2, 3, 3, 3, 2, 1]
    assert [len(row) for row in plan.corrector] == [2, 3, 3, 3, 3, 3, 3, 2]
    denoised = AdamsPlan.of(ts, (3, 3), left=9)  # the final denoising is the last step
    assert [len(row) for row in denoised.predictor] == [1, 1, 2, 3, 3, 3, 3, 2]
    assert [len(row) for row in AdamsPlan.of(ts, (3, 3)).predictor] == [1, 2, 3, 3, 3, 3, 3, 3]


def test_the_slope_at_t_max_counts_for_less_in_the_second_corrector_of_a_network():
    """.4 of its weight, and the weights still step by the length of the step."""
    ts = torch.linspace(1.5, 0.1, 13, dtype=F64) ** 1.3
    full, less = AdamsPlan.of(ts, (3, 3)), AdamsPlan.of(ts, (3, 3), left=13)
    assert less.corrector[1][2] == pytest.approx(0.4 * full.corrector[1][2], rel=1e-12)
    assert sum(less.corrector[1]) == pytest.approx(float(ts[2] - ts[1]), rel=1e-12)
    assert less.corrector[2:-1] == full.corrector[2:-1]
    few = ts[[0, 2, 4, 6, 9, 12]]
    one, two = (AdamsPlan.of(few, (2, 3), left=5, rests=r, lands=True).predictor[1] for r in (False, True))
    assert one[1] == pytest.approx(two[1] / 2, rel=1e-12) and sum(one) == pytest.approx(sum(two), rel=1e-12)
    assert AdamsPlan.of(ts, (3, 3), left=12, lands=True).predictor[1][1] == 0
    known = AdamsPlan.of(ts, (3, 3), left=13, rests=True)
    assert known.corrector[1] == full.corrector[1]
    assert [len(row) for row in known.predictor[:4]] == [1, 2, 2, 3]


def test_that_is_for_networks_on_the_way_down():
    class Of(torch.nn.Module):
        def forward(self, x, t):
            return model(x, t.double()).x0.to(x.dtype)

    mixture = sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4]], std=0.3)
    model = sg.MixtureModel(mixture, sg.VPSDE())
    known = {"data_mean": mixture.mean, "data_std": model.data_std}
    rough = sg.Denoiser(Of(), sg.VPSDE(), parametrization="x0", **known)
    smooth = sg.Denoiser(Of(), sg.VPSDE(), parametrization="x0", **known, smooth=True)
    ts = sg.grid(rough, 9, kind="turn-time", t_span=(1.0, 1e-3))
    told, x = sg.make_solver("adams", order=(3, 3)), normals(8, 2)

    def end(model, ts, solver="adams"):
        return sg.sample(model, x.shape, x_init=x, solver=solver, steps=ts).x if ts[0] > ts[-1] else sg.encode(
            model, x, solver=solver, steps=ts).x  # fmt: skip

    assert float((end(rough, ts) - end(rough, ts, told)).abs().max()) > 1e-4
    assert torch.equal(end(rough, ts.flip(0)), end(rough, ts.flip(0), told))
    assert torch.equal(end(smooth, ts[:9]), end(smooth, ts[:9], sg.make_solver("adams", order=(2, 3))))


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=["vp", "edm"])
def test_clustered_data_are_ahead_of_published_solvers_on_their_best_grid(sde):
    """A ring of narrow modes and data along few axes; 200 noises, errors over the best of sixteen settings."""
    thin = normals(3, 2, 2, seed=4)
    axes = torch.linalg.qr(thin)[0] * torch.tensor([0.4, 0.02], dtype=F64)
    mixtures = [sg.data.toys.ring(8, std=0.05), sg.GaussianMixture(normals(3, 2, seed=5), covariances=axes @ axes.mT)]
    most = {8: 0.85, 20: 0.6, 50: 0.12}
    ratios: dict[int, list[float]] = {n: [] for n in most}
    for mixture in mixtures:
        model, span = sg.MixtureModel(mixture, sde), (sde.t_max, sde.t_min)
        x = model.data.prior.noisy(normals(200, 2, seed=6), float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max)))
        how = {"x_init": x, "dtype": F64, "progress": False}
        exact = sg.sample(model, x.shape, rtol=1e-9, t_span=span, **how).x

        def error(found):
            return float((found.x - exact).square().mean().sqrt())  # noqa: B023

        for n in most:
            peers = [
                error(sg.sample(model, x.shape, solver=name, steps=sg.grid(model, n, kind=kind, t_span=span), **how))
                for name in ("unipc2", "unipc3", "dpm++2m", "dpm++3m")
                for kind in ("uniform", "karras", "lambda", "blend")
            ]
            ratios[n].append(error(sg.sample(model, x.shape, steps=n, t_span=span, **how)) / min(peers))
    for n, bound in most.items():
        assert math.exp(sum(math.log(r) for r in ratios[n]) / len(ratios[n])) < bound, (n, ratios)
