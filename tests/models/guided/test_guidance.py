"""Guidance: the exact laws of scores, flows, densities and counts."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SOME_SDES
from torch import Tensor, nn

import sdegen as sg
from sdegen.testing import check_model, check_wrapper

F64 = torch.float64
MIXTURE = sg.GaussianMixture([[2.0, 0.5], [-1.5, 1.0], [0.2, -2.0]], std=[0.3, 0.5, 0.4], weights=[1, 2, 3])
LABEL = torch.tensor([0, 1, 0, 1, 1])
NULL = {"label": -1}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def labelled(sde: sg.SDE) -> sg.MixtureModel:
    return sg.MixtureModel(MIXTURE, sde, labels=[0, 1, 0])


def states(sde: sg.SDE, n: int = 5) -> tuple[Tensor, Tensor]:
    t = torch.linspace(sde.t_min, 0.9 * sde.t_max, n, dtype=F64)
    return sde.perturb(MIXTURE.sample(n, seed=1, dtype=F64), t, normals(n, 2)), t


def same(got: sg.Prediction, x0: Tensor, noise: Tensor, tol: float = 1e-11) -> None:
    torch.testing.assert_close(got.x0, x0, rtol=tol, atol=tol)
    torch.testing.assert_close(got.noise, noise, rtol=tol, atol=tol)


# ---- the belief at a point


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("process", SOME_SDES)
def test_the_score_is_the_combination_of_the_two(process, scale):
    """score = grad ((1 - g) log p_t(x) + g log p_t(x | label)), both densities in closed form."""
    sde = SOME_SDES[process]
    model, (x, t) = labelled(sde), states(sde)
    x = x.requires_grad_()
    log_p = (1 - scale) * model.log_prob(x, t) + scale * model.log_prob(x, t, LABEL)
    expected = torch.autograd.grad(log_p.sum(), x)[0]
    got = sg.Guided(model, scale, null=NULL).score(x.detach(), t, label=LABEL)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_it_is_a_model_with_every_option():
    model = labelled(sg.VPSDE())
    for options in (
        dict(scale=3.0),
        dict(scale=3.0, interval=(0.3, 5.0)),
        dict(scale=3.0, rescale=0.7),
        dict(scale=lambda lam: 1 + torch.sigmoid(lam)),
        dict(scale=0.0),
        dict(scale=0.0, interval=(0.3, 5.0)),
    ):
        check_model(sg.Guided(model, null=NULL, **options), label=LABEL)


def test_one_is_the_model_itself_to_the_bit_and_zero_the_other():
    model = labelled(sg.VPSDE())
    check_wrapper(sg.Guided(model, 1.0, null=NULL), model, label=LABEL)
    check_wrapper(sg.Guided(model, 1, null=NULL, interval=(0.1, 1.0), rescale=0.5), model, label=LABEL)
    none = sg.Guided(model, 0.0, null=NULL)
    got, expected = (
        sg.sample(m, 5, rtol=1e-3, seed=0, **c)
        for m, c in ((none, {"label": LABEL}), (model, {"label": LABEL * 0 - 1}))
    )
    assert torch.equal(got.x, expected.x) and torch.equal(got.nfe, expected.nfe)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_against_itself_it_is_the_model(scale):
    model, (x, t) = labelled(sg.VPSDE()), states(sg.VPSDE())
    expected = model(x, t, label=LABEL)
    same(sg.Guided(model, scale, against=model)(x, t, label=LABEL), expected.x0, expected.noise)


def test_another_model_is_asked_along_the_same_process():
    """against= on any process, with the conditions that it takes and no others."""
    model, other = labelled(sg.VPSDE()), sg.MixtureModel(MIXTURE, sg.EDMSDE(1e-4, 1e4))
    x, t = states(sg.VPSDE())
    expected = sg.Guided(model, 2.0, null=NULL)(x, t, label=LABEL)
    got = sg.Guided(model, 2.0, against=other)
    same(got(x, t, label=LABEL), expected.x0, expected.noise, 1e-8)
    assert got.condition_names() == {"label"}
    with pytest.raises(sg.InvalidInputError, match="knows the model's process from"):
        sg.Guided(model, 2.0, against=sg.MixtureModel(MIXTURE, sg.EDMSDE(0.1, 10.0)))


def test_a_scale_that_depends_on_the_noise():
    sde = sg.CosineSDE()
    model, (x, t) = labelled(sde), states(sde)
    varying = sg.Guided(model, lambda lam: 1 + 2 * torch.sigmoid(lam), null=NULL)(x, t, label=LABEL)
    for i in range(len(x)):
        g = 1 + 2 * float(torch.sigmoid(sde.half_log_snr(t[i])))
        one = sg.Guided(model, g, null=NULL)(x[i : i + 1], t[i], label=LABEL[i : i + 1])
        same(one, varying.x0[i : i + 1], varying.noise[i : i + 1])


@pytest.mark.parametrize("process", SOME_SDES)
def test_an_interval_holds_in_sigma_over_alpha_for_each_sample(process):
    """low < sigma/alpha <= high; elsewhere the model, to the bit."""
    sde = SOME_SDES[process]
    model, (x, t) = labelled(sde), states(sde)
    r = sde.sigma(t) / sde.alpha(t)
    guided = sg.Guided(model, 3.0, null=NULL)
    part = sg.Guided(model, 3.0, null=NULL, interval=(float(r[1]), float(r[3])))
    whole, own, got = (m(x, t, label=LABEL) for m in (guided, model, part))
    for i in (0, 1, 4):
        assert torch.equal(got.x0[i], own.x0[i]) and torch.equal(got.noise[i], own.noise[i])
    for i in (2, 3):
        torch.testing.assert_close(got.x0[i], whole.x0[i], rtol=1e-12, atol=1e-12)
        one = part(x[i : i + 1], float(t[i]), label=LABEL[i : i + 1])
        torch.testing.assert_close(one.x0[0], got.x0[i], rtol=1e-12, atol=1e-12)
    assert part.evaluations(t).tolist() == [1, 1, 2, 2, 1]
    assert [part.evaluations(s) for s in t] == [1, 1, 2, 2, 1]


def test_rescaled_beliefs_have_the_spread_of_the_models():
    """phi = 1: std of x0 is that of D_m, over each sample's own numbers; between, the factor is linear in phi."""
    model, (x, t) = labelled(sg.VPSDE()), states(sg.VPSDE())
    own, plain = model(x, t, label=LABEL).x0, sg.Guided(model, 4.0, null=NULL)(x, t, label=LABEL).x0
    for phi in (0.25, 1.0):
        got = sg.Guided(model, 4.0, null=NULL, rescale=phi)(x, t, label=LABEL).x0
        ratio = own.std(1) / plain.std(1)
        torch.testing.assert_close(got, plain * (phi * ratio + 1 - phi)[:, None])


