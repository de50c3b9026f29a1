"""Measurements, from what the benchmarks wrote: benchmarks/results/*.json holds every number and every line drawn.

A page shows them where it says so, all or the tables whose titles begin with these words:

    ```{measured} solvers
    :tables: error, ratio
    :figures:
    ```

`made` adds the command, the day and the machine. Results that no page shows get a page of their own.
"""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def write(folder: Path) -> None:
    """Draw the figures into `folder`, and write `results-NAME.md` for results that none of its pages shows."""
    for old in folder.glob("results-*"):
        old.unlink()
    shown = {name for page in folder.glob("*.md") for name in re.findall(r"```\{measured\} (\S+)", page.read_text())}
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        for i, figure in enumerate(report.get("figures", ())):
            draw(figure, folder / f"results-{path.stem}-{i}.png")
        if "tables" in report and path.stem not in shown:
            head = f"# {report['title']}\n\n{report['about']}\n\n"
            (folder / f"results-{path.stem}.md").write_text(
                head + f"```{{measured}} {path.stem}\n:made:\n:figures:\n```\n"
            )


def draw(figure: dict, path: Path) -> None:
    """Error against evaluations."""
    import sdegen as sg

    rows = [{"solver": name, "nfe": n, "error": e} for name, line in figure["lines"].items() for n, e in line]
    with sg.plot.style():
        axes = sg.plot.work_precision(rows, orders=())
        axes.set(title=figure["title"], ylabel=figure["error"])
        sg.plot.save(axes, path)


def lines(report: dict, name: str, tables: str, whole: bool, figures: bool) -> list[str]:
    """Markdown: what was run, the figures, and the tables whose titles begin so."""
    text = [made(report), ""] if whole else []
    for i, figure in enumerate(report.get("figures", ()) if figures else ()):
        text += [f"![{figure['title']}: {figure['error']}](/measured/results-{name}-{i}.png)", ""]
    wanted = [w.strip() for w in tables.split(",") if w.strip()] or [""]
    found = [t for w in wanted for t in report["tables"] if t["title"].startswith(w)]
    if not found:
        raise ValueError(f"{name}.json has no table {wanted}, but {[t['title'] for t in report['tables']]}")
    for table in found:
        text += [
            f"**{table['title'][:1].upper()}{table['title'][1:]}.** {table.get('about', '')}",
            "",
            *rows(table),
            "",
        ]
    return text


def made(report: dict) -> str:
    """What was run, where and when."""
    return f"`{report['command']}`, {report['date']}, sdegen {report['version']}, {report['machine']}."


def rows(table: dict) -> list[str]:
    """A table as Markdown."""
    lines = ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
    return lines + ["| " + " | ".join(map(shown, row)) + " |" for row in table["rows"]]


def shown(cell: object) -> str:
    """A number with the digits it deserves; None is empty."""
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return str(cell).replace("|", "\\|")
    if isinstance(cell, int) or (float(cell).is_integer() and abs(cell) < 1e6):
        return f"{int(cell)}"
    return f"{cell:.2g}" if abs(cell) < 100 else f"{cell:.0f}"
