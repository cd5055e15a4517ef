"""What must cancel: scales that undo one another, tensors that change nothing, and how many edits are different."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from effects.proving import Case, Stand
from models.oracle import token_ids
from models.tiny import build
from probing import close, double_machine, measured_rows, probed, scale_of, written

from planner.evidence import Grouping, Measured, Scores, gauge_of
from planner.evidence.quadratic import Quadratic
from planner.probes.measuring import Machine
from planner.probes.tasks import Group, Sequences

B = 0.6
SETS = {"raw": 1.0, "calibrated": B, "fisher": B, "fisher_raw": 1.0, "fisher_drift": 1.0}


def measured(machine: Machine, count: int) -> Measured:
    """Everything of `count` random documents, in float64."""
    random = np.random.default_rng(5)
    every = [
        Group([Sequences((tuple(int(n) for n in random.permutation(64)[:8]),), (1,))])
        if count > 2
        else Group([Sequences((tuple(token_ids()[place].tolist()),), (1,))])
        for place in range(count)
    ]
    rows = [measured_rows(machine, group, SETS, number) for number, group in enumerate(every)]
    grouping = Grouping(np.array([group.weight for group in every], float), np.zeros(count, np.int64), np.arange(count))
    sets = {
        name: Scores(np.array([r.tensors(name) for r in rows]), np.array([r.units[name] for r in rows], np.float32))
        for name in SETS
    }
    return Measured(machine.layout, grouping, grouping, sets)


def identities(layers: int) -> list[tuple[str, list[str]]]:
    """Of a Llama: a scale, and those that add up to it."""
    found = []
    for layer in range(layers):
        block = f"model.layers.{layer}"
        q, k, v, o = (f"{block}.self_attn.{part}_proj.weight" for part in "qkvo")
        gate, up, down = (f"{block}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        found += [(q, [k]), (v, [o]), (up, [down])]
        found += [
            (f"{block}.input_layernorm.weight", [q, k, v]),
            (f"{block}.post_attention_layernorm.weight", [gate, up]),
        ]
    return found


def test_scales_that_cancel_in_a_llama_in_float64() -> None:
    found = measured(double_machine(written("llama")), 2)
    places = found.layout.places
    for which in SETS:
        rows = found.sets[which].tensors
        for one, others in identities(3):
            total = sum(rows[:, places[other].number] for other in others)
            assert close(rows[:, places[one].number], total, 1e-9), (which, one)
            assert np.abs(rows[:, places[one].number]).max() > 1e-4, "else it shows nothing"


def test_scales_that_cancel_in_a_trained_llama(assets: Path) -> None:
    found = probed(assets / "stories260k", max_tokens=48)
    rows = {name: found.measured.sets[name].tensors for name in SETS}
    places = found.measured.layout.places
    for which in SETS:
        largest = np.abs(rows[which][:, : len(places)]).max()
        for one, others in identities(5):
            total = sum(rows[which][:, places[other].number] for other in others)
            assert np.abs(rows[which][:, places[one].number] - total).max() < 1e-4 * largest, (which, one)


def test_a_norm_of_queries_swallows_the_scale_of_their_projection() -> None:
    """The bundled model is a Qwen 3."""
    found = probed()
    others = max(abs(tensor.scale.raw) for tensor in found.evidence.tensors)
    for layer in range(6):
        for part in ("q", "k"):
            scale = scale_of(found, f"model.layers.{layer}.self_attn.{part}_proj.weight")
            assert max(abs(scale.raw), abs(scale.calibrated)) < 1e-5 * others
            assert (scale.step, scale.gain) == (None, 0.0), "rounding divided by rounding is no gain"
        one, other = (scale_of(found, f"model.layers.{layer}.self_attn.{part}_norm.weight") for part in "qk")
        assert one.calibrated == pytest.approx(other.calibrated, rel=1e-3, abs=1e-6 * others)


@pytest.mark.parametrize("key", ["llama", "qwen3", "gemma2", "olmo2", "phi3", "gpt2", "qwen3_moe-dense", "qwen2-tied"])
def test_what_the_effect_rules_call_invariant_has_no_sensitivity(key: str, tmp_path: Path) -> None:
    machine = double_machine(written(key), tiny_eps=True)
    found = measured(machine, 2)
    stand = Stand(key, tmp_path)
    one_more = Case("", {"kind": "scale", "factor": 1.1}, {"kind": "all"})
    raw, drawn = found.sets["raw"].tensors, found.sets["fisher_drift"].tensors
    calibrated = Quadratic.of(found, "tensors")
    largest = np.abs(raw[:, : machine.layout.tensors]).max()
    capped = bool(build(key).config.get("final_logit_softcapping"))
    effects = set()
    for name, place in machine.layout.places.items():
        effect = stand.verdict(stand.edits([one_more.on(name)])).effect
        effects.add(effect)
        mine = max(np.abs(raw[:, place.number]).max(), np.abs(drawn[:, place.number]).max())
        if effect in ("invariant", "shifts_logits"):
            assert mine < 1e-9 * largest, (name, effect)
        elif effect == "rescales_logits" and not capped:
            assert mine > 1e-6 * largest, name
            # All groups answer in proportion to the temperature, so that nothing is left when it is projected out.
            left = max(np.abs(rows[:, place.number]).max() for rows in (calibrated.calibrated, calibrated.fisher))
            assert left < 1e-9 * largest, name
        elif effect == "effective":
            assert mine > 1e-6 * largest, name
    assert "effective" in effects
    assert key == "gpt2" or effects & {"invariant", "shifts_logits", "rescales_logits"}, "its norms have biases"


def test_a_llama_has_four_different_scales_a_layer_and_the_temperature() -> None:
    machine = double_machine(written("llama"))
    found = gauge_of(measured(machine, 24))
    # The embedding, which is not tied here, is no edit of its own: all that writes to the stream scales with it.
    assert found.tensors == 3 * 9 + 3
    assert found.temperature_within
    assert found.independent == 3 * 4 + 1
    assert found.at_most > found.independent


def test_the_trained_llama_has_21(assets: Path) -> None:
    found = probed(assets / "stories260k", documents=24, max_tokens=24).evidence.gauge
    assert (found.tensors, found.independent, found.temperature_within) == (47, 21, True)


def test_few_documents_show_few_edits() -> None:
    found = probed(documents=2).evidence.gauge
    assert found.independent == found.at_most == 4, "two documents, two temperatures"
    assert not found.temperature_within, "so few rows cannot tell"
