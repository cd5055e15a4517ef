"""An approval holds for one plan, one checkpoint, one policy and the decisions as they were taken; for nothing else.

Every field of each is changed in turn, and every byte of the file: what then is still approved must be what was.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.errors import PlanInvalid, PlannerError, PlanNotApproved, SignatureRefused
from planner.plan import (
    Modification,
    Plan,
    Policy,
    approval_statement,
    approved,
    decide,
    plan_digest,
    policy_digest,
    read_plan,
    reopened,
    sign_approval,
    undecided,
    verify_approval,
    write_plan,
)
from planner.signing import hmac_key

POLICY = Policy(protected=("lm_head.*",), largest_relative_change=0.5, refuse=("void", "ignored"))
NAMES = ("a", "b", "c")


def unreviewed() -> Plan:
    return Plan.model_validate(
        {
            "schema": "planner/plan@1",
            "id": "p",
            "created": "2026-01-01T00:00:00Z",
            "goal": "clearer",
            "checkpoint": {"name": "tiny", "fingerprint": "blake3:" + "0" * 64},
            "analyst": {"kind": "human", "usage": {"input_tokens": 3}},
            "evidence": {"file": "evidence.json", "id": "blake3:" + "1" * 64},
            "note": "a note",
            "modifications": [
                {
                    "id": name,
                    "target": {"layers": "0", "roles": ["up_proj"]},
                    "operation": {"kind": "scale", "factor": 2},
                    "reasoning": "because",
                    "confidence": 0.5,
                    "expected_impact": "something",
                    "evidence": [{"tensor": "t", "fact": "std", "value": 1.5}],
                }
                for name in NAMES
            ],
            "ungrounded": ["a"],
            "agreement": {"a": {"of": 2, "by": ["x"], "values": ["1"]}},
            "disagreements": ["one"],
        }
    )


def reviewed(**more: Any) -> Plan:
    plan = decide(unreviewed(), ["a", "c"], "approved", reviewer="Ada", comment="fine", policy=POLICY, **more)
    return decide(plan, ["b"], "rejected", reviewer="Bob", comment="too bold", **more)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(secrets.token_bytes(32))
    path.chmod(0o600)
    return path


def ids(plan: Plan, policy: Policy | None = None, **given: Any) -> list[str]:
    return [modification.id for modification in approved(plan, policy, **given)]


def test_what_was_approved_is_approved_after_a_trip_through_a_file() -> None:
    plan = reviewed()
    assert plan.policy == POLICY, "a review records its policy"
    assert ids(plan) == ids(plan, POLICY) == ids(read_plan(write_plan(plan).decode()), POLICY) == ["a", "c"]
    assert undecided(plan) == ()
    assert {decision.how for decision in plan.review.values()} == {"review"}
    assert {decision.how for decision in reviewed(how="yes").review.values()} == {"yes"}
    assert verify_approval(plan) is None


# -- every field -------------------------------------------------------------------------------------------------------


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a document that is no object: numbers, words, lists as wholes and piece by piece."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, *path, name)
        return
    yield path
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, *path, number)


def changed(value: Any) -> Iterator[Any]:
    """Other values of the same kind, some of which the field may take."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value / 2, value * (1 + 1e-15))
    elif isinstance(value, str):
        yield from (value + "x", value[:-1], value[:-1] + ("0" if value[-1:] != "0" else "1"))
        yield from {"approved": ["rejected"], "rejected": ["approved"], "review": ["yes", "rule"]}.get(value, [])
    elif isinstance(value, list):
        yield from (value[:-1], value[::-1], value + value[-1:], [])
    elif value is None:
        yield from ("x", 1, 1.5, [], "blake3:" + "2" * 64)
    yield None


def edits(document: dict[str, Any], *roots: str) -> Iterator[tuple[str, Plan]]:
    """Every plan that reads well and differs from the document in one field below the roots, and what was edited."""
    for root in roots:
        for path in leaves(document[root], root):
            place = document
            for step in path[:-1]:
                place = place[step]
            before = place[path[-1]]
            for value in changed(before):
                if value == before:
                    continue
                place[path[-1]] = value
                try:
                    yield ".".join(map(str, path)), read_plan(json.dumps(document))
                except PlanInvalid:
                    pass
                finally:
                    place[path[-1]] = before


