"""Random plans: the strengths of the plan, elsewhere; values as they would be stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from planner.architecture import role_of
from planner.checkpoint import open_checkpoint
from planner.edits import combined, new_values, resolved, stored_values, surroundings_of
from planner.evaluation.rearranging import Rearrangement, Unarrangeable, _shuffled

LAYERS = 6


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Six layers of three matrices and a norm in bfloat16; nothing that runs."""
    tensors = {"model.embed_tokens.weight": ("BF16", random_tensor((40, 8), seed=90))}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes = {"self_attn.q_proj": (16, 8), "self_attn.o_proj": (8, 16), "mlp.down_proj": (8, 24)}
        for place, (name, shape) in enumerate(shapes.items()):
            tensors[f"{prefix}.{name}.weight"] = ("BF16", random_tensor(shape, seed=10 * layer + place))
        tensors[f"{prefix}.input_layernorm.weight"] = ("BF16", random_tensor((8,), seed=50 + layer))
    tensors["model.norm.weight"] = ("BF16", random_tensor((8,), seed=91))
    return write_checkpoint(tmp_path / "model", tensors)


def edits(model: Path, *modifications: dict):
    around = surroundings_of(open_checkpoint(model), model.parent)
    return combined([resolved(m, around) for m in a_plan(model, *modifications).modifications], around), around


def arranged(model: Path, *modifications: dict, copies=None, changeable=None) -> Rearrangement:
    found, around = edits(model, *modifications)
    return Rearrangement(
        found, around, changeable=frozenset(changeable or around.checkpoint.tensors), copies=copies or {}
    )


def ratio(model: Path, plan, name: str) -> float:
    """The factor by which a tensor was scaled, by least squares."""
    before = stored_values(open_checkpoint(model), name).astype(np.float64)
    return float((plan[name] * before).sum() / (before * before).sum())


def scale(factor: float, **target) -> dict:
    return {"target": target, "operation": {"kind": "scale", "factor": factor}}


def test_factors_go_to_tensors_of_their_kind_with_random_signs(model):
    plan = arranged(
        model,
        scale(1.25, roles=["q_proj"], layers="0-1"),
        scale(1.5, roles=["q_proj"], layers="2"),
        scale(2.0, roles=["down_proj"], layers="3"),
    )
    assert plan.methods == {"factor": 4}
    drawn = plan.draw(40, seed=1)
    assert len(drawn) == 40
    places: Counter[str] = Counter()
    signs: Counter[bool] = Counter()
    for random in drawn:
        strengths = sorted((role_of(name).role, round(abs(np.log(ratio(model, random, name))), 1)) for name in random)
        assert strengths == [("down_proj", 0.7), ("q_proj", 0.2), ("q_proj", 0.2), ("q_proj", 0.4)]
        places.update(random)
        signs.update(ratio(model, random, name) > 1 for name in random)
    assert len(places) == 2 * LAYERS, "every layer's turn comes"
    assert 55 < signs[True] < 105
    assert len({frozenset((n, ratio(model, p, n)) for n in p) for p in drawn}) == 40, "no two are the same"


def test_the_same_seed_gives_the_same_plans(model):
    plan = arranged(model, scale(1.25, roles=["q_proj"], layers="0-1"))
    first, longer, other = plan.draw(5, seed=3), plan.draw(9, seed=3), plan.draw(5, seed=4)
    for one, same in zip(first, longer, strict=False):
        assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in same.items()}
    assert [sorted(p) for p in first] != [sorted(p) for p in other]


def test_values_are_rounded_as_apply_would(model):
    plan = arranged(model, scale(1.1, roles=["q_proj"], layers="0"), scale(1.1, roles=["input_layernorm"], layers="1"))
    for random in plan.draw(6, seed=0):
        for name, values in random.items():
            factor = 1.1 if ratio(model, random, name) > 1 else 1 / 1.1
            found, around = edits(model, scale(factor, tensors=[name]))
            assert np.array_equal(values, new_values(found, around)[name])
            assert values.dtype == np.float32


def test_factors_of_a_vector_change_places_within_it(model, tmp_path):
    factors = np.exp(np.linspace(-0.3, 0.6, 16)).astype(np.float64)
    save_file({"rows": factors, "columns": factors[:8]}, tmp_path / "factors.safetensors")

    def by(axis: str) -> dict:
        return {"kind": "scale", "factor": {"file": "factors.safetensors", "array": axis, "axis": axis}}

    plan = arranged(
        model,
        {"target": {"roles": ["q_proj"], "layers": "0"}, "operation": by("rows")},
        {"target": {"roles": ["input_layernorm"], "layers": "2"}, "operation": by("columns")},
    )
    assert plan.methods == {"factors": 2}
    for random in plan.draw(8, seed=0):
        for name, values in random.items():
            before = stored_values(open_checkpoint(model), name)
            norms = (
                np.linalg.norm(values, axis=1) / np.linalg.norm(before, axis=1) if values.ndim == 2 else values / before
            )
            expected = np.abs(np.log(factors if values.ndim == 2 else factors[:8]))
            # Stored in eight bits: each factor comes out to about half a per cent.
            assert np.sort(np.abs(np.log(norms))) == pytest.approx(np.sort(expected), abs=0.01)
            assert not np.allclose(np.abs(np.log(norms)), expected, atol=0.02), "they moved"


