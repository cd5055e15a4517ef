"""What every weight of a checkpoint looks like, exactly."""

from __future__ import annotations

from planner.profile.peers import Standing, peer_groups, standings
from planner.profile.profiler import profile_checkpoint
from planner.profile.store import histograms_of, profile_of
from planner.profile.types import OUTLIER_ORDERS, QUANTILES, Profile, Statistics, TensorProfile

__all__ = [
    "OUTLIER_ORDERS",
    "QUANTILES",
    "Profile",
    "Standing",
    "Statistics",
    "TensorProfile",
    "histograms_of",
    "peer_groups",
    "profile_checkpoint",
    "profile_of",
    "standings",
]
