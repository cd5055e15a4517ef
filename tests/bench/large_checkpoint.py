"""A checkpoint of any size, from a seed, in seconds: the layers of a small Qwen3, and one tensor as large as asked for.

The embedding is the large one. It is tied to the head, so that there is no second one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from bench_apply import CONFIG

from planner.checkpoint import encode_header
from planner.dtypes import FLOATS

__all__ = ["HIDDEN", "LAYER", "build"]

HIDDEN, HEADS, KV_HEADS, HEAD, INTERMEDIATE = 2048, 16, 8, 128, 6144

INSIDE: dict[str, tuple[int, ...]] = {
    "input_layernorm": (HIDDEN,),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "post_attention_layernorm": (HIDDEN,),
    "self_attn.k_norm": (HEAD,),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "self_attn.q_norm": (HEAD,),
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
}
LAYER = sum(int(np.prod(each)) for each in INSIDE.values())
"""Elements of a layer."""


def build(folder: Path, dtype: str, mib: int, layers: int, *, seed: int = 0) -> Path:
    """Normally distributed weights, the norms around one; an embedding of `mib` MiB, tied to the head."""
    folder.mkdir(parents=True)
    kind, generator = FLOATS[dtype], np.random.default_rng(seed)
    vocabulary = mib * 2**20 // HIDDEN // np.dtype(kind.pattern).itemsize
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD}
    sizes |= {"intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(CONFIG | sizes, indent=2))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": each for name, each in INSIDE.items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    # Much longer than a piece, so that nothing repeats in one; and made once, for numpy takes longer than the disk.
    bank = generator.normal(0, 0.02, 2**22 + 1).astype(np.float32)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header([(name, dtype, each) for name, each in shapes.items()], {"format": "pt"}))
        for name, each in shapes.items():
            left, factor = int(np.prod(each)), np.float32(generator.uniform(0.5, 2))
            values = bank * factor + np.float32("norm" in name)
            while left:
                values = np.roll(values, int(generator.integers(2**22)))
                file.write(kind.encode(values[:left].astype(kind.working)).tobytes())
                left -= min(left, values.size)
    time.sleep(2.5)  # a profile of files changed just now is not kept
    return folder
