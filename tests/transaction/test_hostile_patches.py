"""Portable patches from strangers: an error with a name, or the exact result; nothing outside, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from portable_cases import KINDS, apply_here, arrays_of, llama, rewrite, written
from snapshots import ANY, MEMORY, approved_plan, everything, files, scale

from planner.errors import PatchUnusable, PlannerError, PlanNotApproved, PlanRefused, StalePlan
from planner.plan import read_plan, write_plan
from planner.transaction import PortablePatch, apply_patch, export_patch


@dataclass(frozen=True)
class World:
    """A base, an honest patch for it, and what that makes of it."""

    folder: Path
    base: Path
    patch: Path
    result: Any

    def apply(self, patch: Path) -> bool:
        """Apply a patch; whether it was taken. It must not do anything else than the honest one, or nothing at all."""
        before = everything(self.folder)
        out = self.folder / "out"
        try:
            apply_patch(PortablePatch(patch), self.base, out=out, policy=ANY, by="tester")
            refused = None
        except PlannerError as error:
            refused = error
        if refused:
            assert refused.exit_status in (3, 4), refused
            assert refused.hint
            assert everything(self.folder) == before
            return False
        assert files(out) == self.result
        shutil.rmtree(out)
        assert everything(self.folder) == before
        return True


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        (folder / "world").mkdir()
        base = llama(folder / "world" / "model")
        plan = approved_plan(base, *KINDS["everything"], policy=ANY)
        apply_here(plan, base, folder / "made")
        export_patch(folder / "made", folder / "honest.patch")
        yield World(folder / "world", base, folder / "honest.patch", files(folder / "made"))


@pytest.fixture
def hostile(world: World) -> Iterator[Path]:
    """Where to write a patch to."""
    path = world.patch.with_name("hostile.patch")
    yield path
    path.unlink(missing_ok=True)


def test_the_honest_one_is_taken(world: World, hostile: Path) -> None:
    assert world.apply(world.patch)
    written(hostile, arrays_of(world.patch))
    assert hostile.read_bytes() == world.patch.read_bytes()
    rewrite(world.patch, hostile, lambda head: head.update(base="another name"))
    assert world.apply(hostile)


def test_cut_short_at_every_97th_byte(world: World, hostile: Path) -> None:
    raw = world.patch.read_bytes()
    for size in range(0, len(raw), 97):
        hostile.write_bytes(raw[:size])
        assert not world.apply(hostile)
    hostile.write_bytes(raw + b"\0")
    assert not world.apply(hostile)


def test_bits_flipped(world: World, hostile: Path) -> None:
    raw = world.patch.read_bytes()
    random, taken = np.random.default_rng(0), 0
    for bit in random.choice(8 * len(raw), 300, replace=False):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        hostile.write_bytes(flipped)
        taken += world.apply(hostile)
    assert taken < 30  # a name for people, the metadata: nothing that is used


def test_bits_flipped_in_what_gives_the_bytes(world: World, hostile: Path) -> None:
    arrays = arrays_of(world.patch)
    random = np.random.default_rng(1)
    for name in arrays.keys() - {"patch", "plan"}:
        for bit in random.choice(8 * len(arrays[name]), 40, replace=False):
            flipped = bytearray(arrays[name])
            flipped[bit // 8] ^= 1 << bit % 8
            written(hostile, arrays | {name: bytes(flipped)})
            world.apply(hostile)  # an unused pattern of a table may be another one, which changes nothing


def test_arrays_in_the_place_of_others(world: World, hostile: Path) -> None:
    arrays = arrays_of(world.patch)
    for name in arrays:
        for other in [*arrays.values(), b"", b"{}", b"[]", b"\xff" * 100, bytes(300)]:
            if other != arrays[name]:
                written(hostile, arrays | {name: other})
                assert not world.apply(hostile)
        written(hostile, {key: raw for key, raw in arrays.items() if key != name})
        assert not world.apply(hostile)
    written(hostile, arrays | {"more": b"hidden"})
    assert not world.apply(hostile)


def tensor(head: dict[str, Any], part: str) -> Any:
    """The entry of a tensor, by a part of its name."""
    return next(found for found in head["tensors"] if part in found["name"])


TABLE, FRAMES, BIAS = "1.self_attn.k_proj.weight", "1.mlp.gate_proj.weight", "1.self_attn.o_proj.bias"
NAME = "model.layers.1.self_attn.k_proj.weight"
Edit = Callable[[dict[str, Any]], object]
EDITS: dict[str, Edit] = {
    "twice the same tensor": lambda h: h["tensors"].append(h["tensors"][0]),
    "a tensor that is not there": lambda h: tensor(h, TABLE).update(name="../../etc/passwd"),
    "another tensor": lambda h: tensor(h, TABLE).update(name="model.layers.1.self_attn.v_proj.weight"),
    "another dtype": lambda h: tensor(h, TABLE).update(dtype="F16"),
    "no dtype": lambda h: tensor(h, TABLE).update(dtype="X1"),
    "another shape": lambda h: tensor(h, TABLE).update(shape=[WIDE, 1]),
    "a bias of a huge shape": lambda h: tensor(h, BIAS).update(shape=[2**62]),
    "a bias of an absurd shape": lambda h: tensor(h, BIAS).update(shape=[2**40, 2**40]),
    "a bias of a negative shape": lambda h: tensor(h, BIAS).update(shape=[-32]),
    "a bias of another dtype": lambda h: tensor(h, BIAS).update(dtype="I16"),
    "a bias that no loader asks for": lambda h: tensor(h, BIAS).update(name="model.layers.1.mlp.up_proj.bias"),
    "a bias whose name is a path": lambda h: tensor(h, BIAS).update(name="../../../tmp/x.bias"),
    "a bias less": lambda h: h["tensors"].remove(tensor(h, BIAS)),
    "a bias that was there": lambda h: tensor(h, BIAS).update(before=h["tensors"][0]["before"]),
    "a weight that was not there": lambda h: tensor(h, TABLE).update(before=None),
    "a file": lambda h: h.update(files=[{"name": "../x", "part": "file"}]),
    "a shard to join": lambda h: tensor(h, BIAS).update(added_to="../../x"),
    "another key of config.json": lambda h: h["config"].update(tie_word_embeddings=True),
    "no key of config.json": lambda h: h.update(config={}),
    "text in config.json": lambda h: h["config"].update(auto_map="evil.py"),
    "a bias taken away": lambda h: h["config"].update(attention_bias=False),
    "a modification that is not in the plan": lambda h: tensor(h, TABLE).update(modifications=["m99"]),
    "another state before": lambda h: tensor(h, TABLE).update(before="blake3:" + "0" * 64),
    "another state after": lambda h: tensor(h, TABLE).update(after="blake3:" + "0" * 64),
    "another base": lambda h: h.update(fingerprint_before="blake3:" + "0" * 64),
    "frames and a table": lambda h: tensor(h, TABLE)["frames"].update(parts=tensor(h, FRAMES)["frames"]["parts"]),
    "neither frames nor a table": lambda h: tensor(h, TABLE)["frames"].update(table=None),
    "a table that is none": lambda h: tensor(h, TABLE)["frames"].update(table="plan"),
    "frames that are none": lambda h: tensor(h, FRAMES)["frames"].update(parts=[["plan", 0, 400]]),
    "frames from a negative place on": lambda h: tensor(h, FRAMES)["frames"]["parts"][0].__setitem__(1, -5),
    "frames of a negative size": lambda h: tensor(h, FRAMES)["frames"]["parts"][0].__setitem__(2, -5),
    "frames beyond the end": lambda h: tensor(h, FRAMES)["frames"]["parts"][0].__setitem__(1, 2**70),
    "frames of another tensor": lambda h: tensor(h, FRAMES).update(frames=tensor(h, "0.mlp.gate")["frames"]),
    "that it moves nothing": lambda h: tensor(h, TABLE).update(relative_change=0.0),
    "that it moves little": lambda h: tensor(h, FRAMES).update(relative_change=1e-4),
    "that it moves more": lambda h: tensor(h, FRAMES).update(relative_change=2.0),
    "that it moves by no number": lambda h: tensor(h, FRAMES).update(relative_change=float("nan")),
    "that it moves by nothing known": lambda h: tensor(h, FRAMES).update(relative_change=None),
    "another schema": lambda h: h.update(schema="planner/patch@2"),
    "a field that nobody knows": lambda h: h.update(more=1),
    "a name of another kind": lambda h: tensor(h, TABLE).update(name=7),
    "a name that is too long": lambda h: tensor(h, TABLE).update(name="x" * 10_000),
}
WIDE = 16 * 32


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_head_that_says_something_else(world: World, hostile: Path, edit: Edit) -> None:
    rewrite(world.patch, hostile, edit)
    assert not world.apply(hostile)


def test_another_result_than_it_names_is_not_committed(world: World, hostile: Path) -> None:
    rewrite(world.patch, hostile, lambda head: head.update(fingerprint_after="blake3:" + "0" * 64))
    before = everything(world.folder)
    with pytest.raises(PlannerError) as caught:
        apply_patch(PortablePatch(hostile), world.base, out=world.folder / "out", policy=ANY, by="tester")
    assert caught.value.exit_status == 7
    assert everything(world.folder) == before


def test_a_table_that_makes_infinities_is_refused(world: World, tmp_path: Path) -> None:
    """It may say what it likes of how far it moves a tensor: what cannot be measured is refused."""
    from planner.checkpoint import digest_bytes, open_checkpoint
    from planner.transaction.undo.residuals import pack_table, unpack_table

    model = world.base
    apply_here(approved_plan(model, scale(1.02, tensors=[NAME]), policy=ANY), model, tmp_path / "made")
    export_patch(tmp_path / "made", tmp_path / "honest.patch")
    arrays = arrays_of(tmp_path / "honest.patch")
    found = open_checkpoint(model)
    old = np.frombuffer(b"".join(found.chunks(found.tensors[NAME])), np.uint16)
    table = unpack_table(arrays["table/0"])
    table[old[7]] = 0x7F80
    head = json.loads(arrays["patch"])
    head["tensors"][0]["after"] = digest_bytes(table[old].tobytes())
    was, now = ((x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for x in (old, table[old]))
    rest = np.isfinite(now)
    moved = float(np.linalg.norm((now - was)[rest]) / np.linalg.norm(was[rest]))
    for said in (None, 0.0, moved, 1e-4):
        head["tensors"][0]["relative_change"] = said
        evil = arrays | {"table/0": pack_table(table), "patch": json.dumps(head).encode()}
        patch = PortablePatch(written(tmp_path / "evil.patch", evil))
        with pytest.raises((PlanRefused, PatchUnusable)):
            apply_patch(patch, model, out=tmp_path / "out", policy=ANY, by="tester")
        assert not (tmp_path / "out").exists()


def test_a_plan_that_was_exchanged_or_edited(world: World, hostile: Path) -> None:
    plan = read_plan(arrays_of(world.patch)["plan"].decode())
    rewrite(world.patch, hostile, lambda _: None, plan=write_plan(plan.model_copy(update={"goal": "another"})))
    with pytest.raises(PlanNotApproved):
        apply_patch(PortablePatch(hostile), world.base, out=world.folder / "out", policy=ANY, by="tester")
    honest = approved_plan(world.base, scale(2, roles=["q_proj"]), policy=ANY)
    rewrite(world.patch, hostile, lambda _: None, plan=write_plan(honest))
    with pytest.raises(PatchUnusable, match="nobody approved"):
        PortablePatch(hostile)
    undecided = write_plan(plan.model_copy(update={"review": {}}))
    rewrite(world.patch, hostile, lambda _: None, plan=undecided)
    assert not world.apply(hostile)


BOMBS = {
    "deep nesting": b"[" * 2_000_000,
    "deep objects": b'{"a":' * 500_000 + b"1" + b"}" * 500_000,
    "two keys alike": b'{"schema":"planner/patch@1","schema":"planner/patch@1"}',
    "a long number": b'{"schema":' + b"9" * 1_000_000 + b"}",
    "no text": b"\xff\xfe" * 1000,
    "half a pair": b'{"base":"\\ud800"}',
    "nothing": b"",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("array", ["patch", "plan"])
def test_json_that_is_a_trap(world: World, hostile: Path, bomb: bytes, array: str) -> None:
    written(hostile, arrays_of(world.patch) | {array: bomb})
    with pytest.raises(PatchUnusable):
        PortablePatch(hostile)


def test_a_million_tensors_take_no_memory(world: World, hostile: Path) -> None:
    arrays = arrays_of(world.patch)
    head = json.loads(arrays["patch"])
    one = head["tensors"][0] | {"frames": {"table": "t", "parts": []}, "before": "", "after": "", "modifications": []}
    for count in (300_000, 60_000):  # one more than are read; and as many as are, of which nothing is true
        many = ",".join(json.dumps(one | {"name": f"n{n}", "shape": []}, separators=(",", ":")) for n in range(count))
        text = json.dumps(head | {"tensors": []}).replace('"tensors": []', f'"tensors": [{many}]')
        written(hostile, arrays | {"patch": text.encode()})
        del many, text
        script = (
            "import resource, sys; from pathlib import Path; from planner.transaction import PortablePatch\n"
            "from planner.errors import PatchUnusable\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: PortablePatch(Path(sys.argv[1]))\n"
            "except PatchUnusable: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, hostile], capture_output=True, text=True, timeout=60, check=True
        )
        assert int(done.stdout) < 350 * 1024, "KiB"


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        with pytest.raises(PatchUnusable):
            PortablePatch(tmp_path / name)


def test_a_stale_base_is_said_to_be_one(world: World, tmp_path: Path) -> None:
    other = llama(tmp_path / "model", dtype="F16")
    with pytest.raises(StalePlan):
        apply_patch(PortablePatch(world.patch), other, out=tmp_path / "out", policy=ANY, by="tester")
