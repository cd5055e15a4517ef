"""The rules with evidence: what they propose, spend and refuse, and when they say that there is nothing."""

from __future__ import annotations

import json
import shutil

import pytest
from models.tiny import build
from safetensors.torch import load_file, save_file
from studies import TINY, brief_for, documents, measure, study_of, suite_in

from planner.analysts import MeasuredAnalyst
from planner.analysts.tuning import refused_by, tuned_metrics
from planner.checkpoint import open_checkpoint
from planner.edits import combined, new_values, resolved, surroundings_of
from planner.errors import EvidenceUnusable
from planner.evaluation import Scorer, decisive_metric
from planner.inference import loading
from planner.profile import profile_checkpoint

FILE = "plan.factors.safetensors"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads of tests that run side by side only wait for each other."""
    monkeypatch.setattr(loading, "cores", lambda: 1)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """Of the inventory, which the bundled model knows badly."""
    folder = tmp_path_factory.mktemp("evidence")
    patch = pytest.MonkeyPatch()
    patch.setattr(loading, "cores", lambda: 1)
    goal, neutral = documents("inventory.calibration", 0, 14), documents("stories.calibration", 0, 10)
    path = measure(folder, TINY, goal, neutral)
    patch.undo()
    return path


@pytest.fixture(scope="module")
def profile():
    return profile_checkpoint(open_checkpoint(TINY))


@pytest.fixture
def propose(evidence, profile, tmp_path):
    """`propose(suite=..., **policy)`: the proposal, with its factors written beside where the plan would be."""

    def run(*, policy=None, path=evidence, tell=None, **fields):
        brief = brief_for(tmp_path, path, profile=profile, **(policy or {}))
        proposal = MeasuredAnalyst(study_of(path, **fields), tell=tell).propose(brief, arrays_file=FILE)
        if proposal.arrays:
            (tmp_path / FILE).write_bytes(proposal.arrays)
        return proposal.plan, brief.check(proposal.plan)

    return run


def scored(plan, folder, texts, model=TINY):
    """What the plan does to the loss of some documents, its values as `apply` stores them."""
    checkpoint = open_checkpoint(model)
    around = surroundings_of(checkpoint, folder)
    changes = new_values(combined([resolved(m, around) for m in plan.modifications], around), around)
    score = Scorer(checkpoint, {"held out": texts}, max_tokens=48).score(changes, drift=False)
    return score.metrics["held out"]


def test_one_step_from_the_arrays_alone_helps_on_other_documents(propose, tmp_path, monkeypatch):
    def no_model(*_):
        raise AssertionError("nothing is to be run")

    monkeypatch.setattr("planner.inference.loading.load_model", no_model)
    monkeypatch.setattr("planner.evaluation.pair.load_model", no_model)
    plan, report = propose()
    monkeypatch.undo()
    assert report.accepted, report.problems
    assert 10 <= len(plan.modifications) <= 44  # of 68 tensors, and those that rounding leaves as they are are left out
    assert [m.id for m in plan.modifications[:2]] == ["m01", "m02"]
    assert plan.analyst.kind == "rules"
    assert plan.evidence.file == "evidence.json"
    assert "nothing was run" in plan.note
    found = scored(plan, tmp_path, documents("inventory.heldout", 0, 60))
    assert found.calibrated.comparison.difference < -0.005
    assert found.calibrated.comparison.p_value < 1e-3
    # What was predicted is about what came true, before a forecast is believed by anyone.
    assert report.prediction.calibrated.difference < 0
    for modification in plan.modifications:
        assert {cited.fact for cited in modification.evidence} >= {
            "probe.scale.calibrated",
            "probe.scale.calibrated_se",
        }
        assert 0 < modification.confidence < 1


def test_tuning_helps_more_and_keeps_to_its_budget(propose, tmp_path):
    suite = suite_in(tmp_path, documents("inventory.search", 0, 40))
    told = []
    plan, report = propose(suite=suite, budget=3, most=68, tell=lambda *what: told.append(what))
    assert report.accepted, report.problems
    assert "of 3 evaluations" in plan.note
    spent = {what for what, _, _ in told if what.startswith("evaluation")}
    assert 2 <= len(spent) <= 3
    assert all(done <= total for _, done, total in told if total)
    held_out = documents("inventory.heldout", 0, 60)
    found = scored(plan, tmp_path, held_out)
    assert found.calibrated.comparison.difference < -0.02
    assert found.calibrated.comparison.p_value < 1e-3
    # What the note says is what the plan, as stored, does on the tuning text.
    again = scored(plan, tmp_path, documents("inventory.search", 0, 40))
    assert f"calibrated {again.calibrated.comparison.difference:+.4f}" in plan.note
    assert f"raw {again.raw.difference:+.4f}" in plan.note


def test_the_same_evidence_gives_the_same_factors(propose, tmp_path):
    suite = suite_in(tmp_path, documents("inventory.search", 0, 12))
    digests = {propose(suite=suite, budget=1, most=68)[0].modifications[0].operation.factor.digest for _ in range(2)}
    assert len(digests) == 1


def test_the_policy_is_never_left(propose):
    policy = {"protected": ("*norm*", "model.layers.0.*"), "largest_relative_change": 0.03, "most_modifications": 9}
    plan, report = propose(policy=policy)
    assert report.accepted, report.problems
    assert len(plan.modifications) == 9
    names = {name for m in plan.modifications for name in m.target.tensors}
    assert not any("norm" in name or "layers.0." in name for name in names)
    assert max(t.relative_change for t in report.tensors) <= 0.03
    fewer, _ = propose(most=3)
    assert len(fewer.modifications) == 3


def test_few_tensors_are_chosen_so_that_most_is_kept(propose, tmp_path):
    held_out = documents("inventory.heldout", 0, 40)
    gains = {}
    for most in (6, 68):
        plan, _ = propose(most=most)
        gains[most] = -scored(plan, tmp_path, held_out).calibrated.comparison.difference
    assert gains[6] > 0.3 * gains[68]  # of 68 tensors, 6 hold nearly half


def test_without_scales_there_is_nothing_to_propose(propose):
    plan, _ = propose(policy={"operations": ("shift",)})
    assert plan.modifications == ()
    assert "the policy allows no scale" in plan.note


def test_a_hopeless_case_is_refused_before_a_model_is_loaded(evidence, profile, tmp_path, monkeypatch):
    study = study_of(evidence, suite=suite_in(tmp_path, documents("inventory.search", 0, 6)))
    ceilings = tuple(
        c.model_copy(update={"gain": 1e-5, "gain_se": 2e-5, "hopeless": True}) for c in study.evidence.ceilings
    )
    object.__setattr__(study, "evidence", study.evidence.model_copy(update={"ceilings": ceilings}))

    def no_model(*_):
        raise AssertionError("nothing is to be run")

    monkeypatch.setattr("planner.evaluation.pair.load_itself", no_model)
    proposal = MeasuredAnalyst(study).propose(brief_for(tmp_path, evidence, profile=profile), arrays_file=FILE)
    assert proposal.plan.modifications == ()
    assert proposal.arrays is None
    assert "no evaluation was spent" in proposal.plan.note
    assert "1e-05 ± 2e-05" in proposal.plan.note


def test_nothing_is_claimed_where_nothing_was_found(propose, tmp_path, profile):
    # The stories are what the model was made of: there is no room, and the documents say so.
    folder = tmp_path / "own"
    folder.mkdir()
    stories = documents("stories.calibration", 0, 14)
    path = measure(folder, TINY, stories, stories)
    study = study_of(path)
    hopeful = tuple(c.model_copy(update={"hopeless": False}) for c in study.evidence.ceilings)
    study = study_of(path, suite=suite_in(tmp_path, documents("stories.search", 0, 24)), budget=3, most=68)
    object.__setattr__(study, "evidence", study.evidence.model_copy(update={"ceilings": hopeful}))
    brief = brief_for(tmp_path, path, profile=profile)
    proposal = MeasuredAnalyst(study).propose(brief, arrays_file=FILE)
    assert proposal.plan.modifications == ()
    assert "no calibrated gain was found" in proposal.plan.note
    assert "of 3 evaluations" in proposal.plan.note


@pytest.mark.parametrize("limit", [0.004, 0.0])
def test_a_gate_is_what_a_plan_has_to_pass(propose, tmp_path, limit):
    extra = (
        '[drift]\ntext = "guard.json"\nmax_tokens = 48\n[[gate]]\nrule = "improved"\nmetric = "goal"\n'
        f'[[gate]]\nrule = "max_drift"\nlimit = {limit}\n'
    )
    guard = documents("stories.search", 0, 20)
    suite = suite_in(tmp_path, documents("inventory.search", 0, 40), guard=guard, extra=extra)
    plan, report = propose(suite=suite, budget=5, most=68)
    assert report.accepted
    if limit:
        assert plan.modifications
        assert "drift weight 3" in plan.note
        checkpoint = open_checkpoint(TINY)
        around = surroundings_of(checkpoint, tmp_path)
        changes = new_values(combined([resolved(m, around) for m in plan.modifications], around), around)
        score = Scorer(checkpoint, suite).score(changes)
        assert refused_by(suite, score) is None
        assert score.drift.kl_mean <= limit
        assert score.metrics["goal"].calibrated.comparison.p_value < 0.05
    else:
        assert plan.modifications == ()
        assert "no plan was found that the suite lets pass" in plan.note
        assert "of 5 evaluations" in plan.note


def test_steps_that_rounding_undoes_are_not_proposed(propose):
    plan, _ = propose(policy={"largest_relative_change": 1e-4})
    assert plan.modifications == ()
    assert "leaves every weight as it is" in plan.note


@pytest.mark.parametrize("kind", ["against", "choices"])
def test_other_goals_than_a_text_are_read_again_as_well(profile, tmp_path, kind):
    folder = tmp_path / "evidence"
    folder.mkdir()
    stories, lists = documents("stories.calibration", 0, 9), documents("inventory.calibration", 0, 7)
    if kind == "against":
        (folder / "against.json").write_text(json.dumps(stories))
        options = {"against": folder / "against.json"}
    else:
        lines = [
            {"prompt": one[:40], "choices": [one[40:60], two[40:60]], "answer": 0}
            for one, two in zip(lists, stories[:7], strict=True)
        ]
        (folder / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        options = {"choices": folder / "choices.jsonl", "goal_text": None}
    path = measure(folder, TINY, lists, stories[:5], max_tokens=24, groups=8, **options)
    study = study_of(path)
    hopeful = tuple(c.model_copy(update={"hopeless": False}) for c in study.evidence.ceilings)
    suite = suite_in(tmp_path, documents("inventory.search", 0, 8))
    study = study_of(path, suite=suite, budget=2, most=68)
    object.__setattr__(study, "evidence", study.evidence.model_copy(update={"ceilings": hopeful}))
    proposal = MeasuredAnalyst(study).propose(brief_for(tmp_path, path, profile=profile), arrays_file=FILE)
    assert proposal.evaluations <= 2
    assert f"{proposal.evaluations} of 2 evaluations" in proposal.plan.note


def test_evidence_of_other_weights_is_refused(evidence, tmp_path):
    model = build("llama").write(tmp_path / "other")
    brief = brief_for(tmp_path, evidence, model)
    with pytest.raises(EvidenceUnusable, match="was measured on") as caught:
        MeasuredAnalyst(study_of(evidence, model)).propose(brief, arrays_file=FILE)
    assert "planner probe" in caught.value.hint


def test_the_text_is_found_beside_the_evidence_and_must_be_the_same(evidence, profile, tmp_path):
    folder = shutil.copytree(evidence.parent, tmp_path / "moved")
    path = folder / "evidence.json"
    said = json.loads(path.read_text())
    for text in said["texts"]:
        text["file"] = "/nowhere/" + text["file"].rpartition("/")[2]
    path.write_text(json.dumps(said))
    suite = suite_in(tmp_path, documents("inventory.search", 0, 8))
    brief = brief_for(tmp_path, path, profile=profile)

    def propose():
        return MeasuredAnalyst(study_of(path, suite=suite, budget=1, most=68)).propose(brief, arrays_file=FILE)

    assert "of 1 evaluations" in propose().plan.note
    (folder / "goal.json").write_text(json.dumps(documents("inventory.calibration", 0, 13)))
    with pytest.raises(EvidenceUnusable, match="not the text any longer"):
        propose()
    (folder / "goal.json").unlink()
    with pytest.raises(EvidenceUnusable, match="is not there"):
        propose()


def test_a_tuning_text_that_was_probed_is_said(propose, tmp_path):
    mixed = documents("inventory.calibration", 0, 5) + documents("inventory.search", 0, 20)
    plan, _ = propose(suite=suite_in(tmp_path, mixed), budget=1, most=68)
    assert "5 documents of the tuning text are in the text of the evidence" in plan.note


def test_both_stored_copies_of_a_tied_tensor_change_alike(tmp_path):
    model = tmp_path / "with-copy"
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("*.safetensors*", "texts"))
    tensors = {name: value for shard in TINY.glob("*.safetensors") for name, value in load_file(shard).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    goal = documents("inventory.calibration", 0, 10)
    path = measure(tmp_path, model, goal, goal, max_tokens=24)
    brief = brief_for(tmp_path, path, model)
    proposal = MeasuredAnalyst(study_of(path, model, most=2)).propose(brief, arrays_file=FILE)
    (tmp_path / FILE).write_bytes(proposal.arrays)
    both = {"lm_head.weight", "model.embed_tokens.weight"}
    assert any(set(m.target.tensors) == both for m in proposal.plan.modifications)
    report = brief.check(proposal.plan)
    assert report.accepted
    assert not any("two stored copies" in warning for warning in report.warnings)
    assert scored(proposal.plan, tmp_path, documents("inventory.heldout", 0, 8), model).calibrated is not None


def test_what_a_suite_is_tuned_for():
    suite = suite_of_gates("improved", "second")
    assert decisive_metric(suite).name == "second"
    assert tuned_metrics(suite) == {"second"}
    guarded = suite_of_gates("not_worse", "second")
    assert decisive_metric(guarded).name == "first"
    assert tuned_metrics(guarded) == {"first", "second"}


def suite_of_gates(rule, metric):
    from planner.evaluation import Drift, Gate, Metric, Suite

    metrics = tuple(Metric(name=name, kind="text_loss", text="t.txt") for name in ("first", "second"))
    digest = "blake3:" + "0" * 64
    gates = (Gate(rule=rule, metric=metric),)
    return Suite(name="s", digest=digest, metrics=metrics, gates=gates, drift=Drift(text="t.txt"), texts=())
