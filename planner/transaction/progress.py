"""Progress of a transaction, by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Steps"]

Progress = Callable[[str, int, int], None]
"""Told what is being done, the bytes done and the bytes in all."""


@dataclass
class Steps:
    """Turns "so many bytes more" into "so many of so many, in this step"."""

    progress: Progress | None
    total: int = 0
    """Bytes of a step."""

    def step(self, name: str) -> Callable[[int], None]:
        """A counter for the step called `name`."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done = min(done + count, self.total)
            if self.progress:
                self.progress(name, done, self.total)

        return advance
