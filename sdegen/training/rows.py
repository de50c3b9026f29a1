"""How one row of the data, or one batch of what is iterated, is read: x0 and its conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import InvalidInputError


@dataclass(frozen=True)
class Rows:
    """x0; (x0,); (x0, dict of conditions); (x0, label) where the network takes a label; or a dict by its columns.

    Attributes:
        takes_label: whether the second of two is a label.
        columns: condition -> column, "x0" among the conditions; None: rows are no dicts.

    Raises:
        InvalidInputError: columns that are not such a dict.
    """

    takes_label: bool = False
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        columns = self.columns
        if columns is not None and not (isinstance(columns, Mapping) and "x0" in columns):
            raise InvalidInputError(
                f"columns: got {columns!r}, expected the column of x0 and of each condition, such as "
                "{'x0': 'pixels', 'label': 'digit'}"
            )

    def parted(self, item: Any) -> tuple[Any, Mapping[str, Any]]:
        """(x0, conditions) of a row or a batch.

        Raises:
            InvalidInputError: it is of another kind, or a column is missing.
        """
        if isinstance(item, Mapping):
            return self._by_column(item)
        if self.columns is not None:
            raise InvalidInputError(
                f"columns= is for rows that are dicts, but data gives a {type(item).__name__}: leave it out"
            )
        if not isinstance(item, tuple | list):
            return item, {}
        if len(item) == 1:
            return item[0], {}
        if len(item) == 2 and isinstance(item[1], Mapping):
            return item[0], item[1]
        if len(item) == 2 and self.takes_label:
            return item[0], {"label": item[1]}
        raise InvalidInputError(
            f"data gives a {type(item).__name__} of {', '.join(type(part).__name__ for part in item[:4])}: expected x0 "
            "or (x0, dict of conditions); a label goes with its name, as (x0, {'label': y})"
        )

    def _by_column(self, row: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        there = ", ".join(map(repr, list(row)[:8]))
        if self.columns is None:
            raise InvalidInputError(
                f"data gives dicts with {there}: say which is x0 and which are conditions, as columns={{'x0': "
                f"{next(iter(row), 'pixels')!r}, 'label': ...}}"
            )
        missing = [column for column in self.columns.values() if column not in row]
        if missing:
            raise InvalidInputError(f"columns: got {missing[0]!r}, expected one that the rows have: {there}")
        found = {name: row[column] for name, column in self.columns.items()}
        return found.pop("x0"), found


PLAIN = Rows()
