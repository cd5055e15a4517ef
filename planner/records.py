"""The one base class of everything that is written to a file or sent over a wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Record"]


class Record(BaseModel):
    """Frozen, closed (an unknown field is an error) and self-describing.

    The sentence under each field is at once its documentation, its description in schemas/ and what an analyst reads.
    NaN and infinity are refused, because JSON has no word for them.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        populate_by_name=True,
        serialize_by_alias=True,
    )
