"""From the JSON of a plan to the bytes of a new checkpoint, with the transaction around it and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from builders import a_plan
from safetensors.torch import load_file

from planner.checkpoint import open_checkpoint
from planner.edits import ModificationEdits, TensorEdit, Unresolved, combined, resolved, surroundings_of
from planner.plan import Policy, decide
from planner.transaction import apply_plan

__all__ = ["ANY", "applied", "changed", "resolution", "rewritten", "stored", "unresolved"]

_FORMS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ANY = Policy(largest_relative_change=1e30, largest_total_change=1e30)


def applied(model: Path, *modifications: dict[str, Any], out: Path | None = None, folder: Path | None = None) -> Path:
    """The checkpoint after the modifications, all approved, in a new folder beside the model."""
    plan = a_plan(model, *modifications, policy=ANY)
    plan = decide(plan, [modification.id for modification in plan.modifications], "approved", reviewer="tester")
    out = out or model.parent / "out"
    apply_plan(plan, model, out=out, policy=ANY, by="tester", folder=folder or model.parent)
    return out


def stored(model: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, as safetensors' own reader gives it."""
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(model.glob("*.safetensors")):
        found |= load_file(shard)
    return found


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ, or are new."""
    return {name for name, new in after.items() if name not in before or not torch.equal(before[name], new)}


def resolution(model: Path, modification: dict[str, Any], folder: Path | None = None) -> ModificationEdits:
    """What one modification means for the checkpoint."""
    (read,) = a_plan(model, modification).modifications
    return resolved(read, surroundings_of(open_checkpoint(model), folder or model.parent))


def unresolved(model: Path, modification: dict[str, Any], folder: Path | None = None) -> Unresolved:
    """Why it means nothing."""
    try:
        resolution(model, modification, folder)
    except Unresolved as error:
        return error
    raise AssertionError("it was resolved")


def rewritten(model: Path, *modifications: dict[str, Any], folder: Path | None = None) -> dict[str, torch.Tensor]:
    """Every tensor after the modifications, as `apply` would store it; nothing is written."""
    checkpoint = open_checkpoint(model)
    around = surroundings_of(checkpoint, folder or model.parent)
    plan = a_plan(model, *modifications)
    found = stored(model)
    for name, edit in combined([resolved(m, around) for m in plan.modifications], around).tensors.items():

        def blocks(edit: TensorEdit = edit) -> Iterator[Any]:
            return map(edit.dtype.patterns, checkpoint.chunks(edit.tensor))

        parts = edit.rewrite(edit.zeros if edit.added else blocks)
        raw = bytearray(b"".join(part.tobytes() for part in parts))
        found[name] = torch.frombuffer(raw, dtype=_FORMS[edit.dtype.name]).reshape(edit.tensor.shape)
    return found
