"""predicted_change: what the evidence predicts of a draft, without running the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from planner.analysts.tools.base import Bench, ToolRefused
from planner.analysts.tools.draft import Drafts, DraftTool, checked, problem_lines
from planner.analysts.tools.draft_words import phrase_of
from planner.analysts.tools.figures import figure, row
from planner.evidence.prediction import PredictedChange, Prediction
from planner.plan import Plan
from planner.records import Record

__all__ = ["PredictLoss"]

_MUCH_DRIFT = 0.01


class PredictLoss(DraftTool[Drafts]):
    """The predicted change of the loss, raw and calibrated (what remains once the temperature is refitted), and the
    drift, of some modifications together and each by itself. Only scales and shifts can be predicted."""

    name: ClassVar[str] = "predicted_change"
    Arguments: ClassVar[type[Record]] = Drafts
    less: ClassVar[str] = "ask about fewer modifications"

    def available(self, bench: Bench) -> bool:
        """Whether anything was measured to predict from."""
        return bench.brief.evidence is not None

    def run(self, arguments: Drafts, bench: Bench) -> str:
        """The whole, then a line for each modification."""
        found = checked(arguments.modifications, bench)
        prediction = found.report.prediction
        problems = [*problem_lines(found, bench, grounds=False)]
        if prediction is None:
            raise ToolRefused("\n".join(["nothing can be predicted", *problems]))
        return "\n".join([*_lines(prediction, found.plan, bench), *problems])


def _lines(prediction: Prediction, plan: Plan, bench: Bench) -> Iterator[str]:
    phrases = {modification.id: phrase_of(modification, bench) for modification in plan.modifications}
    trusted = "trusted" if prediction.trusted else "NOT trusted"
    yield f"{trusted}: {bench.told(prediction.why)}"
    count = len(prediction.modifications)
    if count:
        yield "nats a token (or a question), negative is better:"
        yield f"raw loss {_change(prediction.raw)}"
        yield f"calibrated loss {_change(prediction.calibrated)}"
        yield (
            f"drift {figure(prediction.drift)} (se {figure(prediction.drift_se)}); a change of temperature would do "
            f"{figure(prediction.temperature_share)} of it too, as a share from 0 to 1"
        )
        yield from _drift(prediction)
        edits = "1 different edit" if prediction.independent == 1 else f"{prediction.independent} different edits"
        yield f"{edits} among {count} modification{'s' if count > 1 else ''} that can be predicted"
        for same in prediction.same:
            cancels = ", and together they change nothing" if same in prediction.cancelling else ""
            yield f"the same edit up to its size: {', '.join(same)}{cancels}"
        yield row("id", "what", "raw", "se", "calibrated", "se", "drift")
    for one in prediction.modifications:
        changes = (one.raw.difference, one.raw.se, one.calibrated.difference, one.calibrated.se, one.drift)
        yield row(one.id, phrases[one.id], *map(figure, changes))
    for name, why in prediction.not_predicted.items():
        yield f"{name} {phrases[name]}: left out: {bench.told(why)}"


def _drift(prediction: Prediction) -> Iterator[str]:
    """What is much drift in itself, however well it is predicted."""
    if prediction.drift > _MUCH_DRIFT:
        worst = max(prediction.modifications, key=lambda one: one.drift)
        yield (
            f"MUCH DRIFT: the model moves by {figure(prediction.drift)} nats a token on neutral text, above "
            f"{_MUCH_DRIFT:g}; {worst.id} alone moves it by {figure(worst.drift)}"
        )


def _change(change: PredictedChange) -> str:
    return (
        f"{figure(change.difference)} (se {figure(change.se)}): first order {figure(change.first_order)}, "
        f"curvature {figure(change.curvature)}"
    )
