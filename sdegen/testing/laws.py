"""The project's own laws, for anyone's classes: each check takes an instance and raises `LawError` where a law fails.

Tolerances are relative and meant for float64: 1e-8 for identities between closed forms, 1e-7 where a derivative of an
interpolated function enters, and what float32 resolves for networks of that type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, NonFiniteError, SdegenError
from ..core.shapes import expand, flat
from ..distributions.mixture import GaussianMixture
from ..loop.solution import Solution
from ..loop.solve import solve
from ..models.base import ScoreModel
from ..models.exact import MixtureModel
from ..models.prediction import Prediction
from ..noise.white import Noise
from ..processes import EDMSDE, SDE, VESDE, VPSDE, LinearPathSDE, TrigSDE, derivative
from ..solvers import OutsideSolver, Solver
from ..solvers.grids import formula_grid
from ..solvers.runge_kutta import dopri5
from ..terms import ProbabilityFlow, ReverseSDE, Term

_EXACT = 1e-8  # identities between closed forms, float64
_SMOOTH = 1e-7  # the same through a derivative of something interpolated
_EVEN = torch.arange(1, 12, dtype=torch.float64) / 12 + 0.0137  # fractions of a range, none a round number
_LAW_STATES, _LAW_NOISE = 101, 102  # what a draw is for


class LawError(SdegenError, AssertionError):
    """A law that does not hold; the message names the law, the time, what came and what was wanted."""


# ---- processes


def check_sde(sde: SDE) -> None:
    """Prove that a process keeps the laws every other part relies on.

    - alpha and sigma are positive and finite, lambda = log(alpha/sigma) is finite and falls (at t_max alpha may be 0);
    - f = d log(alpha)/dt, d(sigma^2)/dt = 2 f sigma^2 + g^2, rates and levels agree with them; all differentiable in t;
    - time(half_log_snr(t)) = t, differentiably;
    - functions of t keep t's shape and dtype, work element by element, and agree between float32 and float64;
    - drift is f x; perturb is alpha x0 + sigma noise; transitions compose: t -> u -> s is t -> s in law, and end on the
      marginals;
    - the prior is N(0, sigma(t_max)^2), sample i depends on (seed, its number) alone.

    Args:
        sde: an instance of a process.

    Raises:
        LawError: a law fails.
    """
    if not isinstance(sde, SDE):
        raise InvalidInputError(f"check_sde takes an instance of an SDE, not {sde!r}")
    for law in (_range, _coefficients, _slopes, _inverse, _elementwise, _precision, _samples, _transitions, _prior):
        law(sde)


def _range(sde: SDE) -> None:
    if not 0 < sde.t_min < sde.t_max < math.inf:
        raise LawError(f"{sde}: 0 < t_min < t_max, both finite, fails: came [{sde.t_min}, {sde.t_max}]")
    t = torch.linspace(sde.t_min, sde.t_max, 257, dtype=torch.float64)
    alpha, sigma, lam = sde.alpha(t), sde.sigma(t), sde.half_log_snr(t)
    open_end = float(alpha[-1]) == 0.0  # zero terminal signal-to-noise ratio
    inner = alpha > 0 if open_end else torch.ones_like(t, dtype=torch.bool)
    for name, value, good in (
        ("alpha is positive and finite", alpha, torch.isfinite(alpha) & ((alpha > 0) | ~inner)),
        ("sigma is positive and finite", sigma, torch.isfinite(sigma) & (sigma > 0)),
        ("half_log_snr is finite", lam, torch.isfinite(lam) | ~inner),
    ):
        if not bool(good.all()):
            i = int((~good).nonzero()[0])
            raise LawError(f"{sde}: {name} on [t_min, t_max], fails at t = {float(t[i]):g}: came {float(value[i]):g}")
    falls = lam[inner].diff() < 0
    if not bool(falls.all()):
        i = int((~falls).nonzero()[0])
        raise LawError(
            f"{sde}: half_log_snr falls as t grows, fails between t = {float(t[i]):g} and {float(t[i + 1]):g}: came "
            f"{float(lam[i]):.9g} and {float(lam[i + 1]):.9g}"
        )
    _agree(sde, "half_log_snr = log(alpha/sigma)", lam[inner], (alpha.log() - sigma.log())[inner], t[inner], add=1.0)


def _coefficients(sde: SDE) -> None:
    t = _times(sde)
    alpha, sigma, f, g = sde.alpha(t), sde.sigma(t), sde.drift_coefficient(t), sde.diffusion(t)
    if not bool((g >= 0).all()):
        raise LawError(f"{sde}: diffusion is at least 0, fails at t = {float(t[~(g >= 0)][0]):g}")
    speed = f.abs() + g**2 / (2 * sigma**2)  # |d log|: the size that f, sigma'/sigma and lambda' are made of
    log_alpha = derivative(lambda u: torch.log(sde.alpha(u)), t)
    _agree(sde, "drift_coefficient = d log(alpha)/dt", f, log_alpha, t, rtol=_SMOOTH, scale=speed)
    growth = derivative(lambda u: sde.sigma(u) ** 2, t)
    wanted = 2 * f * sigma**2 + g**2
    _agree(sde, "d(sigma^2)/dt = 2 f sigma^2 + g^2", growth, wanted, t, rtol=_SMOOTH, scale=2 * sigma**2 * speed)
    fall = derivative(sde.half_log_snr, t)
    _agree(sde, "d lambda/dt = -g^2/(2 sigma^2)", fall, -(g**2) / (2 * sigma**2), t, rtol=_SMOOTH, scale=speed)
    d_alpha, d_sigma = sde.rates(t)
    _agree(sde, "rates()[0] = d alpha/dt", d_alpha, derivative(sde.alpha, t), t, rtol=_SMOOTH, scale=alpha * speed)
    _agree(sde, "rates()[1] = d sigma/dt", d_sigma, derivative(sde.sigma, t), t, rtol=_SMOOTH, scale=sigma * speed)
    several = sde.level(t)
    for i in range(0, len(t), 6):
        one = t[i]
        single = sde.level(one)
        for name, wanted in (("alpha", alpha), ("sigma", sigma), ("d_alpha", d_alpha), ("d_sigma", d_sigma), ("g", g)):
            came = torch.as_tensor(getattr(single, name), dtype=torch.float64)
            size = (alpha + sigma + g)[i] * (1 + speed[i])
            _agree(sde, f"level(t).{name} of a scalar t", came, wanted[i], one, scale=size)
            _agree(sde, f"level(t).{name} of times (B,)", getattr(several, name)[i], wanted[i], one, scale=size)


def _slopes(sde: SDE) -> None:
    """What automatic differentiation says is what the values do (a kink may take either side's slope)."""
    t = _times(sde)
    h = 1e-5 * torch.minimum(t, t - sde.t_min).minimum(sde.t_max - t)
    for name in ("alpha", "sigma", "half_log_snr", "drift_coefficient", "diffusion"):
        function = getattr(sde, name)
        value, up, down = function(t), function(t + h), function(t - h)
        slope = derivative(function, t)
        secants = torch.stack([(up - down) / (2 * h), (up - value) / h, (value - down) / h])
        miss, which = (secants - slope).abs().min(0)
        secant = secants.gather(0, which[None])[0]
        # differences lose digits to rounding, and to the curvature over h
        bad = ~(miss <= 1e-3 * secant.abs() + 1e-13 * (value.abs() + up.abs()) / h + 1e-6 * value.abs() / t)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise LawError(
                f"{sde}: {name} is differentiable in t, fails at t = {float(t[i]):g}: automatic differentiation gives "
                f"{float(slope[i]):g}, differences of its values {float(secant[i]):g}"
            )


def _inverse(sde: SDE) -> None:
    t = torch.cat([torch.tensor([sde.t_min], dtype=torch.float64), _times(sde)])
    lam = sde.half_log_snr(t)
    _agree(sde, "time(half_log_snr(t)) = t", sde.time(lam), t, t)
    end = sde.time(sde.half_log_snr(sde.t_max))
    _agree(sde, "time(half_log_snr(t_max)) = t_max", end, torch.full_like(end, sde.t_max), end)
    t, lam = t[1:], lam[1:]  # t_min may be the first node of a table, where the rate jumps
    wanted = -2 * (sde.sigma(t) / sde.diffusion(t)) ** 2
    came = derivative(sde.time, lam)
    _agree(sde, "time is differentiable: d time/d lambda = -2 sigma^2/g^2", came, wanted, t, rtol=10 * _SMOOTH)


_OF_TIME = ("alpha", "sigma", "half_log_snr", "drift_coefficient", "diffusion", "time", "rates")


def _call(sde: SDE, name: str, argument: Any) -> tuple[Tensor, ...]:
    came = getattr(sde, name)(argument)
    return came if isinstance(came, tuple) else (came,)


def _elementwise(sde: SDE) -> None:
    t = _times(sde)[:6]
    lam = sde.half_log_snr(t)
    for name in _OF_TIME:
        several = lam if name == "time" else t
        law = f"{name} keeps the shape and dtype of its argument"
        for wanted in _call(sde, name, several):
            _kind(sde, law, wanted, several.shape, torch.float64)
        number, table = _call(sde, name, float(several[4])), _call(sde, name, several.reshape(2, 3))
        for k, wanted in enumerate(_call(sde, name, several)):
            size = wanted.abs() + 1e-6
            _kind(sde, f"{name} of a number is a float64 tensor of shape ()", number[k], (), torch.float64)
            _agree(sde, f"{name} of a number is {name} of a tensor", number[k], wanted[4], t[4], scale=size[4])
            _kind(sde, law, table[k], (2, 3), torch.float64)
            _agree(sde, f"{name} works element by element", table[k].flatten(), wanted, t, scale=size)
        for shape, dtype in (((), torch.float64), ((), torch.float32), ((0,), torch.float64), ((2, 3), torch.float32)):
            argument = several[: math.prod(shape)].reshape(shape).to(dtype)
            for value in _call(sde, name, argument):
                _kind(sde, law, value, shape, dtype)


def _precision(sde: SDE) -> None:
    # away from the ends: a time that float32 cannot tell from a table's node counts as the node, rate included
    low = (sde.t_min + (sde.t_max - sde.t_min) * _EVEN).float()
    high = low.double()
    for name in ("alpha", "sigma", "half_log_snr", "drift_coefficient", "diffusion"):
        came, wanted = getattr(sde, name)(low).double(), getattr(sde, name)(high)
        # 1e-4: float32 keeps 1e-7, of which functions near their poles lose some digits
        size = wanted.abs() + (1.0 if name == "half_log_snr" else 0.0)
        at, law = sde.alpha(high) > 0, f"{name} in float32 is close to float64"
        _agree(sde, law, came[at], wanted[at], high[at], rtol=1e-4, scale=size[at])


def _samples(sde: SDE) -> None:
    t = _times(sde)[::4]
    for event in ((), (3,), (2, 1, 3)):
        for dtype in (torch.float32, torch.float64):
            shape = (len(t), *event)
            x0, noise = _draw(shape, _LAW_STATES).to(dtype), _draw(shape, _LAW_NOISE).to(dtype)
            rtol = _EXACT if dtype == torch.float64 else 1e-5
            for argument in (t, float(t[1])):
                times = torch.as_tensor(argument, dtype=torch.float64)
                coefficients = sde.alpha(times), sde.sigma(times), sde.drift_coefficient(times)
                alpha, sigma, f = (c.reshape(-1, *(1,) * len(event)) for c in coefficients)
                came = sde.perturb(x0, argument, noise)
                _kind(sde, "perturb keeps the shape and dtype of x0", came, shape, dtype)
                wanted, size = alpha * x0 + sigma * noise, alpha * x0.abs() + sigma * noise.abs()
                _agree(sde, "perturb = alpha x0 + sigma noise", came, wanted, times, rtol=rtol, scale=size)
                came = sde.drift(x0, argument)
                _kind(sde, "drift keeps the shape and dtype of x", came, shape, dtype)
                _agree(sde, "drift = f(t) x", came, f * x0, times, rtol=rtol, scale=(f * x0).abs() + 1e-30)
        empty = sde.perturb(torch.zeros(0, *event), t[0], torch.zeros(0, *event))
        _kind(sde, "perturb of an empty batch is empty", empty, (0, *event), torch.float32)


def _transitions(sde: SDE) -> None:
    t = _times(sde)
    lower, middle, upper = t[:-4], t[2:-2], t[4:]

    def kernel(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        ones, zeros = torch.ones(len(start), 1, dtype=torch.float64), torch.zeros(len(start), 1, dtype=torch.float64)
        return sde.transition(ones, start, end, zeros)[:, 0], sde.transition(zeros, start, end, ones)[:, 0]

    a, b = kernel(lower, upper)
    first_a, first_b = kernel(lower, middle)
    second_a, second_b = kernel(middle, upper)
    alpha, sigma = sde.alpha(upper), sde.sigma(upper)
    _agree(sde, "transition's mean factor is alpha(s)/alpha(t)", a, alpha / sde.alpha(lower), upper)
    came = (a * sde.sigma(lower)) ** 2 + b**2
    _agree(sde, "transition ends on the marginal: a^2 sigma(t)^2 + std^2 = sigma(s)^2", came, sigma**2, upper)
    _agree(sde, "transitions compose: mean of t -> u -> s", first_a * second_a, a, upper)
    came = (second_a * first_b) ** 2 + second_b**2
    _agree(sde, "transitions compose: variance of t -> u -> s", came, b**2, upper, scale=b**2 + 1e-7 * sigma**2)
    x, noise = _draw((len(lower), 2, 3), _LAW_STATES), _draw((len(lower), 2, 3), _LAW_NOISE)
    wanted = expand(a, x) * x + expand(b, x) * noise
    for dtype, rtol in ((torch.float64, _EXACT), (torch.float32, 1e-4)):
        came = sde.transition(x.to(dtype), lower, upper, noise.to(dtype))
        _kind(sde, "transition keeps the shape and dtype of x", came, x.shape, dtype)
        size = expand(a, x) * x.abs() + expand(b, x) * noise.abs()
        _agree(sde, "transition = a x + std noise", came.double(), wanted, upper, rtol=rtol, scale=size)
    one = sde.transition(x[:1], float(lower[0]), float(upper[0]), noise[:1])
    _agree(sde, "transition of scalar times is that of times (B,)", one, wanted[:1], upper[:1], scale=x[:1].abs() + 1)


def _prior(sde: SDE) -> None:
    std = float(sde.sigma(sde.t_max))
    n = 4096
    z = sde.prior((n, 2), seed=3, dtype=torch.float64) / std
    for name, came, wanted, error in (
        ("mean is 0", z.mean(), 0.0, 1 / math.sqrt(2 * n)),
        ("variance is sigma(t_max)^2", z.square().mean(), 1.0, math.sqrt(2 / (2 * n))),
        ("fourth moment is that of a normal", z.pow(4).mean(), 3.0, math.sqrt(96 / (2 * n))),
    ):
        if not abs(float(came) - wanted) < 5 * error:  # five standard errors
            raise LawError(
                f"{sde}: the prior's {name}, fails: came {float(came):g} (in units of sigma), wanted {wanted:g}"
            )
    index = [7, 2, 4000]
    rows = sde.prior((3, 2), seed=3, index=index, dtype=torch.float64)
    if not torch.equal(rows / std, z[index]):
        raise LawError(
            f"{sde}: the prior's sample i depends on (seed, i) alone, fails: rows {index} came out different"
        )
    if torch.equal(sde.prior((3, 2), seed=4, dtype=torch.float64) / std, z[:3]):
        raise LawError(f"{sde}: the prior depends on the seed, fails: seeds 3 and 4 draw the same")
    for event in ((), (3,), (2, 1, 3)):
        for dtype in (torch.float32, torch.float64):
            x = sde.prior((5, *event), seed=0, dtype=dtype)
            _kind(sde, "prior has the shape and dtype asked for", x, (5, *event), dtype)
            came = sde.prior_log_prob(x)
            _kind(sde, "prior_log_prob is one number per sample", came, (5,), dtype)
            normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), sde.sigma(sde.t_max))
            wanted = flat(normal.log_prob(x.double())).sum(1)
            rtol = _EXACT if dtype == torch.float64 else 1e-5
            law = "prior_log_prob = log N(x; 0, sigma(t_max)^2)"
            _agree(sde, law, came.double(), wanted, torch.tensor(sde.t_max), rtol=rtol, add=float(flat(x).shape[1]))
        _kind(
            sde, "the prior of an empty batch is empty", sde.prior((0, *event)), (0, *event), torch.get_default_dtype()
        )


