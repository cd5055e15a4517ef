"""JSON from strangers: what ordinary readers agree on is read, all else is refused in words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.strict_json import JsonRefused, loads

PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
DOCUMENTS = st.recursive(
    PLAIN | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 2]))
@settings(deadline=None)
def test_an_ordinary_document_is_read_as_json_reads_it(document: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    assert loads(text) == json.loads(text) == document


@given(st.text(st.sampled_from('{}[]":,\\ud8-0123456789.eE+ntrufalsN \n\ufeff\x00é')))
@settings(deadline=None, max_examples=500)
def test_any_text_is_read_or_refused_and_what_is_read_json_reads_too(text: str) -> None:
    try:
        value = loads(text)
    except JsonRefused:
        return
    assert value == json.loads(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('[{"b": {"a": 1, "\\u0061": 1}}]', "'a' stands twice"),
        ("NaN", "NaN is not JSON"),
        ('{"a": [Infinity]}', "Infinity is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e400", "1e400 is too large"),
        ("-1.0e+999999999", "too large"),
        ("9223372036854775808", "does not fit in 64 bits"),
        ("-9223372036854775809", "does not fit in 64 bits"),
        ("1" * 5_000, "an integer of 5000 digits"),
        ("[" * 200_000, "nested too deep"),
        ('{"a":' * 200_000, "nested too deep"),
        ('"\\ud800"', "surrogate"),
        ('{"\\uDC00": 1}', "surrogate"),
        ('["\\ud83d", "\\ude00"]', "surrogate"),
        ('"\ud800"', "surrogate"),
        ("\ufeff{}", "BOM"),
        ("", "line 1, column 1"),
        ("{'a': 1}", "line 1, column 2"),
        ('{"a": 1,\n "b": }', "line 2, column 7"),
        ('{"a": 1} x', "Extra data"),
        ('"a\nb"', "control character"),
        ("[01]", "line 1"),
        ("[1,]", "line 1"),
    ],
)
def test_what_two_readers_could_take_differently_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(JsonRefused) as refused:
        loads(text)
    assert why in str(refused.value)


def test_nesting_at_the_edge_of_the_stack_is_read_or_refused_but_never_another_error() -> None:
    outcomes = set()
    for depth in range(800, 1001):
        try:
            loads("[" * depth + '"\\ud83d\\ude00"' + "]" * depth)
            outcomes.add("read")
        except JsonRefused as refused:
            outcomes.add(str(refused))
    assert outcomes == {"read", "nested too deep"}


def test_a_whole_surrogate_pair_is_the_character_it_means() -> None:
    assert loads('"\\ud83d\\ude00"') == "😀"


def test_the_ends_of_the_integer_range_are_read() -> None:
    assert loads("[9223372036854775807, -9223372036854775808]") == [2**63 - 1, -(2**63)]


def test_minus_zero_is_the_float_that_other_readers_make_of_it() -> None:
    value = loads("-0")
    assert isinstance(value, float)
    assert math.copysign(1, value) == -1


def test_a_text_beyond_the_cap_is_refused_before_it_is_parsed() -> None:
    assert loads("[1, 2]", largest=6) == [1, 2]
    with pytest.raises(JsonRefused, match="7 characters; at most 6"):
        loads("[1, 23]", largest=6)


def test_the_message_stays_short_however_long_the_key_is() -> None:
    key = "k" * 1_000_000
    with pytest.raises(JsonRefused) as refused:
        loads(f'{{"{key}": 1, "{key}": 2}}')
    assert len(str(refused.value)) < 200
