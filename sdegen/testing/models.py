"""The laws of models: one named function each, and `check_model`, which tries them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import rows_of, tensors_of
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import expand
from ..models.base import ScoreModel
from ..models.prediction import Prediction
from ..processes import EDMSDE, SDE, VESDE, VPSDE, LinearPathSDE, TrigSDE
from .checks import EXACT, NOISE, STATES, LawError, check_close, check_finite, check_kind, inner_times, label, normals
from .wrappers import wrapping


@checked
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
    - the score is the gradient of `log_prob(x, t)`, where the model has one;
    - wrapped in a model that changes nothing it gives the same samples, log-densities and counts to the bit.

    Args:
        model: a ScoreModel; it is put in eval mode for the check.
        event_shape: the shape of one sample, where the model does not say.
        seed: of the states it is asked about.
        **cond: conditions; tensors are per sample and set the batch size.

    Raises:
        LawError: a law fails.

    Example:
        >>> import sdegen as sg
        >>> model = sg.Denoiser(sg.nets.MLP(2, hidden=16), sg.VPSDE())
        >>> sg.testing.check_model(model)
    """
    for _, law in model_laws(model, event_shape=event_shape, seed=seed, **cond):
        law()


@checked
def model_laws(
    model: ScoreModel, *, event_shape: Sequence[int] | None = None, seed: int = 0, **cond: Any
) -> list[tuple[str, Callable[[], None]]]:
    """The laws of a model one by one, each with its name, for tests that report them apart.

    Args:
        model: a ScoreModel; it is put in eval mode for each law.
        event_shape: the shape of one sample, where the model does not say.
        seed: of the states it is asked about.
        **cond: conditions; tensors are per sample and set the batch size.

    Returns:
        (name, law) pairs; `law()` raises `LawError` where the law fails.

    Raises:
        InvalidInputError: `model` is no ScoreModel, or its event shape is not known.

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=1.0), sg.VPSDE())
        >>> names = [name for name, law in sg.testing.model_laws(model)]
        >>> len(names) > 5
        True
    """
    shape = model.event_shape if event_shape is None else tuple(event_shape)
    if shape is None:
        raise InvalidInputError("this model does not say its event shape: pass event_shape=")
    case = ModelCase(model, shape, seed, cond)
    applies = (name for name in LAWS if name != "density" or hasattr(model, "log_prob"))
    return [(name, partial(_run, LAWS[name], case)) for name in applies]


def _run(law: Callable[[ModelCase], None], case: ModelCase) -> None:
    training = case.model.training
    case.model.eval()
    try:
        law(case)
    finally:
        case.model.train(training)


class ModelCase:
    """A model with states to ask it about: one batch with a time per sample, from t_min to t_max."""

    def __init__(self, model: ScoreModel, event_shape: Sequence[int], seed: int, cond: dict[str, Any]) -> None:
        self.model, self.sde, self.event, self.seed, self.cond = model, model.sde, tuple(event_shape), seed, cond
        sizes = [len(v) for _, v in tensors_of(cond, "cond")]
        self.batch = sizes[0] if sizes else 9
        types = [p.dtype for p in model.parameters() if p.is_floating_point()]
        self.rtol = max([EXACT, *(200 * torch.finfo(d).eps for d in types if d != torch.float64)])
        self.t, self.x = self.states(model.sde, self.batch)

    def states(self, sde: SDE, n: int) -> tuple[Tensor, Tensor]:
        """n times over the range of a process, and states with about the law they have there."""
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
        inner = inner_times(sde)
        times = torch.cat([ends, inner[torch.linspace(0, len(inner) - 1, max(n - 2, 1)).long()]])[:n]
        shape = (n, *self.event)
        x0, noise = normals(shape, STATES, self.seed), normals(shape, NOISE, self.seed)
        if self.model.data_std is not None:
            x0 = x0 * self.model.data_std.double().cpu()
        if self.model.data_mean is not None:
            x0 = x0 + self.model.data_mean.double().cpu()
        device = next((p.device for p in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))
        return times.to(device), sde.perturb(x0, times, noise).to(device)

    def ask(self, x: Tensor, t: float | Tensor, rows: Any = slice(None), model: ScoreModel | None = None) -> Prediction:
        cond = rows_of(self.cond, rows)
        return (model or self.model)(x, t, **cond)

    def same(self, law: str, got: Prediction, expected: Prediction, t: Tensor, *, rtol: float | None = None) -> None:
        """Two beliefs agree: x0 to its own size and the data's, noise to its own size and 1."""
        for name in ("x0", "noise"):
            left, right = getattr(got, name).double(), getattr(expected, name).double()
            check_close(self.model, f"{law} ({name})", left, right, t, rtol=rtol or self.rtol, add=1.0)


