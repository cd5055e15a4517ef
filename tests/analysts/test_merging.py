"""Merged plans: what is the same proposal, what its numbers become, what is said of disagreements."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.analysts.base import drafted
from planner.analysts.merging import merged
from planner.analysts.strengths import STRENGTHS, numbers_of, with_numbers
from planner.errors import StalePlan
from planner.operations import OPERATIONS
from planner.plan import AnalystRecord, CheckpointRef, EvidenceRef, Modification, Usage, read_plan, write_plan

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
DOWN = "model.layers.{}.mlp.down_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"
DOWN_3 = {"tensors": (DOWN.format(3),)}


def mod(target, operation, confidence=0.5, *, reasoning="because", evidence=()):
    return Modification.model_validate(
        {
            "id": "m01",
            "target": target,
            "operation": operation,
            "reasoning": reasoning,
            "confidence": confidence,
            "expected_impact": f"expected, {reasoning}",
            "evidence": evidence,
        }
    )


def scale(factor):
    return {"kind": "scale", "factor": factor}


@pytest.fixture
def plan_of(brief):
    tiny = brief(TINY_MODEL)

    def make(*modifications, **analyst):
        numbered = [m.model_copy(update={"id": f"m{n:02d}"}) for n, m in enumerate(modifications, start=1)]
        return drafted(tiny, AnalystRecord(**({"kind": "llm", "model": "gpt-x"} | analyst)), numbered)

    return make


@pytest.fixture
def merge(brief):
    def run(*plans, names=None, **policy):
        tiny = brief(TINY_MODEL, **policy)
        found = merged(plans, names or "ABCDEFGH"[: len(plans)], tiny)
        assert tiny.check(found).accepted, "a merged plan always passes the check"
        assert set(found.agreement) == {m.id for m in found.modifications}
        assert read_plan(write_plan(found).decode()) == found
        return found

    return run


def test_what_three_analysts_say_in_other_words_is_one_proposal(plan_of, merge):
    plans = [
        plan_of(mod(DOWN_3, scale(1.02), 0.3, reasoning="first")),
        plan_of(mod({"roles": ("down_proj",), "layers": "3"}, scale(1.04), 0.6, reasoning="second")),
        plan_of(mod({"tensors": ("*.{3}.mlp.down*",)}, scale(1.20), 0.3, reasoning="third")),
    ]
    found = merge(*plans)
    (modification,) = found.modifications
    assert modification.operation.factor == 1.04
    assert modification.confidence == pytest.approx(0.4)
    assert modification.reasoning == "second (3 of 3 analysts)"
    assert modification.expected_impact == "expected, second"
    assert modification.target.roles == ("down_proj",)
    agreement = found.agreement[modification.id]
    assert (agreement.of, agreement.by) == (3, ("A", "B", "C"))
    assert agreement.values[0] == "A, m01: scale 1.02, confidence 0.3"
    assert found.disagreements == ()
    assert found.note == ("merged from 3 plans (A, B, C): 1 modification, 1 by more than one; 0 disagreements")


def test_the_middle_of_two_factors_is_their_geometric_mean_and_of_two_offsets_the_arithmetic(plan_of, merge):
    factors = merge(plan_of(mod(DOWN_3, scale(1.01))), plan_of(mod(DOWN_3, scale(1.21))))
    assert factors.modifications[0].operation.factor == pytest.approx(math.sqrt(1.01 * 1.21), rel=1e-5)
    shifts = [plan_of(mod(DOWN_3, {"kind": "shift", "offset": offset})) for offset in (0.001, 0.004)]
    assert merge(*shifts).modifications[0].operation.offset == pytest.approx(0.0025)


def test_ramps_of_one_length_are_merged_number_by_number(plan_of, merge):
    layers = {"roles": ("down_proj",), "layers": "0-5"}
    ramps = [plan_of(mod(layers, scale({"ramp": ramp}))) for ramp in ((1.0, 1.1), (1.02, 1.2), (1.04, 1.15))]
    (modification,) = merge(*ramps).modifications
    assert modification.operation.factor.ramp == (1.02, 1.15)


def test_of_opposed_proposals_the_one_with_more_votes_stays(plan_of, merge):
    up, more, down = (plan_of(mod(DOWN_3, scale(f))) for f in (1.04, 1.06, 0.95))
    found = merge(up, down, more)
    (modification,) = found.modifications
    assert modification.operation.factor == pytest.approx(math.sqrt(1.04 * 1.06), rel=1e-5)
    assert found.agreement["m01"].by == ("A", "C")
    assert found.disagreements == (
        f"{DOWN.format(3)}: A (m01: scale 1.04, confidence 0.5) and C (m01: scale 1.06, confidence 0.5) against "
        "B (m01: scale 0.95, confidence 0.5); the votes are 2 to 1, so the first is kept",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scale(1.05), scale(0.95)),
        ({"kind": "shift", "offset": 0.01}, {"kind": "shift", "offset": -0.01}),
        ({"kind": "boost", "alpha": 0.1}, {"kind": "reduce", "alpha": 0.1}),
        (scale({"ramp": [1.0, 1.1]}), scale(0.9)),
        ({"kind": "spectral_scale", "factor": 1.1}, {"kind": "spectral_scale", "factor": 0.9}),
    ],
)
def test_a_tie_of_opposed_proposals_drops_both_and_says_so(plan_of, merge, one, other):
    found = merge(plan_of(mod(DOWN_3, one, 0.9)), plan_of(mod(DOWN_3, other, 0.1)))
    assert found.modifications == ()
    (sentence,) = found.disagreements
    assert sentence.endswith("the votes are 1 to 1, so neither is kept")


def test_who_proposes_both_directions_does_not_contradict_himself(plan_of, merge):
    both = plan_of(mod(DOWN_3, scale(1.05)), mod(DOWN_3, scale(0.9)))
    found = merge(both, plan_of(mod(DOWN_3, scale(1.05))))
    assert [m.operation.factor for m in found.modifications] == [1.05, 0.9]
    assert found.disagreements == ()
    assert [found.agreement[m.id].by for m in found.modifications] == [("A", "B"), ("A",)]


def test_proposals_that_overlap_in_part_both_stay_and_are_told(plan_of, merge):
    wide = plan_of(mod({"roles": ("down_proj",), "layers": "2-4"}, scale(1.05)))
    narrow = plan_of(mod(DOWN_3, scale(1.02)))
    found = merge(wide, narrow)
    assert len(found.modifications) == 2
    assert found.disagreements == (
        f"{DOWN.format(3)}: A (m01: scale 1.05, confidence 0.5) and B (m01: scale 1.02, confidence 0.5) overlap there; "
        "both are kept",
    )
    by_one = merge(plan_of(*wide.modifications, *narrow.modifications), plan_of())
    assert by_one.disagreements == (), "one analyst who proposes both means both"


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ({"kind": "rows", "indices": "0-3"}, {"kind": "rows", "indices": "3-5"}, True),
        ({"kind": "rows", "indices": "0-3"}, {"kind": "rows", "indices": "4-5"}, False),
        ({"kind": "columns", "indices": "0-3"}, {"kind": "columns", "indices": "7"}, False),
        ({"kind": "columns", "indices": "0-3"}, {"kind": "rows", "indices": "7"}, True),
        ({"kind": "magnitude_quantile", "above": 0.9}, {"kind": "magnitude_quantile", "below": 0.5}, False),
        ({"kind": "magnitude_quantile", "above": 0.5}, {"kind": "signed_quantile", "above": 0.9}, True),
        ({"kind": "value_range", "minimum": 0.1}, {"kind": "rows", "indices": "1"}, True),
    ],
)
def test_elements_decide_what_overlaps(plan_of, merge, one, other, meet):
    found = merge(
        plan_of(mod(DOWN_3 | {"elements": one}, scale(1.05))), plan_of(mod(DOWN_3 | {"elements": other}, scale(1.05)))
    )
    assert len(found.modifications) == 2
    assert bool(found.disagreements) is meet


def test_the_same_elements_in_other_words_are_one_proposal(plan_of, merge):
    rows = [mod(DOWN_3 | {"elements": {"kind": "rows", "indices": text}}, scale(1.05)) for text in ("0-3", "3,0,1,2")]
    assert len(merge(*map(plan_of, rows)).modifications) == 1
    heads = [
        mod(target, {"kind": "head_scale", "heads": heads, "factor": 0.5})
        for target, heads in (({"layers": "2"}, "1,0"), ({"roles": ("o_proj",), "layers": "2"}, "0-1"))
    ]
    assert len(merge(*map(plan_of, heads)).modifications) == 1
    channels = {"kind": "channel_scale", "channels": "7", "factor": 0.5}
    part, layer = ({"roles": ("o_proj",), "layers": "2"}, {"layers": "2"})
    found = merge(plan_of(mod(part, channels)), plan_of(mod(layer, channels)))
    assert len(found.modifications) == 2, "a target of layers means every writer of the layer"
    others = [mod({"layers": "2"}, {"kind": "head_scale", "heads": heads, "factor": 0.5}) for heads in ("0", "1")]
    found = merge(*map(plan_of, others))
    assert len(found.modifications) == 2
    assert found.disagreements == ()


def test_what_is_no_strength_tells_proposals_apart_but_a_seed_does_not(plan_of, merge):
    noise = [plan_of(mod(DOWN_3, {"kind": "noise", "std": std, "seed": seed})) for std, seed in ((0.01, 1), (0.03, 2))]
    (modification,) = merge(*noise).modifications
    assert modification.operation.std == pytest.approx(0.02)
    spectral = [plan_of(mod(DOWN_3, {"kind": "spectral_scale", "last": last, "factor": 1.1})) for last in (1, 2)]
    found = merge(*spectral)
    assert len(found.modifications) == 2
    assert "overlap" in found.disagreements[0]
    ranks = [plan_of(mod(DOWN_3, {"kind": "rank_reduce", "rank": rank})) for rank in (60, 70)]
    assert merge(*ranks).modifications[0].operation.rank == 60


def test_most_agreed_first_then_surest(plan_of, merge):
    a = plan_of(mod({"tensors": (UP.format(0),)}, scale(1.05), 0.9), mod(DOWN_3, scale(1.05), 0.1))
    b = plan_of(mod(DOWN_3, scale(1.05), 0.1), mod({"tensors": (UP.format(1),)}, scale(1.05), 0.95))
    found = merge(a, b)
    assert [m.target.tensors[0] for m in found.modifications] == [DOWN.format(3), UP.format(1), UP.format(0)]
    assert [m.id for m in found.modifications] == ["m01", "m02", "m03"]
    assert [len(found.agreement[m.id].by) for m in found.modifications] == [2, 1, 1]


def test_saying_it_twice_is_not_two_votes(plan_of, merge):
    twice = plan_of(mod(DOWN_3, scale(1.05)), mod(DOWN_3, scale(1.05)))
    found = merge(twice, plan_of(mod(DOWN_3, scale(0.95))))
    assert found.modifications == ()
    assert "the votes are 1 to 1" in found.disagreements[0]
    found = merge(twice, plan_of(mod(DOWN_3, scale(1.05))))
    assert [found.agreement[m.id].by for m in found.modifications] == [("A", "B"), ("A",)]


def test_evidence_is_united_and_a_fact_cited_twice_is_the_surest_ones(plan_of, merge, tiny_profile):
    tensor = tiny_profile.by_name[DOWN.format(3)]
    std, rough = ({"tensor": tensor.name, "fact": "std", "value": tensor.std * by} for by in (1, 1.01))
    rms = {"tensor": tensor.name, "fact": "rms", "value": tensor.rms}
    found = merge(
        plan_of(mod(DOWN_3, scale(1.05), 0.2, evidence=[rough, rms])),
        plan_of(mod(DOWN_3, scale(1.05), 0.8, evidence=[std])),
    )
    cited = found.modifications[0].evidence
    assert [(e.fact, e.value) for e in cited] == [("std", tensor.std), ("rms", tensor.rms)]


def test_ungrounded_is_what_nobody_grounded(plan_of, merge, tiny_profile):
    tensor = tiny_profile.by_name[DOWN.format(3)]
    std = {"tensor": tensor.name, "fact": "std", "value": tensor.std}
    bare = plan_of(mod(DOWN_3, scale(1.05)), mod({"tensors": (UP.format(1),)}, scale(1.05)))
    bare = bare.model_copy(update={"ungrounded": ("m01", "m02")})
    found = merge(bare, plan_of(mod(DOWN_3, scale(1.05), evidence=[std])))
    assert found.ungrounded == ("m02",)


def test_a_single_plan_keeps_its_modifications_their_ids_and_their_order(plan_of, merge):
    plan = plan_of(mod(DOWN_3, {"kind": "clamp", "maximum": 0.2}, 0.1), mod(DOWN_3, scale(1.05), 0.9))
    plan = plan.model_copy(update={"note": "two careful steps"})
    found = merge(plan)
    assert found.modifications == plan.modifications
    assert found.analyst == plan.analyst
    assert found.note == "two careful steps"
    assert [(a.of, a.by) for a in found.agreement.values()] == [(1, ("A",)), (1, ("A",))]
    assert found.disagreements == ()


def test_what_is_too_much_together_loses_the_least_agreed_first(plan_of, merge):
    """Each changes the tensor by less than the policy allows, all three by more."""
    clamp, shift = {"kind": "clamp", "maximum": 0.2}, {"kind": "shift", "offset": 0.002}
    a = plan_of(mod(DOWN_3, shift, 0.9), mod(DOWN_3, scale(1.05), 0.2))
    b = plan_of(mod(DOWN_3, scale(1.05), 0.2), mod(DOWN_3, clamp, 0.8))
    assert len(merge(a, b).modifications) == 3
    found = merge(a, b, largest_relative_change=0.052)
    assert [m.operation.kind for m in found.modifications] == ["scale"]
    assert "left out: " in found.note
    assert "A (m01: shift 0.002" in found.note


def test_what_is_refused_by_itself_goes_whoever_agreed_on_it(plan_of, merge):
    plans = [plan_of(mod(DOWN_3, scale(1.5)), mod({"tensors": (UP.format(1),)}, scale(1.05))) for _ in range(2)]
    found = merge(*plans, largest_relative_change=0.1)
    assert [m.target.tensors for m in found.modifications] == [(UP.format(1),)]
    assert "the policy allows 0.1" in found.note
    assert [m.id for m in found.modifications] == ["m01"]


def test_a_policy_of_few_modifications_keeps_the_most_agreed(plan_of, merge):
    a = plan_of(*(mod({"tensors": (UP.format(layer),)}, scale(1.05), 0.9) for layer in range(3)))
    b = plan_of(mod({"tensors": (UP.format(2),)}, scale(1.05), 0.1))
    found = merge(a, b, most_modifications=1)
    assert [m.target.tensors for m in found.modifications] == [(UP.format(2),)]
    assert "the policy allows 1 modifications" in found.note


def test_what_no_tensor_answers_to_is_left_out_and_told(plan_of, merge):
    found = merge(plan_of(mod({"tensors": ("model.layers.99.x",)}, scale(1.05))), plan_of(mod(DOWN_3, scale(1.05))))
    assert len(found.modifications) == 1
    assert "no tensor matches 'model.layers.99.x'" in found.note


def test_who_wrote_it_is_everybody_and_what_it_cost_is_summed(plan_of, merge):
    cost = Usage(input_tokens=10, output_tokens=5, cost_usd=0.1)
    one = plan_of(requests=2, usage=cost, tool_calls=3, transcripts=("a.json",), first_answer_valid=True)
    other = plan_of(model="gpt-y", requests=1, usage=cost, transcripts=("b.json",), first_answer_valid=False)
    found = merge(one, other).analyst
    assert (found.kind, found.model, found.requests) == ("llm", "gpt-x + gpt-y", 3)
    assert (found.tool_calls, found.transcripts) == (3, ("a.json", "b.json"))
    assert found.usage == Usage(input_tokens=20, output_tokens=10, cost_usd=0.2)
    assert found.first_answer_valid is False
    assert merge(one, plan_of()).analyst.usage.cost_usd is None, "where one cost is unknown, so is the sum"
    assert merge(one, plan_of(kind="rules", model=None)).analyst.kind == "merged"


def test_the_evidence_file_is_kept(plan_of, merge):
    ref = EvidenceRef(file="evidence.json", id="blake3:" + "ab" * 32)
    with_evidence = plan_of(mod(DOWN_3, scale(1.05))).model_copy(update={"evidence": ref})
    assert merge(plan_of(), with_evidence).evidence == ref


def test_a_plan_for_other_weights_is_refused(plan_of, merge):
    other = plan_of(mod(DOWN_3, scale(1.05)))
    other = other.model_copy(update={"checkpoint": CheckpointRef(name="x", fingerprint="blake3:" + "00" * 32)})
    with pytest.raises(StalePlan):
        merge(plan_of(), other)


def test_a_name_with_control_characters_cannot_forge_a_line(plan_of, merge):
    found = merge(
        plan_of(mod(DOWN_3, scale(1.05))), plan_of(mod(DOWN_3, scale(0.95))), names=["A\n\x1b[31m", "B" * 500]
    )
    assert all(sentence.isprintable() for sentence in found.disagreements)
    assert found.note.isprintable()
    assert "B" * 61 not in found.disagreements[0]


@given(
    st.lists(st.floats(1.001, 3), min_size=1, max_size=7),
    st.sampled_from(["scale", "spectral_scale"]),
)
def test_the_median_of_factors_lies_between_them_and_does_not_depend_on_order(factors, kind):
    from planner.analysts.merging import _operation

    operations = [OPERATIONS[kind](factor=factor) for factor in factors]
    found = _operation(operations[0], operations).factor
    assert found == pytest.approx(math.exp(statistics.median(map(math.log, factors))), rel=1e-5)
    assert _operation(operations[0], operations[::-1]).factor == found


def test_every_operation_with_numbers_says_which_is_its_strength():
    assert set(OPERATIONS) - set(STRENGTHS) == {"zero"}
    for kind, operation in OPERATIONS.items():
        for example in operation.EXAMPLES:
            made = operation(kind=kind, **example.parameters)
            assert with_numbers(made, numbers_of(made)) == made
            for field in numbers_of(made):
                assert field in operation.model_fields
