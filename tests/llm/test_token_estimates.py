"""The estimate of tokens, held against two real vocabularies that lie in litellm's package."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.llm.tokens import estimated_tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counts():
    """`counts(text)`: real numbers of tokens, by cl100k_base and by Anthropic's published vocabulary."""
    found = find_spec("litellm")
    if found is None or found.origin is None:
        pytest.skip("litellm, which carries the vocabularies, is not installed")
    folder = Path(found.origin).parent / "litellm_core_utils" / "tokenizers"  # importing it would take seconds
    if not (folder / "anthropic_tokenizer.json").is_file():
        pytest.skip("this version of litellm carries no vocabularies")
    tiktoken = pytest.importorskip("tiktoken")
    tokenizers = pytest.importorskip("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        one = tiktoken.get_encoding("cl100k_base")
    other = tokenizers.Tokenizer.from_file(str(folder / "anthropic_tokenizer.json"))
    return lambda text: (len(one.encode(text, disallowed_special=())), len(other.encode(text).ids))


def series(seed: int) -> str:
    rng = random.Random(seed)
    rows = (
        (role, fact) for role in ("q_proj", "input_layernorm", "experts.down_proj") for fact in ("rms", "outliers.6")
    )
    return "\n".join(
        f"{role} {fact}: " + " ".join(f"{rng.gauss(0, 1) * 0.01:.3e}" for _ in range(28)) for role, fact in rows
    )


def counts_of(seed: int) -> str:
    rng = random.Random(seed)
    return "\n".join(", ".join(str(rng.randrange(10**12)) for _ in range(12)) for _ in range(40))


def names() -> str:
    roles = ["self_attn.q_proj", "self_attn.k_norm", "mlp.gate_proj", "input_layernorm", "mlp.experts.7.down_proj"]
    return "\n".join(f"model.layers.{layer}.{role}.weight 2048x1024 BF16" for layer in range(28) for role in roles)


def texts() -> dict[str, str]:
    files = [ROOT / "README.md", *(ROOT / "schemas").glob("*.json"), *(ROOT / "examples").glob("*.json")]
    files += [*(ROOT / "prompts").glob("*.md"), *(ROOT / "planner" / "effects").glob("*.py")]
    found = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(files)}
    patches = json.loads((ROOT / "examples" / "patches.json").read_text())
    return found | {
        "series": series(0),
        "names": names(),
        "counts": counts_of(2),
        "json without blanks": json.dumps(patches, separators=(",", ":")),
    }


def test_no_text_of_ours_is_underestimated_or_far_overestimated(counts):
    for name, text in texts().items():
        larger = max(counts(text))
        assert larger <= estimated_tokens(text) <= 1.35 * larger, name


def test_digests_are_not_underestimated(counts):
    rng = random.Random(1)
    text = "\n".join("blake3:" + "".join(rng.choices("0123456789abcdef", k=64)) for _ in range(40))
    assert max(counts(text)) <= estimated_tokens(text)


@pytest.mark.parametrize(
    "text",
    [
        "模型的权重可以直接修改而无需训练。" * 9,
        "언어 모델의 가중치를 직접 바꾸고 되돌릴 수 있다. " * 9,
        "Wahrscheinlichkeitsverteilungen bleiben nachvollziehbar. " * 9,
        "😀🎉🚀 ok 🧪 " * 9,
    ],
    ids=["Chinese", "Korean", "German", "emoji"],
)
def test_other_scripts_are_not_underestimated(counts, text):
    assert max(counts(text)) <= estimated_tokens(text)


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_text_is_at_most_the_sum_of_its_lines(one, other):
    whole = estimated_tokens(one + "\n" + other)
    assert whole <= estimated_tokens(one + "\n") + estimated_tokens(other)
    assert estimated_tokens(one) <= whole


def test_nothing_is_nothing_and_half_a_character_is_no_error():
    assert estimated_tokens("") == 0
    assert estimated_tokens("\ud800") > 0
