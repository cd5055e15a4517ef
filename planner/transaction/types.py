"""What a transaction leaves behind: the ledger, which is kept with the checkpoint, and a receipt a patch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.records import Record

__all__ = [
    "Event",
    "FileState",
    "Ledger",
    "Parent",
    "Receipt",
    "ReceiptFile",
    "ReceiptTensor",
    "Residual",
    "State",
    "Verification",
]


class FileState(Record):
    """One file as it was."""

    digest: str
    """BLAKE3 digest of its bytes; for a shard, `shard-blake3:`, of its header and the digests of its tensors."""
    size: int
    """Bytes."""
    mode: int
    """Permission bits."""


class State(Record):
    """A checkpoint folder as it was: every file, and every tensor in the shards."""

    fingerprint: str
    """Digest of weights and configuration."""
    files: dict[str, FileState]
    """By path inside the folder; the ledger itself is not among them."""
    tensors: dict[str, str]
    """Digest of each tensor's bytes, by name."""


class Parent(Record):
    """The checkpoint that an out-of-place result was made from."""

    name: str
    """What it was called."""
    fingerprint: str
    """Digest of its weights and configuration."""


class Event(Record):
    """One line of the history."""

    kind: Literal["applied", "reverted"]
    """What happened."""
    patch: int
    """applied: the number of the new patch. reverted: the last patch still in force afterwards, 0 for none."""
    at: str
    """When, UTC."""
    by: str
    """Who."""
    fingerprint: str
    """The checkpoint afterwards."""
    plan: str | None = None
    """The id of the applied plan."""
    plan_digest: str | None = None
    """Digest of the applied plan file."""
    goal: str | None = None
    """The plan's goal."""
    modifications: int = 0
    """How many modifications were applied."""
    changed_tensors: int = 0
    """How many tensors changed."""
    changed_elements: int = 0
    """How many stored numbers changed."""


class Ledger(Record):
    """The history of a checkpoint's patches, and what its files must be now."""

    schema_: Literal["planner/ledger@1"] = Field(default="planner/ledger@1", alias="schema")
    """Kind and version of this file."""
    serial: int
    """How many transactions there were."""
    parent: Parent | None
    """Where the first weights came from, if this folder was written by `apply --out`."""
    original: State
    """Before the first patch; `revert --to 0` goes back to it."""
    current: State
    """Now."""
    in_force: tuple[int, ...]
    """Numbers of the patches that the weights contain, oldest first."""
    events: tuple[Event, ...]
    """What happened, oldest first."""


class Residual(Record):
    """How the old bytes of a tensor are got back from the new ones."""

    table: str
    """The array of the undo data that has the new pattern of every old one."""
    arrays: tuple[str, ...]
    """The arrays that say, one after the other, which old pattern each element was, where several became the same."""


class ReceiptTensor(Record):
    """What a patch did to one tensor."""

    name: str
    """The tensor."""
    shard: str
    """The file it is in."""
    modifications: tuple[str, ...]
    """Ids of the modifications folded into the change."""
    before: str | None
    """Digest of its bytes before; null for a tensor that the patch added."""
    after: str
    """Digest of its bytes after."""
    elements: int
    """How many numbers it holds."""
    changed_elements: int
    """How many of them are stored with other bits now."""
    relative_change: float | None
    """‖ΔW‖F / ‖W‖F as stored."""
    undo: Residual | None = None
    """How its old bytes are got back; null where the undo data hold them under its name, or there were none."""


class ReceiptFile(Record):
    """What a patch did to a file beside the bytes of tensors."""

    name: str
    """The file."""
    part: Literal["file", "header"]
    """header: of a shard, its length included; file: all of it."""
    before: str | None
    """Digest of these bytes before; null for a file that was not there."""
    after: str
    """Digest of them after."""
    undo: str | None
    """The array of the undo data that has the bytes before; null where there were none."""


class Receipt(Record):
    """The record of one applied plan."""

    schema_: Literal["planner/receipt@1"] = Field(default="planner/receipt@1", alias="schema")
    """Kind and version of this file."""
    patch: int
    """Its number in the ledger."""
    plan: str
    """The id of the plan."""
    plan_digest: str
    """Digest of the plan file as kept in the ledger."""
    at: str
    """When, UTC."""
    by: str
    """Who."""
    planner_version: str
    """Which planner applied it."""
    path: str
    """Where the result is."""
    in_place: bool
    """Whether the checkpoint itself was changed."""
    fingerprint_before: str
    """The checkpoint the plan was made for."""
    fingerprint_after: str
    """The result."""
    modifications: tuple[str, ...]
    """Ids of the modifications that were applied."""
    rejected: tuple[str, ...]
    """Ids of the modifications that the reviewer rejected."""
    tensors: tuple[ReceiptTensor, ...]
    """Every tensor whose bits changed, or that is new."""
    files: tuple[ReceiptFile, ...] = ()
    """Every header, index and configuration that changed."""
    undo_bytes: int
    """Size of the undo data."""


class Verification(Record):
    """What `planner verify` found."""

    schema_: Literal["planner/verification@1"] = Field(default="planner/verification@1", alias="schema")
    """Kind and version of this document."""
    path: str
    """The checkpoint."""
    fingerprint: str
    """Digest of its weights and configuration as they are."""
    ledger: bool
    """Whether there is a ledger to compare with."""
    sound: bool
    """Whether everything is as the ledger says; true without a ledger if the files can be read."""
    original: bool | None
    """Whether weights and files are those from before the first patch; null without a ledger."""
    damaged_tensors: tuple[str, ...] = ()
    """Tensors whose bytes are not what the ledger says."""
    damaged_files: tuple[str, ...] = ()
    """Files whose bytes or mode are not what the ledger says, or that are missing."""
    added_files: tuple[str, ...] = ()
    """Files that the ledger does not know; no damage."""
    files: int
    """How many files were hashed."""
    bytes: int
    """How many bytes were hashed."""
