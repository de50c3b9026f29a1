"""The house in numbers: rooms and arrows, sizes, signatures, calls from a verb to the network, import time.

Everything is measured from the code that is imported, but for two short lists kept by hand: which caches follow from
what cannot change, and of things that were done in two places; an entry whose text is gone is named.

    python benchmarks/house.py                    # prints, and writes results/house.json beside this file
    python benchmarks/house.py --imports 0        # without timing the import
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grimp
import torch

import sdegen as sg
from sdegen.models.facts import DataFacts
from sdegen.noise import BrownianTree, Noise

PACKAGE = Path(sg.__file__).parent
FRONT_DOOR = "__init__"
RESULTS = Path(__file__).parent / "results" / "house.json"

# Answers are remembered by one of these.
CACHES = {"CachedFunction", "Recent", "LastAnswer", "lru_cache", "cache", "cached_property", "WeakTensorKeyDictionary"}

# Where what they follow from cannot change, so that no answer can be out of date: an object on which nothing can be
# assigned, which is tried, or None for what has no object: files and names of the package.
_PROCESS = sg.VPSDE()
UNCHANGING: dict[str, tuple[str, Any]] = {
    "processes/base.py:SDE": ("a process: its coefficients, and what others derive from it", _PROCESS),
    "processes/crossing.py:Crossing": ("two processes: their times of equal sigma/alpha", _PROCESS),
    "models/facts.py:DataFacts": ("what is known of the data: its law in other forms", DataFacts()),
    "models/facts.py:_Decomposed": ("the same: its covariance, decomposed", DataFacts()),
    "models/coordinates.py:Coordinates": ("a process and facts of the data: a model along another path", DataFacts()),
    "models/base.py:Wrapped": ("the same, but for what a wrapper changes", DataFacts()),
    "noise/white.py:Noise": ("the seed and the sample numbers, hashed", Noise(0)),
    "noise/brownian.py:BrownianTree": ("the same: the path at its last times", BrownianTree(0, 0.0, 1.0)),
    "solvers/__init__.py:": ("the package's own solvers of a name", None),
    "core/conditions.py:": ("the options of a verb", None),
    "core/quadrature.py:": ("the constants of a rule", None),
    "testing/problems.py:": ("the problems by which solvers are tested", None),
    "data/load.py:": ("the pictures that another package brings, handed out as copies", None),
    "data/pixels.py:": ("one object for pages that are alike", None),
}

# What was once done in more than one place: (what, what such a place looks like, how many there may be).
TWICE = [
    ("final denoising", r"def _denoised?\((?!self)|\.x0, t_min", 1),
    ("which samples are finite", r"isfinite\(torch\.stack\(|torch\.isfinite\([^\n]*\.sum\(1\)", 1),
    ("eval mode without gradients", r"def _?quiet\(", 1),
    ("drawing the prior", r"normal\([^\n]*\bPurpose\.PRIOR\b|drawn\(Purpose\.PRIOR", 1),
    ("a step of Gaussian data", r"\*\* \(\(1 \+ e\) / 2\)|/ self\._total\(v, self\.start\)\) \*\* 0\.5", 1),
    ("changing the frame of a model", r"class (?:Centred|_OnPath|OnPath)\b", 1),
    ("is this the circular path", r"isinstance\([^)]*TrigSDE\)|- math\.cos\(t\)\) >", 1),
    ("checking a request", r"def check_how|class How\b", 1),
    ("uniform numbers out of normal ones", r"ndtr\((?:noise|z\[)", 0),
    ("the noise that a seed means", r"def _?noise(?:_of)?\(seed", 1),
    ("finding a root", r"def _solved\(|def find_root\(", 1),
    ("a training loop", r"\.zero_grad\(", 1),
    ("writing a file whole or not at all", r"os\.replace\(|os\.rename\(fresh", 1),
    ("a picture as a PNG file", r'\.save\(stream, "png"\)', 1),
    ("whose a folder of samples is", r"with samples of other settings \(", 1),
    ("a learned variance, or a refusal", r'getattr\(prediction, "fraction"|def fraction_of\(', 1),
    ("the nodes of a table, or a refusal", r'getattr\(sde, "nodes"|def nodes_of\(', 1),
    ("printing a table", r"\.ljust\(", 1),
    ("Adams on a grid and by tolerance in one class", r'"run" in state', 0),
    ("the solver's options on the command line", r'add_argument\("--rtol"', 1),
]

# Examples that compare with other families train adversaries, which no loop of ours does.
_OF_THE_PACKAGE = ("a training loop",)


# ---- rooms


def rooms() -> dict[str, Any]:
    """Rooms are what stands directly in the package; an arrow is that one imports another."""
    graph = grimp.build_graph("sdegen")

    def room(module: str) -> str:
        return (module.split(".") + [FRONT_DOOR])[1]

    arrows = {
        (room(a), room(b))
        for a in graph.modules
        for b in graph.find_modules_directly_imported_by(a)
        if room(a) != room(b)
    }
    names = {room(m) for m in graph.modules} - {FRONT_DOOR}
    contract = re.search(r"^layers = \[(.*?)^\]", (PACKAGE.parent / "pyproject.toml").read_text(), re.S | re.M)
    return {
        "rooms": len(names),
        "floors": contract[1].count('"') // 2 if contract else None,
        "longest way down": max(len(way) for way in _ways(arrows)),
        "arrows": len(arrows),
        "pairs in a circle": sum((b, a) in arrows for a, b in arrows) // 2,
        "loose files": len(list(PACKAGE.glob("*.py"))),
    }


def _ways(arrows: set[tuple[str, str]]) -> Iterator[list[str]]:
    """The longest chain of imports from each room."""
    below = {a: {b for x, b in arrows if x == a} for a, _ in arrows}
    longest: dict[str, list[str]] = {}

    def way(room: str) -> list[str]:
        if room not in longest:
            longest[room] = [room]  # a circle ends here
            longest[room] = [room, *max((way(b) for b in below.get(room, ())), key=len, default=[])]
        return longest[room]

    return (way(room) for room in below)


# ---- sizes


def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[ast.get_docstring(function, clean=False) is not None :]
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1 if body else 0


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Arguments that can be given by position, self aside."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len([n for n in names if n not in ("self", "cls")])


def sizes() -> dict[str, Any]:
    texts = sources()
    lengths = {path: text.count("\n") for path, text in texts.items()}
    found = [(path, f) for path, text in texts.items() for f in functions(text)]
    code = sorted(((lines_of_code(f), f"{path.relative_to(PACKAGE)}:{f.name}") for path, f in found), reverse=True)
    arguments = sorted(((positional(f), f"{path.relative_to(PACKAGE)}:{f.name}") for path, f in found), reverse=True)
    largest = max(lengths, key=lambda path: lengths[path])
    return {
        "files": len(texts),
        "lines": sum(lengths.values()),
        "largest file": [lengths[largest], str(largest.relative_to(PACKAGE))],
        "median file": statistics.median(n for n in lengths.values() if n),
        "functions": len(found),
        **{f"functions over {most} lines of code": sum(n > most for n, _ in code) for most in (60, 40, 25)},
        "longest functions": [f"{name} {n}" for n, name in code[:5]],
        "most positional arguments": list(arguments[0]),
        "functions with more than 6": [f"{name} {n}" for n, name in arguments if n > 6],
        "most lines of an __init__": max(n for n, name in code if name.endswith("__init__")),
    }


def shortcuts() -> dict[str, int]:
    """Ways around the types: arguments and variables that are Any, ignored complaints, attributes by name."""
    texts = sources().values()
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {
        "Any": sum(isinstance(n, ast.arg | ast.AnnAssign) and _is_any(n.annotation) for n in nodes),
        "type: ignore": sum(text.count("type: ignore") for text in texts),
        "getattr": sum(
            isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "getattr" for n in nodes
        ),
    }


def _is_any(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


# ---- the running program


def model() -> tuple[sg.ScoreModel, torch.nn.Module]:
    torch.manual_seed(0)
    net = sg.nets.MLP(2, hidden=32, layers=2)
    for p in net.parameters():  # networks begin at zero, and such a flow is too easy
        torch.nn.init.normal_(p, std=0.2)
    return sg.Denoiser(net, sg.VPSDE(), data_mean=torch.tensor([0.4, -1.0]), data_std=torch.ones(2)), net


def _here(frame: Any) -> str | None:
    """The file of a frame, where it is the package's."""
    name = frame.f_code.co_filename
    return str(Path(name).relative_to(PACKAGE)) if name.startswith(str(PACKAGE)) else None


