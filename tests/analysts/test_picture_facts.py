"""What a picture says is true: effects as `check` judges them, numbers that a plan can cite, limits of the dtypes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pictured import QWEN3, brief_of, pictured, profile_of, qwen3_shapes

from planner.analysts.aliases import Aliases
from planner.analysts.base import Brief
from planner.analysts.picture import picture_of
from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.dtypes import FLOATS
from planner.effects import EVIDENCE_TOLERANCE, check
from planner.effects.problems import of_modification
from planner.plan import Evidence, Modification, Plan, Policy
from planner.profile import Profile, profile_checkpoint

TINY = Path(__file__).parents[2] / "examples" / "tiny-model"


@pytest.fixture(scope="module")
def tiny() -> Brief:
    checkpoint = open_checkpoint(TINY)
    profile, policy = profile_checkpoint(checkpoint), Policy()
    model = map_of(checkpoint.config, {name: stored.shape for name, stored in checkpoint.tensors.items()})
    return Brief(
        goal="g",
        profile=profile,
        policy=policy,
        check=lambda plan: check(plan, checkpoint, profile, policy),
        checkpoint=checkpoint,
        model=model,
    )


def text_of(brief: Brief, tokens: int = 50_000) -> str:
    return picture_of(brief, Aliases([t.name for t in brief.profile.tensors], brief.model), tokens=tokens).text


def modification(**fields) -> Modification:
    usual = {
        "id": "m01",
        "target": {"roles": ["q_proj"]},
        "operation": {"kind": "scale", "factor": 1.05},
        "reasoning": "r",
        "confidence": 0.5,
        "expected_impact": "e",
    }
    return Modification.model_validate(usual | fields)


def cited(text: str, profile: Profile) -> list[Evidence]:
    """Every number of the section on statistics, as a plan would cite it."""
    found = []
    for label, rest in re.findall(r"^- (\S+): (rms \d.*)$", text, re.MULTILINE):
        found += [Evidence(tensor=label, fact=f, value=float(v)) for f, v in (p.split(" ") for p in rest.split(", "))]
    by_role: dict[str, list[str]] = {}
    for tensor in sorted((t for t in profile.tensors if t.layer is not None), key=lambda t: t.layer or 0):
        by_role.setdefault(tensor.role, []).append(tensor.name)
    for label, fact, rest in re.findall(r"^- (\w+) ([\w.]+): ([-+.e\d ]+)$", text, re.MULTILINE):
        found += [
            Evidence(tensor=name, fact=fact, value=float(v))
            for name, v in zip(by_role[label], rest.split(), strict=True)
        ]
    for fact, value, roles in re.findall(r"^- ([\w.]+): ([-+.e\d]+) in every (.*)$", text, re.MULTILINE):
        names = [name for role in roles.split(", ") for name in by_role[role]]
        found += [Evidence(tensor=name, fact=fact, value=float(value)) for name in names]
    return found


def test_every_number_that_is_copied_from_the_picture_passes_as_evidence(tiny):
    evidence = cited(text_of(tiny), tiny.profile)
    told = {(e.tensor, e.fact) for e in evidence}
    for fact in ("rms", "kurtosis", "abs_max", "mean", "zeros", "outliers.6", "skewness", "min", "max", "outliers.3"):
        layered = {(t.name, fact) for t in tiny.profile.tensors if t.layer is not None}
        assert layered <= told, fact
    assert ("model.embed_tokens.weight", "rms") in told
    assert list(of_modification(modification(evidence=evidence), tiny.profile, tiny.policy)) == []


def test_four_digits_are_kept_of_values_of_any_size():
    name = "model.layers.3.self_attn.q_proj.weight"
    profile = profile_of(qwen3_shapes(), **{name: {"rms": 3.12549e-21, "mean": -7.65432e-30, "abs_max": 1.23451e20}})
    evidence = [e for e in cited(text_of(brief_of(profile, QWEN3)), profile) if e.tensor == name]
    found = {e.fact: e.value for e in evidence}
    for fact in ("rms", "mean", "abs_max"):
        assert found[fact] == pytest.approx(getattr(profile.by_name[name], fact), rel=5e-4, abs=0)
    assert EVIDENCE_TOLERANCE > 5e-4


@pytest.mark.parametrize("tokens", [4500, 8000])
def test_what_is_strange_comes_first(tokens):
    name = "model.layers.17.mlp.down_proj.weight"
    usual = profile_of(qwen3_shapes()).by_name[name]
    grown = {fact: 8 * getattr(usual, fact) for fact in ("rms", "std", "abs_max", "min", "max", "l2_norm")}
    profile = profile_of(qwen3_shapes(), **{name: grown})
    text = text_of(brief_of(profile, QWEN3), tokens)
    findings = text.partition("## Findings")[2].partition("\n## ")[0].splitlines()
    assert findings[1].startswith(f"- {name}: ")
    rms = float(re.search(r"\[rms = (\S+)\]", findings[1])[1])
    assert rms == pytest.approx(grown["rms"], rel=5e-4)


def test_damage_goes_before_deviation_and_is_told_with_its_counts():
    shapes = qwen3_shapes()
    profile = profile_of(
        shapes,
        **{
            "model.layers.3.mlp.up_proj.weight": {"nan": 3, "inf": 1},
            "model.layers.4.mlp.up_proj.weight": {"rms": 0.9},
            "model.layers.5.mlp.up_proj.weight": {"min": 0.0, "max": 0.0, "zeros": 96 * 64, "std": 0.0, "rms": 0.0},
        },
    )
    text = text_of(brief_of(profile, QWEN3), 4500)
    findings = text.partition("## Findings")[2].partition("\n## ")[0].splitlines()[1:]
    assert [re.search(r"layers\.(\d)", line)[1] for line in findings[:3]] == ["3", "5", "4"]
    assert "[nan = 3, inf = 1]" in findings[0]
    assert "up_proj layers 5: void (every element is zero)" in text, "there is nothing to scale"


def rules(text: str) -> dict[str, str]:
    """Effect by role or name, of the lines on effects."""
    section = text.partition("## What multiplying")[2].partition("\n## ")[0]
    found = {}
    for who, effect in re.findall(r"^- (.*?): (\w+) \(", section, re.MULTILINE):
        found |= dict.fromkeys(who.split("; "), effect)
    return found


def test_effects_are_those_that_check_finds(tiny):
    said = rules(text_of(tiny))
    roles = {t.role: t.name for t in tiny.profile.tensors if t.layer in (3, None)}
    assert len(said) == len(roles)
    for role, name in roles.items():
        plan = Plan.model_validate(
            {
                "id": "p",
                "created": "2026-01-01T00:00:00Z",
                "goal": "g",
                "checkpoint": {"name": "x", "fingerprint": tiny.profile.fingerprint},
                "analyst": {"kind": "human"},
                "modifications": [modification(target={"tensors": [name]})],
            }
        )
        report = tiny.check(plan)
        assert report.problems == ()
        effect = said[name] if name in said else said[role]
        assert effect == report.modifications[0].effect, name
    assert said["q_proj"] == "invariant"
    assert said["v_proj"] == "effective"


def test_a_row_alone_is_told_where_it_does_something_else(tiny):
    text = text_of(tiny)
    assert re.search(r"^- q_proj: invariant \(.*\); one row alone: effective$", text, re.MULTILINE)
    assert not re.search(r"^- .*v_proj: effective .*one row", text, re.MULTILINE)


def test_layers_that_differ_are_told_apart():
    """A layer whose norm of queries is zero lets nothing of its queries through."""
    name = "model.layers.9.self_attn.q_norm.weight"
    zero = {"min": 0.0, "max": 0.0, "zeros": 32, "rms": 0.0, "std": 0.0, "abs_max": 0.0}
    said = rules(text_of(brief_of(profile_of(qwen3_shapes(), **{name: zero}), QWEN3)))
    assert said["q_norm layers 9"] == "void"
    assert said["q_norm layers 0-8,10-27"] == "effective"


def test_an_architecture_that_is_not_known_is_said_to_be_so():
    profile = profile_of(qwen3_shapes(), model_type="mamba9")
    text = text_of(brief_of(profile, QWEN3 | {"model_type": "mamba9"}))
    assert 'model_type "mamba9"' in text
    assert "The dataflow of this architecture is unknown" in text
    assert "unknown for every tensor" in text
    assert rules(text) == {}
    assert "invariant" not in text
    assert re.search(r"^- q_proj rms: ", text, re.MULTILINE), "the statistics are there all the same"


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_the_factors_that_are_said_to_be_lost_are_lost_and_no_others(name):
    """Held against every pattern of the dtype."""
    profile = profile_of(qwen3_shapes(), **{n: {"dtype": name} for n in qwen3_shapes()})
    text = pictured(brief_of(profile, QWEN3), 4500).text
    lost, whole = map(float, re.search(r"\|f - 1\| < (\S+), .* > (\S+)", text).groups())
    dtype = FLOATS[name]
    patterns = dtype.all_patterns()
    patterns = patterns[np.isfinite(dtype.decode(patterns))]
    values = dtype.decode(patterns)
    normal = np.abs(values) >= (2.0**-126 if name == "BF16" else 2.0**-14)
    kept, all_changed = [], []
    for sign in (-1, 1):
        scaled = (values.astype(np.float64) * (1 + sign * lost * 0.999)).astype(np.float32)
        kept.append(dtype.encode(scaled)[normal] == patterns[normal])
        # The largest values leave the range upwards, and the smallest normal ones the normal numbers downwards.
        inner = normal & (np.abs(values) > (2.0**-125 if name == "BF16" else 2.0**-13)) & (np.abs(values) < 6e4)
        scaled = np.where(inner, values.astype(np.float64) * (1 + sign * whole * 1.001), 0).astype(np.float32)
        all_changed.append(dtype.encode(scaled)[inner] != patterns[inner])
    assert all(part.all() for part in kept)
    assert all(part.all() for part in all_changed)


def test_dtypes_that_are_not_changed_are_said_to_be_so():
    shapes = qwen3_shapes()
    quantised = {n: {"dtype": "F8_E4M3"} for n in shapes if n.endswith("up_proj.weight")}
    text = text_of(brief_of(profile_of(shapes, **quantised), QWEN3))
    assert "F8_E4M3 (28 tensors): values of this dtype are not changed by this version" in text
    assert rules(text)["up_proj"] == "unknown"


def test_experts_that_agree_are_told_once_and_the_farthest_is_marked():
    shapes = {f"model.layers.{n}.mlp.experts.{e}.up_proj.weight": (4, 4) for n in range(2) for e in range(4)}
    values = [0.05] * 4 + [0.05, 0.06, 0.05, 0.01]
    given = {name: {"rms": value} for name, value in zip(shapes, values, strict=True)}
    text = text_of(brief_of(profile_of(shapes, model_type="x", **given), {"model_type": "x"}))
    told = re.search(r"^- experts\.up_proj rms, by layer: (.*)$", text, re.MULTILINE)[1]
    assert told == "0: 5.000e-02 in all 4; 1: 5.000e-02 1.000e-02@3* 6.000e-02@1"


def test_experts_of_one_tensor_are_told_but_not_as_facts_to_cite():
    from planner.profile.types import Experts

    rms = (0.05, 0.051, 0.052, 0.053, 0.054, 0.055, 0.056, 0.4)
    experts = Experts(
        count=8, mean=rms, std=rms, rms=rms, abs_max=rms, kurtosis=rms, zeros=(0,) * 8, nonfinite=(0,) * 8
    )
    shapes = {f"model.layers.{n}.mlp.experts.gate_up_proj": (8, 4, 4) for n in range(3)}
    profile = profile_of(shapes, model_type="x", **{name: {"experts": experts} for name in shapes})
    text = text_of(brief_of(profile, {"model_type": "x"}))
    line = re.search(r"^- (\S+) rms of its experts, not to be cited, by layer: (.*)$", text, re.MULTILINE)
    assert line[2].split("; ")[1] == "1: 5.300e-02 5.000e-02@0 4.000e-01@7*"
