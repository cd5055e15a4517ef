"""One plan out of several: what analysts agree on first, and what they cannot agree on in words.

Asked twice, a language model answers twice. What several answers share is worth more than what one of them says, and
what they contradict each other in is worth knowing before anybody applies it. Two modifications are the same proposal
when they reach the same elements of the same tensors with the same kind of operation in the same direction, in whatever
words their targets are written; their numbers are merged, and everything else of them is equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import exp, log
from statistics import fmean, median, median_low

from planner.analysts.base import Brief, drafted
from planner.analysts.merged_record import merged_record
from planner.analysts.reach import Reach, overlap, reach_of, reach_signature, surroundings_in
from planner.analysts.strengths import STRENGTHS, direction_of, numbers_of, with_numbers, worded
from planner.edits import Surroundings, Unresolved
from planner.errors import StalePlan
from planner.operations import AnyOperation
from planner.plain_text import plain
from planner.plan import Agreement, Evidence, Modification, Plan

__all__ = ["merged"]

_MOST_SENTENCES = 100
_LONGEST_NAME = 60
_LONGEST_REASON = 2048
_LONGEST_NOTE = 2048
_LONGEST_LEFT_OUT = 160
_SHARES = ("reduce", "boost")
_NOT_MEANT = {"kind", "seed", "heads", "neurons", "channels"}
"""Parameters that do not tell two proposals apart: a seed says nothing, and units are in what is reached."""

Key = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class _Said:
    """A modification, and whose it is."""

    analyst: int
    name: str
    modification: Modification

    @property
    def words(self) -> str:
        """What it says, in short."""
        m = self.modification
        return f"{m.id}: {worded(m.operation)}, confidence {m.confidence:.2g}"


@dataclass(eq=False)
class _Proposal:
    """What one analyst or several say alike."""

    reach: Reach
    place: Key
    """What is reached, and by which family of operations."""
    direction: tuple[int, ...]
    said: list[_Said] = field(default_factory=list)

    @property
    def analysts(self) -> frozenset[int]:
        return frozenset(said.analyst for said in self.said)

    @property
    def surest(self) -> _Said:
        return max(self.said, key=lambda said: said.modification.confidence)

    @property
    def confidence(self) -> float:
        return fmean(said.modification.confidence for said in self.said)

    @property
    def words(self) -> str:
        return " and ".join(f"{said.name} ({said.words})" for said in self.said)


def merged(plans: Sequence[Plan], names: Sequence[str], brief: Brief) -> Plan:
    """One plan that `brief.check` accepts, of `plans`, whose analysts (or samples) are called `names`, in that order.

    Numbers are merged by their median, factors by that of their logarithms; the confidence is the mean of those who
    proposed it; target, reasoning and expected impact are those of the most confident; the evidence is that of all.
    Where analysts propose opposite directions for the same elements, the one with more votes stays, and of a tie
    neither. Proposals that overlap in part both stay. Both cases are sentences of `Plan.disagreements`, unless one
    analyst proposed both and so meant them together. First comes what most agree on, then what they are surest of;
    where the check finds problems, what is least agreed on goes first. A single plan keeps its modifications, their ids
    and their order.

    Raises `StalePlan` for a plan of another checkpoint, ValueError for no plans, or not as many names.
    """
    if not plans or len(names) != len(plans):
        raise ValueError(f"{len(plans)} plans and {len(names)} names")
    _require_bound(plans, brief)
    shown = [plain(name[:_LONGEST_NAME]) for name in names]
    proposals, left_out = _proposals(plans, shown, surroundings_in(brief))
    kept, opposed = _settled(proposals) if len(plans) > 1 else (proposals, [])
    sentences = [*opposed, *_overlaps(kept)]
    if len(sentences) > _MOST_SENTENCES:
        rest = len(sentences) - _MOST_SENTENCES
        sentences = [*sentences[:_MOST_SENTENCES], f"{rest} more overlaps are not listed"]
    if len(plans) > 1:
        kept.sort(key=lambda proposal: (-len(proposal.analysts), -proposal.confidence))
    by_id = {_id(proposal, number, plans): proposal for number, proposal in enumerate(kept, start=1)}
    modifications = [_modification(name, proposal, len(plans)) for name, proposal in by_id.items()]
    draft = drafted(brief, merged_record([plan.analyst for plan in plans]), modifications)
    refs = dict.fromkeys(plan.evidence for plan in plans if plan.evidence)
    draft = draft.model_copy(update={"evidence": next(iter(refs), None)})
    draft, refused = _sound(draft, brief)
    left_out += [f"{by_id[name].words[:_LONGEST_LEFT_OUT]}: {why}" for name, why in refused.items()]
    ids = _renumbered([m.id for m in draft.modifications], len(plans))
    return draft.model_copy(
        update={
            "note": _note(plans, shown, [by_id[name] for name in ids], len(sentences), left_out),
            "modifications": tuple(m.model_copy(update={"id": ids[m.id]}) for m in draft.modifications),
            "ungrounded": tuple(new for old, new in ids.items() if _ungrounded(by_id[old], plans)),
            "agreement": {new: _agreement(by_id[old], len(plans)) for old, new in ids.items()},
            "disagreements": tuple(sentences),
        }
    )


def _require_bound(plans: Sequence[Plan], brief: Brief) -> None:
    here = brief.profile.fingerprint
    for plan in plans:
        if plan.checkpoint.fingerprint != here:
            raise StalePlan(
                f"the plan {plan.id} was made for {plan.checkpoint.fingerprint[:19]}, this is {here[:19]}",
                hint="merge plans that were proposed for this checkpoint",
            )


def _proposals(plans: Sequence[Plan], names: Sequence[str], around: Surroundings) -> tuple[list[_Proposal], list[str]]:
    """What is proposed, in the order in which it is first said; and what cannot be made out, a text each."""
    found: dict[Key, _Proposal] = {}
    left_out: list[str] = []
    for analyst, (plan, name) in enumerate(zip(plans, names, strict=True)):
        times: Counter[Key] = Counter()
        for modification in plan.modifications:
            said = _Said(analyst, name, modification)
            try:
                reach = reach_of(modification, around)
            except Unresolved as error:
                left_out.append(f"{name} ({said.words[:_LONGEST_LEFT_OUT]}): {plain(str(error)[:_LONGEST_LEFT_OUT])}")
                continue
            operation = modification.operation
            family = "share" if operation.kind in _SHARES else operation.kind
            place: Key = (family, reach_signature(reach))
            key: Key = (place, operation.kind, direction_of(operation), _rest(operation))
            times[key] += 1  # one analyst who says it twice means it twice
            proposal = found.setdefault((key, times[key]), _Proposal(reach, place, direction_of(operation)))
            proposal.said.append(said)
    return list(found.values()), left_out


def _rest(operation: AnyOperation) -> str:
    """Everything of an operation but its strength: the form of its numbers (how many), arrays, parts, options."""
    numbers = numbers_of(operation)
    others = operation.model_dump(mode="json", exclude=_NOT_MEANT | numbers.keys())
    return repr((sorted(others.items(), key=lambda item: item[0]), {name: len(numbers[name]) for name in numbers}))


def _settled(proposals: Sequence[_Proposal]) -> tuple[list[_Proposal], list[str]]:
    """Those that stay where directions are opposed, and a sentence for each such place."""
    places: dict[Key, list[_Proposal]] = {}
    for proposal in proposals:
        places.setdefault(proposal.place, []).append(proposal)
    dropped: set[int] = set()
    sentences = []
    for there in places.values():
        more = [proposal for proposal in there if proposal.direction == (1,)]
        less = [proposal for proposal in there if proposal.direction == (-1,)]
        up, down = _voters(more), _voters(less)
        up, down = up - down, down - up  # who proposes both means both
        if not up or not down:
            continue
        losers = [*(more if len(up) <= len(down) else ()), *(less if len(down) <= len(up) else ())]
        dropped |= {id(proposal) for proposal in losers}
        first, second = (more, less) if len(up) >= len(down) else (less, more)
        votes = f"{max(len(up), len(down))} to {min(len(up), len(down))}"
        sentences.append(
            f"{_where(more[0].reach)}: {_all_words(first)} against {_all_words(second)}; the votes are {votes}, so "
            + ("neither is kept" if len(up) == len(down) else "the first is kept")
        )
    return [proposal for proposal in proposals if id(proposal) not in dropped], sentences


def _voters(proposals: Iterable[_Proposal]) -> frozenset[int]:
    return frozenset().union(*(proposal.analysts for proposal in proposals))


def _all_words(proposals: Iterable[_Proposal]) -> str:
    return " and ".join(proposal.words for proposal in proposals)


def _overlaps(proposals: Sequence[_Proposal]) -> list[str]:
    """A sentence for each two proposals of different analysts that may change the same element."""
    by_tensor: dict[str, list[int]] = {}
    for number, proposal in enumerate(proposals):
        for name in proposal.reach:
            by_tensor.setdefault(name, []).append(number)
    pairs = dict.fromkeys(pair for numbers in by_tensor.values() for pair in combinations(numbers, 2))
    sentences = []
    for one, other in ((proposals[a], proposals[b]) for a, b in sorted(pairs)):
        if one.analysts & other.analysts:
            continue
        if shared := overlap(one.reach, other.reach):
            sentences.append(f"{_names(shared)}: {one.words} and {other.words} overlap there; both are kept")
    return sentences


def _where(reach: Reach) -> str:
    return _names(tuple(reach))


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return plain(names[0][:200]) + more


def _id(proposal: _Proposal, number: int, plans: Sequence[Plan]) -> str:
    return f"m{number:02d}" if len(plans) > 1 else proposal.said[0].modification.id


def _renumbered(ids: Sequence[str], plans: int) -> dict[str, str]:
    """New ids by old; those of a single plan stay."""
    return {name: f"m{number:02d}" if plans > 1 else name for number, name in enumerate(ids, start=1)}


def _modification(name: str, proposal: _Proposal, of: int) -> Modification:
    surest = proposal.surest.modification
    if of == 1:
        return surest
    votes = f" ({len(proposal.said)} of {of} analysts)"
    return Modification(
        id=name,
        target=surest.target,
        operation=_operation(surest.operation, [said.modification.operation for said in proposal.said]),
        reasoning=surest.reasoning[: _LONGEST_REASON - len(votes)] + votes,
        confidence=proposal.confidence,
        expected_impact=surest.expected_impact,
        evidence=_evidence(proposal),
    )


def _operation(surest: AnyOperation, operations: Sequence[AnyOperation]) -> AnyOperation:
    """The operation of the surest, with the median of everybody's numbers."""
    strength = STRENGTHS.get(surest.kind)
    said = [numbers_of(operation) for operation in operations]
    numbers = {
        name: tuple(
            _middle([numbers[name][place] for numbers in said], factor=bool(strength and strength.neutral == 1))
            for place in range(len(values))
        )
        for name, values in said[0].items()
    }
    return with_numbers(surest, numbers) if numbers else surest


