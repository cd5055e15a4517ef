"""The main job, end to end, on the bundled model: every command is printed before its output.

Works on a copy in a temporary folder; the example itself is never changed. No key, no network.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from blake3 import blake3
from scripted_model import serving

EXAMPLES = Path(__file__).parent
MODEL = "tiny-model"
PATCHED = "patched"


def main() -> int:
    """Tell the story; the exit status is 0 if every step ended as it should."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planner-demo-") as name:
        folder = Path(name)
        shutil.copytree(EXAMPLES / MODEL, folder / MODEL)
        for file in (*EXAMPLES.glob("*.toml"), EXAMPLES / "patches.json"):
            shutil.copy(file, folder)
        before = file_digests(folder / MODEL)
        evaluation = story(folder)
        restored = file_digests(folder / PATCHED)
        unharmed = file_digests(folder / MODEL) == before == file_digests(EXAMPLES / MODEL)
        summary(folder, evaluation, before, restored, unharmed=unharmed, seconds=time.monotonic() - started)
        return 0 if restored == before and unharmed else 1


def story(folder: Path) -> dict[str, Any]:
    """Run the commands one after the other; returns the evaluation of the patched model."""
    chapter("1. What is in the weights?", "Exact statistics of every tensor, in bounded memory.")
    run(folder, f"planner profile {MODEL}")
    run(folder, f"planner map {MODEL}")
    chapter("2. What could be changed, and why?", "The built-in rules; --llm asks a language model instead.")
    run(folder, f"planner propose {MODEL} --goal 'lower loss on short stories' --analyst rules --out plan.json")
    chapter("3. What would it do?", "Exactly to the bits, provably to the model; nothing is changed.")
    run(folder, f"planner check plan.json --model {MODEL}")
    chapter(
        "4. And a list from elsewhere?",
        "It sounds as good; the check refuses it, as it should: m04 would change no stored bit.",
    )
    run(folder, f"planner import-patch patches.json --model {MODEL} --out imported.json")
    run(folder, f"planner check imported.json --model {MODEL}", statuses=(3,))
    chapter("5. A person decides.", "Only what is approved can reach the disk.")
    run(folder, f"planner review plan.json --model {MODEL} --approve all --why 'small and reversible'")
    chapter("6. Apply, as one transaction.", "A complete new checkpoint, or nothing.")
    run(folder, f"planner apply plan.json --model {MODEL} --out {PATCHED}")
    chapter("7. What is different on disk?", "An operation is named only if it explains every bit.")
    run(folder, f"planner diff {MODEL} {PATCHED}")
    chapter("8. Did it help, and how sure are we?", "Paired on held-out documents; drift; gates.")
    run(folder, f"planner evaluate {PATCHED} --baseline {MODEL} --suite suite.toml --controls 0 --out evaluation.json")
    chapter("9. Undo it.", "Bit for bit, with the history kept.")
    run(folder, f"planner revert {PATCHED} --to 0")
    run(folder, f"planner verify {PATCHED}")
    run(folder, f"planner log {PATCHED}")
    chapter(
        "10. The same, unattended.", "Here only a measured improvement passes; exit status 5 says that a gate refused."
    )
    run(folder, "planner run pipeline.toml --run-dir run", statuses=(0, 5))
    chapter("11. Which weights matter?", "By forward and backward passes, not by looks; and the most that can be won.")
    texts = f"{MODEL}/texts"
    goal = f"--text {texts}/stories.calibration.jsonl --goal-text {texts}/inventory.calibration.jsonl"
    run(folder, f"planner probe {MODEL} {goal} --out evidence.json")
    chapter("12. From evidence to a plan that helps.", "Measured, tuned, and judged on documents that neither saw.")
    run(folder, "planner run measured.toml --run-dir measured", statuses=(0, 5))
    chapter(
        "13. A language model argues from it.", "A script plays the model: it looks, errs, is told why, and mends it."
    )
    with serving() as address:
        asked = f"--goal 'know the inventory notes' --evidence evidence.json --llm scripted --base-url {address}"
        run(folder, f"planner propose {MODEL} {asked} --out argued.json")
    run(folder, f"planner check argued.json --model {MODEL}")
    run(folder, f"planner propose {MODEL} --evidence evidence.json --replay argued.transcript.json --out replayed.json")
    run(folder, "planner report argued.transcript.json --out conversation.html")
    run(folder, f"planner review argued.json --model {MODEL} --approve all --why 'it cites what was measured'")
    run(folder, f"planner apply argued.json --model {MODEL} --out argued")
    run(folder, f"planner evaluate argued --baseline {MODEL} --suite inventory.toml --controls 19", statuses=(0, 5))
    run(folder, "planner log argued --patch 1")
    chapter("14. The same change elsewhere.", "The patch alone: it needs nothing of what the plan read; bit for bit.")
    run(folder, "planner export-patch argued --out inventory.patch")
    run(folder, f"planner apply inventory.patch --model {MODEL} --in-place --low-space")
    run(folder, f"planner diff argued {MODEL}")
    run(folder, f"planner revert {MODEL} --low-space")
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def chapter(title: str, note: str) -> None:
    """A heading."""
    print(f"\n\n━━ {title}  {note}", flush=True)


