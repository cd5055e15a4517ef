"""Everything that can be wrong with a plan for this checkpoint, found in one go, with an exact preview beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.checkpoint import Checkpoint
from planner.dtypes import float_dtype
from planner.effects.preview import preview
from planner.effects.types import CheckedModification, CheckedTensor, CheckReport, Preview
from planner.operations import Operation
from planner.plan import Modification, Plan, Policy, Problem, TargetUnmatched, resolve
from planner.profile import Histograms, Profile, TensorProfile

__all__ = ["EVIDENCE_TOLERANCE", "check", "operations_by_tensor"]

EVIDENCE_TOLERANCE = 0.02
"""A cited value may differ from the profile's by this, relatively: analysts quote two or three digits."""

Progress = Callable[[int], None]


def check(
    plan: Plan,
    checkpoint: Checkpoint,
    profile: Profile,
    policy: Policy,
    *,
    allow_void: bool = False,
    histograms: Histograms | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check every modification by itself and the plan as a whole. Changes nothing; raises nothing about the plan.

    With the `histograms` kept with the profile, narrow tensors are previewed without reading them. `progress` is told
    the bytes previewed.
    """
    weights = _Weights(checkpoint, profile, histograms, progress)
    problems = list(_plan_problems(plan, profile, policy))
    checked: list[CheckedModification] = []
    targets: dict[str, tuple[str, ...]] = {}
    for modification in plan.modifications:
        problems += _static_problems(modification, profile, policy)
        try:
            targets[modification.id] = resolve(modification.target, list(checkpoint.tensors))
        except TargetUnmatched as error:
            problems.append(_problem(modification, "unknown-target", str(error), error.hint))
            continue
        names = targets[modification.id]
        problems += _tensor_problems(modification, names, checkpoint, policy)
        tensors = tuple(
            _checked(name, weights.previewed(name, [modification.operation]))
            for name in names
            if float_dtype(checkpoint.tensors[name].dtype)
        )
        checked.append(CheckedModification(id=modification.id, tensors=tensors))
        problems += _outcome_problems(modification, tensors, allow_void)
    together = _together(plan, targets, weights, checked)
    problems += _size_problems(together, targets, policy)
    void = all(tensor.effect == "void" for tensor in together)
    if together and void and not allow_void and not problems:
        problems.append(
            Problem(
                modification=None,
                code="void-modification",
                message="each modification changes something, but together they change no stored bit",
                hint="drop the ones that cancel (--allow-void accepts it)",
            )
        )
    return CheckReport(
        plan=plan.id,
        fingerprint=profile.fingerprint,
        accepted=not problems,
        problems=tuple(problems),
        plan_effect="void" if void else "unknown",
        modifications=tuple(checked),
        tensors=together,
    )


def operations_by_tensor(
    modifications: Sequence[Modification], checkpoint: Checkpoint
) -> dict[str, list[tuple[str, Operation]]]:
    """For every tensor that is meant, the operations on it in order, each with the id of its modification.

    Raises `TargetUnmatched`.
    """
    found: dict[str, list[tuple[str, Operation]]] = {}
    for modification in modifications:
        for name in resolve(modification.target, list(checkpoint.tensors)):
            found.setdefault(name, []).append((modification.id, modification.operation))
    return found


def _plan_problems(plan: Plan, profile: Profile, policy: Policy) -> list[Problem]:
    problems = []
    if plan.checkpoint.fingerprint != profile.fingerprint:
        problems.append(
            Problem(
                modification=None,
                code="stale-plan",
                message=f"the plan was made for {plan.checkpoint.fingerprint[:19]}, this is {profile.fingerprint[:19]}",
                hint="propose a plan for this checkpoint",
            )
        )
    if len(plan.modifications) > policy.most_modifications:
        problems.append(
            Problem(
                modification=None,
                code="outside-policy",
                message=f"{len(plan.modifications)} modifications; the policy allows {policy.most_modifications}",
                hint="keep the ones you are surest of",
            )
        )
    return problems


def _static_problems(modification: Modification, profile: Profile, policy: Policy) -> list[Problem]:
    problems = []
    if modification.operation.kind not in policy.operations:
        problems.append(
            _problem(
                modification,
                "outside-policy",
                f"the policy does not allow {modification.operation.kind}",
                "allowed: " + ", ".join(policy.operations),
            )
        )
    for cited in modification.evidence:
        tensor = profile.by_name.get(cited.tensor)
        if tensor is None:
            problems.append(
                _problem(
                    modification, "evidence-mismatch", f"it cites {cited.tensor!r}, which is not here", "cite what is"
                )
            )
            continue
        found = _fact(tensor, cited.fact)
        if isinstance(found, str):
            problems.append(_problem(modification, "evidence-mismatch", found, "cite a statistic of the profile"))
        elif not _same(cited.value, found):
            problems.append(
                _problem(
                    modification,
                    "evidence-mismatch",
                    f"it cites {cited.fact} = {cited.value} of {cited.tensor}; the profile says {found}",
                    f"cite the measured value, within {EVIDENCE_TOLERANCE:.0%}",
                )
            )
    return problems


def _fact(tensor: TensorProfile, fact: str) -> float | str | None:
    """The value of a cited statistic; a sentence if there is no such statistic."""
    group, _, key = fact.partition(".")
    if group in {"quantiles", "outliers"}:
        values: dict[str, float | None] = dict(getattr(tensor, group))
        if key in values:
            return values[key]
        return f"{fact!r} is not in the profile; {group} has {', '.join(values)}"
    value = getattr(tensor, fact, None) if fact in _FACTS else fact
    return f"{fact[:40]!r} is not a statistic of the profile" if isinstance(value, str) else value


_FACTS = (
    *("mean", "std", "min", "max", "abs_max", "rms", "l2_norm", "skewness", "kurtosis"),
    *("zeros", "nan", "inf", "distinct_values", "elements"),
)


def _same(cited: float | None, found: float | None) -> bool:
    if cited is None or found is None:
        return cited is found
    return math.isclose(cited, found, rel_tol=EVIDENCE_TOLERANCE, abs_tol=1e-12)


def _tensor_problems(
    modification: Modification, names: Sequence[str], checkpoint: Checkpoint, policy: Policy
) -> list[Problem]:
    problems = [
        _problem(modification, "outside-policy", f"the policy protects {name}", "leave it out of the target")
        for name in names
        if policy.protects(name)
    ]
    problems += [
        _problem(
            modification,
            "unsupported-dtype",
            f"{name} is {checkpoint.tensors[name].dtype}, whose values this version does not change",
            "leave it out of the target",
        )
        for name in names
        if float_dtype(checkpoint.tensors[name].dtype) is None
    ]
    return problems


def _outcome_problems(modification: Modification, tensors: Sequence[CheckedTensor], allow_void: bool) -> list[Problem]:
    problems = [
        _problem(
            modification,
            "not-finite",
            f"{tensor.broken_elements:,} elements of {tensor.name} would become NaN or infinite",
            "use a smaller factor or offset",
        )
        for tensor in tensors
        if tensor.broken_elements
    ]
    if tensors and not allow_void and all(tensor.effect == "void" for tensor in tensors):
        problems.append(
            _problem(
                modification,
                "void-modification",
                f"it would change no stored bit of {_named([tensor.name for tensor in tensors])}",
                "a change below the resolution of the dtype is lost to rounding; make it larger or drop it "
                "(--allow-void accepts it)",
            )
        )
    return problems


def _together(
    plan: Plan,
    targets: dict[str, tuple[str, ...]],
    weights: _Weights,
    checked: Sequence[CheckedModification],
) -> tuple[CheckedTensor, ...]:
    """Every tensor with all its modifications folded; where there is only one, its preview is at hand already."""
    alone = {(item.id, tensor.name): tensor for item in checked for tensor in item.tensors}
    by_tensor: dict[str, list[Modification]] = {}
    for modification in plan.modifications:
        for name in targets.get(modification.id, ()):
            if float_dtype(weights.checkpoint.tensors[name].dtype):
                by_tensor.setdefault(name, []).append(modification)
    return tuple(
        alone[modifications[0].id, name]
        if len(modifications) == 1
        else _checked(name, weights.previewed(name, [m.operation for m in modifications]))
        for name, modifications in by_tensor.items()
    )


def _size_problems(
    together: Sequence[CheckedTensor], targets: dict[str, tuple[str, ...]], policy: Policy
) -> list[Problem]:
    problems = []
    for tensor in together:
        change = tensor.relative_change
        if not tensor.broken_elements and (change is None or change > policy.largest_relative_change):
            size = "without bound" if change is None else f"by {change:.3g} of its norm"
            problems.append(
                Problem(
                    modification=next(name for name, names in targets.items() if tensor.name in names),
                    code="outside-policy",
                    message=f"{tensor.name} would change {size}; the policy allows {policy.largest_relative_change:g}",
                    hint="make the change smaller, or raise largest_relative_change in the policy",
                )
            )
    return problems


@dataclass(frozen=True)
class _Weights:
    """Where previews get a tensor's elements from: its kept histogram, else its bytes."""

    checkpoint: Checkpoint
    profile: Profile
    histograms: Histograms | None
    progress: Progress | None

    def previewed(self, name: str, operations: Sequence[Operation]) -> Preview:
        tensor, known = self.checkpoint.tensors[name], self.profile.by_name.get(name)
        dtype = float_dtype(tensor.dtype)
        assert dtype is not None, "callers ask only for tensors whose dtype is understood"
        histogram = self.histograms.of(known) if self.histograms and known else None
        return preview(self.checkpoint, tensor, dtype, operations, histogram=histogram, progress=self.progress)


def _checked(name: str, outcome: Preview) -> CheckedTensor:
    void = outcome.changed_elements == 0
    return CheckedTensor(
        name=name,
        effect="void" if void else "unknown",
        why="computed from every stored element: no bit changes"
        if void
        else "its bits change; what that does to the function is not analysed by this version",
        **outcome.model_dump(),
    )


def _problem(modification: Modification, code: str, message: str, hint: str) -> Problem:
    return Problem(modification=modification.id, code=code, message=message, hint=hint)


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
