"""Evidence for people: how well the model does, what could be won at best, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.evidence import EvidenceFile, Gradient, UnitSensitivity

__all__ = ["show_evidence"]

_MOST = 16
_MOST_UNITS = 6
_FAR = 1.0


def show_evidence(evidence: EvidenceFile, screen: Screen, *, every: bool = False) -> None:
    """The loss, the ceilings, then tensors, heads and neurons, those with the largest gains first."""
    from planner.words import sentence

    _objective(evidence, screen)
    _ceilings(evidence, screen)
    screen.show()
    ordered = sorted(evidence.tensors, key=lambda tensor: -tensor.scale.gain)
    shown = ordered if every else ordered[:_MOST]
    rows = [
        (
            tensor.name,
            f"{tensor.scale.raw:+.1e}",
            f"{tensor.scale.calibrated:+.1e}",
            "-" if tensor.scale.calibrated_se is None else f"{tensor.scale.calibrated_se:.0e}",
            _factor(tensor.scale),
            f"{tensor.scale.gain:.1e}",
            f"{max(tensor.by_row, tensor.by_column):.1e}",
            f"{tensor.scale.drift:.1e}",
        )
        for tensor in shown
    ]
    headings = ("tensor", "raw", "calibrated", "± se", "factor", "gain", "by row", "drift")
    screen.table(headings, rows, left=1, spare=("drift", "raw", "by row", "± se"))
    more = len(ordered) - len(shown)
    if more:
        screen.show(f"{more} more tensors with smaller gains (--all lists them)")
    screen.prose(
        "raw, calibrated: d loss / d log of a factor on the whole tensor, without and with refitted temperature; "
        "factor: the best one. gain: nats that this factor alone would take off the calibrated loss, predicted; by "
        "row: a factor for each row or column, judged on documents that did not choose it. drift: twice the KL of a "
        "step of one.",
        indent=0,
    )
    said = {(w.kind, w.layer, w.index, w.expert): sentence(w) for w in evidence.words}
    for kind in ("head", "neuron"):
        units = [unit for unit in evidence.units if unit.kind == kind][:_MOST_UNITS]
        if units:
            screen.show()
            screen.show(f"{kind}s with the largest gains:")
        for unit in units:
            screen.show(f"  {_unit(unit)}")
            if words := said.get((unit.kind, unit.layer, unit.index, unit.expert)):
                screen.prose(words.partition(f"layer {unit.layer} ")[2] or words, indent=6)
    if evidence.not_measured:
        screen.show()
        for name, why in list(evidence.not_measured.items())[:_MOST_UNITS]:
            screen.show(f"not measured: {name}: {why}")
        if len(evidence.not_measured) > _MOST_UNITS:
            screen.show(f"and {len(evidence.not_measured) - _MOST_UNITS} more")


def _objective(evidence: EvidenceFile, screen: Screen) -> None:
    goal = evidence.objective
    unit = "a question" if goal.kind == "choice" else "a token"
    roles: dict[tuple[int, str], list[str]] = {}
    for text in evidence.texts:
        roles.setdefault((text.documents, text.file), []).append(text.role)
    screen.prose(
        "measured on " + ", ".join(f"{count} of {file} ({', '.join(used)})" for (count, file), used in roles.items()),
        indent=0,
    )
    screen.show(
        f"loss {goal.loss:.4f} nats {unit}; {goal.calibrated_loss:.4f} at its best temperature, {goal.temperature:.3f}"
    )
    if goal.accuracy is not None:
        screen.show(f"right answers: {goal.accuracy:.1%}; margin {goal.margin:+.3f} nats")
    stability = evidence.stability
    if stability.correlation is not None and stability.sign_agreement is not None:
        screen.show(
            f"two halves of the documents agree with r = {stability.correlation:.2f} and on "
            f"{stability.sign_agreement:.0%} of the signs"
        )
    gauge = evidence.gauge
    screen.prose(
        f"{gauge.tensors} tensors, whose scales are {'at least ' if gauge.independent == gauge.at_most else ''}"
        f"{gauge.independent} different edits"
        + (", a change of temperature among them" if gauge.temperature_within else ""),
        indent=0,
    )


def _ceilings(evidence: EvidenceFile, screen: Screen) -> None:
    names = {"tensors": "one factor a tensor", "units": "one factor a row or column"}
    for ceiling in evidence.ceilings:
        error = "" if ceiling.gain_se is None else f" ± {ceiling.gain_se:.4f}"
        line = f"ceiling, {names[ceiling.kind]}: {ceiling.gain:.4f}{error} nats (drift {ceiling.drift:.3f})"
        screen.show(line + (": NOTHING TO WIN" if ceiling.hopeless else ""))


def _with_error(value: float, error: float | None) -> str:
    return f"{value:+.1e}" + ("" if error is None else f" ± {error:.0e}")


def _factor(gradient: Gradient) -> str:
    import math

    if gradient.step is None:
        return "-"
    if abs(gradient.step) > _FAR:  # farther than the second order tells anything
        return ">e" if gradient.step > 0 else "<1/e"
    factor = f"{math.exp(gradient.step):.3g}"
    return factor + ("" if gradient.stable is not False else " ?")


def _unit(unit: UnitSensitivity) -> str:
    where = "" if unit.layer is None else f" of layer {unit.layer}"
    where += "" if unit.expert is None else f", expert {unit.expert}"
    return (
        f"{unit.kind} {unit.index}{where}: {_with_error(unit.scale.calibrated, unit.scale.calibrated_se)}, best factor "
        f"{_factor(unit.scale)}, gain {unit.scale.gain:.1e}"
    )
