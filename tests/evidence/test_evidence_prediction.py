"""Predictions against what really happens: the loss and the divergence of the bundled model, changed in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import a_plan
from scipy.stats import pearsonr

from planner.checkpoint import open_checkpoint
from planner.cli.entry import main
from planner.edits import resolved, surroundings_of
from planner.effects import check, known_evidence, prediction_of
from planner.evidence import write_evidence
from planner.inference import load_documents, load_model, load_tokenizer
from planner.plan import Evidence, EvidenceRef, Plan, Policy, write_plan
from planner.probes import ProbeRequest, probe
from planner.profile import profile_of

TINY = Path(__file__).parents[2] / "examples" / "tiny-model"
TEXTS = TINY / "texts"
DOCUMENTS, MAX_TOKENS = 24, 96
LAYER = "model.layers.{}."


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Evidence on the text that the model knows little of; drift on the one it knows well."""
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(TINY)
    request = ProbeRequest(
        text=TEXTS / "stories.calibration.jsonl",
        goal_text=TEXTS / "inventory.calibration.jsonl",
        documents=DOCUMENTS,
        max_tokens=MAX_TOKENS,
        dtype="float32",
    )
    found = probe(checkpoint, profile_of(checkpoint).fingerprint, request)
    path = tmp_path_factory.mktemp("evidence") / "evidence.json"
    write_evidence(path, found.evidence, found.arrays())
    return path, known_evidence(path)


@pytest.fixture(scope="module")
def machine(known):
    """The model in float64, and the very documents that were measured."""
    _, (evidence, _) = known
    model, tokenizer = load_model(TINY).double(), load_tokenizer(TINY)
    ids = {}
    for text in evidence.texts:
        documents = load_documents(
            TINY.parent.parent / text.file if not Path(text.file).is_absolute() else Path(text.file)
        )
        ids[text.role] = [one[: MAX_TOKENS + 1] for one in encoded(tokenizer, shuffled(documents))]
    return model, ids


def shuffled(documents):
    import random

    order = list(range(len(documents)))
    random.Random(0).shuffle(order)
    return [documents[place] for place in order[:DOCUMENTS]]


def encoded(tokenizer, documents):
    prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [prefix + tokenizer(document, add_special_tokens=False)["input_ids"] for document in documents]


def log_probabilities(model, documents):
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1) for ids in documents]


def loss(rows, documents, inverse_temperature=1.0):
    total = count = 0.0
    for found, ids in zip(rows, documents, strict=True):
        scaled = (found * inverse_temperature).log_softmax(-1)
        total -= float(scaled[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum())
        count += len(ids) - 1
    return total / count


def calibrated(rows, documents):
    from scipy.optimize import minimize_scalar

    return minimize_scalar(lambda b: loss(rows, documents, b), bounds=(0.3, 3), method="bounded").fun


def divergence(before, after):
    total = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True))
    return total / sum(len(p) for p in before)


class Changed:
    """The model with some matrices multiplied, row by row."""

    def __init__(self, model, factors):
        self.model, self.factors = model, factors

    def __enter__(self):
        named = dict(self.model.named_parameters())
        self.kept = {name: named[name].detach().clone() for name in self.factors}
        with torch.no_grad():
            for name, factor in self.factors.items():
                values = torch.as_tensor(factor, dtype=torch.float64)
                named[name] *= values if values.ndim == 0 else values[:, None]
        return self

    def __exit__(self, *_):
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, values in self.kept.items():
                named[name].copy_(values)


def predicted(known, *modifications):
    checkpoint = open_checkpoint(TINY)
    plan = a_plan(TINY, *modifications)
    around = surroundings_of(checkpoint, known[0].parent)
    return prediction_of([resolved(one, around) for one in plan.modifications], around, known[1])


def scale(name, factor, **target):
    """A modification that multiplies a tensor, or some of it."""
    return {"target": {"tensors": [name], **target}, "operation": {"kind": "scale", "factor": factor}}


