"""Standard errors, halves, merged groups, contrasts, ceilings and ranks, on arrays made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import SHAPES, grouping, made

from planner.evidence import (
    Gradients,
    Layout,
    Measured,
    Scores,
    Sides,
    ceilings_of,
    gauge_of,
    gradients,
    stability_of,
    tensors_of,
)
from planner.evidence.analysis import rank_of, rounding_of
from planner.evidence.quadratic import Quadratic, crossed, natural_step, predicted_gain


def bootstrap(groups, rows, draws: int = 4000) -> np.ndarray:
    """Standard deviation of the difference of means over groups drawn again, each side by itself."""
    random, found = np.random.default_rng(1), []
    for _ in range(draws):
        mean = 0.0
        for side in np.unique(groups.side):
            members = np.flatnonzero(groups.side == side)
            chosen = random.choice(members, len(members))
            sign = -1.0 if side else 1.0
            mean = mean + sign * rows[chosen].sum(axis=0) / groups.weights[chosen].sum()
        found.append(mean)
    return np.std(found, axis=0)


@pytest.mark.parametrize("contrast", [False, True])
def test_standard_errors_against_a_bootstrap_over_groups(contrast: bool) -> None:
    random = np.random.default_rng(3)
    weights = random.integers(5, 60, 60).astype(float)
    groups = grouping(weights, (np.arange(60) >= 35).astype(int) if contrast else None)
    rows = weights[:, None] * (random.normal(size=4) + random.normal(size=(60, 4)))
    np.testing.assert_allclose(groups.standard_error(rows), bootstrap(groups, rows), rtol=0.08)


def test_a_mean_is_over_tokens_and_a_contrast_is_a_difference() -> None:
    groups = grouping([1, 3, 2, 2], [0, 0, 1, 1])
    rows = np.array([[10.0], [2.0], [8.0], [4.0]])
    assert groups.mean(rows)[0] == 12 / 4 - 12 / 4
    assert grouping([1, 3]).mean(rows[:2])[0] == 3
    # The first of each side is one half, the second the other.
    assert groups.halves.tolist() == [0, 1, 0, 1]
    assert groups.mean(rows, 0)[0] == 10 / 1 - 8 / 2
    assert groups.mean(rows, 1)[0] == 2 / 3 - 4 / 2


def test_one_group_has_no_standard_error() -> None:
    assert grouping([7]).standard_error(np.ones((1, 2))) is None
    assert grouping([7, 7, 7], [0, 0, 1]).standard_error(np.ones((3, 2))) is None
    assert grouping([7, 7]).standard_error(np.ones((2, 2))) is not None


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(-10, 10)), min_size=4, max_size=20),
    st.integers(2, 4),
)
@settings(max_examples=50, deadline=None)
def test_merging_groups_keeps_the_mean(members: list[tuple[int, float]], rows: int) -> None:
    values = np.array([[value] for _, value in members])
    groups = grouping([weight for weight, _ in members], merged=np.arange(len(members)) % rows)
    assert groups.coarse.mean(groups.merge(values)) == pytest.approx(groups.mean(values))
    assert groups.coarse.weights.sum() == groups.weights.sum()


def test_merged_groups_stay_on_their_side() -> None:
    groups = grouping(np.ones(7), [0, 0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 2, 3, 2])
    assert groups.coarse.side.tolist() == [0, 0, 1, 1]
    values = np.arange(7.0)[:, None]
    assert groups.coarse.mean(groups.merge(values)) == pytest.approx(groups.mean(values))


@pytest.mark.parametrize("level", ["tensors", "units"])
@pytest.mark.parametrize("contrast", [False, True])
def test_each_half_estimates_what_the_whole_does(level: str, contrast: bool) -> None:
    """Of 400 groups, the Fisher information of a half is that of all of them, up to its error; sides differ in size."""
    side = (np.arange(400) % 5 == 4).astype(int) if contrast else None
    quadratic = Quadratic.of(made(grouping(np.ones(400), side), seed=2), level)
    whole = quadratic.fisher.T @ quadratic.fisher
    for number in (0, 1):
        gradient, scores = quadratic.half(number)
        assert np.trace(scores.T @ scores) == pytest.approx(np.trace(whole), rel=0.1)
        assert gradient.shape == quadratic.gradient.shape
    both = sum(quadratic.goal.mean(quadratic.calibrated, number) for number in (0, 1)) / 2
    if not contrast:
        np.testing.assert_allclose(both, quadratic.gradient, atol=1e-12)


def test_the_temperature_is_projected_out_as_a_schur_complement() -> None:
    measured = made(grouping(np.random.default_rng(0).integers(3, 9, 50)), seed=4)
    quadratic = Quadratic.of(measured, "tensors")
    count, total = measured.layout.tensors, measured.goal.weights.sum()
    fisher = measured.sets["fisher"].tensors
    every = np.column_stack([fisher[:, :count], fisher[:, -1]])
    full = every.T @ every / total
    schur = full[:count, :count] - np.outer(full[:count, -1], full[-1, :count]) / full[-1, -1]
    np.testing.assert_allclose(quadratic.fisher.T @ quadratic.fisher, schur, atol=1e-12)
    rows = measured.sets["calibrated"].tensors
    gradient = rows.sum(axis=0) / total
    expected = gradient[:count] - full[:count, -1] / full[-1, -1] * gradient[-1]
    np.testing.assert_allclose(quadratic.gradient, expected, atol=1e-12)


def test_in_a_contrast_the_temperature_is_that_of_the_goal_text() -> None:
    measured = made(grouping(np.ones(40), np.arange(40) % 2), seed=5)
    sets = dict(measured.sets)
    # On the goal text the first tensor is the temperature itself; on the text against it is not.
    for name in ("fisher", "calibrated"):
        rows = sets[name].tensors.copy()
        rows[::2, 0] = rows[::2, -1]
        sets[name] = Scores(rows, sets[name].units)
    quadratic = Quadratic.of(replace(measured, sets=sets), "tensors")
    assert np.abs(quadratic.fisher[::2, 0]).max() < 1e-12
    assert np.abs(quadratic.fisher[1::2, 0]).max() > 0.01


def test_a_natural_step_solves_the_damped_system_and_its_gain_is_the_quadratics() -> None:
    random = np.random.default_rng(1)
    gradient, scores = random.normal(size=30), random.normal(size=(9, 30))
    scores[:, 4] = 0
    fisher = scores.T @ scores
    for damping in (0.01, 1.0, 100.0):
        diagonal = np.diag(fisher)
        damped = fisher + damping * np.diag(diagonal + diagonal.mean())
        step = natural_step(gradient, scores, damping)
        np.testing.assert_allclose(damped @ step, -gradient, atol=1e-9)
        assert predicted_gain(gradient, scores, step) == pytest.approx(-gradient @ step - 0.5 * step @ fisher @ step)


@pytest.mark.parametrize("scores", [np.zeros((3, 2)), np.zeros((0, 2))])
def test_without_curvature_no_step_is_taken(scores: np.ndarray) -> None:
    assert natural_step(np.array([1e-3, -2e300]), scores, 0.01).tolist() == [0, 0]
    assert natural_step(np.zeros(0), np.zeros((3, 0)), 1.0).shape == (0,)


def test_noise_has_no_ceiling_and_knowledge_has() -> None:
    """The judged gain of pure noise is nothing; the gain on the documents that chose it is too good to be true."""
    noise = Sides.of(made(grouping(np.ones(200)), noise=1.0, mean=0.0))
    known = Sides.of(made(grouping(np.ones(200)), noise=1.0, mean=0.5))
    nothing, something = ceilings_of(noise)[0][0], ceilings_of(known)[0][0]
    assert nothing.gain < 0.01 < something.gain
    assert something.gain > 4 * something.gain_se
    assert not something.hopeless
    whole = crossed(known.tensors, 0.01)
    assert whole.in_sample > whole.gain > 0


def test_nothing_to_win_is_said_only_where_it_was_shown() -> None:
    for count in (1, 2, 3):
        found, _ = ceilings_of(Sides.of(made(grouping(np.ones(count)), mean=0.0)))
        assert all(ceiling.gain_se is None and not ceiling.hopeless for ceiling in found), count
    quiet = made(grouping(np.full(400, 100.0)), mean=0.0, noise=0.05)
    assert ceilings_of(Sides.of(quiet))[0][0].hopeless


def test_one_group_gives_sensitivities_without_errors() -> None:
    measured = made(grouping([9.0]))
    sides = Sides.of(measured)
    for tensor in tensors_of(measured, sides, {}, 0.1):
        assert tensor.scale.raw_se is tensor.scale.calibrated_se is tensor.scale.stable is None
        assert (tensor.by_row, tensor.by_column) == (0.0, 0.0)
        assert all(unit.calibrated_se is None for unit in tensor.top_rows + tensor.top_columns)
    assert stability_of(sides).model_dump() == {"correlation": None, "sign_agreement": None, "raw_correlation": None}


def test_the_record_of_a_tensor_is_what_the_arrays_say() -> None:
    measured = made(grouping(np.random.default_rng(0).integers(3, 9, 30)))
    sides = Sides.of(measured)
    (first, _, vector) = tensors_of(measured, sides, {}, 0.1)
    assert (first.rows, first.columns, vector.rows, vector.columns) == (3, 4, 1, 5)
    assert first.scale.calibrated == pytest.approx(sides.tensors.gradient[0])
    assert first.scale.step == pytest.approx(-first.scale.calibrated / first.scale.curvature)
    assert first.scale.gain == pytest.approx(first.scale.calibrated**2 / first.scale.curvature / 2)
    assert [unit.index for unit in first.top_rows] == np.argsort(-np.abs(sides.units.gradient[:3])).tolist()
    assert vector.top_rows == ()
    assert len(vector.top_columns) == 5
    rows = measured.sets["raw"].tensors[:, 0]
    assert first.scale.raw == pytest.approx(rows.sum() / measured.goal.weights.sum())
    shift = measured.sets["raw"].tensors[:, 3]
    assert first.shift.raw == pytest.approx(shift.sum() / measured.goal.weights.sum())


def with_column(measured: Measured, column: int, values: np.ndarray) -> Measured:
    sets = {}
    for name, scores in measured.sets.items():
        rows = scores.tensors.copy()
        rows[:, column] = values
        sets[name] = Scores(rows, scores.units)
    return replace(measured, sets=sets)


def test_rounding_divided_by_rounding_is_no_gain() -> None:
    measured = made(grouping(np.ones(20)))
    rounding = 1e-7 * np.random.default_rng(0).normal(size=20)
    found = tensors_of(m := with_column(measured, 1, rounding), Sides.of(m), {}, 0.1)
    assert (found[1].scale.step, found[1].scale.gain) == (None, 0.0)
    assert found[0].scale.step is not None
    # In 16 bits more is rounding.
    coarse = tensors_of(m := with_column(measured, 1, 1e4 * rounding), Sides.of(m), {}, 0.1, rounding_of("bfloat16"))
    assert coarse[1].scale.step is None
    assert tensors_of(m, Sides.of(m), {}, 0.1)[1].scale.step is not None


def test_the_rank_counts_different_edits() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(30, 4)) * [1.0, 10.0, 1e-2, 1.0]
    same = np.column_stack([rows, rows[:, 0] + rows[:, 1], -3 * rows[:, 2], 1e-7 * random.normal(size=30)])
    assert rank_of(same) == 4
    assert rank_of(np.zeros((5, 3))) == 0
    measured = made(grouping(np.ones(30)))
    assert gauge_of(measured).independent == len(SHAPES)
    assert not gauge_of(measured).temperature_within
    scores = measured.sets["fisher"].tensors
    assert gauge_of(measured).at_most == min(3 * len(scores), Layout(SHAPES).tensors)


@pytest.mark.parametrize("contrast", [False, True])
def test_every_row_and_column_alone_is_what_the_model_along_it_says(contrast: bool, monkeypatch) -> None:
    """Beside `Quadratic.along`, which predictions are made with; in whatever blocks they are taken."""
    groups = grouping(np.random.default_rng(1).integers(3, 9, 12), (np.arange(12) % 3 == 0).astype(int) * contrast)
    measured = made(groups, seed=8)
    layout = measured.layout
    zero = np.zeros((layout.tensors, layout.units))
    along = Quadratic.along(measured, zero, shifts=zero, units=np.eye(layout.units))
    for block in (2**16, 1, 5):
        monkeypatch.setattr(gradients, "_BLOCK", block)
        found = Gradients.of_units(measured)
        np.testing.assert_allclose(found.calibrated, along.gradient, rtol=1e-9)
        np.testing.assert_allclose(found.calibrated_se, along.gradient_se, rtol=1e-9)
        np.testing.assert_allclose(found.curvature, along.curvature(), rtol=1e-9)
        np.testing.assert_allclose(found.drift, along.drift_curvature(), rtol=1e-9)
        np.testing.assert_allclose(found.raw, along.goal.mean(along.raw), rtol=1e-9)
        grid = np.linspace(-1, 1, 20_001)
        for n in range(layout.units):
            best = (along.gradient[n] * grid + 0.5 * found.curvature[n] * grid**2).min()
            assert found.at(n).gain == pytest.approx(-best, rel=1e-4)


def test_rows_without_curvature_have_no_step_and_no_gain() -> None:
    measured = made(grouping(np.ones(8)), seed=3)
    sets = {name: Scores(scores.tensors, scores.units.copy()) for name, scores in measured.sets.items()}
    sets["fisher"].units[:, 4] = 0
    sets["fisher"].tensors[:, -1] = 0  # no temperature is projected out
    found = Gradients.of_units(replace(measured, sets=sets))
    assert (found.at(4).step, found.at(4).gain) == (None, 0.0)
    assert found.at(3).step is not None
    lone = Gradients.of_units(made(grouping([7.0]), seed=3))
    assert (lone.at(0).calibrated_se, lone.at(0).stable, lone.at(0).raw_se) == (None, None, None)