def _middle(values: Sequence[float], *, factor: bool) -> float:
    if len(set(values)) == 1:
        return values[0]
    if all(isinstance(value, int) for value in values):
        return median_low(values)
    if factor and min(values) > 0:
        return float(f"{exp(median(map(log, values))):.6g}")
    return float(f"{median(values):.6g}")


def _evidence(proposal: _Proposal) -> tuple[Evidence, ...]:
    """Every fact that anybody cites, each once, those of the most confident first."""
    found: dict[tuple[str, str], Evidence] = {}
    for said in sorted(proposal.said, key=lambda said: -said.modification.confidence):
        for cited in said.modification.evidence:
            found.setdefault((cited.tensor, cited.fact), cited)
    return tuple(found.values())


def _agreement(proposal: _Proposal, of: int) -> Agreement:
    return Agreement(
        of=of,
        by=tuple(said.name for said in proposal.said),
        values=tuple(f"{said.name}, {said.words}" for said in proposal.said),
    )


def _ungrounded(proposal: _Proposal, plans: Sequence[Plan]) -> bool:
    """Whether nobody who proposes it cites a measured fact."""
    return all(said.modification.id in plans[said.analyst].ungrounded for said in proposal.said) or not any(
        said.modification.evidence for said in proposal.said
    )


