"""The track record: what is written of an evaluation, and what many of them say of an analyst."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from planner.analysts.track_record import (
    record_evaluation,
    state_folder,
    track_folder,
    track_record,
    wilson_interval,
)
from planner.evaluation import Evaluation
from planner.plan import AnalystRecord, CheckpointRef, Modification, Plan, Target, decide

FINGERPRINT = "blake3:" + "ab" * 32
SUITE = "blake3:" + "cd" * 32


def a_plan(*confidences, kind="llm", model="gpt-x", tensor="a.weight", fingerprint=FINGERPRINT, id="p"):  # noqa: A002
    modifications = [
        Modification.model_validate(
            {
                "id": f"m{number:02d}",
                "target": Target(tensors=(tensor,)),
                "operation": {"kind": "scale", "factor": 1 + number / 100},
                "reasoning": "because",
                "confidence": confidence,
                "expected_impact": "better",
            }
        )
        for number, confidence in enumerate(confidences, start=1)
    ]
    return Plan(
        id=id,
        created="2026-11-21T12:00:00Z",
        goal="fewer mistakes",
        checkpoint=CheckpointRef(name="tiny", fingerprint=fingerprint),
        analyst=AnalystRecord(kind=kind, model=model),
        modifications=tuple(modifications),
    )


def an_evaluation(
    verdict="improved",
    *,
    other="no detectable change",
    accepted=True,
    suite=SUITE,
    fingerprint=FINGERPRINT,
    finite=True,
):
    """An evaluation with two metrics, of which the second is the decisive one."""

    def metric(name, verdict, difference, p_value):
        shared = {"baseline": 2.0, "difference": difference, "interval": (difference - 0.01, difference + 0.01)}
        calibrated = shared | {
            "candidate": 2.0 + difference,
            "p_value": p_value,
            "p_holm": p_value,
            "mde": 0.001,
            "verdict": "improved" if verdict == "improved" else "no detectable change",
            "temperatures": {"baseline": 1.0, "candidate": 1.0},
            "at_limit": False,
        }
        return shared | {
            "name": name,
            "kind": "text_loss",
            "n": 20,
            "tokens": 1000,
            "candidate": 2.0 + difference,
            "p_value": p_value / 2,
            "p_holm": p_value,
            "test": "sign flips",
            "share_better": 0.7,
            "mde": 0.001,
            "raw_verdict": "improved" if verdict == "temperature only" else verdict,
            "verdict": verdict,
            "nonfinite_documents": 0 if finite else 3,
            "calibrated": calibrated if finite else None,
        }

    return Evaluation.model_validate(
        {
            "baseline": {"name": "tiny", "fingerprint": fingerprint},
            "candidate": {"name": "patched"},
            "suite": {"name": "suite", "digest": suite, "texts": []},
            "seed": 0,
            "versions": {},
            "correction": "holm",
            "metrics": [metric("other", other, -0.5, 0.001), metric("words", verdict, -0.02, 0.03)],
            "drift": {
                "text": "d",
                "tokens": 10,
                "kl_mean": 0.1,
                "kl_p99": 0.2,
                "top1_agreement": 0.9,
                "nonfinite_tokens": 0,
            },
            "controls": {
                "metric": "words",
                "temperature": {"difference": 0.0, "candidate": None, "share": None},
                "random": None,
                "no_random": "none asked for",
                "noise_floor": None,
            },
            "gates": [],
            "accepted": accepted,
        }
    )


def test_what_is_written_is_the_decisive_metric_and_what_was_applied(tmp_path):
    plan = decide(a_plan(0.4, 0.9, 0.7), ["m01", "m03"], "approved", reviewer="me")
    plan = decide(plan, ["m02"], "rejected", reviewer="me")
    path = record_evaluation(plan, an_evaluation(), tmp_path / "deep" / "track")
    assert path is not None
    entry = json.loads(path.read_text())
    assert entry["schema"] == "planner/track@1"
    assert entry["confidences"] == [0.4, 0.7]
    assert (entry["metric"], entry["difference"], entry["p_value"]) == ("words", -0.02, 0.03)
    assert (entry["kind"], entry["model"], entry["fingerprint"]) == ("llm", "gpt-x", FINGERPRINT)
    assert entry["success"] is True


@pytest.mark.parametrize(
    ("verdict", "accepted", "success"),
    [
        ("improved", True, True),
        ("improved", False, False),
        ("temperature only", True, False),
        ("no detectable change", True, False),
        ("worse", False, False),
    ],
)
def test_success_is_an_improved_verdict_and_an_open_gate(tmp_path, verdict, accepted, success):
    path = record_evaluation(a_plan(0.5), an_evaluation(verdict, accepted=accepted), tmp_path)
    assert json.loads(path.read_text())["success"] is success


def test_the_metric_that_improved_is_the_one_that_tells_wherever_it_stands_in_the_suite(tmp_path):
    path = record_evaluation(a_plan(0.5), an_evaluation("no detectable change", other="improved"), tmp_path)
    entry = json.loads(path.read_text())
    assert (entry["metric"], entry["difference"], entry["success"]) == ("other", -0.5, True)
    path = record_evaluation(a_plan(0.6), an_evaluation("worse", other="improved"), tmp_path)
    assert json.loads(path.read_text())["success"] is False, "without a gate that says how much may be lost"


def test_a_loss_that_is_not_finite_is_a_failure_without_numbers(tmp_path):
    path = record_evaluation(a_plan(0.5), an_evaluation("worse", accepted=False, finite=False), tmp_path)
    entry = json.loads(path.read_text())
    assert (entry["difference"], entry["p_value"], entry["success"]) == (None, None, False)


def test_nothing_is_written_where_there_is_nothing_to_learn(tmp_path):
    assert record_evaluation(a_plan(), an_evaluation(), tmp_path) is None
    refused = decide(a_plan(0.5), ["m01"], "rejected", reviewer="me")
    assert record_evaluation(refused, an_evaluation(), tmp_path) is None
    of_others = an_evaluation(fingerprint="blake3:" + "00" * 32)
    assert record_evaluation(a_plan(0.5), of_others, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    unknown = an_evaluation(fingerprint=None)
    assert record_evaluation(a_plan(0.5), unknown, tmp_path) is not None


def test_the_same_proposal_counts_once_and_its_latest_evaluation_decides(tmp_path):
    first = record_evaluation(a_plan(0.5), an_evaluation(), tmp_path)
    again = record_evaluation(a_plan(0.5, id="q"), an_evaluation("worse", accepted=False), tmp_path)
    assert first == again
    assert track_record(tmp_path, "llm", "gpt-x").helped == 0
    other_suite = record_evaluation(a_plan(0.5), an_evaluation(suite="blake3:" + "ee" * 32), tmp_path)
    assert other_suite != first
    record = track_record(tmp_path, "llm", "gpt-x")
    assert (record.plans, record.helped) == (1, 1)
    record_evaluation(a_plan(0.5, tensor="b.weight"), an_evaluation("worse", accepted=False), tmp_path)
    record = track_record(tmp_path, "llm", "gpt-x")
    assert (record.plans, record.helped) == (2, 1)


def test_a_suite_digest_cannot_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "track"
    path = record_evaluation(a_plan(0.5), an_evaluation(suite="blake3:../../../evil/"), folder)
    assert path.parent == folder
    assert track_record(folder, "llm", "gpt-x").plans == 1


def test_each_analyst_has_its_own_record(tmp_path):
    record_evaluation(a_plan(0.5), an_evaluation(), tmp_path)
    record_evaluation(a_plan(0.5, model="gpt-y"), an_evaluation("worse"), tmp_path)
    record_evaluation(a_plan(0.2, kind="rules", model=None), an_evaluation("worse"), tmp_path)
    assert track_record(tmp_path, "llm", "gpt-x").helped == 1
    assert track_record(tmp_path, "llm", "gpt-y").helped == 0
    assert track_record(tmp_path, "rules").stated == 0.2
    assert track_record(tmp_path, "llm").plans == 0


def test_a_model_is_found_by_the_name_it_was_asked_for_too(tmp_path):
    plan = a_plan(0.5, model="gpt-x-2026-11")
    analyst = plan.analyst.model_copy(update={"asked_for": "gpt-x"})
    record_evaluation(plan.model_copy(update={"analyst": analyst}), an_evaluation(), tmp_path)
    assert [track_record(tmp_path, "llm", name).plans for name in ("gpt-x", "gpt-x-2026-11", "gpt-y", None)] == [
        1,
        1,
        0,
        0,
    ]


def test_the_sentence_says_how_many_how_sure_and_how_sure_it_said_it_was(tmp_path):
    for number in range(12):
        verdict = "improved" if number < 2 else "no detectable change"
        record_evaluation(a_plan(0.62, tensor=f"{number}.weight"), an_evaluation(verdict), tmp_path)
    record = track_record(tmp_path, "llm", "gpt-x")
    assert record.sentence() == (
        "of 12 evaluated plans of gpt-x 2 helped (17 %, 95 % interval 5 to 45 %); stated confidence was 0.62 on average"
    )
    assert record.overconfidence == pytest.approx(0.62 - 2 / 12)


def test_without_plans_it_says_so_and_states_no_number(tmp_path):
    record = track_record(tmp_path / "nowhere", "rules")
    assert record.sentence() == "no plan of the rules has been evaluated yet"
    assert (record.plans, record.stated, record.measured, record.interval, record.brier) == (0, None, None, None, None)


def test_a_model_name_with_control_characters_stays_on_one_line(tmp_path):
    record_evaluation(a_plan(0.5, model="x\n\x1b[31mred"), an_evaluation(), tmp_path)
    sentence = track_record(tmp_path, "llm", "x\n\x1b[31mred").sentence()
    assert sentence.isprintable()


def test_broken_files_are_counted_and_passed_over(tmp_path):
    path = record_evaluation(a_plan(0.5), an_evaluation(), tmp_path)
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    (tmp_path / "c.json").write_text(path.read_text().replace("planner/track@1", "planner/track@2"))
    (tmp_path / "d.json").write_text(path.read_text().replace("0.5", "5.0"))
    (tmp_path / "e.json").mkdir()
    (tmp_path / "f.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "g.json").write_text(path.read_text().replace("blake3", "blake4") + " " * 2**20)
    (tmp_path / "notes.txt").write_text("not an entry, and no such name")
    record = track_record(tmp_path, "llm", "gpt-x")
    assert (record.plans, record.broken) == (1, 7)


plans = st.lists(st.tuples(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=8)


@given(plans=plans)
def test_numbers_agree_with_the_definitions(tmp_path_factory, plans):
    folder = tmp_path_factory.mktemp("track")
    for number, (confidences, success) in enumerate(plans):
        verdict = "improved" if success else "worse"
        record_evaluation(a_plan(*confidences, tensor=f"{number}.weight"), an_evaluation(verdict), folder)
    record = track_record(folder, "llm", "gpt-x")
    helped = sum(success for _, success in plans)
    assert (record.plans, record.helped) == (len(plans), helped)
    weighted = [(c, success, 1 / len(cs)) for cs, success in plans for c in cs]
    total = sum(weight for *_, weight in weighted)
    assert total == pytest.approx(len(plans))
    assert record.brier == pytest.approx(sum(w * (c - s) ** 2 for c, s, w in weighted) / total, abs=1e-12)
    assert record.stated == pytest.approx(sum(w * c for c, _, w in weighted) / total, abs=1e-12)
    assert record.overconfidence == pytest.approx(record.stated - helped / len(plans), abs=1e-12)
    assert sum(found.modifications for found in record.bins) == record.modifications == len(weighted)
    for found in record.bins:
        inside = [(c, s) for c, s, _ in weighted if found.low <= c < found.high or c == found.high == 1]
        assert found.modifications == len(inside)
        if inside:
            assert found.stated == pytest.approx(sum(c for c, _ in inside) / len(inside))
            assert found.measured == pytest.approx(sum(s for _, s in inside) / len(inside))
        else:
            assert found.stated is found.measured is None


@given(trials=st.integers(1, 500), data=st.data())
def test_the_interval_is_wilsons(trials, data):
    successes = data.draw(st.integers(0, trials))
    wanted = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_no_trials_have_no_interval():
    with pytest.raises(ValueError, match="of 0"):
        wilson_interval(0, 0)


def test_the_state_folder_follows_the_environment():
    assert state_folder({"PLANNER_STATE": "/a/b", "XDG_STATE_HOME": "/c"}) == Path("/a/b")
    assert state_folder({"XDG_STATE_HOME": "/c"}) == Path("/c/planner")
    assert state_folder({"PLANNER_STATE": "", "XDG_STATE_HOME": ""}) == Path.home() / ".local/state/planner"
    assert track_folder({"PLANNER_STATE": "/a/b"}) == Path("/a/b/track")