def test_offsets_keep_their_size(model):
    plan = arranged(
        model, {"target": {"roles": ["o_proj"], "layers": "0-1"}, "operation": {"kind": "shift", "offset": 0.5}}
    )
    assert plan.methods == {"offset": 2}
    means = [
        (values - stored_values(open_checkpoint(model), name)).mean()
        for random in plan.draw(8, seed=0)
        for name, values in random.items()
    ]
    assert np.abs(means) == pytest.approx(np.full(16, 0.5), abs=1e-3)
    assert {bool(mean > 0) for mean in means} == {True, False}


@pytest.mark.parametrize(
    "operation",
    [
        {"kind": "zero"},
        {"kind": "scale", "factor": -1},
        {"kind": "clamp", "minimum": -0.03, "maximum": 0.03},
        {"kind": "normalize", "norm": 0.5, "per": "rows"},
        {"kind": "noise", "std": 0.05, "seed": 3},
        {"kind": "rank_reduce", "rank": 3},
    ],
    ids=lambda operation: operation["kind"] + str(operation.get("factor", "")),
)
def test_any_other_change_keeps_its_tensor_and_its_norm(model, operation):
    name = "model.layers.2.mlp.down_proj.weight"
    target = {"target": {"tensors": [name]}, "operation": operation}
    plan = arranged(model, target)
    assert plan.methods == {"change": 1}
    found, around = edits(model, target)
    before = stored_values(around.checkpoint, name)
    change = new_values(found, around)[name] - before
    drawn = plan.draw(4, seed=0)
    assert len(drawn) == 4
    for random in drawn:
        assert list(random) == [name]
        moved = random[name] - before
        assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(change), rel=0.01)
        # Row by row it is the change, moved and perhaps turned round.
        match = np.abs(change @ moved.T) / (np.linalg.norm(change, axis=1)[:, None] * np.linalg.norm(moved, axis=1))
        assert np.allclose(np.sort(match.max(axis=0)), 1, atol=0.01)
        assert not np.allclose(moved, change, atol=1e-4)


def test_a_vector_changes_element_by_element(model):
    name = "model.norm.weight"
    plan = arranged(model, {"target": {"tensors": [name]}, "operation": {"kind": "clamp", "maximum": 0.0}})
    before = stored_values(open_checkpoint(model), name)
    change = np.minimum(before, 0) - before
    for random in plan.draw(5, seed=0):
        moved = random[name] - before
        assert np.sort(np.abs(moved)) == pytest.approx(np.sort(np.abs(change)), abs=1e-3)


def test_there_may_be_few_different_plans(model):
    (only,) = arranged(model, scale(1.25, tensors=["model.norm.weight"])).draw(39, seed=0)
    assert ratio(model, only, "model.norm.weight") == pytest.approx(0.8, abs=0.01)
    assert len(arranged(model, scale(1.25, roles=["q_proj"], layers="0")).draw(39, seed=0)) == 2 * LAYERS - 1
    # A shift changes places with a scale of the same role, and both keep what they are.
    both = arranged(
        model,
        scale(1.25, roles=["q_proj"], layers="0"),
        {"target": {"roles": ["q_proj"], "layers": "1"}, "operation": {"kind": "shift", "offset": 0.1}},
    )
    assert all(len(random) == 2 for random in both.draw(20, seed=0))


def test_copies_of_a_tied_tensor_change_together(model):
    copies = dict.fromkeys(("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"))
    copies = dict.fromkeys(copies, tuple(copies))
    plan = arranged(model, scale(1.25, roles=["q_proj"], layers="0-2"), copies=copies)
    assert plan.methods == {"factor": 2}
    for random in plan.draw(10, seed=0):
        assert len(set(copies) & set(random)) in (0, 2)
    with pytest.raises(Unarrangeable, match="copies of one tied tensor"):
        arranged(model, scale(1.25, roles=["q_proj"], layers="0"), copies=copies)


def test_plans_that_cannot_be_measured_in_memory_are_refused(model):
    with pytest.raises(Unarrangeable, match="not in the loaded model as it is stored"):
        arranged(model, scale(1.25, roles=["q_proj"], layers="0"), changeable=["model.norm.weight"])
    with pytest.raises(Unarrangeable, match="changes no stored value"):
        arranged(model, {"target": {"roles": ["q_proj"]}, "operation": {"kind": "clamp", "maximum": 1e9}})


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 2**32))
def test_blocks_of_equal_factors_stay_together(values, width, seed):
    factors = np.repeat(values, width)
    moved = _shuffled(factors, np.random.default_rng(seed))
    blocks = moved.reshape(len(values), width)
    assert (blocks == blocks[:, :1]).all(), "a head is scaled as one"
    assert np.sort(np.abs(np.log(moved))) == pytest.approx(np.sort(np.abs(np.log(factors))))
