"""What can be wrong with a plan: one function for each kind of question, each gives every problem it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from planner.checkpoint import Checkpoint
from planner.dtypes import float_dtype
from planner.effects.types import CheckedModification, CheckedTensor
from planner.evidence import EvidenceFile, Measured
from planner.evidence.facts import PREFIX, fact_of
from planner.plan import Evidence, Modification, Plan, Policy, Problem
from planner.profile import Outlined, Profiled

__all__ = [
    "CITABLE",
    "EVIDENCE_TOLERANCE",
    "of_modification",
    "of_outcome",
    "of_plan",
    "of_sizes",
    "of_tensors",
    "problem",
    "stale_evidence",
]

EVIDENCE_TOLERANCE = 0.02
"""A cited value may differ from the profile's by this, relatively: analysts quote two or three digits."""


def problem(modification: Modification | None, code: str, message: str, hint: str) -> Problem:
    """A problem of a modification, or of the plan as a whole."""
    return Problem(modification=modification.id if modification else None, code=code, message=message, hint=hint)


def of_plan(plan: Plan, profile: Profiled, policy: Policy) -> Iterator[Problem]:
    """Made for other weights; too long."""
    if plan.checkpoint.fingerprint != profile.fingerprint:
        yield problem(
            None,
            "stale-plan",
            f"the plan was made for {plan.checkpoint.fingerprint[:19]}, this is {profile.fingerprint[:19]}",
            f"propose a plan for this checkpoint, whose fingerprint is {profile.fingerprint}",
        )
    if len(plan.modifications) > policy.most_modifications:
        yield problem(
            None,
            "outside-policy",
            f"{len(plan.modifications)} modifications; the policy allows {policy.most_modifications}",
            "keep the ones you are surest of",
        )


def stale_evidence(evidence: EvidenceFile, profile: Profiled) -> Problem:
    """The evidence is about other weights."""
    return problem(
        None,
        "stale-evidence",
        f"the evidence was measured on {evidence.checkpoint.name}, {evidence.checkpoint.fingerprint[:19]}; this is "
        f"{profile.fingerprint[:19]}",
        "measure anew: planner probe",
    )


def of_modification(
    modification: Modification,
    profile: Profiled,
    policy: Policy,
    evidence: EvidenceFile | None = None,
    missing: str | None = None,
    measured: Measured | None = None,
) -> Iterator[Problem]:
    """An operation that is not allowed; cited values that are not what was measured.

    `missing` says why the evidence that the plan names is not at hand: what is cited from it is then passed over.
    `measured` are the arrays of the evidence; without them only the rows and columns that the file lists can be cited.
    """
    if modification.operation.kind not in policy.operations:
        yield problem(
            modification,
            "outside-policy",
            f"the policy does not allow {modification.operation.kind}",
            "allowed: " + ", ".join(policy.operations),
        )
    for cited in modification.evidence:
        if cited.fact.startswith(PREFIX):
            yield from _measurement(modification, cited, evidence, missing, measured)
            continue
        tensor = profile.by_name.get(cited.tensor)
        if tensor is None:
            message = f"it cites {cited.tensor!r}, which is not here"
            yield problem(modification, "evidence-mismatch", message, "cite what is")
            continue
        yield from _compared(modification, cited, _fact(tensor, cited.fact), "profile", "statistic")


def _measurement(
    modification: Modification,
    cited: Evidence,
    evidence: EvidenceFile | None,
    missing: str | None,
    measured: Measured | None,
) -> Iterator[Problem]:
    """A cited fact of the evidence."""
    if evidence is None:
        if missing is None:
            message = f"it cites {cited.fact}, and there is no evidence to compare that with"
            yield problem(modification, "evidence-mismatch", message, "give --evidence, or cite the profile")
        return
    found = fact_of(evidence, cited.tensor, cited.fact, measured)
    yield from _compared(modification, cited, found, "evidence", "fact")


def _compared(
    modification: Modification, cited: Evidence, found: float | str | None, where: str, what: str
) -> Iterator[Problem]:
    """A cited value beside the one found; `found` is a sentence where there is none."""
    if isinstance(found, str):
        yield problem(modification, "evidence-mismatch", found, f"cite a {what} of the {where}")
    elif not _same(cited.value, found):
        yield problem(
            modification,
            "evidence-mismatch",
            f"it cites {cited.fact} = {cited.value} of {cited.tensor}; the {where} says {found}",
            f"cite the measured value, within {EVIDENCE_TOLERANCE:.0%}",
        )


