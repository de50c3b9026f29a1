"""The Gaussian start: exact where the data are Gaussian, refused per sample where they are not, better where it is taken."""

import math

import pytest
import torch

import sdegen as sg
from sdegen.distributions.gaussian import Gaussian
from sdegen.models.base import OnPath
from sdegen.solvers.multistep.adams import tolerance as by_tolerance
from sdegen.solvers.multistep.gaussian_start import GaussianStart, newton_table, slope_above

COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.1]], dtype=torch.float64)
MEAN = [[1.0, -2.0, 0.5]]


def gaussian_model(sde=None):
    return sg.MixtureModel(sg.GaussianMixture(MEAN, covariances=COVARIANCE), sde or sg.VPSDE())


def ring_model(sde=None):
    means = [[math.cos(a), math.sin(a)] for a in torch.arange(8).mul(math.pi / 4).tolist()]
    return sg.MixtureModel(sg.GaussianMixture(means, std=0.1), sde or sg.VPSDE())


def oblong_model(sde):
    means = [[-1.0, 0.3, 0.0], [1.0, -0.4, 0.2], [0.2, 1.5, -0.1]]
    return sg.MixtureModel(sg.GaussianMixture(means, std=0.2, weights=[0.5, 0.3, 0.2]), sde)


def exact_flow(model, x, t, t_next):
    """x' = alpha' mu + ((alpha'^2 C + sigma'^2)/(alpha^2 C + sigma^2))^(1/2) (x - alpha mu), by eigenvectors."""
    (a, b), (c, d) = ((float(model.sde.alpha(u)), float(model.sde.sigma(u))) for u in (t, t_next))
    values, axes = torch.linalg.eigh(COVARIANCE)
    ratio = ((c**2 * values + d**2) / (a**2 * values + b**2)).sqrt()
    mean = torch.tensor(MEAN[0], dtype=torch.float64)
    return c * mean + ((x - a * mean) @ axes * ratio) @ axes.T


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.SubVPSDE(), sg.LinearPathSDE()], ids=repr)
def test_the_leap_is_the_exact_flow_of_gaussian_data(sde):
    """On a grid whose only step is the leap: no evaluation, and the closed form to rounding."""
    model = gaussian_model(sde)
    x = sde.prior((20, 3), seed=1, dtype=torch.float64)
    middle = float(sde.time(torch.tensor(-math.log(3.0), dtype=torch.float64)))
    solution = sg.sample(
        model, (20, 3), x_init=x, solver=sg.make_solver("adams", start="gaussian"), steps=[sde.t_max, middle]
    )
    assert solution.calls == 0
    torch.testing.assert_close(solution.x, exact_flow(model, x, sde.t_max, middle), rtol=1e-12, atol=1e-12)


def test_nothing_is_left_over_at_the_landing_of_gaussian_data():
    model = gaussian_model().on(sg.TrigSDE(1.0))
    term = sg.ProbabilityFlow(model)
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = x - 0 * x
    leap = GaussianStart.planned(term, Gaussian.of_covariance(COVARIANCE), model.sde.t_max, 1.2, x)
    there = leap.at(centred, 1.2)
    slope = leap.slope(there, 1.2)
    _, past, correction = leap.corrected(centred, there, slope)
    assert float(correction.abs().max()) == 0.0
    for t, v in zip(leap.past, past, strict=True):  # and the slopes are the derivative of the leap
        h = 1e-6
        difference = (leap.at(centred, t + h) - leap.at(centred, t - h)) / (2 * h)
        torch.testing.assert_close(v, difference, rtol=1e-7, atol=1e-8)


