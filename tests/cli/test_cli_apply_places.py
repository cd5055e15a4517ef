"""Places where nothing is written: the hint is a command that works as it stands."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from key_files import shared_key_file


@pytest.fixture
def follow(planner: Callable[..., Any]) -> Callable[[Any], Path]:
    """Run the command in the hint of a refusal; the folder that it made."""

    def run(result: Any) -> Path:
        hint = result.err.splitlines()[-1]
        words = shlex.split(hint.partition(": ")[2].partition(": ")[2])
        assert words[:2] == ["planner", "apply"], hint
        done = planner(*words[1:])
        assert done.status == 0, (words, done.err)
        return Path(words[words.index("--out") + 1])

    return run


def hub(tiny_model: Path, tmp_path: Path, approved: Path) -> Path:
    cache = tmp_path / "hub" / "models--ann--tiny"
    (cache / "snapshots").mkdir(parents=True)
    return Path(shutil.copytree(tiny_model, cache / "snapshots" / "abc"))


def link(tiny_model: Path, tmp_path: Path, approved: Path) -> Path:
    (tmp_path / "a link").symlink_to(tiny_model)
    return tmp_path / "a link"


def linked_file(tiny_model: Path, tmp_path: Path, approved: Path) -> Path:
    (tiny_model / "config.json").rename(tmp_path / "elsewhere.json")
    (tiny_model / "config.json").symlink_to(tmp_path / "elsewhere.json")
    return tiny_model


def two_names(tiny_model: Path, tmp_path: Path, approved: Path) -> Path:
    shard = next(tiny_model.glob("*.safetensors"))
    os.link(shard, tmp_path / "second name")
    return tiny_model


@pytest.mark.parametrize("place", [hub, link, linked_file, two_names], ids=lambda place: place.__name__)
@pytest.mark.parametrize("low_space", [False, True], ids=["in-place", "low-space"])
def test_a_refused_place_names_a_command_that_works(
    planner, tiny_model, approved, tmp_path, everything, follow, monkeypatch, place, low_space
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    model = place(tiny_model, tmp_path, approved)
    before = everything(tmp_path)
    arguments = ["--in-place", *(["--low-space"] if low_space else [])]
    result = planner("apply", approved, "--model", model, *arguments)
    assert result.status == 7, result.err
    assert everything(tmp_path) == before
    out = follow(result)
    assert planner("verify", out).status == 0


def test_the_command_says_all_that_was_said(planner, tiny_model, proposed, tmp_path, follow):
    key, policy = shared_key_file(tmp_path / "a key"), tmp_path / "a policy.toml"
    policy.write_text("signed_approval = true\n")
    words = ["--model", tiny_model, "--policy", policy, "--approve", "all", "--sign", key]
    assert planner("review", proposed, *words).status == 0
    model = link(tiny_model, tmp_path, proposed)
    given = ["--policy", policy, "--approval-key", key, "--no-card"]
    out = follow(planner("apply", proposed, "--model", model, "--in-place", *given))
    assert (out / "README.md").read_bytes() == (tiny_model / "README.md").read_bytes()


def test_with_yes_and_a_receipt(planner, tiny_model, proposed, tmp_path, follow):
    assert planner("apply", proposed, "--model", tiny_model, "--yes", "--out", tmp_path / "first").status == 0
    receipt = tmp_path / "first" / ".planner" / "patches" / "0001" / "receipt.json"
    model = link(tiny_model, tmp_path, proposed)
    follow(planner("apply", proposed, "--model", model, "--in-place", "--yes", "--expect", receipt))


@pytest.mark.parametrize("portable", [False, True], ids=["plan", "patch"])
def test_a_folder_that_is_taken_or_not_ours(planner, tiny_model, approved, tmp_path, everything, follow, portable):
    what = approved
    if portable:
        assert planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "made").status == 0
        assert planner("export-patch", tmp_path / "made", "--out", tmp_path / "model.patch").status == 0
        what = tmp_path / "model.patch"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    (tmp_path / "hub" / "models--ann--tiny" / "snapshots").mkdir(parents=True)
    for out in (tmp_path / "taken", tmp_path / "hub" / "models--ann--tiny" / "snapshots" / "new"):
        before = everything(tmp_path)
        result = planner("apply", what, "--model", tiny_model, "--out", out)
        assert result.status in (2, 7), result.err
        assert everything(tmp_path) == before
        assert follow(result).parent == tmp_path


def test_a_pipe_is_no_plan(tmp_path, tiny_model):
    """It is looked at without being opened: that would wait, or take from it what the next reader needs."""
    from planner.transaction import is_portable

    os.mkfifo(tmp_path / "pipe")
    assert not is_portable(tmp_path / "pipe")
    assert not is_portable(Path("/dev/null"))
