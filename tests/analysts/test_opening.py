"""The first question as a whole: goal, policy, operations, tools and the picture, in so many tokens and no more."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from pictured import MOE, QWEN3, brief_of, moe_shapes, profile_of, qwen3_shapes
from pictured_evidence import made_evidence

from planner.analysts import Asking, Brief, first_question
from planner.effects import Known
from planner.llm.tokens import estimated_tokens
from planner.operations import OPERATIONS


@pytest.fixture(scope="module")
def dense() -> Brief:
    return brief_of(profile_of(qwen3_shapes()), QWEN3)


@pytest.fixture(scope="module")
def experts() -> Brief:
    return brief_of(profile_of(moe_shapes(), model_type="qwen3_moe", tied=False), MOE)


@pytest.fixture(scope="module")
def measured(dense) -> Known:
    return made_evidence(dense.profile, dense.model, row=("model.embed_tokens.weight", 58))


def everything_sent(brief: Brief, asking: Asking) -> tuple[int, str]:
    """The estimate, and what it is of."""
    asked = first_question(brief, asking)
    parts = [message.content for message in asked.messages] + [tool.model_dump_json() for tool in asked.tools]
    return asked.tokens, "\n".join(parts)


@pytest.mark.parametrize("tools", [True, False])
def test_311_tensors_take_at_most_8000_tokens(dense, tools):
    assert len(dense.profile.tensors) == 311
    tokens, text = everything_sent(dense, Asking(tools=tools))
    assert 7_000 < tokens <= 8_000, "and what there is room for is used"
    assert estimated_tokens(text) <= tokens
    for kind in OPERATIONS:
        assert f"\n- {kind}(" in text or f"\n- {kind} [" in text
    for role in ("q_proj", "down_proj", "k_norm", "input_layernorm"):
        assert f"- {role}: model.layers.{{0-27}}." in text
    assert text.count(" rms: ") >= 9, "of nearly every role, a value for each layer"
    assert "q_proj: invariant" in text
    assert "Left out to fit" in text


@pytest.mark.parametrize("tools", [True, False])
def test_with_evidence_the_decisive_facts_of_311_tensors_are_in_8000_tokens(dense, measured, tools):
    tokens, text = everything_sent(replace(dense, evidence=measured), Asking(tools=tools))
    assert 7_000 < tokens <= 8_000
    assert len(re.findall(r"^  \S+ probe\.(?:row|column)\.\d+ ", text, re.MULTILINE)) == 12
    assert len(re.findall(r"^- layer \d+ (?:head|neuron) \d+: .*promotes", text, re.MULTILINE)) == 8
    first = re.search(r"^  (\S+ probe\.\S+) ", text, re.MULTILINE)[1]
    assert first == "model.embed_tokens.weight probe.row.58"


def test_where_whole_tensors_win_nothing_there_is_room_for_the_rms_of_every_role(dense, measured):
    evidence, arrays = measured
    ceilings = tuple(c.model_copy(update={"hopeless": c.kind == "tensors"}) for c in evidence.ceilings)
    known = (evidence.model_copy(update={"ceilings": ceilings}), arrays)
    _, text = everything_sent(replace(dense, evidence=known), Asking())
    (line,) = re.findall(r"^- rms, the median of each role @ its layer: (.*)$", text, re.MULTILINE)
    medians = dict(part.split(" ") for part in line.split(", "))
    assert medians.keys() == {tensor.role for tensor in dense.profile.tensors if tensor.layer is not None}
    for role, told in medians.items():
        value, layer = told.split("@")
        own = {t.layer: t.rms for t in dense.profile.tensors if t.role == role}
        assert float(value) == pytest.approx(own[int(layer)], rel=5e-4)
        assert own[int(layer)] == sorted(own.values())[(len(own) - 1) // 2]


@pytest.mark.parametrize("tools", [True, False])
def test_18000_tensors_take_at_most_24000_tokens(experts, tools):
    assert len(experts.profile.tensors) > 18_000
    tokens, _ = everything_sent(experts, Asking(tools=tools))
    assert 16_000 < tokens <= 24_000


@pytest.mark.parametrize("limit", [6_000, 9_000, 20_000])
def test_the_limit_is_what_the_user_says(dense, limit):
    tokens, _ = everything_sent(dense, Asking(context_tokens=limit))
    assert tokens <= limit


def test_more_room_shows_more(dense):
    few, many = (len(first_question(dense, Asking(context_tokens=limit)).left_out) for limit in (7_000, 60_000))
    assert many < few


@pytest.mark.skipif(find_spec("litellm") is None, reason="litellm brings the vocabularies, and is not installed")
def test_by_real_vocabularies_it_is_no_more_either(dense, experts, monkeypatch):
    origin = find_spec("litellm").origin
    folder = Path(origin).parent / "litellm_core_utils" / "tokenizers"
    monkeypatch.setitem(os.environ, "TIKTOKEN_CACHE_DIR", str(folder))
    import tiktoken
    from tokenizers import Tokenizer

    encodings = [
        lambda text: len(tiktoken.get_encoding("cl100k_base").encode(text)),
        lambda text: len(Tokenizer.from_file(str(folder / "anthropic_tokenizer.json")).encode(text).ids),
    ]
    for brief, limit in ((dense, 8_000), (experts, 24_000)):
        _, text = everything_sent(brief, Asking())
        for count in encodings:
            assert count(text) <= limit
