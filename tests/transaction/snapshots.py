"""What a folder holds, to the last bit and mode; and small checkpoints to change."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from builders import a_plan, random_tensor, write_checkpoint

from planner.plan import Plan, Policy, decide
from planner.transaction import Receipt, apply_plan

__all__ = ["MEMORY", "approved_plan", "change", "everything", "files", "litter", "scale", "small_model", "stored"]

MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
"""A folder in memory, where there is one: what is written ten thousand times need not reach a disk."""

Contents = dict[str, tuple[int, bytes]]


def everything(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Mode and bytes of every file below `folder`; mode and None of every folder; links by what they say."""
    found: dict[str, tuple[int, bytes | None]] = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root) / name
            mode = path.lstat().st_mode
            content = None if stat.S_ISDIR(mode) else os.fsencode(os.readlink(path)) if stat.S_ISLNK(mode) else b""
            if stat.S_ISREG(mode):
                content = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = (mode, content)
    return found


def files(folder: Path) -> Contents:
    """Mode and bytes of every file of a checkpoint, without its ledger."""
    return {
        path.relative_to(folder).as_posix(): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".planner" not in path.relative_to(folder).parts
    }


def litter(parent: Path) -> list[str]:
    """Stages, locks and temporary files that something left in `parent`."""
    return sorted(name for name in os.listdir(parent) if name.startswith("."))


def scale(factor: float, **target: Any) -> dict[str, Any]:
    """A modification that multiplies."""
    return {"target": target, "operation": {"kind": "scale", "factor": factor}}


def approved_plan(model: Path, *modifications: dict[str, Any], **fields: Any) -> Plan:
    """A plan of which everything is approved."""
    plan = a_plan(model, *modifications, **fields)
    return decide(plan, [modification.id for modification in plan.modifications], "approved", reviewer="tester")


def change(model: Path, *modifications: dict[str, Any], out: Path | None = None, **options: Any) -> Receipt:
    """Plan, approve and apply in one call."""
    options = {"policy": Policy(), "by": "tester", **options}
    return apply_plan(approved_plan(model, *modifications), model, out=out, **options)


def small_model(folder: Path, *, shards: int = 2, layers: int = 4, dtype: str = "BF16") -> Path:
    """A checkpoint of a few kilobytes, with odd modes, a subfolder and an empty folder."""
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": (dtype, random_tensor((8, 16), dtype=dtype, seed=layer))
        for layer in range(layers)
    }
    tensors["model.norm.weight"] = ("F32", random_tensor((16,), dtype="F32", seed=99))
    write_checkpoint(folder, tensors, shards=shards)
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer.json").chmod(0o640)
    (folder / "sub").mkdir(mode=0o750)
    (folder / "sub" / "notes.txt").write_text("kept")
    (folder / "sub" / "notes.txt").chmod(0o600)
    (folder / "empty").mkdir()
    return folder


def stored(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The bytes of every tensor, by name, as the planner's reader gives them."""
    from planner.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    return {
        name: np.frombuffer(b"".join(checkpoint.chunks(tensor)), dtype=np.uint8)
        for name, tensor in checkpoint.tensors.items()
    }
