"""Sampled scores against the exact Fisher matrix from Jacobians, and against the KL divergence of real steps."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probing import (
    STORIES,
    TINY_MODEL,
    changed,
    double_machine,
    exact,
    measured_rows,
    probed,
    scale_of,
    written,
)

from planner.evidence import Sides
from planner.probes.losses import batches_of, derivative
from planner.probes.measuring import Machine
from planner.probes.tasks import Group, Sequences, load_source, text_groups

DRAWS = 90
IDS = tuple(int(n) for n in np.random.default_rng(3).permutation(64)[:9])


@functools.cache
def machine() -> Machine:
    return double_machine(written("llama"))


TEXT = Sequences((IDS,), (1,))
QUESTION = Sequences(((*IDS[:4], 7, 8), (*IDS[:4], 9, 1), (*IDS[:4], 30, 31)), (4, 4, 4), answer=1)
# So hot that no choice is rare: what is seldom drawn takes many draws to average out.
INVERSE = {TEXT: 0.7, QUESTION: 0.1}


def logits_of(item: Sequences) -> torch.Tensor:
    """What the labels of an item are drawn from at temperature one, [labels, classes]."""
    with torch.no_grad(), exact():
        if item.answer is None:
            return machine().model(input_ids=torch.tensor([item.ids[0][:-1]])).logits[0]
        scores = []
        for ids, start in zip(item.ids, item.scored_from, strict=True):
            log_p = (INVERSE[item] * machine().model(input_ids=torch.tensor([ids])).logits[0]).log_softmax(-1)
            scores.append(sum(log_p[place - 1, ids[place]] for place in range(start, len(ids))))
        return torch.stack(scores)[None]


@functools.cache
def jacobian(item: Sequences) -> np.ndarray:
    """[labels, classes, tensors]: by the log scale of each tensor, by central differences."""
    found = []
    for parameter in machine().parameters.values():
        weights = parameter.detach().clone()
        with changed(parameter, weights * np.exp(1e-5)):
            up = logits_of(item)
        with changed(parameter, weights * np.exp(-1e-5)):
            found.append((up - logits_of(item)) / 2e-5)
    return torch.stack(found, dim=-1).numpy()


def fisher(item: Sequences) -> np.ndarray:
    """Σ Jᵀ (diag p - p pᵀ) J over the labels, at the inverse temperature of the item."""
    scale = INVERSE[item] if item.answer is None else 1.0  # the scores of choices were taken at it
    p = (scale * logits_of(item)).softmax(-1).numpy()
    rows = scale * jacobian(item)
    centred = rows - np.einsum("lc,lcn->ln", p, rows)[:, None]
    return np.einsum("lc,lcn,lcm->nm", p, centred, centred)


@functools.cache
def scores(item: Sequences) -> np.ndarray:
    """[draws, tensors]."""
    count = machine().layout.tensors
    return np.array(
        [
            measured_rows(machine(), Group([item]), {"fisher": INVERSE[item]}, n).tensors("fisher")[:count]
            for n in range(DRAWS)
        ]
    )


@pytest.mark.parametrize("item", [TEXT, QUESTION], ids=["text", "question"])
def test_the_second_moment_of_sampled_scores_is_the_fisher_matrix(item: Sequences) -> None:
    drawn, true = scores(item), fisher(item)
    sizes = np.sqrt(np.diag(true))
    assert (sizes > 1e-3).sum() > 10, "else there is nothing to compare"
    used = sizes > 1e-3
    whitened = (drawn[:, used] / sizes[used]).T @ (drawn[:, used] / sizes[used]) / DRAWS
    # Of a product of two standard normal variables the standard deviation is at most the square root of two; the tails
    # of scores of few labels are heavier.
    expected = (true / np.outer(sizes, sizes).clip(1e-12))[np.ix_(used, used)]
    assert np.abs(whitened - expected).max() < 6 * np.sqrt(2 / DRAWS)
    assert np.trace(whitened) == pytest.approx(used.sum(), rel=0.35)
    assert np.abs(drawn[:, used].mean(axis=0) / sizes[used]).max() < 4.5 / np.sqrt(DRAWS), "scores have mean zero"


def test_the_kl_divergence_of_a_small_step_is_half_the_quadratic_form() -> None:
    step = np.random.default_rng(1).normal(0, 2e-3, machine().layout.tensors)
    parameters = list(machine().parameters.values())
    kept = [parameter.detach().clone() for parameter in parameters]
    before = (INVERSE[TEXT] * logits_of(TEXT)).log_softmax(-1)
    try:
        with torch.no_grad():
            for parameter, values, log in zip(parameters, kept, step, strict=True):
                parameter.copy_(values * np.exp(log))
        after = (INVERSE[TEXT] * logits_of(TEXT)).log_softmax(-1)
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)
    kl = float((before.exp() * (before - after)).sum())
    assert kl == pytest.approx(0.5 * step @ fisher(TEXT) @ step, rel=0.05)
    sampled = 0.5 * (scores(TEXT) @ step) ** 2
    assert abs(sampled.mean() - kl) < 4 * sampled.std() / np.sqrt(DRAWS)


@given(
    st.lists(st.sampled_from([0.0, 1e-12, 0.3, 2.0, 7.0]), min_size=2, max_size=9).filter(lambda w: sum(w) > 0.1),
    st.sampled_from([2.0**-24, 0.25, 0.5, 1 - 2.0**-24, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_token_without_probability_is_ever_drawn(weights: list[float], draw: float) -> None:
    item = Sequences(((0, 0),), (1,))
    (batch,) = batches_of([item], 10, torch.device("cpu"))
    p = torch.tensor(weights, dtype=torch.float64)
    logits = (p / p.sum()).log().clamp_min(-1e4)[None]
    found = derivative(logits, batch, 1.0, torch.tensor([draw]))
    label = int((found.by_logits[0] - p / p.sum()).argmin())
    assert weights[label] > 0
    below, upto = float((p / p.sum())[:label].sum()), float((p / p.sum())[: label + 1].sum())
    assert below - 1e-12 <= draw <= upto + 1e-12


def test_temperature_is_no_knowledge() -> None:
    """The final norm's weight scales the logits: sensitive raw, and nothing is left of it calibrated."""
    evidence = probed().evidence
    found = scale_of(probed(), "model.norm.weight")
    others = [t.scale for t in evidence.tensors if t.name != "model.norm.weight"]
    assert abs(found.raw) > 1e-4
    assert found.drift > 10 * max(other.drift for other in others if other.drift < found.drift / 10)
    assert abs(found.calibrated) < 1e-3 * max(abs(other.calibrated) for other in others)
    assert found.curvature < 1e-6 * max(other.curvature for other in others)
    assert (found.step, found.gain) == (None, 0.0)


