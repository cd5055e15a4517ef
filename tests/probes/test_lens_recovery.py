"""What becomes of a change: known cases, two models run by hand, and what cannot be done in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from builders import a_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from lens_models import TEXTS, folder_of
from safetensors.torch import load_file, save_file

from planner.checkpoint import open_checkpoint
from planner.errors import CheckpointError, PlanNotApproved, PlanRefused, StalePlan, UsageError
from planner.inference import encode, load_model, load_tokenizer, quiet
from planner.plan import Plan, decide
from planner.probes.changed_model import PlannedChange, changed_model, planned_change
from planner.probes.lens import Question, lens
from planner.probes.lens_types import Lens, Recovery
from planner.probes.recovery import Differences
from planner.profile import profile_of
from planner.transaction import apply_plan

ASKED = Question(documents=TEXTS)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of tests that run side by side only wait for each other."""
    monkeypatch.setattr("planner.inference.loading.cores", lambda: 1)


def scaled(names: str | list[str], factor: float) -> dict[str, Any]:
    target = {"tensors": [names] if isinstance(names, str) else names}
    return {"target": target, "operation": {"kind": "scale", "factor": factor}}


def change_of(folder: Path, *modifications: dict[str, Any]) -> PlannedChange:
    checkpoint = open_checkpoint(folder)
    return planned_change(a_plan(folder, *modifications), checkpoint, profile_of(checkpoint), folder.parent)


def looked(folder: Path, *modifications: dict[str, Any], question: Question = ASKED) -> Lens:
    return lens(open_checkpoint(folder), question, change=change_of(folder, *modifications))


def recovered(folder: Path, *modifications: dict[str, Any]) -> Recovery:
    found = looked(folder, *modifications).recovery
    assert found is not None
    return found


def test_a_scaled_embedding_before_a_norm(tmp_path: Path) -> None:
    found = recovered(folder_of("llama", tmp_path / "model"), scaled("model.embed_tokens.weight", 1.5))
    first, second = found.layers[:2]
    assert first.layer is None
    assert first.relative_norm == pytest.approx(0.5, rel=1e-6)
    assert first.cosine == pytest.approx(1, abs=1e-9)
    assert first.relative_norm_spread == pytest.approx(0, abs=1e-6)
    assert first.kl == pytest.approx(0, abs=1e-3), "the final norm takes the factor away"
    assert second.cosine is not None
    assert second.cosine < 0.999, "what a block adds did not grow with the stream"
    assert (found.enters, found.compared, found.changed_layers) == (0, 0, ())
    assert found.sentence.startswith("the change enters with the embedding, where it is 50 % of the stream; ")


def test_queries_before_a_norm_of_queries(tmp_path: Path) -> None:
    found = recovered(folder_of("qwen3", tmp_path / "model"), scaled("model.layers.*.self_attn.q_proj.weight", 1.5))
    assert found.changed_layers == (0, 1, 2)
    assert all(layer.relative_norm is not None and layer.relative_norm < 1e-5 for layer in found.layers)
    assert (found.fate, found.enters, found.compared) == ("not seen", None, None)
    assert found.sentence.startswith("the change is seen nowhere: at no layer is it more than 0.001% of the stream")
    llama = recovered(folder_of("llama", tmp_path / "llama"), scaled("model.layers.*.self_attn.q_proj.weight", 1.5))
    assert llama.enters == 1, "without that norm it is seen"


def test_the_last_map_of_the_last_block(tmp_path: Path) -> None:
    folder = folder_of("gemma2", tmp_path / "model")
    found = recovered(folder, scaled("model.layers.2.post_feedforward_layernorm.weight", 1.3))
    assert [(layer.difference, layer.kl, layer.cosine) for layer in found.layers[:-1]] == [(0.0, 0.0, 1.0)] * 3
    assert found.layers[-1].share_left == 1
    assert (found.fate, found.enters, found.changed_layers) == ("entered at the end", 3, (2,))
    assert "the change enters after layer 2, where it is" in found.sentence


