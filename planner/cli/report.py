"""`planner report`: what the file is says which page it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json
from planner.errors import OutputExists, UsageError

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.profile import Histograms, Profile

_FINE = 4096  # bins from which the page makes its own


def command(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A profile.json, a transcript, a checkpoint folder or a hub id.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="Write the page to this file.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the page, if it is there already.")] = False,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page: a profile's heat maps, histograms and tables, or a conversation. No network."""
    from planner import fsio
    from planner.cli.console import Screen

    screen = Screen(as_json=as_json)
    _check(out, force=force)
    page = _page(what, screen).encode()
    fsio.replace_file(out, page)
    screen.emit({"report": str(out), "bytes": len(page)})
    screen.show(f"wrote {out} ({len(page):,} bytes)")


def _page(what: str, screen: Screen) -> str:
    """The page of what is in the file, or of the checkpoint's profile."""
    from planner.cli.given import checkpoint_at, profiled
    from planner.inputs import read_text
    from planner.profile import Histograms, histograms_of
    from planner.report import is_transcript, read_document

    path = Path(what)
    if (path / "profile.json").is_file() and not (path / "config.json").exists():  # what `profile --out` wrote
        path = path / "profile.json"
    if path.is_file():
        text = read_text(path)
        if is_transcript(text):
            return _conversation(path)
        return _drawn(read_document(text, str(path)), Histograms(path.parent))
    profile = profiled(checkpoint_at(what), screen)
    return _drawn(profile, histograms_of(profile))


def _drawn(profile: Profile, kept: Histograms) -> str:
    from planner.report import render

    def histogram(name: str) -> tuple[list[float], list[int]] | None:
        found = kept.of(profile.by_name[name])
        return found.bins(_FINE) if found else None

    return render(profile, histogram)


def _conversation(path: Path) -> str:
    from planner.analysts.transcript import read_transcript
    from planner.report import render_transcript

    return render_transcript(read_transcript(path))


def _check(out: Path, *, force: bool) -> None:
    """Before any work. Asking for the suffix keeps --force from replacing weights."""
    from planner import fsio

    if out.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"{out} is no name for a page", hint="give --out a name that ends in .html")
    if out.exists() and not (force and out.is_file()):
        hint = "choose another name with --out" if out.is_dir() else "replace it with --force, or choose another name"
        raise OutputExists(f"{out} exists", hint=hint)
    fsio.require_folder_of(out)
