"""Whatever a config.json or a list of shapes holds, a map comes back: unknown, with a reason, unless all of it fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.families import FAMILIES
from models.tiny import Tiny, build

from planner.architecture import map_of
from planner.architecture.families import families

ONE_OF_EACH = {family.model_type: key for key, family in reversed(FAMILIES.items()) if family.model_type in families()}
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.sampled_from([0, -1, 1 << 23, 1 << 24, 1 << 62, 10**400, 1e308, float("nan"), float("inf"), -0.5]),
        st.floats(),
        st.text(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def shapes_of(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in tiny.tensors.items()}


@pytest.mark.parametrize("model_type", sorted(ONE_OF_EACH))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_hostile_configuration_never_raises(model_type: str, data: st.DataObject) -> None:
    tiny = build(ONE_OF_EACH[model_type])
    keys = st.sampled_from(sorted(set(tiny.config) - {"model_type"}))
    config = tiny.config | data.draw(st.dictionaries(keys, JUNK, min_size=1, max_size=3))
    found = map_of(config, shapes_of(tiny))
    assert found.known or found.reason


@pytest.mark.parametrize("model_type", sorted(ONE_OF_EACH))
def test_one_hostile_value_in_every_key(model_type: str) -> None:
    tiny = build(ONE_OF_EACH[model_type])
    shapes = shapes_of(tiny)
    for key in sorted(set(tiny.config) - {"model_type"}):
        for value in ("x", -3, 0, 1 << 24, 10**400, float("nan"), [[{"a": []}]], {"a": {"b": [None]}}, 2.5, True):
            found = map_of(tiny.config | {key: value}, shapes)
            assert found.known or found.reason


@pytest.mark.parametrize("model_type", sorted(ONE_OF_EACH))
def test_sizes_are_held_against_the_tensors_before_memory_is_asked_for(model_type: str) -> None:
    """With every whole number of the configuration at once very large, no list of rows could be made."""
    tiny = build(ONE_OF_EACH[model_type])
    counts = {key for key, value in tiny.config.items() if isinstance(value, int) and not isinstance(value, bool)}
    for kept in ({"hidden_size", "d_model", "n_embd"}, set()):
        huge = dict.fromkeys(counts - kept, 1 << 24)
        assert not map_of(tiny.config | {"head_dim": 1 << 24} | huge, shapes_of(tiny)).known


@pytest.mark.parametrize("model_type", sorted(ONE_OF_EACH))
def test_a_missing_or_misshapen_tensor_makes_the_map_unknown(model_type: str) -> None:
    tiny = build(ONE_OF_EACH[model_type])
    shapes = shapes_of(tiny)
    needed = map_of(tiny.config, shapes)
    assert needed.known, needed.reason
    rows_free = {needed.embedding, needed.head}
    for name, shape in shapes.items():
        without = {other: size for other, size in shapes.items() if other != name}
        if not (needed.tied and name == needed.head):
            assert not map_of(tiny.config, without).known, name
        for wrong in ((), (*shape, 1), (*shape[:-1], shape[-1] + 1), (0,), (1 << 40, 1 << 40)):
            found = map_of(tiny.config, shapes | {name: wrong})
            assert not found.known or (name in rows_free and wrong[1:] == shape[1:]), (name, wrong)
            assert found.known or found.reason
