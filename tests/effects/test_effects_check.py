"""What check says: every problem at once, and a preview that is exactly what apply would store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint

from planner.checkpoint import open_checkpoint
from planner.dtypes import FLOATS
from planner.effects import CheckReport, check
from planner.effects.types import CheckedTensor
from planner.plan import Policy
from planner.profile import profile_of

torch = pytest.importorskip("torch")

NAME = "model.layers.{}.mlp.up_proj.weight"
ANY = Policy(largest_relative_change=1e300)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(
        tmp_path / "model",
        {
            NAME.format(0): ("BF16", random_tensor((32, 64), seed=1)),
            NAME.format(1): ("F32", random_tensor((32, 64), dtype="F32", seed=2)),
            NAME.format(2): ("BF16", random_tensor((32, 64), seed=3)),
            "steps": ("I64", np.arange(3, dtype="<i8")),
        },
    )


def _checked(model: Path, *modifications: dict[str, Any], policy: Policy = ANY, **options: Any) -> CheckReport:
    checkpoint = open_checkpoint(model)
    fields = options.pop("fields", {})
    return check(a_plan(model, *modifications, **fields), checkpoint, profile_of(checkpoint), policy, **options)


def _on(layers: str, kind: str, **parameters: float) -> dict[str, Any]:
    return {"target": {"layers": layers}, "operation": {"kind": kind, **parameters}}


def _weights(model: Path, layer: int, dtype: str) -> Any:
    checkpoint = open_checkpoint(model)
    raw = bytearray(b"".join(checkpoint.chunks(checkpoint.tensors[NAME.format(layer)])))
    return torch.frombuffer(raw, dtype={"BF16": torch.bfloat16, "F32": torch.float32}[dtype])


def _agrees(found: CheckedTensor, old: Any, new: Any) -> None:
    """The preview is that of a recomputation with torch in float64."""
    x, y = old.double(), new.double()
    bits = {2: torch.int16, 4: torch.int32}[old.element_size()]
    changed = int((old.view(bits) != new.view(bits)).sum())
    assert found.elements == old.numel()
    assert found.changed_elements == changed
    assert found.changed_fraction == changed / old.numel()
    assert found.realised_scale == pytest.approx(float((x @ y) / (x @ x)), rel=1e-12, abs=1e-15)
    assert found.relative_change == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12, abs=1e-15)
    assert found.broken_elements == 0
    for moments, values in ((found.before, x), (found.after, y)):
        assert moments.mean == pytest.approx(float(values.mean()), rel=1e-9, abs=1e-15)
        assert moments.std == pytest.approx(float(values.std(unbiased=False)), rel=1e-9, abs=1e-15)
        assert moments.rms == pytest.approx(float(values.square().mean().sqrt()), rel=1e-12)
        assert moments.min == float(values.min())
        assert moments.max == float(values.max())
        assert moments.abs_max == float(values.abs().max())
        assert moments.nonfinite == 0


@pytest.mark.parametrize(("layer", "dtype"), [(0, "BF16"), (1, "F32")])
@pytest.mark.parametrize(
    ("operation", "recomputed"),
    [
        ({"kind": "scale", "factor": 1.003}, lambda w: w * 1.003),
        ({"kind": "scale", "factor": -0.37}, lambda w: w * -0.37),
        ({"kind": "shift", "offset": 0.011}, lambda w: w + 0.011),
        ({"kind": "clamp", "minimum": -0.05, "maximum": 0.07}, lambda w: w.clamp(-0.05, 0.07)),
        ({"kind": "zero"}, lambda w: w * 0 + 0.0),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_preview_is_exact(model: Path, layer: int, dtype: str, operation: dict[str, Any], recomputed: Any) -> None:
    report = _checked(model, {"target": {"layers": str(layer)}, "operation": operation})
    assert report.accepted
    old = _weights(model, layer, dtype)
    new = recomputed(old.float()).to(old.dtype)
    if operation["kind"] == "zero":
        new = torch.zeros_like(old)
    _agrees(report.modifications[0].tensors[0], old, new)
    assert report.tensors == report.modifications[0].tensors
    assert report.tensors[0].effect == "unknown"
    assert report.plan_effect == "unknown"


def test_modifications_of_one_tensor_are_previewed_alone_and_together(model: Path) -> None:
    report = _checked(model, _on("0", "scale", factor=1.1), _on("0,2", "shift", offset=0.01))
    old = _weights(model, 0, "BF16")
    first, second = report.modifications
    _agrees(first.tensors[0], old, (old.float() * 1.1).bfloat16())
    _agrees(second.tensors[0], old, (old.float() + 0.01).bfloat16())
    assert [tensor.name for tensor in report.tensors] == [NAME.format(0), NAME.format(2)]
    _agrees(report.tensors[0], old, (old.float() * 1.1 + 0.01).bfloat16())
    assert report.tensors[1] == second.tensors[1]


def test_a_tensor_of_several_chunks_is_previewed_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.checkpoint import Checkpoint

    values = random_tensor((1000,), dtype="F32")
    model = write_checkpoint(tmp_path / "model", {NAME.format(1): ("F32", values)})
    whole = _checked(model, _on("1", "scale", factor=1.1)).tensors[0]
    real = Checkpoint.chunks
    monkeypatch.setattr(Checkpoint, "chunks", lambda self, tensor: real(self, tensor, size=64))
    told: list[int] = []
    parts = _checked(model, _on("1", "scale", factor=1.1), progress=told.append).tensors[0]
    assert parts.changed_elements == whole.changed_elements
    assert parts.realised_scale == pytest.approx(whole.realised_scale, rel=1e-12)
    assert parts.relative_change == pytest.approx(whole.relative_change, rel=1e-12)
    assert parts.before.max == whole.before.max
    assert parts.after.std == pytest.approx(whole.after.std, rel=1e-12)
    assert sum(told) == 4000


def test_what_rounds_away_is_void_for_each_modification_by_itself(model: Path) -> None:
    report = _checked(
        model,
        _on("0", "scale", factor=1.001),  # below half a step of BF16
        _on("1", "scale", factor=1.001),  # not of F32
        _on("0,1", "scale", factor=1.001),  # one of both: not void as a whole
        _on("2", "clamp", maximum=100),
    )
    void = [problem.modification for problem in report.problems if problem.code == "void-modification"]
    assert void == ["m01", "m04"]
    assert not report.accepted
    effects = [[tensor.effect for tensor in modification.tensors] for modification in report.modifications]
    assert effects == [["void"], ["unknown"], ["void", "unknown"], ["void"]]
    assert _checked(model, _on("0", "scale", factor=1.001), allow_void=True).accepted


def test_modifications_that_cancel_are_void_as_a_plan(model: Path) -> None:
    both = (_on("0-2", "scale", factor=2), _on("0-2", "scale", factor=0.5))
    report = _checked(model, *both)
    assert [(problem.modification, problem.code) for problem in report.problems] == [(None, "void-modification")]
    assert _checked(model, *both, allow_void=True).accepted
    assert report.plan_effect == "void"
    assert {tensor.effect for modification in report.modifications for tensor in modification.tensors} == {"unknown"}
    assert {tensor.changed_elements for tensor in report.tensors} == {0}
    assert {tensor.relative_change for tensor in report.tensors} == {0.0}


def test_every_problem_is_listed_at_once(model: Path) -> None:
    report = _checked(
        model,
        {**_on("0", "scale", factor=1.0), "evidence": [{"tensor": NAME.format(0), "fact": "std", "value": 7.0}]},
        {"target": {"tensors": ["model.layers.0.mlp.up_prj.weight"]}, "operation": {"kind": "zero"}},
        _on("1", "scale", factor=1e40),
        {"target": {"tensors": ["steps"]}, "operation": {"kind": "zero"}},
        _on("2", "shift", offset=9.0),
        policy=Policy(operations=("scale", "zero"), protected=("*.2.*",), most_modifications=2),
        fields={"checkpoint": {"name": "other", "fingerprint": "blake3:" + "0" * 64}},
    )
    assert not report.accepted
    assert [(problem.modification, problem.code) for problem in report.problems] == [
        (None, "stale-plan"),
        (None, "outside-policy"),  # too many
        ("m01", "evidence-mismatch"),
        ("m01", "void-modification"),
        ("m02", "unknown-target"),
        ("m03", "not-finite"),
        ("m04", "unsupported-dtype"),
        ("m05", "outside-policy"),  # the operation
        ("m05", "outside-policy"),  # a protected tensor
        ("m05", "outside-policy"),  # too large a change
    ]
    assert all(problem.message and problem.hint for problem in report.problems)
    assert "nearest: model.layers.0.mlp.up_proj.weight" in report.problems[4].hint
    assert str(report.problems[4]).startswith("m02: no tensor matches")
    assert str(report.problems[0]).startswith("the plan was made for")


def test_the_limit_on_change_is_for_all_modifications_of_a_tensor_together(model: Path) -> None:
    limit = Policy(largest_relative_change=0.15)
    assert _checked(model, _on("1", "scale", factor=1.1), policy=limit).accepted
    report = _checked(model, _on("1", "scale", factor=1.1), _on("1", "scale", factor=1.1), policy=limit)
    (problem,) = report.problems
    assert problem.modification == "m01"
    assert "would change by 0.21 of its norm; the policy allows 0.15" in problem.message
    assert _checked(model, _on("1", "zero"), policy=Policy()).accepted  # exactly 1 is allowed by default


def test_something_added_to_nothing_is_a_change_without_bound(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): ("F32", np.zeros(4, dtype="<u4"))})
    report = _checked(model, _on("0", "shift", offset=1e-6))
    (problem,) = report.problems
    assert "would change without bound" in problem.message
    assert report.tensors[0].relative_change is None
    assert report.tensors[0].realised_scale is None
    assert _checked(model, _on("0", "scale", factor=2), allow_void=True).tensors[0].relative_change == 0.0


@pytest.mark.parametrize(
    ("fact", "value", "accepted"),
    [
        ("std", "exact", True),
        ("std", "1 % off", True),
        ("std", "5 % off", False),
        ("quantiles.0.99", "exact", True),
        ("outliers.3", "exact", True),
        ("zeros", "exact", True),
        ("std", None, False),
        ("quantiles.0.98", 0.1, False),
        ("quantiles", 0.1, False),
        ("name", 0.1, False),
        ("digest", 0.1, False),
        ("__class__", 0.1, False),
        ("model_fields", None, False),
        ("x" * 64, 0.1, False),
    ],
)
def test_cited_values_are_compared_with_the_profile(model: Path, fact: str, value: Any, accepted: bool) -> None:
    tensor = profile_of(open_checkpoint(model)).by_name[NAME.format(0)]
    if isinstance(value, str):
        group, _, key = fact.partition(".")
        found = getattr(tensor, group)
        found = found[key] if key else found
        value = found * {"exact": 1, "1 % off": 1.01, "5 % off": 1.05}[value]
    cited = {"tensor": NAME.format(0), "fact": fact, "value": value}
    report = _checked(model, {**_on("0", "scale", factor=1.1), "evidence": [cited]})
    assert report.accepted is accepted
    assert [problem.code for problem in report.problems] == ([] if accepted else ["evidence-mismatch"])


def test_a_null_is_evidence_only_where_the_profile_has_none(tmp_path: Path) -> None:
    model = write_checkpoint(
        tmp_path / "model", {NAME.format(0): ("F32", np.full(3, 0x7FC00000, "<u4")), "w": ("F32", np.ones(1, "<u4"))}
    )
    cited = {"tensor": NAME.format(0), "fact": "std", "value": None}
    modification = {"target": {"tensors": ["w"]}, "operation": {"kind": "shift", "offset": 1.0}, "evidence": [cited]}
    codes = [problem.code for problem in _checked(model, modification).problems]
    assert "evidence-mismatch" not in codes


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_numbers_that_are_not_finite_are_counted_and_left_out(tmp_path: Path, dtype: str) -> None:
    values = np.array([1.0, -2.0, np.nan, np.inf, -np.inf, 0.5], dtype=FLOATS[dtype].working)
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): (dtype, FLOATS[dtype].encode(values))})
    tensor = _checked(model, _on("0", "scale", factor=2)).tensors[0]
    assert tensor.changed_elements == 3
    assert tensor.broken_elements == 0
    assert tensor.realised_scale == 2
    assert tensor.relative_change == 1
    assert (tensor.before.nonfinite, tensor.before.min, tensor.before.max, tensor.before.abs_max) == (3, -2, 1, 2)
    assert (tensor.after.nonfinite, tensor.after.min, tensor.after.max, tensor.after.abs_max) == (3, -4, 2, 4)
    emptied = _checked(model, _on("0", "zero")).tensors[0]
    assert (emptied.after.nonfinite, emptied.after.std) == (0, 0)


def test_a_tensor_without_a_finite_number_has_no_moments(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): ("F32", np.full(3, 0x7F800000, "<u4"))})
    tensor = _checked(model, _on("0", "scale", factor=2), allow_void=True).tensors[0]
    assert tensor.before.model_dump(exclude={"nonfinite"}) == dict.fromkeys(
        ("mean", "std", "rms", "min", "max", "abs_max")
    )
    assert (tensor.effect, tensor.before.nonfinite, tensor.realised_scale) == ("void", 3, None)


def test_an_empty_tensor_is_void(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): ("F32", np.zeros((0, 3), "<u4"))})
    tensor = _checked(model, _on("0", "scale", factor=2), allow_void=True).tensors[0]
    assert (tensor.effect, tensor.elements, tensor.changed_fraction) == ("void", 0, 0.0)


def test_weights_near_the_end_of_float64_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their squares leave float64, and sums of chunks may be inf - inf: reported as null, without a warning."""
    from planner.checkpoint import Checkpoint

    huge = np.array([1.7e308, 1.7e308, -1.7e308, -1.7e308] * 2, dtype="<f8")
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): ("F64", huge.view("<u8"))})
    real = Checkpoint.chunks
    monkeypatch.setattr(Checkpoint, "chunks", lambda self, tensor: real(self, tensor, size=16))
    report = _checked(model, _on("0", "scale", factor=-1))
    tensor = report.tensors[0]
    assert tensor.changed_elements == 8
    assert tensor.relative_change is None
    assert tensor.before.rms is None
    assert tensor.before.abs_max == 1.7e308
    assert [problem.code for problem in report.problems] == ["outside-policy"]


def test_the_spread_of_norm_weights_is_not_lost_beside_their_mean(tmp_path: Path) -> None:
    values = (1000 + np.random.default_rng(0).normal(0, 1e-6, 500)).astype("<f8")
    model = write_checkpoint(tmp_path / "model", {NAME.format(0): ("F64", values.view("<u8"))})
    tensor = _checked(model, _on("0", "scale", factor=2)).tensors[0]
    assert tensor.before.std == pytest.approx(values.std(), rel=1e-5)
    same = write_checkpoint(tmp_path / "same", {NAME.format(0): ("F32", np.full(500, 0.1, "<f4").view("<u4"))})
    assert _checked(same, _on("0", "scale", factor=2)).tensors[0].before.std == 0


def test_an_empty_plan_has_no_effect_and_no_problem(model: Path) -> None:
    report = _checked(model)
    assert (report.accepted, report.plan_effect, report.tensors) == (True, "void", ())


def test_a_change_that_breaks_elements_has_no_size(model: Path) -> None:
    report = _checked(model, _on("0", "scale", factor=1e39))
    assert [problem.code for problem in report.problems] == ["not-finite"]
    (tensor,) = report.tensors
    assert (tensor.relative_change, tensor.realised_scale) == (None, None)
