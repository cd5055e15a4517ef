"""What forward and backward passes measured: the objective, what can be won at all, and the weights that matter.

What wins most comes first: single rows and columns, then heads and neurons, then whole tensors, then series. Facts are
named as a plan cites them (`evidence.facts`): `probe.scale.calibrated` and the like.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from planner.analysts.aliases import quoted
from planner.analysts.base import Brief
from planner.analysts.picture.budget import Line, Section
from planner.analysts.picture.equal_edits import slopes
from planner.analysts.picture.groups import Groups
from planner.analysts.picture.single_units import single_units
from planner.analysts.picture.wording import Speaker, scientific, token_text, with_error
from planner.evidence import EvidenceFile, Gradient, TensorSensitivity, UnitSensitivity
from planner.words import TokenWeight, UnitWords

__all__ = ["sensitivities"]

_MEASURED, _SINGLE, _UNITS, _TENSORS, _SERIES = 1.1, 1.2, 1.3, 1.4, 3.0
"""Tiers: before the findings (2), but for the series."""
_FIRST = 8
_KEPT = 400
_TOKENS = 2
_COLUMNS = (
    "tensors by gain: probe.scale.calibrated (probe.scale.calibrated_se), stable or not, probe.scale.gain, "
    "probe.by_row, probe.by_column; by_row is the gain of a factor for every row together, judged on documents that "
    "did not choose them (a single row can win more)"
)
_MEANINGS = (
    "values: d loss / d log of a factor (standard error over documents); negative: a factor above 1 lowers the loss; "
    "stable: both halves of the documents agree on the sign; gain: nats off the calibrated loss by a factor from 0.37 "
    "to 2.7; drift: KL divergence from the model as it is on the drift text, nats per token"
)
_CEILINGS = {"tensors": "a factor for each tensor", "units": "a factor for each row and column"}
_HOPELESS = {"tensors": "factors for whole tensors", "units": "steps of many rows and columns at once"}


def sensitivities(brief: Brief, speaker: Speaker, groups: Groups) -> Section:
    """The section on sensitivities; without lines where nothing was measured."""
    heading = "Sensitivities: d loss / d log of a factor, and what follows from it"
    if brief.evidence is None:
        return Section(heading, ())
    evidence = brief.evidence[0]
    facts = [*_measured(evidence), _MEANINGS]
    lines = [Line(f"- {text}", (_MEASURED, 0), "facts of the evidence") for text in facts]
    single, more = single_units(brief, speaker, _SINGLE)
    lines += single
    units = sorted(evidence.units, key=lambda unit: -unit.scale.gain)
    lines += _heads_and_neurons(evidence, units[:_KEPT])
    beyond = {"largest rows and columns": more, "heads and neurons": max(len(units) - _KEPT, 0)}
    if any(ceiling.kind == "tensors" and ceiling.hopeless for ceiling in evidence.ceilings):
        text = "- whole tensors are not listed: the ceiling of a factor for each tensor is too low to be worth a search"
        lines.append(Line(text, (_TENSORS, 0), "facts of the evidence"))
    else:
        lines += _tensors(evidence, speaker)
        beyond["sensitive tensors"] = max(len(evidence.tensors) - _KEPT, 0)
    lines += slopes(evidence, groups, _SERIES)
    return Section(heading, lines, beyond)


def _measured(evidence: EvidenceFile) -> Iterator[str]:
    found = evidence.objective
    kind = {
        "text": "nats per token of the goal text",
        "contrast": "nats per token of the goal text minus those of the text against it",
        "choice": "nats per question, of the right answer among the choices",
    }[found.kind]
    yield (
        f"objective ({kind}): loss {scientific(found.loss)} raw, {scientific(found.calibrated_loss)} calibrated, that "
        f"is at its best temperature {scientific(found.temperature)}"
    )
    if found.accuracy is not None:
        yield f"accuracy {scientific(found.accuracy)}, margin {scientific(found.margin)} nats"
    # The name alone: where a file lies on this machine is nobody else's business.
    texts = [
        f"{text.role} {quoted(Path(text.file).name)}: {text.documents} documents, {text.tokens:,} tokens"
        for text in evidence.texts
    ]
    yield f"measured on {'; '.join(texts)}"
    for ceiling in evidence.ceilings:
        # Of this kind alone: one row may win much where all tensors as wholes win nothing.
        hopeless = f"; {_HOPELESS[ceiling.kind]} are not worth a search" if ceiling.hopeless else ""
        yield (
            f"ceiling of one step of {_CEILINGS[ceiling.kind]}: {with_error(ceiling.gain, ceiling.gain_se)} nats off "
            f"the calibrated loss, at a drift of {scientific(ceiling.drift)}{hopeless}"
        )
    gauge, stability = evidence.gauge, evidence.stability
    yield (
        f"of {gauge.tensors} scales of whole tensors {gauge.independent} are different edits (at most "
        f"{gauge.at_most} can show)"
    )
    yield (
        f"two halves of the documents: correlation {scientific(stability.correlation)}, the same sign for "
        f"{scientific(stability.sign_agreement)} of the tensors"
    )


def _heads_and_neurons(evidence: EvidenceFile, units: Sequence[UnitSensitivity]) -> Iterator[Line]:
    words = {(found.kind, found.layer, found.index, found.expert): found for found in evidence.words}
    for number, unit in enumerate(units):
        text = _unit(unit, words.get((unit.kind, unit.layer, unit.index, unit.expert)))
        yield Line(f"- {text}", (_UNITS, number) if number < _FIRST else (4, 1.8, number), "heads and neurons")


def _unit(unit: UnitSensitivity, words: UnitWords | None) -> str:
    where = "" if unit.layer is None else f"layer {unit.layer} "
    expert = "" if unit.expert is None else f"expert {unit.expert} "
    said = f"{where}{expert}{unit.kind} {unit.index}: {_slope(unit.scale)}, gain {scientific(unit.scale.gain)}"
    for verb, tokens in _lists(words) if words else ():
        said += f"; {verb} {' '.join(token_text(token.text, token.id) for token in tokens[:_TOKENS])}"
    return said


def _lists(words: UnitWords) -> Iterator[tuple[str, tuple[TokenWeight, ...]]]:
    found = {"promotes": words.promotes, "suppresses": words.suppresses, "reads": words.reads_most}
    return ((verb, tokens) for verb, tokens in found.items() if tokens)


def _tensors(evidence: EvidenceFile, speaker: Speaker) -> Iterator[Line]:
    """The tensors by gain. Of those that are one and the same edit the first names the others, which wait behind."""
    ranked = sorted(evidence.tensors, key=lambda one: (-one.scale.gain, -max(one.by_row, one.by_column)))
    alike: dict[str, list[TensorSensitivity]] = {}
    for tensor in ranked:
        alike.setdefault(_edit(tensor), []).append(tensor)
    yield Line(f"- {_COLUMNS}:", (_TENSORS, -1), "facts of the evidence")
    shown = 0
    for number, tensor in enumerate(ranked[:_KEPT]):
        first, *others = alike[_edit(tensor)]
        text = f"  {_tensor(tensor, speaker)}"
        if first is tensor and others:
            text += f"; the same edit: {', '.join(_beside(other, tensor, speaker) for other in others)}"
        ahead = first is tensor and shown < _FIRST
        shown += ahead
        yield Line(text, (_TENSORS, number) if ahead else (4, 1.7, number), "sensitive tensors")


def _edit(tensor: TensorSensitivity) -> str:
    """What tells the edit of scaling a tensor from others: slope and error to three digits, where there is a step."""
    scale = tensor.scale
    known = scale.step is not None and scale.calibrated_se is not None
    return f"{scale.calibrated:.2e} {scale.calibrated_se:.2e} {scale.curvature:.2e}" if known else f"={tensor.name}"


def _beside(other: TensorSensitivity, tensor: TensorSensitivity, speaker: Speaker) -> str:
    """What another tensor is called next to one: its role, where that is one of known words and of the same layer."""
    near = other.layer is not None and other.layer == tensor.layer and other.role != tensor.role
    return other.role if near and not speaker.hides(other.name) else speaker.name(other.name)


def _tensor(tensor: TensorSensitivity, speaker: Speaker) -> str:
    rest = (tensor.scale.gain, tensor.by_row, tensor.by_column)
    return f"{speaker.name(tensor.name)} {_slope(tensor.scale)}, {' '.join(map(scientific, rest))}"


def _slope(scale: Gradient) -> str:
    stable = {True: "stable", False: "NOT stable", None: "stability unknown"}[scale.stable]
    return f"{with_error(scale.calibrated, scale.calibrated_se)} {stable}"
