"""`planner probe`: the files it writes, what it says to people and to programs, and every way it can be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from models.tiny import build

from planner.evidence import load_arrays, read_evidence

TEXTS = Path(__file__).parents[2] / "examples" / "tiny-model" / "texts"
SCHEMA = Path(__file__).parents[2] / "schemas" / "evidence.schema.json"
STORIES, INVENTORY = TEXTS / "stories.search.jsonl", TEXTS / "inventory.search.jsonl"
SHORT = ("--documents", 4, "--max-tokens", 10)
Run = Callable[..., Any]

torch.set_num_threads(1)


def valid(document: Any) -> Any:
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    return document


def choices_file(folder: Path) -> Path:
    path = folder / "questions.jsonl"
    lines = [
        {"prompt": "Once there was a", "choices": [" boy", " qty"], "answer": 0},
        {"prompt": "SHEET 901 ZONE", "choices": [" dog", " B", " happy"], "answer": 1},
        {"prompt": "He had a fluffy", "choices": [" dog", " screw qty 024"], "answer": 0},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_it_writes_evidence_with_its_provenance(planner: Run, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    given = ("--text", STORIES, "--goal-text", INVENTORY, "--against", STORIES, "--seed", 3, "--out", out)
    result = planner("probe", tiny_model, *given, *SHORT, "--json")
    assert result.status == 0, result.err
    document = valid(result.json)
    assert document == json.loads(out.read_text()), "exactly one document, the one that was written"
    evidence = read_evidence(out)
    fingerprint = planner("profile", tiny_model, "--json").json["fingerprint"]
    assert evidence.checkpoint.fingerprint == fingerprint
    assert set(evidence.versions) == {"planner", "torch", "transformers", "numpy"}
    assert (evidence.seed, evidence.max_tokens, evidence.groups, evidence.device) == (3, 10, 8, "cpu")
    assert evidence.objective.kind == "contrast"
    assert evidence.created.endswith("Z")
    from blake3 import blake3

    digests = {path: f"blake3:{blake3(path.read_bytes()).hexdigest()}" for path in (STORIES, INVENTORY)}
    assert {text.role: text.digest for text in evidence.texts} == {
        "goal": digests[INVENTORY],
        "against": digests[STORIES],
        "drift": digests[STORIES],
    }
    assert all((text.documents, text.tokens) == (4, 40) for text in evidence.texts)
    measured = load_arrays(out, evidence)
    assert measured.goal.side.tolist() == [0] * 4 + [1] * 4
    assert "propose" in result.err.splitlines()[-1]


def answered(model: Path, path: Path) -> tuple[float, float, float]:
    """Accuracy, margin and loss, a choice at a time, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
    )
    right, margins, losses = [], [], []
    for line in path.read_text().splitlines():
        asked = json.loads(line)
        begin = len(tokenizer(asked["prompt"], add_special_tokens=False)["input_ids"])
        scores = []
        for choice in asked["choices"]:
            ids = [0, *tokenizer(asked["prompt"] + choice, add_special_tokens=False)["input_ids"]]
            with torch.no_grad():
                log_p = loaded(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            scores.append(sum(log_p[place - 1, ids[place]] for place in range(begin + 1, len(ids))))
        every, answer = torch.stack(scores), asked["answer"]
        right.append(int(every.argmax()) == answer)
        margins.append(float(every[answer] - torch.cat([every[:answer], every[answer + 1 :]]).logsumexp(0)))
        losses.append(-float(every.log_softmax(0)[answer]))
    return sum(right) / len(right), sum(margins) / len(margins), sum(losses) / len(losses)


def test_choices(planner: Run, tiny_model: Path, tmp_path: Path) -> None:
    given = ("--text", STORIES, "--choices", choices_file(tmp_path), "--out", tmp_path / "e.json")
    result = planner("probe", tiny_model, *given, *SHORT)
    assert result.status == 0, result.err
    evidence = read_evidence(tmp_path / "e.json")
    assert evidence.objective.kind == "choice"
    accuracy, margin, loss = answered(tiny_model, choices_file(tmp_path))
    assert 0 < accuracy < 1
    assert evidence.objective.accuracy == pytest.approx(accuracy)
    assert evidence.objective.margin == pytest.approx(margin, abs=1e-3)
    assert evidence.objective.loss == pytest.approx(loss, abs=1e-4)
    assert "nats a question" in result.out
    assert f"right answers: {accuracy:.1%}; margin {margin:+.3f} nats" in result.out
    assert [text.role for text in evidence.texts] == ["choices", "drift"]


@pytest.mark.parametrize("width", [80, 100])
def test_it_fits_a_terminal(
    planner: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr("planner.cli.console._PIPED_WIDTH", width)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.jsonl").write_bytes(STORIES.read_bytes())
    result = planner("probe", tiny_model, "--text", "s.jsonl", *SHORT)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= width, [line for line in lines if len(line) > width]
    rows = [line for line in lines if line.strip().startswith("model.")]
    assert len(rows) == 16
    # No number is broken over two lines: each row ends in one of each column.
    heading = next(line for line in lines if line.split()[:1] == ["tensor"])
    assert heading.split()[:2] == ["tensor", "calibrated"]
    columns = heading.replace("± se", "±se").replace("by row", "by-row").split()
    assert all(len(line.replace(" ?", "?").split()) == len(columns) for line in rows)
    assert ("±se" in columns) == (width == 100)
    assert "52 more tensors with smaller gains (--all lists them)" in lines
    assert any(line.startswith("ceiling, one factor a tensor") for line in lines)
    assert any(line.startswith("heads with the largest gains") for line in lines)
    assert (tmp_path / "evidence.json").exists()
    assert (tmp_path / "evidence.safetensors").exists()


def test_one_document_and_every_tensor(planner: Run, tiny_model: Path, tmp_path: Path) -> None:
    given = ("--text", STORIES, "--documents", 1, "--max-tokens", 6, "--out", tmp_path / "e.json", "--all")
    result = planner("probe", tiny_model, *given)
    assert result.status == 0, result.err
    assert sum(".weight" in line for line in result.out.splitlines()) == 68
    assert "±" not in result.out.replace("± se", "")
    assert "halves" not in result.out
    assert "NOTHING TO WIN" not in result.out, "one document cannot show that"
    evidence = read_evidence(tmp_path / "e.json")
    assert all(tensor.scale.raw_se is None and tensor.scale.stable is None for tensor in evidence.tensors)


REFUSED = {
    "a text that is missing": (["--text", "nothing.jsonl"], 2, "file-unreadable"),
    "a text of another kind": (["--text", "MODEL/config.json"], 2, "text-invalid"),
    "a line that is no document": (["--text", "TMP/bad.jsonl"], 2, "text-invalid"),
    "an empty text": (["--text", "TMP/empty.txt"], 2, "text-invalid"),
    "questions that make no sense": (["--text", "STORIES", "--choices", "STORIES"], 2, "text-invalid"),
    "questions and a goal text": (["--text", "STORIES", "--choices", "X", "--goal-text", "STORIES"], 2, "usage"),
    "no such device": (["--text", "STORIES", "--device", "tpu"], 2, "usage"),
    "no such device number": (["--text", "STORIES", "--device", "cpu:9"], 2, "usage"),
    "no such dtype": (["--text", "STORIES", "--dtype", "int8"], 2, "usage"),
    "too many directions": (["--text", "STORIES", "--rank", "5"], 2, "usage"),
    "one group": (["--text", "STORIES", "--groups", "1"], 2, "usage"),
    "no text": ([], 2, "usage"),
    "an output of the wrong name": (["--text", "STORIES", "--out", "TMP/e.safetensors"], 2, "usage"),
    "an output that exists": (["--text", "STORIES", "--out", "TMP/bad.jsonl"], 2, "output-exists"),
    "arrays that exist": (["--text", "STORIES", "--out", "TMP/there.json"], 2, "output-exists"),
    "a folder that is not there": (["--text", "STORIES", "--out", "TMP/no/e.json"], 7, "storage"),
}


@pytest.mark.parametrize(("arguments", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_with_a_next_step(
    planner: Run, tiny_model: Path, tmp_path: Path, everything: Any, arguments: list[str], status: int, code: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "there.safetensors").write_text("mine")
    before = everything(tmp_path)
    places = {"STORIES": str(STORIES)}
    given = [
        places.get(word, word.replace("TMP", str(tmp_path)).replace("MODEL", str(tiny_model))) for word in arguments
    ]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "e.json")]
    result = planner("probe", tiny_model, *given, "--json")
    assert (result.status, result.json["error"]["code"]) == (status, code), result.err
    assert result.json["error"]["hint"]
    assert "Traceback" not in result.err
    assert everything(tmp_path) == before


def test_a_model_that_is_not_there(planner: Run, tmp_path: Path) -> None:
    result = planner("probe", tmp_path / "nowhere", "--text", STORIES, "--out", tmp_path / "e.json")
    assert result.status in (2, 9)
    assert "error[" in result.err


def with_tokenizer(folder: Path, tiny_model: Path) -> Path:
    """The bundled tokenizer has 1,024 tokens, a tiny model 64: these texts keep to the first few."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder / name)
    return folder


@pytest.fixture
def low_text(tmp_path: Path, tiny_model: Path) -> Path:
    """Documents of tokens below 64 only."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = [
        word for word in ("a", "b", "c", "d", "e", "f", "1", "2", "3", ".", ",", "0", "7") if _low(tokenizer, word)
    ]
    assert len(words) > 3
    path = tmp_path / "low.jsonl"
    path.write_text("".join(json.dumps({"text": "".join(words[n:] + words[:n])}) + "\n" for n in range(len(words))))
    return path


def _low(tokenizer: Any, word: str) -> bool:
    return max(tokenizer(word, add_special_tokens=False)["input_ids"]) < 64


def test_a_tokenizer_of_another_model(planner: Run, tiny_model: Path, tmp_path: Path) -> None:
    model = with_tokenizer(build("llama").write(tmp_path / "model"), tiny_model)
    result = planner("probe", model, "--text", STORIES, "--out", tmp_path / "e.json")
    assert result.status == 9, result.err
    assert "the model has only 64 tokens" in result.err


def test_experts_that_are_stored_apart_are_said_not_to_be_measured(
    planner: Run, tiny_model: Path, tmp_path: Path, low_text: Path
) -> None:
    model = with_tokenizer(build("qwen3_moe").write(tmp_path / "model"), tiny_model)
    result = planner("probe", model, "--text", low_text, "--out", tmp_path / "e.json")
    assert result.status == 0, result.err
    evidence = read_evidence(tmp_path / "e.json")
    names = {tensor.name for tensor in evidence.tensors}
    assert names | set(evidence.not_measured) == set(build("qwen3_moe").tensors)
    assert "model.layers.0.self_attn.o_proj.weight" in names
    for name in evidence.not_measured:
        assert ".experts." in name
    if evidence.not_measured:
        assert "not measured: model.layers.0.mlp.experts.0" in result.out


def test_two_stored_copies_of_a_tied_head(planner: Run, tiny_model: Path, tmp_path: Path, low_text: Path) -> None:
    model = with_tokenizer(build("llama-tied", with_copy=True).write(tmp_path / "model"), tiny_model)
    result = planner("probe", model, "--text", low_text, "--out", tmp_path / "e.json")
    assert result.status == 0, result.err
    assert "not measured: lm_head.weight: the loaded model shares it with model.embed_tokens.weight" in result.out


def test_a_model_none_of_whose_tensors_can_be_measured(
    planner: Run, tiny_model: Path, tmp_path: Path, low_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.probes.watching.parameters_by_tensor", lambda *_: {})
    result = planner("probe", tiny_model, "--text", low_text, "--out", tmp_path / "e.json")
    assert result.status == 2
    assert "only checkpoints in the names of transformers can be probed" in result.err


@pytest.mark.parametrize("inner", ["planner.probes.measuring.Machine.measure", "planner.fsio.calls.rename"])
def test_ctrl_c_leaves_no_half_of_the_evidence(
    planner: Run, tiny_model: Path, tmp_path: Path, everything: Any, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    planner("profile", tiny_model)
    before = everything(tmp_path)
    given = ("probe", tiny_model, "--text", STORIES, "--out", tmp_path / "e.json", *SHORT, "--json")

    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inner, pressed)
        result = planner(*given)
    assert result.status == 130
    assert result.json["error"]["code"] == "interrupted"
    assert everything(tmp_path) == before
    assert planner(*given).status == 0


def test_names_of_files_do_not_steer_the_terminal(planner: Run, tiny_model: Path, tmp_path: Path) -> None:
    strange = tmp_path / "s\x1b[31m.jsonl"
    strange.write_bytes(STORIES.read_bytes())
    result = planner("probe", tiny_model, "--text", strange, "--out", tmp_path / "e.json", *SHORT)
    assert result.status == 0
    assert "\x1b" not in result.out + result.err
