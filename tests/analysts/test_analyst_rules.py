"""The built-in rules: each speaks about the fault it was made for, and about nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from models.tiny import build

from planner.analysts import RulesAnalyst
from planner.dtypes import FLOATS
from planner.plan import resolve

LAYERS = 6
SHAPE = (64, 96)


def weights(*, faults=None, std=0.05):
    """Plain random matrices in six layers; `faults` maps a tensor's name to what is done to its values."""
    tensors = {}
    for layer in range(LAYERS):
        for role in ("q_proj", "up_proj"):
            name = f"model.layers.{layer}.{role}.weight"
            values = np.random.default_rng(len(tensors)).normal(0, std, SHAPE)
            values = np.clip(values, -4 * std, 4 * std)
            if faults and name in faults:
                values = faults[name](values)
            with np.errstate(over="ignore"):
                tensors[name] = ("BF16", FLOATS["BF16"].encode(values.astype(FLOATS["BF16"].working)))
    tensors["model.embed_tokens.weight"] = ("BF16", random_tensor((256, 96)))
    return tensors


def at(index, value):
    def change(values):
        values = values.copy()
        values.flat[index] = value
        return values

    return change


FAULTY = "model.layers.3.q_proj.weight"


def proposal_for(brief, folder, tensors, **policy):
    given = brief(write_checkpoint(folder, tensors), **policy)
    proposal = RulesAnalyst().propose(given)
    assert given.check(proposal).accepted, "what the rules propose always passes the check"
    return proposal


def kinds(proposal):
    return [(m.operation.kind, m.target.tensors) for m in proposal.modifications]


def test_plain_random_weights_are_left_alone(brief, tmp_path):
    proposal = proposal_for(brief, tmp_path, weights())
    assert proposal.modifications == ()
    assert proposal.note.startswith("nothing worth changing")


def test_nothing_worth_changing_is_status_0_and_still_a_plan(planner, tmp_path):
    model = write_checkpoint(tmp_path / "model", weights())
    plan = tmp_path / "plan.json"
    result = planner("propose", model, "--goal", "g", "--out", plan)
    assert result.status == 0
    assert "no modifications by rules: nothing worth changing" in result.out
    assert "next:" not in result.err
    assert json.loads(plan.read_text())["modifications"] == []
    checked = planner("check", plan, "--model", model)
    assert checked.status == 0
    assert "nothing to apply" in checked.err


def test_infinities_are_brought_to_the_largest_finite_weight(brief, tmp_path):
    proposal = proposal_for(brief, tmp_path, weights(faults={FAULTY: at(7, np.inf)}))
    assert kinds(proposal) == [("clamp", (FAULTY,))]
    (modification,) = proposal.modifications
    assert {cited.fact for cited in modification.evidence} == {"inf", "min", "max"}
    assert modification.operation.maximum < 1


def test_infinities_beside_nans_are_left_to_a_person(brief, tmp_path):
    both = lambda values: at(8, np.nan)(at(7, np.inf)(values))  # noqa: E731
    assert kinds(proposal_for(brief, tmp_path, weights(faults={FAULTY: both}))) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_few_outliers_between_six_and_ten_sigma_are_trimmed_to_six(brief, tmp_path, sign):
    proposal = proposal_for(brief, tmp_path, weights(faults={FAULTY: at([3, 5], sign * 8 * 0.05)}))
    assert kinds(proposal) == [("clamp", (FAULTY,))]
    (modification,) = proposal.modifications
    assert modification.reasoning.startswith("2 of 6,144 elements lie beyond 6 standard deviations")
    assert modification.operation.maximum == pytest.approx(6 * 0.05, rel=0.05)
    assert modification.confidence <= 0.5


def test_super_weights_beyond_ten_sigma_are_never_touched(brief, tmp_path):
    assert kinds(proposal_for(brief, tmp_path, weights(faults={FAULTY: at([3, 5], 12 * 0.05)}))) == []


def test_many_outliers_are_a_distribution_and_no_fault(brief, tmp_path):
    def heavy(values):
        values = values.copy()
        values.flat[:40] *= 0
        values.flat[:10] = 8 * 0.05
        return values

    assert kinds(proposal_for(brief, tmp_path, weights(faults={FAULTY: heavy}))) == []


def test_outliers_in_a_small_or_flat_tensor_say_nothing(brief, tmp_path):
    tensors = {
        "model.layers.0.norm.weight": ("BF16", FLOATS["BF16"].encode(np.array([0.05] * 95 + [9], np.float32))),
        "model.layers.0.bias": ("BF16", FLOATS["BF16"].encode(at(1, 0.4)(np.zeros(8192)).astype(np.float32))),
    }
    assert kinds(proposal_for(brief, tmp_path, tensors)) == []


@pytest.mark.parametrize(("ratio", "factor"), [(0.5, 1.02), (2.0, 1 / 1.02)])
def test_an_outlying_layer_takes_a_small_step_towards_its_peers(brief, tmp_path, ratio, factor):
    proposal = proposal_for(brief, tmp_path, weights(faults={FAULTY: lambda values: values * ratio}))
    assert kinds(proposal) == [("scale", (FAULTY,))]
    (modification,) = proposal.modifications
    assert modification.operation.factor == pytest.approx(factor, rel=1e-3)
    said = re.search(r"is ([\d.]+) times the median of its 6 peers", modification.reasoning)
    assert said
    assert float(said[1]) == pytest.approx(ratio, rel=0.02)


