"""Pipelines: the whole way of the data, unattended and resumable."""

from __future__ import annotations

from planner.pipeline.definition import Pipeline, ReviewRule, Started, read_pipeline
from planner.pipeline.outcome import Outcome
from planner.pipeline.run import FILES, Watcher, run

__all__ = ["FILES", "Outcome", "Pipeline", "ReviewRule", "Started", "Watcher", "read_pipeline", "run"]
