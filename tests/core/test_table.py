"""Text tables."""

import pytest

from sdegen.core.table import table


def test_columns_begin_below_each_other():
    text = table(("name", "n", "note"), [("a", "1000", ""), ("a long one", "2", "x y")])
    assert text == "name        n     note\na           1000\na long one  2     x y"
    starts = [line.index(cell) for line, cell in zip(text.splitlines(), ("n ", "1000", "2"), strict=True)]
    assert starts == [12, 12, 12] and all(line == line.rstrip() for line in text.splitlines())


def test_a_header_alone_and_rows_of_another_length():
    assert table(("a", "b"), []) == "a  b"
    with pytest.raises(ValueError):
        table(("a", "b"), [("1",)])
