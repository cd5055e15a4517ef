"""What the commands say, and where: results to stdout, talk to stderr, one JSON document when that was asked for.

Without a terminal there are no colours and no progress bars, and tables are as wide as their content.
"""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from planner.errors import Interrupted, StorageError
from planner.plain_text import plain
from planner.records import Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["Screen", "plain"]

_PIPED_WIDTH = 1000  # tables are as wide as their content, so no name is cut


class Screen:
    """The two streams of one command."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._changed: Path | None = None
        self._made = False

    @cached_property
    def _out(self) -> Console:
        return _console(stderr=False)

    @cached_property
    def _err(self) -> Console:
        return _console(stderr=True)

    @property
    def width(self) -> int:
        """Columns of the terminal; without one, more than anything takes."""
        return self._out.width

    def say(self, text: str) -> None:
        """Talk: a line for people, to stderr."""
        with suppress(OSError, SystemExit):  # talk that nobody can hear is no reason to stop
            self._err.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def show(self, text: str = "") -> None:
        """A line of the result, for people; nothing with --json."""
        if not self.as_json:
            with self._writing():
                self._out.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def prose(self, text: str, *, indent: int) -> None:
        """A sentence of the result, for people, broken between words and indented by `indent` columns."""
        if not self.as_json:
            margin = " " * indent
            lines = textwrap.wrap(plain(text), max(self.width, 40), initial_indent=margin, subsequent_indent=margin)
            with self._writing():
                self._out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, spare: Sequence[str] = ()
    ) -> None:
        """A table of the result, for people; the first `left` columns are text, the others numbers.

        In a terminal too narrow for it the columns `spare` are left out, one after the other, and that is said: a
        number broken over two lines would be read as another number.
        """
        if self.as_json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        widths = [max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)]
        kept, dropped = list(range(len(headings))), []
        for name in spare:
            if sum(widths[place] for place in kept) + 2 > self.width:
                kept.remove(headings.index(name))
                dropped.append(name)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for place in kept:
            # The first column holds the names that people copy; where room is short, another one is folded.
            justify: Literal["left", "right"] = "left" if place < left else "right"
            table.add_column(Text(headings[place]), justify=justify, overflow="fold", no_wrap=place == 0)
        for row in rows:
            table.add_row(*(Text(plain(row[place])) for place in kept))
        with self._writing():
            self._out.print(table)
        if dropped:
            self.say(f"(left out, because the terminal is narrow: {', '.join(dropped)})")

    def emit(self, document: Record | dict[str, Any]) -> None:
        """The one JSON document of --json; nothing without it."""
        if self.as_json:
            content = document.model_dump(mode="json") if isinstance(document, Record) else document
            with self._writing():
                sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
                sys.stdout.flush()

    @contextmanager
    def change(self, path: Path) -> Iterator[None]:
        """Around a change of the checkpoint in `path`, and what is shown of it.

        From `made` on neither a Ctrl-C nor an output that cannot be written may look as if it had failed: whoever ran
        the command again would undo two patches instead of one.
        """
        self._changed = path
        try:
            yield
        except KeyboardInterrupt:
            if not self._made:
                raise
            raise Interrupted("stopped; the change had been made already", hint=self._history()) from None

    def made(self) -> None:
        """That change is done, for good."""
        self._made = True

    def _history(self) -> str:
        return f"`planner log {shlex.quote(str(self._changed))}` shows it"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises `StorageError` where the output cannot be written."""
        try:
            yield
        except BrokenPipeError:  # the reader has read enough
            raise
        except OSError as error:
            reason = f"the output could not be written: {error.strerror or type(error).__name__}"
            if self._made:
                raise StorageError(f"the change was made, but {reason}", hint=self._history()) from None
            done = "what was asked for may have been done already"
            raise StorageError(f"{reason}; {done}", hint="check where the output goes") from None

    @contextmanager
    def progress(self, what: str, total: int | None = None, *, unit: str = "bytes") -> Iterator[Bar]:
        """A progress bar on stderr; invisible without a terminal."""
        if not self._err.is_terminal:
            yield Bar(None)
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, amount, *times, console=self._err, transient=True) as shown:
            task = shown.add_task(what, total=total)
            yield Bar(shown, task)


class Bar:
    """One progress bar."""

    def __init__(self, shown: Progress | None, task: Any = None) -> None:
        self._shown = shown
        self._task = task
        self._what = ""

    def advance(self, count: int) -> None:
        """So many more are done."""
        if self._shown:
            self._shown.advance(self._task, count)

    def step(self, what: str, done: int, total: int) -> None:
        """This is being done, and so many of so many are."""
        if self._shown:
            if what != self._what:  # the speed of one step says nothing of the next
                self._what = what
                self._shown.reset(self._task, description=what, total=total)
            self._shown.update(self._task, completed=done, total=total)

    def set(self, done: int, total: int) -> None:
        """So many of so many are done."""
        if self._shown:
            self._shown.update(self._task, completed=done, total=total)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()  # asked here, because rich would believe FORCE_COLOR
    return Console(stderr=stderr, force_terminal=terminal, width=None if terminal else _PIPED_WIDTH, emoji=False)
