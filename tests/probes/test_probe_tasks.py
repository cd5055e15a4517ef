"""Documents and questions as token ids: which count, how they are grouped, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
from probing import STORIES, TINY_MODEL

from planner.errors import TextInvalid, UsageError
from planner.inference import load_tokenizer
from planner.probes import ProbeRequest
from planner.probes.losses import batches_of
from planner.probes.tasks import Question, Sequences, load_questions, question_groups, text_groups


class Letters:
    """A tokenizer of one token a letter, which joins `ab` and has no BOS token."""

    bos_token_id = None

    def __call__(self, documents: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) - 96 if c != "\n" else 27 for c in d.replace("ab", "\n")] for d in documents]}


def questions(*asked: Question, context: int | None = None, groups: int = 9) -> list[Sequences]:
    made = question_groups(asked, Letters(), context=context, most=None, groups=groups, seed=0)
    return [item for group in made for item in group.items]


def asked(prompt: str, *choices: str, answer: int = 0) -> Question:
    return Question(prompt=prompt, choices=choices, answer=answer)


def test_a_choice_counts_from_the_end_of_its_prompt() -> None:
    (item,) = questions(asked("xyz", "de", "f", answer=1))
    assert item == Sequences(((24, 25, 26, 4, 5), (24, 25, 26, 6)), (3, 3), 1)
    assert (item.weight, item.tokens) == (1, 7)


def test_choices_are_compared_from_where_they_part() -> None:
    """`a` + `b` is one token, `a` + `c` are two: else one would be spared the probability of `a`."""
    (item,) = questions(asked("xa", "b", "c"))
    assert item.ids == ((24, 27), (24, 1, 3))
    assert item.scored_from == (1, 1)


def test_the_first_token_cannot_be_predicted() -> None:
    (item,) = questions(asked("", "cd", "ce"))
    assert item.scored_from == (1, 1)
    with pytest.raises(TextInvalid, match="question 1 has a choice without a token to predict"):
        questions(asked("", "cd", "c"))
    with pytest.raises(TextInvalid, match="question 1 has more than the 3 tokens"):
        questions(asked("xyz", "d", "e"), context=3)


def test_more_items_than_groups_are_dealt_out_evenly() -> None:
    made = question_groups(
        [asked(f"x{c}", "d", "e") for c in "fghijkl"], Letters(), context=9, most=5, groups=2, seed=3
    )
    assert [len(group.items) for group in made] == [3, 2]
    again = question_groups(
        [asked(f"x{c}", "d", "e") for c in "fghijkl"], Letters(), context=9, most=5, groups=2, seed=3
    )
    assert made == again


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "line 2: choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "line 2: the answer is none"),
        ('{"prompt": "a", "choices": ["b", ""], "answer": 0}', "line 2: .*empty"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "line 2: answer"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": -1}', "line 2: answer"),
        ('{"prompt": "a", "choices": ["b", "c"]}', "line 2: answer"),
        ('{"prompt": "\\ud800", "choices": ["b", "c"], "answer": 0}', "line 2: not JSON"),
        ("[" * 5000, "line 2: not JSON"),
    ],
)
def test_questions_that_make_no_sense_are_named_by_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 1}\n' + line)
    with pytest.raises(TextInvalid, match=says) as raised:
        load_questions(path)
    assert '"choices"' in raised.value.hint
    path.write_text("\n\n")
    with pytest.raises(TextInvalid, match="it holds no question"):
        load_questions(path)


def test_documents_without_a_token_to_predict_are_passed_over() -> None:
    tokenizer = load_tokenizer(TINY_MODEL)
    given = {"context": None, "max_tokens": None, "most": None, "groups": 9, "seed": 0}
    made = text_groups(["the dog", "", "a cat"], tokenizer, **given)
    assert sum(len(group.items) for group in made) == 2
    with pytest.raises(TextInvalid, match="no document has a token to predict"):
        text_groups(["a", "b"], Letters(), **given)


def test_the_seed_chooses_the_documents_and_the_context_cuts_them() -> None:
    tokenizer = load_tokenizer(TINY_MODEL)
    texts = [json.loads(line)["text"] for line in STORIES.read_text().splitlines()]
    given = {"max_tokens": None, "most": 6, "groups": 9}
    one, same, other = (text_groups(texts, tokenizer, context=20, seed=seed, **given) for seed in (1, 1, 2))
    assert one == same != other
    assert all(len(item.ids[0]) == 20 for group in one for item in group.items)


def test_batches_hold_every_item_once_within_the_budget() -> None:
    random = np.random.default_rng(0)
    items = [
        Sequences(
            tuple(tuple(int(n) for n in random.integers(0, 9, random.integers(2, 30))) for _ in range(3)), (1,) * 3, 0
        )
        for _ in range(20)
    ]
    for budget in (1, 100, 400, 10**6):
        made = list(batches_of(items, budget, torch.device("cpu")))
        assert sorted(place for batch in made for place in batch.places) == list(range(20))
        for batch in made:
            assert len(batch.items) == 1 or batch.inputs.numel() <= budget
            assert [items[place] for place in batch.places] == list(batch.items)
            assert batch.counts == (1,) * len(batch.items)
            rows = [row[mask.bool()].tolist() for row, mask in zip(batch.inputs, batch.mask, strict=True)]
            assert rows == [list(ids[:-1]) for item in batch.items for ids in item.ids]
            assert batch.targets.tolist() == [n for item in batch.items for ids in item.ids for n in ids[1:]]


def test_what_cannot_be_asked_for_together() -> None:
    with pytest.raises(UsageError, match="--choices is a goal of its own"):
        ProbeRequest(text=STORIES, choices=STORIES, against=STORIES)
    for rank in (0, 5):
        with pytest.raises(UsageError, match="--rank is from 1 to 4"):
            ProbeRequest(text=STORIES, rank=rank)
