"""Role, layer and expert of a tensor, from its name alone.

Names follow the dotted module path of the model: `model.layers.3.self_attn.q_proj.weight` is the role `q_proj` in layer
3. The first number on the path is the layer; the last word before `weight` is the role. A bias is a role of its own
(`q_proj.bias`), and so is anything under numbered experts (`experts.down_proj`), so that naming a role never reaches
tensors that the reader did not mean. Nothing is guessed beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

__all__ = ["TensorRole", "fused_experts", "role_of"]

_MOST_EXPERTS = 4096


@dataclass(frozen=True)
class TensorRole:
    """What a tensor is for."""

    role: str
    layer: int | None
    """None for tensors outside the stack of layers, such as the embedding."""
    expert: int | None = None
    """The number after `experts`, for tensors of one expert among several; else None."""


def role_of(name: str) -> TensorRole:
    """The role, the layer and the expert of the tensor called `name`; never an error."""
    words = name.split(".")
    numbers = [place for place, word in enumerate(words) if _is_number(word)]
    layer = int(words[numbers[0]]) if numbers else None
    suffix = words.pop() if words[-1] in {"weight", "bias"} and len(words) > 1 else "weight"
    role = words[-1]
    expert = None
    if len(numbers) > 1 and numbers[-1] < len(words) - 1:
        role = f"{words[numbers[-1] - 1]}.{role}"
        # The first number is the layer even under a word `experts`: nothing says which of the two it would be.
        expert = next((int(words[place]) for place in numbers[1:] if _holds_experts(words[place - 1])), None)
    return TensorRole(role=role if suffix == "weight" else f"{role}.{suffix}", layer=layer, expert=expert)


def fused_experts(name: str, shape: tuple[int, ...]) -> int | None:
    """How many experts the tensor called `name` holds as slices along its first dimension; None if it is not that.

    A shape of [E, a, b] alone says nothing (a convolution has one as well): the dotted path must hold a word such as
    `experts` that no number follows, or one with `moe` in it (`block_sparse_moe`).
    """
    if len(shape) != 3 or not 1 < shape[0] <= _MOST_EXPERTS or min(shape[1:]) <= 1:
        return None
    words = name.split(".")
    if any(_holds_experts(word) and _is_number(after) for word, after in pairwise(words)):
        return None  # one expert of several
    return shape[0] if any(_holds_experts(word) or "moe" in word.lower().split("_") for word in words) else None


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 7


def _holds_experts(word: str) -> bool:
    return word == "experts" or word.endswith("_experts")