def test_the_final_norm(tmp_path: Path) -> None:
    found = recovered(folder_of("llama", tmp_path / "model"), scaled("model.norm.weight", 2.0))
    assert all(layer.difference == 0 and layer.share_left is None for layer in found.layers)
    assert found.layers[-1].kl is not None
    assert found.layers[-1].kl > 0.01
    assert (found.fate, found.enters) == ("behind the stream", None)


@pytest.mark.parametrize("key", ["qwen3-tied", "gpt2"])
def test_against_two_models_run_by_hand(key: str, tmp_path: Path) -> None:
    folder, other = folder_of(key, tmp_path / "model"), folder_of(key, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if ".1." in name and ("up_proj" in name or "c_fc.weight" in name))
    tensors[name] *= 1.4
    tensors[next(name for name in tensors if "embed_tokens" in name or "wte" in name)][5] *= 1.1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = lens(open_checkpoint(folder), ASKED, candidate=open_checkpoint(other)).recovery
    assert found is not None
    with quiet():
        models = [load_model(folder), load_model(other)]
        documents = encode(load_tokenizer(folder), TEXTS, None, None)
    relative: list[list[np.ndarray[Any, Any]]] = [[] for _ in found.layers]
    cosine: list[list[np.ndarray[Any, Any]]] = [[] for _ in found.layers]
    kl = []
    for ids in documents:
        with torch.inference_mode():
            outs = [model(torch.tensor([ids[:-1]]), output_hidden_states=True) for model in models]
        kl.append(
            torch.nn.functional.kl_div(
                *(out.logits[0].log_softmax(-1) for out in outs[::-1]), reduction="none", log_target=True
            ).sum(-1)
        )
        for place in range(len(found.layers) - 1):  # the last of transformers' has been normed
            h, changed = (out.hidden_states[place][0].double().numpy() for out in outs)
            length = np.linalg.norm(h, axis=1)
            relative[place].append(np.linalg.norm(changed - h, axis=1) / length)
            cosine[place].append((h * changed).sum(1) / length / np.linalg.norm(changed, axis=1))
    for place, layer in enumerate(found.layers[:-1]):
        assert layer.relative_norm == pytest.approx(np.concatenate(relative[place]).mean(), rel=1e-4, abs=1e-7)
        spread = np.std([values.mean() for values in relative[place]], ddof=1)
        assert layer.relative_norm_spread == pytest.approx(spread, rel=1e-3, abs=1e-7)
        assert layer.cosine == pytest.approx(np.concatenate(cosine[place]).mean(), abs=1e-6)
    assert found.layers[-1].kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)
    assert found.changed_layers == (1,)
    assert found.enters == 0
    assert found.compared == 2


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_a_plan_in_memory_is_the_plan_applied(dtype: str, tmp_path: Path) -> None:
    folder = folder_of("qwen3-tied", tmp_path / "model", dtype=dtype)
    edits = [
        scaled("model.layers.{0-1}.mlp.down_proj.weight", 1.07),
        scaled("model.layers.1.mlp.down_proj.weight", 0.9),
        {
            "target": {"tensors": ["model.layers.2.mlp.up_proj.weight"]},
            "operation": {"kind": "noise", "std": 0.1, "seed": 3},
        },
        scaled("model.embed_tokens.weight", 1.01),
    ]
    plan = a_plan(folder, *edits)
    approved = decide(plan, [m.id for m in plan.modifications], "approved", reviewer="t", policy=_anything())
    apply_plan(approved, folder, out=tmp_path / "out", policy=_anything(), by="t", folder=tmp_path)
    question = Question(documents=TEXTS, prompts=TEXTS[:1])
    in_memory = looked(folder, *edits, question=question)
    stored = lens(open_checkpoint(folder), question, candidate=open_checkpoint(tmp_path / "out"))
    assert in_memory.recovery == stored.recovery
    assert in_memory.prompts == stored.prompts
    assert in_memory.prompts[0].layers[-1].top != in_memory.prompts[0].layers[-1].top_changed
    assert in_memory.layers == stored.layers == lens(open_checkpoint(folder), question).layers


def _anything() -> Any:
    from planner.plan import Policy

    return Policy(largest_relative_change=1e9, largest_total_change=1e9)


