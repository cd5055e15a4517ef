"""A pipeline that measures first: evidence, a plan from it tuned on one suite, judged on another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, Received

from planner.evaluation import Evaluation
from planner.evidence import read_evidence
from planner.pipeline import read_pipeline, run
from planner.plan import read_plan
from planner.transaction import patch_folder, verify

TINY = Path(__file__).parents[2] / "examples" / "tiny-model"


class Quiet:
    """Nobody watches; what is said is kept."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, what: str, total: int | None = None, *, unit: str = "bytes"):
        from contextlib import nullcontext

        from planner.cli.console import Bar

        return nullcontext(Bar(None))


def here(folder: Path) -> dict[str, str]:
    """An environment whose folders are all in this one."""
    return {"PLANNER_CACHE": str(folder), "PLANNER_STATE": str(folder / "state"), "PLANNER_OFFLINE": "1"}


def few(source: str, count: int, folder: Path, name: str) -> None:
    lines = (TINY / "texts" / source).read_text().splitlines()[:count]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    few("inventory.calibration.jsonl", 30, tmp_path, "goal.jsonl")
    few("stories.calibration.jsonl", 30, tmp_path, "neutral.jsonl")
    few("inventory.search.jsonl", 30, tmp_path, "tune.jsonl")
    few("inventory.heldout.jsonl", 60, tmp_path, "heldout.jsonl")
    for name in ("tune", "heldout"):
        (tmp_path / f"{name}.toml").write_text(
            f'[[metric]]\nname = "inventory"\nkind = "text_loss"\ntext = "{name}.jsonl"\nmax_tokens = 64\n'
            '[[gate]]\nmetric = "inventory"\nrule = "improved"\n'
        )
    (tmp_path / "pipeline.toml").write_text(
        f'model = "{TINY}"\ngoal = "inventory notes"\nsuite = "heldout.toml"\ncontrols = 0\n'
        '[probe]\ntext = "neutral.jsonl"\ngoal_text = "goal.jsonl"\nmax_tokens = 64\n'
        '[tune]\nsuite = "tune.toml"\nbudget = 3\n'
    )
    return tmp_path


def test_a_measured_plan_helps_on_documents_that_nobody_saw(folder: Path) -> None:
    pipeline = read_pipeline(folder / "pipeline.toml")
    watcher = Quiet()
    outcome = run(pipeline, folder, folder / "run", environment=here(folder), watcher=watcher)
    assert outcome.decision == "kept", outcome.why
    found = Evaluation.model_validate_json((folder / "run" / "evaluation.json").read_text())
    calibrated = found.metrics[0].calibrated
    assert calibrated is not None
    assert calibrated.difference < -0.005
    assert calibrated.p_value < 0.001
    assert found.foretold is not None
    assert found.foretold.measured_calibrated == calibrated.difference
    evidence = read_evidence(folder / "run" / "evidence.json")
    plan = read_plan((folder / "run" / "plan.json").read_text())
    assert plan.evidence is not None
    assert plan.evidence.id == evidence.id
    assert 0 < len(plan.modifications) <= 44
    # The vectors are kept with the patch, and the way back is open.
    assert list(patch_folder(folder / "run" / "candidate", 1).glob("*factors.safetensors"))
    assert not verify(folder / "run" / "candidate").original

    # Asked again, it tells what it found; a text of the tuning that changed makes it another run.
    said = Quiet()
    assert run(pipeline, folder, folder / "run", environment=here(folder), watcher=said) == outcome
    assert "is finished" in said.said[0]


def test_a_stopped_run_does_not_measure_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = read_pipeline(folder / "pipeline.toml")
    environment = here(folder)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["planner.pipeline.run"], "propose_to", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, folder, folder / "run", environment=environment, watcher=Quiet())
    assert (folder / "run" / "evidence.json").is_file()
    before = json.loads((folder / "run" / "evidence.json").read_text())["created"]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sys.modules["planner.pipeline.run"], "probe", never)
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, folder, folder / "run", environment=environment, watcher=Quiet())
    assert json.loads((folder / "run" / "evidence.json").read_text())["created"] == before


def test_a_language_model_works_from_what_the_pipeline_measured(folder: Path) -> None:
    """It answers with the largest sensitivity that it was shown; the transcript and the track record are kept."""

    def answered(received: Received) -> Answer:
        name = "model.layers.0.mlp.down_proj.weight"
        measured = read_evidence(folder / "run" / "evidence.json")
        value = next(tensor.scale.calibrated for tensor in measured.tensors if tensor.name == name)
        assert "probe.scale.calibrated" in received.body["messages"][1]["content"]
        modification = {
            "id": "m01",
            "target": {"tensors": [name]},
            "operation": {"kind": "scale", "factor": 1.02 if value < 0 else 0.98},
            "reasoning": "r",
            "confidence": 0.4,
            "expected_impact": "e",
            "evidence": [{"tensor": name, "fact": "probe.scale.calibrated", "value": value}],
        }
        return Answer(json.dumps({"note": "n", "modifications": [modification]}))

    with ChatServer([answered]) as server:
        text = (folder / "pipeline.toml").read_text().partition("[tune]")[0]
        text += f'[analyst]\nkind = "llm"\nllm = "m"\nbase_url = "{server.base_url}"\ntools = false\n'
        (folder / "pipeline.toml").write_text(text)
        pipeline = read_pipeline(folder / "pipeline.toml")
        outcome = run(pipeline, folder, folder / "run", environment=here(folder), watcher=Quiet())
    assert outcome.modifications == 1
    plan = read_plan((folder / "run" / "plan.json").read_text())
    assert plan.evidence is not None
    assert plan.evidence.id == read_evidence(folder / "run" / "evidence.json").id
    assert (folder / "run" / "plan.transcript.json").is_file()
    assert list((folder / "state" / "track").glob("*.json"))
