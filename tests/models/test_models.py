"""The tiny models themselves: names, places, float64, loaders. What edits do to them is in test_oracle.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from models.difference import measure  # noqa: E402
from models.families import FAMILIES  # noqa: E402
from models.oracle import all_double, config_of, machine, stored_names, token_ids  # noqa: E402
from models.tiny import Tiny, build, logits  # noqa: E402

ROOM = 1e-12
"""An exact no-op comes out below this, relative to the largest logit: nothing is rounded to float32 on the way."""

TIED = [*["llama-tied", "opt-post"], *(key for key, family in FAMILIES.items() if key == family.model_type)]
TIED = [key for key in TIED if getattr(config_of(key), "tie_word_embeddings", False)]


def loaded(tiny: Tiny, folder: Path) -> torch.nn.Module:
    """The model as transformers reads it from the checkpoint's folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        tiny.write(folder, "F64"),
        dtype=torch.float64,
        attn_implementation="eager",
        experts_implementation="eager",
    )


def theirs(tiny: Tiny, folder: Path) -> np.ndarray:
    """Logits of the written folder, loaded and run in float64 throughout."""
    with all_double():
        model = loaded(tiny, folder).double()
        return model(input_ids=token_ids(), use_cache=False).logits.reshape(64, -1).numpy()


def with_tensors(tiny: Tiny, **tensors: np.ndarray) -> Tiny:
    return dataclasses.replace(tiny, tensors=dict(tensors))


def test_every_family_asked_for_is_here() -> None:
    wanted = "llama mistral mixtral qwen2 qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neox opt bloom "
    wanted += "falcon olmo olmo2 cohere starcoder2 stablelm granite smollm3 deepseek_v2 deepseek_v3 glm4 nemotron"
    assert set(wanted.split()) <= {family.model_type for family in FAMILIES.values()}


@pytest.mark.parametrize("key", FAMILIES)
def test_logits_are_finite_repeat_and_vary_with_the_tokens(key: str) -> None:
    tiny = build(key)
    first = logits(tiny, {})
    assert first.shape == (64, 64)
    assert first.dtype == np.float64
    assert np.isfinite(first).all()
    assert np.array_equal(first, logits(tiny, {}))
    assert first.std(axis=0).min() > 0.1
    assert tiny is build(key)
    assert tiny.config["model_type"] == FAMILIES[key].model_type


@pytest.mark.parametrize("key", FAMILIES)
def test_the_stored_names_are_those_of_save_pretrained(key: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config_of(key))
    stored = {name: tuple(values.shape) for name, values in stored_names(model).items()}
    assert stored == {name: values.shape for name, values in build(key).tensors.items()}


@pytest.mark.parametrize("key", FAMILIES)
def test_the_logits_are_those_that_transformers_computes_from_the_written_folder(key: str, tmp_path: Path) -> None:
    tiny = build(key)
    mine = logits(tiny, {})
    assert measure(theirs(tiny, tmp_path / "promoted"), mine).largest < ROOM
    if key != FAMILIES[key].model_type:
        return
    with torch.no_grad():
        plain = loaded(tiny, tmp_path / "plain")(input_ids=token_ids(), use_cache=False).logits
    # Left alone, transformers rounds to float32 inside norms, softmax and rotary angles.
    assert measure(plain.double().reshape(64, -1).numpy(), mine).largest < 1e-4


@pytest.mark.parametrize("key", FAMILIES)
def test_every_stored_tensor_counts(key: str) -> None:
    tiny = build(key)
    before = logits(tiny, {})
    slopes = machine(key).slopes()
    flat = [name for name in tiny.tensors if np.abs(slopes[name]).max() < 1e-6]
    # A router's choice has no slope: where one expert is chosen and its weight made 1, noise alone tells.
    random = np.random.default_rng(3)
    noise = {name: tiny.tensors[name] + random.normal(0, 0.3, tiny.tensors[name].shape) for name in flat}
    changes = {name: measure(before, logits(tiny, {name: noise[name]})).largest for name in flat}
    silent = {name for name, change in changes.items() if change < 1e-6}
    assert silent == {name for name in tiny.tensors if name.endswith(tuple(FAMILIES[key].inert))}
    assert all(changes[name] < ROOM for name in silent)
    assert all("gate.weight" in name or "e_score_correction_bias" in name for name in set(flat) - silent)


