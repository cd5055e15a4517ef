"""The control: a plan of the same operations at the same strengths as a given one, in places drawn at random.

What a plan does is only worth something if doing as much at random does not help as well. The control is checked,
reviewed, applied and evaluated like any other plan. It keeps the kind of each operation and how much it changes its
tensors, ‖ΔW‖F / ‖W‖F, and draws the rest: tensors, elements and direction. `planner.evaluation` makes controls of its
own, in memory; this one is a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.analysts.base import Brief, drafted
from planner.analysts.places import Place, Places
from planner.analysts.reach import Reach, reach_of, surroundings_in
from planner.analysts.strength_search import Adjustable, StrengthSearch, can_be_mirrored
from planner.architecture import role_of
from planner.edits import Unresolved
from planner.effects import CheckedModification, CheckReport
from planner.errors import UsageError
from planner.operations import AnyOperation, Noise, Scale
from planner.operations.numbers import ArrayFile
from planner.operations.scale import Factors
from planner.plain_text import plain
from planner.plan import AnalystRecord, Evidence, Modification, Plan, Target

__all__ = ["TOLERANCE", "RandomAnalyst", "strength_of"]

TOLERANCE = 0.1
"""How far, relatively, the strength of a control may be from that of its original without a word."""
_MOST_DRAWS = 8
_MOST_REDRAWN = 3
_IDLE = ("void", "ignored", "invariant")
"""Effects of what a model would not notice: no control for what it would."""
_CONFIDENCE = 0.5
_LONGEST_NOTE = 2048
_LONGEST_MESSAGE = 200

Rng = np.random.Generator


class RandomAnalyst:
    """Writes the control of one plan; the same seed writes the same modifications."""

    def __init__(self, like: Plan, *, seed: int) -> None:
        """`like` is the plan to resemble, without what its review rejects; `seed` is 0 or more."""
        self._like, self._seed = like, seed

    def propose(self, brief: Brief) -> Plan:
        """A plan that `brief.check` accepts, of as many modifications, each with the id of its original.

        What could not be drawn inside the policy is left out, and what could not be made as strong is said; the note
        has both. Files that the plan names are looked for where `brief.check` looks. Raises `UsageError` where the
        strength of a modification cannot be measured on this checkpoint.
        """
        originals, idle = self._originals(brief)
        rng = np.random.default_rng([self._seed, 6])
        places = Places(brief)
        controls = [_Control(original, places, brief, rng, self._marks) for original in originals]
        for control in controls:
            control.draw(_taken(controls))
        plan = self._settled(controls, brief)
        return plan.model_copy(update={"note": self._note(controls, idle, len(plan.modifications))})

    @property
    def _marks(self) -> str:
        return f"of the plan {self._like.id} (seed {self._seed})"

    def _originals(self, brief: Brief) -> tuple[list[_Original], list[str]]:
        """What is to be resembled, and the ids of modifications that change nothing."""
        rejected = {name for name, decision in self._like.review.items() if decision.decision == "rejected"}
        wanted = [m.model_copy(update={"evidence": ()}) for m in self._like.modifications if m.id not in rejected]
        report = brief.check(drafted(brief, AnalystRecord(kind="random"), wanted))
        checked = {found.id: found for found in report.modifications}
        if missing := [m.id for m in wanted if m.id not in checked]:
            why = next(p.message for p in report.problems if p.modification == missing[0])
            raise UsageError(
                f"the strength of {', '.join(missing)} in {self._like.id} cannot be measured here: "
                f"{plain(why[:_LONGEST_MESSAGE])}",
                hint="give the plan a checkpoint whose tensors it names, and keep the files it names beside --out",
            )
        around = surroundings_in(brief)
        found, idle = [], []
        for modification in wanted:
            mine = checked[modification.id]
            strength = strength_of(mine)
            try:
                reach = reach_of(modification, around)
            except Unresolved as error:  # not after a check that resolved it
                raise UsageError(str(error), hint=error.hint) from None
            if strength == 0 or not reach:
                idle.append(modification.id)
            else:
                found.append(_Original(modification, reach, strength, mine.effect in _IDLE))
        return found, idle

    def _settled(self, controls: Sequence[_Control], brief: Brief) -> Plan:
        """The controls, each measured until it is done, and all of them together inside the policy."""
        record = AnalystRecord(kind="random", seed=self._seed)
        while True:
            while waiting := [control for control in controls if control.waiting]:
                report = brief.check(drafted(brief, record, [control.draft() for control in waiting]))
                for control in waiting:
                    control.tell(report, _taken(controls))
            kept = [control for control in controls if control.best is not None]
            plan = drafted(brief, record, [control.final() for control in kept])
            problems = brief.check(plan).problems
            if not problems:
                return plan
            said = {problem.modification or "": problem.message for problem in problems}
            at_fault = [control for control in kept if control.id in said]
            for control in at_fault or kept[-1:]:  # what is wrong with the whole is mended by its last
                why = said.get(control.id, problems[0].message)
                control.give_up(why, _taken(controls), again=bool(at_fault))

    def _note(self, controls: Sequence[_Control], idle: Sequence[str], count: int) -> str:
        parts = [
            f"random control {self._marks}: {count} modification{'' if count == 1 else 's'} of the same kinds and "
            "strengths in places and directions drawn at random"
        ]
        replaced = [c for c in controls if c.best is not None and c.best.in_place_of]
        parts += [f"{c.id} is {c.best.in_place_of}" for c in replaced if c.best is not None]
        parts += [f"{c.id} {why}" for c in controls if c.best is not None and (why := c.mismatch())]
        parts += [f"{c.id} is left out: {c.refused}" for c in controls if c.best is None]
        if idle:
            parts.append(f"{', '.join(idle)} of the original changes nothing and has no control")
        return "; ".join(parts)[:_LONGEST_NOTE]


def strength_of(checked: CheckedModification) -> float | None:
    """‖ΔW‖F / ‖W‖F over all tensors that a modification changes, as one long vector; None where it has no bound."""
    moved = whole = 0.0
    for tensor in checked.tensors:
        if tensor.relative_change is None or tensor.before.rms is None:
            return None
        square = tensor.before.rms * tensor.before.rms * (tensor.elements - tensor.before.nonfinite)
        moved += tensor.relative_change * tensor.relative_change * square
        whole += square
    return math.sqrt(moved / whole) if whole else None


@dataclass(frozen=True, eq=False)
class _Original:
    """A modification to be resembled."""

    modification: Modification
    reach: Reach
    strength: float | None
    """What it changes, relatively; None where that has no bound."""
    idle: bool
    """Whether the model does not notice it either."""


@dataclass(frozen=True)
class _Found:
    """A control that the check did not refuse."""

    modification: Modification
    strength: float | None
    in_place_of: str
    """What it is where it is not the original's operation; else empty."""


