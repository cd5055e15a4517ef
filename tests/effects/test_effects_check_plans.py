"""Whole plans of real families: limits, effects that are refused, modifications that undo each other, ties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from builders import a_plan
from models.tiny import build
from safetensors.numpy import load_file, save_file

from planner.checkpoint import open_checkpoint
from planner.effects import CheckReport, check
from planner.plan import Policy
from planner.profile import histograms_of, profile_of

WIDE = {"largest_relative_change": 1e30, "largest_total_change": 1e30}
ANY = Policy(**WIDE)


def _on(target: str, factor: float = 1.5, **more: Any) -> dict[str, Any]:
    named = {"layers": target} if target[0].isdigit() else {"tensors": [target]}
    return {"target": named | more, "operation": {"kind": "scale", "factor": factor}}


def _checked(model: Path, *modifications: dict[str, Any], policy: Policy = ANY, **options: Any) -> CheckReport:
    checkpoint = open_checkpoint(model)
    profile = profile_of(checkpoint)
    plan = a_plan(model, *modifications, **options.pop("fields", {}))
    options = {"folder": model.parent, "histograms": histograms_of(profile), **options}
    return check(plan, checkpoint, profile, policy, **options)


def _codes(report: CheckReport) -> list[tuple[str | None, str]]:
    return [(problem.modification, problem.code) for problem in report.problems]


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    return build("qwen3").write(tmp_path / "qwen3", "BF16")


Q, V, OUT = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qvo")
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("fields", "wrong", "said"),
    [
        ({"operations": ("clamp",)}, ["m01", "m02"], "the policy does not allow scale"),
        ({"protected": ("*.down_proj.*",)}, ["m02"], f"the policy protects {DOWN}"),
        ({"protected": (Q,)}, ["m01"], f"the policy protects {Q}"),
        ({"largest_relative_change": 0.3}, ["m02"], "would change by 0.5 of its norm; the policy allows 0.3"),
        ({"largest_total_change": 0.01}, [None], "all tensors together would change by"),
        ({"most_tensors": 1}, [None], "it reaches 2 tensors; the policy allows 1"),
        ({"most_modifications": 1}, [None], "2 modifications; the policy allows 1"),
        ({"refuse": ("invariant",)}, ["m01"], "its effect is invariant, which the policy refuses: q_proj"),
        ({"refuse": ("effective",)}, ["m02"], "its effect is effective, which the policy refuses"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_limit_of_the_policy_is_kept(
    qwen3: Path, fields: dict[str, Any], wrong: list[str | None], said: str
) -> None:
    modifications = (_on(Q, 1.25), _on(DOWN, 1.5))
    assert _checked(qwen3, *modifications, policy=Policy()).accepted
    report = _checked(qwen3, *modifications, policy=Policy(**fields))
    assert _codes(report) == [(name, "outside-policy") for name in wrong]
    assert said in report.problems[0].message
    assert report.problems[0].hint
    assert not report.accepted
    assert report.policy == Policy(**fields)


def test_the_total_is_that_of_one_long_vector(qwen3: Path) -> None:
    report = _checked(qwen3, _on(Q, 1.25), _on(DOWN, 1.5))
    before = {name: values.astype("f8") for name, values in _decoded(qwen3).items()}
    whole = np.sqrt(sum(float((w**2).sum()) for w in before.values()))
    moved = 0.0
    for name, factor in ((Q, 1.25), (DOWN, 1.5)):
        import ml_dtypes

        new = (before[name].astype("f4") * np.float32(factor)).astype(ml_dtypes.bfloat16).astype("f8")
        moved += float(((new - before[name]) ** 2).sum())
    assert report.total_change == pytest.approx(np.sqrt(moved) / whole, rel=1e-9)
    limit = float(report.total_change or 0)
    assert _checked(qwen3, _on(Q, 1.25), _on(DOWN), policy=Policy(largest_total_change=limit * 1.001)).accepted
    assert not _checked(qwen3, _on(Q, 1.25), _on(DOWN), policy=Policy(largest_total_change=limit * 0.999)).accepted


def _decoded(model: Path) -> dict[str, Any]:
    return {name: values.astype("f4") for name, values in load_file(model / "model.safetensors").items()}


def test_zeros_that_become_something_count_in_the_total(tmp_path: Path) -> None:
    model = build("llama-bias").write(tmp_path / "model", "F32")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.bias"
    save_file(weights | {name: np.zeros(32, "f4")}, model / "model.safetensors")
    whole = np.sqrt(sum(float((w.astype("f8") ** 2).sum()) for n, w in weights.items() if n != name))
    shift = {"target": {"tensors": [name]}, "operation": {"kind": "shift", "offset": 10.0}}
    report = _checked(model, shift)
    assert report.total_change == pytest.approx(10 * np.sqrt(32) / whole, rel=1e-9)
    assert report.tensors[0].relative_change is None


@pytest.mark.parametrize("say", ["option", "policy"])
def test_void_is_refused_unless_it_is_allowed(qwen3: Path, say: str) -> None:
    nothing = (_on(Q, 1.0001), _on(DOWN, 1.5))
    assert _codes(_checked(qwen3, *nothing)) == [("m01", "void-modification")]
    if say == "option":
        report = _checked(qwen3, *nothing, allow_void=True)
    else:
        report = _checked(qwen3, *nothing, policy=Policy(**WIDE, allow_void=True))
    assert report.accepted
    assert [item.effect for item in report.modifications] == ["void", "effective"]
    assert report.modifications[0].why == "computed from every stored element: no bit changes"


def test_what_undoes_itself_is_judged_as_a_whole_too(qwen3: Path) -> None:
    """Exactly in the bits: void. By the heads' linearity: v doubled and o halved are invariant together."""
    both = (_on(V, 2.0), _on(V, 0.5))
    report = _checked(qwen3, *both)
    assert [item.effect for item in report.modifications] == ["effective", "effective"]
    assert report.plan_effect == "void"
    assert _codes(report) == [(None, "void-modification")]
    report = _checked(qwen3, _on(V, 2.0), _on(OUT, 0.5))
    assert [item.effect for item in report.modifications] == ["effective", "effective"]
    assert report.plan_effect == "invariant"
    assert report.plan_why
    assert report.accepted
    one = {"target": {"tensors": [V, OUT]}, "operation": {"kind": "scale", "factor": 2.0}}
    assert _checked(qwen3, one).plan_effect == "effective"
    assert _checked(qwen3, _on(V, 2.0), _on(OUT, 0.6)).plan_effect == "effective"


