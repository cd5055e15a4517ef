"""The model card: front matter held against PyYAML, the section against a Markdown parser, both with hostile texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import a_plan
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from snapshots import approved_plan, change, scale

from planner.plain_text import plain
from planner.plan import Plan, Policy
from planner.transaction import Receipt, ReceiptTensor, apply_plan, read_ledger, revert
from planner.transaction.card.front_matter import with_base_model
from planner.transaction.card.model_card import TAG, model_card

# As huggingface_hub finds the front matter of a card.
HUB = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
BASE = "org/Model-1"


def metadata(card: str) -> Any:
    """What a hub reads at the top of a card; None where it finds nothing."""
    found = HUB.match(card.removeprefix("\ufeff"))
    return yaml.safe_load(found[2]) if found else None


FRONT_MATTERS = {
    "plain": "---\nlicense: mit\n---\n# T\n",
    "CRLF": "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n# T\r\n",
    "BOM": "\ufeff---\nlicense: mit\n---\n# T\n",
    "blank lines first": "\n\n---\nlicense: mit\n---\n# T\n",
    "spaces after the rules": "--- \nlicense: mit\n---\t\n# T\n",
    "no line break at the end": "---\nlicense: mit\n---",
    "scalar": "---\nbase_model: foo/bar\nlicense: mit\n---\n",
    "scalar with a comment": "---\nbase_model: foo/bar  # the base\nlicense: mit\n---\n",
    "nothing": "---\nbase_model:\nlicense: mit\n---\n",
    "nothing, with a comment": "---\nbase_model:  # none\nlicense: mit\n---\n",
    "quoted": "---\n\"base_model\": 'it''s: #1'\nlicense: \"m\\\"it\"\n---\n",
    "flow list": "---\nbase_model: [a, 'b]', \"c\\\"]\"] # two\nlicense: mit\n---\n",
    "flow list in lines": "---\nbase_model: [\n  a, # one ]\n  b\n]\ntags: [a, b]\n---\n",
    "block list": "---\nbase_model:\n- a\n- b\nlicense: mit\n---\n",
    "block list further in": "---\nbase_model:\n  # first\n  - a # x\n\n  - b\n\n# kept\nlicense: mit\n---\n",
    "list of mappings": "---\nbase_model:\n  - a: b\n    c: d\nx: 'don''t'\n---\n",
    "mapping": "---\nbase_model:\n  name: a\n  more: [1]\nlicense: mit\n---\n",
    "block scalar": "---\na: |\n  base_model: no\n   x\nbase_model: >-\n  foo\n  bar\nb: 1\n---\n",
    "block scalar kept to the last line": "---\na: |+\n  x\n\n---\n",
    "block scalars in a list": "---\nt:\n  - |\n   x: 'q\n  - k: >\n      it's\n    l: 1\nbase_model: q\n---\n",
    "plain in two lines": "---\nbase_model: one\n  two\nlicense: mit\n---\n",
    "quoted in two lines": '---\nbase_model: "one\ntwo"\nlicense: mit\n---\n',
    "twice": "---\nbase_model: a\nlicense: mit\nbase_model: b\n---\n",
    "one of another key": "---\nmodel:\n- base_model: x\n  n: 1\nbase_model_relation: merge\n---\n",
    "a quoted text that looks like it": '---\na: "x\nbase_model: y"\nb: 2\n---\n',
    "anchor elsewhere": "---\nx: &a 1\nbase_model: *a\ny: *a\n---\n",
    "tag": "---\nbase_model: !!str 12\n---\n",
    "indented": "---\n  license: mit\n  tags: [x]\n---\n",
    "tags": "---\ntags:\n  - a\n  - b # c\nbase_model: x\n---\n",
    "tags there": f"---\ntags:\n- {TAG}\n- b\n---\n",
    "tags that are odd": "---\ntags: [a, {b: c}]\n---\n",
    "no tags": "---\ntags: []\n---\n",
    "results": "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: a, name: 'b: c'}\n    metrics:\n"
    '      - value: 1\nwidget:\n- text: "a: b"\n- text: https://x/#y\n---\n',
    "apostrophe in a plain scalar": "---\n'a b': 1\nk: don't # x\nu: http://a.b/c#d\nbase_model: null\n---\n",
    "comments only": "---\n# nothing yet\n---\n",
    "two documents": "---\nlicense: mit\n...\n---\n",
    "unicode": "---\nlanguage: [日本語, é]\nbase_model: \"\\u00e9\"\n---\n# 題\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FRONT_MATTERS)
@pytest.mark.parametrize("base", [BASE, 'it\'s: "a\\b" #1\x07\u2028é😀', "no", "1.5", "-x", "a: b", ""])
def test_base_model_is_set_and_every_other_key_keeps_its_value(name: str, base: str) -> None:
    card = FRONT_MATTERS[name]
    before, result = metadata(card) or {}, with_base_model(card, base, TAG)
    after = metadata(result)
    if name == "a quoted text that looks like it":  # what cannot be told apart without a parser stays as it is
        assert result == card
        return
    if name == "spaces after the rules":  # a hub does not see this one, before or after
        after = yaml.safe_load(result.split("---")[1])
        before = yaml.safe_load(card.split("---")[1])
    assert after.pop("base_model") == base
    before.pop("base_model", None)
    old_tags, new_tags = before.pop("tags", []), after.pop("tags")
    assert new_tags in (old_tags, [*old_tags, TAG])
    assert (TAG in new_tags) or name in ("tags that are odd", "no tags")
    assert after == before
    assert with_base_model(result, base, TAG) == result
    body = card.rsplit("---", 1)[1]
    assert result.endswith(body)
    kept = [line for line in card.splitlines() if "base_model" not in line and line.strip().startswith("#")]
    assert all(line in result.splitlines() or name == "block list further in" for line in kept)
    if name == "CRLF":
        assert "\n" not in result.replace("\r\n", "")


@pytest.mark.parametrize(
    "card",
    [
        "---\n{license: mit, base_model: a}\n---\n# T\n",
        "---\nbase_model: &a q\ny: *a\n---\n# T\n",
        "---\n? base_model\n: x\n---\n# T\n",
        "---\nx: [1, 2\nbase_model: b\n---\n# T\n",
        "---\n\tlicense: mit\n---\n# T\n",
        "---\n- a\n- b\n---\n# T\n",
    ],
)
def test_a_front_matter_that_is_not_understood_is_left_alone(card: str) -> None:
    assert with_base_model(card, BASE, TAG) == card


@pytest.mark.parametrize(
    "card",
    ["", "# T\n", "---\nlicense: mit\n# never closed\n", "text\n---\nlicense: mit\n---\n", "---\nSome prose.\n---\n"],
)
def test_a_card_without_front_matter_gets_one(card: str) -> None:
    result = with_base_model(card, BASE, TAG)
    assert metadata(result) == {"base_model": BASE, "tags": [TAG]}
    assert result.endswith(card)


SCALARS = st.one_of(
    st.text(max_size=12),
    st.integers(),
    st.booleans(),
    st.none(),
    st.sampled_from(["don't", "a: b", "- x", "#", "base_model: x"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@example(fields={"license": None, "base_model": "\xa0"}, flow=False, style=None, width=20)
@example(fields={"license_name": "licence\xa0: libre", "tags": ["a\u2003b"]}, flow=False, style=None, width=200)
@settings(max_examples=150, deadline=None)
@given(
    fields=st.dictionaries(
        st.sampled_from(["license", "base_model", "tags", "language", "x y", "a:b", "widget"]), VALUES
    ),
    flow=st.sampled_from([False, None]),
    style=st.sampled_from([None, '"', "'", "|", ">"]),
    width=st.sampled_from([20, 200]),
)
def test_any_front_matter_that_yaml_writes_keeps_its_values(
    fields: dict[str, Any], flow: bool | None, style: str | None, width: int
) -> None:
    if not fields:
        return
    block = yaml.safe_dump(fields, default_flow_style=flow, default_style=style, width=width, allow_unicode=True)
    card = f"---\n{block}---\n# T\n"
    result = with_base_model(card, BASE, TAG)
    begin, end = result.index("---\n") + 4, result.rindex("---\n# T")
    after = yaml.safe_load(result[begin:end])
    before = yaml.safe_load(block)
    if result == card:  # not understood; nothing is lost
        return
    assert after.pop("base_model") == BASE
    before.pop("base_model", None)
    after.pop("tags"), before.pop("tags", None)
    assert after == before


def a_card(present: bytes | None, plan: Plan, *, name: str = "a.weight", earlier: tuple[str, ...] = ()) -> bytes:
    tensor = ReceiptTensor(
        name=name,
        shard="model.safetensors",
        modifications=("m01",),
        before="blake3:0",
        after="blake3:1",
        elements=9,
        changed_elements=3,
        relative_change=0.0123456,
    )
    chosen = plan.modifications[:1]
    prints = {"before": "blake3:b", "after": "blake3:a"}
    return model_card(present, plan=plan, modifications=chosen, tensors=[tensor], earlier=earlier, **prints)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    from snapshots import small_model

    model = small_model(tmp_path_factory.mktemp("card") / "model")
    return a_plan(model, scale(1.5, layers="0-1"), scale(2, layers="2"), goal="clearer")


def rows_of(card: bytes) -> list[list[str]]:
    """The text of every table cell, as a Markdown parser renders it; fails for HTML, links and images outside code."""
    rows: list[list[str]] = []
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.decode())
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "html_block":
            assert re.fullmatch(rf"<!-- {TAG}: (begin|end) -->\s*", token.content)
        if token.type == "inline":
            assert {part.type for part in token.children or ()} <= {"text", "code_inline", "softbreak", "text_special"}
            if rows and token.level == 4:
                rows[-1].append("".join(part.content for part in token.children or ()))
    return rows


HOSTILE = [
    "a | b \\| c \\\\| d",
    "<script>alert(1)</script> <img src=x onerror=y> <!-- model-patch-planner: end -->",
    "[x](javascript:alert(1)) ![y](//evil) *b* _c_ ~~d~~ $e$ `f` ``g",
    "line\n| new | row |\n\n# heading\n\n<!-- model-patch-planner: end -->\n",
    "tail\\",
    "`",
    "&lt;b&gt; &#124;",
    "--- | ---",
    "a\u202eb\x00c",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_stays_in_its_cell(plan: Plan, text: str) -> None:
    hostile = plan.model_copy(
        update={
            "goal": text,
            "checkpoint": plan.checkpoint.model_copy(update={"name": text}),
            "analyst": plan.analyst.model_copy(update={"model": text}),
            "modifications": tuple(m.model_copy(update={"reasoning": text}) for m in plan.modifications),
        }
    )
    card = a_card(b"# Mine\n", hostile, name=text, earlier=(text,))
    rows = rows_of(card[card.index(f"<!-- {TAG}: begin".encode()) :])
    meant = plain(" ".join(text.split()))
    assert [row for row in rows if len(row) not in (2, 4)] == []
    found = {row[0]: row[1] for row in rows}
    assert found["goal"] == found["earlier patch in force, 1 of 1"] == meant
    assert [row[3] for row in rows if len(row) == 4][1:] == [meant]
    assert rows[-1] == [meant, "0.0123"]
    assert a_card(card, hostile, name=text, earlier=(text,)) == card, (
        "the next card replaces this section, and it alone"
    )


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="@:"), max_size=40).filter(lambda text: "www." not in text.lower()))
def test_any_reason_renders_as_itself(text: str) -> None:
    from planner.transaction.card.model_card import _cell

    shown = " ".join(text.split())
    (_, (cell,)) = rows_of(f"| a |\n|---|\n| {_cell(text)} |\n".encode())
    assert cell == plain(shown)


@pytest.mark.parametrize("text", ["see https://evil.example/a|b`c", "www.evil.example", "mail me@evil.example"])
def test_no_address_becomes_a_link(plan: Plan, text: str) -> None:
    card = a_card(None, plan.model_copy(update={"goal": text})).decode()
    (line,) = [line for line in card.splitlines() if line.startswith("| goal")]
    outside = re.sub(r"`[^`]*`", "", line)
    assert "evil" not in outside, "it stands in a code span, which no renderer links"
    assert line.count("|") == 3


def test_what_others_wrote_is_kept_byte_for_byte_and_the_section_is_replaced(plan: Plan) -> None:
    mine = b"---\nlicense: mit\n---\r\n# Mine \n\n<b>x</b>\xc3\xa9\n\n```\ncode"
    first = a_card(mine, plan)
    assert first.index(b"\r\n# Mine \n\n<b>x</b>\xc3\xa9\n\n```\ncode\n") > 0
    assert metadata(first.decode())["license"] == "mit"
    behind = first + b"\nwritten later\n"
    second = a_card(behind, plan.model_copy(update={"goal": "another"}), earlier=("clearer",))
    assert second.endswith(b"\nwritten later\n")
    assert second.count(b": begin -->") == second.count(b": end -->") == 1
    assert b"| goal | another |" in second
    assert b"1 of 1 | clearer |" in second
    assert b"1 applied, 1 rejected" in second


def test_marks_that_do_not_belong_together_are_text(plan: Plan) -> None:
    mine = f"<!-- {TAG}: end -->\nbetween\n<!-- {TAG}: begin -->\nbehind\n".encode()
    first = a_card(mine, plan)
    assert mine in first
    assert b"\nbetween\n" in a_card(first, plan)


def test_a_card_that_is_not_text_keeps_its_bytes(plan: Plan) -> None:
    mine = b"---\nlicense: mit\n---\n# caf\xe9\n"
    card = a_card(mine, plan)
    assert card.startswith(mine)
    assert card.decode("latin-1").count("base_model") == 0
    assert a_card(card, plan) == card


def test_a_path_says_nothing_about_the_machine(plan: Plan) -> None:
    for name in ("/home/zoe/models/small", "../small", "C:\\models\\small", "~/small/"):
        there = plan.model_copy(update={"checkpoint": plan.checkpoint.model_copy(update={"name": name})})
        card = a_card(None, there).decode()
        assert metadata(card)["base_model"] == "small"
        assert "zoe" not in card


def test_the_card_of_a_real_patch_is_the_same_wherever_and_whenever_it_is_made(
    tiny_model: Path, tmp_path: Path
) -> None:
    made = []
    plan = approved_plan(
        tiny_model,
        scale(1.05, layers="1-2", roles=["q_proj", "down_proj"]),
        {"target": {"tensors": ["model.embed_tokens.weight"], "elements": {"kind": "rows", "indices": "3"}},
         "operation": {"kind": "zero"}},
        goal="fewer <mistakes>",
    )  # fmt: skip
    present = (tiny_model / "README.md").read_bytes()
    for place, who in (("one", "zoe"), ("two", "kim")):
        receipt = apply_plan(plan, tiny_model, out=tmp_path / place, policy=Policy(), by=who)
        made.append(_card_of(present, plan, receipt))
    assert made[0] == made[1]
    card = made[0]
    assert metadata(card.decode()) == {
        "base_model": "tiny-model",
        "tags": [TAG],
        **metadata(present.decode()),
    }
    body = present.partition(b"---\n\n")[2]
    assert body in card
    rows = rows_of(card[card.index(f"<!-- {TAG}".encode()) :])
    assert ["m01", "q_proj, down_proj in layers 1-2", "scale factor=1.05", "because"] in rows
    assert ["m02", "model.embed_tokens.weight", "zero of rows 3", "because"] in rows
    assert next(row for row in rows if row[0] == "fingerprint of this checkpoint")[1] == receipt.fingerprint_after
    for tensor in receipt.tensors:
        assert [tensor.name, f"{tensor.relative_change:.3g}"] in rows
    for private in (str(tmp_path), "zoe", "kim", receipt.at, receipt.planner_version):
        assert private.encode() not in card[card.index(b"<!-- model") :]
    assert change(tiny_model, scale(2, layers="0")).patch == 1


def _card_of(present: bytes, plan: Plan, receipt: Receipt) -> bytes:
    chosen = [one for one in plan.modifications if one.id in receipt.modifications]
    before, after = receipt.fingerprint_before, receipt.fingerprint_after
    return model_card(present, plan=plan, modifications=chosen, tensors=receipt.tensors, before=before, after=after)


def test_the_card_of_a_result_lists_what_was_done_and_goes_when_it_is_taken_back(
    tiny_model: Path, tmp_path: Path
) -> None:
    before = (tiny_model / "README.md").read_bytes()
    receipt = change(tiny_model, scale(1.05, layers="1"), out=tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    assert metadata(card.read_text())["base_model"] == "tiny-model"
    rows = rows_of(card.read_bytes()[card.read_bytes().index(f"<!-- {TAG}".encode()) :])
    assert ["m01", "layers 1", "scale factor=1.05", "because"] in rows
    found = dict(row for row in rows if len(row) == 2)
    assert found["fingerprint of this checkpoint"] == receipt.fingerprint_after
    assert {name for name in found if ".weight" in name} == {tensor.name for tensor in receipt.tensors}
    ledger = read_ledger(tmp_path / "out")
    assert ledger is not None
    assert ledger.current.files["README.md"].size == card.stat().st_size, "it is a file like any other"
    revert(tmp_path / "out", by="tester")
    assert card.read_bytes() == before
