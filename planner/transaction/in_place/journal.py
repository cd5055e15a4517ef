"""The journal of a change in place: what lies where, and what every piece was and is to be.

    .NAME.planner-journal/journal.json   which way, and where everything lies
    .NAME.planner-journal/pieces         two digests a piece: after the patches, before them
    .NAME.planner-journal/slot           the chunk that is being overwritten (`slot`)

It is complete and durable before the checkpoint is moved aside, so where there is something aside there is a journal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blake3 import blake3
from pydantic import Field, ValidationError

from planner import fsio
from planner.checkpoint import digest_bytes
from planner.errors import LedgerDamaged
from planner.records import Record
from planner.transaction.in_place.slot import Slot
from planner.transaction.pieces import Bytes

__all__ = ["Journal", "PieceDigests", "open_journal", "slot_of", "write_journal"]

_DIGEST = 16
_JOURNAL, _PIECES, _SLOT = "journal.json", "pieces", "slot"


class Journal(Record):
    """What has to be known to finish or take back a change in place."""

    schema_: Literal["planner/journal@1"] = Field(default="planner/journal@1", alias="schema")
    """Kind and version of this file."""
    way: Literal["apply", "revert"]
    """An interrupted apply is taken back; an interrupted revert is finished. Either way the bytes become old ones."""
    stage: str
    """Name of the folder beside the checkpoint with everything of the new state but the changed bytes."""
    patches: tuple[int, ...]
    """Whose undo data give the old bytes, oldest first; of an apply they are in the stage, else in the checkpoint."""
    ledger: str
    """Digest of the ledger of the new state: where it has the checkpoint's name, the change is committed."""
    tensors: tuple[tuple[str, int], ...]
    """Each tensor that changes, and its number of pieces; in the order of their digests."""
    pieces: str
    """Digest of the file of digests."""


@dataclass
class PieceDigests:
    """What every piece is after the patches and before them."""

    tensors: list[tuple[str, int]] = field(default_factory=list)
    """Name and number of pieces."""
    content: bytearray = field(default_factory=bytearray)
    _first: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, tensor: str, number: int, digests: bytes) -> None:
        """The next piece: what `pair` says of it."""
        if number == 0:
            self.tensors.append((tensor, 1))
        else:
            self.tensors[-1] = (tensor, number + 1)
        self.content += digests

    @staticmethod
    def pair(patched: Bytes, old: Bytes) -> bytes:
        """Digests of a piece after the patches and before them."""
        return PieceDigests.digest(patched) + PieceDigests.digest(old)

    @staticmethod
    def digest(piece: Bytes) -> bytes:
        """Of one version of a piece."""
        return blake3(piece.data).digest()[:_DIGEST]

    def of(self, tensor: str, number: int) -> tuple[bytes, bytes]:
        """After the patches, and before them."""
        if not self._first:
            at = 0
            for index, (name, count) in enumerate(self.tensors):
                self._first[name] = (index, at)
                at += count
        place = 2 * _DIGEST * (self._first[tensor][1] + number)
        return bytes(self.content[place : place + _DIGEST]), bytes(self.content[place + _DIGEST : place + 2 * _DIGEST])

    def index(self, tensor: str) -> int:
        """The place of a tensor among those that change."""
        self.of(tensor, 0)
        return self._first[tensor][0]


def write_journal(folder: Path, journal: Journal, digests: PieceDigests, *, slot: int) -> None:
    """Make the journal, with a slot of so many bytes, and make it durable. Raises `NoSpace`."""
    fsio.make_folder(folder)
    slot_of(folder).reserve(slot)
    fsio.create_file(folder / _PIECES, [bytes(digests.content)])
    fsio.create_file(folder / _JOURNAL, [journal.model_dump_json(indent=1).encode() + b"\n"])
    fsio.fsync_folder(folder)
    fsio.fsync_folder(folder.parent)


def open_journal(folder: Path) -> tuple[Journal, PieceDigests]:
    """The journal as it lies there. Raises `LedgerDamaged` if it is not whole."""
    try:
        journal = Journal.model_validate_json((folder / _JOURNAL).read_bytes())
        content = (folder / _PIECES).read_bytes()
    except (OSError, ValidationError) as error:
        raise _broken(folder, str(error).splitlines()[0]) from None
    if digest_bytes(content) != journal.pieces or len(content) != 2 * _DIGEST * sum(n for _, n in journal.tensors):
        raise _broken(folder, "its digests are not those it speaks of")
    return journal, PieceDigests(list(journal.tensors), bytearray(content))


def slot_of(folder: Path) -> Slot:
    """The slot of a journal."""
    return Slot(folder / _SLOT)


def _broken(folder: Path, why: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"the journal {folder} cannot be read: {why}",
        hint="nothing more is changed; what lies beside it in folders of the same name is the checkpoint, half changed",
    )
