"""describe_operation: all parameters and examples of one operation, or of one choice of elements."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from planner.analysts.aliases import quoted
from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.operations import OPERATIONS
from planner.plan import ELEMENTS
from planner.records import Record

__all__ = ["DescribeOperation"]

_PLAIN = str.maketrans({"\N{MIDDLE DOT}": "*", "\N{SQUARE ROOT}": "sqrt ", "\N{MODIFIER LETTER CAPITAL T}": "^T"})
"""Signs of formulas in the docstrings of the operations, as they are written without them."""


class Kind(Record):
    """What to describe."""

    kind: str = Field(max_length=64)
    """The kind of an operation, such as scale, or of a choice of elements, such as rows."""


class DescribeOperation(AgentTool[Kind]):
    """Everything about one operation or one choice of elements: what it does, its parameters, worked examples."""

    name: ClassVar[str] = "describe_operation"
    Arguments: ClassVar[type[Record]] = Kind
    less: ClassVar[str] = "there is no shorter form"

    def run(self, arguments: Kind, bench: Bench) -> str:
        """The description, and whether the policy allows it."""
        from planner.analysts.catalogue import described

        kind = arguments.kind
        if kind not in OPERATIONS and kind not in ELEMENTS:
            raise ToolRefused(
                f"there is no {quoted(kind)}; operations: {', '.join(bench.brief.policy.operations)}; "
                f"elements: {', '.join(ELEMENTS)}"
            )
        refused = kind in OPERATIONS and kind not in bench.brief.policy.operations
        return described(kind).translate(_PLAIN) + ("\nthe policy does not allow this operation" if refused else "")
