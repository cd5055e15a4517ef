"""Every state that a file system may show after a crash, as far as POSIX goes, rebuilt and judged.

The rules, which are weaker than those of any file system in use. The bytes and attributes of a file are there for
certain once it was fsynced after they were written; before that any of them may be missing, a whole write or some of
its sectors, or the size may be there and the bytes zero. A name is there, or gone, for certain once its folder was
fsynced afterwards; before that each change of a name may have reached the disk or not, whatever became of those before
it. One rename, or one exchange of two names, is there wholly or not at all.

At each point of a history all of these subsets of what is not certain are taken: all of it, none, each single one
missing, each single one there, everything up to each, and some drawn by a seed; each with several fates of the bytes.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import act
from disk import installed
from judgement import Tally, judge, state_of
from recorder import Inode, Operation, Recorder, Tree, applied
from scenes import Scene
from worlds import copied, difference, snapshot

__all__ = ["Recording", "record", "replay", "states_of"]

SECTOR = 512
FATES = ("all", "none", "zeros", "torn", "begun")
"""What becomes of bytes that are not certain."""
_DRAWN = 6


@dataclass(frozen=True)
class Recording:
    """One run of one verb."""

    scene: Scene
    begin: Tree
    history: list[Operation]
    status: int
    outside: int
    """Calls that touched something else than the world."""


def record(scene: Scene, world: Path, *, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> Recording:
    """Run the verb once, `around` it whatever is to differ, and write it down.

    Raises RuntimeError where what was written down is not what was done.
    """
    copied(scene.template, world)
    recorder = Recorder(world)
    with installed(recorder), around():
        status, _ = act.perform(scene.verb.name, world, scene.plan)
    for name in ("model", scene.verb.result):
        if recorder.live.snapshot(name) != snapshot(world / name):
            said = difference(recorder.live.snapshot(name), snapshot(world / name))
            raise RuntimeError(f"the recording of {scene.name} is wrong: {said}")
    return Recording(scene, recorder.begin, recorder.history, status, len(recorder.outside))


def states_of(recording: Recording, seed: int = 0) -> Iterator[tuple[str, bool, Tree]]:
    """What each is, whether the command had succeeded by then, and the state. Each state comes once."""
    seen: set[tuple[bool, tuple[object, ...]]] = set()
    history = recording.history
    for end in range(len(history) + 1):
        done = end == len(history) and recording.status == act.SUCCESS
        certain = _certain(history[:end])
        open_names = [at for at in range(end) if history[at].naming and not certain[at]]
        draw = random.Random(f"{seed} {recording.scene.name} {end}")
        for what, there in _subsets(open_names, draw):
            for fate in FATES if what in ("all names", "no names") else (draw.choice(FATES),):
                tree = _rebuilt(recording.begin, history[:end], certain, there, fate, draw)
                key = (done, tree.key())
                if key not in seen:
                    seen.add(key)
                    yield f"crash after operation {end} of {len(history)}, {what}, bytes {fate}", done, tree


def _certain(history: list[Operation]) -> list[bool]:
    """Which operations are on the disk for certain at the end of this history."""
    certain, synced = [False] * len(history), set()
    for at in range(len(history) - 1, -1, -1):
        operation = history[at]
        if operation.kind == "fsync":
            synced.add(operation.inode)
        elif operation.naming:
            certain[at] = all(folder in synced for folder, _ in operation.places)
        else:
            certain[at] = operation.inode in synced
    return certain


def _subsets(names: list[int], draw: random.Random) -> Iterator[tuple[str, set[int]]]:
    """Which of the changes of names that are not certain have reached the disk."""
    everything = set(names)
    yield "all names", everything
    if names:
        yield "no names", set()
    for at in names:
        yield f"all but {at}", everything - {at}
        yield f"only {at}", {at}
        yield f"up to {at}", {other for other in names if other <= at}
    for number in range(_DRAWN if len(names) > 2 else 0):
        yield f"draw {number}", {at for at in names if draw.random() < 0.5}


def _rebuilt(
    begin: Tree, history: list[Operation], certain: list[bool], there: set[int], fate: str, draw: random.Random
) -> Tree:
    tree = begin.copy()
    # A file lives with the names it has; that it was made is known with any of them.
    made = {operation.inode: operation.fresh for operation in history if operation.fresh is not None}
    for at, operation in enumerate(history):
        if operation.kind == "fsync":
            continue
        if operation.naming:
            if certain[at] or at in there:
                if operation.kind == "link" and operation.inode in made and operation.inode not in tree.inodes:
                    tree.inodes[operation.inode] = _fresh(made[operation.inode])
                tree.do(operation)
            elif operation.kind == "make" and operation.fresh is not None:
                tree.inodes[operation.inode] = operation.fresh.copy()
        elif operation.inode in tree.inodes:
            if certain[at]:
                applied(tree.inodes[operation.inode], operation)
            else:
                _uncertain(tree.inodes[operation.inode], operation, fate, draw)
    return tree


def _fresh(inode: Inode | None) -> Inode:
    assert inode is not None
    return inode.copy()


def _uncertain(inode: Inode, operation: Operation, fate: str, draw: random.Random) -> None:
    """Apply bytes or attributes that were not fsynced, as far as `fate` has it."""
    if fate == "none":
        return
    if operation.kind != "write":
        if fate == "all" or draw.random() < 0.5:
            applied(inode, operation)
        return
    if fate == "all":
        applied(inode, operation)
    elif fate == "zeros":  # the size is there; of what lay there before nothing is lost
        end = operation.offset + len(operation.data)
        inode.content.extend(bytes(max(0, end - len(inode.content))))
    elif fate == "begun":  # cut short
        part = operation.data[: draw.randrange(len(operation.data) + 1)]
        applied(inode, Operation("write", operation.inode, offset=operation.offset, data=part))
    else:
        for start in range(0, len(operation.data), SECTOR):
            if draw.random() < 0.5:
                part = operation.data[start : start + SECTOR]
                applied(inode, Operation("write", operation.inode, offset=operation.offset + start, data=part))


def replay(recording: Recording, world: Path, *, share: tuple[int, int] = (0, 1), again: int = 8) -> Tally:
    """Judge every state: those of this `share` (number, of how many). Every `again`-th has its command run again."""
    tally, scene = Tally(), recording.scene
    for number, (said, done, tree) in enumerate(states_of(recording)):
        if number % share[1] != share[0]:
            continue
        shutil.rmtree(world, ignore_errors=True)
        tree.write(world)
        found = state_of(scene, tree.snapshot(scene.verb.result))
        status = act.SUCCESS if done else None
        judge(tally, scene, world, said, status=status, again=number % again == 0 or found == "mixed")
    return tally


@contextmanager
def without_fsync() -> Iterator[None]:
    """A control: an fsync that does nothing, and is not written down."""
    from planner.fsio import calls

    real = calls.fsync
    calls.fsync = lambda descriptor: None
    try:
        yield
    finally:
        calls.fsync = real
