"""From the command line to an exit status: every error becomes two lines a person can act on."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from planner import __version__
from planner.cli import (
    apply,
    check,
    diff,
    evaluate,
    export_patch,
    import_patch,
    lens,
    log,
    map,  # noqa: A004 - the verb
    operations,
    probe,
    profile,
    propose,
    recover,
    report,
    revert,
    review,
    run,
    schemas,
    verify,
)
from planner.errors import Interrupted, PlannerError, StorageError, UsageError

__all__ = ["main"]

app = typer.Typer(
    name="planner",
    help="Change a language model's weights directly: profiled, planned, reviewed, applied, measured, reversible.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _verb, _short in (
    (profile, "Statistics of every tensor, exact."),
    (report, "One HTML page: heat maps, histograms, every tensor."),
    (map, "The architecture: which tensor does what."),
    (operations, "What can be done to a tensor, with examples."),
    (probe, "Measure which weights matter for a goal."),
    (propose, "Write a plan: modifications with reasons and confidence."),
    (import_patch, "A plan from a list of patches made elsewhere."),
    (check, "Everything wrong with a plan, and what it would do."),
    (review, "Approve or reject each modification."),
    (apply, "Apply what is approved, as one transaction."),
    (log, "The history of a checkpoint."),
    (verify, "Re-hash every byte and compare with the ledger."),
    (revert, "Take patches back, bit for bit."),
    (recover, "Clean up after a command that was killed."),
    (export_patch, "One patch as a portable file, for other machines."),
    (diff, "What differs between two checkpoints, and why."),
    (lens, "What each layer would predict; what becomes of a change."),
    (evaluate, "Did it help? Paired statistics, drift, gates."),
    (run, "The whole story from a pipeline file, unattended."),
    (schemas, "Write the JSON schema of every file."),
):
    app.command(_verb.__name__.rpartition(".")[2].replace("_", "-"), short_help=_short)(_verb.command)


# What typer raises for a command line it cannot read. Older versions build on click and newer ones carry a copy of it,
# so the base of all such errors is reached from the one that both export.
_Misread: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        sys.stdout.write(f"planner {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit(UsageError.exit_status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is the one the contract gives. Nothing leaves as a traceback."""
    _prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    deaf = _Deaf(for_good=arguments is None)
    try:
        return _run(given, deaf)
    except KeyboardInterrupt:  # once more, while the first was being reported
        deaf.begin()
        return _told(_STOPPED, given)
    finally:
        deaf.end()


def _run(given: Sequence[str], deaf: _Deaf) -> int:
    try:
        result = app(list(given), prog_name="planner", standalone_mode=False)
        if result == Interrupted.exit_status:  # newer versions of typer answer Ctrl-C by this number
            raise KeyboardInterrupt
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit):  # the latter is how typer passes on the former; nobody else raises it
        # The reader of our output has gone, as in `planner ... | head`. Python would complain again at exit.
        _drop(1)
        return 0
    except _Misread as error:
        return _told(_usage(error), given)
    except (KeyboardInterrupt, typer.Abort):
        deaf.begin()
        return _told(_STOPPED, given)
    except Interrupted as error:
        deaf.begin()
        return _told(error, given)
    except PlannerError as error:
        return _told(error, given)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or type(error).__name__
        return _told(StorageError(f"{where}{reason}", hint="check the path and the disk"), given)
    except Exception as error:
        if os.environ.get("PLANNER_TRACEBACK"):
            raise
        message = f"{type(error).__name__}: {error}"
        return _told(PlannerError(message, hint="a bug in the planner; PLANNER_TRACEBACK=1 shows where"), given)


_STOPPED = Interrupted("stopped; nothing is half-done", hint="run the command again")


class _Deaf:
    """From the report of a Ctrl-C on, another one is not heard: there is nothing left to stop.

    `for_good` where the process ends with this command; else the next command hears it again.
    """

    def __init__(self, *, for_good: bool) -> None:
        self._for_good = for_good
        self._before: object = None

    def begin(self) -> None:
        with suppress(ValueError):  # not in the main thread, which alone hears it
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._before = self._before or before

    def end(self) -> None:
        if callable(self._before) and not self._for_good:
            signal.signal(signal.SIGINT, self._before)


def _prepare_streams() -> None:
    """Give every command the three streams, and let what they cannot say be escaped.

    A stream that was closed (`>&-`) has no object in Python, and its number would be that of the next file opened: a
    shard, say, in which the next message would end up.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _drop(number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name in another alphabet, where the locale is C
            stream.reconfigure(errors="backslashreplace")


def _usage(error: typer.BadParameter) -> UsageError:
    command = error.ctx.command_path if error.ctx is not None else "planner"
    return UsageError(error.format_message().rstrip("."), hint=f"`{command} --help` shows how it is used")


def _told(error: PlannerError, given: Sequence[str]) -> int:
    from planner.cli.console import plain

    # Names from a stranger's file may be part of a message, and must not steer the terminal; nor may a line break in
    # one look like the beginning of another line of ours.
    first, *more = error.message.splitlines() or [""]
    problems: tuple[str, ...] = getattr(error, "problems", ())
    lines = [f"error[{error.code}]: {plain(first)}", *(f"  {plain(line)}" for line in more)]
    lines += [*(f"  - {plain(problem)}" for problem in problems), f"hint: {plain(error.hint)}"]
    try:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
    except OSError:  # nobody can be told; the exit status is what it is
        _drop(2)
    try:
        if "--json" in given:
            document: dict[str, object] = {"code": error.code, "message": error.message, "hint": error.hint}
            if problems:
                document["problems"] = list(problems)
            sys.stdout.write(json.dumps({"error": document}, indent=2) + "\n")
        sys.stdout.flush()
    except OSError:  # stdout itself is what cannot be written
        _drop(1)
    return error.exit_status


def _drop(number: int) -> None:
    """Let what is written to that descriptor go nowhere, what waits in a buffer of Python's as well."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