def test_fewer_than_five_peers_are_too_few_to_judge_by(brief, tmp_path):
    tensors = weights(faults={FAULTY: lambda values: values * 0.5})
    four = {name: t for name, t in tensors.items() if "layers.0" not in name and "layers.1" not in name}
    assert kinds(proposal_for(brief, tmp_path, four)) == []


def test_a_difference_too_small_to_matter_is_left_alone_however_strange(brief, tmp_path):
    tensors = {
        f"model.layers.{n}.q_proj.weight": ("F32", np.full((64, 64), 1 + n * 1e-6 + (n == 3) * 0.1, np.float32))
        for n in range(6)
    }
    assert kinds(proposal_for(brief, tmp_path, tensors)) == []


def test_the_same_checkpoint_gives_the_same_modifications(brief, tmp_path):
    faults = {FAULTY: at(3, 0.4), "model.layers.1.up_proj.weight": lambda values: values * 2}
    first = proposal_for(brief, tmp_path / "a", weights(faults=faults))
    second = proposal_for(brief, tmp_path / "b", weights(faults=faults))
    assert len(first.modifications) == 2
    assert first.modifications == second.modifications
    assert first.checkpoint.fingerprint == second.checkpoint.fingerprint
    assert first.id != second.id


def test_protected_tensors_and_forbidden_operations_are_left_out_and_counted(brief, tmp_path):
    faults = {FAULTY: at(3, 0.4), "model.layers.1.up_proj.weight": lambda values: values * 2}
    model = weights(faults=faults)
    protected = proposal_for(brief, tmp_path / "a", model, protected=("*.layers.3.*",))
    assert [kind for kind, _ in kinds(protected)] == ["scale"]
    assert "1 more would be outside policy" in protected.note
    forbidden = proposal_for(brief, tmp_path / "b", model, operations=("clamp",))
    assert [kind for kind, _ in kinds(forbidden)] == ["clamp"]
    nothing = proposal_for(brief, tmp_path / "c", model, protected=("*",))
    assert kinds(nothing) == []
    assert "nothing worth changing" in nothing.note


@pytest.mark.parametrize("most", [1, 2])
def test_a_policy_of_few_modifications_gets_the_first_few(brief, tmp_path, most):
    faults = {f"model.layers.{layer}.q_proj.weight": at(3, 0.4) for layer in range(4)}
    proposal = proposal_for(brief, tmp_path, weights(faults=faults), most_modifications=most)
    assert len(proposal.modifications) == most
    assert f"{4 - most} more" in proposal.note


def test_two_findings_on_one_tensor_that_are_too_much_together_or_alone_are_both_left_out(brief, tmp_path):
    """The check names only the first modification of a tensor that changes too much."""
    faults = {FAULTY: lambda values: at(3, 0.8)(values * 2)}
    model = weights(faults=faults)
    assert [kind for kind, _ in kinds(proposal_for(brief, tmp_path / "a", model))] == ["clamp", "scale"]
    assert kinds(proposal_for(brief, tmp_path / "b", model, largest_relative_change=0.001)) == []


def test_quantised_tensors_are_passed_over(brief, tmp_path):
    tensors = weights()
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.packed.weight"] = ("I32", np.full((64, 64), layer**9, np.int32))
    assert kinds(proposal_for(brief, tmp_path, tensors)) == []


def test_on_the_tiny_model_the_rules_speak_and_the_check_agrees(brief, tiny_model):
    given = brief(tiny_model)
    proposal = RulesAnalyst().propose(given)
    assert proposal.modifications
    assert given.check(proposal).accepted
    names = [tensor.name for tensor in given.profile.tensors]
    for modification in proposal.modifications:
        assert resolve(modification.target, names)
        assert modification.evidence
    assert proposal.analyst.kind == "rules"
    assert proposal.analyst.requests == 0
    assert f"{len(proposal.modifications)} anomal" in proposal.note


def test_what_a_normaliser_would_cancel_is_not_proposed(brief, tmp_path):
    """The same outlying layer in a Qwen 3, whose q_proj feeds a norm, and in a Llama, whose q_proj does not."""
    found = {}
    for key in ("qwen3", "llama"):
        tiny = build(key)
        config = tiny.config | {"num_hidden_layers": LAYERS}
        for listed in ("layer_types", "no_rope_layers"):
            config.pop(listed, None)
        inside = {name: values for name, values in tiny.tensors.items() if ".layers.0." in name}
        tensors = {name: values for name, values in tiny.tensors.items() if ".layers." not in name}
        for layer in range(LAYERS):
            for number, (name, values) in enumerate(inside.items()):
                random = np.random.default_rng(100 * layer + number)
                drawn = random.permutation(values.reshape(-1)).reshape(values.shape) * random.normal(1, 0.01)
                tensors[name.replace(".layers.0.", f".layers.{layer}.")] = drawn
        tensors[Q_OF_3] = tensors[Q_OF_3] * 0.5
        replace(tiny, tensors=tensors, config=config).write(tmp_path / key, "BF16")
        proposal = RulesAnalyst().propose(brief(tmp_path / key))
        found[key] = kinds(proposal)
        assert ("change nothing" in proposal.note) is (key == "qwen3")
    assert found == {"qwen3": [], "llama": [("scale", (Q_OF_3,))]}


Q_OF_3 = "model.layers.3.self_attn.q_proj.weight"
