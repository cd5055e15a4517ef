"""Whatever the bytes of a file are, it is refused with an error of the planner, or the library takes it and agrees."""

from __future__ import annotations

import json
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from header_files import assert_sound_or_refused, patterned, written
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.checkpoint.header import encode_header, read_header
from planner.errors import CheckpointError

VALID = encode_header([("a.weight", "F32", (2, 3)), ("b", "BF16", (0, 4)), ("c", "U8", ())], {"format": "pt"}) + bytes(
    25
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete"]),
        st.integers(0, len(VALID) - 1),
        st.integers(0, 255) | st.sampled_from(list(b'0123456789{}[]":,-.eE \\ux')),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    changed = bytearray(content)
    for kind, place, byte in edits:
        place = min(place, len(changed) - 1)
        if kind == "set":
            changed[place] = byte
        elif kind == "insert":
            changed.insert(place, byte)
        elif len(changed) > 1:
            del changed[place]
    return bytes(changed)


@given(EDITS)
@settings(deadline=None, max_examples=400)
def test_a_damaged_file_is_refused_or_is_one_that_the_library_takes_too(edits: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(edited(VALID, edits))
        assert_sound_or_refused(path)


@given(EDITS, st.integers(0, 3))
@settings(deadline=None, max_examples=400)
def test_a_damaged_header_of_the_told_length_is_refused_or_taken_by_both(
    edits: list[tuple[str, int, int]], spare: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = edited(VALID[8:-25], [(kind, place - 8 if place > 8 else 0, byte) for kind, place, byte in edits])
        assert_sound_or_refused(written(Path(folder), text, bytes(25 + spare)))


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(len(VALID)):
        path = tmp_path / "model.safetensors"
        path.write_bytes(VALID[:length])
        with pytest.raises(CheckpointError) as refused:
            read_header(path)
        assert refused.value.exit_status == 9


def test_a_file_with_any_one_bit_flipped_is_refused_or_taken_by_both(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for bit in range(8 * (len(VALID) - 25)):
        content = bytearray(VALID)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert_sound_or_refused(path)


@given(st.binary(max_size=200), st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_refused_or_taken_by_both(content: bytes, framed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(content)) + content if framed else content)
        assert_sound_or_refused(path)


TOKENS = re.findall(r'"[^"]*"|[\w.-]+|\S', VALID[8:-25].decode())
STRANGE = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '""',
    '"a"',
    '"a.weight"',
    '"dtype"',
    '"shape"',
    '"data_offsets"',
    '"F4"',
    "24",
]
STRANGE += ['"__metadata__"', '"BOOL"', '"C64"', '"\\u0061"', '"\\ud800"', "0", "-0", "1", "2", "4", "25", "1.0", "1e0"]
STRANGE += ["null", "true", "NaN", "-1", "9223372036854775807", "18446744073709551615", "[0,0]", "{}", '"x":1,', "\n"]
TOKEN_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "swap", "repeat"]),
        st.integers(0, len(TOKENS) - 1),
        st.sampled_from(STRANGE) | st.sampled_from(TOKENS),
        st.integers(0, len(TOKENS) - 1),
    ),
    min_size=1,
    max_size=3,
)


@given(TOKEN_EDITS, st.sampled_from([25, 25, 25, 24, 1, 0, 50]))
@settings(deadline=None, max_examples=500)
def test_a_header_with_other_tokens_is_refused_or_taken_by_both(
    edits: list[tuple[str, int, str, int]], length: int
) -> None:
    tokens = list(TOKENS)
    for kind, place, token, other in edits:
        place, other = min(place, len(tokens) - 1), min(other, len(tokens) - 1)
        if kind == "set":
            tokens[place] = token
        elif kind == "insert":
            tokens.insert(place, token)
        elif kind == "swap":
            tokens[place], tokens[other] = tokens[other], tokens[place]
        elif kind == "repeat":
            tokens[place:place] = tokens[min(place, other) : max(place, other)]
        elif len(tokens) > 1:
            del tokens[place]
    with tempfile.TemporaryDirectory() as folder:
        assert_sound_or_refused(written(Path(folder), "".join(tokens), patterned(length)))


NUMBERS = st.integers(-1, 9) | st.sampled_from([2**53, 2**63 - 1, True, None, 1.0, "1"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F64", "f32", "X", 5]),
        "shape": st.lists(st.integers(0, 3), max_size=3) | st.lists(NUMBERS, max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(0, 9), min_size=2, max_size=2) | st.lists(NUMBERS, max_size=3),
    },
    optional={"more": st.none() | st.integers() | st.lists(st.none())},
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), ENTRIES | st.none(), max_size=3), st.data())
@settings(deadline=None, max_examples=300)
def test_any_header_of_the_right_grammar_is_refused_or_taken_by_both(fields: dict[str, Any], data: Any) -> None:
    length = data.draw(st.integers(0, 40))
    with tempfile.TemporaryDirectory() as folder:
        assert_sound_or_refused(written(Path(folder), json.dumps(fields), bytes(length)))
