"""The built-in rules: deterministic, from the profile alone, and slow to speak.

They are the baseline that every other analyst must beat. Weight statistics say little about what a weight is for, so
each rule asks for a strong anomaly, proposes a small step, and states a low confidence. They do not read the goal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from planner.analysts.base import Brief, drafted
from planner.operations import AnyOperation, Clamp, Scale
from planner.plan import AnalystRecord, Evidence, Modification, Plan, Target
from planner.profile import Profile, TensorProfile, peer_groups, standings

__all__ = ["RULES", "RulesAnalyst"]

_FEWEST_PEERS = 5
_STRONG_Z = 6.0
_STRONG_RATIO = 1.2
_LARGEST_STEP = 1.02
_SMALLEST_MATRIX = 4096
_RARE = 1e-3
_TRIM_AT = 6
_NOTABLE = 6.5  # beyond the limit by more than what trimming takes off the standard deviation
_LOAD_BEARING = 10
_IDLE = ("ignored", "invariant")  # effects of what a model would not notice

Finding = tuple[TensorProfile, AnyOperation, str, float, str, tuple[str, ...]]
"""Tensor, operation, reasoning, confidence, expected impact, cited facts."""


class RulesAnalyst:
    """Applies every rule to the profile and keeps what the check accepts."""

    def propose(self, brief: Brief) -> Plan:
        """The rules' plan; empty, with a note that says so, where nothing is strange enough."""
        findings = [finding for rule in RULES for finding in rule(brief.profile)]
        modifications = [_modification(number, *finding) for number, finding in enumerate(findings, start=1)]
        plan = drafted(brief, AnalystRecord(kind="rules"), modifications)
        while refused := {problem.modification for problem in brief.check(plan).problems}:
            # One at fault can hide another: a limit on all changes of a tensor together names the first of them only.
            kept = [m for m in plan.modifications if m.id not in refused]
            if len(kept) == len(plan.modifications):  # it is the plan as a whole, which is too long
                kept = kept[: min(len(kept) - 1, brief.policy.most_modifications)]
            plan = plan.model_copy(update={"modifications": tuple(kept)})
        idle = {checked.id for checked in brief.check(plan).modifications if checked.effect in _IDLE}
        plan = plan.model_copy(update={"modifications": tuple(m for m in plan.modifications if m.id not in idle)})
        kept_count = len(plan.modifications)
        return plan.model_copy(update={"note": _note(kept_count, len(modifications) - kept_count)})


def infinite_elements(profile: Profile) -> Iterator[Finding]:
    """Infinities among finite weights: bring them to the largest finite magnitude on their side."""
    for tensor in profile.tensors:
        if tensor.inf and not tensor.nan and tensor.min is not None and tensor.max is not None:
            yield (
                tensor,
                Clamp(minimum=tensor.min, maximum=tensor.max),
                f"{tensor.inf:,} elements are infinite. Any output they reach is NaN or infinite; the largest finite "
                f"elements are {tensor.min:.3g} and {tensor.max:.3g}.",
                0.6,
                "outputs that were NaN become finite; nothing else changes",
                ("inf", "min", "max"),
            )


def isolated_outliers(profile: Profile) -> Iterator[Finding]:
    """A few elements beyond six standard deviations in a large matrix: trim them to six.

    Elements beyond ten are left alone. Single weights that far out are known to carry a model's function ("super
    weights", Yu et al. 2024), and a profile cannot tell a fault from one of those.
    """
    for tensor in profile.tensors:
        if len(tensor.shape) < 2 or tensor.elements < _SMALLEST_MATRIX or not tensor.std or tensor.nan or tensor.inf:
            continue
        assert tensor.mean is not None
        assert tensor.abs_max is not None
        count = tensor.outliers[str(_TRIM_AT)]
        reach = (tensor.abs_max + abs(tensor.mean)) / tensor.std
        if 0 < count <= _RARE * tensor.elements and _NOTABLE <= reach <= _LOAD_BEARING:
            yield (
                tensor,
                Clamp(
                    minimum=tensor.mean - _TRIM_AT * tensor.std,
                    maximum=tensor.mean + _TRIM_AT * tensor.std,
                ),
                f"{count} of {tensor.elements:,} elements {'lies' if count == 1 else 'lie'} beyond {_TRIM_AT} standard "
                f"deviations, the farthest at {reach:.1f}. That is rare, and short of the weights known to carry "
                "a function; it more likely fits a few training examples than the task.",
                0.25,
                "loss unchanged within its interval; a smaller range to quantise",
                ("outliers.6", "std", "abs_max"),
            )


def outlying_layers(profile: Profile) -> Iterator[Finding]:
    """One layer's rms far from that of its peers: a step of at most two per cent towards their median."""
    for group in peer_groups(profile.tensors):
        if len(group) < _FEWEST_PEERS:
            continue
        for standing in standings(group):
            tensor, rms = standing.tensor, standing.tensor.rms
            assert rms is not None
            ratio = rms / standing.typical
            if abs(standing.robust_z) < _STRONG_Z or max(ratio, 1 / ratio) < _STRONG_RATIO or tensor.nan or tensor.inf:
                continue
            factor = _LARGEST_STEP if ratio < 1 else 1 / _LARGEST_STEP
            yield (
                tensor,
                Scale(factor=float(f"{factor:.4g}")),
                f"The rms of {tensor.role} in layer {tensor.layer} is {ratio:.2f} times the median of its {len(group)} "
                f"peers (robust z {standing.robust_z:+.1f}). A small step towards the median tests whether the layer "
                "is undertrained or different on purpose.",
                0.15,
                "direction unknown; a few thousandths of a nat either way",
                ("rms",),
            )


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (infinite_elements, isolated_outliers, outlying_layers)
"""Every rule, in the order of the plan."""


def _modification(
    number: int,
    tensor: TensorProfile,
    operation: AnyOperation,
    reasoning: str,
    confidence: float,
    impact: str,
    facts: tuple[str, ...],
) -> Modification:
    return Modification(
        id=f"m{number:02d}",
        target=Target(tensors=(tensor.name,)),
        operation=operation,
        reasoning=reasoning,
        confidence=confidence,
        expected_impact=impact,
        evidence=tuple(Evidence(tensor=tensor.name, fact=fact, value=_value(tensor, fact)) for fact in facts),
    )


def _value(tensor: TensorProfile, fact: str) -> float | None:
    group, _, key = fact.partition(".")
    value = getattr(tensor, group)
    found: float | None = value[key] if key else value
    return found


def _note(kept: int, refused: int) -> str:
    left_out = f"; {refused} more would be outside policy or change nothing" if refused else ""
    if kept:
        found = "1 anomaly" if kept == 1 else f"{kept} anomalies"
        return f"the rules found {found} in the weights; they do not read the goal{left_out}"
    return f"nothing worth changing: no weight is strange enough for a rule{left_out}"
