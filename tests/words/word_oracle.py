"""What single units write and read, from transformers' own modules: each is made to act alone, by hooks, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.oracle import all_double, machine
from models.tiny import Tiny, build

from planner.architecture import ModelMap, map_of
from planner.checkpoint import Checkpoint, open_checkpoint

LAST = 2
LARGE = 1e8
"""A vector of this length drowns what else is in the stream, and a normaliser's epsilon."""


@dataclass(frozen=True)
class Modules:
    """Where transformers keeps the parts of a block, relative to it; and what stands in front of the head."""

    block: str = "model.layers.{}"
    attention_norm: str = "input_layernorm"
    output: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    down: str = "mlp.down_proj"
    final_norm: str = "model.norm"
    argument: str | None = None
    """The map whose output is a neuron's argument, in an MLP without a gate."""
    embedding_norm: str | None = None
    latent_norm: str | None = None


_SANDWICH = Modules(mlp_norm="pre_feedforward_layernorm")
_BLOOM = Modules(
    "transformer.h.{}",
    "input_layernorm",
    "self_attention.dense",
    "post_attention_layernorm",
    "mlp.dense_4h_to_h",
    "transformer.ln_f",
    "mlp.dense_h_to_4h",
    "transformer.word_embeddings_layernorm",
)
_GPT2 = Modules("transformer.h.{}", "ln_1", "attn.c_proj", "ln_2", "mlp.c_proj", "transformer.ln_f", "mlp.c_fc")
MODULES: dict[str, Modules] = {
    "llama": Modules(),
    "llama-bias": Modules(),
    "llama-mqa": Modules(),
    "qwen3-tied": Modules(),
    "phi3": Modules(),
    "gemma": Modules(),
    "gemma2": _SANDWICH,
    "gemma3_text-untied": _SANDWICH,
    "gpt2": _GPT2,
    "gpt2-untied": _GPT2,
    "stablelm-gqa": Modules(),
    "nemotron": Modules(argument="mlp.up_proj"),
    "bloom": _BLOOM,
    "bloom-residual": _BLOOM,
    "opt-post": Modules("model.decoder.layers.{}"),
    "falcon-new": Modules(
        "transformer.h.{}",
        "ln_attn",
        "self_attention.dense",
        "ln_mlp",
        "mlp.dense_4h_to_h",
        "transformer.ln_f",
        "mlp.dense_h_to_4h",
    ),
    "gptj": Modules("transformer.h.{}", "ln_1", "attn.out_proj", "ln_1", "mlp.fc_out", "transformer.ln_f", "mlp.fc_in"),
    "mixtral": Modules(),
    "qwen3_moe": Modules(),
    "qwen2_moe": Modules(),
    "deepseek_v3": Modules(latent_norm="self_attn.kv_a_layernorm"),
}