def _fact(tensor: Outlined, fact: str) -> float | str | None:
    """The value of a cited statistic; a sentence if there is no such statistic. Tensors that are cited are whole."""
    group, _, key = fact.partition(".")
    if group in {"quantiles", "outliers"}:
        values: dict[str, float | None] = dict(getattr(tensor, group))
        if key in values:
            return values[key]
        return f"{fact!r} is not in the profile; {group} has {', '.join(values)}"
    value = getattr(tensor, fact, None) if fact in CITABLE else fact
    return f"{fact[:40]!r} is not a statistic of the profile" if isinstance(value, str) else value


CITABLE = (
    *("mean", "std", "min", "max", "abs_max", "rms", "l2_norm", "skewness", "kurtosis"),
    *("zeros", "nan", "inf", "distinct_values", "elements"),
)
"""Statistics that a modification may cite, beside `quantiles.…` and `outliers.…`."""


def _same(cited: float | None, found: float | None) -> bool:
    if cited is None or found is None:
        return cited is found
    return math.isclose(cited, found, rel_tol=EVIDENCE_TOLERANCE, abs_tol=1e-12)


def of_tensors(
    modification: Modification, names: Sequence[str], checkpoint: Checkpoint, policy: Policy
) -> Iterator[Problem]:
    """Tensors that the policy protects, and those of dtypes whose values are not changed."""
    for name in names:
        if policy.protects(name):
            yield problem(modification, "outside-policy", f"the policy protects {name}", "leave it out of the target")
    for name in names:
        stored = checkpoint.tensors.get(name)
        if stored is not None and float_dtype(stored.dtype) is None:
            yield problem(
                modification,
                "unsupported-dtype",
                f"{name} is {stored.dtype}, whose values this version does not change",
                "leave it out of the target",
            )


def of_outcome(
    modification: Modification, checked: CheckedModification, policy: Policy, *, allow_void: bool
) -> Iterator[Problem]:
    """Elements that would become NaN or infinite; an effect that the policy refuses."""
    for tensor in checked.tensors:
        if tensor.broken_elements:
            yield problem(
                modification,
                "not-finite",
                f"{tensor.broken_elements:,} elements of {tensor.name} would become NaN or infinite",
                "use a smaller factor or offset",
            )
    if not checked.tensors or not policy.refuses(checked.effect, allow_void=allow_void):
        return
    if checked.effect == "void":
        yield problem(
            modification,
            "void-modification",
            f"it would change no stored bit of {_named([tensor.name for tensor in checked.tensors])}",
            "a change below the resolution of the dtype is lost to rounding; make it larger or drop it "
            "(--allow-void accepts it)",
        )
    else:
        yield problem(
            modification,
            "outside-policy",
            f"its effect is {checked.effect}, which the policy refuses: {checked.why}",
            "drop it, or take the effect out of `refuse` in the policy",
        )


def of_sizes(
    together: Sequence[CheckedTensor], owners: Mapping[str, Sequence[str]], total: float | None, policy: Policy
) -> Iterator[Problem]:
    """Tensors that change more than the policy allows, one by one and all together, and more of them than it allows.

    `owners` are the ids of the modifications of each tensor.
    """
    for tensor in together:
        change = tensor.relative_change
        if tensor.source == "new" or tensor.broken_elements:
            continue
        if change is None or change > policy.largest_relative_change:
            size = "without bound" if change is None else f"by {change:.3g} of its norm"
            yield Problem(
                modification=owners[tensor.name][0],
                code="outside-policy",
                message=f"{tensor.name} would change {size}; the policy allows {policy.largest_relative_change:g}",
                hint="make the change smaller, or raise largest_relative_change in the policy",
            )
    if total is not None and total > policy.largest_total_change:
        yield problem(
            None,
            "outside-policy",
            f"all tensors together would change by {total:.3g} of their norm; the policy allows "
            f"{policy.largest_total_change:g}",
            "change less, or raise largest_total_change in the policy",
        )
    if len(together) > policy.most_tensors:
        yield problem(
            None,
            "outside-policy",
            f"it reaches {len(together):,} tensors; the policy allows {policy.most_tensors:,}",
            "name fewer tensors, or raise most_tensors in the policy",
        )


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
