"""Every public door of the package with a call that works, found from the signatures of `sdegen.__all__`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sdegen as sg

ROOMS = ("data", "discrete", "metrics", "nets", "plot", "testing")

# What the loop asks of a term, a solver, a model or a process at every step; nobody else calls it.
HOOKS = {
    *("along", "apply", "at", "at_ratio", "check", "check_conditions", "check_event", "coefficients", "combine"),
    *("condition_names", "denoise", "denoised", "drift_of", "enter", "evaluations", "finish", "in_data_units", "judge"),
    *("adjoint", "linearised", "measured", "moved", "noisy", "offset", "predict", "select", "shifted", "spanned"),
    *("settled", "start", "step", "stepper", "to", "total", "values", "warm", "but", "or_raise", "options", "decorate"),
}


class Net(nn.Module):
    """A small network that counts how often networks are called."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        Net.calls += 1
        return self.linear(x) * (label[:, None].to(x) if isinstance(label, Tensor) else label or 1)


class PictureNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        Net.calls += 1
        return self.linear(x)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _mixture() -> sg.GaussianMixture:
    return sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.3)


def _model(net: Callable[[], nn.Module] = Net, **words: Any) -> sg.Denoiser:
    torch.manual_seed(0)
    return sg.Denoiser(net(), sg.VPSDE(), data_mean=0.0, data_std=0.5, **words)


def _exact() -> sg.MixtureModel:
    return sg.MixtureModel(_mixture(), sg.VPSDE())


def saved_model() -> sg.Denoiser:
    """The one that `load` is to find."""
    return _model(lambda: sg.nets.MLP(2, hidden=8, layers=1))