def test_predicted_drift_is_the_kl_of_a_real_step() -> None:
    """On the documents that were measured, through the whole probe: within the error of so few sampled labels."""
    from planner.inference import load_model, load_tokenizer

    found = probed()
    model, tokenizer = load_model(TINY_MODEL), load_tokenizer(TINY_MODEL)
    groups = text_groups(
        load_source(STORIES).documents, tokenizer, context=256, max_tokens=24, most=8, groups=256, seed=0
    )
    inputs = torch.tensor([group.items[0].ids[0][:-1] for group in groups])
    parameters = dict(model.named_parameters())
    for name in ("model.layers.5.mlp.down_proj.weight", "model.norm.weight", "model.layers.0.self_attn.v_proj.weight"):
        number = found.measured.layout.places[name].number
        with torch.no_grad():
            before = model(input_ids=inputs).logits.double().log_softmax(-1)
            with changed(parameters[name], parameters[name] * 1.02):
                after = model(input_ids=inputs).logits.double().log_softmax(-1)
        kl = float((before.exp() * (before - after)).sum()) / sum(group.tokens for group in groups)
        drift = 0.5 * np.log(1.02) ** 2 * scale_of(found, name).drift
        rows = found.measured.sets["fisher_drift"].tensors[:, number]
        error = np.std(rows**2) / np.mean(rows**2) / np.sqrt(len(rows))
        assert drift == pytest.approx(kl, rel=max(4 * error, 0.5)), name
    assert Sides.of(found.measured).tensors.fisher_drift.shape == (8, len(found.evidence.tensors))
