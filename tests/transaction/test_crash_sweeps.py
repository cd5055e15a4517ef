"""Whatever call fails, and whenever the process dies: the old state or the new one, whole; and nothing stays behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from faults import Disk, installed, interrupt, kill, refuse, run_forked
from snapshots import MEMORY, approved_plan, change, everything, files, litter, scale, small_model

from planner import fsio
from planner.errors import StorageError
from planner.plan import Policy
from planner.transaction import apply_plan, read_ledger, recover, revert, verify

EDIT = scale(1.5, layers="0-1")  # one tensor in each of two shards


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: the sweeps make some ten thousand calls of fsync."""
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
        if verb == "revert":
            change(model, EDIT)
            change(model, scale(0.5, tensors=["model.layers.1.mlp.up_proj.weight"]))
    if root.exists():
        shutil.rmtree(root)
    shutil.copytree(template, root)
    model, result = root / "model", root / ("out" if verb == "out" else "model")
    expected = root.parent / f"expected-{verb}" / result.name

    def run() -> object:
        if verb == "revert":
            return revert(model, to=0, by="tester")
        return apply_plan(
            approved_plan(model, EDIT), model, out=result if verb == "out" else None, policy=Policy(), by="tester"
        )

    before = files(model)
    if not expected.exists():
        run()
        expected.parent.mkdir()
        shutil.move(result, expected)
        return _stage_of(root, verb)
    old = None if verb == "out" else before
    return Scene(root, run, result, old, files(expected), before if verb == "out" else files(expected))


def _is_old_or_new(scene: Scene) -> bool:
    """Whether the result is wholly one of the two states; and whether its ledger says the same."""
    if not scene.result.exists():
        return scene.old is None
    found = files(scene.result)
    if found not in (scene.old, scene.new):
        return False
    ledger = read_ledger(scene.result)
    if ledger is None:
        return found == scene.old
    return verify(scene.result).sound


def _next_command_works(scene: Scene, verb: str) -> None:
    recover(scene.result)
    assert litter(scene.root) == []
    if scene.result.exists() and files(scene.result) == scene.new:
        return
    scene.run()
    assert files(scene.result) == scene.new
    assert litter(scene.root) == []
    assert verify(scene.result).sound


def _calls(root: Path, verb: str) -> int:
    scene = _stage_of(root, verb)
    with installed(Disk()) as disk:
        scene.run()
    assert {"open", "write", "fsync", "mkdir", "unlink"} <= set(disk.calls)
    assert ("rename" if verb == "out" else "exchange") in disk.calls
    return len(disk.calls)


VERBS = pytest.mark.parametrize("verb", ["out", "in-place", "revert"])


@VERBS
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "from-then-on"])
def test_a_failing_disk_leaves_the_old_state_or_the_new_one(world: Path, verb: str, for_ever: bool) -> None:
    """A full or broken disk at every call in turn, until a run comes through without meeting the fault."""
    for number in range(1, _calls(world, verb) + 1):
        scene = _stage_of(world, verb)
        with installed(Disk(number, refuse, for_ever=for_ever)) as disk, suppress(StorageError):
            scene.run()
        assert _is_old_or_new(scene), f"call {number}, {disk.calls[number - 1]}, left a mixture"
        if not for_ever and disk.calls[number - 1] not in {"unlink", "rmdir"}:
            assert litter(scene.root) == [], f"call {number}, {disk.calls[number - 1]}, left something behind"
        if verb == "out":
            assert files(scene.root / "model") == scene.others
        _next_command_works(scene, verb)


@VERBS
def test_a_killed_process_leaves_the_old_state_or_the_new_one(world: Path, verb: str) -> None:
    """kill -9 before every call in turn; then the next command cleans up and succeeds."""
    seen = set()
    for number in range(1, _calls(world, verb) + 1):
        scene = _stage_of(world, verb)
        with installed(Disk(number, kill)):
            assert run_forked(scene.run) == -9
        assert _is_old_or_new(scene), f"killed at call {number}: a mixture"
        seen.add(scene.result.exists() and files(scene.result) == scene.new)
        if verb == "out":
            assert files(scene.root / "model") == scene.others
        _next_command_works(scene, verb)
    assert seen == {True, False}  # the sweep went over the commit


@VERBS
def test_an_interrupt_leaves_the_old_state_or_the_new_one_and_nothing_else(world: Path, verb: str) -> None:
    """Ctrl-C at every call in turn."""
    for number in range(1, _calls(world, verb) + 1):
        scene = _stage_of(world, verb)
        with installed(Disk(number, interrupt)) as disk, pytest.raises(KeyboardInterrupt):
            scene.run()
        assert _is_old_or_new(scene), f"interrupted at call {number}, {disk.calls[-1]}: a mixture"
        # Only the lock file can stay, when the interrupt hits the call that removes it; it locks nobody out.
        left = litter(scene.root)
        assert left == [] or (number == len(disk.calls) and left == [f".{scene.result.name}.planner-lock"])
        _next_command_works(scene, verb)


def test_a_crash_during_recovery_is_recovered_from(world: Path) -> None:
    """Killed in the middle of writing, then killed at every call of the cleaning up."""
    root = world
    middle = _calls(root, "in-place") // 2

    def broken() -> Scene:
        scene = _stage_of(root, "in-place")
        with installed(Disk(middle, kill)):
            assert run_forked(scene.run) == -9
        return scene

    scene = broken()
    with installed(Disk()) as disk:
        assert len(recover(scene.result)) == 1
    for number in range(1, len(disk.calls) + 1):
        scene = broken()
        with installed(Disk(number, kill)):
            assert run_forked(partial(recover, scene.result)) == -9
        assert files(scene.result) == scene.old
        _next_command_works(scene, "in-place")


def _file_by_file(stage: Path, final: Path) -> None:
    """What the planner must never do: one rename a file."""
    final.mkdir(exist_ok=True)
    for path in sorted(stage.rglob("*")):
        target = final / path.relative_to(stage)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            fsio.os.replace(path, target)


@VERBS
def test_the_sweep_sees_a_commit_that_is_not_one_step(world: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with one rename a file instead of one switch, some call must leave a mixture."""
    for module, name in (("apply", "publish"), ("apply", "swap_in"), ("revert", "swap_in")):
        monkeypatch.setattr(import_module(f"planner.transaction.{module}"), name, _file_by_file)
    scene = _stage_of(world, verb)
    with installed(Disk()) as disk:
        scene.run()
    for fault in (refuse, kill, interrupt):
        sound = []
        for number in [n for n, call in enumerate(disk.calls, start=1) if call == "replace"]:
            scene = _stage_of(world, verb)
            with installed(Disk(number, fault)):
                if fault is kill:
                    run_forked(scene.run)
                else:
                    with pytest.raises((KeyboardInterrupt, OSError)):
                        scene.run()
            sound.append(_is_old_or_new(scene))
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