def test_correction_is_of_the_order_that_it_says():
    """Doubling the noise level of the landing divides what the corrected leap leaves by about 2^4: the skewness, which
    goes like 2^-3, is taken away. (2^3 and 2^2 without the whole covariance or without the correction.)"""
    mixture = sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4], [0.2, 1.5]], std=0.3, weights=[0.5, 0.3, 0.2])
    own = sg.MixtureModel(mixture, sg.EDMSDE(sigma_max=2000.0))
    x = own.sde.prior((100, 2), seed=0, dtype=torch.float64)
    left = []
    for level in (8.0, 16.0, 32.0):
        end = level / own.sigma_data
        times = [own.sde.t_max, level * own.sigma_data, level * own.sigma_data * (1 - 1e-4)]
        exact = sg.sample(own, (100, 2), x_init=x, solver="dopri5", rtol=1e-13, t_span=(times[0], times[2])).x
        got = sg.sample(own, (100, 2), x_init=x, solver=sg.make_solver("adams", start="gaussian"), steps=times).x
        left.append(float((got - exact).square().mean().sqrt()) / end)  # an error shrinks by this on its way to data
    slopes = [math.log2(a / b) for a, b in zip(left, left[1:], strict=False)]
    assert all(3.7 < s < 4.6 for s in slopes), (left, slopes)


@pytest.mark.parametrize("whole", [True, False])
def test_past_slopes_are_those_of_the_flow_to_first_order(whole):
    """What they miss of the flow's slope, beside what the Gaussian's misses, halves where the noise level doubles; with
    the power of another k it would stay."""
    mixture = sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4], [0.0, 0.1]], std=0.3, weights=[0.5, 0.3, 0.2])
    model = sg.MixtureModel(
        sg.GaussianMixture(mixture.means - mixture.mean, std=0.3, weights=mixture.weights), sg.VPSDE()
    )
    term = sg.ProbabilityFlow(model.on(sg.TrigSDE(model.sigma_data, sigma_min=0.1, sigma_max=2000.0)))
    law = None if whole else Gaussian.of_covariance(torch.tensor(model.sigma_data**2))
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = []
    for level in (8.0, 16.0, 32.0):
        start, stop = math.atan(4 * level), math.atan(level)
        leap = GaussianStart.planned(term, law, start, stop, z)
        x = z * model.sigma_data
        there = leap.at(x, stop)
        slopes = leap.corrected(x, there, term.drift(there, torch.tensor(stop, dtype=torch.float64)))[1]
        for t, slope in zip(leap.past, slopes, strict=True):
            y = leap.at(x, t)
            exact = term.drift(y, torch.tensor(t, dtype=torch.float64))
            missed, whole_gap = (
                (exact - slope).square().mean().sqrt(),
                (exact - leap.slope(y, t)).square().mean().sqrt(),
            )
            shares.append(float(missed / whole_gap))
    for coarse, fine in zip(shares, shares[2:], strict=False):
        assert fine < 0.6 * coarse, shares


