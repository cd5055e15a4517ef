"""Whatever call fails, and whenever the process dies: the old state or the new one, whole; and nothing stays behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from faults import Disk, installed, interrupt, kill, refuse, run_forked
from snapshots import MEMORY, approved_plan, change, everything, files, litter, scale, short_pieces, small_model

from planner.errors import Interrupted, LedgerDamaged, RecoveryBlocked, StorageError
from planner.fsio import calls
from planner.plan import Policy
from planner.transaction import apply_plan, read_ledger, recover, revert, verify
from planner.transaction.in_place import low_space, slot

EDIT = scale(1.5, layers="0-1")  # one tensor in each of two shards
LOW = "low-space"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory where there is one: the sweeps make some ten thousand calls of fsync.

    Tensors have four pieces each, and each piece goes through the slot by itself.
    """
    short_pieces(monkeypatch, 64)
    monkeypatch.setattr(low_space, "CHUNK", 1)
    monkeypatch.setattr(low_space, "refuse_in_use", lambda shards: None)  # it only looks, and at every process
    with tempfile.TemporaryDirectory(dir=MEMORY or tmp_path) as folder:
        yield Path(folder) / "world"


@dataclass
class Scene:
    """A folder with a model in it, a command to run on it, and the states it may leave."""

    root: Path
    run: Callable[[], object]
    result: Path
    """The folder that the command writes."""
    old: dict[str, tuple[int, bytes]] | None
    """Its files before; None if it is not there."""
    new: dict[str, tuple[int, bytes]]
    """Its files afterwards."""
    others: dict[str, tuple[int, bytes]]
    """The files of the model, where that is another folder."""


def _stage_of(root: Path, verb: str) -> Scene:
    """A fresh copy of the scene of one verb."""
    template = root.parent / f"template-{verb}"
    if not template.exists():
        model = small_model(template / "model")
        if "revert" in verb:
            change(model, EDIT, low_space=LOW in verb)
            change(model, scale(0.5, tensors=["model.layers.1.mlp.up_proj.weight"]))
    if root.exists():
        shutil.rmtree(root)
    shutil.copytree(template, root)
    model, result = root / "model", root / ("out" if verb == "out" else "model")
    expected = root.parent / f"expected-{verb}" / result.name

    def run() -> object:
        if "revert" in verb:
            return revert(model, to=0, by="tester", low_space=LOW in verb)
        out = result if verb == "out" else None
        return apply_plan(
            approved_plan(model, EDIT), model, out=out, policy=Policy(), by="tester", low_space=LOW in verb
        )

    before = files(model)
    if not expected.exists():
        run()
        expected.parent.mkdir()
        shutil.move(result, expected)
        return _stage_of(root, verb)
    old = None if verb == "out" else before
    return Scene(root, run, result, old, files(expected), before if verb == "out" else files(expected))


def _is_old_or_new(scene: Scene, verb: str, *, stuck: bool = False) -> bool:
    """Whether the result is wholly one of the two states; and whether its ledger says the same.

    One that is overwritten has no name meanwhile. If the command is `stuck`, that may be left to `recover`.
    """
    if not scene.result.exists() and stuck and LOW in verb:
        recover(scene.result)
    if not scene.result.exists():
        return scene.old is None
    found = files(scene.result)
    if found not in (scene.old, scene.new):
        return False
    ledger = read_ledger(scene.result)
    if ledger is None:
        return found == scene.old
    return verify(scene.result).sound


def _next_command_works(scene: Scene, verb: str, number: int = 0) -> None:
    """The next command cleans up; after every seventh call that is tried, the same command is given once more."""
    recover(scene.result)
    assert litter(scene.root) == []
    if number % 7 or (scene.result.exists() and files(scene.result) == scene.new):
        return
    scene.run()
    assert files(scene.result) == scene.new
    assert litter(scene.root) == []
    assert verify(scene.result).sound


def _calls(root: Path, verb: str) -> int:
    scene = _stage_of(root, verb)
    with installed(Disk()) as disk:
        scene.run()
    assert {"create", "write", "fsync", "mkdir", "unlink"} <= set(disk.calls)
    assert ("exchange" if verb in ("in-place", "revert") else "rename") in disk.calls
    if LOW in verb:
        assert disk.calls.count("pwrite") == 2 * 2 * 4  # two tensors of four pieces; into the slot, and in their place
    return len(disk.calls)


