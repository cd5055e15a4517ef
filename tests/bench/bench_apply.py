"""`planner apply` against copying the files and against mergekit, side by side in one run: `make bench-apply`.

The checkpoint has the shape of Qwen3-0.6B in bf16, with lm_head stored beside the embedding it is tied to: 311 tensors,
1.5 GB, one file, from a seed. The plan has the shape of the one that Tensor Slayer published for that model, or is that
one (`--modifications LIST.json`): 44 modifications, 41 scales and 3 clamps of whole tensors. Within a round the sides
run in turn, and the medians of the ratios are quoted.

    cp            the folder, copied; whether it reached the disk is the kernel's affair
    cp; sync      and flushed, as apply leaves it
    mergekit      the 41 scales, as a passthrough merge with a scale for each tensor's name
    plain script  the usual way: safetensors and torch, load, scale, save

Run with `--mergekit PYTHON`, an interpreter that has mergekit, or without it.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import a_plan

from planner.checkpoint import encode_header, open_checkpoint
from planner.dtypes import FLOATS
from planner.effects import check
from planner.plan import Plan, Policy, decide
from planner.profile import histograms_of, profile_of
from planner.transaction import apply_plan, patch_folder, revert, verify

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, INTERMEDIATE, VOCABULARY = 28, 1024, 16, 8, 128, 3072, 151936
ROUNDS = 5
POLICY = Policy(refuse=(), largest_relative_change=1e9, largest_total_change=1e9)

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def main() -> None:
    """Build the checkpoint and compare."""
    given = argparse.ArgumentParser()
    given.add_argument("--modifications", type=Path, help="a list of modifications, JSON; made here by default")
    given.add_argument("--mergekit", help="a Python interpreter that has mergekit")
    given.add_argument("--folder", type=Path, help="where to work")
    options = given.parse_args()
    with tempfile.TemporaryDirectory(prefix="planner-bench-", dir=options.folder) as name:
        os.environ["PLANNER_CACHE"] = str(Path(name) / "cache")
        model = build(Path(name) / "model")
        listed = json.loads(options.modifications.read_text()) if options.modifications else of_the_same_shape()
        modifications = [modification(item) for item in listed]
        plan = a_plan(model, *modifications)
        plan = decide(plan, [m.id for m in plan.modifications], "approved", reviewer="bench", policy=POLICY)
        profile_of(open_checkpoint(model))  # as anybody has done who has a plan
        size = sum(path.stat().st_size for path in model.iterdir())
        reached = {m["target"]["tensors"][0] for m in modifications}
        print(
            f"311 tensors, {size / 1e9:.2f} GB of bf16 in one file; "
            f"{len(modifications)} modifications of {len(reached)} tensors"
        )
        print(f"{os.cpu_count()} cores; warm cache; {ROUNDS} rounds, medians\n")
        preview(model, plan)
        speed(model, plan, modifications, Path(name), options.mergekit)
        undo(model, plan, Path(name) / "patched")
        memory(model, plan, Path(name))


def build(folder: Path) -> Path:
    """Normally distributed weights, each tensor of another spread; the norms around one."""
    folder.mkdir()
    bf16, generator = FLOATS["BF16"], np.random.default_rng(0)
    shapes = dict(sorted(all_shapes().items()))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    header = encode_header([(name, "BF16", shape) for name, shape in shapes.items()], {"format": "pt"})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        kept: dict[str, bytes] = {}
        for name, shape in shapes.items():
            spread = 0.02 * float(generator.uniform(0.5, 2))
            values = generator.standard_normal(shape, np.float32) * np.float32(spread)
            raw = bf16.encode(values + 1 if name.endswith("norm.weight") else values).tobytes()
            if name == "lm_head.weight":
                kept["head"] = raw
            file.write(kept["head"] if name == "model.embed_tokens.weight" else raw)
    time.sleep(2.5)  # a profile of files changed just now is not kept
    return folder


def all_shapes() -> dict[str, tuple[int, ...]]:
    """By name, as in the published checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    inside: dict[str, tuple[int, ...]] = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_norm": (HEAD,),
        "self_attn.k_norm": (HEAD,),
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return shapes


def of_the_same_shape() -> list[dict[str, Any]]:
    """As many modifications of the same tensors, with factors of our own."""
    scaled = {"lm_head": 1.04, "model.embed_tokens": 1.03, "model.layers.0.input_layernorm": 1.06}
    scaled |= {"model.layers.0.mlp.gate_proj": 1.06, "model.layers.15.mlp.up_proj": 1.04}
    for layer in range(10, 28):
        scaled |= {f"model.layers.{layer}.{name}": 1.03 for name in ("self_attn.q_proj", "mlp.down_proj")}
    clamped = {"model.layers.15.self_attn.k_norm": 20.0, "model.layers.27.input_layernorm": 40.0}
    clamped |= {"model.layers.27.post_attention_layernorm": 100.0}
    scales = [{"tensor": f"{name}.weight", "operation": "scale", "value": factor} for name, factor in scaled.items()]
    return scales + [
        {"tensor": f"{name}.weight", "operation": "clamp", "value": [-1.0, high]} for name, high in clamped.items()
    ]


def modification(item: dict[str, Any]) -> dict[str, Any]:
    """One of the published list, as a modification of a plan."""
    if item["operation"] == "scale":
        operation = {"kind": "scale", "factor": item["value"]}
    else:
        low, high = item["value"]
        operation = {"kind": "clamp", "minimum": low, "maximum": high}
    return {"target": {"tensors": [item["tensor"]]}, "operation": operation}


