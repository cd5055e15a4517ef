"""How a tensor compares with the same tensor of the other layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from planner.profile import TensorProfile, peer_groups, standings
from planner.profile.peers import STATISTICS, robust_scores


def tensor(layer: int | None, rms: float | None, *, role: str = "q_proj", **fields: object) -> TensorProfile:
    given = {"name": f"layers.{layer}.{role}", "dtype": "BF16", "shape": (2, 2), "elements": 4, "digest": "blake3:0"}
    return TensorProfile.model_validate(
        {**given, "understood": True, "role": role, "layer": layer, "rms": rms, **fields}
    )


def test_peers_share_role_shape_and_dtype_and_stand_in_the_order_of_their_layers() -> None:
    tensors = [
        tensor(10, 1.0),
        tensor(2, 1.0),
        tensor(0, 1.0, role="k_proj"),
        tensor(0, 1.0, shape=(4, 1)),
        tensor(1, 1.0, dtype="F32"),
        tensor(None, 1.0, role="embed_tokens"),
    ]
    groups = [[(found.role, found.layer) for found in group] for group in peer_groups(tensors)]
    assert groups == [[("q_proj", 2), ("q_proj", 10)], [("k_proj", 0)], [("q_proj", 0)], [("q_proj", 1)]]
    assert peer_groups([]) == []


def test_the_robust_z_is_the_one_computed_by_hand() -> None:
    # rms 1/4, 1/2, 1, 2, 64: logarithms to the base 2 are -2, -1, 0, 1, 6; median 0; deviations 2, 1, 0, 1, 6, of which
    # the median is 1. So z is 0.6745 times the logarithm, whatever its base.
    found = standings([tensor(layer, rms) for layer, rms in enumerate([0.25, 0.5, 1.0, 2.0, 64.0])])
    assert [standing.robust_z for standing in found] == pytest.approx([-1.349, -0.6745, 0, 0.6745, 4.047])
    assert {standing.typical for standing in found} == {1.0}
    assert [standing.tensor.layer for standing in found] == [0, 1, 2, 3, 4]


def test_twice_and_half_the_median_stand_out_alike() -> None:
    found = {s.tensor.layer: s.robust_z for s in standings([tensor(n, 3.0 * 2.0**n) for n in (-1, 0, 1)])}
    assert found[1] == pytest.approx(-found[-1])
    assert found[0] == pytest.approx(0)


def test_an_even_group_has_its_median_between_the_two_in_the_middle() -> None:
    found = standings([tensor(layer, rms) for layer, rms in enumerate([1.0, 4.0])])
    assert found[0].typical == pytest.approx(2.0)
    assert [standing.robust_z for standing in found] == pytest.approx([-0.6745, 0.6745])


def test_equals_and_the_lonely_do_not_stand_out() -> None:
    assert [standing.robust_z for standing in standings([tensor(n, 0.5) for n in range(4)])] == [0, 0, 0, 0]
    assert [standing.robust_z for standing in standings([tensor(0, 0.5)])] == [0]


@pytest.mark.parametrize("rms", [None, 0.0])
def test_a_tensor_without_magnitude_has_no_standing(rms: float | None) -> None:
    found = standings([tensor(0, rms), tensor(1, 1.0), tensor(2, 2.0)])
    assert [standing.tensor.layer for standing in found] == [1, 2]
    assert standings([tensor(0, rms)]) == []


def test_one_that_differs_from_peers_that_agree_exactly_stands_out() -> None:
    # Five norms of ones and one of twos: the median deviation is 0, the mean one is log(2) / 6.
    found = standings([tensor(layer, rms) for layer, rms in enumerate([1.0, 1.0, 1.0, 1.0, 1.0, 2.0])])
    assert [standing.robust_z for standing in found] == pytest.approx([0, 0, 0, 0, 0, 6 / 1.2533])


def with_statistic(layer: int, name: str, value: float) -> TensorProfile:
    """A tensor where the statistic called `name` has this value, and no other is set."""
    norms = {"count": 2, "min": 1, "median": 1, "max": 1, "smallest_at": [0], "largest_at": [0]}
    fields: dict[str, Any] = {
        "offset": {"mean": 2 * value, "std": 2},
        "reach": {"abs_max": 2 * value, "std": 2},
        "zeros": {"zeros": round(1000 * value), "elements": 1000},
        "subnormals": {"subnormals": round(1000 * value), "elements": 1000},
        "outliers_3": {"outliers": {"3": round(1000 * value)}, "elements": 1000},
        "outliers_6": {"outliers": {"6": round(1000 * value)}, "elements": 1000},
        "row_cv": {"rows": {**norms, "cv": value}},
        "column_cv": {"columns": {**norms, "cv": value}},
    }
    given = fields.get(name, {name: value})
    return tensor(layer, given.pop("rms", None), **given)


SPECTRAL = {"spectral_norm", "stable_rank", "effective_rank", "tail_exponent"}
SHARES = {"zeros", "subnormals", "outliers_3", "outliers_6"}


@pytest.mark.parametrize("name", sorted(STATISTICS.keys() - SPECTRAL))
def test_every_statistic_is_compared_on_its_scale(name: str) -> None:
    values = np.array([0.011, 0.012, 0.010, 0.014, 0.018, 0.160])
    found = standings([with_statistic(layer, name, value) for layer, value in enumerate(values)], name)
    assert [standing.value for standing in found] == pytest.approx(values)
    logarithmic = name in {"std", "rms", "abs_max", "l2_norm", "reach"}
    scale = np.log(values) if logarithmic else values
    expected = (scale - np.median(scale)) / median_abs_deviation(scale, scale="normal")
    assert [standing.robust_z for standing in found] == pytest.approx(expected, rel=1e-4)
    typical = math.exp(np.median(scale)) if logarithmic else float(np.median(values))
    assert found[0].typical == pytest.approx(typical)


def test_a_spectrum_is_compared_where_there_is_one() -> None:
    spectra = [
        {"method": "exact", "singular_values": [2], "known": 1, "resolution": 0, "spectral_norm": norm}
        for norm in (1.0, 2.0, 4.0)
    ]
    group = [tensor(layer, 1.0, spectrum=spectrum) for layer, spectrum in enumerate([*spectra, None])]
    assert [standing.value for standing in standings(group, "spectral_norm")] == [1, 2, 4]
    assert standings(group, "spectral_norm")[1].typical == pytest.approx(2)
    assert standings(group, "stable_rank") == []


@pytest.mark.parametrize("name", ["mean", "skewness", "kurtosis"])
def test_what_can_be_negative_has_a_standing_all_the_same(name: str) -> None:
    found = standings([tensor(layer, None, **{name: float(layer - 2)}) for layer in range(5)], name)
    assert [standing.robust_z for standing in found] == pytest.approx([-1.349, -0.6745, 0, 0.6745, 1.349])


def test_a_tensor_of_a_dtype_that_is_not_read_has_no_shares() -> None:
    group = [tensor(layer, None, understood=False, zeros=0) for layer in range(3)]
    assert all(standings(group, name) == [] for name in SHARES)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.1, 10), st.floats(-1e3, 1e3))
def test_linear_scores_ignore_scale_and_place(values: list[float], factor: float, shift: float) -> None:
    before = robust_scores(enumerate(values), logarithmic=False)
    after = robust_scores(((n, factor * value + shift) for n, value in enumerate(values)), logarithmic=False)
    assert after.typical == pytest.approx(factor * before.typical + shift, abs=1e-6)
    if median_abs_deviation(values) > 1e-3:
        mine = [z for _, _, z in before.scored]
        assert mine == pytest.approx(
            (np.array(values) - np.median(values)) / median_abs_deviation(values, scale="normal"), rel=1e-3, abs=1e-3
        )
        assert [z for _, _, z in after.scored] == pytest.approx(mine, rel=1e-3, abs=1e-3)


def test_the_peers_of_an_expert_are_all_experts_of_all_layers() -> None:
    experts = [
        tensor(layer, 1.0, role="experts.w1", expert=expert, name=f"layers.{layer}.experts.{expert}.w1")
        for layer in (1, 0)
        for expert in (10, 2)
    ]
    [group] = peer_groups(experts)
    assert [(found.layer, found.expert) for found in group] == [(0, 2), (0, 10), (1, 2), (1, 10)]


def test_every_one_of_twenty_thousand_experts_is_compared() -> None:
    generator = np.random.default_rng(0)
    experts = [
        tensor(layer, float(rms), role=f"experts.w{w}", expert=n, name=f"layers.{layer}.experts.{n}.w{w}")
        for w in range(3)
        for layer in range(52)
        for n, rms in enumerate(generator.lognormal(size=128))
    ]
    count = sum(len(standings(group)) for group in peer_groups(experts))
    assert count == len(experts) == 19_968