def all_refused(found: Iterator[tuple[str, Plan]], policy: Policy | None, *words: str) -> set[str]:
    """Which fields were edited; each edit is refused with one of those words."""
    fields = set()
    for field, plan in found:
        with pytest.raises(PlanNotApproved) as caught:
            approved(plan, policy)
        assert any(word in caught.value.message for word in words), (field, caught.value.message)
        assert "planner review" in caught.value.hint
        assert undecided(plan, policy), field
        fields.add(field)
    return fields


@pytest.mark.parametrize("policy", [None, POLICY], ids=["recorded", "given"])
def test_an_edit_of_any_field_of_the_plan_takes_every_approval_away(policy: Policy | None) -> None:
    plan = reviewed()
    document = json.loads(write_plan(plan))
    roots = [name for name in document if name not in ("schema", "review", "policy", "approval")]
    words = ("edited after the review", "reviewed for the checkpoint", "seal")
    fields = all_refused(edits(document, *roots), policy, *words)
    assert {field.partition(".")[0] for field in fields} == set(roots)
    assert {"checkpoint.fingerprint", "modifications.1.operation.factor", "analyst.usage.input_tokens"} <= fields


def test_an_edit_is_named() -> None:
    def said(**fields: Any) -> str:
        with pytest.raises(PlanNotApproved) as caught:
            approved(reviewed().model_copy(update=fields))
        return caught.value.message

    plan = reviewed()
    first, second, third = plan.modifications
    bolder = second.model_copy(update={"confidence": 0.9})
    assert said(modifications=(first, bolder, third)) == "edited after the review: b"
    assert "their number or order, or another field" in said(modifications=(second, first, third))
    assert "their number or order, or another field" in said(goal="darker")
    assert "their number or order, or another field" in said(
        modifications=(*plan.modifications, first.model_copy(update={"id": "d"}))
    )
    other = plan.checkpoint.model_copy(update={"fingerprint": "blake3:" + "f" * 64})
    assert (
        said(checkpoint=other)
        == "reviewed for the checkpoint blake3:000000000000; the plan now names blake3:ffffffffffff"
    )


def test_an_edit_of_any_field_of_any_decision_takes_it_away() -> None:
    document = json.loads(write_plan(reviewed()))
    fields = all_refused(edits(document, "review"), None, "was edited after it was taken", "has no seal")
    assert len(fields) == len(NAMES) * 10
    for taken, onto in (("a", "b"), ("a", "c")):  # a decision is on one modification
        moved = json.loads(json.dumps(document))
        moved["review"][onto] = moved["review"][taken]
        all_refused(iter([("moved", read_plan(json.dumps(moved)))]), None, f"the decision on {onto} was edited")
    for name in NAMES:
        missing = json.loads(json.dumps(document))
        del missing["review"][name]
        all_refused(iter([("missing", read_plan(json.dumps(missing)))]), None, f"not reviewed: {name}")


OTHER_POLICIES = {
    "operations": ("scale",),
    "protected": ("lm_head.*", "model.norm.*"),
    "largest_relative_change": 0.5000000000000001,
    "largest_total_change": 0.9,
    "largest_cumulative_change": 2.0,
    "most_modifications": 101,
    "most_tensors": 1,
    "refuse": ("ignored",),
    "allow_void": True,
    "signed_approval": True,
    "allowed_signers": ("alice ssh-ed25519 AAAA",),
}


def test_every_field_of_the_policy_is_tried() -> None:
    assert list(OTHER_POLICIES) == list(Policy.model_fields)


