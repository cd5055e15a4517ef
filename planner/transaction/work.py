"""From edits to changes of files, and from what was written to the entries of the receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from planner.checkpoint import Checkpoint, digest_bytes
from planner.dtypes import bytes_needed, float_dtype
from planner.effects import CheckReport
from planner.transaction.edits import Addition, Edits, Patterns, TensorEdit
from planner.transaction.layout import INDEX, added_to, extended_header, extended_index
from planner.transaction.residuals import Coding
from planner.transaction.types import ReceiptFile, ReceiptTensor
from planner.transaction.undo import UndoArrays
from planner.transaction.writing import Added, Bytes, Change, Changes, Content, Written

__all__ = ["Work"]

_CONFIG = "config.json"


class Work:
    """What one patch does to the files of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, edits: Edits, report: CheckReport) -> None:
        """`report` says which tensors keep their bits after all, and how far each of the others is moved."""
        self.checkpoint = checkpoint
        outcomes = {tensor.name: tensor for tensor in report.tensors}
        void = {name for name, outcome in outcomes.items() if not outcome.changed_elements}
        self._relative = {name: outcome.relative_change for name, outcome in outcomes.items()}
        self._edits = {edit.name: edit for edit in edits.tensors if edit.name not in void}
        self._added = added_to(checkpoint, edits.additions)
        self.codings: dict[str, Coding] = {}
        """Of the tensors that are changed by a table."""
        kept: dict[bytes, Coding] = {}  # many tensors are changed alike
        for edit in self._edits.values():
            if edit.table is not None:
                key = edit.table.tobytes()
                kept[key] = kept.get(key) or Coding(edit.table)
                self.codings[edit.name] = kept[key]
        headers = {shard: extended_header(checkpoint, shard, those) for shard, those in self._added.items()}
        files = self._files(edits)
        self._new_files = files
        self.changes = Changes(
            tensors={edit.name: self._change(edit) for edit in self._edits.values()},
            added={shard: [_added(addition) for addition in those] for shard, those in self._added.items()},
            headers=headers,
            files=dict(files),  # None is for a file that goes away, which a patch never does
        )
        self._replaced: dict[tuple[str, bool], bytes | None] = {}
        """What is replaced: a file by its name, its header alone with True; None where there was nothing."""
        self._replaced |= {(shard, True): checkpoint.header_bytes(shard) for shard in headers}
        self._replaced |= {(name, False): self._present(name) for name in files}

    @property
    def replaced(self) -> dict[str, bytes]:
        """What stood where a new header or small file stands now, by a name of its own."""
        return {_key(*which): content for which, content in self._replaced.items() if content is not None}

    def coded(self, written: Written) -> list[str]:
        """The changed tensors that are got back with a residual."""
        return [name for name in self._edits if written.outcomes[name].coded]

    def originals(self, written: Written) -> list[str]:
        """The changed tensors whose bytes are kept."""
        return [name for name in self._edits if not written.outcomes[name].coded]

    def receipts(self, written: Written, arrays: UndoArrays) -> tuple[ReceiptTensor, ...]:
        """What was done to each tensor."""
        changed = [
            ReceiptTensor(
                name=name,
                shard=self.checkpoint.tensors[name].shard,
                modifications=tuple(dict.fromkeys(edit.modifications)),
                before=written.before.tensors[name],
                after=written.outcomes[name].digest,
                elements=self.checkpoint.tensors[name].elements,
                changed_elements=written.outcomes[name].changed_elements,
                relative_change=self._relative.get(name),
                undo=arrays.residuals.get(name),
            )
            for name, edit in self._edits.items()
        ]
        added = [
            ReceiptTensor(
                name=addition.name,
                shard=shard,
                modifications=tuple(dict.fromkeys(addition.modifications)),
                before=None,
                after=written.outcomes[addition.name].digest,
                elements=prod(addition.shape),
                changed_elements=prod(addition.shape),
                relative_change=None,
            )
            for shard, those in self._added.items()
            for addition in those
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

    def _change(self, edit: TensorEdit) -> Change:
        if edit.name in self.codings:
            return Change(coding=self.codings[edit.name])
        return Change(content=_rewritten(self.checkpoint, edit))

    def _files(self, edits: Edits) -> dict[str, bytes]:
        files = {}
        if self._added and (index := extended_index(self.checkpoint, self._added)) is not None:
            files[INDEX] = index
        if edits.config is not None and edits.config != self.checkpoint.config_bytes:
            files[_CONFIG] = edits.config
        return files

    def _present(self, name: str) -> bytes | None:
        path = self.checkpoint.path / name
        return path.read_bytes() if path.is_file() else None


def _key(name: str, header: bool) -> str:
    return f"{'header' if header else 'file'} {name}"


def _added(addition: Addition) -> Added:
    def content() -> Iterator[Bytes]:
        for block in addition.content():
            yield np.frombuffer(block, np.uint8)

    nbytes = bytes_needed(addition.dtype, addition.shape)
    return Added(addition.name, content, nbytes, prod(addition.shape))


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
