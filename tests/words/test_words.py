"""The words of units on trained models, and what is said where there are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import build
from safetensors.torch import load_file, save_file

from planner.architecture import ModelMap, map_of, unknown_map
from planner.checkpoint import Checkpoint, TensorReader, open_checkpoint
from planner.words import stored_matrices, unit_vectors, vocabulary_scores
from planner.words.words import TokenWeight, Unit, UnitWords, sentence, words_of

FEW = 0.2
"""Of the vocabulary. The final norm's scale moves as well, which blurs the direct path's ranking a little."""
TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
ALL_KINDS = [
    Unit("neuron", 5, 1),
    Unit("head", 5, 2),
    Unit("channel", None, 7),
    Unit("token", None, 300),
    Unit("neuron", 0, 3),
    Unit("channel", 2, 7),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def opened(folder: Path) -> tuple[Checkpoint, ModelMap]:
    checkpoint = open_checkpoint(folder)
    return checkpoint, map_of(checkpoint.config, {n: t.shape for n, t in checkpoint.tensors.items()})


def said(folder: Path, units: Sequence[Unit], **options: Any) -> tuple[UnitWords, ...]:
    return words_of(*opened(folder), units, **options)


def written(folder: Path, key: str, change: Any = None, *, dtype: str = "F32") -> Path:
    """A tiny random model, its tensors changed in place by `change`."""
    build(key).write(folder, dtype)
    if change:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@cache
def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def ranks_when_raised(folder: Path, text: str, neuron: int) -> list[int]:
    """By token: its place, from 0, among all by how much its logit rises where an activation of the last layer does.

    The mean over the positions of a text, with all later arithmetic, the final norm's scale at each position included.
    """
    from transformers import AutoTokenizer

    model = loaded(folder)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[:, :100]

    def raised(_: Any, inputs: Any) -> Any:
        more = inputs[0].clone()
        more[..., neuron] += 0.01
        return (more,)

    with torch.inference_mode():
        before = model(ids).logits[0]
        handle = model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(raised)
        change = model(ids).logits[0] - before
        handle.remove()
    found: list[int] = change.mean(dim=0).argsort(descending=True).argsort().tolist()
    return found


def test_raising_a_neuron_of_the_bundled_model_raises_what_it_promotes() -> None:
    lines = (TINY_MODEL / "texts" / "stories.heldout.jsonl").read_text().splitlines()[:3]
    text = " ".join(json.loads(line)["text"] for line in lines)
    neurons = [0, 1, 3, 50]
    for words in said(TINY_MODEL, [Unit("neuron", 5, neuron) for neuron in neurons]):
        ranks = ranks_when_raised(TINY_MODEL, text, words.index)
        assert max(ranks[token.id] for token in words.promotes) < FEW * len(ranks)
        assert min(ranks[token.id] for token in words.suppresses) >= (1 - FEW) * len(ranks)


def test_raising_a_neuron_of_a_trained_llama_raises_what_it_promotes(assets: Path) -> None:
    folder = assets / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; PLANNER_ASSETS names its folder")
    for words in said(folder, [Unit("neuron", 4, neuron) for neuron in (2, 40)]):
        text = "Once upon a time there was a little girl. She had a big dog."
        ranks = ranks_when_raised(folder, text, words.index)
        assert max(ranks[token.id] for token in words.promotes) < FEW * len(ranks)
        assert min(ranks[token.id] for token in words.suppresses) >= (1 - FEW) * len(ranks)
        assert all(token.text for token in words.promotes)


def test_tokens_have_the_texts_that_the_tokenizer_gives_them() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY_MODEL / "tokenizer.json"))
    for words in said(TINY_MODEL, ALL_KINDS):
        for token in (*words.promotes, *words.reads_least, *words.neighbours):
            read = tokenizer.decode([token.id], skip_special_tokens=False)
            assert token.text == read or "�" in read, "but for single bytes, which decoders replace"
    (own,) = said(TINY_MODEL, [Unit("token", None, 300)])
    assert own.text == tokenizer.decode([300])


def test_words_are_in_the_order_of_the_units_and_stand_in_json() -> None:
    found = said(TINY_MODEL, ALL_KINDS, top=3)
    assert [(w.kind, w.layer, w.index) for w in found] == [(u.kind, u.layer, u.index) for u in ALL_KINDS]
    assert all(w.note is None for w in found)
    for unit, words in zip(ALL_KINDS, found, strict=True):
        assert UnitWords.model_validate_json(words.model_dump_json()) == words
        assert (words,) == said(TINY_MODEL, [unit], top=3), "what else is asked changes nothing"
        lists = (words.promotes, words.suppresses, words.reads_most, words.reads_least, words.neighbours)
        assert all(len(one) in (0, 3) for one in lists)
    assert said(TINY_MODEL, []) == ()


def test_tensors_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = said(TINY_MODEL, [*ALL_KINDS, Unit("head", 5, 0), Unit("neuron", 5, 2)])
    most = 3_000  # fewer than a head's matrices have
    monkeypatch.setattr(stored_matrices, "MOST_ELEMENTS", most)
    monkeypatch.setattr(unit_vectors, "MOST_ELEMENTS", most)
    sizes = []
    read_into = TensorReader.read_into

    def counted(self: TensorReader, buffer: memoryview, *rest: Any) -> None:
        sizes.append(len(buffer) // 2)  # the model is bfloat16
        read_into(self, buffer, *rest)

    monkeypatch.setattr(TensorReader, "read_into", counted)
    pieces = said(TINY_MODEL, [*ALL_KINDS, Unit("head", 5, 0), Unit("neuron", 5, 2)])
    assert 0 < max(sizes) <= most
    for one, other in zip(whole, pieces, strict=True):
        assert [t.id for t in one.promotes] == [t.id for t in other.promotes]
        assert [t.id for t in one.reads_least] == [t.id for t in other.reads_least]
        values = [[t.value for t in (*w.suppresses, *w.reads_most, *w.neighbours)] for w in (one, other)]
        np.testing.assert_allclose(*values, rtol=1e-4)


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0, np.nan, np.inf]), min_size=1, max_size=60),
    st.integers(1, 7),
    st.lists(st.integers(1, 59), max_size=4),
)
def test_the_outermost_scores_do_not_depend_on_blocks(values: list[float], top: int, cuts: list[int]) -> None:
    scores = np.array(values)[:, None]
    kept = vocabulary_scores._Kept(1, top)
    edges = [0, *sorted({cut for cut in cuts if cut < len(scores)}), len(scores)]
    for first, end in pairwise(edges):
        kept.add(first, scores[first:end])
    (ends,) = kept.ends(centred=False)
    finite = [(token, value) for token, value in enumerate(values) if np.isfinite(value)]
    assert list(ends.highest) == sorted(finite, key=lambda pair: -pair[1])[:top]
    assert list(ends.lowest) == sorted(finite, key=lambda pair: pair[1])[:top]


def test_what_is_added_to_all_logits_is_no_word(tmp_path: Path) -> None:
    def shifted(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] += torch.linspace(-3, 3, 32)

    units = [Unit("neuron", 1, 4), Unit("channel", None, 31)]
    before = said(written(tmp_path / "a", "llama", dtype="F64"), units)
    after = said(written(tmp_path / "b", "llama", shifted, dtype="F64"), units)
    for one, other in zip(before, after, strict=True):
        assert [t.id for t in one.promotes] == [t.id for t in other.promotes]
        values = [[t.value for t in (*w.promotes, *w.suppresses)] for w in (one, other)]
        np.testing.assert_allclose(*values, rtol=2e-5)


def test_bfloat16_is_read_as_it_is_stored(tmp_path: Path) -> None:
    def widened(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: values.double() for name, values in tensors.items()})

    narrow = written(tmp_path / "a", "qwen2", dtype="BF16")
    wide = written(tmp_path / "b", "qwen2", widened, dtype="BF16")
    units = [Unit("neuron", 1, 4), Unit("head", 1, 2), Unit("token", None, 3)]
    assert said(narrow, units) == said(wide, units)


def notes(folder: Path, units: Sequence[Unit]) -> list[str]:
    found = said(folder, units)
    assert not any(w.promotes or w.suppresses or w.reads_most or w.neighbours for w in found)
    return [w.note or "" for w in found]


def test_units_that_are_not_there_are_said_to_be(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", "mixtral")
    units = [
        Unit("neuron", 1, 3),
        Unit("neuron", 1, 48, 2),
        Unit("neuron", 1, 3, 9),
        Unit("neuron", 7, 3),
        Unit("neuron", None, 3),
        Unit("head", 0, 4),
        Unit("head", 0, -1),
        Unit("channel", 3, 0),
        Unit("channel", None, 32),
        Unit("token", None, 64),
    ]
    assert notes(folder, units) == [
        "the neurons in layer 1 belong to 4 experts: name one",
        "there are 48 neurons here, numbered from 0",
        "there is no neuron in layer 1 that belongs to expert 9",
        "there are no neurons in layer 7",
        "there are no neurons outside the layers",
        "there are 4 query heads here, numbered from 0",
        "there are 4 query heads here, numbered from 0",
        "there is no layer 3",
        "there are 32 channels, numbered from 0",
        "there are 64 rows of the embedding, numbered from 0",
    ]


def test_a_model_without_a_map_has_notes_and_no_words(tmp_path: Path) -> None:
    checkpoint, _ = opened(written(tmp_path / "m", "llama"))
    found = words_of(checkpoint, unknown_map("nobody\x1b[31m knows"), ALL_KINDS)
    assert {w.note for w in found} == {"the map of the model is not known: nobody\\x1b[31m knows"}
    assert sentence(found[0]) == "neuron 1 of layer 5: the map of the model is not known: nobody\\x1b[31m knows"


def test_weights_that_are_zero_or_not_finite(tmp_path: Path) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = float("nan")
        tensors["model.layers.0.self_attn.o_proj.weight"][:, 8:16] = 0
        tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] = float("inf")
        tensors["model.embed_tokens.weight"][7] = 0
        tensors["model.embed_tokens.weight"][8, 1] = float("nan")

    folder = written(tmp_path / "m", "llama", broken)
    units = [
        Unit("neuron", 0, 5),
        Unit("head", 0, 1),
        Unit("head", 1, 0),
        Unit("token", None, 7),
        Unit("token", None, 8),
    ]
    bad = said(folder, units)
    assert [w.note for w in bad] == [
        "its weights are not finite",
        *["its output times value matrix is zero, or not finite"] * 2,
        *["its row of the embedding is zero, or not finite"] * 2,
    ]
    assert not any(w.promotes for w in bad)
    (sound,) = said(folder, [Unit("neuron", 0, 6)], top=64)
    read = {token.id for token in sound.reads_most}
    assert read == set(range(64)) - {8}, "one row that is not finite keeps no other token from its place"


def test_without_a_tokenizer_tokens_are_numbers(tmp_path: Path) -> None:
    (words,) = said(written(tmp_path / "m", "gpt2"), [Unit("neuron", 1, 4)])
    assert words.promotes
    assert {token.text for token in (*words.promotes, *words.reads_most)} == {None}
    assert words.note == "there is no tokenizer.json that can be used, so tokens are given by number"
    assert f"promotes #{words.promotes[0].id} #" in sentence(words)


def test_values_in_an_unknown_dtype_have_a_note(tmp_path: Path) -> None:
    def narrowed(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.down_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    folder = written(tmp_path / "m", "llama", narrowed)
    assert notes(folder, [Unit("neuron", 0, 5)]) == [
        "'model.layers.0.mlp.down_proj.weight' holds F8_E4M3, whose values are not read here"
    ]
    (words,) = said(folder, [Unit("neuron", 1, 5)])
    assert words.promotes


def test_a_list_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="top"):
        said(TINY_MODEL, ALL_KINDS, top=0)


def tokens(*texts: str | None) -> tuple[TokenWeight, ...]:
    return tuple(TokenWeight(id=place, text=text, value=1.0) for place, text in enumerate(texts))


def test_a_sentence_for_each_kind() -> None:
    neuron = UnitWords(
        kind="neuron",
        layer=3,
        index=12,
        promotes=tokens(" mum", " mommy"),
        suppresses=tokens(".", "!"),
        reads_most=tokens(" her", None, "a", "b", "c"),
    )
    assert (
        sentence(neuron) == 'neuron 12 of layer 3 promotes " mum" " mommy"; suppresses "." "!"; reads " her" #1 "a" "b"'
    )
    assert sentence(neuron, most=1).endswith('reads " her"')
    head = UnitWords(
        kind="head", layer=0, index=1, promotes=tokens("a"), reads_most=tokens("b"), reads_least=tokens("c"), share=0.71
    )
    assert (
        sentence(head)
        == 'head 1 of layer 0 promotes "a"; reads "b"; least "c"; by the direction that holds 71% of its OV matrix'
    )
    token = UnitWords(kind="token", layer=None, index=300, text="ing", neighbours=tokens(" la", "orn"))
    assert sentence(token) == 'token 300 "ing" is nearest to " la" "orn"'
    expert = UnitWords(kind="neuron", layer=1, index=2, expert=3, note="there is none")
    assert sentence(expert) == "neuron 2 of expert 3 of layer 1: there is none"
    assert sentence(expert.model_copy(update={"promotes": tokens("a")})).endswith('promotes "a" - there is none')


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_a_sentence_is_one_line_whatever_the_tokens_are(texts: list[str]) -> None:
    line = sentence(UnitWords(kind="token", layer=None, index=1, text=texts[0], neighbours=tokens(*texts)))
    assert line.isprintable()
    assert len(line) < 60 + 5 * 45


def test_hostile_token_texts_stay_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    folder = written(tmp_path / "m", "gpt2")
    texts = {f"\x1b[2J\n{number}\u202e": number for number in range(60)}  # and four rows that no token has
    Tokenizer(models.WordLevel(texts, unk_token="")).save(str(folder / "tokenizer.json"))
    for words in said(folder, [Unit("token", None, 5), Unit("neuron", 1, 5)], top=64):
        line = sentence(words, most=64)
        assert line.isprintable()
        assert '"\\x1b[2J\\n17\\u202e"' in line
        assert " #61" in line
        assert UnitWords.model_validate_json(words.model_dump_json()) == words


def test_nothing_heavy_is_imported() -> None:
    import subprocess
    import sys

    code = "import planner.words.words, sys; print({'torch', 'transformers', 'numba'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
