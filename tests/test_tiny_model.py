"""The bundled example model: its grammar, its folder, and the script that makes both."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "examples"
FOLDER = EXAMPLES / "tiny-model"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]

sys.path.insert(0, str(EXAMPLES))

import derivation  # noqa: E402
import grammar  # noqa: E402

REGISTERS = sorted(grammar.REGISTERS)


def draw(register: str, count: int, seed: int = 5) -> list[derivation.Document]:
    return list(islice(grammar.documents(register, "test", seed), count))


class Script:
    """Takes given decisions, then always the first option, and remembers what was on offer."""

    def __init__(self, decisions: Sequence[int]) -> None:
        self.taken = list(decisions)
        self.offered: list[int] = []

    def choose(self, options: Sequence[str], weights: Sequence[float], written: int) -> int:
        position = len(self.offered)
        self.offered.append(len(options))
        if position == len(self.taken):
            self.taken.append(0)
        return self.taken[position]


def every_document(rules: derivation.Grammar) -> Iterator[derivation.Document]:
    """Walk through all derivations of a grammar in lexicographic order of their decisions."""
    decisions: list[int] = []
    while True:
        script = Script(decisions)
        yield rules.derive(script)
        decisions = script.taken
        while decisions and decisions[-1] + 1 == script.offered[len(decisions) - 1]:
            decisions.pop()
        if not decisions:
            return
        decisions[-1] += 1


@pytest.fixture(scope="module")
def small() -> derivation.Grammar:
    """A grammar with all the notation has, yet few enough documents to list them all."""
    stage, template = derivation.Stage, derivation.Template
    return derivation.Grammar(
        tables={
            "WHO": {"Ann": 3.0, "Bob": 1.0, "Cy": 1.0},
            "PET": {"cat": 2.0, "dog": 1.0},
            "ACT|cat": {"purrs": 1.0, "sleeps": 2.0},
            "ACT|dog": {"barks": 1.0, "digs": 1.0, "sits": 5.0},
        },
        plans={
            "start": (
                stage((template("{who=WHO} has a {pet=PET}."),)),
                stage((template(" It {ACT|pet}."),), prob=0.3),
                stage((template(" {who} waves."), template(" Oh!", weight=2.0)), prob=0.6),
                stage((template(" Here is {other=WHO-who}.", "more"), template(" End."))),
            ),
            "more": (stage((template(" {other}, {he} says."),)),),
        },
        start="start",
        derived={"pet=cat": {"he": "she"}, "pet=dog": {"he": "he"}},
    )


def test_probabilities_of_all_documents_sum_to_one(small: derivation.Grammar) -> None:
    found = list(every_document(small))
    assert len({document.text for document in found}) == len(found) > 100
    assert math.fsum(math.exp(-document.nats) for document in found) == pytest.approx(1.0)
    for document in found:
        assert small.nats(document.text) == document.nats


def test_one_probability_by_hand(small: derivation.Grammar) -> None:
    text = "Bob has a dog. It digs. Oh! Here is Ann. Ann, he says."
    by_hand = (1 / 5) * (1 / 3) * 0.3 * (1 / 7) * (0.6 * 2 / 3) * (1 / 2) * (3 / 4)
    assert small.nats(text) == pytest.approx(-math.log(by_hand))


@pytest.mark.parametrize("text", ["", "Ann has a cow.", "Ann has a cat. End. End.", "Ann has a"])
def test_texts_outside_the_grammar_are_refused(small: derivation.Grammar, text: str) -> None:
    with pytest.raises(derivation.GrammarError):
        small.nats(text)


def test_ambiguous_choices_are_refused() -> None:
    stage = derivation.Stage((derivation.Template("{WORD}."),))
    rules = derivation.Grammar({"WORD": {"car": 1.0, "carpet": 1.0}}, {"s": (stage,)}, "s")
    with pytest.raises(derivation.GrammarError, match="ambiguous"):
        rules.derive(Script([]))


@pytest.mark.parametrize("register", REGISTERS)
def test_drawing_depends_on_nothing_but_the_seed(register: str) -> None:
    first, again, other = draw(register, 20), draw(register, 20), draw(register, 20, seed=6)
    assert first == again
    assert not {d.text for d in first} & {d.text for d in other}


@pytest.mark.parametrize("register", REGISTERS)
def test_drawn_documents_score_what_drawing_cost(register: str) -> None:
    for document in draw(register, 300):
        assert document.choices > 20
        assert grammar.REGISTERS[register].nats(document.text) == document.nats


def test_registers_are_told_apart() -> None:
    for register, other in zip(REGISTERS, reversed(REGISTERS), strict=True):
        for document in draw(register, 20):
            with pytest.raises(derivation.GrammarError):
                grammar.REGISTERS[other].nats(document.text)
    stories, sheets = (
        {word for document in draw(name, 200) for word in re.findall(r"[A-Za-z]+", document.text)}
        for name in ("stories", "inventory")
    )
    assert len(stories & sheets) < 0.1 * len(sheets)


def test_stories_keep_names_pronouns_and_objects() -> None:
    wrong = {"girl": r"\b([Hh]e|[Hh]is)\b", "boy": r"\b([Ss]he|[Hh]er)\b"}
    names = {name for role in wrong for name in grammar.REGISTERS["stories"].tables[f"NAME|{role}"]}
    for document in draw("stories", 500):
        text, facts = document.text, document.facts
        assert not re.search(wrong[facts["role"]], text), text
        assert text.count(facts["hero"]) >= 2
        assert facts["hero"] != facts["friend"]
        assert set(re.findall(r"\w+", text)) & names == {facts["hero"], facts["friend"]}
        for table, bound in (("PET_NAME", "petname"), ("OBJECT", "obj"), ("SNACK", "snack")):
            words = grammar.REGISTERS["stories"].tables[table]
            present = {word for word in words if re.search(rf"\b{word}\b", text)}
            assert present == ({facts[bound]} if bound in facts else set()), text
        assert text.endswith(".")
        assert "  " not in text


def test_sheets_keep_zone_clerk_and_count() -> None:
    for document in draw("inventory", 300):
        first, *lines, last = document.text.split("\n")
        assert last == f"END {len(lines)} LINES {document.facts['clerk']}"
        assert first.endswith(f" CLERK {document.facts['clerk']}")
        for line in lines:
            assert f" bin {document.facts['zone']}" in line or not line.startswith("IN ")


# ---------------------------------------------------------------------------------------------
# The committed folder
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provenance() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / "PROVENANCE.json").read_text(encoding="utf-8"))
    return value


def texts(register: str, split: str) -> list[str]:
    path = FOLDER / "texts" / f"{register}.{split}.jsonl"
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def stored_tensors(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    tensors: dict[str, Any] = {}
    for shard in SHARDS:
        with safe_open(folder / shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                assert name not in tensors
                tensors[name] = file.get_tensor(name)
    return tensors


def test_the_folder_is_small_and_as_its_provenance_says(provenance: dict[str, Any]) -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    assert sorted(path.name for path in FOLDER.glob("*.safetensors")) == SHARDS
    hashes = {p.relative_to(FOLDER).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}
    unhashed = set(hashes) - set(provenance["files_sha256"])
    assert unhashed == {"PROVENANCE.json", "README.md"}
    assert provenance["files_sha256"].items() <= hashes.items()
    # The sources' hashes are recorded, not compared: a reworded comment needs no new training, and
    # what the sources do is compared by the short run below.
    assert all((EXAMPLES / name).is_file() for name in provenance["sources_sha256"])


def test_the_shards_hold_a_tied_qwen3_in_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    index = json.loads((FOLDER / "model.safetensors.index.json").read_text(encoding="utf-8"))
    tensors = stored_tensors(FOLDER)
    assert set(index["weight_map"]) == set(tensors)
    assert set(index["weight_map"].values()) == set(SHARDS)
    assert index["metadata"]["total_size"] == sum(2 * t.numel() for t in tensors.values())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors
    assert "model.layers.0.self_attn.q_norm.weight" in tensors


def test_no_text_occurs_twice() -> None:
    everything = [
        text
        for register in REGISTERS
        for split in ("calibration", "search", "heldout")
        for text in texts(register, split)
    ]
    assert len(set(everything)) == len(everything) == 690
    for register in REGISTERS:
        for text in texts(register, "search"):
            grammar.REGISTERS[register].nats(text)  # raises for any other text


def test_the_training_stream_leaves_the_stored_texts_out(provenance: dict[str, Any]) -> None:
    script = pytest.importorskip("make_tiny_model")
    stored = {text for name in REGISTERS for text in texts(name, "heldout")}
    trained = set(islice(script.training_stream(provenance["seed"], set()), 3000))
    assert not stored & trained
    first = next(iter(trained))
    assert first not in set(islice(script.training_stream(provenance["seed"], {first}), 3000))


def test_the_tokenizer_adds_nothing_and_loses_nothing() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|bos|>", "<|eos|>")
    for text in [*texts("stories", "search"), *texts("inventory", "search"), "Größe 10 µm, 火\n"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text)
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
        assert len(ids) < 192
        assert tokenizer.decode(ids) == text


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine, threads that wait for each other crawl."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_losses_are_as_recorded_and_near_the_entropy(provenance: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True)
    model.eval()
    assert type(model).__name__ == "Qwen3ForCausalLM"
    for register in REGISTERS:
        heldout = texts(register, "heldout")
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in heldout]
        total = 0.0
        for start in range(0, len(encoded), 20):
            batch = encoded[start : start + 20]
            labels = torch.full((len(batch), max(map(len, batch))), -100)
            for row, ids in enumerate(batch):
                labels[row, : len(ids)] = torch.tensor(ids)
            inputs = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=tokenizer.bos_token_id)
            with torch.no_grad():
                logits = model(inputs.clamp(min=0)).logits
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
            ).item()
        nats = sum(grammar.REGISTERS[register].nats(text) for text in heldout)
        count = sum(map(len, encoded))
        recorded = provenance["registers"][register]
        assert count == recorded["heldout_tokens"]
        assert total / count == pytest.approx(recorded["heldout_loss"], abs=1e-3)
        assert nats / count == pytest.approx(recorded["grammar_entropy"], abs=1e-5)
        if register == "stories":
            assert total < 1.1 * nats
        else:
            assert 1.1 * nats < total < 3.0 * nats


def test_a_short_run_makes_the_same_kind_of_folder(tmp_path: Path) -> None:
    script = pytest.importorskip("make_tiny_model")
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "model"
    assert script.main(["--out", str(out), "--steps", "3"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    shapes, expected = (
        {name: tuple(tensor.shape) for name, tensor in stored_tensors(folder).items()} for folder in (out, FOLDER)
    )
    assert shapes == expected
    for path in (FOLDER / "texts").iterdir():
        assert (out / "texts" / path.name).read_bytes() == path.read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert model.config.model_type == "qwen3"


def test_a_folder_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    script = pytest.importorskip("make_tiny_model")
    (tmp_path / "precious.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path), "--steps", "1"])
    assert (tmp_path / "precious.txt").read_text(encoding="utf-8") == "keep"
