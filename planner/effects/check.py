"""Everything that can be wrong with a plan for this checkpoint, in one go, with previews and effects beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.architecture import ModelMap, map_of
from planner.checkpoint import Checkpoint
from planner.edits import ModificationEdits, PlanEdits, Surroundings, Unresolved, combined, resolved
from planner.edits.surroundings import surroundings_of
from planner.effects import problems as found_in
from planner.effects.changes import Change, change_of
from planner.effects.predicted import Known, evidence_beside, fitted_to, prediction_of
from planner.effects.preview import preview
from planner.effects.types import CheckedModification, CheckedTensor, CheckReport, Preview, Standing
from planner.effects.verdicts import Judge, Verdict
from planner.evidence.facts import PREFIX
from planner.operations import Step, named_beside
from planner.plan import Modification, Plan, Policy, Problem
from planner.profile import Histograms, Profiled

__all__ = ["check", "cited_by", "edits_of"]

Progress = Callable[[int], None]


def check(
    plan: Plan,
    checkpoint: Checkpoint,
    profile: Profiled,
    policy: Policy,
    *,
    folder: Path | None = None,
    allow_void: bool = False,
    histograms: Histograms | None = None,
    evidence: Known | None = None,
    model: ModelMap | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check every modification by itself and the plan as a whole. Changes nothing; raises nothing about the plan.

    Of an outline of the profile, the tensors that the plan cites have to be whole (`cited_by`).

    `folder` is where relative paths in the plan begin; the current folder by default. With the `histograms` kept with
    the profile, edits that look at each element alone are previewed without reading a weight. With `evidence`, by
    default the one that the plan names if it lies in the folder, cited measurements are compared with it and the
    plan's effect on the loss is predicted. `model` is the map of the checkpoint, where it is known
    already; `progress` is told the bytes previewed.
    """
    around = surroundings_of(checkpoint, folder or Path(), profile=profile, histograms=histograms, model=model)
    found: list[Problem] = list(found_in.of_plan(plan, profile, policy))
    known = evidence or evidence_beside(plan, folder or Path())
    missing = known if isinstance(known, str) else None
    known = None if isinstance(known, str) else known
    if known and known[0].checkpoint.fingerprint != profile.fingerprint:
        found.append(found_in.stale_evidence(known[0], profile))
        missing = f"it is about other weights, those of {known[0].checkpoint.name}"
        known = None
    edits: list[ModificationEdits] = []
    previews: dict[str, dict[str, Preview]] = {}
    for modification in plan.modifications:
        evidence_file, arrays = known or (None, None)
        found += found_in.of_modification(modification, profile, policy, evidence_file, missing, arrays)
        if modification.operation.kind not in policy.operations and named_beside(modification.operation):
            continue  # what may not be done is no reason to open a file
        try:
            edit = resolved(modification, around)
            found += found_in.of_tensors(modification, list(edit.steps), checkpoint, policy)
            previews[edit.id] = _previews(combined([edit], around), around, progress)
            edits.append(edit)
        except Unresolved as error:
            found.append(found_in.problem(modification, error.code, str(error), error.hint))
    bench = _Bench(around, profile, edits, progress)
    by_id = {modification.id: modification for modification in plan.modifications}
    checked = []
    for edit in edits:
        result = bench.judged(edit, previews.pop(edit.id))
        result = result.model_copy(update={"grounded": bool(by_id[edit.id].evidence)})
        checked.append(result)
        found += found_in.of_outcome(by_id[edit.id], result, policy, allow_void=allow_void)
    try:
        together, verdict = bench.together(checked)
    except Unresolved as error:  # an earlier modification leaves what a later one cannot work on
        found.append(found_in.problem(None, error.code, str(error), error.hint))
        together, verdict = (), Verdict("unknown", f"the modifications do not fit each other: {error}")
    if plan.modifications and not edits:
        verdict = Verdict("unknown", "no modification could be made out")
    total = _total(together, profile)
    owners = {name: edit.modifications for name, edit in bench.whole.tensors.items()}
    found += found_in.of_sizes(together, owners, total, policy)
    if together and verdict.effect != "void" and policy.refuses(verdict.effect) and not found:
        found.append(
            found_in.problem(
                None,
                "outside-policy",
                f"the plan as a whole is {verdict.effect}, which the policy refuses: {verdict.why}",
                "drop the modifications that undo each other, or take the effect out of `refuse` in the policy",
            )
        )
    if together and verdict.effect == "void" and policy.refuses("void", allow_void=allow_void) and not found:
        found.append(
            found_in.problem(
                None,
                "void-modification",
                "each modification changes something, but together they change no stored bit",
                "drop the ones that cancel (--allow-void accepts it)",
            )
        )
    return CheckReport(
        plan=plan.id,
        fingerprint=profile.fingerprint,
        accepted=not found,
        problems=_in_order(found, plan),
        warnings=(*_unchecked(plan, missing), *bench.warnings(checked)),
        model=Standing(family=around.model.family, known=around.model.known, reason=around.model.reason),
        policy=policy,
        plan_effect=verdict.effect,
        plan_why=verdict.why,
        total_change=total,
        prediction=prediction_of(edits, around, known, fitted=fitted_to(plan) == known[0].id)
        if known and edits
        else None,
        modifications=tuple(checked),
        tensors=together,
    )


