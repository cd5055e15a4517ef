"""Fill the stage in one pass over the source.

What the source was, and so whether the plan is for it at all, is known at the end of that pass and not before: nothing
has a name that anybody reads until then.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from planner import fsio
from planner.checkpoint import Checkpoint, digest_bytes, digest_file, fingerprint_of
from planner.errors import StorageError
from planner.transaction.pieces import Changes, Done, Outcome, Pass, Piece
from planner.transaction.state import LEDGER_FOLDER, files_of, folders_of, shard_digest
from planner.transaction.types import FileState, State

__all__ = ["Written", "fill_stage", "new_size", "put_file"]

Progress = Callable[[int], None]
KeepFrame = Callable[[Piece], None]
"""Told each piece of a tensor that changes, in order, after `Done` was."""


@dataclass(frozen=True)
class Written:
    """What was read and what was written, from one and the same pass."""

    before: State
    files: Mapping[str, FileState]
    """The stage, as it was meant."""
    tensors: Mapping[str, str]
    """Digests of its tensors, as they were meant."""
    outcomes: Mapping[str, Outcome]
    linked: frozenset[str]
    """Files that are those of the source under a second name."""


def fill_stage(
    checkpoint: Checkpoint,
    stage: Path,
    changes: Changes,
    *,
    share: bool,
    low_space: bool = False,
    later: frozenset[str] = frozenset(),
    done: Done | None = None,
    keep: KeepFrame | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write every file of the checkpoint into the stage, with the changes, and say what was there and what is now.

    With `share`, an unchanged file may be the same file under a second name (for an in-place switch, where the old
    name goes away). With `low_space`, so is every shard: what is to become of its bytes is only found out. `done` and
    `keep` are for the undo data. The space of every shard that is written is taken before the first byte. The bytes
    of shards are not yet durable. Raises a `StorageError` or what reading raises.
    """
    _refuse_outside(changes)
    filling = _Filling(checkpoint, stage, changes, share, low_space, later, done, keep, progress or (lambda _: None))
    for name in folders_of(checkpoint.path):
        fsio.make_folder(stage / name)
    shards = [shard.name for shard in checkpoint.shards]
    for name in shards:
        filling.reserve(name)
    for name in files_of(checkpoint.path):
        if name in shards:
            filling.shard(name)
        else:
            filling.other(name)
    for name in changes.files.keys() - filling.before.keys():
        filling.new(name)
    found = filling.found
    before = State(
        fingerprint=fingerprint_of(checkpoint, found.old_digests), files=filling.before, tensors=found.old_digests
    )
    return Written(before, filling.after, found.new_digests, found.outcomes, frozenset(filling.linked))


