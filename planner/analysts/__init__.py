"""Who writes plans, over one interface: the built-in rules, language models, or chance."""

from __future__ import annotations

from planner.analysts.base import Analyst, Brief
from planner.analysts.choice import AnalystChoice
from planner.analysts.llm import LLMAnalyst
from planner.analysts.measured import MeasuredAnalyst, Study
from planner.analysts.opening import first_question
from planner.analysts.panel import replayed_plan, transcript_path
from planner.analysts.proposing import factors_path, propose_to
from planner.analysts.random_plan import RandomAnalyst
from planner.analysts.rules import RulesAnalyst
from planner.analysts.settings import Asking, Limits, Price
from planner.analysts.track_record import TrackRecord, record_evaluation, track_folder, track_record
from planner.analysts.transcript import Transcript, read_transcript

__all__ = [
    "Analyst",
    "AnalystChoice",
    "Asking",
    "Brief",
    "LLMAnalyst",
    "Limits",
    "MeasuredAnalyst",
    "Price",
    "RandomAnalyst",
    "RulesAnalyst",
    "Study",
    "TrackRecord",
    "Transcript",
    "factors_path",
    "first_question",
    "propose_to",
    "read_transcript",
    "record_evaluation",
    "replayed_plan",
    "track_folder",
    "track_record",
    "transcript_path",
]
