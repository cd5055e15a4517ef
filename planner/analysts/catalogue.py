"""The operations and the choices of elements in words, from the classes themselves.

A language model reads `catalogue` before it begins: a line for each operation that the policy allows. What a line
leaves out, `described` tells of one kind when the model asks. `operation_catalogue` and `elements_catalogue` are the
same as data.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from planner.operations import OPERATIONS, ArrayFile, Example, Operation, Ramp
from planner.operations.ranges import NumberList
from planner.plan import ELEMENTS, Policy
from planner.records import Record

__all__ = ["catalogue", "described", "elements_catalogue", "operation_catalogue"]

_WORDS: dict[Any, str] = {float: "number", int: "integer", bool: "true|false", str: "text"}
_A_LIST = get_args(NumberList)[-1]
"""What tells a list of numbers from any other text."""
_BESIDE = "needs a file or folder beside the plan"
_PLANS_FOLDER = "relative to the plan's folder"
_LARGEST_BOUND = 1000
"""Bounds beyond this keep nonsense out and tell a reader nothing."""
_NOTATION = (
    'A ramp is {"ramp": [0.8, 1.2]}, linear in depth over the layers of the target. A file is '
    '{"file": "x.safetensors", "array": "name"} beside the plan. A list is a text such as "0-3,7", counted from 0.'
)
_HEADING = (
    "Operations, as kind(parameter: type = default), `?` for one that may be left out; written as "
    f'{{"kind": "scale", "factor": 1.02}}. {_NOTATION}'
)
_ELEMENTS = (
    "Elements of a target (`elements`; all of them without it), written as "
    '{"kind": "rows", "indices": "33,37"} or {"kind": "tokens", "texts": ["Once"]}:'
)


def catalogue(policy: Policy, *, tools: bool = True) -> str:
    """Every operation that the policy allows in one line each, then every choice of elements.

    With `tools`, of an operation that needs a file beside the plan there is hardly more than its name: usually there is
    no file, and `describe_operation` tells the rest. At most 2,000 tokens by `estimated_tokens` with all of them.
    """
    lines = [_HEADING]
    for kind, record in OPERATIONS.items():
        if kind in policy.operations:
            lines.append(_short(kind) if tools and _needs_file(record) else _line(kind, record))
    lines.append(_ELEMENTS)
    lines += [_line(kind, record) for kind, record in ELEMENTS.items()]
    return "\n".join(lines)


def described(kind: str) -> str:
    """All that is to be said of one operation or choice of elements: meaning, every parameter, the examples.

    Raises ValueError, with the kinds that there are, where there is none of that name.
    """
    record = OPERATIONS.get(kind) or ELEMENTS.get(kind)
    if record is None:
        raise ValueError(f"there is no {kind[:40]!r}; there are {', '.join([*OPERATIONS, *ELEMENTS])}")
    lines = [f"{kind}: {_meaning(record)}"]
    lines += [f"  {_typed(name, field)}. {_plain(field.description)}" for name, field in _fields(record)]
    if issubclass(record, Operation):
        lines += [f"  It {_BESIDE}."] if _needs_file(record) else []
        lines += [f"  Example: {_example(kind, example)}" for example in record.EXAMPLES]
    return "\n".join(lines)


def operation_catalogue() -> list[dict[str, Any]]:
    """Every operation: kind, meaning, parameters with their meaning, examples in words."""
    return [
        {
            "kind": kind,
            "meaning": _meaning(operation),
            "parameters": _parameters(operation),
            "examples": [_example(kind, example) for example in operation.EXAMPLES],
        }
        for kind, operation in OPERATIONS.items()
    ]


def elements_catalogue() -> list[dict[str, Any]]:
    """Every choice of elements: kind, meaning, parameters with their meaning."""
    return [
        {"kind": kind, "meaning": _meaning(choice), "parameters": _parameters(choice)}
        for kind, choice in ELEMENTS.items()
    ]


def _line(kind: str, record: type[Record]) -> str:
    parameters = ", ".join(_typed(name, field) for name, field in _fields(record))
    marked = f" [{_BESIDE}]" if issubclass(record, Operation) and _needs_file(record) else ""
    sentence = _meaning(record).partition(". ")[0].rstrip(".")
    return f"- {kind}({parameters}): {sentence}.{marked}"


def _short(kind: str) -> str:
    return f'- {kind} [{_BESIDE}; describe_operation("{kind}") says more]'


def _fields(record: type[Record]) -> Iterator[tuple[str, FieldInfo]]:
    return ((name, field) for name, field in record.model_fields.items() if name != "kind")


def _typed(name: str, field: FieldInfo) -> str:
    """Name and type in words, with the default where there is one."""
    words = list(dict.fromkeys(_type_words(field.annotation, field.metadata)))
    if _PLANS_FOLDER in _plain(field.description):
        words = ["path" if word == "text" else word for word in words]
    typed = "|".join(words)
    if field.is_required():
        return f"{name}: {typed}"
    return f"{name}?: {typed}" if field.default in (None, ()) else f"{name}: {typed} = {json.dumps(field.default)}"


def _type_words(kind: Any, metadata: Any = ()) -> Iterator[str]:
    """The words of every alternative of an annotation; None, which is what `optional` says, is passed over."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *more = get_args(kind)
        yield from _type_words(inner, more)
    elif origin in (Union, types.UnionType):
        for part in get_args(kind):
            yield from _type_words(part, metadata)
    elif origin is Literal:
        yield from map(str, get_args(kind))
    elif origin is tuple:
        yield f"[{'|'.join(_type_words(get_args(kind)[0]))}, ...]"
    elif isinstance(kind, type) and issubclass(kind, Ramp):
        yield "ramp"
    elif isinstance(kind, type) and issubclass(kind, ArrayFile):
        # A subclass asks for more beside the array, such as the axis of a vector of factors.
        more = [f"{name} {'|'.join(_type_words(kind.model_fields[name].annotation))}" for name in _added(kind)]
        yield " ".join(["file", *(f"with {field}" for field in more)])
    elif kind is str and _A_LIST in metadata:
        yield "list"
    elif kind in _WORDS:
        yield _WORDS[kind] + _bounds(metadata)


