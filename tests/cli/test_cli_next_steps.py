"""Hints and next steps that can be followed as they stand: keys, signatures, damaged patches, leftovers."""

from __future__ import annotations

import json
import shlex

import pytest
from builders import a_plan, random_tensor, write_checkpoint
from key_files import shared_key_file, ssh_key_file

from planner.plan import write_plan


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model", {"a.weight": ("BF16", random_tensor((8, 8)))})


@pytest.fixture
def plan(model, tmp_path):
    made = a_plan(model, {"target": {"tensors": ["a.weight"]}, "operation": {"kind": "scale", "factor": 1.5}})
    path = tmp_path / "plan.json"
    path.write_bytes(write_plan(made))
    return path


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "signed.toml"
    path.write_text("signed_approval = true\n")
    return path


def next_of(result):
    return next(line for line in result.err.splitlines() if line.startswith("next"))


# -- keys and signatures -----------------------------------------------------------------------------------------------


def test_the_step_after_a_signature_by_a_shared_key_works_as_it_stands(planner, model, plan, policy, tmp_path):
    key = shared_key_file(tmp_path / "key")
    given = ["--model", model, "--policy", policy, "--approve", "all", "--sign", key]
    step = next_of(planner("review", plan, *given))
    without = planner("apply", plan, "--model", model, "--out", tmp_path / "out")
    assert without.status == 3
    assert "--approval-key FILE" in without.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    words = shlex.split(step.partition(": ")[2].replace("DIR", str(tmp_path / "out")))
    assert planner(*words[1:]).status == 0


def test_where_a_signature_is_asked_for_the_next_step_is_to_sign(planner, model, plan, policy, tmp_path):
    step = next_of(planner("review", plan, "--model", model, "--policy", policy, "--approve", "all"))
    key = shared_key_file(tmp_path / "key")
    words = shlex.split(step.partition(": ")[2].replace("KEY", str(key)))
    result = planner(*words[1:])
    assert result.status == 0, result.err
    assert "planner apply" in next_of(result)


@pytest.mark.parametrize("kind", ["missing", "short", "a public key"])
def test_a_key_that_cannot_sign_leaves_the_plan_as_it_was(planner, model, plan, tmp_path, kind):
    key = tmp_path / "nosuchkey"
    if kind == "short":
        shared_key_file(key, b"short")
    if kind == "a public key":
        private = ssh_key_file(tmp_path / "ann")
        private.unlink()
        key = private.with_suffix(".pub")
    before = plan.read_bytes()
    result = planner("review", plan, "--model", model, "--approve", "all", "--sign", key)
    assert result.status == 2
    assert "signing-key-unusable" in result.err
    assert result.out == "", "nothing is said to be approved"
    assert plan.read_bytes() == before


# -- damaged patches ---------------------------------------------------------------------------------------------------


@pytest.fixture
def patch(planner, model, plan, tmp_path):
    assert planner("apply", plan, "--model", model, "--out", tmp_path / "patched", "--yes").status == 0
    path = tmp_path / "some.patch"
    assert planner("export-patch", tmp_path / "patched", "--out", path).status == 0
    return path


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :]


