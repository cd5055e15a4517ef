"""What the page says without its script: facts, groups, and one row a role."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from planner.profile import Profile, TensorProfile
from planner.profile.types import Finding
from planner.report.text import link_to, plain

__all__ = ["summary_of"]

_MOST_GROUPS = 50
_MOST_NAMES = 8
_MOST_ROLES = 500
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def summary_of(profile: Profile) -> dict[str, Any]:
    """Everything that the template prints, as text that is safe to show."""
    known = {tensor.name for tensor in profile.tensors}
    groups = [group for group in profile.same_bytes if not group.constant]
    roles = _roles(profile.tensors)
    return {
        "name": plain(profile.name),
        "fingerprint": plain(profile.fingerprint),
        "facts": _facts(profile),
        "warnings": [plain(warning) for warning in profile.warnings],
        "damaged": [
            (plain(tensor.name), link_to(tensor.name), f"{tensor.nan:,}", f"{tensor.inf:,}")
            for tensor in profile.tensors
            if tensor.nan or tensor.inf
        ],
        "findings": [_finding(finding, known) for finding in profile.findings],
        "dtypes": _dtypes(profile.tensors),
        "ties": [(_names(tie.names), f"stored {tie.stored}") for tie in profile.ties],
        "same": [_names(group.names) for group in groups[:_MOST_GROUPS]],
        "same_count": len(groups),
        "constants": len(profile.same_bytes) - len(groups),
        "roles": roles[:_MOST_ROLES],
        "role_count": len(roles),
        "tensor_count": len(profile.tensors),
    }


def _finding(finding: Finding, known: set[str]) -> dict[str, str | None]:
    """The sentence around the tensor's name, which is the link; before it, where the sentence does not name it."""
    before, after = "", ": " + finding.sentence
    if finding.tensor and finding.tensor in finding.sentence:
        before, _, after = finding.sentence.partition(finding.tensor)
    return {
        "kind": plain(finding.kind),
        "before": plain(before),
        "tensor": plain(finding.tensor),
        "after": plain(after),
        "link": link_to(finding.tensor) if finding.tensor in known else None,
    }


def _facts(profile: Profile) -> list[tuple[str, str]]:
    layers = {tensor.layer for tensor in profile.tensors if tensor.layer is not None}
    tied = {True: "yes", False: "no", None: "not said"}[profile.tied_embeddings]
    return [
        ("model type", plain(profile.model_type) if profile.model_type else "not said"),
        ("parameters", f"{profile.parameters:,}"),
        ("size", _bytes(profile.bytes)),
        ("tensors", f"{len(profile.tensors):,}"),
        ("layers", f"{len(layers):,}"),
        ("tied embeddings", tied),
        ("profiled", plain(profile.created).replace("T", " ").replace("Z", " UTC")),
        ("planner", plain(profile.planner_version)),
    ]


def _bytes(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.4g} {_UNITS[unit]}" if unit else f"{count:,} bytes"


def _dtypes(tensors: Iterable[TensorProfile]) -> list[tuple[str, str, str, str]]:
    found: dict[str, list[TensorProfile]] = {}
    for tensor in tensors:
        found.setdefault(tensor.dtype, []).append(tensor)
    total = sum(tensor.elements for group in found.values() for tensor in group) or 1
    rows = []
    for dtype, group in sorted(found.items(), key=lambda item: -sum(tensor.elements for tensor in item[1])):
        elements = sum(tensor.elements for tensor in group)
        note = "" if all(tensor.understood for tensor in group) else "no statistics: values not read"
        share = "all" if len(found) == 1 else f"{100 * elements / total:.3g} %"
        rows.append((plain(dtype), f"{len(group):,}", f"{elements:,} ({share})", note))
    return rows


def _names(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "links": [(plain(name), link_to(name)) for name in names[:_MOST_NAMES]],
        "more": max(0, len(names) - _MOST_NAMES),
    }


def _roles(tensors: Iterable[TensorProfile]) -> list[tuple[str, ...]]:
    found: dict[str, list[TensorProfile]] = {}
    for tensor in tensors:
        found.setdefault(tensor.role, []).append(tensor)
    return [
        (
            plain(role),
            f"{len(group):,}",
            f"{sum(tensor.elements for tensor in group):,}",
            _median(tensor.std for tensor in group),
            _median(tensor.kurtosis for tensor in group),
            _largest(tensor.abs_max for tensor in group),
            f"{sum(tensor.nan + tensor.inf for tensor in group):,}",
        )
        for role, group in found.items()
    ]


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.4g}" if known else "-"


def _largest(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.4g}" if known else "-"
