"""The random control: the same strengths, as `check` measures them, in places and directions drawn at random."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from planner.analysts.base import drafted
from planner.analysts.places import drawn_units, ranges_text
from planner.analysts.random_plan import RandomAnalyst, strength_of
from planner.analysts.strength_search import StrengthSearch
from planner.architecture import role_of
from planner.effects import check
from planner.errors import UsageError
from planner.operations import OPERATIONS, numbers_in
from planner.plan import AnalystRecord, CheckpointRef, Modification, decide, resolve

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
DOWN = "model.layers.{}.mlp.down_proj.weight"
DOWN_3 = {"tensors": (DOWN.format(3),)}
Q = {"roles": ("q_proj",), "layers": "1-2"}


def mod(target, operation, id="m01"):  # noqa: A002
    return Modification.model_validate(
        {
            "id": id,
            "target": target,
            "operation": operation,
            "reasoning": "because",
            "confidence": 0.9,
            "expected_impact": "better",
        }
    )


def scale(factor):
    return {"kind": "scale", "factor": factor}


@pytest.fixture
def tiny(brief):
    return brief(TINY_MODEL)


@pytest.fixture
def beside(tiny, tmp_path):
    """A brief whose check finds the files of a plan in `tmp_path`."""

    def checked(plan):
        return check(plan, tiny.checkpoint, tiny.profile, tiny.policy, folder=tmp_path, histograms=tiny.histograms)

    return replace(tiny, check=checked)


def plan_of(brief, *targets_and_operations):
    modifications = [
        mod(target, operation, f"m{number:02d}")
        for number, (target, operation) in enumerate(targets_and_operations, start=1)
    ]
    return drafted(brief, AnalystRecord(kind="human"), modifications)


def strengths(brief, plan):
    return {found.id: strength_of(found) for found in brief.check(plan).modifications}


def control_of(brief, plan, seed=0):
    control = RandomAnalyst(plan, seed=seed).propose(brief)
    report = brief.check(control)
    assert report.accepted, report.problems
    assert control.analyst.kind == "random"
    assert control.analyst.seed == seed
    for modification in control.modifications:
        assert modification.confidence == 0.5
        assert modification.expected_impact == "none expected: a control"
        assert modification.evidence, "what is cited is true, or the check would say so"
    return control


KINDS = {
    "scale": (DOWN_3, scale(1.05)),
    "a large scale": (DOWN_3, scale(0.4)),
    "scales of a role": ({"roles": ("down_proj", "up_proj"), "layers": "1-4"}, scale(1.02)),
    "a ramp": ({"roles": ("down_proj",), "layers": "0-4"}, scale({"ramp": [0.9, 1.1]})),
    "scale of rows": (DOWN_3 | {"elements": {"kind": "rows", "indices": "0-7,40"}}, scale(1.3)),
    "scale of columns": (DOWN_3 | {"elements": {"kind": "columns", "indices": "5"}}, scale(2)),
    "scale of heads": (Q | {"elements": {"kind": "heads", "heads": "1"}}, scale(1.2)),
    "scale of large weights": (DOWN_3 | {"elements": {"kind": "magnitude_quantile", "above": 0.9}}, scale(1.2)),
    "scale of a range": (DOWN_3 | {"elements": {"kind": "value_range", "minimum": 0.1}}, scale(0.8)),
    "scale of tokens": (
        {"roles": ("embed_tokens",), "elements": {"kind": "tokens", "ids": [5, 9]}},
        scale(1.5),
    ),
    "scale of a norm": ({"tensors": ("model.norm.weight",)}, scale(1.1)),
    "scale of the embedding": ({"roles": ("embed_tokens",)}, scale(1.01)),
    "shift": (DOWN_3, {"kind": "shift", "offset": 0.004}),
    "shift of a norm": ({"roles": ("input_layernorm",), "layers": "2"}, {"kind": "shift", "offset": -0.05}),
    "clamp": (DOWN_3, {"kind": "clamp", "maximum": 0.15}),
    "clamp on both sides": (DOWN_3, {"kind": "clamp", "minimum": -0.15, "maximum": 0.15}),
    "soft_threshold": (DOWN_3, {"kind": "soft_threshold", "threshold": 0.01}),
    "noise": (DOWN_3, {"kind": "noise", "std": 0.005, "seed": 1}),
    "reduce": (
        {"roles": ("embed_tokens",), "elements": {"kind": "tokens", "ids": [5]}},
        {"kind": "reduce", "alpha": 1},
    ),
    "boost": (DOWN_3, {"kind": "boost", "alpha": 0.03}),
    "zero": (DOWN_3 | {"elements": {"kind": "rows", "indices": "3"}}, {"kind": "zero"}),
    "head_scale": ({"layers": "2"}, {"kind": "head_scale", "heads": "1", "factor": 0.5}),
    "head_scale of values": ({"layers": "2"}, {"kind": "head_scale", "heads": "2-3", "factor": 0.5, "part": "value"}),
    "neuron_scale": ({"layers": "2-3"}, {"kind": "neuron_scale", "neurons": "3,17,100-107", "factor": 1.5}),
    "channel_scale": ({"layers": "4"}, {"kind": "channel_scale", "channels": "12", "factor": 2}),
    "normalize": (DOWN_3, {"kind": "normalize", "norm": 11.0, "per": "whole"}),
    "spectral_scale": (DOWN_3, {"kind": "spectral_scale", "last": 2, "factor": 1.2}),
    "spectral_clamp": (DOWN_3, {"kind": "spectral_clamp", "maximum": 1.5}),
    "rank_reduce": (DOWN_3, {"kind": "rank_reduce", "rank": 60}),
}


@pytest.mark.parametrize("case", KINDS)
def test_the_control_has_the_strength_that_check_measures_for_the_original(tiny, case):
    target, operation = KINDS[case]
    plan = plan_of(tiny, (target, operation))
    wanted = strengths(tiny, plan)["m01"]
    assert wanted
    places = set()
    for seed in range(3):
        control = control_of(tiny, plan, seed)
        (modification,) = control.modifications
        assert modification.operation.kind == operation["kind"]
        found = strengths(tiny, control)["m01"]
        assert found == pytest.approx(wanted, rel=0.1) or f"m01 changes {found:.3g}" in control.note
        if case not in ("zero", "reduce"):
            assert found == pytest.approx(wanted, rel=0.1), "this operation can be tuned"
        places.add(modification.model_dump_json(include={"target", "operation"}))
    assert len(places) > 1


def test_a_plan_keeps_its_number_its_kinds_and_its_multiset_of_strengths(tiny):
    plan = plan_of(tiny, *(KINDS[case] for case in ("scale", "shift", "noise", "head_scale", "clamp", "scale of rows")))
    control = control_of(tiny, plan, seed=4)
    assert [m.id for m in control.modifications] == [m.id for m in plan.modifications]
    assert Counter(m.operation.kind for m in control.modifications) == Counter(
        m.operation.kind for m in plan.modifications
    )
    wanted, found = strengths(tiny, plan), strengths(tiny, control)
    assert found == pytest.approx(wanted, rel=0.1)
    assert control.note == (
        f"random control of the plan {plan.id} (seed 4): 6 modifications of the same kinds and strengths in places and "
        "directions drawn at random"
    )


def test_the_same_seed_writes_the_same_plan_and_another_seed_another(tiny):
    plan = plan_of(tiny, *(KINDS[case] for case in ("scale", "noise", "head_scale", "clamp")))
    one, same, other = (control_of(tiny, plan, seed) for seed in (7, 7, 8))
    fields = {"id", "created"}
    assert one.model_dump_json(exclude=fields) == same.model_dump_json(exclude=fields)
    assert one.modifications != other.modifications


def test_over_many_seeds_every_tensor_of_the_kind_and_both_directions_come_up(tiny):
    plan = plan_of(tiny, (DOWN_3, scale(1.05)))
    drawn = Counter()
    for seed in range(72):
        (modification,) = control_of(tiny, plan, seed).modifications
        factor = modification.operation.factor
        assert factor == pytest.approx(1.05, abs=0.005) or factor == pytest.approx(0.95, abs=0.005)
        drawn[modification.target.tensors[0], factor > 1] += 1
    assert {name for name, _ in drawn} == {DOWN.format(layer) for layer in range(6)}
    assert (DOWN.format(3), True) not in drawn, "the original itself is no control of it"
    assert len(drawn) == 11
    assert max(drawn.values()) < 24
    downs = sum(count for (_, up), count in drawn.items() if not up)
    assert 20 < downs < 60


def test_tensors_go_to_tensors_of_their_role_and_shape_each_to_another(tiny):
    target = {"roles": ("down_proj", "k_proj"), "layers": "0-2"}
    control = control_of(tiny, plan_of(tiny, (target, scale(1.05)), (target, scale(1.03))), seed=1)
    for modification in control.modifications:
        names = modification.target.tensors
        assert len(set(names)) == 6
        assert Counter(role_of(name).role for name in names) == {"down_proj": 3, "k_proj": 3}
    first, second = (set(m.target.tensors) for m in control.modifications)
    assert not first & second, "tensors that no control has yet come first"


def test_where_a_plan_takes_a_whole_role_the_control_goes_to_other_roles(tiny):
    plan = plan_of(tiny, ({"roles": ("down_proj",)}, scale(1.05)))
    names = control_of(tiny, plan, seed=1).modifications[0].target.tensors
    assert len(set(names)) == 6
    assert {role_of(name).role for name in names} != {"down_proj"}


def test_what_the_model_does_not_notice_is_no_control_for_what_it_does(tiny):
    """In this model any factor on q_proj or k_proj is cancelled by the norm behind it."""
    plan = plan_of(tiny, ({"roles": ("embed_tokens",)}, scale(1.05)))
    assert tiny.check(plan).modifications[0].effect == "effective"
    for seed in range(16):
        (found,) = tiny.check(control_of(tiny, plan, seed)).modifications
        assert found.effect == "effective"
    idle = plan_of(tiny, ({"roles": ("q_proj",), "layers": "2"}, scale(1.05)))
    assert len(control_of(tiny, idle).modifications) == 1


def test_a_bound_on_one_side_goes_to_either_side(tiny):
    plan = plan_of(tiny, (DOWN_3, {"kind": "clamp", "maximum": 0.15}))
    sides = set()
    for seed in range(8):
        (modification,) = control_of(tiny, plan, seed).modifications
        low, high = modification.operation.minimum, modification.operation.maximum
        assert (low is None and high > 0.05) or (high is None and low < -0.05)
        sides.add(low is None)
    assert sides == {True, False}


def test_heads_rows_and_neurons_stay_as_many_and_in_blocks(tiny):
    rows = DOWN_3 | {"elements": {"kind": "rows", "indices": "8-15"}}
    plan = plan_of(
        tiny, (rows, scale(1.1)), KINDS["head_scale of values"], KINDS["neuron_scale"], KINDS["scale of tokens"]
    )
    seen = set()
    for seed in range(6):
        one, heads, neurons, tokens = control_of(tiny, plan, seed).modifications
        chosen = numbers_in(one.target.elements.indices)
        assert len(chosen) == 8
        assert chosen[0] % 8 == 0
        assert chosen == list(range(chosen[0], chosen[0] + 8))
        assert heads.operation.heads in ("0-1", "2-3")
        assert len(numbers_in(neurons.operation.neurons)) == 10
        assert tokens.target.tensors == ("model.embed_tokens.weight",)
        assert len(tokens.target.elements.ids) == 2
        seen.add((chosen[0], heads.operation.heads, tokens.target.elements.ids))
    assert len(seen) == 6


def test_the_policy_holds_for_the_control_too(brief):
    tiny = brief(TINY_MODEL, protected=("*.layers.[0-4].*",))
    plan = plan_of(tiny, (DOWN_3, scale(1.05)))
    for seed in range(12):
        (modification,) = control_of(tiny, plan, seed).modifications
        assert not any(
            tiny.policy.protects(name) for name in resolve(modification.target, list(tiny.checkpoint.tensors))
        )


def test_what_does_not_fit_the_policy_is_left_out_and_told(brief):
    tiny = brief(TINY_MODEL, largest_relative_change=0.1)
    control = control_of(tiny, plan_of(tiny, (DOWN_3, scale(1.5)), (DOWN_3, scale(1.05))))
    assert [m.id for m in control.modifications] == ["m02"]
    assert "m01 is left out: " in control.note
    assert "the policy allows 0.1" in control.note
    tiny = brief(TINY_MODEL, largest_total_change=0.001)
    control = control_of(tiny, plan_of(tiny, (DOWN_3, scale(1.05)), (DOWN_3, scale(1.002))))
    assert len(control.modifications) < 2
    assert "all tensors together" in control.note
    few = brief(TINY_MODEL, most_modifications=1)
    control = control_of(few, plan_of(few, (DOWN_3, scale(1.05)), (DOWN_3, scale(1.02))))
    assert [m.id for m in control.modifications] == ["m01"]


def test_what_a_reviewer_rejected_or_what_changes_nothing_has_no_control(tiny):
    plan = plan_of(tiny, (DOWN_3, scale(1.05)), (DOWN_3, scale(1.02)), (DOWN_3, {"kind": "clamp", "maximum": 99}))
    plan = decide(plan, ["m01"], "rejected", reviewer="me")
    control = control_of(tiny, plan)
    assert [m.id for m in control.modifications] == ["m02"]
    assert control.note.endswith("m03 of the original changes nothing and has no control")
    assert control_of(tiny, plan_of(tiny)).modifications == ()


def test_a_plan_for_other_weights_serves_where_its_tensors_are_here(tiny):
    elsewhere = CheckpointRef(name="other", fingerprint="blake3:" + "00" * 32)
    plan = plan_of(tiny, (DOWN_3, scale(1.05))).model_copy(update={"checkpoint": elsewhere})
    control = control_of(tiny, plan)
    assert control.checkpoint.fingerprint == tiny.profile.fingerprint
    missing = plan_of(tiny, (DOWN_3, scale(1.05)), ({"tensors": ("model.layers.7.x",)}, scale(1.05)))
    with pytest.raises(UsageError, match=r"the strength of m02 in .* cannot be measured here: no tensor matches"):
        RandomAnalyst(missing, seed=0).propose(tiny)


def factors_plan(brief, folder, tensor, factors, axis="rows", array="{tensor}"):
    save_file({tensor: factors.astype(np.float32)}, folder / "factors.safetensors")
    factor = {"file": "factors.safetensors", "array": array, "axis": axis}
    return plan_of(brief, ({"tensors": (tensor,)}, scale(factor)))


def test_a_vector_of_factors_is_used_elsewhere_where_it_is_as_strong_there(beside, tmp_path):
    factors = np.random.default_rng(0).normal(1, 0.05, 96)
    plan = factors_plan(beside, tmp_path, DOWN.format(3), factors)
    control = control_of(beside, plan, seed=3)
    (modification,) = control.modifications
    assert modification.operation.factor.array == DOWN.format(3)
    assert modification.target.tensors != (DOWN.format(3),)
    assert strengths(beside, control)["m01"] == pytest.approx(strengths(beside, plan)["m01"], rel=0.1)


def test_a_vector_of_factors_that_fits_nothing_else_becomes_one_factor_of_the_same_strength(beside, tmp_path):
    factors = np.random.default_rng(0).normal(1, 0.05, 1024)
    plan = factors_plan(beside, tmp_path, "model.embed_tokens.weight", factors)
    control = control_of(beside, plan, seed=3)
    (modification,) = control.modifications
    assert isinstance(modification.operation.factor, float)
    assert strengths(beside, control)["m01"] == pytest.approx(strengths(beside, plan)["m01"], rel=0.1)
    assert "m01 is a factor for whole tensors, at the same strength, in place of arrays in a file" in control.note


def test_a_direction_goes_with_its_file_and_a_rank_one_change_too(beside, tmp_path):
    rng = np.random.default_rng(0)
    save_file(
        {"d": rng.normal(size=96).astype(np.float32), "u": rng.normal(size=96).astype(np.float32) / 50}
        | {"v": rng.normal(size=192).astype(np.float32) / 50},
        tmp_path / "d.safetensors",
    )
    file = {"file": "d.safetensors"}
    plan = plan_of(
        beside,
        (DOWN_3, {"kind": "project_out", "direction": file | {"array": "d"}, "strength": 1}),
        (DOWN_3, {"kind": "rank_one", "u": file | {"array": "u"}, "v": file | {"array": "v"}, "strength": 2}),
    )
    control = control_of(beside, plan, seed=2)
    assert [m.operation.kind for m in control.modifications] == ["project_out", "rank_one"]
    assert strengths(beside, control) == pytest.approx(strengths(beside, plan), rel=0.1)


def test_files_that_are_not_there_are_named_with_what_to_do(tiny, tmp_path):
    plan = factors_plan(tiny, tmp_path, DOWN.format(3), np.ones(96))
    with pytest.raises(UsageError, match="cannot be measured here") as raised:
        RandomAnalyst(plan, seed=0).propose(tiny)
    assert "beside --out" in raised.value.hint


@given(
    units=st.lists(st.integers(0, 63), min_size=1, max_size=64, unique=True),
    seed=st.integers(0, 99),
)
def test_as_many_units_are_drawn_and_written_as_they_are_read(units, seed):
    found = drawn_units(np.array(sorted(units)), 64, np.random.default_rng(seed))
    assert len(found) == len(set(found)) == len(units)
    assert found == sorted(found)
    assert max(found) < 64
    assert numbers_in(ranges_text(found)) == found


@given(power=st.floats(0.4, 2.5), ratio=st.floats(1e-2, 1e2), wanted=st.floats(1e-3, 10), grows=st.booleans())
def test_the_search_finds_what_is_monotone(power, ratio, wanted, grows):
    search = StrengthSearch(wanted, start=1.0, grows=grows)
    found = []
    while not search.done:
        found.append(wanted * ratio * search.setting ** (power if grows else -power))
        search.tell(found[-1])
    assert min(abs(one / wanted - 1) for one in found) < 0.05
    assert len(found) <= 12


@pytest.mark.parametrize("strength", [0.0, 0.3, math.inf])
def test_the_search_ends_where_nothing_helps(strength):
    search = StrengthSearch(0.5, start=1.0, grows=True)
    for _ in range(12):
        search.tell(strength)
        if search.done:
            break
    assert search.done


def test_every_kind_of_operation_is_tried_above_or_needs_a_file():
    files = {"project_out", "rank_one", "rotate", "low_rank_add", "bake_steering", "blend"}
    assert set(OPERATIONS) - files == {operation["kind"] for _, operation in KINDS.values()}
