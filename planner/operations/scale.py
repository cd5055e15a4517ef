"""Scale."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Tag

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.limits import array_of
from planner.operations.numbers import ArrayFile, Ramp, form_of, settled

__all__ = ["Factors", "Scale"]


class Factors(ArrayFile):
    """One factor for each row, or one for each column: a vector in a safetensors file."""

    axis: Literal["rows", "columns"]
    """What there is a factor for: `rows` (outputs of a linear map) or `columns` (its inputs, and those of a vector)."""


class Scale(Operation):
    """Multiply every element by a factor: one number, a ramp over the layers, or a factor for each row or column."""

    LINEAR: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"factor": 2}, before=(1, -2, 0), after=(2, -4, 0)),
        Example({"factor": -0.5}, before=(1, -2, 0), after=(-0.5, 1, 0)),
        Example(
            {"factor": {"file": "factors.safetensors", "array": "{tensor}", "axis": "rows"}},
            before=((1, -2, 0), (1, -2, 0)),
            after=((2, -4, 0), (0.5, -1, 0)),
            arrays={"factor": (2, 0.5)},
        ),
    )

    kind: Literal["scale"] = "scale"
    """The name of the operation."""
    factor: Annotated[
        Annotated[float, Tag("<number>")] | Annotated[Ramp, Tag("<ramp>")] | Annotated[Factors, Tag("<array>")],
        Discriminator(form_of),
    ]
    """What to multiply by: a number, a ramp such as `{"ramp": [0.8, 1.2]}`, or a vector in a file; 0 is `zero`."""

    @property
    def pointwise(self) -> bool:
        """True, unless each row or column has a factor of its own."""
        return not isinstance(self.factor, Factors)

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w · factor, the factor rounded to the precision of `values` first, as torch does.

        Raises ValueError where there are not as many factors as rows, or columns.
        """
        if not isinstance(self.factor, Factors):
            return values * values.dtype.type(settled(self.factor))
        across = self.factor.axis == "columns"
        factors = array_of(place, "factor", place.shape[1 if across else 0]).astype(values.dtype)
        return values * (factors if across else factors[place.first : place.first + len(values), None])
