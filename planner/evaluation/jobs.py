"""What is to be measured: a text, cut in one way. Metrics that share it, and the drift, are measured in one pass."""

from __future__ import annotations

from dataclasses import dataclass

from planner.errors import SuiteInvalid
from planner.evaluation.pair import Pair, tokenize
from planner.evaluation.suite import Metric, Suite

__all__ = ["Job", "drift_job", "job_of", "tokens_of"]


@dataclass(frozen=True)
class Job:
    """One text, cut in one way."""

    text: str
    """The file, as the suite names it."""
    max_tokens: int | None
    """Tokens of a document that are used; None for the model's context."""


def job_of(metric: Metric) -> Job:
    """What a metric measures."""
    return Job(metric.text, metric.max_tokens)


def drift_job(suite: Suite) -> Job:
    """What drift is measured on."""
    return Job(suite.drift.text, suite.drift.max_tokens)


def tokens_of(pair: Pair, suite: Suite, job: Job) -> list[list[int]]:
    """Token ids of its documents. Raises `SuiteInvalid` where one has nothing to predict, and as `tokenize` does."""
    documents = tokenize(pair, suite.documents(job.text), job.max_tokens)
    short = [number for number, ids in enumerate(documents, start=1) if len(ids) < 2]
    if short:
        raise SuiteInvalid(
            f"{job.text}: {len(short)} documents have no token to predict, such as document {short[0]}",
            hint="the first token is predicted only after a BOS token; use longer documents or a larger max_tokens",
        )
    return documents
