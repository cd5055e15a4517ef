"""What forward and backward passes measured: the objective, what can be won at all, and the weights that matter.

Facts are named as a plan cites them (`evidence.facts`): `probe.scale.calibrated` and the like.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from planner.analysts.aliases import quoted
from planner.analysts.picture.budget import Line, Section
from planner.analysts.picture.groups import Groups
from planner.analysts.picture.series import line_of, spread
from planner.analysts.picture.wording import Speaker, scientific
from planner.evidence import EvidenceFile, Gradient, TensorSensitivity, UnitSensitivity
from planner.words import TokenWeight, UnitWords

__all__ = ["sensitivities"]

_FIRST = 12
_FIRST_UNITS = 8
_KEPT = 400
_TOKENS = 3
_UNITS = 3
_LONGEST_TOKEN = 24
_COLUMNS = (
    "tensors by predicted gain: probe.scale.calibrated (probe.scale.calibrated_se), stable or not between halves of "
    "the documents, then probe.scale.curvature .step .gain, probe.by_row, probe.by_column"
)


def sensitivities(evidence: EvidenceFile, speaker: Speaker, groups: Groups) -> Section:
    """The section on sensitivities."""
    lines = [Line(f"- {text}", (1.5, 0), "facts of the evidence") for text in _measured(evidence)]
    lines.append(Line(f"- {_COLUMNS}:", (2.5, 0), "facts of the evidence"))
    ranked = sorted(evidence.tensors, key=lambda tensor: -_gain(tensor))
    lines += [
        Line(
            f"  {_tensor(tensor, speaker)}",
            (2.5, 1, number) if number < _FIRST else (4, 1.7, number),
            "sensitive tensors",
        )
        for number, tensor in enumerate(ranked[:_KEPT])
    ]
    lines += [
        Line(f"- {speaker.name(tensor.name)}: {told}", (3.4, number), "tensors with their largest rows and columns")
        for number, tensor in enumerate(ranked[:_FIRST])
        if (told := _rows_and_columns(tensor))
    ]
    words = {(found.kind, found.layer, found.index, found.expert): found for found in evidence.words}
    units = sorted(evidence.units, key=lambda unit: -unit.scale.gain)
    lines += [
        Line(
            f"- {_unit(unit, words.get((unit.kind, unit.layer, unit.index, unit.expert)))}",
            (3.2, number) if number < _FIRST_UNITS else (4, 1.8, number),
            "heads and neurons",
        )
        for number, unit in enumerate(units[:_KEPT])
    ]
    lines += _series(evidence, groups)
    beyond = {
        "sensitive tensors": max(len(ranked) - _KEPT, 0),
        "heads and neurons": max(len(units) - _KEPT, 0),
    }
    return Section("Sensitivities: d loss / d log of a factor, and what follows from it", lines, beyond)


def _gain(tensor: TensorSensitivity) -> float:
    return max(tensor.scale.gain, tensor.by_row, tensor.by_column)


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
        each = "a factor for each tensor" if ceiling.kind == "tensors" else "a factor for each row and column"
        hopeless = "; NOTHING TO WIN this way" if ceiling.hopeless else ""
        yield (
            f"ceiling of one step of {each}: {_with_error(ceiling.gain, ceiling.gain_se)} nats off the calibrated "
            f"loss, at a drift of {scientific(ceiling.drift)} nats per token{hopeless}"
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


def _tensor(tensor: TensorSensitivity, speaker: Speaker) -> str:
    scale = tensor.scale
    rest = (scale.curvature, scale.step, scale.gain, tensor.by_row, tensor.by_column)
    return f"{speaker.name(tensor.name)} {_slope(scale)}, {' '.join(map(scientific, rest))}"


def _rows_and_columns(tensor: TensorSensitivity) -> str:
    facts = [(f"probe.row.{unit.index}", unit) for unit in tensor.top_rows[:_UNITS] if tensor.by_row > 0]
    facts += [(f"probe.column.{unit.index}", unit) for unit in tensor.top_columns[:_UNITS] if tensor.by_column > 0]
    return ", ".join(f"{fact} {_with_error(unit.calibrated, unit.calibrated_se)}" for fact, unit in facts)


def _unit(unit: UnitSensitivity, words: UnitWords | None) -> str:
    where = "" if unit.layer is None else f"layer {unit.layer} "
    expert = "" if unit.expert is None else f"expert {unit.expert} "
    said = f"{where}{expert}{unit.kind} {unit.index}: {_slope(unit.scale)}, gain {scientific(unit.scale.gain)}"
    for verb, tokens in _lists(words) if words else ():
        said += f"; {verb} {' '.join(_token(token) for token in tokens[:_TOKENS])}"
    return said


def _lists(words: UnitWords) -> Iterator[tuple[str, tuple[TokenWeight, ...]]]:
    found = {"promotes": words.promotes, "suppresses": words.suppresses, "reads": words.reads_most}
    return ((verb, tokens) for verb, tokens in found.items() if tokens)


def _token(token: TokenWeight) -> str:
    return f"#{token.id}" if token.text is None else quoted(token.text, longest=_LONGEST_TOKEN)


def _slope(scale: Gradient) -> str:
    stable = {True: "stable", False: "NOT stable", None: "stability unknown"}[scale.stable]
    return f"{_with_error(scale.calibrated, scale.calibrated_se)} {stable}"


def _with_error(value: float, error: float | None) -> str:
    return f"{scientific(value)} ({'no error known' if error is None else scientific(error)})"


def _series(evidence: EvidenceFile, groups: Groups) -> Iterator[Line]:
    """`probe.scale.calibrated` over the layers of each role."""
    fact = "probe.scale.calibrated"
    known = {tensor.name: tensor.scale.calibrated for tensor in evidence.tensors}
    for group in groups.layered:
        values = [known.get(tensor.name) for tensor in group.tensors]
        there = [value for value in values if value is not None]
        if there and not group.of_experts:
            # The largest sensitivity says most; the spread would favour noise around zero.
            priority = (3.0, -max(map(abs, there)), -spread(there))
            yield Line(line_of(group, fact, values, groups.layers), priority, f"series of {fact}")
