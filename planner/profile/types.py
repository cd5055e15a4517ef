"""Profile: the statistics of every tensor of one checkpoint, bound to its fingerprint."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field

from planner.records import Record

__all__ = ["OUTLIER_ORDERS", "QUANTILES", "Profile", "Statistics", "TensorProfile"]

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
OUTLIER_ORDERS = ("3", "6")


class TensorIdentity(Record):
    """What a tensor is."""

    name: str
    """Name in the checkpoint."""
    role: str
    """What it is for, such as q_proj."""
    layer: int | None
    """Which block it is in; null outside the stack."""
    dtype: str
    """Its dtype in the safetensors format."""
    shape: tuple[int, ...]
    """Its dimensions."""
    elements: int
    """How many numbers it holds."""
    digest: str
    """BLAKE3 digest of its bytes."""
    understood: bool
    """Whether this version reads values of its dtype; if not, the statistics are null."""


class Statistics(Record):
    """Statistics of one tensor over its finite elements; null where there is nothing to say."""

    mean: float | None = None
    """Arithmetic mean."""
    std: float | None = None
    """Population standard deviation."""
    min: float | None = None
    """Smallest element."""
    max: float | None = None
    """Largest element."""
    abs_max: float | None = None
    """Largest magnitude."""
    rms: float | None = None
    """Root of the mean square."""
    l2_norm: float | None = None
    """Root of the sum of squares (the Frobenius norm of a matrix)."""
    skewness: float | None = None
    """Third standardised moment."""
    kurtosis: float | None = None
    """Excess kurtosis: fourth standardised moment minus 3, so 0 for a normal distribution."""
    zeros: int = 0
    """Elements that are zero, of either sign."""
    nan: int = 0
    """Elements that are not a number; left out of every other statistic."""
    inf: int = 0
    """Elements that are infinite; left out of every other statistic."""
    quantiles: dict[str, float | None] = {}
    """Quantile to value: the lower order statistic, always an element of the tensor."""
    outliers: dict[str, int] = {}
    """k to the number of elements with |x - mean| > k * std."""
    distinct_values: int | None = None
    """How many different finite values occur; null for a 32- or 64-bit tensor of more than 2^23 elements."""


class TensorProfile(Statistics, TensorIdentity):
    """One tensor: what it is and its statistics."""


class Profile(Record):
    """The statistics of every tensor of one checkpoint."""

    schema_: Literal["planner/profile@1"] = Field(default="planner/profile@1", alias="schema")
    """Kind and version of this file."""
    name: str
    """What the checkpoint is called."""
    fingerprint: str
    """Digest of its weights and configuration."""
    created: str
    """When it was made, UTC."""
    planner_version: str
    """Which planner made it."""
    model_type: str | None
    """`model_type` of config.json."""
    tied_embeddings: bool | None
    """`tie_word_embeddings` of config.json; null where it is silent."""
    parameters: int
    """Elements of all tensors."""
    bytes: int
    """Bytes of all tensors."""
    tensors: tuple[TensorProfile, ...]
    """Every tensor, in the order of the files."""

    @cached_property
    def by_name(self) -> dict[str, TensorProfile]:
        """The tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}
