"""From per-document losses to the results of metrics: comparisons, correction for several metrics, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.errors import CheckpointError
from planner.evaluation.report import Calibrated, DriftResult, MetricResult, RawVerdict, Temperatures, Verdict
from planner.evaluation.statistics import LEVEL, Comparison, compare, holm
from planner.evaluation.temperature import assign_folds, best_inverse_temperature, cross_fit

if TYPE_CHECKING:
    from planner.evaluation.text_loss import DriftCounts, Measurement

__all__ = ["RESOLUTION", "Calibration", "calibrate", "drift_result", "metric_results", "nonfinite", "verdict_of"]

RESOLUTION = 1e-4
"""Nats per token. Interpolated temperatures and float32 leave errors below this that can all have one sign; a test over
documents would find such an error significant, so a smaller difference is never called a change."""


@dataclass(frozen=True)
class Calibration:
    """A comparison with each side at its own best logit temperature."""

    losses: tuple[float, float]
    """Of baseline and candidate, nats per token."""
    comparison: Comparison
    """Of these losses, each document at a temperature fitted on other documents."""
    temperatures: tuple[float, float]
    """The best of baseline and candidate on all documents."""
    at_limit: bool
    """Whether one of them lies at the limit of the search."""


def metric_results(
    names: Sequence[str], documents: Sequence[Sequence[str]], measured: Sequence[Measurement], *, seed: int
) -> tuple[MetricResult, ...]:
    """One result for each text_loss metric; the three sequences run over the metrics.

    p-values are adjusted over the metrics (raw and calibrated are two families). A candidate whose loss is not finite
    on some document is worse, without numbers. Raises `CheckpointError` when the baseline's loss is not finite.
    """
    raw: list[Comparison | None] = []
    calibrated: list[Calibration | None] = []
    for name, texts, found in zip(names, documents, measured, strict=True):
        broken = nonfinite(found.baseline.nll, found.baseline.curves.values)
        if broken:
            raise CheckpointError(
                f"the baseline's loss is not finite on {broken} of {len(texts)} documents of {name!r}",
                hint="there is nothing to compare with; check the baseline's weights",
            )
        if nonfinite(found.candidate.nll, found.candidate.curves.values):
            raw.append(None)
            calibrated.append(None)
        else:
            raw.append(compare(found.candidate.nll - found.baseline.nll, found.tokens, seed=seed))
            calibrated.append(calibrate(found, texts, seed))
    raw_holm = holm([None if one is None else one.p_value for one in raw])
    calibrated_holm = holm([None if one is None else one.comparison.p_value for one in calibrated])
    return tuple(
        _result(*parts) for parts in zip(names, measured, raw, raw_holm, calibrated, calibrated_holm, strict=True)
    )


def drift_result(text: str, counts: DriftCounts) -> DriftResult:
    """Mean and 99th percentile of the divergence, and the agreement, over all tokens."""
    kl = counts.kl.astype(np.float64)
    broken = int(np.count_nonzero(~np.isfinite(kl)))
    return DriftResult(
        text=text,
        tokens=len(kl),
        kl_mean=None if broken else float(kl.mean()),
        kl_p99=None if broken else float(np.quantile(kl, 0.99)),
        top1_agreement=counts.same_top / len(kl),
        nonfinite_tokens=broken,
    )


def nonfinite(nll: NDArray[np.float64], curves: NDArray[np.float64]) -> int:
    """On how many of n documents a loss is not finite: `nll` of shape [n], `curves` of shape [n, nodes]."""
    # A loss that is finite by itself but overflows at another temperature comes from logits near float32's limit.
    return int(np.count_nonzero(~(np.isfinite(nll) & np.isfinite(curves).all(axis=1))))


def calibrate(found: Measurement, documents: Sequence[str], seed: int) -> Calibration:
    """The comparison of two sides whose losses are finite. `documents` are the texts that were measured on."""
    folds = assign_folds(documents)
    sides = (found.baseline.curves, found.candidate.curves)
    losses = [cross_fit(side, folds) for side in sides]
    best = [best_inverse_temperature(side) for side in sides]
    total = found.tokens.sum()
    return Calibration(
        losses=(float(losses[0].sum() / total), float(losses[1].sum() / total)),
        comparison=compare(losses[1] - losses[0], found.tokens, seed=seed),
        temperatures=(1.0 / best[0][0], 1.0 / best[1][0]),
        at_limit=best[0][1] or best[1][1],
    )


def _result(
    name: str,
    found: Measurement,
    raw: Comparison | None,
    raw_p: float | None,
    calibrated: Calibration | None,
    calibrated_p: float | None,
) -> MetricResult:
    tokens = found.tokens.sum()
    shared = {
        "name": name,
        "kind": "text_loss",
        "n": len(found.tokens),
        "tokens": int(tokens),
        "baseline": float(found.baseline.nll.sum() / tokens),
        "nonfinite_documents": nonfinite(found.candidate.nll, found.candidate.curves.values),
        "p_holm": raw_p,
    }
    if raw is None or raw_p is None or calibrated is None or calibrated_p is None:
        gone = ("candidate", "difference", "interval", "p_value", "share_better", "mde", "calibrated")
        verdicts = {"raw_verdict": "worse", "verdict": "worse", "test": "none: the candidate's loss is not finite"}
        return MetricResult.model_validate(shared | verdicts | dict.fromkeys(gone))
    raw_verdict = verdict_of(raw, raw_p)
    compared = calibrated.comparison
    calibrated_verdict = verdict_of(compared, calibrated_p)
    if calibrated.at_limit and calibrated_verdict == "improved":
        calibrated_verdict = "no detectable change"
    return MetricResult.model_validate(
        shared
        | {
            "candidate": float(found.candidate.nll.sum() / tokens),
            "difference": raw.difference,
            "interval": raw.interval,
            "p_value": raw.p_value,
            "test": raw.test,
            "share_better": raw.share_better,
            "mde": raw.mde,
            "raw_verdict": raw_verdict,
            "verdict": _verdict(raw_verdict, calibrated_verdict),
            "calibrated": Calibrated(
                baseline=calibrated.losses[0],
                candidate=calibrated.losses[1],
                difference=compared.difference,
                interval=compared.interval,
                p_value=compared.p_value,
                p_holm=calibrated_p,
                mde=compared.mde,
                verdict=calibrated_verdict,
                temperatures=Temperatures(baseline=calibrated.temperatures[0], candidate=calibrated.temperatures[1]),
                at_limit=calibrated.at_limit,
            ),
        }
    )


def verdict_of(compared: Comparison, p_holm: float) -> RawVerdict:
    """What one comparison says, with its p-value adjusted for the number of metrics."""
    low, high = compared.interval
    if p_holm >= LEVEL or abs(compared.difference) < RESOLUTION:
        return "no detectable change"
    if high < 0:
        return "improved"
    return "worse" if low > 0 else "no detectable change"


def _verdict(raw: RawVerdict, calibrated: RawVerdict) -> Verdict:
    if raw == "worse":
        return "worse"
    if calibrated == "improved":
        return "improved"
    return "temperature only" if raw == "improved" else "no detectable change"
