"""Transactions: memory, time, room on the disk and size of what is kept: `make bench-transaction`.

The checkpoint has the layers of a Qwen3 and one tensor, the embedding, that is as large as they are together. Every
matrix is changed, in three ways: by a table (one factor), by what depends on the row (a factor for each), and by what
depends on the place (an outer product). Each command runs in a process of its own, and of each is said:

    memory  peak resident memory above that of a process that has imported everything and does nothing; once for this
            checkpoint and once for one of a few megabytes. What grows between the two is what must not grow
    time    as a ratio to `cp -r` and `sync` of the same checkpoint in the same round; median [least, most]
    disk    for what is done in place, how much more the folder around the checkpoint takes at its peak, sampled; with
            --low-space that is undo data, a chunk of 8 MiB, and as much kept free for the way back

`apply --out` finds a kept profile of the checkpoint, as it does after `planner profile`; the others have to hash first.
Then, for the same plans and for a blend with unrelated weights, which leaves nothing to predict, and, with
`--modifications LIST.json`, for the published list of 44 on the shape it was made for: undo data and the portable
patch in per cent of the tensors that change. And memory once more for many small tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import bench_apply
from builders import a_plan
from large_checkpoint import HIDDEN, LAYER, build

from planner.checkpoint import encode_header, open_checkpoint
from planner.dtypes import FLOATS
from planner.plan import Policy, decide, read_plan, write_plan
from planner.profile import profile_of
from planner.transaction import (
    PortablePatch,
    apply_patch,
    apply_plan,
    export_patch,
    patch_folder,
    read_ledger,
    revert,
    verify,
)

FEW_MIB = 4
WITHOUT_FEW = ("blend", "project out")  # needs another checkpoint; needs layers, which the small one has not
POLICY = Policy(refuse=(), largest_relative_change=1e9, largest_total_change=1e9, most_tensors=10**6)

Row = dict[str, Any]


def main() -> None:
    """Build the checkpoints and compare."""
    given = argparse.ArgumentParser()
    given.add_argument("--mib", type=int, default=192, help="size of the largest tensor, half of the checkpoint")
    given.add_argument("--layers", type=int, help="by default as many as are as large together")
    given.add_argument("--rounds", type=int, default=3)
    given.add_argument("--dtypes", default="BF16,F32")
    given.add_argument("--plans", default=",".join(OPERATIONS), help="of these")
    given.add_argument("--many", type=int, default=20_000, help="how many small tensors; 0 for none")
    given.add_argument("--modifications", type=Path, help="the published list, JSON")
    given.add_argument("--folder", type=Path, help="where to work")
    given.add_argument("--job", help=argparse.SUPPRESS)
    options = given.parse_args()
    if options.job:
        print(json.dumps(done(json.loads(options.job))))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="planner-bench-", dir=options.folder) as name:
        folder = Path(name)
        os.environ["PLANNER_CACHE"] = str(folder / "cache")
        idle = job(verb="idle")["peak"]
        print(f"{os.cpu_count()} cores; an idle process: {idle / 1024:.0f} MiB")
        plans = [name for name in options.plans.split(",") if name]
        for dtype in options.dtypes.split(",") if plans else ():
            mib = options.mib if dtype == "BF16" else max(options.mib // 2, FEW_MIB)
            layers = round(mib * 2**20 / LAYER / np.dtype(FLOATS[dtype].pattern).itemsize)
            layers = layers if options.layers is None else options.layers
            rows += shape(folder / dtype, dtype, (mib, layers), plans, options.rounds, idle)
            shutil.rmtree(folder / dtype)
        if options.many:
            rows += many(folder / "many", options.many, idle)
        if options.modifications:
            rows += published(folder / "published", options.modifications)
    print(json.dumps(rows))


def shape(folder: Path, dtype: str, sizes: tuple[int, int], plans: list[str], rounds: int, idle: int) -> list[Row]:
    """One dtype: every plan, every command."""
    folder.mkdir()
    model, small = build(folder / "model", dtype, *sizes), build(folder / "small" / "model", dtype, FEW_MIB, 0)
    size = sum(path.stat().st_size for path in model.iterdir())
    print(f"\n{dtype}: {size / 2**20:.0f} MiB, of which {sizes[0]} in one tensor; {rounds} rounds")
    rows: list[Row] = []
    for name in plans:
        if name == "blend":
            build(folder / "other", dtype, *sizes, seed=1)
        plan, fewer = planned(model, name), None if name in WITHOUT_FEW else planned(small, name)
        few = measured(small, fewer, 1, idle) if fewer else []
        mine = measured(model, plan, 1 if name == "blend" else rounds, idle)
        for row in mine:
            row |= {"dtype": dtype, "mib": round(size / 2**20), "plan": name}
            row["peak_few_mib"] = next((one["peak_mib"] for one in few if one["command"] == row["command"]), "")
        show(name, mine, size)
        rows += mine
        shutil.rmtree(folder / "other", ignore_errors=True)
    return rows


def measured(model: Path, plan: Path, rounds: int, idle: int) -> list[Row]:
    """Every command on one checkpoint, so many times."""
    place, found = model.parent / "place", dict[str, list[Row]]()
    for _ in range(rounds):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        work, patched, ported, patch = (place / name for name in ("work", "patched", "ported", "a.patch"))
        subprocess.run(["sync"], check=True)
        copied = time.perf_counter()
        subprocess.run(f"cp -r {model} {work} && sync -f {work}/config.json", shell=True, check=True)
        copied = time.perf_counter() - copied
        commands: dict[str, Row] = {
            "apply --out": {"verb": "apply", "plan": plan, "model": model, "out": patched},
            "verify": {"verb": "verify", "model": patched},
            "export-patch": {"verb": "export", "model": patched, "out": patch},
            "revert": {"verb": "revert", "model": patched},
            "apply PATCH": {"verb": "patch", "patch": patch, "model": model, "out": ported},
            "apply --in-place": {"verb": "apply", "plan": plan, "model": work},
            "revert --low-space": {"verb": "revert", "model": work, "low_space": True},
            "apply --low-space": {"verb": "apply", "plan": plan, "model": work, "low_space": True},
        }
        for name, command in commands.items():
            subprocess.run(["sync"], check=True)  # nobody pays for what another one left to the kernel
            with room_taken(place) as room:
                one = job(**{key: str(value) if isinstance(value, Path) else value for key, value in command.items()})
            print(f"  {name}: {one['seconds']:.1f} s, {one['peak'] >> 10} MiB in all", file=sys.stderr, flush=True)
            if name == "revert":
                shutil.rmtree(patched)
            if name == "apply PATCH":
                shutil.rmtree(ported)
                patch.unlink()
            found.setdefault(name, []).append(one | {"ratio": one["seconds"] / copied, "disk": room[0], "cp": copied})
    shutil.rmtree(place)
    return [summary(name, several, idle) for name, several in found.items()]


def summary(name: str, several: list[Row], idle: int) -> Row:
    """The rounds of one command as one row."""
    ratios = [one["ratio"] for one in several]
    row: Row = {
        "command": name,
        "peak_mib": round((max(one["peak"] for one in several) - idle) / 1024),
        "seconds": round(statistics.median(one["seconds"] for one in several), 2),
        "cpu_seconds": round(statistics.median(one["cpu"] for one in several), 2),
        "cp_seconds": round(statistics.median(one["cp"] for one in several), 2),
        "ratio": [round(x, 2) for x in (statistics.median(ratios), min(ratios), max(ratios))],
        "disk_mib": round(max(one["disk"] for one in several) / 2**20, 1),
    }
    return row | {key: several[-1][key] for key in ("changed", "undo", "patch") if key in several[-1]}


def show(name: str, rows: list[Row], size: int) -> None:
    """Print the rows of one plan."""
    print(f"\n{name:20}{'memory':>8}{'of few':>8}{'seconds':>9}{'cp; sync':>10}   of cp; sync          disk")
    for row in rows:
        middle, low, high = row["ratio"]
        disk = ""
        if row["command"] in ("apply --in-place", "apply --low-space"):
            beyond = row["disk_mib"] * 2**20 - row["undo"] - (size if row["command"] == "apply --in-place" else 0)
            what = "the copy and the undo data" if row["command"] == "apply --in-place" else "the undo data"
            disk = f"{row['disk_mib']:7.1f} MiB, {beyond / 2**20:.1f} beyond {what}"
        elif row["command"] == "revert --low-space":
            disk = f"{row['disk_mib']:7.1f} MiB"
        print(
            f"{row['command']:20}{row['peak_mib']:8}{row.get('peak_few_mib', '')!s:>8}{row['seconds']:9.2f}"
            f"{row['cp_seconds']:10.2f}   {middle:5.2f} [{low:.2f}, {high:.2f}] {disk}"
        )
    changed, undo, patch = (next(row[key] for row in rows if key in row) for key in ("changed", "undo", "patch"))
    print(f"of {changed / 2**20:.0f} MiB changed: undo data {undo / changed:.3%}, portable patch {patch / changed:.3%}")


def many(folder: Path, count: int, idle: int) -> list[Row]:
    """Memory where there are many tensors, as of a mixture of experts; of 2 KiB each."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(bench_apply.CONFIG | {"tie_word_embeddings": True}))
    names = [f"model.layers.{n // 400}.mlp.experts.{n % 400}.up_proj.weight" for n in range(count)]
    content = FLOATS["BF16"].encode(np.random.default_rng(0).standard_normal(1024).astype(np.float32)).tobytes()
    with (model / "model.safetensors").open("wb") as file:
        file.write(encode_header([(name, "BF16", (32, 32)) for name in names], {"format": "pt"}))
        for _ in names:
            file.write(content)
    rows = measured(model, planned(model, "one factor"), 1, idle)
    for row in rows:
        row |= {"dtype": "BF16", "plan": "one factor", "tensors": count}
    print(f"\n{count:,} small tensors")
    show("one factor", rows, sum(path.stat().st_size for path in model.iterdir()))
    return rows