def test_a_landing_close_below_t_max_is_corrected_by_what_lies_between():
    """From sh = 24 s to 16 s the leap leaves out 1 - (16/24)^3 of what it would from infinity."""
    mixture = sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4], [0.2, 1.5]], std=0.3, weights=[0.5, 0.3, 0.2])
    s = float(mixture.covariance.diagonal().mean().sqrt())
    model = sg.MixtureModel(mixture, sg.EDMSDE(sigma_max=24 * s))
    x = model.sde.prior((100, 2), seed=0, dtype=torch.float64)
    times = [24 * s, 16 * s, 16 * s * (1 - 1e-6)]
    exact, got = (
        sg.sample(model, (100, 2), x_init=x, t_span=None if how.get("steps") else (times[0], times[2]), **how).x
        for how in (
            {"solver": "dopri5", "rtol": 1e-13},
            {"solver": sg.make_solver("adams", start="gaussian"), "steps": times},
        )
    )
    circle = model.on(sg.TrigSDE(s, sigma_max=24 * s))
    centred = x - mixture.mean  # VE: xh is x
    leap = GaussianStart.planned(sg.ProbabilityFlow(circle), None, math.atan(24.0), math.atan(16.0), x)
    plain = leap.at(centred * math.cos(math.atan(24.0)), math.atan(16.0)) / math.cos(math.atan(16.0)) + mixture.mean
    error, without = (float((y - exact).square().mean().sqrt()) for y in (got, plain))
    assert error < 0.2 * without


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=repr)
def test_it_needs_fewer_evaluations_for_a_tolerance_and_errs_less_on_a_grid(sde):
    """Of data whose covariance is not s^2 I: else the circular path alone does what the leap does."""
    model = oblong_model(sde)
    x = sde.prior((64, 3), seed=3, dtype=torch.float64)
    how = {"x_init": x, "t_span": (sde.t_max, sde.t_min)}
    exact = sg.sample(model, (64, 3), solver="dopri5", rtol=1e-12, **how).x
    leaping = sg.make_solver("adams", start="gaussian")

    def error(solution):
        return float((solution.x - exact).square().mean().sqrt())

    for rtol in (1e-3, 1e-5):
        plain, leapt = (sg.sample(model, (64, 3), solver=s, rtol=rtol, **how) for s in ("adams", leaping))
        plain_count, count = (float(run.nfe.double().mean()) for run in (plain, leapt))
        assert count < plain_count * (1 if rtol == 1e-3 else 1.05)  # below that there is little left to leap over
        assert error(leapt) < 3 * rtol
    for steps in (8, 16):
        plain, leapt = (sg.sample(model, (64, 3), solver=s, steps=steps, **how) for s in ("adams", leaping))
        assert int(leapt.nfe[0]) == int(plain.nfe[0]) == steps
        assert error(leapt) < 0.8 * error(plain)


def test_a_wrong_covariance_is_refused_and_costs_one_evaluation():
    model = ring_model(sg.EDMSDE())
    x = model.sde.prior((32, 2), seed=3, dtype=torch.float64)
    how = {"x_init": x, "t_span": (model.sde.t_max, model.sde.t_min), "rtol": 1e-4}
    plain = sg.sample(model, (32, 2), solver="adams", **how)
    wrong = sg.make_solver("adams", start="gaussian", covariance=torch.diag(torch.tensor([400.0, 1e-3])))
    leapt = sg.sample(model, (32, 2), solver=wrong, **how)
    assert torch.equal(leapt.nfe, plain.nfe + 1)
    torch.testing.assert_close(leapt.x, plain.x, rtol=1e-12, atol=1e-12)


def test_refusal_is_by_sample_and_counted_by_sample():
    """With a covariance three times too large some samples are refused, as many in the batch as alone."""
    model = ring_model(sg.EDMSDE())
    x = model.sde.prior((24, 2), seed=0, dtype=torch.float64)
    how = {"rtol": 1e-3, "t_span": (model.sde.t_max, model.sde.t_min), "save": "all"}
    solver = sg.make_solver("adams", start="gaussian", covariance=3 * model.data_covariance)
    whole = sg.sample(model, (24, 2), solver=solver, x_init=x, **how)
    parts = [sg.sample(model, (1, 2), solver=solver, x_init=x[i : i + 1], **how) for i in range(24)]
    calls = torch.tensor([p.calls for p in parts])
    refused = calls > torch.cat([p.accepted + p.rejected for p in parts]) + 1  # one call to begin, or two
    assert 0 < int(refused.sum()) < 24
    assert torch.equal(whole.nfe, calls)
    torch.testing.assert_close(whole.x, torch.cat([p.x for p in parts]), rtol=1e-12, atol=1e-12)


def test_samples_do_not_depend_on_their_batch():
    model = ring_model(sg.EDMSDE())
    solver = sg.make_solver("adams", start="gaussian")
    whole = sg.sample(model, 9, solver=solver, rtol=1e-4, seed=0, dtype=torch.float64)
    alone = sg.sample(model, 9, solver=solver, rtol=1e-4, seed=0, dtype=torch.float64, batch_size=2)
    torch.testing.assert_close(whole.x, alone.x, rtol=1e-12, atol=1e-12)
    assert torch.equal(whole.nfe, alone.nfe)


