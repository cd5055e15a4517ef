"""Who else has files open or mapped: they would see bytes change under them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from planner.errors import FileInUse

__all__ = ["refuse_in_use"]

_PROC = Path("/proc")


def refuse_in_use(files: Iterable[Path]) -> None:
    """Raise `FileInUse` if another process of this machine has one of the files open or mapped into its memory.

    Processes of other users can only be asked by root. Where there is no /proc, nobody can be asked.
    """
    wanted: dict[tuple[int, int], Path] = {}
    for path in files:
        found = path.stat()
        wanted[found.st_dev, found.st_ino] = path
    for process in _processes():
        for place in _places(process):
            with suppress(OSError):  # closed, or ended, meanwhile
                found = place.stat()
                if (opened := wanted.get((found.st_dev, found.st_ino))) is not None:
                    raise FileInUse(
                        f"process {process.name} ({_called(process)}) has {opened} open",
                        hint="end it first, or write a copy with --out DIR: these very bytes would change under it",
                    )


def _processes() -> list[Path]:
    with suppress(OSError):
        return [path for path in _PROC.iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]
    return []


def _places(process: Path) -> list[Path]:
    """Links to what a process has open and mapped, as far as we may look."""
    found: list[Path] = []
    for folder in ("fd", "map_files"):
        with suppress(OSError):
            found += list((process / folder).iterdir())
    return found


def _called(process: Path) -> str:
    with suppress(OSError):
        return "".join(c if c.isprintable() else "?" for c in (process / "comm").read_text().strip())
    return "?"