def published(folder: Path, listed: Path) -> list[Row]:
    """Sizes for a list of modifications of Qwen3-0.6B."""
    folder.mkdir()
    model = bench_apply.build(folder / "model")
    modifications = [bench_apply.modification(item) for item in json.loads(listed.read_text())]
    plan = approved(model, folder / "plan.json", modifications)
    one = job(verb="apply", plan=str(plan), model=str(model), out=str(folder / "patched"))
    patch = job(verb="export", model=str(folder / "patched"), out=str(folder / "a.patch"))["patch"]
    changed, undo = one["changed"], one["undo"]
    print(
        f"\npublished list, {len(modifications)} modifications: of {changed / 2**20:.0f} MiB changed, "
        f"undo data {undo / changed:.3%}, portable patch {patch / changed:.3%}"
    )
    return [{"plan": "published list", "changed": changed, "undo": undo, "patch": patch}]


# The plans.

OPERATIONS: dict[str, dict[str, Any]] = {
    "one factor": {"kind": "scale", "factor": 1.02},
    "row factors": {
        "kind": "scale",
        "factor": {"file": "arrays.safetensors", "array": "{tensor}/rows", "axis": "rows"},
    },
    "rank one": {
        "kind": "rank_one",
        "u": {"file": "arrays.safetensors", "array": "{tensor}/u"},
        "v": {"file": "arrays.safetensors", "array": "{tensor}/v"},
    },
    "project out": {
        "kind": "project_out",
        "direction": {"file": "arrays.safetensors", "array": "direction"},
        "strength": 1,
        "keep_norm": True,
    },
    "blend": {"kind": "blend", "checkpoint": "other", "weight": 1},
}


