"""preview_modification: what one modification would do to the bits and to the model, before it is proposed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from planner.analysts.tools.base import Bench
from planner.analysts.tools.draft import Draft, DraftTool, checked, problem_lines, proof
from planner.analysts.tools.figures import figure, row
from planner.effects import CheckedTensor
from planner.records import Record

__all__ = ["PreviewModification"]

_USUAL, _MOST = 20, 60
_COLUMNS = (
    *("name", "effect", "changed share (elements)", "realised scale", "spread", "relative change"),
    *("rms", "abs_max", "std", "zeros made", "made infinite or NaN"),
)


class Previewed(Record):
    """One modification."""

    modification: Draft
    """The modification, with target and operation at least."""
    most: int | None = Field(default=None, ge=1, le=_MOST)
    """How many tensors to show, 1 to 60; null for 20."""


class PreviewModification(DraftTool[Previewed]):
    """What one modification would do: its effect on the model with the proof, the exact statistics of each tensor
    before and after, and every problem that would refuse it."""

    name: ClassVar[str] = "preview_modification"
    Arguments: ClassVar[type[Record]] = Previewed
    less: ClassVar[str] = "lower most, or target fewer tensors"

    def run(self, arguments: Previewed, bench: Bench) -> str:
        """Effect, problems, then a line for each tensor."""
        found = checked([arguments.modification], bench)
        report, lines = found.report, [*problem_lines(found, bench, grounds=False)]
        for one in report.modifications:
            lines += [f"effect: {one.effect}", *proof(report, one.why, one.notes, bench)]
            shown = one.tensors[: arguments.most or _USUAL]
            lines.append(
                f"{len(shown)} of {len(one.tensors)} tensors that it reaches; relative change of the whole checkpoint "
                f"{figure(report.total_change)}; before > after, exact"
            )
            lines.append(row(*_COLUMNS))
            lines += [_line(tensor, bench) for tensor in shown]
        return "\n".join(lines)


def _line(tensor: CheckedTensor, bench: Bench) -> str:
    before, after = tensor.before, tensor.after
    return row(
        bench.aliases.shown(tensor.name),
        tensor.effect,
        f"{figure(tensor.changed_fraction)} ({tensor.changed_elements})",
        *map(figure, (tensor.realised_scale, tensor.scale_spread, tensor.relative_change)),
        *(f"{figure(getattr(before, name))} > {figure(getattr(after, name))}" for name in ("rms", "abs_max", "std")),
        str(tensor.zeros_made),
        str(tensor.broken_elements),
    )
