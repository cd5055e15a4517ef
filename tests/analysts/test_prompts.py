"""The prompts: what comes from outside goes in as it is, nothing is forgotten, and a digest says which they were."""

from __future__ import annotations

import re

import pytest

from planner.analysts import prompts
from planner.plan import Policy
from planner.resources import resource_folder

VARIABLES = {
    "goal": "the goal {{ not a template }}",
    "policy": Policy(protected=("lm_head*",), most_modifications=7),
    "refused": ["void"],
    "record": "",
    "catalogue": "the operations",
    "picture": "the model {% if %}",
    "example": "an example",
}


def test_the_task_holds_what_it_is_given_as_it_is():
    text = prompts.render("task.md", **VARIABLES)
    for part in (
        "the goal {{ not a template }}",
        "the model {% if %}",
        "the operations",
        "lm_head*",
        "modifications: 7",
    ):
        assert part in text, "what comes from outside is never a template"
    assert "Variables:" not in text


@pytest.mark.parametrize("name", VARIABLES)
def test_a_missing_variable_is_an_error_and_no_empty_place(name):
    with pytest.raises(KeyError, match=name):
        prompts.render("task.md", **{key: value for key, value in VARIABLES.items() if key != name})
    with pytest.raises(KeyError):
        prompts.render("task.md", **VARIABLES, more="than it takes")


@pytest.mark.parametrize("changed", prompts.TEMPLATES)
def test_the_digest_changes_with_every_template(monkeypatch, changed):
    before = prompts.prompts_sha256()
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert prompts.prompts_sha256() == before
    original = prompts.resource

    def other(kind: str, name: str) -> str:
        return original(kind, name) + (" " if name == changed else "")

    monkeypatch.setattr(prompts, "resource", other)
    assert prompts.prompts_sha256() != before


def test_the_digest_covers_every_template_that_ships():
    assert sorted(path.name for path in resource_folder("prompts").iterdir()) == sorted(prompts.TEMPLATES)