def cited_by(modifications: Iterable[Modification]) -> frozenset[str]:
    """The tensors whose statistics the modifications cite."""
    return frozenset(cited.tensor for modification in modifications for cited in modification.evidence)


def _unchecked(plan: Plan, missing: str | None) -> Iterable[str]:
    """What was not checked because the evidence is not at hand."""
    count = sum(cited.fact.startswith(PREFIX) for m in plan.modifications for cited in m.evidence)
    if missing:
        yield f"the evidence of the plan is not at hand ({missing}): {count} cited measurements were not checked"


def _in_order(problems: Iterable[Problem], plan: Plan) -> tuple[Problem, ...]:
    """Those of the plan as a whole, then modification by modification."""
    places = {modification.id: place for place, modification in enumerate(plan.modifications)}
    return tuple(sorted(problems, key=lambda problem: places.get(problem.modification or "", -1)))


def edits_of(modifications: Iterable[Modification], around: Surroundings) -> PlanEdits:
    """What the modifications of a plan that was checked do to each tensor. Raises `Unresolved`."""
    return combined([resolved(modification, around) for modification in modifications], around)


def _previews(edits: PlanEdits, around: Surroundings, progress: Progress | None) -> dict[str, Preview]:
    """Of every tensor. Raises `Unresolved` where an operation finds that it does not fit its tensor."""
    found = {}
    for name, edit in edits.tensors.items():
        try:
            found[name] = preview(around, edit, progress=progress)
        except ValueError as error:  # an array of another length, no such singular value
            kinds = ", ".join(dict.fromkeys(str(getattr(step.operation, "kind", "")) for step in edit.steps))
            raise Unresolved(
                f"{kinds} does not fit {name}: {error}",
                hint="check the tensor's shape against the parameters and their arrays",
                code="does-not-fit",
            ) from None
    return found


