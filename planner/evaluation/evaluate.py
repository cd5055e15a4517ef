"""The whole of an evaluation: load both models, measure every text once, compare, judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from planner import __version__
from planner.errors import SuiteInvalid
from planner.evaluation.gates import judge
from planner.evaluation.pair import Pair, load_pair, tokenize
from planner.evaluation.report import Evaluation, Side, SuiteIdentity, TextIdentity
from planner.evaluation.statistics import LEVEL
from planner.evaluation.suite import Suite
from planner.evaluation.text_loss import Measurement, measure
from planner.evaluation.verdicts import drift_result, metric_results
from planner.inference import quiet, require_torch

__all__ = ["Progress", "evaluate"]

Progress = Callable[[int, int], None]
"""Called with the tokens done and the tokens in all; first with 0 done, last with all."""


@dataclass(frozen=True)
class _Job:
    """One text, cut in one way. Metrics that share it, and the drift, are measured in one pass."""

    text: str
    max_tokens: int | None


def evaluate(
    baseline: Path,
    candidate: Path,
    suite: Suite,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    baseline_side: Side | None = None,
    candidate_side: Side | None = None,
) -> Evaluation:
    """Compare two checkpoint folders on a suite.

    Both are loaded in float32 on the CPU, offline, without running code from the checkpoint, and see the same documents
    in the same batches. `baseline_side` and `candidate_side` say how the result names the two; by default by their
    paths, without a fingerprint. The same inputs, seed and library versions give the same result, up to float32
    rounding. Nothing is printed.

    A candidate whose output is not finite is a result (it is worse, and no gate on it passes), not an error. Raises
    `ExtraMissing` without torch or transformers, `CheckpointError` when a checkpoint cannot be loaded completely, the
    tokenizers disagree or the baseline's loss is not finite, and `SuiteInvalid` when a document has nothing to predict.
    """
    require_torch()
    with quiet():
        pair = load_pair(baseline, candidate)
        measured = _measure_all(pair, suite, progress)
    found = [measured[_Job(metric.text, metric.max_tokens)] for metric in suite.metrics]
    metrics = metric_results(
        [metric.name for metric in suite.metrics],
        [suite.documents(metric.text) for metric in suite.metrics],
        found,
        seed=seed,
    )
    counts = measured[_drift_job(suite)].drift
    assert counts is not None
    drift = drift_result(suite.drift.text, counts)
    gates = judge(suite, metrics, drift)
    return Evaluation(
        baseline=baseline_side or Side(name=str(baseline)),
        candidate=candidate_side or Side(name=str(candidate)),
        suite=SuiteIdentity(
            name=suite.name,
            digest=suite.digest,
            texts=tuple(
                TextIdentity(name=text.name, digest=text.digest, documents=len(text.documents)) for text in suite.texts
            ),
        ),
        seed=seed,
        versions={"planner": __version__} | {name: version(name) for name in ("numpy", "torch", "transformers")},
        correction=f"Holm over {len(metrics)} metrics, raw and calibrated apart; verdicts at {LEVEL:g}, two-sided",
        metrics=metrics,
        drift=drift,
        gates=gates,
        accepted=all(gate.passed for gate in gates),
    )


def _drift_job(suite: Suite) -> _Job:
    return _Job(suite.drift.text, suite.drift.max_tokens)


def _measure_all(pair: Pair, suite: Suite, progress: Progress | None) -> dict[_Job, Measurement]:
    jobs = [_Job(metric.text, metric.max_tokens) for metric in suite.metrics] + [_drift_job(suite)]
    tokens = {job: _tokens(pair, suite, job) for job in dict.fromkeys(jobs)}
    total = sum(len(ids) - 1 for documents in tokens.values() for ids in documents)
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    step(0)
    return {
        job: measure(pair, documents, drift=job == _drift_job(suite), step=step) for job, documents in tokens.items()
    }


def _tokens(pair: Pair, suite: Suite, job: _Job) -> list[list[int]]:
    documents = tokenize(pair, suite.documents(job.text), job.max_tokens)
    short = [number for number, ids in enumerate(documents, start=1) if len(ids) < 2]
    if short:
        raise SuiteInvalid(
            f"{job.text}: {len(short)} documents have no token to predict, such as document {short[0]}",
            hint="the first token is predicted only after a BOS token; use longer documents or a larger max_tokens",
        )
    return documents
