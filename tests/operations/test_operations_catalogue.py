"""Every operation is listed, keeps its examples and its claims, and refuses parameters that make no sense."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from rewriting import ANY, computed, read, rewritten, step_of

import planner.operations
from planner import strict_json
from planner.dtypes import FLOATS
from planner.operations import OPERATIONS, Clamp, Example, Operation, Scale, Shift, Step, Zero

EXAMPLES = [(kind, example) for kind, operation in OPERATIONS.items() for example in operation.EXAMPLES]
FILE = {"file": "a.safetensors", "array": "x"}
each_example = pytest.mark.parametrize(("kind", "example"), EXAMPLES)


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


@each_example
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_the_examples_hold_in_every_dtype(kind: str, example: Example, dtype: str) -> None:
    after = computed(read(kind, **example.parameters), example, np.array(example.before), dtype=dtype)
    assert after.tolist() == np.array(example.after, dtype=np.float64).tolist()


@each_example
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_the_size_of_the_blocks_changes_no_bit(
    kind: str, example: Example, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = step_of(read(kind, **example.parameters), example)
    values = np.random.default_rng(1).normal(0, 3, np.shape(example.before)).astype(FLOATS[dtype].working)
    stored = FLOATS[dtype].encode(values)
    whole = rewritten([step], FLOATS[dtype], stored)
    monkeypatch.setattr(importlib.import_module("planner.operations.fold"), "_BLOCK", 1)
    assert np.array_equal(rewritten([step], FLOATS[dtype], stored, cuts=(1, 1, 2)), whole)


@each_example
@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_an_operation_leaves_its_input_and_keeps_shape_and_dtype(kind: str, example: Example, dtype: str) -> None:
    step = step_of(read(kind, **example.parameters), example)
    seen = []

    class Watched(Operation):
        """Remembers what went in and what came out."""

        def apply(self, values: Any, place: Any = None) -> Any:
            before = values.copy()
            after = step.operation.apply(values, place)
            seen.append((after.shape == values.shape, after.dtype == values.dtype, np.array_equal(before, values)))
            return after

        def observe(self, blocks: Any, place: Any) -> Any:
            return step.operation.observe(blocks, place)

        observes = property(lambda self: step.operation.observes)  # type: ignore[assignment]
        POINTWISE = False

    values = np.random.default_rng(0).normal(0, 3, np.shape(example.before))
    stored = FLOATS[dtype].encode(values.astype(FLOATS[dtype].working))
    rewritten([Step(Watched(), arrays=step.arrays, other=step.other)], FLOATS[dtype], stored)
    assert seen == [(True, True, True)]


@each_example
@given(data=st.data())
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.differing_executors])
def test_what_an_operation_claims_of_itself_is_true(kind: str, example: Example, data: st.DataObject) -> None:
    operation = read(kind, **example.parameters)
    shape = np.shape(example.before)
    matrices = arrays(np.float64, shape, elements=st.floats(-8, 8, width=32))
    x, y = data.draw(matrices), data.draw(matrices)
    if operation.KEEPS_ZEROS:
        still = np.where(data.draw(arrays(bool, shape)), 0.0, x)
        assert not computed(operation, example, still)[still == 0].any()
    if operation.LINEAR:
        a, b = data.draw(st.integers(-3, 3)), data.draw(st.integers(-3, 3))
        expected = a * computed(operation, example, x) + b * computed(operation, example, y)
        assert np.allclose(computed(operation, example, a * x + b * y), expected, atol=1e-9)
    if operation.pointwise:
        order = data.draw(st.permutations(range(x.size)))
        shuffled = x.ravel()[order].reshape(shape)
        assert np.array_equal(
            computed(operation, example, shuffled).ravel(), computed(operation, example, x).ravel()[order]
        )
        assert not operation.observes


@each_example
def test_an_operation_survives_strict_json(kind: str, example: Example) -> None:
    operation = read(kind, **example.parameters)
    text = json.dumps({"kind": kind} | example.parameters)
    strict_json.loads(text, largest=10_000)
    assert ANY.validate_json(text, strict=True) == operation  # integers stand for floats, lists for tuples
    assert ANY.validate_json(operation.model_dump_json(), strict=True) == operation
    assert ANY.validate_json(ANY.dump_json(operation), strict=True) == operation


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
        ("scale", {"factor": {"ramp": []}}),
        ("scale", {"factor": {"ramp": [1]}}),
        ("scale", {"factor": {"ramp": [1] * 65}}),
        ("scale", {"factor": {"ramp": [1, math.nan]}}),
        ("scale", {"factor": {"ramp": [1, None]}}),
        ("scale", {"factor": {"ramp": [1, 2], "layers": 3}}),
        ("scale", {"factor": {"ramp": [1, 2], **FILE, "axis": "rows"}}),
        ("scale", {"factor": {}}),
        ("scale", {"factor": FILE}),
        ("scale", {"factor": {**FILE, "axis": "layers"}}),
        ("scale", {"factor": {**FILE, "axis": "rows", "digest": "md5:0"}}),
        ("shift", {}),
        ("shift", {"offset": math.nan}),
        ("shift", {"offset": math.inf}),
        ("shift", {"offset": [0.1]}),
        ("shift", {"offset": {**FILE, "axis": "rows"}}),
        ("clamp", {}),
        ("clamp", {"minimum": None, "maximum": None}),
        ("clamp", {"minimum": 1, "maximum": -1}),
        ("clamp", {"minimum": {"ramp": [0, 1]}, "maximum": 0.5}),
        ("clamp", {"minimum": 0.5, "maximum": {"ramp": [0, 1]}}),
        ("clamp", {"minimum": {"ramp": [0, 1]}, "maximum": {"ramp": [1, 0]}}),
        ("clamp", {"minimum": math.nan}),
        ("clamp", {"maximum": math.inf}),
        ("clamp", {"min": 0}),
        ("zero", {"factor": 0}),
        ("soft_threshold", {"threshold": -0.1}),
        ("soft_threshold", {"threshold": {"ramp": [0.1, -0.1]}}),
        ("noise", {"std": 0.1}),
        ("noise", {"std": -0.1, "seed": 1}),
        ("noise", {"std": 0.1, "seed": -1}),
        ("noise", {"std": 0.1, "seed": 2**53}),
        ("noise", {"std": 0.1, "seed": 0.5}),
        ("reduce", {"alpha": -0.1}),
        ("reduce", {"factor": 0.1}),
        ("boost", {"alpha": -0.1}),
        ("head_scale", {"heads": "", "factor": 2}),
        ("head_scale", {"heads": "3-1", "factor": 2}),
        ("head_scale", {"heads": "first", "factor": 2}),
        ("head_scale", {"heads": 3, "factor": 2}),
        ("head_scale", {"heads": "0-99999999", "factor": 2}),
        ("head_scale", {"heads": "0", "factor": 2, "part": "rope"}),
        ("neuron_scale", {"neurons": "1,,2", "factor": 2}),
        ("neuron_scale", {"neurons": "1", "factor": 2, "part": "gate"}),
        ("channel_scale", {"channels": "-1", "factor": 2}),
        ("channel_scale", {"channels": "1"}),
        ("explode", {}),
    ],
)
def test_parameters_that_make_no_sense_are_refused(kind: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(kind, **parameters)


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "scale", "factor": NaN}',
        '{"kind": "scale", "factor": 1e400}',
        '{"kind": "scale", "factor": "2"}',
        '{"kind": "scale", "factor": true}',
        '{"kind": "scale", "factor": {"ramp": [1, "2"]}}',
        '{"kind": "scale", "factor": {"ramp": [1, NaN]}}',
        '{"kind": "noise", "std": 1, "seed": 1.0}',
    ],
)
def test_json_cannot_smuggle_in_what_is_no_finite_number(text: str) -> None:
    with pytest.raises(ValidationError):
        ANY.validate_json(text, strict=True)


def test_what_is_wrong_with_a_parameter_of_many_forms_is_said_once() -> None:
    for factor, place in (("2", "<number>"), ({"ramp": [1]}, "<ramp>"), ({**FILE, "axis": "up"}, "<array>")):
        with pytest.raises(ValidationError) as caught:
            ANY.validate_json(json.dumps({"kind": "scale", "factor": factor}), strict=True)
        assert [problem["loc"][:3] for problem in caught.value.errors()] == [("scale", "factor", place)]


def test_an_operation_cannot_be_changed_after_it_was_approved() -> None:
    operation = Scale(factor=2)
    with pytest.raises(ValidationError):
        operation.factor = 3  # type: ignore[misc]


def test_the_kind_says_which_operation_it_is() -> None:
    found = [read("scale", factor=2), read("shift", offset=1), read("clamp", minimum=0), read("zero")]
    assert [type(operation) for operation in found] == [Scale, Shift, Clamp, Zero]
    assert read("clamp", minimum=1, maximum=1) == Clamp(minimum=1, maximum=1)
