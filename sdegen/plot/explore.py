"""The explorer: a static page on which people try processes, solvers, steps and tolerances."""

from __future__ import annotations

import base64
import copy
import html
import json
import os
import pathlib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.files import write_whole
from ..core.kinds import checked
from ..distributions.mixture import GaussianMixture
from ..inference.sampling import sample
from ..models.base import ScoreModel
from ..models.denoiser import Denoiser
from ..models.exact import MixtureModel
from ..nets.mlp import MLP
from ..processes import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, LinearPathSDE
from .style import check_file

PROCESSES: dict[str, SDE] = {
    "VPSDE": VPSDE(),
    "CosineSDE": CosineSDE(),
    "LinearPathSDE": LinearPathSDE(),
    "VESDE": VESDE(),
    "EDMSDE": EDMSDE(),
}
TESTED = ("VPSDE", "LinearPathSDE", "EDMSDE")
HOWS: tuple[dict[str, Any], ...] = (
    {"solver": "euler", "steps": 10},
    {"solver": "heun", "steps": 7},
    {"solver": "rk4", "steps": 5},
    {"solver": "ddim", "steps": 10},
    {"solver": "dpm++2m", "steps": 12},
    {"solver": "dopri5", "rtol": 1e-3},
)
MOST_BYTES = 400_000
_DEGREE = 256


class Page:
    """A page that was written: `path` says where, and a notebook shows it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Page({str(self.path)!r}): open it in a browser"

    def _repr_html_(self) -> str:
        text = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe title="sdegen explorer" srcdoc="{text}" width="100%" height="760" style="border:0"></iframe>'


@checked
def explore(what: ScoreModel | GaussianMixture, path: str | os.PathLike[str], *, sde: SDE | None = None) -> Page:
    """Write the explorer of a mixture or of a small network over the plane: one page that works from a file.

    On it one chooses the process, the flow or the reverse SDE, solver, steps or tolerance, seed and time, and sees the
    paths over p_t, the evaluations and the error against the exact flow; solvers end where `sdegen.sample` does with
    the same seed (in double precision, the reverse SDE's noise apart). It asks for nothing on the network. Opened as
    `page.html#test` it proves that: the element `#test-result` says "ok", or what failed.

    Args:
        what: a GaussianMixture or a MixtureModel over the plane, or a Denoiser whose network is a `nets.MLP` over the
            plane.
        path: the .html to write.
        sde: the process that is chosen at first; None: the model's, or VPSDE.

    Returns:
        Page, which notebooks show.

    Raises:
        InvalidInputError: models that are none of these, no such folder, a page above 400 kB.

    Example:
        >>> import tempfile, sdegen as sg
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = sg.plot.explore(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], std=0.3), f"{folder}/page.html")
    """
    file = check_file(path)
    model = _model(what, sde)
    if isinstance(model, MixtureModel):
        told = _told_mixture(model.mixture)
    elif isinstance(model, Denoiser):
        told = _told_network(model)
    else:
        raise _unfit(what)
    process = next((name for name, known in PROCESSES.items() if repr(known) == repr(model.sde)), None)
    known = PROCESSES if process else {**PROCESSES, "its own": model.sde}
    model = copy.deepcopy(model).double()  # as the page computes: rounding of single precision is not compared
    views = {name: model.on(sde) for name, sde in known.items()}
    data = {
        "model": told,
        "process": process or "its own",
        "processes": [_told_process(name, view.sde, known[name]) for name, view in views.items()],
        "free": [_told_process(name, sde, sde) for name, sde in known.items()],
        "tolerance": 1e-10 if isinstance(model, MixtureModel) else 1e-4,
        "test": [_case(views[name], name, how) for name in TESTED for how in HOWS],
    }
    text = _assembled(data)
    if len(text.encode()) > MOST_BYTES:
        raise InvalidInputError(
            f"got a network of {sum(p.numel() for p in model.parameters())} parameters, whose page would have "
            f"{len(text.encode()) / 1000:.0f} kB: expected at most {MOST_BYTES // 1000} kB, about 60,000 parameters"
        )
    write_whole(file, text.encode())
    return Page(file)


def _model(what: Any, sde: SDE | None) -> ScoreModel:
    if isinstance(what, GaussianMixture):
        what = MixtureModel(what, sde or VPSDE())
    elif not isinstance(what, ScoreModel):
        raise _unfit(what)
    elif sde is not None:
        raise InvalidInputError("got sde= beside a model, which has a process: leave it out, or pass the mixture")
    if what.event_shape != (2,):
        raise InvalidInputError(f"got events of shape {what.event_shape}, expected points of the plane, (2,)")
    return what


def _unfit(what: Any) -> InvalidInputError:
    return InvalidInputError(
        f"got {type(what).__name__}, expected a GaussianMixture, a MixtureModel, or a Denoiser of a nets.MLP over the "
        "plane: other models do not run on a page"
    )


def _told_mixture(mixture: GaussianMixture) -> dict[str, Any]:
    axes = torch.eye(2, dtype=torch.float64).expand(len(mixture.means), 2, 2) if mixture.axes is None else mixture.axes
    c = torch.einsum("kie,ke,kje->kij", axes, mixture.variances, axes)
    covariances = torch.stack([c[:, 0, 0], c[:, 0, 1], c[:, 1, 1]], 1).tolist()
    return {
        "kind": "mixture",
        "means": mixture.means.tolist(),
        "covariances": covariances,
        "weights": mixture.weights.tolist(),
    }


def _told_network(model: Denoiser) -> dict[str, Any]:
    net = model.net
    if not isinstance(net, MLP):
        raise _unfit(model)
    weights = {name: _encoded(value) for name, value in net.state_dict().items()}
    weights["features.w"] = _encoded(net.embedding.features.w)
    prior = model.data.prior
    variances = prior.variances.expand(2)
    named = net.config["time_features"]
    return {
        "kind": "network",
        "weights": weights,
        "layers": net.config["layers"],
        "features": "sinusoidal" if named == "sinusoidal" else "fourier",
        "labels": net.config["n_classes"],
        "coefficients": _told_coefficients(model),
        "mean": prior.mean.expand(2).tolist(),
        "covariance": [float(variances[0]), 0.0, float(variances[1])],
        "scale": model.sigma_data,
    }


def _told_coefficients(model: Denoiser) -> list[dict[str, Any]]:
    """log alpha, c_skip, c_out, c_in, c_noise over lambda, along the model's own process."""
    sde, c = model.sde, model.coefficients()
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda t: sde.alpha(t).log(),
        *(lambda t, f=f: f(sde, t).expand(t.shape) for f in (c.c_skip, c.c_out, c.c_in, c.c_noise)),
    ]
    return [_series(f, sde) for f in functions]


