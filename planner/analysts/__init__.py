"""Who writes plans, over one interface: the built-in rules, or a language model."""

from __future__ import annotations

from planner.analysts.base import Analyst, Brief
from planner.analysts.choice import AnalystChoice, factors_path, propose_to, transcript_path
from planner.analysts.llm import LLMAnalyst
from planner.analysts.measured import MeasuredAnalyst, Study
from planner.analysts.rules import RulesAnalyst
from planner.analysts.transcript import Transcript

__all__ = [
    "Analyst",
    "AnalystChoice",
    "Brief",
    "LLMAnalyst",
    "MeasuredAnalyst",
    "RulesAnalyst",
    "Study",
    "Transcript",
    "factors_path",
    "propose_to",
    "transcript_path",
]
