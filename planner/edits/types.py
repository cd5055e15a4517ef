"""A plan made concrete for one checkpoint: what is done to each tensor, which tensors are added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from planner.checkpoint import Tensor
from planner.dtypes import FloatDtype
from planner.dtypes.floats import Patterns
from planner.edits.arrays import Provenance
from planner.operations import Folded, Step, fold
from planner.operations.fold import Blocks

__all__ = ["Added", "ModificationEdits", "PlanEdits", "TensorEdit", "Unresolved"]


class Unresolved(ValueError):
    """A modification means something that this checkpoint does not have. `hint` says what there is instead."""

    def __init__(self, message: str, *, hint: str, code: str = "unknown-target") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


@dataclass(frozen=True)
class Added:
    """A tensor that the checkpoint does not have yet; before any step it is all zeros."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    like: str
    """A tensor of the checkpoint: the new one goes into its shard."""


@dataclass(frozen=True, eq=False)
class ModificationEdits:
    """What one modification does."""

    id: str
    steps: dict[str, Step]
    """By the name of the tensor."""
    added: tuple[Added, ...] = ()
    """Tensors it needs that are not there."""
    config: dict[str, bool] = field(default_factory=dict)
    """Keys of config.json that have to change with it."""
    notes: tuple[str, ...] = ()
    """What was meant, for a reviewer: which tokens, which directions from where."""
    provenance: tuple[Provenance, ...] = ()
    """The arrays it reads."""


@dataclass(frozen=True, eq=False)
class TensorEdit:
    """Everything that is done to one tensor, in the order of the plan."""

    tensor: Tensor
    """As stored; for an added tensor, as it will be."""
    dtype: FloatDtype
    steps: tuple[Step, ...]
    modifications: tuple[str, ...]
    """Ids of the modifications, one for each step."""
    added: Added | None = None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @cached_property
    def folded(self) -> Folded:
        """The steps as one function of the stored patterns."""
        return fold(self.steps, self.dtype, self.tensor.shape, tensor=self.name)

    @property
    def table(self) -> Patterns | None:
        """New patterns by old pattern; None where the patterns alone do not decide."""
        return self.folded.table

    def rewrite(self, blocks: Blocks) -> Iterator[Patterns]:
        """The new patterns, in order. `blocks` gives the stored ones, and may be called more than once."""
        return self.folded.rewrite(blocks)

    def zeros(self) -> Iterator[Patterns]:
        """The patterns of an added tensor before any step."""
        yield np.zeros(self.tensor.elements, self.dtype.pattern)


@dataclass(frozen=True, eq=False)
class PlanEdits:
    """Everything that some modifications do together."""

    tensors: dict[str, TensorEdit]
    """By name: stored tensors, and added ones, in the order in which the plan comes to them."""
    config: dict[str, bool]
    """Keys of config.json that have to change."""
