from __future__ import annotations

import numpy as np
import pytest

from planner.evaluation.temperature import (
    FIRST_NODE,
    NODE_STEP,
    NODES,
    Curves,
    assign_folds,
    best_inverse_temperature,
    cross_fit,
)


def losses(logits: np.ndarray, target: np.ndarray, inverse_temperature: float) -> np.ndarray:
    """[n]: the loss of n documents of logits [n, tokens, vocabulary], in float64."""
    scaled = inverse_temperature * logits
    chosen = np.take_along_axis(scaled, target[..., None], axis=2)[..., 0]
    highest = scaled.max(axis=2)
    return (np.log(np.exp(scaled - highest[..., None]).sum(axis=2)) + highest - chosen).sum(axis=1)


def example(true_inverse_temperature: float, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and tokens drawn from them at a known inverse temperature."""
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((n, 30, 50))
    return logits, (true_inverse_temperature * logits + rng.gumbel(size=logits.shape)).argmax(axis=2)


def curves(logits: np.ndarray, target: np.ndarray, centre: float) -> Curves:
    nodes = centre * (FIRST_NODE + NODE_STEP * np.arange(NODES))
    return Curves(centre, np.stack([losses(logits, target, node) for node in nodes], axis=1))


@pytest.mark.parametrize("true", [0.3, 1.0, 3.7])
def test_finds_the_temperature_the_text_was_drawn_at(true):
    logits, target = example(true)
    centre = 2.0 ** round(np.log2(true))
    found, at_limit = best_inverse_temperature(curves(logits, target, centre))
    assert found == pytest.approx(true, rel=0.08)
    assert not at_limit
    direct = min(np.linspace(0.8 * found, 1.2 * found, 201), key=lambda b: losses(logits, target, b).sum())
    assert found == pytest.approx(direct, rel=0.004)


@pytest.mark.parametrize("centre", [0.5, 1.0])
def test_interpolation_is_close(centre):
    logits, target = example(1.0)
    known = curves(logits, target, centre)
    for point in np.linspace(0.5, 2.0, 61) * centre:
        error = np.abs(known.at(point) - losses(logits, target, point)) / target.shape[1]
        assert error.max() < 1e-4


def test_interpolation_is_exact_at_the_nodes_and_for_quintics():
    nodes = FIRST_NODE + NODE_STEP * np.arange(NODES)
    known = Curves(1.0, np.stack([nodes**5 - nodes, 2 - nodes**4]))
    for point in (0.5, 0.53, 1.0, 1.234, 1.98, 2.0):
        assert known.at(point) == pytest.approx([point**5 - point, 2 - point**4], abs=1e-12)


@pytest.mark.parametrize(("true", "end"), [(5.0, 2.0), (0.1, 0.5)])
def test_says_when_the_best_lies_beyond(true, end):
    found, at_limit = best_inverse_temperature(curves(*example(true), centre=1.0))
    assert at_limit
    assert found == pytest.approx(end)


def test_flat_curves_have_no_vertex():
    assert best_inverse_temperature(Curves(1.0, np.zeros((3, NODES))))[1]


def test_folds_depend_on_the_documents_alone():
    documents = [f"document {number}" for number in range(23)]
    folds = assign_folds(documents)
    assert np.bincount(folds).tolist() == [5, 5, 5, 4, 4]
    assert assign_folds(documents[::-1]).tolist() == folds[::-1].tolist()
    copies = assign_folds([*documents, documents[3]])
    assert copies[3] == copies[-1]
    assert sorted(assign_folds(["a", "b"])) == [0, 1]


def test_no_document_chooses_its_own_temperature():
    logits, target = example(1.0, n=20)
    known = curves(logits, target, 1.0)
    folds = assign_folds([str(number) for number in range(20)])
    before = cross_fit(known, folds)
    changed = Curves(1.0, known.values.copy())
    # One document that would pull its own temperature to the end: its fold's temperature must not move.
    changed.values[4] = 1e3 * np.linspace(2, 1, NODES)
    after = cross_fit(changed, folds)
    same = folds == folds[4]
    same[4] = False
    assert same.any()
    assert after[same] == pytest.approx(before[same], abs=0)
    assert np.abs(after[folds != folds[4]] - before[folds != folds[4]]).max() > 1e-3


def test_cross_fit_costs_something():
    logits, target = example(1.0)
    known = curves(logits, target, 1.0)
    best, _ = best_inverse_temperature(known)
    fitted = cross_fit(known, assign_folds([str(number) for number in range(40)])).sum()
    assert known.at(best).sum() < fitted < known.at(best).sum() + 1.0


@pytest.mark.parametrize("factor", [0.11, 0.8, 1.25, 6.0])
def test_rescaled_logits_have_the_same_calibrated_loss(factor):
    logits, target = example(1.0)
    folds = assign_folds([str(number) for number in range(40)])
    ours = cross_fit(curves(logits, target, 1.0), folds)
    theirs = cross_fit(curves(factor * logits, target, 2.0 ** -round(np.log2(factor))), folds)
    assert np.abs(ours - theirs).max() / target.shape[1] < 1e-4
