"""How a language model is asked, and how much of everything it may use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.records import Record

__all__ = ["MOST_CALLS", "Asking", "Limits", "Price", "ToolUse"]

MOST_CALLS = 8
"""Calls of one reply that are answered."""

ToolUse = Literal["native", "protocol", "none"]
"""native: the provider's own tool calls. protocol: calls written as JSON. none: one question, one answer."""


class Price(Record):
    """What a model costs."""

    input_usd: float = Field(ge=0)
    """US dollars per million tokens sent."""
    output_usd: float = Field(ge=0)
    """US dollars per million tokens received."""

    def of(self, sent: int, received: int = 0) -> float:
        """US dollars for so many tokens."""
        return (sent * self.input_usd + received * self.output_usd) / 1e6


class Limits(Record):
    """What one conversation may use at most; whichever is reached first ends the investigation, or the attempt."""

    steps: int = Field(default=8, ge=0, le=100)
    """Times that the model may look at something before it has to answer."""
    tokens: int = Field(default=400_000, ge=1000)
    """Tokens sent and received, all requests together."""
    cost_usd: float | None = Field(default=None, gt=0)
    """US dollars; null for no limit."""
    wall_s: float = Field(default=1800, ge=1)
    """Seconds from the first request to the plan."""


class Asking(Record):
    """Everything that decides what a model is asked, but for the model, the goal and what is known."""

    repairs: int = Field(default=2, ge=0, le=10)
    """How often problems go back to the model."""
    partial: bool = False
    """Whether the valid modifications of the last answer are kept where others stay invalid."""
    tools: bool = True
    """Whether the model may look at things before it answers."""
    context_tokens: int | None = Field(default=None, ge=2000)
    """Most tokens of the first question with its tools, by the local estimate; null: 8,000 up to 1,000 tensors, 24,000
    beyond. The schema of the answer, some 3,000 tokens, goes with the question for the plan alone."""
    max_output_tokens: int = Field(default=8192, ge=256)
    """Longest answer, in tokens."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; null sends none."""
    seed: int | None = Field(default=None, ge=0)
    """Sampling seed; null sends none."""
    sample: int = Field(default=0, ge=0)
    """Which of several answers to the same question."""
    timeout_s: float = Field(default=300, ge=1)
    """Seconds to wait for one answer, retries included."""
    limits: Limits = Limits()
    """What all requests together may use."""
    price: Price | None = None
    """What the model costs, where no price list says it."""
