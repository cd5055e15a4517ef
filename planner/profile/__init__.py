"""What every weight of a checkpoint looks like, exactly. Can be called: `planner.profile("my-model")`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from planner.profile.histograms import Histogram, Histograms
from planner.profile.library import profile
from planner.profile.outline import Outlined, Profiled, ProfileOutline
from planner.profile.peers import Standing, peer_groups, standings
from planner.profile.store import histograms_of, outline_of, profile_of
from planner.profile.types import OUTLIER_ORDERS, QUANTILES, Profile, Statistics, TensorProfile

if TYPE_CHECKING:
    from planner.checkpoint import Checkpoint
    from planner.profile.profiler import profile_checkpoint

__all__ = [
    "OUTLIER_ORDERS",
    "QUANTILES",
    "Histogram",
    "Histograms",
    "Outlined",
    "Profile",
    "ProfileOutline",
    "Profiled",
    "Standing",
    "Statistics",
    "TensorProfile",
    "histograms_of",
    "outline_of",
    "peer_groups",
    "profile",
    "profile_checkpoint",
    "profile_of",
    "standings",
]


class _Callable(ModuleType):
    """So that the package of this name is the function of this name as well."""

    def __call__(
        self,
        checkpoint: Checkpoint | str | os.PathLike[str],
        *,
        spectra: bool = False,
        workers: int | None = None,
        force: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Profile:
        return profile(checkpoint, spectra=spectra, workers=workers, force=force, progress=progress)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str) -> Any:
    if name == "profile_checkpoint":  # numba comes with it: only those who read weights pay for that
        from planner.profile.profiler import profile_checkpoint

        return profile_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
