"""A LoRA adapter of rank one as the outer product that it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from applied import rewritten, stored, unresolved
from safetensors.torch import save_file

torch.manual_seed(0)
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tiny_model: Path) -> Path:
    return tiny_model


def _adapter(folder: Path, shape: tuple[int, int], r: int) -> tuple[torch.Tensor, torch.Tensor]:
    folder.mkdir()
    module = NAME.removesuffix(".weight")
    a, b = torch.randn(r, shape[1]) * 0.1, torch.randn(shape[0], r) * 0.1
    prefix = f"base_model.model.{module}.lora_"
    save_file({f"{prefix}A.weight": a, f"{prefix}B.weight": b}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 3, "bias": "none", "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return a, b


def _on(**parameters: object) -> dict[str, object]:
    return {"target": {"tensors": [NAME]}, "operation": {"kind": "rank_one", "lora": "adapter", **parameters}}


def test_an_adapter_of_rank_one_is_its_outer_product(model: Path) -> None:
    before = stored(model)[NAME]
    a, b = _adapter(model.parent / "adapter", tuple(before.shape), 1)
    after = rewritten(model, _on(strength=0.5))[NAME]
    assert torch.equal(after, (before.float() + torch.outer(b[:, 0], a[0]) * 1.5).to(before.dtype))
    assert torch.equal(rewritten(model, {**_on(strength=0.5), "operation": {
        "kind": "low_rank_add", "lora": "adapter", "weight": 0.5}})[NAME], after)  # fmt: skip


def test_an_adapter_of_a_higher_rank_is_refused(model: Path) -> None:
    _adapter(model.parent / "adapter", tuple(stored(model)[NAME].shape), 2)
    error = unresolved(model, _on())
    assert error.code == "adapter-unusable"
    assert "rank 2" in str(error)
    assert error.hint == "use low_rank_add"