# ---- the flow


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 3.0, 7.5])
def test_the_flow_of_two_gaussians_is_known(scale, solver):
    """D_a of N(0, v0), D_m of N(mu, v1), alpha = 1: with h(s) = (v0 + s^2)^((1-g)/2) (v1 + s^2)^(g/2),

    x(s) = h(s)/h(T) x(T) + mu h(s) int_s^T g u/((v1 + u^2) h(u)) du.
    """
    v0, v1, mu = 1.0, 0.25, 0.8
    sde = sg.EDMSDE(0.002, 80.0)
    model = sg.MixtureModel(sg.GaussianMixture([[mu]], std=math.sqrt(v1)), sde)
    other = sg.MixtureModel(sg.GaussianMixture([[0.0]], std=math.sqrt(v0)), sde)
    start = torch.linspace(-160, 160, 5, dtype=F64)[:, None]
    flow = sg.ProbabilityFlow(sg.Guided(model, scale, against=other))
    got = sg.solve(flow, start, solver=solver, rtol=1e-8, atol=1e-8, t_span=(80.0, 0.002)).x

    def h(s: Tensor) -> Tensor:
        return (v0 + s**2) ** ((1 - scale) / 2) * (v1 + s**2) ** (scale / 2)

    log_u = torch.linspace(math.log(0.002), math.log(80.0), 20_001, dtype=F64)
    u = log_u.exp()
    mean = mu * h(u[0]) * torch.trapezoid(scale * u**2 / ((v1 + u**2) * h(u)), log_u)
    torch.testing.assert_close(got, h(u[0]) / h(u[-1]) * start + mean, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_its_log_density_is_that_of_its_flow(scale):
    """The change of variables of the affine flow above, from the prior the model starts at."""
    v0, v1, sde = 1.0, 0.25, sg.EDMSDE(0.002, 80.0)
    model = sg.MixtureModel(sg.GaussianMixture([[0.8]], std=math.sqrt(v1)), sde)
    guided = sg.Guided(model, scale, against=sg.MixtureModel(sg.GaussianMixture([[0.0]], std=math.sqrt(v0)), sde))
    x = torch.linspace(-1, 2, 7, dtype=F64)[:, None]
    up = sg.encode(guided, x, rtol=1e-9).x
    slope = (v0 + torch.tensor([0.002, 80.0], dtype=F64) ** 2) ** ((1 - scale) / 2)
    slope = slope * (v1 + torch.tensor([0.002, 80.0], dtype=F64) ** 2) ** (scale / 2)
    prior = guided.data.prior.log_prob(up, sde.at(80.0))
    expected = prior + (slope[1] / slope[0]).log()
    got = sg.log_prob(guided, x, rtol=1e-6).nats
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_batches_and_mates_change_nothing():
    guided = sg.Guided(labelled(sg.VPSDE()), 3.0, null=NULL, interval=(0.3, 5.0), rescale=0.3)
    label = torch.arange(20) % 3 - 1
    whole = sg.sample(guided, 20, rtol=1e-4, seed=3, dtype=F64, label=label)
    parts = sg.sample(guided, 20, rtol=1e-4, seed=3, dtype=F64, label=label, batch_size=7)
    torch.testing.assert_close(whole.x, parts.x, rtol=0, atol=1e-11)
    assert torch.equal(whole.nfe, parts.nfe)


# ---- counts


class Counting(nn.Module):
    """A network that counts the evaluations of every sample, told apart by a condition, and its calls."""

    event_shape = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.calls = torch.zeros(6, dtype=torch.int64), 0

    def forward(self, x: Tensor, t: Tensor, label: Tensor, who: Tensor) -> Tensor:
        self.seen.index_add_(0, who, torch.ones_like(who))
        self.calls += 1
        return torch.tanh(x * (1 + 0.3 * label[:, None]) + t[:, None])


HOWS = (
    {"steps": 8},
    {"rtol": 1e-2},
    {"rtol": 1e-2, "solver": "dopri5"},
    {"steps": 8, "eta": 1.0},
    {"steps": 8, "solver": "heun"},
    {"rtol": 1e-2, "solver": sg.make_solver("adams", start="gaussian", covariance=torch.eye(2))},  # some leaps refused
)
GUIDED = {
    "model": dict(scale=1.0, null=NULL),
    "guided": dict(scale=2.0, null=NULL),
    "interval": dict(scale=2.0, null=NULL, interval=(0.3, 4.0)),
    "varying": dict(scale=lambda lam: 1 + torch.sigmoid(lam), null=NULL),
}


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("kind", GUIDED)
def test_evaluations_of_networks_are_counted(kind, how):
    """nfe is what every sample cost, and calls the calls made; also of a guided model that is guided again."""
    for twice in (False, True):
        net = Counting()
        model = sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=1.0)
        guided = sg.Guided(model, **GUIDED[kind])
        if twice:
            guided = sg.Guided(guided, 1.5, against=model)
        label, who = torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6)
        found = sg.sample(guided, 6, seed=0, label=label, who=who, batch_size=4, **how)
        assert torch.equal(found.nfe, net.seen) and found.calls == net.calls


