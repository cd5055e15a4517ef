"""`planner log`."""

from __future__ import annotations

from planner.cli.given import Json, ModelArgument


def command(model: ModelArgument, as_json: Json = False) -> None:
    """The history of a checkpoint: who applied which plan, when, and what it changed."""
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at
    from planner.transaction import read_ledger

    screen = Screen(as_json=as_json)
    path = locate(model)
    ledger = read_ledger(path)
    if ledger is None:
        checkpoint_at(model)  # a folder that is no checkpoint is an error, not an empty history
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
            "events": [event.model_dump(mode="json") for event in ledger.events],
        }
    )
    if ledger.parent:
        screen.show(f"made from {ledger.parent.name}, {ledger.parent.fingerprint}")
    rows = [
        (
            event.at,
            event.by,
            f"applied patch {event.patch}" if event.kind == "applied" else f"reverted to {event.patch}",
            event.goal or "",
            str(event.changed_tensors) if event.kind == "applied" else "",
            f"{event.changed_elements:,}" if event.kind == "applied" else "",
            event.fingerprint[7:19],
        )
        for event in ledger.events
    ]
    screen.table(("when", "who", "what", "goal", "tensors", "elements", "fingerprint"), rows, left=4)
    screen.show("in force: " + (", ".join(map(str, ledger.in_force)) or "no patch; this is the original"))
