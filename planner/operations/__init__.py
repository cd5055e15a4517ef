"""What can be done to a tensor: one file an operation, all of them listed here and nowhere else.

To add one: copy `scale.py`, write its docstring, examples and `apply`, add it to the union below. The tests, the
schema, the prompt catalogue and the README table follow from the class by themselves.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from planner.operations.base import Example, Operation
from planner.operations.clamp import Clamp
from planner.operations.fold import fold
from planner.operations.scale import Scale
from planner.operations.shift import Shift
from planner.operations.zero import Zero

__all__ = ["OPERATIONS", "AnyOperation", "Clamp", "Example", "Operation", "Scale", "Shift", "Zero", "fold"]

_Union = Scale | Shift | Clamp | Zero
AnyOperation = Annotated[_Union, Field(discriminator="kind")]
"""Any operation, told apart by its `kind`."""

OPERATIONS: dict[str, type[Operation]] = {
    operation.model_fields["kind"].default: operation for operation in get_args(_Union)
}
"""The operations by kind."""
