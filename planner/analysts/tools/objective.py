"""What all tools that rank sensitivities say first, and which of the measured tensors they are asked about."""

from __future__ import annotations

from collections.abc import Iterator

from planner.analysts.aliases import quoted
from planner.analysts.tools.base import Bench, ToolRefused
from planner.analysts.tools.figures import figure
from planner.analysts.tools.selection import role_called
from planner.evidence import EvidenceFile, TensorSensitivity
from planner.evidence.types import EditKind

__all__ = ["about", "measured_of"]

_EACH = {"tensors": "tensor", "units": "row and column"}


def about(evidence: EvidenceFile, kind: EditKind | None) -> Iterator[str]:
    """The loss, and the ceiling of one kind of edit if there is one to tell."""
    objective = evidence.objective
    yield (
        f"objective {objective.kind}: loss {figure(objective.loss)}, calibrated loss "
        f"{figure(objective.calibrated_loss)} at temperature {figure(objective.temperature)}; "
        f"{evidence.groups} groups of documents; negative calibrated: more of it lowers the loss"
    )
    for ceiling in evidence.ceilings:
        if ceiling.kind == kind:
            hopeless = "; NOTHING TO WIN: no search of this kind will find anything" if ceiling.hopeless else ""
            yield (
                f"ceiling of a factor for each {_EACH[kind]}: gain {figure(ceiling.gain)} (se "
                f"{figure(ceiling.gain_se)}) at drift {figure(ceiling.drift)}{hopeless}"
            )


def measured_of(bench: Bench, *, tensor: str | None = None, role: str | None = None) -> list[TensorSensitivity]:
    """The measured tensors of this name and this role. Raises `ToolRefused` where there is none."""
    found, wanted = list(bench.evidence.tensors), None
    if tensor is not None:
        (wanted,) = bench.tensors([tensor])
        found = [one for one in found if one.name == wanted.name]
        if not found:
            why = quoted(bench.evidence.not_measured.get(wanted.name, "it is not in the evidence"), longest=200)
            raise ToolRefused(f"{bench.aliases.shown(wanted.name)} was not measured: {why}")
    if role is not None:
        called = role_called(role, bench)
        if wanted is not None and wanted.role != called:
            shown = bench.aliases.shown(wanted.name)
            raise ToolRefused(f"{shown} is not of the role {bench.roles[called]}; leave one of the two out")
        found = [one for one in found if one.role == called]
        if not found:
            reasons = {bench.evidence.not_measured.get(t.name) for t in bench.brief.profile.tensors if t.role == called}
            reason = bench.told("; ".join(sorted(filter(None, reasons)))) or "they are not in the evidence"
            raise ToolRefused(f"no tensor of the role {bench.roles[called]} was measured: {reason}")
    return found