def test_unchanged_weights_are_shared_and_the_first_model_stays(tmp_path: Path) -> None:
    folder = folder_of("qwen3-tied", tmp_path / "model")
    with quiet():
        model = load_model(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = changed_model(model, change_of(folder, scaled("model.layers.1.mlp.down_proj.weight", 1.5)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        shared = other.state_dict()[name].data_ptr() == value.data_ptr()
        assert shared == (name != "model.layers.1.mlp.down_proj.weight")
    assert other.lm_head.weight is other.model.embed_tokens.weight, "still tied"


def streams(*norms: float) -> list[torch.Tensor]:
    return [torch.tensor([[norm, 0.0], [0.0, norm]]) for norm in norms]


def by_hand(stream: list[float], difference: list[float], changed: tuple[int, ...] = (0,)) -> Recovery:
    """Streams of these norms, and differences of these norms in the other channel."""
    sums = Differences(len(stream), 2)
    owner = torch.tensor([0, 1])
    sums.add_positions(owner)
    for place, (h, d) in enumerate(zip(streams(*stream), streams(*difference), strict=True)):
        sums.add(place, h, h + d.flip(0), owner)
        sums.add_kl(place, torch.tensor([0.5, 0.25]), owner)
    return sums.recovery(changed)


@pytest.mark.parametrize(
    ("stream", "difference", "fate", "words"),
    [
        (
            [1, 2, 4],
            [0, 0.2, 0.1],
            "repaired",
            "25 % of that, relative, is left at the last layer: later layers repair",
        ),
        ([1, 2, 4], [0, 0.2, 0.2], "diluted", "50 % of that, relative, is left at the last layer: later layers do not"),
        ([1, 2, 4], [0, 0.2, 0.41], "kept", "102 % of that, relative, is left at the last layer: later layers keep it"),
        ([1, 2, 4], [0, 0.2, 0.5], "amplified", "125 % of that, relative, is left at the last layer: later layers am"),
        ([1, 2, 4], [0, 0.2, 2], "amplified", "it is 5 times that at the last layer: later layers amplify it"),
        ([1, 2, 4], [0, 0.2, 0], "repaired", "0 % of that, relative, is left"),
        (
            [1, 2, 4],
            [0, 0, 0.5],
            "entered at the end",
            "after layer 1, where it is 12.5 % of the stream: no later layer",
        ),
        ([1, 2, 4], [0, 0, 0], "behind the stream", "the predictions differ by 0.375 nats a token"),
    ],
)
def test_the_verdict_and_its_words(stream: list[float], difference: list[float], fate: str, words: str) -> None:
    found = by_hand(stream, difference)
    assert found.fate == fate
    assert words in found.sentence


def test_layers_that_change_are_not_counted_as_repairing() -> None:
    found = by_hand([1, 1, 1, 1, 1], [0, 0.4, 0.2, 0.1, 0.1], changed=(0, 2))
    assert (found.enters, found.compared, found.fate) == (1, 3, "kept")
    assert found.sentence.startswith(
        "the change enters after layer 0, and more of it up to layer 2, where it is 10 % of the stream; "
        "100 % of that, relative, is left at the last layer: later layers keep it; "
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0, 1e3)), min_size=1, max_size=6),
    st.sets(st.integers(0, 4), max_size=3),
)
def test_any_course_of_a_change_has_numbers_that_agree(course: list[tuple[float, float]], blocks: set[int]) -> None:
    stream, difference = (list(values) for values in zip(*course, strict=True))
    found = by_hand(stream, difference, tuple(sorted(block for block in blocks if block < len(course) - 1)))
    for layer, h, d in zip(found.layers, stream, difference, strict=True):
        assert layer.relative_norm == pytest.approx(d / h, rel=1e-4, abs=1e-6)
        assert layer.cosine == pytest.approx(h / np.hypot(h, d), rel=1e-4)
        assert layer.share_left is None or 0 <= layer.share_left <= 1
    assert found.sentence
    if found.enters is not None and found.compared is not None:
        assert found.enters <= found.compared < len(found.layers)
        assert all(d / h < 1.1e-5 for h, d in course[: found.enters])


