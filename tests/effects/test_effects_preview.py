"""The preview against the result: what it says from a histogram is what profiling the applied checkpoint measures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.checkpoint import Checkpoint, open_checkpoint
from planner.checkpoint.reading import TensorReader
from planner.dtypes import FLOATS
from planner.effects import CheckReport, check
from planner.effects.types import CheckedTensor
from planner.plan import Policy, decide
from planner.profile import histograms_of, profile_of
from planner.transaction import apply_plan

ANY = Policy(largest_relative_change=1e30, largest_total_change=1e30, refuse=())
NAME = "model.layers.{}.mlp.up_proj.weight"
POINTWISE: list[list[dict[str, Any]]] = [
    [{"kind": "scale", "factor": 1.02}],
    [{"kind": "scale", "factor": 3.0}],
    [{"kind": "scale", "factor": -0.37}],
    [{"kind": "shift", "offset": 0.011}],
    [{"kind": "clamp", "minimum": -0.05, "maximum": 0.07}],
    [{"kind": "zero"}],
    [{"kind": "soft_threshold", "threshold": 0.03}],
    [{"kind": "reduce", "alpha": 0.3}, {"kind": "boost", "alpha": 0.2}, {"kind": "shift", "offset": -0.001}],
]


def _modifications(steps: list[dict[str, Any]], layers: str = "0-2") -> list[dict[str, Any]]:
    return [{"target": {"layers": layers}, "operation": operation} for operation in steps]


def _model(folder: Path) -> Path:
    return write_checkpoint(
        folder,
        {
            NAME.format(0): ("BF16", random_tensor((50, 64), seed=1)),
            NAME.format(1): ("F16", random_tensor((50, 64), dtype="F16", seed=2)),
            NAME.format(2): ("F32", random_tensor((50, 64), dtype="F32", seed=3)),
        },
    )


def _checked(model: Path, *modifications: dict[str, Any], kept: bool = True, **options: Any) -> CheckReport:
    checkpoint = open_checkpoint(model)
    profile = profile_of(checkpoint)
    histograms = histograms_of(profile) if kept else None
    return check(a_plan(model, *modifications), checkpoint, profile, ANY, histograms=histograms, **options)


def _applied(model: Path, out: Path, *modifications: dict[str, Any]) -> Path:
    plan = a_plan(model, *modifications, policy=ANY)
    plan = decide(plan, [modification.id for modification in plan.modifications], "approved", reviewer="tester")
    apply_plan(plan, model, out=out, policy=ANY, by="tester", folder=model.parent)
    return out


def _patterns(model: Path, name: str) -> np.ndarray[Any, Any]:
    checkpoint = open_checkpoint(model)
    tensor = checkpoint.tensors[name]
    return np.frombuffer(b"".join(checkpoint.chunks(tensor)), dtype=FLOATS[tensor.dtype].pattern)


def _agrees(found: CheckedTensor, dtype: str, old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]) -> None:
    """The preview is numpy's own arithmetic on the arrays before and after, in float64, in two passes."""
    x, y = (FLOATS[dtype].decode_float64(patterns) for patterns in (old, new))
    assert found.elements == x.size
    assert found.changed_elements == np.count_nonzero(old != new)
    assert found.changed_fraction == np.count_nonzero(old != new) / max(x.size, 1)
    assert found.infinite_elements == np.count_nonzero(np.isfinite(x) & np.isinf(y))
    assert found.broken_elements == np.count_nonzero(np.isfinite(x) & ~np.isfinite(y))
    assert found.zeros_made == np.count_nonzero((x != 0) & (y == 0))
    for moments, values in ((found.before, x), (found.after, y)):
        finite = values[np.isfinite(values)]
        assert moments.nonfinite == values.size - finite.size
        if finite.size:
            size = float(np.abs(finite).max())
            assert moments.mean == pytest.approx(finite.mean(), rel=1e-9, abs=1e-14 * size)
            assert moments.std == pytest.approx(finite.std(), rel=1e-9, abs=1e-8 * size)
            assert moments.rms == pytest.approx(math.sqrt(np.mean(finite**2)), rel=1e-12)
            assert (moments.min, moments.max) == (finite.min(), finite.max())
            assert moments.abs_max == size
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    square = float(x @ x)
    if found.broken_elements:
        assert (found.realised_scale, found.scale_spread, found.relative_change) == (None, None, None)
        return
    if square == 0:
        assert (found.realised_scale, found.scale_spread) == (None, None)
        assert found.relative_change == (None if y.any() else 0.0)
        return
    scale = float(x @ y) / square
    assert found.realised_scale == pytest.approx(scale, rel=1e-12, abs=1e-15)
    assert found.relative_change == pytest.approx(float(np.linalg.norm(y - x)) / math.sqrt(square), rel=1e-9, abs=1e-15)
    spread = math.sqrt(float((y - scale * x) @ (y - scale * x)) / square)
    assert found.scale_spread == pytest.approx(spread, rel=1e-4, abs=1e-13 * max(abs(scale), 1))


