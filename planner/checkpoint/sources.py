"""From what the user typed to a folder: a path, or a model id with an optional @revision.

An id is looked up in the Hugging Face hub cache first, which needs no network and no library. Only if it is not there,
the network is allowed and `huggingface_hub` is installed, is it fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from planner.errors import NotACheckpoint

__all__ = ["hub_cache", "in_hub_cache", "locate", "set_aside"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?(@[A-Za-z0-9._/-]+)?")
_COMMIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.md", "*.jinja"]


def locate(model: str, *, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of a checkpoint. Raises `NotACheckpoint` if it is neither a folder nor to be had from the hub."""
    if (path := _existing(Path(model))) is not None:
        return path.absolute()  # not resolve(): the user's own name for it is the one to show
    if (aside := _existing(set_aside(Path(model)))) is not None:
        raise NotACheckpoint(
            f"{model} was being changed in its place, and that was interrupted: it is in {aside}",
            hint=f"make it whole: `planner recover {model}`",
        )
    if not _ID.fullmatch(model) or (model.count("/") == 1 and Path(model).parent.is_dir()):
        raise NotACheckpoint(f"{model} does not exist", hint="name a folder, or a model id such as org/name@revision")
    identifier, _, revision = model.partition("@")
    return _cached(identifier, revision or "main", hub_cache(environment)) or _fetched(
        identifier, revision or "main", environment
    )


def _existing(path: Path) -> Path | None:
    try:
        path = path.expanduser()
        return path if path.exists() else None
    except PermissionError:
        return path  # it may well be there; whoever opens it says what is wrong
    except (OSError, RuntimeError):  # a name too long, ~nobody
        return None


def set_aside(path: Path) -> Path:
    """Where the checkpoint `path` is while it is overwritten in its place."""
    return path.with_name(f".{path.name}.planner-aside") if path.name else path / ".planner-aside"


def hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the hub's own library keeps its cache."""
    if cache := environment.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := environment.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(environment.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def in_hub_cache(path: Path) -> bool:
    """Whether `path` is a snapshot of a hub cache, whose files are shared links and must never be changed."""
    repository = path.parent.parent
    return path.parent.name == "snapshots" and (
        repository.name.startswith("models--") or (repository / "blobs").is_dir()
    )


def _cached(identifier: str, revision: str, cache: Path) -> Path | None:
    repository = cache / ("models--" + identifier.replace("/", "--"))
    if ".." in Path(revision).parts or Path(revision).is_absolute():
        return None  # a revision never leads out of the cache
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision  # a commit names its snapshot directly
    if not _COMMIT.fullmatch(commit):
        return None
    return _existing(repository / "snapshots" / commit)


def _fetched(identifier: str, revision: str, environment: Mapping[str, str]) -> Path:
    missing = f"{identifier} (revision {revision}) is neither a folder nor in the hub cache {hub_cache(environment)}"
    if any(
        environment.get(name, "").lower() in {"1", "true", "yes", "on"}
        for name in ("PLANNER_OFFLINE", "HF_HUB_OFFLINE")
    ):
        raise NotACheckpoint(missing, hint="the network is switched off; name a folder, or fetch the model first")
    if "/" not in identifier:  # more likely a folder's name mistyped than one of the few ids without an owner
        raise NotACheckpoint(missing, hint="name a folder, or a model id such as org/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise NotACheckpoint(
            missing, hint="name a folder, or `pip install huggingface_hub` to have it fetched"
        ) from None
    try:
        return Path(
            snapshot_download(identifier, revision=revision, allow_patterns=_PATTERNS, cache_dir=hub_cache(environment))
        )
    except Exception as error:  # noqa: BLE001 - whatever the hub's library raises, the model could not be had
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise NotACheckpoint(
            f"{missing}, and fetching it failed: {reason}", hint="check the id and the network"
        ) from None
