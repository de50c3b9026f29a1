"""The pages of the reference, written from the package itself: a page for every public name, the solvers, the shell."""

import contextlib
import importlib
import inspect
import io
from pathlib import Path

from docstrings import escaped

import sdegen

# (page, title, what stands there): names of `sdegen.__all__`, and for "module" all public names of a room.
SHELVES = [
    ("verbs", "Verbs", "What one asks of a model.", lambda name, x: inspect.isfunction(x)),
    (
        "processes",
        "Processes",
        "What noise does to data: x_t = alpha(t) x_0 + sigma(t) noise.",
        lambda name, x: inspect.isclass(x) and issubclass(x, sdegen.SDE),
    ),
    (
        "models",
        "Models",
        "Where the belief about the clean sample comes from.",
        lambda name, x: (
            inspect.isclass(x) and (issubclass(x, sdegen.ScoreModel) or x.__module__.startswith("sdegen.models"))
        ),
    ),
    (
        "errors",
        "Errors",
        "What can go wrong, by name.",
        lambda name, x: inspect.isclass(x) and issubclass(x, Exception),
    ),
    (
        "objects",
        "Other objects",
        "Solutions, equations, solvers, laws in closed form.",
        lambda name, x: inspect.isclass(x),
    ),
]
ROOMS = (
    "nets",
    "data",
    "data.toys",
    "data.images",
    "discrete",
    "metrics",
    "plot",
    "testing",
    "training",
    "solvers",
    "noise",
)


def write(folder: Path) -> None:
    """Write all pages into the folder, which holds nothing else."""
    pages = {"index": _index(), "solvers": _solvers(), "shell": _shell()}
    left = list(public(sdegen))
    for page, title, about, wanted in SHELVES:
        mine = [name for name in left if wanted(name, getattr(sdegen, name))]
        left = [name for name in left if name not in mine]
        pages[page] = _shelf(title, about, "sdegen", mine)
    shown = {id(getattr(sdegen, name)) for name in public(sdegen)}
    for room in ROOMS:
        module = importlib.import_module(f"sdegen.{room}")
        names = [n for n in public(module) if id(getattr(module, n)) not in shown]
        shown |= {id(getattr(module, n)) for n in names}
        pages[f"sdegen.{room}"] = _shelf(f"sdegen.{room}", _first(module), module.__name__, names)
    rest = [name for name in left if not inspect.ismodule(getattr(sdegen, name))]
    if rest:
        raise ValueError(f"no page of the reference shows {', '.join(rest)}: give them a shelf")
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / (f"{name}.md" if text.startswith("# ") else f"{name}.rst")
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def public(module) -> list[str]:
    """The public names of a module: its `__all__`, or what it defines itself, without sub-modules."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n
            for n, x in vars(module).items()
            if not n.startswith(("_", "check_")) and getattr(x, "__module__", "") == module.__name__
        ]
    return [n for n in names if not (module is not sdegen and inspect.ismodule(getattr(module, n)))]


def _first(module) -> str:
    """What a module says of itself, up to the first empty line."""
    return " ".join(inspect.getdoc(module).split("\n\n")[0].split())


def _shelf(title: str, about: str, module: str, names: list[str]) -> str:
    """A page with a table of names, each with a page of its own."""
    documented = [n for n in names if callable(getattr(importlib.import_module(module), n))]
    values = [n for n in names if n not in documented]
    lines = [
        title,
        "=" * len(title),
        "",
        escaped(about),
        "",
        f".. currentmodule:: {module}",
        "",
        ".. autosummary::",
        "   :toctree: api",
        "   :nosignatures:",
        "",
    ]
    lines += [f"   {name}" for name in documented]
    for name in values:
        lines += [
            "",
            f".. py:data:: {name}",
            "",
            f"   {', '.join(map(repr, getattr(importlib.import_module(module), name)))}",
        ]
    return "\n".join(lines) + "\n"


def _index() -> str:
    rooms = "\n".join(f"sdegen.{room}" for room in ROOMS)
    shelves = "\n".join(page for page, *_ in SHELVES)
    return f"""# Reference

Every public name, from its docstring. The ones of the front door first (`import sdegen as sg`), then room by room.

```{{toctree}}
:caption: sdegen
:maxdepth: 1

{shelves}
solvers
shell
```

```{{toctree}}
:caption: Rooms
:maxdepth: 1

{rooms}
```
"""


def _solvers() -> str:
    """The table of `solvers()`, by kind of equation."""
    rows = sdegen.solvers()
    lines = [
        "# All solvers",
        "",
        "What `sdegen.solvers()` lists. Which one to take: [on one screen](../howto/choose.md).",
        "",
    ]
    kinds = {"ODE": "The probability flow", "SDE": "The reverse SDE", "ODE, SDE": "Either"}
    for kind in sorted({row.kind for row in rows}):
        lines += [
            f"## {kinds.get(kind, kind)}",
            "",
            "| name | order | evaluations a step | tolerance | source |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            if row.kind == kind:
                start = f" ({row.start_order:g} from its start)" if row.start_order < row.order else ""
                tolerance = "yes" if row.adaptive else ""
                lines.append(
                    f"| `{row.name}` | {row.order:g}{start} | {row.evaluations} | {tolerance} | {row.source} |"
                )
        lines.append("")
    return "\n".join(lines)


def _shell() -> str:
    """What the command and each of its parts say with --help."""
    from sdegen.app import cli

    lines = ["# The shell", "", "The command that comes with the package, as its own `--help` tells it.", "", *_help()]
    for name in cli.COMMANDS:
        lines += [f"## sdegen {name}", "", *_help(name)]
    return "\n".join(lines)


def _help(*words: str) -> list[str]:
    """The help of a command, as a block of text."""
    from sdegen.app import cli

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return ["```text", said.getvalue().rstrip(), "```", ""]
