"""What a network's output means: every parametrisation tells the same belief, and keeps its digits at small noise."""

from __future__ import annotations

import math

import pytest
import torch
from cases import PARAMETRIZATIONS, SDES, SOME_SDES
from torch import Tensor, nn

from sdegen.core.errors import InvalidInputError
from sdegen.core.shapes import expand, scaled
from sdegen.models.denoiser import Denoiser
from sdegen.models.parametrization import NAMES, Parametrization, parametrization
from sdegen.models.prediction import Prediction
from sdegen.processes import EDMSDE, SDE, VESDE, VPSDE, LinearPathSDE, TrigSDE

F64 = torch.float64
PROCESSES = {
    **SOME_SDES,
    **{name: SDES[name] for name in ("sub-vp", "short-ve-table", "path-of-cosine", "stairs", "growing")},
}


class Says(nn.Module):
    """A network that gives one answer, and remembers what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.x, self.t = x, t
        return self.answer


def exact(name: str, x0: Tensor, noise: Tensor, sde: SDE, t: Tensor, s: float) -> Tensor:
    """What each kind of network is to predict, from its own paper's definition."""
    alpha, sigma = (expand(c, x0) for c in (sde.alpha(t), sde.sigma(t)))
    d_alpha, d_sigma = (expand(c, x0) for c in sde.rates(t))
    if name == "edm":  # Karras et al. 2022, eq. 7 and table 1, for x/alpha and sigma/alpha
        xh, sh = x0 + sigma / alpha * noise, sigma / alpha
        return (x0 - s**2 / (sh**2 + s**2) * xh) * torch.sqrt(sh**2 + s**2) / (sh * s)
    if name == "own":  # tests/cases.py: x0 = alpha/2 x + (1 + sigma) net
        return (x0 - alpha / 2 * (alpha * x0 + sigma * noise)) / (1 + sigma)
    return {
        "x0": x0,
        "noise": noise,
        "score": -noise / sigma,
        "v": alpha * noise - sigma * x0,
        "velocity": d_alpha * x0 + d_sigma * noise,
    }[name]


def times(sde: SDE, low: float, high: float, n: int = 7) -> Tensor:
    """Times whose lambda is spread over [low, high], as far as the process goes."""
    ends = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=F64)).clamp(low, high)
    return sde.time(torch.linspace(float(ends[0]), float(ends[1]), n, dtype=F64))