@dataclass(eq=False)
class _Control:
    """The control of one modification on its way: a place is drawn, its strength set, and drawn anew if need be."""

    original: _Original
    places: Places
    brief: Brief
    rng: Rng
    marks: str
    best: _Found | None = None
    refused: str = "no place was found"
    waiting: bool = True
    _draws: int = 0
    _redrawn: int = 0
    _substitute: bool = False
    _place: Place | None = None
    _adjustable: Adjustable | None = None
    _search: StrengthSearch | None = None
    _tried: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        """That of the original."""
        return self.original.modification.id

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of the place that was drawn last."""
        return self._place.tensors if self._place else ()

    def draw(self, taken: Sequence[str]) -> None:
        """Go to another place."""
        modification = self.original.modification
        mirrored = False
        for _ in range(_MOST_DRAWS):
            self._place = self.places.drawn(self._template(), self.original.reach, taken, self.rng)
            # Drawn in any case, so that what follows is the same whether it can be used or not.
            mirrored = bool(self.rng.integers(2)) and can_be_mirrored(self._place.operation)
            if mirrored or self._substitute or not self._is_the_original(self._place, modification):
                break
        assert self._place is not None, "at least one place was drawn"
        profile = self.brief.profile.by_name
        was, now = profile[next(iter(self.original.reach))], profile[self._place.tensors[0]]
        operation = self._place.operation
        if self._substitute:
            was = now
        elif _has_arrays(operation):
            operation = _with_arrays_of(operation, next(iter(self.original.reach)))
        seed = int(self.rng.integers(2**31))
        self._adjustable = Adjustable(operation, was, now, mirrored, seed)
        self._search = StrengthSearch(
            self.original.strength or 1.0, start=self._adjustable.start, grows=self._adjustable.grows
        )
        self._tried = set()
        self._draws += 1

    def draft(self) -> Modification:
        """The modification to be measured next."""
        assert self._place is not None, "it was drawn"
        operation = self._operation()
        self._tried.add(operation.model_dump_json())
        return self._modification(operation, self.original.strength)

    def tell(self, report: CheckReport, taken: Sequence[str]) -> None:
        """What the check found of `draft`."""
        assert self._search is not None, "it was drawn"
        assert self._adjustable is not None, "it was drawn"
        checked = next((found for found in report.modifications if found.id == self.id), None)
        problem = next((p.message for p in report.problems if p.modification == self.id), None)
        if checked is None:
            self._failed(problem or "it cannot be resolved", taken)
            return
        strength = strength_of(checked)
        idle = checked.effect in _IDLE and not self.original.idle
        if problem is None and not idle:
            self._keep(strength)
        else:
            self.refused = plain((problem or f"its effect would be {checked.effect}")[:_LONGEST_MESSAGE])
        if self.original.strength is None or not self._adjustable.tunable:
            self._end_of_search(taken)
            return
        self._search.tell(math.inf if strength is None else strength)
        if self._search.done or self._operation().model_dump_json() in self._tried:
            self._end_of_search(taken)

    def give_up(self, why: str, taken: Sequence[str], *, again: bool) -> None:
        """What was found does not fit the rest of the plan: go elsewhere, or be left out."""
        self.best = None
        self.refused = plain(why[:_LONGEST_MESSAGE])
        self._redrawn += 1
        self.waiting = again and self._redrawn <= _MOST_REDRAWN
        if self.waiting:
            self._draws = 0
            self.draw(taken)

    def final(self) -> Modification:
        """What was found."""
        assert self.best is not None, "only what was found is in the plan"
        return self.best.modification

    def mismatch(self) -> str:
        """What is to be said of its strength; empty where there is nothing."""
        assert self.best is not None, "only what was found is in the plan"
        wanted, found = self.original.strength, self.best.strength
        if wanted is None or found is None:
            return "has the original's parameters: its relative change has no bound, so that there is none to match"
        if abs(found - wanted) <= TOLERANCE * wanted:
            return ""
        return f"changes {found:.3g} of the norm and not {wanted:.3g}: the operation allows no closer match"

    def _template(self) -> Modification:
        """The original; or, where its files cannot be used elsewhere, as much change of its whole tensors."""
        modification = self.original.modification
        if not self._substitute:
            return modification
        profile = self.brief.profile.by_name[next(iter(self.original.reach))]
        strength = self.original.strength or 0.0
        operation: AnyOperation = Scale(factor=1 + strength)
        if not _is_factors(modification.operation) and "noise" in self.brief.policy.operations:
            operation = Noise(std=strength * (profile.rms or 1.0), seed=0)
        whole = Target(tensors=tuple(self.original.reach))
        return modification.model_copy(update={"operation": operation, "target": whole})

    def _operation(self) -> AnyOperation:
        assert self._adjustable is not None, "it was drawn"
        assert self._search is not None, "it was drawn"
        if not self._adjustable.tunable and not self._adjustable.mirrored:
            return self._adjustable.operation
        return self._adjustable.at(self._search.setting)

    def _keep(self, strength: float | None) -> None:
        """The draft, if it is nearer to what is wanted than the best so far."""
        wanted = self.original.strength
        if self.best is not None and wanted is not None and strength is not None and self.best.strength is not None:
            if abs(strength - wanted) >= abs(self.best.strength - wanted):
                return
        elif self.best is not None:
            return
        kind = "noise" if isinstance(self._operation(), Noise) else "a factor"
        instead = f"{kind} for whole tensors, at the same strength, in place of arrays in a file"
        self.best = _Found(
            self._modification(self._operation(), strength), strength, instead if self._substitute else ""
        )

    def _end_of_search(self, taken: Sequence[str]) -> None:
        if self.best is not None and not self.mismatch():
            self.waiting = False
        else:
            self._failed(self.refused, taken)

    def _failed(self, why: str, taken: Sequence[str]) -> None:
        """Another place; then, where files were the trouble, another operation; then the best there was."""
        self.refused = plain(why[:_LONGEST_MESSAGE])
        arrays = _has_arrays(self.original.modification.operation) and self.original.strength is not None
        if self._draws >= _MOST_DRAWS and arrays and not self._substitute:
            self._substitute, self._draws, self.best = True, 0, None
        if self._draws >= _MOST_DRAWS:
            self.waiting = False
        else:
            self.draw(taken)

    def _is_the_original(self, place: Place, modification: Modification) -> bool:
        return (
            set(place.tensors) == set(self.original.reach)
            and place.target.elements == modification.target.elements
            and place.operation == modification.operation
            and place.operation.kind != "noise"
        )

    def _modification(self, operation: AnyOperation, strength: float | None) -> Modification:
        assert self._place is not None, "it was drawn"
        first = self.brief.profile.by_name[self._place.tensors[0]]
        wanted = self.original.strength
        amount = "" if wanted is None else f", {wanted:.3g} of the norm"
        found = "" if strength is None else f" This one changes {strength:.3g} of the norm."
        return Modification(
            id=self.id,
            target=self._place.target,
            operation=operation,
            reasoning=(
                f"A random control for {self.id} {self.marks}: the strength of that modification{amount}, where chance "
                f"put it. Nothing speaks for this place or this direction.{found}"
            ),
            confidence=_CONFIDENCE,
            expected_impact="none expected: a control",
            evidence=(
                Evidence(tensor=first.name, fact="std", value=first.std)
                if first.std is not None
                else Evidence(tensor=first.name, fact="elements", value=first.elements),
            ),
        )


def _taken(controls: Sequence[_Control]) -> list[str]:
    return [name for control in controls for name in control.tensors if control.waiting or control.best]


def _has_arrays(operation: AnyOperation) -> bool:
    return getattr(operation, "lora", None) is not None or bool(_arrays(operation))


def _is_factors(operation: AnyOperation) -> bool:
    return any(isinstance(array, Factors) for array in _arrays(operation).values())


def _arrays(operation: AnyOperation) -> dict[str, ArrayFile]:
    fields = {name: getattr(operation, name) for name in type(operation).model_fields}
    return {name: value for name, value in fields.items() if isinstance(value, ArrayFile)}


def _with_arrays_of(operation: AnyOperation, tensor: str) -> AnyOperation:
    """With the arrays that `{tensor}` and `{layer}` meant for the original's first tensor."""
    layer = role_of(tensor).layer
    named = {
        name: array.model_copy(update={"array": array.array.replace("{tensor}", tensor).replace("{layer}", str(layer))})
        for name, array in _arrays(operation).items()
    }
    return operation.model_copy(update=named)
