"""What every operation on whole matrices keeps to: its examples, and one result however the rows are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import apply_whole, cuts_of
from pydantic import ValidationError

from planner.dtypes import FLOATS
from planner.operations.bake_steering import BakeSteering
from planner.operations.base import Operation, Place
from planner.operations.blend import Blend
from planner.operations.low_rank_add import LowRankAdd
from planner.operations.normalize import Normalize
from planner.operations.project_out import ProjectOut
from planner.operations.rank_one import RankOne
from planner.operations.rank_reduce import RankReduce
from planner.operations.rotate import Rotate
from planner.operations.spectral_clamp import SpectralClamp
from planner.operations.spectral_scale import SpectralScale

FILE = {"file": "f.safetensors", "array": "d"}
ALL: list[type[Operation]] = [
    *(BakeSteering, Blend, LowRankAdd, Normalize, ProjectOut),
    *(RankOne, RankReduce, Rotate, SpectralClamp, SpectralScale),
]
EXAMPLES = [(operation, example) for operation in ALL for example in operation.EXAMPLES]


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
@pytest.mark.parametrize("dtype", FLOATS.values(), ids=lambda dtype: dtype.name)
def test_the_examples_hold_in_every_dtype(kind: type[Operation], example: Any, dtype: Any) -> None:
    operation = kind(**example.parameters)
    before = dtype.decode(dtype.encode(np.array(example.before, dtype=dtype.working)))
    arrays = dict(example.arrays)
    other = arrays.pop("other", None)
    other = None if other is None else np.array(other, dtype=dtype.working)
    after = dtype.decode(dtype.encode(apply_whole(operation, before, arrays, dtype=dtype.name, other=other)))
    assert after.tolist() == [list(row) for row in example.after]


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
def test_an_operation_survives_json_and_describes_itself(kind: type[Operation], example: Any) -> None:
    operation = kind(**example.parameters)
    assert kind.model_validate_json(operation.model_dump_json()) == operation
    assert not operation.pointwise
    assert all(field.description for field in kind.model_fields.values())


def cases(rows: int, columns: int, rng: np.random.Generator) -> list[tuple[Operation, dict[str, Any], Any]]:
    """Every operation, in each of its ways, with arrays that fit."""
    many = rng.normal(size=(2, rows)), rng.normal(size=(2, columns))
    axes = [("rows", many[0]), ("columns", many[1])]
    found: list[tuple[Operation, dict[str, Any], Any]] = [
        *(
            (ProjectOut(direction=FILE, strength=0.7, axis=axis, keep_norm=keep), {"direction": ds}, None)
            for axis, ds in axes
            for keep in (False, True)
        ),
        *(
            (Rotate(first=FILE, second=FILE, angle=33, axis=axis), {"first": ds[0], "second": ds[1]}, None)
            for axis, ds in axes
        ),
        (RankOne(u=FILE, v=FILE, strength=0.3), {"u": many[0][0], "v": many[1][0]}, None),
        (
            LowRankAdd(a=FILE, b=FILE, rounding="delta_first"),
            {"a": rng.normal(size=(3, columns)), "b": rng.normal(size=(rows, 3))},
            None,
        ),
        (SpectralScale(first=2, factor=0.5), {}, None),
        (SpectralClamp(maximum=0.01), {}, None),
        (RankReduce(rank=2), {}, None),
        (Normalize(norm=2, per="rows"), {}, None),
        (Normalize(norm=2, per="whole"), {}, None),
        (Blend(checkpoint="x", weight=0.3), {}, rng.normal(size=(rows, columns)).astype(np.float32)),
        (
            BakeSteering(vector=FILE, strength=0.5, without_bias="rank_one", input=FILE, axis="rows"),
            {"vector": many[0][0], "input": many[1][0]},
            None,
        ),
    ]
    return found


@given(seed=st.integers(0, 2**32), rows=st.integers(3, 40), columns=st.integers(3, 300))
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("working", [np.float32, np.float64])
def test_the_result_does_not_depend_on_how_the_rows_are_cut(working: Any, seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.1, (rows, columns)).astype(working)
    for operation, arrays, other in cases(rows, columns, rng):
        whole = apply_whole(operation, values, arrays, dtype="F16", other=other)
        cut = apply_whole(operation, values, arrays, dtype="F16", other=other, cuts=cuts_of(rows, seed))
        strided = apply_whole(operation, np.asfortranarray(values), arrays, dtype="F16", other=other)
        assert np.array_equal(whole, cut), operation.kind
        assert np.array_equal(whole, strided), operation.kind
        assert not np.array_equal(whole, values), operation.kind


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (ProjectOut, {"direction": FILE}),
        (ProjectOut, {"direction": FILE, "strength": 1, "axis": "both"}),
        (Rotate, {"first": FILE, "angle": 3}),
        (RankOne, {"u": FILE, "v": FILE, "strength": 1, "rounding": "twice"}),
        (LowRankAdd, {}),
        (LowRankAdd, {"a": FILE}),
        (LowRankAdd, {"a": FILE, "b": FILE, "lora": "adapter"}),
        (LowRankAdd, {"lora": ""}),
        (SpectralScale, {"first": 0, "factor": 1}),
        (SpectralScale, {"first": 3, "last": 2, "factor": 1}),
        (SpectralClamp, {"maximum": 0}),
        (SpectralClamp, {"maximum": {"ramp": [1, -1]}}),
        (RankReduce, {"rank": 0}),
        (Normalize, {"norm": 0, "per": "rows"}),
        (Normalize, {"norm": 1}),
        (Blend, {"checkpoint": "", "weight": 1}),
        (BakeSteering, {"vector": FILE, "strength": 1, "without_bias": "rank_one"}),
        (BakeSteering, {"vector": FILE, "strength": 1, "input": FILE}),
    ],
)
def test_parameters_that_make_no_sense_are_refused(kind: type[Operation], parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(**parameters)


AXIS = {"axis": "columns"}


@pytest.mark.parametrize(
    ("operation", "arrays", "message"),
    [
        (ProjectOut(direction=FILE, strength=1), {"direction": [1, 0]}, "axis"),
        (ProjectOut(direction=FILE, strength=1, **AXIS), {"direction": [1, 0, 0]}, "shape"),
        (ProjectOut(direction=FILE, strength=1, **AXIS), {}, "missing"),
        (ProjectOut(direction=FILE, strength=1, **AXIS), {"direction": [0, 0]}, "no length"),
        (ProjectOut(direction=FILE, strength=1, **AXIS), {"direction": [[1, 1], [2, 2]]}, "span"),
        (ProjectOut(direction=FILE, strength=1, **AXIS), {"direction": np.zeros((0, 2))}, "no direction"),
        (Rotate(first=FILE, second=FILE, angle=1, **AXIS), {"first": [1, 2], "second": [-2, -4]}, "span"),
        (
            Rotate(first=FILE, second=FILE, angle=1, **AXIS),
            {"first": [[1, 0], [0, 1]], "second": [[1, 1]]},
            "span",
        ),
        (RankOne(u=FILE, v=FILE, strength=1), {"u": [1, 2], "v": [1, 2]}, "shape"),
        (RankOne(u=FILE, v=FILE, strength={"ramp": [0, 1]}), {"u": [1, 2, 3], "v": [1, 2]}, "ramp"),
        (LowRankAdd(a=FILE, b=FILE), {"a": np.ones((2, 2)), "b": np.ones((3, 1))}, "shape"),
        (LowRankAdd(a=FILE, b=FILE, rounding="delta_first"), {"a": [[1, 2]], "b": np.ones((3, 1))}, "stored dtype"),
        (SpectralScale(first=3, factor=2), {}, "none has the number 3"),
        (Blend(checkpoint="x", weight=0.5), {}, "not there"),
        (BakeSteering(vector=FILE, strength=1), {"vector": [1, 2]}, "no bias"),
        (
            BakeSteering(vector=FILE, strength=1, without_bias="rank_one", input=FILE, **AXIS),
            {"vector": [1, 2], "input": [0, 0, 0]},
            "no length",
        ),
        (
            BakeSteering(vector=FILE, strength=1, without_bias="rank_one", input=FILE),
            {"vector": [1, 2], "input": [0, 0, 1]},
            "axis",
        ),
    ],
)
def test_what_does_not_fit_is_said(operation: Operation, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_whole(operation, np.ones((3, 2), dtype=np.float32), arrays)


def test_a_ramp_becomes_the_number_of_its_layer() -> None:
    operation = ProjectOut(direction=FILE, strength={"ramp": [0, 1]}, axis="columns").at_depth(0.5)
    after = apply_whole(operation, np.ones((1, 2), dtype=np.float32), {"direction": [3, 0]})
    assert after.tolist() == [[0.5, 1]]


@pytest.mark.parametrize("operation", [SpectralClamp(maximum=1), SpectralScale(factor=2), RankReduce(rank=1)])
def test_a_matrix_with_nan_has_no_singular_values(operation: Operation) -> None:
    with pytest.raises(ValueError, match="NaN"):
        apply_whole(operation, np.array([[1, np.nan], [2, 3]], dtype=np.float32))


def test_a_matrix_too_large_for_singular_values_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="too many"):
        RankReduce(rank=1).observe(iter(()), Place(shape=(2**16, 2**13)))