def views(case: ModelCase) -> None:
    """x0, noise, score, v and velocity are views of one belief."""
    sde, x, t = case.sde, case.x, case.t
    check_views(case, sde, case.ask(x, t), x, t)
    for i in range(min(case.batch, 3)):
        check_views(case, sde, case.ask(x, float(t[i])), x, t[i].expand(len(x)))


def check_views(case: ModelCase, sde: SDE, p: Prediction, x: Tensor, t: Tensor) -> None:
    who = case.model
    for name in ("x0", "noise", "score", "v"):
        check_kind(who, f"{name} has the shape and dtype of x", getattr(p, name), x.shape, x.dtype)
        check_finite(who, name, getattr(p, name), t)
    alpha, sigma = (expand(c, x) for c in (sde.alpha(t), sde.sigma(t)))
    x0, noise = p.x0, p.noise
    size = x.abs() + alpha * x0.abs() + sigma * noise.abs()
    check_close(who, "x = alpha x0 + sigma noise", alpha * x0 + sigma * noise, x, t, scale=size)
    check_close(who, "score = -noise/sigma", p.score, -noise / sigma, t, scale=(1 + noise.abs()) / sigma)
    check_close(
        who, "v = alpha noise - sigma x0", p.v, alpha * noise - sigma * x0, t, scale=size + x0.abs() + noise.abs()
    )
    inner = sde.alpha(t) > 0  # at zero signal the rate is infinite and there is no velocity
    t, x, x0, noise, velocity, score = (part[inner] for part in (t, x, x0, noise, p.velocity, p.score))
    d_alpha, d_sigma = (expand(c, x) for c in sde.rates(t))
    f, g = expand(sde.drift_coefficient(t), x), expand(sde.diffusion(t), x)
    size = d_alpha.abs() * (1 + x0.abs()) + d_sigma.abs() * (1 + noise.abs())
    check_close(who, "velocity = alpha' x0 + sigma' noise", velocity, d_alpha * x0 + d_sigma * noise, t, scale=size)
    size = size + (f * x).abs() + (g**2 * score).abs()
    check_close(who, "velocity = f x - g^2/2 score", velocity, f * x - g**2 / 2 * score, t, scale=size)


def batch_mates(case: ModelCase) -> None:
    """A sample's result depends on its own row and time alone."""
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