@pytest.mark.parametrize("steps", POINTWISE, ids=lambda steps: "+".join(step["kind"] for step in steps))
def test_a_preview_is_what_profiling_the_result_measures(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    model = _model(tmp_path / "model")
    modifications = _modifications(steps)
    report = _checked(model, *modifications)
    result = _applied(model, tmp_path / "out", *modifications)
    measured = profile_of(open_checkpoint(result))
    for tensor, dtype in zip(report.tensors, ("BF16", "F16", "F32"), strict=True):
        assert tensor.source == ("read" if dtype == "F32" else "histogram")
        _agrees(tensor, dtype, _patterns(model, tensor.name), _patterns(result, tensor.name))
        of = measured.by_name[tensor.name]
        for field in ("mean", "std", "min", "max", "abs_max", "rms"):
            wanted = getattr(of, field)
            assert getattr(tensor.after, field) == pytest.approx(wanted, rel=1e-9, abs=1e-15), field
        before = profile_of(open_checkpoint(model)).by_name[tensor.name]
        assert of.zeros - before.zeros == tensor.zeros_made
    without = _checked(model, *modifications, kept=False)
    for kept, read in zip(report.tensors, without.tensors, strict=True):
        assert read.source == "read"
        assert kept.model_copy(update={"source": "read"}) == read, "the same, to the last bit, from the bytes"


def test_no_weight_is_read_for_what_looks_at_each_element_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path / "model")
    modifications = [m for steps in POINTWISE for m in _modifications(steps, layers="0-1")]
    ranged = {"kind": "magnitude_quantile", "above": 0.9}
    modifications.append(
        {"target": {"layers": "0-1", "elements": ranged}, "operation": {"kind": "scale", "factor": 0.5}}
    )
    honest = _checked(model, *modifications)
    plan = a_plan(model, *modifications)
    checkpoint = open_checkpoint(model)
    profile = profile_of(checkpoint)
    histograms = histograms_of(profile)
    shard = model / "model.safetensors"
    begin = checkpoint.shards[0].header.data_begin
    shard.write_bytes(shard.read_bytes()[:begin] + b"\xff" * (shard.stat().st_size - begin))

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "chunks", read)
    monkeypatch.setattr(TensorReader, "__init__", read)
    found = check(plan, checkpoint, profile, ANY, histograms=histograms)
    assert found == honest
    assert {tensor.source for item in found.modifications for tensor in item.tensors} == {"histogram"}
    with pytest.raises(AssertionError, match="a weight was read"):
        check(a_plan_of(plan, layers="2"), checkpoint, profile, ANY, histograms=histograms)


def a_plan_of(plan: Any, *, layers: str) -> Any:
    """The plan's first modification on other layers."""
    first = plan.modifications[0]
    target = first.target.model_copy(update={"layers": layers})
    return plan.model_copy(update={"modifications": (first.model_copy(update={"target": target}),)})


