"""What each operation computes, beside its examples: against torch, scipy and arithmetic done exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rewriting import Array, read, rewritten
from scipy import stats

from planner.dtypes import FLOATS
from planner.operations import Noise, Ramp, Rows, Scale, Step, pointwise
from planner.operations.base import Place

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
NAMES = pytest.mark.parametrize("name", list(FLOATS))
RNG = np.random.default_rng(11)
FILE = {"file": "a.safetensors", "array": "x"}


def stored(name: str, *shape: int) -> Array:
    return FLOATS[name].encode(RNG.normal(0, 0.05, shape).astype(FLOATS[name].working))


def in_torch(name: str, patterns: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(FLOATS[name].decode(patterns)))


def bits(name: str, values: torch.Tensor) -> Array:
    rounded = values.to(TORCH[name])
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rounded.element_size()]
    return rounded.view(signed).numpy().view(FLOATS[name].pattern)


@NAMES
@given(alpha=st.floats(0, 4))
@settings(deadline=None, max_examples=25)
@example(alpha=0.1)
@example(alpha=1.0)
def test_reduce_and_boost_are_one_multiplication_by_the_nearest_factor(name: str, alpha: float) -> None:
    before = WEIGHTS[name]
    dtype = FLOATS[name]
    for kind, exact in (("reduce", 1 - Fraction(alpha)), ("boost", 1 + Fraction(alpha))):
        factor = torch.tensor(float(exact), dtype=torch.float64).to(in_torch(name, before).dtype)
        ours = pointwise([read(kind, alpha=alpha)], dtype)(before)
        assert np.array_equal(ours, bits(name, in_torch(name, before) * factor))


WEIGHTS = {name: stored(name, 2000) for name in FLOATS}


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7])
def test_reduce_rounds_once_where_subtracting_a_part_would_round_twice(alpha: float) -> None:
    e = np.frombuffer(WEIGHTS["F32"].tobytes(), np.float32)
    ours = pointwise([read("reduce", alpha=alpha)], FLOATS["F32"])(WEIGHTS["F32"]).view(np.float32)
    exact = [float(Fraction(float(x)) * Fraction(float(np.float32(1 - alpha)))) for x in e]
    assert np.array_equal(ours, np.array(exact).astype(np.float32))
    assert not np.array_equal(ours, e - np.float32(alpha) * e)


@NAMES
@given(threshold=st.floats(0, 0.2) | st.sampled_from([0.0, 1e-300, 1e300]))
@settings(deadline=None, max_examples=25)
def test_soft_threshold_is_softshrink(name: str, threshold: float) -> None:
    special = FLOATS[name].encode(np.array([np.inf, -np.inf, 0.0, -0.0, np.nan], dtype=FLOATS[name].working))
    before = np.concatenate([WEIGHTS[name], special])
    after = pointwise([read("soft_threshold", threshold=threshold)], FLOATS[name])(before)
    w = in_torch(name, WEIGHTS[name])
    within = min(threshold, float(torch.finfo(w.dtype).max))
    theirs = torch.nn.functional.softshrink(w, within).to(TORCH[name]).to(w.dtype).numpy()
    ours = FLOATS[name].decode(after)
    assert np.array_equal(ours[:-5], theirs)
    assert np.array_equal(after[-5:], special)  # infinities, both zeros and NaN keep their bits
    assert np.array_equal(np.signbit(ours), np.signbit(FLOATS[name].decode(before)))
    if threshold == 0:
        assert np.array_equal(after, before)


@NAMES
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_a_factor_for_each_row_or_column(name: str, axis: str) -> None:
    before = stored(name, 6, 5)
    factors = RNG.normal(1, 0.2, 6 if axis == "rows" else 5)
    operation = read("scale", factor={**FILE, "axis": axis})
    w = in_torch(name, before)
    across = torch.from_numpy(factors).to(w.dtype)
    expected = w * (across[:, None] if axis == "rows" else across)
    ours = rewritten([Step(operation, arrays={"factor": factors})], FLOATS[name], before, cuts=(7, 12))
    assert np.array_equal(ours, bits(name, expected))
    some = rewritten([Step(operation, Rows(np.array([4])), {"factor": factors})], FLOATS[name], before)
    assert np.array_equal(some[4], ours[4])
    assert np.array_equal(np.delete(some, 4, 0), np.delete(before, 4, 0))
    for wrong in ({"factor": factors[:-1]}, {"factor": factors[:, None]}, {}):
        with pytest.raises(ValueError, match="factor"):
            rewritten([Step(operation, arrays=wrong)], FLOATS[name], before)


def test_factors_make_a_scale_depend_on_the_place() -> None:
    assert Scale(factor=2).pointwise
    assert read("scale", factor={"ramp": [1, 2]}).pointwise
    assert not read("scale", factor={**FILE, "axis": "rows"}).pointwise
    with pytest.raises(ValueError, match="pointwise"):
        pointwise([read("scale", factor={**FILE, "axis": "rows"})], FLOATS["BF16"])


def test_what_names_parts_of_the_model_is_not_applied_to_whole_tensors() -> None:
    parts = {"head_scale": "heads", "neuron_scale": "neurons", "channel_scale": "channels"}
    for kind, names in parts.items():
        operation = read(kind, **{names: "0-3,7"}, factor=2)
        assert operation.STRUCTURED
        with pytest.raises(ValueError, match="whole tensors"):
            pointwise([operation], FLOATS["BF16"])
    assert not Scale(factor=2).STRUCTURED


def drawn(tensor: str, seed: int, first: int, *shape: int) -> Array:
    noise = Noise(std=1, seed=seed)
    columns = shape[-1]
    return noise.apply(np.zeros(shape), Place(shape=(10**6, columns), first=first, tensor=tensor))


def test_noise_is_gaussian_with_the_given_deviation() -> None:
    before = np.zeros((1000, 1000), np.uint32)
    after = rewritten([Step(Noise(std=0.25, seed=5))], FLOATS["F32"], before, tensor="a").view(np.float32).ravel()
    assert abs(after.mean()) < 5 * 0.25 / 1000
    assert abs(after.std() / 0.25 - 1) < 5 / np.sqrt(2e6)
    assert stats.kstest(after[::10], "norm", args=(0, 0.25)).pvalue > 1e-3
    neighbours = np.corrcoef(after[:-1], after[1:])[0, 1]
    assert abs(neighbours) < 5e-3


def test_noise_is_drawn_anew_for_each_run_seed_and_tensor() -> None:
    long = drawn("a", 1, 0, 4, 2**16).reshape(-1)
    runs = [long[start : start + 2**16] for start in range(0, long.size, 2**16)]
    others = [drawn("b", 1, 0, 2**16), drawn("a", 2, 0, 2**16), drawn("", 11, 0, 2**16), drawn("1", 1, 0, 2**16)]
    every = np.array([*runs, *others])
    correlation = np.corrcoef(every) - np.eye(len(every))
    assert np.abs(correlation).max() < 5 / 2**8


@given(first=st.integers(0, 5000), rows=st.integers(1, 40), columns=st.sampled_from([1, 37, 1000, 70_000]))
@settings(deadline=None, max_examples=25)
def test_the_noise_of_an_element_depends_on_its_index_alone(first: int, rows: int, columns: int) -> None:
    first, rows = (first % 3, min(rows, 3)) if columns > 1000 else (first, rows)
    whole = drawn("a", 9, 0, first + rows, columns)
    assert np.array_equal(drawn("a", 9, first, rows, columns), whole[first:])
    flat = drawn("a", 9, 0, whole.size)  # a vector with as many elements
    assert np.array_equal(flat, whole.reshape(-1))


def test_no_noise_at_all_keeps_the_sign_of_zero() -> None:
    zeros = np.repeat(np.array([0, 0x8000], np.uint16), 32)
    assert np.array_equal(rewritten([Step(Noise(std=0, seed=1))], FLOATS["BF16"], zeros), zeros)


@given(
    ramp=st.lists(st.floats(-100, 100), min_size=2, max_size=9),
    depth=st.floats(0, 1),
)
@settings(deadline=None)
def test_a_ramp_is_linear_between_evenly_spaced_values(ramp: list[float], depth: float) -> None:
    there = np.linspace(0, 1, len(ramp))
    assert Ramp(ramp=tuple(ramp)).at(depth) == pytest.approx(np.interp(depth, there, ramp), abs=1e-9)
    assert Ramp(ramp=tuple(ramp)).at(0) == ramp[0]
    assert Ramp(ramp=tuple(ramp)).at(1) == ramp[-1]


def test_a_ramp_is_a_gradient_of_mergekit() -> None:
    # `evaluate_setting` of mergekit: depth · (n - 1), whole part and rest, between two neighbours.
    ramp = Ramp(ramp=(0, 0.5, 1))
    assert [ramp.at(layer / 8) for layer in range(9)] == [layer / 8 for layer in range(9)]
    assert Ramp(ramp=(0.8, 1.2)).at(0.5) == pytest.approx(1.0)
    assert Ramp(ramp=(1, 0, 1)).at(0.5) == 0


def test_at_depth_settles_every_ramp_and_nothing_else() -> None:
    clamp = read("clamp", minimum={"ramp": [-1, -3]}, maximum=2)
    assert clamp.has_ramp
    assert clamp.at_depth(0.5) == read("clamp", minimum=-2, maximum=2)
    assert not clamp.at_depth(0.5).has_ramp
    factors = read("scale", factor={**FILE, "axis": "rows"})
    assert factors.at_depth(0.5) is factors
    noise = read("noise", std={"ramp": [0, 0.5]}, seed=7)
    assert noise.at_depth(1) == read("noise", std=0.5, seed=7)
    heads = read("head_scale", heads="0-2", factor={"ramp": [1, 0]}, part="value")
    assert heads.at_depth(1) == read("head_scale", heads="0-2", factor=0, part="value")


def test_bounds_that_cross_are_found_in_the_layer_where_they_do() -> None:
    clamp = read("clamp", minimum={"ramp": [0, 3, 0]}, maximum={"ramp": [1, 1]})
    assert clamp.at_depth(0).maximum == 1
    with pytest.raises(ValueError, match=r"minimum 3\.0 is above the maximum 1\.0"):
        clamp.at_depth(0.5)


@pytest.mark.parametrize(
    "operation",
    [
        read("scale", factor={"ramp": [1, 2]}),
        read("shift", offset={"ramp": [1, 2]}),
        read("clamp", minimum={"ramp": [1, 2]}),
        read("soft_threshold", threshold={"ramp": [1, 2]}),
        read("noise", std={"ramp": [1, 2]}, seed=1),
        read("reduce", alpha={"ramp": [0, 1]}),
        read("boost", alpha={"ramp": [0, 1]}),
        read("head_scale", heads="0", factor={"ramp": [1, 2]}),
    ],
    ids=lambda operation: operation.kind,
)
def test_a_ramp_is_never_taken_for_a_number(operation: Scale) -> None:
    with pytest.raises(ValueError, match="ramp"):
        operation.apply(np.zeros(2))
