from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.errors import FileUnreadable, SuiteInvalid, TextInvalid
from planner.evaluation import load_suite
from planner.inference import load_documents

TWO = '{"text": "one"}\n{"text": "two"}\n'
METRIC = '[[metric]]\nname = "a"\nkind = "text_loss"\ntext = "a.jsonl"\n'


def suite(folder: Path, content: str, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "suite.toml").write_text(content)
    return folder / "suite.toml"


def test_reads_the_contracts_example(tmp_path):
    path = suite(
        tmp_path,
        '[[metric]]\nname = "stories"\nkind = "text_loss"\ntext = "heldout.jsonl"\nmax_tokens = 192\n'
        '[[gate]]\nmetric = "stories"\nrule = "improved"\n[drift]\ntext = "neutral.jsonl"\n',
        heldout=TWO,
        neutral='{"text": "three"}\n',
    )
    found = load_suite(path)
    assert found.name == "suite"
    assert (found.metrics[0].max_tokens, found.gates[0].name) == (192, "stories improved")
    assert found.documents("heldout.jsonl") == ("one", "two")
    assert found.documents(found.drift.text) == ("three",)
    assert found.drift.max_tokens is None
    assert [text.digest[:7] for text in found.texts] == ["blake3:", "blake3:"]
    assert found.texts[0].digest != found.texts[1].digest
    assert "documents" not in found.texts[0].model_dump()


def test_drift_is_on_the_first_metrics_text_by_default(tmp_path):
    found = load_suite(suite(tmp_path, METRIC + "max_tokens = 5\n", a=TWO))
    assert (found.drift.text, found.drift.max_tokens) == ("a.jsonl", 5)
    assert len(found.texts) == 1


def test_drift_on_a_metrics_text_is_cut_like_the_metric(tmp_path):
    content = METRIC + 'max_tokens = 5\n[drift]\ntext = "a.jsonl"\n'
    assert load_suite(suite(tmp_path, content, a=TWO)).drift.max_tokens == 5


def test_digest_follows_the_text(tmp_path):
    before = load_suite(suite(tmp_path, METRIC, a=TWO)).texts[0].digest
    assert load_suite(suite(tmp_path, METRIC, a=TWO + '{"text": "three"}\n')).texts[0].digest != before


def test_every_problem_is_named_at_once(tmp_path):
    content = (
        'colour = "red"\n'
        '[[metric]]\nname = "a"\nkind = "text_loss"\ntext = "a.jsonl"\nmax_tokens = 0\n'
        '[[metric]]\nname = "b"\nkind = "multiple_choice"\nitems = "b.jsonl"\n'
        '[[metric]]\nname = "c"\nkind = "text_loss"\ntext = "missing.jsonl"\n'
        '[[metric]]\nname = "c"\nkind = "text_loss"\ntext = "one.jsonl"\n'
        '[[gate]]\nmetric = "nobody"\nrule = "improved"\n'
        '[[gate]]\nmetric = "a"\nrule = "improved"\nmargin = 1\nlimit = 1\n'
        '[[gate]]\nrule = "not_worse"\n'
        '[[gate]]\nrule = "max_drift"\nmetric = "a"\n'
        '[[gate]]\nrule = "better"\n'
    )
    with pytest.raises(SuiteInvalid) as caught:
        load_suite(suite(tmp_path, content, one='{"text": "same"}\n{"text": "same"}\n'))
    message = caught.value.message
    for part in (
        "unknown key 'colour'",
        "metric 1: max_tokens: ",
        'metric 2: kind "multiple_choice" is not available in this version',
        "missing.jsonl: No such file",
        "at least 2 different documents",
        "two metrics have the name 'c'",
        "no metric has the name 'nobody'",
        "margin belongs to not_worse",
        "limit belongs to max_drift",
        "not_worse needs a metric",
        "max_drift takes no metric",
        "max_drift needs a limit",
        "gate 5: rule: ",
    ):
        assert part in message
    assert message.count("\n") == 13
    assert "gate 'a improved': no metric" not in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("metric = [", "is not TOML: "),
        ("", "no [[metric]]"),
        ('[metric]\nname = "a"\n', "write [[metric]]"),
        ("metric = [1]\n", "metric 1: "),
        (METRIC.replace("text_loss", "guess"), "metric 1: kind: "),
        (METRIC + "wrong = 1\n", "metric 1: wrong: "),
        (METRIC + "[drift]\nwords = 1\n", "drift: text: "),
    ],
)
def test_one_problem_is_one_line(tmp_path, content, part):
    with pytest.raises(SuiteInvalid, match=r"suite\.toml") as caught:
        load_suite(suite(tmp_path, content, a=TWO))
    assert part in caught.value.message


def test_suite_file_must_be_readable_text(tmp_path):
    with pytest.raises(FileUnreadable, match="cannot read"):
        load_suite(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(FileUnreadable, match="byte 2 is 0xe9"):
        load_suite(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.jsonl", '\ufeff{"text": "x", "id": 3}\r\n\r\n{"text": "y\u2028z"}', ("x", "y\u2028z")),
        ("a.json", json.dumps(["x", " y\n"]), ("x", " y\n")),
        ("a.txt", "one\nstill one\r\n\r\n \n\n two\n\n", ("one\nstill one", " two")),
        ("a.TXT", "\n\n\none", ("one",)),
    ],
)
def test_documents(tmp_path, name, content, documents):
    (tmp_path / name).write_bytes(content.encode())
    assert load_documents(tmp_path / name) == documents


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", TWO + '{"text": " "}\n{"text": 5}\n[]\n{"text": "a", "text": "b"}\n{', [
            "line 3: an empty document", 'line 4: not an object with a string "text"', "line 5: not an object",
            "line 6: not JSON (the key 'text' stands twice", "line 7: not JSON",
        ]),
        ("a.jsonl", "\n", ["holds no document"]),
        ("a.jsonl", "1\n" * 12, ["line 10: ", "; and 2 more"]),
        ("a.json", '["x", "", 5]', ["item 2: an empty document", "item 3: not a string"]),
        ("a.json", '{"text": "x"}', ["the file: not a list of strings"]),
        ("a.json", "[NaN]", ["the file: not JSON"]),
        ("a.txt", " \n\n", ["holds no document"]),
        ("a.csv", "x", ["is none of .jsonl, .json, .txt"]),
    ],
)  # fmt: skip
def test_malformed_documents(tmp_path, name, content, parts):
    (tmp_path / name).write_text(content)
    with pytest.raises(TextInvalid) as caught:
        load_documents(tmp_path / name)
    assert all(part in caught.value.message for part in parts), caught.value.message


def test_missing_documents(tmp_path):
    with pytest.raises(FileUnreadable, match=r"none\.txt"):
        load_documents(tmp_path / "none.txt")