def test_of_log_densities_too():
    net = Counting()
    guided = sg.Guided(sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=1.0), **GUIDED["interval"])
    for how in ({"rtol": 1e-2}, {"steps": 10}):
        net.seen, net.calls = torch.zeros(6, dtype=torch.int64), 0
        found = sg.log_prob(
            guided, normals(6, 2).float(), label=torch.tensor([0, 1, 2, 0, 1, 2]), who=torch.arange(6), **how
        )
        assert torch.equal(found.nfe, net.seen)


# ---- what is known, and wrong input


def test_what_is_known_of_the_data():
    model = labelled(sg.VPSDE())
    guided = sg.Guided(model, 2.0, null=NULL)
    assert guided.data.mean is model.data.mean and guided.data.std is model.data.std
    assert model.data.smooth and guided.data.smooth
    assert not sg.Guided(model, lambda level: 2.0, null=NULL).data.smooth
    exact = sg.MixtureModel(MIXTURE, sg.VPSDE())
    assert exact.data.covariance is not None and sg.Guided(exact, 2.0, against=exact).data.covariance is None


def test_null_may_be_a_dict_of_tensors_of_one_sample():
    """Conditions that are dicts, as those of Stable Diffusion XL, are replaced as a whole."""

    class Net(torch.nn.Module):
        def forward(self, x, t, told):
            return x * told["by"][:, :1] + told["shift"][:, None]

    model = sg.Denoiser(Net(), sg.VPSDE(), parametrization="x0", data_std=1.0)
    null = {"told": {"by": torch.tensor([0.5, 0.5]), "shift": torch.tensor(2.0)}}
    told = {"by": torch.tensor([[1.0, 1.0], [2.0, 2.0]]), "shift": torch.zeros(2)}
    x = torch.tensor([[1.0], [3.0]])
    found = sg.Guided(model, 3.0, null=null)(x, 0.5, told=told).x0
    free, own = x * 0.5 + 2.0, x * told["by"][:, :1]
    torch.testing.assert_close(found, free + 3 * (own - free))
    sg.sample(sg.Guided(model, 3.0, null=null), (2, 1), rtol=1e-2, seed=0, told=told)


