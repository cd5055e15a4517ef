"""`planner log`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelArgument

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.plan import Plan
    from planner.transaction import Ledger, Receipt


def command(
    model: ModelArgument,
    patch: Annotated[int | None, typer.Option(metavar="N", help="All that is known of this one patch.")] = None,
    as_json: Json = False,
) -> None:
    """The history of a checkpoint: who applied which plan, when, what it changed, and what an evaluation found."""
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at
    from planner.cli.log_table import show_history
    from planner.transaction import read_ledger
    from planner.transaction.seal import seal_holds

    screen = Screen(as_json=as_json)
    path = locate(model)
    ledger = read_ledger(path)
    if ledger is None:
        checkpoint_at(model)  # a folder that is no checkpoint is an error, not an empty history
    if ledger is not None and not seal_holds(ledger):
        screen.say(
            "DAMAGED: the ledger is not as it was written (its seal does not hold), so what follows may not be so; "
            f"`planner verify {shlex.quote(str(path))}` compares it with the rest"
        )
    if patch is not None:
        _one_patch(path, ledger, patch, screen)
        return
    if ledger is None:
        screen.emit({"schema": "planner/log@1", "path": str(path), "events": [], "in_force": []})
        screen.show(f"{path} has no history: no patch was ever applied to it")
        return
    screen.emit(
        {
            "schema": "planner/log@1",
            "path": str(path),
            "parent": ledger.parent.model_dump(mode="json") if ledger.parent else None,
            "original_fingerprint": ledger.original.fingerprint,
            "current_fingerprint": ledger.current.fingerprint,
            "in_force": list(ledger.in_force),
            "seal_holds": seal_holds(ledger),
            "events": [event.model_dump(mode="json") for event in ledger.events],
        }
    )
    show_history(ledger, screen)


def _one_patch(path: Path, ledger: Ledger | None, number: int, screen: Screen) -> None:
    """Raises `PatchMissing` for a patch that the history does not hold, and `LedgerDamaged`."""
    from planner.cli.log_table import show_patch
    from planner.errors import PatchMissing

    events = [event for event in ledger.events if event.patch == number] if ledger else []
    if ledger is None or not any(event.kind == "applied" for event in events):
        raise PatchMissing(f"the history of {path} holds no patch {number}", hint="`planner log MODEL` lists them")
    plan, receipt = _recorded(path, number)
    screen.emit(
        {
            "schema": "planner/patch-log@1",
            "path": str(path),
            "patch": number,
            "in_force": number in ledger.in_force,
            "plan": plan.model_dump(mode="json"),
            "receipt": receipt.model_dump(mode="json"),
            "events": [event.model_dump(mode="json") for event in events],
        }
    )
    show_patch(plan, receipt, events, screen, in_force=number in ledger.in_force)


def _recorded(path: Path, number: int) -> tuple[Plan, Receipt]:
    from pydantic import ValidationError

    from planner.errors import FileUnreadable, LedgerDamaged, PlanInvalid
    from planner.inputs import read_text
    from planner.plan import read_plan
    from planner.transaction import RECEIPT, Receipt, patch_folder

    folder = patch_folder(path, number)
    try:
        plan = read_plan(read_text(folder / "plan.json"))
        return plan, Receipt.model_validate_json(read_text(folder / RECEIPT))
    except (FileUnreadable, PlanInvalid, ValidationError) as error:
        raise LedgerDamaged(
            f"the record {folder} cannot be read: {str(error).splitlines()[0]}",
            hint="`planner verify MODEL` names every file that is not what the ledger says",
        ) from None