@pytest.mark.parametrize("field", OTHER_POLICIES)
def test_another_policy_is_refused_and_opens_every_decision_again(field: str) -> None:
    plan = reviewed()
    values = POLICY.model_dump() | {field: OTHER_POLICIES[field]}
    other = Policy.model_validate(values | ({"refuse": ("ignored",)} if field == "allow_void" else {}))
    with pytest.raises(PlanNotApproved, match="reviewed under the policy") as caught:
        approved(plan, other)
    for digest in (policy_digest(POLICY), policy_digest(other)):
        assert digest[:19] in caught.value.message
    assert f"which differ in {field}" in caught.value.message.replace("refuse, allow_void", "allow_void")
    assert "--policy FILE" in caught.value.hint
    assert set(reopened(plan, other).values()) == {"reviewed under another policy"}
    assert [modification.id for modification in undecided(plan, other)] == list(NAMES)

    edited = plan.model_copy(update={"policy": other})  # a plan that chooses its own limits
    with pytest.raises(PlanNotApproved, match="reviewed under the policy"):
        approved(edited)
    with pytest.raises(PlanNotApproved, match="the policy that the plan records"):
        approved(edited, POLICY)

    again = decide(plan, ["a", "b"], "approved", reviewer="Ada", policy=other)
    assert [modification.id for modification in undecided(again)] == ["c"]
    with pytest.raises(PlanNotApproved, match="reviewed under the policy"):
        approved(again, other)


def test_a_policy_is_what_it_limits_not_how_it_is_written() -> None:
    plan = decide(unreviewed(), NAMES, "approved", reviewer="Ada")
    assert ids(plan, Policy(most_modifications=100, protected=(), signed_approval=False)) == list(NAMES)
    assert policy_digest(Policy(allow_void=True)) == policy_digest(Policy(allow_void=True, refuse=()))
    for policy in (Policy(allow_void=True), Policy(allow_void=True, refuse=("ignored",)), POLICY):
        plan = decide(unreviewed(), NAMES, "approved", reviewer="Ada", policy=policy)
        assert ids(read_plan(write_plan(plan).decode()), policy) == list(NAMES)


# -- every byte --------------------------------------------------------------------------------------------------------


def test_a_flip_of_any_bit_is_refused_or_means_the_same(key: Path) -> None:
    two = unreviewed().modifications[:2]
    short = unreviewed().model_copy(update={"modifications": two, "policy": Policy(operations=("scale",))})
    plan = decide(decide(short, ["a"], "approved", reviewer="Ada"), ["b"], "rejected", reviewer="Bob")
    plan = sign_approval(plan, key)
    secret, text = hmac_key(key), plan.model_dump_json().encode()
    chosen = approved(plan, approval_key=secret)
    outcomes = {"unreadable": 0, "refused": 0, "the same": 0}
    for place in range(len(text)):
        for bit in range(8):
            flipped = bytearray(text)
            flipped[place] ^= 1 << bit
            outcome, read, found = judged(bytes(flipped), secret)
            outcomes[outcome] += 1
            assert outcome != "the same" or (read, found) == (plan, chosen), (place, bit)
    assert sum(outcomes.values()) == 8 * len(text)
    assert outcomes["refused"] > len(text), "much of a plan stays readable"


@given(st.data())
@settings(max_examples=200)
def test_any_other_edit_of_the_text_is_refused_or_means_the_same(data: st.DataObject) -> None:
    """Pieces cut out, put in or doubled anywhere; blanks and other spellings of a number change nothing."""
    plan = reviewed()
    text = write_plan(plan)
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, min(len(text), first + 40)))
    new = data.draw(st.sampled_from([b"", b" ", b"0", b"1", b"x", text[first:last] * 2]) | st.binary(max_size=4))
    outcome, read, found = judged(text[:first] + new + text[last:], None)
    assert outcome != "the same" or (read, found) == (plan, approved(plan))


def test_blanks_change_nothing() -> None:
    plan = reviewed()
    text = json.dumps(json.loads(write_plan(plan)), sort_keys=True).replace("0.5", "0.50").encode()
    assert judged(text, None) == ("the same", plan, approved(plan))


def judged(text: bytes, secret: bytes | None) -> tuple[str, Plan | None, tuple[Modification, ...]]:
    """What becomes of a plan file."""
    try:
        read = read_plan(text.decode())
    except (UnicodeDecodeError, PlanInvalid):
        return "unreadable", None, ()
    try:
        return "the same", read, approved(read, approval_key=secret)
    except (PlanNotApproved, SignatureRefused):
        return "refused", read, ()


# -- signatures --------------------------------------------------------------------------------------------------------


