"""What is accumulated over the elements of one matrix: counts or moments, norms, the largest elements."""

from __future__ import annotations

from planner.profile.tallies.base import Described, Matrix, Scratch, SecondLook, Tally
from planner.profile.tallies.describing import describe, tally_for
from planner.profile.tallies.norms import Norms

__all__ = ["Described", "Matrix", "Norms", "Scratch", "SecondLook", "Tally", "describe", "tally_for"]
