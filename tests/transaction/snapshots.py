"""What a folder holds, to the last bit and mode; and small checkpoints to change."""

from __future__ import annotations

import os
import pkgutil
import stat
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint

import planner.transaction
from planner.plan import Plan, Policy, decide
from planner.transaction import Receipt, apply_plan

__all__ = [
    "ANY",
    "MEMORY",
    "approved_plan",
    "attributes",
    "change",
    "everything",
    "files",
    "litter",
    "scale",
    "short_pieces",
    "small_model",
    "stored",
    "untouched",
]

ANY = Policy(largest_relative_change=1e30, largest_total_change=1e30, largest_cumulative_change=1e30)
"""A policy that allows everything."""

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


def attributes(folder: Path) -> dict[str, tuple[int, int, int, dict[str, bytes]]]:
    """Mode, owner, group and extended attributes of a checkpoint folder and all that is in it, without its ledger."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        if ".planner" not in path.relative_to(folder).parts:
            state = path.stat()
            extended = {name: os.getxattr(path, name) for name in os.listxattr(path)}
            found[path.relative_to(folder).as_posix()] = (state.st_mode, state.st_uid, state.st_gid, extended)
    return found


def untouched(folder: Path, *others: Path) -> dict[str, tuple[object, ...]]:
    """All that would show that something was made, changed or removed below the folders, be it only for a moment."""
    found: dict[str, tuple[object, ...]] = {}
    for root in (folder, *others):
        for path in (root, *sorted(root.rglob("*"))):
            state = path.lstat()
            # The names of a folder change its times; the number of its links, and a file's, follow from the names.
            content = path.read_bytes() if stat.S_ISREG(state.st_mode) else b""
            same = (state.st_ino, state.st_mode, state.st_uid, state.st_gid, state.st_nlink, state.st_size)
            found[str(path)] = (*same, state.st_mtime_ns, state.st_ctime_ns, content)
    return found


def short_pieces(patch: pytest.MonkeyPatch, nbytes: int, *, threads: bool = False) -> None:
    """Cut tensors into pieces of so many bytes: small ones have several then. With `threads`, they are used for all."""
    for found in pkgutil.walk_packages(planner.transaction.__path__, "planner.transaction."):
        module = import_module(found.name)
        if hasattr(module, "PIECE"):
            patch.setattr(module, "PIECE", nbytes)
        if threads and hasattr(module, "WORTH_THREADS"):
            patch.setattr(module, "WORTH_THREADS", 0)


def litter(parent: Path) -> list[str]:
    """Stages, locks and temporary files that something left in `parent`."""
    return sorted(name for name in os.listdir(parent) if name.startswith("."))


def scale(factor: float, **target: Any) -> dict[str, Any]:
    """A modification that multiplies."""
    return {"target": target, "operation": {"kind": "scale", "factor": factor}}


def approved_plan(model: Path, *modifications: dict[str, Any], **fields: Any) -> Plan:
    """A plan of which everything is approved, under `policy` if the fields hold one, else under the default one."""
    plan = a_plan(model, *modifications, **fields)
    return decide(plan, [modification.id for modification in plan.modifications], "approved", reviewer="tester")


def change(model: Path, *modifications: dict[str, Any], out: Path | None = None, **options: Any) -> Receipt:
    """Plan, approve and apply in one call."""
    options = {"policy": Policy(), "by": "tester", **options}
    plan = approved_plan(model, *modifications, policy=options["policy"])
    return apply_plan(plan, model, out=out, **options)


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
