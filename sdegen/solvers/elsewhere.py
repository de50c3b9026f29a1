"""What other libraries call the solvers of this one: for advice where a name is not known here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Names as people write them, in small letters and without spaces, dots, dashes, underscores and brackets.
_SAME = {
    "adams": ("auto", "adaptive", "lsoda", "vode", "plms", "dpmadaptive", "dpmsolverpp3madaptive"),
    "ancestral": ("ddpm", "ddpmscheduler", "ddpmsampler", "eulerancestral", "eulera", "eulerancestraldiscrete"),
    "bosh3": ("rk23", "ode23", "bogackishampine"),
    "ddim": ("ddimscheduler", "euler discrete", "eulerdiscrete", "dpmsolver1", "dpmsolversinglestep1", "k euler"),
    "deis3": ("deis", "deismultistep"),
    "dopri5": ("rk45", "ode45", "dormandprince", "dormandprince54", "tsit5", "runge-kutta", "rungekutta"),
    "dpm++2m": ("dpmsolver", "dpmsolver++", "dpmsolverpp", "dpmsolvermultistep", "dpmpp2m", "dpm2m", "dpmsolver++2m"),
    "dpm++2m-sde": ("dpmpp2msde", "dpm++sde", "dpmppsde", "sdedpmsolver++", "sdedpmsolverpp", "dpmsolversde"),
    "dpm++3m": ("dpmpp3m", "dpmsolver++3m"),
    "dpm-solver2m": ("dpmsolver2", "dpm2"),
    "er-sde3": ("ersde", "ersdesolver"),
    "euler-maruyama": ("em", "eulermaruyamasampler", "sde"),
    "heun": ("heundiscrete", "edm", "edmheun", "karras", "heun2"),
    "ipndm4": ("pndm", "pndmscheduler", "ipndm", "ipndmscheduler"),
    "karras-sde": ("edmstochastic", "edmsde", "kdpm2ancestraldiscrete", "stochasticheun"),
    "lms4": ("lms", "lmsdiscrete", "klms"),
    "predictor-corrector": ("pc", "pcsampler", "predictorcorrectorsampler"),
    "reverse-diffusion": ("reversediffusionpredictor",),
    "rk4": ("rungekutta4", "classicalrungekutta"),
    "sa-solver3": ("sasolver", "sasolverscheduler"),
    "sra1": ("sra", "sosra", "milstein"),
    "unipc2": ("unipc", "unipcmultistep", "unipcbh2"),
    "unipc3": ("unipcbh1",),
}

_LONGEST = 200  # characters of a name: comparing long ones takes time and memory


def _plain(name: str) -> str:
    name = re.sub(r"scheduler$|^sample_|^k_", "", name.strip().lower())
    return re.sub(r"[\s._\-()]", "", name)


_MEANT = {_plain(other): own for own, names in _SAME.items() for other in (own, *names)}


def meant(name: str, known: Iterable[str]) -> str | None:
    """The solver that another library's name, or a misspelt one, stands for; None where there is no telling."""
    known = list(known)
    if len(name) > _LONGEST:
        return None
    own = _MEANT.get(_plain(name))
    if own is not None:
        return own
    close = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.lower(), known, n=1)
    return close[0] if close else None