NOT_POINTWISE = [
    ({"kind": "rows", "indices": "0,7-20"}, {"kind": "scale", "factor": 1.3}),
    ({"kind": "columns", "indices": "3"}, {"kind": "zero"}),
    ({"kind": "all"}, {"kind": "noise", "std": 0.01, "seed": 3}),
    ({"kind": "all"}, {"kind": "normalize", "norm": 1.0, "per": "rows"}),
    ({"kind": "all"}, {"kind": "normalize", "norm": 3.0, "per": "whole"}),
    ({"kind": "all"}, {"kind": "rank_reduce", "rank": 5}),
    ({"kind": "all"}, {"kind": "spectral_scale", "first": 1, "last": 2, "factor": 0.5}),
    ({"kind": "rows", "indices": "0"}, {"kind": "scale", "factor": 1e38}),
]


@pytest.mark.parametrize(("elements", "operation"), NOT_POINTWISE)
@pytest.mark.parametrize("piece", [None, 4096], ids=["one piece", "pieces"])
def test_other_edits_are_previewed_from_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: Any, operation: Any, piece: int | None
) -> None:
    from planner.edits import combined, resolved, surroundings_of

    model = _model(tmp_path / "model")
    modification = {"target": {"layers": "0-2", "elements": elements}, "operation": operation}
    around = surroundings_of(open_checkpoint(model), tmp_path)
    edits = combined([resolved(a_plan(model, modification).modifications[0], around)], around)
    wanted = {}
    for name, edit in edits.tensors.items():
        old = _patterns(model, name)
        wanted[name] = (edit.dtype.name, old, np.concatenate(list(edit.rewrite(lambda old=old: iter([old])))))
    if piece:
        chunks = Checkpoint.chunks
        monkeypatch.setattr(Checkpoint, "chunks", lambda self, tensor: chunks(self, tensor, size=piece))
    for tensor in _checked(model, modification).tensors:
        assert tensor.source == "read"
        _agrees(tensor, *wanted[tensor.name])


def _anything(dtype: str) -> st.SearchStrategy[list[int]]:
    last = 2 ** (8 * FLOATS[dtype].pattern.itemsize) - 1
    special = {"BF16": [0x7F80, 0xFF80, 0x7FC0, 0x8000, 0x7F7F], "F16": [0x7C00, 0xFE00, 0x8000, 0x7BFF, 1]}
    return st.lists(st.one_of(st.integers(0, last), st.sampled_from(special.get(dtype, [0]))), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(["BF16", "F16", "F32"]), steps=st.sampled_from(POINTWISE))
def test_any_bits_are_previewed_as_they_would_be_stored(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str, steps: list[dict[str, Any]]
) -> None:
    """NaN, infinities, -0, subnormals and numbers at the end of the range."""
    old = np.array(data.draw(_anything(dtype)), dtype=FLOATS[dtype].pattern)
    values = FLOATS[dtype].decode_float64(old)
    if dtype == "F32" and np.abs(values[np.isfinite(values)]).max(initial=0) > 1e30:
        old = old[np.abs(np.nan_to_num(values)) < 1e30]
    folder = tmp_path_factory.mktemp("any")
    model = write_checkpoint(folder / "model", {NAME.format(0): (dtype, old)})
    modifications = _modifications(steps, layers="0")
    from planner.edits import combined, resolved, surroundings_of

    checkpoint = open_checkpoint(model)
    around = surroundings_of(checkpoint, folder)
    plan = a_plan(model, *modifications)
    (edit,) = combined([resolved(m, around) for m in plan.modifications], around).tensors.values()
    new = np.concatenate([old[:0], *edit.rewrite(lambda: iter([old]))])
    (tensor,) = _checked(model, *modifications).tensors
    _agrees(tensor, dtype, old, new)


