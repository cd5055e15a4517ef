"""A profile for people: what is notable, then one line a role with a bar a layer; or one line a tensor, sorted."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.profile import Profile, TensorProfile

__all__ = ["known_statistic", "show_overview", "show_sorted", "sorted_by", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_-~=+*%#"
_MOST_FINDINGS = 10
_LONGEST_ROLE = 28
_NARROWEST, _WIDEST = 14, 96
"""Bars: fewer show no course, more are no longer seen at once."""
_ROOMY = 100
"""Columns from which on the bars may have twice the least."""
_FLAT = 0.01
"""Of the magnitude: a row that varies by less is drawn level, because its bars would show noise."""
_NOTABLE_Z = 3.5  # Iglewicz and Hoaglin's own limit
_FEWEST_PEERS = 5


def known_statistic(name: str) -> str:
    """The name, if it is that of a statistic. Raises `UsageError`, which lists them."""
    from planner.profile.peers import STATISTICS

    if name not in STATISTICS:
        raise UsageError(f"no statistic is called {name!r}", hint="there are " + ", ".join(sorted(STATISTICS)))
    return name


def show_overview(profile: Profile, screen: Screen, statistic: str) -> None:
    """The whole profile on about two screens."""
    screen.show(f"{profile.name}: {profile.parameters:,} parameters, {profile.bytes:,} bytes")
    screen.show(profile.fingerprint)
    screen.show(_about(profile))
    for warning in profile.warnings:
        screen.prose(f"warning: {warning}", indent=0)
    _show_findings(profile, screen)
    _show_roles(profile, screen, statistic)


def _about(profile: Profile) -> str:
    from planner.profile.wording import listed

    layers = sorted({tensor.layer for tensor in profile.tensors if tensor.layer is not None})
    stored = {"once": "stored once", "equal": "stored more than once", "different": "stored with different bytes"}
    silent = "ties not said" if profile.tied_embeddings is None else "embeddings not tied"
    ties = f"embeddings tied, {stored[profile.ties[0].stored]}" if profile.ties else silent
    stack = f"layers {listed(layers)}" if layers else "no layers"
    return f"{profile.model_type or 'unknown model type'}; {len(profile.tensors):,} tensors; {stack}; {ties}"


def _show_findings(profile: Profile, screen: Screen) -> None:
    count = len(profile.findings)
    screen.show()
    screen.show(f"notable ({count}):" if count else "nothing notable")
    for finding in profile.findings[:_MOST_FINDINGS]:
        screen.prose(f"- {finding.sentence}", indent=2)
    if count > _MOST_FINDINGS:
        screen.show(f"  ({count - _MOST_FINDINGS} more with --json)")


def _show_roles(profile: Profile, screen: Screen, statistic: str) -> None:
    from planner.profile.peers import STATISTICS, peer_groups, standings
    from planner.profile.wording import number

    of = STATISTICS[statistic].of
    farthest: dict[str, tuple[float, TensorProfile]] = {}
    for group in peer_groups(profile.tensors):
        for standing in standings(group, statistic) if len(group) >= _FEWEST_PEERS else ():
            if abs(standing.robust_z) > abs(farthest.get(standing.tensor.role, (0.0, None))[0]):
                farthest[standing.tensor.role] = standing.robust_z, standing.tensor
    roles: dict[tuple[bool, str], list[TensorProfile]] = {}
    for tensor in profile.tensors:
        roles.setdefault((tensor.layer is not None, tensor.role), []).append(tensor)
    axis = sorted({tensor.layer for tensor in profile.tensors if tensor.layer is not None})

    rows, courses = [], []
    for (_, role), tensors in sorted(roles.items()):
        values = [value for tensor in tensors if (value := of(tensor)) is not None]
        course = _course(tensors, statistic)
        courses.append(course)
        rows.append(
            [
                role if len(role) <= _LONGEST_ROLE else role[: _LONGEST_ROLE - 2] + "..",
                _layers(tensors),
                _one([tensor.dtype for tensor in tensors], "mixed"),
                _one(["x".join(map(str, tensor.shape)) or "scalar" for tensor in tensors], "varies"),
                f"{sum(tensor.elements for tensor in tensors) / max(profile.parameters, 1):.1%}",
                number(statistics.median(values)) if values else "-",
                f"{min(course.values()):.2g}..{max(course.values()):.2g}" if len(course) > 1 else "",
                _named(farthest.get(role)),
            ]
        )
    headings = ["role", "layers", "dtype", "shape", "share", statistic, "min..max", "farthest"]
    taken = sum(max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)) + 4
    room = screen.width
    least = _NARROWEST if room < _ROOMY else 2 * _NARROWEST
    width = min(len(axis), max(room - taken, least), _WIDEST)
    for row, course in zip(rows, courses, strict=True):
        row.insert(7, sparkline(course, axis, width))
    headings.insert(7, "by layer")
    screen.table(headings, rows, spare=("dtype", "share", "shape", "layers", statistic, "min..max"))
    folded = (
        "" if len(axis) <= width else f" ({len(axis)} layers in {width} bars: of several, the farthest from the median)"
    )
    place = "layer.expert" if any(tensor.expert is not None for tensor in profile.tensors) else "layer"
    screen.prose(
        f"{statistic}: the median over a role's tensors. by layer: a bar each, from the row's min to its max{folded}. "
        f"farthest: {place} and robust z, if beyond {_NOTABLE_Z} among at least {_FEWEST_PEERS} peers. "
        "share: of all parameters. --tensor PATTERN shows a tensor, --sort NAME lists them all, --statistic NAME draws "
        f"another one{', such as effective_rank' if profile.spectra else ''}.",
        indent=0,
    )


def _course(tensors: Sequence[TensorProfile], statistic: str) -> dict[int, float]:
    """Layer to the median over the role's tensors in it: one, or its experts."""
    from planner.profile.peers import STATISTICS

    found: dict[int, list[float]] = {}
    for tensor in tensors:
        value = STATISTICS[statistic].of(tensor)
        if tensor.layer is not None and value is not None:
            found.setdefault(tensor.layer, []).append(value)
    return {layer: statistics.median(values) for layer, values in found.items()}


