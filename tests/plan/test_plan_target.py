"""From a target to tensors: strictly, and never to a name that is not there."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.plan import Target, TargetUnmatched, resolve

NAMES = (
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}"
        for layer in range(12)
        for part in (
            "self_attn.q_proj.weight",
            "self_attn.q_proj.bias",
            "mlp.up_proj.weight",
            "input_layernorm.weight",
        )
    ),
    "model.norm.weight",
)


def _resolved(**target: object) -> tuple[str, ...]:
    return resolve(Target.model_validate(target), NAMES)


def _unmatched(**target: object) -> TargetUnmatched:
    with pytest.raises(TargetUnmatched) as caught:
        _resolved(**target)
    assert caught.value.hint
    return caught.value


def _layers(names: tuple[str, ...]) -> list[int]:
    return [int(name.split(".")[2]) for name in names]


def test_exact_names_come_in_the_order_of_the_checkpoint() -> None:
    assert _resolved(tensors=["model.norm.weight", "model.embed_tokens.weight"]) == (
        "model.embed_tokens.weight",
        "model.norm.weight",
    )


def test_signs_match_as_in_a_shell() -> None:
    assert len(_resolved(tensors=["*"])) == len(NAMES)
    assert _layers(_resolved(tensors=["model.layers.?.mlp.*"])) == list(range(10))
    assert _layers(_resolved(tensors=["model.layers.1[01].mlp.up_proj.weight"])) == [10, 11]
    assert _layers(_resolved(tensors=["*.[!0-8].mlp.up_proj.weight"])) == [9]
    assert "no tensor matches" in str(_unmatched(tensors=["MODEL.*"]))  # case counts


def test_braces_stand_for_each_of_their_numbers() -> None:
    assert _layers(_resolved(tensors=["model.layers.{10-11}.mlp.up_proj.weight"])) == [10, 11]
    assert _layers(_resolved(tensors=["model.layers.{1,3,5-7}.mlp.up_proj.weight"])) == [1, 3, 5, 6, 7]
    assert _layers(_resolved(tensors=["model.layers.{0-1}.*proj.weight"])) == [0, 0, 1, 1]
    assert _layers(_resolved(tensors=["model.layers.{1}{0-1}.mlp.up_proj.weight"])) == [10, 11]


@pytest.mark.parametrize("pattern", ["model.layers.{8-12}.mlp.up_proj.weight", "model.layers.{8-12}.*"])
def test_a_range_past_the_last_layer_is_an_error_and_not_a_shorter_range(pattern: str) -> None:
    assert "no tensor matches 'model.layers.12." in str(_unmatched(tensors=[pattern]))


def test_every_pattern_must_match() -> None:
    assert "'nothing.*'" in str(_unmatched(tensors=["*", "nothing.*"]))


def test_roles_and_layers_are_all_that_they_say() -> None:
    assert _layers(_resolved(roles=["q_proj"])) == list(range(12))  # the biases are a role of their own
    assert len(_resolved(roles=["q_proj", "q_proj.bias"])) == 24
    assert _resolved(roles=["embed_tokens"]) == ("model.embed_tokens.weight",)
    assert _layers(_resolved(roles=["up_proj"], layers="0, 2,10-11")) == [0, 2, 10, 11]
    assert len(_resolved(layers="4")) == 4
    assert "has the role 'gate_proj'" in str(_unmatched(roles=["up_proj", "gate_proj"]))
    error = _unmatched(layers="10-13")
    assert str(error) == "no layer 12, 13"
    assert error.hint == "layers here: 0-11"


def test_all_parts_must_hold_at_once() -> None:
    assert _resolved(tensors=["model.layers.*"], roles=["up_proj"], layers="3") == (
        "model.layers.3.mlp.up_proj.weight",
    )
    assert "no layer 3" in str(_unmatched(tensors=["model.layers.2.*"], layers="3"))
    assert "the role 'up_proj'" in str(_unmatched(tensors=["model.norm.weight"], roles=["up_proj"]))
    assert _unmatched(tensors=["model.norm.weight"], layers="0").hint == "no tensor here is in a layer"


def test_what_is_nearly_right_is_hinted_at() -> None:
    assert "model.layers.3.mlp.up_proj.weight" in _unmatched(tensors=["model.layers.3.mlp.upproj.weight"]).hint
    assert _unmatched(roles=["qproj"]).hint.startswith("nearest: q_proj")
    assert _unmatched(tensors=["zzz"]).hint.startswith("there are 50, such as model.embed_tokens.weight")


def test_a_name_that_looks_like_a_pattern_means_itself() -> None:
    names = ("a[0].weight", "a0.weight")
    assert resolve(Target(tensors=("a[0].weight",)), names) == ("a[0].weight",)
    assert resolve(Target(tensors=("a[0].weigh?",)), names) == ("a0.weight",)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({}, "names tensors, roles or layers"),
        ({"tensors": []}, "names tensors, roles or layers"),
        ({"tensors": [], "roles": []}, "names tensors, roles or layers"),
        ({"layers": ""}, "not a list of numbers"),
        ({"layers": "1-"}, "not a list of numbers"),
        ({"layers": "-1"}, "not a list of numbers"),
        ({"layers": "1.5"}, "not a list of numbers"),
        ({"layers": "all"}, "not a list of numbers"),
        ({"layers": "5-3"}, "runs backwards"),
        ({"layers": "0-999999"}, "too long"),
        ({"layers": "9" * 5000}, "digits"),
        ({"tensors": ["a{}"]}, "not a list of numbers"),
        ({"tensors": ["a{0-99999}{0-99999}"]}, "more than 100,000 names"),
        ({"tensors": ["a{0-60000}", "b{0-60000}"]}, "more than 100,000 names"),
        ({"tensors": ["a" * 2000]}, "at most 1,024 are read"),
        ({"elements": {"kind": "some"}, "layers": "1"}, "the kind is one of all"),
    ],
)
def test_targets_that_make_no_sense_are_refused(target: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Target.model_validate(target)


def test_a_target_made_to_fill_the_memory_is_refused_in_good_time() -> None:
    began = time.perf_counter()
    with pytest.raises(ValidationError):
        Target(tensors=("{0-9999}" * 100,))
    with pytest.raises(ValidationError):
        Target(tensors=tuple(f"{number}{{0-9999}}" for number in range(10_000)))
    assert time.perf_counter() - began < 5


def test_without_tensors_nothing_matches() -> None:
    with pytest.raises(TargetUnmatched, match="no layer 0"):
        resolve(Target(layers="0"), ())
    with pytest.raises(TargetUnmatched, match="no tensor matches"):
        resolve(Target(tensors=("*",)), ())


_PIECES = st.sampled_from(["model", "layers", ".", "0", "1", "11", "{0-1}", "{1,2}", "*", "?", "[01]", "up_proj", "q"])
_PATTERNS = st.lists(st.lists(_PIECES, min_size=1, max_size=6).map("".join), min_size=1, max_size=3)
_ROLES = st.lists(st.sampled_from(["up_proj", "q_proj", "q_proj.bias", "norm", "nonsense"]), min_size=1, max_size=2)
_LAYERS = st.builds(lambda first, more: f"{first}-{first + more}", st.integers(0, 13), st.integers(0, 5))


@given(
    st.none() | _PATTERNS,
    st.none() | _ROLES,
    st.none() | _LAYERS,
    st.lists(st.sampled_from(NAMES), unique=True) | st.lists(st.text(max_size=12), unique=True),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_asked_only_names_that_are_there_come_back(
    tensors: list[str] | None, roles: list[str] | None, layers: str | None, names: list[str]
) -> None:
    with contextlib.suppress(ValidationError, TargetUnmatched):
        found = resolve(Target.model_validate({"tensors": tensors, "roles": roles, "layers": layers}), names)
        assert found
        assert set(found) <= set(names)
        assert list(found) == [name for name in names if name in found]  # once each, in their order


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_names_resolve_to_themselves(names: list[str]) -> None:
    assert set(resolve(Target(tensors=tuple(names)), NAMES)) == set(names)
