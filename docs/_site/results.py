"""Pages of measurements, from what the benchmarks wrote: benchmarks/results/*.json holds every number."""

import json
from pathlib import Path


def write(folder: Path, results: Path) -> None:
    """Write `folder/results-NAME.md` for every results file that holds tables."""
    found = []
    for path in sorted(results.glob("*.json")):
        report = json.loads(path.read_text())
        if "tables" in report:
            found.append(path.stem)
            (folder / f"results-{path.stem}.md").write_text(page(report))
    for old in folder.glob("results-*.md"):
        if old.stem.removeprefix("results-") not in found:
            old.unlink()


def page(report: dict) -> str:
    """A report as Markdown: what was run, where and when, and its tables."""
    made = f"`{report['command']}`, {report['date']}, sdegen {report['version']}, {report['machine']}."
    lines = [f"# {report['title']}", "", report["about"], "", made, ""]
    for table in report["tables"]:
        lines += [f"## {table['title']}", "", *([table["about"], ""] if table.get("about") else [])]
        lines += ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
        lines += ["| " + " | ".join(map(shown, row)) + " |" for row in table["rows"]] + [""]
    return "\n".join(lines)


def shown(cell: object) -> str:
    """A number with the digits it deserves; None is empty."""
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return str(cell).replace("|", "\\|")
    if isinstance(cell, int) or (float(cell).is_integer() and abs(cell) < 1e6):
        return f"{int(cell)}"
    return f"{cell:.2g}" if abs(cell) < 100 else f"{cell:.0f}"
