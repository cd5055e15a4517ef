"""Sensitivities against central differences of the loss itself, in float64, on the bundled model."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
from probing import (
    INVENTORY,
    STORIES,
    TINY_MODEL,
    central,
    changed,
    documents,
    double_machine,
    loss,
    measured_rows,
    written,
)

from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.evidence import Grouping
from planner.probes.measuring import Machine, Rows
from planner.probes.tasks import Group, Sequences

B = 0.8
LOSSES = {"raw": 1.0, "calibrated": B}
LAYER = 3
ROLES = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    *(
        f"model.layers.{LAYER}.{part}.weight"
        for part in (
            "input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm", "self_attn.v_proj",
            "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    ),
]  # fmt: skip


def questions() -> list[Sequences]:
    """Two questions of three choices each, cut out of the stories: the choices differ in length."""
    found = []
    for place, item in enumerate(documents(STORIES, 2, 16)):
        ids = item.ids[0]
        choices = tuple((*ids[:10], *ids[begin : begin + length]) for begin, length in ((10, 6), (3, 4), (9, 7)))
        found.append(Sequences(choices, (10, 10, 10), answer=place))
    return found


KINDS = {
    "text": lambda: Group(documents(STORIES, 2, 12)),
    "choice": lambda: Group(questions()),
}


@functools.cache
def machine() -> Machine:
    return double_machine(TINY_MODEL)


@functools.cache
def measured(kind: str) -> tuple[Group, Rows]:
    group = KINDS[kind]()
    return group, measured_rows(machine(), group, LOSSES)


def by_scaling(name: str, group: Group, b: float, factor: torch.Tensor) -> float:
    """d loss / d t of weights · exp(t · factor); `factor` broadcasts over the tensor."""
    parameter = machine().parameters[name]
    weights = parameter.detach().clone()

    def at(t: float) -> float:
        with changed(parameter, weights * torch.exp(t * factor)):
            return loss(machine(), [group], b)

    return central(at)


def agrees(found: float, true: float, size: float) -> bool:
    """To 1e-5, or to 1e-8 of what it is a sum of where that cancels."""
    return abs(found - true) <= 1e-5 * abs(true) + 1e-8 * size


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "text") for name in ROLES] + [(name, "choice") for name in ROLES[::4]]
)
def test_scale_and_shift_of_a_tensor(name: str, kind: str) -> None:
    group, rows = measured(kind)
    place = machine().layout.places[name]
    parameter = machine().parameters[name]
    weights = parameter.detach().clone()
    b = LOSSES["calibrated"] if ROLES.index(name) % 2 else 1.0
    which = "calibrated" if b == B else "raw"
    size = float(np.abs(rows.units[which][place.rows]).sum() + np.abs(rows.units[which][place.columns]).sum())
    assert agrees(
        rows.tensors(which)[place.number], by_scaling(name, group, b, torch.ones((), dtype=torch.float64)), size
    )

    def shifted(t: float) -> float:
        with changed(parameter, weights + t):
            return loss(machine(), [group], b)

    # A shift moves the stream much further than a factor does.
    true = central(shifted, 1e-5)
    assert rows.shifts[which][place.number] == pytest.approx(true, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "axis", "index"),
    [
        ("model.layers.0.mlp.down_proj.weight", "rows", 5),
        ("model.layers.2.mlp.up_proj.weight", "rows", 100),
        ("model.layers.5.self_attn.o_proj.weight", "columns", 17),
        ("model.layers.1.self_attn.v_proj.weight", "columns", 95),
        ("model.layers.4.post_attention_layernorm.weight", "columns", 40),
        ("model.embed_tokens.weight", "rows", 0),
    ],
)
def test_a_row_and_a_column(name: str, axis: str, index: int) -> None:
    group, rows = measured("text")
    place = machine().layout.places[name]
    factor = torch.zeros(place.shape, dtype=torch.float64)
    factor[(index, slice(None)) if axis == "rows" else (slice(None), index)] = 1.0
    where = place.rows if axis == "rows" else place.columns
    true = by_scaling(name, group, 1.0, factor.reshape(machine().parameters[name].shape))
    found = rows.units["raw"][where][index]
    assert abs(true) > 1e-7, "else it shows nothing"
    assert found == pytest.approx(true, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("unit", "part", "index"), [("head", "output", 2), ("neuron", "down", 33)])
def test_a_head_and_a_neuron_are_the_columns_that_the_map_gives_them(unit: str, part: str, index: int) -> None:
    checkpoint = open_checkpoint(TINY_MODEL)
    model = map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    parameter, band = next(
        (p, band) for p in model.in_layer(LAYER) for band in p.bands if (band.unit, band.part) == (unit, part)
    )
    group, rows = measured("text")
    place = machine().layout.places[parameter.name]
    columns = band.indices[index].reshape(-1)
    factor = torch.zeros(place.shape, dtype=torch.float64)
    factor[:, torch.from_numpy(columns)] = 1.0
    true = by_scaling(parameter.name, group, B, factor)
    assert rows.units["calibrated"][place.columns][columns].sum() == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", [1.0, B])
def test_the_inverse_temperature_and_the_loss_itself(kind: str, b: float) -> None:
    group, rows = measured(kind)
    which = "raw" if b == 1.0 else "calibrated"
    assert rows.losses[which] == pytest.approx(loss(machine(), [group], b), rel=1e-12)
    true = central(lambda t: loss(machine(), [group], b * np.exp(t)))
    assert rows.tensors(which)[-1] == rows.temperature[which] == pytest.approx(true, rel=1e-6)


def test_a_contrast_is_the_difference_of_two_means() -> None:
    name = "model.layers.2.mlp.gate_proj.weight"
    towards = [Group([item]) for item in documents(STORIES, 2, 16)]
    against = [Group([item], side=1) for item in documents(INVENTORY, 3, 12)]
    groups = towards + against
    grouping = Grouping(np.array([g.weight for g in groups], float), np.array([g.side for g in groups]), np.arange(5))
    rows = np.array([measured_rows(machine(), group, {"raw": 1.0}).tensors("raw") for group in groups])
    parameter = machine().parameters[name]
    weights = parameter.detach().clone()

    def contrast(t: float) -> float:
        with changed(parameter, weights * np.exp(t)):
            one, other = (loss(machine(), side) / sum(g.tokens for g in side) for side in (towards, against))
            return one - other

    place = machine().layout.places[name]
    assert grouping.mean(rows)[place.number] == pytest.approx(central(contrast), rel=1e-5)


def test_padding_and_batches_change_nothing() -> None:
    group, rows = measured("text")
    whole = machine().batch_tokens
    try:
        machine().batch_tokens = 1
        assert len(machine().batches(group)) == 2
        again = measured_rows(machine(), group, LOSSES)
    finally:
        machine().batch_tokens = whole
    for which in LOSSES:
        np.testing.assert_allclose(again.tensors(which), rows.tensors(which), rtol=1e-9, atol=1e-9)


def test_the_padding_token_is_a_token_where_it_stands_in_a_text() -> None:
    """torch gives its row no gradient by itself."""
    padded = double_machine(written("llama"))
    assert padded.model.config.pad_token_id == 0
    group = Group([Sequences(((3, 0, 9, 0, 5),), (1,)), Sequences(((3, 8),), (1,))])
    rows = measured_rows(padded, group, {"raw": 1.0})
    parameter = padded.parameters["model.embed_tokens.weight"]
    weights = parameter.detach().clone()
    factor = torch.zeros(64, 1, dtype=torch.float64)
    factor[0] = 1.0

    def at(t: float) -> float:
        with changed(parameter, weights * torch.exp(t * factor)):
            return loss(padded, [group])

    found = rows.units["raw"][padded.layout.places["model.embed_tokens.weight"].rows]
    assert found[0] == pytest.approx(central(at), rel=1e-5)
    assert np.flatnonzero(found).tolist() == [0, 3, 9]
