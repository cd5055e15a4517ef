"""`planner verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cli.given import Json, ModelArgument
from planner.errors import LedgerDamaged

if TYPE_CHECKING:
    from planner.transaction import Verification

_LEDGER = ".planner/ledger.json"


def command(model: ModelArgument, as_json: Json = False) -> int:
    """Re-hash every file and compare it with the ledger; names what is damaged."""
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at
    from planner.transaction import verify
    from planner.transaction.verify import recorded_bytes

    screen = Screen(as_json=as_json)
    checkpoint, path = checkpoint_at(model), locate(model)
    with screen.progress("hashing", checkpoint.nbytes + recorded_bytes(path)) as bar:
        found = verify(path, progress=bar.advance)
    screen.emit(found)
    screen.show(f"{found.path}: {found.files} files, {found.bytes:,} bytes, {found.fingerprint}")
    for name in found.damaged_tensors:
        screen.show(f"damaged tensor: {name}")
    for name in found.damaged_files:
        screen.show(f"damaged or missing file: {name}")
    for name in found.damaged_records:
        screen.show(f"damaged or missing record: {name}")
    for what in found.damaged_events:
        screen.show(f"damaged history: {what}")
    if found.seal is False:
        screen.show("damaged ledger: .planner/ledger.json is not as it was written (its seal does not hold)")
    for name in found.added_files:
        screen.show(f"added since: {name}")
    if not found.ledger:
        screen.show("no ledger to compare with; every header is sound")
    elif not found.sound:
        screen.show("NOT what the ledger says")
        for step in _next_steps(found):
            screen.say(step)
    elif found.original:
        screen.show("every byte is as before the first patch")
    else:
        screen.show("every byte is as the ledger says")
    return 0 if found.sound else LedgerDamaged.exit_status


def _next_steps(found: Verification) -> list[str]:
    """What makes it sound again."""
    steps = []
    if found.damaged_files:  # a damaged tensor makes its shard one of them
        steps.append(f"next: put back from a copy, with their modes: {', '.join(found.damaged_files)}")
    elif found.damaged_tensors:
        steps.append("next: put the shards of the damaged tensors back from a copy")
    if found.damaged_records:
        steps.append(f"next: put back from a copy: {', '.join(found.damaged_records)}")
        steps.append("      (without undo data a patch cannot be taken back; without the others its record is lost)")
    if found.damaged_events or found.seal is False:
        steps.append(f"next: put back from a copy: {_LEDGER}")
        steps.append("      (without a copy: `planner apply --out DIR` begins a new history)")
    steps.append("then `planner verify` again")
    return steps
