"""What the page's script draws from: one JSON document, a column a measure, so that 20,000 tensors still open."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from planner.profile import QUANTILES, Profile, TensorProfile
from planner.profile.types import Experts, NormSummary
from planner.report.bins import MOST_BINS, Histograms, binned, rounded
from planner.report.measures import MEASURES, spectral
from planner.report.text import plain

__all__ = ["HISTOGRAM_BUDGET", "document_of"]

HISTOGRAM_BUDGET = 8 * 2**20
"""Characters that all histograms of a page may take."""

_MOST_PLACES = 5
_MOST_LARGEST = 10
_DIGEST = 23  # "blake3:" and 16 digits


def document_of(profile: Profile, histogram: Histograms | None = None, *, budget: int = HISTOGRAM_BUDGET) -> Any:
    """The document. Numbers keep six significant digits; lists for each tensor are left out where there are none."""
    tensors = profile.tensors
    place = {tensor.name: number for number, tensor in enumerate(tensors)}
    notable: dict[int, list[str]] = {}
    for finding in profile.findings:
        if finding.tensor in place:
            notable.setdefault(place[finding.tensor], []).append(plain(finding.sentence))
    histograms, left_out = _histograms(tensors, histogram, sorted(notable), budget)
    measures = _measures(tensors)
    roles, role = _coded(plain(tensor.role) for tensor in tensors)
    dtypes, dtype = _coded(tensor.dtype for tensor in tensors)
    shapes, shape = _coded(tensor.shape for tensor in tensors)
    return {
        "measures": [description for description, _ in measures],
        "columns": [column for _, column in measures],
        "names": [tensor.name for tensor in tensors],
        "shown": {number: plain(name) for name, number in place.items() if plain(name) != name},
        "roles": roles,
        "role": role,
        "dtypes": dtypes,
        "dtype": dtype,
        "shapes": shapes,
        "shape": shape,
        "layer": [tensor.layer for tensor in tensors],
        "expert": [tensor.expert for tensor in tensors] if any(t.expert is not None for t in tensors) else None,
        "elements": [tensor.elements for tensor in tensors],
        "digest": [tensor.digest[:_DIGEST] for tensor in tensors],
        "orders": QUANTILES,
        "quantiles": [_quantiles(tensor) for tensor in tensors],
        "rows": {n: _norms(t.rows) for n, t in enumerate(tensors) if t.rows},
        "cols": {n: _norms(t.columns) for n, t in enumerate(tensors) if t.columns},
        "heads": {n: _heads(t) for n, t in enumerate(tensors) if t.heads},
        "largest": {n: _largest(t) for n, t in enumerate(tensors) if t.largest},
        "experts": {n: _experts(t.experts) for n, t in enumerate(tensors) if t.experts},
        "spectra": {n: _rounded(t.spectrum.singular_values) for n, t in enumerate(tensors) if t.spectrum},
        "methods": {n: t.spectrum.method for n, t in enumerate(tensors) if t.spectrum},
        "findings": notable,
        "same": _same(profile, place),
        "histograms": histograms,
        "histogramsLeftOut": left_out,
        "mostBins": MOST_BINS,
    }


def _measures(tensors: Sequence[TensorProfile]) -> list[tuple[dict[str, Any], list[Any]]]:
    """Every measure that some tensor has, with its column."""
    found = []
    for measure in (*MEASURES, *spectral(tensor.spectrum for tensor in tensors)):
        column = [rounded(measure.of(tensor)) for tensor in tensors]
        if any(value is not None for value in column):
            about = {"key": measure.key, "label": measure.label, "about": measure.about}
            found.append(({**about, "mapped": measure.mapped, "ratio": measure.ratio}, column))
    return found


def _histograms(
    tensors: Sequence[TensorProfile], histogram: Histograms | None, first: Sequence[int], budget: int
) -> tuple[dict[int, Any], int]:
    """Those that fit the budget, the notable tensors' before the others'; and how many did not fit."""
    kept: dict[int, Any] = {}
    left_out = 0
    for number in dict.fromkeys([*first, *range(len(tensors))]) if histogram else ():
        bins = histogram(tensors[number].name) if histogram else None
        drawn = binned(bins, tensors[number]) if bins else None
        if drawn is None:
            continue
        budget -= len(json.dumps(drawn, separators=(",", ":")))
        if budget >= 0:
            kept[number] = drawn
        else:
            left_out += 1
    return dict(sorted(kept.items())), left_out


def _coded(values: Iterable[Hashable]) -> tuple[list[Any], list[int]]:
    """The different values, and which of them each is."""
    codes: dict[Hashable, int] = {}
    coded = [codes.setdefault(value, len(codes)) for value in values]
    return list(codes), coded


def _rounded(numbers: Iterable[float | None]) -> list[float | int | None]:
    return [rounded(number) for number in numbers]


def _quantiles(tensor: TensorProfile) -> list[float | int | None] | None:
    found = _rounded(tensor.quantiles.get(str(order)) for order in QUANTILES)
    return found if any(value is not None for value in found) else None


def _norms(norms: NormSummary | None) -> Any:
    if norms is None:
        return None
    numbers = [norms.count, *_rounded((norms.min, norms.median, norms.max, norms.cv))]
    return [*numbers, norms.smallest_at[:_MOST_PLACES], norms.largest_at[:_MOST_PLACES]]


def _heads(tensor: TensorProfile) -> Any:
    return [[part.part, part.axis, part.width, _rounded(part.norms)] for part in tensor.heads]


def _largest(tensor: TensorProfile) -> Any:
    return [[element.index, rounded(element.value)] for element in tensor.largest[:_MOST_LARGEST]]


def _experts(experts: Experts) -> Any:
    """Label to one number an expert."""
    series: dict[str, Iterable[float | None]] = {
        "rms": experts.rms,
        "std": experts.std,
        "mean": experts.mean,
        "abs max": experts.abs_max,
        "kurtosis": experts.kurtosis,
        "zeros": experts.zeros,
        "NaN and inf": experts.nonfinite,
    }
    for measure in spectral(experts.spectra):
        key = measure.key.removeprefix("spectrum_")
        if measure.mapped:
            series[measure.label] = [getattr(one, key) if one else None for one in experts.spectra]
    drawn = {label: _rounded(numbers) for label, numbers in series.items()}
    return {label: numbers for label, numbers in drawn.items() if any(number is not None for number in numbers)}


def _same(profile: Profile, place: dict[str, int]) -> dict[int, int]:
    """Tensor to the first tensor with the same bytes, constants left out: their sameness says little."""
    found: dict[int, int] = {}
    for group in profile.same_bytes:
        if not group.constant:
            known = [place[name] for name in group.names if name in place]
            found |= dict.fromkeys(known[1:], known[0]) if known else {}
    return found