def test_newton_table_is_divided_differences():
    """Of a quadratic through three uneven times: phi_2 = f(t) - f(t_1), phi_3 = (t - t_1)(t - t_2) f[t, t_1, t_2]."""
    f = lambda t: torch.tensor(2.0 - 3.0 * t + 5.0 * t**2, dtype=torch.float64)
    t, past = 0.3, [0.5, 1.1]
    table = newton_table(f(t), [f(u) for u in past], t, past)
    torch.testing.assert_close(table[2], torch.tensor((t - past[0]) * (t - past[1]) * 5.0, dtype=torch.float64))


def test_low_rank_and_rest_is_the_whole_covariance_where_that_is_its_form():
    u = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    whole = Gaussian.of_covariance(
        u @ torch.diag(torch.tensor([3.0, 2.0], dtype=torch.float64)) @ u.T + 0.25 * torch.eye(6)
    )
    part = Gaussian(torch.zeros(()), torch.tensor([3.25, 2.25], dtype=torch.float64), u, 0.25)
    y = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = lambda v: (0.3 * v + 1) ** 0.5
    torch.testing.assert_close(whole.apply(f, y), part.apply(f, y), rtol=1e-12, atol=1e-12)
    assert whole.complete and not part.complete


def test_of_data():
    x = torch.randn(400, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1.0, 4.0)
    law = Gaussian.of_data(x)
    flat = x.reshape(400, 6)
    expected = torch.cov(flat.T, correction=0)
    assert law.axes is not None
    torch.testing.assert_close(law.axes @ torch.diag(law.variances) @ law.axes.T, expected)
    torch.testing.assert_close(law.mean, flat.mean(0))
    low = Gaussian.of_data(x, rank=2)
    values = torch.linalg.eigvalsh(expected).flip(0)
    torch.testing.assert_close(low.variances, values[:2])
    assert low.rest == pytest.approx(float(values[2:].mean()))


def test_wrong_calls():
    model = ring_model()
    leaping = sg.make_solver("adams", start="gaussian")
    with pytest.raises(sg.InvalidInputError, match="'point' or 'gaussian'"):
        sg.make_solver("adams", start="normal")
    with pytest.raises(sg.InvalidInputError, match="start='gaussian'"):
        sg.make_solver("adams", covariance=torch.eye(2))
    with pytest.raises(sg.InvalidInputError, match="none below 0"):
        sg.make_solver("adams", start="gaussian", covariance=-torch.eye(2))
    with pytest.raises(sg.InvalidInputError, match="circular path"):
        sg.solve(sg.ProbabilityFlow(model), torch.zeros(2, 2), solver=leaping, rtol=1e-3)
    with pytest.raises(sg.InvalidInputError, match="expected \\(2, 2\\)"):
        sg.sample(model, 3, solver=sg.make_solver("adams", start="gaussian", covariance=torch.eye(3)), steps=5)
    with pytest.raises(sg.InvalidInputError, match="start='point'"):
        sg.encode(model, torch.zeros(2, 2), solver=leaping, steps=5)
    with pytest.raises(sg.InvalidInputError, match="start='point'"):
        sg.encode(model, torch.zeros(2, 2), solver=leaping, rtol=1e-3)


def test_a_covariance_is_decomposed_once(monkeypatch):
    """Though every call of sample makes views of the model of its own; and again where it was changed in place."""
    calls, eigh = [], torch.linalg.eigh
    model = oblong_model(sg.VPSDE())
    monkeypatch.setattr(torch.linalg, "eigh", lambda c: calls.append(1) or eigh(c))
    for seed in range(3):
        sg.sample(model, 2, solver=sg.make_solver("adams", start="gaussian"), steps=5, seed=seed)
    assert len(calls) == 1
    model.data_covariance.mul_(1.1)
    sg.sample(model, 2, solver=sg.make_solver("adams", start="gaussian"), steps=5, seed=0)
    assert len(calls) == 2