def test_predictions_of_random_plans_come_true(known, machine):
    """Loss, calibrated loss and drift of plans that scale every matrix at random, of five sizes."""
    model, ids = machine
    generator = np.random.default_rng(5)
    names = [name for name, value in model.named_parameters() if value.ndim == 2]
    before = {role: log_probabilities(model, documents) for role, documents in ids.items()}
    goal = ids["goal"]
    rows, errors, firsts = [], [], []
    for size in (0.01, 0.02, 0.03, 0.02, 0.03, 0.05, 0.1, 0.1):
        logs = generator.normal(0, size, len(names))
        found = predicted(known, *(scale(name, math.exp(log)) for name, log in zip(names, logs, strict=True)))
        with Changed(model, {name: math.exp(log) for name, log in zip(names, logs, strict=True)}):
            after = {role: log_probabilities(model, documents) for role, documents in ids.items()}
        rows.append(
            (
                (found.raw.difference, loss(after["goal"], goal) - loss(before["goal"], goal)),
                (found.calibrated.difference, calibrated(after["goal"], goal) - calibrated(before["goal"], goal)),
                (math.log(found.drift), math.log(divergence(before["drift"], after["drift"]))),
            )
        )
        errors.append(found.raw.se)
        firsts.append(found.raw.first_order)
        assert found.trusted or size > 0.05
        assert found.independent < len(names)
    raw, refitted, kl = (np.array(pairs).T for pairs in zip(*rows, strict=True))
    errors = np.array(errors)
    assert (np.abs(raw[0] - raw[1]) < 3 * errors + 2e-5).all()
    assert (np.abs(refitted[0] - refitted[1]) < 3 * errors + 2e-5).all()
    assert pearsonr(raw[0][:5], raw[1][:5]).statistic > 0.98
    # First order alone says little of a model that predicts well: the curvature is most of it.
    assert np.abs(firsts - raw[1]).sum() > 2 * np.abs(raw[0] - raw[1]).sum()
    assert pearsonr(*kl).statistic > 0.97
    assert np.abs(kl[0] - kl[1]).max() < math.log(2.5)


def test_a_vector_of_factors_and_single_rows_are_predicted(known, machine, tmp_path):
    """Two rows of an MLP by their own modification, and a head: against the measured change."""
    model, ids = machine
    goal = ids["goal"]
    name = LAYER.format(5) + "mlp.down_proj.weight"
    found = predicted(
        known,
        scale(name, 1.3, elements={"kind": "rows", "indices": "3,40-60"}),
        scale(LAYER.format(2) + "mlp.up_proj.weight", 0.9),
    )
    factor = np.ones(96)
    factor[[3, *range(40, 61)]] = 1.3
    before = log_probabilities(model, goal)
    with Changed(model, {name: factor, LAYER.format(2) + "mlp.up_proj.weight": 0.9}):
        after = log_probabilities(model, goal)
    measured = loss(after, goal) - loss(before, goal)
    assert found.raw.difference == pytest.approx(measured, rel=0.25, abs=2e-4)
    assert [item.id for item in found.modifications] == ["m01", "m02"]
    assert sum(item.raw.first_order for item in found.modifications) == pytest.approx(found.raw.first_order)


def test_what_cancels_is_predicted_to_cancel_however_far_it_goes(known):
    up, down = LAYER.format(3) + "mlp.up_proj.weight", LAYER.format(3) + "mlp.down_proj.weight"
    found = predicted(known, scale(up, 2.0), scale(down, 0.5))
    assert abs(found.raw.difference) < 1e-4 * abs(found.modifications[0].raw.difference)
    assert found.drift < 1e-6 * found.modifications[0].drift
    assert found.same == (("m01", "m02"),)
    assert found.independent == 1


def test_an_invariant_edit_counts_for_nothing(known):
    query = LAYER.format(1) + "self_attn.q_proj.weight"
    found = predicted(known, scale(query, 1.5), scale("model.norm.weight", 0.9))
    assert abs(found.modifications[0].raw.difference) < 1e-4
    assert found.independent == 1
    assert found.temperature_share > 0.99
    assert abs(found.calibrated.difference) < 1e-4 < abs(found.raw.difference)


