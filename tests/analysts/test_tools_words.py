"""The tools that speak of tokens: the words of units, and the tokens of texts, beside the tokenizer itself."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tool_benches import TINY, bench_of, good, refused

from planner.operations import OPERATIONS
from planner.plan import ELEMENTS
from planner.words import Unit, words_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return bench_of(TINY, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.mark.parametrize(("kind", "layer"), [("neuron", 2), ("head", 5), ("channel", None), ("token", None)])
def test_units_mean_what_words_of_says(bench, kind, layer):
    text = good(bench, "token_meanings", kind=kind, layer=layer, indices=[3, 1, 3])
    lines = text.splitlines()
    found = words_of(bench.brief.checkpoint, bench.brief.model, [Unit(kind, layer, 3), Unit(kind, layer, 1)], top=6)
    assert len(lines) == len(found) == 2
    for line, words in zip(lines, found, strict=True):
        assert line.startswith(f"{kind} {words.index}")
        for token in (*words.promotes, *words.suppresses, *words.reads_most, *words.neighbours):
            assert f"{token.value:.6g}" in line
            if token.text is not None and token.text.isascii() and token.text.isprintable():
                assert json.dumps(token.text) in line
            else:
                assert f"#{token.id})" in line or json.dumps(token.text) in line


def test_a_unit_that_is_not_there_says_how_many_there_are(bench):
    assert "there are 192 neurons" in good(bench, "token_meanings", kind="neuron", layer=0, indices=[999])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kind": "neuron", "indices": [1]}, "which layer"),
        ({"kind": "token", "layer": 1, "indices": [1]}, "no layer"),
        ({"kind": "head", "layer": 1, "indices": [1], "expert": 0}, "no expert"),
        ({"kind": "neuron", "layer": 1, "indices": []}, "at least 1"),
        ({"kind": "neuron", "layer": 1, "indices": list(range(9))}, "at most 8"),
        ({"kind": "neuron", "layer": 1, "indices": [-1]}, "indices[0]"),
        ({"kind": "neuron", "layer": 1, "indices": [True]}, "indices[0]"),
        ({"kind": "neuron", "layer": 1, "indices": [2**40]}, "indices[0]"),
        ({"kind": "expert", "layer": 1, "indices": [1]}, "'neuron', 'head', 'channel' or 'token'"),
    ],
)
def test_units_that_make_no_sense_are_refused(bench, asked, said):
    assert said in refused(bench, "token_meanings", **asked)


def test_a_text_that_is_one_token_is_found_with_its_sibling(bench, tokenizer):
    text = good(bench, "find_tokens", texts=[" the", "."])
    assert f'" the" is one token: id {tokenizer.token_to_id("Ġthe")}, piece "\\u0120the"' in text
    assert f'"." is one token: id {tokenizer.token_to_id(".")}' in text
    assert '"the" is several tokens' in text


@pytest.mark.parametrize("texts", [["once"], [" once upon", " the"], ["zebra", "é", "漢"]])
def test_every_text_is_cut_as_the_tokenizer_cuts_it(bench, tokenizer, texts):
    lines = good(bench, "find_tokens", texts=texts).splitlines()
    assert len(lines) == 2 * len(texts)
    for text in texts:
        (line,) = [line for line in lines if line.startswith(json.dumps(text) + " is")]
        for number in tokenizer.encode(text, add_special_tokens=False).ids:
            assert f"id {number}" in line


def test_texts_that_cannot_be_looked_up(bench, tmp_path):
    import shutil

    model = shutil.copytree(TINY, tmp_path / "m")
    (model / "tokenizer.json").write_text("{}")
    text = good(bench_of(model, tmp_path / "cache"), "find_tokens", texts=["a"])
    assert "cannot be looked up" in text
    assert "at least 1 character" in refused(bench, "find_tokens", texts=[""])
    assert "at most 64" in refused(bench, "find_tokens", texts=["x" * 65])


@pytest.mark.parametrize("kind", [*OPERATIONS, *ELEMENTS])
def test_every_operation_and_choice_of_elements_is_described(bench, kind):
    text = good(bench, "describe_operation", kind=kind)
    assert text.startswith(f"{kind}: ")
    record = OPERATIONS.get(kind) or ELEMENTS[kind]
    for parameter in record.model_fields.keys() - {"kind"}:
        assert parameter in text


def test_an_unknown_kind_names_those_there_are(bench):
    text = refused(bench, "describe_operation", kind="explode")
    assert "scale, shift" in text
    assert "rows, columns" in text
