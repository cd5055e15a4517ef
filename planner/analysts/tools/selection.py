"""Which tensors a model asks about: by a pattern over the names that it sees, by role, by layer.

Patterns mean what they mean in the target of a plan, except that they are held against aliases where a plan's are held
against the names in the files: the model knows no others.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import Field, ValidationError

from planner.analysts.aliases import quoted
from planner.analysts.tools.base import Bench, ToolRefused
from planner.effects import CITABLE
from planner.operations import numbers_in
from planner.plan import Target, TargetUnmatched, nearest, resolve
from planner.profile import TensorProfile
from planner.profile.peers import STATISTICS

__all__ = ["StatisticName", "meaning_of", "role_called", "selected", "statistic_called", "with_statistics"]

_BRACES, _GLOB = re.compile(r"\{([^{}]*)\}"), re.compile(r"[*?\[]")
_MOST_COMPARISONS = 5_000_000  # some seconds


StatisticName = Annotated[str, Field(max_length=64)]
"""The name of a statistic that tensors can be compared by; which there are depends on what was profiled."""

_SHARES = {
    "zeros": "share of zero elements; the fact zeros is their count",
    "subnormals": "share of subnormal elements; no fact to cite",
    "outliers_3": "share of elements beyond 3 std; the fact outliers.3 is their count",
    "outliers_6": "share of elements beyond 6 std; the fact outliers.6 is their count",
    "offset": "mean / std; no fact to cite: cite mean and std",
    "reach": "abs_max / std; no fact to cite: cite abs_max and std",
}


def statistic_called(name: str, bench: Bench) -> str:
    """The name of a statistic that this profile has. Raises `ToolRefused`."""
    if name in bench.statistics:
        return name
    why = f"{name} was not measured in this profile" if name in STATISTICS else f"no statistic is called {quoted(name)}"
    raise ToolRefused(f"{why}; there are {', '.join(bench.statistics) or 'none'}")


def with_statistics(schema: dict[str, Any], field: str, bench: Bench) -> dict[str, Any]:
    """A schema of arguments in which this field is one of the statistics that the profile has."""
    shape = schema["properties"][field]
    for choice in shape.get("anyOf", [shape]):
        if choice.get("type") == "string" and bench.statistics:
            choice["enum"] = list(bench.statistics)
    return schema


def meaning_of(statistic: str) -> str:
    """What to know of a statistic of `StatisticName` before it is cited."""
    if statistic in _SHARES:
        return f"{statistic} ({_SHARES[statistic]})"
    return f"{statistic} (a fact to cite)" if statistic in CITABLE else f"{statistic} (no fact to cite)"


def role_called(text: str, bench: Bench) -> str:
    """The role that is shown so, or is called so. Raises `ToolRefused`."""
    for role, shown in bench.roles.items():
        if text in (role, shown, shown.strip('"')):
            return role
    there = list(bench.roles.values())
    close = nearest(text, there) or there[:40]
    raise ToolRefused(f"no tensor has the role {quoted(text)}; roles here: {', '.join(close)}")


def selected(
    bench: Bench, *, pattern: str | None = None, role: str | None = None, layers: str | None = None
) -> list[TensorProfile]:
    """The tensors that all of these hold for, in the order of the files. Raises `ToolRefused` where none is."""
    found = list(bench.brief.profile.tensors)
    if pattern is not None:
        wanted = _matched(bench.aliases.hidden.get(pattern, pattern), bench)
        found = [tensor for tensor in found if bench.aliases.shown(tensor.name) in wanted]
    if role is not None:
        wanted_role = role_called(role, bench)
        found = [tensor for tensor in found if tensor.role == wanted_role]
    if layers is not None:
        wanted_layers = _layers(layers, bench)
        found = [tensor for tensor in found if tensor.layer in wanted_layers]
    if not found:
        raise ToolRefused("pattern, role and layers hold for some tensors each, but for none together; leave one out")
    return found


def _matched(pattern: str, bench: Bench) -> set[str]:
    try:
        target = Target(tensors=(pattern,))
        many = math.prod(len(numbers_in(numbers)) for numbers in _BRACES.findall(pattern))
        if _GLOB.search(pattern) and many * len(bench.names) > _MOST_COMPARISONS:
            raise ToolRefused(f"{quoted(pattern)} stands for {many} patterns, too many here; use role and layers")
        return set(resolve(target, bench.names))
    except TargetUnmatched as error:
        raise ToolRefused(f"{error} ({error.hint})") from None
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ToolRefused(f"the pattern {quoted(pattern)} cannot be read: {said}") from None


def _layers(layers: str, bench: Bench) -> set[int]:
    try:
        wanted = set(numbers_in(layers))
    except ValueError as error:
        raise ToolRefused(f"the layers cannot be read: {error}") from None
    there = {tensor.layer for tensor in bench.brief.profile.tensors if tensor.layer is not None}
    if missing := sorted(wanted - there):
        span = f"layers here: {min(there)} to {max(there)}" if there else "no tensor here is in a layer"
        raise ToolRefused(f"there is no layer {', '.join(map(str, missing[:8]))}; {span}")
    return wanted