def planned(model: Path, name: str) -> Path:
    """The plan that does one of `OPERATIONS` to every matrix, approved; and what it reads."""
    if name in ("row factors", "rank one", "project out"):
        write_arrays(model)
    path = model.parent / f"{name.replace(' ', '-')}.json"
    names = [tensor.name for tensor in open_checkpoint(model).tensors.values() if len(tensor.shape) == 2]
    if name == "project out":  # a direction of the stream is that of what writes to it
        names = [one for one in names if one.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight"))]
    targets = names if len(names) < 1000 else ["*_proj.weight"]
    return approved(model, path, [{"target": {"tensors": targets}, "operation": OPERATIONS[name]}])


def approved(model: Path, path: Path, modifications: list[dict[str, Any]]) -> Path:
    """A plan of these modifications, decided, at `path`; and a profile of the checkpoint is kept."""
    profile_of(open_checkpoint(model))
    plan = a_plan(model, *modifications)
    plan = decide(plan, [one.id for one in plan.modifications], "approved", reviewer="bench", policy=POLICY)
    path.write_bytes(write_plan(plan))
    return path


def write_arrays(model: Path) -> None:
    """Factors and vectors for every matrix, from a seed."""
    generator, arrays = np.random.default_rng(2), dict[str, np.ndarray[Any, Any]]()
    for tensor in open_checkpoint(model).tensors.values():
        if len(tensor.shape) == 2:
            arrays[f"{tensor.name}/rows"] = generator.uniform(0.9, 1.1, tensor.shape[0])
            arrays[f"{tensor.name}/u"] = generator.normal(0, 0.05, tensor.shape[0])
            arrays[f"{tensor.name}/v"] = generator.normal(0, 0.05, tensor.shape[1])
    arrays["direction"] = generator.normal(0, 1, HIDDEN)
    header = encode_header([(name, "F32", array.shape) for name, array in arrays.items()], {})
    content = b"".join(array.astype(np.float32).tobytes() for array in arrays.values())
    (model.parent / "arrays.safetensors").write_bytes(header + content)


# One command, in a process of its own.


def job(**what: Any) -> Row:
    """Run one command in a process of its own; see `done`."""
    command = [sys.executable, __file__, "--job", json.dumps(what)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{what}\n{ran.stderr}")
    found: Row = json.loads(ran.stdout)
    return found


def done(what: Row) -> Row:
    """Do it; what it took, and the sizes of what it left, in bytes. Peaks are in KiB."""
    import planner.effects
    import planner.profile.profiler
    import planner.transaction.undo.differing
    import planner.transaction.undo.kernels  # noqa: F401 - so that the idle process has all of it too

    model, out = Path(what.get("model", "")), Path(what["out"]) if "out" in what else None
    low_space, found = what.get("low_space", False), Row()
    started, working = time.perf_counter(), time.process_time()
    match what["verb"]:
        case "apply":
            plan = Path(what["plan"])
            read = read_plan(plan.read_text())
            apply_plan(read, model, out=out, policy=POLICY, by="bench", folder=plan.parent, low_space=low_space)
        case "patch":
            apply_patch(PortablePatch(Path(what["patch"])), model, out=out, policy=POLICY, by="bench")
        case "export":
            assert out is not None
            export_patch(model, out)
            found["patch"] = out.stat().st_size
        case "revert":
            ledger = revert(model, by="bench", low_space=low_space)
            assert ledger.current.fingerprint == ledger.original.fingerprint
        case "verify":
            assert verify(model).sound
    found |= {"seconds": time.perf_counter() - started, "cpu": time.process_time() - working}
    found["peak"] = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    if what["verb"] == "apply":
        patched = out or model
        ledger = read_ledger(patched)
        assert ledger is not None
        records, tensors = patch_folder(patched, ledger.in_force[-1]), open_checkpoint(patched).tensors
        receipt = json.loads((records / "receipt.json").read_text())
        found["changed"] = sum(tensors[tensor["name"]].nbytes for tensor in receipt["tensors"])
        found["undo"] = sum(path.stat().st_size for path in records.glob("undo*"))
    return found


@contextmanager
def room_taken(folder: Path) -> Iterator[list[int]]:
    """How many bytes more the files below a folder take on the disk at their peak, in the list afterwards."""
    before, found, stop = blocks(folder), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            found[0] = max(found[0], blocks(folder) - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        stop.set()
        watching.join()


def blocks(folder: Path) -> int:
    """Bytes on the disk of all files below a folder, each counted once however many names it has."""
    seen: dict[int, int] = {}
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                state = os.stat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            seen[state.st_ino] = state.st_blocks * 512
    return sum(seen.values())


if __name__ == "__main__":
    main()
