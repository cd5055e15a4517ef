"""The loops over weights, compiled by numba. They release the GIL; nothing in them knows a tensor's name.

A *narrow* tensor (16 bits an element or fewer) is counted pattern by pattern; a *wide* one (32 or 64 bits) has its
moments accumulated. Both passes also sum the squares of each row and column and keep the largest elements. A matrix is
given piece by piece, `first` being the place of a piece's first element in it; `columns` is 0 for what is no matrix.
"""

from __future__ import annotations

from planner.profile.kernels.narrow import fold_counts, tally_halves, tally_table
from planner.profile.kernels.summaries import compress_counts, moments_of_counts, runs_of, summarise_norms
from planner.profile.kernels.wide import BLOCK, MOMENTS, TALLIES, count_digits, merge_moments, tally_wide

__all__ = [
    "BLOCK",
    "MOMENTS",
    "TALLIES",
    "compress_counts",
    "count_digits",
    "fold_counts",
    "merge_moments",
    "moments_of_counts",
    "runs_of",
    "summarise_norms",
    "tally_halves",
    "tally_table",
    "tally_wide",
]
