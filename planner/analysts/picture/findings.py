"""What is strange about the weights, the worst first: the profile's findings, then what stands far from its peers."""

from __future__ import annotations

from collections.abc import Iterator

from planner.analysts.base import Brief
from planner.analysts.picture.budget import Line, Section
from planner.analysts.picture.wording import Speaker, scientific
from planner.profile import Standing, peer_groups, standings
from planner.profile.types import Finding, TensorProfile
from planner.profile.wording import score

__all__ = ["findings"]

_FIRST = 12
"""Findings that go before any series."""
_STATISTICS = ("rms", "kurtosis", "abs_max")
_FAR = 8.0
"""Robust z; the profile's own findings begin at 6, but only where the number is notable in itself."""
_FEWEST = 5
_MOST_FAR = 24
_FACTS = {
    "not_finite": ("nan", "inf"),
    "constant": ("min", "max"),
    "all_zeros": ("zeros", "elements"),
    "rms": ("rms",),
    "kurtosis": ("kurtosis",),
    "skewness": ("skewness",),
    "offset": ("mean", "std"),
    "zeros": ("zeros", "elements"),
    "element": ("abs_max", "std"),
    "few_values": ("distinct_values",),
}
"""The facts of the profile that a kind of finding rests on, as a plan cites them."""
_OF_SEVERAL = ("same_bytes", "torn_tie")
"""Kinds whose sentences name other tensors as well."""


def findings(brief: Brief, speaker: Speaker) -> Section:
    """The section on findings."""
    found = brief.profile.findings
    lines = [
        Line(f"- {_told(finding, brief, speaker)}", (2, number) if number < _FIRST else (4, 1.5, number), "findings")
        for number, finding in enumerate(found)
    ]
    said = {finding.tensor for finding in found}
    far = sorted(_far(brief, said), key=lambda entry: (-abs(entry[1].robust_z), entry[1].tensor.name, entry[0]))
    lines += [
        Line(f"- {_standing(statistic, standing, speaker)}", (4, 1.6, number), "tensors far from their peers")
        for number, (statistic, standing) in enumerate(far[:_MOST_FAR])
    ]
    if not lines:
        lines = [Line("- nothing strange was found", (2,), "findings")]
    return Section("Findings, the worst first", lines, {"tensors far from their peers": max(len(far) - _MOST_FAR, 0)})


def _told(finding: Finding, brief: Brief, speaker: Speaker) -> str:
    tensor = brief.profile.by_name.get(finding.tensor)
    sentence = finding.sentence
    # A sentence is made of roles, which are pieces of names: where a name is hidden, nothing of it may be shown.
    if speaker.hides(finding.tensor) or (
        finding.kind in _OF_SEVERAL and any(map(speaker.hides, brief.profile.by_name))
    ):
        typical = "" if finding.typical is None else f", median of its peers {scientific(finding.typical)}"
        z = "" if finding.robust_z is None else f", robust z {score(finding.robust_z)}"
        sentence = f"{finding.kind} {scientific(finding.value)}{typical}{z}"
    facts = _facts(tensor, _FACTS.get(finding.kind, ())) if tensor else ""
    return f"{speaker.name(finding.tensor)}: {speaker.sentence(sentence)}" + (f" [{facts}]" if facts else "")


def _facts(tensor: TensorProfile, names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} = {scientific(getattr(tensor, name))}" for name in names)


def _far(brief: Brief, said: set[str]) -> Iterator[tuple[str, Standing]]:
    """Standings far out, of tensors that no finding speaks of."""
    for group in peer_groups(brief.profile.tensors):
        for statistic in _STATISTICS if len(group) >= _FEWEST else ():
            for standing in standings(group, statistic):
                if abs(standing.robust_z) >= _FAR and standing.tensor.name not in said:
                    yield statistic, standing


def _standing(statistic: str, standing: Standing, speaker: Speaker) -> str:
    return (
        f"{speaker.name(standing.tensor.name)}: {statistic} = {scientific(standing.value)}, median of its peers "
        f"{scientific(standing.typical)}, robust z {score(standing.robust_z)}"
    )