class _Filling:
    def __init__(
        self,
        checkpoint: Checkpoint,
        stage: Path,
        changes: Changes,
        share: bool,
        low_space: bool,
        later: frozenset[str],
        done: Done | None,
        keep: KeepFrame | None,
        progress: Progress,
    ) -> None:
        self._checkpoint, self._stage, self._changes = checkpoint, stage, changes
        self._share, self._low_space, self._later = share, low_space, later
        self._keep, self._progress = keep, progress
        self.found = Pass(checkpoint, changes, ranks=keep is not None, done=done)
        self.before: dict[str, FileState] = {}
        self.after: dict[str, FileState] = {}
        self.linked: set[str] = set()

    def reserve(self, name: str) -> None:
        """Take the space of one shard that will be written."""
        if self._changes.rewrites(self._checkpoint, name) and not self._low_space:
            fsio.reserve_file(self._stage / name, new_size(self._checkpoint, self._changes, name))

    def shard(self, name: str) -> None:
        """Write one shard, or take it over."""
        source, target = self._checkpoint.path / name, self._stage / name
        entries = self._checkpoint.header(name).entries
        old_header = self._checkpoint.header_bytes(name)
        new_header = self._changes.headers.get(name, old_header)
        rewritten = self._changes.rewrites(self._checkpoint, name)
        with closing(self._shard_bytes(name, new_header)) as content:
            if rewritten and not self._low_space:
                fsio.fill_file(target, content, like=source, durable=False)
            else:
                self._take_over(name, content)
                if rewritten:  # the bytes under both names are about to change
                    self.linked.discard(name)
                for _ in content:  # hashed at least, where it needed no writing
                    pass
        with fsio.storage_errors(source):
            found = source.stat()
        mode = stat.S_IMODE(found.st_mode)
        old_digests, new_digests = self.found.old_digests, self.found.new_digests
        digest = shard_digest(old_header, (old_digests[entry.name] for entry in entries))
        self.before[name] = FileState(digest=digest, size=found.st_size, mode=mode)
        if rewritten:
            kept = [entry.name for entry in entries if entry.name not in self._changes.removed]
            kept += [added.name for added in self._changes.added.get(name, ())]
            digest = shard_digest(new_header, (new_digests[tensor] for tensor in kept))
            self.after[name] = FileState(digest=digest, size=new_size(self._checkpoint, self._changes, name), mode=mode)
        else:
            self.after[name] = self.before[name]

    def other(self, name: str) -> None:
        """Take over one other file, or write its new content."""
        source, target = self._checkpoint.path / name, self._stage / name
        with fsio.storage_errors(source):
            found = source.stat()
            mode = stat.S_IMODE(found.st_mode)
            # config.json as it was read: the fingerprint is of these bytes
            config = name == "config.json"
            digest = digest_bytes(self._checkpoint.config_bytes) if config else digest_file(source)
        self.before[name] = FileState(digest=digest, size=found.st_size, mode=mode)
        if name in self._later:
            pass
        elif name not in self._changes.files:
            self._take_over(name, None)
            self.after[name] = self.before[name]
        elif (content := self._changes.files[name]) is not None:
            fsio.create_file(target, [content], like=source)
            self.after[name] = FileState(digest=digest_bytes(content), size=len(content), mode=mode)
        self._progress(found.st_size)

    def new(self, name: str) -> None:
        """Write a small file that the source has not."""
        content = self._changes.files[name]
        if content is not None:
            fsio.create_file(self._stage / name, [content])
            self.after[name] = FileState(digest=digest_bytes(content), size=len(content), mode=0o644)

    def _take_over(self, name: str, content: Iterator[memoryview] | None) -> None:
        source, target = self._checkpoint.path / name, self._stage / name
        if self._low_space and content is not None:
            fsio.link_file(source, target)
        else:
            copied = fsio.share_file if self._share else fsio.copy_file
            copied(source, target, chunks=content, durable=content is None)
        with fsio.storage_errors(target):
            if target.samefile(source):
                self.linked.add(name)

    def _shard_bytes(self, name: str, header: bytes) -> Generator[memoryview]:
        yield memoryview(header)
        with closing(self.found.over(name)) as pieces:
            for piece in pieces:
                if piece.new is not None:
                    yield piece.new.data
                if self._keep and piece.changes:
                    self._keep(piece)
                done = piece.old if piece.new is None else piece.new
                self._progress(0 if done is None else done.size)


def _refuse_outside(changes: Changes) -> None:
    """Raise `StorageError` for the name of a file that is not one of a checkpoint's, before anything is written."""
    for name in changes.files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or "\0" in name or ".." in parts or parts[0].startswith(LEDGER_FOLDER):
            raise StorageError(
                f"{name!r} is not the name of a file of a checkpoint, and is not written",
                hint="nothing was changed; if you did not choose that name, do not trust where the checkpoint is from",
            )


def put_file(stage: Path, written: Written, name: str, content: bytes, *, like: Path) -> Written:
    """Write one more small file into the stage, with the attributes of the file `like`, if there is one."""
    mode = 0o644
    if like.is_file():
        with fsio.storage_errors(like):
            mode = stat.S_IMODE(like.stat().st_mode)
        fsio.create_file(stage / name, [content], like=like)
    else:
        fsio.create_file(stage / name, [content])
    state = FileState(digest=digest_bytes(content), size=len(content), mode=mode)
    return replace(written, files={**written.files, name: state})


def new_size(checkpoint: Checkpoint, changes: Changes, shard: str) -> int:
    """Bytes of a shard once it is changed."""
    header = checkpoint.header(shard)
    size = len(changes.headers[shard]) if shard in changes.headers else header.data_begin
    size += sum(entry.nbytes for entry in header.entries if entry.name not in changes.removed)
    return size + sum(added.nbytes for added in changes.added.get(shard, ()))
