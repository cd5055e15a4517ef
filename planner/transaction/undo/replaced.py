"""Headers and small files that patches replaced, on their way back.

No weights, so no fingerprint proves them: each is held to the digest that the receipt has of it. And a record may come
from a stranger, so only what a patch can have written is ever given back.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from planner import fsio
from planner.checkpoint import Checkpoint, digest_bytes, digest_file
from planner.errors import LedgerDamaged
from planner.transaction.card.model_card import CARD
from planner.transaction.layout import INDEX
from planner.transaction.types import ReceiptFile

__all__ = ["Replaced", "refuse_edited", "refuse_unproven"]

_FILES = ("config.json", CARD, INDEX)
"""What a patch can write beside weights."""


@dataclass(frozen=True)
class Replaced:
    """One header or small file that a patch replaced."""

    patch: int
    file: ReceiptFile
    old: bytes | None
    """What the undo data have of it; None where there was nothing."""


def refuse_unproven(checkpoint: Checkpoint, replaced: Sequence[Replaced]) -> None:
    """Raise `LedgerDamaged` for what no patch can have replaced, and for what is not what it was."""
    shards = [shard.name for shard in checkpoint.shards]
    for one in replaced:
        file = one.file
        if file.name not in (_FILES if file.part == "file" else shards):
            raise LedgerDamaged(
                f"the receipt of patch {one.patch} speaks of {file.name!r}, which no patch can have written",
                hint=f"nothing was changed; {_FROM_BACKUP}",
            )
        found = None if one.old is None else digest_bytes(one.old)
        if found != file.before or (file.part == "header" and one.old is None):
            raise LedgerDamaged(
                f"the undo data of patch {one.patch} do not have {file.name} as it was",
                hint=f"nothing was changed; {_FROM_BACKUP}",
            )


def refuse_edited(checkpoint: Checkpoint, replaced: Sequence[Replaced]) -> None:
    """Raise `LedgerDamaged` for what is not as the patch left it: going back would destroy what was written since.

    `replaced` begins with the newest patch. A file that was moved away is no obstacle.
    """
    newer: dict[str, Replaced] = {}
    for one in replaced:
        name = one.file.name
        if one.file.part == "header" and name not in newer:
            if digest_bytes(checkpoint.header_bytes(name)) != one.file.after:
                raise LedgerDamaged(
                    f"the header of {name} is not as patch {one.patch} left it",
                    hint="nothing was changed; `planner verify MODEL` names what differs; put it back from a copy",
                )
        elif name in newer:
            if newer[name].file.before != one.file.after:
                raise LedgerDamaged(
                    f"{name} was changed by hand between patch {one.patch} and patch {newer[name].patch}",
                    hint="nothing was changed; take back one patch at a time: `planner revert MODEL`, without --to",
                )
        else:
            _refuse_other(checkpoint, one)
        newer[name] = one


def _refuse_other(checkpoint: Checkpoint, one: Replaced) -> None:
    path = checkpoint.path / one.file.name
    with fsio.storage_errors(path):
        edited = path.is_file() and digest_file(path) != one.file.after
    if edited:
        moved = f"`mv -n {shlex.quote(str(path))} {shlex.quote(f'{path}.edited')}`, then revert; or "
        raise LedgerDamaged(
            f"{path} was changed since patch {one.patch}, and going back would replace it",
            hint=f"nothing was changed; {moved if one.file.name == CARD else ''}put the one back that the patch wrote",
        )


_FROM_BACKUP = "restore the record of that patch from a backup"
