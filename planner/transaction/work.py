"""From edits to changes of files, and from what was written to the entries of the receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from planner.checkpoint import Checkpoint, digest_bytes
from planner.dtypes import bytes_needed, float_dtype
from planner.transaction.edits import Addition, Edits, Patterns, TensorEdit
from planner.transaction.layout import INDEX, added_to, extended_header, extended_index
from planner.transaction.pieces import Added, Bytes, Change, Changes, Content
from planner.transaction.types import ReceiptFile, ReceiptTensor
from planner.transaction.undo.data import UndoArrays
from planner.transaction.undo.frames import Framing
from planner.transaction.undo.residuals import Coding
from planner.transaction.writing import Written

__all__ = ["Outcome", "Work"]

_CONFIG = "config.json"


class Outcome(NamedTuple):
    """What the check found of a tensor."""

    changed: bool
    """Whether any stored bit would change."""
    relative_change: float | None
    """‖ΔW‖F / ‖W‖F; None where it is infinite."""


class Work:
    """What one patch does to the files of a checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensors: Mapping[str, Change],
        modifications: Mapping[str, tuple[str, ...]],
        *,
        added: Mapping[str, Sequence[Added]],
        headers: Mapping[str, bytes],
        files: Mapping[str, bytes],
        relative: Mapping[str, float | None],
    ) -> None:
        """`modifications` are the ids of those folded into each tensor of `tensors`; `relative` how far it is moved."""
        self.checkpoint = checkpoint
        self._modifications, self._relative = modifications, relative
        self._new_files = dict(files)
        self.codings = {name: change.coding for name, change in tensors.items() if change.coding}
        """Of the tensors that are changed by a table."""
        self.changes = Changes(tensors=tensors, added=added, headers=headers, files=dict(files))
        self._replaced: dict[tuple[str, bool], bytes | None] = {}
        """What is replaced: a file by its name, its header alone with True; None where there was nothing."""
        self._replaced |= {(shard, True): checkpoint.header_bytes(shard) for shard in headers}
        self._replaced |= {(name, False): self._present(name) for name in files}

    @classmethod
    def of(cls, checkpoint: Checkpoint, edits: Edits, outcomes: Mapping[str, Outcome]) -> Work:
        """That of a checked plan; the outcomes say which tensors keep their bits after all, and how far others move."""
        void = {name for name, outcome in outcomes.items() if not outcome.changed}
        chosen = [edit for edit in edits.tensors if edit.name not in void]
        added = added_to(checkpoint, edits.additions)
        return cls(
            checkpoint,
            _changes(checkpoint, chosen),
            {edit.name: tuple(dict.fromkeys(edit.modifications)) for edit in chosen},
            added={shard: [_added(addition) for addition in those] for shard, those in added.items()},
            headers={shard: extended_header(checkpoint, shard, those) for shard, those in added.items()},
            files=_files(checkpoint, edits, added),
            relative={name: outcome.relative_change for name, outcome in outcomes.items()},
        )

    @property
    def replaced(self) -> dict[str, bytes]:
        """What stood where a new header or small file stands now, by a name of its own."""
        return {_key(*which): content for which, content in self._replaced.items() if content is not None}

    @property
    def relative(self) -> Mapping[str, float | None]:
        """‖ΔW‖F / ‖W‖F of each tensor that changes."""
        return {name: self._relative.get(name) for name in self.changes.tensors}

    def add_file(self, name: str, content: bytes) -> None:
        """A small file with other content, which was not known before the weights were written."""
        self._new_files[name] = content
        self._replaced[name, False] = self._present(name)

    def framings(self) -> dict[str, Framing]:
        """What makes the undo data of each tensor that changes."""
        tensors = self.checkpoint.tensors
        return {
            name: Framing(tensors[name].dtype, tensors[name].shape, self.codings.get(name))
            for name in self.changes.tensors
        }

    def receipts(self, written: Written) -> tuple[ReceiptTensor, ...]:
        """What was done to each tensor, as far as it is known before the undo data are."""
        changed = [
            ReceiptTensor(
                name=name,
                shard=self.checkpoint.tensors[name].shard,
                modifications=modifications,
                before=written.before.tensors[name],
                after=written.outcomes[name].digest,
                elements=self.checkpoint.tensors[name].elements,
                changed_elements=written.outcomes[name].changed_elements,
                relative_change=self._relative.get(name),
            )
            for name, modifications in self._modifications.items()
        ]
        added = [
            ReceiptTensor(
                name=one.name,
                shard=shard,
                modifications=one.modifications,
                before=None,
                after=written.outcomes[one.name].digest,
                elements=one.elements,
                changed_elements=one.elements,
                relative_change=None,
            )
            for shard, those in self.changes.added.items()
            for one in those
        ]
        return (*changed, *added)

    def file_receipts(self, arrays: UndoArrays) -> tuple[ReceiptFile, ...]:
        """What was done to headers and small files."""
        found = []
        for (name, header), old in self._replaced.items():
            new = self.changes.headers[name] if header else self._new_files[name]
            found.append(
                ReceiptFile(
                    name=name,
                    part="header" if header else "file",
                    before=None if old is None else digest_bytes(old),
                    after=digest_bytes(new),
                    undo=arrays.replaced.get(_key(name, header)),
                )
            )
        return tuple(found)

    def _present(self, name: str) -> bytes | None:
        path = self.checkpoint.path / name
        return path.read_bytes() if path.is_file() else None


def _key(name: str, header: bool) -> str:
    return f"{'header' if header else 'file'} {name}"


def _changes(checkpoint: Checkpoint, edits: Sequence[TensorEdit]) -> dict[str, Change]:
    changes = {}
    kept: dict[bytes, Coding] = {}  # many tensors are changed alike
    for edit in edits:
        if edit.table is None:
            changes[edit.name] = Change(content=_rewritten(checkpoint, edit))
        else:
            key = edit.table.tobytes()
            kept[key] = kept.get(key) or Coding(edit.table)
            changes[edit.name] = Change(coding=kept[key])
    return changes


def _files(checkpoint: Checkpoint, edits: Edits, added: dict[str, list[Addition]]) -> dict[str, bytes]:
    files = {}
    if added and (index := extended_index(checkpoint, added)) is not None:
        files[INDEX] = index
    if edits.config is not None and edits.config != checkpoint.config_bytes:
        files[_CONFIG] = edits.config
    return files


def _added(addition: Addition) -> Added:
    def content() -> Iterator[Bytes]:
        for block in addition.content():
            yield np.frombuffer(block, np.uint8)

    nbytes = bytes_needed(addition.dtype, addition.shape)
    return Added(addition.name, content, nbytes, prod(addition.shape), tuple(dict.fromkeys(addition.modifications)))


def _rewritten(checkpoint: Checkpoint, edit: TensorEdit) -> Content:
    tensor = checkpoint.tensors[edit.name]
    dtype = float_dtype(tensor.dtype)
    assert dtype is not None, "check refuses a target whose dtype is not understood"
    patterns: Callable[[bytes], Patterns] = dtype.patterns

    def blocks() -> Iterator[Patterns]:
        for chunk in checkpoint.chunks(tensor):
            yield patterns(chunk)

    def content() -> Iterator[Bytes]:
        for block in edit.rewrite(blocks):
            yield np.ascontiguousarray(block.reshape(-1), dtype=dtype.pattern).view(np.uint8)

    return content
