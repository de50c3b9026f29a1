"""A run goes on with its own settings: what may change is told, what may not is refused with both values."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from cases import points, small
from torch import Tensor

import sdegen as sg
from sdegen.core.errors import IncompatibleCheckpointError
from sdegen.training.functions import hash_of_code, in_words
from sdegen.training.losses import dsm_loss, implicit_loss

fit = functools.partial(sg.fit, progress=False, device="cpu")
X = points(100)

MAY: dict[str, tuple[Any, Any]] = {
    "steps": (4, 8),
    "batch_size": (16, 8),
    "accumulate": (1, 2),
    "lr": (1e-2, 1e-3),
    "schedule": ("cosine", "constant"),
    "warmup": (None, 3),
    "clip": (1.0, None),
    "weight_decay": (0.0, 0.1),
    "ema": (0.999, 0.9),
    "precision": ("full", "bf16"),
}


def adamw(**options: Any) -> dict[str, Any]:
    return dict(optimizer=lambda weights: torch.optim.AdamW(weights, **options))


def steps_of(every: int) -> dict[str, Any]:
    return dict(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, every))


MAY_NOT: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "loss": (dict(loss=dsm_loss), dict(loss=implicit_loss), "dsm_loss", "implicit_loss"),
    "weighting": (dict(), dict(loss=functools.partial(dsm_loss, weight="edm")), "dsm_loss", "weight='edm'"),
    "option": (dict(loss=functools.partial(dsm_loss, t=0.5)), dict(loss=functools.partial(dsm_loss, t=0.4)), "t=0.5", "t=0.4"),
    "widths": (dict(ema=(0.05, 0.1)), dict(ema=(0.05, 0.2)), r"\[0.05, 0.1\]", r"\[0.05, 0.2\]"),
    "fewer widths": (dict(ema=(0.05, 0.1)), dict(ema=(0.05,)), r"\[0.05, 0.1\]", r"\[0.05\]"),
    "one to widths": (dict(), dict(ema=(0.05, 0.1)), "exponential", r"\[0.05, 0.1\]"),
    "widths to one": (dict(ema=(0.05, 0.1)), dict(), r"\[0.05, 0.1\]", "exponential"),
    "optimizer": (dict(), adamw(lr=0.1), "that of fit", "AdamW"),
    "its rate": (adamw(lr=0.1), adamw(lr=0.01), "lr=0.1", "lr=0.01"),
    "its moments": (adamw(), adamw(betas=(0.5, 0.9)), r"\(0.9, 0.999\)", r"\(0.5, 0.9\)"),
    "scheduler": (steps_of(3), steps_of(4), "step_size=3", "step_size=4"),
    "no scheduler": (steps_of(3), dict(), "StepLR", "that of fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", MAY)
def test_what_may_change_is_told(tmp_path, name):
    then, now = MAY[name]
    words = dict(steps=4, batch_size=16, seed=0, out=tmp_path)
    fit(small(), X, **{**words, name: then})
    with pytest.warns(UserWarning, match="goes on with what is not as before") as told:
        fit(small(), X, **{**words, "steps": 8, name: now})
    (text,) = (str(w.message) for w in told)
    assert f"{'decay' if name == 'ema' else name} {then!r} -> {now!r}" in text
    assert text.count("->") == 2 - (name == "steps") and "steps 4 -> 8" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small(), X, **{**words, "steps": 8, name: now})  # what a run was told is its own from then on


@pytest.mark.parametrize("name", MAY_NOT)
def test_what_may_not_change_is_refused(tmp_path, name):
    then, now, one, two = MAY_NOT[name]
    words = dict(batch_size=8, seed=0, out=tmp_path)
    fit(small(), X, steps=4, **words, **then)
    for total in (4, 8):
        with pytest.raises(IncompatibleCheckpointError, match=f"got .*{two}.*made with .*{one}"):
            fit(small(), X, steps=total, **words, **now)
    fit(small(), X, steps=8, **words, **then)


def half_frozen() -> sg.Denoiser:
    model = small()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize(("then", "now"), [(small, half_frozen), (half_frozen, small)])
def test_other_weights_that_are_trained_are_refused(tmp_path, then, now):
    words = dict(batch_size=8, seed=0, out=tmp_path)
    fit(then(), X, steps=4, **words)
    for total in (4, 8):
        with pytest.raises(IncompatibleCheckpointError, match="weights: got .* tensors.*made with .* tensors"):
            fit(now(), X, steps=total, **words)
    fit(then(), X, steps=8, **words)


FACTOR = 1.0


def helping(x0: Tensor) -> Tensor:
    return x0 * FACTOR


def scaled(factor: float) -> Any:
    def loss(model: Any, x0: Tensor) -> Tensor:
        return dsm_loss(model, x0) * factor

    return loss


class Weighted:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, model: Any, x0: Tensor) -> Tensor:
        return dsm_loss(model, x0) * self.factor


def one_of(*losses: Any) -> Any:
    def loss(model: Any, x0: Tensor) -> Tensor:
        return losses[0](model, x0)

    return loss


CODE: dict[str, tuple[Any, Any]] = {
    "body": (lambda m, x0: dsm_loss(m, x0), lambda m, x0: 2 * dsm_loss(m, x0)),
    "constant": (lambda m, x0: 2 * dsm_loss(m, x0), lambda m, x0: 3 * dsm_loss(m, x0)),
    "word": (lambda m, x0: dsm_loss(m, x0, weight="edm"), lambda m, x0: dsm_loss(m, x0, weight="one")),
    "other function": (lambda m, x0: dsm_loss(m, x0), lambda m, x0: implicit_loss(m, x0)),
    "variable": (scaled(1.0), scaled(2.0)),
    "attribute": (Weighted(1.0), Weighted(2.0)),
    "method": (Weighted(1.0).__call__, Weighted(2.0).__call__),
    "default": (lambda m, x0, k=1.0: k * dsm_loss(m, x0), lambda m, x0, k=2.0: k * dsm_loss(m, x0)),
    "argument": (functools.partial(dsm_loss, weight=lambda sde, t: t), functools.partial(dsm_loss, weight=lambda sde, t: t * t)),
}  # fmt: skip


@pytest.mark.parametrize("name", CODE)
def test_a_function_of_the_same_name_that_does_something_else_is_told(tmp_path, name):
    then, now = CODE[name]
    words = dict(steps=2, batch_size=8, seed=0, out=tmp_path)
    fit(small(), X, loss=then, **words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small(), X, loss=then, **words)
    if in_words(then) == in_words(now):
        with pytest.warns(UserWarning, match="loss: a function with other code"):
            fit(small(), X, loss=now, **words)
    else:
        with pytest.raises(IncompatibleCheckpointError, match="loss"):
            fit(small(), X, loss=now, **words)


def test_code_is_what_a_function_refers_to_and_no_more(monkeypatch):
    def loss(model, x0):
        return helping(x0)

    before = hash_of_code(loss)
    assert before == hash_of_code(loss) and hash_of_code(dsm_loss) == ""
    monkeypatch.setitem(globals(), "X", X + 1)
    assert before == hash_of_code(loss)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)  # of the function that it calls
    assert before != hash_of_code(loss)


def test_statistics_that_a_model_was_given_otherwise_are_told(tmp_path):
    fit(small(), X, steps=2, batch_size=8, seed=0, out=tmp_path)
    for given, words in (({"data_std": 9.0}, "data_std .* 9,"), ({"data_mean": 4.0}, "data_mean .* 4,")):
        model = sg.Denoiser(small().net, sg.VPSDE(), **given)
        with pytest.warns(UserWarning, match=words):
            fit(model, X, steps=2, batch_size=8, out=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, X, steps=2, batch_size=8, out=tmp_path)  # it has those of the run now


def test_a_loss_is_known_by_its_name_and_what_differs_from_its_defaults():
    plain = in_words(dsm_loss)
    assert plain.endswith("losses.dsm_loss") and in_words(functools.partial(dsm_loss, weight=None)) == plain
    assert in_words(functools.partial(functools.partial(dsm_loss, weight="edm"), t="uniform")) == f"{plain}(t='uniform', weight='edm')"  # fmt: skip
    one, other = (in_words(functools.partial(dsm_loss, t=torch.tensor([a, 0.5]))) for a in (0.1, 0.2))
    assert one != other
    assert in_words(functools.partial(dsm_loss, weight=lambda sde, t: t)).endswith("<lambda>)")
    assert in_words(functools.partial(dsm_loss, calls=[])) == in_words(functools.partial(dsm_loss, calls=[1]))

    class Callable:
        def __call__(self, model, x0):
            return dsm_loss(model, x0)

    assert in_words(Callable()).endswith("Callable")
