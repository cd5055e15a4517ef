"""Negative controls: what the planner must never do, done on purpose. A sweep that does not see it proves nothing.

Each control runs the same sweep as the real thing, on the same scenes, and must come out bad.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import act
from crash_states import record, replay, without_fsync
from disk import Dead, dead_at, installed
from judgement import Tally, judge
from scenes import Scene, calls_of
from worlds import copied

__all__ = ["believed", "by_file", "killed_by_file", "lied_to", "unsynced"]


@contextmanager
def _replaced(changes: dict[str, Callable[..., Any]], *, within: str = "planner.transaction") -> Iterator[None]:
    """Functions of the planner exchanged by name, in every module that has them."""
    kept = []
    for name, module in list(sys.modules.items()):
        for attribute, value in changes.items():
            if name.startswith(within) and hasattr(module, attribute):
                kept.append((module, attribute, getattr(module, attribute)))
                setattr(module, attribute, value)
    try:
        yield
    finally:
        for module, attribute, value in kept:
            setattr(module, attribute, value)


def _file_by_file(stage: Path, final: Path, *others: Any, **named: Any) -> None:
    from planner.fsio import calls

    final.mkdir(exist_ok=True)
    for path in sorted(stage.rglob("*")):
        target = final / path.relative_to(stage)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            calls.rename(path, target)


def by_file() -> Any:
    """Commit by one rename a file."""
    return _replaced({"publish": _file_by_file, "swap_in": _file_by_file})


def killed_by_file(scene: Scene, world: Path) -> Tally:
    """Killed at every call of a commit that is not one step."""
    tally = Tally()
    with by_file():
        for at in range(1, len(calls_of(scene, world)) + 1):
            copied(scene.template, world)
            with suppress(Dead), installed(dead_at(at)):
                act.perform(scene.verb.name, world, scene.plan)
            judge(tally, scene, world, f"by file, killed at call {at}", again=False)
    return tally


def unsynced(scene: Scene, world: Path, *, share: tuple[int, int] = (0, 1)) -> Tally:
    """What may be left after a crash where nothing is ever fsynced."""
    recording = record(scene, world, around=without_fsync)
    return replay(recording, world, share=share, again=10**9)


def believed() -> Any:
    """Nothing that was written is read back."""
    return _replaced({"prove": _as_meant, "proven": _as_meant, "_compared": _as_meant, "write_record": _unread})


def _as_meant(*arguments: Any, **options: Any) -> Any:
    from planner.transaction.types import State

    for written in arguments:
        if hasattr(written, "before") and hasattr(written, "files"):
            return State(fingerprint=written.before.fingerprint, files=dict(written.files), tensors=written.tensors)
    return None


def _unread(path: Path, content: bytes) -> None:
    from planner import fsio

    fsio.create_file(path, [content])


def lied_to(scene: Scene, world: Path, *, reading: bool = True) -> Tally:
    """Every write in turn stores one wrong bit, or nothing, and says that all is well; without `reading`, a control."""
    tally = Tally()
    with nullcontext() if reading else believed():
        writes = [at for at, name in enumerate(calls_of(scene, world), 1) if name in ("write", "pwrite")]
        for at in writes:
            for said, altered in (("stores a wrong bit", _flipped), ("stores zeros", _zeroed)):
                copied(scene.template, world)
                with installed(_lying_at(at, altered)):
                    status, _ = act.perform(scene.verb.name, world, scene.plan)
                judge(tally, scene, world, f"the write of call {at} {said}", status=status, detected=True, again=False)
    return tally


def _lying_at(at: int, altered: Callable[[bytes], bytes]) -> Callable[..., Any]:
    def hook(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number == at:
            arguments = (arguments[0], altered(bytes(memoryview(arguments[1]).cast("B"))), *arguments[2:])
        return real(*arguments)

    return hook


def _flipped(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _zeroed(data: bytes) -> bytes:
    return bytes(len(data))