# ---- a past slope without an evaluation


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("make", [ring_model, gaussian_model, oblong_model])
def test_the_slope_above_t_max_is_what_slopes_go_to_with_the_noise(make, centred):
    """On the circular path the difference falls like pi/2 - t at least, whatever the state."""
    differences = []
    for most in (1e2, 1e3):
        model = make(sg.EDMSDE(sigma_max=most))
        path = sg.TrigSDE(model.data.scale, sigma_min=0.01, sigma_max=most)
        there = OnPath(model, path, model.data.mean if centred else None)
        term, t = sg.ProbabilityFlow(there), path.t_max
        x = 2 * there.sde.prior((50, model.event_shape[0]), seed=0, dtype=torch.float64)
        above = slope_above(term, x, t)
        assert above.shape == x.shape
        assert centred or make is ring_model or float(above.abs().max()) > 0.01
        differences.append(float((term.drift(x, torch.full((50,), t, dtype=torch.float64)) - above).abs().max()))
    assert differences[0] < 1.0 and differences[1] < 0.11 * differences[0]


def flow(changed=lambda m: None, most=80.0, labels=None, **cond):
    mixture = sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4]], std=0.3)
    model = sg.MixtureModel(mixture, sg.EDMSDE(sigma_max=most), labels=labels)
    changed(model)
    path = sg.TrigSDE(model.data.scale, sigma_min=0.01, sigma_max=most)
    return sg.ProbabilityFlow(model.on(path), **cond), path.t_max


@pytest.mark.filterwarnings("ignore:the data's standard deviation")
@pytest.mark.parametrize(
    ("made", "dtype", "later"),
    [
        (lambda: flow(lambda m: setattr(m, "smooth", False)), torch.float64, 1.0),
        (lambda: flow(lambda m: m.set_statistics(None, m.data_std)), torch.float64, 1.0),
        (lambda: flow(lambda m: m.set_statistics(m.data_mean, None)), torch.float64, 1.0),
        (lambda: flow(labels=[0, 1], label=torch.zeros(4, dtype=torch.long)), torch.float64, 1.0),
        (lambda: flow(most=5.0), torch.float64, 1.0),
        (lambda: flow(most=1e5), torch.float32, 1.0),
        (flow, torch.float64, 0.9),
    ],
    ids=["rough", "mean unknown", "std unknown", "condition", "little noise", "rounding", "begins elsewhere"],
)
def test_where_the_slope_above_is_not_known_or_no_help_none_is_taken(made, dtype, later):
    term, t = made()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert slope_above(term, x, later * t) is None
    known, last = flow()
    assert slope_above(known, x.double(), last) is not None


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=repr)
def test_the_slope_above_saves_evaluations_and_refused_first_steps(sde, monkeypatch):
    """Of data that are not round: the slopes of others rise too late to be missed. Errors are tolerances as before."""
    model = oblong_model(sde)
    how = {"x_init": sde.prior((64, 3), seed=3, dtype=torch.float64), "t_span": (sde.t_max, sde.t_min)}
    exact = sg.sample(model, (64, 3), solver="dopri5", rtol=1e-12, **how).x

    def runs():
        return [(rtol, sg.sample(model, (64, 3), solver="adams", rtol=rtol, **how)) for rtol in (1e-4, 1e-6)]

    ours = runs()
    monkeypatch.setattr(by_tolerance, "slope_above", lambda *args: None)
    for (rtol, one), (_, other) in zip(ours, runs(), strict=True):
        assert one.nfe.double().mean() < 0.95 * other.nfe.double().mean()
        assert one.rejected.double().mean() < other.rejected.double().mean() - 0.5
        assert float((one.x - exact).square().mean(1).sqrt().median()) < 2.5 * rtol * model.data.scale