def test_every_problem_is_listed_in_the_order_of_the_plan(qwen3: Path) -> None:
    report = _checked(
        qwen3,
        _on("model.layers.1.self_attn.q_prj.weight"),
        _on(DOWN, 1.5, elements={"kind": "rows", "indices": "99"}),
        _on(Q, 1.0001),
        {
            "target": {"layers": "1"},
            "operation": {"kind": "head_scale", "heads": "0", "part": "value", "factor": 2.0},
        },
        {
            "target": {"tensors": [Q]},
            "operation": {
                "kind": "scale",
                "factor": {"file": "missing.safetensors", "array": "x", "axis": "rows"},
            },
        },
        _on("0-7"),
        _on(V, 1e39),
        _on(OUT, 1.5),
    )
    assert _codes(report) == [
        ("m01", "unknown-target"),
        ("m02", "unknown-target"),
        ("m03", "void-modification"),
        ("m04", "unknown-target"),
        ("m05", "array-unusable"),
        ("m06", "unknown-target"),
        ("m07", "not-finite"),
    ]
    assert [item.id for item in report.modifications] == ["m03", "m07", "m08"]
    assert report.problems[0].hint.startswith("nearest: model.layers.1.self_attn.q_proj.weight")
    assert report.problems[5].message.startswith("no layer 3")
    assert not report.accepted


def test_a_combination_that_cannot_be_computed_is_a_problem(qwen3: Path) -> None:
    """The first leaves infinities, which have no singular values; each by itself is computed."""
    report = _checked(
        qwen3, _on(V, 1e39), {"target": {"tensors": [V]}, "operation": {"kind": "rank_reduce", "rank": 3}}
    )
    assert (None, "does-not-fit") in _codes(report)
    assert ("m01", "not-finite") in _codes(report)
    assert report.plan_effect == "unknown"


