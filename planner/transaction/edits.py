"""What is to become of a checkpoint, in the terms of its files: tensors rewritten, tensors added, a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planner import effects
from planner.edits import Surroundings
from planner.edits import TensorEdit as PlannedEdit
from planner.plan import Modification

__all__ = ["Addition", "Edits", "Patterns", "TensorEdit", "edits_of"]

Patterns = NDArray[np.unsignedinteger[Any]]


class TensorEdit(Protocol):
    """A tensor that gets other bytes, of the same dtype and shape."""

    @property
    def name(self) -> str:
        """The tensor."""
        ...

    @property
    def modifications(self) -> tuple[str, ...]:
        """Ids of the modifications folded into it."""
        ...

    @property
    def table(self) -> Patterns | None:
        """New patterns by old pattern, [2^8] or [2^16], where that is all there is to it."""
        ...

    def rewrite(self, blocks: Callable[[], Iterator[Patterns]]) -> Iterator[Patterns]:
        """The new patterns in order, in pieces; `blocks` gives the old ones so, as often as it is called."""
        ...


class Addition(Protocol):
    """A tensor that is not there yet."""

    @property
    def name(self) -> str:
        """What it is to be called."""
        ...

    @property
    def dtype(self) -> str:
        """Its dtype, in the words of the safetensors format."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def like(self) -> str:
        """The tensor whose shard it joins."""
        ...

    @property
    def modifications(self) -> tuple[str, ...]:
        """Ids of the modifications that it comes from."""
        ...

    def content(self) -> Iterator[bytes]:
        """Its bytes, in order, in pieces."""
        ...


@dataclass(frozen=True)
class Edits:
    """Everything that a plan changes."""

    tensors: Sequence[TensorEdit] = ()
    additions: Sequence[Addition] = ()
    config: bytes | None = None
    """The new config.json; None to keep the one there is."""


@dataclass(frozen=True)
class _New:
    """A tensor that a plan adds."""

    edit: PlannedEdit
    like: str

    @property
    def name(self) -> str:
        """What it is to be called."""
        return self.edit.name

    @property
    def dtype(self) -> str:
        """Its dtype."""
        return self.edit.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.edit.tensor.shape

    @property
    def modifications(self) -> tuple[str, ...]:
        """Ids of the modifications that it comes from."""
        return self.edit.modifications

    def content(self) -> Iterator[bytes]:
        """What the steps make of zeros."""
        for block in self.edit.rewrite(self.edit.zeros):
            yield block.tobytes()


def edits_of(modifications: Sequence[Modification], around: Surroundings) -> Edits:
    """The edits of a checked plan, in the terms of files. Raises `Unresolved`."""
    planned = effects.edits_of(modifications, around)
    config = around.checkpoint.config
    changed = any(key not in config or config[key] != value for key, value in planned.config.items())
    return Edits(
        tensors=tuple(edit for edit in planned.tensors.values() if edit.added is None),
        additions=tuple(_New(edit, edit.added.like) for edit in planned.tensors.values() if edit.added),
        config=json.dumps(config | planned.config, indent=2, ensure_ascii=False).encode() + b"\n" if changed else None,
    )
