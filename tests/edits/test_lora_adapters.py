"""LoRA folders as PEFT writes them: what they change, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dtypes import FLOATS
from planner.edits.lora import Adapter, open_adapter
from planner.errors import AdapterUnusable, PlannerError
from planner.operations.base import Place
from planner.operations.low_rank_add import LowRankAdd

PREFIX = "base_model.model."
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
SHAPES = {
    f"{Q}.weight": (6, 4),
    f"{DOWN}.weight": (4, 9),
    "model.embed_tokens.weight": (11, 4),
    "lm_head.weight": (11, 4),
}
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "target_modules": ["q_proj"]}


def pair(module: str, *, out: int, into: int, r: int = 2, form: str = "lora_{}.weight") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(out * 100 + into)
    return {
        f"{PREFIX}{module}.{form.format('A')}": torch.randn(r, into, generator=generator),
        f"{PREFIX}{module}.{form.format('B')}": torch.randn(out, r, generator=generator),
    }


QS = pair(Q, out=6, into=4)


def written(folder: Path, arrays: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    (folder / "lora").mkdir(exist_ok=True)
    found = {key: value for key, value in (CONFIG | config).items() if value is not ...}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(found))
    safetensors.torch.save_file(QS if arrays is None else arrays, folder / "lora" / "adapter_model.safetensors")
    return folder


def opened(folder: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> Adapter:
    return open_adapter("lora", folder, SHAPES if shapes is None else shapes)


def refused(folder: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
    with pytest.raises(AdapterUnusable) as caught:
        opened(folder, shapes)
    assert caught.value.exit_status == 3
    assert caught.value.hint
    assert caught.value.message.isprintable()
    return caught.value.message


def delta(adapter: Adapter, tensor: str, **given: Any) -> np.ndarray[Any, Any]:
    update = adapter.update(tensor, **given)
    return update.scaling * (update.b @ update.a)


@pytest.mark.parametrize("form", ["lora_{}.weight", "lora_{}.default.weight"])
def test_a_module_becomes_its_tensor_and_the_product_that_of_the_file(tmp_path: Path, form: str) -> None:
    arrays = pair(Q, out=6, into=4, form=form) | pair(DOWN, out=4, into=9, form=form)
    adapter = opened(written(tmp_path, arrays))
    assert set(adapter.tensors) == {f"{Q}.weight", f"{DOWN}.weight"}
    a, b = (arrays[f"{PREFIX}{Q}.{form.format(side)}"].double().numpy() for side in "AB")
    assert np.allclose(delta(adapter, f"{Q}.weight"), 1.5 * b @ a, rtol=1e-15)
    assert adapter.config.base_model == ""


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_any_float_dtype_are_read_exactly(tmp_path: Path, stored: torch.dtype) -> None:
    arrays = {name: array.to(stored) for name, array in QS.items()}
    update = opened(written(tmp_path, arrays)).update(f"{Q}.weight")
    assert np.array_equal(update.a, arrays[f"{PREFIX}{Q}.lora_A.weight"].double().numpy())
    assert update.a.dtype == np.float64


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 1.5),
        ({"use_rslora": True}, 3 / math.sqrt(2)),
        ({"r": 7, "rank_pattern": {"q_proj": 2}}, 1.5),
        ({"r": 7, "rank_pattern": {"proj": 9, f"^{Q}": 2, "q_proj": 7}, "alpha_pattern": {"self_attn.q_proj": 8}}, 4.0),
        ({"alpha_pattern": {"^q_proj": 8, "k_proj": 9, "q": 10}}, 1.5),
        ({"lora_alpha": 0.5, "init_lora_weights": "gaussian", "rank_pattern": None}, 0.25),
        ({"r": ..., "lora_alpha": 16, "rank_pattern": {Q: 2}}, 8.0),
    ],
)
def test_scaling(tmp_path: Path, config: dict[str, Any], scaling: float) -> None:
    assert opened(written(tmp_path, **config)).update(f"{Q}.weight").scaling == scaling


def test_a_conv1d_is_stored_the_other_way_round(tmp_path: Path) -> None:
    wide = pair("transformer.h.0.attn.c_attn", out=12, into=4)
    square = pair("transformer.h.0.attn.c_proj", out=4, into=4)
    shapes = {"h.0.attn.c_attn.weight": (4, 12), "h.0.attn.c_proj.weight": (4, 4)}
    adapter = opened(written(tmp_path, wide | square, fan_in_fan_out=True), shapes)
    for name, arrays in (("c_attn", wide), ("c_proj", square)):
        a, b = (array.double() for array in arrays.values())
        assert np.allclose(delta(adapter, f"h.0.attn.{name}.weight"), 1.5 * (b @ a).T.numpy(), rtol=1e-14)
        assert np.allclose(
            delta(adapter, f"h.0.attn.{name}.weight", transposed=True), 1.5 * (b @ a).T.numpy(), rtol=1e-14
        )
    a, b = (array.double() for array in square.values())
    straight = delta(adapter, "h.0.attn.c_proj.weight", transposed=False)
    assert np.allclose(straight, 1.5 * (b @ a).numpy(), rtol=1e-14)
    with pytest.raises(AdapterUnusable, match="12 x 4"):
        adapter.update("h.0.attn.c_attn.weight", transposed=False)


def test_an_embedding_is_a_table_of_what_goes_in(tmp_path: Path) -> None:
    arrays = pair("model.embed_tokens", out=4, into=11, form="lora_embedding_{}")
    adapter = opened(written(tmp_path, arrays))
    a, b = (array.double() for array in arrays.values())
    assert np.allclose(delta(adapter, "model.embed_tokens.weight"), 1.5 * (b @ a).T.numpy(), rtol=1e-14)


@pytest.mark.parametrize(
    "stored", ["layers.0.self_attn.q_proj.weight", "backbone.model.layers.0.self_attn.q_proj.weight"]
)
def test_a_model_with_or_without_a_head_calls_its_body_by_one_name_more(tmp_path: Path, stored: str) -> None:
    assert opened(written(tmp_path), {stored: (6, 4)}).tensors == (stored,)
    assert "of which the checkpoint has no weight" in refused(
        tmp_path, {f"a.{Q}.weight": (6, 4), f"b.{Q}.weight": (6, 4)}
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases were trained"),
        ({"bias": "lora_only"}, "biases were trained"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [1]}, "rows of the embedding"),
        ({"layer_replication": [[0, 1]]}, "more layers"),
        ({"target_parameters": ["experts.down_proj"]}, "no weight of a linear"),
        ({"alora_invocation_tokens": [1]}, "after certain tokens"),
        ({"use_qalora": True}, "does not know"),
        ({"kasa_config": {"beta": 1}}, "does not know"),
        ({"something_new": 3}, "'something_new'"),
        ({"init_lora_weights": "pissa"}, "convert it"),
        ({"init_lora_weights": "olora"}, "convert it"),
        ({"init_lora_weights": ["pissa"]}, "convert it"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": ...}, "None"),
        ({"r": 0}, "no rank"),
        ({"r": 2.0}, "no rank"),
        ({"r": True}, "no rank"),
        ({"r": 3}, "says rank 3"),
        ({"lora_alpha": "16"}, "no number"),
        ({"lora_alpha": None}, "no number"),
        ({"use_rslora": 1}, "neither true nor false"),
        ({"rank_pattern": {"(a+)+$": 2}}, "regular expression"),
        ({"alpha_pattern": ["q_proj"]}, "no object"),
        ({"alpha_pattern": {"": 2}}, "regular expression"),
        ({"alpha_pattern": {"q_proj": None}}, "no number"),
    ],
)
def test_what_a_sum_of_weights_cannot_do_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert message in refused(written(tmp_path, **config))


A, B = (f"{PREFIX}{Q}.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no array"),
        ({A: QS[A]}, "lacks A or B"),
        (QS | {f"{PREFIX}{Q}.lora_magnitude_vector": torch.ones(6)}, "neither A nor B"),
        (QS | {f"{PREFIX}{Q}.lora_B.bias": torch.ones(6)}, "neither A nor B"),
        (QS | {f"{PREFIX}{Q}.bias": torch.ones(6)}, "neither A nor B"),
        (QS | {f"{PREFIX}lm_head.modules_to_save.weight": torch.ones(2, 2)}, "neither A nor B"),
        (QS | {f"{PREFIX}model.embed_tokens.weight": torch.ones(2, 2)}, "neither A nor B"),
        (QS | {"x.lora_A.weight": torch.ones(2, 2)}, "neither A nor B"),
        (QS | pair(DOWN, out=4, into=9, form="lora_{}.other.weight"), "different names"),
        (QS | pair(Q, out=6, into=4, form="lora_{}.default.weight"), "two arrays"),
        (QS | pair(Q, out=6, into=4, form="lora_embedding_{}"), "lacks A or B"),
        (QS | pair(Q.removeprefix("model."), out=6, into=4), "two of its modules"),
        (pair(Q, out=6, into=5), "6 x 5"),
        (pair(Q, out=4, into=6, form="lora_embedding_{}") | pair(DOWN, out=8, into=9), "8 x 9"),
        (pair("model.layers.99.mlp.up_proj", out=6, into=4), "no weight"),
        ({A: QS[A], B: torch.ones(6, 3)}, "shapes"),
        ({A: QS[A], B: torch.ones(6)}, "shapes"),
    ],
)
def test_arrays_that_are_no_low_rank_change_of_this_model_are_refused(
    tmp_path: Path, arrays: dict[str, torch.Tensor], message: str
) -> None:
    assert message in refused(written(tmp_path, arrays))


def test_a_pickled_adapter_is_never_opened(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(pickle.dumps(1))
    assert opened(tmp_path).tensors
    path.unlink()
    assert "pickle" in refused(tmp_path)
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in refused(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b'{"r": NaN}', b'{"r": 1, "r": 2}', b"\xff", b"[" * 100_000, b" " * 2_000_000, b'{"r": 1e999}'],
)
def test_a_configuration_that_is_no_sound_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (written(tmp_path) / "lora" / "adapter_config.json").write_bytes(text)
    assert "adapter_config.json" in refused(tmp_path)


def test_files_that_are_missing_or_elsewhere(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.mkdir()
    assert "No such file" in refused(plan)
    written(tmp_path)
    (plan / "lora").symlink_to(tmp_path / "lora")
    assert "leads out" in refused(plan)
    with pytest.raises(AdapterUnusable, match="climbs"):
        open_adapter("../lora", plan, SHAPES)
    assert open_adapter(str(tmp_path / "lora"), plan, SHAPES).tensors


def test_numbers_that_are_not_finite_or_have_changed_are_refused(tmp_path: Path) -> None:
    adapter = opened(written(tmp_path, {A: QS[A], B: torch.full((6, 2), torch.nan)}))
    with pytest.raises(AdapterUnusable, match="NaN"):
        adapter.update(f"{Q}.weight")
    written(tmp_path)
    with pytest.raises(AdapterUnusable, match="changed since"):
        adapter.update(f"{Q}.weight")


def test_a_file_at_rest_is_hashed_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planner.edits import sidecar

    hashed = []
    digest = sidecar._digest

    def counting(descriptor: int) -> str:
        hashed.append(descriptor)
        return digest(descriptor)

    monkeypatch.setattr(sidecar, "_digest", counting)
    fresh = opened(written(tmp_path))
    fresh.update(f"{Q}.weight")
    assert len(hashed) == 2  # too new to be told from what may be written in the same tick of the clock
    monkeypatch.setattr(sidecar, "_SETTLED", -(10**18))
    adapter = opened(tmp_path)
    for _ in range(3):
        adapter.update(f"{Q}.weight")
    assert len(hashed) == 3
    path = adapter.file.path
    path.with_name("new").write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    path.with_name("new").replace(path)
    with pytest.raises(AdapterUnusable, match="changed since"):
        adapter.update(f"{Q}.weight")


@given(where=st.integers(0, 2000), bits=st.integers(1, 255), config=st.booleans())
@settings(deadline=None, max_examples=200)
def test_no_damage_does_worse_than_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, where: int, bits: int, config: bool
) -> None:
    folder = written(tmp_path_factory.getbasetemp())
    path = folder / "lora" / ("adapter_config.json" if config else "adapter_model.safetensors")
    whole = bytearray(path.read_bytes())
    whole[where % len(whole)] ^= bits
    path.write_bytes(bytes(whole))
    try:
        adapter = opened(folder)
        for tensor in adapter.tensors:
            assert np.isfinite(adapter.update(tensor).b).all()
    except PlannerError as error:
        assert isinstance(error, AdapterUnusable)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("safe", [False, True])
def test_a_folder_that_peft_wrote_merges_to_the_bits_of_peft(tmp_path: Path, safe: bool, rslora: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=24, n_head=2, vocab_size=40, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = peft.LoraConfig(
        r=6,
        lora_alpha=5,
        use_rslora=rslora,
        target_modules=["c_attn", "c_proj", "wte"],
        rank_pattern={"attn.c_proj": 3},
        alpha_pattern={"h.1.attn.c_attn": 2},
        init_lora_weights=False,
        fan_in_fan_out=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, lora)
        wrapped.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
        merged = wrapped.merge_and_unload(safe_merge=safe).state_dict()
    adapter = opened(tmp_path, {name: tuple(tensor.shape) for name, tensor in before.items()})
    assert len(adapter.tensors) == 7
    bfloat16 = FLOATS["BF16"]
    for tensor in adapter.tensors:
        update, values = adapter.update(tensor), before[tensor].float().numpy()
        rounding = "delta_first" if safe or "wte" in tensor else "once"
        after = LowRankAdd(lora="lora", rounding=rounding).apply(
            values,
            Place(
                shape=values.shape,
                arrays={"a": update.a, "b": update.b, "scaling": np.array(update.scaling)},
                rounded=lambda found: bfloat16.decode(bfloat16.encode(found)),
            ),
        )
        expected = merged[tensor].view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(bfloat16.encode(after), expected), tensor