# ---- models


def check_model(model: ScoreModel, *, event_shape: Sequence[int] | None = None, seed: int = 0, **cond: Any) -> None:
    """Prove that a model keeps the laws that solvers and guidance rely on.

    - x = alpha x0 + sigma noise; score = -noise/sigma; v = alpha noise - sigma x0; velocity = alpha' x0 + sigma' noise
      = f x - g^2/2 score;
    - a sample's result depends on its own row alone: a part of the batch, another order and one sample at a time give
      the same; a time per sample gives what a scalar gives; a strided input gives what a contiguous one gives; an empty
      batch gives an empty result;
    - float64 in, float64 out; float32 in, float32 out, and close to it;
    - x0 can be differentiated in x;
    - along `on(other)` the belief is the same function of x/alpha and sigma/alpha, and there is a way back;
    - the score is the gradient of `log_prob(x, t)`, where the model has one.

    Args:
        model: a ScoreModel; it is put in eval mode for the check.
        event_shape: the shape of one sample, where the model does not say.
        seed: of the states it is asked about.
        **cond: conditions; tensors are per sample and set the batch size.

    Raises:
        LawError: a law fails.
    """
    if not isinstance(model, ScoreModel):
        raise InvalidInputError(f"check_model takes an instance of a ScoreModel, not {model!r}")
    shape = model.event_shape if event_shape is None else tuple(event_shape)
    if shape is None:
        raise InvalidInputError("this model does not say its event shape: pass event_shape=")
    training = model.training
    model.eval()
    try:
        case = _Case(model, shape, seed, cond)
        for law in (_views, _rows, _inputs, _gradient, _other_paths, _density):
            law(case)
    finally:
        model.train(training)


