"""Which elements of a tensor a modification is about."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from planner.operations.ranges import NumberList
from planner.records import Record

__all__ = [
    "ELEMENTS",
    "AllElements",
    "ColumnElements",
    "Elements",
    "HeadElements",
    "MagnitudeQuantile",
    "RowElements",
    "SignedQuantile",
    "TokenElements",
    "ValueRange",
]

HeadPart = Literal["query", "key", "value", "output"]
Spaces = Literal["as_written", "with", "without", "both"]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class AllElements(Record):
    """Every element."""

    kind: Literal["all"] = "all"
    """The name of the choice."""


class RowElements(Record):
    """Whole rows: of a weight [out, in], those that make some of its outputs. Leading dimensions count as rows."""

    kind: Literal["rows"] = "rows"
    """The name of the choice."""
    indices: NumberList
    """Rows, counted from 0, such as `0-3,7`; each must be there."""


class ColumnElements(Record):
    """Whole columns: of a weight [out, in], those that read some of its inputs. A vector is one row."""

    kind: Literal["columns"] = "columns"
    """The name of the choice."""
    indices: NumberList
    """Columns, counted from 0, such as `0-3,7`; each must be there."""


class HeadElements(Record):
    """What belongs to some heads of an attention projection: rows of query, key and value, columns of the output."""

    kind: Literal["heads"] = "heads"
    """The name of the choice."""
    heads: NumberList
    """Heads, counted from 0, such as `0,3`; of a key or a value projection, its own, of which there may be fewer."""
    part: HeadPart | None = None
    """Which part of a projection that holds several, such as a fused qkv_proj; null where it holds one alone."""


class TokenElements(Record):
    """The rows of some tokens in an embedding or in an output head."""

    kind: Literal["tokens"] = "tokens"
    """The name of the choice."""
    texts: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(default=(), max_length=4096)
    """Tokens by their text, as the checkpoint's own tokenizer spells it; ` Paris` and `Paris` are two tokens."""
    ids: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(default=(), max_length=4096)
    """Tokens by number."""
    each: bool = False
    """Whether a text that is several tokens means all of them; otherwise it is an error that shows them."""
    spaces: Spaces = "as_written"
    """Which sibling of each text is meant: as written, with one leading space, without any, or both of these."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.texts and not self.ids:
            raise ValueError("name tokens by `texts`, by `ids` or by both")
        return self


class _Quantile(Record):
    above: Fraction | None = None
    """The elements at or above this quantile: 0.9 means the top tenth."""
    below: Fraction | None = None
    """The elements at or below this quantile: 0.1 means the bottom tenth."""

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either `above` or `below`: a quantile between 0 and 1")
        return self


class MagnitudeQuantile(_Quantile):
    """The elements whose magnitude |w| lies on one side of a quantile of |w|: those far from zero, or near it."""

    kind: Literal["magnitude_quantile"] = "magnitude_quantile"
    """The name of the choice."""


class SignedQuantile(_Quantile):
    """The elements whose value w lies on one side of a quantile of w: the most positive, or the most negative."""

    kind: Literal["signed_quantile"] = "signed_quantile"
    """The name of the choice."""


class ValueRange(Record):
    """The elements whose stored value lies within bounds, which are included; never a NaN."""

    kind: Literal["value_range"] = "value_range"
    """The name of the choice."""
    minimum: float | None = None
    """Smallest value that is meant; null means no lower bound."""
    maximum: float | None = None
    """Largest value that is meant; null means no upper bound."""

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise ValueError("value_range needs a minimum, a maximum or both")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"the minimum {self.minimum} is above the maximum {self.maximum}")
        return self


_Union = (
    Annotated[AllElements, Tag("all")]
    | Annotated[RowElements, Tag("rows")]
    | Annotated[ColumnElements, Tag("columns")]
    | Annotated[HeadElements, Tag("heads")]
    | Annotated[TokenElements, Tag("tokens")]
    | Annotated[MagnitudeQuantile, Tag("magnitude_quantile")]
    | Annotated[SignedQuantile, Tag("signed_quantile")]
    | Annotated[ValueRange, Tag("value_range")]
)

ELEMENTS: dict[str, type[Record]] = {
    kind.model_fields["kind"].default: kind for kind in (get_args(member)[0] for member in get_args(_Union))
}
"""The choices by kind."""


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


# There is no kind `top`: the largest tenth by magnitude and the largest tenth by value are other elements, and the list
# that asks for "top 10 %" without saying which means one thing to its author and another to its reader.
Elements = Annotated[
    _Union,
    Discriminator(
        _kind,
        custom_error_type="elements_kind",
        custom_error_message=(
            f"the kind is one of {', '.join(ELEMENTS)}. A share such as the top 10 % must say of what: "
            "magnitude_quantile (above 0.9: farthest from zero) or signed_quantile (above 0.9: most positive)"
        ),
    ),
]
"""Any choice of elements, told apart by its `kind`."""