class Oracle:
    """A tiny model as transformers runs it, with the same weights as a checkpoint of it."""

    def __init__(self, key: str, folder: Path, *, dtype: str = "F64") -> None:
        self.tiny: Tiny = build(key)
        self.checkpoint: Checkpoint = open_checkpoint(self.tiny.write(folder / key, dtype))
        self.map: ModelMap = map_of(self.checkpoint.config, {n: t.shape for n, t in self.checkpoint.tensors.items()})
        self.names = MODULES[key]
        built = machine(key)
        tensors = dict(self.tiny.tensors)
        tensors.setdefault(built.output, tensors[built.input])
        built.hold(tensors)
        self.model = built.model
        self.embedding: torch.Tensor = self.model.get_input_embeddings().weight.detach().clone()
        if self.names.embedding_norm:
            with all_double():
                self.embedding = self.model.get_submodule(self.names.embedding_norm)(self.embedding)

    def part(self, layer: int, name: str) -> Any:
        return self.model.get_submodule(f"{self.names.block.format(layer)}.{name}")

    def run(self, count: int, hooks: dict[Any, Callable[..., Any]]) -> torch.Tensor:
        """Logits of `count` sequences of one token; `hooks` change the input of a module, or its output."""
        with all_double(), _hooked(hooks):
            out = self.model(input_ids=torch.zeros(count, 1, dtype=torch.int64), use_cache=False).logits
        return out.reshape(count, -1)

    def activations(self, layer: int) -> np.ndarray[Any, Any]:
        """[tokens, neurons]: what the neurons make of each token's embedding alone in the stream."""
        caught = []

        def catch(_: Any, inputs: Any) -> None:
            caught.append(inputs[0])

        def catch_output(_: Any, __: Any, output: Any) -> None:
            caught.append(output)

        rows = self.embedding[:, None]
        hooks: dict[Any, Any] = {("in", self.part(layer, self.names.mlp_norm)): lambda *_: (rows,)}
        if self.names.argument:
            hooks["out", self.part(layer, self.names.argument)] = catch_output
        else:
            hooks["in", self.part(layer, self.names.down)] = catch
        self.run(len(rows), hooks)
        return caught[0].reshape(len(rows), -1).numpy()

    def circuit(self, layer: int, head: int, width: int) -> torch.Tensor:
        """[written, read] channels: what one head makes of each channel that its attention reads, at one position."""
        hidden = self.embedding.shape[1]
        basis = torch.cat([torch.eye(hidden, dtype=torch.float64), torch.zeros(1, hidden, dtype=torch.float64)])
        caught = []

        def alone(_: Any, inputs: Any) -> Any:
            kept = torch.zeros_like(inputs[0])
            kept[..., head * width : (head + 1) * width] = inputs[0][..., head * width : (head + 1) * width]
            return (kept,)

        hooks: dict[Any, Any] = {
            ("out", self.part(layer, self.names.attention_norm)): lambda *_: basis[:, None],
            ("in", self.part(layer, self.names.output)): alone,
            ("out", self.part(layer, self.names.output)): lambda _, __, output: caught.append(output),
        }
        if self.names.latent_norm:
            norm = self.part(layer, self.names.latent_norm)
            hooks["out", norm] = lambda module, inputs, _: inputs[0] * module.weight
        self.run(len(basis), hooks)
        found = caught[0].reshape(len(basis), -1)
        return (found[:-1] - found[-1]).T

    def read_by_attention(self, layer: int) -> torch.Tensor:
        """[tokens, channels]: every token's embedding as the attention's norm passes it on."""
        with all_double():
            return self.part(layer, self.names.attention_norm)(self.embedding)

    def logits_of(self, written: torch.Tensor) -> np.ndarray[Any, Any]:
        """[tokens]: the logits of a vector in front of the final norm, without what the norm adds, mean removed.

        Up to a positive factor, the norm's scale.
        """
        norm, head = self.model.get_submodule(self.names.final_norm), self.model.get_output_embeddings()
        with all_double():
            both = torch.stack([LARGE * written, torch.zeros_like(written)])
            logits = head(norm(both))
        found = (logits[0] - logits[1]).numpy()
        return found - found.mean()

    def written_by_neuron(self, layer: int, neuron: int) -> torch.Tensor:
        """What the last layer's MLP adds to the stream where one neuron acts alone, less what it adds without any."""
        assert layer == LAST, "what is in front of the final norm is what the last layer leaves"
        caught = []
        down = self.part(layer, self.names.down)
        alone = torch.zeros(2, 1, self.inner(down), dtype=torch.float64)
        alone[0, 0, neuron] = 1
        final = self.model.get_submodule(self.names.final_norm)
        self.run(2, {("in", down): lambda *_: (alone,), ("in", final): lambda _, inputs: caught.append(inputs[0])})
        found = caught[0].reshape(2, -1)
        return found[0] - found[1]

    @staticmethod
    def inner(down: Any) -> int:
        """Neurons of the module that leads out of an MLP."""
        return int(down.weight.shape[0 if type(down).__name__ == "Conv1D" else 1])


@contextmanager
def _hooked(hooks: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    made = []
    try:
        for (side, module), hook in hooks.items():
            register = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
            made.append(register(hook))
        yield
    finally:
        for handle in made:
            handle.remove()
