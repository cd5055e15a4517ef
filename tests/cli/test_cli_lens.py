"""`planner lens`: layer by layer for people and for programs, alone, with a plan, with a candidate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from builders import a_plan

from planner.plan import write_plan

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "examples" / "tiny-model" / "texts" / "stories.heldout.jsonl"
Run = Callable[..., Any]
SCALED = {
    "target": {"tensors": ["model.layers.2.mlp.down_proj.weight"]},
    "operation": {"kind": "scale", "factor": 1.2},
}


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "scaled.json"
    path.write_bytes(write_plan(a_plan(tiny_model, SCALED)))
    return path


def valid(document: Any) -> Any:
    schema = json.loads((ROOT / "schemas" / "lens.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    return document


def test_a_text_and_a_prompt(
    planner: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: Any
) -> None:
    monkeypatch.setattr("planner.cli.console._PIPED_WIDTH", 100)
    before = everything(tiny_model)
    given = (tiny_model, "--text", TEXT, "--documents", 5, "--max-tokens", 30, "--prompt", "Once upon a time")
    result = planner("lens", *given, "--top", 3, "--out", tmp_path / "lens.json")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "after 'Once upon a time' (9 tokens):"
    shown = [line.split() for line in lines]
    assert sum(words[:1] == ["embedding"] for words in shown) == 2
    assert sum(words[:2] == ["layer", "5"] for words in shown) == 2
    assert f"the lens on 5 documents of {TEXT.name}, 150 positions\n" in result.out
    document = valid(json.loads((tmp_path / "lens.json").read_text()))
    assert document["schema"] == "planner/lens@1"
    assert document["text"]["documents"] == 5
    assert document["model"]["fingerprint"].startswith("blake3:")
    losses = [layer["loss"] for layer in document["layers"]]
    assert losses[-1] < 1 < losses[1], "a trained model knows more in the end"
    assert document["layers"][-1]["top1_agreement"] == 1
    assert [len(layer["top"]) for layer in document["prompts"][0]["layers"]] == [3] * 7
    assert document["recovery"] is None
    assert planner("lens", *given, "--top", 3, "--json").json == document
    assert everything(tiny_model) == before


def test_a_plan_or_the_result_of_applying_it(
    planner: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Path
) -> None:
    monkeypatch.setattr("planner.cli.console._PIPED_WIDTH", 100)
    asked = ("--text", TEXT, "--documents", 4, "--prompt", "Ann")
    shown = planner("lens", tiny_model, *asked, "--plan", plan)
    assert shown.status == 0, shown.err
    assert max(map(len, shown.out.splitlines())) <= 100
    assert "\n   changed " in shown.out
    assert "\n layer 2 * " in shown.out
    assert "the change enters after layer 2, where it is" in shown.out.replace("\n", " ")
    assert planner("apply", plan, "--model", tiny_model, "--out", tmp_path / "out", "--yes").status == 0
    planned = valid(planner("lens", tiny_model, *asked, "--plan", plan, "--json").json)
    applied = valid(planner("lens", tiny_model, *asked, "--candidate", tmp_path / "out", "--json").json)
    assert planned["plan"] == "test-plan"
    assert planned["candidate"] is None
    assert applied["candidate"]["name"].endswith("out")
    assert planned["recovery"] == applied["recovery"]
    assert planned["recovery"]["changed_layers"] == [2]
    assert [layer["difference"] for layer in planned["recovery"]["layers"][:3]] == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "status", "code", "words"),
    [
        ([], 2, "usage", "nothing to look at"),
        (["--prompt", "a", "--plan", "PLAN", "--candidate", "MODEL"], 2, "usage", "two changes"),
        (["--text", "TMP/no.jsonl"], 2, "file-unreadable", "no.jsonl"),
        (["--prompt", "a", "--plan", "STALE"], 4, "stale-plan", "was made for"),
        (["--prompt", "a", "--plan", "TMP/none.json"], 2, "file-unreadable", "none.json"),
        (["--prompt", "a", "--candidate", "TMP"], 9, "not-a-checkpoint", ""),
        (["--prompt", "a", "--out", "TMP/nowhere/lens.json"], 7, "storage", "nowhere"),
    ],
)
def test_errors_in_two_lines(
    planner: Run, tiny_model: Path, tmp_path: Path, plan: Path, options: list[str], status: int, code: str, words: str
) -> None:
    stale = json.loads(plan.read_text())
    stale["checkpoint"]["fingerprint"] = "blake3:" + "0" * 64
    (tmp_path / "stale.json").write_text(json.dumps(stale))
    places = {"PLAN": plan, "MODEL": tiny_model, "STALE": tmp_path / "stale.json"}
    given = [places.get(option, option.replace("TMP", str(tmp_path))) for option in options]
    result = planner("lens", tiny_model, *given)
    assert result.status == status, result.err
    first, *_, last = result.err.splitlines()
    assert first.startswith(f"error[{code}]: ")
    assert words in first
    assert last.startswith("hint: ")
    assert "Traceback" not in result.err


def test_an_empty_prompt_is_the_beginning_of_a_document(planner: Run, tiny_model: Path) -> None:
    result = planner("lens", tiny_model, "--prompt", "")
    assert result.status == 0
    assert result.out.startswith("after '' (1 token):\n")


@pytest.mark.parametrize("inner", ["load_model", "_measured", "_prompt"])
def test_ctrl_c(planner: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str) -> None:
    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"planner.probes.lens.{inner}", pressed)
    result = planner("lens", tiny_model, "--prompt", "Ann", "--out", tmp_path / "lens.json", "--json")
    assert result.status == 130
    assert result.json["error"]["code"] == "interrupted"
    assert not (tmp_path / "lens.json").exists()


def test_a_strangers_token_cannot_steer_the_terminal(
    planner: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.probes.lens._text_of", lambda tokenizer, token: "\x1b[2J\nlayer 9")
    result = planner("lens", tiny_model, "--prompt", "Ann")
    assert result.status == 0
    assert "\x1b" not in result.out
    assert "\nlayer 9" not in result.out


def test_importing_the_probes_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, planner.probes.lens, planner.probes.recovery, planner.probes.residuals, planner.cli.lens\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
