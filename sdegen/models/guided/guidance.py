"""Guidance: away from one belief, towards another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import number
from ...core.conditions import rows_of, tensors_of
from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ...core.shapes import as_time, check_time, expand, flat
from ...processes import SDE
from ..base import ScoreModel, Wrapped
from ..prediction import Prediction
from .gradients import check_words, taken


class Guided(Wrapped):
    """Guidance of a model's belief D_m away from an unguided one, D_a:

        D = D_a + scale (D_m - D_a),

    of x0 and of the noise alike. scale = 0 is the unguided belief, 1 the model itself, more is guided. That is the
    `guidance_scale` of diffusers; papers and libraries that write (1 + w) D_m - w D_a have w = scale - 1.

    The samples are not those of p_a^(1 - scale) p_m^scale: the flow of a sum of scores has another law than the product
    of the densities.

    Args:
        model: the belief D_m, asked with the conditions as they are given.
        scale: a number, or a function of the half log-SNR log(alpha/sigma), a tensor of the times' shape.
        null: conditions of D_a, by name, in place of those that are given (classifier-free guidance, negative prompts).
            A number, as in {"label": -1}, fills a whole tensor; a tensor of one sample, without a batch axis, or a dict
            of them, counts for every sample; any other value is passed as it is.
        against: the model D_a, such as a weaker one (autoguidance); None: `model`. It is evaluated along the process of
            `model`.
        interval: (low, high), noise levels sigma/alpha: guidance acts where low < sigma/alpha <= high, and elsewhere
            the belief is the model's own, for one evaluation. (low, math.inf) has no upper end.
        rescale: phi from 0 to 1. x0 is multiplied by 1 - phi + phi std(x0 of D_m)/std(x0), standard deviations over a
            sample's numbers, and the noise follows.

    Raises:
        InvalidInputError: neither null nor against; a scale that is no number, an interval or rescale that is none;
            before the first call, a condition that null replaces but nobody gave.

    Source: Ho & Salimans 2022 (arXiv 2207.12598); Karras et al. 2024 (arXiv 2406.02507) for `against`; Kynkaanniemi et
    al. 2024 (arXiv 2404.07724) for `interval`; Lin et al. 2023 (arXiv 2305.08891) section 3.4 for `rescale`.

    Example:
        >>> import torch, sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0], [1.0]], std=0.5)
        >>> model = sg.MixtureModel(mixture, sg.VPSDE(), labels=[0, 1])
        >>> guided = sg.Guided(model, 2.0, null={"label": -1})
        >>> found = sg.sample(guided, 3, steps=8, seed=0, label=torch.tensor([0, 1, 1]))
        >>> found.nfe.tolist()
        [16, 16, 16]
    """

    @checked
    def __init__(
        self,
        model: ScoreModel,
        scale: float | Callable[[Tensor], Any],
        *,
        null: Mapping[str, Any] | None = None,
        against: ScoreModel | None = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(model)
        if null is None and against is None:
            raise InvalidInputError(
                'got neither null= nor against=, expected what to guide away from: null={"label": -1} for the same '
                "model without its label, or against=another_model"
            )
        self._by_guidance: dict[str, Any] = {}  # which facts it changes
        self.against = against
        self.null = null or {}
        self.scale, self.interval, self.rescale = scale, interval, rescale

    def __setattr__(self, name: str, value: Any) -> None:
        """Checked like the arguments, whenever they are assigned."""
        check = _CHECKS.get(name)
        super().__setattr__(name, value if check is None else check(self, value))
        if check is not None and "rescale" in vars(self):
            self._settle()

    def _settle(self) -> None:
        """What follows from the strength: whether both beliefs are asked, and what is known of the data."""
        number_alone = None if callable(self.scale) else self.scale
        self.self_alone = number_alone == 1
        self.null_alone = number_alone == 0 and self.interval is None and self.rescale == 0
        rough = callable(self.scale) or self.rescale != 0 or (self.against is not None and not self.against.smooth)
        changed = {"covariance": None, **({"smooth": False} if rough else {})}
        before = self._by_guidance
        told = {name: v for name, v in self._changed_facts.items() if name not in before or v is not before[name]}
        self._by_guidance = {} if self.self_alone or self.null_alone else changed
        self._change_facts({**self._by_guidance, **told})

    @staticmethod
    @checked
    def plus_plus(weight: float, sde: SDE, times: Sequence[float] | Tensor) -> Callable[[Tensor], Tensor]:
        """The scale that makes guidance CFG++ on a grid of "ddim": weight/(1 - r'/r) from sigma/alpha = r to r'.

        CFG++ adds weight (D_m - D_a) to x0 and leaves the noise unguided, which on a DDIM step is guidance of both with
        that scale. It belongs to the grid, and is refused under a tolerance.

        Args:
            weight: lambda, usually from 0 to 1.
            sde: the model's process.
            times: those of the grid, falling to 0, as for `steps=`.

        Raises:
            InvalidInputError: times that do not fall to 0; at the call, another time.

        Source: Chung et al. 2024 (arXiv 2406.08070) algorithm 2.
        """
        return _PlusPlus(weight, sde, times)

    def _facts(self):
        return {
            **super()._facts(),
            "scale": self.scale,
            "null": self.null or None,
            "against": self.against,
            "interval": self.interval,
            "rescale": self.rescale or None,
        }

    @property
    def conditioned(self) -> bool:  # type: ignore[override]
        return not self.self_alone or self.model.conditioned

    @property
    def needs_grid(self) -> str:  # type: ignore[override]
        own = self.scale.needs_grid if isinstance(self.scale, _PlusPlus) else ""
        return own or self.model.needs_grid or self._other.needs_grid

    def breaks(self) -> tuple[float, ...]:
        ends = () if self.interval is None or self.self_alone else self.interval
        levels = {*self.model.breaks(), *self._other.breaks(), *(r for r in ends if 0 < r < math.inf)}
        return tuple(sorted(levels))

    def settled(self, x0: Tensor, /, **cond: Any) -> Tensor:
        return self.model.settled(x0, **taken(self.model, cond))

    @property
    def _other(self) -> ScoreModel:
        return self.model if self.against is None else self.against

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        check_words(self, cond)
        t = as_time(t)
        check_time(t, x)
        if self.null_alone:
            return self._other(x, t, **self._unguided(cond, len(x)))
        inside = not self.self_alone and self._inside(t)
        given = self.model(x, t, **taken(self.model, cond))
        if inside is False:
            return given
        if inside is True:
            return self._guide(given, x, t, cond)
        rows = inside.nonzero().flatten()
        if not len(rows):
            return given
        x0, noise, rows_on_x = given.x0, given.noise, rows.to(x.device)
        part = Prediction(x0[rows_on_x], noise[rows_on_x], self.sde, t[rows])
        part = self._guide(part, x[rows_on_x], t[rows], rows_of(cond, rows))
        x0, noise = (v.index_copy(0, rows_on_x, w) for v, w in ((x0, part.x0), (noise, part.noise)))
        return Prediction(x0, noise, self.sde, t)

    def _guide(self, given: Prediction, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Prediction:
        free = self._other(x, t, **self._unguided(cond, len(x)))
        g, (x0, noise), (own_x0, own_noise) = (
            self._strength(t, self.scale),
            (free.x0, free.noise),
            (given.x0, given.noise),
        )
        g = expand(g, x)
        x0, noise = x0 + g * (own_x0 - x0), noise + g * (own_noise - noise)
        if self.rescale:
            level = self.sde.at(t)
            ratio = _spread(own_x0) / _spread(x0)
            change = expand(self.rescale * (ratio.nan_to_num(1.0, 1.0) - 1), x) * x0
            x0, noise = x0 + change, noise - expand(level.alpha / level.sigma, x) * change
        return Prediction(x0, noise, self.sde, t)

    def _check_scale(self, scale: Any) -> Any:
        if not callable(scale):
            return number(scale, "scale", "a number, or a function of log(alpha/sigma)")
        sde = self.sde
        inside = torch.linspace(sde.t_min, sde.t_max, 5, dtype=torch.float64)[:-1]
        for t in scale.times if isinstance(scale, _PlusPlus) else inside:
            self._strength(t, scale)
        return scale

    def _check_rescale(self, rescale: Any) -> float:
        share = number(rescale, "rescale", "a number from 0 to 1", least=0.0)
        if share > 1:
            raise InvalidInputError(f"got rescale={rescale}, expected a number from 0 to 1")
        if share and self.event_shape is not None and math.prod(self.event_shape) == 1:
            raise InvalidInputError(
                "got rescale= for samples of one number, which have no standard deviation: leave it"
            )
        return share

    def _strength(self, t: Tensor, scale: Any) -> Any:
        """The scale at t, a number or of t's shape."""
        if not callable(scale):
            return scale
        lam = self.sde.half_log_snr(t.to(torch.float64))
        try:
            g = torch.as_tensor(scale(lam), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"scale gave no numbers at log(alpha/sigma) = {lam}: {error}") from error
        if g.shape not in ((), lam.shape) or not bool(torch.isfinite(g).all()):
            raise InvalidInputError(f"got scale={g} at log(alpha/sigma) = {lam}, expected finite numbers of that shape")
        return g if g.ndim else float(g)

    def _inside(self, t: Tensor) -> bool | Tensor:
        """Whether guidance acts at t; (B,) where t is."""
        if self.interval is None:
            return True
        low, high = self.interval
        level = self.sde.at(t)
        ratio = torch.as_tensor(level.sigma, dtype=torch.float64) / level.alpha
        inside = (ratio > low) & (ratio <= high)
        return inside if inside.ndim else bool(inside)

    def _unguided(self, cond: dict[str, Any], batch: int) -> dict[str, Any]:
        """The conditions that the unguided belief hears."""
        null = {name: _for_batch(value, cond.get(name), batch) for name, value in self.null.items()}
        return taken(self._other, {**cond, **null})

    def evaluations(self, t: Tensor) -> int | Tensor:
        own, other = self.model.evaluations(t), self._other.evaluations(t)
        if self.null_alone:
            return other
        inside = not self.self_alone and self._inside(as_time(t))
        if isinstance(inside, bool):
            return own + other if inside else own
        return own + inside * other

    def condition_names(self) -> set[str] | None:
        own, other = self.model.condition_names(), self._other.condition_names()
        return None if own is None or other is None else own | other

    def check_conditions(self, cond: Mapping[str, Any], batch: int) -> None:
        super().check_conditions(cond, batch)
        for name in self.null:
            if name not in cond and not self.self_alone:
                raise InvalidInputError(f"got no {name}=, expected the condition that null= replaces")
            value, given = self.null[name], cond.get(name)
            if isinstance(value, Tensor) and isinstance(given, Tensor) and value.ndim != given.ndim - 1:
                raise InvalidInputError(
                    f"got null[{name!r}] of shape {tuple(value.shape)}, expected that of one sample of {name}, "
                    f"{tuple(given.shape[1:])}: it has no batch axis"
                )
        self.model.check_conditions(taken(self.model, cond), batch)
        self._other.check_conditions(self._unguided(dict(cond), batch), batch)

    def warm(self, ts: Tensor) -> None:
        super().warm(ts)
        if self.against is not None:
            self.against.warm(ts)


_CHECKS: dict[str, Callable[[Guided, Any], Any]] = {
    "against": lambda guided, against: None if against is None else _along(against, guided.model),
    "null": lambda guided, null: _checked_null(null, guided._other),
    "scale": Guided._check_scale,
    "interval": lambda guided, interval: None if interval is None else _checked_interval(interval),
    "rescale": Guided._check_rescale,
}


class _PlusPlus:
    """A scale that is known at the times of one grid; see `Guided.plus_plus`."""

    needs_grid = "the scale of CFG++ belongs to one grid: use steps= with its times"

    def __init__(self, weight: float, sde: SDE, times: Sequence[float] | Tensor) -> None:
        self.weight = number(weight, "weight", "a number")
        ts = torch.as_tensor(times, dtype=torch.float64, device="cpu")
        if ts.ndim != 1 or len(ts) < 2 or not bool((ts.diff() < 0).all()) or float(ts[-1]) != 0:
            raise InvalidInputError(f"got times={times!r}, expected those of a grid, falling to 0")
        self.times = ts[:-1]
        self.levels = sde.half_log_snr(self.times)
        fall = torch.cat([(self.levels[:-1] - self.levels[1:]).exp(), torch.zeros(1, dtype=torch.float64)])
        self.scales = self.weight / (1 - fall)

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        levels = self.levels.to(half_log_snr.device)
        off, nearest = (half_log_snr[..., None] - levels).abs().min(-1)
        if bool((off > 1e-6).any()):
            raise InvalidInputError(
                f"got log(alpha/sigma) = {half_log_snr.flatten()[off.flatten().argmax()]:.6g}, expected a time of the "
                "grid that the scale of CFG++ was made for: pass its times as steps="
            )
        return self.scales.to(half_log_snr.device)[nearest]


def _along(against: ScoreModel, model: ScoreModel) -> ScoreModel:
    """The other model along the first one's process, all of it."""
    if None not in (against.event_shape, model.event_shape) and against.event_shape != model.event_shape:
        raise InvalidInputError(
            f"got against= for events of shape {against.event_shape}, expected the model's {model.event_shape}"
        )
    other, sde = against.on(model.sde), model.sde
    if other.sde.t_min > sde.t_min * (1 + 1e-6) or other.sde.t_max < sde.t_max * (1 - 1e-6):
        raise InvalidInputError(
            f"against knows the model's process from {other.sde.t_min:g} to {other.sde.t_max:g} only, expected "
            f"{sde.t_min:g} to {sde.t_max:g}: pass the model as model.on(narrower_process)"
        )
    return against if against.sde is sde else other


def _checked_null(null: Mapping[str, Any], other: ScoreModel) -> dict[str, Any]:
    names = other.condition_names()
    if not isinstance(null, Mapping):
        raise InvalidInputError(f'got null={null!r}, expected conditions by name, such as {{"label": -1}}')
    for name, value in null.items():
        if names is not None and name not in names:
            raise InvalidInputError(f"got null={dict(null)}, expected conditions that the model takes: {sorted(names)}")
        if not isinstance(value, Tensor | Mapping) and any(True for _ in tensors_of(value, name)):
            raise InvalidInputError(
                f"got tensors inside null[{name!r}], expected one tensor, a dict of them, a number or another value"
            )
    return dict(null)


def _checked_interval(interval: Sequence[float]) -> tuple[float, float]:
    expected = "(low, high), two noise levels sigma/alpha with 0 <= low < high"
    try:
        low, high = (number(v, "interval", expected, infinite=True) for v in interval)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high:
        raise InvalidInputError(f"got interval={interval!r}, expected {expected}")
    return low, high


def _for_batch(value: Any, given: Any, batch: int) -> Any:
    """A condition of `null` for all samples."""
    if isinstance(value, Mapping):
        inner = given if isinstance(given, Mapping) else {}
        return {name: _for_batch(each, inner.get(name), batch) for name, each in value.items()}
    if isinstance(value, Tensor):
        value = value if not isinstance(given, Tensor) else value.to(given.device)
        return value.expand(batch, *value.shape)
    if isinstance(given, Tensor) and isinstance(value, Real):
        return torch.full_like(given, value)  # type: ignore[arg-type]
    return value


def _spread(x: Tensor) -> Tensor:
    """The standard deviation over each sample's numbers, (B,)."""
    x = flat(x)
    return (x - x.mean(1, keepdim=True)).square().mean(1).sqrt()
