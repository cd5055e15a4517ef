"""Role and layer of a tensor, from its name alone.

Names follow the dotted module path of the model: `model.layers.3.self_attn.q_proj.weight` is the role `q_proj` in layer
3. The first number on the path is the layer; the last word before `weight` is the role. A bias is a role of its own
(`q_proj.bias`), and so is anything under numbered experts (`experts.down_proj`), so that naming a role never reaches
tensors that the reader did not mean. Nothing is guessed beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TensorRole", "role_of"]


@dataclass(frozen=True)
class TensorRole:
    """What a tensor is for."""

    role: str
    layer: int | None
    """None for tensors outside the stack of layers, such as the embedding."""


def role_of(name: str) -> TensorRole:
    """The role and the layer of the tensor called `name`; never an error."""
    words = name.split(".")
    numbers = [place for place, word in enumerate(words) if word.isascii() and word.isdigit() and len(word) < 7]
    layer = int(words[numbers[0]]) if numbers else None
    suffix = words.pop() if words[-1] in {"weight", "bias"} and len(words) > 1 else "weight"
    role = words[-1]
    if len(numbers) > 1 and numbers[-1] < len(words) - 1:
        role = f"{words[numbers[-1] - 1]}.{role}"
    return TensorRole(role=role if suffix == "weight" else f"{role}.{suffix}", layer=layer)
