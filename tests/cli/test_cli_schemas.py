"""The schemas of every file: valid themselves, complete, up to date, and true of what the planner writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from planner.cli.schemas import generated

REPOSITORY = Path(__file__).parents[2]
NAMES = sorted(generated())


@pytest.fixture
def written(planner, tmp_path) -> Path:
    folder = tmp_path / "schemas"
    assert planner("schemas", "--out", folder).status == 0
    return folder


def test_the_committed_schemas_are_up_to_date(planner):
    assert planner("schemas", "--check", "--out", REPOSITORY / "schemas").status == 0


def test_a_stale_a_missing_and_a_superfluous_file_are_found(planner, written):
    assert planner("schemas", "--check", "--out", written).status == 0
    plan = written / "plan.schema.json"
    original = plan.read_bytes()
    plan.write_bytes(original.replace(b"confidence", b"confidenze"))
    (written / "ledger.schema.json").unlink()
    (written / "old.schema.json").write_text("{}")
    found = planner("schemas", "--check", "--out", written)
    assert found.status == 2
    for name in ("plan.schema.json", "ledger.schema.json", "old.schema.json"):
        assert name in found.err
    assert "profile.schema.json" not in found.err
    assert b"confidenze" in plan.read_bytes(), "--check writes nothing"
    assert planner("schemas", "--out", written).status == 0
    assert plan.read_bytes() == original


@pytest.mark.parametrize("name", NAMES)
def test_every_schema_is_valid_json_schema(name):
    schema = json.loads(generated()[name])
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_and_every_record_is_described(name):
    schema = json.loads(generated()[name])
    records: dict[str, Any] = {"": schema, **schema.get("$defs", {})}
    for title, record in records.items():
        if "properties" not in record:
            continue
        assert record.get("description"), f"{title or name} has no description"
        assert record["additionalProperties"] is False, f"{title or name} takes unknown fields"
        for field, content in record["properties"].items():
            described = content if "description" in content else records[content["$ref"].rpartition("/")[2]]
            assert described["description"], f"{title or name}.{field} has no description"


@pytest.mark.parametrize("name", NAMES)
def test_the_kind_and_version_of_a_document_stand_in_it(name):
    properties = json.loads(generated()[name])["properties"]
    if name not in ("pipeline", "policy"):  # files that people write, told apart by where they are named
        assert properties["schema"]["const"].startswith("planner/")


def valid(document: Any, name: str) -> None:
    jsonschema.Draft202012Validator(json.loads(generated()[name])).validate(document)


def test_what_the_planner_writes_is_valid(planner, tiny_model, tmp_path, suite):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    valid(planner("profile", tiny_model, "--json").json, "profile")
    valid(planner("propose", tiny_model, "--goal", "g", "--out", plan, "--json").json, "plan")
    valid(json.loads(plan.read_text()), "plan")
    valid(planner("check", plan, "--model", tiny_model, "--json").json, "check")
    valid(planner("apply", plan, "--model", tiny_model, "--out", out, "--yes", "--json").json, "receipt")
    valid(json.loads((out / ".planner" / "ledger.json").read_text()), "ledger")
    valid(planner("verify", out, "--json").json, "verification")
    valid(planner("diff", tiny_model, out, "--json").json, "diff")
    arguments = ["--baseline", tiny_model, "--suite", suite(10), "--json"]
    valid(planner("evaluate", out, *arguments).json, "evaluation")


def test_a_schema_refuses_what_the_planner_refuses(proposed):
    document = json.loads(proposed.read_text())
    for path, value in (
        (("modifications", 0, "confidence"), 1.5),
        (("modifications", 1, "operation", "kind"), "explode"),
        (("checkpoint", "fingerprint"), "md5:0"),
        (("surprise",), 1),
    ):
        copy = json.loads(json.dumps(document))
        place = copy
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            valid(copy, "plan")
