"""Room on the disk is taken before the first byte: who fills the disk afterwards cannot stop what has begun."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import random_tensor, write_checkpoint
from small_disks import AS_ROOT, fill, tmpfs
from snapshots import ANY, change, everything, files, litter, scale

from planner.errors import NoSpace
from planner.fsio import calls
from planner.transaction import revert, verify
from planner.transaction.ledger import ledger_path

NAMES = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(4)]
MIB = 2**20


def _model(disk: Path) -> Path:
    tensors = {name: ("F32", random_tensor((512, 256), dtype="F32", seed=seed)) for seed, name in enumerate(NAMES)}
    return write_checkpoint(disk / "model", tensors, shards=2)


@AS_ROOT
def test_a_revert_that_has_its_room_outlives_a_disk_that_somebody_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but what the records of the ledger take, which is far less than the shards."""
    with tmpfs(tmp_path / "disk", 8 * MIB) as disk:
        model = _model(disk)
        before = files(model)
        change(model, scale(1.02, tensors=NAMES))
        records = 3 * ledger_path(model).stat().st_size + 2**16
        real, reserved = calls.fallocate, []

        def fallocate(descriptor: int, nbytes: int) -> None:
            real(descriptor, nbytes)
            reserved.append(nbytes)
            if len(reserved) == 2:  # that was the last one
                fill(disk, leave=records)

        monkeypatch.setattr(calls, "fallocate", fallocate)
        revert(model, by="tester")
        assert len(reserved) == 2
        assert sum(reserved) == sum(path.stat().st_size for path in model.glob("*.safetensors"))
        assert files(model) == before
        assert verify(model).original
        assert litter(disk) == []


@AS_ROOT
@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_room_that_is_not_there_is_missed_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    with tmpfs(tmp_path / "disk", 8 * MIB) as disk:
        model = _model(disk)
        if verb == "revert":
            change(model, scale(1.02, tensors=NAMES))
        before = everything(model)
        commands: dict[str, Callable[[], object]] = {
            "apply": lambda: change(model, scale(1.02, tensors=NAMES), policy=ANY),
            "revert": lambda: revert(model, by="tester"),
        }
        shards: list[str] = []
        real = calls.write

        def write(descriptor: int, data: bytes) -> int:
            name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
            shards.extend([name] if name.endswith(".safetensors") and not name.startswith("undo") else [])
            return real(descriptor, data)

        monkeypatch.setattr(calls, "write", write)
        # At once, by what the disk says; and where that comes too late, because somebody was faster.
        for checked in (True, False):
            with monkeypatch.context() as patch:
                if not checked:
                    patch.setattr("planner.fsio.require_space", lambda *_, **__: None)
                filled = fill(disk, leave=MIB + MIB // 2)
                with pytest.raises(NoSpace) as caught:
                    commands[verb]()
                filled.unlink()
            assert not checked or "--low-space" in str(caught.value.hint)
            assert shards == []
            assert everything(model) == before
            assert litter(disk) == []
