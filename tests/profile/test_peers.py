"""How a tensor compares with the same tensor of the other layers."""

from __future__ import annotations

import pytest

from planner.profile import TensorProfile, peer_groups, standings


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
    assert {standing.median_rms for standing in found} == {1.0}
    assert [standing.tensor.layer for standing in found] == [0, 1, 2, 3, 4]


def test_twice_and_half_the_median_stand_out_alike() -> None:
    found = {s.tensor.layer: s.robust_z for s in standings([tensor(n, 3.0 * 2.0**n) for n in (-1, 0, 1)])}
    assert found[1] == pytest.approx(-found[-1])
    assert found[0] == pytest.approx(0)


def test_an_even_group_has_its_median_between_the_two_in_the_middle() -> None:
    found = standings([tensor(layer, rms) for layer, rms in enumerate([1.0, 4.0])])
    assert found[0].median_rms == pytest.approx(2.0)
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