def preview(model: Path, plan: Plan) -> None:
    """`planner check` with the profile at hand."""
    checkpoint = open_checkpoint(model)
    profile = profile_of(checkpoint)

    def once() -> None:
        check(plan, checkpoint, profile, POLICY, histograms=histograms_of(profile))

    once()
    print(f"preview of the plan, no weight read: {statistics.median(timed(once) for _ in range(ROUNDS)):.3f} s\n")


def speed(model: Path, plan: Plan, modifications: list[dict[str, Any]], folder: Path, mergekit: str | None) -> None:
    """Print the ratios."""
    out = folder / "patched"
    scales = {
        m["target"]["tensors"][0]: m["operation"]["factor"] for m in modifications if m["operation"]["kind"] == "scale"
    }
    sides: dict[str, Callable[[], object]] = {
        "planner apply --out": lambda: apply_plan(plan, model, out=out, policy=POLICY, by="bench"),
        "cp": lambda: subprocess.run(["cp", "-r", model, out], check=True),
        "cp; sync": lambda: subprocess.run(f"cp -r {model} {out} && sync -f {out}/config.json", shell=True, check=True),
        "plain script, scales only": lambda: plain(model, out, scales),
    }
    if mergekit:
        recipe = folder / "recipe.yaml"
        recipe.write_text(merge_recipe(model, scales))
        sides["mergekit, scales only"] = lambda: merge(mergekit, recipe, out)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(ROUNDS + 1):
        for name, side in sides.items():
            shutil.rmtree(out, ignore_errors=True)
            subprocess.run(["sync"], check=True)  # no side pays for what another one left to the kernel
            took = timed(side)
            if round_number:  # the first is for warming up
                times[name].append(took)
    shutil.rmtree(out, ignore_errors=True)
    ours = times.pop("planner apply --out")
    print(f"{'':32}{'seconds':>9}   apply took, of this: median [least, most]")
    print(f"{'planner apply --out':32}{statistics.median(ours):9.2f}")
    for name, taken in times.items():
        ratios = [mine / other for mine, other in zip(ours, taken, strict=True)]
        print(
            f"{name:32}{statistics.median(taken):9.2f}   {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        )


def plain(model: Path, out: Path, scales: dict[str, float]) -> None:
    """Load, scale, save."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    for name, factor in scales.items():
        weights[name] = (weights[name].to(torch.float32) * factor).to(torch.bfloat16)
    out.mkdir()
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    shutil.copy(model / "config.json", out)


def merge_recipe(model: Path, scales: dict[str, float]) -> str:
    """A passthrough merge of one model; the filter of a scale is a piece of the tensor's name."""
    lines = [
        "merge_method: passthrough",
        "dtype: bfloat16",
        "models:",
        f"  - model: {model}",
        "    parameters:",
        "      scale:",
    ]
    for name, factor in scales.items():
        lines += [f"        - filter: {name}", f"          value: {factor}"]
    return "\n".join([*lines, "        - value: 1.0", ""])


def merge(python: str, recipe: Path, out: Path) -> None:
    """mergekit-yaml, in a process of its own, as its users run it."""
    command = [python, "-m", "mergekit.scripts.run_yaml", str(recipe), str(out), "--no-copy-tokenizer"]
    subprocess.run(command, check=True, capture_output=True)


def undo(model: Path, plan: Plan, out: Path) -> None:
    """The size of the undo data, and that they undo."""
    receipt = apply_plan(plan, model, out=out, policy=POLICY, by="bench")
    changed = sum(open_checkpoint(model).tensors[tensor.name].nbytes for tensor in receipt.tensors)
    kept = sum(path.stat().st_size for path in patch_folder(out, 1).glob("undo*"))
    print(f"\nundo data: {kept / 1e6:.1f} MB for {changed / 1e6:.0f} MB of changed tensors, {kept / changed:.2%}")
    took = timed(lambda: revert(out, by="bench"))
    print(f"revert: {took:.2f} s; the original again: {verify(out).original}")
    shutil.rmtree(out)


CHILD = """
import sys
from pathlib import Path
from planner.plan import Policy, read_plan
from planner.transaction import apply_plan
import planner.profile.profiler, planner.transaction.undo.kernels
def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
plan = read_plan(Path(sys.argv[2]).read_text())
policy = Policy(refuse=(), largest_relative_change=1e9, largest_total_change=1e9)
before = peak()
apply_plan(plan, Path(sys.argv[1]), out=Path(sys.argv[3]), policy=policy, by="bench")
print(peak() - before)
"""


def memory(model: Path, plan: Plan, folder: Path) -> None:
    """Peak memory of apply in a process of its own, above what it had after importing everything; and its seconds."""
    from planner.plan import write_plan

    (folder / "plan.json").write_bytes(write_plan(plan))
    (folder / "policy.toml").write_text("refuse = []\nlargest_relative_change = 1e9\nlargest_total_change = 1e9\n")
    command = [sys.executable, "-c", CHILD, str(model), str(folder / "plan.json"), str(folder / "patched")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"peak extra memory of apply: {int(done.stdout) / 1024:.0f} MiB")
    shutil.rmtree(folder / "patched")
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "planner", "apply", str(folder / "plan.json"), "--model", str(model)),
            *("--out", str(folder / "patched"), "--policy", str(folder / "policy.toml")),
        ],
        check=True,
        capture_output=True,
    )
    print(f"the command, from start to exit: {time.perf_counter() - started:.2f} s")


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