def sparkline(course: Mapping[int, float], axis: Sequence[int], width: int) -> str:
    """One bar for each layer on the axis, which several roles share; with fewer bars than layers, the farthest ones.

    A layer without a value is a dot. ASCII where the output cannot say more.
    """
    if not course or not axis:
        return ""
    bars = _BARS if _is_encodable(_BARS) else _ASCII_BARS
    low, high, middle = min(course.values()), max(course.values()), statistics.median(course.values())
    line = ""
    for place in range(width):
        layers = axis[place * len(axis) // width : (place + 1) * len(axis) // width]
        values = [course[layer] for layer in layers if layer in course]
        if not values:
            line += "."
            continue
        value = max(values, key=lambda value: abs(value - middle))
        # Halves, because the difference of two huge numbers can be beyond float64.
        flat = high / 2 - low / 2 <= _FLAT * max(abs(low), abs(high)) / 2
        share = 0.5 if flat else (value / 2 - low / 2) / (high / 2 - low / 2)
        line += bars[min(int(share * len(bars)), len(bars) - 1)]
    return line


def _is_encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _layers(tensors: Sequence[TensorProfile]) -> str:
    from planner.profile.wording import listed

    layers = sorted({tensor.layer for tensor in tensors if tensor.layer is not None})
    if not layers:
        return "-"
    text = listed(layers).replace(" and ", ",").replace(" ", "")
    text = text if len(text) <= 9 else f"{len(layers)} of {layers[0]}-{layers[-1]}"
    experts = {tensor.expert for tensor in tensors if tensor.expert is not None}
    count = len(experts) or max((tensor.experts.count for tensor in tensors if tensor.experts), default=0)
    return f"{text} x{count}" if count else text


def _one(words: Sequence[str], otherwise: str) -> str:
    return words[0] if len(set(words)) == 1 else otherwise


def _named(found: tuple[float, TensorProfile] | None) -> str:
    if found is None or abs(found[0]) < _NOTABLE_Z:
        return ""
    from planner.profile.wording import score

    z, tensor = found
    expert = "" if tensor.expert is None else f".{tensor.expert}"
    return f"{tensor.layer}{expert}: z {score(z)}"


def sorted_by(profile: Profile, statistic: str) -> Profile:
    """The profile with its tensors by the magnitude of a statistic, the largest first, those without one last."""
    from planner.profile.peers import STATISTICS

    def place(tensor: TensorProfile) -> tuple[bool, float]:
        value = STATISTICS[statistic].of(tensor)
        return value is None, -abs(value or 0.0)

    return profile.model_copy(update={"tensors": tuple(sorted(profile.tensors, key=place))})


def show_sorted(profile: Profile, screen: Screen, statistic: str, limit: int, everything: Profile) -> None:
    """One line a tensor, at most `limit`, in the order of the profile; peers are those in `everything`."""
    from planner.profile.peers import STATISTICS, peer_groups, standings
    from planner.profile.wording import number, score

    standing = {s.tensor.name: s for group in peer_groups(everything.tensors) for s in standings(group, statistic)}
    rows = []
    for tensor in profile.tensors[:limit]:
        value, found = STATISTICS[statistic].of(tensor), standing.get(tensor.name)
        rows.append(
            (
                tensor.name,
                "-" if value is None else number(value),
                "-" if found is None else number(found.typical),
                "-" if found is None else score(found.robust_z),
                tensor.dtype,
                "x".join(map(str, tensor.shape)) or "scalar",
            )
        )
    screen.table(("tensor", statistic, "peers", "z", "dtype", "shape"), rows, spare=("dtype", "shape", "peers"))
    if (left := len(profile.tensors) - limit) > 0:
        screen.show(f"({left:,} more; --limit N shows more of them)")
