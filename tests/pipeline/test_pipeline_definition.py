"""The pipeline file: everything is checked before anything is done."""

from __future__ import annotations

import pytest

from planner.errors import PipelineInvalid
from planner.pipeline import Pipeline, ReviewRule, read_pipeline


def test_the_least_that_a_pipeline_says(pipeline):
    found = read_pipeline(pipeline())
    assert found == Pipeline(model="tiny-model", goal="tidy up", suite="suite.toml", controls=0)
    assert found.analyst.kind == "rules"
    assert str(found.review) == "rule: confidence >= 0 and cites a measured fact"


def test_everything_that_a_pipeline_can_say(pipeline):
    found = read_pipeline(
        pipeline(
            more='policy = "p.toml"\nseed = 7\n'
            '[analyst]\nkind = "llm"\nllm = "openai/gpt"\nrepairs = 1\ntemperature = 0.1\ntimeout_s = 60\n'
            "[review]\nleast_confidence = 0.5\nmost_relative_change = 0.1\n"
        )
    )
    assert found.seed == 7
    assert found.analyst.llm == ("openai/gpt",)
    assert str(found.review) == "rule: confidence >= 0.5 and relative change <= 0.1 and cites a measured fact"


WRONG = [
    ("sede = 1", "sede"),
    ("[analyst]\nkynd = 'rules'", "analyst.kynd"),
    ("[analyst]\nkind = 'oracle'", "analyst.kind"),
    ("[analyst]\nkind = 'llm'", "no language model is named"),
    ("[analyst]\nllm = 'x'", "the analyst is `rules`"),
    ("[review]\nleast_confidance = 0.5", "review.least_confidance"),
    ("[review]\nleast_confidence = 5", "review.least_confidence"),
    ("[review]\nmost_relative_change = nan", "review.most_relative_change"),
    ("seed = -1", "seed"),
    ("goal = 'again'", "not TOML"),
]


@pytest.mark.parametrize(("more", "named"), WRONG, ids=[more.replace("\n", " ") for more, _ in WRONG])
def test_a_mistake_is_status_2_and_named_before_anything_is_done(planner, pipeline, tmp_path, monkeypatch, more, named):
    monkeypatch.chdir(tmp_path)
    path = pipeline(more=more)
    result = planner("run", path)
    assert result.status == 2
    assert result.err.startswith("error[pipeline-invalid]: ")
    assert named in result.err
    assert not (tmp_path / "runs").exists()


def test_every_mistake_is_named_at_once(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('goal = ""\nsede = 1\n')
    with pytest.raises(PipelineInvalid) as raised:
        read_pipeline(path)
    for field in ("model", "suite", "goal", "sede"):
        assert f"{field}: " in raised.value.message


@pytest.mark.parametrize(("missing", "status"), [("suite.toml", 2), ("policy.toml", 2), ("tiny-model", 9)])
def test_a_file_that_a_pipeline_names_must_be_there(planner, pipeline, tmp_path, monkeypatch, missing, status):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text("")
    path = pipeline(more='policy = "policy.toml"\n')
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    result = planner("run", path, "--json")
    assert result.status == status
    assert missing in result.json["error"]["message"]


def test_the_rule_in_place_of_a_reviewer_says_what_it_is():
    assert str(ReviewRule(least_confidence=0.25, ungrounded=True)) == "rule: confidence >= 0.25"
