"""Tensors of one kind: the same name but for the numbers of the layer and the expert, the same shape and dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.analysts.picture.wording import Speaker, ranges
from planner.profile import TensorProfile

__all__ = ["Group", "Groups", "grouped"]


@dataclass(frozen=True)
class Group:
    """Such tensors, in the order of layers and experts."""

    label: str
    """The role where no other group has it, else the pattern."""
    pattern: str
    """The names as a target may write them: `model.layers.{0-27}.mlp.up_proj.weight`."""
    tensors: tuple[TensorProfile, ...]

    @property
    def layers(self) -> list[int]:
        """The layers, each once."""
        return sorted({tensor.layer for tensor in self.tensors if tensor.layer is not None})

    @property
    def of_experts(self) -> bool:
        """Whether each expert has a tensor of its own."""
        return self.tensors[0].expert is not None


@dataclass(frozen=True)
class Groups:
    """All tensors of a checkpoint."""

    layered: Sequence[Group]
    """Those in layers, in the order of the checkpoint."""
    single: Sequence[TensorProfile]
    """Those outside the layers, and those that have an alias, whose names say nothing that can be relied on."""
    layers: int
    """How many layers the model has, by its tensors' names."""


def grouped(tensors: Iterable[TensorProfile], speaker: Speaker) -> Groups:
    """The groups of a checkpoint's tensors."""
    found: dict[tuple[str, tuple[int, ...], str], list[TensorProfile]] = {}
    single: list[TensorProfile] = []
    for tensor in tensors:
        if tensor.layer is None or speaker.hides(tensor.name):
            single.append(tensor)
        else:
            found.setdefault((_template(tensor), tensor.shape, tensor.dtype), []).append(tensor)
    taken = Counter(members[0].role for members in found.values())
    layered = []
    for (template, _, _), members in found.items():
        pattern = template.replace("<layer>", _braced({t.layer for t in members if t.layer is not None}))
        pattern = pattern.replace("<expert>", _braced({t.expert for t in members if t.expert is not None}))
        label = members[0].role if taken[members[0].role] == 1 else pattern
        ordered = sorted(members, key=lambda tensor: (tensor.layer or 0, tensor.expert or 0))
        layered.append(Group(label=label, pattern=pattern, tensors=tuple(ordered)))
    return Groups(layered, single, len({layer for group in layered for layer in group.layers}))


def _braced(numbers: set[int]) -> str:
    return f"{{{ranges(numbers)}}}" if len(numbers) > 1 else str(min(numbers, default=""))


def _template(tensor: TensorProfile) -> str:
    """The name without its layer and its expert; the layer is the first number (`architecture.roles`)."""
    words = tensor.name.split(".")
    for place, word in enumerate(words):
        if word.isdigit():
            words[place] = "<layer>"
            break
    for place in range(1, len(words)):
        if tensor.expert is not None and words[place].isdigit() and words[place - 1].endswith("experts"):
            words[place] = "<expert>"
            break
    return ".".join(words)
