"""Plain tables."""

import pytest

from bench.table import milliseconds, table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """The first column stands to the left, the others to the right, and no line ends in a blank."""
    assert table(("name", "p50"), [("a", "1.00"), ("longer", "")]) == "name     p50\n------  ----\na       1.00\nlonger"


def test_a_ragged_row_is_refused() -> None:
    """A row with another number of cells is a mistake of the caller."""
    with pytest.raises(ValueError, match="as many cells"):
        table(("a", "b"), [("1",)])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.000412, "0.412"), (0.00371, "3.71"), (0.0412, "41.2"), (1.873, "1873"), (0.0, "0.000")]
)
def test_milliseconds_keep_three_digits(seconds: float, text: str) -> None:
    """Enough to compare, not more than was measured."""
    assert milliseconds(seconds) == text
