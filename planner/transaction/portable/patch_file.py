"""Portable patches: one safetensors file with a plan and the bytes that it makes of others, for whoever has the base.

    patch        JSON, `PatchHead`: which base, which tensors, which arrays are what
    plan         JSON: the plan as it was reviewed
    table/K      new pattern by old pattern, of tensors that a table changes: there is nothing more to say of them
    frames/K     frames (`frames`) of the other tensors, which give the new bytes from the old

It applies without analyst, evidence or torch, and without what the plan read (vectors, adapters, other checkpoints).
The same patch gives the same file. Headers, index, configuration and model card are not in it: they are made anew, and
come out as the plan makes them, however the base is cut into shards. So there is no name of a file in it to follow.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from planner import fsio, strict_json
from planner.checkpoint import digest_bytes, digest_file
from planner.errors import LedgerDamaged, PatchUnusable, PlanInvalid
from planner.plan import Modification, Plan, read_plan, require_decided
from planner.records import Record
from planner.transaction.types import Frames
from planner.transaction.undo.data import UndoData

__all__ = [
    "HEAD",
    "MAKE_ONE",
    "PLAN",
    "PatchHead",
    "PatchTensor",
    "PortablePatch",
    "damaged",
    "is_portable",
    "patch_statement",
]

HEAD, PLAN = "patch", "plan"
MAKE_ONE = "fetch it again, or have it made again: `planner export-patch MODEL --out FILE`"
_LARGEST = 64 * 2**20
_MOST = 100_000
"""Tensors. So many heads of tensors take some 200 MiB of memory."""
# How often each may stand in the head: an entry has two, four, fourteen and eighteen where its tensor has two
# dimensions and lies in one part; there is room for as many again, since a name may hold them too.
_MARKS = {"{": 4 * _MOST, "[": 8 * _MOST, ":": 28 * _MOST, ",": 36 * _MOST}
_TOLD = 20  # errors of validation that are put into words


class PatchTensor(Record):
    """A tensor that the patch changes or adds."""

    name: str = Field(max_length=512)
    """What it is called."""
    dtype: str
    """Its dtype."""
    shape: tuple[int, ...]
    """Its shape."""
    modifications: tuple[str, ...]
    """Ids of the modifications folded into it."""
    before: str | None
    """Digest of its bytes before; null for a bias that is added."""
    after: str
    """Digest of its bytes after."""
    relative_change: float | None = None
    """‖ΔW‖F / ‖W‖F, as whoever made the patch measured it; it is measured again."""
    frames: Frames
    """How the new bytes are got from the old ones, or from zeros."""


class PatchHead(Record):
    """What a portable patch says of itself."""

    schema_: Literal["planner/patch@1"] = Field(default="planner/patch@1", alias="schema")
    """Kind and version of this file."""
    base: str = Field(max_length=512)
    """What the base is called; for people only."""
    fingerprint_before: str = Field(pattern=r"^blake3:[0-9a-f]{64}$")
    """The base; this decides."""
    fingerprint_after: str = Field(pattern=r"^blake3:[0-9a-f]{64}$")
    """The result."""
    plan_digest: str
    """Digest of the plan in the same file."""
    tensors: tuple[PatchTensor, ...]
    """What it changes and adds."""
    config: dict[str, bool] = {}
    """Keys of config.json that get another value: those that give biases to a model."""


def is_portable(path: Path) -> bool:
    """Whether a file is a portable patch, or was one before it was damaged; by its beginning, for a plan is JSON.

    The length at the beginning of a patch has bytes that are zero, which no text has. What is empty, or begins with
    something else, goes by its name.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be empty for whoever reads it next
            return False
        with path.open("rb") as file:
            beginning = file.read(9)
    except (OSError, ValueError):
        return False
    return b"\0" in beginning or (path.suffix == ".patch" and not beginning.lstrip().startswith(b"{"))


def patch_statement(path: Path) -> bytes:
    """What a signature of a portable patch is over. Raises a `StorageError`."""
    with fsio.storage_errors(path):
        return b"planner/patch@1 " + digest_file(path).encode() + b"\n"


class PortablePatch:
    """A portable patch, opened: head and plan are read, the bytes are not."""

    def __init__(self, path: Path) -> None:
        """Raises `PatchUnusable`, or a `StorageError`."""
        try:
            self.data = UndoData([path])
            self.head = _head(self._text(HEAD))
            content = self._text(PLAN)
            self.plan: Plan = read_plan(content.decode("utf-8"))
        except (LedgerDamaged, PlanInvalid, UnicodeDecodeError, strict_json.JsonRefused) as error:
            why = (getattr(error, "message", "") or str(error)).splitlines()[0]
            raise damaged(f"{path}: {why.removeprefix('the undo data ')}") from None
        if digest_bytes(content) != self.head.plan_digest:
            raise damaged(f"{path}: the plan in it is not the one that it names")
        if self.plan.checkpoint.fingerprint != self.head.fingerprint_before:
            raise damaged(f"{path}: its plan is for another base than its bytes")
        if what := self._contradiction():
            raise damaged(f"{path}: {what}")

    def modifications(self) -> tuple[Modification, ...]:
        """Those that were approved. Raises `PlanNotApproved` where the review in it is not whole."""
        require_decided(self.plan, self.plan.policy)
        return tuple(m for m in self.plan.modifications if self.plan.review[m.id].decision == "approved")

    def _contradiction(self) -> str | None:
        tensors = self.head.tensors
        if len({tensor.name for tensor in tensors}) < len(tensors):
            return "a tensor is in it twice"
        approved = {name for name, decision in self.plan.review.items() if decision.decision == "approved"}
        arrays = {HEAD, PLAN}
        for tensor in tensors:
            if strange := [name for name in tensor.modifications if name not in approved]:
                return f"{tensor.name} is changed by {strange[0]}, which nobody approved"
            if (tensor.frames.table is None) == (not tensor.frames.parts):
                return f"{tensor.name} has neither a table nor frames, or both"
            arrays |= {array for array, _, _ in tensor.frames.parts}
            arrays |= {tensor.frames.table} if tensor.frames.table else set()
        if others := set(self.data.names) ^ arrays:
            return f"of the array {min(others)!r} it is not said what it is, or it is not there"
        return None

    def _text(self, array: str) -> bytes:
        if self.data.nbytes(array) > _LARGEST:
            raise LedgerDamaged(f"the array {array} is too large", hint=MAKE_ONE)
        return b"".join(self.data.chunks(array))


def damaged(what: str) -> PatchUnusable:
    """The error for a patch that is not, or not all of, what was written, whichever of its bytes it shows in."""
    return PatchUnusable(f"the patch is damaged, or is none: {what}", hint=MAKE_ONE)


def _head(raw: bytes) -> PatchHead:
    """Raises `LedgerDamaged`, `JsonRefused` or UnicodeDecodeError."""
    text = raw.decode("utf-8")
    strict_json.loads(text, largest=_LARGEST, most=_MARKS, reduce=lambda _: None)  # keeps nothing
    try:
        return PatchHead.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0] if error.error_count() <= _TOLD else {"loc": (), "msg": "and many more"}
        where = ".".join(map(str, first["loc"]))
        raise LedgerDamaged(
            f"{error.error_count():,} of its fields make no sense: {where[:200]} {first['msg'][:200]}", hint=MAKE_ONE
        ) from None
