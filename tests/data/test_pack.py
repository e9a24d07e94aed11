"""Packing: every example in one row, no row too long, few rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmscale.data.pack import packed


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 64))
def test_each_example_lies_in_one_row_that_holds_it(lengths: list[int], row_length: int) -> None:
    rows = packed(lengths, row_length)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[place] for place in row) <= row_length for row in rows)


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 64))
def test_no_two_rows_could_be_one(lengths: list[int], row_length: int) -> None:
    """Which holds for every fit that opens a row only when none has room."""
    used = sorted(sum(lengths[place] for place in row) for row in packed(lengths, row_length))
    assert len(used) < 2 or used[0] + used[1] > row_length


def test_rows_that_can_be_full_are_full() -> None:
    assert len(packed([6, 5, 4, 3, 2, 10], 10)) == 3


def test_too_long_example_is_refused() -> None:
    with pytest.raises(ValueError, match="example 1 has 11 tokens"):
        packed([3, 11], 10)