def _some(count: int, first: int) -> list[int]:
    """Every sixth of so many calls; with 1, 2 and 3 as the first, half of them. The torture takes them all."""
    return sorted({*range(first, count + 1, 6), count})  # the last one is behind the commit


VERBS = pytest.mark.parametrize("verb", ["out", "in-place", "revert", f"in-place {LOW}", f"revert {LOW}"])


@VERBS
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "from-then-on"])
def test_a_failing_disk_leaves_the_old_state_or_the_new_one(world: Path, verb: str, for_ever: bool) -> None:
    """A full or broken disk at one call after the other, for once or from then on."""
    for number in _some(_calls(world, verb), 1 + for_ever):
        scene = _stage_of(world, verb)
        failed: StorageError | None = None
        with installed(Disk(number, refuse, for_ever=for_ever)) as disk:
            try:
                scene.run()
            except StorageError as error:
                failed = error
        stuck = isinstance(failed, RecoveryBlocked)
        assert not stuck or (for_ever and LOW in verb)  # if the disk works again, nobody has to do anything
        assert _is_old_or_new(scene, verb, stuck=stuck), f"call {number}, {disk.calls[number - 1]}, left a mixture"
        if failed and not for_ever and disk.calls[number - 1] not in {"unlink", "rmdir"}:
            assert litter(scene.root) == [], f"call {number}, {disk.calls[number - 1]}, left something behind"
        if verb == "out":
            assert files(scene.root / "model") == scene.others
        _next_command_works(scene, verb, number)


@VERBS
def test_a_killed_process_leaves_the_old_state_or_the_new_one(world: Path, verb: str) -> None:
    """kill -9 before one call after the other; then the next command cleans up and succeeds."""
    seen = set()
    for number in _some(_calls(world, verb), 3):
        scene = _stage_of(world, verb)
        with installed(Disk(number, kill)):
            assert run_forked(scene.run) == -9
        assert _is_old_or_new(scene, verb, stuck=True), f"killed at call {number}: a mixture"
        seen.add(scene.result.exists() and files(scene.result) == scene.new)
        if verb == "out":
            assert files(scene.root / "model") == scene.others
        _next_command_works(scene, verb, number)
    assert seen == {True, False}  # the sweep went over the commit


@VERBS
def test_an_interrupt_leaves_the_old_state_or_the_new_one_and_nothing_else(world: Path, verb: str) -> None:
    """Ctrl-C at one call after the other; who is told that nothing was done could do it twice."""
    for number in _some(_calls(world, verb), 1):
        scene = _stage_of(world, verb)
        said = ""
        with installed(Disk(number, interrupt)) as disk:
            try:
                scene.run()
            except KeyboardInterrupt:
                said = "nothing was done"
            except Interrupted:
                said = "done already"
        # A revert in place goes on to the end: there is nothing left to take it back with.
        assert said or verb == "revert low-space"
        is_new = scene.result.exists() and files(scene.result) == scene.new
        assert is_new is (said != "nothing was done")
        assert _is_old_or_new(scene, verb), f"interrupted at call {number}, {disk.calls[-1]}: a mixture"
        # Only the lock file can stay, when the interrupt hits the call that removes it; it locks nobody out.
        left = litter(scene.root)
        assert left == [] or (number == len(disk.calls) and left == [f".{scene.result.name}.planner-lock"])
        _next_command_works(scene, verb, number)