def draws(n: int, s: float = 0.5, event: tuple[int, ...] = (3,)) -> tuple[Tensor, Tensor]:
    return s * torch.randn(n, *event, dtype=F64), torch.randn(n, *event, dtype=F64)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_the_exact_output_gives_back_x0_and_noise(name, process):
    """To 1e-10 in float64: from sigma/alpha = 2e-3 to 400, relative to the data and to the noise."""
    sde = PROCESSES[process]
    t = times(sde, -6.0, 6.2)
    x0, noise = draws(len(t))
    x = sde.perturb(x0, t, noise)
    answer = exact(name, x0, noise, sde, t, 0.5)
    model = Denoiser(Says(answer), sde, parametrization=PARAMETRIZATIONS[name], data_std=0.5)
    several = model(x, t)
    torch.testing.assert_close(several.x0, x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(several.noise, noise, rtol=1e-10, atol=1e-10)
    for i in range(len(t)):
        one = Denoiser(Says(answer[i : i + 1]), sde, parametrization=PARAMETRIZATIONS[name], data_std=0.5)
        came = one(x[i : i + 1], float(t[i]))
        torch.testing.assert_close(came.x0, x0[i : i + 1], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(came.noise, noise[i : i + 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "edm"])
def test_a_view_is_what_a_network_of_that_name_predicts(name, process):
    sde = PROCESSES[process]
    t = times(sde, -6.0, 6.2)
    x0, noise = draws(len(t))
    wanted = exact(name, x0, noise, sde, t, 0.5)
    torch.testing.assert_close(getattr(Prediction(x0, noise, sde, t), name), wanted, rtol=1e-10, atol=1e-10)


VIEWS = ("x0", "noise", "score", "v", "velocity")
MADE = {"of x0 and noise": Prediction, "from x0": Prediction.from_x0, "from score": Prediction.from_score}


@pytest.mark.parametrize("made", MADE)
def test_views_leave_what_they_are_made_of_as_it_is(made):
    """Whatever is done to them: each is asked twice, and what came first is overwritten where it is memory of its own."""
    x, output = draws(4)
    before = x.clone(), output.clone()
    belief = MADE[made](x, output, VPSDE(), 0.3)
    for name in VIEWS:
        first = getattr(belief, name)
        kept = first.clone()
        if first is not x and first is not output:
            first.zero_()
        assert torch.equal(getattr(belief, name), kept)
        assert torch.equal(x, before[0]) and torch.equal(output, before[1])


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("made", MADE)
def test_views_under_vmap_and_with_derivatives(made, name):
    """Of many outputs at one x as of each alone, and their slope in the output is that of the linear map that they are."""
    x, outputs = draws(3)[0], torch.randn(5, 3, 3, dtype=F64)

    def view(output: Tensor) -> Tensor:
        return getattr(MADE[made](x, output, VPSDE(), 0.3), name)

    each = torch.stack([view(output) for output in outputs])
    torch.testing.assert_close(torch.func.vmap(view)(outputs), each, rtol=1e-12, atol=1e-12)
    rise = view(outputs[0] + outputs[1]) - view(outputs[0])
    for mode in (torch.func.jvp(view, (outputs[0],), (outputs[1],))[1], rise):
        torch.testing.assert_close(mode, torch.autograd.functional.jvp(view, outputs[0], outputs[1])[1])


@pytest.mark.parametrize("made", MADE)
def test_parts_of_a_prediction_are_of_one_shape_and_go_to_one_dtype(made):
    x, output = draws(4)
    for one, other in ((x.float(), output), (x, output.float())):
        belief = MADE[made](one, other, VPSDE(), 0.3)
        wide = MADE[made](one.to(F64), other.to(F64), VPSDE(), 0.3)
        for name in VIEWS:
            assert torch.equal(getattr(belief, name), getattr(wide, name))
    with pytest.raises(InvalidInputError, match="expected"):
        MADE[made](x, output[:, :1], VPSDE(), 0.3)


@pytest.mark.parametrize("name", ["edm", "v", "noise", "score", "velocity"])
def test_float32_keeps_its_digits_at_small_noise(name):
    """At sigma = 1e-3, data of std 0.5, x and the exact answer rounded to float32; errors relative to the rms value.

    Measured: 1e-7 to 4e-7, for x0 and for the noise. The same formulas evaluated in float32, x0 = c_skip x + c_out F
    and noise = (x - x0)/sigma, keep x0 but lose the noise's last three digits (6e-5 to 2e-4), as "x0" must (1.5e-4).
    """
    s, sigma = 0.5, 1e-3
    sde = EDMSDE(sigma_min=1e-4)
    t = torch.tensor(sigma, dtype=F64)
    x0, noise = draws(2000, s)
    x = sde.perturb(x0, t, noise)
    answer = exact(name, x0, noise, sde, t, s).float()

    def error(came: Tensor, wanted: Tensor) -> float:
        return float((came.double() - wanted).abs().max() / wanted.square().mean().sqrt())

    for at in (t, t.expand(2000), t.float().expand(2000)):
        p = Denoiser(Says(answer), sde, parametrization=name, data_std=s)(x.float(), at)
        assert error(p.x0, x0) < 1e-6 and error(p.noise, noise) < 1e-6
    c, t, x = parametrization(name, s), t.float(), x.float()
    naive = c.c_skip(sde, t) * x + c.c_out(sde, t) * answer
    assert error(naive, x0) < 1e-6 and error((x - naive) / t, noise) > 2e-5


@pytest.mark.parametrize("process", ["vp", "edm", "trig", "no-signal-table"])
def test_predictions_from_x0_and_from_the_score(process):
    sde = PROCESSES[process]
    t = times(sde, -4, 5)
    x0, noise = draws(len(t))
    x, score = sde.perturb(x0, t, noise), -noise / expand(sde.sigma(t), x0)
    for p in (Prediction.from_x0(x, x0, sde, t), Prediction.from_score(x, score, sde, t)):
        torch.testing.assert_close(p.x0, x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(p.noise, noise, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(p.score, score, rtol=1e-10, atol=1e-10)
    p = Prediction.from_x0(x, x0, sde, t)
    torch.testing.assert_close(p.combine(sde.alpha(t), sde.sigma(t)), x)
    torch.testing.assert_close(p.combine(2.0, -3.0), 2 * x0 - 3 * noise, rtol=1e-10, atol=1e-10)


def test_at_no_signal_x0_is_read_off_where_the_parametrisation_tells_it():
    sde = SDES["no-signal-table"]
    x0, noise = draws(4)
    for name in ("x0", "v", "velocity"):
        for t in (torch.tensor(1.0, dtype=F64), torch.ones(4, dtype=F64)):
            answer = exact(name, x0, noise, sde, t, 0.5)
            p = Denoiser(Says(answer), sde, parametrization=name)(noise, t)  # x = noise there
            torch.testing.assert_close(p.x0, x0)
            torch.testing.assert_close(p.noise, noise)
    for name in ("noise", "score"):
        with pytest.raises(InvalidInputError, match="no signal"):
            Denoiser(Says(noise), sde, parametrization=name)(noise, 1.0)


# ---- what the network is given


@pytest.mark.parametrize("process", PROCESSES)
def test_edm_gives_the_network_unit_variance_and_asks_unit_variance(process):
    """Karras et al. 2022, appendix B.6, for data of variance s^2."""
    sde, s = PROCESSES[process], 0.7
    c = parametrization("edm", s)
    t = times(sde, -5, 6)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    torch.testing.assert_close(c.c_in(sde, t) ** 2 * (alpha**2 * s**2 + sigma**2), torch.ones_like(t))
    # target (x0 - c_skip x)/c_out, x = alpha x0 + sigma noise
    skip, out = c.c_skip(sde, t), c.c_out(sde, t)
    torch.testing.assert_close(((1 - skip * alpha) ** 2 * s**2 + (skip * sigma) ** 2) / out**2, torch.ones_like(t))
    torch.testing.assert_close(c.c_noise(sde, t), torch.log(sigma / alpha) / 4)


def test_edm_along_its_own_process_is_the_paper_s_table():
    sigma, s = torch.logspace(-2, 1.5, 20, dtype=F64), 0.5
    c, sde = parametrization("edm", s), EDMSDE()
    torch.testing.assert_close(c.c_skip(sde, sigma), s**2 / (sigma**2 + s**2))
    torch.testing.assert_close(c.c_out(sde, sigma), sigma * s / torch.sqrt(sigma**2 + s**2))
    torch.testing.assert_close(c.c_in(sde, sigma), 1 / torch.sqrt(sigma**2 + s**2))
    torch.testing.assert_close(c.c_noise(sde, sigma), torch.log(sigma) / 4)


@pytest.mark.parametrize("of", ["noise", "velocity", "edm"])
@pytest.mark.parametrize("process", ["vp", "ve", "linear"])
def test_a_word_before_the_name_is_what_the_network_is_told(of, process):
    """Only that: what its output means stays."""
    sde = {"vp": VPSDE(), "ve": VESDE(), "linear": LinearPathSDE()}[process]
    t = times(sde, -4, 4)
    plain = parametrization(of, 0.7)
    told = {
        "1000t": 1000 * t,
        "25t": 25 * t,
        "sigma": sde.sigma(t),
        "log-sigma": (sde.sigma(t) / sde.alpha(t)).log() / 4,
    }
    for word, expected in told.items():
        named = parametrization(f"{word}-{of}", 0.7)
        torch.testing.assert_close(named.c_noise(sde, t), expected)
        for part in ("c_skip", "c_out", "c_in"):
            assert torch.equal(getattr(named, part)(sde, t), getattr(plain, part)(sde, t))


@pytest.mark.parametrize(
    "name", ["0t-noise", "t-noise", "-noise", "1.5t-noise", "-5t-v", "noise-1000t", "sigma-", "12345678901t-v"]
)
def test_other_words_are_refused(name):
    with pytest.raises(InvalidInputError, match="parametrization: got"):
        parametrization(name)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_the_network_sees_c_in_x_and_c_noise(name):
    sde, t = VPSDE(), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    x = torch.randn(3, 2, dtype=F64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    seen_x, seen_t = {
        "edm": (x / torch.sqrt(0.25 * alpha**2 + sigma**2)[:, None], torch.log(sigma / alpha) / 4),
        "own": (x / (1 + sigma)[:, None], t.sqrt()),
    }.get(name, (x, t))
    for times, rows in ((t, slice(None)), (t[1], slice(1, 2)), (float(t[1]), slice(1, 2))):
        net = Says(x[rows])
        Denoiser(net, sde, parametrization=PARAMETRIZATIONS[name], data_std=0.5)(x[rows], times)
        torch.testing.assert_close(net.x, seen_x[rows])
        torch.testing.assert_close(net.t, seen_t[rows])
        assert net.t.shape == net.x.shape[:1]


def test_on_the_circle_the_flow_is_the_raw_network():
    """dx/dt = -s F along alpha = cos t, sigma = s sin t (Lu & Song 2024), and F = -v along VP for s = 1."""
    s, sde = 0.5, TrigSDE(0.5)
    t = times(sde, -5, 6)
    x, answer = torch.randn(7, 2, dtype=F64), torch.randn(7, 2, dtype=F64)
    net = Says(answer)
    p = Denoiser(net, sde, parametrization="edm", data_std=s)(x, t)
    torch.testing.assert_close(p.velocity, -s * answer)
    torch.testing.assert_close(net.x, x / s)
    p = Denoiser(Says(answer), VPSDE(), parametrization="edm", data_std=1.0)(x, times(VPSDE(), -5, 4))
    torch.testing.assert_close(p.v, -answer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scaled_is_the_product(dtype):
    """To the last bit in float32 and float64; in half precision the number is rounded, too."""
    v = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype).requires_grad_()
    rounding = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    for c in (0.3, -1.0 / 64, 1e3, 0.0, torch.tensor(0.3, dtype=dtype)):
        product = scaled(c, v)
        torch.testing.assert_close(product, c * v, rtol=rounding, atol=0)
        (gradient,) = torch.autograd.grad(product.sum(), v)
        torch.testing.assert_close(gradient, torch.full_like(v, float(c)))


def test_an_unknown_name():
    with pytest.raises(InvalidInputError, match="parametrization: got 'eps', expected one of 'x0', 'noise'"):
        parametrization("eps")
    own = PARAMETRIZATIONS["own"]
    assert isinstance(own, Parametrization) and parametrization(own, math.pi) is own
