"""Lists of numbers as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.operations import numbers_in
from planner.operations.ranges import MOST_NUMBERS


@given(spans=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), min_size=1, max_size=8))
def test_ranges_stand_for_each_of_their_numbers(spans: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" if more else f" {first} " for first, more in spans)
    assert numbers_in(text) == [number for first, more in spans for number in range(first, first + more + 1)]


@pytest.mark.parametrize("text", ["", ",", "1-", "-1", "1.5", "all", "1;2", "0x1", "1--2", "²"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a list of numbers"):
        numbers_in(text)


def test_a_range_runs_forwards_and_is_bounded() -> None:
    assert len(numbers_in(f"1-{MOST_NUMBERS}")) == MOST_NUMBERS
    with pytest.raises(ValueError, match="backwards"):
        numbers_in("3-1")
    for text in (f"0-{MOST_NUMBERS}", f"0,1-{MOST_NUMBERS}", "0-9" + "9" * 30):
        with pytest.raises(ValueError, match="too long"):
            numbers_in(text)
