"""A modification of a draft in one short phrase, so that a line about it says what it is and not only its id."""

from __future__ import annotations

from planner.analysts.aliases import quoted
from planner.analysts.strengths import worded
from planner.analysts.tools.base import Bench
from planner.operations import ChannelScale, HeadScale, NeuronScale
from planner.plan import Modification

__all__ = ["phrase_of"]

_LONGEST_LIST, _LONGEST_NAMES = 32, 72
_MOST_NAMES = 2


def phrase_of(modification: Modification, bench: Bench) -> str:
    """Such as `scale x1.3 of rows 581 of model.embed_tokens.weight`; names pass through the aliases."""
    operation = modification.operation
    said = worded(operation)
    if isinstance(factor := getattr(operation, "factor", None), int | float):
        said = f"{operation.kind} x{factor:.4g}"
    if isinstance(operation, HeadScale | NeuronScale | ChannelScale):
        units = operation.kind.removesuffix("_scale") + "s"
        said += f" of {operation.part} of {units} {_short(getattr(operation, units))}"
    return f"{said}{_elements(modification)} of {_target(modification, bench)}"


def _elements(modification: Modification) -> str:
    elements = modification.target.elements
    given = elements.model_dump(exclude_defaults=True, exclude={"kind"})
    if elements.kind == "all":
        return ""
    return f" of {elements.kind} {' '.join(_given(name, value) for name, value in given.items())}"


def _given(name: str, value: object) -> str:
    """One field of a choice of elements; the lists of numbers and of texts need no name."""
    if name in ("indices", "heads"):
        return _short(str(value))
    if name in ("ids", "texts") and isinstance(value, tuple):
        return _short(",".join(quoted(one, longest=16) if isinstance(one, str) else str(one) for one in value[:8]))
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def _target(modification: Modification, bench: Bench) -> str:
    target = modification.target
    parts = []
    if target.tensors:
        parts.append(_listed([bench.aliases.shown(name) for name in target.tensors]))
    if target.roles:
        parts.append(_listed([bench.roles.get(role) or quoted(role) for role in target.roles]))
    if target.layers is not None:
        parts.append(f"layers {_short(target.layers)}")
    return " in ".join(parts)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(_short(name, _LONGEST_NAMES) for name in names[:_MOST_NAMES])}{more}"


def _short(text: str, longest: int = _LONGEST_LIST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
