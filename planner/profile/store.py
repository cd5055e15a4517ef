"""Profiles kept by fingerprint, so that a second call on the same checkpoint reads no weight.

What connects a folder to a fingerprint without reading it is a signature of its files: names, sizes, modification
times and inodes, as in git's index. That is good enough to spare work and not good enough to trust: whoever changes
bytes re-hashes. In the cache folder lie

    profiles/FINGERPRINT/   profile.json and, a folder a shard, the histograms; its name says what it describes
    seen/SIGNATURE          the fingerprint that the files of this signature had
    partial/RUN/            the shards that a run had finished when it was interrupted
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from pathlib import Path

from planner import __version__, fsio
from planner.checkpoint import Checkpoint, digest_bytes
from planner.errors import StorageError
from planner.profile.histograms import Histograms
from planner.profile.outline import Profiled, ProfileOutline, outline_from
from planner.profile.partial import SETTLED_NS, PartialRun, signature_of
from planner.profile.pieces import profile_pieces, read_pieces
from planner.profile.types import Profile

__all__ = ["cache_folder", "histograms_of", "outline_of", "profile_of"]


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """PLANNER_CACHE, or `planner` in the user's cache folder."""
    if own := environment.get("PLANNER_CACHE"):
        return Path(own).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "planner"


def profile_of(
    checkpoint: Checkpoint,
    *,
    force: bool = False,
    spectra: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    cache: Path | None = None,
) -> Profile:
    """The profile of a checkpoint: the kept one if its files are as they were, else a new one, which is kept.

    A run that is interrupted goes on, the next time, after the last shard it finished; `force` begins anew. A cache
    that cannot be read or written costs time, never the result. Raises what `profile_checkpoint` raises.
    """
    folder = cache or cache_folder()
    signature = _signature(checkpoint)
    if not force and (kept := _kept(folder, signature)) and (kept.spectra or not spectra):
        return kept.model_copy(update={"name": checkpoint.name})
    from planner.profile.profiler import profile_checkpoint  # here, because numba comes with it

    started = time.time_ns()
    partial = PartialRun(folder, checkpoint, spectra=spectra, force=force)
    profile = profile_checkpoint(checkpoint, spectra=spectra, workers=workers, progress=progress, keeper=partial)
    if _signature(checkpoint) != signature:  # changed while it was read
        return profile
    with suppress(StorageError):
        partial.finish(folder / "profiles" / _hex(profile), profile_pieces(profile))
        # A file changed within the clock's resolution of our reading could change again unseen (git calls such an
        # entry racy): it is not recognised by its signature later.
        if _newest_ns(checkpoint) < started - SETTLED_NS:
            fsio.ensure_folder(folder / "seen")
            fsio.replace_file(folder / "seen" / signature, _hex(profile).encode())
    return profile


def outline_of(
    checkpoint: Checkpoint,
    *,
    whole: Collection[str] = (),
    force: bool = False,
    progress: Callable[[int], None] | None = None,
    cache: Path | None = None,
) -> ProfileOutline:
    """The outline of a checkpoint: that of the kept profile if its files are as they were, else a new one.

    Nothing is written. The tensors named in `whole` are kept whole; of the others only one at a time is in memory.
    `force` passes over what is kept. Raises what `profile_checkpoint` raises.
    """
    if not force and (kept := _kept_outline(cache or cache_folder(), checkpoint, whole)):
        return kept
    from planner.profile.profiler import tensor_profiles  # here, because numba comes with it

    with closing(tensor_profiles(checkpoint, progress=progress)) as tensors:
        return outline_from(checkpoint, tensors, whole)


def histograms_of(profile: Profiled, *, cache: Path | None = None) -> Histograms:
    """The histograms kept with a profile; none where the cache could not be written."""
    return Histograms((cache or cache_folder()) / "profiles" / _hex(profile))


def _hex(profile: Profiled) -> str:
    return profile.fingerprint.removeprefix("blake3:")


def _signature(checkpoint: Checkpoint) -> str:
    lines = [os.path.realpath(checkpoint.path), *map(signature_of, _files(checkpoint))]
    return digest_bytes(os.fsencode("\n".join(lines))).removeprefix("blake3:")


def _files(checkpoint: Checkpoint) -> list[Path]:
    files = [checkpoint.path / name for name in ("config.json", *(shard.name for shard in checkpoint.shards))]
    return [path for path in files if path.exists()]


def _newest_ns(checkpoint: Checkpoint) -> int:
    return max(path.stat().st_ctime_ns for path in _files(checkpoint))


def _kept(folder: Path, signature: str) -> Profile | None:
    try:
        fingerprint, path = _kept_at(folder, signature)
        profile = Profile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # among them ValidationError, and the zeros that a power cut leaves for a name
        return None
    ours = _hex(profile) == fingerprint and profile.planner_version == __version__
    return profile if ours else None  # another version may have computed something else


def _kept_outline(folder: Path, checkpoint: Checkpoint, whole: Collection[str]) -> ProfileOutline | None:
    try:
        fingerprint, path = _kept_at(folder, _signature(checkpoint))
        with path.open(encoding="utf-8") as file:
            fields, tensors = read_pieces(file)
            if fields.get("planner_version") != __version__:
                return None
            found = outline_from(checkpoint, tensors, whole)
    except (OSError, ValueError):
        return None
    return found if _hex(found) == fingerprint else None


def _kept_at(folder: Path, signature: str) -> tuple[str, Path]:
    """The fingerprint that files of this signature had, and where its profile is. Raises OSError or ValueError."""
    fingerprint = (folder / "seen" / signature).read_text(encoding="ascii")
    return fingerprint, folder / "profiles" / fingerprint / "profile.json"
