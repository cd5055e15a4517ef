"""What commands on other folders, which were killed, left beside a checkpoint: told to whoever recovers the wrong one.

Leftovers of `apply --out OUT` belong to OUT, of which its user may never have seen a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from planner.fsio.locking import Holder
from planner.transaction.stage import lock_file

__all__ = ["left_beside"]

_LEFT = re.compile(r"\.(?P<owner>.+)\.planner-(stage-[0-9a-f]{8}|journal|aside|lock)", re.DOTALL)


def left_beside(path: Path) -> Mapping[Path, tuple[str, ...]]:
    """Names in the parent folder of `path`, by the folder that they belong to; without its own, and those in use.

    Nothing is locked for that: who begins at the same moment must not be told that somebody is at work.
    """
    names: list[str] = []
    with suppress(OSError):  # a folder that may not be listed
        names = sorted(entry.name for entry in path.parent.iterdir())
    found: dict[Path, tuple[str, ...]] = {}
    for name in names:
        if match := _LEFT.fullmatch(name):
            owner = path.parent / match["owner"]
            if owner.name != path.name and not _at_work(owner):
                found[owner] = (*found.get(owner, ()), name)
    return found


def _at_work(owner: Path) -> bool:
    """Whether a process may be at work there, as its lock says."""
    try:
        holder = Holder.read(lock_file(owner).read_bytes())
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return holder is None or not holder.gone()
