"""What a modification says, in a few words: for tables, for questions to a reviewer, for a model card."""

from __future__ import annotations

from planner.plan.target import Target
from planner.plan.types import Modification

__all__ = ["describe", "described", "target_in_words"]

_LONGEST_ELEMENTS = 60


def described(modification: Modification) -> str:
    """What a modification does, and to which elements: scale factor=1.02 of rows 33,37."""
    elements = modification.target.elements.model_dump(exclude_defaults=True)
    kind = modification.target.elements.kind
    said = describe(modification.operation.model_dump())
    if kind == "all":
        return said
    given = [_listing(name, value) for name, value in elements.items() if name != "kind"]
    return f"{said} of {kind} {', '.join(given)}".replace("  ", " ")


def describe(operation: dict[str, object]) -> str:
    """An operation in a few words: scale factor=1.02."""
    given = [f"{name}={_value(value)}" for name, value in operation.items() if name != "kind" and value is not None]
    return " ".join([str(operation["kind"]), *given])


def target_in_words(target: Target) -> str:
    """Which tensors a target names, as the plan says it: o_proj, down_proj in layers 8-20."""
    parts = [", ".join(names) for names in (target.tensors, target.roles) if names]
    said = " and ".join(parts)
    if target.layers is None:
        return said
    return f"{said} in layers {target.layers}" if said else f"layers {target.layers}"


def _listing(name: str, value: object) -> str:
    """One field of a choice of elements; the one that names them needs no name of its own."""
    items = ",".join(map(str, value)) if isinstance(value, tuple) and name == "ids" else value
    if isinstance(items, tuple):
        items = " ".join(repr(str(one)) for one in items)
    shown = str(items) if len(str(items)) <= _LONGEST_ELEMENTS else str(items)[:_LONGEST_ELEMENTS] + "..."
    return shown if name in ("indices", "heads", "texts") else f"{name}={shown}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and "ramp" in value:
        return "->".join(f"{number:.6g}" for number in value["ramp"])
    if isinstance(value, dict) and "array" in value:
        return f"{value['file']}:{value['array']}"
    return str(value)