def _sound(plan: Plan, brief: Brief) -> tuple[Plan, dict[str, str]]:
    """The plan without what the check refuses, and why, by id. The plan's order is that of agreement."""
    most = brief.policy.most_modifications
    refused = {m.id: f"the policy allows {most} modifications" for m in plan.modifications[most:]}
    plan = plan.model_copy(update={"modifications": plan.modifications[:most]})
    while plan.modifications:
        report = brief.check(plan)
        if not report.problems:
            break
        said = {problem.modification: problem.message for problem in report.problems}
        alone = {m.id for m in plan.modifications if m.id in said and _refused_alone(m, plan, brief)}
        if not alone:  # what is too much is too much together
            tensors = {t.name for checked in report.modifications if checked.id in said for t in checked.tensors}
            involved = [c.id for c in report.modifications if not tensors or any(t.name in tensors for t in c.tensors)]
            alone = {involved[-1] if involved else plan.modifications[-1].id}
        fallback = report.problems[0].message
        refused |= {name: plain(said.get(name, fallback)[:_LONGEST_LEFT_OUT]) for name in alone}
        plan = plan.model_copy(update={"modifications": tuple(m for m in plan.modifications if m.id not in alone)})
    return plan, refused


def _refused_alone(modification: Modification, plan: Plan, brief: Brief) -> bool:
    return bool(brief.check(plan.model_copy(update={"modifications": (modification,)})).problems)


def _note(
    plans: Sequence[Plan], names: Sequence[str], kept: Sequence[_Proposal], disagreements: int, left_out: Sequence[str]
) -> str:
    if len(plans) == 1:
        parts = [plans[0].note] if plans[0].note else []
    else:
        agreed = sum(len(proposal.analysts) > 1 for proposal in kept)
        parts = [
            f"merged from {len(plans)} plans ({', '.join(names)}): {len(kept)} "
            f"modification{'' if len(kept) == 1 else 's'}, {agreed} by more than one; {disagreements} "
            f"disagreement{'' if disagreements == 1 else 's'}"
        ]
    if left_out:
        parts.append(f"left out: {'; '.join(left_out)}")
    return ". ".join(parts)[:_LONGEST_NOTE]
