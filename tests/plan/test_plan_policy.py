"""The policy file: what it may say, and what it says by default."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from planner.effects.types import Effect as CheckedEffect
from planner.errors import PolicyInvalid
from planner.operations import OPERATIONS
from planner.plan import Effect, Policy, policy_as_toml, read_policy


def test_an_empty_policy_is_the_default_one() -> None:
    assert read_policy("") == Policy()
    assert Policy().operations == tuple(OPERATIONS)
    assert Policy().most_tensors == 2000
    assert Policy().largest_total_change == 1
    assert not Policy().protects("model.norm.weight")


def test_every_field_is_read() -> None:
    policy = read_policy(
        'operations = ["scale"]\nprotected = ["*.embed_tokens.*", "lm_head.weight"]\n'
        "largest_relative_change = 0.25\nlargest_total_change = 0.1\nmost_modifications = 7\nmost_tensors = 9\n"
        'refuse = ["void", "invariant"]\nallow_void = false\n'
    )
    assert policy.largest_total_change == 0.1
    assert policy.most_tensors == 9
    assert policy.operations == ("scale",)
    assert policy.largest_relative_change == 0.25
    assert policy.most_modifications == 7
    assert policy.protects("model.embed_tokens.weight")
    assert policy.protects("lm_head.weight")
    assert not policy.protects("LM_HEAD.weight")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("operations = [", "not TOML"),
        ('operations = ["scale", "explode"]', "operations: Value error, no such operation: explode"),
        ("largest_relative_change = 0", "largest_relative_change: Input should be greater than 0"),
        ("largest_relative_change = nan", "largest_relative_change"),
        ("largest_relative_change = inf", "largest_relative_change: Input should be a finite number"),
        ("most_modifications = 0", "most_modifications: Input should be greater than 0"),
        ("protect = []", "protect: Extra inputs are not permitted"),
        ("largest_total_change = -1", "largest_total_change: Input should be greater than 0"),
        ("most_tensors = 1.5", "most_tensors: Input should be a valid integer"),
        ('refuse = ["voided"]', "refuse[0]: Input should be 'void', 'ignored'"),
        ('refuse = ["void"]\nallow_void = true', "say one of the two"),
        ('most_modifications = 0\nprotected = "x"', "protected: Input should be a valid tuple"),
    ],
)
def test_a_policy_that_makes_no_sense_is_wrong_usage(text: str, said: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        read_policy(text)
    assert said in caught.value.message
    assert "largest_relative_change" in caught.value.hint
    assert caught.value.exit_status == 2


def test_void_modifications_are_refused_unless_somebody_allows_them() -> None:
    assert Policy().refuses("void")
    assert not Policy().refuses("void", allow_void=True)
    assert not Policy(allow_void=True).refuses("void")
    assert not Policy(refuse=()).refuses("void")
    assert not any(Policy().refuses(effect) for effect in get_args(Effect) if effect != "void")


def test_other_effects_are_refused_where_the_policy_says_so() -> None:
    strict = read_policy('refuse = ["void", "ignored", "invariant"]')
    assert [effect for effect in get_args(Effect) if strict.refuses(effect)] == ["void", "ignored", "invariant"]
    assert strict.refuses("ignored", allow_void=True)
    lenient = read_policy('refuse = ["invariant"]\nallow_void = true')
    assert [effect for effect in get_args(Effect) if lenient.refuses(effect)] == ["invariant"]


def test_the_effects_of_a_policy_are_those_that_a_check_finds() -> None:
    assert get_args(Effect) == get_args(CheckedEffect)


def test_the_default_policy_is_shown_whole() -> None:
    shown = policy_as_toml(Policy())
    assert [line.partition(" = ")[0] for line in shown.splitlines()] == [
        name
        for name in Policy.model_fields
        if name != "largest_cumulative_change"  # it has no value of its own
    ]
    assert 'refuse = ["void"]' in shown
    assert "allow_void = false" in shown
    assert read_policy(shown) == Policy()


_POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@given(
    st.builds(
        Policy,
        operations=st.lists(st.sampled_from(list(OPERATIONS))).map(tuple),
        protected=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
        largest_relative_change=_POSITIVE,
        largest_total_change=_POSITIVE,
        most_modifications=st.integers(1, 2**62),
        most_tensors=st.integers(1, 2**62),
        refuse=st.lists(st.sampled_from(["ignored", "invariant", "unknown"])).map(tuple),
        allow_void=st.booleans(),
    )
)
@example(Policy(protected=('"\\', "\x7f\x00\n", "é🙂", "#"), largest_relative_change=1e16, largest_total_change=5e-324))
def test_a_policy_that_is_shown_can_be_read_again(policy: Policy) -> None:
    assert read_policy(policy_as_toml(policy)) == policy
