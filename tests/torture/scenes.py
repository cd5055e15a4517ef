"""Scenes: a world, a command to run in it, and the states that it may leave, each known to the last bit.

A checkpoint of three shards with an index, a tokenizer, odd modes, a subfolder, an empty folder and an extended
attribute; one tensor is large enough for undo data in pieces, the others are small. A scene of `recover` begins where a
command was killed: before its commit, after it, and, for commands that take the model's name away, in between.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import act
from builders import a_plan, random_tensor, write_checkpoint
from disk import Dead, dead_at, installed, watched
from worlds import Snapshot, copied, snapshot

__all__ = ["Scene", "calls_of", "checkpoint", "plan_for", "run", "scenes_of"]


@dataclass(frozen=True)
class Scene:
    """What is tried."""

    name: str
    verb: act.Verb
    template: Path
    """The world before."""
    plan: Any
    """For a verb that takes one."""
    old: Snapshot | None
    """The folder that the verb writes, before; None if it is not there."""
    new: Snapshot | None
    """And afterwards."""
    source: Snapshot | None = None
    """The model, where that is another folder, which stays as it is."""
    absent: bool = False
    """Whether the folder may be missing after a crash, until `recover` has been run."""

    def result(self, world: Path) -> Path:
        """The folder that the verb writes."""
        return world / self.verb.result


def checkpoint(folder: Path, *, large: int = 96) -> Path:
    """The checkpoint of the scenes."""
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": (dtype, random_tensor((8, 16), dtype=dtype, seed=layer))
        for layer, dtype in enumerate(["BF16", "F16", "F32", "BF16", "BF16"])
    }
    tensors["model.layers.0.mlp.down_proj.weight"] = ("BF16", random_tensor((large, large), seed=7))
    tensors["model.norm.weight"] = ("F32", random_tensor((16,), dtype="F32", seed=99))
    write_checkpoint(folder, tensors, shards=3)
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer.json").chmod(0o640)
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("kept")
    (folder / "sub" / "notes.txt").chmod(0o400)
    (folder / "sub").chmod(0o750)
    (folder / "empty").mkdir()
    folder.chmod(0o755)
    with suppress(OSError):
        os.setxattr(folder / "tokenizer.json", "user.origin", b"somewhere")
    return folder


def _scale(factor: float, **target: Any) -> dict[str, Any]:
    return {"target": target, "operation": {"kind": "scale", "factor": factor}}


PATCHES = [
    [_scale(2.0, layers="4"), _scale(0.7, tensors=["model.norm.weight"])],
    [_scale(1.3, layers="0"), {"target": {"layers": "3"}, "operation": {"kind": "clamp", "maximum": 0.02}}],
    [_scale(1.5, layers="0-1")],  # tensors in two of three shards
]


def plan_for(model: Path, modifications: Sequence[dict[str, Any]], policy: Any = None) -> Any:
    """A plan of which everything is approved, under a policy where one is given."""
    from planner.plan import decide

    plan = a_plan(model, *modifications)
    under = {"policy": policy} if policy else {}
    return decide(plan, [change.id for change in plan.modifications], "approved", reviewer="tester", **under)


def run(verb: str, world: Path, plan: Any) -> None:
    """Do it, in this process; it must succeed."""
    status, said = act.perform(verb, world, plan)
    if status != act.SUCCESS:
        raise RuntimeError(f"{verb} fails with nothing wrong: {said}")


def calls_of(scene: Scene, world: Path) -> list[str]:
    """The calls that the verb makes where nothing fails."""
    copied(scene.template, world)
    with installed(watched) as seen:
        run(scene.verb.name, world, scene.plan)
    return seen


def scenes_of(folder: Path, names: Sequence[str] | None = None, *, large: int = 96) -> list[Scene]:
    """The scenes of the verbs `names`, or of all that there are, made in `folder`."""
    os.umask(0o022)
    act.still()
    verbs = [verb for name, verb in act.VERBS.items() if (names is None or name in names) and verb.there]
    made = {
        verb.name: _scene(folder, verb, large) for verb in act.VERBS.values() if verb.there and verb.name != "recover"
    }
    found = [made[verb.name] for verb in verbs if verb.name in made]
    if "recover" in [verb.name for verb in verbs]:
        for name, scene in made.items():
            if name == "apply" or scene.verb.low_space:
                found += _recoveries(folder, scene)
    return found


def _scene(folder: Path, verb: act.Verb, large: int) -> Scene:
    template = folder / f"template-{verb.name}"
    template.mkdir(parents=True)
    model = checkpoint(template / "model", large=large)
    for patch in PATCHES[: verb.patches]:
        run("apply-low-space" if verb.low_space else "apply", template, plan_for(model, patch))
    plan = plan_for(model, PATCHES[2]) if verb.planned else None
    other = verb.result != "model"
    scene = Scene(
        verb.name,
        verb,
        template,
        plan,
        old=snapshot(template / verb.result),
        new=None,
        source=snapshot(model) if other else None,
        absent=verb.low_space or other,
    )
    world = copied(template, folder / "trial")
    run(verb.name, world, plan)
    return replace(scene, new=snapshot(scene.result(world)))


def _recoveries(folder: Path, scene: Scene) -> list[Scene]:
    """What is left by a kill at a few calls of another scene."""
    count = len(calls_of(scene, folder / "trial"))
    commit = next(at for at in range(count + 1, 0, -1) if _state_after(scene, folder, at) != "new") + 1
    found = []
    places = {"before the commit": commit - 1, "after the commit": commit + 1}
    if scene.verb.low_space:
        places["in the middle"] = commit * 9 // 10  # the last tenth is that of the bytes
    for number, (place, at) in enumerate(places.items()):
        state = _state_after(scene, folder, at)
        template = copied(folder / "trial", folder / f"template-recover-{scene.name}-{number}")
        kept = {"old": scene.old, "new": scene.new, "absent": None}[state]
        found.append(
            Scene(
                f"recover {scene.name} {place}",
                act.VERBS["recover"],
                template,
                None,
                # A low-space change may be taken back or finished, as long as it is one of the two.
                old=scene.old if state == "absent" else kept,
                new=scene.new if state == "absent" else kept,
                absent=state == "absent",
            )
        )
    return found


def _state_after(scene: Scene, folder: Path, at: int) -> str:
    world = copied(scene.template, folder / "trial")
    with suppress(Dead), installed(dead_at(at)):
        act.perform(scene.verb.name, world, scene.plan)
    found = snapshot(scene.result(world))
    states = {"old": scene.old, "new": scene.new, "absent": None}
    return next((name for name, state in states.items() if found == state), "mixed")