def _told_process(name: str, sde: SDE, whole: SDE) -> dict[str, Any]:
    return {
        "name": name,
        "python": f"sg.{whole!r}" if name != "its own" else "your_process",
        "range": _range(sde),
        "time": _series(torch.log, sde),
        "alpha": _series(lambda t: sde.alpha(t).log(), sde),
    }


def _range(sde: SDE) -> list[float]:
    """lambda at t_max and at t_min."""
    return sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).tolist()


def _series(f: Callable[[Tensor], Tensor], sde: SDE) -> dict[str, Any]:
    """A function of time as a Chebyshev series over lambda, to rounding."""
    low, high = _range(sde)

    node = np.cos(np.pi * (np.arange(_DEGREE) + 0.5) / _DEGREE)
    level = torch.from_numpy((low + high) / 2 + (high - low) / 2 * node)
    values = f(sde.time(level).clamp(sde.t_min, sde.t_max)).double().numpy()
    found = np.asarray(dct(values)) / _DEGREE
    found[0] /= 2
    kept = np.flatnonzero(np.abs(found) > 1e-15 * np.abs(found).max())
    return {"range": [low, high], "coefficients": found[: kept[-1] + 1].tolist() if len(kept) else [0.0]}


def _case(view: ScoreModel, name: str, how: dict[str, Any]) -> dict[str, Any]:
    """Where six samples end in Python, and their evaluations."""
    found = sample(view, (6, 2), seed=0, dtype=torch.float64, progress=False, **how)
    return {"process": name, "how": how, "ends": found.x.tolist(), "nfe": found.nfe.tolist()}


def _encoded(value: Tensor) -> str:
    return base64.b64encode(value.detach().cpu().to(torch.float32).contiguous().numpy().tobytes()).decode()


def _assembled(data: dict[str, Any]) -> str:
    parts = files("sdegen.plot").joinpath("page")
    read = {
        name: parts.joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html", "style.css", "solve.js", "view.js")
    }
    told = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    page = read["page.html"]
    for mark, text in (
        ("STYLE", read["style.css"]),
        ("DATA", told),
        ("SOLVE", read["solve.js"]),
        ("VIEW", read["view.js"]),
    ):
        page = page.replace(f"/*{mark}*/", text)
    return page