@pytest.mark.parametrize("key", TIED)
def test_two_stored_copies_that_differ_are_untied_as_transformers_5_does(key: str, tmp_path: Path) -> None:
    tiny = build(key, with_copy=True)
    assert np.array_equal(logits(tiny, {}), logits(build(key), {}))
    head = {tiny.output: tiny.tensors[tiny.output] * 1.03 + 0.01}
    edited = logits(tiny, head)
    folder = with_tensors(tiny, **{**tiny.tensors, **head})
    assert measure(theirs(folder, tmp_path / "both"), edited).largest < ROOM
    assert measure(logits(tiny, {}), edited).largest > 1e-3
    # Before 5 the head of a tied config was the embedding, whatever the file holds.
    assert np.array_equal(logits(tiny, head, loader="v4"), logits(tiny, {}))
    # Only the head stored: it serves as the embedding too.
    only = {name: values for name, values in folder.tensors.items() if name != tiny.input}
    alone = theirs(with_tensors(tiny, **only), tmp_path / "head")
    assert measure(alone, logits(tiny, head, drop={tiny.input})).largest < ROOM


def test_without_the_promotion_a_no_op_is_hidden_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = build("qwen3")
    edits = {name: values * 1.05 for name, values in tiny.tensors.items() if name.endswith("q_proj.weight")}
    built = machine("qwen3")
    for module, name, _ in built.epsilons:
        monkeypatch.setattr(module, name, 1e-30)

    def rounded(tensors: dict[str, np.ndarray]) -> np.ndarray:
        built.hold({**tiny.tensors, **tensors})
        with torch.no_grad():
            return built.model(input_ids=token_ids(), use_cache=False).logits.reshape(64, -1).numpy().copy()

    assert measure(rounded({}), rounded(edits)).largest > 1e-9
    assert measure(logits(tiny, {}, tiny_eps=True), logits(tiny, edits, tiny_eps=True)).largest < ROOM


def test_an_array_changed_in_place_between_two_calls_is_read_again() -> None:
    tiny = build("llama")
    values = tiny.tensors["lm_head.weight"].copy()
    before = logits(tiny, {"lm_head.weight": values})
    values *= 2
    assert measure(2 * before, logits(tiny, {"lm_head.weight": values})).largest < ROOM
    assert np.array_equal(logits(tiny, {}), before)
    with pytest.raises(ValueError, match="read-only"):
        tiny.tensors["lm_head.weight"][:] = 0


def test_seeds_give_other_weights() -> None:
    one, other = build("llama"), build("llama", seed=1)
    assert not np.array_equal(one.tensors["lm_head.weight"], other.tensors["lm_head.weight"])
    assert measure(logits(one, {}), logits(other, {})).largest > 0.1


def test_a_bias_the_architecture_has_no_place_for_is_ignored_and_one_it_has_is_used(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    bias = {f"model.layers.{layer}.self_attn.o_proj.bias": random.normal(0, 1, 32) for layer in range(3)}
    mistral = build("mistral")
    assert np.array_equal(logits(mistral, {}, add=bias), logits(mistral, {}))
    llama = build("llama")
    sizes = {"q": 32, "k": 16, "v": 16}
    bias |= {f"model.layers.{n}.self_attn.{p}_proj.bias": np.zeros(size) for n in range(3) for p, size in sizes.items()}
    after = logits(llama, {}, add=bias, config_overrides={"attention_bias": True})
    assert measure(logits(llama, {}), after).largest > 1e-3
    folder = dataclasses.replace(
        llama, tensors={**llama.tensors, **bias}, config=llama.config | {"attention_bias": True}
    )
    assert measure(theirs(folder, tmp_path / "llama"), after).largest < ROOM
    with pytest.raises(KeyError, match="bias"):
        logits(llama, {}, config_overrides={"attention_bias": True})


def test_wrong_names_and_shapes_are_refused() -> None:
    tiny = build("llama")
    with pytest.raises(KeyError, match="no stored tensor"):
        logits(tiny, {"model.layers.9.mlp.up_proj.weight": np.zeros(1)})
    with pytest.raises(ValueError, match="has shape"):
        logits(tiny, {"lm_head.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="not tied"):
        build("llama", with_copy=True)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_folder_in_a_narrow_dtype_is_read_back(dtype: str, tmp_path: Path) -> None:
    tiny = build("mixtral")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.write(tmp_path / "mixtral", dtype))
    assert model.dtype == {"F32": torch.float32, "BF16": torch.bfloat16}[dtype]
    with torch.no_grad():
        out = model(input_ids=token_ids()).logits.double().reshape(64, -1).numpy()
    assert measure(logits(tiny, {}), out).largest < {"F32": 1e-4, "BF16": 1}[dtype]