def test_a_changed_model_without_numbers(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model")
    found = looked(
        folder,
        scaled("model.layers.1.mlp.down_proj.weight", 1e38),
        scaled("model.layers.1.mlp.up_proj.weight", 1e38),
        question=Question(documents=TEXTS, prompts=("w1",)),
    )
    assert found.recovery is not None
    assert found.recovery.fate == "not finite"
    assert found.recovery.sentence == "the stream of the changed model is not finite after layer 1"
    assert found.recovery.layers[2].relative_norm is None
    assert found.recovery.layers[1].relative_norm == 0
    assert found.prompts[0].layers[-1].top_changed[0].probability is None
    json.loads(found.model_dump_json())


def test_rejected_modifications_are_left_out(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    plan = a_plan(folder, scaled("model.norm.weight", 2.0), scaled("lm_head.weight", 2.0))
    profile = profile_of(checkpoint)

    def names(one: Plan) -> list[str]:
        return list(planned_change(one, checkpoint, profile, tmp_path).edits.tensors)

    assert names(plan) == ["model.norm.weight", "lm_head.weight"]
    assert names(decide(plan, ["m01"], "rejected", reviewer="t")) == ["lm_head.weight"]
    assert names(decide(plan, ["m01"], "approved", reviewer="t")) == ["model.norm.weight", "lm_head.weight"]
    with pytest.raises(PlanNotApproved):
        names(decide(plan, ["m01", "m02"], "rejected", reviewer="t"))


def test_what_cannot_be_changed_in_memory_says_what_to_do(tmp_path: Path) -> None:
    llama, moe = folder_of("llama", tmp_path / "llama"), folder_of("qwen3_moe", tmp_path / "moe")
    copied = folder_of("llama-tied", tmp_path / "copied", with_copy=True)
    save_file({"v": torch.ones(32)}, tmp_path / "v.safetensors")
    steering = {
        "target": {"tensors": ["model.layers.1.mlp.down_proj.weight"]},
        "operation": {"kind": "bake_steering", "vector": {"file": "v.safetensors", "array": "v"}, "strength": 1.0},
    }
    expert = "model.layers.1.mlp.experts.2.down_proj.weight"
    for folder, modification, words in [
        (llama, steering, "the plan adds model.layers."),
        (moe, scaled(expert, 1.1), f"{expert} is no parameter of the loaded model"),
        (copied, scaled("lm_head.weight", 1.1), "model.embed_tokens.weight is stored as a copy"),
        (copied, scaled("model.embed_tokens.weight", 1.1), "lm_head.weight is stored as a copy"),
    ]:
        with pytest.raises(UsageError) as caught:
            looked(folder, modification)
        assert caught.value.message.startswith(words)
        assert "--candidate" in caught.value.hint
    both = scaled(["model.embed_tokens.weight", "lm_head.weight"], 1.1)
    assert recovered(copied, both).enters == 0
    with pytest.raises(UsageError, match="are one parameter, and would differ"):
        looked(copied, both, scaled("lm_head.weight", 1.1))


def test_plans_for_another_checkpoint_or_that_do_not_fit(tmp_path: Path) -> None:
    one, other = folder_of("llama", tmp_path / "one"), folder_of("llama-bias", tmp_path / "other")
    checkpoint = open_checkpoint(one)
    with pytest.raises(StalePlan):
        planned_change(a_plan(other, scaled("model.norm.weight", 2.0)), checkpoint, profile_of(checkpoint), tmp_path)
    with pytest.raises(PlanRefused, match="does not fit the checkpoint"):
        looked(one, scaled("model.nothing.weight", 2.0))
    save_file({"v": torch.ones(3)}, tmp_path / "v.safetensors")
    factor = {"file": "v.safetensors", "array": "v", "axis": "rows"}
    misfit = {"target": {"tensors": ["lm_head.weight"]}, "operation": {"kind": "scale", "factor": factor}}
    with pytest.raises(PlanRefused, match="does not fit the checkpoint"):
        looked(one, misfit)


def test_checkpoints_that_cannot_be_compared(tmp_path: Path) -> None:
    one = folder_of("llama", tmp_path / "one")
    short = folder_of("llama", tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    tensors = load_file(short / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".layers.2." not in name}
    save_file(kept, short / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="3 layers cannot be compared with 2"):
        lens(open_checkpoint(one), ASKED, candidate=open_checkpoint(short))
