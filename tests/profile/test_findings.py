"""What is notable in a profile: one known fault in healthy weights must be found, named and ranked, and no other."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import write_checkpoint
from scipy.stats import kurtosis, skew

from planner.architecture import head_layout, role_of
from planner.checkpoint import open_checkpoint
from planner.profile import Profile, TensorProfile, profile_checkpoint
from planner.profile.findings import findings_of
from planner.profile.ties import same_bytes_of, ties_of
from planner.profile.wording import listed, times

Array = np.ndarray[Any, Any]

DIFFERENT = "stored with different bytes: loaders disagree"
LAYERS = 8
CONFIG = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}


def healthy() -> dict[str, Array]:
    """Normally distributed weights, and norms of ones, of eight layers."""
    random = np.random.default_rng(0)
    tensors: dict[str, Array] = {"model.embed_tokens.weight": random.normal(0, 0.1, (128, 64))}
    for layer in range(LAYERS):
        for path, shape in SHAPES.items():
            tensors[f"model.layers.{layer}.{path}.weight"] = random.normal(0, 0.05 * (1 + layer / 20), shape)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(64)
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] = np.zeros(64)
    return tensors


def norms(array: Array) -> dict[str, Any]:
    order = np.argsort(array, kind="stable")
    return {
        "count": len(array),
        "min": array.min(),
        "median": np.sort(array)[(len(array) - 1) // 2],
        "max": array.max(),
        "cv": array.std() / array.mean() if array.any() else None,
        "smallest_at": order[:4].tolist(),
        "largest_at": np.argsort(-array, kind="stable")[:4].tolist(),
    }


def measured(name: str, array: Array, **fields: Any) -> TensorProfile:
    """The profile of an array by numpy and scipy."""
    role, finite = role_of(name), np.where(np.isfinite(array), array, 0)
    there = array[np.isfinite(array)]
    given: dict[str, Any] = {
        "name": name,
        **{"role": role.role, "layer": role.layer, "expert": role.expert},
        **{"dtype": "F32", "shape": array.shape, "elements": array.size, "understood": True},
        "digest": f"blake3:{hash(array.tobytes()):x}",
        **{"nan": int(np.isnan(array).sum()), "inf": int(np.isinf(array).sum()), "zeros": int((array == 0).sum())},
        "distinct_values": len(np.unique(there)),
    }
    if there.size:
        given |= {"mean": there.mean(), "std": there.std(), "min": there.min(), "max": there.max()}
        given |= {"abs_max": np.abs(there).max(), "rms": np.sqrt(np.mean(there**2))}
        if there.std() > 0:
            given |= {"kurtosis": kurtosis(there, axis=None), "skewness": skew(there, axis=None)}
    if array.ndim > 1:
        matrix = finite.reshape(-1, array.shape[-1])
        given |= {"rows": norms(np.linalg.norm(matrix, axis=1)), "columns": norms(np.linalg.norm(matrix, axis=0))}
    place = np.unravel_index(np.abs(finite).argmax(), array.shape)
    given["largest"] = [{"index": [int(number) for number in place], "value": finite[place]}]
    given["heads"] = [
        {
            **{"part": band.part, "axis": band.axis, "width": band.width},
            "norms": [float(np.linalg.norm(head)) for head in np.split(finite, band.count)],
        }
        for band in head_layout(role.role, array.shape, CONFIG)
    ]
    return TensorProfile.model_validate(given | fields)


def profile_of(tensors: dict[str, Array] | list[TensorProfile], config: dict[str, Any] = CONFIG) -> Profile:
    listed = [measured(*item) for item in tensors.items()] if isinstance(tensors, dict) else tensors
    return Profile.model_validate(
        {
            **{"name": "m", "fingerprint": "blake3:0", "created": "now", "planner_version": "0", "model_type": None},
            "tied_embeddings": config.get("tie_word_embeddings"),
            "parameters": sum(tensor.elements for tensor in listed),
            "bytes": 0,
            "tensors": listed,
            "ties": ties_of(listed, config),
            "same_bytes": same_bytes_of(listed),
        }
    )


def sentences(profile: Profile) -> list[str]:
    return [finding.sentence for finding in findings_of(profile)]


def test_healthy_weights_have_no_findings() -> None:
    assert sentences(profile_of(healthy())) == []


@pytest.mark.parametrize("name", ["stories260k", "stories260k-bf16", "stories260k-phi3", "stories260k-untied"])
def test_a_trained_model_of_others_has_few_findings_and_they_are_true(assets, name: str) -> None:
    found = findings_of(profile_checkpoint(open_checkpoint(assets / name)))
    kinds = {finding.kind: finding for finding in found}
    assert len(found) == len(kinds) <= 3
    assert kinds.pop("kurtosis").sentence.startswith("layer 0 o_proj: kurtosis 3.1")
    assert ("same_bytes" in kinds) == (name == "stories260k-untied")


def test_the_bundled_model_has_none(tiny_model) -> None:
    assert findings_of(profile_checkpoint(open_checkpoint(tiny_model))) == ()


def test_faults_put_into_the_bytes_of_a_trained_model_are_found(tiny_model, tmp_path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    tensors = {}
    for tensor in checkpoint.tensors.values():
        data = b"".join(checkpoint.chunks(tensor))
        tensors[tensor.name] = (tensor.dtype, np.frombuffer(data, dtype=np.uint16).reshape(tensor.shape).copy())
    prefix = "model.layers.{}.{}.weight".format
    tensors[prefix(1, "mlp.down_proj")][1][2, 3] = 0x7FC0  # NaN
    tensors[prefix(2, "mlp.down_proj")][1][4, 150] = 0x4080  # 4.0
    tensors[prefix(3, "mlp.up_proj")][1][7] = 0
    tensors[prefix(4, "self_attn.k_proj")][1][32:64] -= 5 << 7  # the exponent: 2^-5 of what it was; a head of 2
    tensors[prefix(5, "self_attn.q_proj")][1][32:64] -= 5 << 7
    tensors[prefix(0, "mlp.gate_proj")] = tensors[prefix(5, "mlp.gate_proj")]
    tensors["lm_head.weight"] = ("BF16", tensors["model.embed_tokens.weight"][1] ^ 1)
    folder = write_checkpoint(tmp_path / "damaged", tensors, config=checkpoint.config)
    found = [finding.sentence for finding in findings_of(profile_checkpoint(open_checkpoint(folder)))]
    assert found[:3] == [
        "layer 1 down_proj holds 1 NaN",
        f"lm_head and embed_tokens are tied by the configuration but {DIFFERENT}",
        "layers 0 and 5 gate_proj hold the same bytes",
    ]
    assert "row 7 of layer 3 up_proj is zero throughout" in found
    assert any(sentence.startswith("element (4, 150) of layer 2 down_proj is 4: ") for sentence in found)
    assert any(sentence.startswith("layer 5 q_proj: head 1 has 0.03") for sentence in found)
    assert not any("k_proj: head" in sentence for sentence in found), "of two heads none is the odd one"


def down(layer: int) -> str:
    return f"model.layers.{layer}.mlp.down_proj.weight"


def nan_and_inf(tensors: dict[str, Array]) -> None:
    tensors["model.layers.3.self_attn.q_proj.weight"][[0, 5], [1, 5]] = np.nan
    tensors[down(1)][0, 0] = np.inf


def torn(tensors: dict[str, Array]) -> None:
    tensors["lm_head.weight"] = 1.01 * tensors["model.embed_tokens.weight"]


def twins(tensors: dict[str, Array]) -> None:
    tensors["model.layers.4.mlp.up_proj.weight"] = tensors["model.layers.6.mlp.up_proj.weight"].copy()


def super_weight(tensors: dict[str, Array]) -> None:
    tensors[down(2)][1, 25] = 2.5


def long_row(tensors: dict[str, Array]) -> None:
    tensors[down(2)][33] *= 9


def dead(tensors: dict[str, Array]) -> None:
    tensors[down(2)][33] = 0


def weak_head(tensors: dict[str, Array]) -> None:
    tensors["model.layers.7.self_attn.k_proj.weight"][24:32] *= 0.02


def silent_matrix(tensors: dict[str, Array]) -> None:
    tensors[down(5)][:] = 0


def loud_matrix(tensors: dict[str, Array]) -> None:
    tensors[down(5)] *= 3


def odd_bias(tensors: dict[str, Array]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.linspace(-1, 1, 64)


def heavy_tails(tensors: dict[str, Array]) -> None:
    weights = np.random.default_rng(1).standard_t(4, (64, 96))
    tensors[down(6)] = 0.06 * weights / weights.std()


def shifted(tensors: dict[str, Array]) -> None:
    tensors[down(6)] += 0.05


def sparse(tensors: dict[str, Array]) -> None:
    tensors[down(6)][np.random.default_rng(2).random((64, 96)) < 0.3] = 0


FAULTS: list[tuple[Callable[[dict[str, Array]], None], list[tuple[str, str]]]] = [
    (
        nan_and_inf,
        [
            ("not_finite", "layer 3 q_proj holds 2 NaN"),
            ("not_finite", "layer 1 down_proj holds 1 infinite element"),
        ],
    ),
    (torn, [("torn_tie", f"lm_head and embed_tokens are tied by the configuration but {DIFFERENT}")]),
    (twins, [("same_bytes", "layers 4 and 6 up_proj hold the same bytes")]),
    (
        super_weight,
        [
            ("kurtosis", "layer 2 down_proj: kurtosis "),
            ("element", "element (1, 25) of layer 2 down_proj is 2.5: "),
        ],
    ),
    (
        long_row,
        [
            ("kurtosis", "layer 2 down_proj: kurtosis "),
            ("row", "row 33 of layer 2 down_proj has norm "),
        ],
    ),
    (dead, [("dead_row", "row 33 of layer 2 down_proj is zero throughout")]),
    (weak_head, [("head", "layer 7 k_proj: head 3 has 0.02")]),
    (silent_matrix, [("all_zeros", "layer 5 down_proj is all zeros")]),
    (loud_matrix, [("rms", "layer 5 down_proj: rms 0.191, 3.2x its peers (median 0.0586)")]),
    (odd_bias, []),
    (heavy_tails, [("kurtosis", "layer 6 down_proj: kurtosis ")]),
    (shifted, [("offset", "layer 6 down_proj: mean/std 0.7")]),
    (sparse, [("zeros", "layer 6 down_proj: share of zeros 0.3")]),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_is_found_and_said_and_nothing_else_is(
    fault: Callable[[dict[str, Array]], None], expected: list[tuple[str, str]]
) -> None:
    tensors = healthy()
    fault(tensors)
    found = findings_of(profile_of(tensors))
    said = [(finding.kind, finding.sentence) for finding in found]
    if fault is odd_bias:  # the zeros of the other layers are what stands out beside it, once, not seven times
        assert {kind for kind, _ in said} == {"all_zeros"}
        assert said[-1][1] == "layer 4 q_proj.bias is all zeros; likewise layers 5-7"
        return
    assert [kind for kind, _ in said] == [kind for kind, _ in expected]
    for (_, sentence), (_, beginning) in zip(said, expected, strict=True):
        assert sentence.startswith(beginning)
    assert len({finding.tensor for finding in found} & tensors.keys()) == len({finding.tensor for finding in found})


def test_damage_comes_first_and_the_farther_out_before_the_nearer() -> None:
    tensors = healthy()
    for fault in (long_row, weak_head, twins, torn, nan_and_inf):
        fault(tensors)
    tensors["model.layers.5.self_attn.k_proj.weight"][:8] *= 0.1
    kinds = [finding.kind for finding in findings_of(profile_of(tensors))]
    assert kinds[:4] == ["not_finite", "not_finite", "torn_tie", "same_bytes"]
    heads = [finding for finding in findings_of(profile_of(tensors)) if finding.kind == "head"]
    assert ["layer 7" in heads[0].sentence, "layer 5" in heads[1].sentence] == [True, True]


def test_a_finding_carries_the_numbers_of_its_sentence() -> None:
    tensors = healthy()
    loud_matrix(tensors)
    [found] = findings_of(profile_of(tensors))
    rms = [float(np.sqrt(np.mean(tensors[down(layer)] ** 2))) for layer in range(LAYERS)]
    logs = np.log(rms)
    deviation = statistics.median(abs(logs - np.median(logs)))
    assert found.tensor == down(5)
    assert found.value == pytest.approx(rms[5])
    assert found.typical == pytest.approx(np.exp(np.median(logs)))
    assert found.robust_z == pytest.approx(0.6745 * (logs[5] - np.median(logs)) / deviation)


def test_what_the_configuration_ties_may_be_equal_and_what_it_does_not_tie_is_said() -> None:
    tensors = healthy()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert sentences(profile_of(tensors)) == []
    loose = profile_of(tensors, CONFIG | {"tie_word_embeddings": False})
    said = "embed_tokens and lm_head hold the same bytes, though the configuration does not tie them"
    assert sentences(loose) == [said]


def test_what_every_layer_holds_by_design_is_no_duplicate() -> None:
    tensors = healthy()
    for layer in range(LAYERS):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16)))
        tensors[f"h.{layer}.rotary.inv_freq"] = np.geomspace(1, 1e-4, 32)
    assert sentences(profile_of(tensors)) == []


def test_integers_are_codes_and_have_no_findings() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (256, 256)).astype(float)
    tensors = [measured(f"layers.{n}.{path}.qzeros", codes, dtype="U8") for n in range(4) for path in ("up", "down")]
    tensors += [measured(f"layers.{n}.up.g_idx", np.full((4, 64), 8.0), dtype="I32") for n in range(4)]
    assert sentences(profile_of(tensors)) == []
    eight_bits = [measured(f"layers.{n}.up.weight", codes + 1 / (n + 1), dtype="F8_E4M3") for n in range(4)]
    assert sentences(profile_of(eight_bits)) == [], "few values are all that eight bits can say"
    assert "few_values" in {found.kind for found in findings_of(profile_of([measured("w", codes)]))}


def test_layers_that_drift_along_the_stack_are_no_outliers() -> None:
    tensors = healthy()
    for layer in range(LAYERS):
        tensors[down(layer)] *= 1.6**layer  # the last is five times the median
    assert sentences(profile_of(tensors)) == []


def test_many_alike_share_a_sentence() -> None:
    tensors = healthy()
    for layer in range(LAYERS):
        tensors[down(layer)][layer] *= 20 + 10 * layer
    rows = [finding.sentence for finding in findings_of(profile_of(tensors)) if finding.kind == "row"]
    assert [" ".join(sentence.split()[:5]) for sentence in rows] == [f"row {n} of layer {n}" for n in (7, 6, 5, 4)]
    assert [";" in sentence for sentence in rows] == [False, False, False, True]
    assert rows[-1].endswith("; likewise layers 0-3")


def experts(layers: int, count: int) -> list[TensorProfile]:
    random = np.random.default_rng(0)
    base = measured("model.layers.0.mlp.experts.0.down_proj.weight", random.normal(0, 0.05, (64, 96)))
    return [
        base.model_copy(
            update={
                "name": f"model.layers.{layer}.mlp.experts.{n}.down_proj.weight",
                **{"layer": layer, "expert": n, "digest": f"blake3:{layer}.{n}"},
                **{"rms": float(rms), "kurtosis": float(kurt)},
            }
        )
        for layer in range(layers)
        for n, (rms, kurt) in enumerate(
            zip(random.lognormal(-3, 0.05, count), random.normal(0, 0.1, count), strict=True)
        )
    ]


def test_the_experts_of_a_layer_share_a_sentence() -> None:
    tensors = experts(6, 32)
    for place, value in ((3 * 32 + 5, 41.0), (3 * 32 + 17, 30.0), (3 * 32 + 18, 31.0), (1 * 32 + 2, 20.0)):
        tensors[place] = tensors[place].model_copy(update={"kurtosis": value})
    said = sentences(profile_of(tensors))
    assert len(said) == 2
    assert said[0].startswith("layer 3 expert 5 down_proj: kurtosis 41, the median of its peers is ")
    assert said[0].endswith("; likewise experts 17 and 18")
    assert said[1].startswith("layer 1 expert 2 down_proj: kurtosis 20")


def test_upcycled_experts_are_said_by_layer() -> None:
    tensors = [tensor.model_copy(update={"digest": f"blake3:{tensor.layer}"}) for tensor in experts(6, 8)]
    said = [finding.sentence for finding in findings_of(profile_of(tensors)) if finding.kind == "same_bytes"]
    assert said[0] == "layer 0 experts 0-7 down_proj hold the same bytes"
    assert len(said) == 4


def test_slices_of_a_fused_tensor_are_compared_as_experts_are() -> None:
    random = np.random.default_rng(0)
    tensors = []
    for layer in range(3):
        values = random.lognormal(-3, 0.05, 16)
        values[5] *= 4 if layer == 2 else 1
        nothing = [None] * 16
        fused = {"count": 16, "rms": values.tolist(), "zeros": [0] * 16, "nonfinite": [0] * 15 + [layer == 1]}
        fused |= {"mean": nothing, "std": nothing, "abs_max": nothing, "kurtosis": nothing}
        array = random.normal(0, 0.05, (16, 8, 64))
        array[15, 0, 0] = np.nan if layer == 1 else 0.01
        tensors.append(measured(f"model.layers.{layer}.mlp.experts.down_proj", array, experts=fused))
    found = findings_of(profile_of(tensors))
    assert found[0].sentence == "layer 1 down_proj holds 1 NaN (expert 15)"
    assert found[1].sentence.startswith("layer 2 expert 5 down_proj: rms ")
    assert found[1].kind == "rms"
    assert len(found) == 2


def test_two_tensors_that_would_be_called_alike_are_called_by_name() -> None:
    tensors = healthy()
    tensors["model.layers.3.mlp.shared_expert.down_proj.weight"] = np.random.default_rng(5).normal(size=(64, 97))
    tensors["model.layers.3.mlp.shared_expert.down_proj.weight"][7] = 0
    [said] = sentences(profile_of(tensors))
    assert said == "row 7 of model.layers.3.mlp.shared_expert.down_proj.weight is zero throughout"


def test_precision_lost_and_quantised_values_are_notes() -> None:
    base = measured("model.layers.0.mlp.up_proj.weight", np.random.default_rng(0).normal(0, 0.05, (256, 256)))
    notes = profile_of([base.model_copy(update={"subnormals": 20_000, "distinct_values": 16, "dtype": "F16"})])
    assert sentences(notes) == [
        "layer 0 up_proj takes only 16 different values, as if it had been quantised",
        "layer 0 up_proj: 31% of the elements are subnormal in F16, which costs them precision",
    ]


def test_a_hopeless_checkpoint_has_a_bounded_number_of_findings() -> None:
    tensors = [
        tensor.model_copy(update={"nan": 1, "role": f"role{n}", "layer": n % 50})
        for n, tensor in enumerate(experts(157, 128))
    ]
    assert len(findings_of(profile_of(tensors))) == 200


def test_twenty_thousand_tensors_do_not_drown_the_reader() -> None:
    assert len(findings_of(profile_of(experts(157, 128)))) <= 15


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([4], "4"),
        ([4, 9], "4 and 9"),
        ([1, 2, 3, 9], "1-3 and 9"),
        ([0, 1], "0 and 1"),
        ([0, 1, 5, 7, 8, 9], "0, 1, 5 and 7-9"),
    ],
)
def test_numbers_are_listed_as_ranges(numbers: list[int], text: str) -> None:
    assert listed(numbers) == text
    assert listed(list(range(0, 100, 2))).endswith("22 and 38 more")


@pytest.mark.parametrize(("ratio", "text"), [(0.021, "0.021x"), (3.24, "3.2x"), (9.7, "10x"), (1234.0, "1,234x")])
def test_ratios_are_short(ratio: float, text: str) -> None:
    assert times(ratio) == text
