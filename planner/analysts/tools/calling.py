"""The one place where a model's call becomes a result, whatever the model wrote.

A call never raises for anything in it: a wrong name, text that is no JSON, a field of another type, a tensor that is
not there. The model is told what was wrong, all at once, in a result like any other. A result is capped, plain ASCII,
and says what was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from planner import strict_json
from planner.analysts.aliases import quoted
from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.check_plan import CheckPlan
from planner.analysts.tools.compare_layers import CompareLayers
from planner.analysts.tools.describe_operation import DescribeOperation
from planner.analysts.tools.histogram import DrawHistogram
from planner.analysts.tools.largest_rows import LargestRows
from planner.analysts.tools.list_tensors import ListTensors
from planner.analysts.tools.predicted_change import PredictLoss
from planner.analysts.tools.preview_modification import PreviewModification
from planner.analysts.tools.sensitivities import Sensitivities
from planner.analysts.tools.tensor_sensitivity import TensorSensitivities
from planner.analysts.tools.tensor_statistics import TensorStatistics
from planner.analysts.tools.token_meanings import TokenMeanings
from planner.analysts.tools.token_search import FindTokens
from planner.llm import Tool
from planner.plan import field_path, nearest
from planner.records import Record

__all__ = ["LONGEST_RESULT", "TOOLS", "Called", "call", "offered"]

TOOLS: tuple[AgentTool[Any], ...] = (
    ListTensors(),
    TensorStatistics(),
    DrawHistogram(),
    CompareLayers(),
    Sensitivities(),
    TensorSensitivities(),
    LargestRows(),
    TokenMeanings(),
    FindTokens(),
    DescribeOperation(),
    PreviewModification(),
    PredictLoss(),
    CheckPlan(),
)
"""Every tool there is, in the order in which a model reads of them."""

LONGEST_RESULT = 6_000
"""The most characters of one result."""
_LARGEST_ARGUMENTS = 64 * 2**10
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Called:
    """The result of a call."""

    text: str
    """For the model: plain ASCII, at most `LONGEST_RESULT` characters."""
    ok: bool
    """Whether the tool did what it was asked."""


def offered(bench: Bench) -> tuple[Tool, ...]:
    """The tools that there is something to show with, for a `Request`."""
    return tuple(
        Tool(name=tool.name, description=_description(tool), parameters=tool.parameters(bench))
        for tool in TOOLS
        if tool.available(bench)
    )


def call(name: str, arguments: str, bench: Bench) -> Called:
    """What the tool says to these arguments, JSON as the model wrote it. Raises nothing but KeyboardInterrupt."""
    less = AgentTool.less
    try:
        tool = _called(name, bench)
        less = tool.less
        return Called(_capped(tool.run(_read(arguments, tool), bench), less), ok=True)
    except ToolRefused as error:
        return Called(_capped(str(error), less), ok=False)
    except Exception as error:  # noqa: BLE001 - a bug in one tool must not end a paid conversation
        return Called(f"the tool failed: {type(error).__name__}", ok=False)


def _description(tool: AgentTool[Any]) -> str:
    return " ".join((tool.__doc__ or "").split())


def _called(name: str, bench: Bench) -> AgentTool[Any]:
    by_name = {tool.name: tool for tool in TOOLS}
    there = [tool.name for tool in TOOLS if tool.available(bench)]
    if name in there:
        return by_name[name]
    if name in by_name:
        raise ToolRefused(f"{name} needs measurements, and none were made; there are: {', '.join(there)}")
    close = nearest(name, there, most=1)
    instead = f"did you mean {close[0]}? " if close else ""
    raise ToolRefused(f"there is no tool {quoted(name)}; {instead}there are: {', '.join(there)}")


def _read(arguments: str, tool: AgentTool[Any]) -> Record:
    """The arguments, read strictly. Raises `ToolRefused` with everything that is wrong with them."""
    text = arguments if arguments.strip() else "{}"  # what some endpoints send for no arguments
    try:
        document = strict_json.loads(text, largest=_LARGEST_ARGUMENTS)
    except strict_json.JsonRefused as error:
        raise ToolRefused(f"the arguments are not sound JSON: {error}") from None
    fields = ", ".join(tool.Arguments.model_fields)
    if not isinstance(document, dict):
        raise ToolRefused(f"the arguments are not a JSON object with the fields {fields}")
    try:
        return tool.Arguments.model_validate_json(text, strict=True)
    except ValidationError as error:
        wrong = "; ".join(_complaints(error))
        raise ToolRefused(f"the arguments do not fit {tool.name}: {wrong}. Its fields: {fields}") from None


def _complaints(error: ValidationError) -> Sequence[str]:
    said = []
    for item in error.errors(include_url=False, include_context=False):
        where = field_path(item["loc"])
        where = where if len(where) <= _LONGEST_NAME else where[: _LONGEST_NAME - 3] + "..."
        what = (
            "there is no such field" if item["type"] == "extra_forbidden" else item["msg"].replace("Tuple", "The list")
        )
        said.append(f"{where}: {what.removeprefix('Value error, ')}")
    return list(dict.fromkeys(said))


def _capped(text: str, less: str) -> str:
    """Plain characters only, cut after a whole line where it is too long."""
    plain = "".join(c for c in text if (c.isascii() and c.isprintable()) or c == "\n")
    if len(plain) <= LONGEST_RESULT:
        return plain
    room = LONGEST_RESULT - 120
    kept = plain[: plain.rfind("\n", 0, room)] if "\n" in plain[1:room] else plain[:room]
    cut = plain[len(kept) :].strip("\n")
    lines = cut.count("\n") + 1
    return f"{kept}\n[cut here: {lines} more lines, {len(cut)} characters; {less}]"
