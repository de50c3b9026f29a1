"""The learned belief: a network and the four coefficients that turn its output into a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.cache import CachedFunction
from ..core.conditions import mapped, words_of
from ..core.errors import InvalidInputError
from ..core.kinds import checked, told
from ..core.modes import in_precision
from ..core.shapes import expand, time_of
from ..core.unwritten import Unwritten
from ..nets.conditions import CONDITIONS, Conditional
from ..processes import SDE, without_signal
from .base import ScoreModel, Statistic
from .networks import ComputingDtype, SaysConditions, channels_of, unwrapped
from .parametrization import Parametrization, ones, parametrization, zeros
from .prediction import Prediction
from .space import LatentSpace

_LARGEST = 1e7  # by which an output is multiplied in x0: beyond it the rounding of a network is larger than any data


class Denoiser(ScoreModel):
    """A network trained along a process: x0 = c_skip x + c_out net(c_in x, c_noise).

    Args:
        net: net(x, t, **cond) -> (B, *event); t has shape (B,): the time of the SDE, except "edm": log(sigma/alpha)/4.
            It is called in its own dtype. t comes in `net.time_dtype` where the network has that attribute, else in
            at least float32 (in half precision 990 and 991 are one number). It may change x in place.
        sde: the process it was, or will be, trained on.
        parametrization: "x0" | "noise" | "score" | "v" | "velocity" | "edm", or a Parametrization.
        data_mean, data_std: scalars or event-shaped; None: measured by the first fit. "edm" uses data_std (1 until it
            is known).
        space: the `LatentSpace` whose latents it is trained on; None: the data themselves.
        smooth: whether the network is an analytic function of time, as an exact score is; None: False, as for trained
            networks (see `ScoreModel`), until `fit` or `measure_smooth` finds out.

    Attributes:
        smooth_presumed: what `smooth` was presumed or measured by `fit` to be; None: it was said, and `fit` keeps it.
        about: a dict of further facts that checkpoints keep as JSON: where the data are, how they were scaled.

    Raises:
        InvalidInputError: an unknown parametrization; at the call, an output that is not of x's shape.
    """

    _numbers_in_use: Unwritten | None = None  # by a parametrisation's functions

    @checked
    def __init__(
        self,
        net: nn.Module | Callable[..., Tensor],
        sde: SDE,
        *,
        parametrization: str | Parametrization = "edm",
        data_mean: Statistic = None,
        data_std: Statistic = None,
        smooth: bool | None = None,
        space: LatentSpace | None = None,
    ) -> None:
        self._coefficients = CachedFunction(self._evaluate_coefficients)
        self._std_in_use: tuple[Tensor | None, int] = (None, 0)  # by the coefficients
        super().__init__(
            sde, data_mean=data_mean, data_std=data_std, event_shape=getattr(unwrapped(net), "event_shape", None)
        )
        self.net: nn.Module = net  # type: ignore[assignment]  # or what is called as one
        self.space = space
        self.smooth = False if smooth is None else bool(smooth)
        self.smooth_presumed: bool | None = False if smooth is None else None
        self.parametrization = parametrization
        self.about: dict[str, Any] = {}
        self.coefficients()

    def _facts(self):
        return {"net": self.net, "parametrization": self.parametrization, **super()._facts(), "space": self.space}

    @property
    def presumes_smooth(self) -> bool:
        """Whether nobody said how smooth the network is, here or by assigning `smooth` since."""
        return self.smooth_presumed is self.smooth

    def coefficients(self) -> Parametrization:
        """The four functions in force."""
        return parametrization(self.parametrization, self.sigma_data)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "net":
            if not callable(value):
                raise InvalidInputError(f"got net={told(value)}, expected a torch.nn.Module: net(x, t, **cond)")
            self._check_event(value)
        elif name == "parametrization":
            parametrization(value)
        super().__setattr__(name, value)
        if name in ("sde", "parametrization"):  # what the coefficients are made of, besides the statistics
            self._coefficients.clear()
            self._numbers_in_use = _numbers_of(self.__dict__.get("parametrization"))
        elif name == "net":
            self._computes_in = ComputingDtype(value)

    def _check_event(self, net: Any) -> None:
        event = getattr(unwrapped(net), "event_shape", None)
        if event is not None and self.event_shape not in (None, tuple(event)):
            raise InvalidInputError(
                f"the network is for samples of shape {tuple(event)}, but the model's have {self.event_shape}: make "
                "another Denoiser"
            )

    def _channels(self) -> int | None:
        return super()._channels() or channels_of(self.net)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        t = time_of(t, x)
        c_skip, c_out, c_in, c_noise, n_skip, n_out = self._of_present_data()(t)
        net = self._modules.get("net")  # as an attribute a module is found slowly
        net = self.net if net is None else net
        x_in, t_in = self._inputs(net, x, c_in, c_noise)
        cond = cond and mapped(cond, Tensor.clone)  # whatever the network does to it, the next call gets what this got
        try:
            output = in_precision(net, x.device)(x_in, t_in, **cond)
        except RuntimeError as error:
            if t_in.dtype != x_in.dtype:
                error.add_note(
                    f"The network has {x_in.dtype} weights and got t in {t_in.dtype}: see time_dtype in Denoiser."
                )
            raise
        return self._belief(x, t, output, (c_skip, c_out), (n_skip, n_out))

    def _belief(self, x: Tensor, t: Tensor, output: Any, x0: Any, noise: Any) -> Prediction:
        """The prediction whose x0 and noise are these combinations of x and the network's output."""
        if not isinstance(output, Tensor) or output.shape != x.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InvalidInputError(
                f"the network returned {got} for an input of shape {tuple(x.shape)}: expected the input's shape"
            )
        return Prediction.spanned(x, output if output.dtype is x.dtype else output.to(x.dtype), x0, noise, self.sde, t)

    def _inputs(self, net: Any, x: Tensor, c_in: Any, c_noise: Any) -> tuple[Tensor, Tensor]:
        """c_in x and c_noise, (B,), in the dtypes that suit the network, in memory that is not the caller's."""
        dtype, time_dtype = self._computes_in.of(net, x.dtype)
        if isinstance(c_noise, Tensor):
            t_in = c_noise.to(device=x.device, dtype=time_dtype)
            if t_in is c_noise or not t_in.ndim:
                t_in = t_in.expand(x.shape[0]).clone()
        else:
            t_in = torch.full((x.shape[0],), c_noise, dtype=time_dtype, device=x.device)
        if isinstance(c_in, float) and c_in == 1.0:
            return (x.clone() if x.dtype is dtype else x.to(dtype)), t_in
        return (x * expand(c_in, x)).to(dtype), t_in

    def warm(self, ts):
        super().warm(ts)
        self._of_present_data().warm(ts)

    def _of_present_data(self) -> CachedFunction:
        """The coefficients, made anew if data_std was written to, by load_state_dict, a fit, an average, or by hand, or
        numbers that functions of the parametrisation use were."""
        std, (used, version) = self._buffers["known_std"], self._std_in_use
        now = 0 if std is None or std.is_inference() else std._version  # asked at every step
        numbers = self._numbers_in_use
        if std is not used or now != version or (numbers is not None and not numbers()):
            self._coefficients = CachedFunction(self._evaluate_coefficients)
            self._std_in_use, self._numbers_in_use = (std, now), _numbers_of(self.parametrization)
        return self._coefficients

    def condition_names(self):
        net = unwrapped(self.net)
        if isinstance(net, SaysConditions):
            return net.condition_names()
        explicit, any_more = words_of(getattr(net, "forward", net))
        return None if any_more else explicit

    def check_conditions(self, cond, batch):
        super().check_conditions(cond, batch)
        net = unwrapped(self.net)
        if isinstance(net, SaysConditions):
            net.check_conditions(batch, self.event_shape, cond)
        if not isinstance(net, Conditional):
            return
        words, _ = words_of(net.forward)  # a subclass may make the image itself
        if "image" in words or not net.conditions.image_channels:
            net.check_conditions(batch, self.event_shape, **{k: v for k, v in cond.items() if k in CONDITIONS & words})

    def _evaluate_coefficients(self, t: Tensor) -> tuple[Any, ...]:
        t = t.to(torch.float64)
        c = self.coefficients()
        at = self.sde.at(t)
        c_skip, c_out, c_in, c_noise = (self._evaluated(f, t) for f in (c.c_skip, c.c_out, c.c_in, c.c_noise))
        fall, rise = at.alpha / -at.sigma, at.sigma.reciprocal()  # noise = (x - alpha x0)/sigma
        if isinstance(c_skip, Tensor):
            n_skip = torch.addcmul(rise, fall, c_skip)
        else:
            n_skip = rise + c_skip * fall if c_skip else rise
        n_out = fall * c_out if isinstance(c_out, Tensor) or c_out != 1.0 else fall
        values = c_skip, c_out, c_in, c_noise, n_skip, n_out
        if without_signal(self.sde.at(self.sde.t_max)):
            self._check_without_signal(torch.zeros_like(t) + abs(c_skip) + abs(c_out), c_noise, at.alpha)
        return values

    def _evaluated(self, coefficient: Any, t: Tensor) -> Any:
        """A coefficient at t (B,), a number where it is the same at all times."""
        if coefficient is ones or coefficient is zeros:
            return float(coefficient is ones)
        value = coefficient(self.sde, t)
        return value if value.shape == t.shape else value.expand(t.shape)

    def _check_without_signal(self, factors: Tensor, c_noise: Tensor, alpha: Tensor) -> None:
        """Raise where the network's output, or what it is told for a time, means nothing."""
        if not bool((factors < _LARGEST).all()):
            raise InvalidInputError(
                f"at t = {self.sde.t_max:g} there is no signal (alpha = {float(alpha.min()):.2g}), and a network that "
                "predicts the noise or the score says nothing about the data there: begin at an earlier time, with "
                "t_span= or times in steps=, or train the parametrization 'v' or 'x0'"
            )
        if not bool(torch.isfinite(c_noise).all()):
            raise InvalidInputError(
                f"at t = {self.sde.t_max:g} there is no signal (alpha = 0), and what the network gets for a time, "
                "c_noise (of 'edm': log(sigma/alpha)/4), is infinite: begin at an earlier time, with t_span= or times "
                "in steps=, or train the parametrization 'v' or 'x0'"
            )


def _numbers_of(parametrization: Any) -> Unwritten | None:
    """Those that its functions use; None for names."""
    return Unwritten(vars(parametrization).values()) or None if isinstance(parametrization, Parametrization) else None