def damage(content):
    after = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["patch"]["data_offsets"][0]
    start = 8 + int.from_bytes(content[:8], "little") + after
    digest = content.index(b'"fingerprint_after":"blake3:', start) + len(b'"fingerprint_after":"blake3:')
    other = b"0" if content[digest : digest + 1] != b"0" else b"1"
    return {
        "empty": b"",
        "its beginning alone": content[:5],
        "half of it": content[: len(content) // 2],
        "another length of the head": flipped(content, 0),
        "no brace": flipped(content, 8),
        "a byte of the names": flipped(content, 12),
        "a byte of the head": flipped(content, start + 5),
        "the last byte": flipped(content, len(content) - 1),
        "another result": content[:digest] + other + content[digest + 1 :],
    }


def test_every_damage_is_called_damage_and_changes_nothing(planner, model, patch, tmp_path):
    for kind, content in damage(patch.read_bytes()).items():
        bad = tmp_path / "bad.patch"
        bad.write_bytes(content)
        result = planner("apply", bad, "--model", model, "--out", tmp_path / "out")
        error, hint = result.err.splitlines()[-2:]
        assert result.status == 3, kind
        assert error.startswith("error[patch-unusable]: the patch is damaged, or is none: "), (kind, error)
        assert hint.startswith("hint: fetch it again"), kind
        assert "receipt" not in result.err, kind
        assert not (tmp_path / "out").exists(), kind


def test_another_base_is_still_called_another_base(planner, patch, tmp_path):
    other = write_checkpoint(tmp_path / "other", {"a.weight": ("BF16", random_tensor((8, 8), seed=5))})
    result = planner("apply", patch, "--model", other, "--out", tmp_path / "out")
    assert result.status == 4


def test_a_signature_says_that_it_has_to_travel(planner, patch, tmp_path):
    key = shared_key_file(tmp_path / "key")
    result = planner("export-patch", tmp_path / "patched", "--out", tmp_path / "two.patch", "--sign", key)
    assert "two.patch.sig; it has to travel with the patch" in result.out
    refused = planner("apply", tmp_path / "two.patch", "--model", tmp_path / "model", "--out", tmp_path / "out")
    assert refused.status == 3
    assert "--approval-key FILE" in refused.err.splitlines()[-1]


# -- who approved ------------------------------------------------------------------------------------------------------


def test_the_log_names_who_approved_also_where_it_is_who_applied(planner, model, plan, policy, tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    key = shared_key_file(tmp_path / "key")
    planner("review", plan, "--model", model, "--policy", policy, "--approve", "all", "--sign", key)
    given = ["--model", model, "--in-place", "--approval-key", key]
    assert planner("apply", plan, *given).status == 0
    row = next(line for line in planner("log", model).out.splitlines() if "applied 1" in line)
    assert row.count("ann") == 2
    assert "ann, signed" in row


def test_the_log_says_that_the_ledger_was_edited(planner, model, plan):
    assert planner("apply", plan, "--model", model, "--in-place", "--yes").status == 0
    assert "DAMAGED" not in planner("log", model).err
    assert planner("log", model, "--json").json["seal_holds"] is True
    path = model / ".planner" / "ledger.json"
    path.write_text(path.read_text().replace('"goal": "a test"', '"goal": "another"'))
    for more in ([], ["--patch", "1"], ["--json"]):
        assert "DAMAGED: the ledger is not as it was written" in planner("log", model, *more).err
    assert planner("log", model, "--json").json["seal_holds"] is False


# -- leftovers ---------------------------------------------------------------------------------------------------------


def test_recover_of_the_wrong_folder_names_the_right_one(planner, model, tmp_path):
    left = tmp_path / ".o.planner-stage-0123abcd"
    left.mkdir()
    result = planner("recover", model)
    assert result.status == 0
    assert "is whole" in result.out
    told = next(line for line in result.err.splitlines() if line.startswith("beside it: .o.planner-stage-0123abcd"))
    words = shlex.split(told.split("`")[1])
    assert planner(*words[1:]).status == 0
    assert not left.exists()
    assert "beside it" not in planner("recover", model).err


@pytest.mark.parametrize("lock", ["of a process at work", "of a process that is gone"])
def test_what_is_in_use_is_no_leftover(planner, model, tmp_path, lock):
    from dataclasses import asdict, replace

    from planner.fsio.locking import Holder

    (tmp_path / ".o.planner-stage-0123abcd").mkdir()
    holder = Holder.here()
    if lock == "of a process that is gone":
        holder = replace(holder, began="1")
    (tmp_path / ".o.planner-lock").write_text(json.dumps(asdict(holder)))
    told = planner("recover", model).err
    assert ("beside it: .o.planner-lock, .o.planner-stage-0123abcd; " in told) == (lock == "of a process that is gone")


def test_recover_of_a_folder_that_never_was_says_so(planner, tmp_path):
    result = planner("recover", tmp_path / "nosuch")
    assert result.status == 0
    assert result.out == f"there is no folder {tmp_path / 'nosuch'}, and nothing of it was left\n"
    (tmp_path / ".out.planner-stage-0123abcd").mkdir()
    assert "was never written" in planner("recover", tmp_path / "out").out


# -- the card ----------------------------------------------------------------------------------------------------------