def scalar_times(case: ModelCase) -> None:
    """A scalar time is that time for each; an empty batch gives an empty result."""
    x, t, n = case.x, case.t, case.batch
    one = t[n // 2]
    shared = case.ask(x, one)
    case.same("a scalar time is that time for each", shared, case.ask(x, one.expand(n)), one.expand(n))
    none = torch.zeros(0, dtype=torch.long, device=x.device)
    for times in (t[none], float(one)):
        empty = case.ask(x[none], times, none)
        for name in ("x0", "noise", "score", "v", "velocity"):
            law = f"an empty batch gives an empty {name}"
            check_kind(case.model, law, getattr(empty, name), (0, *case.event), x.dtype)


def _part(p: Prediction, rows: Tensor) -> Prediction:
    return Prediction(p.x0[rows], p.noise[rows], p.sde, p.t[rows])


def inputs(case: ModelCase) -> None:
    """Strided inputs give what contiguous ones give; float32 in, float32 out, close to float64."""
    x, t = case.x, case.t
    whole = case.ask(x, t)
    strided = torch.stack([x, x + 1], dim=-1)[..., 0]
    case.same("a strided input gives what a contiguous one gives", case.ask(strided, t), whole, t)
    low = case.ask(x.float(), t)
    for name in ("x0", "noise", "score", "v", "velocity"):
        check_kind(case.model, f"float32 in, float32 out: {name}", getattr(low, name), x.shape, torch.float32)
    # x itself is rounded: where the belief changes over sigma, only levels above a tenth of the data can be compared
    coarse = (-case.sde.half_log_snr(t)).exp() > 0.1 * case.model.sigma_data
    law = "float32 is close to float64"
    case.same(law, _part(low, coarse), _part(whole, coarse), t[coarse], rtol=max(1e-3, case.rtol))


def gradient(case: ModelCase) -> None:
    """x0 can be differentiated in x."""
    x = case.x.clone().requires_grad_()
    with torch.enable_grad():
        x0 = case.ask(x, case.t).x0
        if not x0.requires_grad:
            raise LawError(f"{label(case.model)}: x0 can be differentiated in x, fails: it does not depend on x")
        (slope,) = torch.autograd.grad(x0.sum(), x)
    check_finite(case.model, "the gradient of x0 in x", slope, case.t)


@torch.no_grad()
def other_processes(case: ModelCase) -> None:
    """Along `on(other)` the belief is the same function of x/alpha and sigma/alpha, and there is a way back."""
    for other in (EDMSDE(), VPSDE(), VESDE(), TrigSDE(case.model.sigma_data), LinearPathSDE()):
        try:
            moved = case.model.on(other)
        except InvalidInputError:  # no noise level in common
            continue
        _check_moved(case, moved, f"on({type(other).__name__})")


def _check_moved(case: ModelCase, moved: ScoreModel, name: str) -> None:
    model, sde = case.model, case.sde
    t, x = case.states(moved.sde, case.batch)
    level = moved.sde.half_log_snr(t)
    ends = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).to(level)
    slack = 1e-9 * (1 + level.abs())
    if not bool(((level >= ends[0] - slack) & (level <= ends[1] + slack)).all()):
        raise LawError(f"{label(model)}: {name} is narrowed to the levels the model knows, fails")
    time = sde.time(level).clamp(sde.t_min, sde.t_max)
    # alpha/alpha' = sigma/sigma', and one of the two pairs may be near 0
    ratio = torch.hypot(sde.alpha(time), sde.sigma(time)) / torch.hypot(moved.sde.alpha(t), moved.sde.sigma(t))
    got, expected = case.ask(x, t, model=moved), case.ask(x * expand(ratio, x), time)
    law = f"along {name} the belief is the same function of x/alpha and sigma/alpha"
    case.same(law, got, expected, t, rtol=10 * case.rtol)
    check_views(case, moved.sde, got, x, t)
    back = moved.on(sde)
    t, x = case.states(back.sde, case.batch)
    got, expected = case.ask(x, t, model=back), case.ask(x, t)
    case.same(f"{name} has a way back", got, expected, t, rtol=10 * case.rtol)


def density(case: ModelCase) -> None:
    """The score is the gradient of `log_prob(x, t)`."""
    log_prob: Any = case.model.log_prob
    t = case.t
    x = case.x.clone().requires_grad_()
    with torch.enable_grad():
        log_p = log_prob(x, t, **case.cond)
        check_kind(case.model, "log_prob is one number per sample", log_p, (case.batch,), x.dtype)
        (slope,) = torch.autograd.grad(log_p.sum(), x)
    size = slope.abs() + 1 / expand(case.sde.sigma(t), x)
    check_close(
        case.model, "score = grad_x log_prob", case.ask(case.x, t).score, slope, t, rtol=10 * case.rtol, scale=size
    )


def wrapped(case: ModelCase) -> None:
    """A pass-through of the model, and one of that, are the model to the bit (see `check_wrapper`)."""
    wrapping(case.model, event_shape=case.event, seed=case.seed, **case.cond)


LAWS: dict[str, Callable[[ModelCase], None]] = {
    "views": views,
    "batch-mates": batch_mates,
    "scalar-times": scalar_times,
    "inputs": inputs,
    "gradient": gradient,
    "other-processes": other_processes,
    "density": density,
    "wrapped": wrapped,
}
