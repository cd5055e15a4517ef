"""Changes on their way through whole models: zeros, epsilon, what only the data decide, and the words of the proofs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from catalogue import Patient
from models.difference import measure
from models.families import FAMILIES, Family
from models.tiny import build, logits
from proving import TRUE_OF, map_of_tiny, truth
from test_effects_compensations import random_plan

from planner.effects import interpreter
from planner.effects.changes import Change
from planner.effects.transfer import SMALLEST
from planner.effects.verdicts import Judge


def zeroed(key: str, *ends: str) -> tuple[Patient, frozenset[str]]:
    tiny = build(key)
    names = frozenset(name for name in tiny.tensors if name.endswith(ends))
    assert names
    tensors = {name: values * 0 if name in names else values for name, values in tiny.tensors.items()}
    return Patient(key, dataclasses.replace(tiny, tensors=tensors)), names


@pytest.mark.parametrize(
    ("key", "ends", "scales", "effect"),
    [
        ("qwen2", ("q_proj.bias",), {"q_proj.weight": 2.0, "k_proj.weight": 0.5, "k_proj.bias": 0.5}, "invariant"),
        ("qwen2", ("k_proj.bias",), {"q_proj.weight": 2.0, "k_proj.weight": 0.5}, "effective"),
        ("qwen2", ("v_proj.bias",), {"v_proj.weight": 2.0, "o_proj.weight": 0.5}, "invariant"),
        ("qwen2", ("v_proj.bias",), {"v_proj.weight": 1.05}, "effective"),
        ("qwen3-bias", ("q_proj.bias",), {"q_proj.weight": 1.05}, "invariant"),
        ("qwen3-bias", ("k_proj.bias",), {"q_proj.weight": 1.05}, "effective"),
        ("llama", ("layers.1.self_attn.o_proj.weight",), {"v_proj.weight": 1.05}, "invariant"),
        ("gpt2", ("layers.1.ln_2.weight", "h.1.ln_2.weight"), {"h.1.ln_2.bias": 2.0}, "effective"),
        ("llama", ("layers.1.input_layernorm.weight",), {"layers.1.self_attn.q_proj.weight": 3.0}, "effective"),
    ],
)  # fmt: skip
def test_tensors_that_are_all_zeros(key: str, ends: tuple[str, ...], scales: dict[str, float], effect: str) -> None:
    p, zero = zeroed(key, *ends)
    names = {n: f for n in p.tiny.tensors for end, f in scales.items() if n.endswith(end) and ".1." in n}
    edits = {name: (p.tiny.tensors[name] * f, Change(rows=f)) for name, f in names.items()}
    judge = Judge(p.map, zero=zero, rounded=False)
    found = judge.verdict({name: change for name, (_, change) in edits.items()})
    if "input_layernorm" in ends[0]:
        assert p.truth(edits) == "same"  # zeros all the way: true, and more than the rules see
        return
    assert found.effect == effect, found.why
    assert p.truth(edits) in TRUE_OF[effect]


@pytest.mark.parametrize(
    "key", ["qwen3", "gemma2", "olmo2", "deepseek_v2", "stablelm-qknorm", "cohere-qknorm", "olmoe"]
)
def test_a_factor_that_is_said_to_cancel_leaves_little_of_epsilon(key: str) -> None:
    p = Patient(key)
    before = logits(p.tiny, {})
    inert = [x for x in p.map.in_layer(1) if p.judge.verdict({x.name: Change(rows=2.0)}).effect == "invariant"]
    assert inert
    for x in inert:
        assert p.judge.verdict({x.name: Change(rows=SMALLEST)}).effect == "invariant"
        after = logits(p.tiny, {x.name: p.tiny.tensors[x.name] * SMALLEST})
        assert measure(before, after).largest < 1e-3, x.name
        small = p.judge.verdict({x.name: Change(rows=0.03)})
        assert small.effect == "unknown"
        assert "epsilon may show" in small.why
        assert p.judge.verdict({x.name: Change(rows=1e6)}).effect == "unknown"
        assert p.judge.verdict({x.name: Change(rows=0.0)}).effect == "effective"


def test_what_only_the_data_decide_hides_no_certain_effect_and_lends_no_claim() -> None:
    p = Patient("qwen3")
    layer = "model.layers.1.self_attn."
    tiny = {f"{layer}q_proj.weight": Change(rows=0.001)}
    undone = {f"{layer}v_proj.weight": Change(rows=2.0), f"{layer}o_proj.weight": Change(rows=0.5)}
    assert p.judge.verdict(tiny | undone).effect == "unknown"
    assert p.judge.verdict(tiny | {f"{layer}o_proj.weight": Change(rows=0.5)}).effect == "effective"
    top = Patient("mixtral-top1")
    router = next(top.map.in_layer(1, "router")).name
    assert top.judge.verdict({router: Change(rows=2.0)}).effect == "invariant"
    assert top.judge.verdict({router: Change(rows=float("nan"))}).effect == "unknown"
    assert top.judge.verdict({router: Change(rows=-1.0)}).effect == "unknown"


def test_one_expert_a_token_with_a_bias_in_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {**FAMILIES["deepseek_v3"].arguments, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}
    monkeypatch.setitem(FAMILIES, "deepseek_v3-one", Family("deepseek_v3", one))
    p = Patient("deepseek_v3-one")
    router = next(p.map.in_layer(1, "router")).name
    assert p.judge.verdict({router: Change(rows=3.0)}).effect == "unknown"
    assert p.truth({router: (p.tiny.tensors[router] * 3, Change(rows=3.0))}) == "different"


def test_a_factor_a_head_on_a_norm_with_a_row_for_each_head() -> None:
    p = Patient("cohere-qknorm")
    query, key = (next(p.map.in_layer(1, f"{one}_norm")).name for one in ("query", "key"))
    heads, size = p.tiny.tensors[query].shape
    assert heads == 4
    assert size == 8
    rows = np.array([2.0, 1, 1, 1])
    columns = np.tile([0.5, 1, 1, 1], 2)
    looks_undone = {
        query: (p.tiny.tensors[query] * rows[:, None], Change(rows=rows)),
        key: (p.tiny.tensors[key] * columns, Change(columns=columns)),
    }
    assert p.verdict(looks_undone)[0] == "effective"
    assert p.truth(looks_undone) == "different"
    by_head = {
        query: (p.tiny.tensors[query] * np.repeat([2.0, 4], 2)[:, None], Change(rows=np.repeat([2.0, 4], 2))),
        key: (p.tiny.tensors[key] / np.array([[2.0], [4]]), Change(rows=np.array([0.5, 0.25]))),
    }
    assert p.verdict(by_head)[0] == "invariant"
    assert p.truth(by_head) == "same"


@pytest.mark.parametrize("key", ["llama", "qwen3_moe", "gpt2", "gemma2", "deepseek_v3", "bloom"])
def test_stopping_early_changes_no_verdict(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = Patient(key)
    random = np.random.default_rng(9)
    plans = [{n: c for n, (_, c) in random_plan(p, random).items()} for _ in range(60)]
    early = [p.judge.verdict(plan).effect for plan in plans]
    monkeypatch.setattr(interpreter, "_lost", lambda node, value: False)
    assert [p.judge.verdict(plan).effect for plan in plans] == early


def test_a_shift_and_a_factor_before_a_cap() -> None:
    tiny = build("gemma2", with_copy=True)
    head = tiny.tensors[tiny.output]
    row = np.random.default_rng(0).normal(0, 0.02, (1, head.shape[1]))
    found = Judge(map_of_tiny(tiny), copies_differ=True).verdict({tiny.output: Change(rows=1.2, added="same_rows")})
    after = logits(tiny, {tiny.output: head * 1.2 + row}, tiny_eps=True)
    assert truth(tiny, logits(tiny, {}, tiny_eps=True), after) == "monotone"
    assert "multiplied by 1.2 and one number a token is added to all logits before their cap" in found.why


LAYER = "model.layers.1."
ANYTHING = Change(rows=float("nan"))


@pytest.mark.parametrize(
    ("key", "changes", "effect", "why"),
    [
        ("qwen3", {"self_attn.q_proj": Change(rows=1.02)}, "invariant",
         "q_proj feeds q_norm, an RMSNorm per head; a positive factor cancels; left over: epsilon and rounding"),
        ("qwen3", {"self_attn.q_proj": Change(rows=-2.0), "self_attn.k_proj": Change(rows=-3.0)}, "invariant",
         "q_proj with k_proj: q_norm, an RMSNorm per head, cancels the size of a factor; k_norm, an RMSNorm per head, "
         "cancels the size of a factor; the factors on queries and keys cancel in their product; "
         "left over: epsilon and rounding"),
        ("qwen3", {"self_attn.q_proj": Change(rows=0.0)}, "effective",
         "q_proj: the scores of the attention in layer 1 all become equal"),
        ("qwen3", {"input_layernorm": Change(rows=1.05)}, "effective",
         "input_layernorm: what the attention adds in layer 1 is multiplied by 1.05, the rest of the sum is not; "
         "what passes q_norm and k_norm cancels there"),
        ("llama", {"self_attn.q_proj": Change(rows=1.05)}, "effective",
         "q_proj: the scores of the attention in layer 1 are multiplied by 1.05"),
        ("llama", {"mlp.gate_proj": Change(rows=1.05)}, "effective",
         "gate_proj: the change meets silu in layer 1, a curve that does not scale with its input"),
        ("llama", {"mlp.down_proj": Change(rows=0.0)}, "effective",
         "down_proj: what the MLP adds in layer 1 is taken out"),
        ("llama", {"mlp.down_proj": ANYTHING}, "effective",
         "down_proj: no rule takes it away on its way to the logits"),
        ("llama", {"mlp.up_proj": Change(rows=2.0), "mlp.down_proj": Change(columns=0.5)}, "invariant",
         "up_proj with down_proj: down_proj undoes the factor; left over: rounding"),
        ("qwen2", {"self_attn.v_proj": Change(rows=2.0)}, "effective",
         "v_proj: the weight of v_proj in layer 1 is multiplied by 2, its bias is not"),
        ("qwen3_moe", {"mlp.experts.2.down_proj": Change(rows=2.0)}, "effective",
         "experts.down_proj: the experts in layer 1 no longer share one factor"),
        ("qwen3_moe", {"mlp.gate": Change(rows=2.0)}, "effective",
         "gate: the change meets the router in layer 1, whose weights do not scale with its logits"),
    ],
)  # fmt: skip
def test_the_words_of_a_proof(key: str, changes: dict[str, Change], effect: str, why: str) -> None:
    found = Patient(key).map
    verdict = Judge(found).verdict({f"{LAYER}{name}.weight": change for name, change in changes.items()})
    assert (verdict.effect, verdict.why) == (effect, why)


@pytest.mark.parametrize(
    ("key", "name", "change", "effect", "why"),
    [
        ("llama", "lm_head.weight", Change(rows=1.5), "rescales_logits",
         "lm_head: all logits are multiplied by 1.5, so the largest stays the largest; left over: rounding"),
        ("llama", "lm_head.weight", Change(rows=1.3, measured=True), "rescales_logits",
         "lm_head: all logits are multiplied by one positive factor, so the largest stays the largest; "
         "left over: rounding"),
        ("llama", "lm_head.weight", Change(rows=-1.0), "effective",
         "lm_head: all logits are multiplied by -1, which turns their order round"),
        ("llama", "lm_head.weight", Change(rows=0.0), "effective", "lm_head: all logits become zero"),
        ("llama", "lm_head.weight", Change(rows=np.repeat([1.0, 2.0], 32)), "effective",
         "lm_head: the logits of different tokens no longer have the same factor"),
        ("llama", "model.embed_tokens.weight", Change(rows=1.05), "effective",
         "embed_tokens: the residual stream is multiplied by 1.05, what the attention adds in layer 0 is not; "
         "what passes input_layernorm cancels there"),
    ],
)  # fmt: skip
def test_the_words_at_the_head(key: str, name: str, change: Change, effect: str, why: str) -> None:
    verdict = Patient(key).judge
    found = dataclasses.replace(verdict, rounded=True).verdict({name: change})
    assert (found.effect, found.why) == (effect, why)