def test_infinities_and_zeros_that_would_be_made_are_counted(tmp_path: Path) -> None:
    values = np.array([60000.0, -60000.0, 100.0, 1e-7, 0.0, np.inf], dtype="<f2")
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): ("F16", values.view("<u2"))})
    (up,) = _checked(model, *_modifications([{"kind": "scale", "factor": 1.2}], layers="0")).tensors
    assert (up.infinite_elements, up.broken_elements, up.zeros_made) == (2, 2, 0)
    assert up.after.nonfinite == 3
    (down,) = _checked(model, *_modifications([{"kind": "scale", "factor": 0.01}], layers="0")).tensors
    assert (down.infinite_elements, down.zeros_made) == (0, 1)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_occurs_often_weighs_more_beside_what_is_not_finite(tmp_path: Path, dtype: str) -> None:
    """In the order of the patterns the infinity stands between the others, each of which occurs another time."""
    values = np.repeat([1.0, np.inf, -2.0, np.nan, -0.5, 3.0], [3, 2, 5, 4, 7, 1]).astype(FLOATS[dtype].working)
    old = FLOATS[dtype].encode(values)
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): (dtype, old)})
    new = FLOATS[dtype].encode(np.clip(values, -1, 2.5))
    clamp = {"kind": "clamp", "minimum": -1.0, "maximum": 2.5}
    (tensor,) = _checked(model, *_modifications([clamp], layers="0")).tensors
    assert tensor.source == ("read" if dtype == "F32" else "histogram")
    _agrees(tensor, dtype, old, new)


def test_the_spread_does_not_depend_on_how_the_tensor_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clamped, the pieces of a sorted tensor have scales of their own, from 1 down."""
    values = np.sort(np.abs(np.random.default_rng(0).normal(0, 1, 4096))).astype("<f4")
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): ("F32", values.view("<u4"))})
    chunks = Checkpoint.chunks
    monkeypatch.setattr(Checkpoint, "chunks", lambda self, tensor: chunks(self, tensor, size=512))
    (tensor,) = _checked(model, *_modifications([{"kind": "clamp", "maximum": 0.5}], layers="0")).tensors
    _agrees(tensor, "F32", values.view("<u4"), np.minimum(values, np.float32(0.5)).view("<u4"))
    assert tensor.scale_spread is not None
    assert tensor.scale_spread > 0.1


def test_a_small_spread_is_seen_beside_a_large_scale(tmp_path: Path) -> None:
    """A factor of 3 in float32 leaves a spread of 1e-8, which the square of 3 - 1 would drown."""
    model = _model(tmp_path / "model")
    (tensor,) = _checked(model, *_modifications([{"kind": "scale", "factor": -1.7}], layers="2")).tensors
    x = _patterns(model, tensor.name).view("<f4")
    y = (x * np.float32(-1.7)).astype("<f8")
    scale = float(x.astype("<f8") @ y) / float(x.astype("<f8") @ x.astype("<f8"))
    spread = np.linalg.norm(y - scale * x.astype("<f8")) / np.linalg.norm(x.astype("<f8"))
    assert 1e-9 < spread < 1e-7
    assert tensor.scale_spread == pytest.approx(spread, rel=1e-6)


def test_an_added_tensor_is_previewed_as_what_it_will_be(tmp_path: Path) -> None:
    tiny = pytest.importorskip("models.tiny")
    safetensors = pytest.importorskip("safetensors.numpy")
    model = tiny.build("llama").write(tmp_path / "model", "BF16")
    v = np.random.default_rng(0).normal(0, 1, 32).astype("<f4")
    v[5] = 0
    safetensors.save_file({"v": v}, tmp_path / "v.safetensors")
    weight = "model.layers.1.self_attn.o_proj.weight"
    operation = {"kind": "bake_steering", "vector": {"file": "v.safetensors", "array": "v"}, "strength": 0.5}
    report = _checked(model, {"target": {"tensors": [weight]}, "operation": operation}, folder=tmp_path)
    tensor = next(t for t in report.tensors if t.name == weight.replace("weight", "bias"))
    new = FLOATS["BF16"].encode((0.5 * v.astype("<f8")).astype("<f4"))
    assert tensor.source == "new"
    _agrees(tensor, "BF16", np.zeros_like(new), new)
    assert tensor.changed_elements == 31
    of_model = profile_of(open_checkpoint(model))
    whole = math.sqrt(math.fsum((t.l2_norm or 0) ** 2 for t in of_model.tensors))
    change = float(np.linalg.norm(FLOATS["BF16"].decode_float64(new)))
    assert report.total_change == pytest.approx(change / whole, rel=1e-9), "what is added counts"
