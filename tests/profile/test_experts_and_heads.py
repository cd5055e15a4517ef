"""Parts of a tensor that are described one by one: the experts of a fused one, and attention heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_checkpoint
from oracles import Array, encoded, values_of

from planner.checkpoint import open_checkpoint
from planner.profile import Profile, TensorProfile, profile_checkpoint, sweep
from planner.profile.sweep import Task

EXPERTS = (5, 6, 7)
DTYPES = ["F32", "F64", "BF16", "F16", "F8_E4M3", "F8_E5M2", "I8", "I32"]


def experts_of(name: str) -> Array:
    """Experts that differ: one of zeros, one with odd elements, one of another scale, one skewed."""
    values = np.random.default_rng(3).normal(0, 20, EXPERTS)
    values[1] = 0.0
    values[2, :2, :3] = [[np.nan, np.inf, -np.inf], [0.0, -0.0, 1.0]]
    values[3] *= 3
    values[4] = np.abs(values[4]) * values[4] / 10
    return encoded(values, name)


def profiled(folder: Path, tensors: dict[str, Any], *, workers: int, config: dict[str, Any] | None = None) -> Profile:
    return profile_checkpoint(open_checkpoint(write_checkpoint(folder, tensors, config=config)), workers=workers)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("piece", [16, 112, 2**22])
@pytest.mark.parametrize("name", DTYPES)
def test_an_expert_has_the_numbers_of_a_tensor_of_its_own(
    name: str, piece: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_PIECE", piece)
    fused = experts_of(name)
    slices = {f"slice{number}": (name, part) for number, part in enumerate(fused)}
    tensors = {"m.experts.w": (name, fused), "plain.w": (name, fused), **slices}
    found = profiled(tmp_path, tensors, workers=workers).by_name
    experts, alone = found["m.experts.w"].experts, [found[slice_] for slice_ in slices]
    assert experts is not None
    assert found["plain.w"].experts is None
    assert experts.count == len(fused)
    for fact in ("mean", "std", "rms", "abs_max", "kurtosis", "zeros"):
        assert getattr(experts, fact) == tuple(getattr(one, fact) for one in alone)
    assert experts.nonfinite == tuple(one.nan + one.inf for one in alone)
    assert experts.zeros[1] == 42
    assert_same_whole(found["m.experts.w"], found["plain.w"])
    values = values_of(fused, name)
    expected = [part[np.isfinite(part)].std() for part in values]
    assert experts.std == pytest.approx(expected, rel=1e-12)


def assert_same_whole(fused: TensorProfile, plain: TensorProfile) -> None:
    """Counts are the same, and so is what comes from counts; sums are added in another order."""
    other = {"name", "role", "layer", "expert", "experts", "rows", "columns"}
    sums = {"mean", "std", "rms", "l2_norm", "skewness", "kurtosis"} if fused.dtype in ("F32", "F64", "I32") else set()
    assert fused.model_dump(exclude=other | sums) == plain.model_dump(exclude=other | sums)
    for fact in sums:
        blur = 1e-14 * plain.abs_max if fact == "mean" else 1e-12
        assert getattr(fused, fact) == pytest.approx(getattr(plain, fact), rel=1e-12, abs=blur)
    for one, two in ((fused.rows, plain.rows), (fused.columns, plain.columns)):
        assert (one.count, one.smallest_at, one.largest_at) == (two.count, two.smallest_at, two.largest_at)
        norms = pytest.approx([two.min, two.median, two.max, two.cv], rel=1e-12)
        assert [one.min, one.median, one.max, one.cv] == norms


def test_huge_and_tiny_experts_do_not_spoil_each_other(tmp_path: Path) -> None:
    fused = np.ones((4, 2, 3)) * [[[1.0, -2.0, 3.0]]]
    fused[1] *= 1e300
    fused[2] *= 1e-300
    found = profiled(tmp_path, {"experts.w": ("F64", fused.view("<u8"))}, workers=2).tensors[0]
    expected = np.std([1.0, -2.0, 3.0])
    assert found.experts.std == pytest.approx([expected, 1e300 * expected, 1e-300 * expected, expected], rel=1e-12)
    assert found.std == pytest.approx(np.std(fused / 1e300) * 1e300, rel=1e-12)
    assert found.rows.max == pytest.approx(14**0.5 * 1e300, rel=1e-12)
    assert found.rows.largest_at == (2, 3, 0)


def test_of_an_expert_only_its_numbers_are_kept(tmp_path: Path) -> None:
    """A table of 65,536 counts for each of hundreds of experts would be hundreds of megabytes."""
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"experts.w": ("BF16", np.ones((64, 2, 2), "<u2"))}))
    [tensor] = checkpoint.tensors.values()
    [found] = sweep.sweep(checkpoint, [Task(tensor, 64)], workers=2)
    assert len(found.experts) == 64
    assert not any(isinstance(value, np.ndarray) for expert in found.experts for _, value in expert)


CONFIG = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
ROWS = {"q_proj": (6, (48, 48)), "k_proj": (2, (16, 48)), "v_proj": (2, (16, 48))}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64", "F8_E4M3"])
def test_a_head_has_the_norm_that_numpy_computes(
    name: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_PIECE", 208)  # ends inside rows
    random = np.random.default_rng(0)
    tensors = {}
    for role, shape in {**{role: shape for role, (_, shape) in ROWS.items()}, "o_proj": (48, 48)}.items():
        values = random.normal(0, 1, shape)
        values[3, 5] = np.nan
        tensors[f"model.layers.0.self_attn.{role}.weight"] = (name, encoded(values, name))
    profile = profiled(tmp_path, tensors, workers=workers, config=CONFIG)
    for path, (_, patterns) in tensors.items():
        role = path.split(".")[-2]
        count, axis = (ROWS[role][0], 0) if role in ROWS else (6, 1)
        parts = np.split(np.nan_to_num(values_of(patterns, name)), count, axis=axis)
        [heads] = profile.by_name[path].heads
        assert (heads.axis, heads.width) == (("rows", "columns")[axis], 8)
        assert heads.part == {"q": "query", "k": "key", "v": "value", "o": "output"}[role[0]]
        assert heads.norms == pytest.approx([np.linalg.norm(part) for part in parts], rel=1e-12)


def test_the_parts_of_a_fused_projection(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1, (80, 48)).astype("<f4")
    tensors = {"model.layers.0.self_attn.qkv_proj.weight": ("F32", values.view("<u4"))}
    [tensor] = profiled(tmp_path, tensors, workers=2, config=CONFIG | {"model_type": "phi3"}).tensors
    found = {heads.part: heads.norms for heads in tensor.heads}
    expected = [np.linalg.norm(part.astype(float)) for part in np.split(values, 10)]
    assert [*found["query"], *found["key"], *found["value"]] == pytest.approx(expected, rel=1e-12)
    assert [len(found[part]) for part in ("query", "key", "value")] == [6, 2, 2]


def test_heads_at_the_ends_of_float64(tmp_path: Path) -> None:
    for value, norms in ((1e300, [8 * 48**0.5 * 1e300 / 8**0.5] * 6), (1e-300, [48**0.5 * 8**0.5 * 1e-300] * 6)):
        tensors = {Q_PROJ: ("F64", np.full((48, 48), value).view("<u8"))}
        [tensor] = profiled(tmp_path / str(value), tensors, workers=1, config=CONFIG).tensors
        assert tensor.heads[0].norms == pytest.approx(norms, rel=1e-12)
    tensors = {Q_PROJ: ("F64", np.full((48, 48), 1.7e308).view("<u8"))}
    profile = profiled(tmp_path / "beyond", tensors, workers=1, config=CONFIG)
    assert (profile.tensors[0].heads, profile.tensors[0].rows, profile.tensors[0].l2_norm) == ((), None, None)
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
