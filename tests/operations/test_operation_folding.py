"""From stored bits to stored bits, against torch: computed in float32 (float64 for F64), rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.dtypes import FLOATS
from planner.operations import Clamp, Operation, Scale, Shift, Zero, pointwise
from planner.operations.base import ANYWHERE, Place, Values

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}
Array = np.ndarray[Any, Any]
InTorch = Callable[[torch.Tensor], torch.Tensor]
NAMES = pytest.mark.parametrize("name", list(FLOATS))
ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False)
STRENGTH = st.floats(-4, 4) | st.sampled_from([1.02, -1.0, 0.0, -0.0, 1e-30, 1e-45, 1e-300, 1e30]) | ANY_FLOAT
FITS_FLOAT32 = st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-2, 2)  # torch.clamp refuses other bounds


def patterns_of(name: str) -> Array:
    """Every pattern of 16 bits; of wider dtypes random ones, with zeros, infinities, subnormals and NaN."""
    dtype = FLOATS[name]
    if dtype.tabulable:
        return dtype.all_patterns()
    rng = np.random.default_rng(3)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 5e-324, 1e-40, 3e38, 1e308]).astype(dtype.storage)
    return np.concatenate(
        [
            rng.integers(0, 2 ** (8 * dtype.itemsize), 8_000, dtype=dtype.pattern),
            rng.normal(0, 0.05, 8_000).astype(dtype.storage).view(dtype.pattern),
            special.view(dtype.pattern),
        ]
    )


with np.errstate(over="ignore"):
    PATTERNS = {name: patterns_of(name) for name in FLOATS}
WIDE = {
    name: torch.frombuffer(bytearray(patterns.tobytes()), dtype=TORCH[name]).to(
        torch.float64 if name == "F64" else torch.float32
    )
    for name, patterns in PATTERNS.items()
}


def by_torch(function: InTorch, name: str) -> Array:
    """The stored bits after torch computed `function` in the wide precision and rounded once."""
    after = function(WIDE[name].clone()).to(TORCH[name])
    return after.view(SIGNED[after.element_size()]).numpy().view(f"<u{after.element_size()}")


def assert_as_torch(operations: Sequence[Operation], function: InTorch, name: str) -> None:
    dtype, before = FLOATS[name], PATTERNS[name]
    ours, theirs = pointwise(operations, dtype)(before), by_torch(function, name)
    were, are, there = (np.isnan(dtype.decode(patterns)) for patterns in (before, ours, theirs))
    assert np.array_equal(are, there)
    assert np.array_equal(ours[~are], theirs[~are])  # byte for byte, the sign of zero included
    assert np.array_equal(ours[were & are], before[were & are])  # payloads of NaN stay
    assert (ours.shape, ours.dtype) == (before.shape, before.dtype)


@NAMES
@given(factor=STRENGTH)
@settings(deadline=None, max_examples=25)
@example(factor=1.02)
@example(factor=-1e300)
def test_scale_is_what_torch_computes(name: str, factor: float) -> None:
    assert_as_torch([Scale(factor=factor)], lambda w: w * factor, name)


@NAMES
@given(offset=STRENGTH)
@settings(deadline=None, max_examples=25)
def test_shift_is_what_torch_computes(name: str, offset: float) -> None:
    assert_as_torch([Shift(offset=offset)], lambda w: w + offset, name)


@NAMES
@given(bounds=st.tuples(st.none() | FITS_FLOAT32, st.none() | FITS_FLOAT32).filter(lambda both: both != (None, None)))
@settings(deadline=None, max_examples=25)
@example(bounds=(None, 0.0))
@example(bounds=(0.0, None))
@example(bounds=(0.0, 0.0))
@example(bounds=(-0.0, -0.0))
@example(bounds=(-0.05, 0.05))
def test_clamp_is_what_torch_computes(name: str, bounds: tuple[float | None, float | None]) -> None:
    low, high = bounds
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    assert_as_torch([Clamp(minimum=low, maximum=high)], lambda w: torch.clamp(w, low, high), name)


@NAMES
def test_zero_is_plus_zero_everywhere_even_where_there_was_no_number(name: str) -> None:
    after = pointwise([Zero()], FLOATS[name])(PATTERNS[name])
    assert not after.any()


@NAMES
@given(
    factors=st.lists(st.floats(0.5, 1.5), min_size=1, max_size=4),
    offset=st.floats(-0.1, 0.1),
    bound=st.floats(2**-7, 2, width=32),
)
@settings(deadline=None, max_examples=25)
def test_several_operations_are_rounded_once(name: str, factors: list[float], offset: float, bound: float) -> None:
    def in_torch(w: torch.Tensor) -> torch.Tensor:
        for factor in factors:
            w = w * factor
        return torch.clamp(w + offset, -bound, bound)

    steps = [*(Scale(factor=factor) for factor in factors), Shift(offset=offset), Clamp(minimum=-bound, maximum=bound)]
    assert_as_torch(steps, in_torch, name)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_rounding_after_each_step_would_give_other_weights(name: str) -> None:
    dtype, up, down = FLOATS[name], Scale(factor=1.0005), Scale(factor=1 / 1.0005)
    before = dtype.encode(np.array([1.0, 1.5, 0.05], dtype=np.float32))
    steps = [Scale(factor=1.001)] * 8  # each alone is lost in rounding, together they are not
    once = pointwise(steps, dtype)(before)
    one_by_one = before
    for step in steps:
        one_by_one = pointwise([step], dtype)(one_by_one)
    theirs = torch.frombuffer(bytearray(before.tobytes()), dtype=TORCH[name]).float()
    for _ in steps:
        theirs = theirs * 1.001
    assert np.array_equal(once, theirs.to(TORCH[name]).view(torch.int16).numpy().view("<u2"))
    assert not np.array_equal(once, one_by_one)
    assert np.array_equal(pointwise([up, down], dtype)(before), before)


@NAMES
def test_no_operation_at_all_changes_no_bit(name: str) -> None:
    assert np.array_equal(pointwise([], FLOATS[name])(PATTERNS[name]), PATTERNS[name])


@NAMES
@pytest.mark.parametrize(
    "operation", [Scale(factor=1), Clamp(minimum=-3e38), Clamp(minimum=-1e308, maximum=1e308)], ids=repr
)
def test_an_operation_that_moves_no_value_changes_no_bit(name: str, operation: Operation) -> None:
    values = FLOATS[name].decode(PATTERNS[name])
    kept = PATTERNS[name][~(np.abs(values) > 1e38)]
    assert np.array_equal(pointwise([operation], FLOATS[name])(kept), kept)


@NAMES
@pytest.mark.parametrize("operation", [Clamp(maximum=0), Clamp(minimum=0)], ids=repr)
def test_a_bound_of_zero_keeps_the_sign_of_zero(name: str, operation: Operation) -> None:
    zeros = FLOATS[name].encode(np.array([0.0, -0.0], dtype=FLOATS[name].working))
    assert np.array_equal(pointwise([operation], FLOATS[name])(zeros), zeros)


@NAMES
def test_clamp_brings_infinities_in(name: str) -> None:
    dtype = FLOATS[name]
    before = dtype.encode(np.array([np.inf, -np.inf, np.nan, 0.5], dtype=dtype.working))
    after = dtype.decode(pointwise([Clamp(minimum=-2, maximum=2)], dtype)(before))
    assert after[[0, 1, 3]].tolist() == [2, -2, 0.5]
    assert np.isnan(after[2])


@NAMES
def test_every_payload_of_nan_outlives_arithmetic(name: str) -> None:
    dtype = FLOATS[name]
    nan = PATTERNS[name][np.isnan(dtype.decode(PATTERNS[name]))]
    assert len(nan) > 1
    steps = [Scale(factor=-2), Shift(offset=1), Clamp(minimum=-1, maximum=1)]
    assert np.array_equal(pointwise(steps, dtype)(nan), nan)


@NAMES
def test_shape_is_kept_and_the_input_is_left(name: str) -> None:
    dtype = FLOATS[name]
    before = PATTERNS[name][:24].reshape(2, 3, 4)
    copy = before.copy()
    after = pointwise([Scale(factor=2)], dtype)(before)
    assert after.shape == before.shape
    assert np.array_equal(before, copy)
    assert pointwise([Scale(factor=2)], dtype)(before[:0]).shape == (0, 3, 4)


def test_what_looks_at_other_elements_does_not_fold() -> None:
    class Centre(Operation):
        """Subtract the mean."""

        POINTWISE: ClassVar[bool] = False
        kind: Literal["centre"] = "centre"

        def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
            return values - values.mean()

    with pytest.raises(ValueError, match="pointwise"):
        pointwise([Scale(factor=2), Centre()], FLOATS["BF16"])