@pytest.mark.parametrize("which", ["head", "embedding", "both alike", "both differently"])
def test_two_stored_copies_that_would_differ_are_warned_of(tmp_path: Path, which: str) -> None:
    model = build("qwen3-tied", with_copy=True).write(tmp_path / "model", "BF16")
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    factors = {
        "head": {head: 1.5},
        "embedding": {embedding: 1.5},
        "both alike": {head: 1.5, embedding: 1.5},
        "both differently": {head: 1.5, embedding: 2.0},
    }[which]
    report = _checked(model, *(_on(name, factor) for name, factor in factors.items()))
    warned = [text for text in report.warnings if "two stored copies of one tied tensor" in text]
    assert len(warned) == (0 if which == "both alike" else 1)
    if warned:
        ids = [f"m{number:02d}" for number in range(1, len(factors) + 1)]
        assert warned[0].startswith(f"{', '.join(ids)}: {embedding} and {head} are two stored copies")
    if which == "head":
        assert report.modifications[0].effect == "loader_dependent"
        assert "before 5" in report.modifications[0].why
        assert "vLLM" in report.modifications[0].why
    alone = build("qwen3-tied").write(tmp_path / "alone", "BF16")
    assert _checked(alone, _on(embedding)).warnings == ()


def test_an_unknown_family_is_warned_of_and_nothing_is_guessed(qwen3: Path) -> None:
    config = json.loads((qwen3 / "config.json").read_text())
    (qwen3 / "config.json").write_text(json.dumps(config | {"model_type": "qwen9"}))
    report = _checked(qwen3, _on(Q), _on(DOWN, 1.0001), allow_void=True)
    assert report.warnings == ("effects are unknown: the model type 'qwen9' has no declaration here",)
    assert [item.effect for item in report.modifications] == ["unknown", "void"]
    assert (report.model.known, report.model.family) == (False, None)
    assert report.accepted


def test_tensors_of_one_modification_have_effects_of_their_own(qwen3: Path) -> None:
    report = _checked(qwen3, {"target": {"tensors": [Q, DOWN]}, "operation": {"kind": "scale", "factor": 1.5}})
    (item,) = report.modifications
    assert {tensor.name: tensor.effect for tensor in item.tensors} == {Q: "invariant", DOWN: "effective"}
    assert item.effect == "effective"
    assert "q_norm" in next(tensor.why for tensor in item.tensors if tensor.name == Q)


def test_a_negative_factor_before_a_norm_is_not_invariant(qwen3: Path) -> None:
    assert _checked(qwen3, _on(Q, -1.5)).modifications[0].effect == "effective"
    assert _checked(qwen3, _on(Q, 1.5)).modifications[0].effect == "invariant"


def test_an_effect_that_is_refused_is_refused_of_the_plan_as_a_whole(tmp_path: Path) -> None:
    """Split into two halves, each effective, it would otherwise slip through."""
    model = build("llama").write(tmp_path / "llama", "BF16")
    halves = (_on(V, 2.0), _on(OUT, 0.5))
    report = _checked(model, *halves)
    assert report.accepted
    assert report.plan_effect == "invariant"
    assert {item.effect for item in report.modifications} == {"effective"}
    refused = _checked(model, *halves, policy=Policy(refuse=("void", "invariant"), **WIDE))
    assert _codes(refused) == [(None, "outside-policy")]
    assert refused.problems[0].message.startswith("the plan as a whole is invariant, which the policy refuses: ")
    assert _codes(_checked(model, halves[0], policy=Policy(refuse=("invariant",), **WIDE))) == []


def test_nothing_is_claimed_of_a_plan_of_which_nothing_can_be_made_out(qwen3: Path) -> None:
    report = _checked(qwen3, _on("model.layers.1.nothing.weight"))
    assert _codes(report) == [("m01", "unknown-target")]
    assert (report.plan_effect, report.plan_why) == ("unknown", "no modification could be made out")


def test_a_change_to_infinity_has_no_size(qwen3: Path) -> None:
    report = _checked(qwen3, _on(Q, 1e39))
    assert _codes(report) == [("m01", "not-finite")]
    assert report.total_change is None


def test_a_change_of_rows_that_also_make_the_logits_says_so(tmp_path: Path) -> None:
    for key, tied in (("qwen3-tied", True), ("qwen3", False)):
        model = build(key).write(tmp_path / key, "BF16")
        (item,) = _checked(
            model, _on("model.embed_tokens.weight", 1.5, elements={"kind": "rows", "indices": "3"})
        ).modifications
        assert item.effect == "effective"
        assert ("the same rows make the logits" in item.why) is tied


def test_a_stale_plan_is_told_the_fingerprint_that_would_fit(qwen3: Path) -> None:
    report = _checked(qwen3, _on(Q), fields={"checkpoint": {"name": "x", "fingerprint": "blake3:" + "0" * 64}})
    assert _codes(report)[0] == (None, "stale-plan")
    assert report.fingerprint in report.problems[0].hint