def traced(call: Callable[[], Any], net: torch.nn.Module) -> dict[str, Any]:
    """Evaluations, Python calls in the package, and the frames between the verb and the network."""
    stacks: list[list[str]] = []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        frame, stack = sys._getframe(1), []
        while frame is not None:
            file = _here(frame)
            if file and not file.startswith("nets"):
                stack.append(f"{file}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        stacks.append(stack[::-1])

    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        file = _here(frame) if event == "call" else None
        if file:
            calls[f"{file}:{frame.f_code.co_qualname}"] += 1

    call()  # what happens once in a process is not counted
    hook = net.register_forward_pre_hook(note)
    call()
    hook.remove()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    deepest = max(stacks, key=len)
    return {
        "frames": len(deepest),
        "files on the stack": len({line.split(":")[0] for line in deepest}),
        "evaluations": len(stacks),
        "calls": calls.total(),
        "calls an evaluation": round(calls.total() / len(stacks), 1),
        "files": len({name.split(":")[0] for name in calls}),
        "most called": [f"{name} {n}" for name, n in calls.most_common(12)],
        "stack": deepest,
    }


def running() -> dict[str, Any]:
    denoiser, net = model()
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    verbs: dict[str, Callable[[], Any]] = {
        "sample(steps=8)": lambda: sg.sample(denoiser, 16, steps=8, seed=0),
        "sample(rtol=1e-3)": lambda: sg.sample(denoiser, 16, rtol=1e-3, seed=0),
        "sample(solver='ddim', steps=8)": lambda: sg.sample(denoiser, 16, solver="ddim", steps=8, seed=0),
        "log_prob(rtol=1e-2)": lambda: sg.log_prob(denoiser, x, rtol=1e-2),
        "dsm_loss": lambda: sg.dsm_loss(denoiser, x, seed=0),
    }
    return {name: traced(call, net) for name, call in verbs.items()}


# ---- importing


IMPORT = """
import sys, time
import torch, torch.nn, torch.utils.data
before, start = set(sys.modules), time.perf_counter()
import sdegen
alone = time.perf_counter() - start
sdegen.Denoiser, sdegen.fit, sdegen.sample, sdegen.log_prob
print(alone, time.perf_counter() - start, sum(m.startswith("sdegen") for m in sys.modules), len(set(sys.modules) - before))
"""


def importing(times: int) -> dict[str, Any]:
    """Seconds of `import sdegen`, and of it with the verbs beyond torch's own, the least of several processes.

    One process before them compiles the modules, as an installation does."""
    if not times:
        return {}
    command = [sys.executable, "-c", IMPORT]
    with tempfile.TemporaryDirectory() as compiled:
        own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        run = partial(subprocess.run, command, capture_output=True, text=True, check=True)
        lines = [run(env={**own, "PYTHONPYCACHEPREFIX": compiled}).stdout.split() for _ in range(times + 1)][1:]
    return {
        "seconds alone": round(min(float(line[0]) for line in lines), 4),
        "seconds with fit, sample and log_prob, beyond torch": round(min(float(line[1]) for line in lines), 3),
        "modules of sdegen": int(lines[0][2]),
        "modules in all": int(lines[0][3]),
    }


# ---- caches


def caches() -> dict[str, Any]:
    """Where answers are remembered between calls, and hidden caches: those whose answers could be out of date, since
    what they follow from can be written to without their knowing of it by themselves."""
    places = sorted(
        {f"{path.relative_to(PACKAGE)}:{owner}" for path, text in sources().items() for owner in _kept(text)}
    )
    found = [place for place in places if not place.startswith("core/cache.py")]
    fixed = {place for place, (_, thing) in UNCHANGING.items() if thing is None or _refuses(thing)}
    return {
        "places": len(found),
        "hidden": len([place for place in found if place not in fixed]),
        "which": [place for place in found if place not in fixed],
        "of what cannot change": [f"{place} {UNCHANGING[place][0]}" for place in found if place in fixed],
        "no longer": [place for place in UNCHANGING if place not in found],
    }


def _kept(text: str, owner: str = "") -> Iterator[str]:
    """The class, "" for none, of every use of a cache in a file."""
    for node in ast.iter_child_nodes(ast.parse(text)):
        inside = node.name if isinstance(node, ast.ClassDef) else owner
        named = {getattr(n.func, "id", getattr(n.func, "attr", "")) for n in ast.walk(node) if isinstance(n, ast.Call)}
        decorated = [d for n in ast.walk(node) for d in getattr(n, "decorator_list", ())]
        if CACHES & (named | {getattr(d, "id", getattr(d, "attr", "")) for d in decorated}):
            yield inside


def _refuses(thing: Any) -> bool:
    """Whether none of its public attributes can be assigned."""
    for name in [name for name in vars(thing) if not name.startswith("_")]:
        try:
            setattr(thing, name, getattr(thing, name))
        except (sg.InvalidInputError, AttributeError):
            continue
        return False
    return True


# ---- the list kept by hand


def by_hand() -> dict[str, Any]:
    """What is done in more than one place, as far as the list is still true."""
    package = "\n".join(text for path, text in sources().items() if path.parent.name != "testing")
    examples = "\n".join(path.read_text() for path in (PACKAGE.parent / "examples").glob("*.py"))
    whole = package + examples
    places = {what: len(re.findall(look, package if what in _OF_THE_PACKAGE else whole)) for what, look, _ in TWICE}
    twice = [f"{what}: {places[what]}" for what, _, most in TWICE if places[what] > most]
    return {
        "done in more than one place": len(twice),
        "where": twice,
        "no longer": [what for what, _, most in TWICE if places[what] <= most],
    }


def show(name: str, value: Any, indent: int = 0) -> None:
    space = " " * indent
    if isinstance(value, dict):
        print(f"{space}{name}")
        for key, inner in value.items():
            show(key, inner, indent + 2)
    elif isinstance(value, list) and value and len(value) > 2 or isinstance(value, list) and not value:
        print(f"{space}{name}: " + (f"\n{space}  ".join(["", *map(str, value)]) if value else "none"))
    else:
        print(f"{space}{name}: {' '.join(map(str, value)) if isinstance(value, list) else value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--imports", type=int, default=3, help="processes that time the import")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "rooms": rooms(),
        "sizes": sizes(),
        "shortcuts": shortcuts(),
        "running": running(),
        "import": importing(args.imports),
        "caches": caches(),
        "by hand": by_hand(),
    }
    for name, value in found.items():
        show(name, value)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