def test_null_may_be_a_tensor_of_one_sample():
    class Net(nn.Module):
        event_shape = (2,)

        def forward(self, x, t, tokens):
            return x * tokens.mean((1, 2))[:, None]

    model, tokens = sg.Denoiser(Net(), sg.VPSDE(), data_mean=0.0, data_std=1.0), normals(5, 3, 4)
    empty = normals(3, 4, seed=9)
    x, t = states(sg.VPSDE())
    m, a = model(x, t, tokens=tokens), model(x, t, tokens=empty.expand(5, 3, 4))
    got = sg.Guided(model, 2.5, null={"tokens": empty})(x, t, tokens=tokens)
    same(got, a.x0 + 2.5 * (m.x0 - a.x0), a.noise + 2.5 * (m.noise - a.noise))


def test_wrong_input_is_refused_before_the_first_call():
    net = Counting()
    model = sg.Denoiser(net, sg.VPSDE())
    for wrong, said in [
        (dict(scale=2.0), "neither null= nor against="),
        (dict(scale=math.nan, null=NULL), "got scale=nan"),
        (dict(scale=True, null=NULL), "got scale=True"),
        (dict(scale=lambda lam: lam * math.nan, null=NULL), "got scale="),
        (dict(scale=lambda lam: "two", null=NULL), "gave no numbers"),
        (dict(scale=2.0, null={"lable": -1}), "expected conditions that the model takes"),
        (dict(scale=2.0, null=-1), "expected a dict with names for keys"),
        (dict(scale=2.0, null=NULL, interval=(5.0, 0.3)), "got interval="),
        (dict(scale=2.0, null=NULL, interval=0.3), "got interval="),
        (dict(scale=2.0, null=NULL, interval=(math.nan, 1.0)), "got interval="),
        (dict(scale=2.0, null=NULL, rescale=1.5), "got rescale="),
        (dict(scale=2.0, against=net), "got against=Counting"),
        (dict(scale=2.0, against=sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.VPSDE())), "events of shape"),
    ]:
        with pytest.raises(sg.InvalidInputError, match=said):
            sg.Guided(model, **wrong)
    guided, who = sg.Guided(model, 2.0, null=NULL), torch.arange(6)
    for cond, said in [
        (dict(who=who), "got no label="),
        (dict(who=who, label=who, lable=who), "'lable' is unknown"),
        (dict(who=who, label=who[:3]), "for 6 samples"),
    ]:
        with pytest.raises(sg.InvalidInputError, match=said):
            sg.sample(guided, 6, steps=4, **cond)
    assert net.calls == 0


