"""The whole of an evaluation: load both models, measure every text once, compare, judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from planner import __version__
from planner.checkpoint import open_checkpoint
from planner.evaluation.controls import Wanted, controls_of, decisive_metric, planned
from planner.evaluation.gates import judge
from planner.evaluation.jobs import Job, drift_job, job_of, tokens_of
from planner.evaluation.pair import load_pair
from planner.evaluation.report import Evaluation, Side, SuiteIdentity, TextIdentity
from planner.evaluation.statistics import LEVEL
from planner.evaluation.suite import Suite
from planner.evaluation.text_loss import measure
from planner.evaluation.verdicts import drift_result, metric_results
from planner.inference import quiet, require_torch

__all__ = ["Progress", "evaluate"]

Progress = Callable[[int, int], None]
"""Called with the tokens done and the tokens in all; first with 0 done, last with all."""


def evaluate(
    baseline: Path,
    candidate: Path,
    suite: Suite,
    *,
    seed: int = 0,
    controls: Wanted | None = None,
    progress: Progress | None = None,
    baseline_side: Side | None = None,
    candidate_side: Side | None = None,
) -> Evaluation:
    """Compare two checkpoint folders on a suite.

    Both are loaded in float32 on the CPU, offline, without running code from the checkpoint, and see the same documents
    in the same batches. `controls` says how many random plans the candidate is compared with, and by which plan it was
    made; by default none are run. They are measured on the loaded baseline, after the candidate is dropped.
    `baseline_side` and `candidate_side` say how the result names the two; by default by their paths, without a
    fingerprint. The same inputs, seed and library versions give the same result, up to float32 rounding. Nothing is
    printed.

    A candidate whose output is not finite is a result (it is worse, and no gate on it passes), not an error. Raises
    `ExtraMissing` without torch or transformers, `CheckpointError` when a checkpoint cannot be loaded completely, the
    tokenizers disagree or the baseline's loss is not finite, and `SuiteInvalid` when a document has nothing to predict.
    """
    require_torch()
    wanted = controls or Wanted(count=0)
    decisive = decisive_metric(suite)
    checkpoint = open_checkpoint(baseline)
    with quiet():
        pair = load_pair(baseline, candidate)
        tokens = {job: tokens_of(pair, suite, job) for job in _jobs(suite)}
        ready = planned(checkpoint, pair, wanted, seed=seed)
        sizes = {job: sum(len(ids) - 1 for ids in documents) for job, documents in tokens.items()}
        passes = len(ready.plans) + 1 if wanted.count else 0
        step = _steps(progress, sum(sizes.values()) + passes * sizes[job_of(decisive)])
        measured = {
            job: measure(pair, documents, drift=job == drift_job(suite), step=step) for job, documents in tokens.items()
        }
        pair = replace(pair, candidate=pair.baseline)
        found = [measured[job_of(metric)] for metric in suite.metrics]
        metrics = metric_results(
            [metric.name for metric in suite.metrics],
            [suite.documents(metric.text) for metric in suite.metrics],
            found,
            seed=seed,
        )
        place = suite.metrics.index(decisive)
        against = controls_of(
            checkpoint, suite, pair, found[place], metrics[place], ready, wanted, seed=seed, step=step
        )
    counts = measured[drift_job(suite)].drift
    assert counts is not None
    drift = drift_result(suite.drift.text, counts)
    gates = judge(suite, metrics, drift, against)
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
        controls=against,
        gates=gates,
        accepted=all(gate.passed for gate in gates),
    )


def _jobs(suite: Suite) -> tuple[Job, ...]:
    return tuple(dict.fromkeys([*map(job_of, suite.metrics), drift_job(suite)]))


def _steps(progress: Progress | None, total: int) -> Callable[[int], None]:
    """What adds up tokens, and tells how many of `total` are done; 0 are."""
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    step(0)
    return step
