"""`planner report`: a page from a profile, a checkpoint or a transcript; nothing is overwritten unasked."""

from __future__ import annotations

import json
import os

import pytest
from chat_server import Answer, Calls, ChatServer


@pytest.fixture
def profile_json(planner, tiny_model, tmp_path):
    assert planner("profile", tiny_model, "--out", tmp_path).status == 0
    return tmp_path / "profile.json"


def test_a_page_is_made_from_a_file_and_from_a_checkpoint(planner, profile_json, tiny_model, tmp_path):
    first = planner("report", profile_json, "--out", tmp_path / "a.html")
    assert first.status == 0, first.err
    page = (tmp_path / "a.html").read_bytes()
    assert first.out == f"wrote {tmp_path / 'a.html'} ({len(page):,} bytes)\n"
    assert page.startswith(b"<!DOCTYPE html>")
    for name in (tensor["name"] for tensor in json.loads(profile_json.read_text())["tensors"]):
        assert name.encode() in page


def test_the_histograms_beside_a_profile_are_drawn_as_those_of_the_cache(planner, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("planner.profile.store.SETTLED_NS", -(10**9))  # recognise files that were made just now
    assert planner("profile", tiny_model, "--out", tmp_path / "folder").status == 0
    assert planner("report", tmp_path / "folder" / "profile.json", "--out", tmp_path / "a.html").status == 0
    assert planner("report", tiny_model, "--out", tmp_path / "b.html").status == 0
    page = (tmp_path / "a.html").read_bytes()
    assert (tmp_path / "b.html").read_bytes() == page
    for file in (tmp_path / "folder").glob("histograms-*"):
        file.unlink()
    assert planner("report", tmp_path / "folder" / "profile.json", "--out", tmp_path / "c.html").status == 0
    assert len((tmp_path / "c.html").read_bytes()) < len(page)


def test_json_is_one_document(planner, profile_json, tmp_path):
    out = tmp_path / "a.html"
    result = planner("report", profile_json, "--out", out, "--json")
    assert result.json == {"report": str(out), "bytes": out.stat().st_size}


def test_a_page_that_exists_is_replaced_only_when_asked(planner, profile_json, tmp_path):
    out = tmp_path / "a.html"
    out.write_text("mine")
    refused = planner("report", profile_json, "--out", out)
    assert refused.status == 2
    assert refused.err.startswith("error[output-exists]: ")
    assert "--force" in refused.err
    assert out.read_text() == "mine"
    assert planner("report", profile_json, "--out", out, "--force").status == 0
    assert out.read_text() != "mine"


def test_force_replaces_no_weights_and_no_folder(planner, profile_json, tiny_model, tmp_path):
    shard = next(tiny_model.glob("*.safetensors"))
    before = shard.read_bytes()
    refused = planner("report", tiny_model, "--out", shard, "--force")
    assert (refused.status, refused.err.partition(":")[0]) == (2, "error[usage]")
    assert "ends in .html" in refused.err
    assert shard.read_bytes() == before
    (tmp_path / "folder.html").mkdir()
    refused = planner("report", profile_json, "--out", tmp_path / "folder.html", "--force")
    assert (refused.status, refused.err.partition(":")[0]) == (2, "error[output-exists]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "planner/plan@1"}', "is a 'planner/plan@1'; a report can be made of planner/profile@1"),
        ('{"schema": "planner/profile@2"}', "is a 'planner/profile@2'; a report can be made of planner/profile@1"),
        ('{"schema": 1}', "has no `schema`"),
        ("[]", "is not a JSON object"),
        ("{", "is not sound JSON"),
        ('{"schema": "planner/profile@1", "schema": ""}', "stands twice"),
        ('{"schema": "planner/profile@1", "name": 3}', "is no planner/profile@1: name: "),
    ],
)
def test_what_is_no_profile_is_refused_by_name(planner, tmp_path, text, words):
    given = tmp_path / "given.json"
    given.write_text(text)
    result = planner("report", given, "--out", tmp_path / "a.html", "--json")
    assert result.status == 2
    assert words in result.err
    assert "planner profile MODEL --out DIR" in result.err
    assert result.json["error"]["code"] == "file-unreadable"
    assert not (tmp_path / "a.html").exists()


def test_what_is_nowhere_is_refused(planner, tmp_path):
    assert planner("report", tmp_path / "no" / "where", "--out", tmp_path / "a.html").status == 9
    assert planner("report", tmp_path, "--out", tmp_path / "no" / "a.html").status == 7
    assert planner("report", tmp_path).status == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(planner, profile_json, tmp_path):
    profile_json.chmod(0)
    assert planner("report", profile_json, "--out", tmp_path / "a.html").status == 2


@pytest.fixture
def transcript_json(planner, tiny_model, tmp_path):
    """What `planner propose` writes beside a plan: one call, one useless answer, one empty plan."""
    script = [
        Calls([("list_tensors", {})]),
        Answer("enough"),
        Answer("no <b>plan"),
        Answer('{"note": "", "modifications": []}'),
    ]
    with ChatServer(script) as server:
        given = ["--goal", "fewer mistakes", "--llm", "test-model", "--base-url", server.base_url]
        done = planner("propose", tiny_model, *given, "--out", tmp_path / "plan.json")
    assert done.status == 0, done.err
    return tmp_path / "plan.transcript.json"


def test_a_transcript_becomes_a_page_of_the_conversation(planner, transcript_json, tmp_path):
    out = tmp_path / "a.html"
    result = planner("report", transcript_json, "--out", out)
    assert result.status == 0, result.err
    page = out.read_text()
    assert result.out == f"wrote {out} ({len(page.encode()):,} bytes)\n"
    for words in ("<h1>test-model</h1>", "fewer mistakes", "list_tensors", "no &lt;b&gt;plan", 'id="step-4"'):
        assert words in page, words
    assert "script" not in page.partition("</style>")[2].partition("<pre>")[0]
    again = planner("report", transcript_json, "--out", out, "--force", "--json")
    assert again.json == {"report": str(out), "bytes": out.stat().st_size}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("planner/transcript@2", "planner/transcript@1"), "written by an older planner"),
        (lambda text: text.replace("planner/transcript@2", "planner/transcript@3"), "schema: "),
        (lambda text: text[: len(text) // 2], "is not sound JSON"),
        (lambda text: text.replace('"tool_use": "native"', '"tool_use": "telepathy"'), "tool_use: "),
    ],
    ids=["old", "new", "cut", "broken"],
)
def test_a_transcript_that_cannot_be_used_is_refused_as_one(planner, transcript_json, tmp_path, change, words):
    text = transcript_json.read_text()
    assert change(text) != text
    transcript_json.write_text(change(text))
    result = planner("report", transcript_json, "--out", tmp_path / "a.html", "--json")
    assert result.status == 2
    assert result.json["error"]["code"] == "transcript-unusable"
    assert words in result.err
    assert not (tmp_path / "a.html").exists()


def test_the_help_names_everything_that_can_become_a_page(planner):
    text = " ".join(planner("report", "--help").out.replace("\u2502", " ").split())
    assert "A profile.json, a transcript, a checkpoint folder or a hub id." in text
