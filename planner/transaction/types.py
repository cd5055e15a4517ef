"""What a transaction leaves behind: the ledger, which is kept with the checkpoint, and a receipt a patch."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, field_validator

from planner.records import Record

__all__ = [
    "EvaluationSummary",
    "Event",
    "FileState",
    "Frames",
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

    @field_validator("files", mode="before")
    @classmethod
    def _names_are_text(cls, files: object) -> object:
        """A file's name need not be text, JSON has to be: bytes that are no UTF-8 are escaped.

        Where the locale knows fewer characters than UTF-8, Python hands out the others as such bytes too.
        """
        return {_text(str(name)): state for name, state in files.items()} if isinstance(files, dict) else files


def _text(name: str) -> str:
    foreign = any("\udc80" <= character <= "\udcff" for character in name)
    return os.fsencode(name).decode("utf-8", "backslashreplace") if foreign else name


class Parent(Record):
    """The checkpoint that an out-of-place result was made from."""

    name: str
    """What it was called."""
    fingerprint: str
    """Digest of its weights and configuration."""


class EvaluationSummary(Record):
    """What an evaluation found, in short; the whole of it lies beside the patch."""

    file: str
    """Its name in the record of the patch."""
    digest: str
    """Digest of that file."""
    baseline: str
    """Fingerprint of the checkpoint it was compared with."""
    suite: str
    """Name of the suite."""
    accepted: bool | None
    """Whether every gate passed; null where the suite has none."""
    findings: tuple[str, ...]
    """A sentence a metric: the difference, its interval, whether it is more than chance."""


class Event(Record):
    """One line of the history."""

    kind: Literal["applied", "reverted", "evaluated"]
    """What happened."""
    patch: int
    """applied: the number of the new patch. reverted, evaluated: the last patch in force then, 0 for none."""
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
    largest_change: float | None = None
    """Largest ‖W - W₀‖F/‖W₀‖F of any tensor against the original, all patches in force together; null if unknown."""
    approved_by: tuple[str, ...] = ()
    """Who approved the modifications."""
    approved_by_flag: bool = False
    """Whether some of them were approved by `apply --yes` and not in a review."""
    signed_by: str | None = None
    """Whose signature under the approval was verified."""
    records: dict[str, str] = {}
    """Digests of the files in the record of the patch, by name; `verify` holds them to it."""
    evaluation: EvaluationSummary | None = None
    """What was found, for an evaluation."""


class Ledger(Record):
    """The history of a checkpoint's patches, and what its files must be now."""

    schema_: Literal["planner/ledger@1"] = Field(default="planner/ledger@1", alias="schema")
    """Kind and version of this file."""
    serial: int
    """How many transactions there were."""
    parent: Parent | None
    """Where the first weights came from, if this folder was written by `apply --out`."""
    inherited: dict[str, float] = {}
    """At most how far each tensor was from its first weights already when this history began: ‖ΔW‖F/‖W₀‖F."""
    original: State
    """Before the first patch; `revert --to 0` goes back to it."""
    current: State
    """Now."""
    in_force: tuple[int, ...]
    """Numbers of the patches that the weights contain, oldest first."""
    reserve: int = Field(default=0, ge=0)
    """Bytes kept free beside the ledger, for a revert that may find a full disk."""
    events: tuple[Event, ...]
    """What happened, oldest first."""
    seal: str | None = None
    """BLAKE3 digest of everything else, which finds accidents (`seal`); null in ledgers of earlier versions."""


class Frames(Record):
    """How the old bytes of a tensor are got back from the new ones: one frame a piece (`frames`)."""

    table: str | None = None
    """The array of the undo data with the new pattern of every old one, where there is such a table."""
    parts: tuple[tuple[str, int, int], ...]
    """Where the frames lie, in order: an array of the undo data, where they begin in it, and how many bytes."""


class Residual(Record):
    """How the old bytes of a tensor are got back from the new ones, in ledgers of versions before 0.6."""

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
    cumulative_change: float | None = None
    """‖W - W₀‖F/‖W₀‖F against the original, all patches in force together; null for a tensor that was not there."""
    undo: Frames | Residual | None = None
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
    approvals: dict[str, str] = {}
    """Who approved each modification, and how: `NAME (review)`, `NAME (yes)`, `NAME (rule)`."""
    signed_by: str | None = None
    """Whose signature under the approval was verified."""
    policy_digest: str | None = None
    """Digest of the policy that it was reviewed and applied under."""
    tensors: tuple[ReceiptTensor, ...]
    """Every tensor whose bits changed, or that is new."""
    files: tuple[ReceiptFile, ...] = ()
    """Every header, index and configuration that changed."""
    undo_bytes: int
    """Size of the undo data."""
    changed_bytes: int = 0
    """Size of the tensors that changed."""


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
    damaged_records: tuple[str, ...] = ()
    """Files in the records of patches (plans, receipts, undo data) that are not what the ledger says."""
    damaged_events: tuple[str, ...] = ()
    """What the history says of a patch otherwise than the patch's own record, a sentence each."""
    seal: bool | None = None
    """Whether the ledger is as it was written; null without a ledger, and for one of an earlier version."""
    added_files: tuple[str, ...] = ()
    """Files that the ledger does not know; no damage."""
    files: int
    """How many files were hashed."""
    bytes: int
    """How many bytes were hashed."""
