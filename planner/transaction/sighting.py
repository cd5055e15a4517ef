"""What lay in a folder when a transaction began, by names, inodes, sizes and times.

The lock keeps other planners out, and nobody else. What another program writes into the folder in the meantime is not
in the stage, and would be removed with the old files.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from planner import fsio
from planner.errors import FileInUse
from planner.transaction.state import LEDGER_FOLDER

__all__ = ["Sighting"]

Entry = tuple[int, int, int]


@dataclass(frozen=True)
class Sighting:
    """A folder as it was seen, without the ledger."""

    entries: dict[str, Entry | None]
    """Of every file its inode, size in bytes and time of change in ns; None for a folder."""

    @classmethod
    def of(cls, folder: Path) -> Sighting:
        """Now. Raises a `StorageError`."""
        entries: dict[str, Entry | None] = {}
        waiting = [folder]
        with fsio.storage_errors(folder):
            while waiting:
                with os.scandir(waiting.pop()) as found:
                    for entry in found:
                        path = Path(entry.path)
                        if path == folder / LEDGER_FOLDER:
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(path)
                            entries[path.relative_to(folder).as_posix()] = None
                        else:
                            state = entry.stat(follow_symlinks=False)
                            key = path.relative_to(folder).as_posix()
                            entries[key] = state.st_ino, state.st_size, state.st_mtime_ns
        return cls(entries)

    def refuse_changed(self, folder: Path, *, ours: Collection[str] = ()) -> None:
        """Raise `FileInUse` if the folder, whatever its name is now, has changed since; but the bytes of `ours`."""
        then, now = self.entries, Sighting.of(folder).entries
        changed = sorted(
            name
            for name in then.keys() | now.keys()
            if _seen(then.get(name, "nothing"), name in ours) != _seen(now.get(name, "nothing"), name in ours)
        )
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise FileInUse(
                f"another program has changed {', '.join(changed[:3])}{more} in {folder} in the meantime",
                hint="nothing of it is lost and nothing was changed here; wait until it is done, then run this again",
            )


def _seen(entry: Entry | str | None, ours: bool) -> Entry | str | None:
    """What counts of an entry: of a file whose bytes we change, all but the time."""
    return (*entry[:2], 0) if ours and isinstance(entry, tuple) else entry
