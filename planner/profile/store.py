"""Profiles kept by fingerprint, so that a second call on the same checkpoint reads no weight.

What connects a folder to a fingerprint without reading it is a signature of its files: names, sizes, modification
times and inodes. That is good enough to spare work and not good enough to trust: whoever changes bytes re-hashes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from planner import __version__, fsio
from planner.checkpoint import Checkpoint, digest_bytes
from planner.errors import StorageError
from planner.profile.profiler import profile_checkpoint
from planner.profile.types import Profile

__all__ = ["cache_folder", "profile_of"]

_SETTLED_NS = 2_000_000_000


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """PLANNER_CACHE, or `planner` in the user's cache folder."""
    if own := environment.get("PLANNER_CACHE"):
        return Path(own).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "planner"


def profile_of(
    checkpoint: Checkpoint,
    *,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
    cache: Path | None = None,
) -> Profile:
    """The profile of a checkpoint: the kept one if its files are as they were, else a new one, which is kept.

    A cache that cannot be read or written costs time, never the result.
    """
    folder = cache or cache_folder()
    signature = _signature(checkpoint)
    if not force and (kept := _kept(folder, signature)):
        return kept.model_copy(update={"name": checkpoint.name})
    started = time.time_ns()
    profile = profile_checkpoint(checkpoint, progress=progress)
    # A file changed within the clock's resolution of our reading it could change again unseen (git calls such an entry
    # racy), and one changed while it was read has another signature now: neither is kept.
    if _signature(checkpoint) == signature and _newest_ns(checkpoint) < started - _SETTLED_NS:
        _keep(folder, signature, profile)
    return profile


def _files(checkpoint: Checkpoint) -> list[Path]:
    return [checkpoint.path / name for name in ("config.json", *(shard.name for shard in checkpoint.shards))]


def _signature(checkpoint: Checkpoint) -> str:
    lines = [os.path.realpath(checkpoint.path)]
    for path in _files(checkpoint):
        if path.exists():
            found = path.stat()
            lines.append(f"{path.name} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}")
    return digest_bytes(os.fsencode("\n".join(lines))).removeprefix("blake3:")


def _newest_ns(checkpoint: Checkpoint) -> int:
    return max(path.stat().st_ctime_ns for path in _files(checkpoint) if path.exists())


def _kept(folder: Path, signature: str) -> Profile | None:
    try:
        fingerprint = (folder / "seen" / signature).read_text(encoding="ascii")
        text = (folder / "profiles" / f"{fingerprint}.json").read_text(encoding="utf-8")
        profile = Profile.model_validate_json(text)
    except (OSError, ValueError):  # among them ValidationError, and the zeros that a power cut leaves for a name
        return None
    ours = profile.fingerprint == f"blake3:{fingerprint}" and profile.planner_version == __version__
    return profile if ours else None  # another version may have computed something else


def _keep(folder: Path, signature: str, profile: Profile) -> None:
    fingerprint = profile.fingerprint.removeprefix("blake3:")
    try:
        for name in ("seen", "profiles"):
            fsio.ensure_folder(folder / name)
        fsio.replace_file(folder / "profiles" / f"{fingerprint}.json", profile.model_dump_json().encode())
        fsio.replace_file(folder / "seen" / signature, fingerprint.encode())
    except StorageError:
        return