GUIDES = {
    "the model": dict(scale=1.0, null=NULL),
    "no guidance": dict(scale=0.0, null=NULL),
    "a number": dict(scale=3.0, null=NULL),
    "a function": dict(scale=lambda lam: 1 + torch.sigmoid(lam), null=NULL),
    "an interval": dict(scale=3.0, null=NULL, interval=(0.3, 5.0)),
    "rescaled": dict(scale=3.0, null=NULL, rescale=0.7),
    "another class": dict(scale=3.0, null={"label": 1}),
}


@pytest.mark.parametrize("after", GUIDES)
@pytest.mark.parametrize("before", GUIDES)
def test_guidance_that_is_assigned_is_guidance_that_is_made(before, after):
    model = labelled(sg.VPSDE())
    guided, expected = (sg.Guided(model, **GUIDES[name]) for name in (before, after))
    sg.sample(guided, 5, steps=4, seed=0, label=LABEL)
    for name, value in {"interval": None, "rescale": 0.0, **GUIDES[after]}.items():
        setattr(guided, name, value)
    for how in (dict(steps=6), dict(rtol=3e-2), dict(steps=6, eta=1.0)):
        ours, theirs = (sg.sample(m, 5, seed=0, label=LABEL, **how) for m in (guided, expected))
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.nfe, theirs.nfe) and ours.solver == theirs.solver
    assert guided.conditioned == expected.conditioned and guided.data.smooth == expected.data.smooth


def test_facts_that_were_said_outlast_another_scale():
    model = sg.Denoiser(Counting(), sg.VPSDE(), data_std=1.0)
    model.data_covariance, model.smooth = torch.eye(2), True
    guided = sg.Guided(model, GUIDES["a function"]["scale"], null=NULL)
    assert not guided.smooth
    guided.smooth = True
    guided.scale = 2.0
    assert guided.smooth and guided.data.covariance is None
    guided.scale = 1.0
    assert guided.smooth and guided.data.covariance is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", "two"), ("scale", math.nan), ("interval", (5.0, 0.3)), ("rescale", 1.5), ("null", {"lable": -1})],
)
def test_guidance_that_cannot_be_is_refused_when_assigned(name, value):
    guided = sg.Guided(labelled(sg.VPSDE()), 2.0, null=NULL)
    before = sg.sample(guided, 5, steps=4, seed=0, label=LABEL).x
    with pytest.raises(sg.InvalidInputError, match=f"got {name}="):
        setattr(guided, name, value)
    assert torch.equal(sg.sample(guided, 5, steps=4, seed=0, label=LABEL).x, before)


