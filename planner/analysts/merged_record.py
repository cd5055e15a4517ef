"""Who wrote a merged plan: the records of several analysts as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from planner.plan import AnalystRecord, Usage

__all__ = ["merged_record"]

_LONGEST_MODEL = 200
T = TypeVar("T")


def merged_record(records: Sequence[AnalystRecord]) -> AnalystRecord:
    """What was spent is summed; what all have alike is kept; `merged` where they are of different kinds.

    Several models are named one after the other, each once. A cost is known where every cost is.
    """
    if len(records) == 1:
        return records[0]
    costs = [record.usage.cost_usd for record in records]
    models = list(dict.fromkeys(record.model for record in records if record.model))
    first = [record.first_answer_valid for record in records]
    return AnalystRecord(
        kind=_alike(records, lambda record: record.kind) or "merged",
        model=" + ".join(models)[:_LONGEST_MODEL] if models else None,
        asked_for=_alike(records, lambda record: record.asked_for),
        prompt_sha256=_alike(records, lambda record: record.prompt_sha256),
        requests=sum(record.requests for record in records),
        usage=Usage(
            input_tokens=sum(record.usage.input_tokens for record in records),
            output_tokens=sum(record.usage.output_tokens for record in records),
            cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        ),
        temperature=_alike(records, lambda record: record.temperature),
        seed=_alike(records, lambda record: record.seed),
        tool_calls=sum(record.tool_calls for record in records),
        rounds=sum(record.rounds for record in records),
        first_answer_valid=None if None in first else all(first),
        transcripts=tuple(dict.fromkeys(name for record in records for name in record.transcripts)),
    )


def _alike(records: Sequence[AnalystRecord], of: Callable[[AnalystRecord], T]) -> T | None:
    """The value that all of them have; None where they differ."""
    values = {of(record) for record in records}
    return values.pop() if len(values) == 1 else None
