"""Speed and memory, as ratios side by side in one run: `make bench`.

Each comparison runs its two sides in turn, several times, and quotes the median of the ratios; on a busy machine single
times mean little. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import a_plan, write_checkpoint

from planner.checkpoint import open_checkpoint
from planner.dtypes import FLOATS
from planner.plan import Policy, decide
from planner.profile import profile_checkpoint
from planner.transaction import apply_plan, revert

ROUNDS = 5
TENSORS, SHAPE = 16, (4096, 2048)


def main() -> None:
    """Build a seeded bf16 checkpoint and compare."""
    with tempfile.TemporaryDirectory(prefix="planner-bench-") as name:
        model = build(Path(name) / "model")
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        print(f"checkpoint: {TENSORS} tensors, {size / 2**20:.0f} MiB of bf16 in 3 shards; {ROUNDS} rounds, medians\n")
        ratio("profile / read and hash", lambda: profile(model), lambda: read_and_hash(model), size)
        ratio("profile / torch float() mean, std, min, max", lambda: profile(model), lambda: torch_pass(model), size)
        target = Path(name) / "patched"
        ratio("apply --out / copy of the folder", lambda: apply(model, target), lambda: copy(model, target), size)
        ratio("apply and revert / copy", lambda: there_and_back(model, target), lambda: copy(model, target), size)
        memory(model)
    start_up()


def build(folder: Path) -> Path:
    """A checkpoint of normally distributed weights, from a seed."""
    generator = np.random.default_rng(0)
    bf16 = FLOATS["BF16"]
    values = generator.normal(0, 0.02, SHAPE).astype(np.float32)
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": ("BF16", bf16.encode(values * (1 + layer / 100)))
        for layer in range(TENSORS)
    }
    return write_checkpoint(folder, tensors, shards=3)


def ratio(title: str, ours: Callable[[], object], theirs: Callable[[], object], size: int) -> None:
    """Time both in turn and print the median of the ratios."""
    ours(), theirs()
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        first, second = timed(ours), timed(theirs)
        ratios.append(first / second)
        seconds.append(first)
    took = statistics.median(seconds)
    low, high = min(ratios), max(ratios)
    print(f"{title:48} {statistics.median(ratios):6.2f}  [{low:.2f}, {high:.2f}]   {size / took / 2**20:6.0f} MiB/s")


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def profile(model: Path) -> None:
    """Every statistic and the fingerprint."""
    profile_checkpoint(open_checkpoint(model))


def read_and_hash(model: Path) -> None:
    """The floor: every byte read and hashed once."""
    for path in model.glob("*.safetensors"):
        hasher = blake3()
        with path.open("rb") as file:
            while chunk := file.read(8 * 2**20):
                hasher.update(chunk)


def torch_pass(model: Path) -> None:
    """The usual way: each tensor to float32, then four statistics."""
    from safetensors import safe_open

    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                tensor = file.get_tensor(name).float()
                tensor.mean(), tensor.std(), tensor.min(), tensor.max()


def apply(model: Path, target: Path) -> None:
    """One factor on every tensor, out of place."""
    shutil.rmtree(target, ignore_errors=True)
    plan = a_plan(model, {"target": {"roles": ["up_proj"]}, "operation": {"kind": "scale", "factor": 1.02}})
    plan = decide(plan, ["m01"], "approved", reviewer="bench")
    apply_plan(plan, model, out=target, policy=Policy(), by="bench")


def there_and_back(model: Path, target: Path) -> None:
    """Apply, then take it back."""
    apply(model, target)
    revert(target, by="bench")


def copy(model: Path, target: Path) -> None:
    """Copy the folder and flush it."""
    place = target.with_name("copy")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(model, place)
    subprocess.run(["sync", "-f", place], check=True)


def memory(model: Path) -> None:
    """Peak memory of a profile, above that of a process that imported everything and did nothing."""
    code = (
        "from pathlib import Path; from planner.checkpoint import open_checkpoint; "
        "from planner.profile import profile_checkpoint; "
    )
    peaks = []
    for action in ("pass", f"profile_checkpoint(open_checkpoint(Path({str(model)!r})))"):
        script = code + action + "; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    print(f"{'profile, peak extra memory':48} {(peaks[1] - peaks[0]) / 1024:6.0f} MiB")


def start_up() -> None:
    """`planner --help`, against an interpreter that does nothing."""
    help_command = [sys.executable, "-m", "planner", "--help"]
    nothing = [sys.executable, "-c", "pass"]
    times = [
        (
            timed(lambda: subprocess.run(help_command, check=True, capture_output=True)),
            timed(lambda: subprocess.run(nothing, check=True, capture_output=True)),
        )
        for _ in range(ROUNDS)
    ]
    ours, bare = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{'planner --help':48} {ours:6.2f} s; python -c pass {bare:.2f} s")


if __name__ == "__main__":
    main()
