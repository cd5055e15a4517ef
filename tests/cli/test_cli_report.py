"""`planner report`: a page from a profile or a checkpoint; nothing is overwritten unasked."""

from __future__ import annotations

import json
import os

import pytest


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
