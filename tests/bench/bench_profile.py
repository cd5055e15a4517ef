"""The profiler's speed and memory, as ratios side by side in one run, warm cache: `make bench-profile`.

(a) reading the files and hashing them with BLAKE3, the floor: one thread, as anybody would write it, and as many as (d)
(b) torch: safe_open, `.float()`, mean, std, min, max; and with torch.quantile, where that can (up to 2^24 elements)
(c) numpy: the same by ml_dtypes and numpy, with np.quantile
(d) `planner profile`: every statistic, the norms of rows and columns, the histograms and the fingerprint

The sides run in turn, and the medians of the ratios within a round are quoted. Peak memory is that of a process of its
own, above what it had after importing everything.
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import write_checkpoint

from planner.checkpoint import open_checkpoint
from planner.dtypes import FLOATS
from planner.profile import QUANTILES, profile_checkpoint
from planner.profile.sweep import available_cores

TENSORS, SHAPE, SHARDS = 64, (4096, 2048), 3
ROUNDS, SLOW_ROUNDS = 7, 3
EXPERTS = (48, 128, ("gate_proj", "up_proj", "down_proj"), (96, 128))
SPARSE = (65536, 32768)  # 4 GiB of bf16 in one tensor

Actions = dict[str, Callable[[], object]]


def main() -> None:
    """Build a seeded checkpoint and compare."""
    with tempfile.TemporaryDirectory(prefix="planner-bench-") as name:
        folder = Path(name)
        model = build(folder / "model")
        size = nbytes(model)
        cores = available_cores()
        print(
            f"{TENSORS} tensors {SHAPE}, {size / 2**30:.2f} GiB of bf16 in {SHARDS} shards; {cores} cores; warm cache"
        )
        rate = memory_rate()
        print(f"memory read rate, {cores} threads: {rate / 1e9:.1f} GB/s\n")
        speed(model, size, cores, rate)
        print("\npeak extra memory of (d)")
        print(f"  this checkpoint                     {memory(model):6.0f} MiB")
        print(f"  one tensor of 4 GiB (a sparse file) {memory(sparse(folder / 'sparse')):6.0f} MiB")
        moe = experts(folder / "experts")
        count, took = len(open_checkpoint(moe).tensors), timed(lambda: ours(moe))
        print(f"  {count:,} tensors of experts       {memory(moe):6.0f} MiB; {took / count * 1e6:.0f} µs a tensor")


def speed(model: Path, size: int, cores: int, rate: float) -> None:
    """Print each side's ratio to ours, and ours to the floors."""
    fast: Actions = {
        "(a) read and hash, 1 thread": lambda: read_and_hash(model, 1),
        f"(a) read and hash, {cores} threads": lambda: read_and_hash(model, cores),
        "(b) torch mean, std, min, max": lambda: torch_way(model, quantiles=False),
        "(d) planner profile, 1 worker": lambda: ours(model, 1),
    }
    slow: Actions = {
        "(b) torch, with quantiles": lambda: torch_way(model, quantiles=True),
        "(c) numpy, with quantiles": lambda: numpy_way(model),
    }
    print(f"{'':36}{'seconds':>9}{'GB/s':>7}{'of (d)':>9}   ratios within a round: least, most")
    seconds = compared(fast, lambda: ours(model), ROUNDS, size)
    compared(slow, lambda: ours(model), SLOW_ROUNDS, size, warm=False)
    achieved = size / seconds
    print(f"{'(d) planner profile':36}{seconds:9.3f}{achieved / 1e9:7.2f}{1:9.2f}")
    print(f"\n(d) takes in {achieved / rate:.0%} of what the memory gives to {cores} threads that only read")