def _added(kind: type[ArrayFile]) -> list[str]:
    return [name for name in kind.model_fields if name not in ArrayFile.model_fields]


def _bounds(metadata: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = []
    for part in metadata:
        for item in getattr(part, "metadata", None) or [part]:
            for name, sign in signs.items():
                bound = getattr(item, name, None)
                if bound is not None and abs(bound) < _LARGEST_BOUND:
                    found.append(f"{sign}{bound}")
    return "".join(f" {bound}" for bound in found)


def _needs_file(operation: type[Operation]) -> bool:
    """Whether no example does without a parameter that names something beside the plan."""
    files = {
        name
        for name, field in _fields(operation)
        if _PLANS_FOLDER in _plain(field.description)
        or any(word.startswith("file") for word in _type_words(field.annotation, field.metadata))
    }
    return all(
        any(
            isinstance(example.parameters.get(name), dict | str) and "ramp" not in example.parameters[name]
            for name in files
        )
        for example in operation.EXAMPLES
    )


def _meaning(record: type[Record]) -> str:
    return _plain(record.__doc__)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def _parameters(record: type[Record]) -> dict[str, str]:
    return {name: _plain(field.description).rstrip(".") + _default(field) for name, field in _fields(record)}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return " (optional)" if field.default in (None, ()) else f" (default {json.dumps(field.default)})"


def _example(kind: str, example: Example) -> str:
    written = json.dumps({"kind": kind} | example.parameters)
    arrays = ", ".join(f"{name} = {json.dumps(values)}" for name, values in example.arrays.items())
    given = f" with {arrays}" if arrays else ""
    return f"{written}{given} turns {json.dumps(example.before)} into {json.dumps(example.after)}"
