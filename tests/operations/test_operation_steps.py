"""Steps on parts of a tensor: what they reach, how the tensor may come, and what keeps its bits."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rewriting import Array, read, rewritten

from planner.dtypes import FLOATS
from planner.operations import Clamp, Columns, Noise, Operation, Rows, Scale, Shift, Step, ValueRanges, Zero, fold
from planner.operations.base import ANYWHERE, Block, Place, Values

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
NAMES = pytest.mark.parametrize("name", list(FLOATS))
FOLD: Any = importlib.import_module("planner.operations.fold")
SMALL_BLOCKS = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
_RNG = np.random.default_rng(5)


def indices(*numbers: int) -> Array:
    return np.array(numbers, dtype=np.int64)


def matrix(name: str, *shape: int) -> Array:
    """Random weights with zeros of both signs, subnormals, infinities, and NaN of several payloads."""
    dtype = FLOATS[name]
    stored = dtype.encode(_RNG.normal(0, 0.05, shape).astype(dtype.working))
    flat = stored.reshape(-1)
    exponent = dtype.encode(np.array([np.inf], dtype=dtype.working))[0]
    for place, pattern in enumerate([0, 1, exponent, exponent | 1, exponent | 5]):
        flat[place * 7 % flat.size] = pattern
        flat[(place * 7 + 3) % flat.size] = dtype.pattern.type(pattern) | dtype.pattern.type(
            1 << (8 * dtype.itemsize - 1)
        )
    return stored


def wide(name: str, stored: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(FLOATS[name].decode(stored)))


def assert_same(name: str, ours: Array, before: Array, theirs: torch.Tensor) -> None:
    """Bit for bit what torch rounds to, but that a NaN which stays one keeps its payload."""
    rounded = theirs.to(TORCH[name])
    expected = rounded.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rounded.element_size()]).numpy()
    expected = expected.view(before.dtype)
    decode = FLOATS[name].decode
    still = np.isnan(decode(before)) & np.isnan(decode(expected))
    assert np.array_equal(ours, np.where(still, before, expected))


class Centred(Operation):
    """Subtract the mean of all elements; a stand-in for what must see the whole first."""

    POINTWISE: ClassVar[bool] = False
    OBSERVES: ClassVar[bool] = True
    kind: Literal["centred"] = "centred"

    def observe(self, blocks: Iterable[Block], place: Place) -> float:
        total, rows = 0.0, 0
        for block in blocks:
            assert block.first == rows
            rows += len(block.values)
            for row in block.values:
                total += float(row.astype(np.float64).sum())
        assert rows == place.shape[0]
        return total / (place.shape[0] * place.shape[1])

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        return values - values.dtype.type(place.observed)


class ToStored(Operation):
    """Round part way."""

    kind: Literal["to_stored"] = "to_stored"

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        assert place.rounded is not None
        return place.rounded(values)


@NAMES
def test_rows_and_columns_reach_what_they_name_and_nothing_else(name: str) -> None:
    before = matrix(name, 9, 7)
    ours = rewritten(
        [Step(Scale(factor=1.3), Rows(indices(0, 4, 8))), Step(Shift(offset=0.5), Columns(indices(1, 6)))],
        FLOATS[name],
        before,
    )
    w = wide(name, before)
    w[[0, 4, 8]] *= 1.3
    w[:, [1, 6]] += 0.5
    assert_same(name, ours, before, w)
    untouched = np.ones(before.shape, dtype=bool)
    untouched[[0, 4, 8]] = untouched[:, [1, 6]] = False
    assert np.array_equal(ours[untouched], before[untouched])


@NAMES
def test_leading_dimensions_are_rows_and_a_vector_is_one_row(name: str) -> None:
    before = matrix(name, 3, 4, 5)
    w = wide(name, before)
    w[1, 2] *= 1.3
    assert_same(name, rewritten([Step(Scale(factor=1.3), Rows(indices(6)))], FLOATS[name], before), before, w)
    vector = before.reshape(-1)
    w = wide(name, vector)
    w[[0, 30]] += 1
    assert_same(name, rewritten([Step(Shift(offset=1), Columns(indices(0, 30)))], FLOATS[name], vector), vector, w)
    w = wide(name, vector)
    assert_same(name, rewritten([Step(Scale(factor=1.3), Rows(indices(0)))], FLOATS[name], vector), vector, w * 1.3)
    scalar = before[0, 1, 1:2].reshape(())
    w = wide(name, scalar)
    assert_same(name, rewritten([Step(Shift(offset=1), Columns(indices(0)))], FLOATS[name], scalar), scalar, w + 1)
    for empty in ((0,), (0, 5), (5, 0), (2, 0, 3)):
        nothing = np.empty(empty, FLOATS[name].pattern)
        assert rewritten([Step(Scale(factor=2), Rows(indices()))], FLOATS[name], nothing).shape == empty
        assert rewritten([Step(Scale(factor=2))], FLOATS[name], nothing).shape == empty


@NAMES
def test_a_selection_by_value_looks_at_the_stored_values(name: str) -> None:
    before = matrix(name, 8, 8)
    w = wide(name, before)
    beyond = (w <= -0.05) | (w >= 0.05)
    step = ValueRanges(((-np.inf, -0.05), (0.05, np.inf)))
    ours = rewritten([Step(Scale(factor=0.1)), Step(Shift(offset=1), step)], FLOATS[name], before)
    assert_same(name, ours, before, torch.where(beyond, w * 0.1 + 1, w * 0.1))


@NAMES
def test_the_bounds_of_a_range_are_in_it_and_are_not_rounded_outwards(name: str) -> None:
    dtype = FLOATS[name]
    stored = dtype.encode(np.array([0.1, -0.1, 0.25, -0.25, 0, -0.0, np.inf, -np.inf, np.nan], dtype=dtype.working))
    values = dtype.decode(stored).astype(np.float64)
    for low, high in [
        (0.1, 0.25),
        (-0.25, -0.1),
        (0, 0),
        (-0.1, 0.1),
        (1e300, np.inf),
        (-np.inf, -1e300),
        (-1e300, 1e300),
    ]:
        ours = rewritten([Step(Zero(), ValueRanges(((low, high),)))], dtype, stored)
        inside = (values >= low) & (values <= high)  # in float64, where every one of these numbers is exact
        assert np.array_equal(ours, np.where(inside, 0, stored)), (low, high)
    assert np.array_equal(rewritten([Step(Zero(), ValueRanges(()))], dtype, stored), stored)


@pytest.mark.parametrize("name", ["F16", "BF16"])
@given(factor=st.floats(-4, 4), offset=st.floats(-0.1, 0.1), low=st.floats(-0.1, 0.1), high=st.floats(-0.1, 0.1))
@settings(deadline=None, max_examples=25)
def test_the_table_is_folding_in_float32_and_rounding_once(
    name: str, factor: float, offset: float, low: float, high: float
) -> None:
    low, high = min(low, high), max(low, high)
    every = FLOATS[name].all_patterns()
    steps = [
        Step(Scale(factor=factor), ValueRanges(((low, high),))),
        Step(Shift(offset=offset)),
        Step(Clamp(minimum=-0.5), ValueRanges(((0, np.inf),))),
    ]
    folded = fold(steps, FLOATS[name], every.shape)
    assert folded.table is not None
    assert folded.passes == 1
    stored = wide(name, every)
    w = torch.where((stored.double() >= low) & (stored.double() <= high), stored * factor, stored) + offset
    w = torch.where(stored >= 0, torch.clamp(w, min=-0.5), w)
    assert_same(name, folded.table, every, w)
    assert np.array_equal(rewritten(steps, FLOATS[name], every, cuts=(3, 70)), folded.table)


@NAMES
def test_steps_that_know_their_place_have_no_table(name: str) -> None:
    dtype, shape = FLOATS[name], (4, 4)
    for step in (Step(Scale(factor=2), Rows(indices(1))), Step(Noise(std=1, seed=1)), Step(Centred())):
        assert fold([step], dtype, shape).table is None
        assert fold([Step(Scale(factor=2)), step], dtype, shape).table is None
    assert (fold([Step(Scale(factor=2))], dtype, shape).table is not None) == dtype.tabulable

    class Relative(Centred):
        """Pointwise, once it has seen the whole."""

        POINTWISE: ClassVar[bool] = True

    assert fold([Step(Relative())], dtype, shape).table is None
    assert fold([Step(Centred()), Step(Zero()), Step(Centred())], dtype, shape).passes == 3


@NAMES
def test_what_an_observer_sees_is_what_earlier_steps_left_and_not_yet_rounded(name: str) -> None:
    dtype = FLOATS[name]
    before = dtype.encode(_RNG.normal(0, 0.05, (6, 5)).astype(dtype.working))
    called = []

    def blocks() -> Iterator[Array]:
        called.append(True)
        yield from before

    steps = [Step(Scale(factor=1.01)), Step(Centred(), Rows(indices(2, 3))), Step(Shift(offset=1)), Step(Centred())]
    folded = fold(steps, dtype, before.shape)
    ours = np.concatenate(list(folded.rewrite(blocks))).reshape(before.shape)
    w = wide(name, before) * 1.01
    w[2:4] -= w.double().mean().to(w.dtype)
    w += 1
    w -= w.double().mean().to(w.dtype)
    assert len(called) == folded.passes == 3
    close = dtype.decode(ours) - w.to(TORCH[name]).to(w.dtype).numpy()
    assert np.abs(close).max() <= 2.0 ** (-5 if name == "BF16" else -9) * np.abs(w.numpy()).max()


@NAMES
def test_rounding_part_way_is_rounding_to_the_stored_dtype(name: str) -> None:
    before = matrix(name, 8, 8)
    ours = rewritten([Step(Scale(factor=1.01)), Step(ToStored()), Step(Scale(factor=1.01))], FLOATS[name], before)
    w = wide(name, before) * 1.01
    assert_same(name, ours, before, w.to(TORCH[name]).to(w.dtype) * 1.01)


STEPS = {
    "table": [Step(Scale(factor=1.1)), Step(Shift(offset=0.01), ValueRanges(((0, 1),)))],
    "rows": [Step(Scale(factor=1.1), Rows(indices(0, 3, 12))), Step(Zero(), Columns(indices(4)))],
    "noise": [Step(Noise(std=0.1, seed=3)), Step(Scale(factor=1.1))],
    "observed": [Step(Scale(factor=1.1)), Step(Centred()), Step(Noise(std=0.1, seed=3), Rows(indices(5)))],
    "rank one": [
        Step(
            read("rank_one", u={"file": "f", "array": "u"}, v={"file": "f", "array": "v"}, strength=1),
            arrays={"u": _RNG.normal(size=13), "v": _RNG.normal(size=11)},
        )
    ],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@NAMES
@given(cuts=st.lists(st.integers(0, 13 * 11), max_size=12), block=st.integers(1, 200))
@SMALL_BLOCKS
def test_however_a_tensor_comes_and_however_it_is_cut_the_bits_are_the_same(
    name: str, steps: list[Step], cuts: list[int], block: int
) -> None:
    before = WEIGHTS[name]
    whole = rewritten(steps, FLOATS[name], before, tensor="a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FOLD, "_BLOCK", block)
        patch.setattr(FOLD, "_LOOK_UP", block)
        assert np.array_equal(rewritten(steps, FLOATS[name], before, cuts=cuts, tensor="a"), whole)


WEIGHTS = {name: matrix(name, 13, 11) for name in FLOATS}


def test_blocks_are_bounded_and_a_long_row_is_one_block() -> None:
    sizes = []

    class Weighed(Operation):
        """Notes how much it is given."""

        POINTWISE: ClassVar[bool] = False
        kind: Literal["weighed"] = "weighed"

        def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
            sizes.append((place.first, values.shape))
            return values

    many = np.zeros((5000, 1000), np.uint16)
    list(fold([Step(Weighed())], FLOATS["BF16"], many.shape).rewrite(lambda: iter([many])))
    assert sizes == [(first, (1048 if first < 4192 else 808, 1000)) for first in range(0, 5000, 1048)]
    sizes.clear()
    long = np.zeros((2, 3 * 2**20), np.uint16)
    list(fold([Step(Weighed())], FLOATS["BF16"], long.shape).rewrite(lambda: iter([long])))
    assert sizes == [(0, (1, 3 * 2**20)), (1, (1, 3 * 2**20))]
    pieces = [
        piece.size
        for piece in fold([Step(Zero())], FLOATS["F32"], (2**22,)).rewrite(lambda: iter([np.zeros(2**22, np.uint32)]))
    ]
    assert pieces == [2**20] * 4


def test_rows_that_nothing_selects_are_not_computed() -> None:
    class Fragile(Operation):
        """May see its own row only."""

        kind: Literal["fragile"] = "fragile"

        def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
            assert place.first == 2000
            return values + 1

    stored = np.zeros((3000, 1000), np.uint16)
    step = Step(Fragile(), Rows(indices(2100)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FOLD, "_BLOCK", 500_000)
        after = rewritten([step], FLOATS["BF16"], stored)
    assert (after[2100] == 0x3F80).all()
    assert np.count_nonzero(after) == 1000


@NAMES
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_nan_that_stays_nan_keeps_its_payload(name: str, steps: list[Step]) -> None:
    before = WEIGHTS[name]
    after = rewritten(steps, FLOATS[name], before, tensor="a")
    still = np.isnan(FLOATS[name].decode(before)) & np.isnan(FLOATS[name].decode(after))
    assert np.isnan(FLOATS[name].decode(before)).any()
    assert np.array_equal(after[still], before[still])


@NAMES
@pytest.mark.parametrize("steps", [STEPS["table"], STEPS["rows"], STEPS["observed"]], ids=["table", "rows", "observed"])
@pytest.mark.parametrize("given_elements", [0, 142, 144, 300])
def test_a_tensor_that_comes_short_or_long_is_refused(name: str, steps: list[Step], given_elements: int) -> None:
    folded = fold(steps, FLOATS[name], (13, 11))
    with pytest.raises(ValueError, match="143 elements"):
        list(folded.rewrite(lambda: iter([np.zeros(given_elements, FLOATS[name].pattern)])))


def test_a_ramp_must_be_settled_first() -> None:
    with pytest.raises(ValueError, match="Scale: `at_depth`"):
        fold([Step(read("scale", factor={"ramp": [1, 2]}))], FLOATS["BF16"], (2, 2))
    settled = read("scale", factor={"ramp": [1, 2]}).at_depth(1)
    assert fold([Step(settled)], FLOATS["BF16"], (2, 2)).table is not None


def test_the_previewed_histogram_is_that_of_the_result() -> None:
    before = WEIGHTS["BF16"]
    table = fold(STEPS["table"], FLOATS["BF16"], before.shape).table
    assert table is not None
    counts = np.bincount(before.reshape(-1), minlength=2**16)
    pushed = np.bincount(table, weights=counts, minlength=2**16).astype(np.int64)
    after = np.bincount(rewritten(STEPS["table"], FLOATS["BF16"], before).reshape(-1), minlength=2**16)
    assert np.array_equal(pushed, after)
