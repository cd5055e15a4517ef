"""Texts of any length on a transcript's page: JSON laid out without changing it, long ones folded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.report.transcript_text import block, json_block, laid_out, line

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=50)
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@settings(max_examples=60, deadline=None)
@given(st.lists(DOCUMENTS) | st.dictionaries(st.text(), DOCUMENTS), st.sampled_from([None, 1, "\t"]))
def test_json_that_is_laid_out_is_the_same_document(document, indent):
    text = json.dumps(document, indent=indent)
    found = laid_out(text)
    assert found is not None
    assert json.loads(found) == document
    assert laid_out(found) == found


def test_laying_out_keeps_digits_and_escapes_and_opens_what_is_long():
    assert laid_out('{"a":1.0e-5,"b":[0.10,-0],"c":"\\u202e"}') == '{"a": 1.0e-5, "b": [0.10, -0], "c": "\\u202e"}'
    assert laid_out(json.dumps(["x" * 60, ["y", "z"], "w" * 60])) == (
        f'[\n  "{"x" * 60}",\n  ["y", "z"],\n  "{"w" * 60}"\n]'
    )


UNSOUND = ("3", '"{}"', "", "{", '{"a": 1, "a": 2}', "[NaN]", "see {}", '["\\ud800"]', "[" * 10**5)


@pytest.mark.parametrize("text", UNSOUND, ids=range(len(UNSOUND)))
def test_what_is_no_sound_json_stays_as_it_is(text):
    assert laid_out(text) is None
    assert json_block(text).text == text


def test_deep_nesting_does_not_cost_its_square():
    document: object = "x" * 100
    for _ in range(300):
        document = [document, "y" * 100]
    text = json.dumps(document)
    found = laid_out(text)
    assert found is not None
    assert json.loads(found) == document
    assert len(found) < 1.2 * len(text)


def test_a_fenced_block_alone_is_laid_out_and_one_in_a_sentence_is_not():
    assert json_block('```json\n{"a":1}\n```\n').text == '{"a": 1}'
    assert json_block('Here:\n```json\n{"a":1}\n```').text == 'Here:\n```json\n{"a":1}\n```'


@pytest.mark.parametrize(
    ("text", "length", "folded"),
    [
        ("", "0 characters", False),
        ("a", "1 character", False),
        ("a\nb", "3 characters, 2 lines", False),
        ("a" * 1000, "1,000 characters", True),
        ("a\n" * 20, "40 characters, 21 lines", True),
    ],
)
def test_long_texts_are_folded_and_say_how_long_they_are(text, length, folded):
    assert (block(text).length, block(text).folded) == (length, folded)


def test_a_line_is_one_line():
    assert line("a\nb\u202e") == "a\\nb\\u202e"
    assert line("a" * 300) == "a" * 200 + "... (300 characters)"
