"""`check` and `review` know what the patches in force and the plan come to together, as far as that can be known."""

from __future__ import annotations

import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint

from planner.plan import write_plan
from planner.transaction.budget import reach


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model", {"a.weight": ("F32", random_tensor((8, 8), dtype="F32"))})


@pytest.fixture
def step(planner, model, tmp_path):
    """A plan that multiplies by a factor, under a policy with the limit 0.5; checked, and applied if that is asked."""
    policy = tmp_path / "policy.toml"
    policy.write_text("largest_cumulative_change = 0.5\n")

    def take(factor, *, verb):
        made = a_plan(model, {"target": {"tensors": ["a.weight"]}, "operation": {"kind": "scale", "factor": factor}})
        plan = tmp_path / "plan.json"
        plan.write_bytes(write_plan(made))
        given = ["--model", model, "--policy", policy]
        if verb == "check":
            return planner("check", plan, *given, "--json")
        return planner("apply", plan, *given, "--in-place", "--yes")

    return take


def test_what_must_go_too_far_is_refused_before_it_is_applied(step):
    assert step(1.4, verb="apply").status == 0
    checked = step(1.9, verb="check")  # at least 0.9 * 0.6 - 0.4
    assert checked.status == 0
    assert "it may go too far" in checked.json["warnings"][-1]
    assert step(1.9, verb="apply").status == 3
    refused = step(-1.0, verb="check")  # a step of 2, so at least 2 * 0.6 - 0.4
    assert refused.status == 3
    assert refused.json["problems"][0]["code"] == "outside-policy"
    assert "too far from the original" in refused.json["problems"][0]["message"]


def test_what_may_go_too_far_is_a_warning_and_apply_measures_it(step):
    assert step(1.3, verb="apply").status == 0
    back = step(0.8, verb="check")  # 0.04 from the original; as far as one can tell, up to 0.56
    assert back.status == 0
    assert "0.56 or less" in back.json["warnings"][-1]
    assert step(0.8, verb="apply").status == 0, "it went back"


def test_what_cannot_go_too_far_is_not_talked_of(step):
    assert step(1.2, verb="apply").status == 0
    assert not [line for line in step(1.05, verb="check").json["warnings"] if "too far" in line]


def test_one_patch_alone_beyond_the_limit_is_refused(step):
    assert step(1.7, verb="check").status == 3
    assert step(1.4, verb="check").status == 0


def test_the_bounds_hold_for_any_two_steps():
    draw = np.random.default_rng(1)
    for _ in range(300):
        original, first, second = draw.normal(size=(3, 4)) * draw.uniform(0.01, 3, size=(3, 1))
        norm = np.linalg.norm
        known, step = norm(first) / norm(original), norm(second) / norm(original + first)
        least, most = reach(float(known), float(step))
        assert least - 1e-9 <= norm(first + second) / norm(original) <= most + 1e-9


def test_a_reviewer_is_told_before_the_first_question(planner, step, model, tmp_path, monkeypatch):
    assert step(1.4, verb="apply").status == 0
    step(-1.0, verb="check")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "q")
    given = ["--model", model, "--policy", tmp_path / "policy.toml"]
    result = planner("review", tmp_path / "plan.json", *given)
    assert "problem of the plan: with the patches in force it would go too far" in " ".join(result.out.split())
