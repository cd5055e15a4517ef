"""Text files that the user names."""

from __future__ import annotations

from pathlib import Path

from planner.errors import FileUnreadable

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """The file as UTF-8 text. Raises `FileUnreadable`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}", hint="check the path") from None
    except UnicodeDecodeError:
        raise FileUnreadable(f"{path} is not UTF-8 text", hint="is it the right file?") from None
