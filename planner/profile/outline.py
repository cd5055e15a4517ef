"""A profile in outline: of every tensor the few numbers by which a plan is checked, and no more.

The statistics of one tensor take some 12 KB of memory. A mixture of experts has tens of thousands of tensors, and who
applies a plan to a few of them needs little of most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from planner.checkpoint import Checkpoint, fingerprint_of
from planner.profile.types import TensorProfile

__all__ = ["Outlined", "ProfileOutline", "Profiled", "TensorOutline", "outline_from"]


class Outlined(Protocol):
    """What is known of a tensor: a `TensorProfile`, or the outline of one, whose fields have the same names."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def elements(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def zeros(self) -> int: ...
    @property
    def nan(self) -> int: ...
    @property
    def inf(self) -> int: ...
    @property
    def min(self) -> float | None: ...
    @property
    def max(self) -> float | None: ...
    @property
    def l2_norm(self) -> float | None: ...


class Profiled(Protocol):
    """A `Profile`, or the outline of one."""

    @property
    def fingerprint(self) -> str:
        """Digest of the weights and the configuration."""
        ...

    @property
    def by_name(self) -> Mapping[str, Outlined]:
        """The tensors by name."""
        ...


@dataclass(frozen=True, slots=True)
class TensorOutline:
    """The outline of one tensor; what each field means is said in `TensorProfile`."""

    name: str
    dtype: str
    elements: int
    digest: str
    zeros: int
    nan: int
    inf: int
    min: float | None
    max: float | None
    l2_norm: float | None


@dataclass(frozen=True)
class ProfileOutline:
    """The outline of a profile."""

    fingerprint: str
    """Digest of the weights and the configuration."""
    by_name: Mapping[str, Outlined]
    """The tensors by name."""


def outline_from(checkpoint: Checkpoint, tensors: Iterable[TensorProfile], whole: Collection[str]) -> ProfileOutline:
    """The outline of a checkpoint from its tensors' profiles, in any order; those named in `whole` are kept whole.

    Raises `ValueError` where they are not the tensors of this checkpoint, and what `tensors` raises.
    """
    found: dict[str, Outlined] = {}
    for tensor in tensors:
        stored = checkpoint.tensors.get(tensor.name)
        if stored is None or (stored.dtype, stored.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"{tensor.name} is not what is in the checkpoint")
        # The names that the checkpoint has: the same strings again would take as much memory as the numbers.
        found[stored.name] = tensor if tensor.name in whole else _outlined(tensor, stored.name, stored.dtype)
    if found.keys() != checkpoint.tensors.keys():
        raise ValueError("a tensor is missing")
    digests = {name: tensor.digest for name, tensor in found.items()}
    return ProfileOutline(fingerprint_of(checkpoint, digests), {name: found[name] for name in checkpoint.tensors})


def _outlined(tensor: TensorProfile, name: str, dtype: str) -> TensorOutline:
    return TensorOutline(
        name=name,
        dtype=dtype,
        elements=tensor.elements,
        digest=tensor.digest,
        zeros=tensor.zeros,
        nan=tensor.nan,
        inf=tensor.inf,
        min=tensor.min,
        max=tensor.max,
        l2_norm=tensor.l2_norm,
    )
