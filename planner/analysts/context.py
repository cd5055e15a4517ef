"""The profile as a language model reads it: by role, one line a layer, scientific notation.

Names come from a file that a stranger wrote: control and direction-changing characters are escaped and lengths are
capped, so that a name can neither end its line nor rearrange it.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic.fields import FieldInfo

from planner.operations import OPERATIONS, Example
from planner.plan import ELEMENTS
from planner.profile import Profile, Standing, TensorProfile, peer_groups, standings
from planner.records import Record

__all__ = ["elements_catalogue", "operation_catalogue", "printable", "render_model", "render_statistics"]

_MOST_ROWS = 400
_LONGEST_NAME = 200


def printable(text: str, *, longest: int = _LONGEST_NAME) -> str:
    """The text with everything that is not a plain printable character escaped, at most `longest` characters."""
    plain = "".join(c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return plain[:longest]


def operation_catalogue() -> list[dict[str, Any]]:
    """Every operation in words, from the classes themselves."""
    return [
        {
            "kind": kind,
            "meaning": " ".join((operation.__doc__ or "").split()),
            "parameters": _parameters(operation),
            "examples": [_example(kind, example) for example in operation.EXAMPLES],
        }
        for kind, operation in OPERATIONS.items()
    ]


def elements_catalogue() -> list[dict[str, Any]]:
    """Every choice of elements in words, from the classes themselves."""
    return [
        {"kind": kind, "meaning": " ".join((choice.__doc__ or "").split()), "parameters": _parameters(choice)}
        for kind, choice in ELEMENTS.items()
    ]


def _parameters(record: type[Record]) -> dict[str, str]:
    return {
        name: " ".join((field.description or "").split()).rstrip(".") + _default(field)
        for name, field in record.model_fields.items()
        if name != "kind"
    }


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return " (optional)" if field.default in (None, ()) else f" (default {json.dumps(field.default)})"


def _example(kind: str, example: Example) -> str:
    written = json.dumps({"kind": kind} | example.parameters)
    arrays = ", ".join(f"{name} = {json.dumps(values)}" for name, values in example.arrays.items())
    given = f" with {arrays}" if arrays else ""
    return f"{written}{given} turns {json.dumps(example.before)} into {json.dumps(example.after)}"


def render_model(profile: Profile) -> str:
    """What the checkpoint is, in three lines."""
    layers = {tensor.layer for tensor in profile.tensors if tensor.layer is not None}
    dtypes = ", ".join(sorted({tensor.dtype for tensor in profile.tensors}))
    tied = {True: "yes", False: "no", None: "config.json does not say"}[profile.tied_embeddings]
    return (
        f"model_type: {printable(profile.model_type or 'unknown')}; embeddings tied: {tied}; dtypes: {dtypes}\n"
        f"{profile.parameters:,} parameters in {len(profile.tensors)} tensors; "
        + (f"layers {min(layers)} to {max(layers)}" if layers else "no layers")
    )


def render_statistics(profile: Profile, *, most_rows: int = _MOST_ROWS) -> str:
    """Every tensor's statistics; with more tensors than rows, those least unlike their peers are left out."""
    groups = peer_groups(profile.tensors)
    outside = [tensor for tensor in profile.tensors if tensor.layer is None]
    standing = {s.tensor.name: s for group in groups for s in standings(group)}

    def strangeness(tensor: TensorProfile) -> float:
        found = standing.get(tensor.name)
        if tensor.nan or tensor.inf or (found is None and tensor.understood):  # no rms, or one of zero: no standing
            return math.inf
        return abs(found.robust_z) if found else -1.0

    inside = sorted((tensor for group in groups for tensor in group), key=strangeness, reverse=True)
    shown = {tensor.name for tensor in (outside + inside)[:most_rows]}
    titled = [("outside the layers", outside), *((f"role {printable(group[0].role)}", group) for group in groups)]
    blocks, unseen = [], 0
    for title, group in titled:
        rows = [(tensor, standing.get(tensor.name)) for tensor in group if tensor.name in shown]
        left_out = len(group) - len(rows)
        if rows:
            title += f", {len(group)} tensors"
            title += f", of which {left_out} like their peers are left out" if left_out else ""
            blocks.append(_block(title, rows))
        else:
            unseen += left_out
    if unseen:
        blocks.append(f"({unseen:,} further tensors, of other roles, are left out)")
    return "\n\n".join(blocks)


def _block(title: str, rows: list[tuple[TensorProfile, Standing | None]]) -> str:
    lines = [f"## {title}", "name | shape | mean | std | min | max | abs_max | rms | kurtosis | zeros | out6 | z"]
    for tensor, standing in rows:
        numbers = (tensor.mean, tensor.std, tensor.min, tensor.max, tensor.abs_max, tensor.rms, tensor.kurtosis)
        lines.append(
            " | ".join(
                [
                    printable(tensor.name),
                    "x".join(map(str, tensor.shape)),
                    *("null" if number is None else f"{number:.5e}" for number in numbers),
                    str(tensor.zeros),
                    str(tensor.outliers.get("6", "null")),
                    "-" if standing is None else f"{standing.robust_z:+.1f}",
                ]
            )
        )
    return "\n".join(lines)
