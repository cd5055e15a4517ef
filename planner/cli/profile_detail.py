"""Single tensors of a profile for people: which ones a pattern means, and all that is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import SimpleNamespace
from typing import TYPE_CHECKING

from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.profile import Profile, TensorProfile

__all__ = ["SPECTRAL", "only", "show_tensors"]

_MOST_TENSORS = 20
_MOST_NORMS = 64
SPECTRAL = ("spectral_norm", "stable_rank", "effective_rank", "tail_exponent")
"""Statistics that only --spectra gives."""


def only(profile: Profile, patterns: Sequence[str]) -> Profile:
    """The profile with those tensors alone that one of the patterns means: a name, a role, or a glob as in a plan.

    Raises `UsageError` for a pattern that means nothing here.
    """
    from pydantic import ValidationError

    from planner.plan.target import Target, TargetUnmatched, resolve

    names = [tensor.name for tensor in profile.tensors]
    roles = {tensor.role for tensor in profile.tensors}
    wanted: set[str] = set()
    for pattern in patterns:
        if pattern in roles and pattern not in names:
            wanted |= {tensor.name for tensor in profile.tensors if tensor.role == pattern}
            continue
        try:
            wanted |= set(resolve(Target(tensors=(pattern,)), names))
        except TargetUnmatched as error:
            close = get_close_matches(pattern, [*names, *sorted(roles)], n=3, cutoff=0.5)
            hint = f"nearest: {', '.join(close)}" if close else error.hint
            raise UsageError(f"--tensor {pattern}: {error}", hint=hint) from None
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UsageError(f"--tensor {pattern}: {reason}", hint="a name, a role, or a glob with * ? {1-3}") from None
    return profile.model_copy(update={"tensors": tuple(t for t in profile.tensors if t.name in wanted)})


def show_tensors(profile: Profile, screen: Screen, everything: Profile) -> None:
    """Everything about each tensor, 20 at most; its peers are looked for in `everything`."""
    for tensor in profile.tensors[:_MOST_TENSORS]:
        screen.show(tensor.name)
        for label, text in (*_lines(tensor), *_comparison(tensor, everything)):
            screen.prose(f"{label}: {text}", indent=2)
        for finding in everything.findings:
            if finding.tensor == tensor.name:
                screen.prose(f"notable: {finding.sentence}", indent=2)
        screen.show()
    if (left := len(profile.tensors) - _MOST_TENSORS) > 0:
        screen.show(f"({left:,} more tensors match; a narrower pattern shows them, --sort NAME lists them)")


def _lines(tensor: TensorProfile) -> Iterator[tuple[str, str]]:
    where = [f"role {tensor.role}"]
    where += [f"layer {tensor.layer}"] if tensor.layer is not None else []
    where += [f"expert {tensor.expert}"] if tensor.expert is not None else []
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    yield "what", f"{', '.join(where)}; {tensor.dtype} {shape}, {tensor.elements:,} elements"
    yield "digest", tensor.digest
    if not tensor.understood:
        yield "values", f"not read: this version does not know the dtype {tensor.dtype}"
        return
    yield "moments", _facts(tensor, ("mean", "std", "skewness", "kurtosis"))
    yield "extremes", _facts(tensor, ("min", "max", "abs_max", "rms", "l2_norm"))
    yield "quantiles", "  ".join(f"{100 * float(q):g}%={_value(value)}" for q, value in tensor.quantiles.items())
    zeros = f"zeros={tensor.zeros:,} ({tensor.negative_zeros:,} negative)"
    infinite = f"inf={tensor.inf:,} ({tensor.negative_inf:,} negative)"
    yield "counts", f"{zeros}  subnormals={tensor.subnormals:,}  nan={tensor.nan:,}  {infinite}"
    beyond = "  ".join(f"beyond-{order}-std={count:,}" for order, count in tensor.outliers.items())
    yield "outliers", beyond or "-"
    distinct = "-" if tensor.distinct_values is None else f"{tensor.distinct_values:,}"
    yield "values", f"distinct={distinct}  entropy={_value(tensor.entropy)} bits"
    yield from _parts(tensor)


def _parts(tensor: TensorProfile) -> Iterator[tuple[str, str]]:
    for label, norms in (("rows", tensor.rows), ("columns", tensor.columns)):
        if norms is not None:
            ends = (
                f"norm {_value(norms.min)} to {_value(norms.max)}, median {_value(norms.median)}, cv {_value(norms.cv)}"
            )
            places = f"largest at {_places(norms.largest_at)}; smallest at {_places(norms.smallest_at)}"
            yield label, f"{norms.count:,}: {ends}; {places}"
    for heads in tensor.heads:
        shown = " ".join(map(_value, heads.norms[:_MOST_NORMS]))
        more = f" ({len(heads.norms) - _MOST_NORMS} more)" if len(heads.norms) > _MOST_NORMS else ""
        yield f"{heads.part} heads", f"{len(heads.norms)} of {heads.width} {heads.axis} each, norms {shown}{more}"
    if tensor.largest:
        yield (
            "largest",
            "  ".join(f"({','.join(map(str, found.index))})={_value(found.value)}" for found in tensor.largest),
        )
    if tensor.experts:
        names = ("mean", "std", "rms", "abs_max", "kurtosis", "zeros", "nonfinite")
        yield "experts", f"{tensor.experts.count}, least and most: {_spans(tensor.experts, names)}"
        spectra = [spectrum for spectrum in tensor.experts.spectra if spectrum]
        if spectra:
            columns = {name: [getattr(one, name) for one in spectra] for name in SPECTRAL}
            yield "their spectra", f"least and most: {_spans(SimpleNamespace(**columns), SPECTRAL)}"
    if tensor.spectrum:
        facts = {k: v for k, v in tensor.spectrum.model_dump().items() if k != "singular_values" and v is not None}
        if tensor.spectrum.effective_rank is not None:  # the bounds are the number itself
            facts = {k: v for k, v in facts.items() if not k.startswith("effective_rank_at")}
        yield "singular values", " ".join(map(_value, tensor.spectrum.singular_values))
        yield "spectrum", "  ".join(f"{k}={v if isinstance(v, str) else _value(v)}" for k, v in facts.items())


def _comparison(tensor: TensorProfile, everything: Profile) -> Iterator[tuple[str, str]]:
    from planner.profile.peers import STATISTICS, peer_groups, standings
    from planner.profile.wording import score

    alike = (other for other in everything.tensors if (other.role, other.shape) == (tensor.role, tensor.shape))
    for group in peer_groups(alike):
        if len(group) > 1 and any(peer.name == tensor.name for peer in group):
            found = {name: s for name in STATISTICS for s in standings(group, name) if s.tensor.name == tensor.name}
            told = "  ".join(f"{name}={score(s.robust_z)}" for name, s in found.items() if s.robust_z)
            yield "robust z", f"among {len(group):,} peers: {told or 'all agree'}"


def _facts(tensor: TensorProfile, names: Sequence[str]) -> str:
    # Name and number are one word, so that a narrow terminal breaks no line between them.
    return "  ".join(f"{name}={_value(getattr(tensor, name))}" for name in names)


def _spans(columns: object, names: Sequence[str]) -> str:
    """The least and the most of each column of numbers that has any."""
    there = {name: [value for value in getattr(columns, name) if value is not None] for name in names}
    return "  ".join(f"{name}={_value(min(got))}..{_value(max(got))}" for name, got in there.items() if got)


def _places(places: Sequence[int]) -> str:
    return ", ".join(map(str, places)) or "-"


def _value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