@pytest.mark.parametrize("verb", ["in-place", f"in-place {LOW}", f"revert {LOW}"])
def test_a_crash_during_recovery_is_recovered_from(world: Path, verb: str) -> None:
    """Killed in the middle of writing, then killed at every call of the cleaning up."""
    root, scene = world, _stage_of(world, verb)
    with installed(Disk()) as disk:
        scene.run()
    places = [number for number, call in enumerate(disk.calls, start=1) if call == "pwrite"]
    # In their place, at the first, a middle and the last of the eight pieces; the slot is written before each.
    middles = [places[1], places[8], places[9], places[15] + 1] if places else [len(disk.calls) // 2]

    def broken(middle: int) -> Scene:
        scene = _stage_of(root, verb)
        with installed(Disk(middle, kill)):
            assert run_forked(scene.run) == -9
        return scene

    for middle in middles:
        scene = broken(middle)
        assert scene.result.exists() is (LOW not in verb)
        with installed(Disk()) as disk:
            assert len(recover(scene.result)) == (3 if LOW in verb else 1)
        for number in _some(len(disk.calls), 1 + middle % 3):
            scene = broken(middle)
            with installed(Disk(number, kill)):
                assert run_forked(partial(recover, scene.result)) == -9
            assert _is_old_or_new(scene, verb, stuck=True)
            _next_command_works(scene, verb, number)


def _torn(at: int) -> Callable[[int, bytes, int], int]:
    """A pwrite that in the call of this number brings half of the bytes to the disk, and no more of anything."""
    real, seen = calls.pwrite, []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        seen.append(descriptor)
        if len(seen) == at:
            real(descriptor, data[: len(data) // 2], offset)
            kill("pwrite")
        return real(descriptor, data, offset)

    return pwrite


OVERWRITING = pytest.mark.parametrize("verb", [f"in-place {LOW}", f"revert {LOW}"])


@OVERWRITING
def test_a_torn_piece_outlives_every_further_crash(world: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half written is whole in the slot alone: that must be in its place before the slot is used again."""

    def broken() -> Scene:
        scene = _stage_of(world, verb)
        with monkeypatch.context() as patch:
            patch.setattr(calls, "pwrite", _torn(8))  # the fourth piece
            assert run_forked(scene.run) == -9
        return scene

    scene = broken()
    with installed(Disk()) as disk:
        recover(scene.result)
    for number in range(1, len(disk.calls) + 1):
        scene = broken()
        with installed(Disk(number, kill)):
            assert run_forked(partial(recover, scene.result)) == -9
        _next_command_works(scene, verb, number)
        assert _is_old_or_new(scene, verb)
    for number in range(1, disk.calls.count("pwrite") + 1):
        scene = broken()
        with monkeypatch.context() as patch:
            patch.setattr(calls, "pwrite", _torn(number))
            assert run_forked(partial(recover, scene.result)) == -9
        _next_command_works(scene, verb, number)
        assert _is_old_or_new(scene, verb)


@OVERWRITING
def test_the_sweep_sees_a_chunk_that_is_kept_nowhere(world: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the slot, what was killed in the middle of a piece cannot be made whole."""
    scene = _stage_of(world, verb)
    with monkeypatch.context() as patch:
        patch.setattr(slot.Slot, "put", lambda self, chunks: None)
        patch.setattr(calls, "pwrite", _torn(4))
        assert run_forked(scene.run) == -9
    with pytest.raises(LedgerDamaged, match="neither what it was nor what it was to be"):
        recover(scene.result)


def _file_by_file(stage: Path, final: Path, *others: Any, **named: Any) -> None:
    """What the planner must never do: one rename a file."""
    final.mkdir(exist_ok=True)
    for path in sorted(stage.rglob("*")):
        target = final / path.relative_to(stage)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            calls.rename(path, target)


@pytest.mark.parametrize("verb", ["out", "in-place", "revert"])
def test_the_sweep_sees_a_commit_that_is_not_one_step(world: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with one rename a file instead of one switch, some call must leave a mixture."""
    for module, name in (("apply", "publish"), ("apply", "swap_in"), ("revert", "swap_in")):
        monkeypatch.setattr(import_module(f"planner.transaction.{module}"), name, _file_by_file)
    scene = _stage_of(world, verb)
    with installed(Disk()) as disk:
        scene.run()
    for fault in (refuse, kill, interrupt):
        sound = []
        for number in [n for n, call in enumerate(disk.calls, start=1) if call == "rename"]:
            scene = _stage_of(world, verb)
            with installed(Disk(number, fault)):
                if fault is kill:
                    run_forked(scene.run)
                else:
                    with pytest.raises((KeyboardInterrupt, OSError)):
                        scene.run()
            sound.append(_is_old_or_new(scene, verb))
        assert not all(sound)


def test_the_model_is_readable_at_every_call(world: Path) -> None:
    """A reader that opens the model between any two calls of the writer sees the old files or the new ones."""
    scene = _stage_of(world, "in-place")
    seen = []

    def look(call: str) -> None:
        seen.append(files(scene.result))

    with installed(Disk(1, look, for_ever=True)):
        scene.run()
    assert all(state in (scene.old, scene.new) for state in seen)
    assert seen[0] == scene.old
    assert seen[-1] == scene.new
    assert everything(scene.root / "model" / "empty") == {}
