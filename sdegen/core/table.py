"""Tables: as text, in notebooks, and for pandas."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

Row = TypeVar("Row")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Header and rows as text, every column as wide as its widest cell, two spaces between."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Header and rows as an HTML table."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


class Rows(list[Row]):
    """A list of dataclasses that prints as a table, shows as one in notebooks, and goes to pandas."""

    header: tuple[str, ...] = ()

    def cells(self, row: Row) -> tuple[str, ...]:
        """One row as text, a cell for each word of the header."""
        raise NotImplementedError

    def note(self) -> str:
        """What is said below the table."""
        return ""

    def __str__(self) -> str:
        text = table(self.header, map(self.cells, self))
        return f"{text}\n{self.note()}" if self.note() else text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        note = "".join(f"<p>{html.escape(line)}</p>" for line in self.note().splitlines())
        return html_table(self.header, map(self.cells, self)) + note

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, a column for each attribute of a row.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        return pandas.DataFrame([asdict(row) for row in self])  # type: ignore[call-overload]
