"""The profiler as a library: one call from a path, a hub id or an open checkpoint to its profile."""

from __future__ import annotations

import os
from collections.abc import Callable

from planner.checkpoint import Checkpoint, locate, open_checkpoint
from planner.profile.store import profile_of
from planner.profile.types import Profile

__all__ = ["profile"]


def profile(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    spectra: bool = False,
    workers: int | None = None,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Profile:
    """The statistics of every tensor of a checkpoint: a folder, a hub id with optional `@revision`, or an open one.

    Kept in the cache folder and taken from there while the files are as they were, unless `force` is given. `spectra`
    adds singular values; `workers` is the number of threads, by default one a core; `progress` is told the bytes done.
    Raises a `PlannerError`: a `CheckpointError` where it is no sound checkpoint, `FileUnreadable`, or `ExtraMissing`.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(locate(os.fspath(checkpoint)))
    return profile_of(checkpoint, spectra=spectra, workers=workers, force=force, progress=progress)
