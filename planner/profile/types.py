"""Profile: the statistics of every tensor of one checkpoint, bound to its fingerprint."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from planner.profile.spectra import Spectrum
from planner.records import Record

__all__ = [
    "OUTLIER_ORDERS",
    "QUANTILES",
    "Element",
    "Experts",
    "Finding",
    "HeadNorms",
    "NormSummary",
    "Profile",
    "SameBytes",
    "Statistics",
    "TensorProfile",
    "Tie",
]

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
OUTLIER_ORDERS = ("3", "6")


class _Numerous(Record):
    """A record of which a model has many thousands: all of a class share one set of the fields that were given."""

    def model_post_init(self, context: Any, /) -> None:  # noqa: ARG002 - the name is pydantic's
        # The set that pydantic keeps for each would take more memory than the numbers; nothing here asks for it.
        object.__setattr__(self, "__pydantic_fields_set__", _all_fields(type(self)))


@cache
def _all_fields(record: type[BaseModel]) -> set[str]:
    return set(record.model_fields)


class TensorIdentity(_Numerous):
    """What a tensor is."""

    name: str
    """Name in the checkpoint."""
    role: str
    """What it is for, such as q_proj."""
    layer: int | None
    """Which block it is in; null outside the stack."""
    expert: int | None = None
    """Which expert of its layer it belongs to, where each expert has tensors of its own; else null."""
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


class Statistics(_Numerous):
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
    negative_zeros: int = 0
    """Of the zeros, those with a minus sign."""
    subnormals: int = 0
    """Elements too small for the dtype's full precision: not zero, smaller than its smallest normal number."""
    nan: int = 0
    """Elements that are not a number; left out of every other statistic."""
    inf: int = 0
    """Elements that are infinite, of either sign; left out of every other statistic."""
    negative_inf: int = 0
    """Of the infinite elements, those with a minus sign."""
    quantiles: dict[str, float | None] = {}
    """Quantile to value: the lower order statistic, always an element of the tensor."""
    outliers: dict[str, int] = {}
    """k to the number of elements with |x - mean| > k * std."""
    distinct_values: int | None = None
    """How many different finite values occur; null for a 32- or 64-bit tensor of more than 2^23 elements."""
    entropy: float | None = None
    """Shannon entropy of the finite values in bits an element; null where the distinct values were not counted."""


class NormSummary(_Numerous):
    """The l2 norms of the rows, or of the columns, of a matrix: non-finite elements count as zero."""

    count: int
    """How many rows or columns there are."""
    min: float
    """Smallest norm."""
    median: float
    """Median norm (the lower one of the two in the middle)."""
    max: float
    """Largest norm."""
    cv: float | None
    """Coefficient of variation: population standard deviation of the norms over their mean; null if all are zero."""
    smallest_at: tuple[int, ...]
    """Indices of the smallest norms, the smallest first; of equal ones the lowest index first."""
    largest_at: tuple[int, ...]
    """Indices of the largest norms, the largest first."""


class HeadNorms(_Numerous):
    """The l2 norm of each head's share of an attention projection."""

    part: Literal["query", "key", "value", "output"]
    """Whose heads; a fused projection has several parts."""
    axis: Literal["rows", "columns"]
    """Whether a head is a band of rows or of columns."""
    width: int
    """Rows or columns a head."""
    norms: tuple[float, ...]
    """One norm a head, in order."""


@dataclass(
    frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
)
class Element:
    """One element of a tensor."""

    index: tuple[int, ...]
    """Its coordinates."""
    value: float
    """Its value."""


class Experts(Record):
    """The experts of a fused tensor, one number an expert, in order: slices along the first dimension."""

    count: int
    """How many there are."""
    mean: tuple[float | None, ...]
    """Means."""
    std: tuple[float | None, ...]
    """Population standard deviations."""
    rms: tuple[float | None, ...]
    """Roots of the mean squares."""
    abs_max: tuple[float | None, ...]
    """Largest magnitudes."""
    kurtosis: tuple[float | None, ...]
    """Excess kurtoses."""
    zeros: tuple[int, ...]
    """Elements that are zero."""
    nonfinite: tuple[int, ...]
    """Elements that are NaN or infinite."""
    spectra: tuple[Spectrum | None, ...] = ()
    """Their singular values, if those were asked for."""


class TensorProfile(Statistics, TensorIdentity):
    """One tensor: what it is and its statistics."""

    rows: NormSummary | None = None
    """Norms of the rows (all dimensions but the last); null below two dimensions or above 2^20 rows or columns."""
    columns: NormSummary | None = None
    """Norms of the columns (the last dimension); null as the rows are."""
    heads: tuple[HeadNorms, ...] = ()
    """Norms of the heads, for attention projections whose layout the configuration tells."""
    largest: tuple[Element, ...] = ()
    """The elements of largest magnitude with their coordinates, the largest first; zeros are left out."""
    experts: Experts | None = None
    """What each expert looks like, where the experts of a layer share one tensor."""
    spectrum: Spectrum | None = None
    """Singular values, if those were asked for; null for what is no finite matrix."""


class SameBytes(Record):
    """Tensors that hold the very same bytes."""

    digest: str
    """BLAKE3 digest of the bytes."""
    names: tuple[str, ...]
    """The tensors, in the order of the files."""
    constant: bool
    """Whether all elements are equal, as in fresh norms and biases, where sameness says little."""


class Tie(Record):
    """Tensors that a loader makes one because the configuration ties them."""

    names: tuple[str, ...]
    """The tensors of the group that are stored."""
    stored: Literal["once", "equal", "different"]
    """Stored once; several times with equal bytes; or several times with different bytes, where loaders disagree."""


class Finding(Record):
    """Something notable about a tensor, said in a sentence."""

    tensor: str
    """Which tensor."""
    kind: str
    """What sort of finding, such as kurtosis or nan."""
    value: float | None
    """The number it rests on."""
    typical: float | None
    """The same number's median over the tensor's peers; null where it has none."""
    robust_z: float | None
    """How far the number stands from its peers' in robust standard deviations; null where it has none."""
    sentence: str
    """The finding in words."""


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
    spectra: bool = False
    """Whether singular values were computed."""
    tensors: tuple[TensorProfile, ...]
    """Every tensor, in the order of the files."""
    ties: tuple[Tie, ...] = ()
    """Tensors that the configuration ties together."""
    same_bytes: tuple[SameBytes, ...] = ()
    """Groups of tensors with the same dtype, shape and bytes."""
    findings: tuple[Finding, ...] = ()
    """What is notable, the most notable first."""
    warnings: tuple[str, ...] = ()
    """What is odd about the files, though they can be read."""

    def to_arrow(self) -> Any:
        """A pyarrow.Table, one row a tensor, for pandas and polars. Raises `ExtraMissing` without pyarrow."""
        from planner.profile.export import to_arrow

        return to_arrow(self)

    @cached_property
    def by_name(self) -> dict[str, TensorProfile]:
        """The tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}