class _Case:
    """A model with states to ask it about: one batch with a time per sample, from t_min to t_max."""

    def __init__(self, model: ScoreModel, event_shape: Sequence[int], seed: int, cond: dict[str, Any]) -> None:
        self.model, self.sde, self.event, self.seed, self.cond = model, model.sde, tuple(event_shape), seed, cond
        sizes = [len(v) for v in cond.values() if isinstance(v, Tensor)]
        self.batch = sizes[0] if sizes else 9
        types = [p.dtype for p in model.parameters() if p.is_floating_point()]
        self.rtol = max([_EXACT, *(200 * torch.finfo(d).eps for d in types if d != torch.float64)])
        self.t, self.x = self.states(model.sde, self.batch)

    def states(self, sde: SDE, n: int) -> tuple[Tensor, Tensor]:
        """n times over the range of a process, and states with about the law they have there."""
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
        inner = _times(sde)
        times = torch.cat([ends, inner[torch.linspace(0, len(inner) - 1, max(n - 2, 1)).long()]])[:n]
        shape = (n, *self.event)
        x0, noise = _draw(shape, _LAW_STATES, self.seed), _draw(shape, _LAW_NOISE, self.seed)
        if self.model.data_std is not None:
            x0 = x0 * self.model.data_std.double().cpu()
        if self.model.data_mean is not None:
            x0 = x0 + self.model.data_mean.double().cpu()
        device = next((p.device for p in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))
        return times.to(device), sde.perturb(x0, times, noise).to(device)

    def ask(self, x: Tensor, t: float | Tensor, rows: Any = slice(None), model: ScoreModel | None = None) -> Prediction:
        cond = {k: v[rows] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        return (model or self.model)(x, t, **cond)

    def same(self, law: str, came: Prediction, wanted: Prediction, t: Tensor, *, rtol: float | None = None) -> None:
        """Two beliefs agree: x0 to its own size and the data's, noise to its own size and 1."""
        for name in ("x0", "noise"):
            left, right = getattr(came, name).double(), getattr(wanted, name).double()
            _agree(self.model, f"{law} ({name})", left, right, t, rtol=rtol or self.rtol, add=1.0)


def _views(case: _Case) -> None:
    sde, x, t = case.sde, case.x, case.t
    _check_views(case, sde, case.ask(x, t), x, t)
    for i in range(min(case.batch, 3)):
        _check_views(case, sde, case.ask(x, float(t[i])), x, t[i].expand(len(x)))


def _check_views(case: _Case, sde: SDE, p: Prediction, x: Tensor, t: Tensor) -> None:
    who = case.model
    for name in ("x0", "noise", "score", "v"):
        _kind(who, f"{name} has the shape and dtype of x", getattr(p, name), x.shape, x.dtype)
        _finite(who, name, getattr(p, name), t)
    alpha, sigma = (expand(c, x) for c in (sde.alpha(t), sde.sigma(t)))
    x0, noise = p.x0, p.noise
    size = x.abs() + alpha * x0.abs() + sigma * noise.abs()
    _agree(who, "x = alpha x0 + sigma noise", alpha * x0 + sigma * noise, x, t, scale=size)
    _agree(who, "score = -noise/sigma", p.score, -noise / sigma, t, scale=(1 + noise.abs()) / sigma)
    _agree(who, "v = alpha noise - sigma x0", p.v, alpha * noise - sigma * x0, t, scale=size + x0.abs() + noise.abs())
    inner = sde.alpha(t) > 0  # at zero signal the rate is infinite and there is no velocity
    t, x, x0, noise, velocity, score = (part[inner] for part in (t, x, x0, noise, p.velocity, p.score))
    d_alpha, d_sigma = (expand(c, x) for c in sde.rates(t))
    f, g = expand(sde.drift_coefficient(t), x), expand(sde.diffusion(t), x)
    size = d_alpha.abs() * (1 + x0.abs()) + d_sigma.abs() * (1 + noise.abs())
    _agree(who, "velocity = alpha' x0 + sigma' noise", velocity, d_alpha * x0 + d_sigma * noise, t, scale=size)
    size = size + (f * x).abs() + (g**2 * score).abs()
    _agree(who, "velocity = f x - g^2/2 score", velocity, f * x - g**2 / 2 * score, t, scale=size)


def _rows(case: _Case) -> None:
    x, t, n = case.x, case.t, case.batch
    whole = case.ask(x, t)
    order = torch.arange(n - 1, -1, -1, device=x.device)
    for law, rows in (
        ("another order of the batch gives the same", order),
        ("a part of the batch", order[: n // 2 + 1]),
    ):
        case.same(law, case.ask(x[rows], t[rows], rows), _part(whole, rows), t[rows])
    for i in range(n):
        rows = torch.tensor([i], device=x.device)
        alone = case.ask(x[rows], float(t[i]), rows)
        case.same(
            "one sample at a scalar time is its row of a batch with times (B,)", alone, _part(whole, rows), t[rows]
        )
    one = t[n // 2]
    shared = case.ask(x, one)
    case.same("a scalar time is that time for each", shared, case.ask(x, one.expand(n)), one.expand(n))
    none = torch.zeros(0, dtype=torch.long, device=x.device)
    for times in (t[none], float(one)):
        empty = case.ask(x[none], times, none)
        for name in ("x0", "noise", "score", "v", "velocity"):
            law = f"an empty batch gives an empty {name}"
            _kind(case.model, law, getattr(empty, name), (0, *case.event), x.dtype)


def _part(p: Prediction, rows: Tensor) -> Prediction:
    return Prediction(p.x0[rows], p.noise[rows], p.sde, p.t[rows])


def _inputs(case: _Case) -> None:
    x, t = case.x, case.t
    whole = case.ask(x, t)
    strided = torch.stack([x, x + 1], dim=-1)[..., 0]
    case.same("a strided input gives what a contiguous one gives", case.ask(strided, t), whole, t)
    low = case.ask(x.float(), t)
    for name in ("x0", "noise", "score", "v", "velocity"):
        _kind(case.model, f"float32 in, float32 out: {name}", getattr(low, name), x.shape, torch.float32)
    # x itself is rounded: where the belief changes over sigma, only levels above a tenth of the data can be compared
    coarse = (-case.sde.half_log_snr(t)).exp() > 0.1 * case.model.sigma_data
    law = "float32 is close to float64"
    case.same(law, _part(low, coarse), _part(whole, coarse), t[coarse], rtol=max(1e-3, case.rtol))


def _gradient(case: _Case) -> None:
    x = case.x.clone().requires_grad_()
    with torch.enable_grad():
        x0 = case.ask(x, case.t).x0
        if not x0.requires_grad:
            raise LawError(f"{_name(case.model)}: x0 can be differentiated in x, fails: it does not depend on x")
        (slope,) = torch.autograd.grad(x0.sum(), x)
    _finite(case.model, "the gradient of x0 in x", slope, case.t)


def _other_paths(case: _Case) -> None:
    model, sde = case.model, case.sde
    with torch.no_grad():
        for other in (EDMSDE(), VPSDE(), VESDE(), TrigSDE(model.sigma_data), LinearPathSDE()):
            try:
                moved = model.on(other)
            except InvalidInputError:  # no noise level in common
                continue
            name = type(other).__name__
            t, x = case.states(moved.sde, case.batch)
            level = moved.sde.half_log_snr(t)
            ends = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).to(level)
            slack = 1e-9 * (1 + level.abs())
            if not bool(((level >= ends[0] - slack) & (level <= ends[1] + slack)).all()):
                raise LawError(f"{_name(model)}: on({name}) is narrowed to the levels the model knows, fails")
            there = sde.time(level).clamp(sde.t_min, sde.t_max)
            # alpha/alpha' = sigma/sigma', and one of the two pairs may be near 0
            ratio = torch.hypot(sde.alpha(there), sde.sigma(there)) / torch.hypot(
                moved.sde.alpha(t), moved.sde.sigma(t)
            )
            came, wanted = case.ask(x, t, model=moved), case.ask(x * expand(ratio, x), there)
            law = f"along on({name}) the belief is the same function of x/alpha and sigma/alpha"
            case.same(law, came, wanted, t, rtol=10 * case.rtol)
            _check_views(case, moved.sde, came, x, t)
            back = moved.on(sde)
            t, x = case.states(back.sde, case.batch)
            came, wanted = case.ask(x, t, model=back), case.ask(x, t)
            case.same(f"on({name}) has a way back", came, wanted, t, rtol=10 * case.rtol)


def _density(case: _Case) -> None:
    log_prob: Callable[..., Tensor] | None = getattr(case.model, "log_prob", None)
    if log_prob is None:
        return
    t = case.t
    x = case.x.clone().requires_grad_()
    with torch.enable_grad():
        log_p = log_prob(x, t, **case.cond)
        _kind(case.model, "log_prob is one number per sample", log_p, (case.batch,), x.dtype)
        (slope,) = torch.autograd.grad(log_p.sum(), x)
    size = slope.abs() + 1 / expand(case.sde.sigma(t), x)
    _agree(case.model, "score = grad_x log_prob", case.ask(case.x, t).score, slope, t, rtol=10 * case.rtol, scale=size)


# ---- solvers


def check_solver(solver: Solver) -> None:
    """Prove that a solver is what it says it is.

    Of a flow (kind "ODE" or "any"), with exact scores in float64:

    - the slope of error against step lies in [p - 0.15, p + 0.3], p its order (or that of its start), on an uneven grid
      and an even one, down and up; Gaussian data are carried to where they belong;
    - under error control the error falls with the tolerance, and samples that are done leave the batch.

    Of an SDE (kind "SDE" or "any"):

    - the output's mean and variance on Gaussian data tend to the exact ones, found without sampling: a solver of this
      kind is affine in its state and its noise, so a few controlled inputs tell its whole law;
    - a sample depends on the seed and its own number alone.

    Of both: nfe and calls are those made, at times inside the span; a sample does not depend on its batch mates, nor a
    solve on the one before; saving changes nothing; a NaN harms nobody else; any event shape, dtype and stride.

    Args:
        solver: an instance.

    Raises:
        LawError: a law fails.
    """
    if not isinstance(solver, Solver):
        raise InvalidInputError(f"check_solver takes an instance of a Solver, not {solver!r}")
    with torch.no_grad():
        laws = [_counts, _again, _saving, _companions, _spoiled, _events]
        if solver.kind != "SDE":
            laws += [_order, _gaussian_flow]
        if solver.kind != "ODE":
            laws += [_seeds, _output_law]
        if solver.adaptive:
            laws += [_tolerances]
        for law in laws:
            law(solver)


_ROUND = TrigSDE(1.0, sigma_min=0.01, sigma_max=50.0)
_SMOOTH_SPAN = (0.7, 0.4)  # sigma/alpha from 0.84 to 0.42: the modes part, and nothing is flat or sharp
_ROUNDING = 3e-14  # errors below it are no longer the method's
_UNEVEN = (1.0, 2.0)  # lengths of steps, by turns


@cache
def _smooth() -> tuple[MixtureModel, dict[str, tuple[Tensor, tuple[float, float], Tensor]]]:
    """A model, and for both directions states at the first time, the span, and the exact states at the last."""
    mixture = GaussianMixture([[1.0, 0.4], [-0.8, 0.9], [0.2, -1.0]], std=[0.2, 0.25, 0.15], weights=[1, 2, 1.5])
    model = MixtureModel(mixture, _ROUND)
    x0, z = mixture.sample(37, seed=1, dtype=torch.float64), _draw((37, 2), _LAW_NOISE)
    problems = {}
    for name, span in (("down", _SMOOTH_SPAN), ("up", (_SMOOTH_SPAN[1], _SMOOTH_SPAN[0]))):
        x = _ROUND.perturb(x0, span[0], z)
        exact = solve(ProbabilityFlow(model), x, solver=dopri5(), steps=_uneven(span, 160, (1.0,)))
        problems[name] = (x, span, exact.x)
    return model, problems


@cache
def _wide() -> tuple[MixtureModel, Tensor, Tensor]:
    """A model, states at t_max and the exact ones at t_min, over the whole range of noise."""
    model, _ = _smooth()
    x = float(_ROUND.sigma(_ROUND.t_max)) * _draw((37, 2), _LAW_STATES)
    ts = torch.linspace(_ROUND.t_max, _ROUND.t_min, 201, dtype=torch.float64)
    return model, x, solve(ProbabilityFlow(model), x, solver=dopri5(), steps=ts).x


def _uneven(span: tuple[float, float], n: int, ratios: Sequence[float] = _UNEVEN) -> Tensor:
    """n steps over a span whose lengths follow these ratios, again and again."""
    lengths = torch.tensor(ratios, dtype=torch.float64).repeat(n // len(ratios) + 1)[:n]
    fraction = torch.cat([lengths.new_zeros(1), lengths.cumsum(0) / lengths.sum()])
    ts = span[0] + (span[1] - span[0]) * fraction
    ts[-1] = span[1]
    return ts


class _Watched(ScoreModel):
    """A model that notes what it is asked, and answers NaN to spoiled samples below a time."""

    def __init__(self, model: ScoreModel, *, below: float = 0.0) -> None:
        super().__init__(model.sde, data_mean=model.data_mean, data_std=model.data_std, event_shape=model.event_shape)
        self.model, self.below = model, below
        self.data_covariance, self.smooth = model.data_covariance, model.smooth
        self.calls = self.rows = 0
        self.first, self.last = math.inf, -math.inf

    def forward(self, x: Tensor, t: float | Tensor, spoiled: Tensor | None = None) -> Prediction:
        times = torch.as_tensor(t, dtype=torch.float64)
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        if times.numel():
            self.first, self.last = min(self.first, float(times.min())), max(self.last, float(times.max()))
        prediction = self.model(x, t)
        if spoiled is None:
            return prediction
        bad = spoiled & (times < self.below)
        x0, noise = (part.where(~expand(bad, x).bool(), math.nan) for part in (prediction.x0, prediction.noise))
        return Prediction(x0, noise, self.sde, t)


class _Normal(ScoreModel):
    """The exact belief about independent N(mean, std^2), any event shape."""

    smooth = True

    def __init__(self, sde: SDE, mean: float, std: float) -> None:
        super().__init__(sde, data_mean=mean, data_std=std)
        self.mean, self.std = mean, std

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        total = (alpha * self.std) ** 2 + sigma**2
        offset = x - expand(alpha * self.mean, x)
        x0 = self.mean + expand(alpha * self.std**2 / total, x) * offset
        return Prediction(x0, expand(sigma / total, x) * offset, self.sde, t)


def _equation(solver: Solver, model: ScoreModel, **cond: Any) -> Term:
    """The equation that laws of either kind are tried on: the flow, or the reverse SDE for a solver of SDEs only."""
    return ReverseSDE(model, **cond) if solver.kind == "SDE" else ProbabilityFlow(model, **cond)


def _ways(solver: Solver) -> list[dict[str, Any]]:
    """How the laws run a solver: on a grid, and by tolerance where it can."""
    grid = {"steps": _uneven(_SMOOTH_SPAN, 12)}
    rtol = 1e-2 if solver.kind == "SDE" else 1e-5  # where noise rules, an error estimate falls with the root of a step
    return [grid, {"t_span": _SMOOTH_SPAN, "rtol": rtol}] if solver.adaptive else [grid]


def _broken(solver: Solver, law: str, came: Any, wanted: Any) -> LawError:
    return LawError(f"{solver!r}: {law}, fails: came {came}, wanted {wanted}")


def _close(solver: Solver, law: str, came: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    """Raise LawError unless all values agree to a tolerance in units of the data."""
    if came.shape != wanted.shape:
        raise _broken(solver, law, f"shape {tuple(came.shape)}", tuple(wanted.shape))
    error = float((came - wanted).abs().max()) if came.numel() else 0.0
    if not error <= tolerance:
        raise _broken(solver, law, f"a difference of {error:.2e}", f"at most {tolerance:.0e}")


def _order(solver: Solver) -> None:
    model, problems = _smooth()
    uneven = solver.order if solver.uneven_order is None else solver.uneven_order
    for direction, grid, ratios, order in (("down", "uneven", _UNEVEN, uneven), ("up", "even", (1.0,), solver.order)):
        p = order if solver.start_order is None else min(order, solver.start_order)
        x, span, exact = problems[direction]
        errors: list[float] = []
        for n in (40, 80, 160) if p < 5 else (10, 20, 40, 80):
            came = solve(ProbabilityFlow(model), x, solver=solver, steps=_uneven(span, n, ratios)).x
            # the geometric mean: the root mean square is one or two samples that started near a separatrix
            error = float((came - exact).square().sum(1).clamp_min(1e-36).log().mean().exp().sqrt())
            if not error > _ROUNDING:
                break
            errors.append(error)
        law = f"order {p:g} on {grid} grids, {direction}"
        if len(errors) < 2 or not all(math.isfinite(e) for e in errors):
            raise _broken(solver, law, f"errors {errors}", "errors that fall step by step, above rounding")
        slope = math.log2(errors[-2] / errors[-1])
        more = 0.3 if solver.kind == "ODE" else 0.65  # a strong order may be half a one below that of the flow
        if not p - 0.15 <= slope <= order + more:  # between the two where the start has not yet taken over
            shown = " ".join(f"{e:.1e}" for e in errors)
            came = f"slope {slope:.2f} (errors by halved steps: {shown})"
            raise _broken(solver, law, came, f"{p:g} - 0.15 .. {order:g} + {more}")


def _gaussian_flow(solver: Solver) -> None:
    """x' = alpha' mu + sqrt((alpha'^2 c + sigma'^2)/(alpha^2 c + sigma^2)) (x - alpha mu), c an axis' variance."""
    sde = VPSDE()
    mu, c = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    model = MixtureModel(GaussianMixture([mu.tolist()], covariances=torch.diag(c)), sde)
    for start, stop in ((0.8, 0.1), (0.1, 0.8)):
        a, b = sde.alpha(start), sde.alpha(stop)
        spread = (a**2 * c + sde.sigma(start) ** 2).sqrt()
        z = _draw((6, 3), _LAW_STATES)
        exact = b * mu + (b**2 * c + sde.sigma(stop) ** 2).sqrt() * z
        errors = []
        for n in (20, 80):
            ts = _uneven((start, stop), n)
            came = solve(ProbabilityFlow(model), a * mu + spread * z, solver=solver, steps=ts).x
            errors.append(float((came - exact).square().mean().sqrt()))
        if not errors[1] <= min(0.2, max(errors[0] / 3, 1e-10)):
            law = f"the flow of Gaussian data, t = {start:g} to {stop:g}"
            raise _broken(solver, law, f"errors {errors} at 20 and 80 steps", "a fall by at least 3, below 0.2")


def _tolerances(solver: Solver) -> None:
    model, x, exact = _wide()
    asked, errors = (1e-3, 1e-4, 1e-5), []
    for tol in asked:
        watched = _Watched(model)
        solution = solve(ProbabilityFlow(watched), x, solver=solver, t_span=(_ROUND.t_max, _ROUND.t_min), rtol=tol)
        errors.append(float((solution.x - exact).square().mean().sqrt()))
        _check_counts(solver, solution, watched)
        if not isinstance(solver, OutsideSolver) and watched.rows >= watched.calls * len(x):
            raise _broken(
                solver, "samples that are done leave the batch", watched.rows, f"fewer than {watched.calls * len(x)}"
            )
    shown = " ".join(f"{e:.1e}" for e in errors)
    slope = math.log(errors[0] / errors[-1]) / math.log(asked[0] / asked[-1])
    falls = all(b < a for a, b in zip(errors, errors[1:], strict=False))
    if not (falls and 0.7 <= slope <= 1.3 and all(e <= 30 * tol for e, tol in zip(errors, asked, strict=True))):
        raise _broken(solver, "the error falls with the tolerance (1e-3 .. 1e-5)", shown, "in proportion to it")


def _counts(solver: Solver) -> None:
    model, problems = _smooth()
    x = problems["down"][0]
    whole: dict[str, Any] = {"steps": _uneven((_ROUND.t_max, _ROUND.t_min), 12)}
    for how in _ways(solver):
        for run in (how, _to_zero(how), whole):
            watched = _Watched(model)
            solution = solve(_equation(solver, watched), x, solver=solver, noise=3, **run)
            _check_counts(solver, solution, watched)
            if "steps" in run:
                n = len(run["steps"]) - 1
                if solution.accepted.unique().tolist() != [n] or bool(solution.rejected.any()):
                    raise _broken(solver, "accepted counts the steps of a grid", solution.accepted.tolist(), n)


def _to_zero(how: dict[str, Any]) -> dict[str, Any]:
    """The same run with the final denoising."""
    if "steps" in how:
        return {"steps": torch.cat([how["steps"], torch.zeros(1, dtype=torch.float64)])}
    return {**how, "t_span": (_SMOOTH_SPAN[0], 0.0)}


def _check_counts(solver: Solver, solution: Solution, watched: _Watched) -> None:
    if bool((solution.status != 0).any()):
        raise _broken(solver, "all samples arrive", solution.message, "status 0")
    if solution.calls != watched.calls:
        raise _broken(solver, "calls are the calls made", solution.calls, watched.calls)
    if int(solution.nfe.sum()) != watched.rows:
        raise _broken(solver, "nfe, summed, are the rows computed", int(solution.nfe.sum()), watched.rows)
    sde = watched.sde
    if not (sde.t_min <= watched.first and watched.last <= sde.t_max):
        law = "the network is evaluated inside [t_min, t_max]"
        raise _broken(solver, law, f"{watched.first} .. {watched.last}", f"{sde.t_min} .. {sde.t_max}")


def _saving(solver: Solver) -> None:
    model, problems = _smooth()
    x = problems["down"][0]
    for how in _ways(solver):
        last = solve(_equation(solver, model), x, solver=solver, noise=3, **how)
        path = solve(_equation(solver, model), x, solver=solver, noise=3, save="all", **how)
        for other in (path, solve(_equation(solver, model), x, solver=solver, noise=3, save=_SMOOTH_SPAN[::-1], **how)):
            same = torch.equal(other.x, last.x) and torch.equal(other.nfe, last.nfe) and other.calls == last.calls
            if not same and not isinstance(solver, OutsideSolver):
                raise _broken(solver, "saving changes neither x nor the counts", "another result", "the same")
            _close(solver, "saving does not change x", other.x, last.x, 1e-12 if "steps" in how else 1e-4)
        _close(solver, "the last saved state is x", path.xs[-1], path.x)
        _close(solver, "the first saved state is where it starts", path.xs[0], x)
        _close(solver, "states are saved at the times asked for", other.xs, torch.stack([other.x, x]))
        ts = path.ts if path.ts.ndim == 1 else path.ts[:, 0]
        if not (float(ts[0]), float(ts[-1])) == _SMOOTH_SPAN or not bool((ts.diff() <= 0).all()):
            raise _broken(solver, "saved times go from the first to the last", ts.tolist(), _SMOOTH_SPAN)


def _again(solver: Solver) -> None:
    model, problems = _smooth()
    x = problems["down"][0]
    for how in _ways(solver):
        first = solve(_equation(solver, model), x, solver=solver, noise=3, **how).x
        solve(_equation(solver, model), x.flip(0)[:7] + 1, solver=solver, noise=4, steps=_uneven(_SMOOTH_SPAN, 5))
        again = solve(_equation(solver, model), x, solver=solver, noise=3, **how).x
        if not torch.equal(first, again):
            raise _broken(solver, "a solve does not depend on the one before", "another result", "the same")


def _companions(solver: Solver) -> None:
    model, problems = _smooth()
    x = problems["down"][0]
    for how in _ways(solver):
        if isinstance(solver, OutsideSolver) and "steps" not in how:
            continue  # other libraries step the batch together
        whole = solve(_equation(solver, model), x, solver=solver, noise=3, **how)
        for size in (1, 2, 5, 8, 16):
            for rows in (torch.arange(size), torch.arange(len(x) - size, len(x)).flip(0)):
                part = solve(_equation(solver, model), x[rows], solver=solver, noise=Noise(3, index=rows), **how)
                _close(solver, f"a sample does not depend on its batch mates (batch of {size})", part.x, whole.x[rows])
                if not torch.equal(part.nfe, whole.nfe[rows]):
                    raise _broken(solver, "nor do its evaluations", part.nfe.tolist(), whole.nfe[rows].tolist())


def _spoiled(solver: Solver) -> None:
    model, problems = _smooth()
    x = problems["down"][0]
    spoiled = torch.zeros(len(x), dtype=torch.bool)
    spoiled[[3, 11]] = True
    for how in _ways(solver):
        if isinstance(solver, OutsideSolver) and "steps" not in how:
            continue
        good = solve(_equation(solver, model), x, solver=solver, noise=3, **how)
        term = _equation(solver, _Watched(model, below=0.55), spoiled=spoiled)
        came = solve(term, x, solver=solver, noise=3, on_failure="mark", **how)
        if not torch.equal(came.status, spoiled.long()):
            raise _broken(
                solver, "NaN from the network marks its samples", came.status.tolist(), spoiled.long().tolist()
            )
        _close(solver, "NaN in one sample harms no other", came.x[~spoiled], good.x[~spoiled])
        reached = came.t[spoiled]
        if not bool(((reached > 0.5) & (reached < 0.6)).all()):  # it begins at 0.55, steps are up to 0.05 long
            raise _broken(solver, "the time of a failure is told", reached.tolist(), "the last node above 0.55")
        try:
            solve(term, x, solver=solver, noise=3, **how)
        except NonFiniteError as error:
            partial = error.partial
            if partial is None or not torch.equal(partial.status, came.status):
                raise _broken(solver, "a failure carries the partial solution", partial, "the marked one") from error
        else:
            raise _broken(solver, "NaN from the network raises", "a result", "NonFiniteError")


def _events(solver: Solver) -> None:
    model = _Normal(_ROUND, 0.3, 0.8)
    steps = _uneven(_SMOOTH_SPAN, 6)

    def run(x: Tensor) -> Tensor:
        return solve(_equation(solver, model), x, solver=solver, steps=steps, noise=3).x

    x = _draw((5, 6), _LAW_STATES)
    flat_result = run(x)
    for event in ((6,), (1, 2, 3)):
        shaped = x.reshape(5, *event)
        _close(solver, f"an event of shape {event} is its elements", run(shaped).reshape(5, 6), flat_result)
        strided = torch.stack([shaped, shaped + 1], dim=-1)[..., 0]
        _close(solver, "a strided state is as a contiguous one", run(strided), run(shaped))
        empty = run(shaped[:0])
        if empty.shape != (0, *event):
            raise _broken(solver, "an empty batch gives an empty result", tuple(empty.shape), (0, *event))
    _close(solver, "scalar events work as others", run(x[:, 0]), run(x[:, :1])[:, 0])
    moved = float((run(x + 1e-10) - flat_result).abs().max())
    if not 0 < moved < 1e-8:
        raise _broken(solver, "float64 in means float64 throughout: x + 1e-10", f"moved by {moved:.1e}", "about 1e-10")
    low = run(x.float())
    if low.dtype != torch.float32:
        raise _broken(solver, "float32 in, float32 out", low.dtype, torch.float32)
    _close(solver, "float32 is close to float64", low.double(), flat_result, 1e-3)


def _seeds(solver: Solver) -> None:
    model, problems = _smooth()
    x = problems["down"][0]
    term, steps = ReverseSDE(model), _uneven(_SMOOTH_SPAN, 6)

    def run(x: Tensor, noise: Noise) -> Tensor:
        return solve(term, x, solver=solver, steps=steps, noise=noise).x

    whole = run(x, Noise(3))
    if torch.equal(whole, run(x, Noise(4))) or torch.equal(run(x[:1], Noise(3)), run(x[:1], Noise(3, index=[9]))):
        raise _broken(solver, "another seed, or number, draws other noise", "the same", "another result")
    rows = torch.tensor([9, 2, 17])
    _close(solver, "sample i depends on (seed, i) alone", run(x[rows], Noise(3, index=rows)), whole[rows])


def _output_law(solver: Solver) -> None:
    sde, mu, std = VPSDE(), 0.7, 0.5
    model = _Normal(sde, mu, std)

    def marginal(t: float) -> tuple[float, float]:
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        return alpha * mu, (alpha * std) ** 2 + sigma**2

    mean, variance = marginal(sde.t_max)
    wanted_mean, wanted_variance = marginal(sde.t_min)
    misses = []
    for n in (40, 160):
        steps = formula_grid(sde, n, kind=solver.grid, start=sde.t_max, stop=sde.t_min, sigma_data=std)
        law = affine_law(solver, ReverseSDE(model), steps, mean, variance)
        if law is None:  # not affine: sample
            x = mean + math.sqrt(variance) * _draw((20_000, 1), _LAW_STATES)
            came = solve(ReverseSDE(model), x, solver=solver, steps=steps, noise=3).x
            law = float(came.mean()), float(came.var())
        misses.append(((law[0] - wanted_mean) / math.sqrt(wanted_variance), law[1] / wanted_variance - 1))
    for k, name in enumerate(("mean (in units of the spread)", "variance (relative)")):
        coarse, fine = abs(misses[0][k]), abs(misses[1][k])
        if not fine <= max(0.45 * coarse, 0.02) or not fine <= 0.15:
            law = f"the law of its output tends to the data's: {name}"
            raise _broken(solver, law, f"misses {coarse:.3g}, {fine:.3g} at 40 and 160 steps", "a fall in proportion")


def affine_law(solver: Solver, term: Term, steps: Tensor, mean: float, variance: float) -> tuple[float, float] | None:
    """Mean and variance of what a solver makes of N(mean, variance) on a grid, exactly; None where it is not affine.

    On a term with an affine drift such as that of Gaussian data, x' = A x + B + sum_k c_k z_k over the normals z_k it
    draws; a batch in which every row feeds it one input alone gives A, B and all c_k.

    Args:
        solver, term, steps: as for `solve`; one-dimensional events.
        mean, variance: of the state at the first time.
    """
    probe = _Probe()
    solve(term, torch.zeros(1, 1, dtype=torch.float64), solver=solver, steps=steps, noise=probe)
    x = torch.zeros(len(probe.known) + 2, 1, dtype=torch.float64)
    x[1] = 1.0
    came = solve(term, x, solver=solver, steps=steps, noise=probe).x[:, 0]
    b, a, c = came[0], came[1] - came[0], came[2:] - came[0]
    recorded = _Recorded(5)
    trial = _draw((4, 1), _LAW_STATES)
    real = solve(term, trial, solver=solver, steps=steps, noise=recorded).x
    z = torch.stack([recorded.known[address] for address in probe.known]) if len(c) else x.new_zeros(0, 4, 1)
    predicted = a * trial + b + torch.einsum("k,kbe->be", c, z)
    if not float((real - predicted).abs().max()) <= 1e-9 * (1 + float(predicted.abs().max())):
        return None
    return float(a * mean + b), float(a**2 * variance + c.square().sum())


class _Probe(Noise):
    """Noise under control: the k-th normal that a solve draws is 1 in row k + 2 of the batch and 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__(0)
        self.known: dict[tuple[float, ...], int] = {}

    def select(self, keep: Tensor) -> Noise:
        return self

    def normal(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        k = self.known.setdefault(tuple(float(part) for part in address), len(self.known))
        z = torch.zeros(tuple(shape), dtype=dtype, device=device)
        z[k + 2 : k + 3] = 1.0
        return z


class _Recorded(Noise):
    """Noise that remembers what it gave."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.known: dict[tuple[float, ...], Tensor] = {}

    def normal(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        z = super().normal(shape, *address, dtype=dtype, device=device)
        self.known[tuple(float(part) for part in address)] = z
        return z


# ---- tools


def _times(sde: SDE) -> Tensor:
    """Times inside (t_min, t_max), dense near both ends, none of them a round number; increasing, float64."""
    width = sde.t_max - sde.t_min
    near = 10.0 ** -torch.arange(1.37, 5.0, 0.71, dtype=torch.float64)
    t = torch.cat([sde.t_min * (1 + 10 * near), sde.t_min + width * _EVEN, sde.t_max - width * near]).unique()
    t = t[(t > sde.t_min) & (t < sde.t_max)]
    return t[sde.alpha(t) > 0]


def _draw(shape: Sequence[int], purpose: int, seed: int = 0) -> Tensor:
    return Noise(seed).normal(shape, purpose, dtype=torch.float64, device="cpu")


def _name(who: SDE | ScoreModel) -> str:
    return str(who) if isinstance(who, SDE) else f"{type(who).__name__} on {who.sde}"


def _kind(who: SDE | ScoreModel, law: str, came: Any, shape: Sequence[int], dtype: torch.dtype) -> None:
    if not isinstance(came, Tensor):
        raise LawError(f"{_name(who)}: {law}, fails: came a {type(came).__name__}, wanted a tensor")
    if tuple(came.shape) != tuple(shape) or came.dtype != dtype:
        raise LawError(
            f"{_name(who)}: {law}, fails: came {tuple(came.shape)} {came.dtype}, wanted {tuple(shape)} {dtype}"
        )


def _finite(who: SDE | ScoreModel, name: str, came: Tensor, t: Tensor) -> None:
    bad = (~torch.isfinite(came)).reshape(len(came), -1).any(1)
    if bool(bad.any()):
        raise LawError(f"{_name(who)}: {name} is finite, fails at t = {float(t.expand(len(came))[bad][0]):g}")


def _agree(
    who: SDE | ScoreModel,
    law: str,
    came: Tensor,
    wanted: Tensor,
    t: Tensor,
    *,
    rtol: float = _EXACT,
    scale: Tensor | None = None,
    add: float = 0.0,
) -> None:
    """Raise LawError unless |came - wanted| <= rtol (scale + add) throughout; scale is |wanted| unless given.

    t is a scalar or has the first axis of the values: it names the time of the worst one.
    """
    if came.shape != wanted.shape:
        raise LawError(f"{_name(who)}: {law}, fails: came shape {tuple(came.shape)}, wanted {tuple(wanted.shape)}")
    if not came.numel():
        return
    came, wanted = came.detach(), wanted.detach()
    size = (wanted.abs() if scale is None else scale.detach()) + add
    error = ((came - wanted).abs() / size.clamp_min(1e-300)).expand(came.shape)
    bad = ~(error <= rtol)
    if not bool(bad.any()):
        return
    worst = int(torch.where(bad, error.nan_to_num(nan=math.inf), -1.0).flatten().argmax())
    row = worst // max(came[0].numel(), 1) if came.ndim else 0
    time = float(t) if t.ndim == 0 else float(t[row])
    raise LawError(
        f"{_name(who)}: {law}, fails at t = {time:g}: came {float(came.flatten()[worst]):.9g}, wanted "
        f"{float(wanted.flatten()[worst]):.9g} (relative error {float(error.flatten()[worst]):.1e}, allowed {rtol:.0e})"
    )
