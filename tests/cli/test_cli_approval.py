"""Approval from end to end: what was reviewed is applied, under the limits of its review; nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from key_files import allowed_line, shared_key_file, ssh_key_file

from planner.plan import read_plan


def refused(result, status: int, code: str, *words: str) -> None:
    """The command was refused, with a reason and what to do."""
    lines = result.err.splitlines()
    assert result.status == status, result.err
    assert any(line.startswith(f"error[{code}]: ") for line in lines), result.err
    assert lines[-1].startswith("hint: ")
    for word in words:
        assert word in result.err


@pytest.fixture
def review(planner: Callable[..., Any], proposed: Path, tiny_model: Path) -> Callable[..., Any]:
    """`planner review` of the proposed plan by ann."""

    def run(*arguments: object) -> Any:
        return planner("review", proposed, "--model", tiny_model, "--reviewer", "ann", *arguments)

    return run


@pytest.fixture
def apply(
    planner: Callable[..., Any], proposed: Path, tiny_model: Path, tmp_path: Path, everything: Callable[..., Any]
) -> Callable[..., Any]:
    """`planner apply` of the plan to a new folder, which is not there afterwards if that was refused."""

    def run(*arguments: object) -> Any:
        before = everything(tmp_path)
        result = planner("apply", proposed, "--model", tiny_model, "--out", tmp_path / "out", *arguments)
        if result.status:
            assert everything(tmp_path) == before, "a refusal leaves nothing"
        return result

    return run


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., Path]:
    """A policy file from its lines."""

    def write(*lines: str, name: str = "policy.toml") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def edit(path: Path, *steps: Any) -> None:
    """Replace one value of a JSON file by hand."""
    *places, last, value = steps
    document = json.loads(path.read_text())
    place = document
    for step in places:
        place = place[step]
    place[last] = value
    path.write_text(json.dumps(document))


# -- policy ------------------------------------------------------------------------------------------------------------


def test_the_policy_of_the_review_is_that_of_apply(review, apply, policy, proposed):
    strict = policy("largest_relative_change = 0.9", "most_tensors = 50")
    said = review("--policy", strict, "--approve", "all").err
    assert "limits, policy blake3:" in said
    assert "changes by at most 0.9 of its norm" in said
    other = policy("largest_relative_change = 0.95", name="other.toml")
    refused(apply("--policy", other), 3, "plan-not-approved", "differ in largest_relative_change, most_tensors")
    assert apply().status == 0, "recorded in the plan, it need not be given again"


def test_a_plan_that_widens_its_own_limits_is_refused(review, apply, proposed):
    assert review("--approve", "all").status == 0
    edit(proposed, "policy", "largest_relative_change", 9.0)
    refused(apply(), 3, "plan-not-approved", "reviewed under the policy blake3:")


def test_the_operators_policy_stands_above_the_plans(review, apply, policy, monkeypatch, proposed, planner, tiny_model):
    assert review("--approve", "all", "--policy", policy("largest_relative_change = 5.0")).status == 0
    operators = policy('protected = ["*.layers.5.*"]', name="operators.toml")
    monkeypatch.setenv("PLANNER_POLICY", str(operators))
    refused(apply(), 3, "plan-not-approved", "which differ in protected, largest_relative_change")
    assert planner("check", proposed, "--model", tiny_model).status == 3, "check knows it, too"
    assert "protected *.layers.5.*" in review("--approve", "all").err
    refused(apply(), 3, "plan-refused", "the policy protects")
    monkeypatch.setenv("PLANNER_POLICY", str(policy("most_tensors = 50", name="operators.toml")))
    assert review("--approve", "all").status == 0
    assert apply().status == 0
    monkeypatch.setenv("PLANNER_POLICY", "/no/such/policy.toml")
    refused(review("--approve", "all"), 2, "file-unreadable", "/no/such/policy.toml")


def test_another_policy_opens_the_review_again(review, policy):
    assert review("--approve", "m01,m03", "--reject", "m02").status == 0
    strict = policy("most_tensors = 50")
    shown = review("--policy", strict, "--approve", "m01").out
    assert "m01  approved by ann" in shown
    assert "m02  undecided: rejected by ann before, but reviewed under another policy" in shown
    assert "m03  undecided: approved by ann before" in shown
    shown = review("--approve", "all").out
    assert "m03  approved by ann" in shown
    assert "m02  undecided: rejected" in shown, "`all` overturns no rejection"
    assert "m02  approved by ann" in review("--approve", "m02").out, "its name does"


# -- edits -------------------------------------------------------------------------------------------------------------


def test_yes_says_what_it_approves_and_keeps_it_with_the_patch(review, apply, proposed, tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "karl")
    assert review("--approve", "m01").status == 0
    result = apply("--yes")
    assert result.status == 0, result.err
    assert "approved by --yes, in the name of karl: m02, m03" in result.err
    kept = read_plan((tmp_path / "out" / ".planner" / "patches" / "0001" / "plan.json").read_text())
    assert {name: (taken.how, taken.reviewer) for name, taken in kept.review.items()} == {
        "m01": ("review", "ann"),
        "m02": ("yes", "karl"),
        "m03": ("yes", "karl"),
    }


def test_yes_on_an_edited_plan_says_so_and_overturns_no_rejection(review, apply, proposed):
    assert review("--approve", "all").status == 0
    edit(proposed, "modifications", 1, "reasoning", "trust me")
    refused(apply(), 3, "plan-not-approved", "edited after the review: m02")
    said = apply("--yes")
    assert said.status == 0
    assert "m02 (edited after the review)" in said.err
    assert "m01 (the plan was edited after the review)" in said.err


def test_yes_overturns_no_rejection(review, apply, proposed):
    assert review("--approve", "m01,m03", "--reject", "m02").status == 0
    edit(proposed, "goal", "trust me")
    refused(apply("--yes"), 3, "plan-not-approved", "would overturn the rejection of m02 by ann")
    edit(proposed, "review", "m02", "decision", "approved")
    refused(apply(), 3, "plan-not-approved", "the decision on m02 was edited")


def test_a_decision_written_by_hand_is_none(apply, proposed):
    taken = {"decision": "approved", "reviewer": "ann", "at": "2026-01-01T00:00:00Z"}
    edit(proposed, "review", dict.fromkeys(("m01", "m02", "m03"), taken))
    refused(apply(), 3, "plan-not-approved", "the decision on m01, m02, m03 has no seal")


def test_an_approval_does_not_carry_over_to_another_model(review, apply, proposed):
    assert review("--approve", "all").status == 0
    edit(proposed, "checkpoint", "fingerprint", "blake3:" + "0" * 64)
    refused(apply(), 3, "plan-not-approved", "the plan now names blake3:000000000000")


# -- signatures --------------------------------------------------------------------------------------------------------


def test_a_review_signed_with_an_openssh_key(review, apply, policy, tmp_path, proposed, monkeypatch):
    ann, eve = ssh_key_file(tmp_path / "ann"), ssh_key_file(tmp_path / "eve")
    asked = policy("signed_approval = true", f"allowed_signers = ['{allowed_line(ann, 'ann@example.com')}']")
    assert review("--policy", asked, "--approve", "all").status == 0
    refused(apply(), 3, "signature-refused", "is not signed", "--sign KEY")
    refused(apply("--yes"), 3, "plan-not-approved", "--yes is not enough", "--sign KEY")
    assert review("--sign", eve).status == 0
    refused(apply(), 3, "signature-refused", "not allowed to", "SHA256:")
    monkeypatch.setenv("PLANNER_POLICY", str(policy("most_tensors = 50", name="weak.toml")))
    refused(apply(), 3, "plan-not-approved", "differ in most_tensors, signed_approval, allowed_signers")
    monkeypatch.delenv("PLANNER_POLICY")
    said = review("--sign", ann)
    assert said.status == 0
    assert "signed with SHA256:" in said.err
    signed = proposed.read_text()
    edit(proposed, "approval", "signer", "SHA256:" + "A" * 43)
    refused(apply(), 3, "signature-refused", "says that it is by the key SHA256:AAAA")
    proposed.write_text(signed)
    result = apply()
    assert result.status == 0, result.err
    assert "approval signed by ann@example.com" in result.err
    kept = read_plan((tmp_path / "out" / ".planner" / "patches" / "0001" / "plan.json").read_text())
    assert kept.approval == read_plan(signed).approval
    assert (tmp_path / "ann").read_text().splitlines()[2] not in signed + said.err + result.err


def test_a_review_signed_with_a_shared_key(review, apply, policy, tmp_path, proposed):
    key, other = shared_key_file(tmp_path / "key"), shared_key_file(tmp_path / "other")
    secret = key.read_bytes()
    assert review("--policy", policy("signed_approval = true"), "--approve", "all", "--sign", key).status == 0
    refused(apply(), 3, "signature-refused", "no key was given")
    refused(apply("--approval-key", other), 3, "signature-refused", "says that it is by the key hmac-sha256:")
    key.chmod(0o644)
    refused(apply("--approval-key", key), 2, "signing-key-unusable", "open to other users", f"chmod 600 {key}")
    key.chmod(0o600)
    short = shared_key_file(tmp_path / "short", b"short")
    refused(apply("--approval-key", short), 2, "signing-key-unusable", "at least 32")
    result = apply("--approval-key", key)
    assert result.status == 0, result.err
    assert "approval signed by hmac-sha256:" in result.err
    for text in (result.err, proposed.read_text()):
        assert secret.hex() not in text
        assert repr(secret) not in text


def test_the_next_decision_drops_the_signature_and_says_so(review, apply, tmp_path, proposed):
    key = shared_key_file(tmp_path / "key")
    assert review("--approve", "m01,m02", "--reject", "m03", "--sign", key).status == 0
    assert "approval signed by hmac-sha256:" in review().err + apply("--approval-key", key, "--json").err
    said = review("--approve", "m03")
    assert "the signature is dropped: sign again with --sign KEY" in said.err
    assert read_plan(proposed.read_text()).approval is None


def test_yes_drops_a_signature_that_does_not_cover_it(review, apply, tmp_path, proposed):
    assert review("--approve", "all", "--sign", shared_key_file(tmp_path / "key")).status == 0
    edit(proposed, "note", "edited")
    said = apply("--yes")
    assert said.status == 0, said.err
    assert "does not cover that; it is dropped" in said.err


def test_what_is_still_open_is_not_signed_but_the_decisions_are_kept(review, tmp_path, proposed):
    key = shared_key_file(tmp_path / "key")
    refused(review("--approve", "m01", "--sign", key), 3, "plan-not-approved", "not reviewed: m02, m03")
    plan = read_plan(proposed.read_text())
    assert list(plan.review) == ["m01"]
    assert plan.approval is None


def test_a_signature_nobody_asked_for_is_verified_as_far_as_it_can_be(review, apply, tmp_path, proposed):
    ann = ssh_key_file(tmp_path / "ann")
    assert review("--approve", "all", "--sign", ann).status == 0
    signed = json.loads(proposed.read_text())
    assert review("--approve", "m01", "--sign", ann).status == 0
    edit(proposed, "note", "edited")
    refused(apply(), 3, "plan-not-approved", "edited after the review")
    proposed.write_text(json.dumps(signed))
    assert review("--reject", "m01").status == 0
    edit(proposed, "approval", signed["approval"])  # the signature of another review
    refused(apply(), 3, "signature-refused", "not of this")
    proposed.write_text(json.dumps(signed))
    result = apply()
    assert result.status == 0, result.err
    assert "(whose key that is, the policy does not say)" in result.err


def test_a_run_by_a_rule_cannot_sign(planner, tiny_model, tmp_path, policy):
    path = tmp_path / "pipeline.toml"
    (tmp_path / "suite.toml").write_text('[[metric]]\nname = "s"\nkind = "text_loss"\ntext = "t.jsonl"\n')
    (tmp_path / "t.jsonl").write_text('{"text": "There was a dog."}\n{"text": "There was a cat."}\n')
    policy("signed_approval = true")
    path.write_text('model = "tiny-model"\ngoal = "g"\nsuite = "suite.toml"\npolicy = "policy.toml"\n')
    refused(planner("run", path, "--run-dir", tmp_path / "run"), 2, "pipeline-invalid", "which no rule can give")
