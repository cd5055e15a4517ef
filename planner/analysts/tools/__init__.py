"""The tools that a language model may call before it answers: they show what was measured, and try drafts out.

To add one: a file with a subclass of `AgentTool` in this folder, and its place in `TOOLS`. Name, description and schema
of the arguments follow from the class.
"""

from __future__ import annotations

from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.calling import TOOLS, Called, call, offered

__all__ = ["TOOLS", "AgentTool", "Bench", "Called", "ToolRefused", "call", "offered"]
