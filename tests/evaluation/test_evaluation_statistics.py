from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from planner.errors import SuiteInvalid
from planner.evaluation.statistics import (
    bootstrap_interval,
    compare,
    holm,
    minimum_detectable_effect,
    ratio_difference,
    sign_flip_p_value,
)


def sample(n: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Differences that grow with a document's length, as losses do."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 400, size=n).astype(float)
    return tokens * (shift + 0.05 * rng.standard_normal(n)), tokens


def test_difference_is_that_of_the_corpus_losses():
    baseline, candidate, tokens = np.array([10.0, 300.0]), np.array([12.0, 290.0]), np.array([10.0, 100.0])
    assert ratio_difference(candidate - baseline, tokens) == pytest.approx(302 / 110 - 310 / 110)


@pytest.mark.parametrize("n", [2, 5, 9, 14])
@pytest.mark.parametrize("shift", [0.0, -0.02, 0.05])
def test_exact_sign_flips_equal_scipys(n, shift):
    differences, _ = sample(n, shift, seed=n)
    oracle = scipy.stats.permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flip_p_value(differences) == pytest.approx(oracle.pvalue, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, -0.01, 0.02])
def test_random_sign_flips_agree_with_scipys(shift):
    differences, _ = sample(40, shift, seed=5)
    oracle = scipy.stats.permutation_test(
        (differences,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=1,
    )  # fmt: skip
    # Four standard errors of two estimates of one share.
    tolerance = 4 * np.sqrt(oracle.pvalue * (1 - oracle.pvalue) * (1 / 10_000 + 1 / 20_000)) + 2e-4
    assert sign_flip_p_value(differences, seed=3) == pytest.approx(oracle.pvalue, abs=tolerance)


def test_random_flips_never_give_zero():
    assert sign_flip_p_value(np.full(100, -1.0)) == 1 / 10_001


def test_sign_flips_hold_their_level():
    rng = np.random.default_rng(11)
    p = [sign_flip_p_value(rng.standard_normal(20), seed=seed, flips=500) for seed in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


@pytest.mark.parametrize("n", [10, 80, 700])
def test_interval_agrees_with_scipys(n):
    differences, tokens = sample(n, -0.01, seed=n)
    oracle = scipy.stats.bootstrap(
        (differences, tokens), lambda d, t, axis: d.sum(axis=axis) / t.sum(axis=axis), paired=True, vectorized=True,
        method="percentile", n_resamples=10_000, rng=2, batch=1000,
    )  # fmt: skip
    interval = bootstrap_interval(differences, tokens, seed=4)
    assert interval == pytest.approx(tuple(oracle.confidence_interval), abs=0.12 * oracle.standard_error)


def test_interval_resamples_pairs():
    # Losses of documents differ by 100 times what the candidate changes; only pairing sees the change.
    rng = np.random.default_rng(0)
    baseline = 200 + 100 * rng.standard_normal(60)
    low, high = bootstrap_interval((baseline - 1 + 0.1 * rng.standard_normal(60)) - baseline, np.full(60, 50.0))
    assert -0.021 < low < high < -0.019


def test_interval_covers():
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(*sample(60, 0.03, seed=seed), seed=seed, resamples=400)
        covered += low <= 0.03 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_chunks_do_not_show(monkeypatch):
    differences, tokens = sample(50, -0.01)
    whole = compare(differences, tokens, seed=1)
    monkeypatch.setattr("planner.evaluation.statistics._CHUNK_ELEMENTS", 50 * 7)
    assert compare(differences, tokens, seed=1).interval == whole.interval


def test_mde_is_the_effect_found_four_times_in_five():
    differences, tokens = sample(80, 0.0)
    mde = minimum_detectable_effect(differences, tokens)
    assert mde == pytest.approx(2.8016 * 0.05 / np.sqrt(80), rel=0.35)
    found = 0
    for seed in range(300):
        fresh, _ = sample(80, mde, seed=seed + 100)
        found += sign_flip_p_value(fresh, seed=seed, flips=400) < 0.05
    assert 0.6 < found / 300 < 0.97


def test_too_few_documents_to_see_anything():
    assert minimum_detectable_effect(np.full(5, -1.0), np.ones(5)) is None
    assert sign_flip_p_value(np.full(5, -1.0)) == 2 / 32
    assert minimum_detectable_effect(np.arange(6.0), np.ones(6)) is not None


def test_equal_losses():
    found = compare(np.zeros(30), np.full(30, 7.0))
    assert (found.difference, found.interval, found.p_value, found.share_better) == (0.0, (0.0, 0.0), 1.0, 0.0)
    assert found.mde == 0.0
    assert compare(np.zeros(3), np.ones(3)).p_value == 1.0


def test_sign_and_share():
    differences, tokens = sample(60, -0.05)
    found = compare(differences, tokens)
    assert found.difference < 0
    assert found.interval[1] < 0
    assert found.p_value < 0.001
    assert found.share_better == np.mean(differences < 0) > 0.7
    assert "10000 random flips" in found.test
    assert "all 2^n flips" in compare(differences[:10], tokens[:10]).test


def test_refuses_what_it_cannot_compare():
    with pytest.raises(SuiteInvalid, match="at least 2 documents, found 1"):
        compare(np.ones(1), np.ones(1))
    with pytest.raises(SuiteInvalid, match="document 2 has no token"):
        compare(np.ones(3), np.array([1.0, 0.0, 1.0]))


def test_holm():
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