def _bytes(*shape: int) -> Tensor:
    return (_normal(*shape).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def _table_model(counted: bool = False) -> sg.Denoiser:
    torch.manual_seed(0)
    sde = sg.TabulatedVPSDE(torch.linspace(0.01, 0.5, 8, dtype=torch.float64))
    of = sg.discrete.counting("noise") if counted else "noise"
    return sg.Denoiser(Net(), sde, parametrization=of, data_mean=0.0, data_std=0.5)


def _sampled(**words: Any) -> sg.Solution:
    return sg.sample(_exact(), 4, steps=3, seed=0, save="all", **words)


def _history() -> sg.History:
    return sg.fit(_model(), _normal(8, 2), steps=2, batch_size=4, progress=False, device="cpu", seed=0)


def _pictures_sampled() -> sg.Solution:
    return sg.sample(_model(PictureNet), (2, 1, 8, 8), steps=3, seed=0, save="all")


# A value that works for a parameter of this name, wherever it is not said otherwise below.
BY_NAME: dict[str, Callable[[], Any]] = {
    "model": _model,
    "outer": _exact,
    "inner": _exact,
    "net": Net,
    "sde": sg.VPSDE,
    "term": lambda: sg.ProbabilityFlow(_model()),
    "solver": lambda: sg.make_solver("heun"),
    "mixture": _mixture,
    "observation": lambda: sg.Observation.mask([True, False], std=0.1),
    "shape": lambda: (3, 2),
    "steps": lambda: 2,
    "n": lambda: 4,
    "m": lambda: 4,
    "x": lambda: _normal(3, 2),
    "x0": lambda: _normal(3, 2),
    "y": lambda: _normal(5, 2) + 1,
    "data": lambda: _normal(6, 2),
    "noise": lambda: _normal(3, 2),
    "score": lambda: _normal(3, 2),
    "t": lambda: 0.4,
    "t_next": lambda: 0.5,
    "seed": lambda: 0,
    "half_log_snr": lambda: 0.5,
    "name": lambda: "heun",
    "kind": lambda: "lambda",
    "levels": lambda: 256,
    "means": lambda: [[-1.0, 0.0], [1.0, 0.5]],
    "std": lambda: 0.3,
    "mean": lambda: torch.zeros(2),
    "variances": lambda: torch.ones(2),
    "covariance": lambda: torch.eye(2),
    "A": lambda: [[1.0, 0.5]],
    "scale": lambda: 1.5,
    "log_potential": lambda: lambda x0: -(x0**2).sum(1),
    "mask": lambda: [True, False],
    "f": lambda: lambda x0: x0[:, :1],
    "k": lambda: 2,
    "device": lambda: "cpu",
    "dtype": lambda: torch.float32,
    "sigma_data": lambda: 0.5,
    "betas": lambda: [0.1, 0.2, 0.3],
    "sigmas": lambda: [0.1, 0.5, 3.0],
    "alpha": lambda: lambda t: torch.cos(t),
    "sigma": lambda: lambda t: torch.sin(t),
    "drift": lambda: lambda t: -t,
    "diffusion": lambda: lambda t: 1 + t,
    "t_min": lambda: 0.01,
    "t_max": lambda: 0.9,
    "path": lambda: "made",
    "in_channels": lambda: 1,
    "images": lambda: _normal(12, 1, 8, 8).clamp(-1, 1),
    "labels": lambda: torch.arange(12) % 2,
    "n_classes": lambda: 2,
    "real": lambda: _normal(6, 2),
    "reference": lambda: _normal(3, 1, 16, 16).clamp(-1, 1),
    "solution": _sampled,
    "paths": _sampled,
    "what": lambda: _normal(40, 2),
    "loss": lambda: sg.dsm_loss,
    "numbers": lambda: torch.tensor([0, 1]),
    "losses": lambda: torch.ones(2),
}
_C = {"c_skip": lambda sde, t: sde.alpha(t), "c_out": lambda sde, t: 1 + t, "c_in": lambda sde, t: 1 + t}

# Arguments of one door; what is not required may be set too, so that the call is quick or says more.
OWN: dict[str, dict[str, Callable[[], Any]]] = {
    "fit": {"data": lambda: _normal(8, 2), "batch_size": lambda: 4, "progress": lambda: False, "device": lambda: "cpu"},
    "measure_noise": {"levels": lambda: 3},
    "measure_smooth": {"model": _exact, "samples": lambda: 4},
    "bits_per_dim": {"x": lambda: _bytes(2, 2), "steps": lambda: 3},
    "log_prob": {"steps": lambda: 3},
    "compare": {"solvers": lambda: ("heun",), "steps": lambda: (4,), "tolerances": lambda: ()},
    "grid": {"n": lambda: 4},
    "load": {"path": lambda: "saved"},
    "solve": {"noise": lambda: 0, "steps": lambda: 3},
    "Parametrization": {**{k: (lambda v=v: v) for k, v in _C.items()}, "c_noise": lambda: lambda sde, t: t},
    "from_diffusers": {"network": lambda: _unet_of_diffusers()[0], "scheduler": lambda: _unet_of_diffusers()[1]},
    "from_pipeline": {"folder": lambda: _pipeline_of_diffusers()},
    "space_from_diffusers": {"vae": lambda: _autoencoder_of_diffusers()},
    "to_scheduler": {"model": lambda: _table_model(counted=True)},
    "Observation.function": {"std": lambda: 0.1},
    "Observation.linear": {"std": lambda: 0.1},
    "GaussianMixture.posterior": {"y": lambda: [0.3]},
    "GaussianMixture": {"std": lambda: 0.3},
    "Guided": {"null": lambda: {"label": -1}},
    "Posterior.update": {"y": lambda: _normal(3, 2)},
    "Posterior.forward": {"y": lambda: _normal(3, 2)},
    "Guided.plus_plus": {"weight": lambda: 0.5, "times": lambda: [0.9, 0.5, 0.0]},
    "Switched": {"level": lambda: 0.5, "below": lambda: {"label": "style"}},
    "slerp": {"z0": lambda: _normal(3, 2), "z1": lambda: _normal(3, 2) + 1, "w": lambda: 0.5},
    "translate": {"a": _exact, "b": _exact, "steps": lambda: 3},
    "edit": {"steps": lambda: 3},
    "fit_solver": {"model": _exact, "samples": lambda: 8, "progress": lambda: False},
    "sample_posterior": {
        "model": _exact,
        "y": lambda: _normal(3, 2) / 4,
        "steps": lambda: 3,
        "particles": lambda: 2,
    },
    "plot.explore": {"what": _mixture, "path": lambda: "page.html"},
    "Posterior.score": {"y": lambda: _normal(3, 2)},
    "Noise.normal": {"shape": lambda: (3, 2)},
    "Noise.uniform": {"shape": lambda: (3, 2)},
    "Gaussian.log_prob": {"level": lambda: sg.VPSDE().at(0.4)},
    "Gaussian.of_data": {"x0": lambda: _normal(8, 2)},
    "Prediction.on": {"t": lambda: torch.tensor(0.4)},
    "NoiseLevel": {"levels": lambda: torch.tensor([0.1, 1.0]), "values": lambda: torch.tensor([0.1, 0.2])},
    "plot.animate": {"frames": lambda: 2},
    "plot.denoising_strip": {"solution": _pictures_sampled, "samples": lambda: 2, "steps": lambda: 2},
    "plot.history": {"run": _history},
    "plot.image_grid": {"x": lambda: _normal(3, 1, 8, 8)},
    "plot.save": {"drawing": lambda: _axes(), "path": lambda: "drawn.png"},
    "plot.score_field": {"model": _exact, "arrows": lambda: 3, "density": lambda: False},
    "plot.work_precision": {
        "table": lambda: sg.compare(_exact(), 8, solvers=("heun",), steps=(4, 6), tolerances=(), seed=0)
    },
    "discrete.ddpm": {"model": _table_model},
    "discrete.ddim": {"model": _table_model},
    "discrete.ddim_encode": {"model": _table_model},
    "discrete.ddpm_loss": {"model": _table_model},
    "discrete.ncsn_loss": {"model": lambda: _ncsn_model()},
    "discrete.hybrid_loss": {"model": lambda: _learned(), "x0": lambda: _bytes(3, 2)},
    "discrete.vlb": {"model": _table_model, "x0": lambda: _bytes(3, 2)},
    "discrete.vlb_term": {"model": _table_model, "x0": lambda: _bytes(3, 2)},
    "discrete.spaced": {"model": _table_model, "steps": lambda: 4},
    "discrete.counting": {"of": lambda: "noise"},
    "discrete.betas": {"name": lambda: "cosine", "n": lambda: 10},
    "discrete.LearnedVariance": {"net": lambda: _Doubled(), "sde": lambda: _table_model().sde},
    "discrete.langevin": {"model": lambda: _ncsn_model(), "n": lambda: 2, "step": lambda: 0.01},
    "discrete.annealed_langevin": {"model": lambda: _ncsn_model(), "steps_per_level": lambda: 2},
    "discrete.LossAware.draw": {"batch": lambda: 3},
    "discrete.LossAware.update": {"at": lambda: torch.tensor([1, 2])},
    "metrics.Classifier": {"shape": lambda: (1, 8, 8)},
    **{
        f"metrics.Classifier.{method}": {"x": lambda: _normal(12, 1, 8, 8).clamp(-1, 1)}
        for method in ("accuracy", "embed", "forward", "probabilities")
    },
    "metrics.frechet_distance_of_moments": {
        **{name: (lambda: torch.zeros(2)) for name in ("m1", "m2")},
        **{name: (lambda: torch.eye(2)) for name in ("c1", "c2")},
    },
    "metrics.Moments.of": {"z": lambda: _normal(8, 2)},
    "metrics.Moments.frechet_distance": {"other": lambda: sg.metrics.Moments.of(_normal(8, 2) + 1)},
    "metrics.moments_of": {"parts": lambda: [_normal(8, 2), _normal(4, 2)]},
    "metrics.psnr": {"x": lambda: _normal(3, 1, 16, 16).clamp(-1, 1), "data_range": lambda: 2.0},
    "metrics.ssim": {"x": lambda: _normal(3, 1, 16, 16).clamp(-1, 1), "data_range": lambda: 2.0},
    "metrics.train_classifier": {"path": lambda: None, "steps": lambda: 2, "batch_size": lambda: 4},
    "metrics.frechet_distance": {"x": lambda: _normal(5, 2)},
    "metrics.kernel_distance": {"x": lambda: _normal(8, 2), "y": lambda: _normal(8, 2) + 1, "groups": lambda: 2},
    "metrics.precision_recall": {"x": lambda: _normal(6, 2)},
    "metrics.frechet_bias": {"x": lambda: _normal(5, 2)},
    "nets.DiT": {"hidden": lambda: 16, "depth": lambda: 1, "heads": lambda: 2},
    "nets.UNet": {"channels": lambda: 4},
    "nets.MLP": {"event_shape": lambda: 2},
    "nets.MLP.forward": {"t": lambda: torch.full((3,), 0.4)},
    **{
        f"nets.{net}.forward": {"x": lambda: _normal(3, 1, 8, 8), "t": lambda: torch.full((3,), 0.4)}
        for net in ("DiT", "UNet")
    },
    "nets.Autoencoder": {"channels": lambda: 1, "width": lambda: 4, "codes": lambda: 8},
    **{f"nets.Autoencoder.{method}": {"x": lambda: _normal(3, 1, 8, 8)} for method in ("encode", "forward")},
    **{f"nets.Autoencoder.{method}": {"z": lambda: _normal(3, 4, 2, 2)} for method in ("decode", "quantise")},
    "LatentSpace": {"autoencoder": lambda: _autoencoder(), "mean": lambda: [0.0, 0.5], "std": lambda: 0.5},
    "LatentSpace.measured": {"autoencoder": lambda: _autoencoder(), "data": lambda: _normal(5, 1, 8, 8)},
    "LatentSpace.encode": {"x": lambda: _normal(3, 1, 8, 8)},
    "LatentSpace.forward": {"x": lambda: _normal(3, 1, 8, 8)},
    "LatentSpace.decode": {"z": lambda: _normal(3, 2, 2, 2)},
    "autoencoder_loss": {
        "model": lambda: sg.nets.Autoencoder(1, width=4),
        "x0": lambda: _normal(3, 1, 8, 8),
    },
    "testing.model_laws": {"event_shape": lambda: (2,)},
    "nets.make_net": {"name": lambda: "digits"},
    "data.load_images": {"source": lambda: torch.zeros(6, 8, 8, dtype=torch.uint8)},
    "data.Images.split": {"part": lambda: "train", "held_out_every": lambda: 3},
    "data.images.digits": {"split": lambda: "train"},
    "data.mask": {"kind": lambda: "wide", "shape": lambda: (8, 8)},
    "data.Lookup": {"values": lambda: _normal(3, 2), "which": lambda: torch.tensor([0, 2, 1])},
    "data.Conditioned.batch": {"numbers": lambda: torch.tensor([0, 1])},
    "data.Shares": {"batches": lambda: [_normal(3, 2)]},
    "data.toys.sample": {"name": lambda: "ring"},
    "data.toys.mixture": {"name": lambda: "ring"},
    "testing.affine_law": {
        "term": lambda: sg.ForwardSDE(sg.VPSDE()),
        "steps": lambda: torch.linspace(0.1, 0.5, 4, dtype=torch.float64),
        "mean": lambda: 0.5,
        "variance": lambda: 0.1,
        "solver": lambda: sg.make_solver("euler-maruyama"),
    },
}

# What verbs return: nobody makes one, so their methods alone are doors, of the object made here.
RESULTS: dict[str, Callable[[], Any]] = {
    "BitsPerDim": lambda: None,
    "History": lambda: None,
    "KernelDistance": lambda: None,
    "LogProb": lambda: sg.log_prob(_exact(), _normal(3, 2), steps=3, seed=0),
    "NoiseLevel": lambda: None,
    "PrecisionRecall": lambda: None,
    "Solution": _sampled,
    "Step": lambda: None,
    "data.Images": lambda: sg.data.load_images(torch.zeros(6, 8, 8, dtype=torch.uint8)),
    "discrete.Bound": lambda: None,
    "metrics.KernelDistance": lambda: None,
    "metrics.Moments": lambda: sg.metrics.Moments.of(_normal(8, 2)),
    "metrics.PrecisionRecall": lambda: None,
}

# Words that these do not know are conditions, and refused once the model is asked.
WORDS_OF_USERS = {"data.Conditioned", "ReverseSDE", "ProbabilityFlow", "testing.model_laws"}

# Doors that are asked a few times only, or not at all, with the reason.
LEFT_OUT = {
    "metrics.fid": "fetches weights over the network",
    "plot.style": "a context without arguments",
    "testing.check_model": "a run of many laws",
    "testing.check_sde": "a run of many laws",
    "testing.check_solver": "a run of many laws",
    "testing.check_wrapper": "a run of many laws",
}


_ABSTRACT = (sg.SDE, sg.ScoreModel, sg.Term, sg.Solver, sg.Observation, sg.Wrapped)  # subclassed by users


class _Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        Net.calls += 1
        return self.linear(x)


def _learned() -> Any:
    torch.manual_seed(0)
    return sg.discrete.LearnedVariance(_Doubled(), _table_model().sde, parametrization="noise")


def _ncsn_model() -> sg.Denoiser:
    torch.manual_seed(0)
    return sg.Denoiser(Net(), sg.TabulatedVESDE([0.1, 0.5, 3.0]), parametrization="score")


def _autoencoder() -> Any:
    return sg.nets.Autoencoder(1, 2, width=4)


def _axes() -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def _unet_of_diffusers() -> tuple[Any, Any]:
    import diffusers

    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    return unet, diffusers.DDPMScheduler(num_train_timesteps=10)


@functools.cache
def _pipeline_of_diffusers() -> Any:
    import diffusers

    return diffusers.DDIMPipeline(*_unet_of_diffusers())


def _autoencoder_of_diffusers() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


@dataclass(frozen=True)
class Door:
    """A public function, constructor or method, and arguments with which it works.

    Attributes:
        name: as a user writes it.
        function: called with the arguments by name, `None` standing for one that has no name (*args).
        base: what makes each argument of a call that works.
        open: the names of all arguments that can be given.
        free: whether it takes other words too.
        defaults: of the arguments that have one.
    """

    name: str
    function: Callable[..., Any]
    base: Mapping[str, Callable[[], Any]]
    open: tuple[str, ...]
    free: bool
    defaults: Mapping[str, Any]

    def arguments(self) -> dict[str, Any]:
        return {name: make() for name, make in self.base.items()}

    @property
    def words_go_anywhere(self) -> bool:
        """Whether words that it does not know are what a user's own function takes."""
        return self.name in WORDS_OF_USERS

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        return self.function(**arguments)


def doors() -> Iterator[Door]:
    """All of them, in the order of their names."""
    for name, thing in public():
        if inspect.isclass(thing):
            if issubclass(thing, BaseException):
                continue
            if not inspect.isabstract(thing) and name not in RESULTS and thing not in _ABSTRACT:
                yield door(name, thing)
            yield from _methods(name, thing)
        elif name == "make_solver":
            yield door(name, thing)
            yield from (_solver(row.name) for row in sg.solvers())
        else:
            yield door(name, thing)


def public() -> Iterator[tuple[str, Any]]:
    """(name, thing) of everything that `sdegen.__all__` and the rooms in it list."""
    for name in sg.__all__:
        thing = getattr(sg, name)
        if name not in ROOMS:
            yield name, thing
            continue
        for inner in thing.__all__:
            one = getattr(thing, inner)
            if inspect.ismodule(one):
                for function in vars(one).values():
                    own = inspect.isfunction(function) and function.__module__ == one.__name__
                    if own and not function.__name__.startswith(("_", "check_")):
                        yield f"{name}.{inner}.{function.__name__}", function
            elif callable(one):
                yield f"{name}.{inner}", one


def door(name: str, function: Callable[..., Any], signature: inspect.Signature | None = None) -> Door:
    """The door of a function: required arguments by their names, unless OWN says otherwise."""
    signature = signature or _signature(function)
    own = OWN.get(name, {})
    taken: list[str] = []
    base, free = dict(own), False
    for p in signature.parameters.values():
        if p.kind is p.VAR_KEYWORD:
            free = True
            continue
        if p.kind is p.VAR_POSITIONAL:
            continue
        taken.append(p.name)
        if p.default is p.empty and p.name not in base:
            if p.name not in BY_NAME:
                raise LookupError(f"tests/doors.py knows no value for {p.name!r} of {name}: put one into OWN")
            base[p.name] = BY_NAME[p.name]
    if free and any(p.name == "how" for p in signature.parameters.values()):
        taken += [n for n in inspect.signature(sg.sample).parameters if n not in taken and n != "cond"]
    order = sorted(base, key=lambda n: taken.index(n) if n in taken else 99)
    defaults = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    return Door(name, function, {n: base[n] for n in order}, tuple(taken), free, defaults)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if inspect.isclass(function) and issubclass(function, sg.SDE):
        given = inspect.signature(function.__init__)
        return given.replace(parameters=list(given.parameters.values())[1:])
    return inspect.signature(function)


def _solver(name: str) -> Door:
    """`make_solver` with the options of one solver."""
    from sdegen.solvers import _TABLE

    build = _TABLE[name]
    signature = inspect.signature(getattr(build, "builds", build))
    options = tuple(n for n in signature.parameters if n not in ("name", "options", "source"))
    defaults = {n: p.default for n, p in signature.parameters.items() if n in options}
    return Door(f"make_solver({name})", sg.make_solver, {"name": lambda: name}, options, False, defaults)


def _methods(name: str, thing: type) -> Iterator[Door]:
    """The doors of a class's own methods; those of an abstract class that need no object."""
    for method, function in inspect.getmembers(thing):
        raw = inspect.getattr_static(thing, method)
        if method.startswith("_") or method in HOOKS or not callable(function) or isinstance(raw, type):
            continue
        if not getattr(function, "__module__", "").startswith("sdegen"):
            continue
        if isinstance(raw, staticmethod | classmethod):
            yield door(f"{name}.{method}", function)
        elif not inspect.isabstract(thing) and thing not in _ABSTRACT:
            signature = inspect.signature(function)
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
            make = RESULTS.get(name)
            if make is None:
                base = door(name, thing)
                make = lambda base=base: base(base.arguments())

            def called(make=make, method=method, /, **arguments):
                made = make()
                return (made if method == "forward" else getattr(made, method))(**arguments)

            yield door(f"{name}.{method}", called, signature)