def compared(actions: Actions, ours_: Callable[[], object], rounds: int, size: int, *, warm: bool = True) -> float:
    """Run all in turn; print the medians; returns our median."""
    if warm:
        for action in actions.values():
            action()
    ours_()
    times: dict[str, list[float]] = {name: [] for name in actions}
    own = []
    for _ in range(rounds):
        own.append(timed(ours_))
        for name, action in actions.items():
            times[name].append(timed(action))
    for name, taken in times.items():
        ratios = [other / mine for other, mine in zip(taken, own, strict=True)]
        median = statistics.median(taken)
        print(
            f"{name:36}{median:9.3f}{size / median / 1e9:7.2f}{statistics.median(ratios):9.2f}"
            f"   {min(ratios):.2f}, {max(ratios):.2f}"
        )
    return statistics.median(own)


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def build(folder: Path) -> Path:
    """Normally distributed weights, from a seed; each layer has another scale."""
    values = np.random.default_rng(0).normal(0, 0.02, SHAPE).astype(np.float32)
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": ("BF16", FLOATS["BF16"].encode(values * (1 + layer / 100)))
        for layer in range(TENSORS)
    }
    return write_checkpoint(folder, tensors, shards=SHARDS)


def experts(folder: Path) -> Path:
    """A mixture of experts as most are stored: a tensor for each projection of each expert."""
    layers, count, roles, shape = EXPERTS
    values = np.random.default_rng(1).normal(0, 0.02, shape).astype(np.float32)
    pattern = FLOATS["BF16"].encode(values)
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{role}.weight": ("BF16", pattern)
        for layer in range(layers)
        for expert in range(count)
        for role in roles
    }
    return write_checkpoint(folder, tensors)


def sparse(folder: Path) -> Path:
    """One tensor of zeros that takes no space on the disk."""
    folder.mkdir()
    size = 2 * SPARSE[0] * SPARSE[1]
    header = json.dumps({"w": {"dtype": "BF16", "shape": SPARSE, "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return folder


def nbytes(model: Path) -> int:
    """Size of the shards."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def ours(model: Path, workers: int | None = None) -> None:
    """(d)"""
    profile_checkpoint(open_checkpoint(model), workers=workers)


def read_and_hash(model: Path, threads: int) -> None:
    """(a): each file is hashed by one thread."""
    files = iter(sorted(model.glob("*.safetensors")))
    lock = threading.Lock()

    def work() -> None:
        room = bytearray(4 * 2**20)
        while True:
            with lock:
                path = next(files, None)
            if path is None:
                return
            hasher = blake3()
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(room):
                    hasher.update(memoryview(room)[:count])

    in_parallel([work] * threads)


def torch_way(model: Path, *, quantiles: bool) -> None:
    """(b)"""
    import torch
    from safetensors import safe_open

    wanted = torch.tensor(QUANTILES)
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                tensor = file.get_tensor(name).float()
                tensor.mean(), tensor.std(), tensor.min(), tensor.max()
                if quantiles and tensor.numel() <= 2**24:
                    torch.quantile(tensor.flatten(), wanted)


def numpy_way(model: Path) -> None:
    """(c)"""
    checkpoint = open_checkpoint(model)
    for tensor in checkpoint.tensors.values():
        raw = b"".join(checkpoint.chunks(tensor))
        values = FLOATS[tensor.dtype].decode(np.frombuffer(raw, np.uint16))
        values.mean(dtype=np.float64), values.std(dtype=np.float64), values.min(), values.max()
        np.quantile(values, QUANTILES, method="inverted_cdf")


def memory_rate() -> float:
    """Bytes a second that all cores together read from memory: sums over an array far larger than the caches."""
    cores = available_cores()
    array = np.ones(2**27, np.uint64)  # 1 GiB
    shares = np.array_split(array, cores)
    best = min(timed(lambda: in_parallel([share.sum for share in shares])) for _ in range(5))
    return array.nbytes / best


def in_parallel(actions: list[Callable[[], object]]) -> None:
    """Run each in a thread."""
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


CHILD = """
import sys
from pathlib import Path
from planner.checkpoint import open_checkpoint
from planner.profile import profile_of, profile_checkpoint
def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
before = peak()
profile_of(open_checkpoint(Path(sys.argv[1])), cache=Path(sys.argv[2]))
print(peak() - before)
"""


def memory(model: Path) -> float:
    """Peak memory of a profile, kept with its histograms, in MiB."""
    with tempfile.TemporaryDirectory(prefix="planner-bench-cache-") as cache:
        command = [sys.executable, "-c", CHILD, str(model), cache]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return int(done.stdout) / 1024


if __name__ == "__main__":
    main()