def test_a_signature_covers_the_decisions_and_the_next_decision_drops_it(key: Path) -> None:
    plan = sign_approval(reviewed(), key)
    secret = hmac_key(key)
    assert plan.approval
    assert verify_approval(plan, approval_key=secret) == plan.approval.signer
    assert ids(plan, approval_key=secret) == ["a", "c"]
    again = decide(plan, ["a"], "approved", reviewer="Ada", comment="fine")
    assert again.approval is None
    assert decide(plan, [], "approved", reviewer="Ada") is plan, "no decision, nothing dropped"
    kept = again.model_copy(update={"approval": plan.approval})  # the old signature under new decisions
    if again.review != plan.review:  # unless it was taken within the same second
        with pytest.raises(SignatureRefused, match="not of this"):
            approved(kept, approval_key=secret)
    unlike = decide(plan, ["b"], "approved", reviewer="Eve").model_copy(update={"approval": plan.approval})
    with pytest.raises(SignatureRefused, match="not of this"):
        approved(unlike, approval_key=secret)


def test_the_statement_that_is_signed_names_all_that_it_binds() -> None:
    plan = reviewed()
    said = json.loads(approval_statement(plan))
    assert said == {
        "schema": "planner/approval@1",
        "plan": plan_digest(plan),
        "fingerprint": plan.checkpoint.fingerprint,
        "policy": policy_digest(POLICY),
        "decisions": [
            {"modification": name, "decision": decision.decision, "how": "review", "seal": decision.seal}
            for name, decision in sorted(plan.review.items())
        ],
        "reviewers": ["Ada", "Bob"],
    }


def test_what_is_not_decided_is_not_signed(key: Path) -> None:
    with pytest.raises(PlanNotApproved, match="not reviewed: b, c"):
        sign_approval(decide(unreviewed(), ["a"], "approved", reviewer="Ada"), key)


def signed_policy(*signers: str) -> Policy:
    return Policy(signed_approval=True, allowed_signers=signers)


def decided(policy: Policy) -> Plan:
    return decide(unreviewed(), NAMES, "approved", reviewer="Ada", policy=policy)


def test_a_policy_that_asks_for_a_signature_gets_one(key: Path, tmp_path: Path) -> None:
    plan = decided(signed_policy())
    with pytest.raises(SignatureRefused, match="is not signed") as caught:
        approved(plan)
    assert "--sign KEY" in caught.value.hint
    assert caught.value.exit_status == 3
    signed = sign_approval(plan, key)
    with pytest.raises(SignatureRefused, match="no key was given"):
        approved(signed)
    with pytest.raises(SignatureRefused, match="says that it is by the key"):
        approved(signed, approval_key=secrets.token_bytes(32))
    assert ids(signed, approval_key=hmac_key(key)) == list(NAMES)
    with pytest.raises(SignatureRefused, match="no key was given"):
        approved(signed)
    forged = signed.model_copy(update={"approval": None})
    with pytest.raises(SignatureRefused):
        approved(forged)


def test_the_policy_says_which_shared_key(key: Path) -> None:
    secret = hmac_key(key)
    other = sign_approval(decided(signed_policy("hmac-sha256:" + "0" * 32)), key)
    with pytest.raises(SignatureRefused, match="which is not allowed to"):
        approved(other, approval_key=secret)
    assert other.approval
    assert ids(sign_approval(decided(signed_policy(other.approval.signer)), key), approval_key=secret) == list(NAMES)


def test_a_signature_that_nobody_asked_for_must_still_be_right(key: Path) -> None:
    plan = sign_approval(decided(Policy()), key)
    assert plan.approval
    broken = plan.model_copy(update={"approval": plan.approval.model_copy(update={"value": "0" * 64})})
    with pytest.raises(SignatureRefused):
        approved(broken, approval_key=hmac_key(key))
    assert ids(broken) == list(NAMES), "without the key nobody can tell"
    assert str(verify_approval(broken)).endswith("(not verified)")


@pytest.mark.parametrize("line", ["", " ", "a\nb ssh-ed25519 AAAA", "a\x00"])
def test_a_line_of_allowed_signers_is_one_line(line: str) -> None:
    with pytest.raises(ValidationError, match="is not one line"):
        Policy(allowed_signers=(line,))


def test_every_refusal_is_one_a_user_can_read() -> None:
    for refused in (PlanNotApproved, SignatureRefused):
        assert issubclass(refused, PlannerError)
        assert refused.exit_status == 3
