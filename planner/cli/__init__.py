"""The command line: one thin file a verb. Parse, call one function, print."""

from __future__ import annotations

from planner.cli.entry import main

__all__ = ["main"]