def test_cfg_plus_plus_is_a_scale_of_its_grid():
    """On "ddim": x' = alpha' (x0_u + lambda (x0_c - x0_u)) + sigma' noise_u, noised again by the unguided belief."""
    sde, weight = sg.VPSDE(), 0.6
    mixture = sg.GaussianMixture([[-1.0, 0.2], [1.0, -0.3]], std=[0.4, 0.5])
    model, label = sg.MixtureModel(mixture, sde, labels=[0, 1]), torch.tensor([0, 1, 1, 0])
    times = sg.grid(model, 12, kind="karras")
    guided = sg.Guided(model, sg.Guided.plus_plus(weight, sde, times), null={"label": -1})
    found = sg.sample(guided, 4, solver="ddim", steps=times, seed=0, label=label, dtype=torch.float64, save="all")
    x, nodes = found.xs[0], times[:-1].tolist()
    for t, t_next in zip(nodes, [*nodes[1:], None], strict=True):
        own, free = model(x, t, label=label), model(x, t)
        x0 = free.x0 + weight * (own.x0 - free.x0)
        x = x0 if t_next is None else float(sde.alpha(t_next)) * x0 + float(sde.sigma(t_next)) * free.noise
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-12)
    with pytest.raises(sg.InvalidInputError, match="belongs to one grid: use steps="):
        sg.sample(guided, 4, rtol=1e-2, label=label)
    with pytest.raises(sg.InvalidInputError, match="expected a time of the grid"):
        sg.sample(guided, 4, solver="ddim", steps=5, label=label)
    with pytest.raises(sg.InvalidInputError, match="falling to 0"):
        sg.Guided.plus_plus(weight, sde, times[:-1])


@pytest.mark.parametrize("process", ["vp", "edm"])
def test_an_interval_costs_little_more_than_guidance_everywhere(process):
    """Error control steps up to the jumps and begins anew beyond them: at one tolerance 1.15 times the evaluations of
    networks at most, and errors no larger than guidance's without an interval."""
    sde = {"vp": sg.VPSDE(), "edm": sg.EDMSDE()}[process]
    mixture = sg.GaussianMixture(normals(6, 4, seed=1), std=0.3)
    model, label = sg.MixtureModel(mixture, sde, labels=[0, 1, 2, 0, 1, 2]), torch.arange(24) % 3
    how = {"seed": 0, "label": label, "dtype": torch.float64, "t_span": (sde.t_max, sde.t_min)}
    for rtol in (1e-2, 1e-3, 1e-4):
        cost, error = [], []
        for interval in (None, (0.28, 5.4)):
            guided = sg.Guided(model, 2.0, null={"label": -1}, interval=interval)
            right = sg.sample(guided, 24, solver="dopri5", rtol=1e-8, **how).x
            found = sg.sample(guided, 24, rtol=rtol, **how)
            cost.append(float(found.nfe.double().mean()))
            error.append(float((found.x - right).square().mean().sqrt()))
        assert cost[1] <= 1.15 * cost[0] and error[1] <= max(1.5 * error[0], rtol)


@pytest.mark.parametrize("solver", ["adams", "dopri5", "bosh3"])
@pytest.mark.parametrize("down", [True, False])
def test_no_step_goes_over_a_jump(solver, down):
    """Every sample has a node at each of the jumps, in either direction; conditions that change there are a jump too."""
    sde = sg.VPSDE()
    mixture = sg.GaussianMixture([[-1.0, 0.2], [1.0, -0.3]], std=[0.4, 0.5])
    model, label = sg.MixtureModel(mixture, sde, labels=[0, 1]), torch.tensor([0, 1, 1])
    guided = sg.Guided(model, 3.0, null={"label": -1}, interval=(0.3, 4.0))
    switched = sg.Switched(model, 1.0, {"label": "style"})
    assert guided.breaks() == (0.3, 4.0) and sg.Guided(switched, 2.0, against=guided).breaks() == (0.3, 1.0, 4.0)
    assert sg.Guided(model, 3.0, null={"label": -1}, interval=(0.0, math.inf)).breaks() == ()
    for wrapped, cond in ((guided, {"label": label}), (switched, {"label": label, "style": 1 - label})):
        x = normals(3, 2)
        if down:
            found = sg.sample(wrapped, 3, solver=solver, rtol=1e-3, seed=0, save="all", dtype=torch.float64, **cond)
        else:
            found = sg.encode(wrapped, x, solver=solver, rtol=1e-3, save="all", **cond)
        for level in wrapped.breaks():
            t = float(sde.time(torch.tensor(-math.log(level), dtype=torch.float64)))
            assert float((found.ts - t).abs().amin(0).max()) < 1e-6
        exact = sg.sample if down else sg.encode
        start = {"shape": 3, "seed": 0, "dtype": torch.float64} if down else {"x": x}
        right = exact(wrapped, **start, solver="dopri5", rtol=1e-8, **cond).x
        torch.testing.assert_close(found.x, right, rtol=0, atol=2e-2 * float(right.abs().max()))


