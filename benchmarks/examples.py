"""What the examples that print a table find, in results/NAME.json.

python benchmarks/examples.py                                                 # all, each with its own defaults
python benchmarks/examples.py cascade --data fashion-mnist --sizes 7 14 28    # one, with options of the script
python benchmarks/examples.py translate:emoji --pairs emoji.npz noto twemoji  # kept apart, as example-translate-emoji
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from report import table, write

EXAMPLES = Path(__file__).parents[1] / "examples"
TITLES = {
    "clip": "Pictures and captions in one space, and guidance by a sentence",
    "cascade": "A cascade and its levels",
    "families": "The families on the digits",
    "image_to_image": "Pictures from pictures, three ways",
    "style_mixing": "Two conditions, changed at a noise level",
    "text_to_image": "Pictures from captions, by the scale of guidance",
    "translate": "Pictures of one kind as another, without pairs",
    "unclip": "Pictures by way of an embedding: variations, captions, changes, ways between",
}


def cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def run(name: str, options: list[str], of: str = "") -> None:
    """One example, and its table; `of`: a name for the data, where several are kept."""
    sys.path.insert(0, str(EXAMPLES))
    example = importlib.import_module(name)
    with tempfile.TemporaryDirectory() as out:
        rows = example.main([*options, *([] if "--out" in options else ["--out", out])])
    heads = [key for key in dict.fromkeys(key for row in rows for key in row) if key]  # a row may lack some
    if "--out" in sys.argv:
        at = sys.argv.index("--out")
        del sys.argv[at : at + 2]  # where the pictures went is of no interest
    table([TITLES[name], *heads], [[cell(row.get(key)) for key in ("", *heads)] for row in rows])
    write(
        "-".join(["example", *name.split("_"), *([of] if of else [])]), TITLES[name], example.__doc__.split("\n\n")[0]
    )


def main() -> None:
    torch.set_num_threads(1)
    asked, options = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    name, _, of = asked.partition(":")
    if name and name not in TITLES:
        sys.exit(f"got {name}, expected one of {', '.join(TITLES)}")
    if name:
        return run(name, options, of)
    for one in TITLES:
        subprocess.run([sys.executable, __file__, one], check=True)


if __name__ == "__main__":
    main()
