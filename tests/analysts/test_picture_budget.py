"""What is shown where not everything fits: never more tokens than asked for, and never the less for the more."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictured import MOE, QWEN3, brief_of, moe_shapes, pictured, profile_of, qwen3_shapes

from planner.analysts.picture.budget import Line, Section, fitted
from planner.llm.tokens import estimated_tokens

words = st.text(alphabet='abcXYZ 0123.-_{}"', min_size=1, max_size=120)
lines = st.builds(
    lambda text, tier, rank, kind: Line(f"- {text}", (tier, rank), kind),
    words,
    st.integers(0, 5),
    st.floats(-5, 5),
    st.sampled_from(["findings", "series of rms", "series of mean", "names"]),
)
sections = st.lists(
    st.builds(Section, st.sampled_from(["One", "Two\nwith a note"]), st.lists(lines, max_size=12)), max_size=4
)


@given(sections, st.integers(0, 400))
def test_the_text_fits_and_what_is_left_out_is_less_informative(sections, tokens):
    numbered = [
        Section(s.heading, [Line(f"{line.text} #{i}.{j}", line.priority, line.kind) for j, line in enumerate(s.lines)])
        for i, s in enumerate(sections)
    ]
    picture = fitted(numbered, tokens)
    assert picture.tokens == estimated_tokens(picture.text) <= tokens
    every = [line for section in numbered for line in section.lines]
    shown = [line for line in every if line.text in picture.text.splitlines()]
    hidden = [line for line in every if line not in shown]
    assert bool(hidden) == bool(picture.left_out)
    if shown and hidden:
        assert max(line.priority for line in shown) <= min(line.priority for line in hidden)
    order = [line.text for line in shown]
    assert [line for line in picture.text.splitlines() if line in order] == order, "in the order of the document"


def test_nothing_takes_the_place_of_a_long_line_that_says_more():
    long = Line("- " + "a long line " * 40, (1,), "findings")
    section = Section("One", [Line("- first", (0,), "findings"), long, Line("- last", (2,), "findings")])
    assert "- last" in fitted([section], 1000).text
    cut = fitted([section], 100)
    assert "- first" in cut.text
    assert "- last" not in cut.text
    assert cut.left_out == ("2 of 3 findings",)


def test_what_is_left_out_is_counted_and_said_last():
    section = Section(
        "One",
        [Line(f"- a finding with some words {n}", (2, n), "findings") for n in range(9)]
        + [
            Line(f"- q_proj {fact}: 1.000e+00 2.000e+00", (4, 0), f"series of {fact}")
            for fact in ("rms", "mean", "min")
        ],
        beyond={"findings": 5, "aliases": 0},
    )
    picture = fitted([section], 120)
    shown = picture.text.count("a finding")
    assert 0 < shown < 9
    assert picture.left_out == (f"{14 - shown} of 14 findings", "all series of rms, mean, min")
    last = picture.text.rstrip("\n").splitlines()[-1]
    assert last == f"Left out to fit 120 tokens: {'; '.join(picture.left_out)}; ask with the tools."
    alone = fitted([section], 120, tools=False).text.rstrip("\n").splitlines()[-1]
    assert alone.startswith("Left out to fit 120 tokens: ")
    assert "tools" not in alone
    whole = fitted([Section("One", section.lines)], 2000)
    assert whole.left_out == ()
    assert "Left out" not in whole.text


@pytest.fixture(scope="module")
def dense():
    return brief_of(profile_of(qwen3_shapes()), QWEN3)


@pytest.fixture(scope="module")
def sparse():
    return brief_of(profile_of(moe_shapes(), model_type="qwen3_moe", tied=False), MOE)


@pytest.mark.parametrize("tokens", [0, 1, 50, 300, 600, 1000, 2500, 4500, 8000, 50_000])
def test_a_dense_model_fits_any_budget(dense, tokens):
    picture = pictured(dense, tokens)
    assert estimated_tokens(picture.text) <= tokens
    assert picture.text or tokens < 600
    assert ("Left out to fit" in picture.text) == (bool(picture.left_out) and bool(picture.text))


def facts(text: str) -> set[str]:
    return set(re.findall(r"^- \S+ ([\w.]+)(?:, [^:]*)?: ", text, re.MULTILINE))


def test_more_room_shows_everything_that_less_room_shows_and_the_better_statistic_first(dense):
    last: set[str] = set()
    for tokens in (1500, 4500, 8000, 20_000, 50_000):
        text = pictured(dense, tokens).text
        shown = {line for line in text.splitlines() if line.startswith("- ")}
        assert last <= shown
        last = shown
    assert "skewness" not in facts(pictured(dense, 8000).text)
    assert {"rms", "kurtosis"} <= facts(pictured(dense, 8000).text)
    assert pictured(dense, 50_000).left_out == ()


def test_311_tensors_fit_4500_tokens_with_every_role_and_every_rule(dense):
    text = pictured(dense, 4500).text
    assert len(dense.profile.tensors) == 311
    assert "model.layers.{0-27}.self_attn.q_proj.weight 128x64 BF16 (28 tensors)" in text
    for role in {tensor.role for tensor in dense.profile.tensors if tensor.layer is not None}:
        assert re.search(rf"^- {role}: model\.layers\.{{0-27}}\.", text, re.MULTILINE), role
        assert re.search(rf"^- {role} rms: (\d\.\d{{3}}e[+-]\d\d ?){{28}}$", text, re.MULTILINE), role
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert f"- {name}: rms " in text


def test_18000_tensors_of_experts_fit_20000_tokens(sparse):
    assert len(sparse.profile.tensors) > 18_000
    picture = pictured(sparse, 20_000)
    assert picture.tokens <= 20_000
    assert (
        "model.layers.{0-47}.mlp.experts.{0-127}.up_proj.weight 16x64 BF16 (6,144 tensors in 48 layers)" in picture.text
    )
    told = re.findall(r"^- experts\.up_proj rms, by layer: (.*)$", picture.text, re.MULTILINE)
    layers = [entry for line in told for entry in line.split("; ")]
    assert len(layers) == 48
    for layer, entry in enumerate(layers):
        number, median, least, most = re.fullmatch(r"(\d+): (\S+) (\S+)@\d+\*? (\S+)@\d+\*?", entry).groups()
        values = sorted(
            t.rms for t in sparse.profile.tensors if t.role == "experts.up_proj" and t.layer == layer and t.rms
        )
        assert int(number) == layer
        assert [float(median), float(least), float(most)] == pytest.approx(
            [values[63], values[0], values[-1]], rel=6e-4
        )


def test_the_same_brief_gives_the_same_text(dense):
    again = brief_of(profile_of(qwen3_shapes()), QWEN3)
    assert pictured(dense, 6000) == pictured(again, 6000)