@pytest.mark.parametrize(
    ("modification", "why"),
    [
        (scale("model.norm.weight", 0.0), "a factor of 0 or below, which no small step predicts"),
        (scale("model.norm.weight", -1.0), "a factor of 0 or below, which no small step predicts"),
        ({"target": {"tensors": ["model.norm.weight"]}, "operation": {"kind": "clamp", "maximum": 1.0}}, "no factor"),
    ],
)
def test_what_is_no_small_step_is_not_predicted(known, modification, why):
    found = predicted(known, modification, scale(LAYER.format(0) + "mlp.up_proj.weight", 1.05))
    assert why in found.not_predicted["m01"]
    assert [item.id for item in found.modifications] == ["m02"]
    assert not found.trusted


def test_far_steps_are_predicted_and_not_trusted(known):
    assert not predicted(known, scale(LAYER.format(0) + "mlp.up_proj.weight", 4.0)).trusted
    assert predicted(known, scale(LAYER.format(0) + "mlp.up_proj.weight", 1.1)).trusted


def cited(known, value, *, fact="probe.scale.calibrated", tensor="model.norm.weight", named=True) -> Plan:
    path, (evidence, _) = known
    plan = a_plan(TINY, scale("model.norm.weight", 1.1))
    one = plan.modifications[0].model_copy(update={"evidence": (Evidence(tensor=tensor, fact=fact, value=value),)})
    reference = EvidenceRef(file=path.name, id=evidence.id) if named else None
    return plan.model_copy(update={"modifications": (one,), "evidence": reference})


def checked(plan, folder, **given):
    checkpoint = open_checkpoint(TINY)
    return check(plan, checkpoint, profile_of(checkpoint), Policy(), folder=folder, **given)


def test_cited_measurements_are_compared_with_the_evidence(known, tmp_path):
    path, (evidence, _) = known
    value = next(t for t in evidence.tensors if t.name == "model.norm.weight").scale.calibrated
    assert checked(cited(known, value), path.parent).accepted
    assert checked(cited(known, value), path.parent).prediction is not None
    wrong = checked(cited(known, value + 0.1), path.parent)
    assert [p.code for p in wrong.problems] == ["evidence-mismatch"]
    assert "the evidence says" in wrong.problems[0].message
    for fact, tensor in (("probe.scale.nonsense", "model.norm.weight"), ("probe.by_row", "no.such.weight")):
        assert [p.code for p in checked(cited(known, 1.0, fact=fact, tensor=tensor), path.parent).problems] == [
            "evidence-mismatch"
        ]
    # Named, and not at hand: said, and not taken for a lie. Not named: nothing to compare with.
    away = checked(cited(known, value), tmp_path)
    assert away.accepted
    assert "1 cited measurements were not checked" in away.warnings[0]
    assert [p.code for p in checked(cited(known, value, named=False), tmp_path).problems] == ["evidence-mismatch"]


def test_evidence_of_other_weights_is_refused(known):
    path, (evidence, measured) = known
    other = evidence.checkpoint.model_copy(update={"fingerprint": "blake3:" + "1" * 64})
    stale = (evidence.model_copy(update={"checkpoint": other}), measured)
    report = checked(cited(known, 0.0), path.parent, evidence=stale)
    assert report.problems[0].code == "stale-evidence"
    assert report.prediction is None


def test_check_says_it_on_the_command_line(known, tmp_path, capsys):
    path, _ = known
    plan = tmp_path / "plan.json"
    plan.write_bytes(
        write_plan(a_plan(TINY, scale("model.norm.weight", 0.9), scale(LAYER.format(0) + "mlp.up_proj.weight", 1.05)))
    )
    assert main(["check", str(plan), "--model", str(TINY), "--evidence", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "predicted from the evidence: loss" in shown
    assert "2 modifications are 2 different edits" in shown
    assert main(["check", str(plan), "--model", str(TINY), "--evidence", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prediction"]["trusted"]
    assert main(["check", str(plan), "--model", str(TINY), "--evidence", str(plan)]) == 2
    assert "error[evidence-unusable]" in capsys.readouterr().err