def run(folder: Path, line: str, *, statuses: tuple[int, ...] = (0,)) -> None:
    """Print a command and run it in `folder`; its output goes where ours goes."""
    print(f"\n$ {line}", flush=True)
    _, *arguments = shlex.split(line)
    own = {"PLANNER_CACHE": str(folder / "cache"), "PLANNER_STATE": str(folder / "state")}
    environment = os.environ | {"PLANNER_OFFLINE": "1"} | own
    done = subprocess.run([sys.executable, "-m", "planner", *arguments], cwd=folder, env=environment, check=False)
    if done.returncode not in statuses:
        sys.exit(f"the command ended with exit status {done.returncode}")


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of every file of a checkpoint, computed here and not by the planner; without its ledger."""
    return {
        path.relative_to(folder).as_posix(): blake3(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".planner" not in path.parts
    }


def summary(
    folder: Path,
    evaluation: dict[str, Any],
    before: dict[str, str],
    restored: dict[str, str],
    *,
    unharmed: bool,
    seconds: float,
) -> None:
    """What was changed, what it did, and that it is undone."""
    receipt = json.loads((folder / PATCHED / ".planner" / "patches" / "0001" / "receipt.json").read_text())
    outcome = json.loads((folder / "run" / "outcome.json").read_text())
    print("\n\n━━ Summary\n")
    print(f"changed     {len(receipt['tensors'])} tensors by {len(receipt['modifications'])} modifications:")
    for tensor in receipt["tensors"]:
        changed = f"{tensor['changed_elements']:,} of {tensor['elements']:,} elements"
        print(f"            {tensor['name']}: {changed}, |dW|/|W| = {tensor['relative_change']:.3g}")
    for metric in evaluation["metrics"]:
        low, high = metric["interval"]
        print(
            f"{metric['name']:<11} {metric['baseline']:.4f} -> {metric['candidate']:.4f} nats/token on "
            f"{metric['n']} held-out documents: {metric['difference']:+.6f}, 95 % interval [{low:+.6f}, {high:+.6f}], "
            f"p = {metric['p_value']:.4f}"
        )
        calibrated = metric["calibrated"]
        low, high = calibrated["interval"]
        print(
            f"            calibrated {calibrated['difference']:+.6f} [{low:+.6f}, {high:+.6f}], "
            f"p = {calibrated['p_value']:.4f}: {metric['verdict']}"
        )
    print(f"pipeline    {outcome['decision']}: {outcome['why']}")
    measured = json.loads((folder / "measured" / "outcome.json").read_text())
    print(f"evidence    {measured['decision']}: {measured['why']}")
    print("restored    digest of each weight file, before the patch and after the revert:")
    for name in sorted(before):
        if name.endswith(".safetensors"):
            same = "the same" if before[name] == restored.get(name) else "DIFFERENT"
            print(f"            {name}  {before[name][:16]}  {restored.get(name, '-')[:16]}  {same}")
    equal = sum(before[name] == restored.get(name) for name in before)
    print(f"            {equal} of {len(before)} files are byte for byte as before", end="; ")
    print("the example was not touched" if unharmed else "THE EXAMPLE WAS CHANGED")
    print(f"took        {seconds:.0f} seconds")


if __name__ == "__main__":
    sys.exit(main())
