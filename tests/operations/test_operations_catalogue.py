"""Every operation is listed, keeps its examples and its claims, and refuses parameters that make no sense."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

import planner.operations
from planner.dtypes import FLOATS
from planner.operations import OPERATIONS, AnyOperation, Clamp, Operation, Scale, Shift, Zero, fold

EXAMPLES = [(kind, example) for kind, operation in OPERATIONS.items() for example in operation.EXAMPLES]
ANY: TypeAdapter[Operation] = TypeAdapter(AnyOperation)


def read(kind: str, **parameters: Any) -> Operation:
    return ANY.validate_python({"kind": kind, **parameters})


def test_every_operation_in_the_package_is_listed() -> None:
    for module in pkgutil.iter_modules(planner.operations.__path__):
        importlib.import_module(f"planner.operations.{module.name}")
    defined = {
        operation
        for operation in Operation.__subclasses__()
        if operation.__module__.startswith("planner.operations") and not inspect.isabstract(operation)
    }
    assert set(OPERATIONS.values()) == defined
    assert {kind: operation.model_fields["kind"].default for kind, operation in OPERATIONS.items()} == {
        kind: kind for kind in OPERATIONS
    }


@pytest.mark.parametrize("operation", OPERATIONS.values())
def test_an_analyst_can_read_what_an_operation_and_its_parameters_do(operation: type[Operation]) -> None:
    assert operation.__doc__
    assert operation.EXAMPLES
    assert all(field.description for field in operation.model_fields.values())


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
@pytest.mark.parametrize("dtype", FLOATS.values(), ids=lambda dtype: dtype.name)
def test_the_examples_hold_in_every_dtype(kind: str, example: Any, dtype: Any) -> None:
    operation = read(kind, **example.parameters)
    before = dtype.encode(np.array(example.before, dtype=dtype.working))
    after = dtype.decode(fold([operation], dtype)(before))
    assert after.tolist() == list(example.after)


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
@pytest.mark.parametrize("working", [np.float32, np.float64])
def test_an_operation_leaves_its_input_and_keeps_shape_and_dtype(kind: str, example: Any, working: Any) -> None:
    operation = read(kind, **example.parameters)
    values = np.random.default_rng(0).normal(0, 3, (4, 5)).astype(working)
    before = values.copy()
    after = operation.apply(values)
    assert (after.shape, after.dtype) == (values.shape, values.dtype)
    assert np.array_equal(values, before)


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
def test_what_an_operation_claims_of_itself_is_true(kind: str, example: Any) -> None:
    operation = read(kind, **example.parameters)
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 3, 1000), rng.normal(0, 3, 1000)
    if operation.KEEPS_ZEROS:
        assert not operation.apply(np.zeros(3)).any()
    if operation.LINEAR:
        combined = operation.apply(2 * x - 3 * y)
        assert np.allclose(combined, 2 * operation.apply(x) - 3 * operation.apply(y))
    if operation.POINTWISE:
        order = rng.permutation(1000)
        assert np.array_equal(operation.apply(x[order]), operation.apply(x)[order])


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
def test_an_operation_survives_json(kind: str, example: Any) -> None:
    operation = read(kind, **example.parameters)
    assert ANY.validate_json(operation.model_dump_json()) == operation


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("scale", {}),
        ("scale", {"factor": math.nan}),
        ("scale", {"factor": math.inf}),
        ("scale", {"factor": -math.inf}),
        ("scale", {"factor": None}),
        ("scale", {"factor": "double"}),
        ("scale", {"factor": 1, "why": "because"}),
        ("scale", {"offset": 1}),
        ("shift", {}),
        ("shift", {"offset": math.nan}),
        ("shift", {"offset": math.inf}),
        ("shift", {"offset": [0.1]}),
        ("clamp", {}),
        ("clamp", {"minimum": None, "maximum": None}),
        ("clamp", {"minimum": 1, "maximum": -1}),
        ("clamp", {"minimum": math.nan}),
        ("clamp", {"maximum": math.inf}),
        ("clamp", {"min": 0}),
        ("zero", {"factor": 0}),
        ("rotate", {}),
    ],
)
def test_parameters_that_make_no_sense_are_refused(kind: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(kind, **parameters)


@pytest.mark.parametrize("text", ['{"kind": "scale", "factor": NaN}', '{"kind": "scale", "factor": 1e400}'])
def test_json_cannot_smuggle_in_what_is_not_finite(text: str) -> None:
    with pytest.raises(ValidationError):
        ANY.validate_json(text)


def test_an_operation_cannot_be_changed_after_it_was_approved() -> None:
    operation = Scale(factor=2)
    with pytest.raises(ValidationError):
        operation.factor = 3  # type: ignore[misc]


def test_the_kind_says_which_operation_it_is() -> None:
    found = [read("scale", factor=2), read("shift", offset=1), read("clamp", minimum=0), read("zero")]
    assert [type(operation) for operation in found] == [Scale, Shift, Clamp, Zero]
    assert read("clamp", minimum=1, maximum=1) == Clamp(minimum=1, maximum=1)
