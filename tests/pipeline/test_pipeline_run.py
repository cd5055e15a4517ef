"""The whole story unattended: every ending, every interruption, and the way back into a run."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
from chat_server import Answer, ChatServer

from planner import fsio
from planner.analysts import Transcript
from planner.effects import CheckReport
from planner.evaluation import Evaluation
from planner.pipeline import FILES as ALL_FILES
from planner.pipeline import Outcome
from planner.pipeline.definition import Started
from planner.plan import read_plan
from planner.profile import Profile
from planner.transaction import Receipt, verify

FILES = tuple(name for name in ALL_FILES if name != "evidence.json")
"""Of a run that measures nothing."""
RUN = import_module("planner.pipeline.run")  # the package exports a function of that name


@pytest.fixture
def run(planner, tmp_path):
    """`run(path)` in the run folder `run` of the test."""

    def runs(path, *options, folder="run"):
        return planner("run", path, "--run-dir", tmp_path / folder, *options)

    return runs


def outcome_of(folder) -> Outcome:
    return Outcome.model_validate_json((folder / "outcome.json").read_text())


def weights(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}


def test_kept(run, pipeline, tmp_path, tiny_model):
    before = weights(tiny_model)
    result = run(pipeline(limit=10))
    folder = tmp_path / "run"
    assert result.status == 0, result.err
    assert "kept: max_drift: " in result.out
    assert f"run folder: {folder}" in result.out
    found = outcome_of(folder)
    assert (found.decision, found.exit_status, found.modifications) == ("kept", 0, 3)
    assert found.candidate_fingerprint != found.fingerprint
    assert found.files == FILES[:-1]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "candidate"])
    profile = Profile.model_validate_json((folder / "profile.json").read_text())
    assert profile.fingerprint == found.fingerprint
    plan = read_plan((folder / "plan.json").read_text())
    assert plan.review == {}
    assert CheckReport.model_validate_json((folder / "check.json").read_text()).accepted
    reviewed = read_plan((folder / "reviewed.json").read_text())
    assert {decision.reviewer for decision in reviewed.review.values()} == {
        "rule: confidence >= 0 and cites a measured fact"
    }
    assert {decision.how for decision in reviewed.review.values()} == {"rule"}
    receipt = Receipt.model_validate_json((folder / "receipt.json").read_text())
    assert receipt.fingerprint_after == found.candidate_fingerprint
    assert Evaluation.model_validate_json((folder / "evaluation.json").read_text()).accepted
    assert verify(folder / "candidate").sound
    assert weights(tiny_model) == before, "the model itself is only read"


def test_reverted_when_a_gate_refuses_and_every_byte_is_the_models_again(run, pipeline, tmp_path, tiny_model):
    result = run(pipeline(limit=0), "--json")
    assert result.status == 5
    found = outcome_of(tmp_path / "run")
    assert result.json == json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert found.decision == "reverted"
    assert "above the limit 0" in found.why
    assert found.candidate_fingerprint == found.fingerprint
    assert weights(tmp_path / "run" / "candidate") == weights(tiny_model)
    assert verify(tmp_path / "run" / "candidate").original


def test_nothing_proposed(run, pipeline, tmp_path):
    (tmp_path / "policy.toml").write_text('protected = ["*"]\n')
    result = run(pipeline(more='policy = "policy.toml"\n'))
    assert result.status == 0
    found = outcome_of(tmp_path / "run")
    assert found.decision == "nothing proposed"
    assert found.candidate is None
    assert found.files == ("started.json", "profile.json", "plan.json")


def test_the_policy_of_whoever_runs_it_holds_where_the_pipeline_names_none(run, pipeline, tmp_path, monkeypatch):
    (tmp_path / "operators.toml").write_text('protected = ["*"]\n')
    monkeypatch.setenv("PLANNER_POLICY", str(tmp_path / "operators.toml"))
    assert run(pipeline()).status == 0
    assert outcome_of(tmp_path / "run").decision == "nothing proposed"
    assert Started.model_validate_json((tmp_path / "run" / "started.json").read_text()).policy.protected == ("*",)


def test_a_run_under_a_policy_that_allows_void_goes_on_where_it_was(run, pipeline, tmp_path):
    (tmp_path / "policy.toml").write_text('allow_void = true\nprotected = ["*"]\n')
    path = pipeline(more='policy = "policy.toml"\n')
    assert run(path).status == 0
    (tmp_path / "run" / "outcome.json").unlink()
    assert run(path).status == 0, "what was written with every default filled in is the same policy"


def test_nothing_approved(run, pipeline, tmp_path):
    result = run(pipeline(more="[review]\nleast_confidence = 0.9\n"))
    assert result.status == 3
    assert "nothing approved: rule: confidence >= 0.9 and cites a measured fact approves none" in result.out
    written = ("started.json", "profile.json", "plan.json", "check.json", "reviewed.json")
    assert outcome_of(tmp_path / "run").files == written
    assert not (tmp_path / "run" / "candidate").exists()


def test_the_rule_reads_confidence_and_size_and_writes_them_down(run, pipeline, tmp_path):
    result = run(pipeline(more="[review]\nleast_confidence = 0.2\nmost_relative_change = 0.5\n"))
    assert result.status == 0
    review = read_plan((tmp_path / "run" / "reviewed.json").read_text()).review
    assert [decision.decision for decision in review.values()] == ["approved", "rejected", "rejected"]
    assert "confidence 0.15, relative change 0.0" in review["m02"].comment
    assert review["m02"].comment.endswith(", effect effective")
    assert outcome_of(tmp_path / "run").modifications == 1
    assert run(pipeline(more="[review]\nmost_relative_change = 0.001\n"), folder="small").status == 3


def test_a_suite_without_gates_refuses_nothing(run, pipeline, tmp_path):
    path = pipeline()
    suite = tmp_path / "suite.toml"
    suite.write_text(suite.read_text().partition("[[gate]]")[0])
    result = run(path)
    assert result.status == 0
    assert "kept: the suite has no gate" in result.out


def test_a_model_writes_the_plan_and_its_words_are_kept(run, pipeline, tmp_path):
    change = {
        "id": "m01",
        "target": {"roles": ["up_proj"], "layers": "0-5"},
        "operation": {"kind": "scale", "factor": 1.01},
        "reasoning": "r",
        "confidence": 0.5,
        "expected_impact": "e",
    }
    with ChatServer([Answer(json.dumps({"modifications": [change]}))]) as server:
        more = f'[analyst]\nkind = "llm"\nllm = "m"\nbase_url = "{server.base_url}"\nrepairs = 0\n'
        refused = run(pipeline(more=more))
        assert refused.status == 3, "nobody is there to ask for a fact"
        assert "rejected m01: " in refused.err
        assert "UNGROUNDED" in refused.err
        more += "[review]\nungrounded = true\n"
        assert run(pipeline(more=more), folder="second").status == 0, "the same question is not asked twice"
    plan = read_plan((tmp_path / "second" / "plan.json").read_text())
    assert (plan.analyst.kind, plan.ungrounded) == ("llm", ("m01",))
    Transcript.model_validate_json((tmp_path / "second" / "plan.transcript.json").read_text())
    assert outcome_of(tmp_path / "second").modifications == 1


STEPS = {"plan.json": "propose_to", "check.json": "check", "receipt.json": "apply_plan", "evaluation.json": "evaluate"}
"""A file of the run and the function whose work it holds."""


def stopped_at(monkeypatch, name: str, *, before: bool = False):
    """Ctrl-C right after the file `name` has been written, or instead of writing it."""
    write = fsio.replace_file

    def interrupted(path, content, **more):
        if path.name == name and path.parent.name == "run":
            if not before:
                write(path, content, **more)
            raise KeyboardInterrupt
        write(path, content, **more)

    monkeypatch.setattr(fsio, "replace_file", interrupted)


def done_again(*_, **__):
    raise AssertionError("a finished step was done again")


@pytest.fixture(scope="module")
def reference() -> dict[float, tuple[object, ...]]:
    """How runs end that nobody stopped, by the limit of their gate."""
    return {}


def ending(folder) -> tuple[object, ...]:
    found = outcome_of(folder)
    return found.decision, found.why, found.exit_status, found.candidate_fingerprint, found.modifications, found.files


STOPS = [(10, name, before) for name in FILES for before in (False, True)]
STOPS += [(0, name, before) for name in ("evaluation.json", "outcome.json") for before in (False, True)]


@pytest.mark.parametrize(("limit", "name", "before"), STOPS)
def test_a_run_stopped_anywhere_goes_on_where_it_was(
    run, pipeline, tmp_path, monkeypatch, reference, limit, name, before
):
    path = pipeline(limit=limit)
    if limit not in reference:
        run(path, folder="whole")
        reference[limit] = ending(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, name, before=before)
        result = run(path)
    assert result.status == 130
    assert "error[interrupted]" in result.err
    folder = tmp_path / "run"
    assert (folder / name).exists() is not before
    there = {path.name for path in folder.iterdir()} - {"candidate"}
    assert there == set(FILES[: FILES.index(name) + (not before)]), "nothing but finished files"
    with monkeypatch.context() as patch:
        for file, function in STEPS.items():
            if file in there or (file == "receipt.json" and (folder / "candidate").exists()):
                patch.setattr(RUN, function, done_again)
        if name == "outcome.json" and limit == 0:
            patch.setattr(RUN, "revert", done_again)
        again = run(path)
    assert again.status == (0 if limit else 5), again.err
    assert ending(folder) == reference[limit]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "candidate"])


@pytest.mark.parametrize("inner", ["propose_to", "check", "apply_plan", "evaluate", "revert"])
def test_ctrl_c_inside_a_step_leaves_only_finished_files(run, pipeline, tmp_path, monkeypatch, inner):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    path = pipeline(limit=0)
    with monkeypatch.context() as patch:
        patch.setattr(RUN, inner, pressed)
        result = run(path, "--json")
    assert result.status == 130
    assert result.json["error"]["code"] == "interrupted"
    assert not (tmp_path / "run" / "outcome.json").exists()
    assert not [path for path in tmp_path.rglob(".*") if path.name not in (".planner",)]
    assert run(path).status == 5


def test_a_finished_run_says_the_same_again_without_work(run, pipeline, tmp_path, monkeypatch):
    path = pipeline(limit=0)
    first = run(path)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    for function in (*STEPS.values(), "profile_of", "revert"):
        monkeypatch.setattr(RUN, function, done_again)
    second = run(path)
    assert (second.status, second.out) == (first.status, first.out)
    assert "is finished" in second.err
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


def test_the_run_folder_follows_from_the_pipeline_and_fresh_takes_a_new_one(planner, pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pipeline(more="[review]\nleast_confidence = 0.9\n")
    assert planner("run", path, "--fresh").status == 3, "there is none yet: --fresh changes nothing"
    (first,) = (tmp_path / "runs").iterdir()
    assert first.name.startswith("tidy-")
    assert planner("run", path).status == 3
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == [first.name]
    assert planner("run", path, "--fresh").status == 3
    assert planner("run", path, "--fresh").status == 3
    names = sorted(entry.name for entry in (tmp_path / "runs").iterdir())
    assert names == [first.name, f"{first.name}-2", f"{first.name}-3"]
    path.write_text(path.read_text().replace("0.9", "0.8"))
    assert planner("run", path).status == 3
    assert len(list((tmp_path / "runs").iterdir())) == 4, "another pipeline is another run"


def test_a_model_that_changed_in_between_is_status_4(run, pipeline, tmp_path, tiny_model, monkeypatch):
    path = pipeline()
    with monkeypatch.context() as patch:
        stopped_at(patch, "check.json")
        assert run(path).status == 130
    shard = tiny_model / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    result = run(path, "--json")
    assert result.status == 4
    assert result.json["error"]["code"] == "stale-plan"
    assert "--fresh" in result.json["error"]["hint"]
    assert not (tmp_path / "run" / "candidate").exists()


def test_a_run_that_finds_its_disk_full_is_status_7_and_goes_on_later(run, pipeline, tmp_path, monkeypatch):
    path = pipeline()
    with monkeypatch.context() as patch:
        patch.setattr("planner.fsio.room.free_bytes", lambda _: 1)
        result = run(path)
    assert result.status == 7
    assert "error[no-space]" in result.err
    assert not (tmp_path / "run" / "candidate").exists()
    assert run(path).status == 0


@pytest.mark.parametrize("file", ["suite.toml", "dozen.jsonl", "tidy.toml"])
def test_a_run_is_not_finished_with_another_suite_text_or_pipeline(run, pipeline, tmp_path, file):
    given = pipeline()
    assert run(given).status == 0
    changed = tmp_path / file
    changed.write_text(changed.read_text().replace("tidy up", "tidy up more").replace("10", "11").replace("the", "a"))
    result = run(given)
    assert result.status == 2
    assert "was started with another" in result.err
    assert "--fresh" in result.err


def test_two_processes_do_not_share_a_run_folder(run, pipeline, tmp_path):
    from planner import fsio

    with fsio.lock(tmp_path / ".run.planner-lock"):
        assert run(pipeline()).status == 8