@pytest.mark.parametrize("process", ["vp", "edm"])
@pytest.mark.parametrize("solver", ["auto", "dpm++2m", "unipc3", "v-adams3", "deis3", "ddim", "heun"])
def test_an_interval_costs_as_little_on_a_fixed_grid(process, solver):
    """For 1.15 times the evaluations the error is that of guidance everywhere, though steps begin anew at two jumps:
    order falls at the end of the run and not before every jump."""
    sde = {"vp": sg.VPSDE(), "edm": sg.EDMSDE()}[process]
    model = sg.MixtureModel(sg.GaussianMixture(normals(6, 4, seed=1), std=0.3), sde, labels=[0, 1, 2, 0, 1, 2])
    how = {"seed": 0, "label": torch.arange(24) % 3, "dtype": torch.float64, "t_span": (sde.t_max, sde.t_min)}

    def run(steps: int, interval: tuple[float, float] | None) -> tuple[float, float]:
        guided = sg.Guided(model, 2.0, null={"label": -1}, interval=interval)
        right = sg.sample(guided, 24, solver="dopri5", rtol=1e-8, **how).x
        found = sg.sample(guided, 24, solver=solver, steps=steps, **how)
        return float((found.x - right).norm(dim=1).median()), float(found.nfe.double().mean())

    longer = 1.35 if solver == "heun" else 1.5  # steps, as an evaluation outside the interval costs half
    gains = []
    for steps in (15, 20, 26):
        (error, cost), (own, own_cost) = run(steps, None), run(int(longer * steps), (0.28, 5.4))
        assert own_cost <= 1.15 * cost
        gains.append(error / own)
    assert math.prod(gains) >= 1, gains


@pytest.mark.parametrize(
    "how", [{"solver": "adams"}, {"solver": "heun"}, {"solver": "d-adams2-sde"}, {"eta": 1.0, "solver": "ddim"}]
)
def test_a_grid_that_is_laid_has_nodes_at_the_jumps(how):
    """As many as without; times that were given stay."""
    sde, label = sg.VPSDE(), torch.tensor([0, 1, 1])
    model = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.2], [1.0, -0.3]], std=[0.4, 0.5]), sde, labels=[0, 1])
    guided = sg.Guided(model, 3.0, null={"label": -1}, interval=(0.3, 4.0))
    call = {"seed": 0, "save": "all", "label": label, "dtype": F64, **how}
    plain, found = (sg.sample(m, 3, steps=12, **call) for m in (sg.Guided(model, 3.0, null={"label": -1}), guided))
    assert len(found.ts) == len(plain.ts) and bool((found.ts.diff() < 0).all())
    for level in guided.breaks():
        t = float(sde.time(torch.tensor(-math.log(level), dtype=F64)))
        assert float((found.ts - t).abs().min()) < 1e-6
    torch.testing.assert_close(found.ts[[0, -2, -1]], plain.ts[[0, -2, -1]])
    given = sg.sample(guided, 3, steps=plain.ts, **call)
    torch.testing.assert_close(given.ts, plain.ts)
    assert len(sg.sample(guided, 3, steps=2, **call).ts) == len(sg.sample(model, 3, steps=2, **call).ts)
