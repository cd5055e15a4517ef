"""Who writes plans, over one interface: the built-in rules, or a language model."""

from __future__ import annotations

from planner.analysts.base import Analyst, Brief
from planner.analysts.choice import AnalystChoice, propose_to, transcript_path
from planner.analysts.llm import LLMAnalyst
from planner.analysts.rules import RulesAnalyst
from planner.analysts.transcript import Transcript

__all__ = [
    "Analyst",
    "AnalystChoice",
    "Brief",
    "LLMAnalyst",
    "RulesAnalyst",
    "Transcript",
    "propose_to",
    "transcript_path",
]