class _Bench:
    """Previews and judges the edits of one plan."""

    def __init__(
        self, around: Surroundings, profile: Profiled, edits: list[ModificationEdits], progress: Progress | None
    ) -> None:
        self.around, self.profile, self.progress = around, profile, progress
        self.whole = combined(edits, around)
        self.judge = self._judge()

    def _judge(self) -> Judge:
        """For the model as it would be: with the tensors that are added, and the keys of config.json that change."""
        added = {name: edit.tensor.shape for name, edit in self.whole.tensors.items() if edit.added}
        model = self.around.model
        if added:
            model = map_of(self.around.checkpoint.config | self.whole.config, self.around.shapes | added)
        known = self.profile.by_name
        head, embedding = (known.get(name) if name else None for name in (model.head, model.embedding))
        zero = frozenset(name for name, tensor in known.items() if tensor.elements and tensor.zeros == tensor.elements)
        return Judge(
            model,
            zero=zero | set(added),
            copies_differ=bool(head and embedding and head.digest != embedding.digest),
        )

    def judged(self, edit: ModificationEdits, previews: Mapping[str, Preview]) -> CheckedModification:
        """A modification by itself, with the previews of its tensors."""
        alone = combined([edit], self.around)
        changed = {
            name: change_of(alone.tensors[name].steps, alone.tensors[name].folded.shape)
            for name, outcome in previews.items()
            if outcome.changed_elements
        }
        verdict = self._verdict(changed, alone)
        effects = {name: self._of_tensor(name, changed, alone, verdict) for name in previews}
        return CheckedModification(
            id=edit.id,
            effect=verdict.effect,
            why=verdict.why,
            tensors=tuple(_checked(name, effects[name], outcome) for name, outcome in previews.items()),
            notes=edit.notes,
            arrays=edit.provenance,
        )

    def _of_tensor(self, name: str, changed: Mapping[str, Change], edits: PlanEdits, whole: Verdict) -> Verdict:
        """The effect of one tensor's change; that of the whole where the tensors of a modification undo each other."""
        if name not in changed:
            return self._verdict({}, edits)
        if len(changed) == 1 or whole.effect in ("invariant", "shifts_logits", "rescales_logits"):
            return whole
        model = self.judge.model
        copies = {model.head, model.embedding} if model.tied else set()
        mine = {other: changed[other] for other in changed if other == name or (name in copies and other in copies)}
        return self._verdict(mine, edits)

    def _verdict(self, changed: Mapping[str, Change], edits: PlanEdits) -> Verdict:
        narrow = any(edits.tensors[name].dtype.tabulable for name in changed)
        judge = self.judge if narrow else replace(self.judge, rounded=False)
        return judge.verdict(changed, tie_kept=self._tie_kept(changed, edits))

    def _tie_kept(self, changed: Mapping[str, Change], edits: PlanEdits) -> bool:
        """Whether head and embedding, the same bytes before, are changed to the same bytes."""
        head, embedding = self.judge.model.head, self.judge.model.embedding
        if head not in changed or embedding not in changed or self.judge.copies_differ:
            return False
        assert head is not None, "it is one of the changed tensors"
        assert embedding is not None, "it is one of the changed tensors"
        one, other = edits.tensors[head], edits.tensors[embedding]
        if one.table is not None and other.table is not None:
            return one.dtype.name == other.dtype.name and np.array_equal(one.table, other.table)
        alike = len(one.steps) == len(other.steps) and all(map(_same_step, one.steps, other.steps))
        return alike and one.dtype.name == other.dtype.name

    def together(self, checked: list[CheckedModification]) -> tuple[tuple[CheckedTensor, ...], Verdict]:
        """Every tensor with all its edits folded, and the plan as a whole. Raises `Unresolved`."""
        alone = {(item.id, tensor.name): tensor for item in checked for tensor in item.tensors}
        judged: dict[str, CheckedTensor] = {}  # of one modification alone: what was found of it holds here too
        outcomes: dict[str, Preview] = {}
        changed: dict[str, Change] = {}
        for name, edit in self.whole.tensors.items():
            if len(edit.modifications) == 1 and (single := alone.get((edit.modifications[0], name))):
                judged[name] = single
            folded = PlanEdits({name: edit}, {})
            outcomes[name] = judged.get(name) or _previews(folded, self.around, self.progress)[name]
            if outcomes[name].changed_elements:
                changed[name] = change_of(edit.steps, edit.folded.shape)
        verdict = self._verdict(changed, self.whole)
        rows = (
            judged.get(name)
            or _checked(name, self._verdict({name: changed[name]} if name in changed else {}, self.whole), outcome)
            for name, outcome in outcomes.items()
        )
        return tuple(rows), verdict

    def warnings(self, checked: Iterable[CheckedModification]) -> Iterable[str]:
        """What the policy allows and a reviewer should know all the same."""
        model = self.judge.model
        head, embedding = model.head, model.embedding
        ids = [i.id for i in checked for t in i.tensors if t.name in (head, embedding) and t.changed_elements]
        touched = {n: Change() for n in (head, embedding) if n in self.whole.tensors} if model.tied else {}
        if model.tied and head and ids and not self._tie_kept(touched, self.whole):
            yield (
                f"{', '.join(dict.fromkeys(ids))}: {embedding} and {head} are two stored copies of one tied tensor "
                "and would differ afterwards; loaders disagree on which to read. Change both alike, or neither"
            )
        if not model.known:
            yield f"effects are unknown: {model.reason}"
        if self.whole.config:
            keys = ", ".join(f"{key} = {str(value).lower()}" for key, value in self.whole.config.items())
            yield f"config.json would be changed: {keys}"


def _same_step(one: Step, other: Step) -> bool:
    return one.operation == other.operation and one.modification == other.modification and one.selection.pointwise


def _checked(name: str, verdict: Verdict, outcome: Preview) -> CheckedTensor:
    return CheckedTensor(name=name, effect=verdict.effect, why=verdict.why, **dict(outcome))


def _total(together: Iterable[CheckedTensor], profile: Profiled) -> float | None:
    """‖ΔW‖ / ‖W‖ over all tensors of the checkpoint, added ones as well; None where it has left float64."""
    moved = []
    for tensor in together:
        known = profile.by_name.get(tensor.name)
        if tensor.broken_elements:
            return None  # a problem of its own
        if tensor.before.abs_max == 0 and tensor.after.rms is not None:  # zeros, or new: the change is all there is
            moved.append(tensor.after.rms * math.sqrt(tensor.elements - tensor.after.nonfinite))
        elif tensor.relative_change is not None and known is not None and known.l2_norm is not None:
            moved.append(tensor.relative_change * known.l2_norm)
        elif tensor.changed_elements:
            return None
    # Not as sums of squares: the square of a float64 weight may lie beyond float64.
    whole = math.hypot(*(tensor.l2_norm for tensor in profile.by_name.values() if tensor.l2_norm is not None))
    total = math.hypot(*moved) / whole if whole > 0 else None
    return total if total is not None and math.isfinite(total) else None
