"""The single-pass rules of azula and deepinv for linear observations, asked about a model of this package.

Each is the library's own code at its own defaults, on times even in the VP process's own, 100 evaluations a sample;
"3 iterations" and "eta=1" are options that its documentation names. A library that is not installed has no rules.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sdegen as sg

Rule = Callable[[sg.ScoreModel, Tensor, Tensor, float], Tensor]  # (model along VPSDE, A, y (B, m), std) -> (B, d)


def rules(steps: int = 100) -> dict[str, Rule]:
    """By name; empty where neither library is here."""
    return {**_azula(steps), **_deepinv(steps)}


def _time(model: sg.ScoreModel, t: Tensor) -> Tensor:
    return t.double().clamp(model.sde.t_min, model.sde.t_max)


def _azula(steps: int) -> dict[str, Rule]:
    if importlib.util.find_spec("azula") is None:
        return {}
    from azula import denoise, guidance, noise, sample  # pyright: ignore[reportMissingImports]
    from azula.linalg.covariance import IsotropicCovariance  # pyright: ignore[reportMissingImports]

    class Schedule(noise.Schedule):
        def __init__(self, model: sg.ScoreModel) -> None:
            self.model = model

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            t = _time(self.model, t)
            return self.model.sde.alpha(t), self.model.sde.sigma(t)

    class Denoiser(denoise.Denoiser):
        def __init__(self, model: sg.ScoreModel) -> None:
            super().__init__()
            self.model, self.schedule = model, Schedule(model)

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            return denoise.DiracPosterior(mean=self.model(x_t, _time(self.model, t)).x0)

    how: dict[str, Any] = {"steps": steps, "silent": True, "dtype": torch.float64}

    def rule(make: Callable[..., Any]) -> Rule:
        def run(model: sg.ScoreModel, a: Tensor, y: Tensor, std: float) -> Tensor:
            torch.manual_seed(0)
            variance = torch.tensor(std**2, dtype=torch.float64)
            sampler = make(Denoiser(model), y, lambda x: x @ a.mT, variance, lambda v: v @ a)
            return sampler(sampler.init((len(y), a.shape[1]), dtype=torch.float64))

        return run

    def mmps(iterations: int) -> Callable[..., Any]:
        def make(d: Any, y: Tensor, f: Any, v: Tensor, back: Any) -> Any:
            rule = guidance.MMPSDenoiser(d, y, f, IsotropicCovariance(v), iterations=iterations)
            return sample.DDPMSampler(rule, **how)

        return make

    return {
        "azula MMPS": rule(mmps(1)),
        "azula MMPS, 3 iterations": rule(mmps(3)),
        "azula PGDM": rule(lambda d, y, f, v, back: guidance.PGDMSampler(d, y, f, back, **how)),
        "azula PGDM, eta=1": rule(lambda d, y, f, v, back: guidance.PGDMSampler(d, y, f, back, eta=1.0, **how)),
        "azula TMPD": rule(lambda d, y, f, v, back: sample.DDPMSampler(guidance.TMPDenoiser(d, y, f, v), **how)),
        "azula DiffPIR": rule(lambda d, y, f, v, back: sample.DDPMSampler(guidance.DiffPIRDenoiser(d, y, f, v), **how)),
        "azula DPS": rule(lambda d, y, f, v, back: guidance.DPSSampler(d, y, f, **how)),
    }


def _deepinv(steps: int) -> dict[str, Rule]:
    if importlib.util.find_spec("deepinv") is None:
        return {}
    import deepinv  # pyright: ignore[reportMissingImports]
    from deepinv import sampling  # pyright: ignore[reportMissingImports]

    class Denoiser(torch.nn.Module):
        def __init__(self, model: sg.ScoreModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, sigma: Any, *args: Any, **words: Any) -> Tensor:
            ratio = torch.as_tensor(sigma, dtype=torch.float64).flatten()[0]
            t = _time(self.model, self.model.sde.time(-ratio.clamp_min(1e-8).log()))
            return self.model(x.double() * self.model.sde.alpha(t), t).x0.to(x.dtype)

    class Linear(deepinv.physics.LinearPhysics):
        def __init__(self, a: Tensor, std: float) -> None:
            super().__init__(noise_model=deepinv.physics.GaussianNoise(std))
            self.a = a

        def A(self, x: Tensor, **words: Any) -> Tensor:
            return (x.double() @ self.a.mT).to(x.dtype)

        def A_adjoint(self, y: Tensor, **words: Any) -> Tensor:
            return (y.double() @ self.a).to(y.dtype)

    def rule(fidelity: Callable[[], Any]) -> Rule:
        def run(model: sg.ScoreModel, a: Tensor, y: Tensor, std: float) -> Tensor:
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
            posterior = sampling.PosteriorDiffusion(
                data_fidelity=fidelity(),
                denoiser=Denoiser(model),
                sde=sampling.VariancePreservingDiffusion(alpha=1.0),
                solver=sampling.DDPMSolver(timesteps=times, rng=torch.Generator().manual_seed(0)),
                minus_one_one=False,
            )
            return posterior(y, Linear(a, std), x_init=(len(y), a.shape[1]), denoise_output=False)

        return run

    return {
        "deepinv moment matching": rule(sampling.MomentMatchingDataFidelity),
        "deepinv PiGDM": rule(sampling.PiGDMDataFidelity),
        "deepinv DPS, annealed": rule(lambda: sampling.DPSDataFidelity(guidance="annealed")),
        "deepinv DPS": rule(sampling.DPSDataFidelity),
    }
