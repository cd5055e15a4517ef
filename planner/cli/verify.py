"""`planner verify`."""

from __future__ import annotations

from planner.cli.given import Json, ModelArgument
from planner.errors import LedgerDamaged


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
    for name in found.added_files:
        screen.show(f"added since: {name}")
    if not found.ledger:
        screen.show("no ledger to compare with; every header is sound")
    elif not found.sound:
        screen.show("NOT what the ledger says")
    elif found.original:
        screen.show("every byte is as before the first patch")
    else:
        screen.show("every byte is as the ledger says")
    return 0 if found.sound else LedgerDamaged.exit_status
