"""The policy file: what it may say, and what it says by default."""

from __future__ import annotations

import pytest

from planner.errors import PolicyInvalid
from planner.plan import Policy, read_policy


def test_an_empty_policy_is_the_default_one() -> None:
    assert read_policy("") == Policy()
    assert Policy().operations == ("scale", "shift", "clamp", "zero")
    assert not Policy().protects("model.norm.weight")


def test_every_field_is_read() -> None:
    policy = read_policy(
        'operations = ["scale"]\nprotected = ["*.embed_tokens.*", "lm_head.weight"]\n'
        "largest_relative_change = 0.25\nmost_modifications = 7\n"
    )
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
        ('most_modifications = 0\nprotected = "x"', "protected: Input should be a valid tuple"),
    ],
)
def test_a_policy_that_makes_no_sense_is_wrong_usage(text: str, said: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        read_policy(text)
    assert said in caught.value.message
    assert "largest_relative_change" in caught.value.hint
    assert caught.value.exit_status == 2
